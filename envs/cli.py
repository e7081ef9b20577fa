"""`farworld record`."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from farworld.console import print_json, progress_bar, stdout_to_stderr
from farworld.envs.policies import PolicyName


def record(
    *,
    env: Annotated[str, Parameter(help="maze, voxel, or any registered Gymnasium id.")],
    episodes: Annotated[int, Parameter(help="How many episodes to add.")],
    out: Annotated[Path, Parameter(help="The dataset's folder; one that is there is extended.")],
    frames: Annotated[int, Parameter(help="Frames of an episode.")] = 300,
    seed: Annotated[int, Parameter(help="Same seed, same bytes.")] = 0,
    workers: Annotated[int, Parameter(help="Processes that play at the same time.")] = 1,
    policy: Annotated[PolicyName, Parameter(help="What chooses the actions.")] = "explore",
    size: Annotated[
        int | None,
        Parameter(help="Frame height and width, a multiple of 16; without it the environment's own, or 64."),
    ] = None,
    json: Annotated[bool, Parameter(negative=(), help="Print one JSON object on stdout.")] = False,
) -> None:
    """Record episodes of an environment into a dataset."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # many environments draw with pygame
    with stdout_to_stderr() if json else contextlib.nullcontext():
        from farworld.envs import recorder

        recording = recorder.Recording(
            env_id=recorder.resolve_env_id(env), policy=policy, seed=seed, num_frames=frames, size=size
        )
        with progress_bar(f"recording {env}", episodes * frames, unit="frames") as advance:
            result = recorder.record(
                recording, out, episodes=episodes, workers=workers, on_episode=lambda count: advance(count)
            )
    if json:
        print_json(
            {
                "env": recording.env_id,
                "out": out,
                "episodes": result.episodes,
                "frames": result.frames,
                "seconds": round(result.seconds, 3),
                "frames_per_second": round(result.frames_per_second, 1),
                "seed": seed,
                "policy": policy,
                "workers": workers,
            }
        )
    else:
        print(
            f"{result.episodes} episodes, {result.frames} frames in {result.seconds:.1f} s "
            f"({result.frames_per_second:.0f} frames/s) -> {out}"
        )
