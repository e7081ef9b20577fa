"""MiniWorld: rooms drawn with OpenGL, without a display where there is none."""

from __future__ import annotations

import os
import sys
from typing import Any


def prepare() -> None:
    """Let pyglet, which MiniWorld draws with, do without a display where there is none."""
    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        os.environ.setdefault("PYGLET_HEADLESS", "1")


def arguments(size: int) -> dict[str, Any]:
    """It draws any size itself."""
    return {"obs_width": size, "obs_height": size}
