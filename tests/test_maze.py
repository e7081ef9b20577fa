import dataclasses
import hashlib
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from farworld.envs import maze_layout
from farworld.envs.maze import GOAL_REACH, MazeEnv
from farworld.envs.maze_layout import Look, build_scene, carve, distances, dress
from farworld.envs.maze_motion import BODY_RADIUS, MOVES, STEP_CELLS
from farworld.envs.maze_render import BALL, BOX, CONE, GEM, PILLAR, SKY_RGB, Thing, draw
from farworld.envs.maze_textures import load_pictures, load_textures
from farworld.envs.teco import _LAYOUTS as teco_layouts
from farworld.video import decode_png, write_png

REAL_WALLS = ("gray_bright_03", "blue_bright_02", "green_01", "red_bright_01")
REAL_FLOORS = ("green_bright_02", "blue_02", "orange_01", "green_bright_03")
REAL_EPISODE = Path(__file__).parent / "data" / "dmlab_teco_episode.npz"
PRESETS = ("default", "dmlab")
ACTION_SETS = ("full", "walk", "teco")
RICH = {"goals": 2, "objects": 12, "decals": "pictures", "sky": "clouds"}
EPISODE_FRAMES = 300


@pytest.fixture
def env():
    env = MazeEnv()
    env.reset(seed=3)
    return env


def checksum(frames):
    return hashlib.sha256(np.stack(frames).tobytes()).hexdigest()


def play(env, name, seed, num_frames=EPISODE_FRAMES):
    """The frames, actions, poses and rewards of an episode under a policy."""
    frames = [env.reset(seed=seed)[0]]
    policy = env.policy(name, np.random.default_rng(seed))
    actions, poses, rewards = [], [env.pose], []
    for _ in range(num_frames - 1):
        actions.append(policy())
        frame, reward, _, _, _ = env.step(actions[-1])
        frames.append(frame)
        poses.append(env.pose)
        rewards.append(reward)
    return np.stack(frames), actions, poses, rewards


def act(env, *names):
    """Take the actions of these names; the last frame."""
    for name in names:
        frame = env.step(env.action_vocabulary.index(name))[0]
    return frame


def scene_of(walls, things=(), **look):
    """An undressed maze with things in it."""
    look = Look(**{"decals": "none", **look})
    return build_scene(walls, dress(walls, np.random.default_rng(0)), look, things, np.random.default_rng(0))


def hall():
    """Three cells from west to east, walls around."""
    walls = np.ones((5, 5), bool)
    walls[1:4, 2] = False
    return walls


def ball(x, y=2.5, **changes):
    return dataclasses.replace(
        Thing(shape=BALL, x=x, y=y, ground=0.36, radius=0.14, height=0.28, heading=0.0, colour=(255, 0, 255)), **changes
    )


# The contract


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("actions", ACTION_SETS)
@pytest.mark.parametrize("goals", [0, 3])
def test_maze_keeps_the_gymnasium_contract(preset, actions, goals):
    env = gymnasium.make(
        "farworld/Maze-v0", preset=preset, actions=actions, goals=goals, size=16, render_mode="rgb_array"
    )
    check_env(env.unwrapped)


def test_the_documented_actions_are_those_of_the_vocabularies():
    """The table in the class's docstring has an index for each, and the keys."""
    rows = [[part.strip() for part in line.strip(" |").split("|")] for line in MazeEnv.__doc__.splitlines()]
    table = {row[0]: row for row in rows if len(row) == 6 and row[0] in MOVES}
    for column, actions in enumerate(ACTION_SETS, start=1):
        vocabulary = MazeEnv(actions=actions).action_vocabulary
        documented = {int(row[column]): name for name, row in table.items() if row[column] != "-"}
        assert documented == dict(enumerate(vocabulary.names))
        assert all(", ".join(action.keys) == table[action.name][4] for action in vocabulary.actions)


def test_info_has_what_is_documented(env):
    documented = set(re.findall(r"^    - `(\w+)`", MazeEnv.__doc__.split("`info` has")[1].split("##")[0], re.M))
    info = env.step(0)[4]
    assert set(info) == documented == {"position", "heading", "goals_reached", "respawned"}
    assert tuple(info["position"]) == env.pose[:2] and info["heading"] == env.pose.heading


# The same seed


