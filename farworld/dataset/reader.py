"""Reading a dataset: episodes by number, any range of frames of each."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from farworld.dataset.episode import DatasetSpec, Episode
from farworld.dataset.format import EPISODE_FILE, DamageError, StoredEpisode, end_of_tar, episode_name, open_episode
from farworld.dataset.shards import INDEX_FILE, SHARDS_FOLDER, PackedEpisode, Shard, read_index

DATASET_FILE = "dataset.json"
EPISODES_FOLDER = "episodes"
RECORDINGS_FILE = "recordings.jsonl"
CARD_FILE = "README.md"  # of a dataset on the hub
# What a dataset's folder holds; names with a dot in front are passed over.
KNOWN = (DATASET_FILE, EPISODES_FOLDER, RECORDINGS_FILE, INDEX_FILE, SHARDS_FOLDER, CARD_FILE)


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


def _visible(folder: Path) -> list[Path]:
    """What a folder holds, less files being written, locks, and what a killed writer left."""
    if not folder.is_dir():
        return []
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
        shards: where its packed episodes lie; empty if every episode has a file of its own.
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
        self.shards = read_index(directory)
        for path in _visible(self.directory):
            if path.name not in KNOWN or path.name in (EPISODES_FOLDER, SHARDS_FOLDER) and not path.is_dir():
                self.bad.append((path, f"foreign: this folder holds {', '.join(KNOWN)} only"))
        for path in _visible(self.directory / EPISODES_FOLDER):
            self._add(path, partial(_open_file, path, self.spec))
        self._add_shards()
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

    def _add_shards(self) -> None:
        files = {self.directory / shard.file: shard for shard in self.shards}
        for path in _visible(self.directory / SHARDS_FOLDER):
            if path not in files:
                self.bad.append((path, f"foreign: {INDEX_FILE} does not name it"))
        for path, shard in files.items():
            if reason := _shard_damage(path, shard):
                self.bad.append((path, f"{reason}; {len(shard.episodes)} episodes are in it"))
                continue
            for packed in shard.episodes:
                self._add(path, partial(_open_packed, path, packed, self.spec))

    def _drop_copies(self) -> None:
        """A file that was copied would be the same episode twice, and a clip of it may be held out and trained on."""
        first: dict[int | str, StoredEpisode] = {}
        for stored in self._stored:
            other = first.setdefault(stored.digest, stored)
            if other is not stored:
                self.bad.append((_path(stored), f"{stored.name} is a copy of {other.name} in {_path(other).name}"))
            elif first.setdefault(stored.number, stored) is not stored:
                self.bad.append(
                    (_path(stored), f"there is another {stored.name}, in {_path(first[stored.number]).name}")
                )
        self._stored = [stored for number, stored in first.items() if number == stored.number]

    def __len__(self) -> int:
        return len(self._stored)

    def num_frames(self, i: int) -> int:
        """Frames of the i-th episode; it has one action fewer."""
        return self.stored(i).num_frames

    def path(self, i: int) -> Path:
        """The file of the i-th episode."""
        return _path(self.stored(i))

    def number(self, i: int) -> int:
        """The number of the i-th episode: 12 for episode-000012."""
        return self.stored(i).number

    def source(self, i: int) -> str:
        """Where the i-th episode came from; see `Episode`."""
        return self.stored(i).header["source"]

    def policy(self, i: int) -> str:
        """What chose the actions of the i-th episode; empty if nobody said."""
        return self.stored(i).policy

    def seed(self, i: int) -> int:
        """What the environment of the i-th episode was reset with."""
        return self.stored(i).header["seed"]

    def terminated(self, i: int) -> bool:
        """Whether the environment ended the i-th episode."""
        return self.stored(i).header["terminated"]

    def truncated(self, i: int) -> bool:
        """Whether the i-th episode was cut for another reason."""
        return self.stored(i).header["truncated"]

    def stored(self, i: int) -> StoredEpisode:
        """Where the i-th episode lies."""
        return self._stored[i]

    def stream(self, first: int = 0) -> Iterator[tuple[int, StoredEpisode]]:
        """Every episode with its place, in the order that is read fastest; without the `first` ones of this order."""
        for i in range(first, len(self)):
            yield i, self.stored(i)

    @property
    def fingerprint(self) -> str:
        """Names what the dataset holds: equal for copies only."""
        digests = [stored.digest for stored in self._stored]
        return hashlib.sha256(json.dumps([self.episodes, digests]).encode()).hexdigest()

    def num_bytes(self, i: int) -> int:
        """Bytes that the i-th episode takes up."""
        return self.stored(i).stop - self.stored(i).start

    def frames(self, i: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """(stop - start, H, W, 3), uint8: frames of the i-th episode; only what is needed is decoded.

        Raises:
            ValueError: a range outside the episode, or damaged data.
        """
        with self.naming(i):
            return self.stored(i).frames(start, stop)

    def actions(self, i: int) -> np.ndarray:
        """(T,), int64: the actions of the i-th episode."""
        with self.naming(i):
            return self.stored(i).array("actions")

    def rewards(self, i: int) -> np.ndarray:
        """(T,), float32: the rewards of the i-th episode."""
        with self.naming(i):
            return self.stored(i).array("rewards")

    def env_actions(self, i: int) -> dict[str, np.ndarray]:
        """The environment's own actions in the i-th episode, (T, ...) each; see `Episode`."""
        with self.naming(i):
            return self.stored(i).env_actions()

    def episode(self, i: int) -> Episode:
        """The whole i-th episode."""
        with self.naming(i):
            return self.stored(i).episode()

    def verify(self, i: int) -> None:
        """Read the i-th episode in full; ValueError if anything differs from what was written."""
        self.stored(i).verify(self.spec)

    @contextlib.contextmanager
    def naming(self, i: int) -> Iterator[None]:
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
    if path.is_symlink() and not path.exists():
        raise DamageError(f"it refers to {os.readlink(path)}, which is not there; put that back")
    if not match or not path.is_file():
        raise DamageError("a foreign file: episodes are files named episode-000000.tar and so on")
    stored = open_episode(path, spec, number=int(match[1]))
    found, expected = path.stat().st_size, stored.stop + len(end_of_tar(stored.stop))
    if found != expected:
        word = "truncated" if found < expected else "too long"
        raise DamageError(f"{word}: {found} bytes where its index says {expected}")
    stored.check(spec)
    return stored


def _shard_damage(path: Path, shard: Shard) -> str:
    """What keeps a shard from being read at all; empty if nothing does."""
    if not path.is_file():
        where = f", it refers to {os.readlink(path)}" if path.is_symlink() else ""
        return f"missing{where}"
    found = path.stat().st_size
    if found != shard.num_bytes:
        return (
            f"{'truncated' if found < shard.num_bytes else 'too long'}: {found} bytes where {shard.num_bytes} should be"
        )
    return ""


def _open_packed(path: Path, packed: PackedEpisode, spec: DatasetSpec) -> StoredEpisode:
    """An episode that lies in a shard."""
    try:
        stored = open_episode(path, spec, number=packed.number, start=packed.start)
        if (stored.stop, stored.num_frames) != (packed.stop, packed.num_frames):
            raise DamageError(
                f"{stored.num_frames} frames up to byte {stored.stop} where {INDEX_FILE} says "
                f"{packed.num_frames} up to {packed.stop}"
            )
        stored.check(spec)
    except ValueError as error:
        raise DamageError(f"{episode_name(packed.number)}: {error}") from error
    return stored
