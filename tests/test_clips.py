"""Clips for PyTorch: each is what the episode holds, and a stream gives every worker its part."""

import pickle
import re

import numpy as np
import pytest
import torch
from sample_data import fill, make_episode, make_spec
from torch.utils.data import DataLoader

from farworld.actions import Action, ActionVocabulary
from farworld.dataset import Dataset, pack, select
from farworld.train.clips import ClipDataset, StreamedClips

LENGTHS = (5, 20, 33, 16, 40)  # frames of the episodes
CAMERA = {
    "type": "Dict",
    "spaces": {
        "camera": {"type": "Box", "low": -1.0, "high": 1.0, "shape": [2], "dtype": "float32"},
        "jump": {"type": "Discrete", "n": 2, "start": 0},
    },
}


@pytest.fixture
def folder(tmp_path):
    """Five episodes of different lengths, of which the third ends by itself."""
    for index, length in enumerate(LENGTHS):
        ends = {"terminated": index == 2, "truncated": index != 2}
        fill(tmp_path / "data", [index], num_frames=length, **ends)
    return tmp_path / "data"


@pytest.fixture
def packed(tmp_path, folder):
    """The same in three shards."""
    pack(folder, tmp_path / "packed", shard_bytes=100_000)
    assert len(Dataset(tmp_path / "packed").shards) == 3
    return tmp_path / "packed"


def expect_true(clip, length):
    """Compare a clip with the episode that it names."""
    number, start = int(clip["episode"]), int(clip["start"])
    episode = make_episode(LENGTHS[number], index=number)
    assert clip["frames"].dtype == torch.uint8 and clip["actions"].dtype == torch.int64
    np.testing.assert_array_equal(clip["frames"], episode.frames[start : start + length])
    np.testing.assert_array_equal(clip["actions"], episode.actions[start : start + length - 1])
    np.testing.assert_array_equal(clip["rewards"], episode.rewards[start : start + length - 1])
    last = start + length == LENGTHS[number] and number == 2
    assert clip["terminated"].tolist() == [False] * (length - 2) + [last] * (length > 1)


@pytest.mark.parametrize("length", [1, 5, 16, 17, 40])  # one frame, one chunk, one more, the longest episode
@pytest.mark.parametrize("stride", [1, 7])
def test_every_clip_is_what_the_episode_holds(folder, length, stride):
    """All of them, in order, each once."""
    clips = ClipDataset(folder, length, stride=stride)
    expected = [
        (number, start) for number, frames in enumerate(LENGTHS) for start in range(0, frames - length + 1, stride)
    ]
    assert [(int(c["episode"]), int(c["start"])) for c in (clips[i] for i in range(len(clips)))] == expected
    for i in {0, len(clips) // 2, len(clips) - 1, -1}:
        expect_true(clips[i], length)
    for i in (len(clips), -len(clips) - 1):
        with pytest.raises(IndexError):
            clips[i]


def test_clips_of_packed_and_several_datasets(tmp_path, folder, packed):
    """Side by side; each item says which dataset it is from."""
    clips = ClipDataset([folder, Dataset(packed)], 20, stride=5, positions=[[1, 4], None])
    assert {(int(clip["dataset"]), int(clip["episode"])) for clip in (clips[i] for i in range(len(clips)))} == {
        (0, 1), (0, 4), (1, 1), (1, 2), (1, 4),
    }  # fmt: skip
    expect_true(clips[len(clips) - 1], 20)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_stacks_clips(folder, workers):
    """In worker processes, too, which get the dataset pickled."""
    clips = pickle.loads(pickle.dumps(ClipDataset(folder, 8, stride=8)))
    loader = DataLoader(clips, batch_size=3, num_workers=workers)
    batches = list(loader)
    assert batches[0]["frames"].shape == (3, 8, 16, 32, 3)
    assert batches[0]["actions"].shape == (3, 7)
    assert sum(len(batch["start"]) for batch in batches) == len(clips)
    expect_true({key: value[1] for key, value in batches[1].items()}, 8)


def test_own_actions_come_with_the_clip(tmp_path):
    """For models of environments whose actions are more than an index."""
    rng = np.random.default_rng(0)
    own = {"camera": rng.uniform(-1, 1, (39, 2)).astype(np.float32), "jump": rng.integers(0, 2, 39)}
    fill(tmp_path / "data", [0, 1], make_spec(action_space=CAMERA), env_actions=own)
    pack(tmp_path / "data", tmp_path / "packed")
    batch = next(iter(DataLoader(ClipDataset(tmp_path / "data", 10, stride=10), batch_size=2)))
    np.testing.assert_array_equal(batch["env_actions"]["camera"][1], own["camera"][10:19])
    np.testing.assert_array_equal(batch["env_actions"]["jump"][1], own["jump"][10:19])
    clip = next(iter(StreamedClips(tmp_path / "packed", 40)))
    np.testing.assert_array_equal(clip["env_actions"]["camera"], own["camera"])


def test_clips_that_cannot_be_are_named(tmp_path, folder, packed):
    """With what there is."""
    for make in (lambda n: ClipDataset(folder, n), lambda n: StreamedClips(packed, n)):
        with pytest.raises(ValueError, match="no episode has 41 frames, the longest has 40"):
            make(41)
        with pytest.raises(ValueError, match="1 or more, got 0"):
            make(0)
    other = ActionVocabulary((Action(name="a"), Action(name="b")))
    fill(tmp_path / "other", [0], make_spec(action_vocabulary=other))
    with pytest.raises(ValueError, match=f"action_vocabulary is .* in {re.escape(str(folder))} and"):
        ClipDataset([folder, tmp_path / "other"], 5)
    with pytest.raises(ValueError, match="rank must be in"):
        StreamedClips(packed, 5, rank=2, world_size=2)
    with pytest.raises(ValueError, match="both rank and world_size"):
        StreamedClips(packed, 5, rank=0)


def test_damage_is_named_when_a_clip_is_read(folder):
    """With the file, as the dataset itself does."""
    clips = ClipDataset(folder, 40)
    path = folder / "episodes" / "episode-000004.tar"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match="episode-000004.tar: damaged frames"):
        clips[0]


