"""The land of the first release, kept block for block: worlds that were trained on it are measured against it."""

from __future__ import annotations

import numpy as np
from numba import njit

from farworld.envs.voxel_blocks import (
    AIR,
    BEDROCK,
    BIRCH,
    CACTUS,
    COAL,
    DIRT,
    GRASS,
    ICE,
    LEAVES,
    LOG,
    SAND,
    SANDSTONE,
    SNOW,
    STONE,
    WATER,
)
from farworld.envs.voxel_trees import grow_oak, grow_spruce
from farworld.envs.voxel_world import World

SIZE, HEIGHT = 128, 48  # blocks
SEA_LEVEL = 14  # y of the topmost layer of water blocks
MEADOW, SWAMP, DESERT, TUNDRA = range(4)
BIOMES = ("meadow", "swamp", "desert", "tundra")
GRASS_TINTS = np.array([[133, 184, 82], [112, 126, 68], [176, 172, 92], [134, 172, 132]], np.float32)
WATER_TINTS = np.array([[52, 98, 190], [70, 92, 78], [58, 124, 196], [58, 98, 182]], np.float32)
TREE_SPACING = 5  # blocks between the places where a tree may grow


def generate_classic(rng: np.random.Generator) -> World:
    """Make a new world of 128 x 128 columns; the same generator state gives the same world."""
    height, temperature, humidity, forest = _landscape(rng)
    biome = np.full(height.shape, MEADOW, np.uint8)
    biome[humidity > 0.45] = SWAMP
    biome[(temperature > 0.75) & (humidity <= 0.45)] = DESERT
    biome[temperature < -0.8] = TUNDRA
    blocks = np.zeros((SIZE, SIZE, HEIGHT), np.uint8)
    top = np.clip(np.floor(height), 4, HEIGHT - 14).astype(np.int64)
    _fill(blocks, top, biome, rng.random((SIZE, SIZE, 8), np.float32))
    tunnels = rng.random((2, 16, 16, 7), np.float32)
    _carve(blocks, top, tunnels)
    places = SIZE // TREE_SPACING
    _plant(blocks, top, biome, forest, rng.random((places, places, 5)))
    weights = np.stack([_blur(biome == kind) for kind in range(4)], axis=-1)
    return World(
        blocks=blocks,
        grass_tint=(weights @ GRASS_TINTS).astype(np.float32),
        water_tint=(weights @ WATER_TINTS).astype(np.float32),
        biome=biome,
        biomes=BIOMES,
        clouds=(_noise(rng, (4, 8), 16) > 0.7).astype(np.uint8),
        sea_level=SEA_LEVEL,
        flows=False,
    )


