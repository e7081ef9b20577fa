"""From the action space of an environment to a vocabulary of named actions with keys, and back.

A recording, a learned world and a player know numbered actions with names and keys. What an environment takes can be
a number, several, or a dictionary with a camera. An `ActionTable` holds both sides: it comes from the environment
where that says what its actions mean, from a file that a person wrote, or is made up from the action space.
"""

from __future__ import annotations

import difflib
import itertools
import math
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from farworld.actions import Action, ActionVocabulary
from farworld.dataset.spaces import describe_space, stack_actions

CAMERA_STEP = 10.0  # of a camera without a file, in its own unit, degrees for all engines known here
MAX_COMPONENT_VALUES = 8  # of one component that become actions without a file; the 244 recipes of one are too many
_UNBOUNDED = 1e6  # bounds beyond it stand for none
MAX_UNNAMED_CHORDS = 6  # components without known names are combined in pairs if there are no more than this many


@dataclass(frozen=True, slots=True)
class ActionTable:
    """A vocabulary, and the environment's own action behind each of its entries.

    Attributes:
        vocabulary: names and keys.
        env_actions: as many values of the action space.
        space: the action space.
    """

    vocabulary: ActionVocabulary
    env_actions: tuple[Any, ...]
    space: spaces.Space

    def __post_init__(self) -> None:
        if len(self.env_actions) != len(self.vocabulary):
            raise ValueError(
                f"{len(self.vocabulary)} actions need as many of the environment's, got {len(self.env_actions)}"
            )

    @property
    def is_plain(self) -> bool:
        """Whether the index says it all: the environment's actions are its numbers, in their order."""
        space = self.space
        return isinstance(space, spaces.Discrete) and self.env_actions == tuple(
            range(int(space.start), int(space.start) + len(self.env_actions))
        )

    def stack(self, actions: Sequence[int]) -> dict[str, np.ndarray]:
        """What the environment was given for these actions, for `Episode.env_actions`."""
        if self.is_plain:
            return {}
        return stack_actions(describe_space(self.space), [self.env_actions[action] for action in actions])

    def index_of(self, env_action: int) -> int:
        """The entry behind which the environment's own numbered action lies.

        Raises:
            ValueError: there is none.
        """
        for index, value in enumerate(self.env_actions):
            if isinstance(value, int) and value == env_action:
                return index
        raise ValueError(
            f"the world's own policy takes its action {env_action}, which is not among the actions of the file "
            f"({', '.join(self.vocabulary.names)}); add it to the file, or record with --policy random"
        )


def action_table(env: gymnasium.Env, path: str | os.PathLike | None = None) -> ActionTable:
    """The actions of an environment with names and keys.

    Args:
        env: it may say what its actions mean, by an attribute of itself or of a wrapper around it: `action_table`, or
            `action_vocabulary` if they are numbered, or their names alone: `action_names`, for a Dict a dict of them;
            Atari's `get_action_meanings()` and MiniGrid's enumeration `actions` are understood too.
        path: a vocabulary file, see `read_action_file`; None takes what the environment says, or makes one up.

    Raises:
        ValueError: an action space of a kind that is not known, or a bad file.
    """
    space = env.action_space
    _check_space(space)
    names = _component_names(env)
    if path is not None:
        return read_action_file(path, space, names)
    table = attribute(env, "action_table")
    if table is not None:
        return table
    vocabulary = attribute(env, "action_vocabulary")
    if vocabulary is not None and isinstance(space, spaces.Discrete):
        return ActionTable(vocabulary, _numbers(space)[: len(vocabulary)], space)
    if isinstance(space, spaces.Discrete):
        return _discrete_table(space, names.get(()))
    return _composite_table(space, names)


def attribute(env: gymnasium.Env, name: str, default: Any = None) -> Any:
    """An attribute of an environment or of a wrapper around it."""
    try:
        return env.get_wrapper_attr(name)
    except AttributeError:
        return default


def _numbers(space: spaces.Discrete) -> tuple[int, ...]:
    return tuple(range(int(space.start), int(space.start + space.n)))


