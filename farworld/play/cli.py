"""`farworld play`."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from farworld.console import print_json, stdout_to_stderr
from farworld.env_options import EnvOptions

if TYPE_CHECKING:
    from farworld.play.player import Player

Backend = Literal["torch", "openvino", "openvino-bf16"]
CKPT_HELP = (
    "bundled (minecraft, dmlab), a directory, a hub owner/repo, or the official weights "
    "guyuchao/FAR_Models:minecraft or :dmlab."
)
GUIDANCE_HELP = "Guidance scale; 1 is off, more heeds the keys more, at twice the cost."
LAYOUT_HELP = (
    "Of long short-term attention; the world's own without it. Official weights are anchored; sliding costs them a "
    "fraction, at some loss of quality."
)
BACKEND_HELP = (
    "What runs the model. On a CPU openvino takes less time, once it has exported the world, some seconds at the "
    "start; openvino-bf16 still less, at a slight loss. Both need farworld[openvino]."
)
AUTO_BACKEND_HELP = (
    BACKEND_HELP + " auto is openvino in a window if that is installed, on a CPU, for worlds of up to 50 million "
    "parameters; else torch."
)
SCRIPT_HELP = (
    "Keys to press when headless, a text file with one entry a line, KEY[+KEY...] [xCOUNT]: `up x10` holds a key "
    "for 10 frames, `up+left x3` two of them, `- x5` none, `action:forward x4` takes an action by its name, "
    "`backspace x5` goes 5 frames back, and `#` begins a comment. After its end no key is held."
)

THREADS_HELP = (
    "Threads that the model runs on, on a CPU; without it a quick measurement decides, unless OMP_NUM_THREADS is set."
)
RECORD_HELP = (
    "With --env: add every episode that you play to this dataset, as `farworld record` does; one that is there is "
    "extended. An episode ends with its environment, with R or Tab, and when you quit; Backspace discards it."
)
FRAME_SIZE_HELP = "With --env: frame height and width, a multiple of 16; without it the environment's own, or 64."
START_HELP = (
    "Which start context of the world (0 without it), or which of the seed's episodes of --env (0, or with --record "
    "the first that the dataset does not have)."
)


def play(
    *,
    ckpt: Annotated[str | None, Parameter(help=f"A learned world: {CKPT_HELP}")] = None,
    env: Annotated[
        str | None, Parameter(help="A real environment instead: maze, voxel, or any that `farworld record` takes.")
    ] = None,
    record: Annotated[Path | None, Parameter(help=RECORD_HELP)] = None,
    frame_size: Annotated[int | None, Parameter(help=FRAME_SIZE_HELP)] = None,
    seed: Annotated[int, Parameter(help="Same seed and same keys, same frames.")] = 0,
    start: Annotated[int | None, Parameter(help=START_HELP)] = None,
    steps: Annotated[int | None, Parameter(help="Denoising steps a frame; the world's own without it.")] = None,
    context: Annotated[int | None, Parameter(help="Frames remembered; the world's own without it.")] = None,
    guidance: Annotated[float | None, Parameter(help=GUIDANCE_HELP)] = None,
    layout: Annotated[Literal["sliding", "anchored"] | None, Parameter(help=LAYOUT_HELP)] = None,
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Parameter(help="Where the model runs.")] = "auto",
    threads: Annotated[int | None, Parameter(help=THREADS_HELP)] = None,
    backend: Annotated[Backend | Literal["auto"], Parameter(help=AUTO_BACKEND_HELP)] = "auto",
    size: Annotated[int, Parameter(help="Side of the picture in the window, in pixels.")] = 640,
    frames_per_second: Annotated[
        float | None, Parameter(help="Pace of the window; the world's own without it. What is written keeps the own.")
    ] = None,
    headless: Annotated[bool, Parameter(negative=(), help="No window: play a script.")] = False,
    script: Annotated[Path | None, Parameter(help=SCRIPT_HELP)] = None,
    frames: Annotated[
        int | None, Parameter(help="Frames to play when headless; the script's length without it.")
    ] = None,
    save: Annotated[Path | None, Parameter(help="Write what is shown to an .mp4 or a .gif.")] = None,
    options: EnvOptions | None = None,
    json: Annotated[bool, Parameter(negative=(), help="Print one JSON object on stdout at the end.")] = False,
) -> None:
    """Play a learned world, or with --env a real environment, in a window or headless.

    Either --ckpt or --env is needed. In the window, F1 shows the keys. P pauses, N makes one step, R starts again,
    Tab takes the next start, H hides the bar, Esc or Q quits. Backspace, held, rewinds a learned world, by up to
    30 seconds; a real environment can't be rewound. A key that the world itself uses belongs to the world.
    """
    prepare_environment()
    options = options or EnvOptions()
    _check_choice(
        ckpt,
        env,
        of_ckpt={
            "--steps": steps,
            "--context": context,
            "--guidance": guidance,
            "--layout": layout,
            "--device": None if device == "auto" else device,
            "--threads": threads,
            "--backend": None if backend == "auto" else backend,
        },
        of_env={"--record": record, "--frame-size": frame_size, **dict.fromkeys(options.given, True)},
    )
    _check(headless=headless, script=script, frames=frames, save=save, size=size, frames_per_second=frames_per_second)
    with stdout_to_stderr() if json else contextlib.nullcontext():
        if not headless:
            from farworld.play.window import require_display

            require_display()
            print(f"loading {env or ckpt} ...", file=sys.stderr)
        player: Player
        if ckpt is not None:
            from farworld.exported import use_backend
            from farworld.play.player import open_player
            from farworld.threads import settle_threads

            player = world_player = open_player(
                ckpt, seed=seed, start=start or 0, num_steps=steps, context_frames=context,
                guidance_scale=1.0 if guidance is None else guidance, layout=layout, device=device,
            )  # fmt: skip
            use_backend(world_player.rollout, "torch" if headless and backend == "auto" else backend)
            settle_threads(world_player.rollout, threads)
        else:
            from farworld.envs.player import open_env_player

            assert env is not None  # one of the two is given
            player = open_env_player(
                env, seed=seed, start=start, record_to=record, size=frame_size, **options.settings()
            )
        with player:
            began = time.perf_counter()
            if headless:
                _run_headless(player, script, frames, save)
            else:
                _run_window(player, size, frames_per_second, save)
            seconds = time.perf_counter() - began
        report = _report(player, save, seconds)
    if json:
        print_json(report)
    else:
        print(
            f"{report['frames']} frames in {report['seconds']:.1f} s ({report['fps']:.1f} frames/s)"
            + (f" -> {save}" if save else "")
        )
        if record is not None:
            print(_describe_recording(player.recorded, record, report["last_episode"]))


def prepare_environment() -> None:
    """Settings that pygame and torch read when they are imported; what the user has set stays.

    On a busy machine OpenMP threads that spin while they wait for a preempted one make a frame take seconds;
    threads that soon sleep keep it near its pace. Some microseconds of spinning, which GNU's library can be told, spare
    nearly half of what falling asleep between operations costs on an idle machine.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _check_choice(
    ckpt: str | None, env: str | None, *, of_ckpt: Mapping[str, object], of_env: Mapping[str, object]
) -> None:
    """Either a learned world or a real environment, and only options that it has; None stands for one not given."""
    if (ckpt is None) == (env is None):
        raise ValueError(
            "give either --ckpt minecraft|dmlab|DIRECTORY|HUB_REPO for a learned world, or --env maze|voxel|ID for a "
            f"real environment, got {'neither' if ckpt is None else 'both'}"
        )
    if env is None:
        refuse(of_env, "--env, a real environment")
    else:
        refuse(of_ckpt, "--ckpt, a learned world")


