"""The picture of the voxel world: a ray caster on the block grid.

Every pixel follows one ray; pixels on the outline of a surface are averaged with two more. The rays of a tile start
together, behind the air that all of them cross. Textures are read from a mip pyramid, so that far ground is calm
instead of shimmering.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from farworld.envs.voxel_blocks import (
    AIR,
    FIRST_SEE_THROUGH,
    GLASS,
    LAMP,
    LILY_PAD,
    NUM_BLOCKS,
    WATER,
)
from farworld.envs.voxel_light import MAX_LIGHT
from farworld.envs.voxel_sky import (
    CLOUD,
    GLOW_COLOR,
    GLOW_SHARE,
    HORIZON,
    LAND_TINT,
    STARS,
    SUN,
    ZENITH,
    Daylight,
)
from farworld.envs.voxel_textures import FACE_TEXTURES, MIP_LEVELS, T_WATER, TEXTURE_SIZE, make_textures
from farworld.envs.voxel_world import WATER_SURFACE, World

HALF_FIELD_OF_VIEW = math.tan(math.radians(35.0))  # 70 degrees in all
CLOUD_HEIGHT = 74.0  # y of the cloud layer, blocks
CLOUD_SIZE = 8.0  # blocks along one cell of a cloud
STAR_CELLS = 44  # places for stars along one side of the sky
FACE_SHADES = np.array([0.66, 0.82, 1.0, 0.55], np.float32)  # x sides, z sides, top, bottom
OCCLUDED = 0.4  # how bright a corner cell filled by a block counts, relative to the cell before the face
PAD_HEIGHT = 0.03  # blocks that a lily pad floats above the bottom of its cell
# How to compile what is done for each ray. Counting references to the arrays of a scene, with an atomic operation each
# time, took more than half of a frame's time; nothing that is compiled so makes an array.
RAY: dict[str, Any] = {"cache": True, "error_model": "numpy", "_nrt": False}
TILE = 8  # pixels along each side of a tile, whose rays start together
RUN = 128  # rays whose directions are computed together
ENDLESS = 1e9  # depth of a start beyond all that there is
OUTLINE_CONTRAST = 14.0  # difference in red, green and blue together from which an outline is worth smoothing


class Look(NamedTuple):
    """How the world is shown.

    Attributes:
        fog_start: blocks from the eye at which fog sets in.
        view_distance: blocks; fog hides everything beyond.
        dark_brightness: of a place that no light reaches, in [0, 1].
        light_power: exponent from light level to brightness.
        first_release: without what was added later to water, caves, outlines and the sky.
    """

    fog_start: float
    view_distance: float
    dark_brightness: float
    light_power: float
    first_release: bool


FIRST_LOOK = Look(fog_start=18.0, view_distance=46.0, dark_brightness=0.24, light_power=1.5, first_release=True)
LOOK = Look(fog_start=24.0, view_distance=56.0, dark_brightness=0.1, light_power=1.5, first_release=False)


class _Scene(NamedTuple):
    """What a ray meets; arrays as in World, Daylight and make_textures.

    Attributes:
        ceiling: y above which there is only air.
        eye: x, y, z in blocks.
    """

    blocks: np.ndarray
    tops: np.ndarray
    filled: np.ndarray
    light: np.ndarray
    grass_tint: np.ndarray
    water_tint: np.ndarray
    clouds: np.ndarray
    textures: np.ndarray
    brightness: np.ndarray
    sky: np.ndarray
    ceiling: int
    eye: tuple[float, float, float]
    look: Look


def render(
    world: World, daylight: Daylight, look: Look, eye: tuple[float, float, float], yaw: float, pitch: float, size: int
) -> np.ndarray:
    """Draw the view from an eye.

    Args:
        world: the world to draw.
        daylight: the sky, and how bright it makes the world.
        look: how far and how dark to draw it.
        eye: x, y, z in blocks.
        yaw: heading in radians; 0 looks along +z, turning right grows it.
        pitch: radians, upwards positive.
        size: height and width of the frame in pixels.

    Returns:
        (size, size, 3) uint8 frame.
    """
    forward = (math.sin(yaw) * math.cos(pitch), math.sin(pitch), math.cos(yaw) * math.cos(pitch))
    right = (math.cos(yaw), 0.0, -math.sin(yaw))
    up = (-math.sin(yaw) * math.sin(pitch), math.cos(pitch), -math.cos(yaw) * math.sin(pitch))
    scene = _Scene(
        blocks=world.blocks,
        tops=world.tops,
        filled=world.filled,
        light=world.light,
        grass_tint=world.grass_tint,
        water_tint=world.water_tint,
        clouds=world.clouds,
        textures=make_textures(),
        brightness=daylight.brightness,
        sky=daylight.sky,
        ceiling=int(world.tops.max()),
        eye=eye,
        look=look,
    )
    frame = np.empty((size, size, 3), np.uint8)
    _draw(scene, (forward, right, up), frame)
    return frame


@njit(cache=True, error_model="numpy")
def _draw(scene, axes, frame):
    """Cast one ray through every pixel, then two more through those on an outline."""
    size = frame.shape[0]
    num_pixels = size * size
    points = np.empty((num_pixels, 2))  # row and column in pixels
    colors = np.empty((num_pixels, 3), np.float32)
    surfaces = np.empty(num_pixels, np.int64)
    for row in range(size):
        for column in range(size):
            points[row * size + column, 0], points[row * size + column, 1] = row + 0.5, column + 0.5
    starts = np.zeros((size // TILE, size // TILE))
    if not scene.look.first_release:
        _find_starts(scene, axes, size, starts)
    _trace_all(scene, axes, size, points, starts, np.empty((7, RUN)), colors, surfaces)
    contrast = -1.0 if scene.look.first_release else OUTLINE_CONTRAST
    outline = np.empty((num_pixels, 2), np.int64)
    num_outline = 0
    for row in range(size):
        for column in range(size):
            pixel = row * size + column
            for channel in range(3):
                frame[row, column, channel] = min(max(colors[pixel, channel], 0.0), 255.0)
            if (
                _differs(colors, surfaces, pixel, pixel - size * (row > 0), contrast)
                or _differs(colors, surfaces, pixel, pixel + size * (row < size - 1), contrast)
                or _differs(colors, surfaces, pixel, pixel - (column > 0), contrast)
                or _differs(colors, surfaces, pixel, pixel + (column < size - 1), contrast)
            ):
                outline[num_outline, 0], outline[num_outline, 1] = row, column
                num_outline += 1
    points = np.empty((2 * num_outline, 2))
    for i in range(2 * num_outline):
        row, column = outline[i >> 1]
        points[i, 0] = row + 0.2 + 0.6 * (i & 1)
        points[i, 1] = column + 0.2 + 0.6 * ((i & 1) ^ ((row + column) & 1))
    more = np.empty((2 * num_outline, 3))
    _trace_all(scene, axes, size, points, starts, np.empty((7, RUN)), more, np.empty(2 * num_outline, np.int64))
    for i in range(num_outline):
        row, column = outline[i]
        for channel in range(3):
            total = colors[row * size + column, channel] + more[2 * i, channel] + more[2 * i + 1, channel]
            frame[row, column, channel] = min(max(total / 3.0, 0.0), 255.0)


@njit(**RAY)
def _trace_all(scene, axes, size, points, starts, rays, colors, surfaces):
    """Cast a ray through each of (N, 2) points of the picture: (N, 3) colors and (N,) surfaces, written."""
    half, scale = size * 0.5, 2.0 * HALF_FIELD_OF_VIEW / size
    forward, right, up = axes
    # Directions, lengths and inverses are computed in runs, which the compiler does for several rays at once.
    for begin in range(0, len(points), RUN):
        num_rays = min(RUN, len(points) - begin)
        for i in range(num_rays):
            across, upward = (points[begin + i, 1] - half) * scale, (half - points[begin + i, 0]) * scale
            dx = forward[0] + across * right[0] + upward * up[0]
            dy = forward[1] + across * right[1] + upward * up[1]
            dz = forward[2] + across * right[2] + upward * up[2]
            length = math.sqrt(dx * dx + dy * dy + dz * dz)
            rays[0, i], rays[1, i], rays[2, i], rays[3, i] = dx / length, dy / length, dz / length, length
        for i in range(num_rays):
            # A direction that is exactly along an axis never reaches the other planes.
            rays[4, i] = min(1.0 / abs(rays[0, i]), 1e30)
            rays[5, i] = min(1.0 / abs(rays[1, i]), 1e30)
            rays[6, i] = min(1.0 / abs(rays[2, i]), 1e30)
        for i in range(num_rays):
            ray = (rays[0, i], rays[1, i], rays[2, i])
            gaps = (rays[4, i], rays[5, i], rays[6, i])
            at = begin + i
            start = starts[int(points[at, 0]) // TILE, int(points[at, 1]) // TILE] * rays[3, i]
            red, green, blue, surfaces[at] = _trace(scene, ray, gaps, start, scale)
            colors[at, 0], colors[at, 1], colors[at, 2] = red, green, blue


@njit(**RAY)
def _find_starts(scene, axes, size, starts):
    """Write for each tile of the picture how far its rays go through nothing but air.

    Distances are depths, along the axis of the picture, in which the sides of such a bundle of rays are straight.
    """
    half, scale = size * 0.5, 2.0 * HALF_FIELD_OF_VIEW / size
    forward, right, up = axes
    for row in range(starts.shape[0]):
        for column in range(starts.shape[1]):
            left, top = (column * TILE - half) * scale, (half - row * TILE) * scale
            x_range = _bounds(forward[0], right[0], up[0], left, top, TILE * scale)
            y_range = _bounds(forward[1], right[1], up[1], left, top, TILE * scale)
            z_range = _bounds(forward[2], right[2], up[2], left, top, TILE * scale)
            depth, step = 0.0, 1.0
            while depth < scene.look.view_distance:
                if y_range[0] >= 0.0 and scene.eye[1] + depth * y_range[0] > scene.ceiling:
                    depth = ENDLESS
                elif _is_free(scene, depth, depth + step, x_range, y_range, z_range):
                    depth += step
                elif step > 0.3:
                    step *= 0.5
                else:
                    break
            starts[row, column] = max(depth - 1e-6, 0.0)


@njit(**RAY, forceinline=True)
def _bounds(ahead, right, up, left, top, extent):
    """Least and largest component of the directions through a square of the picture."""
    middle = ahead + (left + 0.5 * extent) * right + (top - 0.5 * extent) * up
    spread = 0.5 * extent * (abs(right) + abs(up))
    return middle - spread, middle + spread


@njit(**RAY, forceinline=True)
def _is_free(scene, near, far, x_range, y_range, z_range):
    """Whether a bundle of rays meets only air between two depths."""
    first_x, last_x = _cells(scene.eye[0], near, far, x_range)
    first_y, last_y = _cells(scene.eye[1], near, far, y_range)
    first_z, last_z = _cells(scene.eye[2], near, far, z_range)
    if first_y < 0:
        return False
    if first_y >= scene.ceiling:
        return True
    bits = (~np.uint64(0) >> np.uint64(63 - min(last_y, 63))) & (~np.uint64(0) << np.uint64(first_y))
    wrap, filled = scene.blocks.shape[0] - 1, scene.filled
    for x in range(first_x, last_x + 1):
        for z in range(first_z, last_z + 1):
            if filled[x & wrap, z & wrap] & bits != 0:
                return False
    return True


@njit(**RAY, forceinline=True)
def _cells(eye, near, far, directions):
    """First and last cell along an axis that directions in a range touch between two depths."""
    low, high = directions
    return math.floor(eye + min(near * low, far * low)), math.floor(eye + max(near * high, far * high))


@njit(**RAY, forceinline=True)
def _differs(colors, surfaces, pixel, other, contrast):
    """Whether two pixels show different surfaces in colors that can be told apart."""
    if surfaces[pixel] == surfaces[other]:
        return False
    total = 0.0
    for i in range(3):
        total += abs(colors[pixel, i] - colors[other, i])
    return total > contrast


@njit(**RAY, forceinline=True)
def _trace(scene, ray, gaps, start, pixel_angle):
    """Walk from block to block until something solid, and mix plants, water and fog over it.

    The walk begins at a distance up to which there is only air; 0 is the eye, which may be anywhere.
    Returns red, green and blue, and a number that is the same for all pixels of a surface.
    """
    blocks, tops, look = scene.blocks, scene.tops, scene.look
    wrap, height, ceiling = blocks.shape[0] - 1, blocks.shape[2], scene.ceiling
    ox, oy, oz = scene.eye
    (dx, dy, dz), (gap_x, gap_y, gap_z) = ray, gaps
    x, y, z = math.floor(ox + start * dx), math.floor(oy + start * dy), math.floor(oz + start * dz)
    next_x = (x + 1 - ox if dx > 0 else ox - x) * gap_x
    next_y = (y + 1 - oy if dy > 0 else oy - y) * gap_y
    next_z = (z + 1 - oz if dz > 0 else oz - z) * gap_z
    step_x, step_y, step_z = 1 if dx > 0 else -1, 1 if dy > 0 else -1, 1 if dz > 0 else -1
    water_start, water_end, water_x, water_z, water_y = -1.0, -1.0, x, z, y
    distance, axis, block = 0.0, 0, AIR
    veil_red, veil_green, veil_blue, clear = 0.0, 0.0, 0.0, 1.0  # what see-through blocks add, and what they leave
    if start == 0.0 and 0 <= y < height:
        block = blocks[x & wrap, z & wrap, y]
        if block == WATER and (look.first_release or _is_submerged(blocks, x, y, z, oy)):
            water_start = 0.0
        elif block >= FIRST_SEE_THROUGH:
            leave = min(next_x, min(next_y, next_z))
            if block != GLASS:
                veil = _veil(scene, x, y, z, axis, block, dx, dy, dz, 0.0, leave, pixel_angle)
                veil_red, veil_green, veil_blue, clear = veil
    while True:
        before = block
        if next_x < next_y and next_x < next_z:
            distance, axis = next_x, 0
            next_x += gap_x
            x += step_x
        elif next_z < next_y:
            distance, axis = next_z, 1
            next_z += gap_z
            z += step_z
        else:
            distance, axis = next_y, 2
            next_y += gap_y
            y += step_y
        if distance > look.view_distance or y < 0 or (y >= ceiling and dy > 0):
            block = AIR
            break
        # The small table of column heights stays in the fastest cache, the blocks do not.
        if y >= tops[x & wrap, z & wrap]:
            block = AIR
        else:
            block = blocks[x & wrap, z & wrap, y]
        if block == AIR:
            if water_start >= 0.0 and water_end < 0.0:
                water_end = distance
            continue
        if block == WATER:
            if water_start < 0.0:
                leave = min(next_x, min(next_y, next_z))
                start = _enter_water(blocks, x, y, z, oy, dy, distance, leave)
                if start >= 0.0:
                    water_start, water_x, water_y, water_z = start, x, y, z
            continue
        if block < FIRST_SEE_THROUGH:
            break
        if water_start >= 0.0 and water_end < 0.0:
            water_end = distance
        if block != GLASS or before != GLASS:
            leave = min(next_x, min(next_y, next_z))
            red, green, blue, rest = _veil(scene, x, y, z, axis, block, dx, dy, dz, distance, leave, pixel_angle)
            veil_red += clear * red
            veil_green += clear * green
            veil_blue += clear * blue
            clear *= rest
            if clear < 0.02:
                break
    red, green, blue, surface = 0.0, 0.0, 0.0, -1
    solid = block != AIR and block < FIRST_SEE_THROUGH
    haze = _haze(look, distance)
    sky = (0.0, 0.0, 0.0)
    if haze > 0.0 or not solid or water_start >= 0.0:
        sky = _sky(scene, dx, dy, dz, not solid and (water_start < 0.0 or not look.first_release))
        red, green, blue = sky
    if solid:
        color = _shade(scene, x, y, z, axis, block, dx, dy, dz, distance, pixel_angle)
        red = color[0] + (red - color[0]) * haze
        green = color[1] + (green - color[1]) * haze
        blue = color[2] + (blue - color[2]) * haze
        plane = x if axis == 0 else (z if axis == 1 else y)
        surface = ((plane * 3 + axis) * NUM_BLOCKS + block) * 2
    if water_start >= 0.0:
        end = distance if look.first_release or water_end < 0.0 else water_end
        place = (water_x, water_y, water_z, water_start, max(end - water_start, 0.0))
        red, green, blue = _under_water(scene, (red, green, blue), sky, place, dx, dy, dz, pixel_angle)
        surface = surface + 1 if surface >= 0 and water_start < 12.0 else -2
    if clear < 1.0:
        red, green, blue = veil_red + clear * red, veil_green + clear * green, veil_blue + clear * blue
    return red, green, blue, surface


@njit(**RAY, forceinline=True)
def _is_submerged(blocks, x, y, z, oy):
    """Whether a point inside a block of water lies below its surface."""
    wrap = blocks.shape[0] - 1
    covered = y + 1 < blocks.shape[2] and blocks[x & wrap, z & wrap, y + 1] == WATER
    return covered or oy - y < WATER_SURFACE


@njit(**RAY)
def _veil(scene, x, y, z, axis, block, dx, dy, dz, enter, leave, pixel_angle):
    """What a plant or a pane of glass shows of itself to a ray, and what share it lets through.

    Plants are two upright pictures along the diagonals of their cell, a lily pad is one that lies.
    """
    ox, oy, oz = scene.eye
    px, py, pz = ox - x, oy - y, oz - z
    red, green, blue, clear = 0.0, 0.0, 0.0, 1.0
    if block == GLASS:
        u = pz + enter * dz if axis == 0 else px + enter * dx
        v = pz + enter * dz if axis == 2 else 1.0 - (py + enter * dy)
        return _glaze(scene, x, y, z, block, u, v, enter, pixel_angle, red, green, blue, clear)
    if block == LILY_PAD:
        if dy != 0.0:
            t = (PAD_HEIGHT - py) / dy
            if enter <= t <= leave:
                u, v = px + t * dx, pz + t * dz
                return _glaze(scene, x, y, z, block, u, v, t, pixel_angle, red, green, blue, clear)
        return red, green, blue, clear
    first = (pz - px) / (dx - dz) if dx != dz else -1.0
    second = (1.0 - px - pz) / (dx + dz) if dx != -dz else -1.0
    for t in (min(first, second), max(first, second)):
        if enter <= t <= leave:
            u, v = px + t * dx, 1.0 - (py + t * dy)
            red, green, blue, clear = _glaze(scene, x, y, z, block, u, v, t, pixel_angle, red, green, blue, clear)
    return red, green, blue, clear


@njit(**RAY)
def _glaze(scene, x, y, z, block, u, v, distance, pixel_angle, red, green, blue, clear):
    """Put one see-through texel behind what a ray has gathered already."""
    wrap = scene.blocks.shape[0] - 1
    i, k = x & wrap, z & wrap
    u, v = min(max(u, 0.0), 0.9999), min(max(v, 0.0), 0.9999)
    footprint = distance * pixel_angle * TEXTURE_SIZE
    texture = FACE_TEXTURES[block, 0]
    opacity = _opacity(scene.textures, texture, u, v, footprint)
    if opacity <= 0.0:
        return red, green, blue, clear
    color = _texel(scene.textures, texture, u, v, footprint)
    tinted = color[3]
    glow = scene.brightness[scene.light[i, k, y]]
    haze = _haze(scene.look, distance)
    sky = _sky(scene, 0.6, 0.0, 0.8, False) if haze > 0.0 else (0.0, 0.0, 0.0)
    share = clear * opacity
    land = scene.sky
    r = color[0] * glow * land[LAND_TINT] * (1.0 + (scene.grass_tint[i, k, 0] / 255.0 - 1.0) * tinted)
    g = color[1] * glow * land[LAND_TINT + 1] * (1.0 + (scene.grass_tint[i, k, 1] / 255.0 - 1.0) * tinted)
    b = color[2] * glow * land[LAND_TINT + 2] * (1.0 + (scene.grass_tint[i, k, 2] / 255.0 - 1.0) * tinted)
    red += share * (r + (sky[0] - r) * haze)
    green += share * (g + (sky[1] - g) * haze)
    blue += share * (b + (sky[2] - b) * haze)
    return red, green, blue, clear * (1.0 - opacity)


@njit(**RAY)
def _opacity(textures, texture, u, v, footprint):
    """Opacity of a texture at u, v in [0, 1), from the mip that suits a footprint given in texels."""
    level = 0
    while footprint > 1.4 and level < MIP_LEVELS - 1:
        footprint *= 0.5
        level += 1
    return textures[texture, level, min(int(v * 16.0), 15) >> level, min(int(u * 16.0), 15) >> level, 4]


@njit(**RAY, forceinline=True)
def _enter_water(blocks, x, y, z, oy, dy, distance, leave):
    """Distance at which a ray enters the water of a block, or -1: the surface lies below the block's top."""
    wrap = blocks.shape[0] - 1
    if y + 1 < blocks.shape[2] and blocks[x & wrap, z & wrap, y + 1] == WATER:
        return distance
    surface = y + WATER_SURFACE
    if oy + distance * dy <= surface:
        return distance
    if dy < 0.0:
        crossing = (surface - oy) / dy
        if crossing < leave:
            return crossing
    return -1.0