def _check_space(space: spaces.Space) -> None:
    for path, part in leaves(space):
        if not isinstance(part, (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, spaces.Box)):
            where = f" in {'/'.join(path)}" if path else ""
            raise ValueError(
                f"expected actions of Discrete, MultiDiscrete, MultiBinary, Box, or Dict and Tuple of these, "
                f"got {part}{where}; wrap the environment so that its actions are such"
            )


def leaves(space: spaces.Space, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], spaces.Space]]:
    """The spaces that a space is made of, each with the keys that lead there."""
    if not isinstance(space, (spaces.Dict, spaces.Tuple)):
        yield path, space
        return
    inner = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
    for key, part in inner:
        yield from leaves(part, (*path, str(key)))


def _component_names(env: gymnasium.Env) -> dict[tuple[str, ...], list[str]]:
    """What the environment calls the components of the parts of its actions, where it says so."""
    meanings = attribute(env, "get_action_meanings")
    names = meanings() if callable(meanings) else attribute(env, "action_names")
    if names is None:
        members = getattr(attribute(env, "actions"), "__members__", None)  # the enumeration of MiniGrid and MiniWorld
        numbers = [int(member) for member in (members or {}).values()]
        if members and isinstance(env.action_space, spaces.Discrete) and numbers == sorted(numbers):
            names = list(members)[: int(env.action_space.n)]
    if names is None:
        return {}
    rows = names.items() if isinstance(names, Mapping) else [("", names)]
    return {tuple(filter(None, str(key).split("/"))): [str(name) for name in row] for key, row in rows}


# Keys

# What the words of a name mean, and the keys that it gets: the first that is free, in this order. They are those of
# the built-in worlds, so that hands find their way in any world.
_ROLE_KEYS: dict[str, tuple[str, ...]] = {
    "forward": ("up",),
    "back": ("down",),
    "turn_left": ("left",),
    "turn_right": ("right",),
    "up": ("up", "w"),
    "down": ("down", "s"),
    "left": ("left", "a"),
    "right": ("right", "d"),
    "strafe_left": ("left", "a"),
    "strafe_right": ("right", "d"),
    "look_up": ("w",),
    "look_down": ("s",),
    "jump": ("space", "j"),
    "fire": ("space", "f"),
    "attack": ("f",),
    "use": ("e",),
    "sneak": ("c",),
    "sprint": ("left shift", "v"),
    "drop": ("g",),
    "inventory": ("i",),
}
_WORDS = {
    **{word: "forward" for word in ("forward", "forwards", "ahead")},
    **{word: "back" for word in ("back", "backward", "backwards")},
    **{word: "attack" for word in ("attack", "shoot", "destroy")},
    **{word: "use" for word in ("use", "interact", "pickup")},
    **{word: "sneak" for word in ("sneak", "crouch")},
    **{word: "sprint" for word in ("sprint", "speed", "run")},
    **{word: word for word in ("up", "down", "left", "right", "jump", "fire", "drop", "inventory")},
}
_IDLE_NAMES = {"noop", "no_op", "no_operation", "nothing", "do_nothing", "idle", "stay", "wait", "none", "still"}
_FILLERS = {"move", "go", "walk", "step", "button", "action", "delta"}
_FREE_KEYS = "0123456789qwertyuiopasdfghjklzxcvbnm"
_CHORD_PARTNERS = (
    *("turn_left", "turn_right", "strafe_left", "strafe_right", "left", "right"),
    *("jump", "sprint", "attack", "fire"),
)


