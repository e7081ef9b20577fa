"""`farworld bench`: what a frame costs, from the key to the picture."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from cyclopts import App, Parameter

from farworld.console import json_line, print_json, progress_bar, stdout_to_stderr
from farworld.env_options import EnvOptions
from farworld.play.cli import (
    AUTO_BACKEND_HELP,
    BACKEND_HELP,
    CKPT_HELP,
    FRAME_SIZE_HELP,
    GUIDANCE_HELP,
    LAYOUT_HELP,
    THREADS_HELP,
    Backend,
    prepare_environment,
    refuse,
)

if TYPE_CHECKING:
    import torch

    from farworld.envs.environments import PixelEnv
    from farworld.play.player import WorldPlayer
    from farworld.play.window import Window
    from farworld.rollout import Rollout

DREAM = "farworld/World-v0"
WARM_UP_FRAMES = 20  # at least; the context is full when the measurement begins
BREAKDOWN_FRAMES = 40
RESETS = 3
CURVE_POINTS = 64

FRAMES_HELP = "Frames to measure."
STEPS_HELP = "Denoising steps a frame; the world's own without it."
CONTEXT_HELP = "Frames remembered; the world's own without it."
SEED_HELP = "Of the actions and of all noise."
RECORD_HELP = "Also append the JSON line to this file, for `farworld bench report`."
JSON_HELP = "Print one JSON object on stdout."

bench = App(name="bench", help="Measure speed end to end.")
bench.command(
    "farworld.train.bench_cli:train",
    name="train",
    help="Measure training: speed, arithmetic, memory, and the share of a step that waits for data.",
)
bench.command(
    "farworld.bench_report:report",
    name="report",
    help="Make a table and a plot of what `bench play` and `bench env` have recorded with --record.",
)


@bench.command
def play(
    *,
    ckpt: Annotated[str, Parameter(help=f"A world: {CKPT_HELP}")],
    frames: Annotated[int, Parameter(help=FRAMES_HELP)] = 300,
    steps: Annotated[int | None, Parameter(help=STEPS_HELP)] = None,
    context: Annotated[int | None, Parameter(help=CONTEXT_HELP)] = None,
    guidance: Annotated[float, Parameter(help=GUIDANCE_HELP)] = 1.0,
    layout: Annotated[Literal["sliding", "anchored"] | None, Parameter(help=LAYOUT_HELP)] = None,
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Parameter(help="Where the model runs.")] = "auto",
    threads: Annotated[int | None, Parameter(help=THREADS_HELP)] = None,
    backend: Annotated[Backend | Literal["auto"], Parameter(help=AUTO_BACKEND_HELP)] = "auto",
    seed: Annotated[int, Parameter(help=SEED_HELP)] = 0,
    record: Annotated[Path | None, Parameter(help=RECORD_HELP)] = None,
    json: Annotated[bool, Parameter(negative=(), help=JSON_HELP)] = False,
) -> None:
    """Measure play: keys in, model, decoder, the picture scaled and drawn with its display.

    The world is played until its context is full, and only then measured. SDL draws into memory, so the figures
    leave out the screen itself, and nothing waits for the world's pace. The breakdown, the arithmetic of a frame and
    the machine's rate are measured afterwards. `load_to_first_frame_ms` is from the command's start, before PyTorch is
    imported, until the first frame is drawn; `reset_to_first_frame_ms` from going back to the start context, which is
    encoded again, until its first frame is; `cpu_ms` is processor time of all threads, which other load inflates less.

    Several settings are several runs:

    `for n in 16 64 300; do farworld bench play --ckpt dmlab --context $n --record speed.jsonl; done`
    """
    began = time.perf_counter()
    _check(frames=frames, seed=seed, record=record)
    os.environ["SDL_VIDEODRIVER"] = "dummy"
    prepare_environment()
    with stdout_to_stderr() if json else contextlib.nullcontext():
        from farworld.exported import use_backend
        from farworld.play.player import open_player
        from farworld.play.window import Window
        from farworld.threads import settle_threads

        player = open_player(
            ckpt, seed=seed, num_steps=steps, context_frames=context, guidance_scale=guidance, layout=layout,
            device=device,
        )  # fmt: skip
        runs_it = use_backend(player.rollout, backend)
        settle_threads(player.rollout, threads)
        with Window(player) as window:
            report = measure(PlayedWindow(window, player, seed), frames, began)
    _publish({"bench": "play", "ckpt": player.world.path, "backend": runs_it, **report}, record, json)


@bench.command
def env(
    *,
    env: Annotated[
        str, Parameter(help="A learned world, or any environment that `farworld record` takes: maze, voxel, an id.")
    ] = DREAM,
    ckpt: Annotated[str | None, Parameter(help=f"Which learned world: {CKPT_HELP}")] = None,
    frames: Annotated[int, Parameter(help="Steps to measure.")] = 300,
    batch_size: Annotated[int, Parameter(help="Streams of a learned world that step together.")] = 1,
    steps: Annotated[int | None, Parameter(help=STEPS_HELP)] = None,
    context: Annotated[int | None, Parameter(help=CONTEXT_HELP)] = None,
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Parameter(help="Where the model runs.")] = "auto",
    backend: Annotated[Backend, Parameter(help=BACKEND_HELP)] = "torch",
    frame_size: Annotated[int | None, Parameter(help=FRAME_SIZE_HELP)] = None,
    seed: Annotated[int, Parameter(help=SEED_HELP)] = 0,
    record: Annotated[Path | None, Parameter(help=RECORD_HELP)] = None,
    options: EnvOptions | None = None,
    json: Annotated[bool, Parameter(negative=(), help=JSON_HELP)] = False,
) -> None:
    """Measure an environment under random actions: a learned world, or with --env the real one beside it.

    A learned world is measured when its context is full. A real environment is seen as it is recorded, frames of one
    size, and starts again when its episode ends, which is not in the figures.
    """
    began = time.perf_counter()
    _check(frames=frames, seed=seed, record=record)
    options = options or EnvOptions()
    if batch_size < 1:
        raise ValueError(f"--batch-size must be 1 or more, got {batch_size}")
    if env == DREAM:
        refuse({"--frame-size": frame_size, **dict.fromkeys(options.given, True)}, "a real environment")
        if ckpt is None:
            raise ValueError(f"give --ckpt minecraft|dmlab|DIRECTORY|HUB_REPO for {DREAM}, or --env maze|voxel|ID")
    else:
        of_dream = {
            "--ckpt": ckpt,
            "--steps": steps,
            "--context": context,
            "--device": None if device == "auto" else device,
            "--backend": None if backend == "torch" else backend,
            "--batch-size": None if batch_size == 1 else batch_size,
        }
        refuse(of_dream, f"--env {DREAM}, a learned world")
    prepare_environment()
    with stdout_to_stderr() if json else contextlib.nullcontext():
        if env == DREAM:
            assert ckpt is not None  # checked
            subject: Subject = open_dream(
                ckpt, batch_size, seed, backend, num_steps=steps, context_frames=context, device=device
            )
        else:
            from farworld.envs.environments import EnvSettings, PixelEnv, resolve_env_id

            settings = EnvSettings(env_id=resolve_env_id(env), size=frame_size, **options.settings())
            subject = RealEnv(PixelEnv(settings), seed)
        with contextlib.closing(subject):
            report = measure(subject, frames, began)
    _publish({"bench": "env", "env": env, "backend": backend if env == DREAM else None, **report}, record, json)


def _check(*, frames: int, seed: int, record: Path | None) -> None:
    """Say what is wrong before a world is loaded."""
    if frames < 1:
        raise ValueError(f"--frames must be 1 or more, got {frames}")
    if seed < 0:
        raise ValueError(f"--seed must be 0 or more, got {seed}")
    if record is not None and (record.is_dir() or not record.absolute().parent.is_dir()):
        raise ValueError(f"--record expects a file in a folder that is there, such as speed.jsonl, got {record}")


def _publish(report: dict[str, Any], record: Path | None, json: bool) -> None:
    """Print a report, and append it to the file of the records, if there is one."""
    if record is not None:
        with record.open("a", encoding="utf-8") as file:
            file.write(json_line(report) + "\n")
    if json:
        print_json(report)
        return
    for name, value in report.items():
        if isinstance(value, dict):
            value = ", ".join(f"{part} {ms}" for part, ms in value.items())
        if name != "curve":
            print(f"{name:<26} {value}")


class Subject(ABC):
    """What makes frames, and is measured.

    Attributes:
        measured: what a frame includes.
        num_streams: frames that each call makes.
        rollout: of a learned world, and else None.
        screen: what draws the frame, with a method `draw`; None if nothing does.
    """

    measured: str
    num_streams: int = 1
    rollout: Rollout | None = None
    screen: Any = None

    @abstractmethod
    def reset(self) -> None:
        """Begin again."""

    @abstractmethod
    def prepare(self) -> None:
        """Do what is not measured: choose the next action."""

    @abstractmethod
    def next_frame(self) -> None:
        """Make the next frame."""

    def describe(self) -> dict[str, Any]:
        """What the figures depend on, JSON-ready."""
        return {} if self.rollout is None else describe_rollout(self.rollout)

    def close(self) -> None:  # noqa: B027 - most hold nothing of their own
        """Free what it holds."""


class PlayedWindow(Subject):
    """A window whose world is played by random keys."""

    measured = "key, model, decoder, scaling, drawing with display"

    def __init__(self, window: Window, player: WorldPlayer, seed: int) -> None:
        self.window = self.screen = window
        self.player = player
        self.rollout = player.rollout
        self._rng = np.random.default_rng(seed)
        self._keys: tuple[str, ...] = ()

    def reset(self) -> None:
        """Go back to the start context, which is encoded again."""
        self.player.reset()

    def prepare(self) -> None:
        """Choose keys."""
        actions = self.player.vocabulary.actions
        self._keys = actions[self._rng.integers(len(actions))].keys

    def next_frame(self) -> None:
        """Press the keys and show what they make."""
        self.player.keys.hold(self._keys)
        self.window.show_next_frame()


class DreamEnv(Subject):
    """A learned world as an environment."""

    measured = "env.step: model, decoder"

    def __init__(self, env: Any, rollout: Rollout, seed: int) -> None:
        """Begin; `env` is one environment or a vector of them."""
        self.env = env
        self.rollout = rollout
        self.num_streams = rollout.batch_size
        self._seed = seed
        self._action: Any = None
        env.action_space.seed(seed)
        env.reset(seed=seed)

    def reset(self) -> None:
        """Begin at the same start context again."""
        self.env.reset(seed=self._seed)

    def prepare(self) -> None:
        """Draw an action."""
        self._action = self.env.action_space.sample()

    def next_frame(self) -> None:
        """Step."""
        self.env.step(self._action)

    def close(self) -> None:
        """Close the environment."""
        self.env.close()


class RealEnv(Subject):
    """A real environment as it is recorded: frames of one size, actions of its vocabulary."""

    measured = "env.step, its picture as it is recorded; starts of episodes left out"

    def __init__(self, env: PixelEnv, seed: int) -> None:
        self.env = env
        self._rng = np.random.default_rng(seed)
        self._seed = seed
        self._ended = False
        self._action = 0
        self.reset()

    def reset(self) -> None:
        """Begin the next episode."""
        self.env.reset(self._seed)
        self._seed += 1
        self._ended = False

    def prepare(self) -> None:
        """Begin an episode if the last one has ended, and draw an action."""
        if self._ended:
            self.reset()
        self._action = int(self._rng.integers(len(self.env.table.vocabulary)))

    def next_frame(self) -> None:
        """Step."""
        *_, terminated, truncated = self.env.step(self._action)
        self._ended = terminated or truncated

    def describe(self) -> dict[str, Any]:
        """Frame size and pace."""
        spec = self.env.spec
        return {"frame_size": f"{spec.height}x{spec.width}", "world_fps": spec.frames_per_second}

    def close(self) -> None:
        """Close the environment."""
        self.env.close()


def open_dream(ckpt: str, batch_size: int, seed: int, backend: str, **settings: Any) -> Subject:
    """A learned world as an environment, or as a vector of them; `settings` are the environment's."""
    import gymnasium

    import farworld  # noqa: F401 - registers it
    from farworld.exported import use_backend

    env: Any
    if batch_size == 1:
        env = gymnasium.make(DREAM, ckpt=ckpt, **settings)
    else:
        env = gymnasium.make_vec(
            DREAM, num_envs=batch_size, vectorization_mode="vector_entry_point", ckpt=ckpt, **settings
        )
    use_backend(env.unwrapped.rollout, backend)
    return DreamEnv(env, env.unwrapped.rollout, seed)


