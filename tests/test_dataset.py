"""The recorded-data format: what is written is what is read, and damage is found."""

import builtins
import datetime
import errno
import io
import json
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from sample_data import fill, make_episode, make_spec, same_episodes

from farworld import __version__
from farworld.actions import Action, ActionVocabulary
from farworld.dataset import (
    CHUNK_FRAMES,
    Dataset,
    create_or_open,
    describe_space,
    encode_episode,
    pack,
    recordings,
    stack_actions,
    unstack_action,
)
from farworld.dataset import format as format_module

VERSION_1 = Path(__file__).parent / "data" / "dataset_version_1.zip"


@pytest.fixture
def folder(tmp_path):
    """A dataset of three episodes."""
    return fill(tmp_path / "data", range(3))


def episode_files(folder):
    return sorted((folder / "episodes").iterdir())


@pytest.mark.parametrize("num_frames", [1, 2, 15, 16, 17, 33])  # around the 16-frame member
def test_an_episode_reads_back_as_it_was_written(tmp_path, num_frames):
    """Frames are lossless, and the shortest and unaligned lengths are not special."""
    written = make_episode(num_frames, terminated=True, truncated=False, source="there", policy="explore")
    with create_or_open(tmp_path, make_spec()) as writer:
        writer.write(written)
    dataset = Dataset(tmp_path)
    read = dataset.episode(0)
    assert dataset.num_frames(0) == num_frames
    same_episodes(read, written)
    assert read.index == written.index
    dataset.verify(0)


CAMERA = gymnasium.spaces.Dict(
    {
        "camera": gymnasium.spaces.Box(-180, 180, (2,)),
        "hotbar.1": gymnasium.spaces.Discrete(2),
        "keys": gymnasium.spaces.Dict({"forward/back": gymnasium.spaces.Discrete(3, start=-1)}),
        "all at once": gymnasium.spaces.Tuple([gymnasium.spaces.MultiBinary(3), gymnasium.spaces.Discrete(4)]),
    }
)
SPACES = {
    "plain": gymnasium.spaces.Discrete(7),
    "shifted": gymnasium.spaces.Discrete(3, start=-1),
    "several": gymnasium.spaces.MultiDiscrete([3, 5, 2]),
    "table": gymnasium.spaces.MultiDiscrete([[3, 5], [2, 2]]),
    "switches": gymnasium.spaces.MultiBinary(4),
    "sticks": gymnasium.spaces.Box(-1, np.inf, (2, 3)),
    "steps": gymnasium.spaces.Box(-(2**40), 2**40, (2,), np.int64),
    "camera": CAMERA,
}


@pytest.mark.parametrize("name", SPACES)
def test_own_actions_come_back_as_the_environment_takes_them(tmp_path, name):
    """A recording can be replayed in the environment, whatever its action space."""
    space = SPACES[name]
    space.seed(5)
    taken = [space.sample() for _ in range(39)]
    spec = make_spec(action_space=describe_space(space))
    written = make_episode(env_actions=stack_actions(spec.action_space, taken))
    with create_or_open(tmp_path, spec) as writer:
        writer.write(written)
    dataset = Dataset(tmp_path)
    dataset.verify(0)
    assert json.loads(json.dumps(spec.to_json())) == spec.to_json() == dataset.spec.to_json()
    same_episodes(dataset.episode(0), written)
    for step, action in enumerate(taken):
        again = unstack_action(dataset.spec.action_space, dataset.env_actions(0), step)
        assert again in space
        np.testing.assert_array_equal(*(gymnasium.spaces.flatten(space, value) for value in (again, action)))


MULTI = {"type": "MultiDiscrete", "nvec": [2, 3]}
PLAIN = {"type": "Discrete", "n": 2, "start": 0}
STICK = {"type": "Box", "low": -1.0, "high": 1.0, "shape": [2], "dtype": "float32"}


