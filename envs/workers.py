"""Processes that work through tasks, each replaced by a new one when it dies."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

_POLL_SECONDS = 0.5  # how often it is seen whether a process died, if what it started keeps its pipe open
_GRACE_SECONDS = 3.0  # to clean up after an interrupt

Worker = Callable[[Any], Any]  # takes a task, and gives its result


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a task.

    Attributes:
        task: the task.
        result: what the worker gave.
        error: what it raised, if it did; its process goes on.
        exit_code: of the process, if it died; negative is the signal that killed it.
    """

    task: Any
    result: Any = None
    error: Exception | None = None
    exit_code: int | None = None


class InProcess:
    """Works through tasks in this process."""

    def __init__(self, start: Callable[[], Worker]) -> None:
        self._start = start
        self._worker: Any = None

    def run(self, tasks: deque[Any]) -> Iterator[Outcome]:
        """Take the tasks from the left, those too that are added meanwhile."""
        while tasks:
            task = tasks.popleft()
            try:
                self._worker = self._worker or self._start()
                outcome = Outcome(task, self._worker(task))
            except Exception as error:
                outcome = Outcome(task, error=error)
            yield outcome

    def close(self) -> None:
        """Close the worker."""
        if self._worker is not None:
            self._worker.close()


class WorkerPool:
    """Works through tasks in processes of their own, each with a worker that is made there."""

    def __init__(self, start: Callable[[], Worker], num_workers: int) -> None:
        """Nothing is started before there are tasks.

        Args:
            start: makes a worker; it is pickled.
            num_workers: processes at the same time.
        """
        self._processes = [_Process(start) for _ in range(num_workers)]

    def run(self, tasks: deque[Any]) -> Iterator[Outcome]:
        """Take the tasks from the left, those too that are added meanwhile; outcomes come as they are ready."""
        while True:
            for process in self._processes:
                if tasks and not process.busy:
                    process.give(tasks.popleft())
            busy = {process.connection: process for process in self._processes if process.busy}
            if not busy:
                return
            ready = multiprocessing.connection.wait([*busy], timeout=_POLL_SECONDS)
            for connection, process in busy.items():
                if connection in ready or not process.alive:
                    yield process.take()

    def close(self) -> None:
        """Interrupt what is running, and end all processes and what they started."""
        for process in self._processes:
            process.interrupt()
        for process in self._processes:
            process.end()


class _Process:
    """A process, which is started when it gets a task, and again when it died."""

    def __init__(self, start: Callable[[], Worker]) -> None:
        self._start = start
        self._process: Any = None
        self._task: Any = None
        self.connection: Any = None
        self.busy = False

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.is_alive()

    def give(self, task: Any) -> None:
        self._task, self.busy = task, True
        if self.alive:
            with contextlib.suppress(OSError):  # it has just died; a new one takes the task
                self.connection.send(task)
                return
        self.end()
        context = multiprocessing.get_context("spawn")  # the same on all systems, and safe beside threads
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(self._start, theirs), daemon=True)
        self._process.start()
        theirs.close()
        with contextlib.suppress(OSError):  # it has died; take() says so
            self.connection.send(task)

    def take(self) -> Outcome:
        """The outcome of its task, which is ready or never will be."""
        task, self._task, self.busy = self._task, None, False
        try:
            if self.connection.poll():
                result, error = self.connection.recv()
                return Outcome(task, result, error)
        except (EOFError, OSError, pickle.UnpicklingError):  # it died, perhaps in the middle of a word
            pass
        self._process.join(_GRACE_SECONDS)
        if self._process.exitcode is None:  # it closed its pipe and lives on
            self._process.kill()
            self._process.join()
        exit_code = self._process.exitcode
        self.end()
        return Outcome(task, exit_code=exit_code)

    def interrupt(self) -> None:
        if self.alive and os.name == "posix":
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGINT)

    def end(self) -> None:
        """End the process and all that it started."""
        if self._process is None:
            return
        self.connection.close()
        if self.alive:
            self._process.join(_GRACE_SECONDS if os.name == "posix" else 0)
        if os.name == "posix":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        if self.alive:
            self._process.kill()
        self._process.join()
        self._process = None


def _work(start: Callable[[], Worker], connection: Any) -> None:
    """What a process does: tasks from the pipe, until it is closed."""
    if os.name == "posix":
        os.setpgid(0, 0)  # Ctrl-C is the parent's to handle, and what this process starts can be ended with it
    _die_with_parent()
    worker: Any = None
    try:
        while True:
            task = connection.recv()
            answer: tuple[Any, Exception | None]
            try:
                worker = worker or start()
                answer = worker(task), None
            except Exception as error:
                answer = None, _portable(error)
            connection.send(answer)
    except (EOFError, OSError, KeyboardInterrupt):
        pass
    finally:
        with contextlib.suppress(Exception):
            worker.close()


def _portable(error: Exception) -> Exception:
    """The error in a form that can be sent, with its traceback as a note."""
    text = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"in a worker process:\n{text}")
    return error


def _die_with_parent() -> None:
    """Make this process and all that it started die when the parent is gone, even if that was killed."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            if os.name == "posix":
                os.killpg(0, signal.SIGKILL)
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
