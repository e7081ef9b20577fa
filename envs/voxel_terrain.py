"""The land of the voxel world: heights, biomes, caves, ores, trees and flowers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from farworld.envs.voxel_blocks import (
    ACACIA_LEAVES,
    AIR,
    BEDROCK,
    BIRCH,
    BIRCH_LEAVES,
    CACTUS,
    CLAY,
    COAL,
    COBBLESTONE,
    DANDELION,
    DEAD_BUSH,
    DIRT,
    FERN,
    GRASS,
    GRAVEL,
    ICE,
    IRON,
    LEAVES,
    LILY_PAD,
    LOG,
    MUSHROOM,
    ORCHID,
    POPPY,
    PUMPKIN,
    REEDS,
    SAND,
    SANDSTONE,
    SNOW,
    SPRUCE_LEAVES,
    STONE,
    TALL_GRASS,
    WATER,
)
from farworld.envs.voxel_noise import blur, column_noise, noise
from farworld.envs.voxel_trees import grow_acacia, grow_bush, grow_great_oak, grow_oak, grow_spruce
from farworld.envs.voxel_world import World

PLAINS, FOREST, TAIGA, TUNDRA, DESERT, SAVANNA, SWAMP, MOUNTAINS = range(8)
BIOMES = ("plains", "forest", "taiga", "tundra", "desert", "savanna", "swamp", "mountains")
GRASS_TINTS = np.array(
    [
        [139, 186, 86], [116, 178, 78], [120, 168, 118], [128, 172, 142],
        [184, 176, 92], [182, 172, 84], [106, 118, 62], [128, 172, 118],
    ],
    np.float32,
)  # fmt: skip
WATER_TINTS = np.array(
    [
        [52, 98, 190], [50, 96, 184], [48, 88, 168], [58, 98, 182],
        [58, 124, 196], [60, 118, 190], [76, 94, 76], [52, 100, 186],
    ],
    np.float32,
)  # fmt: skip
TREE_SPACING = 4  # blocks between the places where a tree may grow
SNOW_LINE = 24  # blocks above the sea from which mountains are white
TREE_ROOM = 13  # blocks kept free above the highest ground


@dataclass(kw_only=True, slots=True)
class _Land:
    """What the ground is like before anything is built on it.

    Attributes:
        top: (x, z) int64, y of the ground block.
        biome: (x, z) uint8.
        woods: (x, z) float64, how woody the place is, in sigmas.
    """

    top: np.ndarray
    biome: np.ndarray
    woods: np.ndarray


def generate_varied(rng: np.random.Generator) -> World:
    """Make a world of 256 x 256 columns with eight biomes; the same generator state gives the same world."""
    size, height, sea_level = 256, 64, 20
    return _build(rng, _varied_land(rng, size, height, sea_level), height, sea_level)


def generate_swamp(rng: np.random.Generator) -> World:
    """Make a world of 128 x 128 columns, all of it a swamp at sea level."""
    size, height, sea_level = 128, 48, 14
    hills = noise(rng, (8, 16, 32), size)
    pools = noise(rng, (4, 8, 16), size)
    land = _Land(
        top=np.floor(sea_level + 0.75 + 0.8 * hills - 2.2 * _ramp(pools, 0.5, 1.5)).astype(np.int64),
        biome=np.full((size, size), SWAMP, np.uint8),
        woods=noise(rng, (8, 16), size),
    )
    return _build(rng, land, height, sea_level)


def _ramp(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below low, 1 above high, smooth in between."""
    share = np.clip((values - low) / (high - low), 0.0, 1.0)
    return share * share * (3.0 - 2.0 * share)


