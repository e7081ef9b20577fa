"""`farworld record`: any environment, reproducible, extendable, safe against crashes and against being killed."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from tiny_env import SPACES, weigh

from farworld.cli import app, main
from farworld.dataset import Dataset, describe_space, unstack_action
from farworld.envs.environments import BUILT_IN, EnvironmentCrash, PixelEnv, parse_env_args, resolve_env_id
from farworld.envs.recorder import MAX_CRASHES, Recording, _Session, _Tally, _Task, record
from farworld.envs.workers import Outcome

ROOT = Path(__file__).resolve().parent.parent
TINY = "tiny_env:Tiny-v0"


def files_of(folder):
    """What must not depend on when it was recorded; recordings.jsonl says when."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "recordings.jsonl")
    return {path.name: path.read_bytes() for path in files}


def start_command(*arguments):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", "farworld", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that a failing test can clear away all it started
    )


def complaint(monkeypatch, capfd, *arguments):
    """Run the command in this process, expect exit code 2, and return what it said."""
    monkeypatch.setattr(sys, "argv", ["farworld", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    return capfd.readouterr().err


def wait_for_episodes(folder, count):
    deadline = time.monotonic() + 30
    while len(list(folder.glob("episodes/episode-*.tar"))) < count:
        assert time.monotonic() < deadline, "no episode was recorded"
        time.sleep(0.01)


def test_an_action_belongs_to_the_frame_before_it(tmp_path):
    """The tiny world shows its last action: frame t + 1 shows action t, and frame 0 none."""
    record(Recording(env_id=TINY, num_frames=30), tmp_path, episodes=1)
    episode = Dataset(tmp_path).episode(0)
    shown = episode.frames.astype(int).mean(axis=(1, 2, 3)) // 50
    assert shown[0] == 0
    np.testing.assert_array_equal(shown[1:], episode.actions + 1)  # its Discrete space starts at 1
    np.testing.assert_array_equal(episode.rewards, episode.actions + 1)
    assert set(episode.actions) == {0, 1, 2, 3}


def test_the_same_seed_gives_the_same_bytes_for_any_number_of_workers(tmp_path):
    """So a recording can be repeated from its command, on any machine."""
    recording = Recording(env_id=TINY, num_frames=20, seed=3)
    record(recording, tmp_path / "one", episodes=4)
    record(recording, tmp_path / "two", episodes=4, workers=2)
    record(Recording(env_id=TINY, num_frames=20, seed=4), tmp_path / "other", episodes=4)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert files_of(tmp_path / "one") != files_of(tmp_path / "other")


def test_a_second_recording_extends_the_first(tmp_path):
    """Two runs of two episodes are one run of four."""
    recording = Recording(env_id=TINY, num_frames=20)
    record(recording, tmp_path / "parts", episodes=2)
    record(recording, tmp_path / "parts", episodes=2)
    record(recording, tmp_path / "whole", episodes=4)
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.skipif(os.name != "posix", reason="kill -9 is of POSIX systems")
def test_a_killed_recording_is_continued(tmp_path, workers):
    """Finished episodes are intact, workers do not outlive their parent, and nothing is recorded twice."""
    folder = tmp_path / "killed"
    command = ("--env", "tiny_env:TinySlow-v0", "--frames", 30, "--out", folder, "--workers", workers)
    process = start_command("record", *command, "--episodes", 1000)
    wait_for_episodes(folder, 2)
    process.kill()
    try:
        process.communicate(timeout=10)  # the workers hold the other ends of these pipes
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    dataset = Dataset(folder)
    assert len(dataset) >= 2
    for i in range(len(dataset)):
        dataset.verify(i)
    recording = Recording(env_id="tiny_env:TinySlow-v0", num_frames=30)
    total = max(int(name[-6:]) for name in dataset.episodes) + 2
    record(recording, folder, episodes=total - len(dataset))
    record(recording, tmp_path / "whole", episodes=total)
    assert files_of(folder) == files_of(tmp_path / "whole")


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is sent as a POSIX signal")
def test_ctrl_c_keeps_finished_episodes_and_exits_130(tmp_path):
    """No traceback either."""
    process = start_command(
        "record",
        "--env",
        "tiny_env:TinySlow-v0",
        "--frames",
        20,
        "--episodes",
        1000,
        "--out",
        tmp_path / "data",
    )
    wait_for_episodes(tmp_path / "data", 1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in errors
    dataset = Dataset(tmp_path / "data")
    dataset.verify(0)
    assert not list((tmp_path / "data" / "episodes").glob(".*"))


def test_json_is_all_that_stdout_gets(tmp_path):
    """Engines and their libraries print; a program that reads our output must not see it."""
    process = start_command(
        *("record", "--env", "tiny_env:TinyChatty-v0", "--episodes", 2, "--frames", 10, "--workers", 2),
        *("--out", tmp_path / "data", "--seed", 5, "--json"),
    )
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert output.count("\n") == 1
    result = json.loads(output)
    assert result["episodes"] == 2
    assert result["frames"] == 20
    assert result["out"] == str(tmp_path / "data")
    assert result["seconds"] > 0
    assert "a chatty engine" in errors
    assert "a chatty library" in errors


def test_a_terminated_episode_ends_early(tmp_path):
    """Its last frame is the terminal one."""
    record(Recording(env_id="tiny_env:TinyShort-v0", num_frames=20), tmp_path, episodes=1)
    episode = Dataset(tmp_path).episode(0)
    assert len(episode.frames) == 8
    assert episode.terminated
    assert not episode.truncated


@pytest.mark.parametrize(
    ("env_id", "size", "shape"),
    [
        ("tiny_env:Tiny-v0", None, (32, 48)),
        ("tiny_env:TinyDict-v0", None, (32, 48)),
        ("tiny_env:TinyRender-v0", None, (64, 64)),  # 50 x 70 does not suit the autoencoder
        ("tiny_env:TinyRender-v0", 32, (32, 32)),
        ("farworld/Maze-v0", None, (64, 64)),
        ("farworld/Maze-v0", 32, (32, 32)),
        ("farworld/Voxel-v0", None, (128, 128)),
    ],
)
def test_pixels_are_found_wherever_they_are(tmp_path, env_id, size, shape):
    """In the observation, in a part of it, or only rendered; sizes as documented."""
    record(Recording(env_id=env_id, num_frames=12, size=size), tmp_path, episodes=1)
    dataset = Dataset(tmp_path)
    assert (dataset.spec.height, dataset.spec.width) == shape
    frames = dataset.frames(0)
    assert frames.shape == (12, *shape, 3)
    assert frames.std() > 1


def test_names_and_keys_of_a_foreign_environment():
    """Arrows where the names say so, no key for waiting, digits for the rest."""
    vocabulary = PixelEnv(Recording(env_id=TINY)).table.vocabulary
    assert vocabulary.names == ("NOOP", "FIRE", "UPLEFT", "open door")
    assert [action.keys for action in vocabulary.actions] == [(), ("space",), ("up", "left"), ("3",)]


def test_an_unknown_environment_gets_the_nearest_match(tmp_path, monkeypatch, capfd):
    """One line with the built-in worlds, and exit code 2."""
    message = complaint(monkeypatch, capfd, "record", "--env", "moze", "--episodes", 1, "--out", tmp_path / "data")
    assert message.count("\n") == 1
    assert "maze, voxel" in message
    assert "did you mean maze?" in message
    assert not (tmp_path / "data").exists()
    with pytest.raises(ValueError, match="did you mean CartPole-v1"):
        resolve_env_id("CartPol-v1")


def test_a_module_is_found_in_the_folder_of_now(tmp_path, monkeypatch):
    """The installed command does not have it on its path, as `python -m farworld` has."""
    (tmp_path / "module_of_mine.py").write_text("def make_env():\n    pass\n")
    (tmp_path / "module_half_written.py").write_text("def make_env(:\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    assert resolve_env_id("module_of_mine:make_env") == "module_of_mine:make_env"
    for name, reason in (("module_half_written", "SyntaxError"), (".relative", "relative import")):
        with pytest.raises(ImportError, match=f"{name} cannot be imported: .*{reason}"):
            resolve_env_id(f"{name}:make_env")


def test_a_missing_engine_names_its_command(monkeypatch):
    """The extra that installs it."""
    monkeypatch.setitem(sys.modules, "miniworld", None)
    with pytest.raises(ImportError, match=r'pip install "farworld\[miniworld\]"'):
        resolve_env_id("MiniWorld-Maze-v0")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--env-arg", "takes=text"), "expected actions of Discrete, MultiDiscrete, MultiBinary, Box"),
        (("--env", "tiny_env:TinyGrowing-v0", "--size", 32), "expected (32, 48, 3), got (33, 48, 3)"),
        (
            ("--env-arg", "gives=floats"),
            "uint8 (height, width, 3), the observation of environment tiny_env:Tiny-v0 gave float32 (32, 48, 3)",
        ),
        (("--env-arg", "gives=batch"), "gave uint8 (1, 32, 48, 3), a batch of frames"),
        (("--env-arg", "gives=channels_first"), "gave uint8 (3, 32, 48), channels first"),
        (("--env-arg", "gives=grey"), "gave uint8 (32, 48), grey without colours"),
        (("--env-arg", "gives=alpha"), "gave uint8 (32, 48, 4), with a fourth channel"),
        (("--env-arg", "gives=nothing"), "gave None"),
        (("--env-arg", "colour=red"), "cannot be made: TinyEnv.__init__() got an unexpected keyword argument 'colour'"),
        (("--env-arg", "takes"), "--env-arg expects name=value, such as level=3 or preset=dmlab, got 'takes'"),
        (("--obs-key", "screen"), "the observation has no parts, it is Box(0, 255, (32, 48, 3), uint8)"),
        (("--env", "tiny_env:TinyDict-v0", "--obs-key", "scren"), "--obs-key scren: the observation has map Box"),
        (
            ("--env", "tiny_env:TinyDict-v0", "--obs-key", "map"),
            "the observation's map of environment tiny_env:TinyDict-v0 gave float32 (2,)",
        ),
        (("--obs-key", "screen", "--render"), "two places for the pixels"),
        (("--policy", "tour"), "environment tiny_env:Tiny-v0 has no policy 'tour', it has random"),
        (("--policy", "random=0"), "--policy expects a name or name=weight with a weight above 0, got 'random=0'"),
        (("--policy", "random=1", "--policy", "random=2"), "--policy random is given twice"),
        (("--shard", "2/2"), "--shard expects K/N with K from 0 to N - 1, such as 0/4, got '2/2'"),
        (("--env", "tiny_env:nothing"), "tiny_env registers no such id and has no such callable"),
        (("--env", "tiny_env:weigh"), "cannot be made: weigh() missing 1 required positional argument"),
        (("--size", 40), "multiple of 16, got 40"),
        (("--frames", 1), "2 or more frames, got 1"),
        (("--episodes", 0), "1 or more and workers 0 or more, got 0 and 1"),
    ],
)
def test_what_cannot_be_recorded_is_said_in_one_line(tmp_path, monkeypatch, capfd, changes, message):
    """What was expected and what came."""
    defaults = ("--env", TINY, "--episodes", 1, "--out", tmp_path / "data")
    given = {*changes[::2]}
    kept = [part for pair in zip(defaults[::2], defaults[1::2], strict=True) if pair[0] not in given for part in pair]
    last = complaint(monkeypatch, capfd, "record", *kept, *changes).strip().splitlines()[-1]
    assert message in last


@pytest.mark.parametrize("name", ["PlainEnv", "NoRenderModeEnv"])
def test_observed_pixels_need_no_render_mode(tmp_path, name):
    """What is never called need not be accepted."""
    record(Recording(env_id=f"bare_envs:{name}", num_frames=5), tmp_path, episodes=1)
    assert Dataset(tmp_path).frames(0).shape == (5, 32, 32, 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "BlindEnv",
            "BlindEnv shows no pixels: its observations are Box(0.0, 1.0, (2,), float32) and it does not render",
        ),
        ("DemandingEnv", "cannot be made: DemandingEnv.__init__() missing 1 required positional argument: 'level'"),
        ("UnlicensedEnv", "environment bare_envs:UnlicensedEnv: no licence for this engine"),
        ("LateEnv", "environment bare_envs:LateEnv: pygame is not installed"),
        ("NoEnv", "NoEnv gave a NoEnv; expected an environment of Gymnasium, of the old gym"),
    ],
)
def test_an_environment_that_fails_is_one_line(tmp_path, monkeypatch, capfd, name, message):
    """Gymnasium has its own kinds of errors, which must not end in a traceback."""
    command = ("record", "--env", f"bare_envs:{name}", "--episodes", 1, "--out", tmp_path / "data")
    errors = complaint(monkeypatch, capfd, *command)
    assert message in errors.strip().splitlines()[-1]
    assert "Traceback" not in errors


