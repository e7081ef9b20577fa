"""The exams: the truth and broken predictors get the scores that they deserve."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from exam_predictors import (
    Fading,
    Forgetful,
    Frozen,
    Late,
    Noise,
    Recalling,
    Shuffled,
    Truth,
    maze,
    memory_maze_stand_in,
    voxel,
)

from farworld.train.exams import EXAMS, control, dig, drift, inverse_dynamics, memory_maze, revisit
from farworld.train.exams.walks import (
    EXAM_SEED,
    check_world_fits,
    exam_settings,
    side_by_side,
    take_walk,
    turns_of_a_circle,
)
from farworld.train.report import read_results


def check_report(result):
    """What the HTML report relies on."""
    report = json.loads(json.dumps(result.report))
    assert set(report) - {"plots"} == {"name", "summary", "series", "table", "notes"}
    assert all(set(plot) == {"lines", "title", "x_label", "y_label"} for plot in report.get("plots", []))
    assert all(isinstance(value, int | float) for value in report["summary"].values())
    assert all(isinstance(x, int | float) for values in report["series"].values() for x in values)
    assert all(isinstance(row, dict) for row in report["table"]) and all(isinstance(n, str) for n in report["notes"])
    for frames in result.videos.values():
        assert frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[3] == 3
        assert frames.shape[1] % 2 == frames.shape[2] % 2 == 0  # as H.264 has it
    return report


# revisit


@pytest.mark.parametrize(("make_env", "turns"), [(maze, 18), (voxel, 24)])
def test_the_truth_recalls_everything_and_noise_nothing(make_env, turns):
    env = make_env()
    assert turns_of_a_circle(env) == turns
    result = revisit.revisit(Truth(make_env), env, streams=2, short_memory=Noise(), steps_out=(0, 3))
    report = check_report(result)
    assert [(row["steps_out"], row["phase"]) for row in report["table"]] == [
        (0, "circle"), (3, "way back"), (3, "circle")
    ]  # fmt: skip
    for row in report["table"]:
        assert row["dream_psnr"] == 100 and row["dream_ssim"] == pytest.approx(1, abs=1e-3)
        assert row["short_memory_psnr"] < 12 and row["best_context_frame_psnr"] >= 40
        assert row["gain_db"] == pytest.approx(row["dream_psnr"] - row["short_memory_psnr"], abs=1e-3)
    assert report["summary"]["full_turn_gain_db"] > 85
    assert report["summary"]["way_back_dream_psnr"] == 100
    assert len(report["series"]["dream.PSNR, 3 steps out"]) == 3 + turns
    assert result.videos["revisit, on the spot"].shape == (turns, 32, 32 * 3 + 2 * 2, 3)


def test_frames_since_seen_count_from_when_the_same_picture_was_last_shown():
    """The plan's arithmetic against a search through the frames themselves."""
    env = maze()
    walks = revisit.find_round_trips(env, 3, 1, EXAM_SEED)
    result = revisit.revisit(Frozen(), env, streams=1, steps_out=(3,))
    frames, context = walks.frames[0], 18 + 3 + 1
    expected = []
    for t in range(context, len(frames)):
        error = np.abs(frames[:context].astype(int) - frames[t]).mean(axis=(1, 2, 3))
        expected.append(t - int(np.flatnonzero(error < 0.5).max()))
    assert result.report["series"]["frames since seen, 3 steps out"] == expected
    assert expected[:4] == [2, 4, 6, 24]


def test_a_predictor_that_freezes_scores_what_copying_the_last_frame_does():
    row = revisit.revisit(Frozen(), maze(), streams=2, steps_out=(0,)).report["table"][0]
    assert row["dream_psnr"] == row["copy_last_psnr"] < 20 < row["best_context_frame_psnr"]
    assert "gain_db" not in row


def test_a_world_that_cannot_walk_backwards_comes_back_turned_around():
    """TECO's vocabulary: what is seen on that way back is new, and counts as never seen."""
    env = maze(preset="dmlab", actions="teco")
    result = revisit.revisit(Frozen(), env, streams=1, steps_out=(2,))
    ages = result.report["series"]["frames since seen, 2 steps out"]
    assert ages == [0] * (9 + 2 + 9) + [18 + 2 + 9 + 2 + 9] * 18
    assert revisit.num_frames(env, (2,)) == len(ages)


