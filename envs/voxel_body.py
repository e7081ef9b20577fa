"""A body in the voxel world: collision, gravity, steps, jumps and swimming."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from farworld.envs.voxel_actions import Effect, Motion
from farworld.envs.voxel_blocks import AIR, FIRST_PLANT, GRASS, ICE, SAND, SNOW, SOLID, WATER
from farworld.envs.voxel_world import WATER_SURFACE, World

RADIUS = 0.3  # blocks
HEIGHT = 1.8  # blocks
EYE_HEIGHT = 1.62  # blocks above the feet
REACH = 4.0  # blocks from the eye at which digging and placing still works
AIM_STEPS = 32  # places tried along each block of the line of sight
GLIDE = 0.55  # share of a climbed step that the eye still lags behind one frame later

Cell = tuple[int, int, int]


class Body:
    """Someone who stands, walks, falls and swims.

    Attributes:
        x: place of the feet, in blocks; in [0, size of the world).
        y: height of the feet.
        z: as x.
        speed: upward, in blocks a step.
        leaping: in a jump that goes ahead by itself.
        lag: blocks by which the eye is lower than it should be, after a step up.
    """

    def __init__(self, world: World, motion: Motion, x: float, y: float, z: float) -> None:
        self.x, self.y, self.z = x, y, z
        self.speed = 0.0
        self.leaping = False
        self.lag = 0.0
        self._world = world
        self._motion = motion

    @property
    def eye(self) -> tuple[float, float, float]:
        """Where it looks from: x, y, z in blocks."""
        return self.x, self.y + EYE_HEIGHT - self.lag, self.z

    def fits(self, x: float, y: float, z: float) -> bool:
        """Whether it could have its feet there."""
        return not _collides(self._world.blocks, x, y, z)

    @property
    def grounded(self) -> bool:
        """Whether it stands on something."""
        return not self.fits(self.x, self.y - 0.01, self.z)

    @property
    def water_surface(self) -> float | None:
        """Height of the water that the feet are in, or None."""
        at = self._world.at
        x, y, z = int(self.x), int(math.floor(self.y + 0.2)), int(self.z)
        if at(x, y, z) != WATER:
            return None
        while at(x, y + 1, z) == WATER:
            y += 1
        return y + WATER_SURFACE

    def overlaps(self, cell: Cell) -> bool:
        """Whether a block in a cell would stick in it."""
        for here, there in ((self.x, cell[0]), (self.z, cell[2])):
            first, last = math.floor(here - RADIUS), math.floor(here + RADIUS)
            if (there - first) % self._world.size > last - first:
                return False
        return math.floor(self.y) <= cell[1] <= math.floor(self.y + HEIGHT)

    def move(self, effect: Effect, angle: float, tilt: int) -> None:
        """Take one step.

        Args:
            effect: of the action.
            angle: that the body faces, in radians; 0 is along +z and turning right grows it.
            tilt: of the head, upwards, in tilts.
        """
        motion = self._motion
        self.lag = self.lag * GLIDE if self.lag > 0.06 else 0.0
        if effect.jump and self.grounded and not (motion.leave_speed and self.water_surface is not None):
            self.speed, self.leaping = motion.jump_speed, motion.leaps
        self._move_vertically(motion.dives and effect.ahead > 0 and tilt < 0)
        ahead = effect.ahead
        if self.leaping and ahead == 0:
            ahead = 1
        if ahead or effect.aside:
            stride = motion.sprint if effect.sprint else motion.stride
            right = math.cos(angle) * effect.aside, -math.sin(angle) * effect.aside
            free = self._walk(
                stride * (ahead * math.sin(angle) + right[0]), stride * (ahead * math.cos(angle) + right[1])
            )
            if not free and motion.leave_speed and effect.jump and self.water_surface is not None:
                self.speed = motion.leave_speed

    def _move_vertically(self, diving: bool) -> None:
        """Fall, rise or swim by one step, and stop at floors and ceilings."""
        motion, surface = self._motion, self.water_surface
        if surface is not None and not (motion.leave_speed and self.speed > 0.0):
            wanted = -motion.swim_speed if diving else surface - motion.swim_depth - self.y
            change = min(max(wanted, -motion.swim_speed), motion.swim_speed)
            self.speed, self.leaping = 0.0, False
        else:
            change = self.speed
            self.speed = max((self.speed - motion.gravity) * motion.drag, -motion.max_fall)
        if self.fits(self.x, self.y + change, self.z):
            self.y += change
            # Level ground needs no falling speed, or the first step off a ledge would drop at once.
            if self.speed < 0.0 and self.grounded:
                self.speed, self.leaping = 0.0, False
            return
        if change <= 0.0:
            self.y = float(math.floor(self.y + 1e-6))
            self.leaping = False
        self.speed = 0.0

    def _walk(self, dx: float, dz: float) -> bool:
        """Move piece by piece, one axis after the other, which lets it slide along walls; whether none held it up."""
        num_parts = math.ceil(max(abs(dx), abs(dz)) / self._motion.part)
        free = True
        for _ in range(num_parts):
            climbs = self._motion.climbs and (self.grounded or self.water_surface is not None)
            for part_x, part_z in ((dx / num_parts, 0.0), (0.0, dz / num_parts)):
                free &= self._shift(part_x, part_z, climbs)
        return free

    def _shift(self, dx: float, dz: float, climbs: bool) -> bool:
        """Move along one axis, if nothing is in the way, or onto a block that is; whether it did."""
        size = self._world.size
        x, z = (self.x + dx) % size, (self.z + dz) % size
        if self.fits(x, self.y, z):
            self.x, self.z = x, z
            return True
        higher = math.ceil(self.y) + 1.0
        if climbs and self.fits(x, higher, z) and self.fits(self.x, higher, self.z):
            if self._motion.glides:
                self.lag += higher - self.y
            self.x, self.y, self.z = x, higher, z
            return True
        return False


def aim(
    world: World, eye: tuple[float, float, float], direction: tuple[float, float, float]
) -> tuple[Cell, Cell] | None:
    """The block in a line of sight and the cell before it; None if nothing is in reach, or the eye is inside it.

    Args:
        world: what is looked at.
        eye: x, y, z in blocks.
        direction: a unit vector.
    """
    hit, *cells = _aim(world.blocks, eye, direction)
    return ((cells[0], cells[1], cells[2]), (cells[3], cells[4], cells[5])) if hit else None


@njit(cache=True)
def _aim(blocks, eye, direction):
    """Whether something is in reach, and x, y, z of it and of the cell before it."""
    wrap = blocks.shape[0] - 1
    bx, by, bz = 0, -1, 0
    for step in range(int(REACH * AIM_STEPS) + 1):
        px = eye[0] + direction[0] * step / AIM_STEPS
        py = eye[1] + direction[1] * step / AIM_STEPS
        pz = eye[2] + direction[2] * step / AIM_STEPS
        x, y, z = math.floor(px), math.floor(py), math.floor(pz)
        if not 0 <= y < blocks.shape[2]:
            break
        block = blocks[x & wrap, z & wrap, y]
        # A plant is only hit near its stem.
        through = block == AIR or block == WATER
        if block >= FIRST_PLANT:
            through = abs(px - x - 0.5) > 0.3 or abs(pz - z - 0.5) > 0.3 or py - y > 0.8
        if not through:
            return by >= 0, x, y, z, bx, by, bz
        bx, by, bz = x, y, z
    return False, 0, 0, 0, 0, 0, 0


@njit(cache=True)
def _collides(blocks, x, y, z):
    """Whether a body with its feet at x, y, z would stand in a solid block."""
    wrap = blocks.shape[0] - 1
    if y < 0.0:
        return True
    for i in range(math.floor(x - RADIUS), math.floor(x + RADIUS) + 1):
        for k in range(math.floor(z - RADIUS), math.floor(z + RADIUS) + 1):
            for j in range(math.floor(y), min(math.floor(y + HEIGHT) + 1, blocks.shape[2])):
                if SOLID[blocks[i & wrap, k & wrap, j]]:
                    return True
    return False


def find_start(world: World, rng: np.random.Generator) -> Cell:
    """A random x, y, z for the feet: on natural ground, under the sky, with room to look around."""
    clear, dry = np.zeros_like(world.tops), np.zeros_like(world.tops)
    _find_clear(world.blocks, world.tops, clear, dry)
    places = np.argwhere(clear if clear.any() else dry if dry.any() else world.tops >= 0)
    x, z = places[rng.integers(len(places))]
    return int(x), int(world.tops[x, z]), int(z)


@njit(cache=True)
def _find_clear(blocks, tops, clear, dry):
    """Mark the columns that end in natural ground, and those with ground around that is at most one block higher."""
    size = blocks.shape[0]
    for x in range(size):
        for z in range(size):
            if tops[x, z] == 0:
                continue
            surface = blocks[x, z, tops[x, z] - 1]
            dry[x, z] = surface == GRASS or surface == SAND or surface == SNOW or surface == ICE
            if dry[x, z]:
                highest = 0  # trees count as ground
                for dx in range(-2, 3):
                    for dz in range(-2, 3):
                        highest = max(highest, tops[(x + dx) & (size - 1), (z + dz) & (size - 1)])
                clear[x, z] = highest <= tops[x, z] + 1
