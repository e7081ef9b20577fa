"""A packed dataset that lies elsewhere, read like one on the disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from farworld.dataset.format import DamageError, StoredEpisode, end_of_tar, episode_name, open_episode
from farworld.dataset.reader import Dataset
from farworld.dataset.remote import RemoteDataset
from farworld.dataset.shards import index_to_json

HUB_PREFIX = "hf://"


class FetchedDataset(Dataset):
    """A packed dataset behind a URL or on the hub, of which only what is asked for is fetched.

    An episode that is read is fetched as a whole and kept in a folder, so whoever reads all of them has all of them
    on the disk in the end; `stream` goes through all and keeps none.

    Args:
        source: see `RemoteDataset`.
        folder: for what is kept, in a folder of its own for each state of the dataset; made when something is.

    Raises:
        ConnectionError: the source is not reached.
        ValueError: it is no packed dataset.
    """

    def __init__(self, source: str | Path, folder: str | os.PathLike) -> None:
        self.remote = RemoteDataset(source)
        self.spec, self.shards, self.bad = self.remote.spec, self.remote.shards, []
        places = sorted((e.number, shard, e) for shard, s in enumerate(self.shards) for e in s.episodes)
        self._places = [(self.shards[shard], packed) for _, shard, packed in places]
        self.episodes = [episode_name(number) for number, *_ in places]
        if len(set(self.episodes)) < len(self.episodes):
            raise ValueError(f"{self.remote.url}: its index names an episode twice; pack or push the dataset again")
        self.directory = Path(folder) / self.fingerprint[:16]
        self._kept: dict[int, StoredEpisode] = {}

    @property
    def fingerprint(self) -> str:
        """Names what the dataset holds, as far as its index tells."""
        text = json.dumps(self.spec.to_json(), sort_keys=True) + index_to_json(self.shards)
        return hashlib.sha256(text.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._places)

    def num_frames(self, i: int) -> int:
        """Frames of the i-th episode; it has one action fewer."""
        return self._places[i][1].num_frames

    def num_bytes(self, i: int) -> int:
        """Bytes that the i-th episode takes up."""
        return self._places[i][1].size

    def number(self, i: int) -> int:
        """The number of the i-th episode: 12 for episode-000012."""
        return self._places[i][1].number

    def path(self, i: int) -> Path:
        """Where the i-th episode is kept once it is read."""
        return self.directory / f"{self.episodes[i]}.tar"

    def stored(self, i: int) -> StoredEpisode:
        """The i-th episode, fetched if it is not kept yet."""
        if i not in self._kept:
            if not self.path(i).is_file():
                self._fetch(i)
            stored = open_episode(self.path(i), self.spec, number=self.number(i))
            stored.check(self.spec)
            self._kept[i] = stored
        return self._kept[i]

    def _fetch(self, i: int) -> None:
        """Fetch the i-th episode; several processes may do so at once."""
        shard, packed = self._places[i]
        [stored] = self.remote.episodes(shard, {packed.number})
        assert isinstance(stored.source, bytes)
        self.directory.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{packed.number}-", dir=self.directory)
        try:
            with open(handle, "wb") as file:
                file.write(stored.source)
                file.write(end_of_tar(len(stored.source)))
            os.replace(temporary, self.path(i))
        finally:
            Path(temporary).unlink(missing_ok=True)

    def stream(self, first: int = 0) -> Iterator[tuple[int, StoredEpisode]]:
        """Every episode with its place, shard by shard, each in memory; without the `first` ones of this order."""
        place = {self.number(i): i for i in range(len(self))}
        for shard in self.shards:
            numbers = [packed.number for packed in sorted(shard.episodes, key=lambda packed: packed.start)]
            wanted, first = numbers[first:], max(0, first - len(numbers))
            if wanted:
                for stored in self.remote.episodes(shard, frozenset(wanted)):
                    yield place[stored.number], stored

    @contextlib.contextmanager
    def naming(self, i: int) -> Iterator[None]:
        """Say which episode is damaged, and where."""
        try:
            yield
        except DamageError as error:
            raise ValueError(f"{self.episodes[i]} of {self.remote.url}: {error}; push the dataset again") from error

    def sample(self, among: list[int], num_bytes: int, seed: int) -> list[int]:
        """Some of the given episodes, drawn at random, that take up about so many bytes; one at least."""
        drawn = [among[k] for k in np.random.default_rng(seed).permutation(len(among))]
        total = np.cumsum([self.num_bytes(i) for i in drawn])
        return sorted(drawn[: max(1, int(np.searchsorted(total, num_bytes, side="right")))])


def open_dataset(source: str, folder: Path, *, skip_bad: bool = False) -> Dataset:
    """A dataset on this disk or elsewhere.

    Args:
        source: a dataset's folder; or what has `://` in it: `hf://owner/name[@revision]` for one on the hub, or the
            http(s) or file URL of a packed one's folder.
        folder: where episodes that are fetched are kept.
        skip_bad: see `Dataset`.

    Raises:
        FileNotFoundError, ConnectionError, ValueError: see `Dataset` and `FetchedDataset`.
    """
    if "://" not in source:
        return Dataset(source, skip_bad=skip_bad)
    if skip_bad:
        raise ValueError(f"--skip-bad needs a dataset on this disk; pull {source}, or leave it out")
    return FetchedDataset(source.removeprefix(HUB_PREFIX), folder)
