"""The TECO importers put every action beside the frame that it was taken after."""

import os
from pathlib import Path

import numpy as np
import pytest

from farworld.dataset import ACTION_TIMING, Dataset
from farworld.envs.teco import import_teco
from farworld.video import VideoWriter

DMLAB = Path(__file__).parent / "data" / "dmlab_teco_episode.npz"


def shift(frame, following):
    """How far the picture moves to the right from one frame to the next, in pixels, by the best overlap."""
    before, after = (picture.astype(float).mean(-1)[16:48] for picture in (frame, following))
    errors = {s: np.abs(before[:, 12:52] - after[:, 12 + s : 52 + s]).mean() for s in range(-12, 13)}
    return min(errors, key=errors.get)


def write_minecraft(folder, name, actions, extra=0):
    """A file as TECO has it: the brightness of a frame shows the action that produced it."""
    folder.mkdir(parents=True, exist_ok=True)
    with VideoWriter(folder / f"{name}.mp4", 20, 32, 32) as video:
        for action in actions:
            video.write(np.full((32, 32, 3), 60 * action + 20, np.uint8))
    np.savez(folder / f"{name}.npz", actions=np.append(actions, np.ones(extra, np.int64)))


def test_the_real_dmlab_episode_imports_losslessly(tmp_path):
    """T frames keep T - 1 actions: what the last one did was not recorded."""
    assert import_teco("dmlab", DMLAB, tmp_path).frames == 120
    dataset = Dataset(tmp_path)
    with np.load(DMLAB) as file:
        np.testing.assert_array_equal(dataset.frames(0), file["video"])
        np.testing.assert_array_equal(dataset.actions(0), file["actions"][:-1])
    assert dataset.spec.action_timing == ACTION_TIMING
    assert dataset.spec.action_vocabulary.names[:3] == ("turn_left", "turn_right", "forward")


def test_a_dmlab_action_moves_the_picture_after_its_frame(tmp_path):
    """Turning left moves the view to the right between frames t and t + 1; one frame later it is blurred."""
    import_teco("dmlab", DMLAB, tmp_path)
    episode = Dataset(tmp_path).episode(0)
    pairs = zip(episode.frames[:-1], episode.frames[1:], strict=True)
    shifts = np.array([shift(frame, following) for frame, following in pairs])
    names = Dataset(tmp_path).spec.action_vocabulary.names
    moved = {name: shifts[episode.actions == index] for index, name in enumerate(names)}
    assert moved["turn_left"].mean() > 5
    assert moved["turn_right"].mean() < -5
    assert abs(moved["forward"].mean()) < 1
    for index in range(2):
        late = shifts[1:][episode.actions[:-1] == index]
        early = shifts[:-1][episode.actions[1:] == index]
        assert moved[names[index]].std() < min(late.std(), early.std())


@pytest.mark.parametrize("extra", [0, 1])
def test_a_minecraft_action_is_moved_to_the_frame_before(tmp_path, extra):
    """The file's action t produced frame t, and its first is a placeholder; it may have one entry too many."""
    stored = np.array([0, 1, 2, 3, 3, 1, 2, 2, 1, 3])
    write_minecraft(tmp_path / "source", "000000", stored, extra)
    import_teco("minecraft", tmp_path / "source", tmp_path / "data")
    episode = Dataset(tmp_path / "data").episode(0)
    shown = np.rint((episode.frames.mean(axis=(1, 2, 3)) - 20) / 60)
    np.testing.assert_array_equal(shown[1:], episode.actions)
    np.testing.assert_array_equal(episode.actions, stored[1:])
    names = Dataset(tmp_path / "data").spec.action_vocabulary.names
    assert names == ("none", "forward", "yaw_left", "yaw_right")


def test_importing_twice_adds_nothing(tmp_path):
    """Whatever the path by which the same file is reached; new files are added."""
    folder = tmp_path / "source" / "train" / "0"
    folder.mkdir(parents=True)
    (folder / "a.npz").write_bytes(DMLAB.read_bytes())
    assert import_teco("dmlab", tmp_path / "source", tmp_path / "data").episodes == 1
    again = import_teco("dmlab", DMLAB, tmp_path / "data")
    assert (again.episodes, again.known) == (0, 1)
    with np.load(DMLAB) as file:
        np.savez(folder / "b.npz", video=file["video"][:50], actions=file["actions"][:50])
    more = import_teco("dmlab", tmp_path / "source", tmp_path / "data")
    assert (more.episodes, more.known) == (1, 1)
    dataset = Dataset(tmp_path / "data")
    assert [dataset.num_frames(i) for i in range(len(dataset))] == [120, 50]


def test_a_damaged_source_is_named_and_what_came_before_it_is_kept(tmp_path):
    """A download that broke off is the usual case."""
    (tmp_path / "a.npz").write_bytes(DMLAB.read_bytes())
    (tmp_path / "b.npz").write_bytes(DMLAB.read_bytes())
    os.truncate(tmp_path / "b.npz", 10_000)
    with pytest.raises(ValueError, match=r"b.npz is not a TECO file: expected an npz with video and actions"):
        import_teco("dmlab", tmp_path, tmp_path / "data")
    assert len(Dataset(tmp_path / "data")) == 1


def test_an_unknown_dmlab_action_is_refused(tmp_path):
    """No name is made up for a number that the data set is not known to use."""
    np.savez(tmp_path / "a.npz", video=np.zeros((3, 16, 16, 3), np.uint8), actions=np.array([0, 9, 1]))
    with pytest.raises(ValueError, match=r"a.npz .* must be an integer in \[0, 2\]"):
        import_teco("dmlab", tmp_path, tmp_path / "data")


def test_an_empty_source_says_what_was_expected(tmp_path):
    """The two layouts have different files."""
    with pytest.raises(FileNotFoundError, match=r"expected a \.mp4 file, or a folder"):
        import_teco("minecraft", tmp_path, tmp_path / "data")


def test_a_teco_dataset_does_not_take_the_other_one(tmp_path):
    """Their actions differ."""
    import_teco("dmlab", DMLAB, tmp_path / "data")
    write_minecraft(tmp_path / "source", "000000", np.array([0, 1, 2]))
    with pytest.raises(ValueError, match="env_id is 'teco/dmlab' there"):
        import_teco("minecraft", tmp_path / "source", tmp_path / "data")
