"""Stage 3: train FAR-Long on cached latents.

Frame-wise flow matching with an independent timestep per frame and stochastic clean context: each of a clip's
last frames is either a noised target or clean context, all earlier ones are clean coarse context.

Paper: FAR, arXiv:2503.19325, Secs. 3.1 to 3.3.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from farworld.dataset import Dataset
from farworld.models import flow
from farworld.models.far import CLEAN_SHORT_TERM, FAR, TIMESTEP_SCALE
from farworld.train.config import TrainConfig
from farworld.train.latents import LatentDataset
from farworld.train.run import Run, TrainState, autocast, fit, moving_average, step_generator

STAGE = "world"
STAGE_KEY = 2  # see step_generator


def random_clips(
    latents: LatentDataset, episodes: list[int], config: TrainConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A batch of clips of one length, drawn log-uniformly: long ones are dear, and short ones teach motion.

    Returns:
        latents (B, T, C, H, W), float32, and the actions that produced the frames, (B, T), int64.
    """
    longest = min(config.max_clip_frames, max(latents.num_frames(episode) for episode in episodes))
    shortest = min(config.fine_frames, longest)
    draw = float(torch.rand(1, generator=generator))
    length = round(math.exp(math.log(shortest) + draw * math.log(longest / shortest)))
    candidates = [episode for episode in episodes if latents.num_frames(episode) >= length]
    clips, actions = [], []
    for _ in range(config.world_batch_size):
        episode = candidates[int(torch.randint(len(candidates), (1,), generator=generator))]
        start = int(torch.randint(latents.num_frames(episode) - length + 1, (1,), generator=generator))
        clip, produced_by = latents.clip(episode, start, length)
        clips.append(clip)
        actions.append(produced_by)
    return torch.stack(clips), torch.stack(actions)


def flow_matching_loss(
    model: FAR, clean: Tensor, actions: Tensor, config: TrainConfig, generator: torch.Generator
) -> Tensor:
    """Mean squared error of the velocity over the noised frames of a batch of clips.

    Args:
        model: in training mode, under autocast if wanted.
        clean: (B, T, C, H, W), scaled latents.
        actions: (B, T), int64, the action that produced each frame.
        config: ratios and timestep distribution.
        generator: on the CPU; the source of all that is random here.

    Returns:
        A scalar.
    """
    batch, length = actions.shape
    num_fine = min(config.fine_frames, length)
    device, null = clean.device, model.config.null_action
    targets = clean[:, length - num_fine :]
    noise = torch.randn(targets.shape, generator=generator).to(device)
    timestep = flow.sample_timesteps(
        (batch, num_fine), generator, mean=config.timestep_mean, std=config.timestep_std,
        pure_noise_ratio=config.pure_noise_ratio,
    )  # fmt: skip
    is_clean = torch.rand((batch, num_fine), generator=generator) < config.clean_context_ratio
    is_clean[:, -1] &= ~is_clean.all(dim=1)  # something must be left to learn
    dropped = torch.rand((batch, length), generator=generator) < config.action_dropout
    timestep, is_clean, dropped = timestep.to(device), is_clean.to(device), dropped.to(device)

    noisy = flow.add_noise(targets, noise, timestep.masked_fill(is_clean, 0.0))
    mark = torch.where(is_clean, CLEAN_SHORT_TERM, timestep * TIMESTEP_SCALE)
    # The clip's first frame is the first of its stream: whatever produced it is not known.
    actions = actions.masked_fill(dropped, null)
    actions[:, 0] = null
    num_context = max(length - num_fine, length - model.config.short_term_frames)
    context = clean[:, :num_context] if num_context > 0 else None
    velocity = model(noisy, mark, actions, context).float()
    error = (velocity - flow.velocity_target(targets, noise)).square().mean(dim=(2, 3, 4))
    return error[~is_clean].mean()


def optimizer_of(model: FAR, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)


def new_state(config: TrainConfig, num_actions: int, device: torch.device) -> TrainState:
    """Untrained weights of the run's seed."""
    torch.manual_seed(config.seed + 1)
    model = FAR(config.far(num_actions)).to(device)
    return TrainState(model, optimizer_of(model, config), moving_average(model, config.ema_decay))


def train_world(
    run: Run, latents: LatentDataset, data: Dataset, episodes: list[int], device: torch.device, sample
) -> TrainState:
    """Run the stage to its end.

    Args:
        run: the run's folder and config.
        latents: of all episodes of `data`.
        data: for its vocabulary.
        episodes: those to train on.
        device: where to train.
        sample: called with (averaged model, step) at the config's cadence.

    Returns:
        The final state.
    """
    config = run.config
    state = new_state(config, len(data.spec.action_vocabulary), device)
    model = state.model
    assert isinstance(model, FAR) and state.average is not None

    def loss_of_step(step: int) -> Tensor:
        generator = step_generator(config, STAGE_KEY, step)
        clips, actions = random_clips(latents, episodes, config, generator)
        with autocast(config, device):
            return flow_matching_loss(model, clips.to(device), actions.to(device), config, generator)

    fit(
        run, STAGE, state, total_steps=config.world_steps,
        frames_per_step=config.world_batch_size * config.fine_frames, loss_of_step=loss_of_step,
        sample=lambda step: sample(state.average.module, step),
    )  # fmt: skip
    return state


def split_episodes(count: int, held_out_fraction: float) -> tuple[list[int], list[int]]:
    """Episodes to train on, and the last ones that are held out (the same ones if there is only one)."""
    held_out = min(max(1, round(count * held_out_fraction)), count - 1) if count > 1 else 0
    everything = list(np.arange(count))
    train = [int(i) for i in everything[: count - held_out]]
    return train, [int(i) for i in everything[count - held_out :]] or train