@pytest.mark.parametrize(
    ("space", "env_actions", "message"),
    [
        (MULTI, {}, r"an array for each part of the action space \(action\), got none"),
        (MULTI, {"jump": np.zeros((39, 2), np.int64)}, r"\(action\), got jump"),
        (MULTI, {"action": np.zeros((39, 3), np.int64)}, r"must be int64 \(39, 2\), got int64 \(39, 3\)"),
        (MULTI, {"action": np.full((39, 2), 2)}, r"must be in \[0, \[2 3\]\), got 2"),
        (STICK, {"action": np.zeros((39, 2), np.int64)}, "must be float32"),
        (STICK, {"action": np.full((39, 2), np.nan, np.float32)}, "must be finite, got nan"),
        ({}, {"action": np.zeros((39, 2), np.int64)}, "none is described"),
    ],
)
def test_own_actions_must_fit_the_described_space(tmp_path, space, env_actions, message):
    """They would be found wrong only when somebody replays them."""
    with create_or_open(tmp_path, make_spec(action_space=space)) as writer, pytest.raises(ValueError, match=message):
        writer.write(make_episode(env_actions=env_actions))


@pytest.mark.parametrize(
    ("env_actions", "message"),
    [
        ({"action": np.zeros((40, 2), np.int64)}, r"int64 or float32 \(39, ...\)"),
        ({"action": np.zeros((39, 2), np.float64)}, "got float64"),
        ({"": np.zeros(39, np.int64)}, "1 to 56 plain letters"),
        ({"k" * 57: np.zeros(39, np.int64)}, "1 to 56 plain letters"),
    ],
)
def test_own_actions_have_a_row_for_each_action(env_actions, message):
    """And names that fit into a tar file."""
    with pytest.raises(ValueError, match=message):
        make_episode(env_actions=env_actions)


@pytest.mark.parametrize(
    "space",
    [
        {"type": "Text"},
        {"type": "Dict", "spaces": {"a": {"n": 3}}},
        {"type": "Dict", "spaces": {"a/b": PLAIN, "a": {"type": "Dict", "spaces": {"b": PLAIN}}}},  # one name for two
        [1],
        {"n": 3},
    ],
)
def test_a_described_space_is_checked(space):
    """A hand-written description fails at once, not at the first episode."""
    with pytest.raises(ValueError, match="action_space must be as describe_space gives it"):
        make_spec(action_space=space)


def test_a_space_that_cannot_be_stored_is_named():
    """With what can."""
    with pytest.raises(ValueError, match="expected an action space of Discrete.*got Text"):
        describe_space(gymnasium.spaces.Text(5))