def _landscape(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Ground height, temperature, humidity and forest density, each (x, z); the last three in sigmas."""
    temperature = _noise(rng, (4, 8), SIZE)
    humidity = _noise(rng, (4, 8), SIZE)
    hills = _noise(rng, (4, 8, 16), SIZE)
    ridges = _noise(rng, (4, 8), SIZE)
    swampy = np.clip((humidity - 0.2) / 0.5, 0.0, 1.0) * (temperature > -0.8)
    swampy = _blur(swampy)
    rise = (3.0 + 2.6 * hills + 5.0 * np.clip(ridges - 0.6, 0.0, None)) * (1.0 - swampy)
    height = SEA_LEVEL + rise + swampy * (0.7 + 0.9 * hills) + 0.5
    return height, temperature, humidity, _noise(rng, (8, 16), SIZE)


def _noise(rng: np.random.Generator, lattices: tuple[int, ...], size: int) -> np.ndarray:
    """Periodic value noise (size, size): zero mean, unit variance, octaves from coarse to fine."""
    total = np.zeros((size, size))
    for lattice in lattices:
        place = np.arange(size) * (lattice / size)
        low = place.astype(np.int64)
        fraction = place - low
        weight = fraction * fraction * (3.0 - 2.0 * fraction)
        # One matrix interpolates along one axis; applied on both sides it makes the surface.
        matrix = np.zeros((size, lattice))
        np.add.at(matrix, (np.arange(size), low % lattice), 1.0 - weight)
        np.add.at(matrix, (np.arange(size), (low + 1) % lattice), weight)
        total += matrix @ rng.standard_normal((lattice, lattice)) @ matrix.T * (lattices[0] / lattice)
    return (total - total.mean()) / total.std()


def _blur(values: np.ndarray, radius: int = 3) -> np.ndarray:
    """Periodic box blur along the first two axes, so that neighbouring biomes blend."""
    result = values.astype(np.float64)
    for axis in (0, 1):
        shifted = [np.roll(result, shift, axis) for shift in range(-radius, radius + 1)]
        result = np.asarray(sum(shifted)) / len(shifted)
    return result


@njit(cache=True)
def _fill(blocks, top, biome, dither):
    """Fill the columns from bedrock to grass, and the hollows with water."""
    for x in range(SIZE):
        for z in range(SIZE):
            height, kind = top[x, z], biome[x, z]
            soil, surface = DIRT, GRASS
            beach = kind != SWAMP and height < SEA_LEVEL + (kind == MEADOW)
            if kind == DESERT or beach:
                soil, surface = SAND, SAND
            elif height < SEA_LEVEL:
                surface = DIRT
            elif kind == TUNDRA:
                surface = SNOW
            for y in range(height + 1):
                block = soil
                if y == 0:
                    block = BEDROCK
                elif y == height:
                    block = surface
                elif y < height - 3:
                    block = SANDSTONE if kind == DESERT and y > height - 6 else STONE
                    if block == STONE and dither[x >> 1, z >> 1, (y >> 1) & 7] > 0.985:
                        block = COAL
                blocks[x, z, y] = block
            for y in range(height + 1, SEA_LEVEL + 1):
                blocks[x, z, y] = ICE if kind == TUNDRA and y == SEA_LEVEL else WATER


@njit(cache=True)
def _carve(blocks, top, lattices):
    """Dig winding tunnels where two noises are both near their middle."""
    for x in range(SIZE):
        for z in range(SIZE):
            for y in range(2, top[x, z] + 1):
                # Only tunnels above the sea may open to the sky, or lakes would hang in the air.
                if y > top[x, z] - 4 and (y <= SEA_LEVEL + 1 or top[x, z] <= SEA_LEVEL + 2):
                    continue
                first = _noise_3d(lattices[0], x, z, y) - 0.5
                second = _noise_3d(lattices[1], x, z, y) - 0.5
                if first * first + second * second < 0.004:
                    blocks[x, z, y] = AIR


@njit(cache=True)
def _noise_3d(lattice, x, z, y):
    """Smooth value noise in [0, 1] with cells of 8 blocks."""
    result = 0.0
    fx, fz, fy = (x & 7) / 8.0, (z & 7) / 8.0, (y & 7) / 8.0
    fx, fz, fy = fx * fx * (3 - 2 * fx), fz * fz * (3 - 2 * fz), fy * fy * (3 - 2 * fy)
    for i in range(2):
        for j in range(2):
            for k in range(2):
                weight = (fx if i else 1 - fx) * (fz if j else 1 - fz) * (fy if k else 1 - fy)
                result += weight * lattice[((x >> 3) + i) & 15, ((z >> 3) + j) & 15, (y >> 3) + k]
    return result


@njit(cache=True)
def _plant(blocks, top, biome, forest, chance):
    """Grow at most one tree or cactus in each cell of a coarse grid."""
    for i in range(chance.shape[0]):
        for j in range(chance.shape[1]):
            x = i * TREE_SPACING + int(chance[i, j, 0] * 3)
            z = j * TREE_SPACING + int(chance[i, j, 1] * 3)
            ground, kind, luck, size = top[x, z], biome[x, z], chance[i, j, 2], chance[i, j, 3]
            surface = blocks[x, z, ground]
            if kind == DESERT:
                if surface == SAND and ground >= SEA_LEVEL and luck < 0.1:
                    for y in range(ground + 1, ground + 2 + int(size * 3)):
                        blocks[x, z, y] = CACTUS
            elif surface == SNOW:
                if luck < 0.1 + 0.3 * (forest[x, z] > 0.5):
                    grow_spruce(blocks, x, z, ground + 1, 8 + int(size * 3), LEAVES)
            elif surface == GRASS:
                if kind == SWAMP:
                    if luck < 0.2:
                        grow_oak(blocks, x, z, ground + 1, 6 + int(size * 2), 3, LOG, LEAVES)
                elif luck < 0.05 + 0.4 * (forest[x, z] > 0.5):
                    trunk = BIRCH if chance[i, j, 4] < 0.25 else LOG
                    grow_oak(blocks, x, z, ground + 1, 6 + int(size * 2), 2, trunk, LEAVES)
