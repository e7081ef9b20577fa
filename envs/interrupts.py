"""Ctrl-C while numba compiles."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from numba.core import event

# Numba's lock around compiling and around loading what was compiled before, which end with objects of LLVM in place.
_COMPILING = "numba:compiler_lock"


@contextlib.contextmanager
def whole_compilations() -> Iterator[None]:
    """Put off an interrupt that comes while numba compiles in the main thread, until it has compiled.

    An exception in the middle leaves LLVM's objects half made, and their end can be a crash of the process. The time
    is short: some tenths of a second for a function, and none once it lies in numba's cache.
    """
    with event.install_listener(_COMPILING, _Deferral()):
        yield


class _Deferral(event.Listener):
    """Keeps an interrupt back between the start and the end of an event; events may lie in one another."""

    def __init__(self) -> None:
        self._depth = 0
        self._handler: signal._HANDLER = None
        self._came = False

    def on_start(self, event: event.Event) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # signals are handled in the main thread only
        if self._depth == 0:
            self._came, self._handler = False, None
            if callable(signal.getsignal(signal.SIGINT)):
                self._handler = signal.signal(signal.SIGINT, self._keep)
        self._depth += 1

    def on_end(self, event: event.Event) -> None:
        if threading.current_thread() is not threading.main_thread() or self._depth == 0:
            return
        self._depth -= 1
        if self._depth == 0 and self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            if self._came:
                signal.raise_signal(signal.SIGINT)

    def _keep(self, signum: int, frame: FrameType | None) -> None:
        self._came = True
