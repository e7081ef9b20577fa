"""`farworld play --env`: a real environment under the keys, recorded as `farworld record` records."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

os.environ["SDL_VIDEODRIVER"] = "dummy"

import pygame

from farworld.cli import app, main
from farworld.dataset import Dataset
from farworld.envs.environments import EnvironmentCrash
from farworld.envs.player import open_env_player
from farworld.envs.recorder import Recording, record
from farworld.play.window import Window

ROOT = Path(__file__).resolve().parent.parent
TINY = "tiny_env:Tiny-v0"  # its frames show the last action
NOOP, FIRE, UP_LEFT, OPEN_DOOR = range(4)
KEYS = {NOOP: [], FIRE: ["space"], UP_LEFT: ["up", "left"], OPEN_DOOR: ["3"]}


def shown_action(frame):
    """What the tiny environment's frame shows; None is its first frame."""
    level = int(frame.mean()) // 50
    return level - 1 if level else None


def play_actions(player, actions):
    """Press the keys of these actions, frame by frame; all frames that were on the screen, the present one too."""
    frames = [player.frame.copy()]
    for action in actions:
        player.keys.hold(KEYS[action])
        player.tick()
        frames.append(player.frame.copy())
    return np.stack(frames)


def run(*arguments):
    app(["play", *map(str, arguments)], result_action="return_value")


def test_the_key_pressed_while_a_frame_shows_decides_the_next_frame():
    with open_env_player(TINY) as player:
        assert shown_action(player.frame) is None and player.action_name == "start"
        for action in (FIRE, NOOP, UP_LEFT, UP_LEFT, OPEN_DOOR):
            player.keys.hold(KEYS[action])
            player.tick()
            assert shown_action(player.frame) == player.action == action


def test_a_key_event_reaches_the_window_with_the_next_frame():
    """Down to the pixels of the screen, with the environment's own keys and pace."""
    with open_env_player(TINY) as player, Window(player, size=32) as window:
        assert window.frames_per_second == 5 and window._help_rows()[2] == ("up + left", "UPLEFT")
        for key, action in ((None, NOOP), (pygame.K_SPACE, FIRE), (pygame.K_3, OPEN_DOOR)):
            if key:
                pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=key))
            window.handle_events()
            window.show_next_frame()
            assert tuple(window._screen.get_at((5, 7)))[:3] == tuple(player.frame[7, 5])
            assert shown_action(player.frame) == action


def test_a_recorded_episode_is_what_was_shown_and_done(tmp_path):
    actions = [FIRE, FIRE, NOOP, UP_LEFT, OPEN_DOOR, NOOP]
    with open_env_player(TINY, record_to=tmp_path) as player:
        frames = play_actions(player, actions)
    dataset = Dataset(tmp_path)
    dataset.verify(0)
    episode = dataset.episode(0)
    assert np.array_equal(episode.frames, frames) and episode.actions.tolist() == actions
    assert episode.rewards.tolist() == [action + 1 for action in actions]
    assert episode.truncated and not episode.terminated and episode.source == "human"
    assert dataset.spec.policy == "human" and dataset.spec.frames_per_second == 5
    assert dataset.spec.action_vocabulary == player.vocabulary


def test_reset_the_next_start_and_quitting_each_end_an_episode(tmp_path):
    """What is finished is on disk at once, so that kill -9 costs no more than the running episode."""
    with open_env_player(TINY, record_to=tmp_path) as player:
        play_actions(player, [FIRE] * 3)
        player.reset()
        assert [Dataset(tmp_path).num_frames(i) for i in range(len(Dataset(tmp_path)))] == [4]
        assert (player.recorded, player.news) == ("1 episode, 4 frames", "from the start")
        player.reset()  # one frame is no episode
        play_actions(player, [NOOP] * 2)
        player.next_start()
        assert (player.recorded, player.news) == ("2 episodes, 7 frames", "start 1")
        play_actions(player, [UP_LEFT])
    dataset = Dataset(tmp_path)
    assert [dataset.num_frames(i) for i in range(len(dataset))] == [4, 3, 2]
    seeds = [dataset.episode(i).seed for i in range(3)]
    assert seeds[0] == seeds[1] != seeds[2]
    assert np.array_equal(dataset.frames(0, 0, 1), dataset.frames(1, 0, 1))


def test_an_episode_that_the_environment_ends_is_stored_and_the_next_frame_begins_another(tmp_path):
    with open_env_player("tiny_env:TinyShort-v0", record_to=tmp_path) as player:
        play_actions(player, [FIRE] * 7)
        assert player.ended == "terminated" and player.recorded == "1 episode, 8 frames"
        player.tick()
        assert shown_action(player.frame) is None and player.news == "terminated: start 1" and not player.ended
        play_actions(player, [FIRE] * 2)
    dataset = Dataset(tmp_path)
    assert [dataset.num_frames(i) for i in range(len(dataset))] == [8, 3]
    assert dataset.episode(0).terminated and not dataset.episode(0).truncated