def measure(subject: Subject, frames: int, began: float) -> dict[str, Any]:
    """Warm up until the context is full, measure, and see afterwards what a frame is made of.

    Args:
        subject: which has just begun.
        frames: to measure.
        began: when its loading began, by `time.perf_counter`.

    Returns:
        The figures with all that they depend on, JSON-ready.
    """
    rollout = subject.rollout
    missing = 0 if rollout is None else rollout.context_frames - rollout.context_in_use
    warm_up = max(WARM_UP_FRAMES, missing)
    with progress_bar("measuring", warm_up + frames, unit="frames") as advance:
        first = measure_frames(subject, 1, advance)
        loading = time.perf_counter() - began
        filling = measure_frames(subject, warm_up - 1, advance)
        cpu_began = time.process_time()
        full = measure_frames(subject, frames, advance)
        cpu_ms = 1000 * (time.process_time() - cpu_began) / frames
    device = None if rollout is None else rollout.world.device
    report = {
        **summarise(full, subject.num_streams),
        "cpu_ms": round(cpu_ms, 2),  # of all threads, a mean: heeds other load less than the clock does
        "load_to_first_frame_ms": round(1000 * loading),
        "reset_to_first_frame_ms": None,  # its place; see below
        "measured": subject.measured + ("" if rollout is None else "; context full"),
        **subject.describe(),
        **describe_run(device),
    }
    if rollout is not None:
        report |= describe_arithmetic(rollout, 1000 / report["fps"])
        report["breakdown_ms"] = measure_parts(subject, rollout, min(frames, BREAKDOWN_FRAMES))
    report["reset_to_first_frame_ms"] = measure_resets(subject)
    report["curve"] = curve(np.concatenate([first, filling, full]))
    return report


