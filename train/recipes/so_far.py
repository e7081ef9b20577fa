"""A training that is not finished, as a world to look at or to begin another run with."""

from __future__ import annotations

from pathlib import Path

from farworld.checkpoint import Context, save_world
from farworld.dataset import Dataset
from farworld.models.far import FAR
from farworld.train import config as train_config
from farworld.train.autoencoder import load_autoencoder
from farworld.train.export import assemble
from farworld.train.run import Run
from farworld.train.world import STAGE, new_state, split_episodes


def export_unfinished(run: Run, data: Dataset, path: Path) -> None:
    """Write the averaged weights of the run's last checkpoint as a world, unmeasured."""
    config = run.config
    state = new_state(config, len(data.spec.action_vocabulary), run.ranks)
    stored = run.load_checkpoint(STAGE)
    assert stored is not None and state.average is not None  # the caller has seen the file
    state.load_state_dict(stored)
    transformer = state.average.module
    assert isinstance(transformer, FAR)
    training = {"config": train_config.to_json(config), "world": {"steps": state.step, "unfinished": True}}
    world = assemble(run, data, transformer, load_autoencoder(run), training)
    _, held_out = split_episodes(len(data), config.held_out_fraction)
    contexts = [
        Context(data.frames(episode, 0, config.start_frames), data.actions(episode)[: config.start_frames - 1])
        for episode in held_out[: config.num_contexts]
    ]
    card = f"# {world.config.name}\n\nAn unfinished training, after {state.step} of {config.world_steps} steps.\n"
    save_world(path, world.config, transformer, world.autoencoder, contexts, card)
