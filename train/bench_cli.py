"""`farworld bench train`: what a step of the world stage costs."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from farworld.play.cli import prepare_environment

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from farworld.train.config import TrainConfig
    from farworld.train.latents import LatentDataset
    from farworld.train.world import ClipKind

EPISODES = 32  # of random latents, as long as the longest clip


def train(
    *,
    preset: Annotated[str, Parameter(help="Model and training sizes.")],
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Parameter(help="Where to train.")] = "auto",
    repeats: Annotated[int, Parameter(help="Measured steps for each kind of clip, after one to warm up.")] = 3,
    num_actions: Annotated[int, Parameter(help="Of the vocabulary.")] = 7,
    settings: Annotated[
        list[str] | None, Parameter(name="--set", negative=(), consume_multiple=True, help="field=value, as in train.")
    ] = None,
    json: Annotated[bool, Parameter(negative=(), help="Print one JSON object on stdout.")] = False,
) -> None:
    """Measure training on random latents: speed, arithmetic, memory, and the share of a step that waits for data.

    Clip lengths at even quantiles, early and late ones, stand for the whole training and are weighed by their shares.
    """
    if repeats < 1:
        raise ValueError(f"--repeats must be 1 or more, got {repeats}")
    prepare_environment()
    from farworld.console import print_json, progress_bar, stdout_to_stderr
    from farworld.device import choose_device
    from farworld.train.config import preset as preset_of
    from farworld.train.estimate import clip_kinds

    with stdout_to_stderr() if json else contextlib.nullcontext(), TemporaryDirectory() as folder:
        config, chosen = preset_of(preset, settings or ()), choose_device(device)
        steps = len(clip_kinds(config)) * (repeats + 1)
        with progress_bar("measuring", steps, unit="steps") as advance:
            report = measure(config, num_actions, chosen, Path(folder), repeats, advance)
    if json:
        print_json(report)
    else:
        for name, value in report.items():
            print(f"{name:<26} {value}")


def measure(
    config: TrainConfig,
    num_actions: int,
    device: torch.device,
    folder: Path,
    repeats: int,
    advance: Callable[[], None],
) -> dict[str, Any]:
    """The figures of a training with this config, JSON-ready."""
    import torch

    from farworld.arithmetic import matmul_rate
    from farworld.bench import commit_of_checkout, gpu_memory_mb, peak_memory_mb
    from farworld.device import describe_hardware
    from farworld.train.estimate import clip_kinds, estimate_world
    from farworld.train.ranks import Ranks
    from farworld.train.run import Run, uses_bfloat16
    from farworld.train.world import new_state

    ranks = Ranks(device=device)
    with contextlib.closing(Run(folder, config, ranks)) as run:
        state = new_state(config, num_actions, ranks)
        latents = _random_latents(config, num_actions)
        seconds = waited = 0.0
        kinds = clip_kinds(config)
        for share, kind in kinds:
            took, waits = _time(run, state, latents, kind, repeats, advance)
            seconds += share * took
            waited += share * waits
    peak, gpu_peak = peak_memory_mb(), gpu_memory_mb(device)
    estimate = estimate_world(config, num_actions, device)
    dtype = torch.bfloat16 if uses_bfloat16(config, device) else torch.float32
    rate, achieved = matmul_rate(device, dtype), estimate.flops_per_step / seconds
    clips = config.world_batch_size
    return {
        "preset": config.preset,
        "clips_per_second": round(clips / seconds, 3),
        "frames_per_second": round(clips * estimate.frames_per_clip / seconds, 1),
        "tokens_per_second": round(clips * estimate.tokens_per_clip / seconds, 1),
        "ms_per_step": round(seconds * 1000, 1),
        "waiting_for_data": round(waited / seconds, 4),
        "parameters": estimate.parameters,
        "flops_per_step": estimate.flops_per_step,
        "flops_utilisation": round(achieved / rate, 3),
        "flops_per_second": achieved,
        "matmul_flops_per_second": rate,
        "peak_memory_mb": peak,
        "gpu_memory_mb": gpu_peak,
        "estimated_memory_mb": round(estimate.memory_bytes / 2**20),
        "batch_clips": clips,
        "dtype": str(dtype).removeprefix("torch."),
        "recompute": config.recompute,
        "hardware": describe_hardware(device),
        "torch": torch.__version__,
        "commit": commit_of_checkout(),
    }


def _random_latents(config: TrainConfig, num_actions: int) -> LatentDataset:
    """Latents of standard normal noise in main memory."""
    import numpy as np

    from farworld.train.latents import LatentDataset

    far, rng = config.far(num_actions), np.random.default_rng(0)
    length = (config.max_clip_frames - 1) * config.frame_interval + 1
    frames = EPISODES * length
    shape = frames, far.latent_channels, far.latent_height, far.latent_width
    return LatentDataset(
        rng.standard_normal(shape, np.float32).astype(np.float16),
        np.arange(EPISODES + 1) * length,
        rng.integers(0, num_actions, frames),
    )


def _time(
    run: Any, state: Any, latents: LatentDataset, kind: ClipKind, repeats: int, advance: Any
) -> tuple[float, float]:
    """Median seconds of a step with clips of this kind, and mean seconds of it that waited for data."""
    import statistics

    from farworld.arithmetic import synchronise
    from farworld.train.run import drawn_ahead, train_step
    from farworld.train.world import STAGE, WorldObjective

    objective = WorldObjective(state, run.config, latents, list(range(EPISODES)), None, lambda step: kind)
    parts = run.ranks.share(run.config.world_batch_size, run.config.accumulate)
    took: list[float] = []
    waits: list[float] = []
    with drawn_ahead(objective, parts, range(repeats + 1)) as steps:
        began = time.perf_counter()
        for drawn, waited in steps:
            train_step(run, STAGE, state, objective, drawn)
            synchronise(run.ranks.device)
            now = time.perf_counter()
            took.append(now - began)
            waits.append(waited)
            began = now
            advance()
    return statistics.median(took[1:]), statistics.mean(waits[1:])