def measure_frames(subject: Subject, num_frames: int, advance: Any = lambda: None) -> np.ndarray:
    """The milliseconds that each next frame takes, (num_frames,)."""
    frame_ms = np.empty(num_frames)
    for i in range(num_frames):
        subject.prepare()
        began = time.perf_counter()
        subject.next_frame()
        frame_ms[i] = (time.perf_counter() - began) * 1000
        advance()
    return frame_ms


def measure_resets(subject: Subject) -> float:
    """Median milliseconds from a reset until an action's frame is there."""
    reset_ms = []
    for _ in range(RESETS):
        began = time.perf_counter()
        subject.reset()
        subject.prepare()
        subject.next_frame()
        reset_ms.append((time.perf_counter() - began) * 1000)
    return round(float(np.median(reset_ms)), 2)


def measure_parts(subject: Subject, rollout: Rollout, num_frames: int) -> dict[str, float]:
    """Mean milliseconds of the parts of a frame; see `farworld.breakdown.break_down`."""
    from farworld.breakdown import break_down
    from farworld.exported import is_exported

    def next_frame() -> None:
        subject.prepare()
        subject.next_frame()

    parts = break_down(next_frame, num_frames, rollout, draw=subject.screen)
    if is_exported(rollout.world):
        del parts["attention"]  # a part of the transformer that nobody can see
    return {name: round(ms, 2) for name, ms in parts.items()}


