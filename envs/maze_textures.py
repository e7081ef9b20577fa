"""The pictures that the maze is drawn with: DMLab's walls and floors, decals, clouds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np

from farworld.video import decode_png

TEXTURE_SIZE = 128
NUM_BLUR_LEVELS = 7  # level k is smoothed over about 2**k texels
NUM_NEEDED = 4  # walls and floors, one of each for every quadrant of a maze
PICTURE_SIZE = 64  # texels of a wall's TEXTURE_SIZE that a decal covers
PICTURE_START = (TEXTURE_SIZE - PICTURE_SIZE) // 2

_SIGNS = (
    ("..#..", ".###.", ".#.#.", "#####", "....."),
    ("#...#", ".#.#.", "..#..", ".#.#.", "#...#"),
    ("..#..", "..#..", "#####", "..#..", "..#.."),
    ("#####", "#...#", "#.#.#", "#...#", "#####"),
)


@dataclass(frozen=True, slots=True)
class Textures:
    """The textures of walls and floors.

    Attributes:
        levels: (textures, blur levels, TEXTURE_SIZE, TEXTURE_SIZE, 3) uint8: all walls, the same walls with a
            plate, all floors.
        walls: the names of the walls.
        floors: the names of the floors.
    """

    levels: np.ndarray
    walls: tuple[str, ...]
    floors: tuple[str, ...]


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
    plate = np.full((40, 40, 3), (60, 52, 20), np.uint8)
    plate[3:37, 3:37] = (250, 200, 10)
    sign = np.array([[mark == "#" for mark in line] for line in _SIGNS[design % len(_SIGNS)]])
    plate[10:30, 10:30][np.kron(sign, np.ones((4, 4), bool))] = (110, 85, 10)
    marked = wall.copy()
    start = (TEXTURE_SIZE - 40) // 2
    marked[start : start + 40, start : start + 40] = plate
    return marked


@cache
def load_textures() -> Textures:
    """Read the DMLab textures.

    Raises:
        ValueError: a file is no picture, or of another size.
        FileNotFoundError: there are too few.
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
    if len(walls) < NUM_NEEDED or len(floors) < NUM_NEEDED:
        raise FileNotFoundError(
            f"expected at least {NUM_NEEDED} wall_*.png and {NUM_NEEDED} floor_*.png in {folder}, "
            f"found {len(walls)} and {len(floors)}; reinstall farworld"
        )
    plates = [_with_plate(images[name], i) for i, name in enumerate(walls)]
    ordered = [*(images[name] for name in walls), *plates, *(images[name] for name in floors)]
    return Textures(np.stack([_blur_levels(image) for image in ordered]), walls, floors)


# Pictures on walls


def _shapes() -> dict[str, np.ndarray]:
    """Masks that a picture is composed of, (PICTURE_SIZE, PICTURE_SIZE) bool, in about three quarters of the area."""
    axis = (np.arange(PICTURE_SIZE) + 0.5) / PICTURE_SIZE * 2 - 1
    x, y = np.meshgrid(axis, axis)
    radius, angle = np.hypot(x, y), np.arctan2(-y, x)
    return {
        "disc": radius < 0.72,
        "square": np.maximum(abs(x), abs(y)) < 0.66,
        "diamond": abs(x) + abs(y) < 0.85,
        "triangle": (y < 0.6) & (abs(x) < (y + 0.75) * 0.58),
        "hexagon": np.maximum(abs(x), abs(x) / 2 + abs(y) * 0.866) < 0.72,
        "flower": radius < 0.58 + 0.14 * np.cos(5 * (angle - np.pi / 2)),
        "cross": (np.minimum(abs(x), abs(y)) < 0.2) & (np.maximum(abs(x), abs(y)) < 0.72),
        "arrow": (np.abs(y) < 0.18) & (x > -0.72) & (x < 0.1) | (x >= 0.0) & (abs(y) < (0.72 - x) * 0.8),
    }


