"""`farworld record`."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from farworld.console import print_json, progress_bar, stdout_to_stderr
from farworld.env_options import EnvOptions

if TYPE_CHECKING:
    from farworld.envs.recorder import RecordingResult

ENV_HELP = (
    "maze or voxel; an engine: crafter, memory-maze, luanti, dmlab, Vizdoom..., MiniWorld-..., ALE/...; any Gymnasium "
    "id; or MODULE:NAME, an id that the module registers, with Gymnasium or the old gym, or a callable in it that "
    "makes an environment of Gymnasium, the old gym or dm_env."
)


def record(
    *,
    env: Annotated[str, Parameter(help=ENV_HELP)],
    episodes: Annotated[int, Parameter(help="How many episodes to add.")],
    out: Annotated[Path, Parameter(help="The dataset's folder; one that is there is extended.")],
    frames: Annotated[int, Parameter(help="Frames of an episode; one that the environment ends is shorter.")] = 300,
    size: Annotated[
        int | None,
        Parameter(
            help="Frame height and width, a multiple of 16, resized by area. Without it the environment's own size, "
            "or 64 where that is no multiple of 16."
        ),
    ] = None,
    policy: Annotated[
        tuple[str, ...],
        Parameter(
            help="What chooses the actions: explore, tour, revisit or random in the built-in worlds, random (sticky, "
            "all actions in turn) in all others. Repeated as NAME=WEIGHT, each episode draws one and says which. "
            "Without it the environment's first.",
            negative=(),
            show_default=False,
        ),
    ] = (),
    seed: Annotated[int, Parameter(help="Same seed, same bytes.")] = 0,
    workers: Annotated[
        int,
        Parameter(
            help="Processes that play at the same time; the episodes' bytes do not depend on it. One that dies is "
            "replaced. 0 plays in the process of the command itself, which is for debugging."
        ),
    ] = 1,
    shard: Annotated[
        str | None,
        Parameter(
            help="K/N, of N machines that write into one folder this is number K (from 0): it takes the numbers K, "
            "K+N, K+2N and so on. Not needed where they share file locks, as the processes of one machine do."
        ),
    ] = None,
    options: EnvOptions | None = None,
    json: Annotated[bool, Parameter(negative=(), help="Print one JSON object on stdout.")] = False,
) -> None:
    """Record episodes of an environment into a dataset."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # many environments draw with pygame
    with stdout_to_stderr() if json else contextlib.nullcontext():
        from farworld.envs import environments, recorder

        recording = recorder.Recording(
            env_id=environments.resolve_env_id(env),
            policy=",".join(policy),
            seed=seed,
            num_frames=frames,
            size=size,
            **(options or EnvOptions()).settings(),
        )
        with progress_bar(f"recording {env}", episodes * frames, unit="frames") as advance:
            result = recorder.record(
                recording,
                out,
                episodes=episodes,
                workers=workers,
                shard=_parse_shard(shard),
                on_episode=lambda count: advance(count),
            )
    if json:
        print_json(
            {
                "env": recording.env_id,
                "env_kwargs": result.spec.env_kwargs,
                "out": out,
                "episodes": result.episodes,
                "frames": result.frames,
                "height": result.spec.height,
                "width": result.spec.width,
                "seconds": round(result.seconds, 3),
                "frames_per_second": round(result.frames_per_second, 1),
                "seed": seed,
                "policy": result.spec.policy,
                "actions": result.spec.action_vocabulary.to_json(),
                "workers": workers,
                "crashes": result.crashes,
                "killed": result.killed,
            }
        )
    else:
        print(
            f"{result.episodes} episodes, {result.frames} frames in {result.seconds:.1f} s "
            f"({result.frames_per_second:.0f} frames/s) -> {out}"
        )
        if trouble := _describe_trouble(result):
            print(trouble)


def _parse_shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return 0, 1
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not int(match[1]) < int(match[2]):
        raise ValueError(f"--shard expects K/N with K from 0 to N - 1, such as 0/4, got {text!r}")
    return int(match[1]), int(match[2])


def _describe_trouble(result: RecordingResult) -> str:
    """What went wrong, and that it is made up for."""
    parts = [(result.crashes, "crash", "crashes", "of the environment")]
    parts += [(result.killed, "process", "processes", "killed")]
    texts = [f"{count} {one if count == 1 else many} {rest}" for count, one, many, rest in parts if count]
    return f"{' and '.join(texts)}: the episodes were dropped and played again" if texts else ""
