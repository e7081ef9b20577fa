"""The land of the voxel world: blocks, biomes, trees, caves and light. The world is a torus in x and z.

Arrays are indexed [x, z, y] with y upwards, so that one column of blocks is contiguous in memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

WORLD_SIZE = 128  # blocks along x and along z; a power of two, so that wrapping is a bit mask
WORLD_HEIGHT = 48  # blocks along y
WRAP = WORLD_SIZE - 1
SEA_LEVEL = 14  # y of the topmost layer of water blocks
WATER_SURFACE = 0.875  # height of the water surface inside its block
MAX_LIGHT = 15  # full daylight; every block that light crosses sideways takes one
RELIGHT_RADIUS = 16  # an edit cannot change the light farther away than this

AIR, GRASS, DIRT, STONE, SAND, SNOW, LOG, LEAVES, WATER, PLANKS, BEDROCK, SANDSTONE, ICE, CACTUS = range(14)
BIRCH, SPRUCE, COAL = 14, 15, 16
NUM_BLOCKS = 17

MEADOW, SWAMP, DESERT, TUNDRA = range(4)
GRASS_TINTS = np.array([[133, 184, 82], [112, 126, 68], [176, 172, 92], [134, 172, 132]], np.float32)
WATER_TINTS = np.array([[52, 98, 190], [70, 92, 78], [58, 124, 196], [58, 98, 182]], np.float32)
TREE_SPACING = 5  # blocks between the places where a tree may grow


@dataclass(kw_only=True, slots=True)
class World:
    """One world: what stands where, how bright it is and how the plants are tinted.

    Attributes:
        blocks: (x, z, y) uint8, a block kind each.
        light: (x, z, y) uint8, 0 to MAX_LIGHT; 0 inside every opaque block.
        grass_tint: (x, z, 3) float32, 0 to 255.
        water_tint: (x, z, 3) float32, 0 to 255.
        biome: (x, z) uint8.
        clouds: (16, 16) uint8, 1 where a cloud is.
        tops: (x, z) uint8, y of the first cell with nothing but air above it and in it.
    """

    blocks: np.ndarray
    light: np.ndarray
    grass_tint: np.ndarray
    water_tint: np.ndarray
    biome: np.ndarray
    clouds: np.ndarray
    tops: np.ndarray

    def set_block(self, x: int, y: int, z: int, block: int) -> None:
        """Change one block and the light around it; x and z wrap."""
        self.blocks[x & WRAP, z & WRAP, y] = block
        self.tops[x & WRAP, z & WRAP] = find_tops(self.blocks[x & WRAP, z & WRAP])
        radius = RELIGHT_RADIUS
        update_light(self.blocks, self.light, x - radius, x + radius + 1, z - radius, z + radius + 1)


def generate_world(rng: np.random.Generator) -> World:
    """Make a new world; the same generator state gives the same world."""
    height, temperature, humidity, forest = _landscape(rng)
    biome = np.full(height.shape, MEADOW, np.uint8)
    biome[humidity > 0.45] = SWAMP
    biome[(temperature > 0.75) & (humidity <= 0.45)] = DESERT
    biome[temperature < -0.8] = TUNDRA
    blocks = np.zeros((WORLD_SIZE, WORLD_SIZE, WORLD_HEIGHT), np.uint8)
    top = np.clip(np.floor(height), 4, WORLD_HEIGHT - 14).astype(np.int64)
    _fill(blocks, top, biome, rng.random((WORLD_SIZE, WORLD_SIZE, 8), np.float32))
    tunnels = rng.random((2, 16, 16, 7), np.float32)
    _carve(blocks, top, tunnels)
    places = WORLD_SIZE // TREE_SPACING
    _plant(blocks, top, biome, forest, rng.random((places, places, 5)))
    light = np.zeros_like(blocks)
    update_light(blocks, light, 0, WORLD_SIZE, 0, WORLD_SIZE)
    weights = np.stack([_blur(biome == kind) for kind in range(4)], axis=-1)
    return World(
        blocks=blocks,
        light=light,
        grass_tint=(weights @ GRASS_TINTS).astype(np.float32),
        water_tint=(weights @ WATER_TINTS).astype(np.float32),
        biome=biome,
        clouds=(_noise(rng, (4, 8), 16) > 0.7).astype(np.uint8),
        tops=find_tops(blocks),
    )


def find_tops(blocks: np.ndarray) -> np.ndarray:
    """(..., y) blocks -> (...) uint8, the y above the highest block that is not air."""
    filled = blocks != AIR
    height = WORLD_HEIGHT - np.argmax(filled[..., ::-1], axis=-1)
    return np.where(filled.any(axis=-1), height, 0).astype(np.uint8)


def _landscape(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Ground height, temperature, humidity and forest density, each (x, z); the last three in sigmas."""
    temperature = _noise(rng, (4, 8))
    humidity = _noise(rng, (4, 8))
    hills = _noise(rng, (4, 8, 16))
    ridges = _noise(rng, (4, 8))
    swampy = np.clip((humidity - 0.2) / 0.5, 0.0, 1.0) * (temperature > -0.8)
    swampy = _blur(swampy)
    rise = (3.0 + 2.6 * hills + 5.0 * np.clip(ridges - 0.6, 0.0, None)) * (1.0 - swampy)
    height = SEA_LEVEL + rise + swampy * (0.7 + 0.9 * hills) + 0.5
    return height, temperature, humidity, _noise(rng, (8, 16))


