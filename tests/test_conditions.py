"""Worlds of videos: told a label that stays the same, or nothing; trained, sampled, exported and played."""

import contextlib
import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from test_far import tiny_world
from test_train import ALONE, SMALL

from farworld.actions import Action, ActionVocabulary
from farworld.checkpoint import load_world
from farworld.cli import app
from farworld.dataset import Dataset, DatasetSpec, Episode, create_or_open
from farworld.play.player import open_player
from farworld.rollout import Rollout
from farworld.train.pipeline import open_run, run_stages
from farworld.train.view import RunView
from farworld.train.world import ClipKind, random_clips

LABELS = ("falls", "rises", "waits")
# As for the paper's models without a long-term stream, but tiny.
VIDEO = [
    *SMALL, "idle_ratio=0", "context_patch_size=None", "copy_gate=False", "short_term_frames=6", "fine_frames=6",
    "early_clip_frames=6", "max_clip_frames=6", "frame_interval=2", "flip=True", "sample_every=4", "world_steps=4",
    "autoencoder_steps=4", "start_frames=2",
]  # fmt: skip


def bar_video(index: int, num_frames: int = 40) -> np.ndarray:
    """A bright bar that falls, rises or waits, with a dot at the left end of its row."""
    step = (1, -1, 0)[index % 3]
    frames = np.full((num_frames, 16, 16, 3), 30, np.uint8)
    for t, frame in enumerate(frames):
        row = (5 * index + step * t) % 16
        frame[row] = (220, 160, 60)
        frame[row, 0] = 0
    return frames


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "data"
    vocabulary = ActionVocabulary(tuple(Action(name=name) for name in LABELS))
    spec = DatasetSpec(env_id="video/bars", height=16, width=16, frames_per_second=20.0, action_vocabulary=vocabulary)
    with create_or_open(path, spec) as writer:
        for index in range(9):
            writer.write(
                Episode(
                    frames=bar_video(index), actions=np.full(39, index % 3), rewards=np.zeros(39, np.float32),
                    seed=0, index=index,
                )
            )  # fmt: skip
    return path


def train(out: Path, data: Path, *settings: str) -> Path:
    dataset = Dataset(data)
    run = open_run(out, "maze-xs", [*VIDEO, *settings], resume=False, stage="all", data=dataset, ranks=ALONE)
    with contextlib.closing(run):
        run_stages(run, dataset, "all")
    return out


@pytest.fixture(scope="module")
def labelled(videos, tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("labelled") / "run", videos, "condition=label")


def play(run: Path, tmp_path: Path, capfd, *lines: str) -> dict:
    script = tmp_path / "keys.txt"
    script.write_text("\n".join(lines) + "\n")
    arguments = ["play", "--ckpt", str(run), "--headless", "--device", "cpu", "--json", "--script", str(script)]
    capfd.readouterr()
    app([*arguments, "--save", str(tmp_path / "dream.mp4")], result_action="return_value")
    return json.loads(capfd.readouterr().out)


def test_a_label_is_trained_exported_and_goes_on_in_play(labelled, videos, tmp_path, capfd):
    """Without a key the start's own label holds; a script can ask for another one."""
    world = load_world(labelled)
    assert world.config.vocabulary.names == LABELS and world.config.model.num_actions == 3
    assert world.config.frame_action == "label" and world.config.frames_per_second == 10.0
    (label,) = set(world.contexts[0].actions.tolist())
    np.testing.assert_array_equal(world.contexts[0].frames, bar_video(8)[:4:2])
    assert label == 8 % 3
    report = play(labelled, tmp_path, capfd, "- x3", "action:falls x2")
    assert report["actions"] == {"falls": 2, "rises": 0, "waits": 3}
    card = (labelled / "world" / "README.md").read_text()
    assert "Labels, each an action that stays the same: falls, rises, waits." in card and "shuffled" not in card


def test_a_model_without_actions_is_trained_on_the_same_videos(videos, tmp_path, capfd):
    run = train(tmp_path / "run", videos, "condition=none")
    world = load_world(run)
    assert world.config.model.num_actions == 0 and world.config.vocabulary.names == ("none",)
    assert not [name for name in world.model.state_dict() if "action_embedding" in name]
    assert play(run, tmp_path, capfd, "- x5")["actions"] == {"none": 5}


