"""The voxel world: its contract, the first release's frames, movement, edits, water, the day and the policies."""

import hashlib
import itertools
import math
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from farworld.envs.voxel import VoxelEnv
from farworld.envs.voxel_blocks import AIR, BEDROCK, HOT_BAR, LAMP, PLANKS, SAND, SOLID, WATER
from farworld.envs.voxel_body import HEIGHT, RADIUS
from farworld.envs.voxel_policies import _Walker
from farworld.envs.voxel_terrain import generate_varied
from farworld.envs.voxel_world import WATER_SURFACE

ACTION_SETS = ("full", "basic", "teco")
WORLDS = ("varied", "swamp", "classic")
GROUND = 11  # y of the feet in a plain world
BASIC_KEYS = {
    "noop": (), "forward": ("up",), "backward": ("down",), "turn_left": ("left",), "turn_right": ("right",),
    "forward_left": ("up", "left"), "forward_right": ("up", "right"), "look_up": ("w",), "look_down": ("s",),
    "jump": ("space",), "dig": ("d",), "place": ("a",),
}  # fmt: skip
FULL_NAMES = (
    "noop", "forward", "backward", "strafe_left", "strafe_right", "turn_left", "turn_right", "forward_left",
    "forward_right", "sprint", "sprint_left", "sprint_right", "look_up", "look_down", "jump", "forward_jump",
    "sprint_jump", "dig", "place", "previous_block", "next_block",
)  # fmt: skip
# SHA-256 of what the code of farworld 0.1 showed, by size and seed; see first_release_frames.
FIRST_RELEASE = {
    (128, 0): "89b43425c039f0e76b3419b3a8a31b92",
    (64, 1): "12311ff2f4689d10762a2b96a3f6e638",
    (64, 2): "9a4418c067f1fdd84385a572b3e38961",
    (16, 3): "ca587ab0ab8fdc39288fcd37f9b6676d",
    (16, 4): "9854117137464661b1dd5b7d5bca706e",
    (16, 5): "81e235a21733b4367f8d25defbabcd9d",
}


def act(env, *names):
    """Take the named actions; the last frame."""
    for name in names:
        frame, *_ = env.step(env.action_vocabulary.index(name))
    return frame


def look(env):
    """The frame of now."""
    return env._observe()


def make_plain(actions="full", *, edge=None, size=64, world=None):
    """A world of planks up to y = 10; the body stands in it at (64.5, 11, 64.5) and faces +z.

    With an edge, the ground is `edge[1]` blocks higher from z = edge[0] on.
    """
    env = VoxelEnv(size=size, actions=actions, world=world)
    env.reset(seed=3)
    blocks = env.world.blocks
    blocks[:] = AIR
    blocks[:, :, :GROUND] = PLANKS
    blocks[:, :, 0] = BEDROCK
    if edge:
        blocks[:, edge[0] :, GROUND : GROUND + edge[1]] = PLANKS
    env.world.refresh()
    env.body.x, env.body.y, env.body.z, env.body.speed = 64.5, float(GROUND), 64.5, 0.0
    env.heading, env.tilt = 0, 0
    return env


def play(env, name, seed, num_frames):
    """Actions, and the `info` before each of them, of an episode under a policy."""
    _, info = env.reset(seed=seed)
    policy = env.policy(name, np.random.default_rng(seed))
    actions, infos = [], []
    for _ in range(num_frames):
        actions.append(policy())
        infos.append(info)
        info = env.step(actions[-1])[4]
    return [env.action_vocabulary.names[action] for action in actions], infos


def stands_in_solid(world, body):
    """Whether a solid block shares some space with the body, told without the code that moves it."""
    for x in range(math.floor(body.x - RADIUS), math.floor(body.x + RADIUS) + 1):
        for z in range(math.floor(body.z - RADIUS), math.floor(body.z + RADIUS) + 1):
            for y in range(math.floor(body.y), math.floor(body.y + HEIGHT) + 1):
                if 0 <= y < world.height and SOLID[world.blocks[x % world.size, z % world.size, y]]:
                    return True
    return False


# Contract


