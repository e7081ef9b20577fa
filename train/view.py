"""What a run sees of a dataset: every how many frames, and with or without the actions beside them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from farworld.actions import NO_ACTIONS
from farworld.dataset import Dataset
from farworld.dataset.format import StoredEpisode
from farworld.train.config import TrainConfig


class RunView(Dataset):
    """A dataset as the world that a run makes will show it; frames, actions and what is known of both.

    Of several frames the first is shown and the others are passed over. The latents, which clips are cut from, are
    those of all frames, so that training sees the others as well.
    """

    def __init__(self, data: Dataset, config: TrainConfig) -> None:
        """See a dataset, which stays open and shared, by a run's condition and frame interval."""
        vars(self).update(vars(data))
        self._data = data  # of whatever kind
        self._interval = config.frame_interval
        self._has_actions = config.condition != "none"
        self.spec = dataclasses.replace(
            data.spec,
            frames_per_second=data.spec.frames_per_second / config.frame_interval,
            action_vocabulary=data.spec.action_vocabulary if self._has_actions else NO_ACTIONS,
        )

    def __len__(self) -> int:
        return len(self._data)

    def path(self, i: int) -> Path:
        """Where the i-th episode is."""
        return self._data.path(i)

    def number(self, i: int) -> int:
        """The number of the i-th episode."""
        return self._data.number(i)

    def stored(self, i: int) -> StoredEpisode:
        """The i-th episode as it is stored, all frames and actions."""
        return self._data.stored(i)

    def num_frames(self, i: int) -> int:
        """Frames of the i-th episode that are shown."""
        return (self._data.num_frames(i) - 1) // self._interval + 1

    def frames(self, i: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """(stop - start, H, W, 3), uint8: of the frames that are shown."""
        stop = self.num_frames(i) if stop is None else stop
        return self._data.frames(i, start * self._interval, (stop - 1) * self._interval + 1)[:: self._interval]

    def actions(self, i: int) -> np.ndarray:
        """(T,), int64: one between two frames; zeros where none are told."""
        count = self.num_frames(i) - 1
        return self._data.actions(i)[:: self._interval][:count] if self._has_actions else np.zeros(count, np.int64)
