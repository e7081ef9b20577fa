"""Crafter: a survival game seen from above, in the interface of the old gym."""

from __future__ import annotations

from typing import Any

from farworld.envs.adapters import OldGymEnv


class CrafterEnv(OldGymEnv):
    """Crafter as a Gymnasium environment.

    A seed decides the terrain, but not the creatures: Crafter keeps them in sets, whose order differs between runs.

    Args:
        render_mode: only rgb_array.
        **kwargs: of crafter.Env, such as area, view, size or length.
    """

    def __init__(self, render_mode: str | None = "rgb_array", **kwargs: Any) -> None:
        import crafter

        super().__init__(crafter.Env, kwargs)
