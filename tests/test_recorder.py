"""`farworld record`: any discrete environment, reproducible, extendable, safe against being killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from farworld.cli import main
from farworld.dataset import Dataset
from farworld.envs.recorder import BUILT_IN, Recording, action_vocabulary, make_env, record, resolve_env_id

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
    env = make_env(Recording(env_id=TINY))
    vocabulary = action_vocabulary(env)
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


def test_a_missing_engine_names_its_command(monkeypatch):
    """The extra that installs it."""
    monkeypatch.setitem(sys.modules, "miniworld", None)
    with pytest.raises(ImportError, match=r'pip install "farworld\[miniworld\]"'):
        resolve_env_id("MiniWorld-Maze-v0")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--env", "tiny_env:TinyContinuous-v0"), "Box(-1.0, 1.0, (2,), float32); recording needs Discrete"),
        (("--env", "tiny_env:TinyGrowing-v0", "--size", 32), "expected (32, 48, 3), got (33, 48, 3)"),
        (("--size", 40), "multiple of 16, got 40"),
        (("--frames", 1), "2 or more frames, got 1"),
        (("--episodes", 0), "1 or more, got 0"),
    ],
)
def test_what_cannot_be_recorded_is_said_in_one_line(tmp_path, monkeypatch, capfd, changes, message):
    """What was expected and what came."""
    defaults = ("--env", TINY, "--episodes", 1, "--out", tmp_path / "data")
    given = {*changes[::2]}
    kept = [part for pair in zip(defaults[::2], defaults[1::2], strict=True) if pair[0] not in given for part in pair]
    last = complaint(monkeypatch, capfd, "record", *kept, *changes).strip().splitlines()[-1]
    assert message in last


class PlainEnv(gymnasium.Env):
    """As many write their first environment: without render_mode, or even without __init__."""

    action_space = Discrete(2)
    observation_space = Box(0, 255, (32, 32, 3), np.uint8)

    def reset(self, *, seed=None, options=None):
        """A noisy frame."""
        super().reset(seed=seed)
        return self.observation_space.low + self.np_random.integers(0, 255, (32, 32, 3), np.uint8), {}

    def step(self, action):
        """Another noisy frame."""
        return self.np_random.integers(0, 255, (32, 32, 3), np.uint8), 0.0, False, False, {}


class NoRenderModeEnv(PlainEnv):
    """Its __init__ takes nothing."""

    def __init__(self):
        self.ready = True


class BlindEnv(NoRenderModeEnv):
    """No picture anywhere."""

    observation_space = Box(0, 1, (2,))


class DemandingEnv(PlainEnv):
    """Cannot be made from the command line."""

    def __init__(self, level, render_mode=None):
        self.level = level


class UnlicensedEnv(PlainEnv):
    """Fails as Gymnasium's environments do."""

    def __init__(self, render_mode=None):
        raise gymnasium.error.Error("no licence for this engine")


class LateEnv(PlainEnv):
    """Misses its renderer only when it draws, as the classic control environments do."""

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def step(self, action):
        """Never gets there."""
        raise gymnasium.error.DependencyNotInstalled("pygame is not installed")


@pytest.fixture
def register():
    """Register an environment class for one test; returns its id."""
    ids = []

    def add(entry_point):
        ids.append(f"{entry_point.__name__}-v0")
        gymnasium.register(id=ids[-1], entry_point=entry_point)
        return ids[-1]

    yield add
    for env_id in ids:
        del gymnasium.registry[env_id]


@pytest.mark.parametrize("entry_point", [PlainEnv, NoRenderModeEnv])
def test_observed_pixels_need_no_render_mode(tmp_path, register, entry_point):
    """What is never called need not be accepted."""
    record(Recording(env_id=register(entry_point), num_frames=5), tmp_path, episodes=1)
    assert Dataset(tmp_path).frames(0).shape == (5, 32, 32, 3)


@pytest.mark.parametrize(
    ("entry_point", "message"),
    [
        (BlindEnv, "takes no render_mode and its observations are Box(0.0, 1.0, (2,), float32)"),
        (DemandingEnv, "cannot be made: DemandingEnv.__init__() missing 1 required positional argument: 'level'"),
        (UnlicensedEnv, "environment UnlicensedEnv-v0: no licence for this engine"),
        (LateEnv, "environment LateEnv-v0: pygame is not installed"),
    ],
)
def test_an_environment_that_fails_is_one_line(tmp_path, monkeypatch, capfd, register, entry_point, message):
    """Gymnasium has its own kinds of errors, which must not end in a traceback."""
    command = ("record", "--env", register(entry_point), "--episodes", 1, "--out", tmp_path / "data")
    errors = complaint(monkeypatch, capfd, *command)
    assert message in errors.strip().splitlines()[-1]
    assert "Traceback" not in errors


def test_resizing_without_opencv_says_what_to_install(tmp_path, monkeypatch, capfd):
    """Its wheel needs libGL, so that it may be installed and yet not load."""
    monkeypatch.setitem(sys.modules, "cv2", None)
    command = ("record", "--env", "tiny_env:TinyRender-v0", "--episodes", 1, "--out", tmp_path / "data")
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
