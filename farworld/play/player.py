"""A world that is being played: keys in, frames out, no window."""

from __future__ import annotations

import os
from collections import Counter

import numpy as np

from farworld.checkpoint import World, load_world
from farworld.device import choose_device
from farworld.play.keys import Keys
from farworld.rollout import Rollout


class Player:
    """One stream of a world under the keys.

    `frame` is on the screen; the keys that are pressed while it is there decide the next one.

    Attributes:
        frame: (H, W, 3), uint8.
        keys: what is pressed.
        action: index of the action that produced the frame, or None at the start and while the world holds still.
        num_frames: frames generated since the start.
        action_counts: how often each action was taken, by name, over all starts.
        held_still: ticks without a step, over all starts.
    """

    def __init__(self, world: World, rollout: Rollout, *, seed: int = 0, start: int = 0) -> None:
        """Show a start context.

        Args:
            world: the config and the start contexts.
            rollout: of one stream of this world.
            seed: of all noise.
            start: which start context.

        Raises:
            ValueError: there is no such start context.
        """
        if not world.contexts:
            raise ValueError(f"the world {world.path} has no start contexts; export it again")
        if not 0 <= start < len(world.contexts):
            raise ValueError(f"the start must be in [0, {len(world.contexts) - 1}], got {start}")
        self.world = world
        self.rollout = rollout
        self.seed = seed
        self.start = start
        self.keys = Keys(world.config.vocabulary)
        self.action_counts: Counter[str] = Counter()
        self.held_still = 0
        self.reset()

    @property
    def action_name(self) -> str:
        """What produced the frame, in words."""
        if self.action is not None:
            return self.world.config.vocabulary.names[self.action]
        return "holding still" if self.num_frames else "start"

    def reset(self) -> None:
        """Go back to the beginning: same start, same seed, and so the same frames for the same keys."""
        context = self.world.contexts[self.start]
        self.rollout.prime(context.frames[None], context.actions[None], seed=self.seed)
        self.frame: np.ndarray = context.frames[-1]
        self.action: int | None = None
        self.num_frames = 0
        self.keys.forget_taps()

    def next_start(self) -> None:
        """Begin at the next start context."""
        self.start = (self.start + 1) % len(self.world.contexts)
        self.reset()

    def tick(self) -> bool:
        """Show the next frame as the keys want it; False if nothing is pressed and the world holds still."""
        action = self.keys.take_action()
        if action is None:
            self.action = None
            self.held_still += 1
            return False
        self.step(action)
        return True

    def step(self, action: int) -> None:
        """Take one action of the vocabulary."""
        self.frame = self.rollout.step(action)[0]
        self.action = action
        self.num_frames += 1
        self.action_counts[self.world.config.vocabulary.names[action]] += 1


def open_player(
    checkpoint: str | os.PathLike,
    *,
    seed: int = 0,
    start: int = 0,
    num_steps: int | None = None,
    context_frames: int | None = None,
    device: str = "auto",
) -> Player:
    """Load a world and put it at a start context.

    Args:
        checkpoint: a bundled world, a directory, or a hub repository.
        seed: of all noise.
        start: which start context.
        num_steps: denoising steps a frame; None is the world's own number.
        context_frames: frames remembered; None is the world's own number.
        device: auto, cpu, cuda or mps.

    Raises:
        ValueError, FileNotFoundError: see `load_world`, `Rollout` and `Player`.
    """
    world = load_world(checkpoint, device=choose_device(device))
    rollout = Rollout(world.model, num_steps=num_steps, context_frames=context_frames)
    return Player(world, rollout, seed=seed, start=start)
