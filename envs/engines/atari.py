"""Atari games of the Arcade Learning Environment."""

from __future__ import annotations

import gymnasium


class SteadyFrames(gymnasium.Wrapper):
    """Says at which pace the game is seen: 60 frames a second, of which it skips some."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        skip = getattr(env.unwrapped, "_frameskip", 1)  # a pair is a range to draw from
        mean = sum(skip) / 2 if isinstance(skip, tuple) else skip
        self.metadata = {**env.metadata, "render_fps": 60 / mean}