def test_resizing_without_opencv_says_what_to_install(tmp_path, monkeypatch, capfd):
    """Its wheel needs libGL, so that it may be installed and yet not load."""
    monkeypatch.setitem(sys.modules, "cv2", None)
    command = ("record", "--env", "tiny_env:TinyRender-v0", "--episodes", 1, "--workers", 0, "--out", tmp_path / "data")
    line = complaint(monkeypatch, capfd, *command).strip().splitlines()[-1]
    assert "50x70" in line
    assert "pip install opencv-python" in line
    assert "libgl1" in line


@pytest.mark.parametrize("env_id", BUILT_IN.values())
def test_a_built_in_world_says_that_reset_comes_first(env_id):
    """Used directly, without the wrapper of gymnasium.make that would say so."""
    with gymnasium.make(env_id, render_mode="rgb_array") as env:
        for call in (lambda world: world.step(0), lambda world: world.render()):
            with pytest.raises(ValueError, match=r"before the first reset\(\); call reset\(\) first"):
                call(env.unwrapped)


def test_record_does_not_touch_a_dataset_of_another_world(tmp_path):
    """The difference is named."""
    record(Recording(env_id=TINY, num_frames=10), tmp_path, episodes=1)
    before = files_of(tmp_path)
    with pytest.raises(ValueError, match="env_id is 'tiny_env:Tiny-v0' there and 'tiny_env:TinyDict-v0' now"):
        record(Recording(env_id="tiny_env:TinyDict-v0", num_frames=10), tmp_path, episodes=1)
    assert files_of(tmp_path) == before


