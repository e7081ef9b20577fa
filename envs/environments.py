"""Which environment is recorded or played, how it is made, and how its pixels and actions are seen."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import importlib.metadata
import json
import os
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

import farworld.envs  # noqa: F401 - registers the built-in worlds, also in a fresh worker process
from farworld import __version__
from farworld.dataset import DatasetSpec, describe_space
from farworld.envs.adapters import adapt, old_gym_factory
from farworld.envs.engines import engine_of
from farworld.envs.frames import DEFAULT_SIZE, NO_FRAME, SIZE_MULTIPLE, Fit, FrameError, FrameSource
from farworld.envs.vocabulary import ActionTable, action_table, attribute

BUILT_IN = {"maze": "farworld/Maze-v0", "voxel": "farworld/Voxel-v0"}
SHORT_NAMES = {
    **BUILT_IN,
    "craftground": "farworld/CraftGround-v0",
    "crafter": "farworld/Crafter-v0",
    "dmlab": "farworld/DMLab-v0",
    "doom": "farworld/Doom-v0",
    "luanti": "farworld/Luanti-v0",
    "memory-maze": "farworld/MemoryMaze-v0",
}
DEFAULT_FRAMES_PER_SECOND = 10.0  # for an environment that does not say


class EnvironmentCrash(ChildProcessError):
    """An environment raised where it should have answered, or its process died."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EnvSettings:
    """Which environment, and how it is seen.

    Attributes:
        env_id: a Gymnasium id, or `module:name` with an id of the old gym or with what makes an environment; see
            `resolve_env_id`.
        env_args: what it is made with, beside what its engine is made with anyway.
        size: height and width of the frames in pixels; None takes the environment's where it suits.
        obs_key: the part of the observation that holds the picture; empty looks for one.
        render: take what the environment renders, whatever it observes.
        fit: how a frame that is no square becomes one; None is the usual way of its engine.
        actions: a vocabulary file; None takes the environment's own.
    """

    env_id: str
    env_args: Mapping[str, Any] = field(default_factory=dict)
    size: int | None = None
    obs_key: str = ""
    render: bool = False
    fit: Fit | None = None
    actions: Path | None = None

    def __post_init__(self) -> None:
        if self.size is not None and (self.size < SIZE_MULTIPLE or self.size % SIZE_MULTIPLE):
            raise ValueError(f"size must be a positive multiple of {SIZE_MULTIPLE}, got {self.size}")
        if self.render and self.obs_key:
            raise ValueError(f"--render and --obs-key {self.obs_key} are two places for the pixels; give one of them")

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """What the environment is made with: a built-in world and most engines draw any size themselves."""
        engine = engine_of(self.env_id)
        if self.env_id in BUILT_IN.values():
            own = {} if self.size is None else {"size": self.size}
        else:
            own = {} if engine is None else engine.arguments(self.size or DEFAULT_SIZE)
        return {**own, **self.env_args}


