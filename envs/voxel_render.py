"""The look of the voxel world: procedural 16x16 textures and a ray caster on the block grid.

Every pixel follows one ray; pixels on the outline of a surface are averaged with two more. Textures are
read from a mip pyramid, so that far ground is calm instead of shimmering.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numba import njit

from farworld.envs import voxel_terrain as terrain
from farworld.envs.voxel_terrain import (
    AIR,
    MAX_LIGHT,
    NUM_BLOCKS,
    WATER,
    WATER_SURFACE,
    WORLD_HEIGHT,
    WRAP,
    World,
)

TEXTURE_SIZE = 16  # texels along a block
MIP_LEVELS = 5  # 16, 8, 4, 2 and 1 texels
VIEW_DISTANCE = 46.0  # blocks; fog hides everything beyond
FOG_START = 18.0  # blocks
HALF_FIELD_OF_VIEW = math.tan(math.radians(35.0))  # 70 degrees in all
CLOUD_HEIGHT = 74.0  # y of the cloud layer, blocks
CLOUD_SIZE = 8.0  # blocks along one cell of a cloud
SKY_ZENITH = (112.0, 160.0, 238.0)
SKY_HORIZON = (190.0, 214.0, 245.0)
SUN_DIRECTION = (0.74, 0.56, 0.37)  # roughly a unit vector
FACE_SHADES = np.array([0.66, 0.82, 1.0, 0.55], np.float32)  # x sides, z sides, top, bottom
OCCLUDED = 0.4  # how bright a corner cell filled by a block counts, relative to the cell before the face
_levels = np.arange(MAX_LIGHT + 1) / MAX_LIGHT
BRIGHTNESS = (0.24 + 0.76 * _levels * np.sqrt(_levels)).astype(np.float32)

(
    T_GRASS, T_GRASS_SIDE, T_DIRT, T_STONE, T_SAND, T_SNOW, T_SNOW_SIDE, T_LOG, T_LOG_TOP, T_LEAVES, T_WATER,
    T_PLANKS, T_BEDROCK, T_SANDSTONE, T_ICE, T_CACTUS, T_BIRCH, T_SPRUCE, T_COAL,
) = range(19)  # fmt: skip
NUM_TEXTURES = 19


def _face_textures() -> np.ndarray:
    """(block, face) -> texture, with the faces side, top and bottom."""
    table = np.zeros((NUM_BLOCKS, 3), np.int64)
    plain = {
        terrain.DIRT: T_DIRT, terrain.STONE: T_STONE, terrain.SAND: T_SAND, terrain.LEAVES: T_LEAVES,
        terrain.WATER: T_WATER, terrain.PLANKS: T_PLANKS, terrain.BEDROCK: T_BEDROCK, terrain.ICE: T_ICE,
        terrain.SANDSTONE: T_SANDSTONE, terrain.CACTUS: T_CACTUS, terrain.COAL: T_COAL,
    }  # fmt: skip
    for block, texture in plain.items():
        table[block] = texture
    table[terrain.GRASS] = T_GRASS_SIDE, T_GRASS, T_DIRT
    table[terrain.SNOW] = T_SNOW_SIDE, T_SNOW, T_DIRT
    table[terrain.LOG] = T_LOG, T_LOG_TOP, T_LOG_TOP
    table[terrain.BIRCH] = T_BIRCH, T_LOG_TOP, T_LOG_TOP
    table[terrain.SPRUCE] = T_SPRUCE, T_LOG_TOP, T_LOG_TOP
    return table


FACE_TEXTURES = _face_textures()


def _speckle(rng: np.random.Generator, contrast: float, smooth: tuple[int, int] = (1, 1)) -> np.ndarray:
    """(16, 16) brightness around 1: noise in five shades, drawn out over (rows, columns)."""
    noise = rng.standard_normal((TEXTURE_SIZE, TEXTURE_SIZE))
    for axis, width in enumerate(smooth):
        noise = np.asarray(sum(np.roll(noise, shift, axis) for shift in range(width))) / math.sqrt(width)
    return 1.0 + contrast * np.clip(np.round(noise * 1.2), -2, 2) / 2.0


def _bricks() -> np.ndarray:
    """(16, 16) brightness of four rows of boards with dark seams."""
    shade = np.ones((TEXTURE_SIZE, TEXTURE_SIZE))
    shade[3::4] *= 0.72
    for row, seam in enumerate((7, 15, 3, 11)):
        shade[row * 4 : row * 4 + 3, seam] *= 0.78
    return shade


def _rings() -> np.ndarray:
    """(16, 16) brightness of the rings of a sawn trunk."""
    offset = np.abs(np.arange(TEXTURE_SIZE) - 7.5)
    distance = np.maximum(offset[:, None], offset[None, :]).astype(np.int64)
    return np.where(distance >= 7, 0.6, np.where(distance % 2 == 0, 1.0, 0.86))


@functools.cache
def make_textures() -> np.ndarray:
    """(texture, mip, 16, 16, 4) float32: red, green, blue (0 to 255) and the share of the biome's tint.

    Mip m fills the top left (16 >> m) square.
    """
    rng = np.random.default_rng(16)
    base = np.zeros((NUM_TEXTURES, TEXTURE_SIZE, TEXTURE_SIZE, 4))

    def paint(texture: int, color: tuple[float, float, float], shade: np.ndarray, tint: float = 0.0) -> None:
        base[texture, ..., :3] = np.array(color) * shade[..., None]
        base[texture, ..., 3] = tint

    rows, columns = np.mgrid[:TEXTURE_SIZE, :TEXTURE_SIZE]
    dirt = _speckle(rng, 0.15, (2, 2))
    stone = _speckle(rng, 0.1, (1, 4))
    paint(T_GRASS, (226, 226, 226), _speckle(rng, 0.1, (2, 1)), 1.0)
    paint(T_DIRT, (134, 98, 70), dirt)
    paint(T_STONE, (128, 128, 130), stone)
    paint(T_SAND, (220, 208, 164), _speckle(rng, 0.05, (1, 2)))
    paint(T_SNOW, (238, 244, 248), _speckle(rng, 0.03, (2, 2)))
    paint(T_LOG, (108, 86, 54), _speckle(rng, 0.15, (6, 1)) * np.where(columns % 4 == 0, 0.8, 1.0))
    paint(T_LOG_TOP, (172, 140, 88), _rings())
    paint(T_LEAVES, (178, 184, 172), _speckle(rng, 0.26, (2, 2)), 1.0)
    paint(T_WATER, (255, 255, 255), _speckle(rng, 0.05, (1, 6)))
    paint(T_PLANKS, (170, 136, 84), _bricks() * _speckle(rng, 0.07, (1, 5)))
    paint(T_BEDROCK, (74, 74, 76), _speckle(rng, 0.5, (2, 2)))
    paint(T_SANDSTONE, (214, 200, 150), np.where(rows % 5 == 4, 0.86, 1.0) * _speckle(rng, 0.04, (1, 4)))
    paint(T_ICE, (158, 190, 238), _speckle(rng, 0.05, (3, 3)))
    paint(T_CACTUS, (84, 128, 56), np.where(columns % 4 == 1, 0.72, 1.0) * _speckle(rng, 0.08))
    dashes = _speckle(rng, 1.0, (1, 4)) < 0.4
    paint(T_BIRCH, (214, 214, 206), np.where(dashes, 0.4, 1.0) * _speckle(rng, 0.05))
    paint(T_SPRUCE, (82, 60, 38), _speckle(rng, 0.15, (6, 1)) * np.where(columns % 4 == 2, 0.8, 1.0))
    paint(T_COAL, (128, 128, 130), np.where(_speckle(rng, 1.0, (2, 2)) > 1.4, 0.42, 1.0) * stone)
    fringe = rows < 3 + (rng.random(TEXTURE_SIZE) * 2.5).astype(np.int64)[None, :]
    base[T_GRASS_SIDE] = np.where(fringe[..., None], base[T_GRASS], base[T_DIRT])
    base[T_SNOW_SIDE] = np.where(fringe[..., None], base[T_SNOW], base[T_DIRT])
    return _mip_pyramid(np.clip(base, 0.0, 255.0))


def _mip_pyramid(base: np.ndarray) -> np.ndarray:
    pyramid = np.zeros((NUM_TEXTURES, MIP_LEVELS, TEXTURE_SIZE, TEXTURE_SIZE, 4), np.float32)
    for level in range(MIP_LEVELS):
        size = TEXTURE_SIZE >> level
        pyramid[:, level, :size, :size] = base
        if size > 1:
            base = base.reshape(NUM_TEXTURES, size // 2, 2, size // 2, 2, 4).mean(axis=(2, 4))
    return pyramid


def render(world: World, eye: tuple[float, float, float], yaw: float, pitch: float, size: int) -> np.ndarray:
    """Draw the view from an eye.

    Args:
        world: the world to draw.
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
    tints = (world.grass_tint, world.water_tint)
    scene = (world.blocks, world.tops, world.light, *tints, world.clouds, make_textures())
    frame = np.empty((size, size, 3), np.uint8)
    _draw(*scene, int(world.tops.max()), eye, (forward, right, up), frame)
    return frame


