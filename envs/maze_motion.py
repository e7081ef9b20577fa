"""How the camera of the maze turns and walks, and the actions that make it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from farworld.actions import Action, ActionVocabulary

STEP_CELLS = 0.4  # walked in one step; what the real DMLab episode shows
BODY_RADIUS = 0.25  # cells kept free between the camera and any wall

ACTIONS = {
    "full": ActionVocabulary(
        (
            Action(name="noop"),
            Action(name="forward", keys=("up",)),
            Action(name="backward", keys=("down",)),
            Action(name="strafe_left", keys=("a",)),
            Action(name="strafe_right", keys=("d",)),
            Action(name="turn_left", keys=("left",)),
            Action(name="turn_right", keys=("right",)),
            Action(name="forward_left", keys=("up", "left")),
            Action(name="forward_right", keys=("up", "right")),
        )
    ),
    "walk": ActionVocabulary(
        (
            Action(name="noop"),
            Action(name="forward", keys=("up",)),
            Action(name="backward", keys=("down",)),
            Action(name="turn_left", keys=("left",)),
            Action(name="turn_right", keys=("right",)),
            Action(name="forward_left", keys=("up", "left")),
            Action(name="forward_right", keys=("up", "right")),
        )
    ),
    "teco": ActionVocabulary(
        (
            Action(name="turn_left", keys=("left",)),
            Action(name="turn_right", keys=("right",)),
            Action(name="forward", keys=("up",)),
        )
    ),
}


@dataclass(frozen=True, slots=True)
class Move:
    """What an action does: first the turn, then the step.

    Attributes:
        turn: -1 to the left, 1 to the right.
        step: in steps, negative is backward.
        aside: degrees from the heading at which the step is taken.
    """

    turn: int = 0
    step: int = 0
    aside: int = 0


MOVES = {
    "noop": Move(),
    "forward": Move(step=1),
    "backward": Move(step=-1),
    "strafe_left": Move(step=1, aside=-90),
    "strafe_right": Move(step=1, aside=90),
    "turn_left": Move(turn=-1),
    "turn_right": Move(turn=1),
    "forward_left": Move(turn=-1, step=1),
    "forward_right": Move(turn=1, step=1),
}


class Pose(NamedTuple):
    """Where the camera is: x to the east and y to the south in cells, heading in degrees, 0 is east, clockwise."""

    x: float
    y: float
    heading: float

    @property
    def cell(self) -> tuple[int, int]:
        """The cell that it is in."""
        return int(self.x), int(self.y)

    def is_near(self, other: Pose) -> bool:
        """Whether both are the same but for rounding."""
        return math.dist(self[:2], other[:2]) < 1e-6 and abs(signed_degrees(self.heading - other.heading)) < 1e-6


def move_camera(walls: np.ndarray, pose: Pose, move: Move, turn_degrees: float) -> Pose:
    """Where a move leads from a pose: walls are slid along, BODY_RADIUS before them.

    Args:
        walls: (cells, cells) bool, indexed [x, y].
        pose: in a free cell.
        move: what is done.
        turn_degrees: of one turn.
    """
    heading = (pose.heading + move.turn * turn_degrees) % 360
    if not move.step:
        return Pose(pose.x, pose.y, heading)
    angle = math.radians(heading + move.aside)
    distance = STEP_CELLS * move.step
    # One axis after the other: what a wall stops on one axis still slides along the other.
    x = _walk(walls, pose.x, pose.y, distance * math.cos(angle))
    y = _walk(walls.T, pose.y, x, distance * math.sin(angle))
    return Pose(x, y, heading)


def _walk(walls: np.ndarray, along: float, across: float, distance: float) -> float:
    """Walk a distance along the first axis of the walls; stop BODY_RADIUS before one."""
    direction = math.copysign(1.0, distance)
    cell = math.floor(along + distance + direction * BODY_RADIUS)
    slack = BODY_RADIUS - 1e-6  # standing exactly at a wall is not touching it
    if walls[cell, math.floor(across - slack)] or walls[cell, math.floor(across + slack)]:
        return cell - BODY_RADIUS if direction > 0 else cell + 1 + BODY_RADIUS
    return along + distance


def signed_degrees(angle: float) -> float:
    """The same angle in [-180, 180)."""
    return (angle + 180) % 360 - 180