def test_a_short_memory_holds_no_circle_but_the_window():
    env = maze()
    assert revisit.short_memory_frames(env, 4) == 16 and revisit.short_memory_frames(env, 17) == 17
    assert revisit.short_memory_frames(maze(turn_degrees=45.0), 4) == 7


def test_a_short_memory_is_shown_no_more_than_it_holds():
    """Primed with the whole circle it knew some of it: coarse tokens carry on what those before them saw."""
    shown = []

    class Watcher(Frozen):
        def prime(self, frames, actions, *, seed=0):
            super().prime(frames, actions)
            shown.append((frames, actions))

    env = maze()
    revisit.revisit(Watcher(), env, streams=1, short_memory=Watcher(), short_frames=5, steps_out=(0, 3))
    assert [(frames.shape[1], actions.shape[1]) for frames, actions in shown] == [(19, 18), (5, 4), (22, 21), (5, 4)]
    for (frames, actions), (last_frames, last_actions) in zip(shown[::2], shown[1::2], strict=True):
        assert (last_frames == frames[:, -5:]).all() and (last_actions == actions[:, -4:]).all()


# drift


@pytest.fixture(scope="module")
def drifting():
    """Scores of predictors over 120 frames of the maze."""
    env = maze()
    options = {"streams": 1, "num_frames": 120, "real_episodes": 6}
    predictors = {
        "truth": Truth(maze),
        "fading": Fading(Truth(maze), 60),
        "noise": Noise(),
        "blur": Forgetful(Truth(maze)),
        "frozen": Frozen(),
    }
    return {name: drift.drift(predictor, env, **options) for name, predictor in predictors.items()}


def test_the_truth_outlives_what_fades_and_noise_never_lived(drifting):
    life = {name: check_report(result)["summary"]["lifetime_median"] for name, result in drifting.items()}
    truth = drifting["truth"].report["summary"]
    assert life["truth"] == truth["true_lifetime_median"] >= 100
    assert life["noise"] == 0
    assert 60 <= life["fading"] <= 100
    assert life["blur"] < life["truth"]
    inside = {name: result.report["summary"]["inside"] for name, result in drifting.items()}
    assert inside["noise"] == 0 < inside["fading"] < inside["truth"] - 0.2


def test_a_dream_that_has_stopped_is_dead_while_its_keys_turn_and_not_while_they_idle(drifting):
    """A true picture, held, has the statistics of true pictures for ever; what it lacks is motion."""
    report = drifting["frozen"].report
    assert report["summary"]["turn_lifetime_median"] == 0
    motion = {row["script"]: row for row in report["table"] if row["statistic"] == "motion"}
    assert motion["turn"]["lifetime_median"] == 0 < motion["turn"]["band_low"]
    assert motion["idle"]["lifetime_median"] == 120 and motion["idle"]["band_low"] == 0
    assert motion["turn"]["true_lifetime_median"] == 120
    (low, high) = drift.bands({"motion": np.arange(101.0)})["motion"]
    assert (low, high) == (pytest.approx(5 - 0.25 * 90), 255)  # decoders flicker where the world stands still


def test_what_the_exam_says_of_the_truth_does_not_depend_on_the_predictor(drifting):
    bands = [[(r["band_low"], r["true_lifetime_median"]) for r in x.report["table"]] for x in drifting.values()]
    assert all(other == bands[0] for other in bands)


def test_a_stream_has_left_for_good_after_its_last_span_inside():
    spans = {"mean": np.array([[1, 1, 9, 1, 9, 9], [1, 1, 1, 1, 1, 1], [9, 9, 9, 9, 9, 9], [9, 9, 9, 9, 9, 1]])}
    assert (drift.lifetimes(spans, {"mean": (0, 2)})["mean"] == np.array([4, 6, 0, 6]) * drift.SPAN_FRAMES).all()