@njit(cache=True)
def _draw(blocks, tops, light, grass_tint, water_tint, clouds, textures, ceiling, eye, axes, frame):
    """Cast one ray through every pixel, then two more through those on an outline."""
    size = frame.shape[0]
    colors = np.empty((size, size, 3), np.float32)
    surfaces = np.empty((size, size), np.int64)
    half, scale = size * 0.5, 2.0 * HALF_FIELD_OF_VIEW / size
    for row in range(size):
        for column in range(size):
            dx, dy, dz = _direction(axes, (column + 0.5 - half) * scale, (half - row - 0.5) * scale)
            red, green, blue, surface = _trace(
                blocks, tops, light, grass_tint, water_tint, clouds, textures, ceiling, eye, dx, dy, dz, scale
            )
            colors[row, column, 0], colors[row, column, 1], colors[row, column, 2] = red, green, blue
            surfaces[row, column] = surface
    for row in range(size):
        for column in range(size):
            red, green, blue = colors[row, column, 0], colors[row, column, 1], colors[row, column, 2]
            surface = surfaces[row, column]
            if (
                surface != surfaces[max(row - 1, 0), column]
                or surface != surfaces[min(row + 1, size - 1), column]
                or surface != surfaces[row, max(column - 1, 0)]
                or surface != surfaces[row, min(column + 1, size - 1)]
            ):
                for i in range(2):
                    y, x = row + 0.2 + 0.6 * i, column + 0.2 + 0.6 * (i ^ ((row + column) & 1))
                    dx, dy, dz = _direction(axes, (x - half) * scale, (half - y) * scale)
                    r, g, b, _ = _trace(
                        blocks, tops, light, grass_tint, water_tint, clouds, textures, ceiling, eye, dx, dy, dz, scale
                    )
                    red, green, blue = red + r, green + g, blue + b
                red, green, blue = red / 3.0, green / 3.0, blue / 3.0
            frame[row, column, 0] = min(max(red, 0.0), 255.0)
            frame[row, column, 1] = min(max(green, 0.0), 255.0)
            frame[row, column, 2] = min(max(blue, 0.0), 255.0)


