"""Stage 2: encode every episode once into a memory-mapped file of latents."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from farworld.console import progress_bar
from farworld.dataset import Dataset
from farworld.models.autoencoder import Autoencoder
from farworld.train.config import TrainConfig
from farworld.train.run import Run, autocast, write_json

ENCODE_BATCH = 32  # frames


@dataclass(frozen=True, slots=True)
class LatentDataset:
    """Scaled latents and actions of all episodes.

    Attributes:
        latents: (N, C, H, W), float16, episodes one after the other, memory-mapped.
        starts: (E + 1,), first frame of each episode in `latents`.
        produced_by: (N,), int64, the action that produced each frame; the null action for first frames.
    """

    latents: np.ndarray
    starts: np.ndarray
    produced_by: np.ndarray

    def num_frames(self, episode: int) -> int:
        """Frames of an episode."""
        return int(self.starts[episode + 1] - self.starts[episode])

    def clip(self, episode: int, start: int, length: int) -> tuple[Tensor, Tensor]:
        """Latents (length, C, H, W), float32, and the actions that produced them, (length,)."""
        first = int(self.starts[episode]) + start
        latents = torch.from_numpy(self.latents[first : first + length].astype(np.float32))
        return latents, torch.from_numpy(self.produced_by[first : first + length].copy())


def cache_latents(run: Run, autoencoder: Autoencoder, data: Dataset) -> LatentDataset:
    """Encode what is not encoded yet; interrupted, it goes on at the episode where it was.

    The first rank encodes, the others wait and then read the same file.

    The cache belongs to one autoencoder and one list of episodes; with others it is made anew.
    """
    config, device = run.config, run.ranks.device
    far = config.far(len(data.spec.action_vocabulary))
    counts = [data.num_frames(i) for i in range(len(data))]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    shape = (int(starts[-1]), far.latent_channels, far.latent_height, far.latent_width)
    file = run.latents / "latents.f16"
    if run.ranks.is_first:
        _fill(run, file, autoencoder.to(device), data, starts, shape)
    run.ranks.wait()
    latents = np.memmap(file, dtype=np.float16, mode="r", shape=shape)
    produced_by = np.full(shape[0], far.null_action, dtype=np.int64)
    for episode in range(len(data)):
        produced_by[starts[episode] + 1 : starts[episode + 1]] = data.actions(episode)
    return LatentDataset(latents, starts, produced_by)


def _fill(
    run: Run, file: Path, autoencoder: Autoencoder, data: Dataset, starts: np.ndarray, shape: tuple[int, ...]
) -> None:
    """Encode into the file what is not in it yet; see `LatentDataset` for starts, and for the file's shape."""
    key = _key(autoencoder, data, np.diff(starts).tolist())
    progress_file = run.latents / "progress.json"
    done = _episodes_done(progress_file, key)
    if done == 0:
        progress_file.unlink(missing_ok=True)  # what it says about the old content is no longer so
    if not file.is_file() or file.stat().st_size != 2 * int(np.prod(shape)):
        done = 0
        _allocate(file, 2 * int(np.prod(shape)))
    latents = np.memmap(file, dtype=np.float16, mode="r+", shape=shape)
    with progress_bar("latents    ", float(starts[-1]), unit="frames", completed=float(starts[done])) as advance:
        for episode in range(done, len(data)):
            span = slice(starts[episode], starts[episode + 1])
            latents[span] = _encode(autoencoder, data.frames(episode), run.config, run.ranks.device)
            advance(int(span.stop - span.start))
            if episode % 20 == 19 or episode == len(data) - 1:
                latents.flush()
                write_json(progress_file, {"key": key, "episodes": episode + 1})


@torch.no_grad()
def _encode(model: Autoencoder, frames: np.ndarray, config: TrainConfig, device: torch.device) -> np.ndarray:
    batches = []
    for start in range(0, len(frames), ENCODE_BATCH):
        with autocast(config, device):
            batches.append(model.encode(torch.from_numpy(frames[start : start + ENCODE_BATCH]).to(device)))
    return torch.cat(batches).to(torch.float16).cpu().numpy()


def _key(autoencoder: Autoencoder, data: Dataset, counts: list[int]) -> str:
    """Names the weights and the episodes that a cache was made from."""
    digest = hashlib.sha256(json.dumps([data.episodes, counts]).encode())
    for episode in range(len(data)):
        digest.update(data.actions(episode).tobytes())
    for tensor in autoencoder.state_dict().values():
        # As exported worlds have them: a run that goes on with a world's own autoencoder can take over its latents.
        digest.update(tensor.detach().cpu().half().numpy().tobytes())
    return digest.hexdigest()


def _episodes_done(path: Path, key: str) -> int:
    if not path.is_file():
        return 0
    stored = json.loads(path.read_text(encoding="utf-8"))
    return int(stored["episodes"]) if stored["key"] == key else 0


def _allocate(path: Path, size: int) -> None:
    """Reserve the disk space now: a full disk is an error here, not a crash of a memory map later."""
    with open(path, "wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, max(size, 1))
        else:
            file.truncate(size)