def _words(name: str) -> list[str]:
    """The words of a name, in small letters: of move_forward, MoveForward, MOVE FORWARD or Atari's UPLEFT."""
    if re.fullmatch("(UP|DOWN|LEFT|RIGHT|FIRE)+", name):
        return [word.lower() for word in re.findall("UP|DOWN|LEFT|RIGHT|FIRE", name)]
    return re.findall(r"[a-z]+|\d+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())


def _roles(name: str) -> tuple[str, ...] | None:
    """What a name means: () is idling, several words that mean something a chord; None if it is not understood."""
    words = _words(name)
    if "_".join(words) in _IDLE_NAMES:
        return ()
    roles: list[str] = []
    manner = ""
    for word in words:
        if word in ("turn", "look", "rotate", "strafe"):
            manner = word
        elif word in _WORDS:
            role = _WORDS[word]
            if manner == "strafe" and role in ("left", "right"):
                role = f"strafe_{role}"
            elif manner and role in ("left", "right"):
                role = f"turn_{role}"
            elif manner == "look" and role in ("up", "down"):
                role = f"look_{role}"
            roles.append(role)
        elif word not in _FILLERS:
            return None
    return tuple(roles) or None


def _settle_sides(rows: Sequence[tuple[str, ...] | None]) -> list[tuple[str, ...] | None]:
    """Where one can turn, plain left and right are steps to the side; else they are what turns, or moves, there.

    A name that says more than left or right, such as forward_left, means the turn if there is one of its own.
    """
    present = {role for row in rows for role in row or ()}
    if not {"turn_left", "turn_right"} & present:
        return list(rows)

    def settled(row: tuple[str, ...], role: str) -> str:
        if role not in ("left", "right"):
            return role
        return f"turn_{role}" if len(row) > 1 else f"strafe_{role}"

    return [None if row is None else tuple(settled(row, role) for role in row) for row in rows]


def _keys_for(names: Sequence[str]) -> tuple[list[tuple[str, ...]], list[tuple[str, ...] | None]]:
    """Keys for actions, each its own, by their names where they are understood; and what they were understood as."""
    rows = _settle_sides([_roles(name) for name in names])
    present = {role for row in rows for role in row or ()}
    key_of: dict[str, str] = {}
    for role, wanted in _ROLE_KEYS.items():
        free = [key for key in wanted if key not in key_of.values()]
        if role.startswith("strafe") and {"turn_left", "turn_right"} & present:
            free = free[-1:]  # the arrows turn
        if role in present and free:
            key_of[role] = free[0]
    rows = [row if row is not None and all(role in key_of for role in row) else None for row in rows]
    chords: list[tuple[str, ...] | None] = []
    for row in rows:
        chord = None if row is None else tuple(key_of[role] for role in row)
        chords.append(None if chord in chords else chord)  # of two names that mean the same, the first has the keys
    rows = [None if chord is None else row for row, chord in zip(rows, chords, strict=True)]
    used = {chord for chord in chords if chord}
    free = [key for key in _FREE_KEYS if key not in key_of.values()]
    for numbered in (True, False):  # names that end in a digit come first: they get that one
        for index, name in enumerate(names):
            digit = re.search(r"(?<!\d)\d$", name)
            if chords[index] is None and bool(digit) == numbered:
                fitting = [digit[0] if digit else "", _FREE_KEYS[index] if index < len(_FREE_KEYS) else ""]
                chords[index] = _free_chord(fitting, free, used)
                used.add(chords[index] or ())
    return [chord or () for chord in chords], rows


def _free_chord(wanted: Sequence[str], free: Sequence[str], used: set[tuple[str, ...]]) -> tuple[str, ...]:
    """Keys that no other action has: those that are wanted, or else what is left, the shortest first."""
    chords = itertools.chain.from_iterable(itertools.combinations(free, size) for size in range(1, len(free) + 1))
    candidates = itertools.chain([(key,) for key in wanted if key in free], chords)
    return next(chord for chord in candidates if chord not in used)


# Without a file


def _discrete_table(space: spaces.Discrete, names: Sequence[str] | None) -> ActionTable:
    numbers = _numbers(space)
    if names is None or len(names) != len(numbers):
        names = [f"action_{index}" for index in range(len(numbers))]
    names = _different(names)
    keys, _ = _keys_for(names)
    actions = tuple(Action(name=name, keys=chord) for name, chord in zip(names, keys, strict=True))
    return ActionTable(ActionVocabulary(actions), numbers, space)


def _different(names: Sequence[str]) -> list[str]:
    """The names, those that occur before with a number."""
    found: list[str] = []
    for name in names:
        candidates = itertools.chain([name], (f"{name}_{count}" for count in itertools.count(2)))
        found.append(next(candidate for candidate in candidates if candidate not in found))
    return found


@dataclass(frozen=True, slots=True)
class _Move:
    """One thing that a composite action can do: a component of it has this value, and the others idle."""

    name: str
    changes: dict[tuple[tuple[str, ...], int], float]  # by the part's path and the component's place in it


def _composite_table(space: spaces.Space, names: Mapping[tuple[str, ...], Sequence[str]]) -> ActionTable:
    """Idling, each single component, and chords that are of use for moving."""
    moves = [move for path, part in leaves(space) for move in _moves(path, part, names.get(path))]
    labels = _different([move.name for move in moves])
    keys, roles = _keys_for(labels)
    rows = [(Action(name="noop"), _idle(space))]
    rows += [
        (Action(name=label, keys=chord), _compose(space, move.changes))
        for label, chord, move in zip(labels, keys, moves, strict=True)
    ]
    for first, second in _pairs(moves, roles):
        chord = Action(name=f"{labels[first]}+{labels[second]}", keys=(*keys[first], *keys[second]))
        rows.append((chord, _compose(space, {**moves[first].changes, **moves[second].changes})))
    actions, env_actions = zip(*rows, strict=True)
    return ActionTable(ActionVocabulary(actions), env_actions, space)


def _pairs(moves: Sequence[_Move], roles: Sequence[tuple[str, ...] | None]) -> Iterator[tuple[int, int]]:
    """Which moves are worth a chord."""

    def apart(first: int, second: int) -> bool:
        return not moves[first].changes.keys() & moves[second].changes.keys()

    if not any(roles):
        places = range(len(moves) if len(moves) <= MAX_UNNAMED_CHORDS else 0)
        yield from (pair for pair in itertools.combinations(places, 2) if apart(*pair))
        return
    where = {row[0]: index for index, row in enumerate(roles) if row is not None and len(row) == 1}
    for first in ("forward", "up", "down"):
        partners = _CHORD_PARTNERS if first == "forward" else ("left", "right")
        for second in partners:
            if first in where and second in where and apart(where[first], where[second]):
                yield where[first], where[second]


def _moves(path: tuple[str, ...], part: spaces.Space, names: Sequence[str] | None) -> Iterator[_Move]:
    """What the components of one part can do, in their order."""
    label = "_".join(path)
    idle = _idle(part)
    if isinstance(part, spaces.Discrete):
        for number in [number for number in _numbers(part) if number != idle][:MAX_COMPONENT_VALUES]:
            named = names[number - int(part.start)] if names and len(names) == part.n else None
            binary = part.n == 2 and label
            yield _Move(named or (label if binary else f"{label or 'action'}_{number}"), {(path, 0): number})
        return
    size = math.prod(part.shape or ())
    labels = list(names) if names and len(names) == size else _labels(label, part, size)
    values = np.ravel(idle)
    if isinstance(part, spaces.MultiBinary):
        yield from (_Move(labels[place], {(path, place): 1}) for place in range(size))
    elif isinstance(part, spaces.MultiDiscrete):
        starts, counts = np.ravel(part.start), np.ravel(part.nvec)
        for place in range(size):
            others = [v for v in range(starts[place], starts[place] + counts[place]) if v != values[place]]
            for value in others[:MAX_COMPONENT_VALUES]:
                name = labels[place] if len(others) == 1 else f"{labels[place]}_{value}"
                yield _Move(name, {(path, place): int(value)})
    else:
        lows, highs = np.ravel(part.low), np.ravel(part.high)  # type: ignore[attr-defined]
        for place in range(size):
            for end, name in zip((lows[place], highs[place]), _ends(labels[place]), strict=True):
                moved = _deflect(labels[place], float(values[place]), float(end))
                if moved != values[place]:
                    yield _Move(name, {(path, place): moved})


def _labels(label: str, part: spaces.Space, size: int) -> list[str]:
    if isinstance(part, spaces.Box) and "camera" in label and size == 2:
        return ["camera_pitch", "camera_yaw"]  # the order of MineRL, MineDojo and CraftGround
    kinds = {spaces.MultiBinary: "button", spaces.MultiDiscrete: "component"}
    stem = label or kinds.get(type(part), "axis")
    return [stem] if size == 1 and label else [f"{stem}_{place}" for place in range(size)]


def _ends(label: str) -> tuple[str, str]:
    """What the low and the high end of an axis do."""
    words = {*_words(label)}
    suffix = "_delta" if "delta" in words else ""
    for kinds, low, high in (
        (({"pitch"}, {"look", "up", "down"}), "look_up", "look_down"),
        (({"yaw"}, {"turn", "left", "right"}, {"look", "left", "right"}), "turn_left", "turn_right"),
        (({"left", "right"},), "move_left", "move_right"),
        (({"forward", "back"}, {"forward", "backward"}), "move_back", "move_forward"),
    ):
        if any(kind <= words for kind in kinds):
            return low + suffix, high + suffix
    return f"{label}_minus", f"{label}_plus"


def _deflect(label: str, idle: float, end: float) -> float:
    """An axis moved towards an end: a camera by some degrees, another one all the way, or by 1 if it has no end."""
    turns = _ends(label)[0].startswith(("look_up", "turn_left"))
    unbounded = abs(end) > _UNBOUNDED
    amount = CAMERA_STEP if turns and abs(end) > 1 else 1.0 if unbounded else math.inf
    return idle + math.copysign(min(amount, abs(end - idle)), end - idle) if end != idle else idle


# Values of a space


def _idle(space: spaces.Space) -> Any:
    """The value of a space that does nothing: zero or what is nearest to it, and the first of numbered ones."""
    match space:
        case spaces.Dict():
            return {key: _idle(part) for key, part in space.spaces.items()}
        case spaces.Tuple():
            return tuple(_idle(part) for part in space.spaces)
        case spaces.Discrete():
            return int(space.start)
        case spaces.MultiDiscrete():
            return space.start.astype(space.dtype).copy()
        case spaces.MultiBinary():
            return np.zeros(space.shape, space.dtype)
    low, high = space.low, space.high  # type: ignore[attr-defined]
    return np.array(np.clip(np.zeros(low.shape), low, high), space.dtype)


def _compose(space: spaces.Space, changes: Mapping[tuple[tuple[str, ...], int], float]) -> Any:
    """The idle value of a space with some components changed."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        inner = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        values = {}
        for key, part in inner:
            below = {(path[1:], place): v for (path, place), v in changes.items() if path[0] == str(key)}
            values[key] = _compose(part, below)
        return values if isinstance(space, spaces.Dict) else tuple(values.values())
    value = _idle(space)
    if isinstance(space, spaces.Discrete):
        return int(next(iter(changes.values()), value))
    for (_, place), number in changes.items():
        value.flat[place] = number
    return value


# From a file


def read_action_file(
    path: str | os.PathLike, space: spaces.Space, names: Mapping[tuple[str, ...], Sequence[str]] | None = None
) -> ActionTable:
    """Read a vocabulary that a person wrote.

    A TOML file with one table `[[actions]]` for each action, in their order: `name`; `keys`, a list of keys held
    together, named as pygame names them, left out for the action of no key; and `action`, the environment's own, which
    idles if it is left out: a number for Discrete, a list for MultiDiscrete, MultiBinary and Box, or a table. A table
    has the keys of a Dict, or the names of the buttons where the environment has such; what it leaves out idles.

    Args:
        path: the file.
        space: of the environment's actions.
        names: what the environment calls the components of each part.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not as described, or an action is outside the space.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}; --actions expects a TOML file with one [[actions]] an action")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows' editors begin with a byte order mark
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    rows = content.pop("actions", None)
    if content or not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        found = f"the unknown key {next(iter(content))!r}" if content else "none"
        raise ValueError(f"{path}: expected one or more tables [[actions]] and nothing else, got {found}")
    actions, env_actions = [], []
    for number, row in enumerate(rows, 1):
        where = f"{path}: action {number}" + (f" ({row['name']})" if isinstance(row.get("name"), str) else "")
        actions.append(_read_action(row, where))
        try:
            env_actions.append(_parse(space, row.get("action"), "action", names or {}, ()))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    _check_keys(path, actions)
    try:
        return ActionTable(ActionVocabulary(tuple(actions)), tuple(env_actions), space)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_action(row: Mapping[str, Any], where: str) -> Action:
    unknown = [key for key in row if key not in ("name", "keys", "action")]
    if unknown:
        raise ValueError(f"{where}: expected name, keys and action, got {unknown[0]!r}")
    name, keys = row.get("name"), row.get("keys", [])
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}: name must be a text, got {name!r}")
    if not isinstance(keys, list) or not all(isinstance(key, str) and key for key in keys):
        raise ValueError(f'{where}: keys must be a list of keys such as ["up", "left"], got {keys!r}')
    return Action(name=name, keys=tuple(key.lower() for key in keys))