def test_a_band_is_the_middle_of_real_spans_and_a_margin():
    (low, high) = drift.bands({"mean": np.arange(101.0).reshape(1, -1)})["mean"]
    assert (low, high) == pytest.approx((5 - 0.25 * 90, 95 + 0.25 * 90))
    assert drift.bands({"round_trip": np.arange(101.0)})["round_trip"] == (0, high)  # the shorter the better


def test_statistics_see_what_they_are_called_after():
    checks = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    checks[:, ::2, ::2] = checks[:, 1::2, 1::2] = 200
    red = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    red[..., 0] = 100
    frames = torch.cat([checks, red])
    facts = drift.frame_statistics(frames, lambda x: x + 3)
    assert facts["mean"].tolist() == pytest.approx([100, 100 / 3])
    assert facts["sharpness"].tolist() == pytest.approx([200, 0])
    assert facts["saturation"].tolist() == pytest.approx([0, 1])
    assert facts["round_trip"].tolist() == pytest.approx([3, 3])


def test_scripts_are_fixed_and_leave_out_what_a_vocabulary_lacks():
    full, teco = (env.spec.action_vocabulary for env in (maze(), maze(actions="teco")))
    assert list(drift.scripts(full, 50)) == ["walk", "turn", "idle", "mixed"]
    assert list(drift.scripts(teco, 50)) == ["walk", "turn", "mixed"]
    assert set(drift.scripts(full, 500)["mixed"]) == set(range(len(full)))
    for name, actions in drift.scripts(full, 50).items():
        assert (actions == drift.scripts(full, 50)[name]).all() and len(actions) == 50


# control


TRAINING = inverse_dynamics.JudgeTraining(episodes=60, held_out=10, frames=33, steps=220, batch_size=32)


@pytest.fixture(scope="module")
def judge_file(tmp_path_factory):
    """A judge of the small maze, trained once."""
    path = tmp_path_factory.mktemp("judge") / "judge.safetensors"
    inverse_dynamics.cached_judge(maze(), EXAM_SEED, TRAINING, path)
    return path


@pytest.fixture(scope="module")
def controlled(judge_file):
    predictors = {
        "truth": Truth(maze),
        "shuffled": Shuffled(Truth(maze), 7),
        "frozen": Frozen(),
        "late": Late(Truth(maze)),
    }
    options = {"streams": 4, "num_frames": 24, "judge_file": judge_file, "training": TRAINING}
    round_trips = {"late": lambda frames: frames, "frozen": torch.zeros_like}
    return {
        name: control.control(predictor, maze(), round_trip=round_trips.get(name), **options)
        for name, predictor in predictors.items()
    }


def test_the_judge_reads_the_truth_as_well_as_real_pairs_and_nothing_from_other_keys(controlled):
    summary = {name: check_report(result)["summary"] for name, result in controlled.items()}
    assert summary["truth"]["real_accuracy"] > 0.6
    assert summary["truth"]["dream_accuracy"] > summary["truth"]["real_accuracy"] - 0.15
    assert summary["shuffled"]["dream_accuracy"] < 0.35 and summary["frozen"]["dream_accuracy"] < 0.3
    # Through a perfect autoencoder the dreams' own walks are read as the truth is, through one that shows nothing not.
    assert summary["late"]["decoded_accuracy"] == summary["truth"]["dream_accuracy"]
    assert summary["frozen"]["decoded_accuracy"] < 0.3 and "decoded_accuracy" not in summary["truth"]


def test_the_lag_from_key_to_pixel_is_one_frame_and_two_where_frames_come_late(controlled):
    assert controlled["truth"].report["summary"]["lag_frames"] == 1
    assert controlled["late"].report["summary"]["lag_frames"] == 2
    assert "lag_frames" not in controlled["frozen"].report["summary"]
    assert "lag_frames" not in controlled["shuffled"].report["summary"]
    assert any("no lag" in note for note in controlled["frozen"].report["notes"])