# Options


def test_arguments_of_an_environment_are_typed():
    """TOML and JSON, and text for the rest."""
    texts = [
        "a=3",
        "b=0.5",
        "c=true",
        "d=dmlab",
        "e=[1, 2]",
        'f="4"',
        "g=null",
        'h={"x": 1}',
        "i=x=y",
        "j={y=2}",
        "k=1_0",
    ]
    assert parse_env_args(texts) == {
        "a": 3, "b": 0.5, "c": True, "d": "dmlab", "e": [1, 2], "f": "4", "g": None, "h": {"x": 1}, "i": "x=y",
        "j": {"y": 2}, "k": 10,
    }  # fmt: skip
    with pytest.raises(ValueError, match="--env-arg a is given twice"):
        parse_env_args(["a=1", "a=2"])


def test_arguments_of_an_environment_reach_it_and_are_stored(tmp_path, capfd):
    """In the dataset as in the result."""
    arguments = ("--env-arg", "ends_after=4", "--env-arg", "shape=[48, 32]")
    run("--env", TINY, *arguments, "--episodes", 1, "--out", tmp_path / "data", "--json")
    result = json.loads(capfd.readouterr().out)
    assert (result["frames"], result["height"], result["width"]) == (5, 48, 32)
    assert Dataset(tmp_path / "data").spec.env_kwargs == {"ends_after": 4, "shape": [48, 32]} == result["env_kwargs"]