@njit(**RAY, forceinline=True)
def _haze(look, distance):
    """Share of fog in [0, 1]."""
    share = min(max((distance - look.fog_start) / (look.view_distance - look.fog_start), 0.0), 1.0)
    return share * share * (3.0 - 2.0 * share)


@njit(**RAY, forceinline=True)
def _sky(scene, dx, dy, dz, with_clouds):
    """Sky gradient; with the square sun and moon, stars and flat clouds if asked for."""
    sky = scene.sky
    rise = min(max(dy, 0.0) * 1.6, 1.0)
    red = sky[HORIZON] + (sky[ZENITH] - sky[HORIZON]) * rise
    green = sky[HORIZON + 1] + (sky[ZENITH + 1] - sky[HORIZON + 1]) * rise
    blue = sky[HORIZON + 2] + (sky[ZENITH + 2] - sky[HORIZON + 2]) * rise
    sx, sy, sz = sky[SUN], sky[SUN + 1], sky[SUN + 2]
    facing = dx * sx + dy * sy + dz * sz
    if sky[GLOW_SHARE] > 0.0 and facing > 0.0:
        glow = sky[GLOW_SHARE] * facing**4 * max(1.0 - 1.3 * abs(dy), 0.0)
        red += (sky[GLOW_COLOR] - red) * glow
        green += (sky[GLOW_COLOR + 1] - green) * glow
        blue += (sky[GLOW_COLOR + 2] - blue) * glow
    if not with_clouds or dy < 0.02:
        return red, green, blue
    if facing > 0.5:
        # Coordinates on a plane across the sun's direction make it a square.
        side = (dx * sz - dz * sx) / facing
        high = (dy - sy * facing) / facing
        if abs(side) < 0.075 and abs(high) < 0.075:
            return 255.0, 250.0, 214.0
    if sky[STARS] > 0.0:
        if facing < -0.5:
            side, high = (dx * sz - dz * sx) / facing, (dy - sy * facing) / facing
            if abs(side) < 0.06 and abs(high) < 0.06:
                spot = (int(side * 100.0 + 50.0) * 7 + int(high * 100.0 + 50.0) * 3) % 5 == 0
                shade = sky[STARS] * (0.8 if spot else 1.0)
                return red + (226.0 - red) * shade, green + (230.0 - green) * shade, blue + (240.0 - blue) * shade
        twinkle = sky[STARS] * _star(dx, dy, dz)
        red += (240.0 - red) * twinkle
        green += (244.0 - green) * twinkle
        blue += (255.0 - blue) * twinkle
    reach = (CLOUD_HEIGHT - scene.eye[1]) / dy
    cover = 0.75 * min(max(1.0 - (reach - 60.0) / 160.0, 0.0), 1.0)
    if cover > 0.0:
        column = int(math.floor((scene.eye[0] + reach * dx) / CLOUD_SIZE)) & 15
        line = int(math.floor((scene.eye[2] + reach * dz) / CLOUD_SIZE)) & 15
        if scene.clouds[column, line]:
            red = red + (sky[CLOUD] - red) * cover
            green = green + (sky[CLOUD + 1] - green) * cover
            blue = blue + (sky[CLOUD + 2] - blue) * cover
    return red, green, blue


