"""What is known of real engines: which ids are theirs, what installs them, and what recording wants of them.

The engines themselves are extras; nothing here imports one before it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium

from farworld.envs.engines import atari, luanti, memory_maze, minecraft, miniworld, vizdoom
from farworld.envs.frames import Fit


def _nothing() -> None:
    pass


def _no_arguments(size: int) -> dict[str, Any]:
    return {}


def _as_it_is(env: gymnasium.Env) -> gymnasium.Env:
    return env


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """One engine.

    Attributes:
        prefixes: its ids begin so.
        module: what registers the ids when it is imported.
        package: what the version is of; empty if the environment says it, as `engine_version`.
        extra: of farworld, that installs it; empty if it comes from elsewhere.
        advice: how to get it where no extra does.
        prepare: sets what it reads from the environment of the process when it is imported.
        arguments: what it is made with for frames of a size, unless told otherwise.
        wrap: what goes around it.
        fit: how its frames become squares.
    """

    prefixes: tuple[str, ...]
    module: str
    package: str
    extra: str = ""
    advice: str = ""
    prepare: Callable[[], None] = _nothing
    arguments: Callable[[int], dict[str, Any]] = _no_arguments
    wrap: Callable[[gymnasium.Env], gymnasium.Env] = _as_it_is
    fit: Fit = "crop"

    def load(self, env_id: str) -> None:
        """Import it.

        Raises:
            ImportError: it is not installed, or does not load; the message has the command.
        """
        self.prepare()
        advice = f'pip install "farworld[{self.extra}]"' if self.extra else self.advice
        try:
            importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            raise ImportError(f"environment {env_id} needs the Python module {error.name}; {advice}") from error
        except (ImportError, OSError, AttributeError) as error:  # a missing library of the system, as each says it
            raise ImportError(f"environment {env_id} cannot load {self.module} ({error}); {advice}") from error


ENGINES = (
    Engine(
        prefixes=("Vizdoom", "vizdoom"),
        module="vizdoom.gymnasium_wrapper",
        package="vizdoom",
        extra="vizdoom",
        arguments=vizdoom.arguments,
        wrap=vizdoom.VizdoomFrames,
    ),
    Engine(
        prefixes=("farworld/Doom",),
        module="vizdoom.gymnasium_wrapper",
        package="vizdoom",
        extra="vizdoom",
        arguments=vizdoom.arguments,
    ),
    Engine(
        prefixes=("MiniWorld-", "miniworld:"),
        module="miniworld",
        package="miniworld",
        extra="miniworld",
        prepare=miniworld.prepare,
        arguments=miniworld.arguments,
    ),
    Engine(
        prefixes=("ALE/", "ale_py:"),
        module="ale_py",
        package="ale-py",
        extra="atari",
        wrap=atari.SteadyFrames,
        fit="stretch",  # scores and paddles lie at the edges
    ),
    Engine(
        prefixes=("farworld/MemoryMaze", "MemoryMaze-", "memory_maze"),
        module="memory_maze",
        package="memory-maze",
        extra="memory-maze",
        prepare=memory_maze.prepare,
        arguments=memory_maze.arguments,
    ),
    Engine(
        prefixes=("farworld/Crafter", "crafter:"),
        module="crafter",
        package="crafter",
        extra="crafter",
        arguments=lambda size: {"size": [size, size]},
    ),
    Engine(
        prefixes=("farworld/Luanti",),
        module="farworld.envs.engines.luanti",
        package="",
        advice=luanti.NEEDS,
        prepare=luanti.prepare,
        arguments=luanti.arguments,
    ),
    Engine(
        prefixes=("farworld/DMLab", "deepmind_lab:"),
        module="deepmind_lab",
        package="deepmind_lab",
        advice="DeepMind Lab is built from its source, github.com/google-deepmind/lab",
        arguments=lambda size: {"width": size, "height": size},
    ),
    Engine(
        prefixes=("MineRL", "minerl:"),
        module="minerl",
        package="minerl",
        advice="pip install minerl (it needs Java 8 and an old setuptools, as its documentation says)",
    ),
    Engine(
        prefixes=("farworld/CraftGround", "craftground:"),
        module="craftground",
        package="craftground",
        advice="pip install craftground (it needs Java 21)",
        wrap=minecraft.NamedActions,
    ),
    Engine(
        prefixes=("minedojo:",),
        module="minedojo",
        package="minedojo",
        advice="pip install minedojo (it needs Java 8)",
        wrap=minecraft.NamedActions,
    ),
)


def engine_of(env_id: str) -> Engine | None:
    """The engine that an id belongs to; None for all other environments."""
    return next((engine for engine in ENGINES if env_id.startswith(engine.prefixes)), None)