@pytest.mark.parametrize(
    "arguments",
    [
        *({"actions": actions, "world": world} for actions in ACTION_SETS for world in WORLDS),
        {"preset": "minecraft"},
        {"preset": "minecraft", "actions": "full"},
        {"actions": "basic"},
        *({"day_cycle": day_cycle} for day_cycle in ("dusk", "night", 0.3, 24)),
        {"size": 48, "preset": "minecraft", "day_cycle": 100},
    ],
    ids=str,
)
def test_check_env(arguments):
    env = gymnasium.make("farworld/Voxel-v0", render_mode="rgb_array", **{"size": 16, **arguments})
    check_env(env.unwrapped)


def test_render_returns_the_observation():
    env = VoxelEnv(size=64, render_mode="rgb_array")
    frame, _ = env.reset(seed=0)
    assert frame.shape == (64, 64, 3)
    assert np.array_equal(env.render(), frame)
    assert VoxelEnv().render() is None


def test_vocabularies_and_keys():
    full, basic, teco = (VoxelEnv(actions=actions).action_vocabulary for actions in ACTION_SETS)
    assert full.names == FULL_NAMES
    assert {action.name: action.keys for action in basic.actions} == BASIC_KEYS
    assert [(action.name, action.keys) for action in teco.actions] == [
        ("forward", ("up",)), ("yaw_left", ("left",)), ("yaw_right", ("right",))
    ]  # fmt: skip
    for vocabulary in (full, basic, teco):  # no two actions want the same keys
        assert len({frozenset(action.keys) for action in vocabulary.actions}) == len(vocabulary)
    assert full.names[full.from_keys({"w", "left shift", "space"})] == "sprint_jump"


def test_arguments_choose_actions_world_and_rate():
    def facts(**arguments):
        env = VoxelEnv(size=16, **arguments)
        env.reset(seed=0)
        return len(env.action_vocabulary), env.metadata["render_fps"], env.world.blocks.shape, len(env.world.biomes)

    assert facts() == (21, 10.0, (256, 256, 64), 8)
    assert facts(actions="basic") == (12, 10.0, (128, 128, 48), 4)
    assert facts(actions="basic", world="varied") == (12, 10.0, (256, 256, 64), 8)
    assert facts(preset="minecraft")[:3] == (3, 20.0, (128, 128, 48))
    assert facts(preset="minecraft", actions="full")[:3] == (21, 10.0, (128, 128, 48))
    assert VoxelEnv.metadata["render_fps"] == 10


def test_info_says_where_and_when_one_is():
    env = make_plain()
    act(env, "turn_right", "turn_right", "look_down", "next_block")
    info = env.step(0)[4]
    assert info["position"] == (64.5, 11.0, 64.5)
    assert (info["heading"], info["pitch"], info["slot"], info["time"]) == (30, -15, 1, None)
    assert info["biome"] in env.world.biomes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 100}, "size must be a positive multiple of 16 pixels, got 100; 128 is the default"),
        ({"size": "big"}, "size must be a positive multiple of 16 pixels, got 'big'; 128 is the default"),
        ({"render_mode": "human"}, "render_mode must be None or 'rgb_array', got 'human'"),
        ({"preset": "teco"}, "preset must be one of default, minecraft, got 'teco'"),
        ({"actions": ["full"]}, r"actions must be one of full, basic, teco, got \['full'\]"),
        ({"world": "flat"}, "world must be one of varied, swamp, classic, got 'flat'"),
        *(
            ({"day_cycle": value}, f"day_cycle must be off, dawn, .* at least 24 frames a day, got {value!r}")
            for value in ("evening", 23, True, 1.0, -0.5, math.nan, None)
        ),
    ],
    ids=str,
)
def test_bad_arguments_are_one_line(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        VoxelEnv(**arguments)


def test_misuse_is_one_line():
    env = VoxelEnv(size=16)
    with pytest.raises(ValueError, match=r"^step\(\) came before the first reset\(\); call reset\(\) first$"):
        env.step(0)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"\[0, 20\]"):
        env.step(21)
    with pytest.raises(ValueError, match="^the policies of the voxel world are explore, tour, revisit, got 'sleep'$"):
        env.policy("sleep", np.random.default_rng(0))


# Determinism


def first_release_frames(size, seed, num_steps=120):
    """A checksum of frames and places under random actions, each of them held for a while."""
    env = VoxelEnv(size=size, actions="basic")
    frame, _ = env.reset(seed=seed)
    rng, checksum, action = np.random.default_rng(seed), hashlib.sha256(frame), 0
    for _ in range(num_steps):
        action = int(rng.integers(12)) if rng.random() > 0.6 else action
        frame, _, _, _, info = env.step(action)
        checksum.update(frame)
        checksum.update(repr((*info["position"], info["heading"], info["pitch"])).encode())
    return checksum.hexdigest()[:32]