@pytest.mark.parametrize("kwargs", [{}, {"preset": "dmlab"}, RICH])
def test_same_seed_and_actions_give_the_same_frames(kwargs):
    first, first_actions, *_ = play(MazeEnv(**kwargs), "explore", 11, 60)
    second, second_actions, *_ = play(MazeEnv(**kwargs), "explore", 11, 60)
    assert first_actions == second_actions
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("size", "seed", "steps", "expected"),
    [
        (64, 5, 200, "3d104259045026cfb21bcbd8e36dc07e48619bfc26eb5e06fc6a315f99a3ddae"),
        (128, 7, 60, "918b8a6f281275fa3b704d455c01e70c4f4d1ce14ec7f7148909faa72b482f19"),
        (16, 8, 40, "1fd2d5059bddd4d252649c15f35aa850753788b81afa7507428ff03a794245ff"),
    ],
)
def test_the_walk_actions_draw_what_they_drew_when_worlds_were_trained_on_them(size, seed, steps, expected):
    """The checksums are of the maze as it was when these seven were its only actions."""
    env = MazeEnv(actions="walk", size=size)
    rng = np.random.default_rng(seed)
    frames, action = [env.reset(seed=seed)[0]], 0
    for _ in range(steps):
        if rng.random() < 0.25:
            action = int(rng.integers(7))
        frames.append(env.step(action)[0])
    assert checksum(frames) == expected


