"""Stage 3: train FAR-Long on cached latents.

Frame-wise flow matching with an independent timestep per frame and stochastic clean context: each of a clip's
last frames is either a noised target or clean context, all earlier ones are clean coarse context. In the last part
of the training, while the learning rate falls, clips are long and some context frames are the model's own predictions.
Video-DiT, the paper's baseline, has one timestep for all frames of a clip and no context.

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
    latents: LatentDataset,
    episodes: list[int],
    config: TrainConfig,
    max_frames: int,
    noop: int | None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """A batch of clips of one length, drawn log-uniformly up to max_frames or the longest episode.

    Returns:
        latents (B, T, C, H, W), float32, and the actions that produced the frames, (B, T), int64.
    """
    longest = min(max_frames, max(latents.num_frames(episode) for episode in episodes))
    shortest = min(config.fine_frames, longest)
    if config.context_patch_size is None:  # every frame is fine, and trained on
        longest = shortest
    draw = float(torch.rand(1, generator=generator))
    length = round(math.exp(math.log(shortest) + draw * math.log(longest / shortest)))
    candidates = [episode for episode in episodes if latents.num_frames(episode) >= length]
    clips, actions = [], []
    for _ in range(config.world_batch_size):
        episode = candidates[int(torch.randint(len(candidates), (1,), generator=generator))]
        start = int(torch.randint(latents.num_frames(episode) - length + 1, (1,), generator=generator))
        clip, produced_by = latents.clip(episode, start, length)
        if noop is not None and float(torch.rand(1, generator=generator)) < config.idle_ratio:
            clip, produced_by = clip[:1].expand_as(clip), torch.full_like(produced_by, noop)
        clips.append(clip)
        actions.append(produced_by)
    return torch.stack(clips), torch.stack(actions)


def flow_matching_loss(
    model: FAR,
    clean: Tensor,
    actions: Tensor,
    config: TrainConfig,
    generator: torch.Generator,
    *,
    own_context_ratio: float = 0.0,
) -> Tensor:
    """Mean squared error of the velocity over the noised frames of a batch of clips.

    Args:
        model: in training mode, under autocast if wanted.
        clean: (B, T, C, H, W), scaled latents.
        actions: (B, T), int64, the action that produced each frame.
        config: ratios and timestep distribution.
        generator: on the CPU; the source of all that is random here.
        own_context_ratio: share of clips in which half of the context frames are the model's own predictions,
            so that it learns to go on from its own errors.

    Returns:
        A scalar.
    """
    batch, length = actions.shape
    num_fine = min(config.fine_frames, length)
    device, null = clean.device, model.config.null_action
    dropped = torch.rand((batch, length), generator=generator) < config.action_dropout
    # The clip's first frame is the first of its stream: whatever produced it is not known.
    dropped[:, 0] = True
    actions = actions.masked_fill(dropped.to(device), null)
    num_context = max(length - num_fine, length - model.config.window)
    context = clean[:, :num_context] if num_context > 0 else None
    truth = shown = clean[:, length - num_fine :]
    if own_context_ratio and model.config.causal:
        predicted = own_predictions(model, truth, actions, context, config, generator)
        own = torch.rand(batch, generator=generator) < own_context_ratio
        shown = torch.where(own.to(device)[:, None, None, None, None], predicted, truth)

    noise = torch.randn(truth.shape, generator=generator).to(device)
    timestep = flow.sample_timesteps(
        (batch, num_fine),
        generator,
        mean=config.timestep_mean,
        std=config.timestep_std,
        pure_noise_ratio=config.pure_noise_ratio,
    ).to(device)
    is_clean = random_context(batch, num_fine, config, generator).to(device)
    if not model.config.causal:
        timestep, is_clean = timestep[:, :1].expand_as(timestep), torch.zeros_like(is_clean)
    noisy = torch.where(is_clean[..., None, None, None], shown, flow.add_noise(truth, noise, timestep))
    velocity = model(noisy, _mark(timestep, is_clean), actions, context).float()
    return velocity_loss(velocity, truth, noise, is_clean)


def velocity_loss(velocity: Tensor, truth: Tensor, noise: Tensor, is_clean: Tensor) -> Tensor:
    """Mean squared error over the noised frames of each clip, then over clips, as the official trainer has it.

    Args:
        velocity: (B, F, C, H, W), predicted.
        truth: (B, F, C, H, W), scaled latents.
        noise: (B, F, C, H, W).
        is_clean: (B, F), bool, context frames, which are not learnt.

    Returns:
        A scalar.
    """
    error = (velocity - flow.velocity_target(truth, noise)).square().mean(dim=(2, 3, 4))
    is_target = (~is_clean).float()
    return ((error * is_target).sum(dim=1) / is_target.sum(dim=1).clamp(min=1)).mean()


def random_context(batch: int, num_fine: int, config: TrainConfig, generator: torch.Generator) -> Tensor:
    """Which frames are clean context, (B, F), bool; at least one frame of a clip is left to learn."""
    is_clean = torch.rand((batch, num_fine), generator=generator) < config.clean_context_ratio
    is_clean[:, -1] &= ~is_clean.all(dim=1)
    return is_clean


def _mark(timestep: Tensor, is_clean: Tensor) -> Tensor:
    """Timesteps on the embedding's scale, clean frames by their mark."""
    return torch.where(is_clean, CLEAN_SHORT_TERM, timestep * TIMESTEP_SCALE)


@torch.no_grad()
def own_predictions(
    model: FAR,
    truth: Tensor,
    actions: Tensor,
    context: Tensor | None,
    config: TrainConfig,
    generator: torch.Generator,
) -> Tensor:
    """Clips in which some frames are predicted in one step from the others, which stay as they are.

    Args:
        model: predicts.
        truth: (B, F, C, H, W), scaled latents.
        actions: (B, T), int64; see `FAR.forward`, also for `context`.
        context: the clip's clean coarse frames.
        config: for the share of frames that stay.
        generator: on the CPU.

    Returns:
        (B, F, C, H, W).
    """
    is_clean = random_context(truth.shape[0], truth.shape[1], config, generator).to(truth.device)
    noise = torch.randn(truth.shape, generator=generator).to(truth.device)
    keep = is_clean[..., None, None, None]
    velocity = model(
        torch.where(keep, truth, noise),
        _mark(torch.ones(is_clean.shape, device=truth.device), is_clean),
        actions,
        context,
    )
    torch.clear_autocast_cache()  # weights cast here know no gradient, and the pass that trains would take them over
    return torch.where(keep, truth, flow.euler_step(noise, velocity.float(), 1.0, 0.0))


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
        late = step >= config.decay_start(config.world_steps)
        max_frames = config.max_clip_frames if late else config.early_clip_frames
        noop = data.spec.action_vocabulary.noop
        clips, actions = random_clips(latents, episodes, config, max_frames, noop, generator)
        with autocast(config, device):
            return flow_matching_loss(
                model,
                clips.to(device),
                actions.to(device),
                config,
                generator,
                own_context_ratio=config.own_context_ratio if late else 0.0,
            )

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