def test_what_version_1_wrote_is_read_and_extended(tmp_path):
    """Recordings outlive releases; the file was made by the last release that wrote version 1."""
    with zipfile.ZipFile(VERSION_1) as archive:
        archive.extractall(tmp_path)
    dataset = Dataset(tmp_path)
    assert dataset.episodes == ["episode-000000", "episode-000001"]
    for i in range(2):
        dataset.verify(i)
        ramp = np.arange(18 * 16 * 32 * 3).reshape(18, 16, 32, 3)
        np.testing.assert_array_equal(dataset.frames(i), (ramp // 97 + i) % 251)
        np.testing.assert_array_equal(dataset.actions(i), np.arange(17) % 2)
        assert dataset.seed(i) == 7 + i
        assert dataset.env_actions(i) == {}
    assert [dataset.policy(i) for i in range(2)] == ["", "human"]
    assert (dataset.spec.action_space, dataset.spec.obs_key) == ({}, "")
    spec = make_spec(action_space={"type": "Discrete", "n": 2, "start": 0}, obs_key="rgb")
    fill(tmp_path, [2], spec)
    assert len(Dataset(tmp_path)) == 3
    pack(tmp_path, tmp_path / "packed")
    same_episodes(Dataset(tmp_path / "packed").episode(1), dataset.episode(1))


def test_the_clock_is_not_in_the_episodes(tmp_path):
    """Same seed, same bytes; when it was recorded stands in a file of its own."""
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    with create_or_open(tmp_path, make_spec(policy="tour", seed=5)) as writer:
        writer.note(what="import", source="there")
        for index in writer.claim(3):
            writer.write(make_episode(index=index))
    [line] = recordings(tmp_path)
    started, ended = (datetime.datetime.fromisoformat(line[key]) for key in ("started", "ended"))
    assert before <= started <= ended <= datetime.datetime.now(datetime.UTC)
    assert (line["what"], line["source"], line["policy"], line["seed"]) == ("import", "there", "tour", 5)
    assert (line["num_episodes"], line["episodes"], line["farworld"]) == (3, "0-2", __version__)
    assert line["seconds"] >= 0 and line["platform"]
    assert episode_files(tmp_path)[1].read_bytes() == encode_episode(make_episode(index=1))
    create_or_open(tmp_path, make_spec()).close()
    assert len(recordings(tmp_path)) == 1  # nothing was added


def test_half_a_line_of_somebody_who_died_is_no_line(folder):
    """And does not spoil the next one."""
    path = folder / "recordings.jsonl"
    path.write_bytes(path.read_bytes() + b'{"what": "rec')
    assert len(recordings(folder)) == 1
    fill(folder, [3])
    assert [line["episodes"] for line in recordings(folder)] == ["0-2", "3"]


def test_random_access_equals_a_full_read(folder):
    """A clip decodes only its chunks; it must not depend on where they begin."""
    dataset = Dataset(folder)
    frames = dataset.frames(1)
    for start in range(len(frames)):
        for stop in {start + 1, min(len(frames), start + CHUNK_FRAMES), len(frames)}:
            np.testing.assert_array_equal(dataset.frames(1, start, stop), frames[start:stop])


@pytest.mark.parametrize("bounds", [(-1, 3), (3, 3), (0, 41)])
def test_a_range_outside_the_episode_is_refused(folder, bounds):
    """A silent short clip would shift actions against frames."""
    with pytest.raises(ValueError, match=r"\[0, 40\)"):
        Dataset(folder).frames(0, *bounds)


def test_an_open_dataset_travels_to_other_processes(folder):
    """Data loader workers receive it pickled."""
    copy = pickle.loads(pickle.dumps(Dataset(folder)))
    np.testing.assert_array_equal(copy.frames(2), make_episode(index=2).frames)


def test_the_same_episode_gives_the_same_bytes():
    """No clock, user or process number reaches the file."""
    assert encode_episode(make_episode()) == encode_episode(make_episode())
    assert encode_episode(make_episode()) != encode_episode(make_episode(seed=8))


def test_a_file_is_a_plain_tar_in_webdataset_naming(folder):
    """Other tools read it: one sample, whose key is what precedes the first dot."""
    with tarfile.open(episode_files(folder)[1]) as tar:
        names = tar.getnames()
        actions = np.load(io.BytesIO(tar.extractfile("episode-000001.actions.npy").read()))
    assert {name.split(".", 1)[0] for name in names} == {"episode-000001"}
    assert "episode-000001.frames-0002.zst" in names
    np.testing.assert_array_equal(actions, make_episode(index=1).actions)


def test_the_spec_survives_the_disk(folder):
    """What was recorded is known without the environment."""
    assert Dataset(folder).spec == make_spec()


def test_new_episodes_take_the_smallest_free_numbers(folder):
    """A gap, left by an interrupted recording, is filled first."""
    episode_files(folder)[1].unlink()
    with create_or_open(folder, make_spec()) as writer:
        assert writer.free_indices(3) == [1, 3, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env_id": "other"}, "env_id is 'test' there and 'other' now"),
        ({"height": 32}, "height is 16 there and 32 now"),
        ({"action_vocabulary": ActionVocabulary((Action(name="noop"),))}, "noop, forward there and noop now"),
    ],
)
def test_a_dataset_is_not_mixed_with_another(folder, changes, message):
    """The message says what differs, and nothing is overwritten."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=message):
        create_or_open(folder, make_spec(**changes))
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_action_timing_is_an_error():
    """The field's commonest mistake is not guessed around."""
    with pytest.raises(ValueError, match="action_timing must be 'after_frame', got 'before_frame'"):
        make_spec(action_timing="before_frame")


def test_a_folder_with_other_files_is_not_taken(tmp_path):
    """`--out ~` must not fill a home folder."""
    (tmp_path / "thesis.txt").write_text("important")
    with pytest.raises(ValueError, match="thesis.txt"):
        create_or_open(tmp_path, make_spec())


def test_an_episode_is_never_overwritten(folder):
    """Not even by a caller who insists."""
    with create_or_open(folder, make_spec()) as writer, pytest.raises(FileExistsError, match="overwritten"):
        writer.write(make_episode(index=1))


def test_two_writers_at_once_never_take_the_same_number(folder):
    """Each gets what neither a file nor the other has; what one gives back is free again."""
    with create_or_open(folder, make_spec()) as first, create_or_open(folder, make_spec()) as second:
        assert first.claim(2) == [3, 4]
        assert second.claim(2) == [5, 6]
        assert second.free_indices(3) == [5, 6, 7]  # its own, which it has not written yet
        first.write(make_episode(index=3))
        first.close()
        assert second.claim(3) == [4, 8, 9]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": np.zeros((40, 16, 16, 3), np.uint8)}, "frames must be 16x32x3"),
        ({"actions": np.full(39, 2)}, r"in \[0, 1\] \(noop, forward\), got"),
    ],
)
def test_an_episode_must_fit_its_dataset(folder, changes, message):
    """A wrong frame size or action would surface hours later, in training."""
    with create_or_open(folder, make_spec()) as writer, pytest.raises(ValueError, match=message):
        writer.write(make_episode(index=9, **changes))