def _check_keys(path: Path, actions: Sequence[Action]) -> None:
    owners: dict[frozenset[str], str] = {}
    for action in actions:
        other = owners.setdefault(frozenset(action.keys), action.name)
        if other != action.name and action.keys:
            raise ValueError(f"{path}: {other} and {action.name} have the same keys, {' + '.join(action.keys)}")


def _parse(
    space: spaces.Space, value: Any, where: str, names: Mapping[tuple[str, ...], Sequence[str]], path: tuple[str, ...]
) -> Any:
    """A value of a space from what a file has; None idles."""
    if value is None:
        return _idle(space)
    if isinstance(space, spaces.Dict):
        _check_table(value, [str(key) for key in space.spaces], where)
        return {
            key: _parse(part, value.get(str(key)), f"{where}.{key}", names, (*path, str(key)))
            for key, part in space.spaces.items()
        }
    if isinstance(space, spaces.Tuple):
        if not isinstance(value, list) or len(value) != len(space.spaces):
            raise ValueError(f"{where} must be a list of {len(space.spaces)} values, got {value!r}")
        parts = enumerate(zip(space.spaces, value, strict=True))
        return tuple(_parse(p, v, f"{where}[{i}]", names, (*path, str(i))) for i, (p, v) in parts)
    if isinstance(space, spaces.Discrete):
        return _parse_number(space, value, where, names.get(path))
    if isinstance(value, dict) and path in names:
        buttons = list(names[path])
        _check_table(value, buttons, where)
        listed = np.ravel(_idle(space)).tolist()
        for name, number in value.items():
            listed[buttons.index(name)] = number
        value = listed
    return _parse_array(space, value, where)