@njit(**RAY)
def _star(dx, dy, dz):
    """Brightness of the star in a direction, 0 where there is none; at most one in each cell of a grid on a cube."""
    largest = max(abs(dx), max(abs(dy), abs(dz)))
    side = 0 if largest == dy else (1 + (dx > 0) if largest == abs(dx) else 3 + (dz > 0))
    a, b = (dx, dz) if side == 0 else ((dy, dz) if side < 3 else (dx, dy))
    u, v = (a / largest * 0.5 + 0.5) * STAR_CELLS, (b / largest * 0.5 + 0.5) * STAR_CELLS
    i, j = int(u), int(v)
    code = ((i * 73856093) ^ (j * 19349663) ^ (side * 83492791)) & 0xFFFFFF
    code = (code * 2654435761 + 12345) & 0xFFFFFF
    if code & 31 != 0:
        return 0.0
    return 0.35 + 0.65 * ((code >> 8) & 255) / 255.0 if u - i < 0.6 and v - j < 0.6 else 0.0


@njit(**RAY, forceinline=True)
def _texel(textures, texture, u, v, footprint):
    """Texture color at u, v in [0, 1), averaged over a footprint given in texels."""
    lod = 0.0
    if footprint > 1.0:
        lod = min(math.log2(footprint), MIP_LEVELS - 1.001)
    level = int(lod)
    part = np.float32(lod - level)
    column, row = min(int(u * 16.0), 15), min(int(v * 16.0), 15)
    i, j = row >> level, column >> level
    red, green = textures[texture, level, i, j, 0], textures[texture, level, i, j, 1]
    blue, tinted = textures[texture, level, i, j, 2], textures[texture, level, i, j, 3]
    if part > 0.0:
        level, i, j = level + 1, i >> 1, j >> 1
        red += (textures[texture, level, i, j, 0] - red) * part
        green += (textures[texture, level, i, j, 1] - green) * part
        blue += (textures[texture, level, i, j, 2] - blue) * part
        tinted += (textures[texture, level, i, j, 3] - tinted) * part
    return red, green, blue, tinted


