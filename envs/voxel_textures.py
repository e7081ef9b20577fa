"""The look of the blocks: procedural textures of 16 x 16 texels, and which face of which block shows which."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from farworld.envs import voxel_blocks as blocks
from farworld.envs.voxel_blocks import NUM_BLOCKS

TEXTURE_SIZE = 16  # texels along a block
MIP_LEVELS = 5  # 16, 8, 4, 2 and 1 texels

(
    T_GRASS, T_GRASS_SIDE, T_DIRT, T_STONE, T_SAND, T_SNOW, T_SNOW_SIDE, T_LOG, T_LOG_TOP, T_LEAVES, T_WATER,
    T_PLANKS, T_BEDROCK, T_SANDSTONE, T_ICE, T_CACTUS, T_BIRCH, T_SPRUCE, T_COAL, T_GRAVEL, T_COBBLESTONE,
    T_BRICKS, T_LAMP, T_CLAY, T_IRON, T_ACACIA, T_BIRCH_LEAVES, T_SPRUCE_LEAVES, T_ACACIA_LEAVES, T_PUMPKIN,
    T_PUMPKIN_TOP, T_SANDSTONE_TOP, T_CACTUS_TOP, T_GLASS, T_TALL_GRASS, T_FERN, T_POPPY, T_DANDELION, T_ORCHID,
    T_DEAD_BUSH, T_REEDS, T_MUSHROOM, T_LILY_PAD,
) = range(43)  # fmt: skip
NUM_TEXTURES = 43
Paint = Callable[..., None]  # texture, color, (16, 16) brightness, share of the biome's tint


def _face_textures() -> np.ndarray:
    """(block, face) -> texture, with the faces side, top and bottom."""
    table = np.zeros((NUM_BLOCKS, 3), np.int64)
    plain = {
        blocks.DIRT: T_DIRT, blocks.STONE: T_STONE, blocks.SAND: T_SAND, blocks.LEAVES: T_LEAVES,
        blocks.WATER: T_WATER, blocks.PLANKS: T_PLANKS, blocks.BEDROCK: T_BEDROCK, blocks.ICE: T_ICE,
        blocks.SANDSTONE: T_SANDSTONE, blocks.CACTUS: T_CACTUS, blocks.COAL: T_COAL,
        blocks.GRAVEL: T_GRAVEL, blocks.COBBLESTONE: T_COBBLESTONE, blocks.BRICKS: T_BRICKS,
        blocks.LAMP: T_LAMP, blocks.CLAY: T_CLAY, blocks.IRON: T_IRON, blocks.BIRCH_LEAVES: T_BIRCH_LEAVES,
        blocks.SPRUCE_LEAVES: T_SPRUCE_LEAVES, blocks.ACACIA_LEAVES: T_ACACIA_LEAVES, blocks.GLASS: T_GLASS,
        blocks.TALL_GRASS: T_TALL_GRASS, blocks.FERN: T_FERN, blocks.POPPY: T_POPPY,
        blocks.DANDELION: T_DANDELION, blocks.ORCHID: T_ORCHID, blocks.DEAD_BUSH: T_DEAD_BUSH,
        blocks.REEDS: T_REEDS, blocks.MUSHROOM: T_MUSHROOM, blocks.LILY_PAD: T_LILY_PAD,
    }  # fmt: skip
    for block, texture in plain.items():
        table[block] = texture
    table[blocks.GRASS] = T_GRASS_SIDE, T_GRASS, T_DIRT
    table[blocks.SNOW] = T_SNOW_SIDE, T_SNOW, T_DIRT
    table[blocks.LOG] = T_LOG, T_LOG_TOP, T_LOG_TOP
    table[blocks.BIRCH] = T_BIRCH, T_LOG_TOP, T_LOG_TOP
    table[blocks.SPRUCE] = T_SPRUCE, T_LOG_TOP, T_LOG_TOP
    table[blocks.ACACIA] = T_ACACIA, T_LOG_TOP, T_LOG_TOP
    table[blocks.PUMPKIN] = T_PUMPKIN, T_PUMPKIN_TOP, T_PUMPKIN_TOP
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
    """(texture, mip, 16, 16, 5) float32: red, green, blue (0 to 255), the share of the biome's tint, and opacity.

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
    _paint_later_blocks(paint, rows, columns)
    opacity = np.ones((NUM_TEXTURES, TEXTURE_SIZE, TEXTURE_SIZE))
    opacity[T_GLASS] = 0.06
    opacity[T_GLASS][(rows % 15 == 0) | (columns % 15 == 0)] = 0.85
    opacity[T_GLASS][((rows + columns == 9) | (rows + columns == 20)) & (abs(rows - columns) < 5)] = 0.5
    for texture, picture in PLANTS.items():
        opacity[texture] = _paint_plant(base[texture], picture)
    return _mip_pyramid(np.clip(base, 0.0, 255.0), opacity)


