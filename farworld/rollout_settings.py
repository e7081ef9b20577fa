"""What a rollout's frames depend on, found and checked in one place."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from farworld.models import flow
from farworld.models.far import FARConfig
from farworld.world_model import LAYOUTS, WorldModel, check_noise_level


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a rollout's frames depend on besides the weights, context, actions and seed; see `Rollout`."""

    model: FARConfig
    batch_size: int
    layout: str
    context_frames: int
    sink_frames: int
    guidance_scale: float
    context_noise: float
    timesteps: tuple[float, ...]
    dtype: torch.dtype

    def __post_init__(self) -> None:
        window = self.model.short_term_frames if self.model.context_patch_size else 1
        if self.context_frames < window:
            raise ValueError(
                f"the context must be at least the short-term window of {window} frames, got {self.context_frames}"
            )
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if not 0.0 <= self.guidance_scale < math.inf:
            raise ValueError(f"guidance_scale must not be negative (1.0 is off) or endless, got {self.guidance_scale}")
        if self.layout not in LAYOUTS:
            raise ValueError(f"the layout must be one of {', '.join(LAYOUTS)}, got {self.layout!r}")
        if not self.model.causal:
            raise ValueError("a model that is not causal (Video-DiT) makes clips, not frames: see denoise_clip")
        check_noise_level(self.context_noise)
        falls = all(then < now for now, then in self.steps)
        if not self.steps or (self.timesteps[0], self.timesteps[-1]) != (1.0, 0.0) or not falls:
            raise ValueError(f"timesteps must fall from 1 to 0, got {list(self.timesteps)}")
        if self.sink_frames and self.layout != "sliding":
            raise ValueError(f"sink_frames goes with the sliding layout, got {self.sink_frames} and {self.layout}")

    @property
    def steps(self) -> tuple[tuple[float, float], ...]:
        """Flow times before and after each denoising step."""
        return tuple(itertools.pairwise(self.timesteps))

    @property
    def step_sizes(self) -> list[float] | None:
        """Of each step, as the model is told; None if it is not."""
        finest = self.model.shortcut_steps
        return [flow.shortcut_size(now - then, finest) for now, then in self.steps] if finest else None

    @property
    def branches(self) -> int:
        """Of guidance; without actions there is nothing to guide towards."""
        return 1 if self.guidance_scale in (0.0, 1.0) or not self.model.num_actions else 2


def settings_of(
    world: WorldModel,
    *,
    batch_size: int,
    num_steps: int | None,
    context_frames: int | None,
    guidance_scale: float,
    layout: str | None,
    timesteps: Sequence[float] | None,
    context_noise: float | None,
    sink_frames: int | None,
    dtype: torch.dtype,
) -> Settings:
    """Settings with a world's own ones where none are given; see `Rollout`.

    Raises:
        ValueError: num_steps and timesteps, no whole number where one is counted, or what settings may not be.
    """
    own, finest = world.config, world.config.model.shortcut_steps
    num_steps, sink_frames = _whole_or_none("num_steps", num_steps), _whole_or_none("sink_frames", sink_frames)
    context_frames = _whole_or_none("context_frames", context_frames)
    if timesteps is None:
        num_steps = own.num_steps if num_steps is None else num_steps
        timesteps = flow.shortcut_timesteps(num_steps, finest) if finest else flow.euler_timesteps(num_steps)
    elif num_steps is not None:
        raise ValueError("give num_steps or timesteps, not both")
    layout = own.layout if layout is None else layout
    if sink_frames is None:
        sink_frames = own.sink_frames if layout == "sliding" else 0
    return Settings(
        model=own.model, batch_size=whole_number("batch_size", batch_size), layout=layout, sink_frames=sink_frames,
        context_frames=own.context_frames if context_frames is None else context_frames,
        guidance_scale=guidance_scale, context_noise=own.context_noise if context_noise is None else context_noise,
        timesteps=tuple(timesteps), dtype=dtype,
    )  # fmt: skip


def whole_number(name: str, value: Any) -> int:
    """An integer of any library's type as one of Python.

    Raises:
        ValueError: it is none.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, got {value!r}") from None


def _whole_or_none(name: str, value: Any) -> int | None:
    return None if value is None else whole_number(name, value)
