"""Import the TECO data sets (arXiv:2210.02396) as their authors publish them.

The two differ in what an action belongs to. A DMLab file stores the action taken after frame t, as we do, so
the last one, whose result was not recorded, is dropped. A Minecraft file stores the action that produced
frame t, with a placeholder at frame 0, so the first one is dropped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from farworld.actions import Action, ActionVocabulary
from farworld.dataset import Dataset, DatasetSpec, Episode, create_or_open

TecoName = Literal["dmlab", "minecraft"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    """How one of the data sets is stored.

    Attributes:
        suffix: of the files that hold the frames.
        frames_per_second: of the world.
        action_vocabulary: the meaning of the stored numbers.
        load: the frames and, aligned to our timing, the actions of one file.
    """

    suffix: str
    frames_per_second: float
    action_vocabulary: ActionVocabulary
    load: Callable[[Path], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportResult:
    """What an import did: episodes and frames added, and episodes that the dataset had already."""

    episodes: int
    frames: int
    known: int


def _arrays(path: Path, *names: str) -> list[np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return [file[name] for name in names]
    except (KeyError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a TECO file: expected an npz with {' and '.join(names)} ({error})") from error


def _load_dmlab(path: Path) -> tuple[np.ndarray, np.ndarray]:
    frames, actions = _arrays(path, "video", "actions")
    if len(actions) != len(frames):
        raise ValueError(f"{path} has {len(frames)} frames and {len(actions)} actions; expected as many of both")
    return frames, actions[:-1]


def _load_minecraft(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import av

    try:
        with av.open(os.fspath(path)) as video:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])
    except (av.error.FFmpegError, IndexError, ValueError) as error:
        raise ValueError(f"{path} cannot be decoded as a video ({error})") from error
    (actions,) = _arrays(path.with_suffix(".npz"), "actions")
    if len(actions) not in (len(frames), len(frames) + 1):  # the files may have one entry too many
        raise ValueError(f"{path} has {len(frames)} frames and {len(actions)} actions; expected as many, or one more")
    return frames, actions[1 : len(frames)]


_LAYOUTS = {
    "dmlab": _Layout(
        suffix=".npz",
        frames_per_second=7.5,
        action_vocabulary=ActionVocabulary(
            (
                Action(name="turn_left", keys=("left",)),
                Action(name="turn_right", keys=("right",)),
                Action(name="forward", keys=("up",)),
            )
        ),
        load=_load_dmlab,
    ),
    "minecraft": _Layout(
        suffix=".mp4",
        frames_per_second=20.0,
        action_vocabulary=ActionVocabulary(
            (
                Action(name="none"),  # only ever the placeholder at frame 0
                Action(name="forward", keys=("up",)),
                Action(name="yaw_left", keys=("left",)),
                Action(name="yaw_right", keys=("right",)),
            )
        ),
        load=_load_minecraft,
    ),
}


def find_files(name: TecoName, source: str | os.PathLike) -> list[Path]:
    """The files with frames in a source, which is one file or a folder that is searched to any depth.

    Raises:
        FileNotFoundError: nothing there.
    """
    source, suffix = Path(source), _LAYOUTS[name].suffix
    files = [source] if source.is_file() else sorted(source.rglob(f"*{suffix}"))
    if not files:
        raise FileNotFoundError(
            f"no TECO {name} data at {source}: expected a {suffix} file, or a folder with such files"
        )
    return files


def _digest(path: Path) -> str:
    """What identifies a source file wherever it lies: a hash of it and of the actions beside it."""
    digest = hashlib.sha256()
    for part in sorted({path, path.with_suffix(".npz")}):
        if part.is_file():
            digest.update(part.read_bytes())
    return f"sha256:{digest.hexdigest()[:32]}"


def known_digests(directory: Path) -> set[str]:
    """What the dataset was given before; nothing if it does not exist yet."""
    if not (directory / "dataset.json").is_file():
        return set()
    dataset = Dataset(directory, skip_bad=True)
    return {dataset.source(i).rpartition(" ")[2] for i in range(len(dataset))}


def _new_episodes(name: TecoName, files: list[Path], known: set[str], on_file: Callable[[], None]) -> Iterator[Episode]:
    """The episodes that are not known yet, numbered 0; on_file is called when the caller is done with one."""
    for path in files:
        digest = _digest(path)
        if digest not in known:
            known.add(digest)
            frames, actions = _LAYOUTS[name].load(path)
            try:
                yield Episode(
                    frames=frames,
                    actions=actions.astype(np.int64),
                    rewards=np.zeros(len(actions), np.float32),
                    seed=0,
                    index=0,
                    source=f"{path.name} {digest}",
                )
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
        on_file()


def _spec(name: TecoName, frames: np.ndarray) -> DatasetSpec:
    layout = _LAYOUTS[name]
    return DatasetSpec(
        env_id=f"teco/{name}",
        policy="imported",
        height=frames.shape[1],
        width=frames.shape[2],
        frames_per_second=layout.frames_per_second,
        action_vocabulary=layout.action_vocabulary,
    )


def import_teco(
    name: TecoName,
    source: str | os.PathLike,
    directory: str | os.PathLike,
    *,
    on_file: Callable[[], None] = lambda: None,
) -> ImportResult:
    """Add TECO episodes to a dataset; a file that it has already is passed over.

    Args:
        name: which data set.
        source: a file of it or a folder.
        directory: the dataset's folder; made if it is not there.
        on_file: called after each file of the source.

    Raises:
        FileNotFoundError: nothing to import.
        ValueError: a source file is damaged, or the dataset holds something else.
    """
    files = find_files(name, source)
    episodes = _new_episodes(name, files, known_digests(Path(directory)), on_file)
    first = next(episodes, None)
    if first is None:
        return ImportResult(episodes=0, frames=0, known=len(files))
    lengths = []
    with create_or_open(directory, _spec(name, first.frames)) as writer:
        writer.note(what="import", source=f"teco/{name}")
        free = writer.free_indices(len(files))
        for index, episode in zip(free, itertools.chain([first], episodes), strict=False):
            try:
                writer.write(dataclasses.replace(episode, index=index))
            except ValueError as error:
                raise ValueError(f"{episode.source} does not fit: {error}") from error
            lengths.append(len(episode.frames))
    return ImportResult(episodes=len(lengths), frames=sum(lengths), known=len(files) - len(lengths))
