"""An environment's own action space in JSON, and its actions as one array for each part.

Models train on `actions`, the indices of a vocabulary. What the environment was really given can be more than such
an index (several integers, or keys and a camera); it is kept beside them, so that a recording can be replayed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

WHOLE = "action"  # the key of the only part of a space that is neither Dict nor Tuple
SEPARATOR = "/"  # between the keys of spaces inside each other


def describe_space(space: Any) -> dict[str, Any]:
    """A JSON description of a Gymnasium space.

    Args:
        space: Discrete, MultiDiscrete, MultiBinary, Box, or a Dict or Tuple of such, at any depth.

    Returns:
        {"type": "Discrete", "n", "start"}, {"type": "MultiDiscrete", "nvec", "start"}, {"type": "MultiBinary", "n"},
        {"type": "Box", "low", "high", "shape", "dtype"}, {"type": "Dict", "spaces": {key: ...}} or
        {"type": "Tuple", "spaces": [...]}. Bounds that are the same everywhere are one number; None is no bound.

    Raises:
        ValueError: a space of another kind.
    """
    from gymnasium import spaces

    match space:
        case spaces.Discrete():
            return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
        case spaces.MultiDiscrete():
            start = {"start": space.start.tolist()} if np.any(space.start) else {}
            return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), **start}
        case spaces.MultiBinary():
            return {"type": "MultiBinary", "n": space.n if isinstance(space.n, int) else np.asarray(space.n).tolist()}
        case spaces.Box():
            return {
                "type": "Box",
                "low": _bound(space.low),
                "high": _bound(space.high),
                "shape": list(space.shape),
                "dtype": str(space.dtype),
            }
        case spaces.Dict():
            return {"type": "Dict", "spaces": {str(key): describe_space(part) for key, part in space.spaces.items()}}
        case spaces.Tuple():
            return {"type": "Tuple", "spaces": [describe_space(part) for part in space.spaces]}
    raise ValueError(
        f"expected an action space of Discrete, MultiDiscrete, MultiBinary, Box, or a Dict or Tuple of these, "
        f"got {space}; wrap the environment so that its actions are such"
    )


def _bound(values: np.ndarray) -> Any:
    """Bounds in JSON: one number if all are the same, and None where there is none."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        return value if np.isfinite(value) else None

    return plain(values.flat[0].item() if values.size and np.all(values == values.flat[0]) else values.tolist())


