"""A learned world as a Gymnasium environment, one or many at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from farworld.actions import ActionVocabulary
from farworld.checkpoint import Context, World, load_world
from farworld.device import choose_device, dtype_of_play
from farworld.rollout import Rollout
from farworld.rollout_settings import whole_number


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
    - `device`: `cpu`, `cuda`, `mps` or `auto`. On a GPU that has it the transformer computes in bfloat16.
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
        world = _open(self, ckpt, device, start, render_mode)
        self.action_vocabulary: ActionVocabulary = world.config.vocabulary
        self.observation_space, self.action_space = _spaces(world)
        self._contexts = world.contexts
        self._rollout = Rollout(
            world.model, num_steps=num_steps, context_frames=context_frames, dtype=dtype_of_play(world.model.device)
        )
        self._fixed_start = start
        self._start = 0
        self._num_frames = 0
        self._frame: np.ndarray | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin at a start context."""
        super().reset(seed=seed)
        self._start, noise_seed = _draw(self.np_random, self._contexts, self._fixed_start)
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


class WorldVectorEnv(VectorEnv):
    """Many `WorldEnv` at once, as streams of one rollout: a step is one pass of the model for all of them.

    Each environment has its own seed, start context and noise, ends and begins again by itself, and shows the frames
    of a `WorldEnv` with its seed, to rounding: in float32 a pixel may differ by a grey level.

    ## Arguments
    Those of `WorldEnv`, and
    - `num_envs`: environments.
    - `max_episode_steps`: steps until an episode is truncated; None is never.
    - `autoreset_mode`: Gymnasium's `AutoresetMode`, or its name; of an ended episode the next step begins a new one,
      or the same step, or none: then `reset(options={"reset_mask": ...})` does.

    ```python
    envs = gymnasium.make_vec(
        "farworld/World-v0", num_envs=8, vectorization_mode="vector_entry_point",
        ckpt="minecraft", max_episode_steps=100,
    )
    ```

    ## Version history
    - v0: first version.
    """

    metadata = {**WorldEnv.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        num_envs: int,
        ckpt: str | os.PathLike,
        num_steps: int | None = None,
        context_frames: int | None = None,
        device: str = "cpu",
        start: int | None = None,
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ) -> None:
        """Load the world.

        Raises:
            ValueError: see `WorldEnv`; no environments, no steps, or no such mode.
        """
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        if max_episode_steps is not None and max_episode_steps < 1:
            raise ValueError(f"max_episode_steps must be at least 1, or None for no end, got {max_episode_steps}")
        world = _open(self, ckpt, device, start, render_mode)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.num_envs = num_envs
        self.action_vocabulary: ActionVocabulary = world.config.vocabulary
        self.single_observation_space, self.single_action_space = _spaces(world)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.max_episode_steps = max_episode_steps
        self._contexts = world.contexts
        self._rollout = Rollout(
            world.model, batch_size=num_envs, num_steps=num_steps, context_frames=context_frames,
            dtype=dtype_of_play(world.model.device),
        )  # fmt: skip
        self._fixed_start = start
        self._random: list[np.random.Generator | None] = [None] * num_envs
        self._starts = np.zeros(num_envs, dtype=np.int64)
        self._num_frames = np.zeros(num_envs, dtype=np.int64)
        self._ended = np.zeros(num_envs, dtype=np.bool_)
        self._frames: np.ndarray | None = None

    def reset(
        self, *, seed: int | Sequence[int | None] | np.ndarray | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin at start contexts.

        Args:
            seed: of each environment; from a single one on they count up.
            options: `reset_mask`, (num_envs,), bool, which environments; all without it.

        Raises:
            ValueError: another number of seeds; a mask of another shape or type, of none, or before the first reset.
        """
        seeds: list[int | None]
        if seed is None or isinstance(seed, int | np.integer):
            seeds = [None if seed is None else int(seed) + env for env in range(self.num_envs)]
        else:
            seeds = [None if each is None else int(each) for each in seed]
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, dtype=np.bool_))
        if len(seeds) != self.num_envs:
            raise ValueError(f"expected a seed for each of {self.num_envs} environments, got {len(seeds)}")
        if not isinstance(mask, np.ndarray) or mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
            raise ValueError(f"reset_mask must be a numpy array of {self.num_envs} bool, got {mask!r}")
        if not mask.any():
            raise ValueError("reset_mask must have an environment to reset, got none")
        if not mask.all() and self._frames is None:
            raise ValueError("the first reset must be of all environments, without a reset_mask")
        for env in np.flatnonzero(mask).tolist():
            if seeds[env] is not None or self._random[env] is None:
                self._random[env], _ = np_random(seeds[env])
        frames = self._begin(mask, self._frames)
        return frames.copy(), self._infos(mask)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Generate the frames that the actions produce; of an environment that begins again its action is not read.

        Raises:
            ValueError: an action is not in the vocabulary.
            gymnasium.error.ResetNeeded: before the first reset, or after an end where nothing begins again by itself.
        """
        if self._frames is None:
            raise gymnasium.error.ResetNeeded("call envs.reset() before envs.step(actions)")
        begins = self._ended.copy()
        if begins.any() and self.autoreset_mode is AutoresetMode.DISABLED:
            ended = ", ".join(map(str, np.flatnonzero(begins)))
            raise gymnasium.error.ResetNeeded(f'environments {ended} have ended: reset(options={{"reset_mask": ...}})')
        frames = self._frames
        if not begins.all():
            actions = np.array(actions)
            if actions.shape == begins.shape:
                actions[begins] = 0
            frames = self._rollout.step(actions)
            self._num_frames += ~begins
        if begins.any():
            frames = self._begin(begins, frames)
        self._frames = frames
        self._ended = (self._num_frames == self.max_episode_steps) & ~begins
        truncated, infos = self._ended.copy(), self._infos(np.ones(self.num_envs, dtype=np.bool_))
        if truncated.any() and self.autoreset_mode is AutoresetMode.SAME_STEP:
            final, frames = frames, self._begin(truncated, frames)
            begun = self._infos(truncated)
            for env in np.flatnonzero(truncated).tolist():
                last = {"start": int(infos["start"][env]), "frame": int(infos["frame"][env])}
                infos = self._add_info(infos, {"final_obs": final[env], "final_info": last}, env)
            for name in ("start", "frame"):
                infos[name] = np.where(truncated, begun[name], infos[name])
        return frames.copy(), np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=np.bool_), truncated, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """The frames of now."""
        return tuple(self._frames) if self.render_mode == "rgb_array" and self._frames is not None else None

    @property
    def rollout(self) -> Rollout:
        """What makes the frames."""
        return self._rollout

    def _begin(self, mask: np.ndarray, frames: np.ndarray | None) -> np.ndarray:
        """Put some environments at start contexts; the frames of now, of the others as they are."""
        contexts, seeds = {}, {}
        for env in np.flatnonzero(mask).tolist():
            random = self._random[env]
            assert random is not None  # from the first reset on
            self._starts[env], seeds[env] = _draw(random, self._contexts, self._fixed_start)
            contexts[env] = self._contexts[self._starts[env]]
        waiting = dict(contexts)
        if mask.all():
            length = min(len(context.frames) for context in contexts.values())
            self._rollout.prime(
                np.stack([context.frames[-length:] for context in contexts.values()]),
                np.stack([context.actions[len(context.actions) - length + 1 :] for context in contexts.values()]),
                seed=list(seeds.values()),
            )
            waiting = {env: context for env, context in contexts.items() if len(context.frames) > length}
        for env, context in waiting.items():
            self._rollout.reset_stream(env, context.frames, context.actions, seed=seeds[env])
        first = [context.frames[-1] for context in contexts.values()]
        frames = np.empty((self.num_envs, *first[0].shape), np.uint8) if frames is None else frames.copy()
        frames[mask] = first
        self._frames = frames
        self._num_frames[mask] = 0
        self._ended[mask] = False
        return frames

    def _infos(self, mask: np.ndarray) -> dict[str, Any]:
        """As Gymnasium has it: an array for each fact, and beside it who has the fact."""
        infos = {}
        for name, values in (("start", self._starts), ("frame", self._num_frames)):
            infos[name], infos[f"_{name}"] = np.where(mask, values, 0), mask.copy()
        return infos


