"""The `farworld` command: parse, call, print. Sub-commands are imported only when they run."""

from __future__ import annotations

import errno
import sys

import gymnasium.error
from cyclopts import App, CycloptsError
from rich.console import Console

from farworld import __version__

EXPECTED_ERRORS = (CycloptsError, gymnasium.error.Error, ValueError, OSError, ImportError, MemoryError)

app = App(
    name="farworld",
    version=__version__,
    help="Record a first-person world, train a FAR-Long model on it, and play what it learned.",
    suppress_keyboard_interrupt=False,  # main() says what Ctrl-C means
)
# The commands' help stands here and not in their docstrings: `farworld --help` shows it without importing them.
app.command(
    "farworld.envs.cli:record",
    name="record",
    help="""Record episodes of an environment into a dataset.

An existing dataset is extended, never overwritten; the same seed gives the same bytes.""",
)
app.command("farworld.envs.data_cli:data", name="data", help="Look at, check, combine, share and import datasets.")
app.command(
    "farworld.train.cli:train",
    name="train",
    help="""Train a world model on a recorded dataset: autoencoder, latents, FAR-Long, exported world.

The run's folder holds checkpoints/, logs/ (TensorBoard), samples/ and, at the end, world/; it is accepted wherever
a checkpoint is. An interrupted run goes on with --resume.""",
)
app.command(
    "farworld.train.eval_cli:evaluation",
    name="eval",
    help="Measure how good a world model is on recorded episodes that it was not trained on.",
)
app.command(
    "farworld.play.cli:play",
    name="play",
    help="""Play a learned world, or with --env a real environment, in a window or headless.

Either --ckpt or --env is needed. In the window, F1 shows the keys. P pauses, N makes one step, R starts again, Tab
takes the next start, H hides the bar, Esc or Q quits. Backspace, held, rewinds a learned world, by up to 30 seconds; a
real environment can't be rewound. A key that the world itself uses belongs to the world.""",
)
app.command(
    "farworld.train.recipe_cli:recipe",
    name="recipe",
    help="""Make a bundled world from nothing: record, train, teach few steps, evaluate, export.

It can be stopped at any time (--minutes, Ctrl-C, SIGTERM, a crash), and the same command goes on, anywhere.""",
)
app.command("farworld.ckpt_cli:ckpt", name="ckpt", help="Convert the official FAR weights into worlds.")
app.command("farworld.bench:bench", name="bench", help="Measure speed end to end.")


def _is_out_of_memory(error: BaseException) -> bool:
    """Also of a GPU; known by its name, since torch takes seconds to import."""
    kinds = [(kind.__module__.partition(".")[0], kind.__name__) for kind in type(error).__mro__]
    on_cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return isinstance(error, MemoryError) or ("torch", "OutOfMemoryError") in kinds or on_cpu


def _complain(message: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"farworld: {message}", style="red", markup=False)


def main() -> None:
    """Run the command line; an expected error is one red line and exit code 2, never a traceback."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    try:
        app(arguments, exit_on_error=False, print_error=False)
    except KeyboardInterrupt:
        if debug:
            raise
        _complain("interrupted; everything finished before is on disk")
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except Exception as error:
        if debug or not (isinstance(error, EXPECTED_ERRORS) or _is_out_of_memory(error)):
            raise
        _complain(_explain(error))
        sys.exit(2)


def _explain(error: Exception) -> str:
    """What went wrong, in one line."""
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk is full; everything finished before is intact ({message})"
    if _is_out_of_memory(error):
        return f"out of memory; choose another --device, or a shorter context or smaller batch ({message})"
    return message