def test_frames_and_actions_must_count_as_fence_and_gaps():
    """T + 1 frames, T actions."""
    with pytest.raises(ValueError, match="40 frames need 39 actions"):
        make_episode(actions=np.zeros(40, np.int64))


def test_a_full_disk_leaves_what_was_written(folder, monkeypatch):
    """The failed episode leaves no trace; the error reaches the caller."""

    def no_space(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = episode_files(folder)
    with create_or_open(folder, make_spec()) as writer:
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
            patch.setattr(os, "fsync", no_space)
            writer.write(make_episode(index=3))
    assert episode_files(folder) == before
    assert len(Dataset(folder)) == 3


def test_leftovers_of_a_killed_writer_are_ignored_then_removed(folder):
    """They are no episodes, and do not pile up."""
    leftover = folder / "episodes" / ".episode-000003.tar.123.tmp"
    leftover.write_bytes(b"half an epi")
    assert len(Dataset(folder)) == 3
    create_or_open(folder, make_spec()).close()
    assert not leftover.exists()


def truncate(path):
    os.truncate(path, path.stat().st_size - 5000)


def cut_to_nothing(path):
    os.truncate(path, 0)


def replace_by_text(path):
    path.write_text("not a tar file at all " * 100)


def replace_by_foreign_tar(path):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.add(__file__, arcname="holiday.jpg")


def cut_out_the_middle(path):
    content = path.read_bytes()
    path.write_bytes(content[:20480] + content[30720:])


def rewrite(path, old, new):
    """Replace bytes, which must be there, by as many others."""
    content = path.read_bytes()
    assert old in content and len(old) == len(new)
    path.write_bytes(content.replace(old, new, 1))


def damage_array_header(path):
    """What NumPy then meets can raise anything, SyntaxError too."""
    rewrite(path, b"{'descr': '<i8'", b"{'descr': '(i8'")


def damage_actions(path):
    with tarfile.open(path) as tar:
        start = tar.getmember(f"{path.stem}.actions.npy").offset_data + 128
    content = bytearray(path.read_bytes())
    content[start + 3] ^= 64
    path.write_bytes(content)


def put_unknown_action(path):
    """As a program with another vocabulary would write it: the checksums are right."""
    path.write_bytes(encode_episode(make_episode(index=1, actions=np.full(39, 7))))


def damage_seed(path):
    """The index says what nothing else repeats."""
    rewrite(path, b'"seed": 7', b'"seed": 3')


def replace_index_by_list(path):
    content = path.read_bytes()
    size = content.index(b"\0", 512) - 512
    path.write_bytes(content[:512] + b"[1]".ljust(size) + content[512 + size :])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "truncated: .* bytes where its index says"),
        (cut_to_nothing, "not a tar file, or cut off"),
        (replace_by_text, "not a tar file"),
        (replace_by_foreign_tar, "begins with holiday.jpg"),
        (cut_out_the_middle, "truncated"),
        (damage_array_header, "actions.npy differs from its checksum"),
        (damage_actions, "actions.npy differs from its checksum"),
        (put_unknown_action, r"action must be an integer in \[0, 1\] \(noop, forward\), got 7"),
        (damage_seed, "its index differs from its checksum"),
        (replace_index_by_list, "its index cannot be read"),
    ],
)
def test_a_bad_file_is_named_and_can_be_skipped(folder, damage, reason):
    """Training stops unless told to go on without it."""
    damage(folder / "episodes" / "episode-000001.tar")
    with pytest.raises(ValueError, match=f"episode-00000.*{reason}.*--skip-bad"):
        Dataset(folder)
    dataset = Dataset(folder, skip_bad=True)
    assert dataset.episodes == ["episode-000000", "episode-000002"]
    assert [path.parent.name for path, _ in dataset.bad] == ["episodes"]
    np.testing.assert_array_equal(dataset.frames(1), make_episode(index=2).frames)