def summarise(frame_ms: np.ndarray, num_streams: int = 1) -> dict[str, Any]:
    """The figures of calls that make one frame for each stream."""
    tenth = max(1, len(frame_ms) // 10)
    return {
        "fps": round(1000 * num_streams / frame_ms.mean(), 2),
        "median_ms": round(float(np.median(frame_ms)), 2),
        "p95_ms": round(float(np.percentile(frame_ms, 95)), 2),
        "p99_ms": round(float(np.percentile(frame_ms, 99)), 2),
        "first_ms": round(float(np.median(frame_ms[:tenth])), 2),
        "last_ms": round(float(np.median(frame_ms[-tenth:])), 2),
        "frames": len(frame_ms),
        "batch_size": num_streams,
    }


def curve(frame_ms: np.ndarray) -> list[tuple[int, float]]:
    """The cost of frames against their number since the start, warm-up included: medians of neighbours."""
    groups = np.array_split(np.arange(len(frame_ms)), min(CURVE_POINTS, len(frame_ms)))
    return [(int(group[0]) + 1, round(float(np.median(frame_ms[group])), 2)) for group in groups]


def describe_rollout(rollout: Rollout) -> dict[str, Any]:
    """What the figures of a learned world depend on; sizes in frames unless the name says otherwise."""
    config = rollout.world.config
    return {
        "world": config.name,
        "steps": rollout.num_steps,
        "window": config.model.short_term_frames,
        "context_frames": rollout.context_frames,
        "layout": rollout.layout,
        "guidance_scale": rollout.guidance_scale,
        "dtype": str(rollout.dtype).removeprefix("torch."),
        "frame_size": f"{config.frame_height}x{config.frame_width}",
        "world_fps": config.frames_per_second,
        "parameters": rollout.world.num_parameters,
    }


def describe_arithmetic(rollout: Rollout, frame_ms: float) -> dict[str, Any]:
    """A frame's arithmetic as PyTorch does it, and the share of PyTorch's rate in the rollout's dtype that it makes.

    What something else than PyTorch computes in less than that dtype may come to more than all of it.
    """
    from farworld.arithmetic import matmul_rate

    rate = matmul_rate(rollout.world.device, rollout.dtype)
    flops = count_frame(rollout)
    achieved = 1000 * flops / frame_ms
    return {
        "flops_per_frame": flops,
        "flops_per_second": achieved,
        "flops_utilisation": round(achieved / rate, 3),
        "matmul_flops_per_second": rate,
    }


def count_frame(rollout: Rollout) -> int:
    """Floating-point operations of a stream's next frame by PyTorch, whatever runs it, and without a CUDA graph."""
    from farworld.arithmetic import count_flops
    from farworld.exported import by_torch

    alike = rollout.alike(static=False)
    alike.restore(rollout.snapshot())
    with by_torch(rollout.world):
        return count_flops(lambda: alike.step(0)) // rollout.batch_size


def describe_run(device: torch.device | None = None) -> dict[str, Any]:
    """The machine, the software and the moment; None for a device stands for no model."""
    import torch

    from farworld.device import describe_hardware

    return {
        "peak_memory_mb": peak_memory_mb(),
        "gpu_memory_mb": None if device is None else gpu_memory_mb(device),
        "device": None if device is None else str(device),
        "hardware": describe_hardware(device or torch.device("cpu")),
        "torch": torch.__version__,
        "commit": commit_of_checkout(),
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
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
