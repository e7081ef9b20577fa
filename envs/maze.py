"""Maze: a small DMLab-style world, drawn by a ray caster on the CPU.

Positions are in cells, x to the east and y to the south; a heading of 0 looks east and grows clockwise.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

import gymnasium
import numpy as np
from numba import njit

from farworld.actions import Action, ActionVocabulary
from farworld.video import decode_png

GRID_SIZE = 9  # cells a side, the outer ring is wall
TURN_DEGREES = 20
TURNS_PER_CIRCLE = 360 // TURN_DEGREES
STEP_CELLS = 0.4  # walked in one step; what the real DMLab episode shows
BODY_RADIUS = 0.25  # cells kept free between the camera and any wall
SKY_RGB = (150, 224, 255)
OPENED_WALL_SHARE = 0.15  # inner walls removed after carving, so that there are loops
PLATE_SHARE = 0.12  # wall faces that carry a yellow plate
TEXTURE_SIZE = 128
NUM_BLUR_LEVELS = 7  # level k is smoothed over about 2**k texels
QUADRANTS = 4

ACTIONS = ActionVocabulary(
    (
        Action(name="noop"),
        Action(name="forward", keys=("up",)),
        Action(name="backward", keys=("down",)),
        Action(name="turn_left", keys=("left",)),
        Action(name="turn_right", keys=("right",)),
        Action(name="forward_left", keys=("up", "left")),
        Action(name="forward_right", keys=("up", "right")),
    )
)
NOOP, FORWARD, BACKWARD, TURN_LEFT, TURN_RIGHT, FORWARD_LEFT, FORWARD_RIGHT = range(len(ACTIONS))
TURN_OF_ACTION = (0, 0, 0, -1, 1, -1, 1)
WALK_OF_ACTION = (0, 1, -1, 0, 0, 1, 1)

Cell = tuple[int, int]
NEIGHBOURS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # east, south, west, north: quarter turns of the heading

# A wall face is named by the side of the wall cell it is on.
WEST, EAST, NORTH, SOUTH = range(4)
FACE_OF_NEIGHBOUR = (EAST, SOUTH, WEST, NORTH)


@njit(cache=True, inline="always")
def _cast(walls, x, y, ray_x, ray_y):
    """Walk the grid along a ray: wall cell x and y, whether the face looks east or west, distance."""
    cell_x, cell_y = int(x), int(y)
    per_x = abs(1.0 / ray_x) if ray_x != 0.0 else 1e30
    per_y = abs(1.0 / ray_y) if ray_y != 0.0 else 1e30
    step_x = 1 if ray_x > 0.0 else -1
    step_y = 1 if ray_y > 0.0 else -1
    next_x = (cell_x + 1.0 - x if ray_x > 0.0 else x - cell_x) * per_x
    next_y = (cell_y + 1.0 - y if ray_y > 0.0 else y - cell_y) * per_y
    while True:
        if next_x < next_y:
            cell_x += step_x
            if walls[cell_x, cell_y]:
                return cell_x, cell_y, True, next_x
            next_x += per_x
        else:
            cell_y += step_y
            if walls[cell_x, cell_y]:
                return cell_x, cell_y, False, next_y
            next_y += per_y


@njit(cache=True, inline="always")
def _blur_level(texels_per_sample):
    level = 0
    while texels_per_sample > 1.2 and level < NUM_BLUR_LEVELS - 1:
        texels_per_sample *= 0.5
        level += 1
    return level


@njit(cache=True)
def _render(frame, x, y, forward_x, forward_y, walls, faces, floors, textures):
    """Draw the view from (x, y) with a field of view of 90 degrees and 2 x 2 samples a pixel.

    Args:
        frame: (size, size, 3) uint8, written.
        x: position in cells.
        y: position in cells.
        forward_x: east part of the unit vector of the heading.
        forward_y: south part of it.
        walls: (GRID_SIZE, GRID_SIZE) bool, indexed [x, y].
        faces: (GRID_SIZE, GRID_SIZE, 4) texture of each wall face.
        floors: (GRID_SIZE, GRID_SIZE) texture of each floor cell.
        textures: (textures, blur levels, TEXTURE_SIZE, TEXTURE_SIZE, 3) uint8.
    """
    size = frame.shape[0]
    samples = 2 * size
    focal = 0.5 * samples  # samples per unit of tan(angle), 90 degrees wide
    column_sum = np.empty((size, 3), np.int32)
    for column in range(samples):
        if column % 2 == 0:
            column_sum[:] = 0
        across = (column + 0.5) / focal - 1.0
        ray_x = forward_x - forward_y * across
        ray_y = forward_y + forward_x * across
        cell_x, cell_y, on_x, distance = _cast(walls, x, y, ray_x, ray_y)
        if on_x:
            along = y + distance * ray_y
            face = WEST if ray_x > 0.0 else EAST
            mirrored = ray_x < 0.0
            slope = abs(ray_x)
            light = 252
        else:
            along = x + distance * ray_x
            face = NORTH if ray_y > 0.0 else SOUTH
            mirrored = ray_y > 0.0
            slope = abs(ray_y)
            light = 238
        u = along - math.floor(along)
        if mirrored:
            u = 1.0 - u
        wall = textures[faces[cell_x, cell_y, face]]
        # Oblique walls squeeze the texture sideways by 1 / slope; blurring half of that keeps them crisp.
        level = _blur_level(TEXTURE_SIZE * distance / focal * math.sqrt(1.0 / slope))
        texel_u = min(int(u * TEXTURE_SIZE), TEXTURE_SIZE - 1)
        half_height = 0.5 * focal / distance
        for row in range(samples):
            down = row + 0.5 - focal
            pixel = row // 2
            if down < -half_height:
                for c in range(3):
                    column_sum[pixel, c] += SKY_RGB[c] * 256
            elif down <= half_height:
                texel_v = min(int((0.5 + 0.5 * down / half_height) * TEXTURE_SIZE), TEXTURE_SIZE - 1)
                for c in range(3):
                    column_sum[pixel, c] += light * wall[level, texel_v, texel_u, c]
            else:
                depth = 0.5 * focal / down
                floor_x = x + depth * ray_x
                floor_y = y + depth * ray_y
                floor_level = _blur_level(TEXTURE_SIZE * depth * math.sqrt(2.0 * depth) / focal)
                floor = floors[int(floor_x), int(floor_y)]
                texel_x = int(floor_x * TEXTURE_SIZE) % TEXTURE_SIZE
                texel_y = int(floor_y * TEXTURE_SIZE) % TEXTURE_SIZE
                for c in range(3):
                    column_sum[pixel, c] += 245 * textures[floor, floor_level, texel_y, texel_x, c]
        if column % 2 == 1:
            for row in range(size):
                for c in range(3):
                    frame[row, column // 2, c] = column_sum[row, c] >> 10  # 4 samples, light in 1/256


def _blur_levels(texture: np.ndarray) -> np.ndarray:
    """Ever smoother copies of a tiling texture, at full size so that every level is read alike."""
    level: np.ndarray = texture.astype(np.float32)
    levels = [level]
    for k in range(NUM_BLUR_LEVELS - 1):
        for axis in (0, 1):
            level = (np.roll(level, 2**k, axis) + 2 * level + np.roll(level, -(2**k), axis)) / 4
        levels.append(level)
    return np.rint(np.stack(levels)).astype(np.uint8)


def _with_plate(wall: np.ndarray, design: int) -> np.ndarray:
    """A wall texture with a framed yellow plate in its middle, bearing one of four dark signs."""
    signs = (
        ("..#..", ".###.", ".#.#.", "#####", "....."),
        ("#...#", ".#.#.", "..#..", ".#.#.", "#...#"),
        ("..#..", "..#..", "#####", "..#..", "..#.."),
        ("#####", "#...#", "#.#.#", "#...#", "#####"),
    )
    plate = np.full((40, 40, 3), (60, 52, 20), np.uint8)
    plate[3:37, 3:37] = (250, 200, 10)
    sign = np.array([[mark == "#" for mark in line] for line in signs[design % len(signs)]])
    plate[10:30, 10:30][np.kron(sign, np.ones((4, 4), bool))] = (110, 85, 10)
    marked = wall.copy()
    start = (TEXTURE_SIZE - 40) // 2
    marked[start : start + 40, start : start + 40] = plate
    return marked


@cache
def _load_textures() -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """Read the DMLab textures.

    Returns:
        (textures, blur levels, TEXTURE_SIZE, TEXTURE_SIZE, 3) uint8: all walls, the same walls with a plate,
        all floors; then the names of the walls and of the floors.
    """
    folder = files("farworld.assets") / "textures" / "dmlab"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".png"))
    images = {}
    for name in names:
        try:
            image = decode_png((folder / name).read_bytes())
        except ValueError as error:
            raise ValueError(f"{folder / name}: {error}; reinstall farworld") from error
        if image.shape != (TEXTURE_SIZE, TEXTURE_SIZE, 3):
            raise ValueError(f"{folder / name} is not a {TEXTURE_SIZE} x {TEXTURE_SIZE} image; reinstall farworld")
        images[name] = image
    walls = tuple(name for name in names if name.startswith("wall_"))
    floors = tuple(name for name in names if name.startswith("floor_"))
    if len(walls) < QUADRANTS or len(floors) < QUADRANTS:
        raise FileNotFoundError(
            f"expected at least {QUADRANTS} wall_*.png and {QUADRANTS} floor_*.png in {folder}, "
            f"found {len(walls)} and {len(floors)}; reinstall farworld"
        )
    plates = [_with_plate(images[name], i) for i, name in enumerate(walls)]
    ordered = [*(images[name] for name in walls), *plates, *(images[name] for name in floors)]
    return np.stack([_blur_levels(image) for image in ordered]), walls, floors


def _carve_maze(rng: np.random.Generator) -> np.ndarray:
    """A random maze, (GRID_SIZE, GRID_SIZE) bool, True is wall: depth-first carving, then some loops."""
    walls = np.ones((GRID_SIZE, GRID_SIZE), bool)
    last = GRID_SIZE - 2
    start = tuple(int(v) for v in rng.integers(0, GRID_SIZE // 2, 2) * 2 + 1)
    walls[start] = False
    path = [start]
    while path:
        x, y = path[-1]
        ahead = [(dx, dy) for dx, dy in NEIGHBOURS if 1 <= x + 2 * dx <= last and 1 <= y + 2 * dy <= last]
        ahead = [(dx, dy) for dx, dy in ahead if walls[x + 2 * dx, y + 2 * dy]]
        if not ahead:
            path.pop()
            continue
        dx, dy = ahead[int(rng.integers(len(ahead)))]
        walls[x + dx, y + dy] = walls[x + 2 * dx, y + 2 * dy] = False
        path.append((x + 2 * dx, y + 2 * dy))
    for x in range(1, last + 1):
        for y in range(1, last + 1):
            # Only walls between two rooms: opening a pillar would make a dead notch.
            if (x + y) % 2 == 1 and walls[x, y] and rng.random() < OPENED_WALL_SHARE:
                walls[x, y] = False
    return walls


def _quadrant(x: int, y: int) -> int:
    return 2 * (x > GRID_SIZE // 2) + (y > GRID_SIZE // 2)


def _choose_styles(rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """A wall and a floor for each quadrant, all different, the two of a quadrant of different colours."""
    _, wall_names, floor_names = _load_textures()
    walls = [int(i) for i in rng.permutation(len(wall_names))[:QUADRANTS]]
    unused = [int(i) for i in rng.permutation(len(floor_names))]
    floors = []
    for wall in walls:
        colour = wall_names[wall].split("_")[1]
        floor = next((f for f in unused if floor_names[f].split("_")[1] != colour), unused[0])
        unused.remove(floor)
        floors.append(floor)
    return walls, floors


def _dress(walls: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Choose the texture of every wall face and floor cell; a face matches the cell it looks into."""
    wall_styles, floor_styles = _choose_styles(rng)
    num_walls = len(_load_textures()[1])
    faces = np.zeros((GRID_SIZE, GRID_SIZE, 4), np.int32)
    floors = np.zeros((GRID_SIZE, GRID_SIZE), np.int32)
    for x, y in np.argwhere(~walls).tolist():
        floors[x, y] = 2 * num_walls + floor_styles[_quadrant(x, y)]
        for dx, dy in NEIGHBOURS:
            if walls[x + dx, y + dy]:
                face = FACE_OF_NEIGHBOUR[NEIGHBOURS.index((-dx, -dy))]
                plate = rng.random() < PLATE_SHARE
                faces[x + dx, y + dy, face] = wall_styles[_quadrant(x, y)] + (num_walls if plate else 0)
    return faces, floors


