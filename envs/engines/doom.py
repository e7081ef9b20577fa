"""Doom with a pistol in a small house, by VizDoom and with Freedoom's assets alone.

The map is that of VizDoom's "my way home": ten rooms and corridors, each with a wall of its own, the same in every
episode, so that a small model can come to know the house by heart. An episode begins anywhere in it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from farworld.actions import Action, ActionVocabulary
from farworld.envs.engines.vizdoom import VizdoomFrames

POLICIES = ("explore", "revisit")
FRAME_SKIP = 4  # of the game's 35 tics a second, for one action
DRAW_STEPS = 10  # until the pistol is up
BUTTONS = ("MOVE_FORWARD", "MOVE_BACKWARD", "TURN_LEFT", "TURN_RIGHT", "MOVE_LEFT", "MOVE_RIGHT", "ATTACK")
# Name, keys, buttons.
_ACTIONS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("noop", (), ()),
    ("forward", ("up",), ("MOVE_FORWARD",)),
    ("backward", ("down",), ("MOVE_BACKWARD",)),
    ("turn_left", ("left",), ("TURN_LEFT",)),
    ("turn_right", ("right",), ("TURN_RIGHT",)),
    ("forward_left", ("up", "left"), ("MOVE_FORWARD", "TURN_LEFT")),
    ("forward_right", ("up", "right"), ("MOVE_FORWARD", "TURN_RIGHT")),
    ("strafe_left", ("a",), ("MOVE_LEFT",)),
    ("strafe_right", ("d",), ("MOVE_RIGHT",)),
    ("shoot", ("space",), ("ATTACK",)),
)
CELL = 16.0  # map units, of the grid that ways are found on
CLEARANCE = 22.0  # map units; a body has 16
TURN = 14.0  # degrees of a turn that goes on; the first one makes half of it
VEST_CLEARANCE = 48.0  # map units; who takes the vest ends the episode
Cell = tuple[int, int]


class DoomEnv(gymnasium.Env[dict[str, np.ndarray], np.int64]):
    """A house in Doom: walk through its rooms, and shoot holes into its walls, which stay.

    The pistol never runs out of shots, and the view does not bob. Needs `farworld[vizdoom]`.

    ## Action space
    `Discrete(10)`: noop, forward, backward, turn_left, turn_right, forward_left, forward_right, strafe_left,
    strafe_right, shoot; each lasts four of the game's tics. `action_vocabulary` has the keys.

    ## Observation space
    VizDoom's Dict with `screen`, 4:3.

    ## Reward
    As in VizDoom's scenario: 1 for the vest, -0.0001 for each tic.

    ## Starting state
    Anywhere in the house, the pistol drawn.

    ## Episode end
    Terminated by taking the vest; truncated after 2100 tics, 514 actions.

    ## Arguments
    VizDoom's, such as `screen_resolution`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 35 / FRAME_SKIP}
    POLICIES: tuple[str, ...] = POLICIES

    def __init__(self, render_mode: str | None = None, **kwargs: Any) -> None:
        import vizdoom
        from vizdoom.vizdoom import GameVariable

        self._pose_variables = (GameVariable.POSITION_X, GameVariable.POSITION_Y, GameVariable.ANGLE)
        settings: dict[str, Any] = {
            "doom_game_path": str(Path(vizdoom.__file__).with_name("freedoom2.wad")),  # wherever a doom2.wad is
            "frame_skip": FRAME_SKIP,
            "available_buttons": list(BUTTONS),
            "render_weapon": True,
            "sectors_info_enabled": True,
            "objects_info_enabled": True,
            "game_args": "+sv_cheats 1 +sv_infiniteammo 1 +movebob 0",
        }
        made = gymnasium.make(
            "VizdoomMyWayHome-MultiBinary-v1", disable_env_checker=True, render_mode=render_mode, **settings | kwargs
        )
        self._env = VizdoomFrames(made)
        self.render_mode = render_mode
        self.action_vocabulary = ActionVocabulary(tuple(Action(name=name, keys=keys) for name, keys, _ in _ACTIONS))
        self._pressed = [np.array([button in held for button in BUTTONS], np.int8) for _, _, held in _ACTIONS]
        self.action_space = spaces.Discrete(len(_ACTIONS))
        self.observation_space = self._env.observation_space
        self._game = made.unwrapped.game  # type: ignore[attr-defined]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, once the pistol is drawn."""
        super().reset(seed=seed)
        observation, info = self._env.reset(seed=seed, options=options)
        for command in ("give pistol", "give clip", "use pistol"):
            self._game.send_game_command(command)
        for _ in range(DRAW_STEPS):
            observation, _, _, _, info = self._env.step(self._pressed[0])
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Hold an action's buttons for four tics."""
        observation, reward, terminated, truncated, info = self._env.step(
            self._pressed[self.action_vocabulary.check(action)]
        )
        return observation, float(reward), terminated, truncated, info

    def render(self) -> Any:
        """The current view in render mode "rgb_array"."""
        return self._env.render()

    def close(self) -> None:
        """End the game."""
        self._env.close()

    @property
    def pose(self) -> tuple[float, float, float]:
        """Where the body is, x and y in map units, and its heading in degrees, 0 along x, counter-clockwise."""
        x, y, heading = (self._game.get_game_variable(variable) for variable in self._pose_variables)
        return x, y, heading

    @property
    def walls(self) -> np.ndarray:
        """(N, 4), float64: x1, y1, x2, y2 of every line that blocks, in map units."""
        sectors = self._game.get_state().sectors
        lines = [line for sector in sectors for line in sector.lines if line.is_blocking]
        return np.array([(line.x1, line.y1, line.x2, line.y2) for line in lines], np.float64)

    @property
    def vests(self) -> list[tuple[float, float]]:
        """Where vests lie, in map units."""
        objects = self._game.get_state().objects
        return [(thing.position_x, thing.position_y) for thing in objects if thing.name == "GreenArmor"]

    def policy(self, name: str, rng: np.random.Generator) -> Callable[[], int]:
        """A policy for an episode that has just begun: each call returns an action's index.

        - `explore`: goes to where it has been least, and in between idles, turns, spins, bumps into walls, steps
          back and aside, shoots, and does anything at random; contains every action.
        - `revisit`: sees things again: looks aside and back, walks off and comes back, shoots a wall, turns away and
          looks at the holes again.

        Raises:
            ValueError: no policy of this name.
        """
        if name not in POLICIES:
            raise ValueError(f"the policies of Doom are {', '.join(POLICIES)}, got {name!r}")
        walker = _Walker(self, rng)
        return getattr(walker, name)().__next__


