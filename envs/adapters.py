"""Environments with the interfaces before Gymnasium's as Gymnasium environments: the old gym's, and dm_env's.

Shimmy wraps these too, but seeds only what has a `seed()` or a `reset(seed=)`; Crafter and Memory Maze take their seed
when they are made, so that here an environment is made anew for a new seed where nothing else helps.
"""

from __future__ import annotations

import importlib
import inspect
import random
import sys
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


def adapt(factory: Callable[..., Any], kwargs: Mapping[str, Any]) -> gymnasium.Env:
    """Make an environment and, if it is not one of Gymnasium's, wrap it.

    Args:
        factory: a class or a function that gives an environment of Gymnasium, of the old gym, or of dm_env.
        kwargs: what it is called with.

    Raises:
        TypeError: what it gives is none of these, or it does not take these arguments.
    """
    env = factory(**kwargs)
    if isinstance(env, gymnasium.Env):
        return env
    if all(hasattr(env, name) for name in ("reset", "step", "action_spec", "observation_spec")):
        return DMEnv(factory, kwargs, env)
    if all(hasattr(env, name) for name in ("reset", "step", "action_space", "observation_space")):
        return OldGymEnv(factory, kwargs, env)
    raise TypeError(
        f"{_name_of(factory)} gave a {type(env).__name__}; expected an environment of Gymnasium, of the old gym "
        "(reset, step, action_space, observation_space) or of dm_env (reset, step, action_spec, observation_spec)"
    )


def _name_of(factory: Callable[..., Any]) -> str:
    return getattr(factory, "__name__", type(factory).__name__)


def old_gym_factory(env_id: str) -> Callable[..., Any] | None:
    """What makes an environment that is registered with the old gym; None without such. The gym is not imported.

    What it makes has none of the old gym's wrappers: they differ by version, and step limits are ours to keep.
    """
    gym = sys.modules.get("gym")
    registry = getattr(getattr(gym, "envs", None), "registry", {})
    spec = getattr(registry, "env_specs", registry).get(env_id)
    if spec is None:
        return None
    entry_point = spec.entry_point
    if isinstance(entry_point, str):
        module, _, name = entry_point.partition(":")
        entry_point = getattr(importlib.import_module(module), name)
    own = dict(getattr(spec, "kwargs", None) or getattr(spec, "_kwargs", None) or {})
    limit = getattr(spec, "max_episode_steps", None)

    def make(**kwargs: Any) -> Any:
        env = entry_point(**{**own, **kwargs})
        return _Limited(env, limit) if limit else env

    return make


class _Limited:
    """An old environment whose episodes are cut after some steps."""

    def __init__(self, env: Any, max_steps: int) -> None:
        self._env = env
        self._max_steps = max_steps
        self._steps = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def reset(self, *args: Any, **kwargs: Any) -> Any:
        self._steps = 0
        return self._env.reset(*args, **kwargs)

    def step(self, action: Any) -> Any:
        result = list(self._env.step(action))
        self._steps += 1
        if self._steps >= self._max_steps:
            if len(result) == 5:
                result[3] = True
            elif not result[2]:
                result[2], result[3] = True, {**result[3], "TimeLimit.truncated": True}
        return tuple(result)


class AdaptedEnv(gymnasium.Env):
    """What both adapters have in common: an environment that can be made anew."""

    def __init__(self, factory: Callable[..., Any], kwargs: Mapping[str, Any], env: Any) -> None:
        self._factory = factory
        self._kwargs = dict(kwargs)
        self._env = env

    @property
    def env(self) -> Any:
        """The environment itself."""
        return self._env

    def _seed(self, seed: int) -> None:
        """Seed it by what it has; the global generators too, from which many old environments draw."""
        seed %= 2**31
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - that is what old environments draw from
        own = getattr(self._env, "seed", None)
        if callable(own) and not own.__module__.startswith("gym."):  # the base class has one that does nothing
            own(seed)
        elif takes(self._factory, "seed") and self._kwargs.get("seed") is None:
            try:
                env = self._factory(**{**self._kwargs, "seed": seed})
            except TypeError as error:
                if "seed" not in str(error):
                    raise
                return
            self._close_env()
            self._env = env

    def _close_env(self) -> None:
        close = getattr(self._env, "close", None)
        if callable(close):
            close()

    def close(self) -> None:
        """Close the environment."""
        self._close_env()


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function may take an argument of this name."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(p.name == name or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


class OldGymEnv(AdaptedEnv):
    """An environment with the interface of gym 0.21 to 0.26.

    Args:
        factory: makes it.
        kwargs: what it is made with.
        env: made so.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}

    def __init__(self, factory: Callable[..., Any], kwargs: Mapping[str, Any], env: Any = None) -> None:
        super().__init__(factory, kwargs, factory(**kwargs) if env is None else env)
        self.render_mode = "rgb_array" if callable(getattr(self._env, "render", None)) else None
        own = getattr(self._env, "metadata", None) or {}
        rate = own.get("render_fps") or own.get("video.frames_per_second")
        self.metadata = {**self.metadata, **({"render_fps": rate} if rate else {})}
        self.observation_space = convert_space(self._env.observation_space)
        self.action_space = convert_space(self._env.action_space)

    @property
    def action_names(self) -> list[str] | None:
        """What the environment calls its actions, if it says so."""
        meanings = getattr(self._env, "get_action_meanings", None)
        names = meanings() if callable(meanings) else getattr(self._env, "action_names", None)
        return None if names is None else [str(name) for name in names]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        arguments = {}
        if seed is not None:
            own = inspect.signature(self._env.reset).parameters
            self._seed(seed)
            if "seed" in own:
                arguments["seed"] = seed
        result = self._env.reset(**arguments)
        if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict):
            return result
        return result, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take an action."""
        result = self._env.step(native_value(self._env.action_space, action))
        if len(result) == 5:
            return result
        observation, reward, done, info = result
        cut = bool(info.get("TimeLimit.truncated", False))
        return observation, float(reward), bool(done) and not cut, bool(done) and cut, info

    def render(self) -> Any:
        """What it shows."""
        return self._env.render(**({"mode": "rgb_array"} if _has(self._env.render, "mode") else {}))