@njit(cache=True)
def _direction(axes, across, upward):
    """Unit vector of the ray through a point of the picture, given in units of the focal length."""
    forward, right, up = axes
    dx = forward[0] + across * right[0] + upward * up[0]
    dy = forward[1] + across * right[1] + upward * up[1]
    dz = forward[2] + across * right[2] + upward * up[2]
    length = math.sqrt(dx * dx + dy * dy + dz * dz)
    return dx / length, dy / length, dz / length


@njit(cache=True)
def _trace(blocks, tops, light, grass_tint, water_tint, clouds, textures, ceiling, eye, dx, dy, dz, pixel_angle):
    """Walk from block to block until something solid, and mix water and fog over it."""
    ox, oy, oz = eye
    x, y, z = math.floor(ox), math.floor(oy), math.floor(oz)
    # A direction that is exactly along an axis never reaches the other planes.
    gap_x = 1.0 / abs(dx) if dx != 0.0 else 1e30
    gap_y = 1.0 / abs(dy) if dy != 0.0 else 1e30
    gap_z = 1.0 / abs(dz) if dz != 0.0 else 1e30
    next_x = (x + 1 - ox if dx > 0 else ox - x) * gap_x
    next_y = (y + 1 - oy if dy > 0 else oy - y) * gap_y
    next_z = (z + 1 - oz if dz > 0 else oz - z) * gap_z
    step_x, step_y, step_z = 1 if dx > 0 else -1, 1 if dy > 0 else -1, 1 if dz > 0 else -1
    water_start, water_x, water_z = -1.0, x, z
    if 0 <= y < WORLD_HEIGHT and blocks[x & WRAP, z & WRAP, y] == WATER:
        water_start = 0.0
    distance, axis, block = 0.0, 0, AIR
    while True:
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
        if distance > VIEW_DISTANCE or y < 0 or (y >= ceiling and dy > 0):
            block = AIR
            break
        # The small table of column heights stays in the fastest cache, the blocks do not.
        if y >= tops[x & WRAP, z & WRAP]:
            continue
        block = blocks[x & WRAP, z & WRAP, y]
        if block == AIR:
            continue
        if block != WATER:
            break
        if water_start < 0.0:
            leave = min(next_x, min(next_y, next_z))
            start = _enter_water(blocks, x, y, z, oy, dy, distance, leave)
            if start >= 0.0:
                water_start, water_x, water_z = start, x, z
    sky = _sky(clouds, eye, dx, dy, dz, block == AIR and water_start < 0.0)
    red, green, blue, surface = sky[0], sky[1], sky[2], -1
    if block != AIR:
        color = _shade(light, grass_tint, textures, x, y, z, axis, block, eye, dx, dy, dz, distance, pixel_angle)
        haze = _haze(distance)
        red = color[0] + (red - color[0]) * haze
        green = color[1] + (green - color[1]) * haze
        blue = color[2] + (blue - color[2]) * haze
        plane = x if axis == 0 else (z if axis == 1 else y)
        surface = ((plane * 3 + axis) * NUM_BLOCKS + block) * 2
    if water_start >= 0.0:
        place = (water_x, water_z, water_start, max(distance - water_start, 0.0))
        color = (red, green, blue)
        red, green, blue = _under_water(water_tint, textures, color, sky, place, eye, dx, dy, dz, pixel_angle)
        surface = surface + 1 if surface >= 0 and water_start < 12.0 else -2
    return red, green, blue, surface