_PALETTE = {
    "red": (210, 40, 40),
    "blue": (40, 80, 210),
    "yellow": (250, 200, 20),
    "green": (40, 150, 60),
    "white": (240, 240, 235),
    "black": (30, 28, 32),
    "purple": (140, 60, 180),
    "orange": (245, 130, 30),
}
_PICTURES = (  # shape and colour of the plate, of the sign on it
    ("disc", "white", "disc", "red"),
    ("disc", "blue", "arrow", "white"),
    ("disc", "red", "cross", "white"),
    ("disc", "black", "flower", "yellow"),
    ("square", "yellow", "triangle", "black"),
    ("square", "white", "square", "blue"),
    ("square", "purple", "disc", "yellow"),
    ("square", "black", "cross", "green"),
    ("square", "orange", "flower", "white"),
    ("square", "green", "diamond", "white"),
    ("diamond", "yellow", "diamond", "black"),
    ("diamond", "red", "disc", "white"),
    ("diamond", "blue", "square", "orange"),
    ("diamond", "white", "cross", "purple"),
    ("triangle", "red", "triangle", "white"),
    ("triangle", "yellow", "disc", "black"),
    ("triangle", "green", "disc", "white"),
    ("hexagon", "red", "square", "white"),
    ("hexagon", "blue", "flower", "yellow"),
    ("hexagon", "orange", "hexagon", "blue"),
    ("hexagon", "black", "arrow", "orange"),
    ("flower", "yellow", "disc", "red"),
    ("flower", "white", "disc", "black"),
    ("cross", "red", "cross", "white"),
)
_SIGN_SCALE = {"triangle": 0.36, "flower": 0.36, "diamond": 0.5, "cross": 0.55}  # of the sign, 0.58 otherwise


def _picture(plate: str, plate_colour: str, sign: str, sign_colour: str) -> np.ndarray:
    """A sign on a dark-rimmed plate, (PICTURE_SIZE, PICTURE_SIZE, 4) float: colour times alpha, alpha; both to 255."""
    shapes = _shapes()
    picture = np.zeros((PICTURE_SIZE, PICTURE_SIZE, 4), np.float32)
    for shape, colour, scale in (
        (plate, (45, 42, 40), 1.12),
        (plate, _PALETTE[plate_colour], 1.0),
        (sign, _PALETTE[sign_colour], _SIGN_SCALE.get(plate, 0.58)),
    ):
        picture[_scaled(shapes[shape], scale, down=3 if plate == "triangle" and scale < 0.5 else 0)] = (*colour, 255)
    return picture


def _scaled(mask: np.ndarray, scale: float, down: int) -> np.ndarray:
    """The mask, larger or smaller around its middle, moved down by some texels."""
    index = np.rint((np.arange(PICTURE_SIZE) + 0.5 - PICTURE_SIZE / 2) / scale + PICTURE_SIZE / 2 - 0.5).astype(int)
    inside = (index >= 0) & (index < PICTURE_SIZE)
    index = index.clip(0, PICTURE_SIZE - 1)
    scaled = mask[np.ix_(index, index)] & np.outer(inside, inside)
    return np.roll(scaled, down, axis=0)


@cache
def load_pictures() -> np.ndarray:
    """The decals, (pictures, blur levels, PICTURE_SIZE, PICTURE_SIZE, 4) uint8; colours are multiplied by alpha."""
    margin = PICTURE_SIZE  # no picture's blur may come in again at the other side
    wide = [np.pad(_picture(*row), ((margin, margin), (margin, margin), (0, 0))) for row in _PICTURES]
    inner = slice(margin, margin + PICTURE_SIZE)
    return np.stack([_blur_levels(picture)[:, inner, inner] for picture in wide])


@cache
def load_clouds() -> np.ndarray:
    """How much of the sky is cloud, (blur levels, TEXTURE_SIZE, TEXTURE_SIZE) uint8, tiling: noise in octaves."""
    rng = np.random.default_rng(7)  # every maze has the same weather
    cover = np.zeros((TEXTURE_SIZE, TEXTURE_SIZE))
    for octave in range(5):
        cells = 4 * 2**octave
        noise = rng.random((cells, cells))
        at = np.arange(TEXTURE_SIZE) * cells / TEXTURE_SIZE
        low = at.astype(int)
        part = at - low
        part = part * part * (3 - 2 * part)
        high = (low + 1) % cells
        rows = noise[low] * (1 - part)[:, None] + noise[high] * part[:, None]
        cover += (rows[:, low] * (1 - part) + rows[:, high] * part) * 0.5**octave
    cover = (cover - cover.min()) / (cover.max() - cover.min())
    return _blur_levels(np.clip((cover - 0.45) / 0.3, 0, 1) * 255)