def test_pixels_come_from_where_they_are_said_to_be(tmp_path):
    """From the key that was named, or from render() although there is a picture in the observation."""
    with_key = Recording(env_id="tiny_env:TinyDict-v0", obs_key="screen", num_frames=4)
    record(with_key, tmp_path / "key", episodes=1)
    record(Recording(env_id="bare_envs:TwoFacedEnv", num_frames=4), tmp_path / "seen", episodes=1)
    record(Recording(env_id="bare_envs:TwoFacedEnv", num_frames=4, render=True), tmp_path / "drawn", episodes=1)
    assert Dataset(tmp_path / "key").spec.obs_key == "screen"
    assert (Dataset(tmp_path / "seen").frames(0) == 10).all() and (Dataset(tmp_path / "drawn").frames(0) == 20).all()


def test_of_several_pictures_the_likeliest_is_taken(tmp_path):
    """VizDoom's automap comes before its screen, and is as large."""
    record(Recording(env_id="bare_envs:AtlasEnv", num_frames=3), tmp_path / "likely", episodes=1)
    record(Recording(env_id="bare_envs:AtlasEnv", num_frames=3, obs_key="deep/maps/1"), tmp_path / "named", episodes=1)
    assert Dataset(tmp_path / "likely").spec.obs_key == "screen"
    assert (Dataset(tmp_path / "likely").frames(0) == 7).all() and (Dataset(tmp_path / "named").frames(0) == 9).all()


