"""The blocks of the voxel world, and what each of them does to light, bodies and hands."""

from __future__ import annotations

import numpy as np

AIR, GRASS, DIRT, STONE, SAND, SNOW, LOG, LEAVES, WATER, PLANKS, BEDROCK, SANDSTONE, ICE, CACTUS = range(14)
BIRCH, SPRUCE, COAL, GRAVEL, COBBLESTONE, BRICKS, LAMP, CLAY, IRON, ACACIA = range(14, 24)
BIRCH_LEAVES, SPRUCE_LEAVES, ACACIA_LEAVES, PUMPKIN = range(24, 28)
# From here on rays and light pass, from FIRST_PLANT on bodies as well.
GLASS, TALL_GRASS, FERN, POPPY, DANDELION, ORCHID, DEAD_BUSH, REEDS, MUSHROOM, LILY_PAD = range(28, 38)
FIRST_SEE_THROUGH, FIRST_PLANT = GLASS, TALL_GRASS
NUM_BLOCKS = 38

LEAF_KINDS = (LEAVES, BIRCH_LEAVES, SPRUCE_LEAVES, ACACIA_LEAVES)
TRUNK_KINDS = (LOG, BIRCH, SPRUCE, ACACIA)
FALLING_KINDS = (SAND, GRAVEL)  # these drop when nothing is below them
HOT_BAR = (PLANKS, COBBLESTONE, BRICKS, LOG, DIRT, SAND, GLASS, LAMP)  # what can be placed
LAMP_LIGHT = 14  # light level of the cell beside a lamp, plus one


def _table(default: int, values: dict[int, int]) -> np.ndarray:
    table = np.full(NUM_BLOCKS, default, np.uint8)
    for block, value in values.items():
        table[block] = value
    return table


_plants = dict.fromkeys(range(FIRST_PLANT, NUM_BLOCKS), 0)
# Light levels lost by daylight that falls into the block from above; 255 stops it.
DIMMING = _table(255, {AIR: 0, WATER: 1, GLASS: 0, **_plants, **dict.fromkeys(LEAF_KINDS, 2)})
# 1 where light spreads to and from.
LIT = _table(0, {AIR: 1, WATER: 1, GLASS: 1, **dict.fromkeys(_plants, 1)})
# 1 where a body cannot be.
SOLID = _table(1, {AIR: 0, WATER: 0, **_plants})
