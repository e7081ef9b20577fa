"""Import a folder of videos, such as UCF-101 or BAIR: an episode for each, with its class as a label, or without.

Nobody acts in them. A label is stored as what models are conditioned on anyway: an action that stays the same for the
whole episode. Without labels the one action means that time goes on.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from farworld.actions import NO_ACTIONS, Action, ActionVocabulary
from farworld.dataset import DatasetSpec, DatasetWriter, Episode, create_or_open, read_spec
from farworld.dataset.reader import DATASET_FILE
from farworld.envs.exchange import digest_of
from farworld.envs.frames import Fit, fit_square
from farworld.envs.teco import known_digests

SUFFIXES = (".avi", ".mp4", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".webm")
SAME_RATE = 0.01  # relative difference of two rates that are taken for the same


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoOptions:
    """How videos become episodes.

    Attributes:
        size: height and width of the frames, in pixels.
        interval: every how many frames of a video one is taken, from the first on.
        fit: how a frame that is no square becomes one.
        labels: whether the folder that a video lies in is its class.
        env_id: of which world they are; empty takes the source's name.
    """

    size: int
    interval: int = 1
    fit: Fit = "crop"
    labels: bool = False
    env_id: str = ""

    def __post_init__(self) -> None:
        if self.size < 1 or self.interval < 1:
            raise ValueError(f"size and interval must be 1 or more, got {self.size} and {self.interval}")


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoImport:
    """What an import did.

    Attributes:
        episodes: that were added.
        frames: of these.
        known: videos that the dataset had already.
        bad: videos that were left out.
        other_rates: of the added ones, those that run at another speed than the dataset says.
        frames_per_second: of the dataset.
    """

    episodes: int
    frames: int
    known: int
    bad: int
    other_rates: int
    frames_per_second: float | None


def find_videos(source: Path) -> list[Path]:
    """The videos below a folder, or the one that is meant, in an order that mixes the folders but is always the same.

    The last episodes of a dataset are held out in training: they must not all be of one class.

    Raises:
        FileNotFoundError: nothing there.
    """
    files = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise FileNotFoundError(
            f"no videos at {source}: expected a folder with files that end in {', '.join(SUFFIXES)}"
        )
    return [files[i] for i in np.random.default_rng(0).permutation(len(files))]


def read_video(path: Path, options: VideoOptions) -> tuple[np.ndarray, float]:
    """The frames of a video, (F, size, size, 3), uint8, F at least 2, and their number a second.

    Raises:
        ValueError: it cannot be decoded, does not say how fast it runs, or is too short.
    """
    import av

    try:
        with av.open(os.fspath(path)) as container:
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate
            frames = [
                fit_square(frame.to_ndarray(format="rgb24"), options.size, options.fit)
                for index, frame in enumerate(container.decode(stream))
                if index % options.interval == 0
            ]
    except (av.error.FFmpegError, IndexError, ValueError) as error:
        raise ValueError(f"{path} cannot be decoded as a video ({error})") from error
    if not rate:
        raise ValueError(f"{path} does not say how many frames a second it has; convert it")
    if len(frames) < 2:
        raise ValueError(f"{path} has {len(frames)} frames, {options.interval} apart, and an episode needs 2 or more")
    return np.stack(frames), float(rate) / options.interval


def import_videos(
    source: str | os.PathLike,
    directory: str | os.PathLike,
    options: VideoOptions,
    *,
    on_file: Callable[[], None] = lambda: None,
    on_bad: Callable[[str], None] | None = None,
) -> VideoImport:
    """Add videos to a dataset; one that it has already is passed over, so that an import goes on when run again.

    Args:
        source: a folder, searched to any depth, or one video.
        directory: the dataset's folder; made if it is not there.
        options: how they become episodes.
        on_file: called after each video.
        on_bad: called with what is wrong with a video that is left out; None stops there instead.

    Raises:
        FileNotFoundError: nothing to import.
        ValueError: a video is bad and `on_bad` is None, or the dataset holds something else; what came before is kept.
    """
    source, directory = Path(source), Path(directory)
    files = find_videos(source)
    vocabulary = _vocabulary(source, files, directory) if options.labels else NO_ACTIONS
    known = known_digests(directory)
    lengths: list[int] = []
    num_known = bad = other_rates = 0
    with contextlib.ExitStack() as stack:
        writer: DatasetWriter | None = None
        for path in files:
            label = path.parent.name if options.labels else vocabulary.names[0]
            digest = digest_of(path.read_bytes(), label)
            if digest in known:
                num_known += 1
                on_file()
                continue
            known.add(digest)
            try:
                frames, rate = read_video(path, options)
            except ValueError as error:
                if on_bad is None:
                    raise ValueError(f"{error}; remove it, or leave such files out with --skip-bad") from error
                on_bad(str(error))
                bad += 1
                on_file()
                continue
            if writer is None:
                writer = stack.enter_context(
                    create_or_open(directory, _spec(source, directory, vocabulary, rate, options))
                )
                writer.note(what="import", source=os.fspath(source))
            actions = np.full(len(frames) - 1, vocabulary.index(label), np.int64)
            writer.write(
                Episode(
                    frames=frames, actions=actions, rewards=np.zeros(len(actions), np.float32), seed=0,
                    index=writer.claim(1)[0], source=f"{path.name} {digest}",
                )
            )  # fmt: skip
            expected = writer.spec.frames_per_second
            other_rates += abs(rate - expected) > SAME_RATE * expected
            lengths.append(len(frames))
            on_file()
        frames_per_second = writer.spec.frames_per_second if writer else None
    return VideoImport(
        episodes=len(lengths), frames=sum(lengths), known=num_known, bad=bad, other_rates=other_rates,
        frames_per_second=frames_per_second,
    )  # fmt: skip


def _vocabulary(source: Path, files: list[Path], directory: Path) -> ActionVocabulary:
    """The classes, which are the names of the folders that videos lie in; those of the dataset if it has them all."""
    loose = next((path for path in files if path.parent == source), None)
    if loose is not None:
        raise ValueError(
            f"with --labels each video lies in a folder named after its class, and {loose} lies in none; "
            f"import it without --labels, or move it to {source / 'CLASS' / loose.name}"
        )
    names = sorted({path.parent.name for path in files})
    if (directory / DATASET_FILE).is_file() and set(names) <= set(read_spec(directory).action_vocabulary.names):
        return read_spec(directory).action_vocabulary
    return ActionVocabulary(tuple(Action(name=name) for name in names))


def _spec(
    source: Path, directory: Path, vocabulary: ActionVocabulary, rate: float, options: VideoOptions
) -> DatasetSpec:
    """Of a new dataset, or of what is added to one, whose first video decided how fast it is."""
    if (directory / DATASET_FILE).is_file():
        rate = read_spec(directory).frames_per_second
    return DatasetSpec(
        env_id=options.env_id or f"video/{source.resolve().stem if source.is_file() else source.resolve().name}",
        env_kwargs={"interval": options.interval, "fit": options.fit},
        policy="imported",
        height=options.size,
        width=options.size,
        frames_per_second=rate,
        action_vocabulary=vocabulary,
    )