def test_a_copied_file_is_named(folder):
    """The same episode twice could be trained on and held out."""
    (folder / "episodes" / "episode-000007.tar").write_bytes(episode_files(folder)[1].read_bytes())
    assert "episode-000007 is a copy of episode-000001" in Dataset(folder, skip_bad=True).bad[0][1]


def test_a_file_of_another_kind_is_foreign(folder):
    """A stray file is reported, not silently passed over."""
    (folder / "episodes" / "notes.txt").write_text("hello")
    assert "foreign" in Dataset(folder, skip_bad=True).bad[0][1]


@pytest.mark.parametrize("name", ["junk.tar", "x.npz", "more"])
def test_a_stray_file_beside_the_description_is_named(folder, name):
    """Episodes copied to the wrong place would otherwise be missing without a word."""
    if "." in name:
        (folder / name).write_bytes(b"junk")
    else:
        (folder / name).mkdir()
    with pytest.raises(ValueError, match=f"{name}: foreign.*1 bad of 4 files.*--skip-bad"):
        Dataset(folder)
    dataset = Dataset(folder, skip_bad=True)
    assert [path for path, _ in dataset.bad] == [folder / name]
    assert len(dataset) == 3


def test_a_file_that_may_not_be_read_is_named(folder, monkeypatch):
    """Copied with another owner's permissions; a test that runs as root could read it, so open is replaced."""
    forbidden = folder / "episodes" / "episode-000001.tar"

    def guarded_open(path, *arguments, **options):
        if path == forbidden:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return builtins.open(path, *arguments, **options)

    monkeypatch.setattr(format_module, "open", guarded_open, raising=False)
    assert Dataset(folder, skip_bad=True).bad == [(forbidden, "cannot be read: Permission denied")]
    with pytest.raises(ValueError, match="episode-000001.tar: cannot be read"):
        Dataset(folder)


def test_a_flipped_bit_in_frames_is_found(folder):
    """Not when the dataset is opened (that must be fast), but by verify, and when frames are read."""
    path = folder / "episodes" / "episode-000002.tar"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    dataset = Dataset(folder)
    with pytest.raises(ValueError, match="differs from its checksum"):
        dataset.verify(2)
    with pytest.raises(ValueError, match=f"episode-000002.tar: damaged frames .*farworld data verify {folder}"):
        dataset.frames(2)
    dataset.verify(1)


def test_actions_damaged_while_the_dataset_is_open_are_not_used(folder):
    """A long training outlives many a cable."""
    dataset = Dataset(folder)
    damage_actions(folder / "episodes" / "episode-000001.tar")
    with pytest.raises(ValueError, match="episode-000001.tar: .* differs from its checksum; run `farworld data verify"):
        dataset.actions(1)


@pytest.mark.parametrize("exists", [False, True])
def test_a_missing_dataset_says_how_to_make_one(tmp_path, exists):
    """No folder, or a folder that is none."""
    folder = tmp_path / "data"
    if exists:
        folder.mkdir()
    with pytest.raises(FileNotFoundError, match=f"no dataset at {folder}.*farworld record"):
        Dataset(folder)


def test_a_dataset_of_a_later_version_is_refused(folder):
    """It is not read as if it were this one's."""
    path = folder / "dataset.json"
    path.write_text(path.read_text().replace('"version": 2', '"version": 3'))
    with pytest.raises(
        ValueError, match="expected farworld-dataset version 2 or older, got farworld-dataset version 3"
    ):
        Dataset(folder)


def without(key):
    return lambda values: {name: value for name, value in values.items() if name != key}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda values: [values], "expected a JSON object, got a list"),
        (lambda values: None, "expected a JSON object, got a NoneType"),
        (without("height"), "a field is missing, unknown or of the wrong type"),
        (without("action_vocabulary"), "a field is missing, unknown or of the wrong type: 'action_vocabulary'"),
        (lambda values: {**values, "action_vocabulary": [1]}, "a field is missing, unknown or of the wrong type"),
        (lambda values: {**values, "height": "16"}, "height and width must be positive integers .* got '16'"),
    ],
)
def test_a_damaged_description_is_one_clear_error(folder, change, reason):
    """With the file's name, whatever JSON is in it."""
    path = folder / "dataset.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=f"{path} is not a dataset description: {reason}"):
        Dataset(folder)
