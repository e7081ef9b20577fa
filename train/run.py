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
import shlex
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from farworld.console import progress_bar
from farworld.lock import lock_folder
from farworld.train.config import TrainConfig, from_json, to_json

CONFIG_FILE = "run.json"  # not config.json, which is a world's
COMMANDS_FILE = "commands.txt"  # one line for each sitting
KEPT_CHECKPOINTS = 2
Tensors = tuple[torch.Tensor, ...] | list[torch.Tensor]


class Run:
    """The folder of a run; one process at a time has it open."""

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
        self._lock = lock_folder(path)
        write_json(path / CONFIG_FILE, to_json(config))
        with open(path / COMMANDS_FILE, "a", encoding="utf-8") as file:
            file.write(shlex.join(["farworld", *sys.argv[1:]]) + "\n")

    def close(self) -> None:
        """Let another process go on with the run."""
        self._lock.close()

    @staticmethod
    def stored_config(path: Path) -> TrainConfig | None:
        """The config of a run begun before, or None."""
        file = path / CONFIG_FILE
        if not file.is_file():
            return None
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            return from_json(values if isinstance(values, dict) else {})
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

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
        try:
            with open(temporary, "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)  # a full disk keeps nothing of it
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
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)  # scalars of the last step, for the log

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
    left = (total_steps - step) / (total_steps - config.decay_start(total_steps))
    return min(warmup, max(0.0, left), 1.0)


def step_generator(config: TrainConfig, stage: int, step: int) -> torch.Generator:
    """The source of everything random in one step."""
    key = np.random.SeedSequence([config.seed, stage, step]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(key >> np.uint64(1)))


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


@contextlib.contextmanager
def interrupts_held() -> Iterator[Callable[[], bool]]:
    """Hold back the first Ctrl-C, so that a step is never cut in two; a second one interrupts at once.

    Yields:
        A function that says whether the first one has come.
    """
    came = False

    def hold(signum: int, frame: object) -> None:
        nonlocal came
        came = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield lambda: False
        return
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, hold)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, before)


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
        KeyboardInterrupt: Ctrl-C, after the step in progress and its checkpoint.
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
    began = time.perf_counter() - state.seconds
    bar = progress_bar(
        f"{stage:<11}", total_steps * frames_per_step, unit="frames", completed=state.step * frames_per_step
    )
    with SummaryWriter(str(run.logs / stage), purge_step=state.step) as log, bar as advance, interrupts_held() as held:
        while state.step < total_steps:
            factor = learning_rate_factor(state.step, total_steps, config)
            for group, rate in zip(state.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            loss, norm = _update(state, stage, loss_of_step(state.step), config.gradient_clip)
            advance(frames_per_step, note=f"step {state.step}/{total_steps} loss {loss:.4f}")
            interrupted, finished = held(), state.step == total_steps
            if state.step % config.log_every == 0:
                log.add_scalar(f"{stage}/loss", loss, state.step)
                log.add_scalar(f"{stage}/gradient_norm", norm, state.step)
                log.add_scalar(f"{stage}/learning_rate_factor", factor, state.step)
                for name, scalar in state.metrics.items():
                    log.add_scalar(f"{stage}/{name}", scalar, state.step)
            if state.step % config.checkpoint_every == 0 or finished or interrupted:
                state.seconds = time.perf_counter() - began
                run.save_checkpoint(stage, state.state_dict())
            if interrupted:
                raise KeyboardInterrupt
            if state.step % config.sample_every == 0 or finished:
                sample(state.step)
                state.model.train()


def _update(state: TrainState, stage: str, loss: torch.Tensor, gradient_clip: float) -> tuple[float, float]:
    """One step of the optimizer; the loss and the gradient's norm."""
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = float(nn.utils.clip_grad_norm_(state.model.parameters(), gradient_clip))
    value = float(loss.detach())
    if not (math.isfinite(value) and math.isfinite(norm)):
        raise ValueError(
            f"the {stage} loss is {value} and its gradient's norm {norm} at step {state.step}; "
            "lower the stage's learning rate with --set, and go on with --resume"
        )
    state.optimizer.step()
    if state.average:
        state.average.update_parameters(state.model)
    state.step += 1
    return value, norm
