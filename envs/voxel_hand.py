"""The block in the hand, drawn over the lower right corner of the picture."""

from __future__ import annotations

import functools
import math

import numpy as np

from farworld.envs.voxel_blocks import GLASS
from farworld.envs.voxel_textures import FACE_TEXTURES, TEXTURE_SIZE, make_textures

SHARE = 0.3  # of the picture's width that the block takes
SHADES = (0.62, 0.8, 1.0)  # left, right, top
SAMPLES = 4  # along each side of a pixel
YAW, LEAN = math.radians(38.0), math.radians(26.0)  # how the block is turned and tipped towards the eye
HAND_TINT = (124.0, 178.0, 82.0)  # of blocks whose color is the biome's


@functools.cache
def _sprite(block: int, width: int) -> np.ndarray:
    """(width, width, 4) float32: red, green, blue (0 to 255) and opacity of a block seen from above one edge."""
    # Parallel rays against the unit cube around the origin, SAMPLES x SAMPLES of them a pixel.
    steps = (np.arange(width * SAMPLES) + 0.5) / (width * SAMPLES) * 2.0 - 1.0
    across, upward = np.meshgrid(steps * 0.88, -steps * 0.88)
    right = np.array((math.cos(YAW), 0.0, -math.sin(YAW)))
    ahead = np.array((math.sin(YAW) * math.cos(LEAN), -math.sin(LEAN), math.cos(YAW) * math.cos(LEAN)))
    up = np.cross(ahead, right)
    origin = across[..., None] * right + upward[..., None] * up - 3.0 * ahead
    enter = ((-0.5 * np.sign(ahead)) - origin) / ahead
    leave = ((0.5 * np.sign(ahead)) - origin) / ahead
    axis = enter.argmax(axis=-1)
    hit = enter.max(axis=-1) < leave.min(axis=-1)
    point = np.clip(origin + enter.max(axis=-1)[..., None] * ahead + 0.5, 0.0, 0.9999)
    u = np.where(axis == 0, point[..., 2], point[..., 0])
    v = np.where(axis == 1, point[..., 2], 1.0 - point[..., 1])
    texture = np.where(axis == 1, FACE_TEXTURES[block, 1], FACE_TEXTURES[block, 0])
    rows = (v * TEXTURE_SIZE).astype(np.int64).clip(0, TEXTURE_SIZE - 1)
    texels = make_textures()[texture, 0, rows, (u * TEXTURE_SIZE).astype(np.int64)]
    tint = 1.0 + (np.array(HAND_TINT) / 255.0 - 1.0) * texels[..., 3:4]
    color = texels[..., :3] * tint * np.array((SHADES[0], SHADES[2], SHADES[1]))[axis][..., None]
    opacity = hit * (np.maximum(texels[..., 4], 0.25) if block == GLASS else 1.0)
    sprite = np.concatenate([color * opacity[..., None], opacity[..., None]], axis=-1)
    sprite = sprite.reshape(width, SAMPLES, width, SAMPLES, 4).mean(axis=(1, 3))
    sprite[..., :3] /= np.maximum(sprite[..., 3:], 1e-6)
    return sprite.astype(np.float32)


def draw_hand(frame: np.ndarray, block: int, brightness: float, swing: bool) -> None:
    """Draw a block into a picture.

    Args:
        frame: (size, size, 3) uint8, changed.
        block: what is held.
        brightness: of the place, in [0, 1].
        swing: the hand reaches ahead, because it digs or builds.
    """
    size = len(frame)
    width = max(8, round(size * SHARE))
    sprite = _sprite(block, width)
    # At rest the block stands out of the corner; a swing carries it towards the middle.
    left = round(size * (0.56 if swing else 0.71))
    top = round(size * (0.62 if swing else 0.745))
    sprite = sprite[: size - top, : size - left]
    area = frame[top : top + sprite.shape[0], left : left + sprite.shape[1]]
    opacity = sprite[..., 3:]
    area[:] = (area * (1.0 - opacity) + sprite[..., :3] * (brightness * opacity)).astype(np.uint8)