def test_an_environment_that_breaks_down_costs_no_frame_that_was_shown(tmp_path, monkeypatch):
    with pytest.raises(EnvironmentCrash, match="engine"), open_env_player(TINY, record_to=tmp_path) as player:
        frames = play_actions(player, [FIRE, NOOP])

        def fail(action):
            raise RuntimeError("the engine broke down")

        monkeypatch.setattr(player._env.env, "step", fail)
        player.tick()
    assert np.array_equal(Dataset(tmp_path).frames(0), frames)


@pytest.mark.parametrize(
    ("takes", "held", "given"),
    [
        ("multidiscrete", ["2", "0"], {"action": [[2, 1]]}),
        ("box", ["1", "2"], {"action": [[1, -1]]}),
        ("dict", ["up", "left"], {"forward": [1], "jump": [0], "camera": [[0, -10]]}),
        ("dict", ["up", "space"], {"forward": [1], "jump": [1], "camera": [[0, 0]]}),
    ],
)
def test_keys_reach_an_environment_of_any_action_space(tmp_path, takes, held, given):
    """The same keys as in the built-in worlds where the names say so; what it was given is in the dataset."""
    with open_env_player(TINY, env_args={"takes": takes}, record_to=tmp_path) as player:
        player.keys.hold(held)
        player.tick()
    stored = Dataset(tmp_path).episode(0).env_actions
    assert {key: array.tolist() for key, array in stored.items()} == given


def test_a_vocabulary_file_says_which_keys_do_what(tmp_path):
    """As for record."""
    path = tmp_path / "keys.toml"
    path.write_text('[[actions]]\nname = "stay"\n[[actions]]\nname = "burn"\nkeys = ["b"]\naction = 4\n')
    (tmp_path / "keys.txt").write_text("b x2\n- x1\n")
    run(
        "--env", TINY, "--actions", path, "--headless", "--script", tmp_path / "keys.txt", "--record", tmp_path / "data"
    )
    episode = Dataset(tmp_path / "data").episode(0)
    assert episode.actions.tolist() == [1, 1, 0] and episode.env_actions["action"].tolist() == [4, 4, 1]
    assert episode.policy == "human"


def test_a_take_can_be_discarded(tmp_path):
    """Backspace forgets the episode that is running, and begins it again; what came before stays."""
    with open_env_player(TINY, record_to=tmp_path) as player, Window(player, size=64) as window:
        assert ("backspace", "discard the take") in window._help_rows()
        play_actions(player, [FIRE] * 3)
        player.reset()
        play_actions(player, [NOOP] * 5)
        pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_BACKSPACE))
        window.handle_events()
        assert player.news == "discarded, from the start" and shown_action(player.frame) is None
        play_actions(player, [UP_LEFT])
    dataset = Dataset(tmp_path)
    assert [dataset.num_frames(i) for i in range(len(dataset))] == [4, 2]
    with open_env_player(TINY) as player:  # nothing is recorded, nothing discarded
        assert not player.discard()


def test_a_real_environment_says_that_it_cannot_be_rewound(tmp_path, monkeypatch, capsys):
    """Time goes on there, and what is recorded stays what was done."""
    with open_env_player(TINY) as player, Window(player, size=64) as window:
        play_actions(player, [FIRE] * 3)
        pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_BACKSPACE))
        window.handle_events()
        window.show_next_frame()
        assert window._message == "a real environment can't be rewound" and player.num_frames == 4
        assert "backspace" not in dict(window._help_rows()) and not player.rewind()
    (tmp_path / "keys.txt").write_text("space x3\nbackspace x2\n")
    with pytest.raises(ValueError, match="can't be rewound: leave backspace out of the script"):
        run("--env", TINY, "--headless", "--script", tmp_path / "keys.txt", "--record", tmp_path / "data")


def test_start_i_is_where_record_begins_episode_i(tmp_path):
    """So a person and a policy can be compared in the same world."""
    record(Recording(env_id=TINY, num_frames=4, seed=3), tmp_path, episodes=3)
    dataset = Dataset(tmp_path)
    with open_env_player(TINY, seed=3, start=1) as player:
        assert np.array_equal(player.frame, dataset.frames(1)[0])
        player.next_start()
        assert np.array_equal(player.frame, dataset.frames(2)[0])
        assert player.recorded == "" and player.report()["record"] is None


