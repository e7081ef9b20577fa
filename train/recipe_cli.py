"""`farworld recipe`."""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

from cyclopts import Parameter

from farworld.play.cli import prepare_environment

Stage = Literal["record", "autoencoder", "latents", "world", "few-step", "evaluate"]


def recipe(
    name: Annotated[str, Parameter(help="The world: dmlab, minecraft or doom.")],
    /,
    *,
    out: Annotated[Path, Parameter(help="The run's folder. What is finished there is not done again.")],
    scale: Annotated[float, Parameter(help="Factor of the recipe's episodes and steps, and of nothing else.")] = 1.0,
    rounds: Annotated[
        int, Parameter(help="Each further one records new episodes and goes on with the weights of the one before.")
    ] = 1,
    until: Annotated[Stage, Parameter(help="The last stage that is done.")] = "evaluate",
    minutes: Annotated[
        float | None, Parameter(help="Stop after so long, with everything on disk; the same command goes on.")
    ] = None,
    init: Annotated[
        str | None,
        Parameter(help="A world whose weights are gone on with, instead of an autoencoder and a world from scratch."),
    ] = None,
    preset: Annotated[str | None, Parameter(help="Sizes of model and training, instead of the recipe's.")] = None,
    settings: Annotated[
        list[str] | None,
        Parameter(
            name="--set", negative=(), consume_multiple=True, help="field=value of the training config, in all stages."
        ),
    ] = None,
    workers: Annotated[int | None, Parameter(help="Processes that record; one a core without it.")] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"], Parameter(help="Where to train; auto takes a GPU if there is one.")
    ] = "auto",
    json: Annotated[bool, Parameter(negative=(), help="Print one JSON object as the last line of stdout.")] = False,
) -> None:
    """Make a bundled world from nothing: record, train, teach few steps, evaluate, export."""
    if rounds < 1:
        raise ValueError(f"--rounds must be 1 or more, got {rounds}")
    if minutes is not None and minutes <= 0:
        raise ValueError(f"--minutes must be above 0, got {minutes}")
    if workers is not None and workers < 0:
        raise ValueError(f"--workers must be 0 or more, got {workers}")
    prepare_environment()
    from farworld.console import print_json, stdout_to_stderr
    from farworld.device import choose_device
    from farworld.train.recipes import recipe_of
    from farworld.train.recipes.flow import RecipeRun
    from farworld.train.recipes.recipe import Order

    order = Order(recipe=name, scale=scale, preset=preset, settings=tuple(settings or ()), init=init)
    with stdout_to_stderr() if json else contextlib.nullcontext():
        run = RecipeRun(
            recipe_of(name), out, order, workers=_cores() if workers is None else workers, device=choose_device(device)
        )
        with contextlib.closing(run), stopped_after(minutes) as out_of_time:
            try:
                report = run.work(rounds=rounds, until=until)
            except KeyboardInterrupt:
                if not out_of_time():
                    raise
                report = run.report(rounds)
            if not report["finished"] and (so_far := run.export_so_far(rounds)):
                report["so_far"] = str(so_far)
    if json:
        print_json(report)
    elif report["finished"]:
        print(f"{name} is finished; play it: farworld play --ckpt {out}")
    else:
        print(f"done so far: {', '.join(report['done']) or 'nothing'}; the same command goes on")
        if "so_far" in report:
            print(f"play what it has learnt: farworld play --ckpt {report['so_far']}")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def stopped_after(minutes: float | None) -> Iterator[Callable[[], bool]]:
    """Interrupt the block, as Ctrl-C does, when its time is up; SIGTERM interrupts it too.

    Yields:
        A function that says whether the time is up.
    """
    came = threading.Event()

    def stop() -> None:
        came.set()
        _thread.interrupt_main()

    def end(signum: int, frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGINT)

    timer = threading.Timer(0 if minutes is None else 60 * minutes, stop)
    timer.daemon = True
    before = signal.signal(signal.SIGTERM, end), signal.getsignal(signal.SIGINT)
    if before[1] is signal.SIG_IGN:  # as a shell's background jobs have it, which then could not be stopped
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if minutes is not None:
        timer.start()
    try:
        yield came.is_set
    finally:
        timer.cancel()
        for kind, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(kind, handler)
