"""Datasets out of datasets: merge, split, filter without copying a frame, and pack into shards.

A derived dataset *hard-links* the files of those it comes from: episodes are never changed once written, so that
they can be shared, and each dataset stays whole when another is deleted, moved, or copied to another machine. A
manifest of references would break in all three cases. Where there are no hard links (another file system, or one
without them) relative symbolic links take their place, which last as long as both ends are moved together, or, on
request, copies. Every new dataset is made under a hidden name beside its place and appears there whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from farworld import __version__
from farworld.dataset.episode import DatasetSpec
from farworld.dataset.format import StoredEpisode, episode_name
from farworld.dataset.reader import EPISODES_FOLDER, Dataset, recordings
from farworld.dataset.shards import (
    INDEX_FILE,
    PackedEpisode,
    Shard,
    ShardWriter,
    index_to_json,
    shard_file,
)
from farworld.dataset.writer import append_recording, format_ranges, utc_now, write_atomically, write_spec
from farworld.lock import lock_file

SHARD_BYTES = 256 << 20  # of a shard, unless told: few enough files for the hub, small enough to stream
_FOLDER_SUFFIX = ".tmp"
_LOCK = ".making"  # in a folder that is being filled


@dataclass(frozen=True, kw_only=True, slots=True)
class Derived:
    """What was made.

    Attributes:
        directory: the new dataset.
        episodes: in it.
        frames: in it.
        copies: episodes that were left out because an equal one is in it.
        linked: files shared with the datasets that it comes from.
        referred: files that are symbolic links, and need those datasets to stay where they are.
        copied: files that were copied.
    """

    directory: Path
    episodes: int
    frames: int
    copies: int = 0
    linked: int = 0
    referred: int = 0
    copied: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Criteria:
    """Which episodes to keep: those that meet all of these.

    Attributes:
        policies: chosen by one of these; empty for any.
        sources: whose source contains one of these; empty for any.
        actions: names of actions, each of which is taken at least once.
        min_frames: of the episode.
        max_frames: of the episode; None for any.
        min_reward: sum over the episode; None for any.
        terminated: ended by the environment, or not; None for either.
    """

    policies: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    min_frames: int = 0
    max_frames: int | None = None
    min_reward: float | None = None
    terminated: bool | None = None

    def matches(self, dataset: Dataset, i: int) -> bool:
        """Whether the i-th episode of the dataset meets them."""
        vocabulary = dataset.spec.action_vocabulary
        wanted = [vocabulary.index(name) for name in self.actions]
        return (
            (not self.policies or dataset.policy(i) in self.policies)
            and (not self.sources or any(source in dataset.source(i) for source in self.sources))
            and self.min_frames <= dataset.num_frames(i)
            and (self.max_frames is None or dataset.num_frames(i) <= self.max_frames)
            and self.terminated in (None, dataset.terminated(i))
            and (not wanted or bool(np.isin(wanted, dataset.actions(i)).all()))
            and (self.min_reward is None or float(dataset.rewards(i).sum(dtype=np.float64)) >= self.min_reward)
        )


def merge(directories: Sequence[str | os.PathLike], out: str | os.PathLike, *, copy: bool = False) -> Derived:
    """Put datasets together.

    Numbers are kept where they are free in all; else those of a dataset go behind those of the ones before it. An
    episode that is in several datasets is taken once.

    Args:
        directories: of one environment, frame size and vocabulary.
        out: the new dataset's folder, which must not be there yet.
        copy: the files instead of sharing them.

    Raises:
        ValueError: the datasets differ, or one is damaged.
    """
    if not directories:
        raise ValueError("expected one or more datasets to merge, got none")
    datasets = [Dataset(directory) for directory in directories]
    first = datasets[0]
    for other in datasets[1:]:
        if difference := first.spec.difference(other.spec):
            raise ValueError(
                f"{first.directory} and {other.directory} cannot be merged: {difference} "
                f"('there' is {first.directory}, 'now' {other.directory})"
            )
    # A spec of version 1 says less.
    spec = next((dataset.spec for dataset in datasets if dataset.spec.action_space), first.spec)
    return _derive([(dataset, range(len(dataset))) for dataset in datasets], out, spec=spec, what="merge", copy=copy)


def select(
    dataset: Dataset,
    positions: Sequence[int],
    out: str | os.PathLike,
    *,
    what: str = "select",
    facts: dict[str, Any] | None = None,
    copy: bool = False,
) -> Derived:
    """Make a dataset of some episodes of another, which keep their numbers.

    Args:
        dataset: where they are.
        positions: which, in [0, len(dataset)).
        out: the new dataset's folder, which must not be there yet.
        what: recordings.jsonl calls this.
        facts: that recordings.jsonl gets beside.
        copy: the files instead of sharing them.

    Raises:
        ValueError: no position.
    """
    if not len(positions):
        raise ValueError(f"none of the {len(dataset)} episodes of {dataset.directory} is chosen; nothing was made")
    return _derive([(dataset, positions)], out, spec=dataset.spec, what=what, facts=facts or {}, copy=copy)


def split_positions(
    dataset: Dataset, *, fraction: float | None = None, episodes: int | None = None, seed: int = 0
) -> tuple[list[int], list[int]]:
    """Divide a dataset's positions into two parts, the same ones for the same seed.

    Args:
        dataset: to be divided.
        fraction: of the episodes, for the first part; both get one at least.
        episodes: how many for the first part; one of fraction and episodes is given.
        seed: which ones.

    Raises:
        ValueError: a part would be empty, or not exactly one of fraction and episodes is given.
    """
    total = len(dataset)
    if (fraction is None) == (episodes is None):
        raise ValueError(f"expected either a fraction or a number of episodes, got {fraction} and {episodes}")
    if fraction is not None and not 0 < fraction < 1:
        raise ValueError(f"the fraction must lie between 0 and 1, got {fraction}")
    if total < 2:
        raise ValueError(f"two or more episodes are needed for a split, {dataset.directory} has {total}")
    first = episodes if episodes is not None else min(max(1, round(total * (fraction or 0))), total - 1)
    if not 1 <= first < total:
        raise ValueError(f"the first part must have 1 to {total - 1} of the {total} episodes, got {first}")
    order = np.random.default_rng(seed).permutation(total)
    return sorted(order[:first].tolist()), sorted(order[first:].tolist())


def pack(
    directory: str | os.PathLike,
    out: str | os.PathLike,
    *,
    shard_bytes: int = SHARD_BYTES,
    on_episode: Callable[[], None] = lambda: None,
) -> Derived:
    """Copy a dataset into tar shards; every checksum is compared on the way.

    Args:
        directory: the dataset, packed or not.
        out: the new dataset's folder, which must not be there yet.
        shard_bytes: the size of a shard, at most, unless one episode is larger.
        on_episode: called after each episode.

    Raises:
        ValueError: an episode is damaged.
        OSError: the disk is full; nothing was made.
    """
    if shard_bytes < 1:
        raise ValueError(f"a shard needs 1 or more bytes, got {shard_bytes}")
    dataset = Dataset(directory)
    started, begin = utc_now(), time.perf_counter()
    with new_folder(out) as folder:
        shards = ShardWriter(folder, shard_bytes)
        for i in range(len(dataset)):
            with dataset.naming(i):
                members = dataset.stored(i).renumbered(dataset.number(i))
            shards.add(dataset.number(i), dataset.num_frames(i), members)
            on_episode()
        shards.close()
        numbers = [dataset.number(i) for i in range(len(dataset))]
        _finish(folder, dataset.spec, shards.shards)
        for row in recordings(directory):
            append_recording(folder, row)
        _record(folder, "pack", started, begin, numbers, {"dataset": dataset.directory.resolve().name})
    return Derived(
        directory=Path(out), episodes=len(dataset), frames=_frames(dataset, range(len(dataset))), copied=len(dataset)
    )


def _frames(dataset: Dataset, positions: Sequence[int]) -> int:
    return sum(dataset.num_frames(i) for i in positions)


def _derive(
    parts: Sequence[tuple[Dataset, Sequence[int]]],
    out: str | os.PathLike,
    *,
    spec: DatasetSpec,
    what: str,
    facts: dict[str, Any] | None = None,
    copy: bool,
) -> Derived:
    """Make a dataset whose files are those of others."""
    started, begin = utc_now(), time.perf_counter()
    seen: set[str] = set()
    taken: set[int] = set()
    shards: list[Shard] = []
    rows: list[dict[str, Any]] = []
    total_copies = total_frames = 0
    out = Path(out)
    with new_folder(out) as folder:
        share = _Sharing(out, folder, copy)
        for dataset, positions in parts:
            chosen = [i for i in positions if dataset.stored(i).digest not in seen]
            seen.update(dataset.stored(i).digest for i in chosen)
            total_copies += len(positions) - len(chosen)
            total_frames += _frames(dataset, chosen)
            numbers = [dataset.number(i) for i in chosen]
            offset = 0 if taken.isdisjoint(numbers) else max(taken) + 1 - min(numbers)
            taken.update(number + offset for number in numbers)
            shards += share.episodes(dataset, chosen, offset, len(shards))
            rows.append(
                {"dataset": dataset.directory.resolve().name, "episodes": format_ranges(numbers), "offset": offset}
            )
        _finish(folder, spec, shards)
        for dataset, _ in parts:
            for row in recordings(dataset.directory):
                # What its numbers are the numbers of.
                append_recording(
                    folder, {"dataset": dataset.directory.resolve().name, **row} if len(parts) > 1 else row
                )
        _record(folder, what, started, begin, sorted(taken), {"parts": rows, "copies": total_copies, **(facts or {})})
    return Derived(
        directory=out,
        episodes=len(taken),
        frames=total_frames,
        copies=total_copies,
        linked=share.linked,
        referred=share.referred,
        copied=share.copied,
    )


class _Sharing:
    """Gives files of other datasets to a new one, and counts how."""

    def __init__(self, out: Path, folder: Path, copy: bool) -> None:
        self.linked = self.referred = self.copied = 0
        self._out = out
        self._folder = folder
        self._copy = copy

    def episodes(self, dataset: Dataset, positions: Sequence[int], offset: int, first_shard: int) -> list[Shard]:
        """Share episodes, whose numbers grow by an offset; the shards that hold those which are packed."""
        in_shards: dict[Path, list[StoredEpisode]] = {}
        packed = {dataset.directory / shard.file: shard for shard in dataset.shards}
        for i in positions:
            if dataset.path(i) in packed:
                in_shards.setdefault(dataset.path(i), []).append(dataset.stored(i))
            else:
                name = episode_name(dataset.number(i) + offset)
                self._file(dataset.path(i), f"{EPISODES_FOLDER}/{name}.tar")
        shards: list[Shard] = []
        for path, stored in in_shards.items():
            file = shard_file(first_shard + len(shards))
            self._file(path, file)
            episodes = [
                PackedEpisode(number=s.number + offset, start=s.start, size=s.stop - s.start, num_frames=s.num_frames)
                for s in sorted(stored, key=lambda s: s.start)
            ]
            shards.append(replace(packed[path], file=file, episodes=tuple(episodes)))
        return shards

    def _file(self, source: Path, name: str) -> None:
        """Share one file under another name, which may not be there yet."""
        source, target = source.resolve(), self._folder / name
        target.parent.mkdir(exist_ok=True)
        if self._copy:
            shutil.copyfile(source, target)
            self.copied += 1
            return
        try:
            os.link(source, target)
            self.linked += 1
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EEXIST, errno.ENOENT, errno.EROFS):
                raise
            final = (self._out.parent.resolve() / self._out.name / name).parent
            try:
                os.symlink(os.path.relpath(source, final), target)
            except OSError as symlink_error:
                raise OSError(
                    symlink_error.errno,
                    f"{source} can neither be linked nor referred to from {self._out} ({symlink_error.strerror}); "
                    "use --copy",
                ) from error
            self.referred += 1


def _finish(folder: Path, spec: DatasetSpec, shards: Sequence[Shard]) -> None:
    """Write what makes a folder of files a dataset."""
    (folder / EPISODES_FOLDER).mkdir(exist_ok=True)
    if shards:
        write_atomically(folder / INDEX_FILE, index_to_json(tuple(shards)).encode())
    write_spec(folder, spec)


def _record(folder: Path, what: str, started: str, begin: float, numbers: Sequence[int], facts: dict[str, Any]) -> None:
    append_recording(
        folder,
        {
            "what": what,
            **facts,
            "started": started,
            "ended": utc_now(),
            "seconds": round(time.perf_counter() - begin, 3),
            "farworld": __version__,
            "num_episodes": len(numbers),
            "episodes": format_ranges(numbers),
        },
    )


def check_new(out: Path) -> None:
    """Raise ValueError if there is something at `out` that is not an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already; give a folder that is not, or an empty one")


@contextlib.contextmanager
def new_folder(out: str | os.PathLike) -> Iterator[Path]:
    """A folder to fill, which takes its place when the block ends well, and is removed if not.

    What was left of an earlier try that was killed is removed.

    Raises:
        ValueError: there is something at `out` that is not an empty folder.
    """
    out = Path(out)
    check_new(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    for leftover in out.parent.glob(f".{out.name}.*{_FOLDER_SUFFIX}"):
        with contextlib.suppress(OSError), open(leftover / _LOCK, "r+b") as file:
            if lock_file(file):
                shutil.rmtree(leftover)
    folder = out.parent / f".{out.name}.{uuid.uuid4().hex[:12]}{_FOLDER_SUFFIX}"
    folder.mkdir()
    try:
        with open(folder / _LOCK, "xb") as file:
            lock_file(file)
            yield folder
        os.unlink(folder / _LOCK)
        os.rename(folder, out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