def parts_of(description: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The spaces that a described space is made of, by key; its only part is called "action"."""
    if not _inner(description):
        return {WHOLE: description} if description else {}
    return {SEPARATOR.join(path): part for path, part in _leaves(description)}


def _inner(description: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    spaces = description.get("spaces", ())
    return list(spaces.items() if isinstance(spaces, Mapping) else ((str(i), part) for i, part in enumerate(spaces)))


def _leaves(description: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    inner = _inner(description)
    if not inner:
        yield (), description
    for key, part in inner:
        for path, leaf in _leaves(part):
            yield (key, *path), leaf


def stack_actions(description: Mapping[str, Any], actions: Sequence[Any]) -> dict[str, np.ndarray]:
    """T actions as the environment takes them, as arrays for `Episode.env_actions`.

    Args:
        description: of the action space, see describe_space.
        actions: T values of that space: numbers, arrays, dicts or tuples.

    Returns:
        One array for each part, (T, ...): int64 for the discrete kinds, float32 for Box (int64 if its dtype is one
        of integers).
    """
    if not _inner(description):
        return {WHOLE: _stack(description, actions)}
    arrays = {}
    for path, part in _leaves(description):
        values = actions
        for key in path:
            values = [value[key] if isinstance(value, Mapping) else value[int(key)] for value in values]
        arrays[SEPARATOR.join(path)] = _stack(part, values)
    return arrays


def _stack(part: Mapping[str, Any], values: Sequence[Any]) -> np.ndarray:
    return np.asarray(values, _dtype(part)).reshape(len(values), *_shape(part))


def unstack_action(description: Mapping[str, Any], env_actions: Mapping[str, np.ndarray], step: int) -> Any:
    """Action `step` as the environment takes it: the inverse of stack_actions."""
    return _unstack(description, env_actions, step, ())


def _unstack(
    description: Mapping[str, Any], env_actions: Mapping[str, np.ndarray], step: int, path: tuple[str, ...]
) -> Any:
    inner = _inner(description)
    if inner:
        parts = {key: _unstack(part, env_actions, step, (*path, key)) for key, part in inner}
        return parts if description["type"] == "Dict" else tuple(parts.values())
    value = env_actions[SEPARATOR.join(path) or WHOLE][step]
    if description["type"] == "Discrete":
        return int(value)
    return value.astype(description.get("dtype", "int64"))


def check_env_actions(description: Mapping[str, Any], env_actions: Mapping[str, np.ndarray], num_actions: int) -> None:
    """Raise ValueError unless an episode's own actions fit the described space.

    A plain Discrete space, or one that is not described, needs none: there the vocabulary's index says it all.

    Args:
        description: of the space; empty if unknown.
        env_actions: one array for each part.
        num_actions: T.
    """
    parts = parts_of(description)
    if not env_actions and description.get("type") in (None, "Discrete"):
        return
    if env_actions.keys() != parts.keys():
        raise ValueError(
            f"env_actions must have an array for each part of the action space "
            f"({', '.join(parts) or 'none is described'}), got {', '.join(env_actions) or 'none'}"
        )
    for key, part in parts.items():
        array, shape = env_actions[key], (num_actions, *_shape(part))
        if array.dtype != _dtype(part) or array.shape != shape:
            raise ValueError(
                f"env_actions[{key!r}] must be {np.dtype(_dtype(part))} {shape}, got {array.dtype} {array.shape}"
            )
        low, stop = _bounds(part)
        outside = ~np.isfinite(array) if low is None else (array < low) | (array >= stop)
        if outside.any():
            raise ValueError(
                f"env_actions[{key!r}] must be finite, got {array[outside][0]}"
                if low is None
                else f"env_actions[{key!r}] must be in [{low}, {stop}), got {array[outside][0]}"
            )


def _shape(part: Mapping[str, Any]) -> tuple[int, ...]:
    match part["type"]:
        case "Discrete":
            return ()
        case "MultiDiscrete":
            return np.shape(part["nvec"])
        case "MultiBinary":
            return tuple(np.atleast_1d(part["n"]).tolist())
    return tuple(part["shape"])


def _dtype(part: Mapping[str, Any]) -> type[np.generic]:
    whole = part["type"] != "Box" or np.issubdtype(np.dtype(part["dtype"]), np.integer)
    return np.int64 if whole else np.float32


def _bounds(part: Mapping[str, Any]) -> tuple[Any, Any]:
    """The lowest value and the one above the highest; None for Box, whose bounds many environments only clip to."""
    match part["type"]:
        case "Discrete":
            return part.get("start", 0), part.get("start", 0) + part["n"]
        case "MultiDiscrete":
            start = np.asarray(part.get("start", 0))
            return start, start + np.asarray(part["nvec"])
        case "MultiBinary":
            return 0, 2
    return None, None


def check_description(description: Any) -> None:
    """Raise ValueError unless this is what describe_space gives, or empty."""
    if description == {}:
        return
    try:
        leaves = list(_leaves(description))
        if len(leaves) != len(parts_of(description)):
            raise ValueError("two parts with one name")
        for _, part in leaves:
            if part["type"] not in ("Discrete", "MultiDiscrete", "MultiBinary", "Box"):
                raise ValueError(f"a space of the unknown type {part['type']!r}")
            _shape(part), _dtype(part), _bounds(part)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"action_space must be as describe_space gives it, got {description!r} ({error!r})") from error