@pytest.mark.parametrize(("size", "seed"), FIRST_RELEASE)
def test_basic_actions_give_the_frames_of_the_first_release(size, seed):
    assert first_release_frames(size, seed) == FIRST_RELEASE[size, seed]


def digest(seed, day_cycle=48):
    """A checksum of what `explore` sees."""
    env = VoxelEnv(size=64, day_cycle=day_cycle)
    frame, _ = env.reset(seed=seed)
    policy = env.policy("explore", np.random.default_rng(seed))
    checksum = hashlib.sha256(frame)
    for _ in range(40):
        checksum.update(env.step(policy())[0])
    return checksum.hexdigest()


def test_same_seed_and_actions_give_the_same_frames_in_another_process():
    program = "from tests.test_voxel import digest; print(digest(5))"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert digest(5) == digest(5) == other.stdout.strip()
    assert digest(5) != digest(6)


def test_worlds_of_different_seeds_differ():
    first, second = (generate_varied(np.random.default_rng(seed)) for seed in (0, 1))
    assert not np.array_equal(first.blocks, second.blocks)


@pytest.mark.parametrize("actions", ["full", "basic"])
def test_a_full_turn_ends_at_the_same_frame(actions):
    env = VoxelEnv(size=64, actions=actions)
    before, _ = env.reset(seed=3)
    assert not np.array_equal(act(env, "turn_right"), before)
    assert np.array_equal(act(env, *["turn_right"] * 23), before)
    assert np.array_equal(act(env, *["turn_left"] * 24), before)


@pytest.mark.parametrize(("actions", "limit"), [("full", 5), ("basic", 3)])
def test_looking_up_and_back_ends_at_the_same_frame(actions, limit):
    env = VoxelEnv(size=64, actions=actions)
    before, _ = env.reset(seed=3)
    for there, back in (("look_up", "look_down"), ("look_down", "look_up")):
        assert not np.array_equal(act(env, *[there] * (limit - 1)), at_limit := act(env, there))
        assert np.array_equal(act(env, there), at_limit)
        assert np.array_equal(act(env, *[back] * limit), before)


@pytest.mark.parametrize(("actions", "seed"), [(actions, seed) for actions in ("full", "basic") for seed in range(6)])
def test_noop_holds_still_from_the_start(actions, seed):
    env = VoxelEnv(size=64, actions=actions)
    before, _ = env.reset(seed=seed)
    assert np.array_equal(act(env, *["noop"] * 5), before)


@pytest.mark.parametrize("arguments", [{}, {"preset": "minecraft"}, {"day_cycle": "night"}], ids=str)
def test_rays_that_start_behind_empty_air_show_the_same(arguments):
    """Where every cell counts as filled, each ray walks all its way from the eye."""
    for seed in range(4):
        env = VoxelEnv(size=64, **arguments)
        env.reset(seed=seed)
        policy = env.policy("explore", np.random.default_rng(seed))
        for _ in range(8):
            for _ in range(5):
                env.step(policy())
            frame, filled = look(env), env.world.filled.copy()
            env.world.filled[:] = ~np.uint64(0)
            assert np.array_equal(look(env), frame)
            env.world.filled[:] = filled


# Movement


@pytest.mark.parametrize("actions", ACTION_SETS)
def test_every_action_changes_the_frame_of_its_own_step(actions):
    env = make_plain(actions)
    before, place, angle = look(env), vars(env.body).copy(), env.heading
    for name in set(env.action_vocabulary.names) - {"noop", "dig", "place"}:  # nothing is in reach
        assert not np.array_equal(act(env, name), before), name
        vars(env.body).update(place)
        env.heading, env.tilt, env.slot, env._swings = angle, 0, 0, False
        assert np.array_equal(look(env), before)


@pytest.mark.parametrize(
    ("name", "x", "z"),
    [
        ("forward", 0.0, 0.43), ("backward", 0.0, -0.43), ("strafe_left", -0.43, 0.0), ("strafe_right", 0.43, 0.0),
        ("sprint", 0.0, 0.56), ("jump", 0.0, 0.0), ("turn_left", 0.0, 0.0),
    ],
)  # fmt: skip
def test_moves_go_where_they_say(name, x, z):
    env = make_plain()
    act(env, name)
    assert (env.body.x - 64.5, env.body.z - 64.5) == pytest.approx((x, z))


