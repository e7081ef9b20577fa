"""Actions of any space under names and keys: made up, said by the environment, or written by a person."""

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from farworld.envs.vocabulary import action_table, read_action_file

BUTTON = Discrete(2)
MINERL = Dict(
    attack=BUTTON, back=BUTTON, camera=Box(-180, 180, (2,)), forward=BUTTON, jump=BUTTON, left=BUTTON, right=BUTTON,
    sneak=BUTTON, sprint=BUTTON,
)  # fmt: skip


class Env(gymnasium.Env):
    """An action space and what the environment says of it."""

    def __init__(self, action_space, **said):
        self.action_space = action_space
        for name, value in said.items():
            setattr(self, name, value)


def keys_of(table):
    return {action.name: action.keys for action in table.vocabulary.actions}


def test_buttons_and_a_camera_get_the_keys_of_the_built_in_worlds():
    """The arrows walk and turn, a and d step aside since one can turn, chords are for moving."""
    table = action_table(Env(MINERL))
    keys = keys_of(table)
    assert keys["noop"] == ()
    assert (keys["forward"], keys["back"]) == (("up",), ("down",))
    assert (keys["turn_left"], keys["turn_right"]) == (("left",), ("right",))
    assert (keys["left"], keys["right"]) == (("a",), ("d",))
    assert (keys["look_up"], keys["look_down"]) == (("w",), ("s",))
    assert (keys["jump"], keys["attack"], keys["sprint"]) == (("space",), ("f",), ("left shift",))
    assert keys["forward+jump"] == ("up", "space") and keys["forward+turn_left"] == ("up", "left")
    action = table.env_actions[table.vocabulary.index("forward+turn_left")]
    assert action["camera"].tolist() == [0, -10] and (action["forward"], action["attack"]) == (1, 0)


@pytest.mark.parametrize(
    "space",
    [
        Discrete(70, start=-3), MultiBinary(5), MultiBinary([2, 3]), MultiDiscrete([3, 3, 4, 25, 25, 8, 244, 36]),
        MultiDiscrete([3, 2], start=[5, -1]), Box(-1, 1, (3,)), Box(2, 5, (), np.float64), Box(-np.inf, np.inf, (2, 2)),
        Box(-512, 512, (7,), np.int32), MINERL, Dict(binary=MultiBinary(3), more=Tuple([Discrete(3), Box(0, 1, (1,))])),
    ],
)  # fmt: skip
def test_made_up_actions_are_in_the_space_and_all_different(space):
    """Each with keys of its own, the idle one without."""
    table = action_table(Env(space))
    assert all(space.contains(action) for action in table.env_actions)
    chords = [frozenset(action.keys) for action in table.vocabulary.actions]
    assert len({*chords}) == len(chords)
    assert len({repr(action) for action in table.env_actions}) == len(table.env_actions)
    assert table.vocabulary.noop == (None if isinstance(space, Discrete) else 0)


@pytest.mark.parametrize(
    ("said", "keys"),
    [
        (
            {"action_names": ["turn_left", "turn_right", "move_forward", "pickup", "toggle"]},
            [("left",), ("right",), ("up",), ("e",), ("4",)],
        ),
        (
            {"action_names": ["noop", "move_left", "move_right", "move_up", "sleep"]},
            [(), ("left",), ("right",), ("up",), ("4",)],
        ),
        (
            {"get_action_meanings": lambda: ["NOOP", "FIRE", "UPRIGHT", "DOWNLEFTFIRE", "LEFT"]},
            [(), ("space",), ("up", "right"), ("down", "left", "space"), ("left",)],
        ),
        (
            {"action_names": ["forward", "MoveAhead", "weapon2", "TurnRight", "jump"]},
            [("up",), ("1",), ("2",), ("right",), ("space",)],
        ),
        ({}, [("0",), ("1",), ("2",), ("3",), ("4",)]),
    ],
)
def test_names_that_are_understood_get_their_keys(said, keys):
    table = action_table(Env(Discrete(5), **said))
    assert [action.keys for action in table.vocabulary.actions] == keys
    assert table.is_plain and table.stack([1, 2]) == {}


