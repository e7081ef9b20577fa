"""What walks through the maze while it is recorded: tours, exploration, and ways back to what was seen."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from farworld.envs.maze_layout import Cell, distances, free_cells, free_neighbours, middle
from farworld.envs.maze_motion import MOVES, STEP_CELLS, Pose, signed_degrees

if TYPE_CHECKING:
    from farworld.envs.maze import MazeEnv

MAZE_POLICIES = ("explore", "tour", "revisit")
SPIN_FRAMES = 20  # that every published DMLab episode begins with

NEAR = 0.35  # cells from the middle of a cell at which a tour goes on to the next
LOST = 1.3  # cells from it at which a tour is planned anew


def make_maze_policy(env: MazeEnv, name: str, rng: np.random.Generator) -> Callable[[], int]:
    """See `MazeEnv.policy`."""
    if name not in MAZE_POLICIES:
        raise ValueError(f"policy must be one of {', '.join(MAZE_POLICIES)}, got {name!r}")
    if name == "tour":
        return Tour(env, rng)
    if name == "revisit":
        return Revisit(env, rng)
    return PublishedTour(env, rng) if env.preset.published else Exploration(env, rng)


class Tour:
    """Walks the shortest way to the farthest cell not visited yet, again and again.

    Calling it gives the next action's index.
    """

    turns_while_walking = True  # near the wanted direction, as a person does

    def __init__(self, env: MazeEnv, rng: np.random.Generator) -> None:
        self._env = env
        self._rng = rng
        self._index = {name: i for i, name in enumerate(env.action_vocabulary.names)}
        self._walls: np.ndarray | None = None
        self._unvisited: set[Cell] = set()
        self._path: deque[Cell] = deque()
        self._planned: deque[int] = deque()
        self._expected: Pose | None = None  # where the last action leads, while a plan is followed

    def __call__(self) -> int:
        """The next action."""
        env = self._env
        if self._walls is not env.walls:
            self._walls = env.walls
            self._unvisited = set(free_cells(env.walls))
            self._path.clear()
            self._planned.clear()
            self._planned.extend(self._begin())
            self._expected = None
        elif self._expected is not None and not self._expected.is_near(env.pose):
            self._planned.clear()  # a goal was reached, or somebody else acted
            self._path.clear()
        self._unvisited.discard(env.cell)
        if not self._planned:
            self._planned.extend(self._plan())
        action = self._planned.popleft()
        self._expected = env.preview(env.pose, action)
        return action

    def _begin(self) -> list[int]:
        """The actions that an episode begins with."""
        return []

    def _plan(self) -> list[int]:
        """The next actions, at least one."""
        return [self._follow(self._env.pose, self._path)]

    def _known(self, *names: str) -> list[int]:
        """The actions of these names that the vocabulary has."""
        return [self._index[name] for name in names if name in self._index]

    def _follow(self, pose: Pose, path: deque[Cell]) -> int:
        """Turn or walk towards the next cell of a path, which loses what has been reached."""
        while path and math.dist(middle(path[0]), pose[:2]) < NEAR:
            path.popleft()
        # Pushed off the tour, or arrived: plan anew.
        if not path or math.dist(middle(path[0]), pose[:2]) > LOST:
            path.clear()
            path.extend(self._way_to_farthest(pose))
        x, y = middle(path[0])
        error = signed_degrees(math.degrees(math.atan2(y - pose.y, x - pose.x)) - pose.heading)
        if abs(error) <= self._env.turn_degrees / 2:
            return self._index["forward"]
        side = "left" if error < 0 else "right"
        walking = self._known(f"forward_{side}")
        if walking and self.turns_while_walking and abs(error) < 55 and self._rng.random() < 0.6:
            return walking[0]
        return self._turn(side)

    def _turn(self, side: str) -> int:
        return self._index[f"turn_{side}"]

    def _way_to_farthest(self, pose: Pose) -> deque[Cell]:
        """The way to the farthest unvisited cell; once all are visited, to the farthest of all."""
        reached = distances(self._env.walls, pose.cell, self._rng)
        if not self._unvisited - {pose.cell}:
            self._unvisited = set(reached) - {pose.cell}
        target = [cell for cell in reached if cell in self._unvisited][-1]  # nearest first
        return _way(reached, target, pose)


def _way(reached: dict[Cell, tuple[int, Cell]], target: Cell, pose: Pose) -> deque[Cell]:
    """The cells from a pose's own, unless it is in the middle of that, to a target among those reached from it."""
    path = deque([target])
    while path[0] != pose.cell:
        path.appendleft(reached[path[0]][1])
    if len(path) > 1 and math.dist(middle(pose.cell), pose[:2]) < NEAR:
        path.popleft()
    return path


class PublishedTour(Tour):
    """The policy that TECO's DMLab data were collected with: a spin to the left, then tours."""

    turns_while_walking = False

    def _begin(self) -> list[int]:
        return [self._index["turn_left"]] * SPIN_FRAMES


