"""Periodic noise for the land of the voxel world."""

from __future__ import annotations

import numpy as np
from numba import njit


def noise(rng: np.random.Generator, lattices: tuple[int, ...], size: int) -> np.ndarray:
    """Periodic value noise (size, size): zero mean, unit variance, octaves from coarse to fine."""
    total = np.zeros((size, size))
    for lattice in lattices:
        _add_octave(total, rng.standard_normal((lattice, lattice)), lattices[0] / lattice)
    return (total - total.mean()) / total.std()


@njit(cache=True, error_model="numpy")
def _add_octave(total, lattice, weight):
    """Add a lattice of values, smoothly interpolated over the whole of total."""
    size, cells = total.shape[0], lattice.shape[0]
    row = np.empty(cells)
    for x in range(size):
        place = x * (cells / size)
        i = int(place)
        fx = place - i
        fx = fx * fx * (3.0 - 2.0 * fx)
        for k in range(cells):
            row[k] = (lattice[i, k] * (1.0 - fx) + lattice[(i + 1) % cells, k] * fx) * weight
        for z in range(size):
            place = z * (cells / size)
            k = int(place)
            fz = place - k
            fz = fz * fz * (3.0 - 2.0 * fz)
            total[x, z] += row[k] * (1.0 - fz) + row[(k + 1) % cells] * fz


@njit(cache=True, error_model="numpy")
def blur(values, radius):
    """Periodic box blur of (size, size), so that neighbouring biomes blend; size is a power of two."""
    size = values.shape[0]
    half, result = np.empty((size, size)), np.empty((size, size))
    for x in range(size):
        for z in range(size):
            total = 0.0
            for shift in range(-radius, radius + 1):
                total += values[x, (z + shift) & (size - 1)]
            half[x, z] = total / (2 * radius + 1)
    for x in range(size):
        result[x] = 0.0
        for shift in range(-radius, radius + 1):
            result[x] += half[(x + shift) & (size - 1)]
        result[x] /= 2 * radius + 1
    return result


@njit(cache=True, error_model="numpy")
def column_noise(lattice, x, z, column, top):
    """Smooth value noise in [0, 1] with cells of 8 blocks, along the column of x and z.

    Args:
        lattice: (cells, cells, levels) float32; periodic along the first two.
        x: column.
        z: column.
        column: (height,) float64, written up to y = top.
        top: the levels must reach beyond top / 8 + 1.
    """
    mask = lattice.shape[0] - 1
    i, k = x >> 3, z >> 3
    fx, fz = (x & 7) / 8.0, (z & 7) / 8.0
    fx, fz = fx * fx * (3 - 2 * fx), fz * fz * (3 - 2 * fz)
    low = 0.0
    for level in range(top // 8 + 2):
        near = lattice[i & mask, k & mask, level] * (1 - fz) + lattice[i & mask, (k + 1) & mask, level] * fz
        far = lattice[(i + 1) & mask, k & mask, level] * (1 - fz) + lattice[(i + 1) & mask, (k + 1) & mask, level] * fz
        high = near * (1 - fx) + far * fx
        if level > 0:
            for step in range(8):
                y = (level - 1) * 8 + step
                if y < len(column):
                    fy = step / 8.0
                    column[y] = low + (high - low) * fy * fy * (3 - 2 * fy)
        low = high
