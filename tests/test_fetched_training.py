"""Training on a dataset that lies elsewhere: everything is encoded as it streams by, and little is kept."""

import contextlib
import json
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from test_dataset_hub import server  # noqa: F401 - a fixture
from test_train import ALONE, SMALL, bars, train  # noqa: F401 - a fixture

from farworld.cli import app
from farworld.dataset import Dataset, hub
from farworld.dataset.fetched import FetchedDataset, open_dataset
from farworld.train.config import PRESETS, override
from farworld.train.latents import LatentDataset
from farworld.train.pipeline import open_run, run_stages
from farworld.train.world import ClipKind, random_clips


@pytest.fixture
def repository(bars, server):  # noqa: F811
    """The bars on the hub, in some shards."""
    hub.push(bars, "owner/name", shard_bytes=60_000)
    server.requests.clear()
    return server


def shards_read(server) -> list[str]:  # noqa: F811
    return [path.rpartition("/")[2] for _, path, _ in server.requests if path.endswith(".tar")]


def encode(run_path: Path, data: Dataset) -> dict:
    run = open_run(run_path, None, [], resume=True, stage="latents", data=data, ranks=ALONE)
    with contextlib.closing(run):
        return run_stages(run, data, "latents")


def cached(run_path: Path) -> list[bytes]:
    return [(run_path / "latents" / name).read_bytes() for name in ("latents.f16", "actions.i64")]


@pytest.fixture
def two_runs(bars, tmp_path) -> list[Path]:  # noqa: F811
    """Twice the same autoencoder, and nothing encoded."""
    train(tmp_path / "local", bars, "autoencoder_steps=2", stage="autoencoder")
    shutil.copytree(tmp_path / "local", tmp_path / "fetched")
    return [tmp_path / "local", tmp_path / "fetched"]


def test_latents_of_a_stream_are_those_of_the_dataset_on_disk_and_no_frame_is_kept(bars, repository, two_runs):  # noqa: F811
    """Every shard is read once, from front to back."""
    local, fetched = two_runs
    encode(local, Dataset(bars))
    data = open_dataset("hf://owner/name", fetched / "episodes")
    assert isinstance(data, FetchedDataset) and len(data.shards) > 3
    assert encode(fetched, data)["cached_frames"] == 24 * 20
    assert cached(fetched) == cached(local)
    assert not (fetched / "episodes").exists()
    assert shards_read(repository) == [shard.file.partition("/")[2] for shard in data.shards]


def test_a_stream_that_breaks_is_gone_on_with_where_it_was(bars, repository, two_runs):  # noqa: F811
    local, fetched = two_runs
    encode(local, Dataset(bars))
    data = open_dataset("hf://owner/name", fetched / "episodes")
    last = data.shards[-1].file
    repository.refused.add(last)
    with pytest.raises(ConnectionError, match=f"{last} could not be fetched: 403"):
        encode(fetched, data)
    assert json.loads((fetched / "latents" / "progress.json").read_text())["episodes"] == 20
    repository.refused.clear()
    repository.requests.clear()
    encode(fetched, data)
    assert cached(fetched) == cached(local)
    assert 1 <= len(set(shards_read(repository))) < len(data.shards)


def test_a_dataset_on_the_hub_is_trained_on_by_its_name(repository, tmp_path, capfd, monkeypatch):
    """All stages; the held-out episode is fetched to be looked at, and four others for the autoencoder."""
    monkeypatch.setattr(FetchedDataset, "num_bytes", lambda data, i: 1 << 18)
    out = tmp_path / "run"
    arguments = ["train", "--data", "hf://owner/name", "--out", str(out), "--preset", "maze-xs", "--device", "cpu"]
    settings = [*SMALL, "autoencoder_steps=2", "world_steps=2", "fetched_megabytes=1"]
    app([*arguments, "--json", "--set", *settings], result_action="return_value")
    report = json.loads(capfd.readouterr().out)
    assert (report["world_steps"], report["cached_frames"], report["episodes"]) == (2, 480, 1)
    [folder] = (out / "episodes").iterdir()
    assert len(list(folder.iterdir())) == 4 + 1
    assert (out / "world" / "model.safetensors").is_file()
    with pytest.raises(ValueError, match="--skip-bad needs a dataset on this disk; pull hf://owner/name"):
        app([*arguments, "--skip-bad"], exit_on_error=False, print_error=False, result_action="return_value")


