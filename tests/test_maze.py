import hashlib
import subprocess
import sys
from importlib.resources import files

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from farworld.envs.maze import BODY_RADIUS, STEP_CELLS, TURNS_PER_CIRCLE, MazeEnv, _carve_maze, _load_textures
from farworld.video import decode_png, write_png

NUM_ACTIONS = 7
FORWARD_ACTIONS = (1, 5, 6)


@pytest.fixture
def env():
    env = MazeEnv()
    env.reset(seed=3)
    return env


def walk(seed, num_frames):
    """The frames and actions of an exploration."""
    env = MazeEnv()
    frames = [env.reset(seed=seed)[0]]
    policy = env.explorer(np.random.default_rng(seed))
    actions = []
    for _ in range(num_frames - 1):
        actions.append(policy())
        frames.append(env.step(actions[-1])[0])
    return np.stack(frames), actions


def test_maze_keeps_the_gymnasium_contract():
    check_env(MazeEnv(render_mode="rgb_array"))


def test_same_seed_and_actions_give_the_same_frames():
    first, first_actions = walk(11, 60)
    second, second_actions = walk(11, 60)
    assert first_actions == second_actions
    np.testing.assert_array_equal(first, second)


def test_another_process_draws_the_same_frames():
    """Recordings are compared byte for byte between machines' worker processes."""
    code = (
        "import hashlib, numpy as np; from farworld.envs.maze import MazeEnv; env = MazeEnv();"
        "frames = [env.reset(seed=5)[0]] + [env.step(a)[0] for a in (1, 1, 3, 5, 2, 6, 4)];"
        "print(hashlib.sha256(np.stack(frames).tobytes()).hexdigest())"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    env = MazeEnv()
    frames = [env.reset(seed=5)[0]] + [env.step(a)[0] for a in (1, 1, 3, 5, 2, 6, 4)]
    assert child.stdout.strip() == hashlib.sha256(np.stack(frames).tobytes()).hexdigest()


def test_another_seed_gives_another_maze():
    env = MazeEnv()
    assert not np.array_equal(env.reset(seed=1)[0], env.reset(seed=2)[0])


@pytest.mark.parametrize("turn", ["turn_left", "turn_right"])
def test_a_full_turn_returns_to_the_same_frame(env, turn):
    action = env.action_vocabulary.index(turn)
    before = env.step(0)[0]
    frames = [env.step(action)[0] for _ in range(TURNS_PER_CIRCLE)]
    np.testing.assert_array_equal(frames[-1], before)
    assert all(not np.array_equal(frame, before) for frame in frames[:-1])


def test_turning_left_moves_the_scene_right(env):
    """A mirrored camera would pass every other test."""
    before = env.step(0)[0].astype(float)
    after = env.step(env.action_vocabulary.index("turn_left"))[0].astype(float)

    def error(shift):
        return np.abs(after[:, 16:48] - before[:, 16 - shift : 48 - shift]).mean()

    assert error(11) < error(-11)


def test_noop_holds_still(env):
    before = env.step(0)[0]
    for _ in range(3):
        np.testing.assert_array_equal(env.step(0)[0], before)


def test_backward_undoes_forward(env):
    before = env.step(0)[0]
    moved = env.step(env.action_vocabulary.index("forward"))[0]
    after = env.step(env.action_vocabulary.index("backward"))[0]
    assert not np.array_equal(moved, before)
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("num_turns", [0, 2, 5, 11])
def test_walking_into_a_wall_ends_in_standing_still(env, num_turns):
    for _ in range(num_turns):
        env.step(3)
    frames = [env.step(1)[0] for _ in range(80)]
    np.testing.assert_array_equal(frames[-1], frames[-2])


def test_walls_are_never_entered():
    """The body stays clear of every wall, whatever the action."""
    env = MazeEnv()
    rng = np.random.default_rng(0)
    for seed in range(5):
        _, info = env.reset(seed=seed)
        for action in rng.choice(NUM_ACTIONS, 300, p=[0.02, 0.5, 0.08, 0.1, 0.1, 0.1, 0.1]):
            before, (_, _, _, _, info) = info, env.step(action)
            assert np.abs(info["position"] - before["position"]).max() <= STEP_CELLS + 1e-9
            for corner in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
                x, y = np.floor(info["position"] + (BODY_RADIUS - 1e-5) * np.array(corner)).astype(int)
                assert not env.walls[x, y]


def test_every_cell_of_a_maze_can_be_reached():
    for seed in range(20):
        walls = _carve_maze(np.random.default_rng(seed))
        assert walls[0].all() and walls[-1].all() and walls[:, 0].all() and walls[:, -1].all()
        reached = {(1, 1)}
        frontier = [(1, 1)]
        while frontier:
            x, y = frontier.pop()
            for cell in ((x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)):
                if not walls[cell] and cell not in reached:
                    reached.add(cell)
                    frontier.append(cell)
        assert len(reached) == (~walls).sum()


def test_explorer_emits_every_action_bumps_into_walls_and_sees_most_of_the_maze():
    env = MazeEnv()
    counts = np.zeros(NUM_ACTIONS, int)
    shares = []
    num_bumps = 0
    for seed in range(6):
        env.reset(seed=seed)
        policy = env.explorer(np.random.default_rng(seed))
        cells = set()
        for _ in range(299):
            action = policy()
            counts[action] += 1
            before = (env.x, env.y)
            env.step(action)
            num_bumps += action in FORWARD_ACTIONS and np.hypot(env.x - before[0], env.y - before[1]) < 0.1
            cells.add(env.cell)
        shares.append(len(cells) / (~env.walls).sum())
    assert (counts >= 0.01 * counts.sum()).all(), counts
    assert counts[list(FORWARD_ACTIONS)].sum() > 0.4 * counts.sum(), counts
    assert num_bumps > 0.01 * counts.sum()
    assert np.mean(shares) > 0.7, shares


def test_explorer_starts_anew_after_a_reset():
    env = MazeEnv()
    env.reset(seed=0)
    policy = env.explorer(np.random.default_rng(0))
    for seed in range(4):
        env.reset(seed=seed)
        for _ in range(50):
            env.step(policy())


@pytest.mark.parametrize("size", [16, 48, 128])
def test_size_sets_the_observation(size):
    frame, _ = MazeEnv(size=size).reset(seed=0)
    assert frame.shape == (size, size, 3) and frame.dtype == np.uint8


@pytest.mark.parametrize("size", [0, 50, -16, True, 64.0])
def test_a_bad_size_is_named(size):
    with pytest.raises(ValueError, match="multiple of 16"):
        MazeEnv(size=size)


@pytest.mark.parametrize("action", [-1, 7, 1.0, "forward"])
def test_an_action_outside_the_vocabulary_is_an_error(env, action):
    with pytest.raises(ValueError, match=r"\[0, 6\]"):
        env.step(action)


@pytest.mark.parametrize("call", [lambda env: env.step(1), lambda env: env.render()])
def test_reset_comes_first(call):
    """A maze made directly has no wrapper that would say so."""
    with pytest.raises(ValueError, match="call reset"):
        call(MazeEnv(render_mode="rgb_array"))


def test_the_maze_needs_no_opencv(monkeypatch):
    """It needs libGL, which slim machines lack."""
    monkeypatch.setitem(sys.modules, "cv2", None)
    textures, walls, floors = _load_textures.__wrapped__()
    assert len(textures) == 2 * len(walls) + len(floors)


def test_textures_are_read_as_they_are_stored():
    """Another decoder must not change what the worlds were trained on."""
    cv2 = pytest.importorskip("cv2", exc_type=ImportError)
    paths = sorted((files("farworld.assets") / "textures" / "dmlab").glob("*.png"))
    assert len(paths) == 35
    for path in paths:
        picture = decode_png(path.read_bytes())
        np.testing.assert_array_equal(picture, cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1])


def test_a_written_picture_reads_back(tmp_path):
    """PNG is lossless; odd sides are not special."""
    picture = np.random.default_rng(0).integers(0, 256, (17, 31, 3), np.uint8)
    write_png(tmp_path / "picture.png", picture)
    np.testing.assert_array_equal(decode_png((tmp_path / "picture.png").read_bytes()), picture)


@pytest.mark.parametrize("data", [b"", b"not a picture" * 50])
def test_what_is_no_png_is_refused(data):
    with pytest.raises(ValueError, match="PNG"):
        decode_png(data)
