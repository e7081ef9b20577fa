"""The maze's ray caster: walls, floors, sky, decals and solid shapes, on one core.

Positions are in cells, x to the east and y to the south; walls are one cell high and the eye is in the middle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

from farworld.envs.maze_textures import (
    NUM_BLUR_LEVELS,
    PICTURE_SIZE,
    PICTURE_START,
    TEXTURE_SIZE,
    load_clouds,
    load_pictures,
    load_textures,
)

SKY_RGB = (150, 224, 255)  # of the real DMLab episode
ZENITH_RGB = (92, 160, 236)  # of a sky with clouds; its horizon is SKY_RGB
CLOUD_RGB = (255, 255, 255)
CLOUD_TEXELS = 56.0  # of the cloud texture on one height of the clouds
EYE_HEIGHT = 0.5

NEIGHBOURS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # east, south, west, north: quarter turns of the heading

# A wall face is named by the side of the wall cell it is on.
WEST, EAST, NORTH, SOUTH = range(4)
FACE_OF_NEIGHBOUR = (EAST, SOUTH, WEST, NORTH)
NO_DECAL = -1

BALL, PILLAR, CONE, BOX, GEM = range(5)
AMBIENT = 0.55  # of a shape's colour where no light falls
LIGHT_X, LIGHT_Y, LIGHT_Z = 0.36, 0.48, 0.80  # towards the light, a unit vector; z is up
SHADOW = 0.45  # of the floor's light that is lost under the middle of a shape
SHADOW_REACH = 1.5  # radii


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """A shape that stands or floats in the maze.

    Attributes:
        shape: BALL, PILLAR, CONE, BOX or GEM.
        x: of its middle, in cells.
        y: of its middle, in cells.
        ground: height of its lowest point, in cells.
        radius: of the circle around it, in cells.
        height: in cells; a ball's is two radii.
        heading: degrees that it is turned by.
        colour: RGB.
    """

    shape: int
    x: float
    y: float
    ground: float
    radius: float
    height: float
    heading: float
    colour: tuple[int, int, int]


def pack(things: Sequence[Thing]) -> np.ndarray:
    """The things as the ray caster reads them, (things, 11) float64."""
    rows = [
        (t.shape, t.x, t.y, t.ground, t.radius, t.height, math.cos(a), math.sin(a), *t.colour)
        for t in things
        for a in (math.radians(t.heading),)
    ]
    return np.array(rows, np.float64).reshape(-1, 11)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """All that can be seen.

    Attributes:
        walls: (cells, cells) bool, indexed [x, y].
        faces: (cells, cells, 4) int32, texture of each wall face.
        floors: (cells, cells) int32, texture of each floor cell.
        decals: (cells, cells, 4) int32, picture on each wall face, or NO_DECAL.
        things: see `pack`.
        light: brightness of walls that face east or west, of those that face north or south, and of floors, in 1/256.
        clouds: whether the sky has any.
    """

    walls: np.ndarray
    faces: np.ndarray
    floors: np.ndarray
    decals: np.ndarray
    things: np.ndarray
    light: tuple[int, int, int]
    clouds: bool


def draw(scene: Scene, x: float, y: float, heading: float, size: int) -> np.ndarray:
    """The view from (x, y) along a heading in degrees, (size, size, 3) uint8, 90 degrees wide."""
    frame = np.empty((size, size, 3), np.uint8)
    angle = math.radians(heading)
    _render(
        frame,
        x,
        y,
        math.cos(angle),
        math.sin(angle),
        scene.walls,
        scene.faces,
        scene.floors,
        scene.decals,
        scene.things,
        scene.light,
        scene.clouds,
        load_textures().levels,
        load_pictures(),
        load_clouds(),
    )
    return frame


@njit(cache=True, inline="always")
def _cast(walls, x, y, ray_x, ray_y):
    """Walk the grid along a ray: wall cell x and y, whether the face looks east or west, distance."""
    cell_x, cell_y = int(x), int(y)
    per_x = abs(1.0 / ray_x) if ray_x != 0.0 else 1e30
    per_y = abs(1.0 / ray_y) if ray_y != 0.0 else 1e30
    step_x = 1 if ray_x > 0.0 else -1
    step_y = 1 if ray_y > 0.0 else -1
    next_x = (cell_x + 1.0 - x if ray_x > 0.0 else x - cell_x) * per_x
    next_y = (cell_y + 1.0 - y if ray_y > 0.0 else y - cell_y) * per_y
    while True:
        if next_x < next_y:
            cell_x += step_x
            if walls[cell_x, cell_y]:
                return cell_x, cell_y, True, next_x
            next_x += per_x
        else:
            cell_y += step_y
            if walls[cell_x, cell_y]:
                return cell_x, cell_y, False, next_y
            next_y += per_y


@njit(cache=True, inline="always")
def _blur_level(texels_per_sample):
    level = 0
    while texels_per_sample > 1.2 and level < NUM_BLUR_LEVELS - 1:
        texels_per_sample *= 0.5
        level += 1
    return level


@njit(cache=True)
def _slab(span, entry, leave, start, slope):
    """Cut a ray's inside further: to where |start + t * slope| <= span; entry, leave, and entry's side or 0."""
    if slope == 0.0:
        return (entry, leave, 0.0) if abs(start) <= span else (1.0, 0.0, 0.0)
    near, far = (-span - start) / slope, (span - start) / slope
    side = -1.0
    if near > far:
        near, far, side = far, near, 1.0
    if near > entry:
        return near, min(leave, far), side
    return entry, min(leave, far), 0.0


@njit(cache=True)
def _hit_box(x, y, z, ray_x, ray_y, ray_z, half, half_height):
    """Where a ray enters a box around the origin, in t, and the normal there; t is -1 without a hit."""
    entry, leave = -1e30, 1e30
    nx, ny, nz = 0.0, 0.0, 0.0
    entry, leave, side = _slab(half, entry, leave, x, ray_x)
    if side != 0.0:
        nx, ny, nz = side, 0.0, 0.0
    entry, leave, side = _slab(half, entry, leave, y, ray_y)
    if side != 0.0:
        nx, ny, nz = 0.0, side, 0.0
    entry, leave, side = _slab(half_height, entry, leave, z, ray_z)
    if side != 0.0:
        nx, ny, nz = 0.0, 0.0, side
    return (entry if entry <= leave else -1.0), nx, ny, nz


@njit(cache=True)
def _hit_gem(x, y, z, ray_x, ray_y, ray_z, radius, half_height):
    """The same for an octahedron: what lies between four pairs of parallel faces."""
    entry, leave = -1e30, 1e30
    nx, ny, nz = 0.0, 0.0, 0.0
    for pair in range(4):
        ax = 1.0 / radius
        ay = ax if pair < 2 else -ax
        az = (1.0 if pair % 2 == 0 else -1.0) / half_height
        entry, leave, side = _slab(1.0, entry, leave, ax * x + ay * y + az * z, ax * ray_x + ay * ray_y + az * ray_z)
        if side != 0.0:
            length = math.sqrt(ax * ax + ay * ay + az * az)
            nx, ny, nz = side * ax / length, side * ay / length, side * az / length
    return (entry if entry <= leave else -1.0), nx, ny, nz


@njit(cache=True)
def _hit_ball(x, y, z, ray_x, ray_y, ray_z, radius):
    """The same for a ball."""
    a = ray_x * ray_x + ray_y * ray_y + ray_z * ray_z
    b = x * ray_x + y * ray_y + z * ray_z
    inside = b * b - a * (x * x + y * y + z * z - radius * radius)
    if inside < 0.0:
        return -1.0, 0.0, 0.0, 0.0
    t = (-b - math.sqrt(inside)) / a
    return t, (x + t * ray_x) / radius, (y + t * ray_y) / radius, (z + t * ray_z) / radius


@njit(cache=True)
def _hit_cone(x, y, z, ray_x, ray_y, ray_z, radius, top_radius, height):
    """The same for a cylinder or cone with its foot at z = 0, seen from outside and not along its axis."""
    slant = (radius - top_radius) / height
    # |(x, y)| = r - slant * z, where r is the radius at the foot.
    reach = radius - slant * z
    a = ray_x * ray_x + ray_y * ray_y - slant * slant * ray_z * ray_z
    b = x * ray_x + y * ray_y + slant * ray_z * reach
    c = x * x + y * y - reach * reach
    inside = b * b - a * c
    best = 1e30
    nx, ny, nz = 0.0, 0.0, 0.0
    if inside >= 0.0 and a != 0.0:
        root = math.sqrt(inside)
        for sign in (-1.0, 1.0):
            t = (-b + sign * root) / a
            at = z + t * ray_z
            if 0.0 < t < best and 0.0 <= at <= height:
                best = t
                px, py = x + t * ray_x, y + t * ray_y
                around = math.sqrt(px * px + py * py) * math.sqrt(1.0 + slant * slant) + 1e-12
                nx, ny, nz = px / around, py / around, slant / math.sqrt(1.0 + slant * slant)
    if ray_z != 0.0 and top_radius > 0.0:  # the lid
        t = (height - z) / ray_z
        px, py = x + t * ray_x, y + t * ray_y
        if 0.0 < t < best and px * px + py * py <= top_radius * top_radius:
            best = t
            nx, ny, nz = 0.0, 0.0, 1.0
    return (best if best < 1e30 else -1.0), nx, ny, nz


@njit(cache=True)
def _hit(thing, x, y, ray_x, ray_y, ray_z):
    """Where a ray from the eye enters a thing, in its parameter t, and how bright it is there; t is -1 if nowhere."""
    shape, radius, height, turned_x, turned_y = int(thing[0]), thing[4], thing[5], thing[6], thing[7]
    from_x, from_y = x - thing[1], y - thing[2]
    z = EYE_HEIGHT - thing[3]
    # Into the thing's own frame.
    px, py = from_x * turned_x + from_y * turned_y, from_y * turned_x - from_x * turned_y
    dx, dy = ray_x * turned_x + ray_y * turned_y, ray_y * turned_x - ray_x * turned_y
    if shape == BALL:
        t, nx, ny, nz = _hit_ball(px, py, z - radius, dx, dy, ray_z, radius)
    elif shape == PILLAR:
        t, nx, ny, nz = _hit_cone(px, py, z, dx, dy, ray_z, radius, radius, height)
    elif shape == CONE:
        t, nx, ny, nz = _hit_cone(px, py, z, dx, dy, ray_z, radius, 0.0, height)
    elif shape == BOX:
        half = radius / math.sqrt(2.0)
        t, nx, ny, nz = _hit_box(px, py, z - height / 2, dx, dy, ray_z, half, height / 2)
    else:
        t, nx, ny, nz = _hit_gem(px, py, z - height / 2, dx, dy, ray_z, radius, height / 2)
    world_x, world_y = nx * turned_x - ny * turned_y, ny * turned_x + nx * turned_y
    lit = world_x * LIGHT_X + world_y * LIGHT_Y + nz * LIGHT_Z
    return t, AMBIENT + (1.0 - AMBIENT) * max(0.0, lit)


@njit(cache=True)
def _span(thing, reach, low, high, x, y, ray_x, ray_y, distance, focal, last_row):
    """First and last row of a column that may show what fills a circle of a thing between two heights."""
    east, south = thing[1] - x, thing[2] - y
    a = ray_x * ray_x + ray_y * ray_y
    b = east * ray_x + south * ray_y
    inside = b * b - a * (east * east + south * south - reach * reach)
    if inside <= 0.0:
        return last_row + 1, -1
    root = math.sqrt(inside)
    enters, leaves = max((b - root) / a, 1e-3), (b + root) / a
    if leaves <= enters or enters >= distance:
        return last_row + 1, -1
    top = (EYE_HEIGHT - high) / (enters if high > EYE_HEIGHT else leaves)
    bottom = (EYE_HEIGHT - low) / (enters if low < EYE_HEIGHT else leaves)
    first = max(0.0, math.floor((top + 1.0) * focal - 0.5))
    last = min(float(last_row), math.ceil((bottom + 1.0) * focal - 0.5))
    return int(first), int(last)


@njit(cache=True)
def _render(
    frame, x, y, forward_x, forward_y, walls, faces, floors, decals, things, light, clouded, textures, pictures, clouds
):
    """Draw the view from (x, y) with a field of view of 90 degrees and 2 x 2 samples a pixel.

    Args:
        frame: (size, size, 3) uint8, written.
        x: position in cells.
        y: position in cells.
        forward_x: east part of the unit vector of the heading.
        forward_y: south part of it.
        walls: see Scene, as for all up to light.
        faces: see Scene.
        floors: see Scene.
        decals: see Scene.
        things: see pack.
        light: see Scene.
        clouded: whether the sky has clouds.
        textures: (textures, blur levels, TEXTURE_SIZE, TEXTURE_SIZE, 3) uint8.
        pictures: (pictures, blur levels, PICTURE_SIZE, PICTURE_SIZE, 4) uint8.
        clouds: (blur levels, TEXTURE_SIZE, TEXTURE_SIZE) uint8.
    """
    size = frame.shape[0]
    samples = 2 * size
    focal = 0.5 * samples  # samples per unit of tan(angle), 90 degrees wide
    column_sum = np.empty((size, 3), np.int32)
    num_things = len(things)
    near = np.empty(num_things, np.int64)  # the things that this column may see
    spans = np.empty((num_things, 4), np.int64)  # their first and last row, and their shadows'
    for column in range(samples):
        if column % 2 == 0:
            column_sum[:] = 0
        across = (column + 0.5) / focal - 1.0
        ray_x = forward_x - forward_y * across
        ray_y = forward_y + forward_x * across
        cell_x, cell_y, on_x, distance = _cast(walls, x, y, ray_x, ray_y)
        if on_x:
            along = y + distance * ray_y
            face = WEST if ray_x > 0.0 else EAST
            mirrored = ray_x < 0.0
            slope = abs(ray_x)
            wall_light = light[0]
        else:
            along = x + distance * ray_x
            face = NORTH if ray_y > 0.0 else SOUTH
            mirrored = ray_y > 0.0
            slope = abs(ray_y)
            wall_light = light[1]
        u = along - math.floor(along)
        if mirrored:
            u = 1.0 - u
        wall = textures[faces[cell_x, cell_y, face]]
        # Oblique walls squeeze the texture sideways by 1 / slope; blurring half of that keeps them crisp.
        level = _blur_level(TEXTURE_SIZE * distance / focal * math.sqrt(1.0 / slope))
        texel_u = min(int(u * TEXTURE_SIZE), TEXTURE_SIZE - 1)
        half_height = 0.5 * focal / distance
        decal = decals[cell_x, cell_y, face]
        picture_u = texel_u - PICTURE_START
        if picture_u < 0 or picture_u >= PICTURE_SIZE:
            decal = NO_DECAL
        num_near = 0
        first_row, last_row = samples, -1
        for i in range(num_things):
            thing = things[i]
            first, last = _span(
                thing, thing[4], thing[3], thing[3] + thing[5], x, y, ray_x, ray_y, distance, focal, samples - 1
            )
            dark_first, dark_last = _span(
                thing, thing[4] * SHADOW_REACH, 0.0, 0.0, x, y, ray_x, ray_y, distance, focal, samples - 1
            )
            if first <= last or dark_first <= dark_last:
                near[num_near] = i
                spans[num_near, 0], spans[num_near, 1] = first, last
                spans[num_near, 2], spans[num_near, 3] = dark_first, dark_last
                num_near += 1
                first_row = min(first_row, first, dark_first)
                last_row = max(last_row, last, dark_last)
        for row in range(samples):
            down = row + 0.5 - focal
            pixel = row // 2
            floor_light = light[2]
            if first_row <= row <= last_row:
                on_floor = down > half_height
                depth = 0.5 * focal / down if on_floor else distance
                found = -1
                shade = 0.0
                for k in range(num_near):
                    if spans[k, 0] <= row <= spans[k, 1]:
                        t, lit = _hit(things[near[k]], x, y, ray_x, ray_y, -down / focal)
                        if 0.0 < t < depth:
                            depth, found, shade = t, near[k], lit
                if found >= 0:
                    for c in range(3):
                        column_sum[pixel, c] += int(shade * 256.0 * things[found, 8 + c])
                    continue
                if on_floor:
                    for k in range(num_near):
                        if spans[k, 2] <= row <= spans[k, 3]:
                            thing = things[near[k]]
                            off_x = x + depth * ray_x - thing[1]
                            off_y = y + depth * ray_y - thing[2]
                            reach = thing[4] * SHADOW_REACH
                            away = (off_x * off_x + off_y * off_y) / (reach * reach)
                            if away < 1.0:
                                floor_light = int(floor_light * (1.0 - SHADOW * (1.0 - away)))
            if down < -half_height:
                if clouded:
                    _add_sky(column_sum, pixel, ray_x, ray_y, -down / focal, clouds, focal)
                else:
                    for c in range(3):
                        column_sum[pixel, c] += SKY_RGB[c] * 256
            elif down <= half_height:
                texel_v = min(int((0.5 + 0.5 * down / half_height) * TEXTURE_SIZE), TEXTURE_SIZE - 1)
                picture_v = texel_v - PICTURE_START
                if decal != NO_DECAL and 0 <= picture_v < PICTURE_SIZE:
                    picture = pictures[decal, level, picture_v, picture_u]
                    for c in range(3):
                        under = np.int64(wall[level, texel_v, texel_u, c]) * (255 - np.int64(picture[3])) // 255
                        column_sum[pixel, c] += wall_light * min(255, under + np.int64(picture[c]))
                else:
                    for c in range(3):
                        column_sum[pixel, c] += wall_light * wall[level, texel_v, texel_u, c]
            else:
                depth = 0.5 * focal / down
                floor_x = x + depth * ray_x
                floor_y = y + depth * ray_y
                floor_level = _blur_level(TEXTURE_SIZE * depth * math.sqrt(2.0 * depth) / focal)
                floor = floors[int(floor_x), int(floor_y)]
                texel_x = int(floor_x * TEXTURE_SIZE) % TEXTURE_SIZE
                texel_y = int(floor_y * TEXTURE_SIZE) % TEXTURE_SIZE
                for c in range(3):
                    column_sum[pixel, c] += floor_light * textures[floor, floor_level, texel_y, texel_x, c]
        if column % 2 == 1:
            for row in range(size):
                for c in range(3):
                    frame[row, column // 2, c] = column_sum[row, c] >> 10  # 4 samples, light in 1/256


@njit(cache=True, inline="always")
def _add_sky(column_sum, pixel, ray_x, ray_y, ray_z, clouds, focal):
    """Add what a ray upwards sees: blue that deepens with height, under a flat layer of clouds far above."""
    level_length = math.sqrt(ray_x * ray_x + ray_y * ray_y)
    height = ray_z / level_length
    per_height = CLOUD_TEXELS / ray_z
    level = _blur_level(per_height * max(1.0, 1.0 / ray_z) * level_length / focal)
    texel_x = int(math.floor(ray_x * per_height)) % TEXTURE_SIZE
    texel_y = int(math.floor(ray_y * per_height)) % TEXTURE_SIZE
    # Clouds fade towards the horizon, where they would be a flicker.
    cover = clouds[level, texel_y, texel_x] / 255.0 * min(1.0, max(0.0, (height - 0.04) / 0.3)) * 0.85
    blue = min(1.0, height * 1.1)
    for c in range(3):
        sky = SKY_RGB[c] + (ZENITH_RGB[c] - SKY_RGB[c]) * blue
        column_sum[pixel, c] += int(256.0 * (sky + (CLOUD_RGB[c] - sky) * cover))
