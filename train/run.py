"""A training run on disk, and the loop that both training stages share.

A run folder holds `run.json` (its config), `checkpoints/`, `latents/`, `logs/` (TensorBoard), `samples/` and, at the
end, `world/`. Everything random in a step is keyed by (seed, stage, step, item), so that an interrupted run goes on
as if nothing had happened, and several processes learn what one would have learnt.
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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel

from farworld.console import progress_bar
from farworld.device import has_bfloat16
from farworld.lock import lock_folder
from farworld.train.config import TrainConfig, from_json, to_json
from farworld.train.log import open_log
from farworld.train.ranks import Ranks, averaged_gradients
from farworld.train.sharding import own_part, own_parts, whole

CONFIG_FILE = "run.json"  # not config.json, which is a world's
COMMANDS_FILE = "commands.txt"  # one line for each sitting
CPU = torch.device("cpu")
KEPT_CHECKPOINTS = 2
Tensors = tuple[torch.Tensor, ...] | list[torch.Tensor]


class Run:
    """The folder of a run; one process at a time has it open for writing."""

    def __init__(self, path: Path, config: TrainConfig, ranks: Ranks) -> None:
        """Open the folder: the first rank writes in it, the others read."""
        self.path = path
        self.config = config
        self.ranks = ranks
        self.checkpoints = path / "checkpoints"
        self.latents = path / "latents"
        self.logs = path / "logs"
        self.samples = path / "samples"
        self.world = path / "world"
        self._lock: IO[bytes] | None = None
        if ranks.is_first:
            self._begin()
        ranks.wait()

    def _begin(self) -> None:
        path, config = self.path, self.config
        for folder in (self.checkpoints, self.latents, self.logs, self.samples):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock_folder(path)
        write_json(path / CONFIG_FILE, to_json(config))
        with open(path / COMMANDS_FILE, "a", encoding="utf-8") as file:
            file.write(shlex.join(["farworld", *sys.argv[1:]]) + "\n")

    def close(self) -> None:
        """Let another process go on with the run."""
        if self._lock:
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
                # Many ranks read the same: mapped, it is in memory once.
                return torch.load(path, map_location="cpu", weights_only=True, mmap=self.ranks.count > 1)
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
    replica: nn.Module  # what is called to train the model: itself, or among ranks what averages its gradients
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None = None
    step: int = 0
    seconds: float = 0.0  # spent in all sittings
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)  # scalars of the last step, for the log

    def state_dict(self) -> dict:
        """Everything that a resumed run needs; of a sharded model all ranks ask for it, and the first one gets it."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "model": whole(self.model.state_dict()),
            "optimizer": whole(self.optimizer.state_dict()),
            "average": whole(self.average.state_dict()) if self.average else {},
        }

    def load_state_dict(self, state: dict) -> None:
        """The inverse of state_dict."""
        self.step, self.seconds = state["step"], state["seconds"]
        self.model.load_state_dict(own_parts(state["model"], self.model.state_dict()))
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        moments = {
            index: {name: own_part(tensor, parameters[index]) for name, tensor in values.items()}
            for index, values in state["optimizer"]["state"].items()
        }
        self.optimizer.load_state_dict(with_own_settings(self.optimizer, {"state": moments}))
        if self.average:
            self.average.load_state_dict(own_parts(state["average"], self.average.state_dict()))