def test_a_frame_that_is_no_square_loses_its_edges_or_its_proportions(tmp_path):
    """Cropped unless told to stretch: a green band at each side of a wide frame is cut off, or squeezed in."""
    for fit in ("crop", "stretch"):
        command = ("--env", "bare_envs:WideEnv", "--size", "32", "--fit", fit, "--frames", "3")
        run(*command, "--episodes", "1", "--out", tmp_path / fit)
    cropped, stretched = (Dataset(tmp_path / fit).frames(0)[0] for fit in ("crop", "stretch"))
    assert cropped.shape == stretched.shape == (32, 32, 3)
    assert (cropped == [255, 0, 0]).all()
    assert (stretched[:, 0] == [0, 255, 0]).all() and (stretched[:, -1] == [0, 255, 0]).all()
    assert (stretched[:, 16] == [255, 0, 0]).all()


@pytest.mark.parametrize("takes", ["discrete", "multidiscrete", "multibinary", "box", "dict", "nested"])
def test_the_environments_own_action_is_stored_with_every_index(tmp_path, takes):
    """Index to action to environment to disk; the reward tells what the environment was given."""
    recording = Recording(env_id=TINY, env_args={"takes": takes}, num_frames=150)
    record(recording, tmp_path, episodes=1)
    dataset = Dataset(tmp_path)
    episode, space = dataset.episode(0), describe_space(SPACES[takes])
    assert dataset.spec.action_space == space
    names = dataset.spec.action_vocabulary.names
    assert {names[action] for action in episode.actions} == {*names}  # idling and every key is in the data
    if takes == "discrete":
        assert not episode.env_actions
        return
    given = [unstack_action(space, episode.env_actions, step) for step in range(len(episode.actions))]
    assert [weigh(action) for action in given] == episode.rewards.tolist()
    assert len({weigh(action) for action in given}) == len(names) > 3


def test_every_episode_says_which_policy_played_it(tmp_path):
    """Drawn by the weights from the seed and the episode's number, so that any part of a recording can be repeated."""
    run("--env", "maze", "--policy", "explore=0.5", "--policy", "random=0.5", "--episodes", "12", "--frames", "4",
        "--size", "16", "--out", tmp_path / "all")  # fmt: skip
    dataset = Dataset(tmp_path / "all")
    policies = [dataset.episode(i).policy for i in range(12)]
    assert {*policies} == {"explore", "random"}
    assert dataset.spec.policy == "explore=0.5,random=0.5"
    recording = Recording(env_id=BUILT_IN["maze"], policy="explore=0.5,random=0.5", num_frames=4, size=16)
    record(recording, tmp_path / "odd", episodes=3, shard=(1, 4))
    odd = Dataset(tmp_path / "odd")
    assert [odd.episode(i).policy for i in range(3)] == policies[1::4]


def test_shards_are_parts_of_one_recording(tmp_path):
    """Two machines into one folder, each with numbers of its own."""
    for part in ("0/2", "1/2"):
        run("--env", TINY, "--episodes", "2", "--frames", "5", "--shard", part, "--out", tmp_path / "parts")
    record(Recording(env_id=TINY, num_frames=5), tmp_path / "whole", episodes=4)
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")


def run(*arguments):
    """Run `farworld record` in this process."""
    app(["record", *map(str, arguments)], exit_on_error=False, result_action="return_value")


# Crashes


def crashing(how, **kwargs):
    return Recording(env_id=TINY, env_args={"crash": how, **kwargs}, num_frames=8)