def test_the_judge_is_trained_once_and_read_again_as_it_was(judge_file, monkeypatch):
    monkeypatch.setattr(inverse_dynamics, "train_judge", lambda *_: pytest.fail("it is trained again"))
    env = maze()
    judge, counts = inverse_dynamics.cached_judge(env, EXAM_SEED, TRAINING, judge_file)
    again = inverse_dynamics.real_confusion(judge, env, EXAM_SEED + 2 * inverse_dynamics.TRAIN_SEEDS, TRAINING)
    assert (again == counts).all() and counts.sum() == 10 * 32
    with pytest.raises(ValueError, match="no judge of farworld/Maze-v0 with the actions turn_left"):
        inverse_dynamics.cached_judge(maze(actions="teco"), EXAM_SEED, TRAINING, judge_file)
    damaged = judge_file.with_name("damaged.safetensors")
    damaged.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="remove it"):
        inverse_dynamics.cached_judge(env, EXAM_SEED, TRAINING, damaged)


def test_a_judge_in_the_cache_belongs_to_one_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    files = {
        inverse_dynamics.cache_file(env.spec, EXAM_SEED, TRAINING)
        for env in (maze(), maze(), maze(size=48), maze(decals="none"), maze(actions="full"))
    }
    assert len(files) == 4 and all(file.parent == tmp_path / "farworld" for file in files)


def test_walking_into_a_wall_reads_as_idling():
    env = maze()
    forward = env.spec.action_vocabulary.index("forward")
    frames, actions = take_walk(env, EXAM_SEED, [forward] * 60), np.full(60, forward)
    still = np.array([(before == after).all() for before, after in zip(frames, frames[1:], strict=False)])
    assert still.any() and not still.all()
    assert (inverse_dynamics.readable_actions(frames, actions, 0) == np.where(still, 0, forward)).all()
    assert (inverse_dynamics.readable_actions(frames, actions, None)[still] == inverse_dynamics.NOTHING).all()
    assert (inverse_dynamics.readable_actions(frames, actions, None)[~still] == forward).all()


def test_a_judge_looks_at_large_frames_reduced_by_area():
    frames = np.random.default_rng(0).integers(0, 256, (3, 128, 96, 3), np.uint8)
    small = inverse_dynamics.reduced(frames)
    assert small.shape == (3, 64, 48, 3)
    assert np.abs(small.astype(float) - frames.reshape(3, 64, 2, 48, 2, 3).mean(axis=(2, 4))).max() <= 0.5
    assert inverse_dynamics.reduced(small) is small


def test_actions_that_are_taken_for_each_other_are_one_and_others_are_not():
    counts = np.array([[9, 1, 0, 0], [1, 9, 0, 0], [0, 0, 5, 5], [0, 0, 4, 6]])
    group = control.alike(counts)
    assert group.tolist() == [0, 1, 2, 2]
    assert inverse_dynamics.balanced_accuracy(counts) == pytest.approx((0.9 + 0.9 + 0.5 + 0.6) / 4)
    assert inverse_dynamics.balanced_accuracy(counts, group) == pytest.approx((0.9 + 0.9 + 1 + 1) / 4)


# dig


def test_the_truth_sides_with_what_was_dug_and_built_and_a_forgetful_world_with_neither():
    env = voxel()
    result = dig.dig(Truth(voxel), env, streams=2, look_away=(2,))
    report = check_report(result)
    assert [row["edit"] for row in report["table"]] == ["dig", "place"]
    for row in report["table"]:
        assert row["sides_with_edited"] == 1 and row["psnr_to_edited"] == 100 and row["remembered"] == 1
        assert row["psnr_to_unedited"] == pytest.approx(row["psnr_between_both"]) and row["region"] >= 0.01
    noise = check_report(dig.dig(Noise(), env, streams=2, look_away=(2,)))
    assert abs(noise["summary"]["margin_db"]) < 5 and noise["summary"]["psnr_to_edited"] < 12
    assert noise["summary"]["remembered"] == 0  # the same noise, with the change and without
    blurred = check_report(dig.dig(Forgetful(Truth(voxel)), env, streams=2, look_away=(2,)))
    assert 0 < blurred["summary"]["remembered"] < 1


class Unedited(Truth):
    """The real world in which nothing was ever dug or placed."""

    def prime(self, frames, actions, *, seed=0):
        """Take the context's walk without its changes."""
        super().prime(frames, actions)
        vocabulary = self.finder.spec.action_vocabulary
        edits, noop = [vocabulary.index(name) for name in dig.EDITS], vocabulary.index("noop")
        for env, episode, row in zip(self.envs, frames, actions, strict=True):
            env.reset(self.seed_of(episode[0]))
            for action in row:
                env.step(noop if action in edits else int(action))


