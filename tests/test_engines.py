"""Real engines through the same command: the real thing where it is installed, else its documented interface."""

import os
import signal
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import stand_ins

from farworld.dataset import Dataset
from farworld.envs.engines import ENGINES
from farworld.envs.environments import EnvironmentCrash, EnvSettings, PixelEnv, resolve_env_id
from farworld.envs.player import open_env_player
from farworld.envs.recorder import Recording, record


def resolve_or_skip(name):
    """The id of an engine's environment; the test is skipped, with the reason, where it is not installed."""
    try:
        return resolve_env_id(name)
    except ImportError as error:
        pytest.skip(str(error))


def record_engine(name, folder, *, episodes=1, **settings):
    recording = Recording(env_id=resolve_or_skip(name), **settings)
    record(recording, folder, episodes=episodes, workers=1)
    dataset = Dataset(folder)
    for i in range(len(dataset)):
        dataset.verify(i)
    return dataset


def difference(first, second):
    return np.abs(first.astype(int) - second).mean()


# Id, frames, are two recordings equal to the bit, and some actions with their keys.
ENGINES_HERE = [
    ("VizdoomMyWayHome-v1", 40, True, {"noop": (), "move_forward": ("up",), "move_left": ("a",)}),
    ("VizdoomDeathmatch-MultiBinary-v1", 40, True, {"move_forward+turn_left": ("up", "left"), "look_up_delta": ("w",)}),
    ("VizdoomFreedoom1E1M1-S1-v0", 40, True, {"use": ("e",), "attack": ("f",), "speed": ("left shift",)}),
    ("doom", 40, True, {"noop": (), "forward_left": ("up", "left"), "strafe_left": ("a",), "shoot": ("space",)}),
    ("MiniWorld-FourRooms-v0", 40, True, {"turn_right": ("right",), "move_forward": ("up",)}),
    ("MiniWorld-PickupObjects-v0", 40, True, {"pickup": ("e",), "move_back": ("down",)}),
    ("memory-maze", 8, True, {"noop": (), "forward_left": ("up", "left")}),
    ("crafter", 40, False, {"noop": (), "move_up": ("up",), "sleep": ("6",)}),
    ("ALE/Seaquest-v5", 40, True, {"NOOP": (), "UPRIGHTFIRE": ("up", "right", "space")}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "num_frames", "is_exact", "keys"), ENGINES_HERE, ids=[row[0] for row in ENGINES_HERE])
def test_an_engine_is_recorded(tmp_path, name, num_frames, is_exact, keys):
    """Frames that move, keys by the engine's names, its version, and the same bytes again where it is exact."""
    dataset = record_engine(name, tmp_path / "one", num_frames=num_frames, size=64)
    frames = dataset.frames(0)
    assert frames.shape == (num_frames, 64, 64, 3)
    assert frames.std() > 5 and frames.any(axis=(1, 2, 3)).all()
    assert np.abs(np.diff(frames.astype(int), axis=0)).mean(axis=(1, 2, 3)).max() > 0.5
    found = {action.name: action.keys for action in dataset.spec.action_vocabulary.actions}
    assert {name: found.get(name) for name in keys} == keys
    assert dataset.spec.env_version and dataset.spec.frames_per_second > 1
    assert dataset.spec.action_space and dataset.episode(0).policy == ("explore" if name == "doom" else "random")
    if is_exact:
        again = record_engine(name, tmp_path / "two", num_frames=num_frames, size=64)
        assert again.path(0).read_bytes() == dataset.path(0).read_bytes()


@pytest.mark.parametrize("name", ["VizdoomMyWayHome-v1", "MiniWorld-Maze-v0", "ALE/Pong-v5", "crafter"])
def test_an_engine_draws_the_size_that_is_asked_for(tmp_path, name):
    """Also one that is larger than it draws by itself."""
    dataset = record_engine(name, tmp_path, num_frames=3, size=128)
    assert dataset.frames(0).shape == (3, 128, 128, 3)
    sharpness = [np.abs(np.diff(dataset.frames(0)[-1].astype(int), axis=axis)).mean() for axis in (0, 1)]
    assert min(sharpness) > 0.3


def test_vizdoom_ends_with_a_picture_and_keeps_the_last_reward(tmp_path, monkeypatch):
    """After the last action there is no picture, and the observation is zeros; the time limit is a cut.

    Nor does the game leave its settings in the folder where the command runs.
    """
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    settings = {"num_frames": 100, "env_args": {"episode_timeout": 30}}
    dataset = record_engine("VizdoomBasic-v1", tmp_path / "data", **settings)
    episode = dataset.episode(0)
    assert episode.frames[-1].any() and len(episode.frames) == 30
    assert episode.truncated and not episode.terminated
    assert episode.rewards[-1] <= -2  # a living step costs 1, and two of them are in it
    assert not any(Path.cwd().iterdir())