def test_what_is_asked_for_is_fetched_once_and_equals_the_dataset_on_disk(bars, repository, tmp_path):  # noqa: F811
    """Also by another process, which finds it in the folder."""
    local, data = Dataset(bars), open_dataset("hf://owner/name", tmp_path / "kept")
    assert [data.num_frames(i) for i in range(len(data))] == [20] * 24 and data.episodes == local.episodes
    repository.requests.clear()
    for _ in range(2):
        np.testing.assert_array_equal(data.frames(7, 3, 9), local.frames(7, 3, 9))
        np.testing.assert_array_equal(data.actions(7), local.actions(7))
        assert len(shards_read(repository)) == 1
        data = FetchedDataset("owner/name", tmp_path / "kept")
    assert [path.name for path in data.directory.iterdir()] == ["episode-000007.tar"]
    Dataset(bars).verify(7)
    data.verify(7)


def test_the_sample_is_random_repeatable_and_within_its_bytes(repository, tmp_path):
    data = open_dataset("hf://owner/name", tmp_path / "kept")
    limit = 5 * max(data.num_bytes(i) for i in range(24))
    chosen = data.sample(list(range(20)), limit, 1)
    assert chosen == sorted(set(chosen)) and set(chosen) < set(range(20))
    assert 5 <= len(chosen) and sum(data.num_bytes(i) for i in chosen) <= limit
    assert chosen == data.sample(list(range(20)), limit, 1) != data.sample(list(range(20)), limit, 2)
    assert len(data.sample(list(range(20)), 1, 1)) == 1 and data.sample(list(range(20)), 1 << 40, 1) == list(range(20))


@pytest.mark.parametrize(
    ("place", "message"),
    [(2060, "episode-000000 of http.*damaged frames.*; push the dataset again"),
     (4300, "shards/shard-000000.tar: .*differs from its checksum")],
)  # fmt: skip
def test_damage_elsewhere_is_named_with_its_place(repository, two_runs, place, message):
    """Of frames, which is found when they are decoded, and of the rest, which is found at once."""
    _, fetched = two_runs
    data = open_dataset("hf://owner/name", fetched / "episodes")
    content = bytearray(repository.files[data.shards[0].file])
    for position in range(place, place + 40):  # in the first episode
        content[position] ^= 0xFF
    repository.files[data.shards[0].file] = bytes(content)
    with pytest.raises(ValueError, match=message):
        encode(fetched, data)


def anonymous_memory() -> int:
    """Bytes that this process holds beyond what is mapped from files."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) << 10


def memory_of_drawing(folder: Path) -> tuple[int, int]:
    """Bytes that 40 batches of clips have, drawn from a sparse file of twice the machine's memory, and what stays."""
    config = override(PRESETS["maze-xs"], SMALL)
    frame = (64, 16, 16)
    episodes = 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // (300 * 2 * int(np.prod(frame)))
    file = folder / "latents.f16"
    with open(file, "wb") as stream:
        stream.truncate(episodes * 300 * 2 * int(np.prod(frame)))
    mapped = np.memmap(file, dtype=np.float16, mode="r", shape=(episodes * 300, *frame))
    actions = np.lib.stride_tricks.as_strided(np.zeros(1, np.int64), (episodes * 300,), (0,))
    latents = LatentDataset(mapped, np.arange(episodes + 1) * 300, actions)
    everything = list(range(episodes))
    before = 0
    for step in range(60):
        generators = [torch.Generator().manual_seed(8 * step + item) for item in range(8)]
        clips = random_clips(latents, everything, config, ClipKind(30, 0.0), 0, generators)
        assert clips.latents.shape == (8, 30, *frame)
        if step == 19:  # by now the allocator has what a step needs
            before = anonymous_memory()
    return 40 * clips.latents.numel() * 2, anonymous_memory() - before


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads Linux's account of a process's memory")
def test_latents_larger_than_main_memory_are_drawn_from_in_little_of_it(tmp_path):
    """Pages of the file that are in memory belong to the system's cache."""
    # In a process of its own: the allocator of this one has seen all the other tests.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        read, stays = process.submit(memory_of_drawing, tmp_path).result()
    assert read > 250 << 20
    assert stays < 50 << 20
