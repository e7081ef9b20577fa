"""What the commands share at the terminal: a progress bar on stderr, JSON on stdout."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class _RateColumn(ProgressColumn):
    """Units done in a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.1f} {self.unit}/s" if speed else f"- {self.unit}/s")


@contextlib.contextmanager
def progress_bar(
    description: str, total: float | None, *, unit: str = "steps", completed: float = 0
) -> Iterator[Callable[..., None]]:
    """Show a bar with count, rate, time left and a note on stderr while the block runs.

    Args:
        description: what is being done.
        total: units in all; None if nobody knows.
        unit: what is counted.
        completed: units done before, when work is resumed.

    Yields:
        advance(count=1, note=None): count units more are done; a note, such as the loss, is shown at the end.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        _RateColumn(unit),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=4) as progress:
        task = progress.add_task(description, total=total, completed=completed, note="")  # type: ignore[arg-type]

        def advance(count: float = 1, note: str | None = None) -> None:
            fields = {} if note is None else {"note": note}
            progress.update(task, advance=count, **fields)  # type: ignore[arg-type]

        yield advance


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send everything meant for stdout to stderr, also from C libraries and child processes.

    Engines greet on stdout when imported; a command that prints JSON must print nothing else there.
    """
    stdout = sys.stdout
    stdout.flush()
    saved = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        # What is still in a buffer would be written after stdout is back.
        stdout.flush()
        _flush_c_stdout()
        os.dup2(saved, 1)
        os.close(saved)


def _flush_c_stdout() -> None:
    """Write out what C libraries printed: into a pipe they write by the block, the last one at exit."""
    # Some Pythons are built without ctypes, and some systems keep their C library elsewhere.
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL("ucrtbase" if os.name == "nt" else None).fflush(None)


def _plain(value: Any) -> Any:
    """The value in JSON's own types: NumPy scalars unpacked, and null for what JSON has no number for."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def json_line(value: dict[str, Any]) -> str:
    """One line of JSON; NaN and infinity become null."""
    return json.dumps(_plain(value))


def print_json(value: dict[str, Any]) -> None:
    """Print one line of JSON on stdout; see `json_line`."""
    print(json_line(value), flush=True)