def test_a_world_in_which_holes_heal_sides_with_the_unedited_one():
    summary = dig.dig(Unedited(voxel), voxel(), streams=2, look_away=(2,)).report["summary"]
    assert summary["sides_with_edited"] == 0 and summary["psnr_to_unedited"] == 100 and summary["margin_db"] < -50
    assert summary["remembered"] == 0


def test_a_dream_that_never_looks_away_remembers_nothing():
    """The last true frame, held, is the very picture that is asked for: it was a perfect memory."""
    env = voxel()
    frozen = check_report(dig.dig(Frozen(), env, streams=2, look_away=(1, 2)))["summary"]
    assert frozen["looked_away"] == frozen["remembered"] == frozen["sides_with_edited"] == 0
    assert frozen["psnr_to_edited"] == 100
    truth = check_report(dig.dig(Truth(voxel), env, streams=2, look_away=(1, 2)))["summary"]
    assert truth["looked_away"] == truth["remembered"] == truth["sides_with_edited"] == 1


def test_a_world_without_blocks_is_not_examined_in_digging():
    with pytest.raises(ValueError, match="needs an action dig or place; this world has noop, forward"):
        dig.dig(Frozen(), maze(), streams=1)


# What they share


def test_the_environment_of_an_exam_is_that_of_the_training_or_another_one(tiny_world_path):
    from dataclasses import replace

    from farworld.checkpoint import load_world

    config = load_world(tiny_world_path).config
    with pytest.raises(ValueError, match="tiny does not say which environment it was trained in; name one with --env"):
        exam_settings(config)
    training = {"data": {"env": "farworld/Maze-v0", "env_kwargs": {"actions": "walk", "grid_size": 7}}}
    told = replace(config, training=training)
    settings = exam_settings(told, settings={"env_args": {"goals": 1}})
    assert settings.env_id == "farworld/Maze-v0"
    assert settings.env_kwargs == {"size": 32, "actions": "walk", "grid_size": 7, "goals": 1}
    assert exam_settings(told, "farworld/Voxel-v0").env_kwargs == {"size": 32}
    with pytest.raises(
        ValueError, match="differ in actions: noop, forward, turn_left.* against noop, forward, backward"
    ):
        check_world_fits(config, maze())
    paced = replace(config, vocabulary=maze().spec.action_vocabulary, model=replace(config.model, num_actions=7))
    with pytest.raises(ValueError, match="differ in frames per second: 20 against 7.5"):
        check_world_fits(paced, maze())
    check_world_fits(replace(paced, frames_per_second=7.5), maze())


def test_videos_beside_each_other_are_as_wide_as_a_codec_wants():
    one, other = np.zeros((3, 8, 7, 3), np.uint8), np.full((3, 8, 7, 3), 9, np.uint8)
    both = side_by_side(one, other)
    assert both.shape == (3, 8, 16, 3) and (both[:, :, 9:16] == 9).all() and (both[:, :, 7:9] == 255).all()


def test_an_episode_that_ends_is_an_error_that_says_when():
    import tiny_env  # noqa: F401  registers the environment

    from farworld.envs.environments import EnvSettings, PixelEnv

    env = PixelEnv(EnvSettings(env_id="TinyShort-v0", size=32))
    with pytest.raises(ValueError, match="ended the episode of seed 1 after 7 of 9 steps"):
        take_walk(env, 1, [0] * 9)
    assert take_walk(env, 1, [0] * 7).shape == (8, 32, 32, 3)


# Memory Maze