def refuse(options: Mapping[str, object], partner: str) -> None:
    """Raise ValueError if one of these options, which go with something else, was given; None is one that was not."""
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"{name} goes with {partner}; leave it out")


def _check(
    *,
    headless: bool,
    script: Path | None,
    frames: int | None,
    save: Path | None,
    size: int,
    frames_per_second: float | None,
) -> None:
    """Say what is wrong before seconds are spent on loading a world."""
    if not headless and (script is not None or frames is not None):
        raise ValueError("--script and --frames go with --headless; in the window your hands press the keys")
    if headless and script is None and frames is None:
        raise ValueError("--headless needs --script KEYS.txt, or --frames N to watch the world with no key held")
    if headless and frames_per_second is not None:
        raise ValueError("--frames-per-second goes with the window; headless play is as fast as it can be")
    if frames_per_second is not None and not 0 < frames_per_second <= 1000:
        raise ValueError(f"--frames-per-second must be above 0, and 1000 at most, got {frames_per_second}")
    if frames is not None and frames < 1:
        raise ValueError(f"--frames must be 1 or more, got {frames}")
    if size < 16:
        raise ValueError(f"--size must be 16 pixels or more, got {size}")
    if save is not None and save.suffix not in (".mp4", ".gif"):
        raise ValueError(f"--save expects a file name that ends in .mp4 or .gif, got {save}")


def _run_headless(player: Player, script: Path | None, frames: int | None, save: Path | None) -> None:
    from farworld.play.headless import open_video, play_script
    from farworld.play.script import Script, read_script

    keys = read_script(script, player.vocabulary) if script else Script()
    num_frames = keys.num_frames if frames is None else frames
    if num_frames < 1:
        raise ValueError(f"the script {script} is empty; give it a line such as: up x10, or say --frames N")
    with open_video(save, player) as video:
        play_script(player, keys, num_frames, video)


def _run_window(player: Player, size: int, frames_per_second: float | None, save: Path | None) -> None:
    from farworld.play.headless import open_video
    from farworld.play.window import Window

    with (
        open_video(save, player) as video,
        Window(player, size=size, frames_per_second=frames_per_second, video=video) as window,
    ):
        window.run()


def _report(player: Player, save: Path | None, seconds: float) -> dict[str, Any]:
    return {
        **player.report(),
        "frames": player.num_ticks,
        "seconds": round(seconds, 3),
        "fps": round(player.num_ticks / seconds, 2),
        "actions": {name: player.action_counts[name] for name in player.vocabulary.names},
        "held_still": player.held_still,
        "rewound": player.num_rewound,
        "save": save,
    }


def _describe_recording(recorded: str, directory: Path, last_index: int | None) -> str:
    """What was written, and how to look at it."""
    if last_index is None:
        return f"nothing was done, and so nothing recorded -> {directory}"
    look = shlex.join(["farworld", "data", "view", str(directory), "last.mp4", "--episode", str(last_index)])
    return f"{recorded} -> {directory}; the last one: {look}"
