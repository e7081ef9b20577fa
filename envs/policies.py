"""What chooses the actions while an episode is recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import gymnasium
import numpy as np

Policy = Callable[[], int]  # looks at the environment's state if it wants to, returns an action's index
PolicyName = Literal["explore", "random"]


def sticky_random(num_actions: int, rng: np.random.Generator, *, stay: float = 0.8) -> Policy:
    """Uniform random actions, each kept with probability `stay` a step, so that a walk gets somewhere."""
    action = int(rng.integers(num_actions))

    def act() -> int:
        nonlocal action
        if rng.random() >= stay:
            action = int(rng.integers(num_actions))
        return action

    return act


def make_policy(name: str, env: gymnasium.Env, num_actions: int, rng: np.random.Generator) -> Policy:
    """The policy of this name, for an environment that has just been reset.

    `explore` is the world's own, `env.unwrapped.policy("explore", rng)`; without one it is `random`.
    """
    if name not in ("explore", "random"):
        raise ValueError(f"policy must be explore or random, got {name!r}")
    own = getattr(env.unwrapped, "policy", None)
    if name == "explore" and own is not None:
        return own("explore", rng)
    explorer = getattr(env.unwrapped, "explorer", None)
    if name == "explore" and explorer is not None:
        return explorer(rng)
    return sticky_random(num_actions, rng)
