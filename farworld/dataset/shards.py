"""Many episodes in few files: uncompressed tar shards and an index of where in them each episode begins.

    DIR/index.json              the shards, and for each its episodes with first byte and size
    DIR/shards/shard-000000.tar episodes one after the other, in WebDataset naming

A shard is what the files of its episodes are, one behind the other: `tarfile` and `webdataset` read it from the front,
one sample for each episode, and the index gives random access at the speed of single files. The index says what is in
the dataset: a shard can hold more than it names, so that a part of a dataset shares the shards of the whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farworld.dataset.format import end_of_tar

INDEX_FILE = "index.json"
SHARDS_FOLDER = "shards"
INDEX_FORMAT = "farworld-shards"
INDEX_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedEpisode:
    """Where an episode lies in a shard.

    Attributes:
        number: in the dataset; the shard's own names may be of another.
        start: the first byte of its first tar header.
        size: in bytes, padding included.
        num_frames: frames.
    """

    number: int
    start: int
    size: int
    num_frames: int

    @property
    def stop(self) -> int:
        """The byte behind it."""
        return self.start + self.size


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A shard and those of its episodes that belong to the dataset, in their order in the file.

    Attributes:
        file: its place in the dataset's folder, with slashes.
        num_bytes: of the file.
        episodes: where they lie.
    """

    file: str
    num_bytes: int
    episodes: tuple[PackedEpisode, ...]


def shard_file(number: int) -> str:
    """The place of a shard in the dataset's folder, from its number."""
    return f"{SHARDS_FOLDER}/shard-{number:06d}.tar"


def read_index(directory: str | os.PathLike) -> tuple[Shard, ...]:
    """The shards of a dataset; none if it has no index.json.

    Raises:
        ValueError: the file is damaged or of another version.
    """
    path = Path(directory) / INDEX_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ()
    return parse_index(text, os.fspath(path))


def parse_index(text: str, source: str = INDEX_FILE) -> tuple[Shard, ...]:
    """The shards that the text of an index.json names; `source` is what errors call it."""
    try:
        values = json.loads(text)
        if not isinstance(values, Mapping):
            raise ValueError(f"expected a JSON object, got a {type(values).__name__}")
        found = values.get("format"), values.get("version")
        if found != (INDEX_FORMAT, INDEX_VERSION):
            raise ValueError(f"expected {INDEX_FORMAT} version {INDEX_VERSION}, got {found[0]} version {found[1]}")
        return tuple(_shard_from_json(row) for row in values["shards"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{source} is no index of shards: {error!s}; pack or pull the dataset again") from error


def _shard_from_json(row: Mapping[str, Any]) -> Shard:
    episodes = tuple(
        PackedEpisode(number=number, start=start, size=size, num_frames=num_frames)
        for number, start, size, num_frames in row["episodes"]
    )
    numbers = [row["bytes"], *(n for e in episodes for n in (e.number, e.start, e.size, e.num_frames))]
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise ValueError(f"{row['file']} has sizes that are no whole numbers")
    folder, _, name = row["file"].partition("/")
    if folder != SHARDS_FOLDER or not name or "/" in name or "\\" in name or name.startswith("."):
        raise ValueError(f"expected files in {SHARDS_FOLDER}/, got {row['file']!r}")
    return Shard(file=row["file"], num_bytes=row["bytes"], episodes=episodes)


def index_to_json(shards: tuple[Shard, ...]) -> str:
    """The text of index.json; `parse_index` inverts it."""
    rows = [
        {
            "file": shard.file,
            "bytes": shard.num_bytes,
            "episodes": [[e.number, e.start, e.size, e.num_frames] for e in shard.episodes],
        }
        for shard in shards
    ]
    columns = ["number", "start", "size", "num_frames"]
    return json.dumps({"format": INDEX_FORMAT, "version": INDEX_VERSION, "columns": columns, "shards": rows}) + "\n"


def packed_numbers(directory: str | os.PathLike) -> set[int]:
    """The numbers of the episodes in shards."""
    return {episode.number for shard in read_index(directory) for episode in shard.episodes}


class ShardWriter:
    """Writes episodes into shards of about a wanted size, in a folder that nobody else has; close() ends the last.

    Args:
        directory: the dataset's folder.
        shard_bytes: a shard is ended before it would become larger; an episode is never split.

    Attributes:
        shards: what has been written.
    """

    def __init__(self, directory: Path, shard_bytes: int) -> None:
        self.shards: list[Shard] = []
        self._directory = directory
        self._shard_bytes = shard_bytes
        self._file: Any = None
        self._episodes: list[PackedEpisode] = []
        (directory / SHARDS_FOLDER).mkdir(exist_ok=True)

    def add(self, number: int, num_frames: int, members: bytes) -> None:
        """Add an episode, given as `StoredEpisode.renumbered` does."""
        start = self._episodes[-1].stop if self._episodes else 0
        if start and start + len(members) > self._shard_bytes:
            self.close()
            start = 0
        if self._file is None:
            self._file = open(self._directory / shard_file(len(self.shards)), "xb")  # noqa: SIM115 - closed by close
        self._file.write(members)
        episode = PackedEpisode(number=number, start=start, size=len(members), num_frames=num_frames)
        self._episodes.append(episode)

    def close(self) -> None:
        """End the shard that is being written; it is on disk when this returns."""
        if self._file is None:
            return
        with self._file as file:
            file.write(end_of_tar(self._episodes[-1].stop))
            file.flush()
            os.fsync(file.fileno())
            num_bytes = file.tell()
        name = shard_file(len(self.shards))
        self.shards.append(Shard(file=name, num_bytes=num_bytes, episodes=tuple(self._episodes)))
        self._file, self._episodes = None, []