def parse_env_args(texts: Sequence[str]) -> dict[str, Any]:
    """Arguments of an environment from `name=value`; a value is TOML or JSON, and else a text.

    Raises:
        ValueError: no `=`, no name, or a name twice.
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip().isidentifier():
            raise ValueError(f"--env-arg expects name=value, such as level=3 or preset=dmlab, got {text!r}")
        if name.strip() in values:
            raise ValueError(f"--env-arg {name.strip()} is given twice")
        values[name.strip()] = _parse_value(value.strip())
    return values


def _parse_value(text: str) -> Any:
    with contextlib.suppress(ValueError):
        return json.loads(text)
    with contextlib.suppress(ValueError):
        value = tomllib.loads(f"value = {text}")["value"]
        json.dumps(value)  # the dataset stores it
        return value
    return text


# Making


def resolve_env_id(name: str) -> str:
    """The id for what a person typed, its module imported.

    Args:
        name: maze, voxel or another short name; a Gymnasium id; `module:id`, where importing the module registers
            the id with Gymnasium or with the old gym; or `module:callable`, which is called to make an environment of
            Gymnasium, the old gym or dm_env.

    Raises:
        ValueError: nothing of this name; the message has the built-in worlds and the nearest match.
        ImportError: the engine it belongs to is not installed; the message has the command.
    """
    env_id = SHORT_NAMES.get(name, name)
    if ":" in env_id and (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # as for `python -m farworld`: the module may lie in the folder of now
    _find_factory(env_id, name)
    return env_id


def _find_factory(env_id: str, name: str) -> Callable[..., gymnasium.Env]:
    """What makes the environment; see resolve_env_id."""
    engine = engine_of(env_id)
    if engine is not None:
        engine.load(name)
    module_name, _, inner = env_id.rpartition(":")
    module = None
    if module_name:
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise ImportError(f"environment {name} needs the Python module {error.name}") from error
        except Exception as error:  # whatever runs while it is imported
            raise ImportError(f"environment {name}: {module_name} cannot be imported: {_brief(error)}") from error
    problem = ""
    try:
        gymnasium.spec(inner)
        return functools.partial(gymnasium.make, inner, disable_env_checker=True)
    except gymnasium.error.Error as error:
        problem = str(error)
    factory: Any = old_gym_factory(inner)
    if factory is None and module is not None:
        factory = module
        for part in inner.split("."):
            factory = getattr(factory, part, None)
    if callable(factory):
        return lambda **kwargs: adapt(factory, kwargs)
    known = [*SHORT_NAMES, *gymnasium.registry]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else ""
    if module is not None:
        hint = f"; {module_name} registers no such id and has no such callable{hint}"
    raise ValueError(
        f"unknown environment {name!r}: the built-in worlds are {', '.join(BUILT_IN)}, "
        f"and any registered Gymnasium id works{hint}"
    ) from ValueError(problem)


def make_env(settings: EnvSettings) -> gymnasium.Env:
    """Make an environment, so that it renders if it can be told to.

    Raises:
        ValueError: it cannot be made.
        ImportError: it needs a module that is not installed.
    """
    make = functools.partial(_find_factory(settings.env_id, settings.env_id), **settings.env_kwargs)
    try:
        try:
            env = make(render_mode="rgb_array")
        except TypeError:  # it may not take render_mode, which is no harm where observations are pictures
            env = make()
    except gymnasium.error.DependencyNotInstalled as error:
        raise ImportError(f"environment {settings.env_id}: {error}") from error
    except gymnasium.error.Error as error:
        raise ValueError(f"environment {settings.env_id}: {error}") from error
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(f"environment {settings.env_id} cannot be made: {_brief(error)}") from error
    engine = engine_of(settings.env_id)
    return env if engine is None else engine.wrap(env)


def _brief(error: Exception) -> str:
    """What an error says, with its kind where that is not plain."""
    text = " ".join(str(error).split())
    kind = "" if isinstance(error, (TypeError, ValueError)) and text else f"{type(error).__name__}: "
    return f"{kind}{text}".rstrip(": ")


@contextlib.contextmanager
def crashes(env_id: str) -> Iterator[None]:
    """Tell what an environment raises while it is played from our own errors.

    Raises:
        EnvironmentCrash: whatever it raised.
        ImportError: it misses a module, which another try would miss too.
    """
    try:
        yield
    except gymnasium.error.DependencyNotInstalled as error:
        raise ImportError(f"environment {env_id}: {error}") from error
    except (ImportError, FrameError):
        raise
    except Exception as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = "" if trace is None else f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})"
        raise EnvironmentCrash(f"environment {env_id} raised {type(error).__name__}: {error}{place}") from error


# Seeing


class PixelEnv:
    """An environment as it is recorded and played: frames of one size, actions by their place in the vocabulary.

    It owns the environment.

    Attributes:
        table: the actions.
        spec: of a dataset of it.
    """

    def __init__(self, settings: EnvSettings, *, policy: str = "", seed: int = 0) -> None:
        """Make the environment, and reset it once to see how large its frames are.

        Args:
            settings: which environment, and how it is seen.
            policy: for the spec.
            seed: for the spec.

        Raises:
            ValueError: it cannot be made, its pixels or actions are of no use, or the vocabulary file is bad.
            ImportError: it needs a module that is not installed.
            EnvironmentCrash: it raised.
        """
        self.env = make_env(settings)
        with contextlib.ExitStack() as failed:
            failed.callback(self.close)
            engine = engine_of(settings.env_id)
            fit = settings.fit or (engine.fit if engine else "crop")
            self._settings = settings
            self.table: ActionTable = action_table(self.env, settings.actions)
            self._frame_of = FrameSource(
                self.env,
                name=settings.env_id,
                size=settings.size,
                obs_key=settings.obs_key,
                render=settings.render,
                fit=fit,
            )
            height, width = self.reset(None).shape[:2]
            self.spec = DatasetSpec(
                env_id=settings.env_id,
                env_kwargs=json.loads(json.dumps(settings.env_kwargs)),  # as it is read again: tuples are lists
                env_version=_version(self.env, settings.env_id),
                policy=policy,
                height=height,
                width=width,
                frames_per_second=float(self.env.metadata.get("render_fps") or DEFAULT_FRAMES_PER_SECOND),
                action_vocabulary=self.table.vocabulary,
                action_space=describe_space(self.env.action_space),
                obs_key=self._frame_of.obs_key,
                seed=seed,
            )
            failed.pop_all()

    def reset(self, seed: int | None) -> np.ndarray:
        """Begin an episode; its first frame, (H, W, 3), uint8. None is any episode, for environments slow to seed."""
        with crashes(self._settings.env_id):
            observation, _ = self.env.reset(seed=seed)
            return self._frame_of(observation).copy()  # environments may draw into the same array again

    def step(self, action: int) -> tuple[np.ndarray | None, float, bool, bool]:
        """Take an action; frame (None if the environment has no picture any more), reward, terminated, truncated."""
        with crashes(self._settings.env_id):
            observation, reward, terminated, truncated, info = self.env.step(self.table.env_actions[action])
            frame = None if info.get(NO_FRAME) else self._frame_of(observation).copy()
            return frame, float(reward), bool(terminated), bool(truncated)

    def close(self) -> None:
        """Close the environment; one that has crashed may fail in this too, and has nothing left to lose."""
        with contextlib.suppress(Exception):
            self.env.close()


def _version(env: gymnasium.Env, env_id: str) -> str:
    """The release of what provides an environment, or nothing if nobody knows."""
    if env_id in BUILT_IN.values():
        return __version__
    if version := attribute(env, "engine_version"):
        return version
    engine = engine_of(env_id)
    name = engine.package if engine else type(env.unwrapped).__module__.partition(".")[0]
    try:
        return importlib.metadata.version(name)
    except (importlib.metadata.PackageNotFoundError, ValueError):  # ValueError: no name
        return ""
