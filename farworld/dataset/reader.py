"""Reading a dataset: episodes by number, any range of frames of each."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from farworld.dataset.episode import DatasetSpec, Episode
from farworld.dataset.format import EPISODE_FILE, DamageError, StoredEpisode, end_of_tar, open_episode

DATASET_FILE = "dataset.json"
EPISODES_FOLDER = "episodes"
RECORDINGS_FILE = "recordings.jsonl"
# What a dataset's folder holds; names with a dot in front are passed over.
KNOWN = (DATASET_FILE, EPISODES_FOLDER, RECORDINGS_FILE)


def read_spec(directory: str | os.PathLike) -> DatasetSpec:
    """Read dataset.json.

    Raises:
        FileNotFoundError: there is no such folder, or no dataset.json in it.
        ValueError: the file is damaged or of another version.
    """
    path = Path(directory) / "dataset.json"
    if not path.is_file():
        what = "no such folder" if not Path(directory).is_dir() else "the folder has no dataset.json"
        raise FileNotFoundError(
            f"no dataset at {directory}: {what}; "
            f"record one with `farworld record --env maze --episodes 10 --out {directory}`"
        )
    try:
        return DatasetSpec.from_json(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path} is not a dataset description: {error}") from error


def recordings(directory: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of recordings.jsonl: what was added when, by what; half a line, of somebody who died, is left out."""
    path = Path(directory) / RECORDINGS_FILE
    if not path.is_file():
        return []
    rows = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def packed_numbers(directory: Path) -> set[int]:
    """The numbers of the episodes in shards."""
    return set()


def _visible(folder: Path) -> list[Path]:
    """What a folder holds, less files being written, locks, and what a killed writer left."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


class Dataset:
    """A recorded dataset, open for reading. Picklable; keeps no file open; safe to share between threads.

    Args:
        directory: the folder with dataset.json.
        skip_bad: leave damaged and foreign files out instead of raising; they are listed in `bad`. Opening
            finds all damage but that of frames, which is found when they are decoded, or by verify.

    Attributes:
        directory: the folder.
        spec: what the dataset holds.
        episodes: the names of the episodes, by number.
        bad: damaged and foreign files, each with the reason.

    Raises:
        FileNotFoundError: no dataset there.
        ValueError: a damaged or foreign file, unless skip_bad.
    """

    def __init__(self, directory: str | os.PathLike, *, skip_bad: bool = False) -> None:
        self.directory = Path(directory)
        self.spec = read_spec(directory)
        self.bad: list[tuple[Path, str]] = []
        self._stored: list[StoredEpisode] = []
        folder = self.directory / EPISODES_FOLDER
        for path in _visible(self.directory):
            if path.name not in KNOWN or path.name == folder.name and not path.is_dir():
                self.bad.append((path, f"foreign: this folder holds {', '.join(KNOWN)} only"))
        for path in _visible(folder) if folder.is_dir() else ():
            self._add(path, lambda path=path: _open_file(path, self.spec))
        self._drop_copies()
        if self.bad and not skip_bad:
            path, reason = self.bad[0]
            raise ValueError(
                f"{path}: {reason} ({len(self.bad)} bad of {len(self.bad) + len(self)} files); "
                "remove it, or leave such files out with --skip-bad"
            )
        self._stored.sort(key=lambda stored: stored.number)
        self.episodes = [stored.name for stored in self._stored]

    def _add(self, path: Path, open_stored: Callable[[], StoredEpisode]) -> None:
        try:
            self._stored.append(open_stored())
        except ValueError as error:
            self.bad.append((path, str(error)))
        except OSError as error:
            self.bad.append((path, f"cannot be read: {error.strerror or error}"))

    def _drop_copies(self) -> None:
        """A file that was copied would be the same episode twice, and a clip of it may be held out and trained on."""
        first: dict[str, StoredEpisode] = {}
        for stored in self._stored:
            other = first.setdefault(stored.digest, stored)
            if other is not stored:
                self.bad.append((_path(stored), f"a copy of {_path(other).name}, whose episode is in the dataset already"))
        self._stored = list(first.values())

    def __len__(self) -> int:
        return len(self._stored)

    def num_frames(self, i: int) -> int:
        """Frames of the i-th episode; it has one action fewer."""
        return self._stored[i].num_frames

    def path(self, i: int) -> Path:
        """The file of the i-th episode."""
        return _path(self._stored[i])

    def number(self, i: int) -> int:
        """The number of the i-th episode: 12 for episode-000012."""
        return self._stored[i].number

    def source(self, i: int) -> str:
        """Where the i-th episode came from; see `Episode`."""
        return self._stored[i].header["source"]

    def policy(self, i: int) -> str:
        """What chose the actions of the i-th episode; empty if nobody said."""
        return self._stored[i].policy

    def seed(self, i: int) -> int:
        """What the environment of the i-th episode was reset with."""
        return self._stored[i].header["seed"]

    def terminated(self, i: int) -> bool:
        """Whether the environment ended the i-th episode."""
        return self._stored[i].header["terminated"]

    def truncated(self, i: int) -> bool:
        """Whether the i-th episode was cut for another reason."""
        return self._stored[i].header["truncated"]

    def num_bytes(self, i: int) -> int:
        """Bytes that the i-th episode takes up."""
        return self._stored[i].stop - self._stored[i].start

    def frames(self, i: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """(stop - start, H, W, 3), uint8: frames of the i-th episode; only what is needed is decoded.

        Raises:
            ValueError: a range outside the episode, or damaged data.
        """
        with self._naming(i):
            return self._stored[i].frames(start, stop)

    def actions(self, i: int) -> np.ndarray:
        """(T,), int64: the actions of the i-th episode."""
        with self._naming(i):
            return self._stored[i].array("actions")

    def rewards(self, i: int) -> np.ndarray:
        """(T,), float32: the rewards of the i-th episode."""
        with self._naming(i):
            return self._stored[i].array("rewards")

    def env_actions(self, i: int) -> dict[str, np.ndarray]:
        """The environment's own actions in the i-th episode, (T, ...) each; see `Episode`."""
        with self._naming(i):
            return self._stored[i].env_actions()

    def episode(self, i: int) -> Episode:
        """The whole i-th episode."""
        with self._naming(i):
            return self._stored[i].episode()

    def verify(self, i: int) -> None:
        """Read the i-th episode in full; ValueError if anything differs from what was written."""
        self._stored[i].verify(self.spec)

    @contextlib.contextmanager
    def _naming(self, i: int) -> Iterator[None]:
        """Say which file is damaged, and what to do."""
        try:
            yield
        except DamageError as error:
            raise ValueError(
                f"{self.path(i)}: {error}; run `farworld data verify {self.directory}` "
                "to name all damaged files, and remove them"
            ) from error


def _path(stored: StoredEpisode) -> Path:
    assert isinstance(stored.source, Path)
    return stored.source


def _open_file(path: Path, spec: DatasetSpec) -> StoredEpisode:
    """An episode that has a file of its own."""
    match = EPISODE_FILE.fullmatch(path.name)
    if not match or not path.is_file():
        raise DamageError("a foreign file: episodes are files named episode-000000.tar and so on")
    stored = open_episode(path, spec, number=int(match[1]))
    found, expected = path.stat().st_size, stored.stop + len(end_of_tar(stored.stop))
    if found != expected:
        word = "truncated" if found < expected else "too long"
        raise DamageError(f"{word}: {found} bytes where its index says {expected}")
    stored.check(spec)
    return stored