@pytest.mark.parametrize(("how", "workers"), [("raise", 0), ("raise", 1), ("exit", 1), ("abort", 2)])
def test_a_crash_costs_an_episode_and_not_the_run(tmp_path, how, workers):
    """An environment that raises, or takes its process with it, is made anew; what it lost is played again."""
    once = crashing(how, crash_file=str(tmp_path / "crashed"))
    result = record(once, tmp_path / "data", episodes=3, workers=workers)
    assert (result.episodes, result.frames, result.crashes, result.killed) == (3, 24, 1, 0)
    record(once, tmp_path / "calm", episodes=3)
    assert files_of(tmp_path / "data") == files_of(tmp_path / "calm")
    for i in range(3):
        Dataset(tmp_path / "data").verify(i)


def test_seeds_that_crash_are_left_for_others(tmp_path):
    """A place in the world that always breaks the engine; the numbers stay contiguous, and the bytes the same."""
    result = record(crashing("raise", crash_every=3), tmp_path / "data", episodes=9)
    dataset = Dataset(tmp_path / "data")
    assert dataset.episodes == [f"episode-{index:06d}" for index in range(9)]
    assert result.crashes >= 2 and result.frames == 72
    record(crashing("raise", crash_every=3), tmp_path / "again", episodes=9, workers=2)
    assert files_of(tmp_path / "data") == files_of(tmp_path / "again")


def test_an_environment_that_always_crashes_is_given_up(tmp_path, monkeypatch, capfd):
    """After some crashes in a row, with the last one's reason; in one line."""
    command = ("record", "--env", TINY, "--env-arg", "crash=raise", "--episodes", 2, "--out", tmp_path / "data")
    last = complaint(monkeypatch, capfd, *command).strip().splitlines()[-1]
    assert f"gave up after {MAX_CRASHES} crashes in a row without an episode" in last
    assert "environment tiny_env:Tiny-v0 raised RuntimeError: the engine broke down (tiny_env.py:" in last
    with pytest.raises(EnvironmentCrash, match="the process of environment tiny_env:Tiny-v0 ended with exit code 7"):
        record(crashing("exit"), tmp_path / "other", episodes=1, workers=1)


def test_the_count_of_crashes_is_reported(tmp_path, capfd):
    arguments = ("--env", TINY, "--env-arg", "crash=raise", "--episodes", 2, "--frames", 8, "--env-arg")
    run(*arguments, f"crash_file={tmp_path / 'one'}", "--out", tmp_path / "a")
    assert "1 crash of the environment: the episodes were dropped and played again" in capfd.readouterr().out
    run(*arguments, f"crash_file={tmp_path / 'two'}", "--out", tmp_path / "b", "--json")
    assert json.loads(capfd.readouterr().out)["crashes"] == 1


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="worker processes are found in /proc")
def test_workers_killed_at_random_change_nothing(tmp_path):
    """Kill -9 of four workers again and again: the same bytes as undisturbed, nothing else in the folder."""
    command = ("--env", "tiny_env:TinySlow-v0", "--frames", 30, "--episodes", 24, "--workers", 4)
    process = start_command("record", *command, "--out", tmp_path / "data", "--json")
    rng = np.random.default_rng(0)
    kills = 0
    try:
        wait_for_episodes(tmp_path / "data", 1)
        while process.poll() is None:
            workers = workers_of(process.pid)
            if workers and kills < 12:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(rng.choice(workers)), signal.SIGKILL)
                    kills += 1
            time.sleep(0.1)
        output, errors = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 0, errors
    result = json.loads(output)
    assert result["episodes"] == 24 and 1 <= result["killed"] <= kills and result["crashes"] == 0
    dataset = Dataset(tmp_path / "data")
    assert sum(dataset.num_frames(i) for i in range(len(dataset))) == result["frames"] == 720
    for i in range(len(dataset)):
        dataset.verify(i)
    record(Recording(env_id="tiny_env:TinySlow-v0", num_frames=30), tmp_path / "calm", episodes=24)
    assert files_of(tmp_path / "data") == files_of(tmp_path / "calm")


def test_an_episode_written_just_before_the_kill_is_not_written_twice(tmp_path):
    """The worker was killed before it could say so: the one that plays it again finds it there, and that is that."""
    recording = Recording(env_id=TINY, num_frames=6)
    record(recording, tmp_path, episodes=1)
    before = files_of(tmp_path)
    task = _Task(spec=Dataset(tmp_path).spec, directory=tmp_path, index=0)
    with pytest.raises(FileExistsError, match="never overwritten"):
        _Session(recording)(task)
    assert _Session(recording)(replace(task, is_retry=True)) == 6
    assert files_of(tmp_path) == before