def _varied_land(rng: np.random.Generator, size: int, height: int, sea_level: int) -> _Land:
    temperature, humidity = noise(rng, (5, 10, 40), size), noise(rng, (5, 10, 40), size)
    hills, ridges = noise(rng, (8, 16, 32), size), noise(rng, (4, 8, 16, 32), size)
    rivers, woods = noise(rng, (4, 8, 16), size), noise(rng, (12, 24), size)
    biome = np.full((size, size), PLAINS, np.uint8)
    biome[woods > 0.35] = FOREST
    biome[(temperature > 0.45) & (humidity < 0.5)] = SAVANNA
    biome[(temperature > 0.75) & (humidity < 0.1)] = DESERT
    biome[temperature < -0.5] = TAIGA
    biome[(temperature < -0.75) & (humidity < 0.3)] = TUNDRA
    swampy = (humidity > 0.7) & (temperature > -0.5) & (ridges < 0.8)
    biome[swampy] = SWAMP
    biome[ridges > 1.05] = MOUNTAINS
    flat = blur(swampy.astype(np.float32), 4)
    wild = _ramp(ridges, 0.6, 2.2)
    rise = 3.5 + 1.8 * hills + wild * (20.0 + 5.0 * hills)
    # Water lies where one noise passes through its middle, in winding bands that the mountains interrupt.
    bed = _ramp(-np.abs(rivers), -0.3, -0.05) * (1.0 - _ramp(ridges, 0.4, 1.2))
    rise = rise * (1.0 - flat) + flat * (0.8 + 0.8 * hills)
    ground = sea_level + rise * (1.0 - bed) - 3.5 * bed
    top = np.clip(np.floor(ground), 4, height - TREE_ROOM).astype(np.int64)
    return _Land(top=top, biome=biome, woods=woods)


