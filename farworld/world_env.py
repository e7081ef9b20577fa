"""A learned world as a Gymnasium environment."""

from __future__ import annotations

import os
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from farworld.actions import ActionVocabulary
from farworld.checkpoint import load_world
from farworld.device import choose_device
from farworld.rollout import Rollout


class WorldEnv(gymnasium.Env):
    """A world model that stands in for the world that it was trained on.

    ## Action space
    `Discrete(n)`: the world's action vocabulary, in its order; `env.unwrapped.action_vocabulary` has the names
    and keys.

    ## Observation space
    `Box(0, 255, (height, width, 3), uint8)`: the frame.

    ## Rewards
    Always 0: the model predicts frames only.

    ## Starting state
    The last frame of one of the world's start contexts, which the model remembers whole. Without `start` it is
    drawn by the seed, as all noise is: the same seed and the same actions give the same frames.

    ## Episode end
    Never; give `gymnasium.make` a `max_episode_steps` to truncate.

    ## Information
    `start`: which start context; `frame`: frames generated since the reset.

    ## Arguments
    - `ckpt`: a bundled world (`minecraft`, `dmlab`), a directory, or a hub repository `owner/name`.
    - `num_steps`: denoising steps a frame; None is the world's own number.
    - `context_frames`: frames that the model remembers; None is the world's own number.
    - `device`: `cpu`, `cuda`, `mps` or `auto`.
    - `start`: the start context of every episode; None draws one.
    - `render_mode`: `rgb_array`, or None.

    ```python
    env = gymnasium.make("farworld/World-v0", ckpt="minecraft")
    ```

    ## Version history
    - v0: first version.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # the speed is that of the world, once it is loaded

    def __init__(
        self,
        ckpt: str | os.PathLike,
        num_steps: int | None = None,
        context_frames: int | None = None,
        device: str = "cpu",
        start: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        """Load the world.

        Raises:
            ValueError: there is no such start context, render mode or device; see `load_world` and `Rollout` too.
        """
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode must be rgb_array or None, got {render_mode!r}")
        world = load_world(ckpt, device=choose_device(device))
        count = len(world.contexts)
        if not count or (start is not None and not 0 <= start < count):
            raise ValueError(f"start must be below {world.path}'s number of start contexts, {count}, got {start}")
        config = world.config
        self.render_mode = render_mode
        self.action_vocabulary: ActionVocabulary = config.vocabulary
        self.metadata = {**self.metadata, "render_fps": config.frames_per_second}
        self.observation_space = Box(0, 255, (config.frame_height, config.frame_width, 3), np.uint8)
        self.action_space = Discrete(len(config.vocabulary))
        self._contexts = world.contexts
        self._rollout = Rollout(world.model, num_steps=num_steps, context_frames=context_frames)
        self._fixed_start = start
        self._start = 0
        self._num_frames = 0
        self._frame: np.ndarray | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin at a start context."""
        super().reset(seed=seed)
        drawn, noise_seed = int(self.np_random.integers(len(self._contexts))), int(self.np_random.integers(2**31))
        self._start = drawn if self._fixed_start is None else self._fixed_start
        context = self._contexts[self._start]
        self._rollout.prime(context.frames[None], context.actions[None], seed=noise_seed)
        self._num_frames = 0
        self._frame = context.frames[-1].copy()
        return self._frame, self._info()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Generate the frame that the action produces.

        Raises:
            ValueError: the action is not in the vocabulary.
            gymnasium.error.ResetNeeded: before the first reset.
        """
        action = self.action_vocabulary.check(action)
        if self._frame is None:
            raise gymnasium.error.ResetNeeded("call env.reset() before env.step(action)")
        self._frame = self._rollout.step(action)[0]
        self._num_frames += 1
        return self._frame, 0.0, False, False, self._info()

    def render(self) -> np.ndarray | None:
        """The frame of now."""
        return self._frame if self.render_mode == "rgb_array" else None

    @property
    def rollout(self) -> Rollout:
        """What makes the frames."""
        return self._rollout

    def _info(self) -> dict[str, Any]:
        return {"start": self._start, "frame": self._num_frames}