def with_own_settings(optimizer: torch.optim.Optimizer, stored: dict) -> dict:
    """What an optimizer has kept, beside the settings of this one, which are the config's and may be other ones now."""
    return {**stored, "param_groups": optimizer.state_dict()["param_groups"]}


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of the parameters, with a shorter memory in the first steps."""

    def update(average: Tensors, current: Tensors, num_averaged: torch.Tensor | int) -> None:
        count = int(num_averaged)
        torch._foreach_lerp_(average, current, 1 - min(decay, (1 + count) / (10 + count)))

    return AveragedModel(model, multi_avg_fn=update)


def learning_rate_factor(step: int, total_steps: int, config: TrainConfig) -> float:
    """Linear warm-up, a plateau, and a linear decay to zero over the last part, if the config has one."""
    warmup = min(1.0, (step + 1) / max(1, min(config.warmup_steps, total_steps // 10)))
    left = (total_steps - step) / max(1, total_steps - config.decay_start(total_steps))
    return min(warmup, max(0.0, left), 1.0)


def step_generator(config: TrainConfig, stage: int, step: int, *item: int) -> torch.Generator:
    """The source of what is random in one step, or in one item of it."""
    key = np.random.SeedSequence([config.seed, stage, step, *item]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(key >> np.uint64(1)))


class Draws:
    """Random numbers for some items, each from its own generator: an item's do not depend on which it is drawn with."""

    def __init__(self, generators: list[torch.Generator]) -> None:
        self._generators = generators

    def __len__(self) -> int:
        return len(self._generators)

    def uniform(self, *shape: int) -> torch.Tensor:
        """(items, *shape), float32, in [0, 1)."""
        return torch.stack([torch.rand(shape, generator=generator) for generator in self._generators])

    def normal(self, *shape: int, device: torch.device = CPU) -> torch.Tensor:
        """(items, *shape), float32, standard normal; a GPU draws its own, from seeds that the generators give."""
        if device.type != "cuda":
            return torch.stack([torch.randn(shape, generator=generator) for generator in self._generators]).to(device)
        there, drawn = torch.Generator(device), []
        for generator in self._generators:
            there.manual_seed(int(torch.randint(2**63 - 1, (), generator=generator)))
            drawn.append(torch.randn(shape, generator=there, device=device))
        return torch.stack(drawn)


class Objective(Protocol):
    """What a stage learns, and from what."""

    def draw(self, step: int, items: range) -> Any:
        """Some items of a step, such as clips; a function of its arguments alone, called on a thread ahead of time."""

    def loss(self, drawn: Any) -> torch.Tensor:
        """The mean loss over the items, a scalar."""

    def describe(self, drawn: Any) -> list[Any]:
        """Where the items come from, JSON-ready."""


def autocast(config: TrainConfig, device: torch.device) -> contextlib.AbstractContextManager:
    """Mixed precision as the config has it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(config, device))


def uses_bfloat16(config: TrainConfig, device: torch.device) -> bool:
    """Whether matrices are multiplied in bfloat16."""
    return has_bfloat16(device) if config.precision == "auto" else config.precision == "bfloat16"


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


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step of training did."""

    loss: float  # mean over the ranks
    gradient_norm: float
    waited: float  # seconds for data
    interrupted: bool = False


