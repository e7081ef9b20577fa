"""Weights that a run begins with instead of untrained ones: those of a world.

The world's autoencoder becomes the run's, trained already, and its transformer the start of the world stage. Both are
copied into the run's checkpoints, so that the run goes on without the world.
"""

from __future__ import annotations

import dataclasses
import os

from torch import Tensor

from farworld.checkpoint import World, load_world
from farworld.dataset import Dataset
from farworld.models.far import FAR
from farworld.train.autoencoder import STATISTICS
from farworld.train.config import TrainConfig, from_json, override
from farworld.train.evaluate import check_fit
from farworld.train.run import Run

INITIAL = "initial"  # the checkpoint with the transformer's weights
# Parts that a model may have beyond the world's; they start so that it does what the world does.
MAY_BE_NEW = ("step_embedding.weight",)


def open_world(checkpoint: str | os.PathLike, data: Dataset) -> World:
    """A world to begin with.

    Raises:
        FileNotFoundError, ValueError: see `farworld.checkpoint.load_world`, or it shows another world than the data.
    """
    world = load_world(checkpoint)
    check_fit(world.model, data)
    return world


def config_of(world: World, overrides: list[str]) -> TrainConfig:
    """The training config of a world, with settings.

    Raises:
        ValueError: the world was not trained by `farworld train`.
    """
    values = world.config.training.get("config")
    if not isinstance(values, dict):
        raise ValueError(f"{world.path} does not say how it was trained; name its sizes with --preset and --set")
    return override(from_json(values), overrides)


def check_sizes(world: World, config: TrainConfig) -> None:
    """Raise ValueError unless the world's weights fit the config."""
    theirs = world.config.model
    ours = config.far(theirs.num_actions)
    told = dataclasses.replace(theirs, shortcut_steps=ours.shortcut_steps)
    if theirs.shortcut_steps is None:  # it can still be told step sizes
        theirs = told
    for kind, found, wanted in (
        ("transformer", theirs, ours),
        ("autoencoder", world.config.autoencoder, config.autoencoder()),
    ):
        for field in dataclasses.fields(wanted):
            expected, got = getattr(wanted, field.name), getattr(found, field.name)
            if expected != got:
                raise ValueError(
                    f"the {kind} of {world.path} has {field.name}={got!r}, this run {expected!r}; "
                    "leave --preset out to take the world's own sizes"
                )


def adopt(run: Run, world: World) -> None:
    """Copy a world's weights into a new run."""
    transformer = FAR(run.config.far(world.config.model.num_actions))
    missing, surplus = transformer.load_state_dict(world.model.transformer.state_dict(), strict=False)
    assert not surplus and set(missing) <= set(MAY_BE_NEW), (missing, surplus)  # check_sizes has seen to it
    run.save_checkpoint(INITIAL, {"step": 0, "model": transformer.state_dict()})
    trained = {"step": run.config.autoencoder_steps, "seconds": 0.0, "model": world.model.autoencoder.state_dict()}
    run.save_checkpoint(STATISTICS, trained)


def initial_weights(run: Run) -> dict[str, Tensor] | None:
    """The transformer that `adopt` left, or None."""
    stored = run.load_checkpoint(INITIAL)
    return None if stored is None else stored["model"]