def test_another_process_draws_the_same_frames():
    """Recordings are compared byte for byte between machines' worker processes."""
    code = (
        "import hashlib, numpy as np; from farworld.envs.maze import MazeEnv;"
        f"env = MazeEnv(**{RICH!r});"
        "frames = [env.reset(seed=5)[0]] + [env.step(a)[0] for a in (1, 1, 3, 5, 2, 6, 4, 8)];"
        "print(hashlib.sha256(np.stack(frames).tobytes()).hexdigest())"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    env = MazeEnv(**RICH)
    frames = [env.reset(seed=5)[0]] + [env.step(a)[0] for a in (1, 1, 3, 5, 2, 6, 4, 8)]
    assert child.stdout.strip() == checksum(frames)


def test_another_seed_gives_another_maze():
    env = MazeEnv()
    assert not np.array_equal(env.reset(seed=1)[0], env.reset(seed=2)[0])


@pytest.mark.parametrize("kwargs", [{"preset": "dmlab"}, {"actions": "walk"}, {"objects": 9}, RICH])
def test_a_seed_is_the_same_maze_in_every_dress(kwargs):
    """So that what a look or an object does to a model can be told from what the maze does."""
    plain, dressed = MazeEnv(), MazeEnv(**kwargs)
    for seed in range(5):
        plain.reset(seed=seed)
        dressed.reset(seed=seed)
        np.testing.assert_array_equal(plain.walls, dressed.walls)
        np.testing.assert_array_equal(plain.scene.floors, dressed.scene.floors)
        assert plain.pose == dressed.pose


# Moving


@pytest.mark.parametrize("turn", ["turn_left", "turn_right"])
def test_a_full_turn_returns_to_the_same_frame(env, turn):
    before = act(env, "noop")
    frames = [act(env, turn) for _ in range(18)]
    np.testing.assert_array_equal(frames[-1], before)
    assert all(not np.array_equal(frame, before) for frame in frames[:-1])


def test_turning_left_moves_the_scene_right(env):
    """A mirrored camera would pass every other test."""
    before = act(env, "noop").astype(float)
    after = act(env, "turn_left").astype(float)

    def error(shift):
        return np.abs(after[:, 16:48] - before[:, 16 - shift : 48 - shift]).mean()

    assert error(11) < error(-11)


def test_noop_holds_still(env):
    before = act(env, "noop")
    for _ in range(3):
        np.testing.assert_array_equal(act(env, "noop"), before)


def test_backward_undoes_forward(env):
    before = act(env, "noop")
    moved = act(env, "forward")
    after = act(env, "backward")
    assert not np.array_equal(moved, before)
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(("action", "aside"), [("strafe_left", -90), ("strafe_right", 90)])
def test_strafing_walks_across_the_heading(action, aside):
    env = MazeEnv()
    num_free = 0
    for seed in range(20):
        env.reset(seed=seed)
        before = env.pose
        act(env, action)
        angle = np.radians(before.heading + aside)
        moved = np.subtract(env.pose[:2], before[:2])
        assert env.pose.heading == before.heading
        assert moved @ (np.cos(angle), np.sin(angle)) > 0.24  # to where a wall may stop it
        num_free += np.allclose(moved, STEP_CELLS * np.array([np.cos(angle), np.sin(angle)]))
    assert num_free > 2


@pytest.mark.parametrize(("chord", "turn"), [("forward_left", "turn_left"), ("forward_right", "turn_right")])
def test_a_chord_turns_and_then_walks(env, chord, turn):
    start = env.pose
    expected = start
    for name in (turn, "forward"):
        expected = env.preview(expected, env.action_vocabulary.index(name))
    act(env, chord)
    assert env.pose == expected and expected != start


@pytest.mark.parametrize("degrees", [7.5, 16.9, 90])
def test_turn_degrees_is_what_a_turn_turns(degrees):
    env = MazeEnv(turn_degrees=degrees)
    heading = env.reset(seed=0)[1]["heading"]
    for name, sign in (("turn_right", 1), ("turn_left", -1), ("forward_left", -1)):
        after = env.step(env.action_vocabulary.index(name))[4]["heading"]
        assert (after - heading - sign * degrees + 180) % 360 - 180 == pytest.approx(0)
        heading = after


@pytest.mark.parametrize("num_turns", [0, 2, 5, 11])
def test_walking_into_a_wall_ends_in_standing_still(env, num_turns):
    act(env, "noop", *["turn_left"] * num_turns)
    frames = [act(env, "forward") for _ in range(80)]
    np.testing.assert_array_equal(frames[-1], frames[-2])


def test_walls_are_never_entered():
    """The body stays clear of every wall, whatever the action."""
    env = MazeEnv()
    rng = np.random.default_rng(0)
    for seed in range(5):
        _, info = env.reset(seed=seed)
        for action in rng.choice(9, 300, p=[0.02, 0.4, 0.08, 0.05, 0.05, 0.1, 0.1, 0.1, 0.1]):
            before, (_, _, _, _, info) = info, env.step(action)
            assert np.abs(info["position"] - before["position"]).max() <= STEP_CELLS + 1e-9
            for corner in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
                x, y = np.floor(info["position"] + (BODY_RADIUS - 1e-5) * np.array(corner)).astype(int)
                assert not env.walls[x, y]


# The maze and what is in it


@pytest.mark.parametrize("grid_size", [5, 9, 21])
def test_every_cell_of_a_maze_can_be_reached(grid_size):
    for seed in range(20):
        env = MazeEnv(grid_size=grid_size, size=16)
        env.reset(seed=seed)
        walls = env.walls
        assert walls.shape == (grid_size, grid_size)
        assert walls[0].all() and walls[-1].all() and walls[:, 0].all() and walls[:, -1].all()
        assert len(distances(walls, (1, 1), np.random.default_rng(0))) == (~walls).sum()


def test_about_15_of_100_inner_walls_are_opened():
    """Of a tree of rooms every wall is closed; what more is open was opened."""
    opened = closed = 0
    for seed in range(200):
        walls = carve(9, np.random.default_rng(seed))
        between = [(x, y) for x in range(1, 8) for y in range(1, 8) if (x + y) % 2]
        num_open = sum(not walls[cell] for cell in between)
        opened += num_open - 15  # 16 rooms hang together by 15 passages
        closed += len(between) - 15
    assert opened / closed == pytest.approx(0.15, abs=0.02)


def test_a_quadrant_has_a_wall_and_a_floor_of_its_own(env):
    floors, faces, walls = env.scene.floors, env.scene.faces, env.walls
    num_walls = len(load_textures().walls)
    styles = {}
    for x, y in np.argwhere(~walls).tolist():
        quadrant = styles.setdefault((x > 4, y > 4), (set(), set()))
        quadrant[0].add(int(floors[x, y]))
        for dx, dy, face in ((1, 0, 0), (-1, 0, 1), (0, 1, 2), (0, -1, 3)):
            if walls[x + dx, y + dy]:
                quadrant[1].add(int(faces[x + dx, y + dy, face]) % num_walls)  # with or without a plate
    assert len(styles) == 4 and all(len(style) == 1 for quadrant in styles.values() for style in quadrant)
    assert len({min(floor) for floor, _ in styles.values()}) == len({min(wall) for _, wall in styles.values()}) == 4


@pytest.mark.parametrize(("decals", "least"), [("plates", 20), ("pictures", 20), ("none", 0)])
def test_decals_hang_on_some_walls(decals, least):
    env = MazeEnv(decals=decals, size=16)
    num_walls = len(load_textures().walls)
    plates = pictures = 0
    for seed in range(5):
        env.reset(seed=seed)
        plates += (env.scene.faces >= num_walls).sum()
        hung = env.scene.decals[env.scene.decals >= 0]
        pictures += len(hung)
        assert len(set(hung.tolist())) == min(len(hung), len(load_pictures()))  # each place has its own
    assert (plates if decals == "plates" else pictures) >= least
    assert (pictures if decals == "plates" else plates) == 0


def test_a_picture_is_seen_upright_and_not_mirrored_from_every_side():
    """An arrow to the right points right on all four walls of a room, and a triangle stands on its side."""
    walls = np.ones((3, 3), bool)
    walls[1, 1] = False
    for picture, axis in ((1, 1), (14, 0)):  # a white arrow on blue, a white triangle on red
        scene = scene_of(walls)
        scene.decals[:] = picture
        for heading in (0, 90, 180, 270):
            view = draw(scene, 1.5, 1.5, heading, 256).astype(int)[64:192, 64:192]  # the wall ahead
            sign = np.argwhere((view.min(2) > 200) & (np.ptp(view, axis=2) < 20))[:, axis]
            assert len(sign) > 200
            assert sign.mean() > (sign.min() + sign.max()) / 2 + 0.7, (picture, heading)


def test_objects_never_come_into_the_camera():
    """The corners they stand in are where no body fits, and inside an object there is nothing to see."""
    env = MazeEnv(objects=64, size=16)
    env.reset(seed=0)
    things = env.scene.things
    assert len(things) == 64
    nearest = min(
        np.hypot(x + px - thing[1], y + py - thing[2]) - thing[4]
        for thing in things
        for x, y in [(int(thing[1]), int(thing[2]))]
        for px in np.linspace(BODY_RADIUS, 1 - BODY_RADIUS, 9)
        for py in np.linspace(BODY_RADIUS, 1 - BODY_RADIUS, 9)
    )
    assert nearest > 0
    assert not any(env.walls[int(thing[1]), int(thing[2])] for thing in things)
    assert len({(shape, *colour) for shape, *_, height, _, _, r, g, b in things for colour in [(height, r, g, b)]}) > 40


@pytest.mark.parametrize(("name", "most"), [("goals", 8), ("objects", 64)])
def test_there_is_room_for_as_many_as_documented(name, most):
    MazeEnv(**{name: most}).reset(seed=0)
    with pytest.raises(ValueError, match=rf"{name} must be a whole number in \[0, {most}\]"):
        MazeEnv(**{name: most + 1})


# Shapes against walls and each other


def magenta(frame):
    """Where a magenta thing is seen: (size, size) bool."""
    frame = frame.astype(int)
    return (frame[..., 1] < 30) & (frame[..., 0] > 100) & (frame[..., 2] > 100)


def test_a_ball_is_as_large_as_perspective_has_it():
    frame = draw(scene_of(hall(), [ball(3.2)]), 1.5, 2.5, 0.0, 256)
    seen = np.argwhere(magenta(frame))
    half_angle = np.arcsin(0.14 / 1.7)
    diameter = 2 * np.tan(half_angle) * 128
    height, width = np.ptp(seen, axis=0) + 1
    assert height == pytest.approx(diameter, abs=2) and width == pytest.approx(diameter, abs=2)
    np.testing.assert_allclose(seen.mean(0), [127.5, 127.5], atol=1)


@pytest.mark.parametrize("shape", [BALL, PILLAR, CONE, BOX, GEM])
@pytest.mark.parametrize("heading", [0.0, 30.0])
def test_every_shape_fills_its_own_box_and_no_more(shape, heading):
    """Its height from the ground up, and between 1.4 and 2 radii of width, whatever way it is turned."""
    thing = ball(3.0, shape=shape, ground=0.3, height=0.3, radius=0.15, heading=heading)
    frame = draw(scene_of(hall(), [thing]), 1.0, 2.5, 0.0, 256)
    rows, columns = np.argwhere(magenta(frame)).T
    top, bottom = 128 - 0.1 / 2 * 128, 128 + 0.2 / 2 * 128
    assert top - 3 <= rows.min() <= top + 3 and bottom - 3 <= rows.max() <= bottom + 3
    assert 1.3 * 0.15 / 2 * 128 <= np.ptp(columns) + 1 <= 2.1 * 0.15 / 1.85 * 128


@pytest.mark.parametrize(
    ("shape", "widths"),  # of its widest, at a quarter, half and three quarters of its height
    [
        (BALL, (0.87, 1, 0.87)),
        (PILLAR, (1, 1, 1)),
        (CONE, (0.75, 0.5, 0.25)),
        (BOX, (1, 1, 1)),
        (GEM, (0.5, 1, 0.5)),
    ],
)
def test_every_shape_has_its_outline(shape, widths):
    thing = ball(3.4, shape=shape, ground=0.35, height=0.3, radius=0.15)
    rows = magenta(draw(scene_of(hall(), [thing]), 1.2, 2.5, 0.0, 512)).sum(1)
    bottom, top = np.flatnonzero(rows)[[-1, 0]]
    for part, width in zip((0.25, 0.5, 0.75), widths, strict=True):
        row = round(bottom + part * (top - bottom))
        assert rows[row] / rows.max() == pytest.approx(width, abs=0.09), part


@pytest.mark.parametrize("shape", [BALL, PILLAR, CONE, BOX, GEM])
def test_a_shape_is_brighter_on_the_side_of_the_light(shape):
    """The light comes from above, from the south-east."""
    scene = scene_of(hall(), [ball(2.5, shape=shape, ground=0.35)])
    views = [draw(scene, x, 2.5, heading, 64) for x, heading in ((1.3, 0.0), (3.7, 180.0))]
    from_west, from_east = (view[magenta(view)].mean() for view in views)
    assert from_east > 1.1 * from_west


def test_a_shape_behind_a_wall_is_not_seen():
    walls = hall()
    walls[2, 2] = True
    with_ball = draw(scene_of(walls, [ball(3.5)]), 1.5, 2.5, 0.0, 64)
    np.testing.assert_array_equal(with_ball, draw(scene_of(walls), 1.5, 2.5, 0.0, 64))


def test_a_wall_hides_the_part_of_a_shape_that_is_behind_it():
    walls = hall()
    walls[3, 3] = False
    corner = 127.5 + 128 * 0.5 / 1.5  # where the wall that reaches to (3, 3) ends, seen from (1.5, 2.5)
    hidden = magenta(draw(scene_of(walls, [ball(3.5, 3.1)]), 1.5, 2.5, 0.0, 256))
    walls[2, 3] = False
    whole = magenta(draw(scene_of(walls, [ball(3.5, 3.1)]), 1.5, 2.5, 0.0, 256))
    cut = int(corner)
    assert whole[:, cut + 2 :].any() and not hidden[:, cut + 2 :].any()
    assert hidden[:, : cut - 1].any()
    np.testing.assert_array_equal(hidden[:, : cut - 1], whole[:, : cut - 1])


def test_the_nearer_shape_hides_the_farther_in_either_order():
    near, far = ball(2.5, radius=0.1, height=0.2, ground=0.4), ball(3.4, colour=(0, 255, 0))
    views = [draw(scene_of(hall(), order), 1.5, 2.5, 0.0, 64) for order in ([near, far], [far, near])]
    np.testing.assert_array_equal(views[0], views[1])
    assert magenta(views[0])[32, 32]


def test_a_shape_behind_the_camera_is_not_seen():
    frame = draw(scene_of(hall(), [ball(1.2)]), 2.5, 2.5, 0.0, 64)
    np.testing.assert_array_equal(frame, draw(scene_of(hall()), 2.5, 2.5, 0.0, 64))


def test_a_shape_casts_its_shadow_on_the_floor_only():
    plain = draw(scene_of(hall()), 1.5, 2.5, 0.0, 64).astype(int)
    shown = draw(scene_of(hall(), [ball(3.0, ground=0.6)]), 1.5, 2.5, 0.0, 64).astype(int)
    changed = np.argwhere((shown != plain).any(2) & ~magenta(shown))
    shaded = changed[changed[:, 0] > 36]
    assert len(shaded) > 5 and (shown.sum(2) <= plain.sum(2))[tuple(shaded.T)].all()
    assert abs(shaded[:, 0].mean() - (31.5 + 32 * 0.5 / 1.5)) < 2  # below the ball


# The sky


def test_the_sky_is_the_real_one_and_clouds_only_change_the_sky():
    walls = np.ones((5, 5), bool)
    walls[1:4, 1:4] = False
    plain, cloudy = (draw(scene_of(walls, sky=sky), 2.5, 2.5, 0.0, 64) for sky in ("plain", "clouds"))
    sky = (plain == SKY_RGB).all(2)
    assert 300 < sky.sum() < 2000
    np.testing.assert_array_equal(cloudy[33:], plain[33:])
    assert len(np.unique(cloudy[sky], axis=0)) > 100
    assert cloudy[sky][:, 2].min() > 200 and (cloudy[sky].astype(int)[:, 2] >= cloudy[sky][:, 0]).all()  # blue or white


def test_clouds_turn_with_the_heading():
    """The sky is far away: the same from everywhere, another in every direction."""
    walls = np.ones((9, 9), bool)
    walls[1:8, 1:8] = False
    scene = scene_of(walls, sky="clouds")
    here, there = draw(scene, 4.5, 4.5, 0.0, 64), draw(scene, 3.5, 4.2, 0.0, 64)
    np.testing.assert_array_equal(here[:16], there[:16])
    assert np.abs(draw(scene, 4.5, 4.5, 90.0, 64)[:16].astype(int) - here[:16]).mean() > 3


def test_clouds_fade_towards_the_horizon():
    """Far clouds would flicker with every step."""
    walls = np.ones((51, 51), bool)
    walls[1:50, 1:50] = False
    frame = draw(scene_of(walls, sky="clouds"), 1.5, 25.5, 0.0, 512).astype(int)
    horizon = 256 - 256 * 0.5 / 48.5  # the top of the wall 48.5 cells ahead
    low, high = frame[int(horizon) - 3], frame[40]
    assert np.abs(low - SKY_RGB).max() < 12
    assert np.ptp(high, axis=0).max() > 60


# Goals


def walk_to_goal(env, goal):
    """Walk the shortest way to a cell; what its last step returned."""
    policy = env.policy("tour", np.random.default_rng(0))
    for _ in range(2000):
        result = env.step(policy())
        if result[4]["respawned"]:
            return result
    raise AssertionError(f"no goal was reached, {goal} least of all")


def test_reaching_a_goal_rewards_and_puts_the_camera_elsewhere():
    env = MazeEnv(goals=1)
    env.reset(seed=4)
    [goal] = env.goals
    walls = env.walls
    places = set()
    for reached in range(1, 6):
        frame, reward, terminated, truncated, info = walk_to_goal(env, goal)
        assert reward == 1.0 and not terminated and not truncated
        assert info["goals_reached"] == reached and info["respawned"]
        assert env.cell != goal and env.goals == [goal] and env.walls is walls
        np.testing.assert_array_equal(frame, draw(env.scene, *env.pose, 64))
        places.add(env.cell)
        assert env.step(0)[1] == 0.0 and not env.step(0)[4]["respawned"]
    assert len(places) > 1
    assert env.reset(seed=5)[1]["goals_reached"] == 0


def test_a_goal_is_reached_by_whoever_walks_through_its_room():
    """0.4 cells are more than the farthest that the camera can be from the middle of a passage."""
    assert GOAL_REACH > BODY_RADIUS * np.sqrt(2)
    env = MazeEnv(goals=8, size=16)
    for seed in range(40):
        env.reset(seed=seed)
        assert env.cell not in env.goals and len(set(env.goals)) == 8


def test_without_goals_there_is_no_reward():
    for preset in PRESETS:
        env = MazeEnv(preset=preset)
        *_, rewards = play(env, "explore", 0)
        assert not any(rewards) and env.goals == []


@pytest.mark.parametrize("seed", range(3))
def test_a_goal_that_is_not_there_changes_nothing_else(seed):
    """Objects and goals are drawn after the maze and the start."""
    plain, goals = MazeEnv(), MazeEnv(goals=3)
    plain.reset(seed=seed)
    goals.reset(seed=seed)
    assert plain.pose == goals.pose and len(goals.goals) == 3


# Policies


@pytest.mark.parametrize("kwargs", [{}, {"actions": "walk"}, {"actions": "teco"}, RICH])
def test_explore_uses_every_action_bumps_into_walls_idles_and_sees_most_of_the_maze(kwargs):
    """Measured over eight episodes: 0.81 to 0.85 of the cells, 0.68 where goals put the camera elsewhere."""
    env = MazeEnv(size=16, **kwargs)
    names = env.action_vocabulary.names
    counts = np.zeros(len(names), int)
    shares, num_bumps = [], 0
    for seed in range(8):
        _, actions, poses, _ = play(env, "explore", seed)
        counts += np.bincount(actions, minlength=len(names))
        shares.append(len({pose.cell for pose in poses}) / (~env.walls).sum())
        num_bumps += sum(
            MOVES[names[action]].step != 0 and np.hypot(*np.subtract(before[:2], after[:2])) < 0.1
            for action, before, after in zip(actions, poses, poses[1:], strict=False)
        )
    assert (counts >= 0.008 * counts.sum()).all(), dict(zip(names, counts, strict=True))
    assert num_bumps > 0.01 * counts.sum()
    assert "noop" not in names or counts[names.index("noop")] > 0.02 * counts.sum()
    assert np.mean(shares) > (0.6 if "goals" in kwargs else 0.7), shares


@pytest.mark.parametrize(("kwargs", "least"), [({}, 0.88), ({"preset": "dmlab"}, 0.8), ({"grid_size": 15}, 0.3)])
def test_tour_covers_the_maze_without_a_bump(kwargs, least):
    """Measured over eight episodes of 300 frames: 0.94, 0.89 and 0.39 of the cells."""
    env = MazeEnv(size=16, **kwargs)
    shares = []
    for seed in range(8):
        _, actions, poses, _ = play(env, "tour", seed)
        shares.append(len({pose.cell for pose in poses}) / (~env.walls).sum())
    assert np.mean(shares) > least, shares
    assert {env.action_vocabulary.names[action] for action in actions} <= {
        "forward", "turn_left", "turn_right", "forward_left", "forward_right"
    }  # fmt: skip


def test_the_published_policy_spins_left_for_20_frames_and_then_tours():
    env = MazeEnv(preset="dmlab", size=16)
    assert env.action_vocabulary.names == teco_layouts["dmlab"].action_vocabulary.names
    assert env.metadata["render_fps"] == teco_layouts["dmlab"].frames_per_second == 7.5
    shares = []
    for seed in range(6):
        _, actions, poses, _ = play(env, "explore", seed)
        assert set(actions[:20]) == {0}
        shares.append(np.bincount(actions, minlength=3) / len(actions))
        assert len({pose.cell for pose in poses}) > 0.6 * (~env.walls).sum()
    # The real episode has .35, .26 and .39 of left, right and forward.
    np.testing.assert_allclose(np.mean(shares, axis=0), [0.33, 0.24, 0.43], atol=0.07)


def revisits(poses, least=10):
    """How many frames later each pose came again, where that took at least so many and the camera moved between."""
    last_seen, gaps = {}, []
    for t, pose in enumerate(poses):
        key = tuple(np.round(pose, 5).tolist())
        if key in last_seen and t - last_seen[key] >= least and any(p != pose for p in poses[last_seen[key] : t]):
            gaps.append((t, last_seen[key]))
        last_seen[key] = t
    return gaps


@pytest.mark.parametrize("kwargs", [{}, {"actions": "walk"}, {"preset": "dmlab"}, {"grid_size": 15}])
def test_revisit_sees_the_same_from_the_same_pose_again(kwargs):
    """Measured over eight episodes: 0.23 to 0.34 of the frames, after 10 to 200 frames; explore and tour 0 to 0.04."""
    env = MazeEnv(**kwargs)
    num_again = {"revisit": 0, "tour": 0}
    longest = 0
    for name in num_again:
        for seed in range(4):
            frames, _, poses, _ = play(env, name, seed)
            again = revisits(poses)
            num_again[name] += len(again)
            for t, before in again if name == "revisit" else []:
                different = (frames[t] != frames[before]).any(2).mean()
                assert different < 0.01, (t, before)  # a rounding error may reach a pixel at an edge
                longest = max(longest, t - before)
    assert num_again["revisit"] > 0.15 * 4 * EPISODE_FRAMES
    assert num_again["tour"] < 0.1 * 4 * EPISODE_FRAMES
    assert longest > 60


def test_revisit_goes_out_before_it_comes_back():
    """A look aside is no excursion: some poses come again after the camera was two cells away."""
    env = MazeEnv(size=16)
    far = 0
    for seed in range(4):
        _, _, poses, _ = play(env, "revisit", seed)
        for t, before in revisits(poses):
            away = max(np.hypot(*np.subtract(pose[:2], poses[t][:2])) for pose in poses[before:t])
            far += away > 2
    assert far > 40


def test_every_excursion_ends_in_the_pose_that_it_began_in():
    """Corners can be passed in one direction only: what was played through and did not return is not played."""
    env = MazeEnv(size=16)
    num_excursions = 0
    for seed in range(12):
        env.reset(seed=seed)
        policy = env.policy("revisit", np.random.default_rng(seed))
        for _ in range(10):
            for _ in range(7):
                env.step(policy())
            pose = env.pose
            for action in policy._excursion():
                pose = env.preview(pose, action)
                num_excursions += pose == env.pose
            assert pose.is_near(env.pose)
    assert num_excursions > 20


def test_revisit_looks_aside_and_back():
    env = MazeEnv(size=16)
    letters = {"turn_left": "l", "turn_right": "r", "noop": "n"}
    text = ""
    for seed in range(6):
        _, actions, *_ = play(env, "revisit", seed)
        text += "".join(letters.get(env.action_vocabulary.names[action], "-") for action in actions) + "|"
    looks = [(len(m[1]), len(m[2])) for m in re.finditer(r"(l{3,9})n*(r{3,9})", text)]
    looks += [(len(m[1]), len(m[2])) for m in re.finditer(r"(r{3,9})n*(l{3,9})", text)]
    assert sum(there == back for there, back in looks) > 8, looks


def test_revisit_comes_home_to_the_cell_where_no_turns_are_half_a_circle():
    env = MazeEnv(preset="dmlab", turn_degrees=16.9, size=16)
    farthest = []  # how far away the camera was before it was at home again, in cells
    for seed in range(6):
        env.reset(seed=seed)
        policy = env.policy("revisit", np.random.default_rng(seed))
        home, away = None, 0.0
        for _ in range(EPISODE_FRAMES):
            action = policy()
            if home is not None and policy._home is None:
                assert env.cell == home
                farthest.append(away)
                away = 0.0
            home = policy._home
            if home is not None:
                away = max(away, np.hypot(*np.subtract(env.cell, home)))
            env.step(action)
    assert len(farthest) > 20 and np.mean(farthest) > 1.5, farthest


def test_revisit_drops_an_excursion_that_others_disturb():
    env = MazeEnv(size=16)
    env.reset(seed=0)
    policy = env.policy("revisit", np.random.default_rng(0))
    for _ in range(300):
        env.step(policy())
        if len(policy._planned) > 30:
            break
    assert len(policy._planned) > 30
    act(env, "turn_left")
    env.step(policy())
    assert len(policy._planned) == 0


@pytest.mark.parametrize("name", MazeEnv.POLICIES)
def test_a_policy_starts_anew_after_a_reset_and_finds_its_way_when_others_act(name):
    env = MazeEnv(size=16, goals=2)
    env.reset(seed=0)
    policy = env.policy(name, np.random.default_rng(0))
    for seed in range(4):
        env.reset(seed=seed)
        for _ in range(50):
            env.step(policy())
        for _ in range(10):
            act(env, "strafe_left", "turn_left")
        for _ in range(50):
            env.step(policy())


def test_an_unknown_policy_is_named(env):
    with pytest.raises(ValueError, match="one of explore, tour, revisit, got 'wander'"):
        env.policy("wander", np.random.default_rng(0))


# Side by side with the real thing


def turned_degrees(before, after):
    """By how many degrees the camera has turned left from one frame to the next, by the rows around the horizon."""
    columns = (np.arange(64) + 0.5 - 32) / 32
    best = []
    for degrees in np.arange(-30, 30.1, 0.25):
        source = np.arctan(columns) - np.radians(degrees)  # where each column of the new frame was
        at = np.tan(source) * 32 + 31.5
        inside = (at >= 0) & (at <= 62)
        low = at[inside].astype(int)
        part = (at[inside] - low)[None, :, None]
        moved = before[28:36, low] * (1 - part) + before[28:36, low + 1] * part
        best.append((np.abs(moved - after[28:36][:, inside]).mean(), degrees))
    return min(best)[1]


def test_the_camera_is_that_of_the_real_dmlab_episode():
    """Its spin shows field of view and turn; the nominal turn is 20 degrees, what its frames show is 16.9."""
    real = np.load(REAL_EPISODE)
    frames = real["video"].astype(float)
    assert (real["actions"][:26] == 0).all()
    spin = [turned_degrees(frames[t], frames[t + 1]) for t in range(25)]
    assert np.median(spin) == pytest.approx(16.9, abs=0.5)
    env = MazeEnv(preset="dmlab", turn_degrees=16.9)
    ours = play(env, "explore", 0, 21)[0].astype(float)
    assert np.median([turned_degrees(ours[t], ours[t + 1]) for t in range(20)]) == pytest.approx(16.9, abs=0.5)


def test_brightness_contrast_and_motion_are_those_of_the_real_dmlab_episode(monkeypatch):
    """In the real episode's own textures and under its policy; one maze differs from another by about as much."""
    textures = load_textures()
    walls = [textures.walls.index(f"wall_{name}.png") for name in REAL_WALLS]
    floors = [textures.floors.index(f"floor_{name}.png") for name in REAL_FLOORS]
    monkeypatch.setattr(maze_layout, "_choose_styles", lambda rng: (walls, floors))

    def figures(frames):
        """Mean and contrast of each colour, sky's share, change across, down and in time."""
        frames = frames.astype(float)
        changes = [np.abs(np.diff(frames, axis=axis)).mean() for axis in (2, 1, 0)]
        colours = frames.reshape(-1, 3)
        return np.array([*colours.mean(0), *colours.std(0), (frames == SKY_RGB).all(3).mean() * 100, *changes])

    real = figures(np.load(REAL_EPISODE)["video"])
    ours = np.mean([figures(play(MazeEnv(preset="dmlab"), "explore", seed)[0]) for seed in range(6)], axis=0)
    np.testing.assert_allclose(ours, real, atol=2.0, rtol=0.15)


# Arguments


@pytest.mark.parametrize("size", [16, 48, 64, 128, 256])
@pytest.mark.parametrize("kwargs", [{}, RICH])
def test_size_sets_the_observation_and_nothing_else(size, kwargs):
    """The same view, only sharper: large pictures shrink to the small one."""
    env = MazeEnv(size=size, **kwargs)
    frame, _ = env.reset(seed=1)
    assert frame.shape == (size, size, 3) and frame.dtype == np.uint8
    small = MazeEnv(size=16, **kwargs).reset(seed=1)[0]
    shrunk = frame.reshape(16, size // 16, 16, size // 16, 3).mean((1, 3))
    assert np.abs(shrunk - small).mean() < 6


@pytest.mark.parametrize("size", [0, 50, -16, True, 64.0])
def test_a_bad_size_is_named(size):
    with pytest.raises(ValueError, match="multiple of 16"):
        MazeEnv(size=size)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"preset": "doom"}, "preset must be one of default, dmlab, got 'doom'"),
        ({"actions": "fly"}, "actions must be one of full, walk, teco, got 'fly'"),
        ({"decals": "stickers"}, "decals must be one of plates, pictures, none"),
        ({"sky": "night"}, "sky must be one of plain, clouds"),
        ({"grid_size": 8}, "odd and at least 5, got 8"),
        ({"grid_size": 3}, "odd and at least 5, got 3"),
        ({"grid_size": 9.0}, "odd and at least 5, got 9.0"),
        ({"goals": -1}, "goals must be a whole number"),
        ({"objects": True}, "objects must be a whole number"),
        ({"turn_degrees": 0}, "above 0 and at most 90, got 0"),
        ({"turn_degrees": float("nan")}, "above 0 and at most 90, got nan"),
        ({"turn_degrees": "20"}, "above 0 and at most 90, got '20'"),
        ({"render_mode": "human"}, "render_mode must be None or 'rgb_array'"),
    ],
)
def test_a_bad_argument_is_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MazeEnv(**kwargs)


@pytest.mark.parametrize("action", [-1, 9, 1.0, "forward"])
def test_an_action_outside_the_vocabulary_is_an_error(env, action):
    with pytest.raises(ValueError, match=r"\[0, 8\]"):
        env.step(action)


@pytest.mark.parametrize("call", [lambda env: env.step(1), lambda env: env.render()])
def test_reset_comes_first(call):
    """A maze made directly has no wrapper that would say so."""
    with pytest.raises(ValueError, match="call reset"):
        call(MazeEnv(render_mode="rgb_array"))


def test_the_maze_needs_no_opencv(monkeypatch):
    """It needs libGL, which slim machines lack."""
    monkeypatch.setitem(sys.modules, "cv2", None)
    textures = load_textures.__wrapped__()
    assert len(textures.levels) == 2 * len(textures.walls) + len(textures.floors)


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