def write(path, text):
    file = path / "keys.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_file_is_read_for_every_kind_of_space(tmp_path):
    """What it leaves out idles."""

    def read(space, action, names=None):
        path = write(tmp_path, f'[[actions]]\nname = "it"\nkeys = ["Left Shift", "up"]\n{action}')
        table = read_action_file(path, space, names)
        assert keys_of(table) == {"it": ("left shift", "up")}
        assert space.contains(table.env_actions[0])
        return table

    assert read(Discrete(3, start=4), "action = 6").stack([0, 0])["action"].tolist() == [6, 6]
    assert read(Discrete(3), 'action = "go"', {(): ["stay", "go", "stop"]}).env_actions == (1,)
    assert read(MultiDiscrete([3, 2]), "action = [2, 1]").stack([0])["action"].tolist() == [[2, 1]]
    assert read(MultiBinary(3), "action = { fire = 1 }", {(): ["run", "jump", "fire"]}).env_actions[0].tolist() == [
        0,
        0,
        1,
    ]
    assert read(Box(-1, 1, (2,)), "action = [0.5, -1]").stack([0])["action"].tolist() == [[0.5, -1]]
    stack = read(MINERL, "action = { forward = 1, jump = true, camera = [5, -7.5] }").stack([0])
    assert stack["camera"].tolist() == [[5, -7.5]] and stack["forward"].tolist() == stack["jump"].tolist() == [1]
    assert stack["attack"].tolist() == [0]
    assert read(Discrete(3, start=4), "").env_actions == (4,)


@pytest.mark.parametrize(
    ("text", "space", "message"),
    [
        ("actions = 3", Discrete(2), r"expected one or more tables \[\[actions\]\] and nothing else, got none"),
        ("[[action]]\nname = 'a'", Discrete(2), "got the unknown key 'action'"),
        ("[[actions]", Discrete(2), "is not TOML"),
        ("[[actions]]\nname = 'a'\nkey = 'b'", Discrete(2), r"1 \(a\): expected name, keys and action, got 'key'"),
        ("[[actions]]\nkeys = ['b']", Discrete(2), "action 1: name must be a text, got None"),
        ("[[actions]]\nname = 'a'\nkeys = 'b'", Discrete(2), r'keys must be a list of keys such as \["up", "left"\]'),
        ("[[actions]]\nname = 'a'\naction = 2", Discrete(2), r"1 \(a\): action must be a whole number from 0 to 1"),
        ("[[actions]]\nname = 'a'\naction = 1.5", Discrete(2), "whole number from 0 to 1, got 1.5"),
        ("[[actions]]\nname = 'a'\naction = [1]", MultiBinary(2), r"must be 2 whole numbers from 0 to 1, got \[1\]"),
        ("[[actions]]\nname = 'a'\naction = [3, 0]", MultiDiscrete([3, 2]), r"from 0 to \[2, 1\], got \[3, 0\]"),
        ("[[actions]]\nname = 'a'\naction = [[1], 2]", Box(-1, 1, (2,)), r"2 numbers from -1.0 to 1.0, got \[\["),
        ("[[actions]]\nname = 'a'\naction = [nan, 0]", Box(-1, 1, (2,)), r"got \[nan, 0\]"),
        (
            "[[actions]]\nname = 'a'\naction = { camera = [0, 200] }",
            MINERL,
            r"action.camera must be 2 numbers from -180.0 to 180.0, got \[0, 200\]",
        ),
        ("[[actions]]\nname = 'a'\naction = { foward = 1 }", MINERL, "unknown key 'foward', .*did you mean forward?"),
        ("[[actions]]\nname = 'a'\naction = 1", MINERL, "action must be a table with some of attack, back, camera"),
        (
            "[[actions]]\nname = 'a'\nkeys = ['x', 'y']\n[[actions]]\nname = 'b'\nkeys = ['y', 'x']",
            Discrete(2),
            r"a and b have the same keys, y \+ x",
        ),
        ("[[actions]]\nname = 'a'\n[[actions]]\nname = 'a'", Discrete(2), "different names, got"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(tmp_path, text, space, message):
    """Which file, which action, what was expected and what came."""
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=message) as error:
        read_action_file(path, space)
    assert str(path) in str(error.value) and "\n" not in str(error.value).replace(text, "")


def test_a_file_of_a_windows_editor_is_read(tmp_path):
    """It begins with a byte order mark."""
    path = write(tmp_path, '\ufeff[[actions]]\nname = "it"\naction = 1')
    assert read_action_file(path, Discrete(2)).env_actions == (1,)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file: .*keys.toml"):
        read_action_file(tmp_path / "keys.toml", Discrete(2))


def test_a_worlds_own_policy_goes_through_a_file(tmp_path):
    """In another order the world's numbers are looked up; one that the file lacks is named."""
    path = write(tmp_path, "".join(f"[[actions]]\nname = 'a{i}'\nkeys = ['{i}']\naction = {i}\n" for i in (2, 0, 1)))
    table = read_action_file(path, Discrete(4))
    assert [table.index_of(number) for number in (0, 1, 2)] == [1, 2, 0]
    assert not table.is_plain and table.stack([0, 1, 2])["action"].tolist() == [2, 0, 1]
    with pytest.raises(ValueError, match="own policy takes its action 3.*a2, a0, a1.*--policy random"):
        table.index_of(3)
