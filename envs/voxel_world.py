"""The voxel world while it is lived in: its blocks, their light, and what an edit sets off.

The world is a torus in x and z. Arrays are indexed [x, z, y] with y upwards, so that one column of blocks is
contiguous in memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numba import njit

from farworld.envs.voxel_blocks import AIR, FALLING_KINDS, FIRST_PLANT, LAMP, LAMP_LIGHT, LILY_PAD, WATER
from farworld.envs.voxel_light import RELIGHT_RADIUS, update_light

WATER_SURFACE = 0.875  # height of the water surface inside its block
FLOOD_LIMIT = 256  # cells that an edit may flood, so that a lake does not run into a cave for ever

Edit = tuple[int, int, int, int]  # x, y, z, block


@dataclass(kw_only=True, slots=True)
class World:
    """One world: what stands where, how bright it is and how the plants are tinted.

    Attributes:
        blocks: (x, z, y) uint8, a block kind each; as many along x as along z, a power of two.
        grass_tint: (x, z, 3) float32, 0 to 255.
        water_tint: (x, z, 3) float32, 0 to 255.
        biome: (x, z) uint8, an index into biomes.
        biomes: their names.
        clouds: (16, 16) uint8, 1 where a cloud is.
        sea_level: y of the topmost layer of water blocks.
        flows: water runs on, and sand falls; otherwise an edit fills with water only the dug block itself.
        light: (x, z, y) uint8, see voxel_light.
        tops: (x, z) uint8, y of the first cell with nothing but air above it and in it.
        filled: (x, z) uint64, bit y is 1 where a column holds anything but air; so no world is higher than 64.
        num_edits: how many blocks have been changed.
    """

    blocks: np.ndarray
    grass_tint: np.ndarray
    water_tint: np.ndarray
    biome: np.ndarray
    biomes: tuple[str, ...]
    clouds: np.ndarray
    sea_level: int
    flows: bool
    light: np.ndarray = field(init=False)
    tops: np.ndarray = field(init=False)
    filled: np.ndarray = field(init=False)
    num_edits: int = field(init=False, default=0)
    _has_lamps: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.refresh()

    @property
    def size(self) -> int:
        """Blocks along x and along z."""
        return self.blocks.shape[0]

    @property
    def height(self) -> int:
        """Blocks along y."""
        return self.blocks.shape[2]

    def at(self, x: int, y: int, z: int) -> int:
        """The block of a cell; x and z wrap, above the world is air."""
        wrap = self.size - 1
        return int(self.blocks[x & wrap, z & wrap, y]) if 0 <= y < self.height else AIR

    def refresh(self) -> None:
        """Find what is filled and the light anew, for blocks that were written directly."""
        self.tops = np.empty(self.blocks.shape[:2], np.uint8)
        self.filled = np.empty(self.blocks.shape[:2], np.uint64)
        _measure_columns(self.blocks, self.tops, self.filled)
        self.light = np.zeros_like(self.blocks)
        self._has_lamps = bool((self.blocks == LAMP).any())
        update_light(self.blocks, self.light, self.tops, 0, self.size, 0, self.size, self._clearance)

    @property
    def _clearance(self) -> int:
        return LAMP_LIGHT if self._has_lamps else 1

    def dig(self, x: int, y: int, z: int) -> None:
        """Take a block away; water, sand and plants around it follow."""
        sides = ((x + 1, y, z), (x - 1, y, z), (x, y, z + 1), (x, y, z - 1), (x, min(y + 1, self.height - 1), z))
        wet = any(self.at(*cell) == WATER for cell in sides)
        edits: list[Edit] = [(x, y, z, WATER if wet else AIR)]
        self.change(edits)
        if self.flows:
            self.change(self._collapse(x, y, z))
            self.change(self._flood(x, y, z))

    def put(self, x: int, y: int, z: int, block: int) -> None:
        """Set a block; sand sinks to the ground."""
        self.change([(x, y, z, block)])
        if self.flows and block in FALLING_KINDS:
            self.change(self._collapse(x, y - 1, z))

    def change(self, edits: Sequence[Edit]) -> None:
        """Change blocks that lie close together, and the light around them; x and z wrap."""
        if not edits:
            return
        wrap = self.size - 1
        for x, y, z, block in edits:
            self.blocks[x & wrap, z & wrap, y] = block
            self._has_lamps |= block == LAMP
        for x, z in {(x & wrap, z & wrap) for x, _, z, _ in edits}:
            column = slice(x, x + 1), slice(z, z + 1)
            _measure_columns(self.blocks[column], self.tops[column], self.filled[column])
        xs, zs = [edit[0] for edit in edits], [edit[2] for edit in edits]
        radius = RELIGHT_RADIUS
        x_range = (min(xs) - radius, max(xs) + radius + 1)
        z_range = (min(zs) - radius, max(zs) + radius + 1)
        update_light(self.blocks, self.light, self.tops, *x_range, *z_range, self._clearance)
        self.num_edits += len(edits)

    def _collapse(self, x: int, y: int, z: int) -> list[Edit]:
        """What falls or breaks in the column above a cell that no longer carries anything."""
        edits: list[Edit] = []
        bottom = y
        while bottom > 0 and self._gives_way(self.at(x, bottom - 1, z)):
            bottom -= 1
        above = y + 1
        if not self._gives_way(self.at(x, y, z)):
            return edits
        while (block := self.at(x, above, z)) in FALLING_KINDS:
            edits += [(x, above, z, AIR), (x, bottom, z, block)]
            bottom, above = bottom + 1, above + 1
        while (block := self.at(x, above, z)) >= FIRST_PLANT:
            edits.append((x, above, z, AIR))
            above += 1
        return edits

    @staticmethod
    def _gives_way(block: int) -> bool:
        return block in (AIR, WATER) or block >= FIRST_PLANT

    def _flood(self, x: int, y: int, z: int) -> list[Edit]:
        """The cells that the water in and around a cell runs into: sideways and down, never up."""
        wrap, start = self.size - 1, deque[tuple[int, int, int]]()
        for cell in ((x, y, z), (x + 1, y, z), (x - 1, y, z), (x, y, z + 1), (x, y, z - 1), (x, y + 1, z)):
            if self.at(*cell) == WATER:
                start.append(cell)
        wet: set[tuple[int, int, int]] = set()
        while start and len(wet) < FLOOD_LIMIT:
            i, j, k = start.popleft()
            for cell in ((i, j - 1, k), (i + 1, j, k), (i - 1, j, k), (i, j, k + 1), (i, j, k - 1)):
                dry = self.at(*cell) == AIR or FIRST_PLANT <= self.at(*cell) != LILY_PAD
                key = (cell[0] & wrap, cell[1], cell[2] & wrap)
                if cell[1] >= 0 and dry and key not in wet:
                    wet.add(key)
                    start.append(cell)
        return [(i, j, k, WATER) for i, j, k in wet]


@njit(cache=True)
def _measure_columns(blocks, tops, filled):
    """Write the y above the highest block that is not air into (x, z) tops, and bit y of each of these into filled."""
    for x in range(blocks.shape[0]):
        for z in range(blocks.shape[1]):
            top, bits = 0, np.uint64(0)
            for y in range(blocks.shape[2]):
                if blocks[x, z, y] != AIR:
                    top = y + 1
                    bits |= np.uint64(1) << np.uint64(y)
            tops[x, z], filled[x, z] = top, bits
