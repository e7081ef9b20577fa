"""Frames to files that people look at: mp4, GIF, PNG, contact sheets; and pictures back from mp4 and PNG."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

GIF_COLOURS = 256
PALETTE_FRAMES = 32  # that the colours of a GIF are chosen by


class VideoWriter:
    """Write frames to an H.264 mp4; use as a context manager.

    Args:
        path: the file to write, or an open one.
        frames_per_second: the speed of the video.
        height: of the frames, in pixels.
        width: of the frames, in pixels.
        scale: each pixel becomes scale x scale pixels, so that small frames survive the codec and the player.
        lossless: keep every pixel, as RGB, which browsers and many players don't show.
        keyframe_interval: frames from one that is decoded without others to the next; None leaves it to the codec.
        crf: how much may be lost, from 0 to 51; 23 is the codec's own choice.

    Raises:
        ValueError: the size is odd (H.264 needs even, unless lossless), or not positive.
    """

    def __init__(
        self,
        path: str | os.PathLike | BinaryIO,
        frames_per_second: float,
        height: int,
        width: int,
        *,
        scale: int = 1,
        lossless: bool = False,
        keyframe_interval: int | None = None,
        crf: int = 16,
    ) -> None:
        odd = not lossless and (height * scale % 2 or width * scale % 2)
        if scale < 1 or height < 1 or width < 1 or odd:
            raise ValueError(f"a video needs even sides, got {height}x{width} times {scale}; use an even scale")
        import av

        self._av = av
        self._shape = (height, width, 3)
        self._scale = scale
        self._lossless = lossless
        self._closed = False
        if isinstance(path, (str, os.PathLike)):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_bytes(b"")  # raises with the name of what cannot be written; av would come later, without
            self._container = av.open(os.fspath(path), "w")
        else:
            self._container = av.open(path, "w", format="mp4")
        rate = Fraction(frames_per_second).limit_denominator(1001)
        codec, options = ("libx264rgb", {"qp": "0"}) if lossless else ("libx264", {"crf": str(crf)})
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
        _check_frame(frame, self._shape)
        if self._scale > 1:
            frame = frame.repeat(self._scale, 0).repeat(self._scale, 1)
        picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        if not self._lossless:  # as the ffmpeg command does it; left to itself the codec takes a coarser way
            picture = picture.reformat(format="yuv420p", interpolation="BICUBIC")
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


class GifWriter:
    """Write frames to a GIF that plays again and again; use as a context manager.

    All frames share 256 colours, so that they are kept until it is closed; without a frame no file is written.

    Args:
        path: the file to write.
        frames_per_second: the speed, to a hundredth of a second a frame, whose rests are carried on; 50 at most.
        height: of the frames, in pixels.
        width: of the frames, in pixels.
        scale: each pixel becomes scale x scale pixels.

    Raises:
        ValueError: it is faster than a GIF can be.
    """

    def __init__(
        self, path: str | os.PathLike, frames_per_second: float, height: int, width: int, *, scale: int = 1
    ) -> None:
        if not 0 < frames_per_second <= 50:
            raise ValueError(f"a GIF shows 50 frames a second at most, got {frames_per_second}; write an .mp4 instead")
        self._path = Path(path)
        self._frames_per_second = frames_per_second
        self._shape = (height, width, 3)
        self._scale = scale
        self._frames: list[np.ndarray] = []

    def __enter__(self) -> GifWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, frame: np.ndarray) -> None:
        """Add one frame: (H, W, 3), uint8."""
        _check_frame(frame, self._shape)
        self._frames.append(frame.copy())

    def close(self) -> None:
        """Choose the colours, and write the file."""
        from PIL import Image

        frames, self._frames = self._frames, []
        if not frames:
            return
        some = np.concatenate(frames[:: -(-len(frames) // PALETTE_FRAMES)])
        palette = Image.fromarray(some).quantize(GIF_COLOURS)
        height, width = self._shape[0] * self._scale, self._shape[1] * self._scale
        pictures = [
            Image.fromarray(frame)
            .quantize(palette=palette, dither=Image.Dither.NONE)
            .resize((width, height), Image.Resampling.NEAREST)
            for frame in frames
        ]
        ends = [round(100 * index / self._frames_per_second) for index in range(len(frames) + 1)]
        durations = [10 * (end - start) for start, end in zip(ends, ends[1:], strict=False)]  # in ms
        self._path.parent.mkdir(parents=True, exist_ok=True)
        pictures[0].save(
            self._path, format="GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0
        )


def _check_frame(frame: np.ndarray, shape: tuple[int, int, int]) -> None:
    if frame.dtype != np.uint8 or frame.shape != shape:
        raise ValueError(f"frame must be uint8 {shape}, got {frame.dtype} {frame.shape}")


def encode_mp4(frames: np.ndarray, frames_per_second: float, *, scale: int = 1, crf: int = 16) -> bytes:
    """The content of an H.264 mp4 file of frames (F, H, W, 3), uint8; see `VideoWriter`."""
    file = io.BytesIO()
    with VideoWriter(file, frames_per_second, *frames.shape[1:3], scale=scale, crf=crf) as video:
        for frame in frames:
            video.write(frame)
    return file.getvalue()


def decode_mp4(data: bytes) -> np.ndarray:
    """The frames of an mp4 file's content: (F, H, W, 3), uint8."""
    import av

    with av.open(io.BytesIO(data), "r") as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


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
