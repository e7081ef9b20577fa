"""What is played under the keys, and the learned world as one kind of it: keys in, frames out, no window."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from farworld.actions import ActionVocabulary
from farworld.play.keys import Keys

if TYPE_CHECKING:  # they import torch, which a real environment does not need
    from farworld.checkpoint import World
    from farworld.rollout import Rollout, Snapshot

REWIND_SECONDS = 30.0  # of the world's time, at most; a big world's memory may reach less far
REWIND_BYTES = 256 * 2**20
NO_REWIND = "a real environment can't be rewound"


class Player(ABC):
    """One stream of frames under the keys; use as a context manager, or close it.

    `frame` is on the screen; the keys that are pressed while it is there decide the next one.

    Attributes:
        name: of what is played.
        vocabulary: the actions and their keys.
        frames_per_second: the pace that it is meant to be seen at.
        frame: (H, W, 3), uint8.
        keys: what is pressed.
        action: index of the action that produced the frame, or None at the start and while the world holds still.
        num_frames: frames produced since the start.
        news: what has happened with this frame, in words; mostly nothing.
        num_ticks: frames shown, over all starts, those of holding still included.
        action_counts: how often each action was taken, by name, over all starts.
        held_still: ticks without a step, over all starts.
        num_rewound: ticks that went a frame back, over all starts.
        can_rewind: whether any can.
    """

    can_rewind = False

    def __init__(self, *, name: str, vocabulary: ActionVocabulary, frames_per_second: float) -> None:
        """Show the start; a subclass makes itself ready for it first."""
        self.name = name
        self.vocabulary = vocabulary
        self.frames_per_second = frames_per_second
        self.keys = Keys(vocabulary)
        self.action_counts: Counter[str] = Counter()
        self.held_still = 0
        self.num_rewound = 0
        self.num_ticks = 0
        self._begin("")

    def __enter__(self) -> Player:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def _first_frame(self) -> np.ndarray:
        """Begin at the current start."""

    @abstractmethod
    def _next_frame(self, action: int) -> np.ndarray:
        """Take an action."""

    @abstractmethod
    def _choose_next_start(self) -> str:
        """Let another start be the current one; its name."""

    @abstractmethod
    def report(self) -> dict[str, Any]:
        """What was played and with which settings, JSON-ready."""

    @abstractmethod
    def close(self) -> None:
        """Free what it holds, and finish what it writes."""

    @property
    def ended(self) -> str:
        """How the episode has ended; empty while it goes on. After an end the next tick begins another."""
        return ""

    @property
    def recorded(self) -> str:
        """What is recorded so far, for the bar; empty where nothing is."""
        return ""

    @property
    def figures(self) -> tuple[str, ...]:
        """More figures for the bar."""
        return ()

    @property
    def action_name(self) -> str:
        """What produced the frame, in words."""
        if self.action is not None:
            return self.vocabulary.names[self.action]
        return "holding still" if self.num_frames else "start"

    def reset(self) -> None:
        """Go back to the beginning: same start, same seed, and so the same frames for the same keys."""
        self._begin("from the start")

    def next_start(self) -> None:
        """Begin at the next start."""
        self._begin(self._choose_next_start())

    def discard(self) -> bool:
        """Forget what is being recorded and start again; False where nothing is recorded."""
        return False

    def _begin(self, news: str) -> None:
        self.frame = self._first_frame()
        self.action: int | None = None
        self.num_frames = 0
        self.news = news
        self.keys.forget_taps()

    def tick(self, action: int | None = None) -> bool:
        """Show the next frame: of this action, else as the keys want it.

        Returns:
            False if nothing is pressed and the world holds still.
        """
        self.num_ticks += 1
        self.news = ""
        if self.ended:
            ended = self.ended
            self.next_start()
            self.news = f"{ended}: {self.news}"
            return True
        if action is None:
            action = self.keys.take_action()
        self.action = action
        if action is None:
            self.held_still += 1
            return False
        self.frame = self._next_frame(action)
        self.num_frames += 1
        self.action_counts[self.vocabulary.names[action]] += 1
        return True

    def rewind(self) -> bool:
        """Show the frame before this one again; from there it goes on as if what came after had never been.

        Returns:
            False if none is remembered, and the frame stays.
        """
        self.num_ticks += 1
        self.news = ""
        self.keys.forget_taps()
        before = self._go_back()
        if before is None:
            self.news = "no further" if self.num_frames else "the start"
            self.held_still += 1
            return False
        self.frame, self.action = before
        self.num_frames -= 1
        self.num_rewound += 1
        return True

    def _go_back(self) -> tuple[np.ndarray, int | None] | None:
        """Let the frame before be the newest one; it and the action that produced it, None if it is not remembered."""
        return None


@dataclass(frozen=True, slots=True)
class _Moment:
    """A frame that was shown, the action that produced it, and the state from which it goes on."""

    frame: np.ndarray
    action: int | None
    snapshot: Snapshot


class WorldPlayer(Player):
    """A learned world under the keys, which can be rewound: its latest moments are remembered."""

    can_rewind = True

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
        config = world.config
        moment_bytes = rollout.snapshot_bytes + config.frame_height * config.frame_width * 3
        num_moments = min(int(REWIND_SECONDS * config.frames_per_second), REWIND_BYTES // moment_bytes)
        self._moments: deque[_Moment] = deque(maxlen=max(1, num_moments) + 1)  # oldest first; the last one is now
        super().__init__(name=config.name, vocabulary=config.vocabulary, frames_per_second=config.frames_per_second)

    def _first_frame(self) -> np.ndarray:
        self._moments.clear()  # before their memory is asked for
        context = self.world.contexts[self.start]
        self.rollout.prime(context.frames[None], context.actions[None], seed=self.seed)
        if len(context.actions) and self.world.config.frame_action == "label":
            self.keys.idle = int(context.actions[-1])  # the start's own label goes on until another is asked for
        return self._remember(context.frames[-1], None)

    def _next_frame(self, action: int) -> np.ndarray:
        return self._remember(self.rollout.step(action)[0], action)

    def _remember(self, frame: np.ndarray, action: int | None) -> np.ndarray:
        self._moments.append(_Moment(frame, action, self.rollout.snapshot()))
        return frame

    def _go_back(self) -> tuple[np.ndarray, int | None] | None:
        if len(self._moments) < 2:
            return None
        self._moments.pop()
        moment = self._moments[-1]
        self.rollout.restore(moment.snapshot)
        return moment.frame, moment.action

    def _choose_next_start(self) -> str:
        self.start = (self.start + 1) % len(self.world.contexts)
        return f"start {self.start + 1} of {len(self.world.contexts)}"

    @property
    def figures(self) -> tuple[str, ...]:
        """How much of the past the next frame sees."""
        return (f"context {self.rollout.context_in_use}/{self.rollout.context_frames}",)

    def report(self) -> dict[str, Any]:
        """The world and the settings of its rollout."""
        return {
            "ckpt": self.world.path,
            "seed": self.seed,
            "start": self.start,
            "steps": self.rollout.num_steps,
            "context_frames": self.rollout.context_frames,
        }

    def close(self) -> None:
        """Nothing to do: world and rollout are the caller's."""