def test_the_automap_of_vizdoom_is_another_picture(tmp_path):
    """Off unless it is asked for; the screen is found beside it."""
    settings = {"num_frames": 4, "env_args": {"automap_buffer_enabled": True}}
    screen = record_engine("VizdoomMyWayHome-v1", tmp_path / "screen", **settings)
    automap = record_engine("VizdoomMyWayHome-v1", tmp_path / "map", obs_key="automap", **settings)
    assert (screen.spec.obs_key, automap.spec.obs_key) == ("screen", "automap")
    assert not np.array_equal(screen.frames(0), automap.frames(0))


def test_the_pace_of_a_game_that_skips_frames_is_divided():
    """What the player's window and a video are shown at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir("/")
        env = PixelEnv(EnvSettings(env_id=resolve_or_skip("VizdoomBasic-v1"), env_args={"frame_skip": 5}))
        env.close()
    assert env.spec.frames_per_second == 7


@pytest.fixture
def doom():
    """The house of Doom at the start of an episode, by its action names."""
    env = PixelEnv(EnvSettings(env_id=resolve_or_skip("doom"), size=64))
    first = env.reset(3)
    index = {name: i for i, name in enumerate(env.table.vocabulary.names)}
    yield first, lambda name, times=1: [env.step(index[name])[0] for _ in range(times)]
    env.close()


def test_what_is_shot_in_doom_stays_shot_and_an_idle_player_sees_nothing_move(doom):
    """The pistol is drawn already when the episode begins; a hole is there after a look aside."""
    first, act = doom
    assert all(np.array_equal(first, frame) for frame in act("noop", 3))
    flashes = act("shoot", 6)
    assert max(difference(first, frame) for frame in flashes) > 3
    shot = act("noop", 8)[-1]
    holes = np.abs(shot.astype(int) - first).max(axis=2) > 20
    assert 1 <= holes.sum() < 100
    act("turn_left", 6), act("noop", 2), act("turn_right", 6)
    assert np.array_equal(act("noop", 2)[-1], shot)


def count_returns(frames):
    """How many frames show, to the bit, what was seen some steps ago and not all the time since."""
    flat = frames.reshape(len(frames), -1)
    last = {t: np.flatnonzero((flat[: t - 6] == flat[t]).all(axis=1)) for t in range(7, len(flat))}
    return sum(len(seen) > 0 and not (flat[seen[-1] : t] == flat[t]).all() for t, seen in last.items())


def test_the_policies_of_doom_press_every_key_and_walk_through_the_house(tmp_path):
    """Data that lack a key teach nothing of it."""
    settings = {"num_frames": 300, "size": 64}
    explored = record_engine("doom", tmp_path / "explore", episodes=4, policy="explore", **settings)
    actions = np.concatenate([explored.actions(i) for i in range(4)])
    shares = np.bincount(actions, minlength=10) / len(actions)
    assert shares.min() > 0.01 and shares[1] < 0.5
    pictures = np.stack([explored.frames(i)[-1] for i in range(4)]).astype(int)
    assert min(difference(a, b) for k, a in enumerate(pictures) for b in pictures[:k]) > 5
    revisited = record_engine("doom", tmp_path / "revisit", episodes=4, policy="revisit", **settings)
    assert sum(count_returns(revisited.frames(i)) for i in range(4)) > 4
    with pytest.raises(ValueError, match="policies of Doom are explore, revisit"):
        env = PixelEnv(EnvSettings(env_id="farworld/Doom-v0"))
        try:
            env.env.unwrapped.policy("tour", np.random.default_rng(0))
        finally:
            env.close()


@pytest.mark.parametrize("name", ["MemoryMaze-9x9-v0", "memory_maze.tasks:memory_maze_9x9"])
def test_memory_maze_is_found_as_an_id_of_the_old_gym_and_as_a_dm_env_task(name):
    """Neither needs an adapter of its own; a picture is found in either's observation."""
    env = PixelEnv(EnvSettings(env_id=resolve_or_skip(name), env_args={"image_only_obs": True}))
    env.close()
    assert (env.spec.height, env.spec.width) == (64, 64) and len(env.spec.action_vocabulary) == 6