class MazeEnv(gymnasium.Env[np.ndarray, np.int64]):
    """A first-person maze in the style of DeepMind Lab, without a goal: made to be explored and remembered.

    A 9 x 9 grid of cells with a random maze in its 7 x 7 interior. Each quadrant has its own wall and floor,
    some walls bear a yellow plate. The same seed and the same actions give the same frames.

    ## Action space
    `Discrete(7)`; `env.unwrapped.action_vocabulary` has the names and keys.

    | index | name          | keys      | effect                                      |
    |-------|---------------|-----------|---------------------------------------------|
    | 0     | noop          |           | nothing                                     |
    | 1     | forward       | up        | walk 0.4 cell; slides along walls           |
    | 2     | backward      | down      | walk back 0.4 cell                          |
    | 3     | turn_left     | left      | turn by 20 degrees                          |
    | 4     | turn_right    | right     | turn by 20 degrees                          |
    | 5     | forward_left  | up, left  | turn left, then walk                        |
    | 6     | forward_right | up, right | turn right, then walk                       |

    ## Observation space
    `Box(0, 255, (size, size, 3), uint8)`: the RGB view, 90 degrees wide, from half the height of the walls.
    `info` has `position` (x, y in cells) and `heading` (degrees, 0 is east, clockwise).

    ## Reward
    Always 0.0.

    ## Starting state
    A random maze and the middle of a random cell, looking along a free direction.

    ## Episode end
    Never terminates; truncated only by a time limit given to `gymnasium.make`.

    ## Arguments
    - `size`: height and width of the observation, a positive multiple of 16; default 64.
    - `render_mode`: `None` or `"rgb_array"`; `render()` returns the observation.

    ## Version history
    - v0: first version.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 7.5}

    def __init__(self, *, size: int = 64, render_mode: str | None = None) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size <= 0 or size % 16:
            raise ValueError(f"size must be a positive multiple of 16, got {size!r}; the usual one is 64")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        self.size = size
        self.render_mode = render_mode
        self.action_vocabulary = ACTIONS
        self.action_space = gymnasium.spaces.Discrete(len(ACTIONS))
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self._textures = _load_textures()[0]
        self.walls = np.ones((GRID_SIZE, GRID_SIZE), bool)  # indexed [x, y]; carved by reset
        self._is_reset = False
        self.x = self.y = 0.0
        self._start_degrees = 0
        self._turns = 0  # the heading is a whole number of turns from its start: a full circle is exact

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Build a new maze and stand somewhere in it; see the class for what is returned."""
        super().reset(seed=seed)
        rng = self.np_random
        self.walls = _carve_maze(rng)
        self._faces, self._floors = _dress(self.walls, rng)
        cells = np.argwhere(~self.walls).tolist()
        x, y = cells[int(rng.integers(len(cells)))]
        free = [i for i, (dx, dy) in enumerate(NEIGHBOURS) if not self.walls[x + dx, y + dy]]
        self._start_degrees = 90 * free[int(rng.integers(len(free)))]
        self._turns = 0
        self.x, self.y = x + 0.5, y + 0.5
        self._is_reset = True
        return self._observe(), self._info()

    def step(self, action: int | np.integer) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Turn, then walk; ValueError for an action outside the vocabulary, or before the first reset."""
        index = self.action_vocabulary.check(action)
        self._check_reset()
        self._turns = (self._turns + TURN_OF_ACTION[index]) % TURNS_PER_CIRCLE
        if WALK_OF_ACTION[index]:
            angle = math.radians(self.heading)
            distance = STEP_CELLS * WALK_OF_ACTION[index]
            # One axis after the other: what a wall stops on one axis still slides along the other.
            self.x = _walk(self.walls, self.x, self.y, distance * math.cos(angle))
            self.y = _walk(self.walls.T, self.y, self.x, distance * math.sin(angle))
        return self._observe(), 0.0, False, False, self._info()

    def render(self) -> np.ndarray | None:
        """The current view in render mode "rgb_array", else None."""
        return self._observe() if self.render_mode == "rgb_array" else None

    def explorer(self, rng: np.random.Generator) -> Callable[[], int]:
        """An exploration policy: each call looks at the state of this environment and returns an action."""
        return MazeExplorer(self, rng)

    @property
    def heading(self) -> int:
        """Degrees in [0, 360), 0 is east, clockwise."""
        return (self._start_degrees + TURN_DEGREES * self._turns) % 360

    @property
    def cell(self) -> Cell:
        """The cell that the camera is in."""
        return int(self.x), int(self.y)

    def _check_reset(self) -> None:
        if not self._is_reset:
            raise ValueError("there is no maze before the first reset(); call reset() first")

    def _observe(self) -> np.ndarray:
        self._check_reset()
        frame = np.empty((self.size, self.size, 3), np.uint8)
        angle = math.radians(self.heading)
        _render(
            frame,
            self.x,
            self.y,
            math.cos(angle),
            math.sin(angle),
            self.walls,
            self._faces,
            self._floors,
            self._textures,
        )
        return frame

    def _info(self) -> dict[str, Any]:
        return {"position": np.array([self.x, self.y]), "heading": self.heading}


def _walk(walls: np.ndarray, along: float, across: float, distance: float) -> float:
    """Walk a distance along the first axis of the walls; stop BODY_RADIUS before one."""
    direction = math.copysign(1.0, distance)
    cell = math.floor(along + distance + direction * BODY_RADIUS)
    slack = BODY_RADIUS - 1e-6  # standing exactly at a wall is not touching it
    if walls[cell, math.floor(across - slack)] or walls[cell, math.floor(across + slack)]:
        return cell - BODY_RADIUS if direction > 0 else cell + 1 + BODY_RADIUS
    return along + distance


class MazeExplorer:
    """Tours to the farthest cell not visited yet, with pauses, steps back, bumps and spins in between."""

    def __init__(self, env: MazeEnv, rng: np.random.Generator) -> None:
        self._env = env
        self._rng = rng
        self._walls: np.ndarray | None = None
        self._unvisited: set[Cell] = set()
        self._path: deque[Cell] = deque()
        self._planned: deque[int] = deque()

    def __call__(self) -> int:
        """The next action."""
        env = self._env
        if self._walls is not env.walls:  # a new episode
            self._walls = env.walls
            self._unvisited = {(x, y) for x, y in np.argwhere(~env.walls).tolist()}
            self._path.clear()
            self._planned.clear()
        self._unvisited.discard(env.cell)
        if not self._planned:
            self._planned.extend(self._burst() or (self._follow_path(),))
        return self._planned.popleft()

    def _burst(self) -> list[int]:
        """Now and then a few steps off the tour; mostly none."""
        rng = self._rng
        draw = rng.random()
        turn = (TURN_LEFT, TURN_RIGHT)[int(rng.integers(2))]
        if draw < 0.012:
            return [NOOP] * int(rng.integers(2, 8))
        if draw < 0.020:
            return [BACKWARD] * int(rng.integers(2, 7))
        if draw < 0.028:
            return self._bump()
        if draw < 0.036:
            return [turn] * int(rng.integers(2, 8))
        if draw < 0.038:
            return [turn] * TURNS_PER_CIRCLE
        if draw < 0.063:
            return [int(rng.integers(len(ACTIONS)))]
        return []

    def _bump(self) -> list[int]:
        """Turn to a wall of this cell and keep walking against it."""
        x, y = self._env.cell
        blocked = [i for i, (dx, dy) in enumerate(NEIGHBOURS) if self._env.walls[x + dx, y + dy]]
        if not blocked:
            return []
        degrees = 90 * blocked[int(self._rng.integers(len(blocked)))]
        turns = round(_signed_degrees(degrees - self._env.heading) / TURN_DEGREES)
        turn = TURN_LEFT if turns < 0 else TURN_RIGHT
        return [turn] * abs(turns) + [FORWARD] * int(self._rng.integers(4, 9))

    def _follow_path(self) -> int:
        """Turn or walk towards the next cell of the tour."""
        env = self._env
        while self._path and math.dist(_middle(self._path[0]), (env.x, env.y)) < 0.35:
            self._path.popleft()
        # Pushed off the tour by a burst, or arrived: plan anew.
        if not self._path or math.dist(_middle(self._path[0]), (env.x, env.y)) > 1.3:
            self._path = self._plan()
        target_x, target_y = _middle(self._path[0])
        bearing = math.degrees(math.atan2(target_y - env.y, target_x - env.x))
        error = _signed_degrees(bearing - env.heading)
        if abs(error) <= TURN_DEGREES / 2:
            return FORWARD
        # Near the wanted direction a person turns while walking.
        while_walking = abs(error) < 55 and self._rng.random() < 0.6
        if error < 0:
            return FORWARD_LEFT if while_walking else TURN_LEFT
        return FORWARD_RIGHT if while_walking else TURN_RIGHT

    def _plan(self) -> deque[Cell]:
        """The shortest path to the farthest unvisited cell; once all are visited, to the farthest of all."""
        start = self._env.cell
        came_from: dict[Cell, Cell] = {start: start}
        order = deque([start])
        farthest = start
        if not self._unvisited:
            self._unvisited = {(x, y) for x, y in np.argwhere(~self._env.walls).tolist()} - {start}
        while order:
            cell = order.popleft()
            if cell in self._unvisited:
                farthest = cell  # breadth-first: later is farther
            for i in self._rng.permutation(len(NEIGHBOURS)):
                dx, dy = NEIGHBOURS[i]
                neighbour = (cell[0] + dx, cell[1] + dy)
                if neighbour not in came_from and not self._env.walls[neighbour]:
                    came_from[neighbour] = cell
                    order.append(neighbour)
        path = deque([farthest])
        while path[0] != start:
            path.appendleft(came_from[path[0]])
        if len(path) > 1 and math.dist(_middle(start), (self._env.x, self._env.y)) < 0.35:
            path.popleft()
        return path


def _signed_degrees(angle: float) -> float:
    """The same angle in [-180, 180)."""
    return (angle + 180) % 360 - 180


def _middle(cell: Cell) -> tuple[float, float]:
    return cell[0] + 0.5, cell[1] + 0.5
