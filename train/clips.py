"""Clips of recorded episodes for training any model in PyTorch: from disk by random access, or streamed from afar.

A clip of F frames is a dict of tensors, which `torch.utils.data.DataLoader` stacks into batches as it is:

    frames      (F, H, W, 3), uint8
    actions     (F - 1,), int64: actions[t] was taken after frames[t] and produced frames[t + 1]
    rewards     (F - 1,), float32
    terminated  (F - 1,), bool: whether the environment ended the episode with that action
    dataset     (), int64: which of the datasets
    episode     (), int64: the episode's number in it
    start       (), int64: the clip's first frame in the episode
    env_actions {key: (F - 1, ...)}, int64 or float32: the environment's own actions, if they are more than an index

For PyTorch's usual layout: `rearrange(batch["frames"], "b f h w c -> b f c h w")`.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset, get_worker_info

from farworld.dataset import Dataset, DatasetSpec
from farworld.dataset.format import StoredEpisode
from farworld.dataset.remote import RemoteDataset

BUFFER_EPISODES = 32  # that a stream draws clips from, compressed: some 1 MB each at 64x64 and 300 frames
_ENV_ACTION = "env_action/"

Source = str | os.PathLike | Dataset


class ClipDataset(TorchDataset):
    """All clips of a length in one or several datasets, by random access; picklable, made for DataLoader workers.

    Item i is a clip as the module describes it; items go through the episodes in order.

    Args:
        data: a dataset, its folder, or several of them, with the same frame size and action vocabulary.
        length: F, frames of a clip; shorter episodes have none.
        stride: frames from the start of one clip to that of the next; 1 gives every clip there is.
        positions: for each dataset, which of its episodes; None takes all.
        skip_bad: leave damaged files out instead of raising, for folders.

    Raises:
        FileNotFoundError: no dataset there.
        ValueError: damaged files, datasets that differ, or no episode that is long enough.
    """

    def __init__(
        self,
        data: Source | Sequence[Source],
        length: int,
        *,
        stride: int = 1,
        positions: Sequence[Sequence[int] | None] | None = None,
        skip_bad: bool = False,
    ) -> None:
        if length < 1 or stride < 1:
            raise ValueError(f"length and stride must be 1 or more, got {length} and {stride}")
        sources = [data] if isinstance(data, (str, os.PathLike, Dataset)) else list(data)
        self.datasets = [s if isinstance(s, Dataset) else Dataset(s, skip_bad=skip_bad) for s in sources]
        self.length = length
        self.stride = stride
        _check_alike(self.datasets)
        chosen = positions or [None] * len(self.datasets)
        self._episodes: list[tuple[int, int]] = []  # dataset, position in it
        self._ends: list[int] = []  # number of clips up to and with each of the episodes
        total = longest = 0
        for index, (dataset, wanted) in enumerate(zip(self.datasets, chosen, strict=True)):
            for i in range(len(dataset)) if wanted is None else wanted:
                num_frames = dataset.num_frames(i)
                longest = max(longest, num_frames)
                if num_frames >= length:
                    total += (num_frames - length) // stride + 1
                    self._episodes.append((index, int(i)))
                    self._ends.append(total)
        if not total:
            raise ValueError(f"no episode has {length} frames, the longest has {longest}; use shorter clips")

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, item: int) -> dict[str, Any]:
        """Clip `item`, as the module describes it."""
        if item < 0:
            item += len(self)
        if not 0 <= item < len(self):
            raise IndexError(f"clip {item} asked of {len(self)}")
        place = bisect_right(self._ends, item)
        index, i = self._episodes[place]
        start = (item - (self._ends[place - 1] if place else 0)) * self.stride
        dataset = self.datasets[index]
        with dataset.naming(i):
            return _clip(dataset.stored(i), dataset.spec, start, self.length, index)


class StreamedClips(IterableDataset):
    """Clips of a packed dataset that is read from a URL or the hub, shard by shard, and never lies on disk as a whole.

    An epoch cuts each episode into clips that do not overlap, from a random offset on, and draws them in random order
    from a buffer of episodes. The shards, in an order that changes with the epoch, are divided among all workers of
    all ranks by whole episodes, whose numbers differ by one at most. The same seed, epoch, ranks and workers give the
    same clips in the same order.

    Ranks can differ by a few clips in an epoch: with collectives, such as DDP's, use `repeat` and count steps.

    Args:
        source: the folder, as a path or as an http(s) or file URL, or a hub dataset `owner/name[@revision]`.
        length: F, frames of a clip; shorter episodes are passed over.
        buffer_episodes: how many episodes to draw from, compressed in memory in each worker; 1 keeps the order.
        seed: of order and offsets.
        repeat: go on with the next epoch, without end.
        rank: of this process; None asks torch.distributed, or is 0 without it.
        world_size: number of ranks; None likewise.

    Raises:
        ConnectionError: the source is not reached.
        ValueError: it is no packed dataset, or no episode is long enough.
    """

    def __init__(
        self,
        source: str | os.PathLike,
        length: int,
        *,
        buffer_episodes: int = BUFFER_EPISODES,
        seed: int = 0,
        repeat: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if length < 1 or buffer_episodes < 1:
            raise ValueError(f"length and buffer_episodes must be 1 or more, got {length} and {buffer_episodes}")
        self.remote = RemoteDataset(os.fspath(source))
        self.length = length
        self.buffer_episodes = buffer_episodes
        self.seed = seed
        self.repeat = repeat
        self.rank, self.world_size = _rank(rank, world_size)
        longest = max((e.num_frames for shard in self.remote.shards for e in shard.episodes), default=0)
        if longest < length:
            raise ValueError(f"no episode has {length} frames, the longest has {longest}; use shorter clips")
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # which persistent workers see, too

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration; without it every iteration is that of epoch 0."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        workers, worker_id = (worker.num_workers, worker.id) if worker else (1, 0)
        consumer, consumers = self.rank * workers + worker_id, self.world_size * workers
        epoch = int(self._epoch)
        yield from self._clips(epoch, consumer, consumers)
        while self.repeat:
            epoch += 1
            yield from self._clips(epoch, consumer, consumers)

    def _clips(self, epoch: int, consumer: int, consumers: int) -> Iterator[dict[str, Any]]:
        """One consumer's clips of an epoch, in random order."""
        rng = np.random.default_rng([self.seed, epoch, consumer])
        pool: list[tuple[StoredEpisode, int]] = []
        left: dict[int, int] = {}  # clips of each episode in the pool

        def draw() -> dict[str, Any]:
            chosen = int(rng.integers(len(pool)))
            pool[chosen], pool[-1] = pool[-1], pool[chosen]
            stored, start = pool.pop()
            left[stored.number] -= 1
            if not left[stored.number]:
                del left[stored.number]
            return _clip(stored, self.remote.spec, start, self.length, 0)

        for stored in self._episodes(epoch, consumer, consumers):
            count = stored.num_frames // self.length
            offset = int(rng.integers(stored.num_frames - count * self.length + 1))
            pool += [(stored, offset + k * self.length) for k in range(count)]
            left[stored.number] = count
            while len(left) >= self.buffer_episodes:
                yield draw()
        while pool:
            yield draw()

    def _episodes(self, epoch: int, consumer: int, consumers: int) -> Iterator[StoredEpisode]:
        """One consumer's part of the long enough episodes of an epoch."""
        shards = self.remote.shards
        order = np.random.default_rng([self.seed, epoch]).permutation(len(shards)) if self.buffer_episodes > 1 else None
        in_order = list(shards) if order is None else [shards[i] for i in order]
        numbers = [[e.number for e in s.episodes if e.num_frames >= self.length] for s in in_order]
        total = sum(map(len, numbers))
        first, stop = total * consumer // consumers, total * (consumer + 1) // consumers
        begin = 0
        for shard, of_shard in zip(in_order, numbers, strict=True):
            wanted = of_shard[max(0, first - begin) : max(0, stop - begin)]
            begin += len(of_shard)
            if wanted:
                yield from self.remote.episodes(shard, frozenset(wanted))


