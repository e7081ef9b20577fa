"""Adding episodes to a dataset, by as many writers at once as there are.

Every episode is one file that appears whole or not at all, under a number that nobody else has:

- A writer *claims* numbers before it plays them, since what an episode holds depends on its number. Claims stand in
  the writer's own file `.writer-<token>`, which it keeps locked. A claim lasts as long as that lock, and the system
  frees a lock whatever its holder dies of: the next writer to come by takes the numbers back and removes the file.
  Claims are made and swept under the folder's lock, which is held for milliseconds.
- A file is written under a hidden, locked temporary name, flushed to disk, and then *linked* to its own name. Linking
  fails if that name is taken, on NFS too, so that nothing is ever overwritten, not even by writers that see no locks
  of each other.

File locks (`flock`) work between the processes of one machine on any local file system, and between machines on NFS,
CIFS, CephFS, GPFS and Lustre as they are usually mounted. Where machines share a folder without sharing locks, each
claims numbers of its own residue (`claim(count, shard=(k, n))`: k, k + n, k + 2n, ...); where they share nothing, each
fills a folder of its own, and `farworld data merge` puts these together without copying. A server or a database would
coordinate more finely, and is one more thing to run; one lock for each number would run out of open files.

`recordings.jsonl` gets one line for each writer that added something: what, when, how long, which numbers. Episodes
and dataset.json hold no clock, so that the same seed gives the same bytes.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from farworld import __version__
from farworld.dataset.episode import DatasetSpec, Episode, check_episode
from farworld.dataset.format import EPISODE_FILE, encode_episode, episode_name
from farworld.dataset.reader import DATASET_FILE, EPISODES_FOLDER, KNOWN, RECORDINGS_FILE, read_spec
from farworld.dataset.shards import packed_numbers
from farworld.lock import lock_file, lock_folder

_TEMPORARY_SUFFIX = ".tmp"
_WRITER_PREFIX = ".writer-"
# What os.link says where there are no hard links: FAT, and some mounts of foreign file systems.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}


def create_or_open(directory: str | os.PathLike, spec: DatasetSpec) -> DatasetWriter:
    """Start a dataset, or open the one that is there to extend it, beside whoever else does.

    What writers that were killed left behind is removed.

    Raises:
        ValueError: the folder holds other data; the message names the difference.
        OSError: it cannot be written, or its file system has no locks.
    """
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file; give a folder for the dataset")
    if directory.is_dir() and not (directory / DATASET_FILE).exists():
        foreign = [p.name for p in directory.iterdir() if p.name not in KNOWN and not p.name.startswith(".")]
        if foreign:
            raise ValueError(
                f"{directory} is not a farworld dataset (no {DATASET_FILE}) and holds {sorted(foreign)[0]}; "
                "give a new or an empty folder"
            )
    (directory / EPISODES_FOLDER).mkdir(parents=True, exist_ok=True)
    with lock_folder(directory, wait=True):
        _sweep(directory)
        found = spec
        if (directory / DATASET_FILE).exists():
            found = read_spec(directory)
            if difference := found.difference(spec):
                raise ValueError(
                    f"{directory} cannot be extended: {difference}; record into another folder, or as before"
                )
        else:
            write_spec(directory, spec)
        facts = {"what": "record", "policy": spec.policy, "seed": spec.seed, "env_version": spec.env_version}
        file = open(directory / f"{_WRITER_PREFIX}{uuid.uuid4().hex[:12]}", "x+b")  # noqa: SIM115 - held until close
        try:
            lock_file(file)
            return DatasetWriter(directory, found, file, facts)
        except BaseException:
            file.close()
            os.unlink(file.name)
            raise


class DatasetWriter:
    """One of the writers of a dataset; made by create_or_open, closed by `with` or close(). Threads may share it.

    Attributes:
        directory: the dataset's folder.
        spec: of the dataset.
    """

    def __init__(self, directory: Path, spec: DatasetSpec, file: IO[bytes], facts: dict[str, Any]) -> None:
        self.directory = directory
        self.spec = spec
        self._file = file  # locked: what it says holds until it is closed
        self._facts = {**facts, "started": utc_now(), "farworld": __version__, "platform": platform.platform()}
        self._claimed: set[int] = set()
        self._threads = threading.Lock()
        self._begin = time.perf_counter()
        self._save()

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back what was claimed and not written, and note what was written in recordings.jsonl."""
        with self._threads:
            if self._file.closed:
                return
            ended = {"ended": utc_now(), "seconds": round(time.perf_counter() - self._begin, 3)}
            with self._file, lock_folder(self.directory, wait=True):
                # With the disk full the file stays, and the next writer notes what it says.
                with contextlib.suppress(OSError):
                    _note_claims(self.directory, {**self._facts, "claimed": format_ranges(self._claimed), **ended})
                    os.unlink(self._file.name)

    def note(self, **facts: Any) -> None:
        """Say more about this recording in its line of recordings.jsonl, such as `what`, `policy` or `source`."""
        with self._threads:
            self._facts.update(facts)
            self._save()

    def claim(self, count: int, *, shard: tuple[int, int] = (0, 1)) -> list[int]:
        """Take `count` numbers, which are this writer's alone until it closes.

        They are the smallest that no file and no writer has, this one included; a damaged file keeps its number.

        Args:
            count: how many.
            shard: (k, n) takes only numbers i with i % n == k, for machines that share no locks.
        """
        rest, modulus = shard
        if not 0 <= rest < modulus or count < 0:
            raise ValueError(f"expected a count of 0 or more and a shard (k, n) with 0 <= k < n, got {count}, {shard}")
        with self._threads:
            return self._claim(count, rest, modulus, beside=self._claimed)

    def free_indices(self, count: int) -> list[int]:
        """The `count` smallest numbers that no file and no other writer has; claimed, too.

        Unlike claim, it gives the same numbers again until they are written.
        """
        with self._threads:
            return self._claim(count, 0, 1, beside=())

    def _claim(self, count: int, rest: int, modulus: int, beside: Collection[int]) -> list[int]:
        with lock_folder(self.directory, wait=True):
            _sweep(self.directory, mine=self._file.name)
            taken = {*taken_numbers(self.directory), *beside}
            for path in self.directory.glob(f"{_WRITER_PREFIX}*"):
                if path != Path(self._file.name):
                    taken |= parse_ranges(_read_claims(path).get("claimed", ""))
            free: list[int] = []
            number = rest
            while len(free) < count:
                if number not in taken:
                    free.append(number)
                number += modulus
            self._claimed.update(free)
            self._save()
        return free

    def _save(self) -> None:
        text = json.dumps({**self._facts, "claimed": format_ranges(self._claimed)}).encode()
        self._file.seek(0)
        self._file.write(text)
        self._file.truncate()
        self._file.flush()

    def write(self, episode: Episode) -> Path:
        """Add an episode; it is on disk, whole, when this returns.

        Raises:
            ValueError: another frame size, or an action outside the vocabulary.
            FileExistsError: the dataset has an episode of this number.
            OSError: the disk is full; what was written before is intact.
        """
        check_episode(self.spec, episode)
        path = write_episode(self.directory, episode)
        with self._threads:
            if episode.index not in self._claimed:
                self._claimed.add(episode.index)
                self._save()
        return path


