"""ViZDoom: pictures in a Dict observation, buttons by name, and no picture at the end of an episode."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from typing import Any

import gymnasium
from gymnasium import spaces

from farworld.envs.frames import NO_FRAME

# Widths and heights that it draws, all of the shape 4:3.
_RESOLUTIONS = ((160, 120), (200, 150), (256, 192), (320, 240), (400, 300), (512, 384), (640, 480), (800, 600))


def arguments(size: int) -> dict[str, Any]:
    """The smallest picture that is half as large again as the frames, so that shrinking it smooths; nothing over it.

    Sound and the map are off: full maps with a sound buffer abort without a sound card, and each buffer takes time.
    """
    width, height = next((r for r in _RESOLUTIONS if 2 * r[1] >= 3 * size), (1024, 768))
    return {
        "screen_resolution": f"RES_{width}X{height}",
        "render_hud": False,
        "sound_enabled": False,
        "audio_buffer_enabled": False,
        "automap_buffer_enabled": False,
        "depth_buffer_enabled": False,
        "labels_buffer_enabled": False,
        "notifications_buffer_enabled": False,
    }


class VizdoomFrames(gymnasium.Wrapper):
    """Says what the buttons are called, at which pace the game is seen, and which frames are none."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        game = env.unwrapped
        self.metadata = {**env.metadata, "render_fps": env.metadata["render_fps"] / game.frame_skip}  # type: ignore
        self._folder: tempfile.TemporaryDirectory | None = None

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode. The game starts with the first one, and leaves its settings and a folder where it runs."""
        if self._folder is not None:
            return self.env.reset(**kwargs)
        self._folder = tempfile.TemporaryDirectory(prefix="farworld-vizdoom-", ignore_cleanup_errors=True)
        with contextlib.chdir(self._folder.name):
            return self.env.reset(**kwargs)

    def close(self) -> None:
        """End the game."""
        self.env.close()
        if self._folder is not None:
            self._folder.cleanup()

    @property
    def action_names(self) -> list[str] | dict[str, list[str]]:
        """The buttons of each part of an action; for one number the buttons that it stands for."""
        game = self.env.unwrapped
        buttons = [button.name.lower() for button in game.game.get_available_buttons()]  # type: ignore[attr-defined]
        deltas, binary = buttons[: game.num_delta_buttons], buttons[game.num_delta_buttons :]  # type: ignore
        if game.max_buttons_pressed:  # type: ignore[attr-defined]
            binary = [
                "+".join(itertools.compress(binary, pressed)) or "noop"
                for pressed in game.button_map  # type: ignore[attr-defined]
            ]
        if isinstance(self.action_space, spaces.Dict):
            return {"binary": binary, "continuous": deltas}
        return binary or deltas

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take an action. After an episode's last one there is no picture, and the observation is all zeros."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self.env.unwrapped.state is None:  # type: ignore[attr-defined]
            info = {**info, NO_FRAME: True}
        # At its time limit it says both.
        return observation, reward, terminated and not truncated, truncated, info
