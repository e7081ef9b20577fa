"""A world model: frames and actions in, frames out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from farworld.actions import ACTION_TIMING, ActionVocabulary
from farworld.models.autoencoder import Autoencoder, AutoencoderConfig
from farworld.models.far import FAR, FARConfig
from farworld.models.packed import Packed

LAYOUTS = ("sliding", "anchored")
FRAME_ACTIONS = ("producing", "following", "label")


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldConfig:
    """All that a world is besides its weights and start contexts."""

    name: str
    model: FARConfig
    autoencoder: AutoencoderConfig
    vocabulary: ActionVocabulary
    frame_height: int  # pixels
    frame_width: int  # pixels
    frames_per_second: float  # of the recorded world
    num_steps: int = 2  # denoising steps a frame that play uses
    context_frames: int = 300  # frames that play remembers, the short-term window included
    layout: str = "sliding"  # of long short-term attention: sliding, or anchored as in the official implementation
    # What a frame is conditioned on: the action producing it, the one following it, or a label, which is an action that
    # all frames of an episode share, the first one included.
    frame_action: str = "producing"
    action_timing: str = ACTION_TIMING
    context_noise: float = 0.0  # flow time, of past frames as the model sees them in play; for models trained with it
    sink_frames: int = 0  # of a stream's first frames, which play never forgets, in the sliding layout
    training: dict = field(default_factory=dict)  # provenance: data, steps, hardware, the resolved config

    def __post_init__(self) -> None:
        if self.action_timing != ACTION_TIMING:
            raise ValueError(f"action_timing must be {ACTION_TIMING!r}, got {self.action_timing!r}")
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {self.layout!r}")
        if self.frame_action not in FRAME_ACTIONS:
            raise ValueError(f"frame_action must be one of {', '.join(FRAME_ACTIONS)}, got {self.frame_action!r}")
        if not 0.0 < self.frames_per_second < math.inf:
            raise ValueError(f"frames_per_second must be above 0, got {self.frames_per_second}")
        check_noise_level(self.context_noise)
        if self.sink_frames < 0:
            raise ValueError(f"sink_frames must not be negative (0 is none), got {self.sink_frames}")
        compression = self.autoencoder.compression
        expected = (self.model.latent_height * compression, self.model.latent_width * compression)
        if (self.frame_height, self.frame_width) != expected:
            raise ValueError(
                f"latents of {self.model.latent_height}×{self.model.latent_width} at {compression}× compression make "
                f"frames of {expected[0]}×{expected[1]}, but the config says {self.frame_height}×{self.frame_width}"
            )
        if max(1, self.model.num_actions) != len(self.vocabulary):  # an unconditional world can still be waited in
            raise ValueError(f"the model has {self.model.num_actions} actions, the vocabulary {len(self.vocabulary)}")

    def conditions(self, actions: Tensor) -> Tensor:
        """What frames are conditioned on by the actions between them.

        Args:
            actions: (B, F − 1), int64; action t produced frame t + 1.

        Returns:
            (B, F), int64: the first frame has the null action, or the label where there is one.
        """
        first = actions.new_full((len(actions), 1), self.model.null_action)
        if self.frame_action == "label" and actions.shape[1]:
            first = actions[:, :1]
        return torch.cat([first, actions], dim=1)


def check_noise_level(level: float) -> None:
    """Raise ValueError unless context frames of this noise still show something."""
    if not 0.0 <= level < 1.0:
        raise ValueError(f"context_noise must be in [0, 1), 0 is none, got {level}")


class WorldModel(nn.Module):
    """Autoencoder and transformer of one world; pixels and actions are checked here."""

    def __init__(self, config: WorldConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = FAR(config.model)
        self.autoencoder = Autoencoder(config.autoencoder)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.transformer.velocity_head.bias.device

    @property
    def num_parameters(self) -> int:
        """Parameters of transformer and autoencoder."""
        packed = sum(module.num_packed for module in self.modules() if isinstance(module, Packed))
        return packed + sum(parameter.numel() for parameter in self.parameters())

    def encode(self, frames: Tensor) -> Tensor:
        """Frames (B, F, H, W, 3), uint8, to scaled latents (B, F, C, h, w), float32."""
        expected = (self.config.frame_height, self.config.frame_width, 3)
        if frames.ndim != 5 or tuple(frames.shape[2:]) != expected or frames.dtype != torch.uint8:
            raise ValueError(
                f"frames must be uint8 of shape (batch, frames) + {expected}, got {frames.dtype} {tuple(frames.shape)}"
            )
        return self.autoencoder.encode(frames.flatten(0, 1).to(self.device)).unflatten(0, frames.shape[:2])

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) to frames (B, H, W, 3), uint8."""
        return self.autoencoder.decode(latents)