def write_episode(directory: str | os.PathLike, episode: Episode) -> Path:
    """Write one episode into the dataset folder; for workers of the process that holds the DatasetWriter.

    Raises:
        FileExistsError: the dataset has an episode of this number.
    """
    path = Path(directory) / EPISODES_FOLDER / f"{episode_name(episode.index)}.tar"
    taken = FileExistsError(f"{path} is there already, and a recorded episode is never overwritten")
    if path.exists():
        raise taken
    with _written_aside(path, encode_episode(episode)) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError as error:
            raise taken from error
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with lock_folder(path.parent.parent, wait=True):
                if path.exists():
                    raise taken from error
                os.replace(temporary, path)
    return path


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file, or another in its place, so that it is there whole or not at all, whatever happens in between."""
    with _written_aside(path, data) as temporary:
        os.replace(temporary, path)


def write_spec(directory: Path, spec: DatasetSpec) -> None:
    """Write dataset.json."""
    write_atomically(directory / DATASET_FILE, (json.dumps(spec.to_json(), indent=2) + "\n").encode())


@contextlib.contextmanager
def _written_aside(path: Path, data: bytes) -> Iterator[Path]:
    """A locked file beside `path` with this content, for the block to give its name; then it is gone, in any case."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{_TEMPORARY_SUFFIX}")
    try:
        with _locked_file(temporary) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            yield temporary
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # the new name itself must reach the disk too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _locked_file(path: Path) -> IO[bytes]:
    """A new file, locked."""
    while True:
        file = open(path, "xb")  # noqa: SIM115 - the caller closes it
        try:
            lock_file(file, wait=True)
            if os.fstat(file.fileno()).st_nlink:
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # somebody swept it up before it was locked


