"""`farworld play`."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from farworld.console import print_json, stdout_to_stderr

if TYPE_CHECKING:
    from farworld.play.player import Player

SCRIPT_HELP = (
    "Keys to press when headless, a text file with one entry a line, KEY[+KEY...] [xCOUNT]: `up x10` holds a key "
    "for 10 frames, `up+left x3` two of them, `- x5` none, `action:forward x4` takes an action by its name, and "
    "`#` begins a comment. After its end no key is held."
)


def play(
    *,
    ckpt: Annotated[str, Parameter(help="A bundled world (minecraft, dmlab), a directory, or a hub owner/repo.")],
    seed: Annotated[int, Parameter(help="Same seed and same keys, same frames.")] = 0,
    start: Annotated[int, Parameter(help="Which start context of the world.")] = 0,
    steps: Annotated[int | None, Parameter(help="Denoising steps a frame; the world's own without it.")] = None,
    context: Annotated[int | None, Parameter(help="Frames remembered; the world's own without it.")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Parameter(help="Where the model runs.")] = "auto",
    size: Annotated[int, Parameter(help="Side of the picture in the window, in pixels.")] = 640,
    headless: Annotated[bool, Parameter(negative=(), help="No window: play a script.")] = False,
    script: Annotated[Path | None, Parameter(help=SCRIPT_HELP)] = None,
    frames: Annotated[
        int | None, Parameter(help="Frames to play when headless; the script's length without it.")
    ] = None,
    save: Annotated[Path | None, Parameter(help="Write what is shown to an .mp4.")] = None,
    json: Annotated[bool, Parameter(negative=(), help="Print one JSON object on stdout at the end.")] = False,
) -> None:
    """Play a learned world in a window, or headless.

    In the window, F1 shows the keys. P pauses, N makes one step, R starts again, Tab takes the next start,
    H hides the bar, Esc or Q quits; a key that the world itself uses belongs to the world.
    """
    prepare_environment()
    _check(headless=headless, script=script, frames=frames, save=save, size=size)
    with stdout_to_stderr() if json else contextlib.nullcontext():
        if not headless:
            from farworld.play.window import require_display

            require_display()
            print(f"loading {ckpt} ...", file=sys.stderr)
        from farworld.play.player import open_player

        player = open_player(ckpt, seed=seed, start=start, num_steps=steps, context_frames=context, device=device)
        began = time.perf_counter()
        if headless:
            _run_headless(player, script, frames, save)
        else:
            _run_window(player, size, save)
        report = _report(player, seed, save, time.perf_counter() - began)
    if json:
        print_json(report)
    else:
        print(
            f"{report['frames']} frames in {report['seconds']:.1f} s ({report['fps']:.1f} frames/s)"
            + (f" -> {save}" if save else "")
        )


def prepare_environment() -> None:
    """Settings that pygame and torch read when they are imported; what the user has set stays.

    On a busy machine OpenMP threads that spin while they wait for a preempted one make a frame take seconds;
    threads that sleep keep it at its pace (at the cost of a few microseconds an operation).
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _check(*, headless: bool, script: Path | None, frames: int | None, save: Path | None, size: int) -> None:
    """Say what is wrong before seconds are spent on loading a world."""
    if not headless and (script is not None or frames is not None):
        raise ValueError("--script and --frames go with --headless; in the window your hands press the keys")
    if headless and script is None and frames is None:
        raise ValueError("--headless needs --script KEYS.txt, or --frames N to watch the world with no key held")
    if frames is not None and frames < 1:
        raise ValueError(f"--frames must be 1 or more, got {frames}")
    if size < 16:
        raise ValueError(f"--size must be 16 pixels or more, got {size}")
    if save is not None and save.suffix != ".mp4":
        raise ValueError(f"--save expects a file name that ends in .mp4, got {save}")


def _run_headless(player: Player, script: Path | None, frames: int | None, save: Path | None) -> None:
    from farworld.play.headless import open_video, play_script
    from farworld.play.script import Script, read_script

    keys = read_script(script, player.world.config.vocabulary) if script else Script()
    num_frames = keys.num_frames if frames is None else frames
    if num_frames < 1:
        raise ValueError(f"the script {script} is empty; give it a line such as: up x10, or say --frames N")
    with open_video(save, player) as video:
        play_script(player, keys, num_frames, video)


def _run_window(player: Player, size: int, save: Path | None) -> None:
    from farworld.play.headless import open_video
    from farworld.play.window import Window

    with open_video(save, player) as video, Window(player, size=size, video=video) as window:
        window.run()


def _report(player: Player, seed: int, save: Path | None, seconds: float) -> dict[str, Any]:
    frames = player.action_counts.total() + player.held_still
    return {
        "ckpt": player.world.path,
        "frames": frames,
        "seconds": round(seconds, 3),
        "fps": round(frames / seconds, 2),
        "actions": {name: player.action_counts[name] for name in player.world.config.vocabulary.names},
        "held_still": player.held_still,
        "save": save,
        "seed": seed,
        "start": player.start,
        "steps": player.rollout.num_steps,
        "context_frames": player.rollout.context_frames,
    }