def test_a_patrol_goes_to_and_fro_and_leaves_for_where_it_has_not_been():
    """Steered through a stand-in for the physics: turns by 18 degrees, steps of 0.2 cells, as in the real maze."""
    walls = np.ones((9, 9), bool)
    walls[1:8, 1] = walls[7, 1:8] = False  # an L
    pose = memory_maze.Pose(1.5, 1.5, 130.0)
    patrol, cells, poses = memory_maze.Patrol(walls, pose.cell), [], []
    for t in range(260):
        if t == 130:
            patrol.leave(pose.cell)
        name = patrol.act(pose)
        turn = 18 * (("left" in name) - ("right" in name))
        heading = np.radians(pose.heading + turn)
        step = 0.2 * ("forward" in name)
        pose = memory_maze.Pose(pose.x + step * np.cos(heading), pose.y + step * np.sin(heading), pose.heading + turn)
        assert not walls[pose.cell]
        cells.append(pose.cell)
        poses.append(pose)
    assert set(cells[:130]) == {(1, 1), (2, 1), (3, 1), (4, 1)}
    reached = [cells[:130].index((4, 1)), *(t for t in range(1, 130) if cells[t] == (4, 1) != cells[t - 1])]
    assert len(set(reached)) >= 2  # more than once
    assert (7, 7) in cells[130:]
    ages = memory_maze.frames_since_seen(poses, 130)
    assert (
        all((age > 0) == (poses[130 + i].x < 4.9 and age > 0) for i, age in enumerate(ages)) and (ages == 0).sum() > 20
    )


def test_seen_means_the_same_place_in_the_same_direction():
    poses = [memory_maze.Pose(1, 1, 170), memory_maze.Pose(3, 1, 0), memory_maze.Pose(1, 1, 170)]
    later = [memory_maze.Pose(1.2, 1, -175), memory_maze.Pose(1, 1, 90), memory_maze.Pose(3.4, 1, 0)]
    assert memory_maze.frames_since_seen([*poses, *later], 3).tolist() == [1, 0, 0]


def test_other_environments_are_no_memory_maze():
    with pytest.raises(ValueError, match="for the environment memory-maze, got farworld/Maze-v0"):
        memory_maze.memory_maze(Frozen(), maze(), streams=1)


def test_the_truth_knows_all_ground_and_a_mere_memory_only_what_it_saw():
    env, options = memory_maze_stand_in(), {"streams": 2, "context": 60, "dreamed": 20}
    predictors = {"truth": Truth(memory_maze_stand_in), "memory": Recalling(memory_maze_stand_in), "frozen": Frozen()}
    reports = {name: check_report(memory_maze.memory_maze(who, env, **options)) for name, who in predictors.items()}
    for report in reports.values():
        assert [row["ground"] for row in report["table"]] == ["seen", "new"]
        assert all(row["frames"] >= 10 for row in report["table"])
    assert reports["truth"]["summary"]["seen_dream_psnr"] == reports["truth"]["summary"]["new_dream_psnr"] == 100
    assert reports["memory"]["summary"]["retrieval_gain_db"] > 3
    for row in reports["memory"]["table"]:
        assert row["dream_psnr"] == pytest.approx(row["best_context_frame_psnr"], abs=1.0)  # nearest in another sense
    for row in reports["frozen"]["table"]:
        assert row["dream_psnr"] == row["copy_last_psnr"] < row["best_context_frame_psnr"]


@pytest.mark.slow
def test_the_real_memory_maze_says_where_the_camera_is():
    """Its resets take seconds."""
    pytest.importorskip("memory_maze", reason='Memory Maze is not installed; pip install "farworld[memory-maze]"')
    from farworld.envs.environments import EnvSettings, PixelEnv, resolve_env_id

    try:
        env = PixelEnv(EnvSettings(env_id=resolve_env_id("memory-maze"), size=64))
    except ImportError as error:
        pytest.skip(str(error))
    real = env.env.unwrapped
    walls, start = real.walls(), real.pose()
    assert walls.shape == (11, 11) and not walls[start.cell] and walls[0].all() and walls[:, 10].all()
    patrol, poses = memory_maze.Patrol(walls, start.cell), [start]
    for _ in range(40):
        env.step(env.spec.action_vocabulary.index(patrol.act(poses[-1])))
        poses.append(real.pose())
    assert all(not walls[pose.cell] for pose in poses) and len({pose.cell for pose in poses}) >= 3
    env.close()


# The command line