def test_turning_right_leads_to_the_right():
    env = make_plain()
    act(env, *["turn_right"] * 6, "forward")
    assert (env.body.x, env.body.z) == pytest.approx((64.93, 64.5))


@pytest.mark.parametrize("actions", ACTION_SETS)
def test_no_random_walk_ends_inside_a_block(actions):
    """Natural land, with digging and placing, from a corner of the map: where it wraps, no one falls through."""
    for seed in range(2):
        env = VoxelEnv(size=16, actions=actions)
        env.reset(seed=seed)
        rng, world, body = np.random.default_rng(seed), env.world, env.body
        body.x, body.y, body.z = world.size - 0.1, float(world.height), world.size - 0.1
        action = 0
        for _ in range(500):
            action = int(rng.integers(env.action_space.n)) if rng.random() < 0.5 else action
            env.step(action)
            assert not stands_in_solid(world, body)
            assert body.y >= 1.0 and 0.0 <= body.x < world.size and 0.0 <= body.z < world.size
        assert body.y < world.height - 5.0  # it has come down


@pytest.mark.parametrize(("actions", "stride"), [("full", 0.43), ("basic", 0.35)])
def test_whoever_walks_around_the_world_is_back(actions, stride):
    env = make_plain(actions, size=16, world="classic")
    for _ in range(400):
        act(env, "forward")
        assert env.body.y == GROUND
    assert env.body.z == pytest.approx((64.5 + 400 * stride) % 128)
    assert env.body.x == 64.5


@pytest.mark.parametrize("actions", ACTION_SETS)
def test_a_wall_of_two_blocks_holds_up(actions):
    env = make_plain(actions, edge=(66, 2), size=16)
    for _ in range(60):
        act(env, "forward")
        assert env.body.z <= 66 - RADIUS
    assert env.body.z > 65.3


@pytest.mark.parametrize("actions", ["full", "basic"])
def test_a_step_of_one_block_is_walked_up_and_down(actions):
    env = make_plain(actions, edge=(66, 1))
    act(env, *["forward"] * 10)
    assert env.body.z > 66.5 and env.body.y == GROUND + 1
    act(env, *["backward"] * 20)
    assert env.body.z < 65.0 and env.body.y == GROUND


def test_walls_are_slid_along():
    env = make_plain(edge=(66, 2))
    act(env, *["turn_right"] * 3, *["forward"] * 10)
    assert env.body.x > 66.5


def test_a_jump_lands_one_block_higher():
    env = make_plain(edge=(66, 1))
    env.body.z = 65.6
    act(env, "jump", "jump", "forward", *["noop"] * 5)
    assert env.body.y == GROUND + 1 and env.body.z > 66.0
    assert env.body.lag == 0.0  # it was no step


def test_only_a_jump_takes_a_step_in_the_minecraft_preset():
    """Jump is held there; a body that only walks stays below."""
    env = make_plain("teco", edge=(66, 1), size=16)
    act(env, *["forward"] * 60)
    assert env.body.z > 67.0 and env.body.y >= GROUND + 1
    env = make_plain("teco", edge=(66, 1), size=16)
    walk = type(env._control.effects[0])(ahead=1)
    for _ in range(60):
        env.body.move(walk, env.angle, env.tilt)
    assert env.body.z <= 66 - RADIUS and env.body.y == GROUND


def test_a_jump_on_the_spot_comes_down_again():
    env = make_plain()
    heights = [(act(env, name), env.body.y - GROUND)[1] for name in ("jump", *["noop"] * 8)]
    assert 1.0 < max(heights) < 1.5 and heights[-1] == 0.0
    assert (env.body.x, env.body.z) == (64.5, 64.5)


def test_a_leap_of_the_basic_actions_goes_up_ahead_and_lands():
    env = make_plain("basic")
    heights = [(act(env, name), env.body.y - GROUND)[1] for name in ("jump", *["noop"] * 12)]
    assert 1.0 < max(heights) < 1.5 and heights[-1] == 0.0
    assert env.body.z > 65.5
    assert np.array_equal(act(env, "noop"), act(env, "noop"))


