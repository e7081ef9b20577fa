"""What several test files share: a tiny world with random weights."""

import os

import numpy as np
import pytest

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin make a busy machine many times slower

TINY_FRAMES_PER_SECOND = 20
TINY_CONTEXT_FRAMES = 12
TINY_CONTEXT_LENGTHS = (5, 3)  # frames of the start contexts


@pytest.fixture(scope="session")
def tiny_world_path(tmp_path_factory):
    """A world directory: 32x32 frames, 5 actions, random weights, two start contexts."""
    import torch

    from farworld.actions import Action, ActionVocabulary
    from farworld.checkpoint import Context, save_world
    from farworld.models.autoencoder import AutoencoderConfig
    from farworld.models.far import FARConfig
    from farworld.world_model import WorldConfig, WorldModel

    vocabulary = ActionVocabulary(
        (
            Action(name="noop"),
            Action(name="forward", keys=("up",)),
            Action(name="turn_left", keys=("left",)),
            Action(name="turn_right", keys=("right",)),
            Action(name="forward_left", keys=("up", "left")),
        )
    )
    config = WorldConfig(
        name="tiny",
        model=FARConfig(
            latent_channels=4, latent_height=8, latent_width=8, num_actions=len(vocabulary), num_layers=1,
            num_heads=1, head_size=16, mlp_ratio=2, patch_size=2, context_patch_size=8, short_term_frames=4,
        ),
        autoencoder=AutoencoderConfig(latent_channels=4, widths=(8, 16), encoder_blocks=(0, 0), decoder_blocks=(0, 0)),
        vocabulary=vocabulary,
        frame_height=32,
        frame_width=32,
        frames_per_second=TINY_FRAMES_PER_SECOND,
        num_steps=1,
        context_frames=TINY_CONTEXT_FRAMES,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        world = WorldModel(config)
        for parameter in world.parameters():  # zero-initialised outputs would hide the actions
            torch.nn.init.normal_(parameter, std=0.3)
    rng = np.random.default_rng(0)
    contexts = [
        Context(rng.integers(0, 256, (length, 32, 32, 3), np.uint8), rng.integers(0, len(vocabulary), length - 1))
        for length in TINY_CONTEXT_LENGTHS
    ]
    path = tmp_path_factory.mktemp("worlds") / "tiny"
    save_world(path, config, world.transformer, world.autoencoder, contexts, "# tiny\n")
    return path