def fit(
    run: Run,
    stage: str,
    state: TrainState,
    objective: Objective,
    *,
    total_steps: int,
    items_per_step: int,
    frames_per_step: int,
    sample: Callable[[int], np.ndarray | None],
) -> None:
    """Train until `total_steps`, from wherever the run's checkpoints are.

    Args:
        run: the folder for checkpoints and logs, and the ranks.
        stage: name of the stage in files and logs.
        state: what is trained.
        objective: what it learns.
        total_steps: steps in all, those of earlier sittings included.
        items_per_step: items of a step, all ranks together.
        frames_per_step: frames that one step looks at, for the rate that is shown.
        sample: called on all ranks; the first one draws samples of a step into the run's folder, and their picture is
            logged.

    Raises:
        ValueError: the loss is not finite; the last checkpoint is intact, and `failed_step.json` names the items.
        KeyboardInterrupt: Ctrl-C, after the step in progress and its checkpoint.
    """
    config, ranks = run.config, run.ranks
    rates = [group["lr"] for group in state.optimizer.param_groups]
    stored = run.load_checkpoint(stage)
    if stored is not None:
        state.load_state_dict(stored)
    if state.step >= total_steps:
        return
    state.model.train()
    began = time.perf_counter() - state.seconds
    parts = ranks.share(items_per_step, config.accumulate)
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(open_log(run, stage, state.step))
        advance = stack.enter_context(_bar(run, stage, state.step, total_steps, frames_per_step))
        held = stack.enter_context(interrupts_held())
        for drawn, waited in stack.enter_context(drawn_ahead(objective, parts, range(state.step, total_steps))):
            factor = learning_rate_factor(state.step, total_steps, config)
            for group, rate in zip(state.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            report = train_step(run, stage, state, objective, drawn, waited=waited, held=held)
            advance(frames_per_step, note=f"step {state.step}/{total_steps} loss {report.loss:.4f}")
            finished = state.step == total_steps
            if state.step % config.log_every == 0:
                figures = {
                    "loss": report.loss,
                    "gradient_norm": report.gradient_norm,
                    "learning_rate_factor": factor,
                    "waited_seconds": report.waited,
                }
                log.figures(state.step, figures | {name: float(value) for name, value in state.metrics.items()})
            if state.step % config.checkpoint_every == 0 or finished or report.interrupted:
                state.seconds = time.perf_counter() - began
                current = state.state_dict()
                if ranks.is_first:
                    run.save_checkpoint(stage, current)
            if report.interrupted:
                raise KeyboardInterrupt
            if state.step % config.sample_every == 0 or finished:
                if (picture := sample(state.step)) is not None:
                    log.picture(state.step, picture)
                ranks.wait()
                state.model.train()


@contextlib.contextmanager
def drawn_ahead(objective: Objective, parts: list[range], steps: range) -> Iterator[Iterator[tuple[list[Any], float]]]:
    """Draw each step's items on a thread while the step before trains.

    Yields:
        For each step, what was drawn for each part, and the seconds that were waited for it.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="loader")

    def draw(step: int) -> list[Any]:
        return [objective.draw(step, items) for items in parts]

    def each() -> Iterator[tuple[list[Any], float]]:
        coming = pool.submit(draw, steps.start)
        for step in steps:
            began = time.perf_counter()
            drawn = coming.result()
            waited = time.perf_counter() - began
            if step + 1 < steps.stop:
                coming = pool.submit(draw, step + 1)
            yield drawn, waited

    try:
        yield each()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def train_step(
    run: Run,
    stage: str,
    state: TrainState,
    objective: Objective,
    drawn: list[Any],
    *,
    waited: float = 0.0,
    held: Callable[[], bool] = lambda: False,
) -> StepReport:
    """One step of the optimizer over some parts of a batch.

    Args:
        run: for the config, the ranks, and a note if the step fails.
        stage: named in errors.
        state: what is trained.
        objective: the loss.
        drawn: the parts of this rank.
        waited: seconds for data, to be reported.
        held: whether this rank was told to stop; if one was, all report it.

    Raises:
        ValueError: loss or gradient are not finite, on this rank or another; the weights are as before.
    """
    state.optimizer.zero_grad(set_to_none=True)
    loss = 0.0
    for index, part in enumerate(drawn):
        with averaged_gradients(state.replica, last=index == len(drawn) - 1):
            part_loss = objective.loss(part) / len(drawn)
            part_loss.backward()
        loss += float(part_loss.detach())
    norm = clip_gradients(state.model, run.config.gradient_clip)
    total, stops = run.ranks.sum([loss, float(held())])
    mean = total / run.ranks.count
    if not (math.isfinite(mean) and math.isfinite(norm)):
        items = [item for part in drawn for item in objective.describe(part)]
        note = run.path / f"failed_step{'' if run.ranks.is_first else f'-rank-{run.ranks.rank}'}.json"
        write_json(note, {"stage": stage, "step": state.step, "loss": str(loss), "items": items})
        raise ValueError(
            f"the {stage} loss is {mean} and its gradient's norm {norm} at step {state.step} ({note} has the items); "
            "lower the stage's learning rate with --set, and go on with --resume"
        )
    state.optimizer.step()
    if state.average:
        state.average.update_parameters(state.model)
    state.step += 1
    return StepReport(mean, norm, waited, stops > 0)


def clip_gradients(model: nn.Module, largest_norm: float) -> float:
    """Shorten a model's gradient, as one vector over all parameters and ranks, to a norm; the one that it had."""
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    nn.utils.clip_grads_with_norm_(parameters, largest_norm, norm)
    return float(norm)


def _bar(
    run: Run, stage: str, step: int, total_steps: int, frames_per_step: int
) -> contextlib.AbstractContextManager[Callable[..., None]]:
    if not run.ranks.is_first:
        return contextlib.nullcontext(lambda *_, **__: None)
    return progress_bar(f"{stage:<11}", total_steps * frames_per_step, unit="frames", completed=step * frames_per_step)
