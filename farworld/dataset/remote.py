"""A packed dataset read over the network, shard by shard from front to back, with nothing on disk."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Set
from http.client import HTTPException
from pathlib import Path
from typing import Any

from farworld.dataset.episode import DatasetSpec
from farworld.dataset.format import DamageError, StoredEpisode, open_episode
from farworld.dataset.hub import parse_repository
from farworld.dataset.reader import DATASET_FILE
from farworld.dataset.shards import INDEX_FILE, Shard, parse_index

ATTEMPTS = 4  # to go on with a connection that broke, each after twice the time of the one before
_TIMEOUT_SECONDS = 60.0
_COMMIT_HEADER = "X-Repo-Commit"  # in which the hub says what a branch is at
_PIECE = 1 << 20  # bytes that are thrown away at once, where episodes are passed over


class RemoteDataset:
    """A packed dataset behind a URL: its description, and its episodes shard by shard. Picklable.

    Args:
        source: the dataset's folder as an http(s) or file URL or as a path, or a hub dataset `owner/name[@revision]`,
            whose revision is looked up once, so that a later push does not change it under way.

    Attributes:
        url: of the folder.
        spec: what it holds.
        shards: where its episodes lie.

    Raises:
        ConnectionError: it is not reached.
        ValueError: it is no packed dataset.
    """

    def __init__(self, source: str | Path) -> None:
        self._on_hub = False
        self.url = self._folder_url(str(source))
        with _open(self._address(DATASET_FILE), self._on_hub) as file:
            description, commit = file.read(), file.headers.get(_COMMIT_HEADER)
        if commit and self._on_hub:
            self.url = f"{self.url.rpartition('/')[0]}/{commit}"
        try:
            self.spec = DatasetSpec.from_json(json.loads(description))
        except ValueError as error:
            raise ValueError(f"{self._address(DATASET_FILE)} is not a dataset description: {error}") from error
        try:
            with _open(self._address(INDEX_FILE), self._on_hub) as file:
                self.shards: tuple[Shard, ...] = parse_index(file.read().decode(), self._address(INDEX_FILE))
        except FileNotFoundError as error:
            raise ValueError(f"{self.url} is not packed; pack it first: farworld data pack DIR OUT") from error

    def _folder_url(self, source: str) -> str:
        if urllib.parse.urlsplit(source).scheme in ("http", "https", "file"):
            return source.rstrip("/")
        if Path(source).is_dir():
            return Path(source).resolve().as_uri()
        from huggingface_hub import hf_hub_url

        try:
            name, revision = parse_repository(source)
        except ValueError as error:
            raise ValueError(
                f"expected the folder or URL of a packed dataset, or owner/name[@revision] on the hub, got {source!r}"
            ) from error
        self._on_hub = True
        return hf_hub_url(name, "", repo_type="dataset", revision=revision).rstrip("/")

    def _address(self, file: str) -> str:
        return f"{self.url}/{urllib.parse.quote(file)}"

    def episodes(self, shard: Shard, numbers: Set[int] | None = None) -> Iterator[StoredEpisode]:
        """The episodes of a shard, in its order, each in memory.

        Args:
            shard: one of `shards`.
            numbers: only these; None for all.

        Raises:
            ConnectionError: it is not reached, or the connection broke too often.
            DamageError: an episode is damaged.
        """
        reader = _Reader(self._address(shard.file), self._on_hub)
        for packed in sorted(shard.episodes, key=lambda packed: packed.start):
            if numbers is None or packed.number in numbers:
                data = reader.read(packed.start, packed.size)
                try:
                    stored = open_episode(data, self.spec, number=packed.number)
                    stored.check(self.spec)
                except DamageError as error:
                    raise DamageError(f"{self._address(shard.file)}: {error}") from error
                yield stored
        reader.close()


class _Reader:
    """Reads a file behind a URL forwards, and goes on where it was if the connection breaks."""

    def __init__(self, address: str, on_hub: bool) -> None:
        self._address = address
        self._on_hub = on_hub
        self._file: Any = None
        self._position = 0

    def read(self, start: int, size: int) -> bytes:
        """`size` bytes from `start` on, which is never before what was read last."""
        data = bytearray()
        attempt = 0
        while len(data) < size:
            try:
                if self._file is None:
                    begin = start + len(data)
                    self._file = _open(self._address, self._on_hub, begin)
                    self._position = begin if self._file.headers.get("Content-Range") else 0
                    if self._address.startswith("file:"):
                        self._position = self._file.fp.seek(begin)
                while self._position < start + len(data):
                    self._advance(min(_PIECE, start + len(data) - self._position))
                data += self._advance(size - len(data))
            except FileNotFoundError:
                raise
            except (OSError, HTTPException) as error:
                self.close()
                attempt += 1
                if attempt >= ATTEMPTS:
                    raise ConnectionError(
                        f"{self._address}: the connection broke {attempt} times at byte {start + len(data)} ({error})"
                    ) from error
                time.sleep(2 ** (attempt - 2))
        return bytes(data)

    def _advance(self, size: int) -> bytes:
        piece = self._file.read(size)
        if not piece:
            raise ConnectionError(f"it ends at byte {self._position}")
        self._position += len(piece)
        return piece

    def close(self) -> None:
        """Let go of the connection."""
        if self._file is not None:
            self._file.close()
        self._file = None


def _open(address: str, on_hub: bool, start: int = 0) -> Any:
    """The file behind a URL, from a byte on if the server can do that; like a response of urllib.

    Raises:
        FileNotFoundError: the server has no such file.
        ConnectionError: the server is not reached, or refuses.
    """
    request = urllib.request.Request(address)
    if start:
        request.add_header("Range", f"bytes={start}-")
    if on_hub:
        from huggingface_hub import get_token

        if token := get_token():
            # The hub sends on to a store that has keys of its own and would not have this one.
            request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        return urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise FileNotFoundError(f"no file {address}") from error
        advice = (
            "; for a private dataset log in with `hf auth login`, or set HF_TOKEN" if error.code in (401, 403) else ""
        )
        raise ConnectionError(f"{address} could not be fetched: {error.code} {error.reason}{advice}") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, FileNotFoundError) or "No such file" in str(error.reason):
            raise FileNotFoundError(f"no file {address}") from error
        raise ConnectionError(f"{address} could not be reached: {error.reason}") from error
