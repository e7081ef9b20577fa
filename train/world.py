"""Stage 3: train FAR-Long on cached latents.

Frame-wise flow matching with an independent timestep per frame and stochastic clean context: each of a clip's
last frames is either a noised target or clean context, all earlier ones are clean coarse context. In the last part
of the training, while the learning rate falls, clips are long and some context frames are the model's own predictions.
Video-DiT, the paper's baseline, has one timestep for all frames of a clip and no context.

Paper: FAR, arXiv:2503.19325, Secs. 3.1 to 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from farworld.dataset import Dataset
from farworld.models import flow
from farworld.models.far import CLEAN_SHORT_TERM, FAR, TIMESTEP_SCALE, FARConfig
from farworld.train.config import TrainConfig
from farworld.train.latents import LatentDataset
from farworld.train.ranks import Ranks, to_device
from farworld.train.run import Draws, Run, TrainState, autocast, fit, moving_average, step_generator

STAGE = "world"
STAGE_KEY = 2  # see step_generator


@dataclass(frozen=True, slots=True)
class ClipKind:
    """What the clips of a step have in common."""

    length: int  # frames
    own_context_ratio: float  # see `flow_matching_loss`


@dataclass(frozen=True, slots=True)
class Clips:
    """A batch of clips, or the part of it that one process trains on."""

    latents: Tensor  # (B, T, C, H, W), float32, scaled
    actions: Tensor  # (B, T), int64, the action that produced each frame
    kind: ClipKind
    places: list[tuple[int, int]]  # episode and first frame of each
    draws: Draws  # of all that is random in the loss


def clip_length(longest: int, config: TrainConfig, draw: float) -> int:
    """The length of a batch's clips for a draw in [0, 1], log-uniform from fine_frames up to `longest`, in frames."""
    shortest = min(config.fine_frames, longest)
    if config.context_patch_size is None:  # every frame is fine, and trained on
        longest = shortest
    return round(math.exp(math.log(shortest) + draw * math.log(longest / shortest)))


def random_clips(
    latents: LatentDataset,
    episodes: list[int],
    config: TrainConfig,
    kind: ClipKind,
    noop: int | None,
    generators: list[torch.Generator],
) -> Clips:
    """Clips of one kind, each drawn by its own generator from the episodes that are long enough."""
    length = kind.length
    candidates = [episode for episode in episodes if latents.num_frames(episode) >= length]
    clips, actions, places = [], [], []
    for generator in generators:
        episode = candidates[int(torch.randint(len(candidates), (1,), generator=generator))]
        start = int(torch.randint(latents.num_frames(episode) - length + 1, (1,), generator=generator))
        clip, produced_by = latents.clip(episode, start, length)
        if noop is not None and float(torch.rand(1, generator=generator)) < config.idle_ratio:
            clip, produced_by = clip[:1].expand_as(clip), torch.full_like(produced_by, noop)
        clips.append(clip)
        actions.append(produced_by)
        places.append((episode, start))
    return Clips(torch.stack(clips), torch.stack(actions), kind, places, Draws(generators))


def flow_matching_loss(
    model: nn.Module,
    far: FARConfig,
    clean: Tensor,
    actions: Tensor,
    config: TrainConfig,
    draws: Draws,
    *,
    own_context_ratio: float = 0.0,
) -> Tensor:
    """Mean squared error of the velocity over the noised frames of a batch of clips.

    Args:
        model: a FAR in training mode, or what is called in its place; under autocast if wanted.
        far: the FAR's sizes.
        clean: (B, T, C, H, W), scaled latents.
        actions: (B, T), int64, the action that produced each frame.
        config: ratios and timestep distribution.
        draws: of B items; the source of all that is random here.
        own_context_ratio: share of clips in which half of the context frames are the model's own predictions,
            so that it learns to go on from its own errors.

    Returns:
        A scalar.
    """
    batch, length = actions.shape
    num_fine = min(config.fine_frames, length)
    device, null = clean.device, far.null_action
    dropped = draws.uniform(length) < config.action_dropout
    # The clip's first frame is the first of its stream: whatever produced it is not known.
    dropped[:, 0] = True
    actions = actions.masked_fill(dropped.to(device), null)
    num_context = max(length - num_fine, length - far.window)
    context = clean[:, :num_context] if num_context > 0 else None
    truth = shown = clean[:, length - num_fine :]
    if own_context_ratio and far.causal:
        predicted = own_predictions(model, truth, actions, context, config, draws)
        own = draws.uniform() < own_context_ratio
        shown = torch.where(own.to(device)[:, None, None, None, None], predicted, truth)

    noise = to_device(draws.normal(*truth.shape[1:]), device)
    timestep = flow.timesteps_of_draws(
        draws.normal(num_fine),
        draws.uniform(num_fine),
        mean=config.timestep_mean,
        std=config.timestep_std,
        pure_noise_ratio=config.pure_noise_ratio,
    ).to(device)
    is_clean = random_context(num_fine, config, draws).to(device)
    if not far.causal:
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


def random_context(num_fine: int, config: TrainConfig, draws: Draws) -> Tensor:
    """Which frames are clean context, (B, F), bool; at least one frame of a clip is left to learn."""
    is_clean = draws.uniform(num_fine) < config.clean_context_ratio
    is_clean[:, -1] &= ~is_clean.all(dim=1)
    return is_clean