# Digging and placing


@pytest.mark.parametrize("actions", ["full", "basic"])
def test_a_hole_stays(actions):
    env = make_plain(actions)
    flat = act(env, "look_down", "look_down")
    act(env, "dig")
    hole = act(env, "noop")
    assert not np.array_equal(hole, flat)
    assert (env.world.blocks[:, :, GROUND - 1] == AIR).sum() == 1
    assert np.array_equal(act(env, *["turn_left"] * 3, *["turn_right"] * 3), hole)
    away = act(env, *["backward"] * 30)
    assert not np.array_equal(away, hole)
    back = act(env, *["forward"] * 30).astype(int)
    assert abs(back - hole).mean() < 0.1 < abs(back - flat).mean()


@pytest.mark.parametrize("actions", ["full", "basic"])
def test_a_placed_block_stays_and_digging_restores_the_view(actions):
    env = make_plain(actions)
    flat = act(env, "look_down", "look_down")
    act(env, "place")
    placed = act(env, "noop")
    assert not np.array_equal(placed, flat)
    assert (env.world.blocks[:, :, GROUND] == PLANKS).sum() == 1
    assert np.array_equal(act(env, "turn_left", "turn_right"), placed)
    act(env, "dig")
    assert np.array_equal(act(env, "noop"), flat)


def test_the_hand_shows_and_places_each_block_of_the_hot_bar():
    views = set()
    for slot, block in enumerate(HOT_BAR):
        env = make_plain()
        act(env, "look_down", "look_down", *["next_block"] * slot)
        views.add(look(env)[32:, 32:].tobytes())
        act(env, "place")
        assert list(env.world.blocks[:, :, GROUND][env.world.blocks[:, :, GROUND] != AIR]) == [block]
    assert len(views) == len(HOT_BAR)
    act(env, "next_block")
    assert env.slot == 0
    act(env, "previous_block")
    assert env.slot == len(HOT_BAR) - 1


@pytest.mark.parametrize("actions", ["full", "basic"])
def test_no_block_is_placed_inside_the_body(actions):
    env = make_plain(actions)
    env.tilt = -6  # straight down, beyond what the actions allow
    env._place()
    assert (env.world.blocks[:, :, GROUND:] == AIR).all()
    env.body.y += 1.0  # in the air there is room below
    env._place()
    assert env.world.blocks[64, 64, GROUND] == PLANKS


def test_where_the_map_wraps_no_block_is_placed_inside_the_body():
    env = make_plain()
    size = env.world.size
    env.body.x, env.body.z = 0.1, size - 0.1
    inside = {(x, z) for x in (0, size - 1) for z in (0, size - 1)}
    for x, z in itertools.product((0, 1, size - 2, size - 1), repeat=2):
        assert env.body.overlaps((x, GROUND, z)) == ((x, z) in inside)
    assert not env.body.overlaps((0, GROUND - 1, 0)) and not env.body.overlaps((0, GROUND + 2, 0))


def test_bedrock_and_far_blocks_are_out_of_reach():
    env = make_plain(edge=(70, 5))
    act(env, "dig", "place")
    assert env.world.num_edits == 0
    env.world.blocks[:, :, 1:GROUND] = AIR
    env.world.refresh()
    env.body.y, env.tilt = 1.0, -3
    assert env.world.at(*env.aim()[0]) == BEDROCK
    act(env, "dig")
    assert (env.world.blocks[:, :, 0] == BEDROCK).all()


@pytest.mark.parametrize("world", WORLDS)
def test_light_after_an_edit_equals_light_computed_anew(world):
    """Edits update the light only nearby; that must not differ from lighting the whole world."""
    env = VoxelEnv(size=16, world=world)
    env.reset(seed=2)
    world, rng = env.world, np.random.default_rng(2)
    for i in range(20):
        x, z = (int(part) for part in rng.integers(-8, 8, 2))  # around the seam of the map
        y = int(world.tops[x, z]) - 1
        world.dig(x, y, z)
        world.put(x + 3, min(y + 3, world.height - 1), z, LAMP if i % 4 == 0 else PLANKS)
    after, tops, filled = world.light.copy(), world.tops.copy(), world.filled.copy()
    world.refresh()
    assert np.array_equal(after, world.light) and np.array_equal(tops, world.tops)
    assert np.array_equal(filled, world.filled)
    bits = (filled[..., None] >> np.arange(world.height, dtype=np.uint64)) & 1
    assert np.array_equal(bits == 1, world.blocks != AIR)