@njit(**RAY, forceinline=True)
def _shade(scene, x, y, z, axis, block, dx, dy, dz, distance, pixel_angle):
    """Textured, tinted and lit color of the face of a block that a ray hits."""
    eye, wrap = scene.eye, scene.blocks.shape[0] - 1
    px, py, pz = eye[0] + distance * dx - x, eye[1] + distance * dy - y, eye[2] + distance * dz - z
    if axis == 0:
        u, v, slope, side = pz, 1.0 - py, abs(dx), -1 if dx > 0 else 1
        face, shade = 0, FACE_SHADES[0]
    elif axis == 1:
        u, v, slope, side = px, 1.0 - py, abs(dz), -1 if dz > 0 else 1
        face, shade = 0, FACE_SHADES[1]
    else:
        u, v, slope, side = px, pz, abs(dy), -1 if dy > 0 else 1
        face, shade = (1, FACE_SHADES[2]) if dy < 0 else (2, FACE_SHADES[3])
    u, v = min(max(u, 0.0), 0.9999), min(max(v, 0.0), 0.9999)
    footprint = distance * pixel_angle * TEXTURE_SIZE / math.sqrt(max(slope, 0.02))
    red, green, blue, tinted = _texel(scene.textures, FACE_TEXTURES[block, face], u, v, footprint)
    i, k = x & wrap, z & wrap
    grass_tint = scene.grass_tint
    glow = shade * _smooth_light(scene.light, scene.brightness, x, y, z, axis, side, u, v)
    if block == LAMP:
        glow = max(glow, 0.95)
    red *= glow * (1.0 + (grass_tint[i, k, 0] / 255.0 - 1.0) * tinted)
    green *= glow * (1.0 + (grass_tint[i, k, 1] / 255.0 - 1.0) * tinted)
    blue *= glow * (1.0 + (grass_tint[i, k, 2] / 255.0 - 1.0) * tinted)
    if scene.look.first_release:
        return red, green, blue
    land = scene.sky
    return red * land[LAND_TINT], green * land[LAND_TINT + 1], blue * land[LAND_TINT + 2]


