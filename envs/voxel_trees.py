"""Trees of the voxel world. Each grows from the cell above its ground, and its leaves spare what is there."""

from __future__ import annotations

from numba import njit

from farworld.envs.voxel_blocks import (
    ACACIA,
    ACACIA_LEAVES,
    AIR,
    DIRT,
    FIRST_PLANT,
    LEAVES,
    LOG,
    SPRUCE,
)


@njit(cache=True)
def grow_oak(blocks, x, z, base, trunk_height, radius, trunk, leaf):
    """A trunk below two wide layers of leaves and two narrow ones."""
    crown = base + trunk_height
    for y in range(crown - 3, crown + 1):
        reach = radius if y < crown - 1 else radius - 1
        for dx in range(-reach, reach + 1):
            for dz in range(-reach, reach + 1):
                corner = abs(dx) == reach and abs(dz) == reach
                tip = y == crown and abs(dx) + abs(dz) > reach
                if not corner and not tip:
                    _put_leaf(blocks, x + dx, z + dz, y, leaf)
    _raise_trunk(blocks, x, z, base, crown, trunk)


@njit(cache=True)
def grow_great_oak(blocks, x, z, base, trunk_height, lean):
    """A tall trunk with a round crown and two lower boughs, each with a small crown of its own."""
    crown = base + trunk_height
    _ball(blocks, x, z, crown - 1, 3, LEAVES)
    for bough in range(2):
        side = 1 if (lean + bough) % 2 == 0 else -1
        dx, dz = (side, 0) if lean & 2 else (0, side)
        y = crown - 4 - bough
        for step in range(1, 3):
            _put_log(blocks, x + dx * step, z + dz * step, y + step - 1, LOG)
        _ball(blocks, x + dx * 3, z + dz * 3, y + 2, 2, LEAVES)
    _raise_trunk(blocks, x, z, base, crown, LOG)


@njit(cache=True)
def grow_spruce(blocks, x, z, base, trunk_height, leaf):
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
                    _put_leaf(blocks, x + dx, z + dz, y, leaf)
    _raise_trunk(blocks, x, z, base, crown, SPRUCE)


@njit(cache=True)
def grow_acacia(blocks, x, z, base, trunk_height, lean):
    """A bent trunk that carries a flat crown to one side."""
    wrap = blocks.shape[0] - 1
    dx, dz = (1 if lean & 1 else -1, 0) if lean & 2 else (0, 1 if lean & 1 else -1)
    bend = trunk_height - 3
    i, k = x, z
    for step in range(trunk_height):
        if step > bend:
            i, k = i + dx, k + dz
        _put_log(blocks, i, k, base + step, ACACIA)
    top = base + trunk_height
    for y in range(2):
        reach = 3 - y
        for u in range(-reach, reach + 1):
            for v in range(-reach, reach + 1):
                if abs(u) + abs(v) <= reach + 1 + (y == 0):
                    _put_leaf(blocks, i + u, k + v, top + y, ACACIA_LEAVES)
    blocks[x & wrap, z & wrap, base - 1] = DIRT


@njit(cache=True)
def grow_bush(blocks, x, z, base, leaf):
    """Leaves around one log."""
    for dx in range(-1, 2):
        for dz in range(-1, 2):
            _put_leaf(blocks, x + dx, z + dz, base, leaf)
    _put_leaf(blocks, x, z, base + 1, leaf)
    _raise_trunk(blocks, x, z, base, base + 1, LOG)


@njit(cache=True)
def _ball(blocks, x, z, y, radius, leaf):
    reach = radius * radius + 1
    for dx in range(-radius, radius + 1):
        for dz in range(-radius, radius + 1):
            for dy in range(-radius + 1, radius):
                if dx * dx + dz * dz + dy * dy * 2 <= reach:
                    _put_leaf(blocks, x + dx, z + dz, y + dy, leaf)


@njit(cache=True)
def _raise_trunk(blocks, x, z, base, crown, trunk):
    wrap = blocks.shape[0] - 1
    for y in range(base, crown):
        blocks[x & wrap, z & wrap, y] = trunk
    blocks[x & wrap, z & wrap, base - 1] = DIRT


@njit(cache=True)
def _put_log(blocks, x, z, y, trunk):
    wrap = blocks.shape[0] - 1
    blocks[x & wrap, z & wrap, y] = trunk


@njit(cache=True)
def _put_leaf(blocks, x, z, y, leaf):
    wrap = blocks.shape[0] - 1
    if y < blocks.shape[2]:
        block = blocks[x & wrap, z & wrap, y]
        if block == AIR or block >= FIRST_PLANT:
            blocks[x & wrap, z & wrap, y] = leaf
