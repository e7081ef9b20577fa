"""Playing without a window: a script of keys in, frames and a video out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from farworld.play.keys import REWIND_KEY
from farworld.play.player import NO_REWIND, Player
from farworld.play.script import Script
from farworld.video import GifWriter, VideoWriter

MIN_VIDEO_SIDE = 256  # pixels; video players blur what is smaller


@contextlib.contextmanager
def open_video(path: Path | None, player: Player) -> Iterator[VideoWriter | GifWriter | None]:
    """A video of the player's frames, enlarged by a whole number; without a path nothing is written."""
    if path is None:
        yield None
        return
    height, width = player.frame.shape[:2]
    scale = -(-MIN_VIDEO_SIDE // min(height, width))
    scale += scale % 2 * (height % 2 | width % 2)  # H.264 wants even sides
    writer = GifWriter if path.suffix == ".gif" else VideoWriter
    with writer(path, player.frames_per_second, height, width, scale=scale) as video:
        yield video


def play_script(player: Player, script: Script, num_frames: int, video: VideoWriter | GifWriter | None = None) -> None:
    """Show this many frames; where the script presses nothing and the world has no idle action, it holds still.

    Raises:
        ValueError: the script rewinds what cannot be rewound.
    """
    if script.rewinds and not player.can_rewind:
        raise ValueError(f"{NO_REWIND}: leave {REWIND_KEY} out of the script, or play a learned world (--ckpt)")
    for entry in script.per_frame(num_frames):
        player.keys.hold(entry.keys)
        if entry.rewind:
            player.rewind()
        else:
            player.tick(entry.action)
        if video:
            video.write(player.frame)
