"""A world of an official size with random weights, to measure speed with.

    python benchmarks/gpu/random_world.py SIZE OUT

far_b_long is the official DMLab size, 64×64 frames; far_m_long the official Minecraft one, 128×128.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from farworld.actions import Action, ActionVocabulary
from farworld.checkpoint import Context, save_world
from farworld.models.autoencoder import AutoencoderConfig
from farworld.models.far import FARConfig
from farworld.models.official import SHORT_TERM_FRAMES, VARIANTS
from farworld.world_model import WorldConfig, WorldModel

ACTIONS = ActionVocabulary(tuple(Action(name=name) for name in ("noop", "forward", "turn_left", "turn_right")))
# Frame size, and the DC-AE's widths and blocks.
AUTOENCODERS = {
    "far_b_long": (64, (128, 256, 512, 512), (0, 4, 8, 2), (0, 5, 10, 2), 1),
    "far_m_long": (128, (128, 256, 512, 512, 1024), (0, 4, 8, 2, 2), (0, 5, 10, 2, 2), 2),
}


def make_random_world(size: str, out: Path, *, context_frames: int = 1000) -> None:
    """Write a world of a size of `AUTOENCODERS`.

    Raises:
        ValueError: there is no such size.
    """
    if size not in AUTOENCODERS:
        raise ValueError(f"known sizes are {', '.join(AUTOENCODERS)}, got {size!r}")
    frame_size, widths, encoder_blocks, decoder_blocks, attention_stages = AUTOENCODERS[size]
    variant, latent_size = VARIANTS[size], frame_size // 2 ** len(widths)
    config = WorldConfig(
        name=size,
        model=FARConfig(
            latent_channels=32, latent_height=latent_size, latent_width=latent_size, num_actions=len(ACTIONS),
            num_layers=variant.num_layers, num_heads=variant.num_heads, short_term_frames=SHORT_TERM_FRAMES,
            context_patch_size=variant.context_patch_size,
        ),
        autoencoder=AutoencoderConfig(
            latent_channels=32, widths=widths, encoder_blocks=encoder_blocks, decoder_blocks=decoder_blocks,
            attention_stages=attention_stages,
        ),
        vocabulary=ACTIONS, frame_height=frame_size, frame_width=frame_size, frames_per_second=10.0, num_steps=4,
        context_frames=context_frames,
    )  # fmt: skip
    torch.manual_seed(0)
    world = WorldModel(config)
    frames = np.random.default_rng(0).integers(0, 256, (8, frame_size, frame_size, 3), np.uint8)
    context = Context(frames, np.zeros(7, np.int64))
    save_world(out, config, world.transformer, world.autoencoder, [context], f"# {size}, random weights\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python benchmarks/gpu/random_world.py far_b_long|far_m_long OUT")
    make_random_world(sys.argv[1], Path(sys.argv[2]))
