"""What a maze is made of: its walls, what they wear, and what stands in it.

Cells are (x, y), x to the east and y to the south. Rooms have two odd coordinates, pillars two even ones; what
lies between two rooms is a wall or a passage.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from farworld.envs.maze_render import (
    BALL,
    BOX,
    CONE,
    FACE_OF_NEIGHBOUR,
    GEM,
    NEIGHBOURS,
    NO_DECAL,
    PILLAR,
    Scene,
    Thing,
    pack,
)
from farworld.envs.maze_textures import load_pictures, load_textures

OPENED_WALL_SHARE = 0.15  # inner walls removed after carving, so that there are loops
DECAL_SHARE = 0.12  # wall faces that carry a decal
QUADRANTS = 4

Cell = tuple[int, int]
Decals = Literal["plates", "pictures", "none"]
Sky = Literal["plain", "clouds"]

COLOURS = (  # of objects and goals, as far apart as they come
    (220, 40, 40),
    (40, 90, 230),
    (250, 210, 40),
    (40, 180, 70),
    (240, 240, 240),
    (170, 60, 200),
    (250, 130, 30),
    (50, 200, 210),
)
OBJECT_RADIUS = 0.14  # cells; in the corner of a room, the camera then never comes into one
OBJECT_SHAPES = ((BALL, 0.28), (PILLAR, 0.5), (CONE, 0.45), (BOX, 0.2), (PILLAR, 0.15), (BOX, 0.55))  # and height
GOAL_RADIUS, GOAL_HEIGHT, GOAL_GROUND = 0.17, 0.44, 0.22  # cells; a goal floats


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """How a maze is dressed.

    Attributes:
        decals: what hangs on some walls: yellow `plates`, `pictures` of many shapes and colours, or nothing.
        sky: one light blue, or `clouds`.
        light: brightness of walls that face east or west, of those that face north or south, and of floors, in 1/256.
    """

    decals: Decals = "plates"
    sky: Sky = "plain"
    light: tuple[int, int, int] = (252, 238, 245)


def carve(grid_size: int, rng: np.random.Generator) -> np.ndarray:
    """A random maze, (grid_size, grid_size) bool, True is wall: depth-first carving, then some loops."""
    walls = np.ones((grid_size, grid_size), bool)
    last = grid_size - 2
    start = tuple(int(v) for v in rng.integers(0, grid_size // 2, 2) * 2 + 1)
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


def free_cells(walls: np.ndarray) -> list[Cell]:
    """The cells that are no wall."""
    return [(x, y) for x, y in np.argwhere(~walls).tolist()]


def free_neighbours(walls: np.ndarray, cell: Cell) -> list[int]:
    """Which of the four NEIGHBOURS of a cell are no wall."""
    x, y = cell
    return [i for i, (dx, dy) in enumerate(NEIGHBOURS) if not walls[x + dx, y + dy]]


def middle(cell: Cell) -> tuple[float, float]:
    """The middle of a cell."""
    return cell[0] + 0.5, cell[1] + 0.5


def distances(walls: np.ndarray, start: Cell, rng: np.random.Generator) -> dict[Cell, tuple[int, Cell]]:
    """Every cell that can be reached, nearest first: the cells to it, and the one that comes before it.

    Of several shortest ways one is drawn.
    """
    reached = {start: (0, start)}
    order = deque([start])
    while order:
        cell = order.popleft()
        for i in rng.permutation(len(NEIGHBOURS)).tolist():
            dx, dy = NEIGHBOURS[i]
            neighbour = (cell[0] + dx, cell[1] + dy)
            if neighbour not in reached and not walls[neighbour]:
                reached[neighbour] = (reached[cell][0] + 1, cell)
                order.append(neighbour)
    return reached


def _quadrant(grid_size: int, x: int, y: int) -> int:
    return 2 * (x > grid_size // 2) + (y > grid_size // 2)


def _choose_styles(rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """A wall and a floor for each quadrant, all different, the two of a quadrant of different colours."""
    textures = load_textures()
    wall_names, floor_names = textures.walls, textures.floors
    walls = [int(i) for i in rng.permutation(len(wall_names))[:QUADRANTS]]
    unused = [int(i) for i in rng.permutation(len(floor_names))]
    floors = []
    for wall in walls:
        colour = wall_names[wall].split("_")[1]
        floor = next((f for f in unused if floor_names[f].split("_")[1] != colour), unused[0])
        unused.remove(floor)
        floors.append(floor)
    return walls, floors


@dataclass(frozen=True, slots=True)
class Dress:
    """What a maze wears.

    Attributes:
        faces: (cells, cells, 4) int32, the texture of each wall face.
        floors: (cells, cells) int32, the texture of each floor cell.
        decorated: the wall faces that carry a decal, as indices into faces.
    """

    faces: np.ndarray
    floors: np.ndarray
    decorated: list[tuple[int, int, int]]


def dress(walls: np.ndarray, rng: np.random.Generator) -> Dress:
    """Choose the texture of every wall face and floor cell; a face matches the cell it looks into."""
    grid_size = len(walls)
    wall_styles, floor_styles = _choose_styles(rng)
    num_walls = len(load_textures().walls)
    faces = np.zeros((grid_size, grid_size, 4), np.int32)
    floors = np.zeros((grid_size, grid_size), np.int32)
    decorated = []
    for x, y in free_cells(walls):
        quadrant = _quadrant(grid_size, x, y)
        floors[x, y] = 2 * num_walls + floor_styles[quadrant]
        for dx, dy in NEIGHBOURS:
            if walls[x + dx, y + dy]:
                face = (x + dx, y + dy, FACE_OF_NEIGHBOUR[NEIGHBOURS.index((-dx, -dy))])
                faces[face] = wall_styles[quadrant]
                if rng.random() < DECAL_SHARE:
                    decorated.append(face)
    return Dress(faces, floors, decorated)


def build_scene(
    walls: np.ndarray, dress: Dress, look: Look, standing: Sequence[Thing], rng: np.random.Generator
) -> Scene:
    """Hang up the decals and put everything together."""
    faces = dress.faces.copy()
    decals = np.full(faces.shape, NO_DECAL, np.int32)
    order = rng.permutation(len(load_pictures())).tolist() if look.decals == "pictures" else []
    for number, face in enumerate(dress.decorated):
        if look.decals == "plates":
            faces[face] += len(load_textures().walls)  # the same wall with a plate
        elif look.decals == "pictures":
            decals[face] = order[number % len(order)]  # none comes again before all have been used
    return Scene(
        walls=walls,
        faces=faces,
        floors=dress.floors,
        decals=decals,
        things=pack(standing),
        light=look.light,
        clouds=look.sky == "clouds",
    )


def max_objects(grid_size: int) -> int:
    """How many objects there is room for: one in each corner of each room."""
    return 4 * (grid_size // 2) ** 2


def max_goals(grid_size: int) -> int:
    """How many goals there can be: one in every second room."""
    return (grid_size // 2) ** 2 // 2


def place_objects(walls: np.ndarray, count: int, rng: np.random.Generator) -> list[Thing]:
    """Objects in different corners of rooms, where nothing is in the way of the camera.

    No two have both shape and colour in common, as long as there are enough of them.
    """
    rooms = [(x, y) for x, y in free_cells(walls) if x % 2 and y % 2]
    places = rng.permutation(4 * len(rooms))[:count].tolist()
    kinds = rng.permutation(len(OBJECT_SHAPES) * len(COLOURS)).tolist()
    result = []
    for number, place in enumerate(places):
        x, y = rooms[place // 4]
        to_corner = 0.5 - OBJECT_RADIUS
        right, down = (place % 4) // 2, place % 2
        kind = kinds[number % len(kinds)]
        shape, height = OBJECT_SHAPES[kind % len(OBJECT_SHAPES)]
        result.append(
            Thing(
                shape=shape,
                x=x + 0.5 + (2 * right - 1) * to_corner,
                y=y + 0.5 + (2 * down - 1) * to_corner,
                ground=0.0,
                radius=OBJECT_RADIUS,
                height=height,
                heading=float(rng.integers(90)),
                colour=COLOURS[kind // len(OBJECT_SHAPES)],
            )
        )
    return result


def place_goals(walls: np.ndarray, count: int, start: Cell, rng: np.random.Generator) -> list[Thing]:
    """Floating gems in the middle of different rooms other than the start."""
    rooms = [cell for cell in free_cells(walls) if cell[0] % 2 and cell[1] % 2 and cell != start]
    colours = rng.permutation(len(COLOURS)).tolist()
    result = []
    for number, room in enumerate(rng.permutation(len(rooms))[:count].tolist()):
        x, y = middle(rooms[room])
        result.append(
            Thing(
                shape=GEM,
                x=x,
                y=y,
                ground=GOAL_GROUND,
                radius=GOAL_RADIUS,
                height=GOAL_HEIGHT,
                heading=float(rng.integers(90)),
                colour=COLOURS[colours[number % len(colours)]],
            )
        )
    return result
