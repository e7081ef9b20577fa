"""`farworld bench`: what a frame costs, from the key to the picture."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from cyclopts import App, Parameter

from farworld.console import print_json, progress_bar, stdout_to_stderr
from farworld.play.cli import CKPT_HELP, GUIDANCE_HELP, LAYOUT_HELP, THREADS_HELP, prepare_environment

if TYPE_CHECKING:
    from farworld.play.player import WorldPlayer
    from farworld.play.window import Window

WARM_UP_FRAMES = 20  # at least; the context is full when the measurement begins

bench = App(name="bench", help="Measure speed end to end.")
bench.command(
    "farworld.train.bench_cli:train",
    name="train",
    help="Measure training: speed, arithmetic, memory, and the share of a step that waits for data.",
)


@bench.command
def play(
    *,
    ckpt: Annotated[str, Parameter(help=f"A world: {CKPT_HELP}")],
    frames: Annotated[int, Parameter(help="Frames to measure.")] = 300,
    steps: Annotated[int | None, Parameter(help="Denoising steps a frame; the world's own without it.")] = None,
    context: Annotated[int | None, Parameter(help="Frames remembered; the world's own without it.")] = None,
    guidance: Annotated[float, Parameter(help=GUIDANCE_HELP)] = 1.0,
    layout: Annotated[Literal["sliding", "anchored"] | None, Parameter(help=LAYOUT_HELP)] = None,
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Parameter(help="Where the model runs.")] = "auto",
    threads: Annotated[int | None, Parameter(help=THREADS_HELP)] = None,
    seed: Annotated[int, Parameter(help="Of the actions and of all noise.")] = 0,
    json: Annotated[bool, Parameter(negative=(), help="Print one JSON object on stdout.")] = False,
) -> None:
    """Measure play: keys in, model, decoder, the picture scaled and drawn with its display.

    The world is played until its context is full, and only then measured. SDL draws into memory, so the figures
    leave out the screen itself, and nothing waits for the world's pace.
    """
    if frames < 1:
        raise ValueError(f"--frames must be 1 or more, got {frames}")
    os.environ["SDL_VIDEODRIVER"] = "dummy"
    prepare_environment()
    with stdout_to_stderr() if json else contextlib.nullcontext():
        from farworld.play.player import open_player
        from farworld.play.window import Window
        from farworld.threads import settle_threads

        player = open_player(
            ckpt, seed=seed, num_steps=steps, context_frames=context, guidance_scale=guidance, layout=layout,
            device=device,
        )  # fmt: skip
        settle_threads(player.rollout, threads)
        missing = player.rollout.context_frames - player.rollout.context_in_use
        warm_up = max(WARM_UP_FRAMES, missing)
        with Window(player) as window, progress_bar("playing", warm_up + frames, unit="frames") as advance:
            frame_ms = measure_frames(window, warm_up + frames, seed, advance)[warm_up:]
        report = summarise(player, frame_ms)
    if json:
        print_json(report)
    else:
        for name, value in report.items():
            print(f"{name:<22} {value}")


def measure_frames(window: Window, num_frames: int, seed: int, advance: Any = lambda: None) -> np.ndarray:
    """Play random actions by their keys; the milliseconds from key to drawn picture of every frame, (num_frames,)."""
    actions = window.player.vocabulary.actions
    chosen = np.random.default_rng(seed).integers(len(actions), size=num_frames)
    frame_ms = np.empty(num_frames)
    for i, action in enumerate(chosen):
        began = time.perf_counter()
        window.player.keys.hold(actions[action].keys)
        window.show_next_frame()
        frame_ms[i] = (time.perf_counter() - began) * 1000
        advance()
    return frame_ms


def summarise(player: WorldPlayer, frame_ms: np.ndarray) -> dict[str, Any]:
    """The figures, with all that they depend on; sizes in frames unless the name says otherwise."""
    import torch

    from farworld.device import describe_hardware

    world, rollout = player.world, player.rollout
    tenth = max(1, len(frame_ms) // 10)
    return {
        "ckpt": world.path,
        "fps": round(1000 / frame_ms.mean(), 2),
        "median_ms": round(float(np.median(frame_ms)), 2),
        "p95_ms": round(float(np.percentile(frame_ms, 95)), 2),
        "first_ms": round(float(np.median(frame_ms[:tenth])), 2),
        "last_ms": round(float(np.median(frame_ms[-tenth:])), 2),
        "frames": len(frame_ms),
        "measured": "key, model, decoder, scaling, drawing with display; context full",
        "steps": rollout.num_steps,
        "window": world.config.model.short_term_frames,
        "context_frames": rollout.context_frames,
        "layout": rollout.layout,
        "guidance_scale": rollout.guidance_scale,
        "frame_size": f"{world.config.frame_height}x{world.config.frame_width}",
        "world_fps": world.config.frames_per_second,
        "parameters": world.model.num_parameters,
        "peak_memory_mb": peak_memory_mb(),
        "gpu_memory_mb": gpu_memory_mb(world.model.device),
        "device": str(world.model.device),
        "hardware": describe_hardware(world.model.device),
        "torch": torch.__version__,
        "commit": commit_of_checkout(),
    }


def peak_memory_mb() -> int | None:
    """The most main memory that the process has held; None on Windows, which does not count it this way."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, KiB elsewhere
    return round(peak / 2 ** (20 if sys.platform == "darwin" else 10))


def gpu_memory_mb(device: Any) -> int | None:
    """The most memory of the GPU that tensors have held; None on other devices."""
    import torch

    return round(torch.cuda.max_memory_allocated(device) / 2**20) if device.type == "cuda" else None


def commit_of_checkout() -> str | None:
    """The checkout's commit, with a + if files differ from it; None when farworld runs from an installation."""
    import subprocess

    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"],
            capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
