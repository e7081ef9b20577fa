"""A real environment under the keys of a person, whose episodes can be recorded."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import numpy as np

from farworld.dataset import DatasetWriter, create_or_open
from farworld.envs.environments import EnvSettings, PixelEnv, resolve_env_id
from farworld.envs.policies import HUMAN
from farworld.envs.recorder import EpisodeBuilder, episode_seeds
from farworld.play.player import Player


class EnvPlayer(Player):
    """An environment under the keys.

    Start i is what `farworld record` begins episode i of the same seed with. An episode lasts until the
    environment ends it, the player begins anew, or quits; with a writer it is then added to the dataset, unless
    nothing was done in it or it is discarded. The player owns environment and writer, and closes them.

    Attributes:
        num_episodes: recorded so far.
        num_recorded_frames: of all these episodes.
        last_index: the number of the newest of them in the dataset; None without one.
    """

    def __init__(self, env: PixelEnv, *, seed: int, start: int, writer: DatasetWriter | None) -> None:
        """Show a start.

        Args:
            env: the environment as it is seen.
            seed: start i draws its own from (seed, i).
            start: the number of the first episode's start.
            writer: of the dataset that takes the episodes; None records nothing.
        """
        self.seed = seed
        self.start = start
        self.num_episodes = self.num_recorded_frames = 0
        self.last_index: int | None = None
        self._env = env
        self._writer = writer
        self._builder: EpisodeBuilder | None = None  # the running episode, if it is recorded
        self._ended = ""
        spec = env.spec
        super().__init__(name=spec.env_id, vocabulary=spec.action_vocabulary, frames_per_second=spec.frames_per_second)

    def _first_frame(self) -> np.ndarray:
        self._store()
        seed = episode_seeds(self.seed, self.start).env
        frame = self._env.reset(seed)
        self._ended = ""
        if self._writer:
            self._builder = EpisodeBuilder(self._env.table, frame, seed, HUMAN, source=HUMAN)
        return frame

    def _next_frame(self, action: int) -> np.ndarray:
        frame, reward, terminated, truncated = self._env.step(action)
        if self._builder:
            self._builder.add(action, frame, reward, terminated, truncated)
        if terminated or truncated or frame is None:
            self._ended = "terminated" if terminated else "truncated"
            self._store()
        return self.frame if frame is None else frame

    def _choose_next_start(self) -> str:
        self.start += 1
        return f"start {self.start}"

    def _store(self) -> None:
        """Write the running episode, if it is recorded and has begun to move."""
        builder, self._builder = self._builder, None
        if builder is None or self._writer is None or builder.num_frames < 2:
            return
        [index] = self._writer.free_indices(1)
        self._writer.write(builder.build(index))
        self.num_episodes += 1
        self.num_recorded_frames += builder.num_frames
        self.last_index = index

    def discard(self) -> bool:
        """Begin the episode anew, and forget what was played of it."""
        if self._builder is None or self._builder.num_frames < 2:
            return False
        self._builder = None
        self._begin("discarded, from the start")
        return True

    @property
    def ended(self) -> str:
        """How the environment has ended the episode; empty while it goes on."""
        return self._ended

    @property
    def recorded(self) -> str:
        """What is on disk of what was played."""
        if self._writer is None:
            return ""
        return f"{self.num_episodes} episode{'s' * (self.num_episodes != 1)}, {self.num_recorded_frames} frames"

    def report(self) -> dict[str, Any]:
        """The environment, and what was recorded."""
        return {
            "env": self.name,
            "seed": self.seed,
            "start": self.start,
            "record": self._writer and self._writer.directory,
            "episodes": self.num_episodes,
            "recorded_frames": self.num_recorded_frames,
            "last_episode": self.last_index,
        }

    def close(self) -> None:
        """Write the running episode, let another process write, and close the environment."""
        try:
            self._store()
        finally:
            if self._writer:
                self._writer.close()
            self._env.close()


def open_env_player(
    name: str,
    *,
    seed: int = 0,
    start: int | None = None,
    record_to: str | os.PathLike | None = None,
    **settings: Any,
) -> EnvPlayer:
    """Make an environment and show its start.

    Args:
        name: maze, voxel, or another name that `resolve_env_id` knows.
        seed: start i draws its own from (seed, i).
        start: which start comes first; None is 0, or when recording the number of the episode that is recorded.
        record_to: a dataset's folder, which is made if it is not there; None records nothing.
        **settings: more of `EnvSettings`.

    Raises:
        ValueError, ImportError: see `resolve_env_id`, `EnvSettings`, `PixelEnv` and `create_or_open`.
    """
    if start is not None and start < 0:
        raise ValueError(f"the start must be 0 or more, got {start}")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    with contextlib.ExitStack() as failed:
        env = PixelEnv(EnvSettings(env_id=resolve_env_id(name), **settings), policy=HUMAN, seed=seed)
        failed.callback(env.close)
        writer = None
        if record_to is not None:
            writer = failed.enter_context(create_or_open(record_to, env.spec))
            writer.note(what="play", policy=HUMAN, seed=seed)
        if start is None:
            start = writer.free_indices(1)[0] if writer else 0
        player = EnvPlayer(env, seed=seed, start=start, writer=writer)
        failed.pop_all()
    return player
