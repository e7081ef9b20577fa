"""One episode as the members of a tar file, in WebDataset naming.

`<name>.episode.json` comes first and lists every other member with size and checksum, so that one read of a few
kilobytes opens an episode: `<name>.frames-0000.zst` holds frames 0 to 15 as raw uint8 behind zstd, and so on;
`<name>.actions.npy`, `.rewards.npy`, `.terminated.npy`, `.truncated.npy` the rest, and one `.env_action.<key>.npy`
for each part of the environment's own action space.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import operator
import re
import tarfile
import urllib.parse
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from farworld.actions import ACTION_TIMING
from farworld.dataset.episode import (
    FORMAT_VERSION,
    READABLE_VERSIONS,
    DatasetSpec,
    Episode,
    check_actions,
    check_episode,
)
from farworld.dataset.spaces import check_env_actions

CHUNK_FRAMES = 16  # frames behind one zstd member: a random clip of 16 frames touches two of them at most
EPISODE_FORMAT = "farworld-episode"
EPISODE_FILE = re.compile(r"episode-(\d{6,})\.tar")

_INDEX_MEMBER = re.compile(r"episode-(\d{6,})\.episode\.json")
_HEAD_BYTES = 8192  # enough for the tar header and the index of a usual episode
_ARRAYS = ("actions", "rewards", "terminated", "truncated")
_RECORDED_INDEX = "recorded_index"  # in a header: the first number of an episode that was given another one
_HEADER_KEYS = {"seed", "source", "terminated", "truncated"}


def episode_name(index: int) -> str:
    """The name of an episode, from its number."""
    return f"episode-{index:06d}"


def member_names(index: int, num_frames: int, env_keys: Sequence[str] = ()) -> list[str]:
    """The members behind an episode's index, in their order."""
    name = episode_name(index)
    chunks = range(-(-num_frames // CHUNK_FRAMES))
    return [
        *(f"{name}.frames-{chunk:04d}.zst" for chunk in chunks),
        *(f"{name}.{key}.npy" for key in _ARRAYS),
        *(f"{name}.env_action.{urllib.parse.quote(key, safe='')}.npy" for key in env_keys),
    ]


def encode_episode(episode: Episode) -> bytes:
    """The tar file of an episode. The same episode gives the same bytes."""
    compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
    frames = np.ascontiguousarray(episode.frames)
    starts = range(0, len(frames), CHUNK_FRAMES)
    contents = [compressor.compress(frames[start : start + CHUNK_FRAMES].data) for start in starts]
    ends = np.zeros((2, len(episode.actions)), np.bool_)
    ends[:, -1:] = [[episode.terminated], [episode.truncated]]
    arrays = (episode.actions.astype(np.int64), episode.rewards.astype(np.float32), *ends)
    for array in (*arrays, *episode.env_actions.values()):
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        contents.append(buffer.getvalue())
    env_keys = list(episode.env_actions)
    names = member_names(episode.index, len(frames), env_keys)
    header = {
        "schema": f"{EPISODE_FORMAT}/{FORMAT_VERSION}",
        "index": episode.index,
        "seed": episode.seed,
        "source": episode.source,
        "policy": episode.policy,
        "num_frames": len(frames),
        "shape": list(frames.shape[1:]),
        "chunk_frames": CHUNK_FRAMES,
        "action_timing": ACTION_TIMING,
        "terminated": episode.terminated,
        "truncated": episode.truncated,
        "env_actions": env_keys,
        "members": [
            {"name": name, "size": len(data), "crc32": zlib.crc32(data)}
            for name, data in zip(names, contents, strict=True)
        ],
    }
    tar = b"".join(tar_members(header, contents))
    return tar + end_of_tar(len(tar))


def end_of_tar(size: int) -> bytes:
    """What ends a tar file after `size` bytes of members: two empty blocks, and the rest of its record."""
    return bytes(padded(size + 2 * tarfile.BLOCKSIZE, tarfile.RECORDSIZE) - size)


def padded(size: int, block: int = tarfile.BLOCKSIZE) -> int:
    """Bytes that `size` bytes take up in a tar file."""
    return -(-size // block) * block


def tar_members(header: dict[str, Any], contents: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """An episode's members as they lie in a tar file, the index first; without the end of the file."""
    names = [member["name"] for member in header["members"]]
    text = json.dumps(header).encode()
    text = text[:-1] + b', "crc32": %d}' % zlib.crc32(text)  # of all that stands before it
    first = f"{episode_name(header['index'])}.episode.json"
    blocks: list[bytes | memoryview] = []
    for name, data in zip((first, *names), (text, *contents), strict=True):
        info = tarfile.TarInfo(name)  # its defaults (mtime, uid and gid 0) keep the bytes reproducible
        info.size = len(data)
        blocks += [info.tobuf(tarfile.USTAR_FORMAT), data, bytes(padded(len(data)) - len(data))]
    return blocks


# Reading


class DamageError(ValueError):
    """A stored episode is not what was written."""


@dataclass(frozen=True, slots=True)
class StoredEpisode:
    """An episode where it lies: in a file of its own, among others in a shard, or in memory.

    Attributes:
        source: the file, or its content.
        number: the episode's number in its dataset; header["index"] is the one that it was recorded under.
        start: where the episode's first tar header begins in the source.
        stop: where its last member ends in the source, padding included.
        header: the episode's index, less its list of members.
        offsets: (M,), int64: first byte of each member in the source.
        sizes: (M,), int64: bytes of each member.
        checksums: (M,), uint32: CRC-32 of each member.
    """

    source: Path | bytes
    number: int
    start: int
    stop: int
    header: dict[str, Any]
    offsets: np.ndarray
    sizes: np.ndarray
    checksums: np.ndarray

    @property
    def name(self) -> str:
        """The episode's name in its dataset."""
        return episode_name(self.number)

    @property
    def num_frames(self) -> int:
        """Frames; there is one action fewer."""
        return self.header["num_frames"]

    def frames(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """(stop - start, H, W, 3), uint8; only what is needed is decoded.

        Raises:
            ValueError: a range outside the episode.
            DamageError: damaged data.
        """
        num_frames = self.num_frames
        stop = num_frames if stop is None else stop
        if not 0 <= start < stop <= num_frames:
            raise ValueError(f"frames [{start}, {stop}) asked of {self.name}, which has [0, {num_frames})")
        first, last = start // CHUNK_FRAMES, (stop - 1) // CHUNK_FRAMES
        shape = tuple(self.header["shape"])
        output = np.empty((stop - start, *shape), np.uint8)
        decompressor = zstandard.ZstdDecompressor()
        for chunk, data in zip(range(first, last + 1), self._read(first, last + 1), strict=True):
            begin = chunk * CHUNK_FRAMES
            count = min(CHUNK_FRAMES, num_frames - begin)
            raw = _decompress(decompressor, data, count * math.prod(shape))
            decoded = np.frombuffer(raw, np.uint8).reshape(count, *shape)
            low, high = max(start, begin), min(stop, begin + count)
            output[low - start : high - start] = decoded[low - begin : high - begin]
        return output

    def array(self, key: str) -> np.ndarray:
        """(T,): actions, rewards, terminated or truncated.

        Raises:
            DamageError: damaged data.
        """
        member = self._first_array + _ARRAYS.index(key)
        return self._read_arrays(member, member + 1)[0]

    def arrays(self) -> dict[str, np.ndarray]:
        """(T, ...) each, in one read: actions, rewards, terminated, truncated, and `env_action/<key>`.

        Raises:
            DamageError: damaged data.
        """
        keys = [*_ARRAYS, *(f"env_action/{key}" for key in self.header.get("env_actions", ()))]
        return dict(zip(keys, self._read_arrays(self._first_array, len(self.sizes)), strict=True))

    def env_actions(self) -> dict[str, np.ndarray]:
        """The environment's own actions, see `Episode`.

        Raises:
            DamageError: damaged data.
        """
        keys = self.header.get("env_actions", ())
        if not keys:
            return {}
        return dict(zip(keys, self._read_arrays(len(self.sizes) - len(keys), len(self.sizes)), strict=True))

    def episode(self) -> Episode:
        """The whole episode.

        Raises:
            DamageError: damaged data.
        """
        header = self.header
        return Episode(
            frames=self.frames(),
            actions=self.array("actions"),
            rewards=self.array("rewards"),
            terminated=header["terminated"],
            truncated=header["truncated"],
            seed=header["seed"],
            index=self.number,
            source=header["source"],
            policy=self.policy,
            env_actions=self.env_actions(),
        )

    @property
    def policy(self) -> str:
        """What chose the actions; version 1 said only whether that was a person."""
        return self.header.get("policy", "human" if self.header["source"] == "human" else "")

    @property
    def digest(self) -> str:
        """What the episode is known by wherever it lies and by whatever number: equal for copies only."""
        facts = {**self.header, "index": self.header.get(_RECORDED_INDEX, self.header["index"])}
        facts.pop(_RECORDED_INDEX, None)
        content = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16)
        content.update(self.checksums.tobytes())
        return content.hexdigest()

    def check(self, spec: DatasetSpec) -> None:
        """Compare the small members with their checksums, and the actions with the frames and the dataset."""
        contents = self._read(self._first_array, len(self.sizes))
        self._check_sums(self._first_array, contents)
        actions = _parse_array(contents[_ARRAYS.index("actions")])
        shape = (self.num_frames - 1,)
        if actions.dtype != np.int64 or actions.shape != shape:
            raise DamageError(f"actions must be int64 {shape}, got {actions.dtype} {actions.shape}")
        check_actions(spec, actions)
        keys, own = self.header.get("env_actions", ()), map(_parse_array, contents[len(_ARRAYS) :])
        check_env_actions(spec.action_space, dict(zip(keys, own, strict=True)), shape[0])

    def verify(self, spec: DatasetSpec) -> None:
        """Read the episode in full; ValueError if anything differs from what was written."""
        index = self.header["index"]
        names = member_names(index, self.num_frames, self.header.get("env_actions", ()))
        expected = [f"{episode_name(index)}.episode.json", *names]
        with io.BytesIO(self._read_bytes(self.start, self.stop)) as file:
            try:
                with tarfile.open(fileobj=file) as tar:
                    found = tar.getnames()
            except tarfile.TarError as error:
                raise DamageError(f"damaged between its members ({error})") from error
        if found != expected:
            raise DamageError(f"members {sorted({*found} ^ {*expected})} are missing or foreign")
        self._check_sums(0, self._read(0, len(self.sizes)))
        check_episode(spec, self.episode())

    def renumbered(self, number: int) -> bytes:
        """The episode's members as they lie in a tar file, named by another number; frames are not decoded."""
        contents = self._read(0, len(self.sizes))
        self._check_sums(0, contents)
        names = member_names(number, self.num_frames, self.header.get("env_actions", ()))
        members = [
            {"name": name, "size": len(data), "crc32": int(checksum)}
            for name, data, checksum in zip(names, contents, self.checksums, strict=True)
        ]
        recorded = {_RECORDED_INDEX: self.header["index"], **self.header}
        return b"".join(tar_members({**recorded, "index": number, "members": members}, contents))

    @property
    def _first_array(self) -> int:
        return len(self.sizes) - len(_ARRAYS) - len(self.header.get("env_actions", ()))

    def _read_bytes(self, start: int, stop: int) -> bytes:
        return self.source[start:stop] if isinstance(self.source, bytes) else read_at(self.source, start, stop - start)

    def _read(self, first: int, stop: int) -> list[memoryview]:
        """The data of members [first, stop), in one read."""
        begin, end = int(self.offsets[first]), int(self.offsets[stop - 1] + self.sizes[stop - 1])
        data = memoryview(self._read_bytes(begin, end))
        starts = (self.offsets[first:stop] - begin).tolist()
        return [data[start : start + size] for start, size in zip(starts, self.sizes[first:stop].tolist(), strict=True)]

    def _read_arrays(self, first: int, stop: int) -> list[np.ndarray]:
        contents = self._read(first, stop)
        self._check_sums(first, contents)
        return [_parse_array(data) for data in contents]

    def _check_sums(self, first: int, contents: Sequence[memoryview]) -> None:
        for member, data in enumerate(contents, first):
            if zlib.crc32(data) != self.checksums[member]:
                names = member_names(self.header["index"], self.num_frames, self.header.get("env_actions", ()))
                raise DamageError(f"{names[member]} differs from its checksum")


def read_at(path: Path, offset: int, size: int) -> bytes:
    """`size` bytes of a file from `offset` on, or what there is of them."""
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        return file.read(size)


def _parse_array(data: memoryview) -> np.ndarray:
    """The array of an .npy member whose checksum was compared before: a damaged one can raise anything."""
    return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)


def _decompress(decompressor: zstandard.ZstdDecompressor, data: memoryview, size: int) -> bytes:
    try:
        raw = decompressor.decompress(data, max_output_size=size)
    except zstandard.ZstdError as error:
        raise DamageError(f"damaged frames ({error})") from error
    if len(raw) != size:
        raise DamageError(f"{len(raw)} bytes of frames where {size} were expected")
    return raw


def open_episode(
    source: Path | bytes, spec: DatasetSpec, *, number: int | None = None, start: int = 0
) -> StoredEpisode:
    """Find an episode by its index, and check its arrays; frames are read later.

    Args:
        source: a tar file, or its content.
        spec: of the dataset.
        number: of the episode in its dataset; None takes the one that it was recorded under.
        start: where the episode begins in the source.

    Raises:
        DamageError, ValueError: it is damaged, foreign, or does not fit the dataset.
    """
    head = _piece(source, start, _HEAD_BYTES)
    try:
        info = tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "strict")
    except tarfile.HeaderError as error:
        raise DamageError(f"not a tar file, or cut off at the start ({error})") from error
    match = _INDEX_MEMBER.fullmatch(info.name)
    if not match:
        raise DamageError(f"a foreign tar file: it begins with {info.name}, not with {episode_name(0)}.episode.json")
    end = tarfile.BLOCKSIZE + info.size
    text = (head if end <= len(head) else _piece(source, start, end))[tarfile.BLOCKSIZE : end]
    try:
        header = json.loads(text)
        members = header.pop("members")
        checksum = header.pop("crc32", None)
        has_checksum = header["schema"] != f"{EPISODE_FORMAT}/1"
        if has_checksum and checksum != zlib.crc32(text[: text.rindex(b", ")] + b"}"):
            raise DamageError("its index differs from its checksum")
        _check_header(header, spec, int(match[1]))
        names = member_names(header["index"], header["num_frames"], header.get("env_actions", ()))
        if [member["name"] for member in members] != names:
            raise DamageError(
                f"its members are not named and ordered as those of an episode of {header['num_frames']} frames"
            )
        sizes = [operator.index(member["size"]) for member in members]
        checksums = np.array([member["crc32"] for member in members], np.uint32)
    except (AttributeError, KeyError, TypeError, OverflowError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DamageError(f"its index cannot be read ({error!r})") from error
    blocks = [padded(size) + tarfile.BLOCKSIZE for size in sizes]
    ends = np.cumsum([start + padded(end), *blocks])
    offsets = ends[:-1] + tarfile.BLOCKSIZE
    number = header["index"] if number is None else number
    return StoredEpisode(source, number, start, int(ends[-1]), header, offsets, np.array(sizes), checksums)


def _piece(source: Path | bytes, start: int, size: int) -> bytes:
    return source[start : start + size] if isinstance(source, bytes) else read_at(source, start, size)


def _check_header(header: dict[str, Any], spec: DatasetSpec, index: int) -> None:
    if header["schema"] not in [f"{EPISODE_FORMAT}/{version}" for version in READABLE_VERSIONS]:
        raise DamageError(
            f"schema is {header['schema']!r}, and this release reads {EPISODE_FORMAT}/{FORMAT_VERSION} or older"
        )
    expected = {
        "index": index,
        "shape": [spec.height, spec.width, 3],
        "chunk_frames": CHUNK_FRAMES,
        "action_timing": spec.action_timing,
    }
    for key, value in expected.items():
        if header[key] != value:
            raise DamageError(f"{key} is {header[key]!r}, and this dataset expects {value!r}")
    if missing := _HEADER_KEYS - header.keys():
        raise DamageError(f"its index lacks {', '.join(sorted(missing))}")
    if header["num_frames"] < 1:
        raise DamageError(f"num_frames is {header['num_frames']!r}, and an episode has 1 or more")