def taken_numbers(directory: Path) -> set[int]:
    """The numbers that the dataset's files have."""
    files = (EPISODE_FILE.fullmatch(entry.name) for entry in os.scandir(directory / EPISODES_FOLDER))
    return {int(match[1]) for match in files if match} | packed_numbers(directory)


# What writers leave


def _sweep(directory: Path, mine: str = "") -> None:
    """Remove what writers left that are no more, and note what they added. The folder's lock is held."""
    for path in directory.glob(f"{_WRITER_PREFIX}*"):
        if os.fspath(path) != mine:
            with _abandoned(path) as abandoned:
                if abandoned:
                    _note_claims(directory, {**_read_claims(path), "ended": None})
    if mine:  # temporary files are swept once, when a writer opens
        return
    for folder in (directory, directory / EPISODES_FOLDER):
        for path in folder.glob(f".*{_TEMPORARY_SUFFIX}"):
            with _abandoned(path):
                pass


@contextlib.contextmanager
def _abandoned(path: Path) -> Iterator[bool]:
    """Whether nobody holds the lock of a file; if so it is removed after the block, before the lock is free again."""
    try:
        file = open(path, "r+b")  # noqa: SIM115 - closed below
    except (FileNotFoundError, PermissionError):  # its writer has just finished, or it is another user's
        yield False
        return
    with file:
        abandoned = lock_file(file)
        yield abandoned
        if abandoned:
            if os.name == "nt":  # which keeps a file that is open
                file.close()
            path.unlink(missing_ok=True)


def _read_claims(path: Path) -> dict[str, Any]:
    """What a writer's file says; nothing if it died while writing it."""
    with contextlib.suppress(OSError, ValueError):
        values = json.loads(path.read_bytes())
        return values if isinstance(values, dict) else {}
    return {}


def _note_claims(directory: Path, facts: dict[str, Any]) -> None:
    """Add a line about those claimed numbers that have an episode now, if any has."""
    written = parse_ranges(facts.pop("claimed", "")) & taken_numbers(directory)
    if written:
        append_recording(directory, {**facts, "num_episodes": len(written), "episodes": format_ranges(written)})


def append_recording(directory: Path, facts: dict[str, Any]) -> None:
    """Add a line to recordings.jsonl, whole or not at all; the folder's lock is held or the folder is nobody else's."""
    with open(directory / RECORDINGS_FILE, "a+b") as file:
        file.seek(0)
        end = file.read().rfind(b"\n") + 1  # what follows is half a line, of somebody who died
        file.truncate(end)
        try:
            file.write(json.dumps(facts).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise


def utc_now() -> str:
    """The time in UTC: "2026-11-25T01:30:00Z"."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def format_ranges(numbers: Iterable[int]) -> str:
    """Numbers as text: "0-9,12"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{low}-{high}" if high > low else f"{low}" for low, high in runs)


def parse_ranges(text: str) -> set[int]:
    """The inverse of format_ranges."""
    numbers: set[int] = set()
    for run in filter(None, text.split(",")):
        low, _, high = run.partition("-")
        numbers.update(range(int(low), int(high or low) + 1))
    return numbers
