"""Where the time of a frame goes."""

from __future__ import annotations

import contextlib
import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from farworld.arithmetic import synchronise
from farworld.models import kv_cache
from farworld.models.static_frame import StaticDecoder, StaticFrame

if TYPE_CHECKING:
    import torch

    from farworld.rollout import Rollout

REST = "rest"


class Stopwatch:
    """Seconds of named parts; what one part spends inside another counts for the inner one alone."""

    def __init__(self, device: torch.device) -> None:
        """A watch that waits for the device at each change of parts, so that a part has what it started."""
        self.seconds: dict[str, float] = defaultdict(float)
        self._device = device
        self._running: list[str] = []
        self._since = 0.0

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What the block takes is this part's."""
        self._lap()
        self._running.append(name)
        try:
            yield
        finally:
            self._lap()
            self._running.pop()

    def watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, as a part."""

        @functools.wraps(function)
        def watch(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return watch

    def _lap(self) -> None:
        synchronise(self._device)
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now


def break_down(
    next_frame: Callable[[], object], num_frames: int, rollout: Rollout, *, draw: Any = None
) -> dict[str, float]:
    """Mean milliseconds that parts of a frame take; they add up to the frame.

    While it is measured the parts are called through a stopwatch, which costs time of its own: a frame's time is
    better measured without.

    Args:
        next_frame: makes one frame, by a step of the rollout.
        num_frames: to make.
        rollout: whose transformer, cache and decoder are watched.
        draw: something with a method `draw` that is a part, too.

    Returns:
        `transformer` without attention; `attention` of new tokens to what is in the cache; `cache`, writing to it and
        masks; `decode`, latents to pixels; `draw`, if given; `rest`.
    """
    watch = Stopwatch(rollout.world.device)
    parts = [
        (StaticFrame, "__call__", "transformer"),  # in a CUDA graph it is attention and cache, too
        (rollout._transformer, "run", "transformer"),
        (kv_cache.CachedAttention, "__call__", "attention"),
        (kv_cache.CachedAttention, "__init__", "cache"),
        (kv_cache, "_store", "cache"),
        (rollout.world, "decode", "decode"),
        (StaticDecoder, "__call__", "decode"),
    ]
    if draw is not None:
        parts.append((draw, "draw", "draw"))
    with contextlib.ExitStack() as replaced:
        for owner, name, part in parts:
            replaced.enter_context(_replaced(owner, name, watch.watched(part, getattr(owner, name))))
        for _ in range(num_frames):
            with watch.part(REST):
                next_frame()
    names = [*dict.fromkeys(part for *_, part in parts), REST]
    return {name: 1000 * watch.seconds[name] / num_frames for name in names}


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of an object, a class or a module, replaced while the block runs."""
    own = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)
