"""Play a world for many thousands of frames: does a frame still cost what it cost, and does memory stay?

    python benchmarks/soak.py [--ckpt dmlab] [--frames 10000] [--early 250] [--span 100] [--threads N]

A rollout is played to frame --early and copied; the copy waits there, and the rollout goes on. Its last --span frames
are measured in turns with the copy's next ones, frame by frame under the same random keys: what else happens on the
machine disturbs both alike. A frame is model and decoder, in milliseconds of the process's CPU time and of the clock.
Memory is what the process holds (resident) after --early + --span frames and before the last --span.

The last line is one JSON object. The exit code is 1 if the median frame of the end costs more than --ratio times that
of the beginning (CPU time), or memory has grown by more than --growth megabytes.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from command import run as run_command
from cyclopts import App, Parameter

from farworld.bench import commit_of_checkout, peak_memory_mb
from farworld.checkpoint import load_world
from farworld.console import progress_bar
from farworld.device import DeviceName, choose_device, describe_hardware
from farworld.rollout import Rollout

app = App(name="soak.py", version_flags=(), result_action="return_value", help="Cost and memory over many frames.")


def resident_mb() -> float:
    """What the process holds in memory now; where the system does not say, the most that it has held."""
    gc.collect()
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024
    return float(peak_memory_mb() or 0)


def timed_step(rollout: Rollout, action: int) -> tuple[float, float]:
    """Milliseconds of CPU time and of the clock that a frame takes."""
    cpu, clock = time.process_time(), time.perf_counter()
    rollout.step(action)
    return (time.process_time() - cpu) * 1000, (time.perf_counter() - clock) * 1000


def soak(
    rollout: Rollout, copy: Rollout, num_frames: int, *, early: int, span: int, seed: int, advance: Any = lambda: None
) -> dict[str, Any]:
    """Play a primed rollout up to a number of frames; the figures of the module's docstring."""
    actions = np.random.default_rng(seed).integers(len(rollout.world.config.vocabulary), size=num_frames)
    memory = {}
    measured: dict[str, list[tuple[float, float]]] = {"early": [], "late": []}
    for frame, action in enumerate(actions.tolist()):
        if frame == early:
            copy.restore(rollout.snapshot())
        if frame == early + span:
            memory["early"] = resident_mb()
        if frame < num_frames - span:
            rollout.step(action)
        else:
            measured["early"].append(timed_step(copy, action))
            measured["late"].append(timed_step(rollout, action))
        if frame == num_frames - span - 1:
            memory["late"] = resident_mb()
        advance()
    (early_cpu, early_ms), (late_cpu, late_ms) = (
        [statistics.median(column) for column in zip(*measured[when], strict=True)] for when in ("early", "late")
    )
    return {
        "early_cpu_ms": round(early_cpu, 3),
        "late_cpu_ms": round(late_cpu, 3),
        "ratio": round(late_cpu / early_cpu, 4),
        "early_ms": round(early_ms, 3),
        "late_ms": round(late_ms, 3),
        "clock_ratio": round(late_ms / early_ms, 4),
        "resident_mb": round(memory["late"], 1),
        "growth_mb": round(memory["late"] - memory["early"], 2),
    }


@app.default
def run(
    *,
    ckpt: Annotated[str, Parameter(help="A world: bundled, a directory, a run, a hub repository.")] = "dmlab",
    frames: Annotated[int, Parameter(help="Frames to play.")] = 10_000,
    early: Annotated[int, Parameter(help="Where the early frames begin.")] = 250,
    span: Annotated[int, Parameter(help="Frames measured at either end.")] = 100,
    ratio: Annotated[float, Parameter(help="Most that a late frame may cost, over an early one.")] = 1.05,
    growth: Annotated[float, Parameter(help="Most that memory may grow, in megabytes.")] = 1.0,
    threads: Annotated[int | None, Parameter(help="Threads that torch uses; its own number without it.")] = None,
    device: Annotated[DeviceName, Parameter(help="Where the model runs.")] = "cpu",
    seed: Annotated[int, Parameter(help="Of the keys and of all noise.")] = 0,
) -> int:
    """Play a world for many thousands of frames, and compare the last ones with early ones."""
    if early < 1 or span < 1 or frames < early + 2 * span:
        raise ValueError(
            f"--frames must be at least --early + 2 · --span, all of them 1 or more, got {frames}, {early} and {span}"
        )
    if threads is not None:
        torch.set_num_threads(threads)
    world = load_world(ckpt, device=choose_device(device))
    rollout, copy = Rollout(world.model), Rollout(world.model)
    context = world.contexts[0]
    rollout.prime(context.frames[None], context.actions[None], seed=seed)
    with progress_bar("soaking", frames, unit="frames") as advance:
        figures = soak(rollout, copy, frames, early=early, span=span, seed=seed, advance=lambda: advance(1))
    passed = figures["ratio"] <= ratio and figures["growth_mb"] <= growth
    report = {
        "bench": "soak", "ckpt": world.path, "frames": frames, "early": early, "span": span, **figures,
        "passed": passed, "steps": rollout.num_steps, "context_frames": rollout.context_frames,
        "hardware": describe_hardware(world.model.device), "torch": torch.__version__,
        "commit": commit_of_checkout(),
    }  # fmt: skip
    print(json.dumps(report, default=str))
    return 0 if passed else 1


if __name__ == "__main__":
    run_command(app)