@njit(**RAY, forceinline=True)
def _light_at(light, brightness, x, z, y, center):
    """Brightness of a cell beside a face; blocks darken the corner that they make."""
    if y < 0 or y >= light.shape[2]:
        return brightness[MAX_LIGHT]
    wrap = light.shape[0] - 1
    level = light[x & wrap, z & wrap, y]
    return brightness[level] if level > 0 else center * np.float32(OCCLUDED)


@njit(**RAY, forceinline=True)
def _smooth_light(light, brightness, x, y, z, axis, side, u, v):
    """Light on a face: the mean of the four cells around each corner, interpolated between the corners."""
    x, z, y = x + (side if axis == 0 else 0), z + (side if axis == 1 else 0), y + (side if axis == 2 else 0)
    if y < 0 or y >= light.shape[2]:
        return brightness[MAX_LIGHT]
    wrap = light.shape[0] - 1
    level = light[x & wrap, z & wrap, y]
    center = brightness[level]
    if level == 0:  # in full darkness, empty cells and blocks cannot be told apart
        return center
    # Weight of the previous, own and next cell along u and v: corner means, bilinearly interpolated.
    weights_u = ((1.0 - u) * 0.5, 0.5, u * 0.5)
    weights_v = ((1.0 - v) * 0.5, 0.5, v * 0.5)
    total = 0.0
    for i in range(3):
        for j in range(3):
            du, dv = i - 1, j - 1
            if du == 0 and dv == 0:
                value = center
            elif axis == 0:
                value = _light_at(light, brightness, x, z + du, y - dv, center)
            elif axis == 1:
                value = _light_at(light, brightness, x + du, z, y - dv, center)
            else:
                value = _light_at(light, brightness, x + du, z + dv, y, center)
            total += weights_u[i] * weights_v[j] * value
    return total


