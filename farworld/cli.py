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
# The commands' help stands here and not in their docstrings: `farworld --help` shows it without importing them.
app.command(
    "farworld.envs.cli:record",
    name="record",
    help="""Record episodes of an environment into a dataset.

An existing dataset is extended, never overwritten; the same seed gives the same bytes.""",
)
app.command("farworld.envs.data_cli:data", name="data", help="Look at, import and check recorded datasets.")
app.command(
    "farworld.train.cli:train",
    name="train",
    help="""Train a world model on a recorded dataset: autoencoder, latents, FAR-Long, exported world.

The run's folder holds checkpoints/, logs/ (TensorBoard), samples/ and, at the end, world/; it is accepted wherever
a checkpoint is. An interrupted run goes on with --resume.""",
)
app.command(
    "farworld.train.eval_cli:evaluate",
    name="eval",
    help="Measure how good a world model is on recorded episodes that it was not trained on.",
)
app.command(
    "farworld.play.cli:play",
    name="play",
    help="""Play a learned world in a window, or headless.

In the window, F1 shows the keys. P pauses, N makes one step, R starts again, Tab takes the next start, H hides the
bar, Esc or Q quits; a key that the world itself uses belongs to the world.""",
)
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