@pytest.mark.parametrize("name", ["VizdoomDeathmatch-MultiBinary-v1", "MiniWorld-FourRooms-v0"])
def test_an_engine_is_played_under_the_keys(tmp_path, name):
    """The same keys as in the built-in worlds; what is played is recorded."""
    resolve_or_skip(name)
    with open_env_player(name, record_to=tmp_path) as player:
        for _ in range(12):
            player.keys.hold(["left"])
            player.tick()
    dataset = Dataset(tmp_path)
    assert {player.vocabulary.names[action] for action in dataset.actions(0)} == {"turn_left"}
    assert difference(*dataset.frames(0)[[0, -1]]) > 2


# Luanti


@pytest.fixture(scope="module")
def luanti():
    """One game for all tests of it, since it takes seconds to start."""
    env = PixelEnv(EnvSettings(env_id=resolve_or_skip("luanti")))
    yield env
    env.close()


def test_a_key_in_luanti_changes_the_next_frame(luanti):
    """It turns, and turns back to nearly the same picture; walking changes it as well, idling hardly."""
    names = luanti.table.vocabulary
    start = luanti.reset(5)
    idle = luanti.step(names.index("noop"))[0]
    left = luanti.step(names.index("turn_left"))[0]
    back = luanti.step(names.index("turn_right"))[0]
    still = difference(start, idle)
    assert difference(idle, left) > 3 * still + 2
    assert difference(idle, back) < difference(idle, left) / 2
    for _ in range(5):
        walked = luanti.step(names.index("forward"))[0]
    assert difference(back, walked) > still


def test_a_seed_of_luanti_is_another_place(luanti):
    """And nothing of the game's own is drawn over it."""
    frames = [luanti.reset(seed) for seed in (1, 2)]
    assert difference(*frames) > 5
    assert luanti.spec.env_version[0].isdigit()


def test_luanti_that_dies_is_a_crash_and_starts_again(tmp_path):
    """The recorder drops the episode; whoever plays is told the game's last words."""
    env = PixelEnv(EnvSettings(env_id=resolve_or_skip("luanti"), env_args={"frames_per_second": 20}))
    try:
        os.kill(env.env.unwrapped._client.pid, signal.SIGKILL)
        env.env.unwrapped._client.wait()
        with pytest.raises(EnvironmentCrash, match="Luanti ended with exit code -9"):
            env.step(0)
        folder = env.env.unwrapped._world.parent
    finally:
        env.close()
    assert not folder.exists()


# Engines that can't be installed here, as documented


@pytest.fixture
def install(monkeypatch):
    """Put a stand-in where an engine's module would be."""

    def add(name, **content):
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(**content))

    return add


def record_stand_in(name, folder, **settings):
    record(Recording(env_id=resolve_env_id(name), **settings), folder, episodes=1)
    return Dataset(folder)


def test_dmlab_takes_seven_integers_and_ends_with_its_last_picture(tmp_path, install):
    install("deepmind_lab", Lab=stand_ins.Lab)
    dataset = record_stand_in("dmlab", tmp_path, num_frames=50, size=96, env_args={"level": "seekavoid_arena_01"})
    episode = dataset.episode(0)
    assert episode.frames.shape == (12, 96, 96, 3) and episode.terminated
    assert dataset.spec.frames_per_second == 7.5 and dataset.spec.obs_key == "RGB_INTERLEAVED"
    given = episode.env_actions["action"]
    assert given.shape == (11, 7)
    rewards = given @ [1, 10, 100, 1000, 10_000, 100_000, 1_000_000]
    assert rewards[:-1].tolist() == episode.rewards[:-1].tolist()
    assert episode.rewards[-1] - rewards[-1] > 8_000_000  # the prize of the action that led to no picture
    table = {action.name: action.keys for action in dataset.spec.action_vocabulary.actions}
    assert table["forward_left"] == ("up", "left") and table["strafe_left"] == ("a",) and table["noop"] == ()


def test_dmlab_takes_a_vocabulary_file_with_the_names_of_its_integers(tmp_path, install):
    install("deepmind_lab", Lab=stand_ins.Lab)
    path = tmp_path / "keys.toml"
    path.write_text(
        "[[actions]]\nname = 'spin'\nkeys = ['x']\naction = { LOOK_LEFT_RIGHT = -60, MOVE_BACK_FORWARD = 1 }\n"
    )
    dataset = record_stand_in("dmlab", tmp_path / "data", num_frames=4, actions=path)
    assert dataset.episode(0).env_actions["action"].tolist() == [[-60, 0, 0, 1, 0, 0, 0]] * 3