def test_samples_are_a_sheet_and_a_video_of_truth_beside_dream(labelled, videos):
    """The left half of the video is what was recorded, at the speed of what the world shows."""
    with av.open(str(labelled / "samples" / "world-00000004.mp4")) as video:
        assert video.streams.video[0].average_rate == 10
        pictures = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    scale = 256 // 16
    assert len(pictures) == 20 - 2 and pictures[0].shape == (16 * scale, (16 + 2 + 16) * scale, 3)
    truth = np.stack(pictures)[:, scale // 2 :: scale, scale // 2 : 16 * scale : scale]
    error = np.abs(truth.astype(int) - bar_video(8)[4::2]).mean()
    assert error < 12, error
    assert (labelled / "samples" / "world-00000004.png").is_file()
    events = b"".join(file.read_bytes() for file in (labelled / "logs" / "world").glob("events.*"))
    assert b"world/samples" in events and b"\x89PNG" in events


def test_clips_skip_frames_and_half_of_them_are_mirrored(labelled, videos):
    """Every start is possible, the skipped frames' as well; a mirrored clip is mirrored throughout."""
    from farworld.train.autoencoder import load_autoencoder
    from farworld.train.latents import cache_latents

    run = open_run(labelled, None, [], resume=True, stage="all", data=Dataset(videos), ranks=ALONE)
    with contextlib.closing(run):
        autoencoder = load_autoencoder(run)
        latents = cache_latents(run, autoencoder, Dataset(videos))
    generators = [torch.Generator().manual_seed(seed) for seed in range(24)]
    clips = random_clips(latents, [0, 1, 2], run.config, ClipKind(6, 0.0), None, generators)
    assert {start % 2 for _, start in clips.places} == {0, 1}
    mirrored = 0
    for clip, actions, (episode, start) in zip(clips.latents, clips.actions, clips.places, strict=True):
        assert actions.tolist() == [episode % 3] * 6
        frames = bar_video(episode)[start : start + 11 : 2]
        ways = [autoencoder.encode(torch.from_numpy(way.copy())) for way in (frames, frames[:, :, ::-1])]
        errors = [float((clip - way).abs().max()) for way in ways]
        assert min(errors) < 0.02 < max(errors)
        mirrored += errors[1] < errors[0]
    assert 6 < mirrored < 18


def test_what_a_run_sees_are_the_frames_apart_and_their_actions(videos):
    class Config:
        condition, frame_interval = "label", 3

    view = RunView(Dataset(videos), Config)  # type: ignore[arg-type]
    assert view.num_frames(4) == 14 and len(view.actions(4)) == 13 and set(view.actions(4)) == {1}
    np.testing.assert_array_equal(view.frames(4), bar_video(4)[::3])
    np.testing.assert_array_equal(view.frames(4, 2, 5), bar_video(4)[6:15:3])
    assert view.spec.frames_per_second == pytest.approx(20 / 3)


def test_actions_that_change_are_no_label(videos, tmp_path):
    dataset = Dataset(videos)
    path = tmp_path / "data"
    with create_or_open(path, dataset.spec) as writer:
        actions = np.array([0, 0, 1, 1])
        writer.write(
            Episode(frames=bar_video(0, 5), actions=actions, rewards=np.zeros(4, np.float32), seed=0, index=0)
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"episode-000000.tar has 2 different ones; set condition=action"):
        train(tmp_path / "run", path, "condition=label")
    with pytest.raises(ValueError, match="no episode of the dataset has two frames or more, 5 apart"):
        train(tmp_path / "run", path, "condition=none", "frame_interval=5")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("num_frames", [1, 3])
def test_a_label_conditions_the_first_frame_too(num_frames):
    """A rollout from one frame, whose label only the first step says, is that from the frame with its label."""
    world = tiny_world(frame_action="label")
    config = world.config
    frames = torch.randint(0, 256, (1, num_frames, config.frame_height, config.frame_width, 3), dtype=torch.uint8)
    null, steps = config.model.null_action, range(2)
    told, explicit, untold = Rollout(world), Rollout(world), Rollout(tiny_world())
    told.prime(frames, np.full((1, num_frames - 1), 1))
    explicit.prime_latents(world.encode(frames), torch.full((1, num_frames), 1))
    untold.prime_latents(world.encode(frames), torch.tensor([[null] + [1] * (num_frames - 1)]))
    rows = [torch.stack([rollout.step_latents(1) for _ in steps]) for rollout in (told, explicit, untold)]
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])


def test_an_anchored_run_exports_an_anchored_world(videos, tmp_path):
    """Clips whose fine frames are the window are what the paper trains on, and play must do as training did."""
    settings = [
        "condition=label", "flip=False", "context_patch_size=2", "short_term_frames=3", "fine_frames=3",
        "early_clip_frames=12", "max_clip_frames=12", "clip_lengths=uniform", "layout=anchored",
    ]  # fmt: skip
    run = train(tmp_path / "run", videos, *settings)
    assert json.loads((run / "world" / "config.json").read_text())["layout"] == "anchored"
    player = open_player(run, device="cpu")
    assert player.rollout.layout == "anchored" and player.tick()