def _mark(timestep: Tensor, is_clean: Tensor) -> Tensor:
    """Timesteps on the embedding's scale, clean frames by their mark."""
    return torch.where(is_clean, CLEAN_SHORT_TERM, timestep * TIMESTEP_SCALE)


@torch.no_grad()
def own_predictions(
    model: nn.Module,
    truth: Tensor,
    actions: Tensor,
    context: Tensor | None,
    config: TrainConfig,
    draws: Draws,
) -> Tensor:
    """Clips in which some frames are predicted in one step from the others, which stay as they are.

    Args:
        model: predicts.
        truth: (B, F, C, H, W), scaled latents.
        actions: (B, T), int64; see `FAR.forward`, also for `context`.
        context: the clip's clean coarse frames.
        config: for the share of frames that stay.
        draws: of B items.

    Returns:
        (B, F, C, H, W).
    """
    is_clean = random_context(truth.shape[1], config, draws).to(truth.device)
    noise = to_device(draws.normal(*truth.shape[1:]), truth.device)
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


def new_state(config: TrainConfig, num_actions: int, ranks: Ranks) -> TrainState:
    """Untrained weights of the run's seed, the same on every rank."""
    torch.manual_seed(config.seed + 1)
    model = FAR(config.far(num_actions)).to(ranks.device)
    model.recompute = config.recompute
    average = moving_average(model, config.ema_decay)
    return TrainState(model, ranks.replicate(model), optimizer_of(model, config), average)


class WorldObjective:
    """Flow matching on random clips; see `farworld.train.run.Objective`."""

    def __init__(
        self,
        state: TrainState,
        config: TrainConfig,
        latents: LatentDataset,
        episodes: list[int],
        noop: int | None,
        kind_of_step: Callable[[int], ClipKind],
    ) -> None:
        """Learn from some episodes.

        Args:
            state: whose replica is called.
            config: of the run.
            latents: of all episodes.
            episodes: those to draw from.
            noop: the action that does nothing, if there is one, for clips that idle.
            kind_of_step: what a step's clips are like; a function of the step alone.
        """
        assert isinstance(state.model, FAR)
        self._state, self._far = state, state.model.config
        self._config, self._latents, self._episodes, self._noop = config, latents, episodes, noop
        self._kind_of_step = kind_of_step
        self._device = next(state.model.parameters()).device

    def draw(self, step: int, items: range) -> Clips:
        """The clips of these items."""
        generators = [step_generator(self._config, STAGE_KEY, step, item) for item in items]
        kind = self._kind_of_step(step)
        return random_clips(self._latents, self._episodes, self._config, kind, self._noop, generators)

    def loss(self, drawn: Clips) -> Tensor:
        """See `flow_matching_loss`."""
        with autocast(self._config, self._device):
            return flow_matching_loss(
                self._state.replica,
                self._far,
                to_device(drawn.latents, self._device),
                to_device(drawn.actions, self._device),
                self._config,
                drawn.draws,
                own_context_ratio=drawn.kind.own_context_ratio,
            )

    def describe(self, drawn: Clips) -> list[dict[str, int]]:
        """Episode, first frame and number of frames of each clip."""
        return [{"episode": episode, "start": start, "frames": drawn.kind.length} for episode, start in drawn.places]


def kind_of_step(step: int, config: TrainConfig, longest_episode: int) -> ClipKind:
    """Clips are short at first; in the decay of the learning rate they are long and see the model's own predictions."""
    draw = float(torch.rand(1, generator=step_generator(config, STAGE_KEY, step)))
    if step < config.decay_start(config.world_steps):
        return ClipKind(clip_length(min(config.early_clip_frames, longest_episode), config, draw), 0.0)
    longest = min(config.max_clip_frames, longest_episode)
    return ClipKind(clip_length(longest, config, draw), config.own_context_ratio)


def train_world(
    run: Run, latents: LatentDataset, data: Dataset, episodes: list[int], sample: Callable[[nn.Module, int], None]
) -> TrainState:
    """Run the stage to its end.

    Args:
        run: the run's folder, config and ranks.
        latents: of all episodes of `data`.
        data: for its vocabulary.
        episodes: those to train on.
        sample: called with (averaged model, step) at the config's cadence.

    Returns:
        The final state.
    """
    config, vocabulary = run.config, data.spec.action_vocabulary
    state = new_state(config, len(vocabulary), run.ranks)
    average = state.average
    assert average is not None
    longest = max(latents.num_frames(episode) for episode in episodes)
    kinds = partial(kind_of_step, config=config, longest_episode=longest)
    fit(
        run, STAGE, state, WorldObjective(state, config, latents, episodes, vocabulary.noop, kinds),
        total_steps=config.world_steps, items_per_step=config.world_batch_size,
        frames_per_step=config.world_batch_size * config.fine_frames,
        sample=lambda step: sample(average.module, step),
    )  # fmt: skip
    return state


def split_episodes(count: int, held_out_fraction: float) -> tuple[list[int], list[int]]:
    """Episodes to train on, and the last ones that are held out (the same ones if there is only one)."""
    held_out = min(max(1, round(count * held_out_fraction)), count - 1) if count > 1 else 0
    everything = list(np.arange(count))
    train = [int(i) for i in everything[: count - held_out]]
    return train, [int(i) for i in everything[count - held_out :]] or train