class _Walker:
    """Plans over the house; each plan is a stream of actions."""

    def __init__(self, env: DoomEnv, rng: np.random.Generator) -> None:
        self._env, self._rng = env, rng
        self._index = {name: index for index, name in enumerate(env.action_vocabulary.names)}
        self._free = _free_cells(env.walls, env.vests)
        self._visits: dict[Cell, int] = {}

    # What the policies are made of

    def explore(self) -> Iterator[int]:
        while True:
            yield from self._detour()
            yield from self._walk(self._least_visited(), self._some(3, 14))

    def revisit(self) -> Iterator[int]:
        plans = (self._look_aside, self._out_and_back, self._shoot_and_look_again, self._spin_twice, self._round_trip)
        while True:
            yield from plans[int(self._rng.integers(len(plans)))]()
            yield from self._walk(self._least_visited(), self._some(4, 16))

    def _detour(self) -> Iterator[int]:
        """Something that is no walk; mostly short."""
        draw = self._rng.random()
        side = self._side()
        if draw < 0.14:
            yield from self._do("noop", self._some(1, 8))
        elif draw < 0.26:
            yield from self._do("backward", self._some(2, 8))
        elif draw < 0.44:
            yield from self._do(f"strafe_{side}", self._some(2, 8))
        elif draw < 0.54:  # into a wall
            yield from self._do(f"turn_{side}", self._some(1, 9))
            yield from self._do("forward", self._some(6, 16))
        elif draw < 0.64:
            yield from self._do(f"turn_{side}", self._some(1, 9))
        elif draw < 0.66:
            yield from self._do(f"turn_{side}", round(360 / TURN))
        elif draw < 0.85:
            yield from self._do("shoot", self._some(1, 6))
            yield from self._do("noop", self._some(0, 5))
        else:
            for _ in range(self._some(1, 4)):
                yield from self._do(self._env.action_vocabulary.names[int(self._rng.integers(len(self._index)))], 2)

    def _look_aside(self) -> Iterator[int]:
        turns, (out, back) = self._some(2, 13), self._rng.permutation(["left", "right"])
        yield from self._do(f"turn_{out}", turns)
        yield from self._do("noop", self._some(1, 4))  # a turn begins slowly: only from rest does it undo the other
        yield from self._do(f"turn_{back}", turns)
        yield from self._do("noop", self._some(1, 3))

    def _out_and_back(self) -> Iterator[int]:
        steps, (out, back) = self._some(3, 12), self._rng.permutation(["forward", "backward"])
        yield from self._do(out, steps)
        yield from self._do("noop", self._some(3, 6))  # until the body stands still
        yield from self._do(back, steps)
        yield from self._do("noop", self._some(2, 5))

    def _shoot_and_look_again(self) -> Iterator[int]:
        yield from self._do("shoot", self._some(2, 8))
        yield from self._do("noop", self._some(4, 7))
        for _ in range(self._some(1, 2)):
            yield from self._look_aside() if self._rng.random() < 0.7 else self._out_and_back()

    def _spin_twice(self) -> Iterator[int]:
        first, second = self._side(), self._side()
        yield from self._do(f"turn_{first}", round(360 / TURN))
        yield from self._do("noop", self._some(1, 5))
        yield from self._do(f"turn_{second}", round(360 / TURN))

    def _round_trip(self) -> Iterator[int]:
        x, y, heading = self._env.pose
        yield from self._walk(self._least_visited(), self._some(15, 50))
        yield from self._do("noop", self._some(0, 6))
        yield from self._walk(self._cell(x, y), 120)
        while abs(error := _signed(heading - self._env.pose[2])) > TURN / 2:
            yield self._index["turn_left" if error > 0 else "turn_right"]
        yield from self._do("noop", self._some(1, 6))

    # Walking

    def _do(self, name: str, times: int = 1) -> Iterator[int]:
        for _ in range(times):
            yield self._index[name]

    def _some(self, low: int, high: int) -> int:
        return int(self._rng.integers(low, high + 1))

    def _side(self) -> str:
        return ("left", "right")[int(self._rng.integers(2))]

    def _cell(self, x: float, y: float) -> Cell:
        """The free cell that is nearest to a place."""
        cell = (math.floor(x / CELL), math.floor(y / CELL))
        return cell if cell in self._free else min(self._free, key=lambda c: math.dist(c, cell))

    def _ways(self, start: Cell) -> dict[Cell, Cell]:
        """Of each cell that can be reached, the one before it on a shortest way; in the order of their distance."""
        before, queue = {start: start}, deque([start])
        while queue:
            x, y = cell = queue.popleft()
            for step in ((x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)):
                if step in self._free and step not in before:
                    before[step] = cell
                    queue.append(step)
        return before

    def _least_visited(self) -> Cell:
        """One of some cells drawn at random that was seen least."""
        x, y, _ = self._env.pose
        cells = list(self._ways(self._cell(x, y)))
        drawn = [cells[int(self._rng.integers(len(cells)))] for _ in range(12)]
        return min(drawn, key=lambda cell: self._visits.get(_room(cell), 0))

    def _walk(self, target: Cell, num_steps: int) -> Iterator[int]:
        """Up to some steps along a shortest way; it may end early, when the place is reached."""
        before = self._ways(target)  # backwards: each cell knows the next one
        held_up = 0
        for _ in range(num_steps):
            x, y, heading = self._env.pose
            cell = self._cell(x, y)
            self._visits[_room(cell)] = self._visits.get(_room(cell), 0) + 1
            if cell not in before or math.dist(cell, target) < 2:
                return
            ahead = cell
            for _ in range(4):
                ahead = before[ahead]
            error = _signed(
                math.degrees(math.atan2((ahead[1] + 0.5) * CELL - y, (ahead[0] + 0.5) * CELL - x)) - heading
            )
            side = "left" if error > 0 else "right"
            if abs(error) > 45:
                yield self._index[f"turn_{side}"]
            else:
                yield self._index["forward" if abs(error) < TURN else f"forward_{side}"]
                held_up = held_up + 1 if math.dist(self._env.pose[:2], (x, y)) < 1 else 0
            if held_up > 4:
                yield from self._do(f"strafe_{self._side()}", self._some(3, 6))
                yield from self._do("backward", self._some(2, 5))
                return


