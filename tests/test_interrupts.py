import _thread
import contextlib
import signal

import pytest
from numba import njit
from numba.core import event

from farworld.envs.interrupts import whole_compilations


class _Interrupter(event.Listener):
    def on_start(self, event):
        _thread.interrupt_main()

    def on_end(self, event):
        pass


def double():
    return njit(lambda x: 2 * x)


def test_an_interrupt_waits_until_numba_has_compiled():
    """In the middle of it, llvmlite's objects are half made, and the process crashed when they were let go."""
    function = double()
    with (
        whole_compilations(),
        event.install_listener("numba:compile", _Interrupter()),
        pytest.raises(KeyboardInterrupt),
    ):
        function(3)
    assert function.signatures
    assert function(3) == 6


def test_compilations_that_lie_in_one_another_are_one():
    inner = double()
    outer = njit(lambda x: inner(x) + 1)
    with (
        whole_compilations(),
        event.install_listener("numba:compile", _Interrupter()),
        pytest.raises(KeyboardInterrupt),
    ):
        outer(3)
    assert outer.signatures and inner.signatures


def test_the_handler_of_interrupts_is_as_it_was():
    before = signal.getsignal(signal.SIGINT)
    with whole_compilations():
        double()(3)
        assert signal.getsignal(signal.SIGINT) is before
        with contextlib.suppress(KeyboardInterrupt):
            _thread.interrupt_main()
            raise AssertionError("an interrupt between compilations is not put off")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_function_that_cannot_be_compiled_leaves_interrupts_alone():
    before = signal.getsignal(signal.SIGINT)
    with whole_compilations(), pytest.raises(Exception, match="nowhere"):
        njit(lambda: nowhere)()  # noqa: F821
    assert signal.getsignal(signal.SIGINT) is before
