"""Folders of videos become datasets: every k-th frame, with the folder's name as a label or without."""

import json
from pathlib import Path

import numpy as np
import pytest

from farworld.cli import app
from farworld.dataset import Dataset
from farworld.envs.videos import VideoOptions, import_videos
from farworld.video import VideoWriter

CLASSES = ("Archery", "Biking", "Diving")


def write_video(path: Path, first: int, num_frames: int = 10, *, rate: float = 25.0, width: int = 48) -> None:
    """Frame t is grey of brightness first + 10 t, with a bright stripe at the left end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, rate, 32, width) as video:
        for t in range(num_frames):
            frame = np.full((32, width, 3), first + 10 * t, np.uint8)
            frame[:, :4] = 250
            video.write(frame)


@pytest.fixture
def ucf(tmp_path) -> Path:
    """As UCF-101 lies on disk: a folder for each class, two videos in each."""
    for place, name in enumerate(CLASSES):
        for take in range(2):
            write_video(tmp_path / "ucf" / name / f"v_{name}_g{take}.avi", 20 + 30 * place + 5 * take)
    return tmp_path / "ucf"


def brightness(frames: np.ndarray) -> np.ndarray:
    return frames[:, 4:-4, 4:-4].mean(axis=(1, 2, 3))


def run(capfd, *arguments: object) -> dict:
    app([str(argument) for argument in (*arguments, "--json")], result_action="return_value")
    return json.loads(capfd.readouterr().out)


def test_every_episode_has_the_class_of_its_folder_as_its_only_action(ucf, tmp_path, capfd):
    report = run(capfd, "data", "import-video", ucf, tmp_path / "data", "--size", 16, "--interval", 3, "--labels")
    assert (report["episodes"], report["frames"], report["bad"]) == (6, 6 * 4, 0)
    data = Dataset(tmp_path / "data")
    assert data.spec.action_vocabulary.names == CLASSES
    assert data.spec.frames_per_second == pytest.approx(25 / 3) and (data.spec.height, data.spec.width) == (16, 16)
    for i in range(len(data)):
        (label,) = set(data.actions(i).tolist())
        assert f"_{CLASSES[label]}_" in data.source(i)
        frames = data.frames(i)
        np.testing.assert_allclose(np.diff(brightness(frames)), 30, atol=4)  # every third frame, in order
        assert frames[0].max() < 200  # the stripe at the end of the longer side is cut off
    assert len({tuple(data.actions(i)) for i in range(3)}) > 1  # classes are mixed: the last ones are held out


def test_without_labels_the_only_action_is_that_time_goes_on(ucf, tmp_path):
    import_videos(ucf, tmp_path / "data", VideoOptions(size=16, fit="stretch"))
    data = Dataset(tmp_path / "data")
    assert data.spec.action_vocabulary.names == ("none",) and not any(data.actions(i).any() for i in range(6))
    assert data.num_frames(0) == 10 and data.frames(0)[0, :, 0].min() > 200  # with --fit stretch nothing is cut off


def test_an_import_goes_on_where_it_was_and_a_bad_video_is_named(ucf, tmp_path, capfd):
    """One line for each bad video; what came before it is kept, and not imported again."""
    broken = ucf / "Diving" / "broken.avi"
    broken.write_bytes((ucf / "Diving" / "v_Diving_g0.avi").read_bytes()[:200])
    write_video(ucf / "Diving" / "still.avi", 5, num_frames=1)
    options = VideoOptions(size=16, labels=True)
    with pytest.raises(ValueError, match=r"(broken.avi cannot be decoded|still.avi has 1 frames).*--skip-bad"):
        import_videos(ucf, tmp_path / "data", options)
    before = len(Dataset(tmp_path / "data")) if (tmp_path / "data").exists() else 0
    app(["data", "import-video", str(ucf), str(tmp_path / "data"), "--size", "16", "--labels", "--skip-bad", "--json"],
        result_action="return_value")  # fmt: skip
    captured = capfd.readouterr()
    report = json.loads(captured.out)
    assert (report["episodes"], report["known"], report["bad"]) == (6 - before, before, 2)
    lines = [line for line in captured.err.splitlines() if "left out" in line]
    assert (
        len(lines) == 2 and any("broken.avi" in line for line in lines) and any("still.avi" in line for line in lines)
    )
    again = import_videos(ucf, tmp_path / "data", options, on_bad=lambda reason: None)
    assert (again.episodes, again.known) == (0, 6) and len(Dataset(tmp_path / "data")) == 6


def test_part_of_the_classes_extends_a_dataset_that_knows_them_all(ucf, tmp_path):
    """A second folder, of a test split say, need not have every class."""
    import_videos(ucf, tmp_path / "data", VideoOptions(size=16, labels=True, env_id="ucf"))
    write_video(tmp_path / "more" / "Diving" / "new.mp4", 100)
    write_video(tmp_path / "more" / "Diving" / "slow.mp4", 60, rate=10.0)
    more = import_videos(tmp_path / "more", tmp_path / "data", VideoOptions(size=16, labels=True, env_id="ucf"))
    assert (more.episodes, more.other_rates, more.frames_per_second) == (2, 1, 25.0)
    data = Dataset(tmp_path / "data")
    assert data.spec.action_vocabulary.names == CLASSES and set(data.actions(7)) == {2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 32}, "height is 16 there and 32 now"),
        ({"size": 16, "interval": 2}, "'interval': 1.* there and .*'interval': 2.* now"),
        ({"size": 16, "labels": True}, "the actions are none there and Archery, Biking, Diving now"),
    ],
)
def test_a_dataset_of_other_frames_or_labels_is_left_alone(ucf, tmp_path, options, message):
    import_videos(ucf, tmp_path / "data", VideoOptions(size=16))
    write_video(ucf / "Archery" / "new.avi", 90)
    with pytest.raises(ValueError, match=message):
        import_videos(ucf, tmp_path / "data", VideoOptions(**options))
    assert len(Dataset(tmp_path / "data")) == 6


def test_a_source_without_videos_or_classes_says_what_was_expected(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"a folder with files that end in \.avi, \.mp4"):
        import_videos(tmp_path / "empty", tmp_path / "data", VideoOptions(size=16))
    write_video(tmp_path / "bair" / "0.mp4", 20)
    with pytest.raises(ValueError, match="0.mp4 lies in none; import it without --labels"):
        import_videos(tmp_path / "bair", tmp_path / "data", VideoOptions(size=16, labels=True))
    with pytest.raises(ValueError, match="size and interval must be 1 or more, got 16 and 0"):
        VideoOptions(size=16, interval=0)


def test_a_video_that_cannot_be_written_is_named(tmp_path):
    """Where it is made, before anything is played."""
    with pytest.raises(OSError, match=tmp_path.name):
        VideoWriter(tmp_path, 10.0, 32, 32)