def _paint_later_blocks(paint: Paint, rows: np.ndarray, columns: np.ndarray) -> None:
    """The textures that came after the first release, from a generator of their own, so that no older one changes."""
    rng = np.random.default_rng(17)
    stone = _speckle(rng, 0.1, (1, 4))
    paint(T_GRAVEL, (134, 128, 124), _speckle(rng, 0.26, (2, 2)))
    paint(T_COBBLESTONE, (130, 130, 130), _cobbles(rng))
    courses = np.where(rows % 4 == 3, 1.32, 1.0) * np.where((columns + 4 * (rows // 4 % 2)) % 8 == 7, 1.28, 1.0)
    paint(T_BRICKS, (150, 92, 76), np.minimum(courses, 1.32) * _speckle(rng, 0.07, (1, 3)))
    glow = _speckle(rng, 0.3, (2, 2)) * np.where(_cobbles(rng) < 0.8, 0.75, 1.0)
    paint(T_LAMP, (250, 212, 140), np.clip(glow, 0.6, 1.15))
    paint(T_CLAY, (160, 166, 178), _speckle(rng, 0.04, (2, 3)))
    paint(T_IRON, (128, 128, 130), stone)
    paint(T_ACACIA, (112, 104, 94), _speckle(rng, 0.16, (6, 1)) * np.where(columns % 4 == 1, 0.82, 1.0))
    paint(T_BIRCH_LEAVES, (142, 172, 90), _speckle(rng, 0.24, (2, 2)), 0.15)
    paint(T_SPRUCE_LEAVES, (84, 124, 84), _speckle(rng, 0.26, (2, 2)), 0.1)
    paint(T_ACACIA_LEAVES, (146, 168, 72), _speckle(rng, 0.24, (2, 2)), 0.1)
    ribs = np.where(columns % 5 == 0, 0.78, 1.0) * _speckle(rng, 0.05, (4, 1))
    paint(T_PUMPKIN, (206, 126, 36), ribs)
    spokes = np.where(abs(rows - 7.5) + abs(columns - 7.5) < 3, 0.6, ribs)
    paint(T_PUMPKIN_TOP, (206, 130, 40), spokes)
    paint(T_SANDSTONE_TOP, (220, 208, 160), _speckle(rng, 0.03, (2, 2)))
    edge = np.where((rows % 15 == 0) | (columns % 15 == 0), 0.7, 1.0)
    paint(T_CACTUS_TOP, (110, 152, 78), edge * _speckle(rng, 0.1))
    paint(T_GLASS, (222, 240, 244), np.ones((TEXTURE_SIZE, TEXTURE_SIZE)))


def _cobbles(rng: np.random.Generator) -> np.ndarray:
    """(16, 16) brightness of round stones with dark joints, without a seam at the edges."""
    rows, columns = np.mgrid[:TEXTURE_SIZE, :TEXTURE_SIZE]
    centers, shades = (np.indices((4, 4)).reshape(2, -1).T + rng.random((16, 2)) * 0.8) * 4.0, rng.random(16)
    away = [np.abs(grid[..., None] - centers[:, axis]) for axis, grid in enumerate((rows, columns))]
    distances = np.hypot(*(np.minimum(part, TEXTURE_SIZE - part) for part in away))
    nearest, second = np.sort(distances, axis=-1)[..., :2].transpose(2, 0, 1)
    joint = np.where(second - nearest < 0.9, 0.62, 1.0)
    return joint * (0.84 + 0.3 * shades[distances.argmin(axis=-1)])


# Small plants as pictures: one letter a texel, a dot for nothing; see _INK.
PLANTS = {
    T_TALL_GRASS: """
        ................ ................ ............g... ..g.........g...
        ..g....h.......h .gh....h..g...h. .gh...gh..g..gh. ..hg..gh.gg..g..
        ..hg.g.h.gh.ghg. g.hg.ghh.h.hh.g gghhgghh.hhhg.h. .ghhghhghhhgghh.
        .ghhhhhghhhhhhg. ..hhhhhhhhhhhg.. ..hhhhhhhhhhhh.. ...hhhhhhhhhh...
    """,
    T_FERN: """
        ................ .......g........ .......h.g...... ..g...gh.h..g...
        .gh.g.hhgh.gh... ..hghg.hh.hhg..g g..hhhghhhhg.gh. hgg.hhhhhhh.ghg.
        .hhhghhhhhhhhh.. ...hhhhhhhhhg..g .gghhhhhhhhgghh. gh.ghhhhhhhhh.g.
        h.gghhhhhhhg.h.. ..h..hhhhh..g... .....hhhhhg..... ......hhhh......
    """,
    T_POPPY: """
        ................ ................ ................ ................
        ................ ......rr........ .....rRrr....... .....rrRr.......
        ......kr........ .......s........ .......s........ .......s........
        .....s.s.s...... ......sss....... .......s........ .......s........
    """,
    T_DANDELION: """
        ................ ................ ................ ................
        ................ ................ ................ .......yy.......
        ......yYYy...... ......YyyY...... .......yy....... .......s........
        .......s........ .....sss.s...... ......ss.s...... .......ss.......
    """,
    T_ORCHID: """
        ................ ................ ................ ................
        .......b........ ......bBb....... .....bbBb.b..... ......bb.bB.....
        .......s..b..... ..b....s.s...... .bBb...ss....... ..bs...s........
        ...ss..s........ .....sss........ ......ss........ .......s........
    """,
    T_DEAD_BUSH: """
        ................ ................ ................ .d..........d...
        ..d...d....d.... ..dd..d...dd..d. d..d.dd..d...d.. .d.dd.d.dd.dd...
        ..d.dddddddd...d ...dd.dddd...dd. .dd.ddddd..dd... ...dddddd.dd....
        .....dddddd..... ......dddd...... .......dd....... .......dd.......
    """,
    T_REEDS: """
        ...n.....nn.n... ..nn.....mn.n..n .mnn..n..mn.n..n .mnm..n..mn.nn.m
        ..nm.nn..mn.mn.m ..nn.nm..mm.mn.n ..nn.nm..nn.mn.n .nnm.mn..mn.nn.n
        ..nm.mn.nmn.nm.m ..nn.nn.mmn.nm.n .mnn.nm..mm.nn.n .mmn.nm..mn.nn.m
        ..nm.nn..mn.mm.m ..nn.mn..mn.mn.n ..nn.mn..nm.mn.n ..nm.nn..mn.nn.n
    """,
    T_MUSHROOM: """
        ................ ................ ................ ................
        ................ ................ ................ ................
        ................ ................ ......rrrr...... .....rRrrwr.....
        .....rrwrrr..... .......ww....... .......ww....... .......ww.......
    """,
    T_LILY_PAD: """
        .....pppppp..... ...pppPpppppp... ..ppppPppppPpp.. .pppppPpppPpppp.
        .ppPpppPpPppppp. ppppPPpPPppppppp pppppppPPPPPpppp pppppppP........
        pppppPPPP....... ppPPPppPPPp..... ppppppPpPpPPpppp .pppppPppPppppp.
        .ppppPpppPppppp. ..pPppppppPppp.. ...pppppppppp... .....pppppp.....
    """,
}
# Letter -> red, green, blue, share of the biome's tint.
_INK = {
    "g": (190, 200, 170, 1.0), "h": (146, 156, 130, 1.0), "s": (72, 120, 44, 0.0), "r": (204, 44, 36, 0.0),
    "R": (238, 92, 76, 0.0), "k": (60, 24, 20, 0.0), "y": (248, 220, 60, 0.0), "Y": (226, 172, 30, 0.0),
    "b": (64, 160, 240, 0.0), "B": (140, 214, 255, 0.0), "d": (128, 92, 44, 0.0), "n": (150, 196, 96, 0.0),
    "m": (116, 164, 72, 0.0), "w": (232, 226, 214, 0.0), "p": (40, 112, 44, 0.0), "P": (66, 142, 62, 0.0),
}  # fmt: skip


def _paint_plant(texels: np.ndarray, picture: str) -> np.ndarray:
    """Draw a picture of letters into (16, 16, 4) texels; returns their (16, 16) opacity."""
    letters = [line.ljust(TEXTURE_SIZE, ".") for line in picture.split()]
    opacity = np.array([[letter != "." for letter in line] for line in letters], np.float64)
    inked = np.array([[_INK.get(letter, (0, 0, 0, 0)) for letter in line] for line in letters], np.float64)
    # What is clear takes the mean ink, or coarser mips would grow dark.
    mean = inked[opacity > 0].mean(axis=0)
    texels[:] = np.where(opacity[..., None] > 0, inked, mean)
    return opacity


def _mip_pyramid(base: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    pyramid = np.zeros((NUM_TEXTURES, MIP_LEVELS, TEXTURE_SIZE, TEXTURE_SIZE, 5), np.float32)
    for level in range(MIP_LEVELS):
        size = TEXTURE_SIZE >> level
        pyramid[:, level, :size, :size, :4] = base
        pyramid[:, level, :size, :size, 4] = opacity
        if size > 1:
            base = base.reshape(NUM_TEXTURES, size // 2, 2, size // 2, 2, 4).mean(axis=(2, 4))
            opacity = opacity.reshape(NUM_TEXTURES, size // 2, 2, size // 2, 2).mean(axis=(2, 4))
    return pyramid