def test_a_person_extends_what_a_policy_recorded(tmp_path):
    """Each episode says whose it is; the first one recorded names the policy of dataset.json."""
    record(Recording(env_id=TINY, num_frames=4), tmp_path, episodes=2)
    before = (tmp_path / "dataset.json").read_bytes()
    with open_env_player(TINY, record_to=tmp_path) as player:
        assert player.start == 2  # not where one of the recorded episodes began
        play_actions(player, [FIRE] * 2)
    record(Recording(env_id=TINY, num_frames=4), tmp_path, episodes=1)
    dataset = Dataset(tmp_path)
    assert [dataset.source(i) for i in range(len(dataset))] == ["", "", "human", ""]
    assert (tmp_path / "dataset.json").read_bytes() == before
    lines = [json.loads(line) for line in (tmp_path / "recordings.jsonl").read_text().splitlines()]
    assert [(line["what"], line["policy"]) for line in lines] == [
        ("record", "random"), ("play", "human"), ("record", "random"),
    ]  # fmt: skip


def test_a_dataset_of_another_environment_is_refused(tmp_path):
    record(Recording(env_id=TINY, num_frames=4), tmp_path, episodes=1)
    with pytest.raises(ValueError, match="env_id is 'tiny_env:Tiny-v0' there and 'tiny_env:TinyShort-v0' now"):
        open_env_player("tiny_env:TinyShort-v0", record_to=tmp_path)
    with pytest.raises(ValueError, match="height is 32 there and 64 now"):
        open_env_player(TINY, size=64, record_to=tmp_path)
    with open_env_player(TINY, record_to=tmp_path) as player:  # the lock was given back
        assert player.num_episodes == 0


def test_headless_play_records_and_prints_one_json_object(tmp_path, capfd):
    (tmp_path / "keys.txt").write_text("space x3\nup+left x2\naction:open door\n")
    run("--env", "tiny_env:TinyChatty-v0", "--headless", "--script", tmp_path / "keys.txt", "--frames", 8,
        "--record", tmp_path / "data", "--save", tmp_path / "out.mp4", "--seed", 5, "--json")  # fmt: skip
    output = capfd.readouterr().out
    assert output.count("\n") == 1
    report = json.loads(output)
    assert report["env"] == "tiny_env:TinyChatty-v0" and report["seed"] == 5 and report["frames"] == 8
    assert report["actions"] == {"NOOP": 2, "FIRE": 3, "UPLEFT": 2, "open door": 1}
    assert (report["episodes"], report["recorded_frames"], report["last_episode"]) == (1, 9, 0)
    assert Dataset(report["record"]).actions(0).tolist() == [1, 1, 1, 2, 2, 3, 0, 0]
    assert (tmp_path / "out.mp4").stat().st_size > 0


def test_on_quitting_it_says_what_was_written_and_how_to_look_at_it(tmp_path, capsys):
    run("--env", TINY, "--headless", "--frames", 4, "--record", tmp_path / "my data")
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"1 episode, 5 frames -> {tmp_path / 'my data'}; the last one: farworld data view '")
    assert line.endswith("last.mp4 --episode 0")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "got neither"),
        (("--env", "maze", "--ckpt", "dmlab"), "either --ckpt .* or --env .* got both"),
        (("--env", "maze", "--steps", "2"), "--steps goes with --ckpt"),
        (("--env", "maze", "--device", "cpu"), "--device goes with --ckpt"),
        (("--ckpt", "dmlab", "--record", "data"), "--record goes with --env"),
        (("--ckpt", "dmlab", "--frame-size", "32"), "--frame-size goes with --env"),
        (("--env", "moze"), "unknown environment 'moze'.*maze, voxel.*did you mean maze?"),
        (("--env", TINY, "--start", "-1"), "start must be 0 or more, got -1"),
        (("--env", TINY, "--seed", "-1"), "seed must be 0 or more, got -1"),
        (("--env", TINY, "--frame-size", "40"), "multiple of 16, got 40"),
        (("--env", TINY, "--env-arg", "takes=text"), "expected actions of Discrete, MultiDiscrete"),
        (("--ckpt", "dmlab", "--env-arg", "takes=box"), "--env-arg goes with --env"),
        (("--ckpt", "dmlab", "--render"), "--render goes with --env"),
        (("--env", "tiny_env:TinyDict-v0", "--obs-key", "scren"), "the observation has map Box"),
        (("--env", TINY, "--actions", "none.toml"), "no such file: none.toml"),
        (("--env", TINY, "--frames-per-second", "5"), "--frames-per-second goes with the window"),
    ],
)
def test_what_cannot_be_played_is_said_in_one_line(tmp_path, monkeypatch, capfd, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["farworld", "play", "--headless", "--frames", "1", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and error.startswith("farworld: ")
    assert re.search(complaint, error)
    assert not any(tmp_path.iterdir())


def test_a_real_environment_does_not_wait_for_torch():
    code = (
        "import sys; from farworld.play.cli import play; play(env='tiny_env:Tiny-v0', headless=True, frames=2); "
        "print(*sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "farworld.envs.player" in result.stdout and not {"torch", "pygame"} & set(result.stdout.split())