@njit(cache=True)
def _enter_water(blocks, x, y, z, oy, dy, distance, leave):
    """Distance at which a ray enters the water of a block, or -1: the surface lies below the block's top."""
    if y + 1 < WORLD_HEIGHT and blocks[x & WRAP, z & WRAP, y + 1] == WATER:
        return distance
    surface = y + WATER_SURFACE
    if oy + distance * dy <= surface:
        return distance
    if dy < 0.0:
        crossing = (surface - oy) / dy
        if crossing < leave:
            return crossing
    return -1.0


@njit(cache=True)
def _haze(distance):
    """Share of fog in [0, 1]."""
    share = min(max((distance - FOG_START) / (VIEW_DISTANCE - FOG_START), 0.0), 1.0)
    return share * share * (3.0 - 2.0 * share)


@njit(cache=True)
def _sky(clouds, eye, dx, dy, dz, with_clouds):
    """Sky gradient; with the square sun and flat clouds if asked for."""
    rise = min(max(dy, 0.0) * 1.6, 1.0)
    red = SKY_HORIZON[0] + (SKY_ZENITH[0] - SKY_HORIZON[0]) * rise
    green = SKY_HORIZON[1] + (SKY_ZENITH[1] - SKY_HORIZON[1]) * rise
    blue = SKY_HORIZON[2] + (SKY_ZENITH[2] - SKY_HORIZON[2]) * rise
    if not with_clouds or dy < 0.02:
        return red, green, blue
    sx, sy, sz = SUN_DIRECTION
    facing = dx * sx + dy * sy + dz * sz
    if facing > 0.5:
        # Coordinates on a plane across the sun's direction make it a square.
        side = (dx * sz - dz * sx) / facing
        high = (dy - sy * facing) / facing
        if abs(side) < 0.075 and abs(high) < 0.075:
            return 255.0, 250.0, 214.0
    reach = (CLOUD_HEIGHT - eye[1]) / dy
    cover = 0.75 * min(max(1.0 - (reach - 60.0) / 160.0, 0.0), 1.0)
    if cover > 0.0:
        column = int(math.floor((eye[0] + reach * dx) / CLOUD_SIZE)) & 15
        line = int(math.floor((eye[2] + reach * dz) / CLOUD_SIZE)) & 15
        if clouds[column, line]:
            return red + (250.0 - red) * cover, green + (251.0 - green) * cover, blue + (253.0 - blue) * cover
    return red, green, blue