def open_player(
    checkpoint: str | os.PathLike,
    *,
    seed: int = 0,
    start: int = 0,
    num_steps: int | None = None,
    context_frames: int | None = None,
    guidance_scale: float = 1.0,
    layout: str | None = None,
    device: str = "auto",
) -> WorldPlayer:
    """Load a world and put it at a start context.

    Args:
        checkpoint: see `farworld.checkpoint.resolve`.
        seed: of all noise.
        start: which start context.
        num_steps: denoising steps a frame; None is the world's own number.
        context_frames: frames remembered; None is the world's own number.
        guidance_scale: see `Rollout`.
        layout: see `Rollout`.
        device: auto, cpu, cuda or mps.

    Raises:
        ValueError, FileNotFoundError: see `load_world`, `Rollout` and `WorldPlayer`.
    """
    from farworld.checkpoint import load_world
    from farworld.device import choose_device, dtype_of_play
    from farworld.rollout import Rollout

    world = load_world(checkpoint, device=choose_device(device))
    rollout = Rollout(
        world.model, num_steps=num_steps, context_frames=context_frames, guidance_scale=guidance_scale, layout=layout,
        dtype=dtype_of_play(world.model.device),
    )  # fmt: skip
    return WorldPlayer(world, rollout, seed=seed, start=start)