def _noise(rng: np.random.Generator, lattices: tuple[int, ...], size: int = WORLD_SIZE) -> np.ndarray:
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
    """Periodic box blur, so that neighbouring biomes blend."""
    result = values.astype(np.float64)
    for axis in (0, 1):
        shifted = [np.roll(result, shift, axis) for shift in range(-radius, radius + 1)]
        result = np.asarray(sum(shifted)) / len(shifted)
    return result


@njit(cache=True)
def _fill(blocks, top, biome, dither):
    """Fill the columns from bedrock to grass, and the hollows with water."""
    for x in range(WORLD_SIZE):
        for z in range(WORLD_SIZE):
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
    for x in range(WORLD_SIZE):
        for z in range(WORLD_SIZE):
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
                    _grow_spruce(blocks, x, z, ground + 1, 8 + int(size * 3))
            elif surface == GRASS:
                if kind == SWAMP:
                    if luck < 0.2:
                        _grow_oak(blocks, x, z, ground + 1, 6 + int(size * 2), 3, LOG)
                elif luck < 0.05 + 0.4 * (forest[x, z] > 0.5):
                    trunk = BIRCH if chance[i, j, 4] < 0.25 else LOG
                    _grow_oak(blocks, x, z, ground + 1, 6 + int(size * 2), 2, trunk)


@njit(cache=True)
def _grow_oak(blocks, x, z, base, trunk_height, radius, trunk):
    """A trunk below two wide layers of leaves and two narrow ones."""
    crown = base + trunk_height
    for y in range(crown - 3, crown + 1):
        reach = radius if y < crown - 1 else radius - 1
        for dx in range(-reach, reach + 1):
            for dz in range(-reach, reach + 1):
                corner = abs(dx) == reach and abs(dz) == reach
                tip = y == crown and abs(dx) + abs(dz) > reach
                if not corner and not tip:
                    _put_leaf(blocks, x + dx, z + dz, y)
    for y in range(base, crown):
        blocks[x, z, y] = trunk
    blocks[x, z, base - 1] = DIRT


@njit(cache=True)
def _grow_spruce(blocks, x, z, base, trunk_height):
    """A trunk inside a cone of leaves."""
    crown = base + trunk_height
    for y in range(base + 3, crown + 1):
        below = crown - y
        reach = 0 if below == 0 else (1 if below % 2 else 2)
        if below == 1 or below == 2:
            reach = 1
        for dx in range(-reach, reach + 1):
            for dz in range(-reach, reach + 1):
                if abs(dx) + abs(dz) <= reach + (reach == 2):
                    _put_leaf(blocks, x + dx, z + dz, y)
    for y in range(base, crown):
        blocks[x, z, y] = SPRUCE
    blocks[x, z, base - 1] = DIRT


@njit(cache=True)
def _put_leaf(blocks, x, z, y):
    if blocks[x & WRAP, z & WRAP, y] == AIR:
        blocks[x & WRAP, z & WRAP, y] = LEAVES


@njit(cache=True)
def update_light(blocks, light, x_start, x_stop, z_start, z_stop):
    """Recompute the daylight of the columns in a rectangle; x and z wrap.

    Light falls straight down from the sky, dims inside leaves and water, and spreads sideways.
    The columns around the rectangle keep their light and shine into it.
    """
    for x in range(x_start, x_stop):
        for z in range(z_start, z_stop):
            level = MAX_LIGHT
            for y in range(WORLD_HEIGHT - 1, -1, -1):
                block = blocks[x & WRAP, z & WRAP, y]
                if block == LEAVES:
                    level = max(level - 2, 0)
                elif block == WATER:
                    level = max(level - 1, 0)
                elif block != AIR:
                    level = 0
                light[x & WRAP, z & WRAP, y] = level if block == AIR or block == WATER else 0
    _spread_light(blocks, light, x_start - 1, x_stop + 1, z_start - 1, z_stop + 1)


@njit(cache=True)
def _spread_light(blocks, light, x_start, x_stop, z_start, z_stop):
    """Breadth-first from every lit cell of the rectangle that is more than one brighter than a neighbour."""
    frontier = [(0, 0, 0) for _ in range(0)]
    for x in range(x_start, x_stop):
        for z in range(z_start, z_stop):
            for y in range(WORLD_HEIGHT):
                level = light[x & WRAP, z & WRAP, y]
                if level > 1 and (
                    level > light[(x + 1) & WRAP, z & WRAP, y] + 1
                    or level > light[(x - 1) & WRAP, z & WRAP, y] + 1
                    or level > light[x & WRAP, (z + 1) & WRAP, y] + 1
                    or level > light[x & WRAP, (z - 1) & WRAP, y] + 1
                    or (y > 0 and level > light[x & WRAP, z & WRAP, y - 1] + 1)
                ):
                    frontier.append((x & WRAP, z & WRAP, y))
    while len(frontier) > 0:
        following = [(0, 0, 0) for _ in range(0)]
        for x, z, y in frontier:
            level = light[x, z, y] - 1
            for side in range(6):
                nx = (x + (side == 0) - (side == 1)) & WRAP
                nz = (z + (side == 2) - (side == 3)) & WRAP
                ny = y + (side == 4) - (side == 5)
                if ny < 0 or ny >= WORLD_HEIGHT:
                    continue
                block = blocks[nx, nz, ny]
                if (block == AIR or block == WATER) and light[nx, nz, ny] < level:
                    light[nx, nz, ny] = level
                    if level > 1:
                        following.append((nx, nz, ny))
        frontier = following