class Exploration(Tour):
    """Tours with pauses, steps back and aside, bumps, spins and random actions in between."""

    def _plan(self) -> list[int]:
        return self._burst() or super()._plan()

    def _burst(self) -> list[int]:
        """Now and then a few steps off the tour; mostly none."""
        rng = self._rng
        draw = rng.random()
        turn = self._turn(("left", "right")[int(rng.integers(2))])
        if draw < 0.012:
            return self._known("noop") * int(rng.integers(2, 8))
        if draw < 0.020:
            return self._known("backward") * int(rng.integers(2, 7))
        if draw < 0.032:
            return self._known(("strafe_left", "strafe_right")[int(rng.integers(2))]) * int(rng.integers(2, 6))
        if draw < 0.040:
            return self._bump()
        if draw < 0.048:
            return [turn] * int(rng.integers(2, 8))
        if draw < 0.050:
            return [turn] * round(360 / self._env.turn_degrees)
        if draw < 0.075:
            return [int(rng.integers(len(self._index)))]
        return []

    def _bump(self) -> list[int]:
        """Turn to a wall of this cell and keep walking against it."""
        free = free_neighbours(self._env.walls, self._env.cell)
        blocked = [i for i in range(4) if i not in free]
        if not blocked:
            return []
        error = signed_degrees(90 * blocked[int(self._rng.integers(len(blocked)))] - self._env.pose.heading)
        turn = self._turn("left" if error < 0 else "right")
        turns = round(abs(error) / self._env.turn_degrees)
        return [turn] * turns + [self._index["forward"]] * int(self._rng.integers(4, 9))


class Revisit(Tour):
    """Tours broken by excursions that end in the very pose that they began in, and by looks aside and back.

    An excursion is played through beforehand: it goes out without touching a wall, and every step is undone on
    the way back, so that the same views come again after twice its length. Where no action undoes a step, because
    there is no backward and no number of turns is half a circle, it comes back to the cell that it left.
    """

    def _begin(self) -> list[int]:
        self._steps_to_excursion = int(self._rng.integers(1, 12))
        self._home: Cell | None = None  # where a tour that is no exact excursion goes back to
        half_circle = 180 / self._env.turn_degrees
        self._ways_back = [self._walking_backwards] if self._known("backward") else []
        if half_circle == round(half_circle):
            self._ways_back.append(self._turned_around)
        return []

    def _plan(self) -> list[int]:
        if self._steps_to_excursion > 0:
            self._steps_to_excursion -= 1
            return super()._plan()
        if self._home is not None:
            return self._go_home(self._home)
        self._steps_to_excursion = int(self._rng.integers(4, 20))
        if self._rng.random() < 0.25:
            return self._look()
        if not self._ways_back:
            self._home = self._env.cell
            self._path.clear()
            return super()._plan()
        return self._excursion() + self._look()

    def _go_home(self, home: Cell) -> list[int]:
        """The next step back to a cell, or a look around there."""
        pose = self._env.pose
        if math.dist(middle(home), pose[:2]) < NEAR:
            self._home = None
            self._path.clear()
            self._steps_to_excursion = int(self._rng.integers(4, 20))
            return self._look()
        if not self._path or self._path[-1] != home:
            self._path = _way(distances(self._env.walls, pose.cell, self._rng), home, pose)
        return super()._plan()

    def _pause(self, most: int) -> list[int]:
        return self._known("noop") * int(self._rng.integers(most + 1))

    def _look(self) -> list[int]:
        """Look to one side and back, around, or step aside and back."""
        rng, degrees = self._rng, self._env.turn_degrees
        turn, back = rng.permutation([self._turn("left"), self._turn("right")]).tolist()
        draw = rng.random()
        circle = 360 / degrees
        if draw < 0.2 and circle == round(circle):
            return [turn] * round(circle)
        if draw < 0.4 and len(sides := self._known("strafe_left", "strafe_right")) == 2:
            away, again = rng.permutation(sides).tolist()
            steps = int(rng.integers(1, 4))
            aside = [away] * steps + self._pause(2) + [again] * steps
            if self._ends_where_it_began(aside):
                return aside
        turns = int(rng.integers(1, int(180 // degrees) + 1))
        return [turn] * turns + self._pause(3) + [back] * turns

    def _excursion(self) -> list[int]:
        """Out along a tour, and back to the pose of now; empty if there is no exact way back."""
        out = self._way_out(int(self._rng.integers(6, 40)))
        while any(MOVES[name].step for name in out):
            come_back = self._ways_back[int(self._rng.integers(len(self._ways_back)))]
            plan = [self._index[name] for name in out] + self._pause(4) + come_back(out)
            # A corner may be passed in one direction only.
            if self._ends_where_it_began(plan):
                return plan
            out.pop()
        return []

    def _way_out(self, num_steps: int) -> list[str]:
        """The names of up to that many steps of a tour, ended by the first touch of a wall."""
        env = self._env
        pose, names = env.pose, []
        path: deque[Cell] = deque()
        for _ in range(num_steps):
            action = self._follow(pose, path)
            name = env.action_vocabulary.names[action]
            after = env.preview(pose, action)
            if MOVES[name].step and abs(math.dist(after[:2], pose[:2]) - STEP_CELLS) > 1e-9:
                break
            pose = after
            names.append(name)
        return names

    def _walking_backwards(self, names: list[str]) -> list[int]:
        """Undo steps, facing where they led."""
        return self._undo(names, "backward")

    def _turned_around(self, names: list[str]) -> list[int]:
        """Undo steps, facing where they came from, and turn to their direction again."""
        around = [self._turn(("left", "right")[int(self._rng.integers(2))])] * round(180 / self._env.turn_degrees)
        return around + self._undo(names, "forward") + around

    def _undo(self, names: list[str], step: str) -> list[int]:
        """Take back moves, the last one first, and of each first the step and then the turn."""
        actions = []
        for move in (MOVES[name] for name in reversed(names)):
            if move.step:
                actions.append(self._index[step])
            if move.turn:
                actions.append(self._turn("right" if move.turn < 0 else "left"))
        return actions

    def _ends_where_it_began(self, actions: list[int]) -> bool:
        pose = self._env.pose
        for action in actions:
            pose = self._env.preview(pose, action)
        return pose.is_near(self._env.pose)