def test_sand_falls_and_is_stopped():
    env = make_plain()
    env.world.put(70, 20, 70, SAND)
    assert env.world.at(70, 20, 70) == AIR and env.world.at(70, GROUND, 70) == SAND
    env.world.dig(70, GROUND - 1, 70)
    assert env.world.at(70, GROUND, 70) == AIR and env.world.at(70, GROUND - 1, 70) == SAND


# Water


def make_pool(actions):
    """A plain world with water from y = 4 to y = 10, and the body above it."""
    env = make_plain(actions, size=16)
    env.world.blocks[60:70, 60:70, 4:GROUND] = WATER
    env.world.refresh()
    return env


@pytest.mark.parametrize(("actions", "depth"), [("full", 1.3), ("basic", 1.1), ("teco", 1.3)])
def test_swimmers_float_and_climb_out(actions, depth):
    env = make_pool(actions)
    turn = "yaw_left" if actions == "teco" else "noop"
    act(env, *[turn] * 36)
    assert env.body.y == pytest.approx(GROUND - 1 + WATER_SURFACE - depth, abs=0.15)
    act(env, *["forward"] * 60)
    assert env.body.y >= GROUND and env.body.z > 70.0


def test_who_looks_down_and_walks_on_dives():
    env = make_pool("full")
    act(env, *["noop"] * 20, "look_down", *["forward"] * 4)
    deep = env.body.y
    assert deep < GROUND - 1 + WATER_SURFACE - 1.3 - 0.8
    act(env, *["noop"] * 10)
    assert env.body.y > deep + 0.8


def test_water_runs_into_holes():
    env = make_pool("full")
    env.world.dig(70, GROUND - 1, 65)
    assert env.world.at(70, GROUND - 1, 65) == WATER
    env.world.dig(75, GROUND - 1, 65)
    env.world.dig(75, GROUND - 2, 65)
    assert env.world.at(75, GROUND - 1, 65) == env.world.at(75, GROUND - 2, 65) == AIR
    for x in (71, 72, 73, 74):
        env.world.dig(x, GROUND - 1, 65)
    assert env.world.at(75, GROUND - 1, 65) == env.world.at(75, GROUND - 2, 65) == WATER  # downwards as well
    assert env.world.at(75, GROUND, 65) == AIR


def test_water_is_seen_from_above_and_from_below():
    """Its surface changes the picture, and under it everything is bluer."""
    env = make_pool("full")
    env.tilt = -2
    above = look(env).mean((0, 1))
    env.body.y -= 4.0
    below = look(env).mean((0, 1))
    dry = look(make_plain(size=16)).mean((0, 1))
    assert below[2] / below.sum() > dry[2] / dry.sum()
    assert abs(above - below).max() > 10


# The day


def test_the_day_changes_brightness_and_night_is_darkest():
    means = {}
    for time in ("off", "dawn", "noon", "dusk", "night"):
        env = VoxelEnv(size=32, day_cycle=time)
        means[time] = [env.reset(seed=seed)[0].mean() for seed in range(3)]
    for off, dawn, noon, dusk, night in zip(*means.values(), strict=True):
        assert night < 0.6 * min(dawn, dusk)
        assert max(dawn, dusk) < noon
        assert abs(noon - off) < 0.2 * off


def test_a_day_goes_round():
    env = VoxelEnv(size=32, day_cycle=48)
    first, info = env.reset(seed=1)
    times, means = [info["time"]], [first.mean()]
    for _ in range(48):
        frame, _, _, _, info = env.step(0)
        times.append(info["time"])
        means.append(frame.mean())
    assert np.allclose(np.diff(times) % 1.0, 1 / 48)
    assert abs(frame.astype(int) - first).max() <= 1
    assert max(means) > 2 * min(means)
    assert 0.0 < times[int(np.argmax(means))] < 0.5 < times[int(np.argmin(means))] < 1.0
    starts = {env.reset(seed=seed)[1]["time"] for seed in range(4)}
    assert len(starts) == 4


def test_a_time_stands_still():
    env = VoxelEnv(size=16, day_cycle=0.3)
    assert env.reset(seed=1)[1]["time"] == 0.3 == env.step(0)[4]["time"]


