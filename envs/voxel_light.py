"""Light in the voxel world: daylight that falls from the sky, and the light of lamps.

Both levels share a byte: daylight in the low four bits, lamp light in the high four. Opaque blocks hold 0.
"""

from __future__ import annotations

from numba import njit

from farworld.envs.voxel_blocks import DIMMING, LAMP, LAMP_LIGHT, LIT

MAX_LIGHT = 15  # full daylight; every block that light crosses sideways takes one
RELIGHT_RADIUS = 16  # an edit cannot change the light farther away than this


@njit(cache=True, error_model="numpy")
def update_light(blocks, light, tops, x_start, x_stop, z_start, z_stop, clearance):
    """Recompute the light of the columns in a rectangle; x and z wrap.

    Daylight falls straight down from the sky, dims inside leaves and water, and spreads sideways; the light of
    a lamp spreads from it. The columns around the rectangle keep their light and shine into it.

    Args:
        blocks: (x, z, y) uint8.
        light: (x, z, y) uint8, written.
        tops: (x, z) uint8, y of the first cell with nothing but air above it and in it.
        x_start: first column; negative ones wrap.
        x_stop: column after the last.
        z_start: as x_start.
        z_stop: as x_stop.
        clearance: cells above the tops of the land to which lamps may shine; 1 in a world without lamps.
    """
    wrap, height = blocks.shape[0] - 1, blocks.shape[2]
    for x in range(x_start, x_stop):
        for z in range(z_start, z_stop):
            i, k = x & wrap, z & wrap
            level = MAX_LIGHT
            for y in range(height - 1, -1, -1):
                if y >= tops[i, k]:
                    light[i, k, y] = level
                    continue
                block = blocks[i, k, y]
                level = max(level - DIMMING[block], 0)
                light[i, k, y] = level if LIT[block] else 0
    _spread(blocks, light, tops, x_start - 1, x_stop + 1, z_start - 1, z_stop + 1, clearance)


@njit(cache=True, error_model="numpy")
def _spread(blocks, light, tops, x_start, x_stop, z_start, z_stop, clearance):
    """Breadth-first from every lit cell of a rectangle that is more than one brighter than a neighbour."""
    wrap, height = blocks.shape[0] - 1, blocks.shape[2]
    sky = [(0, 0, 0) for _ in range(0)]
    lamps = [(0, 0, 0) for _ in range(0)]
    for x in range(x_start, x_stop):
        for z in range(z_start, z_stop):
            i, k = x & wrap, z & wrap
            west, east, north, south = (x - 1) & wrap, (x + 1) & wrap, (z - 1) & wrap, (z + 1) & wrap
            # Above everything around, all cells are in full daylight.
            ceiling = max(max(tops[west, k], tops[east, k]), max(tops[i, north], tops[i, south]))
            ceiling = min(max(ceiling, tops[i, k]) + clearance, height)
            for y in range(ceiling):
                packed = light[i, k, y]
                level = packed & 15
                if level > 1 and (
                    level > (light[east, k, y] & 15) + 1
                    or level > (light[west, k, y] & 15) + 1
                    or level > (light[i, south, y] & 15) + 1
                    or level > (light[i, north, y] & 15) + 1
                    or (y > 0 and level > (light[i, k, y - 1] & 15) + 1)
                ):
                    sky.append((i, k, y))
                if packed >> 4 > 1 or blocks[i, k, y] == LAMP:
                    lamps.append((i, k, y))
    _flood(blocks, light, sky, 0)
    _flood(blocks, light, lamps, 4)


@njit(cache=True, error_model="numpy")
def _flood(blocks, light, frontier, shift):
    """Carry the light of the frontier on, in the four bits of `light` that begin at `shift`."""
    wrap, height = blocks.shape[0] - 1, blocks.shape[2]
    keep = 15 << (4 - shift)
    while len(frontier) > 0:
        following = [(0, 0, 0) for _ in range(0)]
        for x, z, y in frontier:
            level = ((light[x, z, y] >> shift) & 15) - 1
            if shift == 4 and blocks[x, z, y] == LAMP:
                level = LAMP_LIGHT
            for side in range(6):
                i = (x + (side == 0) - (side == 1)) & wrap
                k = (z + (side == 2) - (side == 3)) & wrap
                j = y + (side == 4) - (side == 5)
                if j < 0 or j >= height:
                    continue
                if LIT[blocks[i, k, j]] and ((light[i, k, j] >> shift) & 15) < level:
                    light[i, k, j] = (light[i, k, j] & keep) | (level << shift)
                    if level > 1:
                        following.append((i, k, j))
        frontier = following
