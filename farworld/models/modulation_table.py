"""Modulations of a rollout, computed once: its frames have few different conditions.

A frame is context or at one of the sampler's timesteps, each of which has one step size, and has one of a few actions;
what the modulation layers, a third of a FAR's weights, make of each such pair never changes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from farworld.models.far import CLEAN_LONG_TERM, CLEAN_SHORT_TERM, FAR, Modulations, context_mark

MOST_ROWS = 512  # beyond that a table takes more memory and time to make than it saves


class ModulationTable:
    """A `farworld.models.far.Modulate` that looks up what it was made for."""

    def __init__(
        self,
        transformer: FAR,
        timesteps: Sequence[float],
        *,
        step_sizes: Sequence[float] | None = None,
        context_noise: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Compute the table.

        Args:
            transformer: whose weights do not change from here on.
            timesteps: of noisy frames, on the embedding's 0–1000 scale; the marks of context frames are added.
            step_sizes: flow time, one for each of `timesteps`, see `FAR.forward`.
            context_noise: flow time, of all context frames.
            dtype: of the modulations.
        """
        device = transformer.timestep_embedding.frequencies.device
        self._num_actions = transformer.config.num_actions + 1
        marks = [context_mark(mark, context_noise) for mark in (CLEAN_SHORT_TERM, CLEAN_LONG_TERM)]
        self._timesteps = torch.tensor([*marks, *timesteps], device=device)
        shape = (len(self._timesteps), self._num_actions)
        timestep = self._timesteps[:, None].expand(shape)
        action = torch.arange(self._num_actions, device=device).expand(shape)
        size = None
        if step_sizes is not None:
            size = torch.tensor([*(1.0 for _ in marks), *step_sizes], device=device)[:, None].expand(shape)
        tables = transformer.modulations(timestep, action, size)
        # In one, so that it is looked up at once.
        self._table = torch.cat([table.flatten(0, 1) for table in tables], dim=-1).to(dtype)
        self._widths = [table.shape[-1] for table in tables]

    @classmethod
    def fits(cls, transformer: FAR, timesteps: Sequence[float]) -> bool:
        """Whether a table is worth its memory."""
        return (len(timesteps) + 2) * (transformer.config.num_actions + 1) <= MOST_ROWS

    def __call__(self, timestep: Tensor, action: Tensor, step_size: Tensor | None = None) -> Modulations:
        """See `farworld.models.far.Modulations`; only timesteps that the table was made with, which say the size."""
        known = (timestep[..., None] == self._timesteps).int().argmax(dim=-1)
        row = known * self._num_actions + action
        return self._table[row].split(self._widths, dim=-1)