def _open(
    env: WorldEnv | WorldVectorEnv, ckpt: str | os.PathLike, device: str, start: int | None, render_mode: str | None
) -> World:
    """Load the world, and give the environment its speed and its render mode."""
    if render_mode not in (None, *env.metadata["render_modes"]):
        raise ValueError(f"render_mode must be rgb_array or None, got {render_mode!r}")
    world = load_world(ckpt, device=choose_device(device))
    count = len(world.contexts)
    if not count or (start is not None and not 0 <= whole_number("start", start) < count):
        raise ValueError(f"start must be below {world.path}'s number of start contexts, {count}, got {start}")
    env.render_mode = render_mode
    env.metadata = {**env.metadata, "render_fps": world.config.frames_per_second}
    return world


def _spaces(world: World) -> tuple[Box, Discrete]:
    """Of the observations and of the actions of one environment."""
    config = world.config
    frame = Box(0, 255, (config.frame_height, config.frame_width, 3), np.uint8)
    return frame, Discrete(len(config.vocabulary))


def _draw(random: np.random.Generator, contexts: Sequence[Context], fixed: int | None) -> tuple[int, int]:
    """Which start context, and the seed of the noise to come."""
    drawn, noise_seed = int(random.integers(len(contexts))), int(random.integers(2**31))
    return drawn if fixed is None else fixed, noise_seed
