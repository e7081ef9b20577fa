"""Recorded data on disk: a folder with `dataset.json` and one tar file an episode.

    DIR/dataset.json                what was recorded: environment, frame size, action vocabulary, timing
    DIR/episodes/episode-000000.tar one episode, in WebDataset naming; written whole or not at all

Inside a tar, `<name>.episode.json` comes first and lists every other member with size and checksum, so that
one read of a few kilobytes opens an episode: `<name>.frames-0000.zst` holds frames 0 to 15 as raw uint8
behind zstd, and so on; `<name>.actions.npy`, `.rewards.npy`, `.terminated.npy`, `.truncated.npy` the rest.
"""

from __future__ import annotations

import io
import json
import operator
import os
import re
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import zstandard

from farworld import __version__
from farworld.actions import ACTION_TIMING, ActionVocabulary
from farworld.lock import lock_folder

CHUNK_FRAMES = 16  # frames behind one zstd member: a random clip of 16 frames touches two of them at most
DATASET_FORMAT = "farworld-dataset"
EPISODE_FORMAT = "farworld-episode"
FORMAT_VERSION = 1

_EPISODE_FILE = re.compile(r"episode-(\d{6,})\.tar")
_TEMPORARY_SUFFIX = ".tmp"
_HEAD_BYTES = 8192  # enough for the tar header and the index of a usual episode
_ARRAYS = ("actions", "rewards", "terminated", "truncated")
_KNOWN = ("dataset.json", "episodes")  # what a dataset's folder holds; names with a dot in front are passed over


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Episode:
    """One episode: T actions and T + 1 frames.

    Attributes:
        frames: (T + 1, H, W, 3), uint8.
        actions: (T,), int64; action t was taken after frame t and produced frame t + 1.
        rewards: (T,), float32.
        terminated: the environment ended the episode.
        truncated: the episode was cut for another reason, such as the wanted length.
        seed: what the environment was reset with.
        index: the episode's number in its dataset.
        source: where it came from: `human` if a person played it, the file if it was imported, empty for a policy's.
    """

    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool = False
    truncated: bool = True
    seed: int
    index: int
    source: str = ""

    def __post_init__(self) -> None:
        if self.frames.dtype != np.uint8 or self.frames.ndim != 4 or self.frames.shape[-1] != 3:
            raise ValueError(f"frames must be uint8 (T + 1, H, W, 3), got {self.frames.dtype} {self.frames.shape}")
        num_actions = len(self.frames) - 1
        if num_actions < 0 or self.actions.shape != (num_actions,) or self.rewards.shape != (num_actions,):
            raise ValueError(
                f"{len(self.frames)} frames need {num_actions} actions and rewards (one between two frames), "
                f"got {self.actions.shape} and {self.rewards.shape}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetSpec:
    """What a dataset holds; the content of dataset.json.

    Attributes:
        env_id: the Gymnasium id, or the name of the imported data set.
        env_kwargs: what the environment was made with.
        env_version: the farworld release that recorded.
        policy: what chose the actions of the first recording; other episodes may be a person's, see their source.
        height: of a frame, in pixels.
        width: of a frame, in pixels.
        frames_per_second: the speed at which the world is meant to be seen.
        action_vocabulary: names and keys of the actions.
        action_timing: when an action is taken; this release knows only ACTION_TIMING.
        seed: of the first recording; every episode carries its own.
    """

    env_id: str
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    env_version: str = __version__
    policy: str = "explore"
    height: int
    width: int
    frames_per_second: float
    action_vocabulary: ActionVocabulary
    action_timing: str = ACTION_TIMING
    seed: int = 0

    def __post_init__(self) -> None:
        if self.action_timing != ACTION_TIMING:
            raise ValueError(
                f"action_timing must be {ACTION_TIMING!r}, got {self.action_timing!r}; "
                "shift the actions when importing, so that action t is the one taken after frame t"
            )
        sides = self.height, self.width
        if not all(isinstance(side, int) and side > 0 for side in sides) or not self.frames_per_second > 0:
            raise ValueError(
                "height and width must be positive integers and frames_per_second positive, "
                f"got {self.height!r}, {self.width!r} and {self.frames_per_second!r}"
            )

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        head = {"format": DATASET_FORMAT, "version": FORMAT_VERSION}
        values = asdict(replace(self, action_vocabulary=None))  # type: ignore[arg-type]
        return {**head, **values, "action_vocabulary": self.action_vocabulary.to_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> DatasetSpec:
        """The inverse of to_json.

        Raises:
            ValueError: no JSON object, another format or version, or a field is missing.
        """
        if not isinstance(values, dict):
            raise ValueError(f"expected a JSON object, got a {type(values).__name__}")
        values = dict(values)
        found = values.pop("format", None), values.pop("version", None)
        if found != (DATASET_FORMAT, FORMAT_VERSION):
            raise ValueError(f"expected {DATASET_FORMAT} version {FORMAT_VERSION}, got {found[0]} version {found[1]}")
        try:
            values["action_vocabulary"] = ActionVocabulary.from_json(values["action_vocabulary"])
            return cls(**values)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"a field is missing, unknown or of the wrong type: {error}") from error

    def difference(self, other: DatasetSpec) -> str:
        """Say what keeps episodes of `other` out of this dataset; empty if nothing does."""
        for name in ("env_id", "env_kwargs", "height", "width", "frames_per_second", "action_timing"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"{name} is {mine!r} there and {theirs!r} now"
        if self.action_vocabulary != other.action_vocabulary:
            mine, theirs = self.action_vocabulary.names, other.action_vocabulary.names
            return f"the actions are {', '.join(mine)} there and {', '.join(theirs)} now (names or keys differ)"
        return ""


# Writing


def episode_name(index: int) -> str:
    """The name of an episode, from its number."""
    return f"episode-{index:06d}"


def _member_names(index: int, num_frames: int) -> list[str]:
    """The members behind an episode's index, in their order."""
    name = episode_name(index)
    chunks = range(-(-num_frames // CHUNK_FRAMES))
    return [*(f"{name}.frames-{chunk:04d}.zst" for chunk in chunks), *(f"{name}.{key}.npy" for key in _ARRAYS)]


def encode_episode(episode: Episode) -> bytes:
    """The tar file of an episode. The same episode gives the same bytes."""
    compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
    frames = np.ascontiguousarray(episode.frames)
    starts = range(0, len(frames), CHUNK_FRAMES)
    contents = [compressor.compress(frames[start : start + CHUNK_FRAMES].data) for start in starts]
    ends = np.zeros((2, len(episode.actions)), np.bool_)
    ends[:, -1:] = [[episode.terminated], [episode.truncated]]
    arrays = (episode.actions.astype(np.int64), episode.rewards.astype(np.float32), *ends)
    for array in arrays:
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        contents.append(buffer.getvalue())
    members = list(zip(_member_names(episode.index, len(frames)), contents, strict=True))
    header = {
        "schema": f"{EPISODE_FORMAT}/{FORMAT_VERSION}",
        "index": episode.index,
        "seed": episode.seed,
        "source": episode.source,
        "num_frames": len(frames),
        "shape": list(frames.shape[1:]),
        "chunk_frames": CHUNK_FRAMES,
        "action_timing": ACTION_TIMING,
        "terminated": episode.terminated,
        "truncated": episode.truncated,
        "members": [{"name": key, "size": len(data), "crc32": zlib.crc32(data)} for key, data in members],
    }
    members.insert(0, (f"{episode_name(episode.index)}.episode.json", json.dumps(header).encode()))
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, data in members:
            info = tarfile.TarInfo(key)  # its defaults (mtime, uid and gid 0) keep the bytes reproducible
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return output.getvalue()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, whatever happens in between."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY_SUFFIX}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the new name itself must reach the disk too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_episode(directory: Path, episode: Episode) -> Path:
    """Write one episode into the dataset folder; for workers of the process that holds the DatasetWriter.

    Raises:
        FileExistsError: the dataset has an episode of this number.
    """
    path = Path(directory) / "episodes" / f"{episode_name(episode.index)}.tar"
    if path.exists():
        raise FileExistsError(f"{path} is there already, and a recorded episode is never overwritten")
    write_atomically(path, encode_episode(episode))
    return path


class DatasetWriter:
    """The one writer of a dataset; made by create_or_open, closed by `with` or close()."""

    def __init__(self, directory: Path, spec: DatasetSpec, lock: IO[bytes]) -> None:
        self.directory = directory
        self.spec = spec
        self._lock_file = lock

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process write."""
        self._lock_file.close()

    def free_indices(self, count: int) -> list[int]:
        """The `count` smallest numbers that no file has; a damaged file keeps its number."""
        files = (_EPISODE_FILE.fullmatch(path.name) for path in (self.directory / "episodes").iterdir())
        taken = {int(match[1]) for match in files if match}
        return [index for index in range(len(taken) + count) if index not in taken][:count]

    def write(self, episode: Episode) -> Path:
        """Add an episode; it is on disk, whole, when this returns.

        Raises:
            ValueError: another frame size, or an action outside the vocabulary.
            FileExistsError: the dataset has an episode of this number.
            OSError: the disk is full; what was written before is intact.
        """
        check_episode(self.spec, episode)
        return write_episode(self.directory, episode)


def check_episode(spec: DatasetSpec, episode: Episode) -> None:
    """Raise ValueError unless the episode's frames and actions fit the spec."""
    if episode.frames.shape[1:] != (spec.height, spec.width, 3):
        raise ValueError(f"frames must be {spec.height}x{spec.width}x3 in this dataset, got {episode.frames.shape[1:]}")
    _check_actions(spec, episode.actions)


def _check_actions(spec: DatasetSpec, actions: np.ndarray) -> None:
    outside = (actions < 0) | (actions >= len(spec.action_vocabulary))
    if outside.any():
        spec.action_vocabulary.check(int(actions[outside][0]))


def create_or_open(directory: str | os.PathLike, spec: DatasetSpec) -> DatasetWriter:
    """Start a dataset, or open the one that is there to extend it.

    Leftovers of a writer that was killed are removed.

    Raises:
        ValueError: the folder holds other data (the message names the difference), or is being written.
    """
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file; give a folder for the dataset")
    if directory.is_dir() and not (directory / "dataset.json").exists():
        foreign = [p.name for p in directory.iterdir() if p.name not in _KNOWN and not p.name.startswith(".")]
        if foreign:
            raise ValueError(
                f"{directory} is not a farworld dataset (no dataset.json) and holds {sorted(foreign)[0]}; "
                "give a new or an empty folder"
            )
    (directory / "episodes").mkdir(parents=True, exist_ok=True)
    lock = lock_folder(directory)
    try:
        for folder in (directory, directory / "episodes"):
            for leftover in folder.glob(f".*{_TEMPORARY_SUFFIX}"):
                leftover.unlink(missing_ok=True)
        if (directory / "dataset.json").exists():
            found = read_spec(directory)
            if difference := found.difference(spec):
                raise ValueError(
                    f"{directory} cannot be extended: {difference}; record into another folder, or as before"
                )
            spec = found
        else:
            text = json.dumps(spec.to_json(), indent=2) + "\n"
            write_atomically(directory / "dataset.json", text.encode())
    except BaseException:
        lock.close()
        raise
    return DatasetWriter(directory, spec, lock)


# Reading


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


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where one episode's members lie in its file."""

    path: Path
    header: dict[str, Any]
    offsets: np.ndarray  # first byte of each member, in the order of header["members"]


def _padded(size: int, block: int = tarfile.BLOCKSIZE) -> int:
    return -(-size // block) * block


def _read_at(path: Path, offset: int, size: int) -> bytes:
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        return file.read(size)


def _read_members(entry: _Entry, first: int, stop: int) -> list[bytes]:
    """The data of members [first, stop), in one read."""
    sizes = [member["size"] for member in entry.header["members"][first:stop]]
    starts = (entry.offsets[first:stop] - entry.offsets[first]).tolist()
    data = _read_at(entry.path, int(entry.offsets[first]), starts[-1] + sizes[-1])
    return [data[start : start + size] for start, size in zip(starts, sizes, strict=True)]


def _check_sums(members: Sequence[dict[str, Any]], contents: Sequence[bytes]) -> None:
    for member, data in zip(members, contents, strict=True):
        if zlib.crc32(data) != member.get("crc32"):
            raise ValueError(f"{member['name']} differs from its checksum")


def _parse_array(data: bytes) -> np.ndarray:
    """The array of an .npy member whose checksum was compared before: a damaged one can raise anything."""
    return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)


def _open_entry(path: Path, spec: DatasetSpec) -> _Entry:
    """Read an episode's index and arrays and check them against the file and the dataset, else ValueError."""
    match = _EPISODE_FILE.fullmatch(path.name)
    if not match or not path.is_file():
        raise ValueError("a foreign file: episodes are files named episode-000000.tar and so on")
    head = _read_at(path, 0, _HEAD_BYTES)
    try:
        info = tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "strict")
    except tarfile.HeaderError as error:
        raise ValueError(f"not a tar file, or cut off at the start ({error})") from error
    if info.name != f"{path.stem}.episode.json":
        raise ValueError(f"a foreign tar file: it begins with {info.name}, not with {path.stem}.episode.json")
    found = path.stat().st_size
    end = tarfile.BLOCKSIZE + info.size
    text = (head if end <= len(head) else _read_at(path, 0, min(end, found)))[tarfile.BLOCKSIZE : end]
    try:
        header = json.loads(text)
        sizes = [_padded(operator.index(member["size"])) + tarfile.BLOCKSIZE for member in header["members"]]
        starts = np.cumsum([_padded(info.size) + 2 * tarfile.BLOCKSIZE, *sizes])
        _check_header(header, spec, int(match[1]))
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"its index cannot be read ({error!r})") from error
    # The last start lies one header past the data; a tar ends with two empty blocks and fills its record.
    expected = _padded(int(starts[-1]) + tarfile.BLOCKSIZE, tarfile.RECORDSIZE)
    if found != expected:
        word = "truncated" if found < expected else "too long"
        raise ValueError(f"{word}: {found} bytes where its index says {expected}")
    entry = _Entry(path, header, starts[:-1])
    _check_arrays(entry, spec)
    return entry


def _check_header(header: dict[str, Any], spec: DatasetSpec, index: int) -> None:
    expected = {
        "schema": f"{EPISODE_FORMAT}/{FORMAT_VERSION}",
        "index": index,
        "shape": [spec.height, spec.width, 3],
        "chunk_frames": CHUNK_FRAMES,
        "action_timing": spec.action_timing,
    }
    for key, value in expected.items():
        if header[key] != value:
            raise ValueError(f"{key} is {header[key]!r}, and this dataset expects {value!r}")
    if missing := {"seed", "source", "terminated", "truncated"} - header.keys():
        raise ValueError(f"its index lacks {', '.join(sorted(missing))}")
    num_members = -(-header["num_frames"] // CHUNK_FRAMES) + len(_ARRAYS)
    if len(header["members"]) != num_members:
        raise ValueError(f"{header['num_frames']} frames need {num_members} members, it lists {len(header['members'])}")
    if [member["name"] for member in header["members"]] != _member_names(index, header["num_frames"]):
        raise ValueError("its members are not named and ordered as those of an episode")


def _check_arrays(entry: _Entry, spec: DatasetSpec) -> None:
    """Compare the small members with their checksums, and the actions with the frames and the vocabulary."""
    members = entry.header["members"]
    first = len(members) - len(_ARRAYS)
    contents = _read_members(entry, first, len(members))
    _check_sums(members[first:], contents)
    actions = _parse_array(contents[_ARRAYS.index("actions")])
    shape = (entry.header["num_frames"] - 1,)
    if actions.dtype != np.int64 or actions.shape != shape:
        raise ValueError(f"actions must be int64 {shape}, got {actions.dtype} {actions.shape}")
    _check_actions(spec, actions)


def _visible(folder: Path) -> list[Path]:
    """What a folder holds, less files being written, the lock, and what a killed writer left."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


class Dataset:
    """A recorded dataset, open for reading. Picklable; keeps no file open; safe to share between threads.

    Args:
        directory: the folder with dataset.json.
        skip_bad: leave damaged and foreign files out instead of raising; they are listed in `bad`. Opening
            finds all damage but that of frames, which is found when they are decoded, or by verify.

    Attributes:
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
        self._entries: list[_Entry] = []
        folder = self.directory / "episodes"
        for path in _visible(self.directory):
            if path.name not in _KNOWN or path.name == folder.name and not path.is_dir():
                self.bad.append((path, f"foreign: this folder holds {_KNOWN[0]} and the folder {_KNOWN[1]} only"))
        for path in _visible(folder) if folder.is_dir() else ():
            try:
                self._entries.append(_open_entry(path, self.spec))
            except ValueError as error:
                self.bad.append((path, str(error)))
            except OSError as error:
                self.bad.append((path, f"cannot be read: {error.strerror or error}"))
        if self.bad and not skip_bad:
            path, reason = self.bad[0]
            raise ValueError(
                f"{path}: {reason} ({len(self.bad)} bad of {len(self.bad) + len(self)} files); "
                "remove it, or leave such files out with --skip-bad"
            )
        self._entries.sort(key=lambda entry: entry.header["index"])
        self.episodes = [entry.path.stem for entry in self._entries]

    def __len__(self) -> int:
        return len(self._entries)

    def num_frames(self, i: int) -> int:
        """Frames of the i-th episode; it has one action fewer."""
        return self._entries[i].header["num_frames"]

    def path(self, i: int) -> Path:
        """The file of the i-th episode."""
        return self._entries[i].path

    def source(self, i: int) -> str:
        """Where the i-th episode came from; see `Episode`."""
        return self._entries[i].header["source"]

    def actions(self, i: int) -> np.ndarray:
        """(T,), int64: the actions of the i-th episode."""
        return self._array(i, "actions")

    def frames(self, i: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """(stop - start, H, W, 3), uint8: frames of the i-th episode; only what is needed is decoded.

        Raises:
            ValueError: a range outside the episode, or damaged data.
        """
        num_frames = self.num_frames(i)
        stop = num_frames if stop is None else stop
        if not 0 <= start < stop <= num_frames:
            raise ValueError(f"frames [{start}, {stop}) asked of {self.episodes[i]}, which has [0, {num_frames})")
        first, last = start // CHUNK_FRAMES, (stop - 1) // CHUNK_FRAMES
        shape = (self.spec.height, self.spec.width, 3)
        output = np.empty((stop - start, *shape), np.uint8)
        for chunk, data in zip(range(first, last + 1), _read_members(self._entries[i], first, last + 1), strict=True):
            begin = chunk * CHUNK_FRAMES
            count = min(CHUNK_FRAMES, num_frames - begin)
            raw = self._decompress(i, data, count * int(np.prod(shape)))
            decoded = np.frombuffer(raw, np.uint8).reshape(count, *shape)
            low, high = max(start, begin), min(stop, begin + count)
            output[low - start : high - start] = decoded[low - begin : high - begin]
        return output

    def rewards(self, i: int) -> np.ndarray:
        """(T,), float32: the rewards of the i-th episode."""
        return self._array(i, "rewards")

    def episode(self, i: int) -> Episode:
        """The whole i-th episode."""
        header = self._entries[i].header
        return Episode(
            frames=self.frames(i),
            actions=self.actions(i),
            rewards=self.rewards(i),
            terminated=header["terminated"],
            truncated=header["truncated"],
            seed=header["seed"],
            index=header["index"],
            source=header["source"],
        )

    def verify(self, i: int) -> None:
        """Read the i-th episode in full; ValueError if anything differs from what was written."""
        entry = self._entries[i]
        expected = {f"{entry.path.stem}.episode.json", *(m["name"] for m in entry.header["members"])}
        try:
            with tarfile.open(entry.path) as tar:
                names = set(tar.getnames())
        except tarfile.TarError as error:
            raise ValueError(f"damaged between its members ({error})") from error
        if names != expected:
            raise ValueError(f"members {sorted(names ^ expected)} are missing or foreign")
        members = entry.header["members"]
        _check_sums(members, _read_members(entry, 0, len(members)))
        check_episode(self.spec, self.episode(i))

    def _decompress(self, i: int, data: bytes, size: int) -> bytes:
        try:
            raw = zstandard.ZstdDecompressor().decompress(data)
        except zstandard.ZstdError as error:
            raise self._damage(i, f"damaged frames ({error})") from error
        if len(raw) != size:
            raise self._damage(i, f"{len(raw)} bytes of frames where {size} were expected")
        return raw

    def _array(self, i: int, key: str) -> np.ndarray:
        entry = self._entries[i]
        member = len(entry.offsets) - len(_ARRAYS) + _ARRAYS.index(key)
        contents = _read_members(entry, member, member + 1)
        try:
            _check_sums(entry.header["members"][member : member + 1], contents)
        except ValueError as error:
            raise self._damage(i, str(error)) from error
        return _parse_array(contents[0])

    def _damage(self, i: int, what: str) -> ValueError:
        return ValueError(
            f"{self._entries[i].path}: {what}; run `farworld data verify {self.directory}` "
            "to name all damaged files, and remove them"
        )
