"""What chooses the actions while an episode is recorded."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import gymnasium
import numpy as np

from farworld.envs.vocabulary import ActionTable, attribute

Policy = Callable[[], int]  # looks at the environment's state if it wants to, returns an action's index
RANDOM = "random"  # the policy that every environment has
HUMAN = "human"  # a person, who plays an EnvPlayer


def parse_policy(text: str) -> dict[str, float]:
    """Policies and their shares, which add up to 1, from `name`, or several `name=weight` with commas between.

    Raises:
        ValueError: a weight that is not positive, or a name twice.
    """
    weights: dict[str, float] = {}
    for row in filter(None, text.split(",")):
        name, equals, weight = (part.strip() for part in row.partition("="))
        try:
            value = float(weight) if equals else 1.0
        except ValueError:
            value = math.nan
        if not name or not 0 < value < math.inf:
            raise ValueError(f"--policy expects a name or name=weight with a weight above 0, got {row!r}")
        if name in weights:
            raise ValueError(f"--policy {name} is given twice")
        weights[name] = value
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def known_policies(env: gymnasium.Env) -> tuple[str, ...]:
    """The policies of an environment: its own, the first of which it is recorded with unless told, and `random`.

    A world has policies of its own with an attribute `POLICIES`, their names, and a method `policy(name, rng)`, which
    gives a function that returns an action whenever it is called.
    """
    own = attribute(env, "POLICIES", ())
    return (*own, *({RANDOM} - {*own}))


def choose_policy(env: gymnasium.Env, env_id: str, shares: dict[str, float], draw: float) -> str:
    """The policy of an episode.

    Args:
        env: the environment.
        env_id: of it, for messages.
        shares: of the policies; empty takes the environment's first.
        draw: a number in [0, 1) that decides.

    Raises:
        ValueError: the environment does not have one of them.
    """
    known = known_policies(env)
    for name in shares:
        if name not in known:
            raise ValueError(f"environment {env_id} has no policy {name!r}, it has {', '.join(known)}")
    if not shares:
        return known[0]
    ends = itertools.accumulate(shares.values())
    return next((name for name, end in zip(shares, ends, strict=True) if draw < end), [*shares][-1])


def make_policy(name: str, env: gymnasium.Env, table: ActionTable, rng: np.random.Generator) -> Policy:
    """The policy of this name, for an environment that has just been reset."""
    if name == RANDOM and name not in attribute(env, "POLICIES", ()):
        return sticky_random(len(table.vocabulary), rng)
    act: Policy = attribute(env, "policy")(name, rng)
    if table.is_plain or not isinstance(table.space, gymnasium.spaces.Discrete):
        return act
    first = int(table.space.start)
    return lambda: table.index_of(first + act())  # a file has other actions, or has them in another order


def sticky_random(num_actions: int, rng: np.random.Generator, *, stay: float = 0.8) -> Policy:
    """Random actions, each kept with probability `stay` a step, so that a walk gets somewhere.

    They come like cards from a shuffled deck: all of them have their turn before one comes again, so that even the
    rarest key of a large vocabulary is in the data.
    """
    deck: list[int] = []

    def deal() -> int:
        if not deck:
            deck.extend(rng.permutation(num_actions).tolist())
        return deck.pop()

    action = deal()

    def act() -> int:
        nonlocal action
        if rng.random() >= stay:
            action = deal()
        return action

    return act