def _signed(degrees: float) -> float:
    """An angle from -180 to 180."""
    return (degrees + 180) % 360 - 180


def _room(cell: Cell) -> Cell:
    """The part of the house that a cell is in, for counting."""
    return cell[0] // 8, cell[1] // 8


def _free_cells(walls: np.ndarray, vests: list[tuple[float, float]]) -> set[Cell]:
    """The cells whose middle is clear of walls and vests, inside of the walls' outline."""
    start, end = walls[:, :2], walls[:, 2:]
    low, high = np.minimum(start, end).min(axis=0), np.maximum(start, end).max(axis=0)
    columns = [np.arange(math.floor(a / CELL), math.ceil(b / CELL)) for a, b in zip(low, high, strict=True)]
    cells = np.stack(np.meshgrid(*columns, indexing="ij"), axis=-1).reshape(-1, 2)
    middles = (cells + 0.5) * CELL
    along = end - start
    share = ((middles[:, None] - start) * along).sum(-1) / (along**2).sum(-1).clip(1e-9)
    nearest = start + share.clip(0, 1)[..., None] * along
    clear = np.linalg.norm(middles[:, None] - nearest, axis=-1).min(axis=1) > CLEARANCE
    for vest in vests:
        clear &= np.linalg.norm(middles - np.array(vest), axis=1) > VEST_CLEARANCE
    return {(int(x), int(y)) for x, y in cells[clear]}