def _build(rng: np.random.Generator, land: _Land, height: int, sea_level: int) -> World:
    size = len(land.top)
    blocks = np.zeros((size, size, height), np.uint8)
    patches = noise(rng, (size // 8, size // 4), size)
    _fill(blocks, land.top, land.biome, patches, sea_level)
    cells = size // 8
    lattices = rng.random((4, cells, cells, height // 8 + 2), np.float32)
    _carve(blocks, land.top, lattices, sea_level)
    places = size // TREE_SPACING
    _plant(blocks, land.top, land.biome, land.woods, rng.random((places, places, 5)), sea_level)
    _sow(blocks, land.top, land.biome, patches, land.woods, rng.random((size, size)), sea_level)
    return World(
        blocks=blocks,
        grass_tint=_blend(GRASS_TINTS, land.biome),
        water_tint=_blend(WATER_TINTS, land.biome),
        biome=land.biome,
        biomes=BIOMES,
        clouds=(noise(rng, (4, 8), 16) > 0.7).astype(np.uint8),
        sea_level=sea_level,
        flows=True,
    )


def _blend(tints: np.ndarray, biome: np.ndarray) -> np.ndarray:
    """(biomes, 3) -> (x, z, 3) float32, soft where biomes meet."""
    return np.stack([blur(tints[:, i][biome], 4) for i in range(3)], axis=-1).astype(np.float32)


@njit(cache=True, error_model="numpy")
def _fill(blocks, top, biome, patches, sea_level):
    """Fill the columns from bedrock to grass, and the hollows with water."""
    size = blocks.shape[0]
    for x in range(size):
        for z in range(size):
            height, kind, patch = top[x, z], biome[x, z], patches[x, z]
            soil, surface, depth = DIRT, GRASS, 3
            if kind == DESERT or (kind != SWAMP and kind != TUNDRA and sea_level - 2 <= height <= sea_level):
                soil, surface = SAND, SAND
            elif height < sea_level:  # the floor of the water
                soil = DIRT
                surface = GRAVEL if patch > 0.9 else (CLAY if patch < -1.3 else DIRT)
            elif kind == TUNDRA:
                surface = SNOW
            elif kind == MOUNTAINS:
                steep = _steepness(top, x, z)
                if height > sea_level + SNOW_LINE + int(patch):
                    soil, surface = STONE, (STONE if steep > 2 else SNOW)
                elif height > sea_level + 13 + int(2 * patch) or steep > 2:
                    soil, surface = STONE, (GRAVEL if patch > 1.5 else STONE)
            elif kind == TAIGA and patch > 2.2:
                surface = COBBLESTONE
            for y in range(height + 1):
                block = soil
                if y == 0:
                    block = BEDROCK
                elif y == height:
                    block = surface
                elif y < height - depth:
                    block = SANDSTONE if soil == SAND and y > height - depth - 3 else STONE
                blocks[x, z, y] = block
            for y in range(height + 1, sea_level + 1):
                blocks[x, z, y] = ICE if kind == TUNDRA and y == sea_level else WATER


@njit(cache=True)
def _steepness(top, x, z):
    """Blocks between the highest and the lowest neighbour."""
    wrap = top.shape[0] - 1
    heights = (top[(x + 1) & wrap, z], top[(x - 1) & wrap, z], top[x, (z + 1) & wrap], top[x, (z - 1) & wrap])
    return max(heights) - min(heights)


@njit(cache=True, error_model="numpy")
def _carve(blocks, top, lattices, sea_level):
    """Dig tunnels where two noises are near their middle, halls where they are high, and lay ores."""
    size, height = blocks.shape[0], blocks.shape[2]
    wrap = size - 1
    columns = np.empty((4, height))
    for x in range(size):
        for z in range(size):
            for i in range(4):
                column_noise(lattices[i], x, z, columns[i], top[x, z])
            # Only land that stands above all water around it may open to the sky, or lakes would run out.
            dry = True
            for dx in range(-2, 3, 2):
                for dz in range(-2, 3, 2):
                    dry &= top[(x + dx) & wrap, (z + dz) & wrap] > sea_level
            for y in range(1, top[x, z] + 1):
                first, second = columns[0, y] - 0.5, columns[1, y] - 0.5
                open_here = y > 1 and (dry or y < top[x, z] - 4)
                tunnel = first * first + second * second < 0.0042
                hall = y < sea_level - 2 and columns[2, y] > 0.74
                if open_here and (tunnel or hall):
                    # Sand and gravel would hang in the air above.
                    above = blocks[x, z, y + 1] if y < top[x, z] else AIR
                    if above != SAND and above != GRAVEL:
                        blocks[x, z, y] = AIR
                elif blocks[x, z, y] == STONE:
                    ore = columns[3, y]
                    if ore > 0.86:
                        blocks[x, z, y] = COAL
                    elif ore < 0.1 and y < sea_level + 8:
                        blocks[x, z, y] = IRON
                    elif columns[2, y] < 0.16:
                        blocks[x, z, y] = GRAVEL if columns[0, y] < 0.5 and blocks[x, z, y - 1] != AIR else DIRT


@njit(cache=True)
def _plant(blocks, top, biome, woods, chance, sea_level):
    """Grow at most one tree, cactus or bush in each cell of a coarse grid."""
    for i in range(chance.shape[0]):
        for j in range(chance.shape[1]):
            x = i * TREE_SPACING + int(chance[i, j, 0] * 3)
            z = j * TREE_SPACING + int(chance[i, j, 1] * 3)
            ground, kind, luck, size = top[x, z], biome[x, z], chance[i, j, 2], chance[i, j, 3]
            sort, base = chance[i, j, 4], ground + 1
            surface = blocks[x, z, ground]
            lean = int(sort * 64)
            if surface == SAND and kind == DESERT:
                if ground > sea_level and luck < 0.06:
                    for y in range(base, base + 1 + int(size * 3)):
                        blocks[x, z, y] = CACTUS
            elif surface == SNOW:
                if luck < (0.05 if woods[x, z] < 0.3 else 0.3) and ground < sea_level + SNOW_LINE:
                    grow_spruce(blocks, x, z, base, 6 + int(size * 4), SPRUCE_LEAVES)
            elif surface == GRASS and (ground >= sea_level or kind == SWAMP):
                if kind == SWAMP:
                    if luck < 0.16:
                        grow_oak(blocks, x, z, base, 5 + int(size * 3), 3, LOG, LEAVES)
                elif kind == TAIGA:
                    if luck < 0.28 + 0.15 * (woods[x, z] > 0.0):
                        grow_spruce(blocks, x, z, base, 7 + int(size * 4), SPRUCE_LEAVES)
                elif kind == SAVANNA:
                    if luck < 0.045:
                        grow_acacia(blocks, x, z, base, 5 + int(size * 3), lean)
                    elif luck < 0.06:
                        grow_bush(blocks, x, z, base, ACACIA_LEAVES)
                elif kind == FOREST:
                    if luck < 0.34:
                        if sort < 0.3:
                            grow_oak(blocks, x, z, base, 6 + int(size * 2), 2, BIRCH, BIRCH_LEAVES)
                        elif sort < 0.42:
                            grow_great_oak(blocks, x, z, base, 8 + int(size * 3), lean)
                        else:
                            grow_oak(blocks, x, z, base, 5 + int(size * 2), 2, LOG, LEAVES)
                    elif luck < 0.38:
                        grow_bush(blocks, x, z, base, LEAVES)
                elif kind == MOUNTAINS:
                    if luck < 0.08:
                        grow_spruce(blocks, x, z, base, 6 + int(size * 3), SPRUCE_LEAVES)
                elif luck < 0.012:
                    grow_great_oak(blocks, x, z, base, 8 + int(size * 3), lean)
                elif luck < 0.03:
                    grow_oak(blocks, x, z, base, 5 + int(size * 2), 2, LOG, LEAVES)


@njit(cache=True)
def _sow(blocks, top, biome, patches, woods, chance, sea_level):
    """Scatter grass, flowers and other small things over what is still bare."""
    size = blocks.shape[0]
    wrap = size - 1
    for x in range(size):
        for z in range(size):
            y, kind, luck, patch = top[x, z] + 1, biome[x, z], chance[x, z], patches[x, z]
            surface = blocks[x, z, y - 1]
            if kind == SWAMP and y == sea_level and blocks[x, z, y] == WATER and luck < 0.1:
                if blocks[x, z, y + 1] == AIR:
                    blocks[x, z, y + 1] = LILY_PAD
                continue
            if blocks[x, z, y] != AIR:
                continue
            shore = y == sea_level + 1 and (
                blocks[(x + 1) & wrap, z, sea_level] == WATER
                or blocks[(x - 1) & wrap, z, sea_level] == WATER
                or blocks[x, (z + 1) & wrap, sea_level] == WATER
                or blocks[x, (z - 1) & wrap, sea_level] == WATER
            )
            if shore and (surface == SAND or surface == GRASS) and patch > 0.4 and luck < 0.5:
                for step in range(1 + int(luck * 6) % 3):
                    if blocks[x, z, y + step] == AIR:
                        blocks[x, z, y + step] = REEDS
            elif surface == SAND:
                if kind == DESERT and luck < 0.012:
                    blocks[x, z, y] = DEAD_BUSH
            elif surface == GRASS:
                lush = 0.06 + 0.14 * min(max(patch + 0.5, 0.0), 1.5)
                flower = luck > 0.985 or (patch > 1.2 and luck > 0.9)
                if kind == SAVANNA:
                    if luck < 2.2 * lush:
                        blocks[x, z, y] = TALL_GRASS
                elif kind == TAIGA:
                    if luck < 0.8 * lush:
                        blocks[x, z, y] = FERN
                    elif luck > 0.992:
                        blocks[x, z, y] = MUSHROOM
                elif kind == SWAMP:
                    if luck < 0.8 * lush:
                        blocks[x, z, y] = TALL_GRASS
                    elif luck > 0.985:
                        blocks[x, z, y] = ORCHID if luck > 0.993 else MUSHROOM
                elif luck < lush * (0.6 if kind == FOREST else 1.0):
                    blocks[x, z, y] = TALL_GRASS
                elif flower and kind != MOUNTAINS:
                    blocks[x, z, y] = POPPY if woods[x, z] > 0.0 or luck > 0.995 else DANDELION
                elif kind == PLAINS and 0.6 < luck < 0.6003:
                    blocks[x, z, y] = PUMPKIN