def test_a_lamp_shines_at_night():
    env = make_plain()
    env._fixed_time = 0.75
    dark = act(env, "look_down", "look_down")
    act(env, *["previous_block"], "place", "next_block")
    lit = look(env)
    assert env.world.at(64, GROUND, 66) == LAMP or (env.world.blocks == LAMP).sum() == 1
    assert lit.mean() > 1.5 * dark.mean()


# Policies


@pytest.fixture(scope="module")
def explored():
    """Names of actions, `info` before them and the world's edits by them, of some episodes of `explore`."""
    episodes = []
    for seed in range(6):
        env = VoxelEnv(size=16)
        _, info = env.reset(seed=seed)
        policy = env.policy("explore", np.random.default_rng(seed))
        rows = []
        for _ in range(400):
            action, edits = policy(), env.world.num_edits
            after = env.step(action)[4]
            rows.append((env.action_vocabulary.names[action], info, after, env.world.num_edits - edits))
            info = after
        episodes.append(rows)
    return episodes


def test_explore_takes_every_action_and_mostly_walks(explored):
    names = [name for rows in explored for name, *_ in rows]
    assert {*names} == {*FULL_NAMES}
    walks = sum(name.startswith(("forward", "sprint")) for name in names)
    assert 0.4 < walks / len(names) < 0.85


def test_explore_idles_bumps_digs_and_places(explored):
    rows = [row for rows in explored for row in rows]
    bumps = sum(name == "forward" and a["position"] == b["position"] for name, a, b, _ in rows)
    runs = [len([*group]) for name, group in itertools.groupby(row[0] for row in rows) if name == "noop"]
    assert bumps > 20 and max(runs) >= 4
    for edit in ("dig", "place"):
        assert sum(name == edit and edits > 0 for name, _, _, edits in rows) > 10, edit


def test_explore_gets_around(explored):
    cells = [len({(int(a["position"][0]), int(a["position"][2])) for _, a, _, _ in rows}) for rows in explored]
    assert np.mean(cells) > 60


@pytest.mark.parametrize("actions", ACTION_SETS)
@pytest.mark.parametrize("name", VoxelEnv.POLICIES)
def test_every_policy_plays_every_action_set(actions, name):
    env = VoxelEnv(size=16, actions=actions)
    names, infos = play(env, name, 1, 150)
    assert len({*names}) > 1
    assert len({info["position"] for info in infos}) > 30


def returns(infos):
    """Share of the frames that show a pose once more: the same place and view after another one was seen meanwhile."""
    places = np.array([info["position"] for info in infos])
    views = np.array([(info["heading"], info["pitch"]) for info in infos])
    count = 0
    for i in range(len(infos)):
        moved = np.hypot(*(places[:i, [0, 2]] - places[i, [0, 2]]).T)
        turned = abs((views[:i, 0] - views[i, 0] + 180) % 360 - 180)
        away = (moved > 4.0) | (turned >= 60)
        same = (moved < 0.4) & (views[:i] == views[i]).all(axis=1)
        last_away = np.flatnonzero(away)
        count += len(last_away) > 0 and bool(same[: last_away[-1]].any())
    return count / len(infos)


def test_revisit_sees_the_same_pose_again():
    def share(name):
        return np.mean([returns(play(VoxelEnv(size=16), name, seed, 250)[1]) for seed in range(4)])

    assert share("revisit") > 0.15 > 5 * share("explore")


def test_a_round_trip_ends_at_the_pose_where_it_began():
    for seed in range(3):
        env = make_plain(size=16, world="classic")
        farthest = 0.0
        for action in _Walker(env, np.random.default_rng(seed))._round_trip(12):
            env.step(action)
            farthest = max(farthest, math.dist((env.body.x, env.body.z), (64.5, 64.5)))
        assert farthest > 8.0
        assert math.dist((env.body.x, env.body.z), (64.5, 64.5)) < 0.5
        assert (env.heading, env.tilt) == (0, 0)


