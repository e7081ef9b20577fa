"""Stage 2: encode every episode once into a memory-mapped file of latents.

Episodes of a dataset that lies elsewhere pass through memory, one by one; on the disk are only their latents.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from farworld.console import progress_bar
from farworld.dataset import Dataset
from farworld.dataset.format import StoredEpisode
from farworld.models.autoencoder import Autoencoder
from farworld.train.config import TrainConfig
from farworld.train.run import Run, autocast, write_json

ENCODE_BATCH = 32  # frames
LATENTS_FILE, ACTIONS_FILE = "latents.f16", "actions.i64"
FIRST_FRAME = -1  # in place of the action that produced a frame


@dataclass(frozen=True, slots=True)
class LatentDataset:
    """Scaled latents and actions of all episodes.

    Attributes:
        latents: (N, C, H, W), float16, episodes one after the other, memory-mapped.
        starts: (E + 1,), first frame of each episode in `latents`.
        produced_by: (N,), int64, the action that produced each frame, the null action for first frames; or the label.
        mirrored: like `latents`, of the frames' mirror images; None if nobody needs them.
    """

    latents: np.ndarray
    starts: np.ndarray
    produced_by: np.ndarray
    mirrored: np.ndarray | None = None

    def num_frames(self, episode: int) -> int:
        """Frames of an episode."""
        return int(self.starts[episode + 1] - self.starts[episode])

    def clip(
        self, episode: int, start: int, length: int, *, interval: int = 1, mirrored: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Latents (length, C, H, W), float32, of every interval-th frame, and what produced these, (length,)."""
        first = int(self.starts[episode]) + start
        frames = slice(first, first + (length - 1) * interval + 1, interval)
        latents = self.mirrored if mirrored and self.mirrored is not None else self.latents
        return (
            torch.from_numpy(latents[frames].astype(np.float32)),
            torch.from_numpy(self.produced_by[frames].copy()),
        )


def cache_latents(run: Run, autoencoder: Autoencoder, data: Dataset) -> LatentDataset:
    """Encode what is not encoded yet; interrupted, it goes on at the episode where it was.

    The first rank encodes, the others wait and then read the same file.

    The cache belongs to one autoencoder and one list of episodes; with others it is made anew.
    """
    config = run.config
    far = config.far(len(data.spec.action_vocabulary))
    starts = np.concatenate([[0], np.cumsum([data.num_frames(i) for i in range(len(data))])]).astype(np.int64)
    # With flip all mirror images follow.
    num_frames, copies = int(starts[-1]), 2 if config.flip else 1
    shape = (copies * num_frames, far.latent_channels, far.latent_height, far.latent_width)
    if run.ranks.is_first:
        _fill(run, autoencoder.to(run.ranks.device), data, starts, shape)
    run.ranks.wait()
    latents, actions = _mapped(run, shape, num_frames, "r")
    produced_by = np.array(actions)
    firsts = starts[:-1]
    if config.condition == "label":
        several = firsts[np.diff(starts) > 1]
        produced_by[several] = produced_by[several + 1]
    produced_by[produced_by == FIRST_FRAME] = far.null_action
    if config.condition == "none":
        produced_by[:] = far.null_action
    return LatentDataset(latents[:num_frames], starts, produced_by, latents[num_frames:] if config.flip else None)


def _mapped(run: Run, shape: tuple[int, ...], num_frames: int, mode: Literal["r", "r+"]) -> tuple[np.memmap, np.memmap]:
    """The files of latents, and of the action that produced each frame, FIRST_FRAME for first ones."""
    latents = np.memmap(run.latents / LATENTS_FILE, dtype=np.float16, mode=mode, shape=shape)
    return latents, np.memmap(run.latents / ACTIONS_FILE, dtype=np.int64, mode=mode, shape=(num_frames,))


def _fill(run: Run, autoencoder: Autoencoder, data: Dataset, starts: np.ndarray, shape: tuple[int, ...]) -> None:
    """Encode into the files what is not in them yet; see `LatentDataset` for starts, and for the shape of latents."""
    key = _key(autoencoder, data)
    progress_file = run.latents / "progress.json"
    done, frames_done = _done(progress_file, key)
    num_frames = int(starts[-1])
    sizes = {run.latents / LATENTS_FILE: 2 * int(np.prod(shape)), run.latents / ACTIONS_FILE: 8 * num_frames}
    if done and any(not file.is_file() or file.stat().st_size != size for file, size in sizes.items()):
        done = frames_done = 0
    if done == 0:
        progress_file.unlink(missing_ok=True)  # what it says about the old content is no longer so
        for file, size in sizes.items():
            _allocate(file, size)
    latents, produced_by = _mapped(run, shape, num_frames, "r+")
    with (
        progress_bar("latents    ", float(num_frames), unit="frames", completed=frames_done) as advance,
        contextlib.closing(_read_ahead(data.stream(done))) as episodes,
    ):
        for count, (episode, stored) in enumerate(episodes, done + 1):
            with data.naming(episode):
                frames, actions = stored.frames(), stored.array("actions")
            span = slice(starts[episode], starts[episode + 1])
            latents[span] = _encode(autoencoder, frames, run.config, run.ranks.device)
            if run.config.flip:
                mirrored = slice(span.start + num_frames, span.stop + num_frames)
                latents[mirrored] = _encode(autoencoder, frames[:, :, ::-1].copy(), run.config, run.ranks.device)
            produced_by[span] = [FIRST_FRAME, *actions]
            frames_done += len(frames)
            advance(len(frames))
            if count % 20 == 0 or count == len(data):
                latents.flush()
                produced_by.flush()
                write_json(progress_file, {"key": key, "episodes": count, "frames": frames_done})


def _read_ahead(episodes: Iterator[tuple[int, StoredEpisode]]) -> Generator[tuple[int, StoredEpisode]]:
    """The same episodes, each fetched while the one before is encoded."""
    with ThreadPoolExecutor(1, thread_name_prefix="reader") as pool:
        coming = pool.submit(next, episodes, None)
        while (found := coming.result()) is not None:
            coming = pool.submit(next, episodes, None)
            yield found


@torch.no_grad()
def _encode(model: Autoencoder, frames: np.ndarray, config: TrainConfig, device: torch.device) -> np.ndarray:
    batches = []
    for start in range(0, len(frames), ENCODE_BATCH):
        with autocast(config, device):
            batches.append(model.encode(torch.from_numpy(frames[start : start + ENCODE_BATCH]).to(device)))
    return torch.cat(batches).to(torch.float16).cpu().numpy()


def _key(autoencoder: Autoencoder, data: Dataset) -> str:
    """Names the weights and the episodes that a cache was made from."""
    digest = hashlib.sha256(data.fingerprint.encode())
    for tensor in autoencoder.state_dict().values():
        # As exported worlds have them: a run that goes on with a world's own autoencoder can take over its latents.
        digest.update(tensor.detach().cpu().half().numpy().tobytes())
    return digest.hexdigest()


def _done(path: Path, key: str) -> tuple[int, int]:
    """Episodes and frames that are encoded already."""
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return (stored["episodes"], stored.get("frames", 0)) if stored.get("key") == key else (0, 0)


def _allocate(path: Path, size: int) -> None:
    """Reserve the disk space now: a full disk is an error here, not a crash of a memory map later."""
    with open(path, "wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, max(size, 1))
        else:
            file.truncate(size)
