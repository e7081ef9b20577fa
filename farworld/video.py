"""Frames to files that people look at: mp4, PNG, contact sheets; and pictures back from PNG."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np


class VideoWriter:
    """Write frames to an H.264 mp4; use as a context manager.

    Args:
        path: the file to write.
        frames_per_second: the speed of the video.
        height: of the frames, in pixels.
        width: of the frames, in pixels.
        scale: each pixel becomes scale x scale pixels, so that small frames survive the codec and the player.
        lossless: keep every pixel, as RGB, which browsers and many players don't show.
        keyframe_interval: frames from one that is decoded without others to the next; None leaves it to the codec.

    Raises:
        ValueError: the size is odd (H.264 needs even, unless lossless), or not positive.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        frames_per_second: float,
        height: int,
        width: int,
        *,
        scale: int = 1,
        lossless: bool = False,
        keyframe_interval: int | None = None,
    ) -> None:
        odd = not lossless and (height * scale % 2 or width * scale % 2)
        if scale < 1 or height < 1 or width < 1 or odd:
            raise ValueError(f"a video needs even sides, got {height}x{width} times {scale}; use an even scale")
        import av

        self._av = av
        self._shape = (height, width, 3)
        self._scale = scale
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._closed = False
        self._container = av.open(os.fspath(path), "w")
        rate = Fraction(frames_per_second).limit_denominator(1001)
        codec, options = ("libx264rgb", {"qp": "0"}) if lossless else ("libx264", {"crf": "16"})
        if keyframe_interval is not None:
            options["g"] = str(keyframe_interval)
        self._stream = cast(Any, self._container.add_stream(codec, rate=rate, options=options))
        self._stream.height, self._stream.width = height * scale, width * scale
        self._stream.pix_fmt = "rgb24" if lossless else "yuv420p"

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, frame: np.ndarray) -> None:
        """Add one frame: (H, W, 3), uint8."""
        if frame.dtype != np.uint8 or frame.shape != self._shape:
            raise ValueError(f"frame must be uint8 {self._shape}, got {frame.dtype} {frame.shape}")
        if self._scale > 1:
            frame = frame.repeat(self._scale, 0).repeat(self._scale, 1)
        picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        """Finish the file."""
        if self._closed:
            return
        self._closed = True
        try:
            self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()


def write_png(path: str | os.PathLike, frame: np.ndarray) -> None:
    """Write one picture, (H, W, 3) uint8, as PNG."""
    from PIL import Image

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(frame).save(path, format="PNG")


def decode_png(data: bytes) -> np.ndarray:
    """The picture of a PNG file's content: (H, W, 3), uint8.

    Raises:
        ValueError: it is not a PNG file.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            return np.array(picture.convert("RGB"))
    except (OSError, SyntaxError) as error:  # the latter for a chunk that is damaged
        raise ValueError(f"not a PNG file, or damaged ({error})") from error


def contact_sheet(frames: Sequence[np.ndarray] | np.ndarray, columns: int, gap: int = 2) -> np.ndarray:
    """Lay frames out in rows, left to right and top to bottom.

    Args:
        frames: (N, H, W, 3), uint8, N at least 1.
        columns: frames in a row.
        gap: white pixels between frames.

    Returns:
        The sheet: (height, width, 3), uint8.
    """
    pictures = np.asarray(frames)
    if pictures.ndim != 4 or not len(pictures) or columns < 1:
        raise ValueError(f"a sheet needs frames (N, H, W, 3) and columns >= 1, got {pictures.shape}, {columns}")
    count, height, width, channels = pictures.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return sheet
