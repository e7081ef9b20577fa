"""The `farworld` command: parse, call, print. Sub-commands are imported only when they run."""

from __future__ import annotations

import errno
import sys

from cyclopts import App
from rich.console import Console

from farworld import __version__

app = App(
    name="farworld",
    version=__version__,
    help="Record a first-person world, train a FAR-Long model on it, and play what it learned.",
)
app.command("farworld.envs.cli:record", name="record", help="Record episodes of an environment into a dataset.")
app.command("farworld.envs.data_cli:data", name="data", help="Look at, import and check recorded datasets.")
app.command("farworld.train.cli:train", name="train", help="Train a world model on a recorded dataset.")
app.command("farworld.train.eval_cli:evaluate", name="eval", help="Measure how good a world model is.")
app.command("farworld.play.cli:play", name="play", help="Play a learned world in a window, or headless.")
app.command("farworld.bench:bench", name="bench", help="Measure speed end to end.")


def _complain(message: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"farworld: {message}", style="red", markup=False)


def main() -> None:
    """Run the command line; an expected error is one red line and exit code 2, never a traceback."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    try:
        app(arguments)
    except KeyboardInterrupt:
        if debug:
            raise
        _complain("interrupted; everything finished before is on disk")
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except (ValueError, OSError, ImportError) as error:
        if debug:
            raise
        message = str(error) or type(error).__name__
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            message = f"the disk is full; everything finished before is intact ({error})"
        _complain(" ".join(message.split()))
        sys.exit(2)
