"""One-step evaluation: every frame predicted from the true past, at the step count that play uses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from farworld.dataset import Dataset
from farworld.rollout import Rollout
from farworld.world_model import WorldModel

SSIM_REACH = 5  # pixels from the middle of SSIM's window to its edge
MAX_PSNR = 100.0  # of an exact frame, which would be infinite


def psnr(predicted: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of frames (N, H, W, 3), uint8, in dB, (N,)."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    values = peak_signal_noise_ratio(
        predicted.float(), truth.float(), data_range=255.0, reduction="none", dim=(1, 2, 3)
    )
    return values.clamp(max=MAX_PSNR)


def ssim(predicted: Tensor, truth: Tensor, *, borders: bool = True) -> Tensor:
    """Structural similarity of frames (N, H, W, 3), uint8, (N,), windows of 11×11 pixels.

    Args:
        predicted: at least 11 pixels high and wide.
        truth: likewise.
        borders: count places where the window reaches over the border, where the frame is mirrored, too, as
            torchmetrics does since 1.5, and FAR's evaluation with it; else only where it fits, as the measure was
            published, and as TECO's evaluation does.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = (frames.permute(0, 3, 1, 2).float() for frames in (predicted, truth))
    _, places = structural_similarity_index_measure(a, b, data_range=255.0, reduction="none", return_full_image=True)
    assert isinstance(places, Tensor) and places.shape == a.shape
    if not borders:
        places = places[..., SSIM_REACH:-SSIM_REACH, SSIM_REACH:-SSIM_REACH]
    return places.flatten(1).mean(dim=1)


def one_step(
    world: WorldModel,
    data: Dataset,
    episodes: list[int],
    *,
    num_steps: int | None = None,
    max_frames: int | None = None,
    shuffle_actions: bool = False,
    seed: int = 0,
    batch_size: int = 16,
    advance: Callable[[int], None] | None = None,
) -> dict[str, float | int | None]:
    """Predict every frame but the first of some episodes, each from its true past.

    Args:
        world: what predicts.
        data: recorded episodes with the world's vocabulary and frame size.
        episodes: indices into `data`.
        num_steps: denoising steps; None is the world's own number.
        max_frames: frames of an episode that are looked at; None is all.
        shuffle_actions: permute the actions of each episode at random.
        seed: of the noise and of the permutation.
        batch_size: episodes that run together.
        advance: called with the number of frames done.

    Returns:
        psnr, ssim, copy_last_psnr, copy_last_ssim: means over the frames that differ from the one before, dB;
        idle_psnr: mean over the others, None without any; episodes, frames (predicted), steps.

    Raises:
        ValueError: the data's vocabulary or frame size is not the world's.
    """
    check_fit(world, data)
    scores: dict[str, list[Tensor]] = {"psnr": [], "ssim": [], "copy_last_psnr": [], "copy_last_ssim": [], "same": []}
    steps = 0
    for group in _groups_of_equal_length(data, episodes, batch_size, max_frames):
        frames = torch.from_numpy(np.stack([data.frames(i, 0, length) for i, length in group]))
        actions = np.stack([data.actions(i)[: length - 1] for i, length in group])
        if shuffle_actions:
            rngs = [np.random.default_rng([seed, i]) for i, _ in group]
            actions = np.stack([rng.permutation(row) for rng, row in zip(rngs, actions, strict=True)])
        # A cache larger than the episode would only cost time.
        window, length = world.config.model.short_term_frames, frames.shape[1]
        context_frames = max(window, min(world.config.context_frames, length))
        rollout = Rollout(world, batch_size=len(group), num_steps=num_steps, context_frames=context_frames)
        rollout.prime(frames[:, :1], actions[:, :0], seed=seed)
        steps = rollout.num_steps
        for t in range(actions.shape[1]):
            truth, before = frames[:, t + 1], frames[:, t]
            predicted = torch.from_numpy(rollout.decode(rollout.peek_then_observe(actions[:, t], truth)))
            scores["psnr"].append(psnr(predicted, truth))
            scores["ssim"].append(ssim(predicted, truth))
            scores["copy_last_psnr"].append(psnr(before, truth))
            scores["copy_last_ssim"].append(ssim(before, truth))
            scores["same"].append((before == truth).flatten(1).all(dim=1))
            if advance:
                advance(len(group))
    values = {name: torch.cat(rows) for name, rows in scores.items()}
    same = values.pop("same")
    result: dict[str, float | int | None] = {
        name: float(rows[~same].mean()) if bool((~same).any()) else None for name, rows in values.items()
    }
    result["idle_psnr"] = float(values["psnr"][same].mean()) if bool(same.any()) else None
    return {**result, "episodes": len(episodes), "frames": int(same.numel()), "steps": steps}


def check_fit(world: WorldModel, data: Dataset) -> None:
    """Raise ValueError unless the data shows the world's actions and frame size."""
    config, spec = world.config, data.spec
    if (spec.height, spec.width) != (config.frame_height, config.frame_width):
        raise ValueError(
            f"the world's frames are {config.frame_height}×{config.frame_width}, "
            f"the dataset's are {spec.height}×{spec.width}; record with the same --size"
        )
    if spec.action_vocabulary.names != config.vocabulary.names:
        raise ValueError(
            f"the world knows the actions {', '.join(config.vocabulary.names)}, "
            f"the dataset has {', '.join(spec.action_vocabulary.names)}; record the environment that it was trained on"
        )


def _groups_of_equal_length(
    data: Dataset, episodes: list[int], batch_size: int, max_frames: int | None
) -> list[list[tuple[int, int]]]:
    """Episodes with their lengths, in batches of one length; episodes of a single frame have nothing to predict."""
    by_length: dict[int, list[tuple[int, int]]] = {}
    for episode in episodes:
        length = min(data.num_frames(episode), max_frames or data.num_frames(episode))
        if length > 1:
            by_length.setdefault(length, []).append((episode, length))
    if not by_length:
        raise ValueError("there is nothing to predict: no episode has two frames or more")
    return [rows[i : i + batch_size] for rows in by_length.values() for i in range(0, len(rows), batch_size)]