def test_what_a_killed_worker_had_half_written_is_removed(tmp_path):
    """And nothing else."""
    record(Recording(env_id=TINY, num_frames=6), tmp_path, episodes=1)
    half, other = (tmp_path / "episodes" / f".episode-{name}.tar.0123.tmp" for name in ("000001", "000002"))
    half.touch(), other.touch()
    tally = _Tally(TINY)
    task = _Task(spec=Dataset(tmp_path).spec, directory=tmp_path, index=1)
    assert tally.retry(Outcome(task, exit_code=-signal.SIGKILL)) == replace(task, is_retry=True)
    assert (half.exists(), other.exists(), tally.killed, tally.crashes) == (False, True, 1, 0)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="processes are found in /proc")
def test_what_a_worker_started_dies_with_it(tmp_path):
    """An engine is often a process of its own, which must not play on for nobody: nor if the command is killed."""
    children = tmp_path / "children"
    process = start_command(
        *("record", "--env", "tiny_env:TinySlow-v0", "--env-arg", f"child_file={children}", "--frames", 30),
        *("--episodes", 1000, "--out", tmp_path / "data"),
    )
    try:
        wait_for_episodes(tmp_path / "data", 1)
        [first] = children.read_text().split()
        [worker] = workers_of(process.pid)
        os.kill(worker, signal.SIGKILL)
        wait_for_episodes(tmp_path / "data", 1 + len(list((tmp_path / "data" / "episodes").glob("*.tar"))))
        wait_until_gone(first)
        _, second = children.read_text().split()
        process.kill()
        wait_until_gone(second)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=10)


def wait_until_gone(pid):
    def is_there():
        with contextlib.suppress(OSError):
            return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return False

    deadline = time.monotonic() + 20
    while is_there():
        assert time.monotonic() < deadline, "an engine outlived its worker"
        time.sleep(0.05)


def workers_of(parent):
    """The processes of the command that play."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                if b"spawn_main" in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
    return found


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_stops_the_run_with_what_is_written_intact(tmp_path, workers):
    """The limit stands for the disk: what is refused in the middle of a file leaves no trace of it."""
    record(Recording(env_id=TINY, num_frames=4), tmp_path / "data", episodes=2)
    before = files_of(tmp_path / "data")
    script = 'ulimit -f 20; exec "$0" "$@"'  # in blocks of 512 or 1024 bytes
    command = [sys.executable, "-m", "farworld", "record", "--env", TINY, "--frames", "60", "--episodes", "3"]
    result = subprocess.run(
        ["sh", "-c", script, *command, "--workers", str(workers), "--out", str(tmp_path / "data")],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 2
    assert "File too large" in result.stderr.strip().splitlines()[-1]
    assert files_of(tmp_path / "data") == before


# Adapters


def test_an_old_gym_environment_is_recorded_by_the_function_that_makes_it(tmp_path):
    """Four values a step, its seed given when it is made, its end a cut; the same bytes twice."""
    for name in ("one", "two"):
        record(Recording(env_id="tiny_env:make_old_gym", num_frames=30), tmp_path / name, episodes=2)
    dataset = Dataset(tmp_path / "one")
    assert dataset.spec.frames_per_second == 12
    assert [dataset.num_frames(i) for i in range(2)] == [11, 11]
    assert dataset.episode(0).truncated and not dataset.episode(0).terminated
    assert not np.array_equal(dataset.frames(0), dataset.frames(1))
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_help_names_every_option_that_the_tests_use():
    """And the other way round: an option is used by a test, or it is not there."""
    process = start_command("record", "--help")
    text, _ = process.communicate(timeout=30)
    options = {*re.findall(r"--[a-z-]+", text)} - {"--help", "--version"}
    used = {*re.findall(r'"(--[a-z-]+)"', Path(__file__).read_text())}
    assert options <= used, options - used
    assert {"--env-arg", "--obs-key", "--render", "--size", "--actions", "--policy", "--shard", "--fit"} <= options
