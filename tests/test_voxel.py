"""The voxel world: contract, determinism, movement, edits and the explorer."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from farworld.envs.voxel import VOCABULARY, VoxelEnv
from farworld.envs.voxel_terrain import AIR, PLANKS, WORLD_HEIGHT, find_tops, generate_world, update_light

NAMES = {name: index for index, name in enumerate(VOCABULARY.names)}


@pytest.fixture
def env():
    env = VoxelEnv()
    env.reset(seed=3)
    return env


def take(env, *names):
    """Take the named actions and return the last frame."""
    for name in names:
        frame, *_ = env.step(NAMES[name])
    return frame


def make_plain(env, edge=None):
    """Flatten the world to planks up to y = 10 and stand at its middle, heading along +z.

    With an edge, the ground is `edge[1]` blocks higher from z = edge[0] on.
    """
    blocks = env._world.blocks
    blocks[:] = AIR
    blocks[:, :, :11] = PLANKS
    if edge:
        blocks[:, edge[0] :, : 11 + edge[1]] = PLANKS
    env._world.tops = find_tops(blocks)
    update_light(blocks, env._world.light, 0, 128, 0, 128)
    env._x, env._y, env._z, env._heading, env._pitch, env._fall = 64.5, 11.0, 64.5, 0, 0, 0.0


def digest(seed, num_steps=40):
    """A checksum of the frames that the explorer sees."""
    env = VoxelEnv()
    frame, _ = env.reset(seed=seed)
    explore = env.explorer(np.random.default_rng(seed))
    checksum = hashlib.sha256(frame)
    for _ in range(num_steps):
        checksum.update(env.step(explore())[0])
    return checksum.hexdigest()


@pytest.mark.filterwarnings("ignore:.*environment not having a spec.*")
def test_check_env():
    check_env(VoxelEnv(render_mode="rgb_array"))


def test_render_returns_the_observation():
    env = VoxelEnv(size=64, render_mode="rgb_array")
    frame, _ = env.reset(seed=0)
    assert frame.shape == (64, 64, 3)
    assert np.array_equal(env.render(), frame)


def test_same_seed_and_actions_give_the_same_frames_in_another_process():
    program = "import sys; sys.path.insert(0, 'tests'); from test_voxel import digest; print(digest(5))"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert digest(5) == other.stdout.strip()
    assert digest(5) != digest(6)


def test_worlds_of_different_seeds_differ():
    first, second = (generate_world(np.random.default_rng(seed)) for seed in (0, 1))
    assert not np.array_equal(first.blocks, second.blocks)


def test_a_full_turn_ends_at_the_same_frame(env):
    before = env._observe()
    assert not np.array_equal(take(env, "turn_right"), before)
    assert np.array_equal(take(env, *["turn_right"] * 23), before)
    assert np.array_equal(take(env, *["turn_left"] * 24), before)


def test_looking_up_and_back_ends_at_the_same_frame(env):
    before = env._observe()
    for there, back in (("look_up", "look_down"), ("look_down", "look_up")):
        at_limit = take(env, *[there] * 3)
        assert not np.array_equal(at_limit, before)
        assert np.array_equal(take(env, there), at_limit)
        assert np.array_equal(take(env, *[back] * 3), before)


@pytest.mark.parametrize("seed", range(8))
def test_noop_holds_still_from_the_start(seed):
    env = VoxelEnv()
    before, _ = env.reset(seed=seed)
    assert np.array_equal(take(env, *["noop"] * 5), before)


def test_every_move_changes_the_frame_of_its_own_step(env):
    make_plain(env)
    for name in ("forward", "backward", "turn_left", "turn_right", "forward_left", "forward_right", "jump"):
        before = env._observe()
        assert not np.array_equal(take(env, name), before), name


def test_walking_into_a_wall_holds_still_at_last(env):
    make_plain(env, edge=(66, 2))
    before = take(env, *["forward"] * 10)
    assert 65.3 < env._z < 65.71 and env._y == 11.0
    assert np.array_equal(take(env, "forward"), before)


def test_a_step_of_one_block_is_walked_up_and_down(env):
    make_plain(env, edge=(66, 1))
    take(env, *["forward"] * 10)
    assert env._z > 66.5 and env._y == 12.0
    take(env, *["backward"] * 20)
    assert env._z < 65.0 and env._y == 11.0


def test_a_leap_goes_up_ahead_and_lands(env):
    make_plain(env)
    heights = []
    for name in ["jump"] + ["noop"] * 12:
        take(env, name)
        heights.append(env._y)
    assert 12.0 < max(heights) < 12.5 and heights[-1] == 11.0
    assert env._z > 64.5 + 1.0
    assert np.array_equal(take(env, "noop"), take(env, "noop"))


def test_whoever_walks_around_the_world_is_back(env):
    make_plain(env)
    take(env, *["forward"] * 400)
    assert env._z == pytest.approx((64.5 + 400 * 0.35) % 128)
    assert (env._x, env._y) == (64.5, 11.0)


def test_a_hole_stays(env):
    make_plain(env)
    flat = take(env, "look_down", "look_down")
    hole = take(env, "dig")
    assert not np.array_equal(hole, flat)
    assert (env._world.blocks[:, :, 10] == AIR).sum() == 1
    take(env, "turn_left", "turn_left", "turn_left", "look_up", "look_up")
    assert np.array_equal(take(env, "look_down", "look_down", "turn_right", "turn_right", "turn_right"), hole)
    take(env, *["turn_right"] * 12, *["forward"] * 20, *["turn_right"] * 12, *["forward"] * 20)
    assert (env._world.blocks[:, :, 10] == AIR).sum() == 1


def test_a_placed_block_stays_and_digging_restores_the_view(env):
    make_plain(env)
    flat = take(env, "look_down", "look_down")
    placed = take(env, "place")
    assert not np.array_equal(placed, flat)
    assert np.array_equal(take(env, "turn_left", "turn_right"), placed)
    assert np.array_equal(take(env, "dig"), flat)


def test_no_block_is_placed_inside_the_body(env):
    make_plain(env)
    env._pitch = -6  # straight down, beyond what the actions allow
    env._place()
    assert not (env._world.blocks[:, :, 11:] == PLANKS).any()


def test_far_blocks_are_out_of_reach(env):
    make_plain(env, edge=(70, 5))
    before = env._observe()
    assert np.array_equal(take(env, "dig"), before)
    assert np.array_equal(take(env, "place"), before)


def test_light_after_an_edit_equals_light_computed_anew():
    """Edits update the light only nearby; that must not differ from lighting the whole world."""
    rng = np.random.default_rng(2)
    world = generate_world(rng)
    for _ in range(20):
        x, z = rng.integers(128, size=2)
        y = int(np.nonzero(world.blocks[x, z])[0].max())
        world.set_block(int(x), y, int(z), AIR)
        world.set_block(int(x) + 3, min(y + 3, WORLD_HEIGHT - 1), int(z), PLANKS)
    anew = np.zeros_like(world.light)
    update_light(world.blocks, anew, 0, 128, 0, 128)
    assert np.array_equal(world.light, anew)


def test_explorer_takes_every_action_and_gets_around():
    counts = np.zeros(len(VOCABULARY), int)
    cells = 0
    for seed in range(6):
        env = VoxelEnv(size=16)
        env.reset(seed=seed)
        explore = env.explorer(np.random.default_rng(seed))
        visited = set()
        for _ in range(300):
            action = explore()
            counts[action] += 1
            x, _, z = env.step(action)[4]["position"]
            visited.add((int(x), int(z)))
        cells += len(visited)
    assert counts.min() > 0
    assert 0.4 < counts[NAMES["forward"]] / counts.sum() < 0.8
    assert cells / 6 > 40


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="multiple of 16 pixels, got 100"):
        VoxelEnv(size=100)
    with pytest.raises(ValueError, match="rgb_array"):
        VoxelEnv(render_mode="human")
    with pytest.raises(ValueError, match="reset"):
        VoxelEnv().step(0)


def test_an_unknown_action_is_refused(env):
    with pytest.raises(ValueError, match=r"\[0, 11\]"):
        env.step(12)
