"""Memory Maze: the memory benchmark, drawn by MuJoCo, in the interface of dm_env."""

from __future__ import annotations

import ctypes.util
import os
import sys
from math import atan2, degrees
from typing import Any

import numpy as np

from farworld.actions import Action, ActionVocabulary
from farworld.envs.adapters import DMEnv
from farworld.envs.maze_motion import Pose

SIZES = (9, 11, 13, 15)


def prepare() -> None:
    """Let MuJoCo draw without a display where there is none: on the GPU if there is one, else in memory."""
    if not sys.platform.startswith("linux") or os.environ.get("DISPLAY") or os.environ.get("MUJOCO_GL"):
        return
    if not os.path.exists("/dev/nvidiactl") and ctypes.util.find_library("OSMesa"):
        os.environ["MUJOCO_GL"] = "osmesa"
    elif ctypes.util.find_library("EGL"):
        os.environ["MUJOCO_GL"] = "egl"
    else:
        raise ImportError(
            "Memory Maze draws with OSMesa or EGL where there is no display, and neither is installed; "
            "install the system's libosmesa6 (Debian and Ubuntu: apt install libosmesa6)"
        )


def arguments(size: int) -> dict[str, Any]:
    """It draws any size itself."""
    return {"camera_resolution": size}


class MemoryMazeEnv(DMEnv):
    """Memory Maze as a Gymnasium environment: find the objects of the colour that the frame's border shows.

    Actions: idle, forward, left, right, and forward with either turn, four a second.

    Args:
        render_mode: only rgb_array.
        maze_size: 9, 11, 13 or 15 cells a side.
        **kwargs: of the benchmark's own task, such as camera_resolution, control_freq or good_visibility.
    """

    action_vocabulary = ActionVocabulary(
        (
            Action(name="noop"),
            Action(name="forward", keys=("up",)),
            Action(name="turn_left", keys=("left",)),
            Action(name="turn_right", keys=("right",)),
            Action(name="forward_left", keys=("up", "left")),
            Action(name="forward_right", keys=("up", "right")),
        )
    )

    def __init__(self, render_mode: str | None = "rgb_array", maze_size: int = 9, **kwargs: Any) -> None:
        if maze_size not in SIZES:
            raise ValueError(f"maze_size must be one of {', '.join(map(str, SIZES))}, got {maze_size!r}")
        prepare()
        from memory_maze import tasks

        task = getattr(tasks, f"memory_maze_{maze_size}x{maze_size}")
        super().__init__(task, {"image_only_obs": True, **kwargs})
        self.metadata = {**DMEnv.metadata, "render_fps": float(kwargs.get("control_freq", tasks.DEFAULT_CONTROL_FREQ))}

    def pose(self) -> Pose:
        """Where the camera is now."""
        arena, body = self._env._task._maze_arena, self._env.physics.bind(self._env._task._walker.root_body)
        x, y = (
            place / arena.xy_scale + cells / 2
            for place, cells in zip(body.xpos[:2], (arena.maze.width, arena.maze.height), strict=True)
        )
        ahead = body.xmat.reshape(3, 3)[:2, 1]
        return Pose(float(x), float(y), degrees(atan2(ahead[1], ahead[0])))

    def walls(self) -> np.ndarray:
        """Which cells are walls, (cells, cells), bool, indexed [x, y] as poses are."""
        layer = self._env._task._maze_arena.maze.entity_layer
        return ~np.isin(np.flip(layer, 0), (" ", "P", "G")).T