@njit(**RAY, forceinline=True)
def _under_water(scene, color, sky, place, dx, dy, dz, pixel_angle):
    """Mix the water over what lies in it: darker with depth, more like the sky at a flat angle."""
    water_x, water_y, water_z, start, depth = place
    wrap, eye, water_tint = scene.blocks.shape[0] - 1, scene.eye, scene.water_tint
    i, k = water_x & wrap, water_z & wrap
    u, v = eye[0] + start * dx, eye[2] + start * dz
    footprint = start * pixel_angle * TEXTURE_SIZE / math.sqrt(max(abs(dy), 0.02))
    wave = _texel(scene.textures, T_WATER, u - math.floor(u), v - math.floor(v), footprint)[0] / 255.0
    cover = 1.0 - 0.5 * math.exp(-0.3 * depth)
    if not scene.look.first_release:
        above = water_y if start == 0.0 else min(water_y + 1, scene.blocks.shape[2] - 1)
        wave *= scene.brightness[scene.light[i, k, above]]
    flat = (1.0 - abs(dy)) ** 3 * 0.45 if start > 0.0 else 0.0
    haze = _haze(scene.look, start)
    red = color[0] + (water_tint[i, k, 0] * wave - color[0]) * cover
    green = color[1] + (water_tint[i, k, 1] * wave - color[1]) * cover
    blue = color[2] + (water_tint[i, k, 2] * wave - color[2]) * cover
    share = max(haze, flat)
    return red + (sky[0] - red) * share, green + (sky[1] - green) * share, blue + (sky[2] - blue) * share
