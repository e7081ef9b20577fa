"""Datasets out of datasets: what is shared, what is kept, what a pack holds."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from sample_data import VOCABULARY, fill, make_episode, make_spec, same_episodes

from farworld.actions import Action, ActionVocabulary
from farworld.dataset import Criteria, Dataset, derive, merge, pack, recordings, select, split_positions
from farworld.dataset.stats import measure

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(tmp_path):
    """Ten episodes."""
    return fill(tmp_path / "data", range(10))


def numbers(folder):
    dataset = Dataset(folder)
    for i in range(len(dataset)):
        dataset.verify(i)
    return [dataset.number(i) for i in range(len(dataset))]


def bytes_on_disk(*folders):
    """Of all different files."""
    files = {}
    for folder in folders:
        for path in Path(folder).rglob("*"):
            if path.is_file() and path.suffix == ".tar":
                files[path.stat().st_ino] = path.stat().st_size
    return sum(files.values())


def packed(folder, shard_bytes=1 << 30):
    out = folder.with_name(f"{folder.name}-packed")
    pack(folder, out, shard_bytes=shard_bytes)
    return out


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("pack_first", [False, True])
def test_a_merge_copies_nothing_and_outlives_its_parts(tmp_path, pack_first):
    """The files are shared; numbers that are taken go behind; deleting or moving a part changes nothing."""
    parts = [fill(tmp_path / "a", [0, 1, 4]), fill(tmp_path / "b", [1, 3], seed=8), fill(tmp_path / "c", [9])]
    if pack_first:
        parts[1] = packed(parts[1])
    before = bytes_on_disk(*parts)
    result = merge(parts, tmp_path / "out")
    assert bytes_on_disk(*parts, tmp_path / "out") == before
    assert (result.episodes, result.frames, result.copies) == (6, 240, 0)
    assert (result.linked, result.referred, result.copied) == (5 if pack_first else 6, 0, 0)
    for part in parts:
        shutil.rmtree(part)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").rename(tmp_path / "elsewhere" / "moved")
    merged = Dataset(tmp_path / "elsewhere" / "moved")
    assert numbers(merged.directory) == [0, 1, 4, 5, 7, 9]
    same_episodes(merged.episode(3), make_episode(index=1, seed=8))
    assert merged.episode(3).index == 5
    same_episodes(merged.episode(5), make_episode(index=9))


def test_a_merge_of_disjoint_numbers_keeps_them(tmp_path):
    """As recorded by several machines with --shard: the whole is what one machine would have made."""
    parts = [fill(tmp_path / f"part{k}", range(k, 9, 3)) for k in range(3)]
    merge(parts, tmp_path / "out")
    whole = Dataset(fill(tmp_path / "whole", range(9)))
    merged = Dataset(tmp_path / "out")
    assert merged.episodes == whole.episodes
    for i in range(9):
        assert merged.path(i).read_bytes() == whole.path(i).read_bytes()


def test_what_several_parts_have_is_taken_once(tmp_path, folder):
    """The same episode trained on twice, or held out and trained on, is a mistake that nobody sees."""
    fill(tmp_path / "other", [3, 20])
    result = merge([folder, tmp_path / "other", packed(folder)], tmp_path / "out")
    assert (result.episodes, result.copies) == (11, 11)
    assert numbers(tmp_path / "out") == [*range(10), 20]


def test_a_merged_dataset_is_extended_like_any_other(tmp_path, folder):
    """And what is added does not reach its parts."""
    part = packed(fill(tmp_path / "b", range(3), seed=8))
    merge([folder, part], tmp_path / "out")
    fill(tmp_path / "out", [30])
    assert numbers(tmp_path / "out") == [*range(13), 30]
    assert (numbers(folder), numbers(part)) == (list(range(10)), list(range(3)))


def test_recordings_follow_their_episodes(tmp_path, folder):
    """A merged dataset still says when and how its parts were recorded."""
    fill(tmp_path / "other", [2, 3], seed=8)
    merge([folder, tmp_path / "other"], tmp_path / "out")
    lines = recordings(tmp_path / "out")
    assert [(line["what"], line.get("dataset"), line["episodes"]) for line in lines] == [
        ("record", "data", "0-9"),
        ("record", "other", "2-3"),
        ("merge", None, "0-11"),
    ]
    assert lines[-1]["parts"] == [
        {"dataset": "data", "episodes": "0-9", "offset": 0},
        {"dataset": "other", "episodes": "2-3", "offset": 8},
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env_id": "other"}, "cannot be merged: env_id"),
        ({"action_vocabulary": ActionVocabulary((Action(name="a"), Action(name="b")))}, "noop, forward there and a, b"),
    ],
)
def test_datasets_that_differ_are_not_merged(tmp_path, folder, changes, message):
    """Nothing is made."""
    other = fill(tmp_path / "other", [0], make_spec(**changes))
    with pytest.raises(ValueError, match=message):
        merge([folder, other], tmp_path / "out")
    assert entries(tmp_path) == ["data", "other"]


def across_file_systems(source, target):
    raise OSError(errno.EXDEV, "Invalid cross-device link")


def test_without_hard_links_a_merge_refers_and_the_tree_can_be_moved(tmp_path, monkeypatch):
    """The links are relative; a missing end is named, and --copy needs none."""
    tree = tmp_path / "tree"
    parts = [fill(tree / "a", [0, 1]), packed(fill(tree / "b", [5, 6]))]
    monkeypatch.setattr(os, "link", across_file_systems)
    result = merge(parts, tree / "deep" / "out")
    assert (result.linked, result.referred) == (0, 3)
    tree.rename(tmp_path / "moved")
    out = tmp_path / "moved" / "deep" / "out"
    assert numbers(out) == [0, 1, 5, 6]
    merge([out], tmp_path / "moved" / "again")  # refers to the files themselves, not to what refers to them
    shutil.rmtree(out)
    assert numbers(tmp_path / "moved" / "again") == [0, 1, 5, 6]
    assert derive.merge([tmp_path / "moved" / "again"], tmp_path / "copy", copy=True).copied == 3
    shutil.rmtree(tmp_path / "moved")
    assert numbers(tmp_path / "copy") == [0, 1, 5, 6]


def test_a_reference_to_nothing_is_named(tmp_path, monkeypatch):
    """With the place where the file should be."""
    fill(tmp_path / "a", [0, 1])
    packed(tmp_path / "a")
    monkeypatch.setattr(os, "link", across_file_systems)
    merge([tmp_path / "a"], tmp_path / "out")
    merge([tmp_path / "a-packed"], tmp_path / "out-packed")
    shutil.rmtree(tmp_path / "a")
    shutil.rmtree(tmp_path / "a-packed")
    with pytest.raises(ValueError, match=r"refers to \.\./\.\./a/episodes/episode-000000.tar, which is not there"):
        Dataset(tmp_path / "out")
    with pytest.raises(ValueError, match=r"shard-000000.tar: missing, it refers to .*; 2 episodes are in it"):
        Dataset(tmp_path / "out-packed")


@pytest.mark.parametrize("pack_first", [False, True])
def test_a_split_divides_by_seed(tmp_path, folder, pack_first):
    """Both parts together are the whole; numbers and bytes stay; the same seed chooses the same ones."""
    if pack_first:
        folder = packed(folder, 100_000)
    before = bytes_on_disk(folder)
    dataset = Dataset(folder)
    parts = split_positions(dataset, fraction=0.3, seed=1)
    assert parts == split_positions(Dataset(folder), episodes=3, seed=1)
    assert parts != split_positions(dataset, fraction=0.3, seed=2)
    for name, positions in zip(("few", "many"), parts, strict=True):
        select(dataset, positions, tmp_path / name)
        assert numbers(tmp_path / name) == positions
    assert sorted(numbers(tmp_path / "few") + numbers(tmp_path / "many")) == list(range(10))
    assert bytes_on_disk(folder, tmp_path / "few", tmp_path / "many") == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either a fraction or a number"),
        ({"fraction": 0.5, "episodes": 2}, "either a fraction or a number"),
        ({"fraction": 1.0}, "between 0 and 1, got 1.0"),
        ({"episodes": 10}, "1 to 9 of the 10 episodes, got 10"),
        ({"episodes": 0}, "1 to 9 of the 10 episodes, got 0"),
    ],
)
def test_a_split_into_nothing_is_refused(folder, arguments, message):
    """Training on no episode fails later, and less clearly."""
    with pytest.raises(ValueError, match=message):
        split_positions(Dataset(folder), **arguments)


@pytest.mark.parametrize(
    ("criteria", "kept"),
    [
        (Criteria(), [0, 1, 2, 3]),
        (Criteria(policies=("tour",)), [1]),
        (Criteria(policies=("tour", "human")), [1, 2]),
        (Criteria(sources=("b.npz",)), [3]),
        (Criteria(min_frames=21), [1, 2]),
        (Criteria(max_frames=20), [0, 3]),
        (Criteria(min_frames=20, max_frames=39), [0]),
        (Criteria(actions=("forward",)), [1, 2, 3]),
        (Criteria(actions=("forward", "noop")), [1, 2]),
        (Criteria(min_reward=5.0), [2]),
        (Criteria(terminated=True), [3]),
        (Criteria(terminated=False, policies=("human",)), [2]),
    ],
)
def test_a_filter_keeps_what_meets_all_conditions(tmp_path, criteria, kept):
    """One condition a row, and two together."""
    folder = tmp_path / "data"
    fill(folder, [0], num_frames=20, policy="explore", actions=np.zeros(19, np.int64), rewards=np.zeros(19, np.float32))
    fill(folder, [1], policy="tour", rewards=np.full(39, 0.1, np.float32))
    fill(folder, [2], policy="human", source="human", rewards=np.full(39, 0.2, np.float32))
    last = {"source": "b.npz sha256:1", "terminated": True, "truncated": False, "rewards": np.zeros(9, np.float32)}
    fill(folder, [3], num_frames=10, actions=np.ones(9, np.int64), **last)
    dataset = Dataset(folder)
    chosen = [i for i in range(len(dataset)) if criteria.matches(dataset, i)]
    select(dataset, chosen, tmp_path / "out")
    assert numbers(tmp_path / "out") == kept


def test_a_filter_that_keeps_nothing_makes_nothing(tmp_path, folder):
    """An empty dataset would fail later."""
    with pytest.raises(ValueError, match="none of the 10 episodes"):
        select(Dataset(folder), [], tmp_path / "out")
    with pytest.raises(ValueError, match="unknown action 'fly'"):
        Criteria(actions=("fly",)).matches(Dataset(folder), 0)
    assert entries(tmp_path) == ["data"]


# Packing


def test_a_pack_holds_the_same_episodes(tmp_path, folder):
    """In shards of about the wanted size; any range reads as from single files."""
    result = pack(folder, tmp_path / "packed", shard_bytes=150_000)
    loose, dataset = Dataset(folder), Dataset(tmp_path / "packed")
    assert result.episodes == len(dataset) == 10
    assert [len(shard.episodes) for shard in dataset.shards] == [2, 2, 2, 2, 2]
    assert all(shard.num_bytes < 160_000 for shard in dataset.shards)
    for i in range(10):
        dataset.verify(i)
        same_episodes(dataset.episode(i), loose.episode(i))
        assert dataset.stored(i).digest == loose.stored(i).digest
        np.testing.assert_array_equal(dataset.frames(i, 13, 35), loose.frames(i, 13, 35))
    assert recordings(tmp_path / "packed")[-1]["what"] == "pack"


def samples_of(path):
    """The samples of a tar file as WebDataset groups them."""
    samples = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            samples.setdefault(key, {})[extension] = tar.extractfile(member).read()
    return samples


def test_a_shard_is_a_plain_tar_in_webdataset_naming(tmp_path):
    """Also after a merge that gave episodes other numbers: the names in a new pack are those numbers."""
    fill(tmp_path / "a", [0, 1])
    fill(tmp_path / "b", [0, 1], seed=8)
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "ab")
    pack(tmp_path / "ab", tmp_path / "packed")
    samples = samples_of(tmp_path / "packed" / "shards" / "shard-000000.tar")
    assert list(samples) == [f"episode-{number:06d}" for number in range(4)]
    assert list(samples["episode-000003"]) == [
        "episode.json", "frames-0000.zst", "frames-0001.zst", "frames-0002.zst",
        "actions.npy", "rewards.npy", "terminated.npy", "truncated.npy",
    ]  # fmt: skip
    header = json.loads(samples["episode-000003"]["episode.json"])
    assert (header["index"], header["recorded_index"], header["seed"]) == (3, 1, 8)
    actions = np.load(io.BytesIO(samples["episode-000002"]["actions.npy"]))
    np.testing.assert_array_equal(actions, make_episode(index=0).actions)
    # It is still known as what it is.
    assert merge([tmp_path / "packed", tmp_path / "b"], tmp_path / "again").copies == 2


def test_webdataset_reads_a_shard(tmp_path, folder):
    """The library itself, if it is there."""
    webdataset = pytest.importorskip("webdataset")
    pack(folder, tmp_path / "packed", shard_bytes=150_000)
    pattern = str(tmp_path / "packed" / "shards" / "shard-{000000..000004}.tar")
    samples = list(webdataset.WebDataset(pattern, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == Dataset(folder).episodes
    actions = np.load(io.BytesIO(samples[4]["actions.npy"]))
    np.testing.assert_array_equal(actions, make_episode(index=4).actions)


def flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 4
    path.write_bytes(content)


def cut(path):
    os.truncate(path, path.stat().st_size - 512)


@pytest.mark.parametrize(
    ("damage", "bad", "reason"),
    [
        (cut, 1, "truncated: .* bytes where .* should be; 2 episodes are in it"),
        (Path.unlink, 1, "missing; 2 episodes are in it"),
        (lambda path: flip(path, 700), 1, "episode-000002: its index"),
        (lambda path: (path.parent / "more.tar").write_bytes(b""), 1, "foreign: index.json does not name it"),
    ],
)
def test_a_damaged_shard_is_named(tmp_path, folder, damage, bad, reason):
    """The rest stays readable with --skip-bad."""
    pack(folder, tmp_path / "packed", shard_bytes=150_000)
    damage(tmp_path / "packed" / "shards" / "shard-000001.tar")
    with pytest.raises(ValueError, match=f"shards/.*{reason}"):
        Dataset(tmp_path / "packed")
    dataset = Dataset(tmp_path / "packed", skip_bad=True)
    assert len(dataset.bad) == bad
    assert {0, 1, 4, 9} <= {dataset.number(i) for i in range(len(dataset))}


def test_flipped_bits_of_a_shard_are_found_by_verify(tmp_path, folder):
    """Wherever they are: frames, tar headers, the index in front."""
    pack(folder, tmp_path / "packed")
    path = tmp_path / "packed" / "shards" / "shard-000000.tar"
    whole = path.read_bytes()
    last = Dataset(tmp_path / "packed").stored(9).stop
    with tarfile.open(path) as tar:
        gaps = [(m.offset_data + m.size, -(-(m.offset_data + m.size) // 512) * 512) for m in tar]
    rng = np.random.default_rng(0)
    for offset in rng.integers(0, last, 25):
        if any(begin <= offset < end for begin, end in gaps):
            continue  # between members nothing is stored
        flip(path, int(offset))
        dataset = Dataset(tmp_path / "packed", skip_bad=True)
        found = len(dataset.bad)
        for i in range(len(dataset)):
            try:
                dataset.verify(i)
            except ValueError:
                found += 1
        assert found == 1, offset
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no index of shards"),
        ("[]", "expected a JSON object, got a list"),
        ('{"format": "farworld-shards", "version": 9}', "version 1, got farworld-shards version 9"),
        ('{"format": "farworld-shards", "version": 1, "shards": [{}]}', "is no index of shards"),
        (
            '{"format": "farworld-shards", "version": 1, "shards": [{"file": "../x", "bytes": 1, "episodes": []}]}',
            "expected files in shards/, got '../x'",
        ),
    ],
)
def test_a_damaged_index_is_one_clear_error(tmp_path, folder, text, message):
    """Also one that points out of the folder."""
    pack(folder, tmp_path / "packed")
    (tmp_path / "packed" / "index.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        Dataset(tmp_path / "packed")


def test_a_packed_dataset_is_extended_by_single_files(tmp_path, folder):
    """Numbers in shards are taken; a pack of it all holds both."""
    out = packed(folder)
    with derive_writer(out) as writer:
        assert writer.claim(2) == [10, 11]
    fill(out, [10])
    assert numbers(out) == list(range(11))
    pack(out, tmp_path / "again")
    assert numbers(tmp_path / "again") == list(range(11))


def derive_writer(folder):
    from farworld.dataset import create_or_open

    return create_or_open(folder, make_spec())


def test_a_number_in_a_shard_and_in_a_file_is_named(tmp_path, folder):
    """Which of the two is meant cannot be known."""
    out = packed(folder)
    fill(tmp_path / "other", [3], seed=8)
    shutil.copy(tmp_path / "other" / "episodes" / "episode-000003.tar", out / "episodes")
    with pytest.raises(ValueError, match="there is another episode-000003, in episode-000003.tar"):
        Dataset(out)


@pytest.mark.parametrize("make", [merge, lambda folders, out: pack(folders[0], out)])
def test_what_is_there_is_not_overwritten(tmp_path, folder, make):
    """An empty folder is fine."""
    (tmp_path / "out").mkdir()
    make([folder], tmp_path / "out")
    with pytest.raises(ValueError, match="out is there already"):
        make([folder], tmp_path / "out")
    assert numbers(tmp_path / "out") == list(range(10))


def test_a_full_disk_leaves_nothing_half_made(tmp_path, folder, monkeypatch):
    """Neither the new folder nor a hidden one."""

    def no_space(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "fsync", no_space)
        pack(folder, tmp_path / "out")
    assert entries(tmp_path) == ["data"]


PACK = """
import os, sys, time
from farworld.dataset import pack
pack(sys.argv[1], sys.argv[2], on_episode=lambda: print("one", flush=True) or time.sleep(60))
"""


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is of POSIX systems")
def test_a_killed_pack_is_made_anew(tmp_path, folder):
    """The new folder is there whole or not at all, and what was half made is removed by the next try."""
    process = subprocess.Popen(
        [sys.executable, "-c", PACK, folder, tmp_path / "out"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout.readline() == "one\n"
    pack(folder, tmp_path / "other")  # which does not disturb it
    assert process.poll() is None
    process.kill()
    process.communicate(timeout=10)
    assert len(entries(tmp_path)) == 3
    pack(folder, tmp_path / "out")
    assert entries(tmp_path) == ["data", "other", "out"]
    assert numbers(tmp_path / "out") == list(range(10))


# Statistics


def test_statistics_are_those_of_all_frames(tmp_path):
    """Against the plain formulas over everything at once."""
    folder = fill(tmp_path / "data", range(3), num_frames=20, policy="explore")
    fill(folder, [3], num_frames=31, policy="human", terminated=True, truncated=False)
    dataset = Dataset(folder)
    episodes = [dataset.episode(i) for i in range(4)]
    result = measure(dataset)
    pixels = np.concatenate([episode.frames for episode in episodes]).astype(np.float64)
    np.testing.assert_allclose(result["pixels"]["mean"], pixels.mean((0, 1, 2)), atol=1e-3)
    np.testing.assert_allclose(result["pixels"]["std"], pixels.std((0, 1, 2)), atol=1e-3)
    changes = np.concatenate([np.abs(np.diff(e.frames.astype(int), axis=0)).mean((1, 2, 3)) for e in episodes])
    actions = np.concatenate([episode.actions for episode in episodes])
    rewards = np.concatenate([episode.rewards for episode in episodes])
    assert result["frame_difference"]["mean"] == pytest.approx(changes.mean(), abs=1e-3)
    for index, name in enumerate(VOCABULARY.names):
        expected = changes[actions == index].mean()
        assert result["frame_difference"]["by_action"][name] == pytest.approx(expected, abs=1e-3)
        assert result["actions"][index]["count"] == (actions == index).sum()
    assert result["rewards"]["steps"]["mean"] == pytest.approx(rewards.mean(), abs=1e-5)
    assert result["rewards"]["episodes"]["max"] == pytest.approx(max(e.rewards.sum() for e in episodes), abs=1e-4)
    assert result["rewards"]["nonzero"] == np.count_nonzero(rewards)
    assert result["lengths"] == {"min": 20, "median": 20.0, "mean": 22.75, "max": 31, "sum": 91}
    assert result["policies"] == {
        "explore": {"episodes": 3, "frames": 60},
        "human": {"episodes": 1, "frames": 31},
    }
    assert result["ends"] == {"terminated": 1, "truncated": 3}
    json.dumps({key: value for key, value in result.items() if key != "data"})