def _check_table(value: Any, known: Sequence[str], where: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be a table with some of {', '.join(known)}, got {value!r}")
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{where} has the unknown key {key!r}, expected some of {', '.join(known)}{hint}")


def _parse_number(space: spaces.Discrete, value: Any, where: str, names: Sequence[str] | None) -> int:
    first, last = int(space.start), int(space.start + space.n) - 1
    if isinstance(value, str) and names and value in names:
        return first + list(names).index(value)
    if isinstance(value, bool) and (first, last) == (0, 1):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not first <= value <= last:
        known = f", or one of {', '.join(names)}" if names else ""
        raise ValueError(f"{where} must be a whole number from {first} to {last}{known}, got {value!r}")
    return value


def _parse_array(space: spaces.Space, value: Any, where: str) -> np.ndarray:
    shape = space.shape or ()
    whole = not np.issubdtype(space.dtype, np.floating)
    if isinstance(space, spaces.MultiBinary):
        low, high = np.zeros(shape, int), np.ones(shape, int)
    elif isinstance(space, spaces.MultiDiscrete):
        low, high = space.start, space.start + space.nvec - 1
    else:
        low, high = space.low, space.high  # type: ignore[attr-defined]
    kind = "whole numbers" if whole else "numbers"
    expected = f"{where} must be {math.prod(shape)} {kind} from {_brief(low)} to {_brief(high)}, got {value!r}"
    try:
        array = np.asarray(value)
        if array.shape == () and math.prod(shape) == 1:
            array = array.reshape(shape)
        if array.dtype.kind not in "biuf" or array.shape != shape:
            raise ValueError(expected)
    except ValueError as error:  # NumPy's own, of a ragged list
        raise ValueError(expected) from error
    if whole and (array != np.trunc(array)).any() or not ((array >= low) & (array <= high)).all():
        raise ValueError(expected)
    return array.astype(space.dtype)


def _brief(bound: np.ndarray) -> str:
    values = np.ravel(bound).tolist()
    return str(values[0]) if len({*values}) == 1 else str(values)
