"""A training run on disk, and the loop that both training stages share.

A run folder holds `run.json` (its config), `checkpoints/`, `latents/`, `logs/` (TensorBoard), `samples/` and, at the
end, `world/`. Everything random in a step is keyed by (seed, stage, step), so that an interrupted run goes on
as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import re
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from farworld.console import progress_bar
from farworld.train.config import TrainConfig, from_json, to_json

CONFIG_FILE = "run.json"  # not config.json, which is a world's
COMMANDS_FILE = "commands.txt"  # one line for each sitting
KEPT_CHECKPOINTS = 2
Tensors = tuple[torch.Tensor, ...] | list[torch.Tensor]


class Run:
    """The folder of a run."""

    def __init__(self, path: Path, config: TrainConfig) -> None:
        self.path = path
        self.config = config
        self.checkpoints = path / "checkpoints"
        self.latents = path / "latents"
        self.logs = path / "logs"
        self.samples = path / "samples"
        self.world = path / "world"
        for folder in (self.checkpoints, self.latents, self.logs, self.samples):
            folder.mkdir(parents=True, exist_ok=True)
        write_json(path / CONFIG_FILE, to_json(config))
        with open(path / COMMANDS_FILE, "a", encoding="utf-8") as file:
            file.write(" ".join(["farworld", *sys.argv[1:]]) + "\n")

    @staticmethod
    def stored_config(path: Path) -> TrainConfig | None:
        """The config of a run begun before, or None."""
        file = path / CONFIG_FILE
        return from_json(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None

    @property
    def commands(self) -> list[str]:
        """The command of each sitting."""
        return (self.path / COMMANDS_FILE).read_text(encoding="utf-8").splitlines()

    def checkpoint_files(self, stage: str) -> list[Path]:
        """Checkpoints of a stage, newest first."""
        pattern = re.compile(rf"{stage}-\d{{8}}\.pt")
        return sorted((file for file in self.checkpoints.iterdir() if pattern.fullmatch(file.name)), reverse=True)

    def save_checkpoint(self, stage: str, state: dict) -> Path:
        """Write a checkpoint atomically and drop all but the newest few."""
        path = self.checkpoints / f"{stage}-{state['step']:08d}.pt"
        temporary = path.with_suffix(".tmp")
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        for old in self.checkpoint_files(stage)[KEPT_CHECKPOINTS:]:
            old.unlink()
        return path

    def load_checkpoint(self, stage: str) -> dict | None:
        """The newest readable checkpoint of a stage; a damaged one is passed over with a warning."""
        for path in self.checkpoint_files(stage):
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                warnings.warn(f"{path} is damaged ({reason}); going back to the one before", stacklevel=2)
        return None


def write_json(path: Path, values: dict) -> None:
    """Write a JSON file atomically."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


@dataclass(slots=True)
class TrainState:
    """What a stage trains; the only writer is `fit`."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None = None
    step: int = 0
    seconds: float = 0.0  # spent in all sittings

    def state_dict(self) -> dict:
        """Everything that a resumed run needs."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average else {},
        }

    def load_state_dict(self, state: dict) -> None:
        """The inverse of state_dict."""
        self.step, self.seconds = state["step"], state["seconds"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.load_state_dict(state["average"])


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of the parameters, with a shorter memory in the first steps."""

    def update(average: Tensors, current: Tensors, num_averaged: torch.Tensor | int) -> None:
        count = int(num_averaged)
        torch._foreach_lerp_(average, current, 1 - min(decay, (1 + count) / (10 + count)))

    return AveragedModel(model, multi_avg_fn=update)


def learning_rate_factor(step: int, total_steps: int, config: TrainConfig) -> float:
    """Linear warm-up, a plateau, and a linear decay to zero over the last part."""
    warmup = min(1.0, (step + 1) / max(1, min(config.warmup_steps, total_steps // 10)))
    decay_steps = max(1, round(total_steps * config.decay_fraction))
    return min(warmup, max(0.0, (total_steps - step) / decay_steps), 1.0)


def step_generator(config: TrainConfig, stage: int, step: int) -> torch.Generator:
    """The source of everything random in one step."""
    return torch.Generator().manual_seed((config.seed * 4 + stage) * 2**40 + step)


def autocast(config: TrainConfig, device: torch.device) -> contextlib.AbstractContextManager:
    """Mixed precision as the config has it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(config, device))


def uses_bfloat16(config: TrainConfig, device: torch.device) -> bool:
    """Whether matrices are multiplied in bfloat16; without hardware for it a CPU is slower that way."""
    if config.precision != "auto":
        return config.precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def fit(
    run: Run,
    stage: str,
    state: TrainState,
    *,
    total_steps: int,
    frames_per_step: int,
    loss_of_step: Callable[[int], torch.Tensor],
    sample: Callable[[int], None],
) -> None:
    """Train until `total_steps`, from wherever the run's checkpoints are.

    Args:
        run: the folder for checkpoints and logs.
        stage: name of the stage in files and logs.
        state: what is trained.
        total_steps: steps in all, those of earlier sittings included.
        frames_per_step: frames that one step looks at, for the rate that is shown.
        loss_of_step: the loss of a step; a function of the step alone and of the weights.
        sample: draws samples of a step into the run's folder.

    Raises:
        ValueError: the loss is not finite; the last checkpoint is intact.
    """
    from torch.utils.tensorboard import SummaryWriter

    config = run.config
    # The config's rates, taken before a checkpoint brings those of an earlier sitting.
    rates = [group["lr"] for group in state.optimizer.param_groups]
    stored = run.load_checkpoint(stage)
    if stored is not None:
        state.load_state_dict(stored)
    if state.step >= total_steps:
        return
    state.model.train()
    parameters = [p for p in state.model.parameters() if p.requires_grad]
    began = time.perf_counter() - state.seconds

    def save() -> None:
        state.seconds = time.perf_counter() - began
        run.save_checkpoint(stage, state.state_dict())

    with (
        SummaryWriter(str(run.logs), purge_step=state.step) as log,
        progress_bar(f"{stage:<11}", total_steps * frames_per_step, unit="frames",
                     completed=state.step * frames_per_step) as advance,
    ):  # fmt: skip
        try:
            while state.step < total_steps:
                factor = learning_rate_factor(state.step, total_steps, config)
                for group, rate in zip(state.optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
                loss = loss_of_step(state.step)
                state.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                norm = nn.utils.clip_grad_norm_(parameters, config.gradient_clip)
                if not math.isfinite(value := float(loss.detach())):
                    raise ValueError(
                        f"the {stage} loss is {value} at step {state.step}; lower learning_rate with --set and resume"
                    )
                state.optimizer.step()
                if state.average:
                    state.average.update_parameters(state.model)
                state.step += 1
                advance(frames_per_step, note=f"step {state.step}/{total_steps} loss {value:.4f}")
                if state.step % config.log_every == 0:
                    log.add_scalar(f"{stage}/loss", value, state.step)
                    log.add_scalar(f"{stage}/gradient_norm", float(norm), state.step)
                    log.add_scalar(f"{stage}/learning_rate_factor", factor, state.step)
                if state.step % config.checkpoint_every == 0 or state.step == total_steps:
                    save()
                if state.step % config.sample_every == 0 or state.step == total_steps:
                    sample(state.step)
                    state.model.train()
        except KeyboardInterrupt:
            save()
            raise