def _has(function: Callable[..., Any], name: str) -> bool:
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def convert_space(space: Any) -> spaces.Space:
    """A space of the old gym, of MineRL or of Crafter without gym, as Gymnasium's; known by what it has.

    Raises:
        TypeError: a space of another kind.
    """
    if isinstance(space, spaces.Space):
        return space
    inner = space if isinstance(space, Mapping) else getattr(space, "spaces", None)
    if isinstance(inner, Mapping):
        return spaces.Dict({str(key): convert_space(part) for key, part in inner.items()})
    if isinstance(inner, (list, tuple)):
        return spaces.Tuple([convert_space(part) for part in inner])
    if hasattr(space, "nvec"):
        return spaces.MultiDiscrete(np.asarray(space.nvec, np.int64))
    if hasattr(space, "n"):
        if "binary" in type(space).__name__.lower():
            return spaces.MultiBinary(space.n)
        return spaces.Discrete(int(space.n), start=int(getattr(space, "start", 0) or 0))
    if all(hasattr(space, name) for name in ("low", "high", "shape", "dtype")):
        low, high = (
            np.broadcast_to(np.asarray(end), space.shape).astype(space.dtype) for end in (space.low, space.high)
        )
        return spaces.Box(low, high, dtype=np.dtype(space.dtype).type)
    if "text" in type(space).__name__.lower() or "string" in type(space).__name__.lower():
        return spaces.Text(4096)
    raise TypeError(f"a space of the unknown kind {type(space).__name__}: {space}")


def native_value(space: Any, value: Any) -> Any:
    """An action as the old environment takes it: MineRL's enumerations want their words in place of numbers."""
    inner = getattr(space, "spaces", None)
    if isinstance(inner, Mapping):
        return {key: native_value(part, value[str(key)]) for key, part in inner.items()}
    words = getattr(space, "values", None)
    if hasattr(space, "n") and words is not None and not callable(words):
        return str(words[int(value)])
    return value


class DMEnv(AdaptedEnv):
    """An environment with the interface of dm_env.

    Args:
        factory: makes it.
        kwargs: what it is made with.
        env: made so.
        render_size: height and width of what `render` shows, where the environment has MuJoCo's physics.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}

    def __init__(
        self,
        factory: Callable[..., Any],
        kwargs: Mapping[str, Any],
        env: Any = None,
        *,
        render_size: tuple[int, int] = (256, 256),
    ) -> None:
        super().__init__(factory, kwargs, factory(**kwargs) if env is None else env)
        self._render_size = render_size
        self.render_mode = "rgb_array" if hasattr(self._env, "physics") else None
        timestep = getattr(self._env, "control_timestep", None)
        rate = {"render_fps": round(1 / timestep(), 3)} if callable(timestep) else {}
        self.metadata = {**self.metadata, **rate}
        self.observation_space = convert_spec(self._env.observation_spec())
        self.action_space = convert_spec(self._env.action_spec())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        if seed is not None:
            self._seed(seed)
        return self._env.reset().observation, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take an action; an end without discount is the environment's, any other a cut."""
        timestep = self._env.step(action)
        last = bool(timestep.last())
        terminated = last and not timestep.discount
        return timestep.observation, float(timestep.reward or 0.0), terminated, last and not terminated, {}

    def render(self) -> Any:
        """What the first camera sees."""
        height, width = self._render_size
        return self._env.physics.render(height, width, camera_id=0)


def convert_spec(spec: Any) -> spaces.Space:
    """A specification of dm_env as a space of Gymnasium, known by what it has.

    Raises:
        TypeError: one of another kind.
    """
    if isinstance(spec, Mapping):
        return spaces.Dict({str(key): convert_spec(part) for key, part in spec.items()})
    if isinstance(spec, (list, tuple)):
        return spaces.Tuple([convert_spec(part) for part in spec])
    if hasattr(spec, "num_values"):
        return spaces.Discrete(int(spec.num_values))
    if not hasattr(spec, "shape") or not hasattr(spec, "dtype"):
        raise TypeError(f"a specification of the unknown kind {type(spec).__name__}: {spec}")
    dtype = np.dtype(spec.dtype)
    if dtype.kind not in "biuf":
        return spaces.Text(4096)
    if hasattr(spec, "minimum"):
        low, high = (np.broadcast_to(end, spec.shape).astype(dtype) for end in (spec.minimum, spec.maximum))
    elif dtype.kind == "f":
        low, high = np.full(spec.shape, -np.inf, dtype), np.full(spec.shape, np.inf, dtype)
    else:
        info = np.iinfo(np.uint8 if dtype.kind == "b" else dtype)
        low, high = np.full(spec.shape, info.min), np.full(spec.shape, info.max)
    return spaces.Box(low, high, dtype=np.uint8 if dtype.kind == "b" else dtype.type)