@njit(cache=True)
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


@njit(cache=True)
def _shade(light, grass_tint, textures, x, y, z, axis, block, eye, dx, dy, dz, distance, pixel_angle):
    """Textured, tinted and lit color of the face of a block that a ray hits."""
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
    red, green, blue, tinted = _texel(textures, FACE_TEXTURES[block, face], u, v, footprint)
    i, k = x & WRAP, z & WRAP
    glow = shade * _smooth_light(light, x, y, z, axis, side, u, v)
    red *= glow * (1.0 + (grass_tint[i, k, 0] / 255.0 - 1.0) * tinted)
    green *= glow * (1.0 + (grass_tint[i, k, 1] / 255.0 - 1.0) * tinted)
    blue *= glow * (1.0 + (grass_tint[i, k, 2] / 255.0 - 1.0) * tinted)
    return red, green, blue


@njit(cache=True)
def _light_at(light, x, z, y, center):
    """Brightness of a cell beside a face; blocks darken the corner that they make."""
    if y < 0 or y >= WORLD_HEIGHT:
        return BRIGHTNESS[MAX_LIGHT]
    level = light[x & WRAP, z & WRAP, y]
    return BRIGHTNESS[level] if level > 0 else center * np.float32(OCCLUDED)


@njit(cache=True)
def _smooth_light(light, x, y, z, axis, side, u, v):
    """Light on a face: the mean of the four cells around each corner, interpolated between the corners."""
    x, z, y = x + (side if axis == 0 else 0), z + (side if axis == 1 else 0), y + (side if axis == 2 else 0)
    if y < 0 or y >= WORLD_HEIGHT:
        return BRIGHTNESS[MAX_LIGHT]
    level = light[x & WRAP, z & WRAP, y]
    center = BRIGHTNESS[level]
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
                value = _light_at(light, x, z + du, y - dv, center)
            elif axis == 1:
                value = _light_at(light, x + du, z, y - dv, center)
            else:
                value = _light_at(light, x + du, z + dv, y, center)
            total += weights_u[i] * weights_v[j] * value
    return total


@njit(cache=True)
def _under_water(water_tint, textures, color, sky, place, eye, dx, dy, dz, pixel_angle):
    """Mix the water over what lies in it: darker with depth, more like the sky at a flat angle."""
    water_x, water_z, start, depth = place
    i, k = water_x & WRAP, water_z & WRAP
    u, v = eye[0] + start * dx, eye[2] + start * dz
    footprint = start * pixel_angle * TEXTURE_SIZE / math.sqrt(max(abs(dy), 0.02))
    wave = _texel(textures, T_WATER, u - math.floor(u), v - math.floor(v), footprint)[0] / 255.0
    cover = 1.0 - 0.5 * math.exp(-0.3 * depth)
    flat = (1.0 - abs(dy)) ** 3 * 0.45 if start > 0.0 else 0.0
    haze = _haze(start)
    red = color[0] + (water_tint[i, k, 0] * wave - color[0]) * cover
    green = color[1] + (water_tint[i, k, 1] * wave - color[1]) * cover
    blue = color[2] + (water_tint[i, k, 2] * wave - color[2]) * cover
    share = max(haze, flat)
    return red + (sky[0] - red) * share, green + (sky[1] - green) * share, blue + (sky[2] - blue) * share
