"""What a stage reports while it trains: JSON lines always, TensorBoard, and Weights & Biases on request.

Everything is written by the first rank alone.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from farworld.train.run import Run


@dataclass(frozen=True, slots=True)
class Log:
    """The open logs of a stage.

    Attributes:
        figures: takes a step and its figures.
        picture: takes a step and a picture of samples, (H, W, 3), uint8; for TensorBoard.
    """

    figures: Callable[[int, dict[str, float]], None]
    picture: Callable[[int, np.ndarray], None]


@contextlib.contextmanager
def open_log(run: Run, stage: str, step: int) -> Iterator[Log]:
    """Open the logs of a stage.

    Args:
        run: its folder takes `logs/STAGE.jsonl` and TensorBoard's files.
        stage: its name.
        step: where the stage goes on; figures of later steps, from a sitting that was cut short, are superseded.

    Raises:
        ImportError: Weights & Biases is asked for and not installed.
    """
    if not run.ranks.is_first:
        yield Log(lambda step, figures: None, lambda step, picture: None)
        return
    from torch.utils.tensorboard import SummaryWriter

    with contextlib.ExitStack() as stack:
        board = stack.enter_context(SummaryWriter(str(run.logs / stage), purge_step=step))
        lines = stack.enter_context(open(run.logs / f"{stage}.jsonl", "a", encoding="utf-8"))
        weights_and_biases = _open_weights_and_biases(run, stack) if run.config.wandb_project else None

        def write_figures(step: int, figures: dict[str, float]) -> None:
            lines.write(json.dumps({"step": step, **figures}) + "\n")
            lines.flush()
            for name, value in figures.items():
                board.add_scalar(f"{stage}/{name}", value, step)
            if weights_and_biases is not None:
                named = {f"{stage}/{name}": value for name, value in figures.items()}
                weights_and_biases.log({**named, f"{stage}/step": step})

        def write_picture(step: int, picture: np.ndarray) -> None:
            board.add_image(f"{stage}/samples", picture, step, dataformats="HWC")

        yield Log(write_figures, write_picture)


def _open_weights_and_biases(run: Run, stack: contextlib.ExitStack):
    try:
        import wandb
    except ImportError as error:
        raise ImportError('wandb_project needs the Python module wandb; pip install "farworld[wandb]"') from error
    from farworld.train.config import to_json

    # One line of curves for all sittings of a run.
    name = run.path.resolve().name
    session = wandb.init(
        project=run.config.wandb_project,
        name=name,
        id=name,
        resume="allow",
        dir=str(run.logs),
        config=to_json(run.config),
    )
    stack.callback(session.finish)
    return session