@pytest.mark.parametrize(("name", "length"), [("MineRLObtainDiamond-v0", 21), ("minerl:MineRLBasaltFindCave-v0", 120)])
def test_minerl_takes_buttons_a_camera_and_words(tmp_path, install, name, length):
    """Its ids are the old gym's; pictures of 640x360 lose their sides; the step limit of the id is a cut."""
    install("gym", **vars(stand_ins.old_gym_module()))
    install("minerl")
    dataset = record_stand_in(name, tmp_path, num_frames=120)
    episode = dataset.episode(0)
    assert episode.frames.shape == (length, 64, 64, 3) and episode.truncated and not episode.terminated
    given = episode.env_actions
    assert given["camera"].shape == (length - 1, 2) and {*np.abs(given["camera"]).ravel()} <= {0, 10}
    rewards = 1000 * given["place"] + given["forward"] + given["camera"][:, 1]
    assert rewards.tolist() == episode.rewards.tolist()
    keys = {action.name: action.keys for action in dataset.spec.action_vocabulary.actions}
    assert keys["forward+sprint"] == ("up", "left shift") and keys["turn_left"] == ("left",) and keys["left"] == ("a",)


@pytest.mark.parametrize("actions", ["V1_MINEDOJO", "V2_MINERL_HUMAN"])
def test_craftground_takes_eight_integers_or_buttons_and_a_camera(tmp_path, install, actions):
    """Whose idle camera is 12, and who observes more than can be described."""
    install(
        "craftground",
        make=stand_ins.craftground_make,
        ActionSpaceVersion=stand_ins.ActionSpaceVersion,
        InitialEnvironmentConfig=stand_ins.InitialEnvironmentConfig,
    )
    settings = {"num_frames": 400, "env_args": {"actions": actions, "render_distance": 4}}
    dataset = record_stand_in("craftground", tmp_path, **settings)
    names, episode = dataset.spec.action_vocabulary.names, dataset.episode(0)
    turned = dict(zip(episode.actions.tolist(), episode.rewards.tolist(), strict=True))
    degrees = {name: turned[names.index(name)] for name in ("noop", "forward", "turn_left", "forward+turn_right")}
    step = 15 if actions == "V1_MINEDOJO" else 10
    assert degrees == {"noop": 0, "forward": 0, "turn_left": -step, "forward+turn_right": step}
    assert {*episode.actions.tolist()} == {*range(len(names))}


@pytest.mark.parametrize("timeout", [False, True])
def test_a_dm_env_task_ends_or_is_cut(tmp_path, timeout):
    """By its discount; seeded by making it anew, since dm_env has no other way."""
    settings = {"num_frames": 50, "env_args": {"timeout": timeout}}
    dataset = record_stand_in("stand_ins:Task", tmp_path / "one", **settings)
    episode = dataset.episode(0)
    assert len(episode.frames) == 11 and (episode.terminated, episode.truncated) == (not timeout, timeout)
    assert dataset.spec.obs_key == "pixels"
    assert (episode.env_actions["action"] @ [1, 10]).tolist() == episode.rewards.tolist()
    again = record_stand_in("stand_ins:Task", tmp_path / "two", **settings)
    assert again.path(0).read_bytes() == dataset.path(0).read_bytes()
    assert not np.array_equal(
        episode.frames[0], record_stand_in("stand_ins:Task", tmp_path / "three", seed=1).frames(0)[0]
    )


def test_a_missing_engine_says_how_to_get_it(monkeypatch):
    """The extra where one installs it, which exists, and else its own way."""
    extras = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text()
    for engine in ENGINES:
        assert not engine.extra or f"\n{engine.extra} = [" in extras
        if engine.module.startswith("farworld"):
            continue
        monkeypatch.setattr(type(engine), "prepare", lambda self: None, raising=False)
        monkeypatch.setitem(sys.modules, engine.module, None)
        advice = rf'pip install "farworld\[{engine.extra}\]"' if engine.extra else engine.advice[:15]
        with pytest.raises(ImportError, match=f"needs the Python module {engine.module}; {advice}"):
            engine.load("it")


def test_missing_programs_of_luanti_are_named(monkeypatch):
    """With the command that installs them."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("farworld.envs.engines.luanti._game", lambda: None)
    with pytest.raises(ImportError, match="Luanti needs the program luanti or minetest, Xvfb, xdotool; .*apt install"):
        resolve_env_id("luanti")
