"""Minecraft: MineDojo's eight integers with names and keys, and CraftGround made from plain arguments.

MineRL needs nothing of this: its ids are the old gym's, and its actions a Dict of buttons and a camera.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from farworld.actions import Action, ActionVocabulary
from farworld.envs.vocabulary import ActionTable

EIGHT = (3, 3, 4, 25, 25, 8, 244, 36)  # MineDojo's space, which CraftGround has too
_IDLE = (0, 0, 0, 12, 12, 0, 0, 0)  # 12 keeps the camera still; one more turns it by 15 degrees

# Names, keys, and which of the eight integers differ from idling.
_ACTIONS: tuple[tuple[str, tuple[str, ...], dict[int, int]], ...] = (
    ("noop", (), {}),
    ("forward", ("up",), {0: 1}),
    ("back", ("down",), {0: 2}),
    ("left", ("a",), {1: 1}),
    ("right", ("d",), {1: 2}),
    ("turn_left", ("left",), {4: 11}),
    ("turn_right", ("right",), {4: 13}),
    ("look_up", ("w",), {3: 11}),
    ("look_down", ("s",), {3: 13}),
    ("jump", ("space",), {2: 1}),
    ("sneak", ("c",), {2: 2}),
    ("use", ("e",), {5: 1}),
    ("drop", ("g",), {5: 2}),
    ("attack", ("f",), {5: 3}),
    ("forward+turn_left", ("up", "left"), {0: 1, 4: 11}),
    ("forward+turn_right", ("up", "right"), {0: 1, 4: 13}),
    ("forward+jump", ("up", "space"), {0: 1, 2: 1}),
    ("forward+sprint", ("up", "left shift"), {0: 1, 2: 3}),
    ("forward+attack", ("up", "f"), {0: 1, 5: 3}),
)


def eight_integers(space: spaces.Space) -> ActionTable | None:
    """The usual actions of MineDojo's space; None for any other."""
    if not isinstance(space, spaces.MultiDiscrete) or tuple(np.ravel(space.nvec).tolist()) != EIGHT:
        return None
    rows = []
    for _, _, changes in _ACTIONS:
        row = np.array(_IDLE, space.dtype)
        row[[*changes]] = [*changes.values()]
        rows.append(row)
    actions = tuple(Action(name=name, keys=keys) for name, keys, _ in _ACTIONS)
    return ActionTable(ActionVocabulary(actions), tuple(rows), space)


class NamedActions(gymnasium.Wrapper):
    """Says what MineDojo's actions mean."""

    @property
    def action_table(self) -> ActionTable | None:
        """See `eight_integers`."""
        return eight_integers(self.action_space)


class CraftGroundEnv(gymnasium.Env):
    """CraftGround as it is recorded: its picture alone, made from plain arguments.

    Written to the documentation and the source of CraftGround 2.7.

    Args:
        render_mode: only rgb_array.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        actions: V2_MINERL_HUMAN, buttons and a camera, or V1_MINEDOJO, eight integers.
        make_args: more of craftground.make.
        **config: more of its InitialEnvironmentConfig, such as seed, render_distance or fov.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(
        self,
        render_mode: str | None = "rgb_array",
        width: int = 640,
        height: int = 360,
        actions: str = "V2_MINERL_HUMAN",
        make_args: dict[str, Any] | None = None,
        **config: Any,
    ) -> None:
        import craftground

        versions = [version.name for version in craftground.ActionSpaceVersion]
        if actions not in versions:
            raise ValueError(f"actions must be {' or '.join(versions)}, got {actions!r}")
        make: Callable[..., Any] = craftground.make
        settings = {"image_width": width, "image_height": height, "hud_hidden": True, **config}
        self._env = make(
            initial_env_config=craftground.InitialEnvironmentConfig(**settings),
            action_space_version=craftground.ActionSpaceVersion[actions],
            **(make_args or {}),
        )
        self.render_mode = render_mode
        self.observation_space = spaces.Dict(pov=spaces.Box(0, 255, (height, width, 3), np.uint8))
        self.action_space = self._env.action_space
        self._last: np.ndarray | None = None

    @property
    def action_table(self) -> ActionTable | None:
        """See `eight_integers`; the names of buttons speak for themselves."""
        return eight_integers(self.action_space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        observation, _ = self._env.reset(seed=seed, options=options)
        return self._see(observation), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take an action."""
        observation, reward, terminated, truncated, _ = self._env.step(action)
        return self._see(observation), float(reward), bool(terminated), bool(truncated), {}

    def _see(self, observation: Any) -> dict[str, np.ndarray]:
        self._last = np.asarray(observation["pov"])
        return {"pov": self._last}

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """What is seen now."""
        return self._last

    def close(self) -> None:
        """End the game."""
        self._env.close()