@pytest.fixture(scope="module")
def maze_world_path(tiny_world_path, tmp_path_factory):
    """A world of random weights that says that it was trained in the maze."""
    from dataclasses import replace

    from farworld.checkpoint import load_world, save_world
    from farworld.world_model import WorldModel

    config = load_world(tiny_world_path).config
    env = maze()
    told = replace(
        config, vocabulary=env.spec.action_vocabulary, model=replace(config.model, num_actions=7, num_layers=1),
        frames_per_second=7.5, context_frames=40,
        training={"data": {"env": "farworld/Maze-v0", "env_kwargs": {"actions": "walk"}}},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        world = WorldModel(told)
    path = tmp_path_factory.mktemp("worlds") / "maze"
    save_world(path, told, world.transformer, world.autoencoder, [], "# maze\n")
    return path


@pytest.mark.parametrize(
    ("arguments", "videos"),
    [
        (["revisit", "--streams", "1", "--steps-out", "0", "2"], ["revisit-2-steps-out", "revisit-on-the-spot"]),
        (["drift", "--streams", "1", "--frames", "40", "--real-episodes", "2"],
         ["drift-idle", "drift-mixed", "drift-turn", "drift-walk"]),
        (["control", "--streams", "1", "--frames", "8"], ["control", "lag"]),
    ],
)  # fmt: skip
def test_exams_are_commands_that_leave_report_and_videos(
    maze_world_path, monkeypatch, tmp_path, capfd, arguments, videos
):
    from farworld.cli import app

    monkeypatch.setattr(inverse_dynamics.JudgeTraining, "__init__", _barely_trained)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = ["eval", *arguments, "--ckpt", str(maze_world_path), "--out", str(tmp_path / "out")]
    app([*command, "--json"], exit_on_error=False, print_error=False, result_action="return_value")
    out = capfd.readouterr().out.splitlines()
    report = json.loads(out[-1])
    assert len(out) == 1 and report["name"] == arguments[0] and report["env"] == "farworld/Maze-v0"
    assert report["env_kwargs"] == {"size": 32, "actions": "walk"} and report["summary"]
    assert json.loads((tmp_path / "out" / f"{arguments[0]}.json").read_text()) == report
    page = read_results(tmp_path / "out" / f"{arguments[0]}.html")
    assert page["results"] == [report] and page["hardware"]
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.mp4")) == videos
    app(command[:-2], exit_on_error=False, print_error=False, result_action="return_value")
    printed = capfd.readouterr().out
    assert all(name in printed for name in report["summary"])


def test_what_an_exam_prints_says_what_it_depends_on(maze_world_path, tmp_path, capfd, monkeypatch):
    """As every result: the exact command, commit, seed and hardware, in the JSON as on the page."""
    from farworld.cli import app

    command = ["eval", "revisit", "--streams", "1", "--steps-out", "0", "--ckpt", str(maze_world_path), "--seed", "5"]
    command += ["--context", "30", "--json", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["farworld", *command])
    app(command, exit_on_error=False, print_error=False, result_action="return_value")
    printed, page = json.loads(capfd.readouterr().out), read_results(tmp_path / "revisit.html")
    for facts in (printed, page):
        assert facts["command"].startswith("farworld eval revisit ")
        assert {"commit", "hardware", "torch", "date"} <= set(facts)
        assert (facts["seed"], facts["steps"], facts["context"], facts["layout"]) == (5, 1, 30, "sliding")
        assert facts["ckpt"] == str(maze_world_path) and facts["env"] == "farworld/Maze-v0"


def _barely_trained(self):
    for name, value in {"episodes": 3, "held_out": 2, "frames": 9, "steps": 2, "batch_size": 4}.items():
        object.__setattr__(self, name, value)
    object.__setattr__(self, "learning_rate", 1e-3)


def test_the_help_of_the_exams_is_listed_without_importing_them():
    code = (
        "import atexit, sys; from farworld.cli import main; sys.argv = ['farworld', 'eval', '--help']\n"
        "atexit.register(lambda: print(*sys.modules))\n"
        "main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *shown, modules = result.stdout.splitlines()
    imported = set(modules.split())
    assert "farworld.train.eval_cli" in imported and not {"farworld.train.exams.cli", "torch"} & imported
    assert all(any(f" {name} " in line for line in shown) for name in EXAMS)
