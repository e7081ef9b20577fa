"""DeepMind Lab: seven integers an action, in an interface of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from farworld.actions import Action, ActionVocabulary
from farworld.envs.frames import NO_FRAME
from farworld.envs.vocabulary import ActionTable

PICTURE = "RGB_INTERLEAVED"
LOOK = 20  # pixels that an action turns by in one of the game's 60 frames a second, as in IMPALA's set of actions
_NAMES = ("LOOK_LEFT_RIGHT", "LOOK_DOWN_UP", "STRAFE_LEFT_RIGHT", "MOVE_BACK_FORWARD", "FIRE", "JUMP", "CROUCH")
_LOW, _HIGH = (-512, -512, -1, -1, 0, 0, 0), (512, 512, 1, 1, 1, 1, 1)

# Names, keys, and the seven integers.
_ACTIONS = (
    ("noop", (), (0, 0, 0, 0, 0, 0, 0)),
    ("forward", ("up",), (0, 0, 0, 1, 0, 0, 0)),
    ("backward", ("down",), (0, 0, 0, -1, 0, 0, 0)),
    ("turn_left", ("left",), (-LOOK, 0, 0, 0, 0, 0, 0)),
    ("turn_right", ("right",), (LOOK, 0, 0, 0, 0, 0, 0)),
    ("forward_left", ("up", "left"), (-LOOK, 0, 0, 1, 0, 0, 0)),
    ("forward_right", ("up", "right"), (LOOK, 0, 0, 1, 0, 0, 0)),
    ("strafe_left", ("a",), (0, 0, -1, 0, 0, 0, 0)),
    ("strafe_right", ("d",), (0, 0, 1, 0, 0, 0, 0)),
    ("look_up", ("w",), (0, LOOK // 2, 0, 0, 0, 0, 0)),
    ("look_down", ("s",), (0, -LOOK // 2, 0, 0, 0, 0, 0)),
    ("fire", ("f",), (0, 0, 0, 0, 1, 0, 0)),
    ("jump", ("space",), (0, 0, 0, 0, 0, 1, 0)),
    ("crouch", ("c",), (0, 0, 0, 0, 0, 0, 1)),
)


class DMLabEnv(gymnasium.Env):
    """DeepMind Lab as a Gymnasium environment.

    Written to the documentation of `deepmind_lab.Lab`; an episode's last picture is none, as after its end there is
    nothing to observe. `dmlab-gym`, which is Gymnasium's already, is recorded by its own ids.

    Args:
        render_mode: only rgb_array.
        level: a level's name, such as contributed/dmlab30/rooms_watermaze.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        action_repeat: frames of the game's 60 a second that one action lasts.
        renderer: hardware or software.
        lab: what makes the game; deepmind_lab.Lab if it is not given.
        **config: more of the game's settings.
    """

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(
        self,
        render_mode: str | None = "rgb_array",
        level: str = "contributed/dmlab30/explore_goal_locations_small",
        width: int = 64,
        height: int = 64,
        action_repeat: int = 8,
        renderer: str = "software",
        lab: Callable[..., Any] | None = None,
        **config: Any,
    ) -> None:
        if action_repeat < 1:
            raise ValueError(f"action_repeat must be 1 or more, got {action_repeat}")
        if lab is None:
            import deepmind_lab

            lab = deepmind_lab.Lab
        fps = int(config.pop("fps", 60))
        settings = {"width": width, "height": height, "fps": fps, **config}
        self._lab = lab(level, [PICTURE], config={k: str(v) for k, v in settings.items()}, renderer=renderer)
        self._action_repeat = action_repeat
        self._episode = 0
        self._last = np.zeros((height, width, 3), np.uint8)
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": fps / action_repeat}
        self.observation_space = spaces.Dict({PICTURE: spaces.Box(0, 255, (height, width, 3), np.uint8)})
        self.action_space = spaces.Box(np.array(_LOW, np.intc), np.array(_HIGH, np.intc), dtype=np.intc)
        self.action_names = list(_NAMES)

    @property
    def action_table(self) -> ActionTable:
        """The usual actions with the keys of the built-in worlds."""
        vocabulary = ActionVocabulary(tuple(Action(name=name, keys=keys) for name, keys, _ in _ACTIONS))
        return ActionTable(vocabulary, tuple(np.array(row, np.intc) for *_, row in _ACTIONS), self.action_space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        own = int(self.np_random.integers(0, 2**31 - 1))
        self._lab.reset(episode=self._episode, seed=own) if seed is None else self._lab.reset(episode=0, seed=own)
        self._episode += 1
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take an action."""
        reward = self._lab.step(np.asarray(action, np.intc), num_steps=self._action_repeat)
        if self._lab.is_running():
            return self._observe(), float(reward), False, False, {}
        return {PICTURE: self._last}, float(reward), True, False, {NO_FRAME: True}

    def _observe(self) -> dict[str, np.ndarray]:
        self._last = np.asarray(self._lab.observations()[PICTURE])
        return {PICTURE: self._last}

    def render(self) -> np.ndarray:
        """What is seen now."""
        return self._last

    def close(self) -> None:
        """End the game."""
        self._lab.close()