def test_tour_covers_ground():
    def covered(name, seed):
        _, infos = play(VoxelEnv(size=16), name, seed, 600)
        return len({info["biome"] for info in infos}), len(
            {(int(info["position"][0]) // 8, int(info["position"][2]) // 8) for info in infos}
        )

    tour, explore = (np.mean([covered(name, seed) for seed in range(4)], axis=0) for name in ("tour", "explore"))
    assert tour[0] >= 3 and (tour > explore).all()


def longest_halt(infos):
    """Steps in a row with the same place and view."""
    poses = [(*np.round(info["position"], 2), info["heading"], info["pitch"]) for info in infos]
    return max(len([*group]) for _, group in itertools.groupby(poses)) - 1


@pytest.mark.parametrize("preset", ["default", "minecraft"])
@pytest.mark.parametrize("name", VoxelEnv.POLICIES)
def test_no_policy_stands_still_for_long(preset, name):
    """Walkers used to push against corners and banks for up to 48 steps."""
    for seed in range(4):
        _, infos = play(VoxelEnv(size=16, preset=preset), name, seed, 200)
        assert longest_halt(infos) <= 20, seed


@pytest.mark.parametrize("preset", ["default", "minecraft"])
def test_tour_is_never_caught(preset):
    """In pits, caves and pools it used to spend a good part of the time within three blocks."""
    for seed in (0, 4, 10, 12):
        env = VoxelEnv(size=16, preset=preset)
        places = np.array([info["position"] for info in play(env, "tour", seed, 300)[1]])[:, [0, 2]]
        half = env.world.size / 2
        path = np.cumsum((np.diff(places, axis=0) + half) % env.world.size - half, axis=0)
        assert min(np.ptp(path[i : i + 80], axis=0).max() for i in range(0, len(path) - 80, 10)) > 2.5, seed


def walk_to(env, target, num_steps):
    """Walk until the plan ends, at most for some steps; the distance that is left."""
    walker = _Walker(env, np.random.default_rng(0))
    for action in itertools.islice(walker._walk_to(target), num_steps):
        env.step(action)
    return math.dist((env.body.x, env.body.z), target)


def test_a_walker_digs_its_way_out_of_a_pit():
    env = make_plain(size=16, edge=(66, 4))
    env.world.blocks[:, :63, GROUND : GROUND + 4] = PLANKS
    env.world.blocks[:63, :, GROUND : GROUND + 4] = PLANKS
    env.world.blocks[66:, :, GROUND : GROUND + 4] = PLANKS
    env.world.refresh()
    assert walk_to(env, (64.5, 75.5), 250) < 3.0


@pytest.mark.parametrize("actions", ACTION_SETS)
def test_a_walker_goes_round_what_is_too_high_or_too_low(actions):
    """A wall of two blocks, and one that leaves a gap at the ground too low for the head; each ends five blocks on."""
    for bottom in (GROUND, GROUND + 1):
        env = make_plain(actions, size=16)
        env.world.blocks[60:70, 67, bottom : bottom + 3] = PLANKS
        env.world.refresh()
        assert walk_to(env, (64.5, 72.5), 150) < 3.0
        assert env.world.num_edits == 0


def test_the_minecraft_preset_is_collected_as_the_published_data():
    """Choices are held for five steps, nine of ten go ahead, and after fifty steps ahead comes a turn."""
    env = VoxelEnv(size=16, preset="minecraft")
    env.reset(seed=0)
    assert env.action_vocabulary.names == ("forward", "yaw_left", "yaw_right")
    assert env.metadata["render_fps"] == 20.0
    policy = env.policy("explore", np.random.default_rng(0))
    actions = [policy() for _ in range(20_000)]
    choices = np.array(actions).reshape(-1, 5)
    assert (choices == choices[:, :1]).all()
    runs = [(action, len([*group])) for action, group in itertools.groupby(actions)]
    ahead = [length for action, length in runs if action == 0]
    assert max(ahead) == 50 and sum(length == 50 for length in ahead) > 0.2 * len(ahead)
    assert 0.8 < np.mean(np.array(actions) == 0) < 0.9
    assert 0.4 < np.mean(np.array([a for a in actions if a]) == 1) < 0.6


def test_the_minecraft_preset_turns_by_twenty_degrees_in_a_swamp():
    env = VoxelEnv(size=16, preset="minecraft")
    _, info = env.reset(seed=0)
    assert info["biome"] == "swamp"
    assert (env.step(2)[4]["heading"] - info["heading"]) % 360 == 20
    assert (env.step(1)[4]["heading"] - info["heading"]) % 360 == 0
    assert env.world.blocks.any() and (env.world.tops[env.world.biome >= 0].mean() - env.world.sea_level) < 8