def _clip(stored: StoredEpisode, spec: DatasetSpec, start: int, length: int, dataset: int) -> dict[str, Any]:
    """The clip of an episode that begins at a frame."""
    arrays = {key: array[start : start + length - 1] for key, array in stored.arrays().items()}
    clip: dict[str, Any] = {
        "frames": torch.from_numpy(stored.frames(start, start + length)),
        **{key: torch.from_numpy(arrays[key].copy()) for key in ("actions", "rewards", "terminated")},
        "dataset": torch.tensor(dataset),
        "episode": torch.tensor(stored.number),
        "start": torch.tensor(start),
    }
    if _own_space(spec):
        clip["env_actions"] = {
            key.removeprefix(_ENV_ACTION): torch.from_numpy(array.copy())
            for key, array in arrays.items()
            if key.startswith(_ENV_ACTION)
        }
    return clip


def _check_alike(datasets: Sequence[Dataset]) -> None:
    """Raise ValueError unless clips of these datasets can be stacked and mean the same."""
    if not datasets:
        raise ValueError("expected one or more datasets, got none")
    first = datasets[0]
    for other in datasets[1:]:
        mine_and_theirs = {
            "height": (first.spec.height, other.spec.height),
            "width": (first.spec.width, other.spec.width),
            "action_vocabulary": (first.spec.action_vocabulary.to_json(), other.spec.action_vocabulary.to_json()),
            "action_space": (_own_space(first.spec), _own_space(other.spec)),
        }
        for name, (mine, theirs) in mine_and_theirs.items():
            if mine != theirs:
                raise ValueError(
                    f"datasets of one kind are needed: {name} is {mine!r} in {first.directory} and {theirs!r} in "
                    f"{other.directory}"
                )


def _own_space(spec: DatasetSpec) -> dict[str, Any]:
    """The environment's action space, if an action there is more than an index."""
    return {} if spec.action_space.get("type") == "Discrete" else spec.action_space


def _rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise ValueError(f"expected both rank and world_size or neither, got {rank} and {world_size}")
    if rank is None or world_size is None:
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()):
            return 0, 1
        return distributed.get_rank(), distributed.get_world_size()
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in [0, world_size), got {rank} of {world_size}")
    return rank, world_size