# Streams


def places(clips):
    return [(int(clip["episode"]), int(clip["start"])) for clip in clips]


@pytest.mark.parametrize("buffer_episodes", [1, 2, 32])
def test_an_epoch_has_every_episode_cut_into_clips(packed, buffer_episodes):
    """None twice, none overlapping, none that is too short; each as it was recorded."""
    clips = list(StreamedClips(packed.as_uri(), 8, buffer_episodes=buffer_episodes))
    for clip in clips:
        expect_true(clip, 8)
    by_episode = {}
    for number, start in places(clips):
        by_episode.setdefault(number, []).append(start)
    assert {number: len(starts) for number, starts in by_episode.items()} == {1: 2, 2: 4, 3: 2, 4: 5}
    for starts in by_episode.values():
        assert (np.diff(sorted(starts)) == 8).all()


def test_order_is_that_of_seed_and_epoch(packed):
    """The same again for the same, another for another."""
    clips = StreamedClips(packed, 4, seed=1)
    first = places(clips)
    assert places(clips) == places(StreamedClips(packed, 4, seed=1)) == first
    assert sorted(first) != first
    clips.set_epoch(1)
    second = places(clips)
    assert second != first
    assert places(StreamedClips(packed, 4, seed=2)) not in (first, second)
    endless = iter(StreamedClips(packed, 4, seed=1, repeat=True))
    assert places(next(endless) for _ in range(len(first) + len(second))) == first + second


@pytest.mark.parametrize(("ranks", "workers"), [(1, 2), (2, 1), (2, 2), (3, 3)])
def test_ranks_and_workers_divide_the_episodes(packed, monkeypatch, ranks, workers):
    """Each episode goes to one of them, also where there are more of them than shards or episodes."""
    parts = []
    for rank in range(ranks):
        for worker in range(workers):
            info = type("Info", (), {"num_workers": workers, "id": worker})
            monkeypatch.setattr("farworld.train.clips.get_worker_info", lambda info=info: info)
            parts.append({number for number, _ in places(StreamedClips(packed, 16, rank=rank, world_size=ranks))})
    assert sorted(number for part in parts for number in part) == [1, 2, 3, 4]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_data_loader_streams_in_workers(packed):
    """Every clip once; persistent workers learn of a new epoch."""
    clips = StreamedClips(packed, 8)
    loader = DataLoader(clips, batch_size=2, num_workers=2, persistent_workers=True)
    orders = []
    for epoch in range(2):
        clips.set_epoch(epoch)
        batches = list(loader)
        orders.append([p for b in batches for p in zip(b["episode"].tolist(), b["start"].tolist(), strict=True)])
        assert batches[0]["frames"].shape == (2, 8, 16, 32, 3)
    assert [len(order) for order in orders] == [13, 13]
    assert orders[0] != orders[1]


def test_ranks_come_from_torch_distributed(packed, tmp_path):
    """Without an argument, as under torchrun."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        clips = StreamedClips(packed, 8)
        assert (clips.rank, clips.world_size) == (0, 1)
    finally:
        torch.distributed.destroy_process_group()


def test_a_filtered_pack_streams_only_what_it_names(tmp_path, packed):
    """Its shards hold more."""
    select(Dataset(packed), [1, 4], tmp_path / "few")
    assert {number for number, _ in places(StreamedClips(tmp_path / "few", 16))} == {1, 4}
