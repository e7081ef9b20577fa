"""Stage 3: train FAR-Long on cached latents.

Frame-wise flow matching with an independent timestep per frame and stochastic clean context: each of a clip's
last frames is either a noised target or clean context, all earlier ones are clean coarse context. In the last part
of the training, while the learning rate falls, clips are long and some context frames are the model's own predictions.
Video-DiT, the paper's baseline, has one timestep for all frames of a clip and no context.

Frames are conditioned on the action that produced them, on a label that all frames of an episode share, or on nothing.
With the anchored layout, clips of uniform lengths and neither copy gate nor own predictions it is the paper's training.

Options, off unless the config asks for them:
- shortcut forcing: the model is told the size of the step, and in a share of the clips it learns to go in one step
  where two half steps of its moving average lead, so that few steps a frame are enough;
- noised context: context frames carry some noise, whose level the model is told, so that it does not trust every
  detail of what it will have drawn itself.

Papers: FAR, arXiv:2503.19325, Secs. 3.1 to 3.3; shortcut models, arXiv:2410.12557, Sec. 3; Dreamer 4,
arXiv:2509.24527, Secs. 2 and 3.2.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from farworld.dataset import Dataset
from farworld.models import flow
from farworld.models.attention import Attend, ClipAttention
from farworld.models.far import CLEAN_LONG_TERM, CLEAN_SHORT_TERM, FAR, TIMESTEP_SCALE, FARConfig, context_mark
from farworld.train.config import TrainConfig
from farworld.train.initial import initial_weights
from farworld.train.latents import LatentDataset
from farworld.train.ranks import Ranks, to_device
from farworld.train.run import Draws, Run, TrainState, autocast, fit, moving_average, step_generator, uses_bfloat16
from farworld.train.sharding import is_sharded, shard, whole

STAGE = "world"
STAGE_KEY = 2  # see step_generator
Sample = Callable[[nn.Module, int], np.ndarray | None]  # of an averaged model and a step to a picture, if there is one


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
    """The length of a batch's clips for a draw in [0, 1), from fine_frames up to `longest`, in frames.

    Log-uniform; or uniform as in the official implementation, which never draws `longest` itself.
    """
    shortest = min(config.fine_frames, longest)
    if config.context_patch_size is None:  # every frame is fine, and trained on
        longest = shortest
    if config.clip_lengths == "uniform":
        return shortest + int(draw * (longest - shortest))
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
    length, interval = kind.length, config.frame_interval
    span = (length - 1) * interval + 1
    candidates = [episode for episode in episodes if latents.num_frames(episode) >= span]
    clips, actions, places = [], [], []
    for generator in generators:
        episode = candidates[int(torch.randint(len(candidates), (1,), generator=generator))]
        start = int(torch.randint(latents.num_frames(episode) - span + 1, (1,), generator=generator))
        mirrored = config.flip and float(torch.rand(1, generator=generator)) < 0.5
        clip, produced_by = latents.clip(episode, start, length, interval=interval, mirrored=mirrored)
        if noop is not None and float(torch.rand(1, generator=generator)) < config.idle_ratio:
            clip, produced_by = clip[:1].expand_as(clip), torch.full_like(produced_by, noop)
        clips.append(clip)
        actions.append(produced_by)
        places.append((episode, start))
    return Clips(torch.stack(clips), torch.stack(actions), kind, places, Draws(generators))


@dataclass(frozen=True, slots=True)
class ClipInputs:
    """What a model is given of a batch of clips; see `FAR.forward`."""

    noisy: Tensor  # (B, F, C, H, W)
    timestep: Tensor  # (B, F), flow time; of context frames not read
    is_context: Tensor  # (B, F), bool
    actions: Tensor  # (B, T), int64
    context: Tensor | None  # (B, L, C, H, W), the clip's first frames
    step_size: Tensor | None = None  # (B, F), flow time
    noise_level: Tensor | None = None  # (B, L + F), flow time, of context frames; None: they are clean
    before: Tensor | None = None  # (B, F, C, H, W), see `FAR.forward`; None where context is clean

    def velocity(self, model: nn.Module) -> Tensor:
        """What a model makes of it, (B, F, C, H, W), float32."""
        num_fine = self.noisy.shape[1]
        mark, context_timestep = torch.full_like(self.timestep, CLEAN_SHORT_TERM), None
        if self.noise_level is not None:
            mark = context_mark(CLEAN_SHORT_TERM, self.noise_level[:, -num_fine:])
            context_timestep = context_mark(CLEAN_LONG_TERM, self.noise_level[:, :-num_fine])
        return model(
            self.noisy,
            torch.where(self.is_context, mark, self.timestep * TIMESTEP_SCALE),
            self.actions,
            self.context,
            step_size=self.step_size,
            context_timestep=context_timestep,
            before=self.before,
        ).float()

    def select(self, clips: Tensor) -> ClipInputs:
        """Some clips of the batch, by their places in it."""
        values: dict[str, Any] = {
            field.name: None if getattr(self, field.name) is None else getattr(self, field.name)[clips]
            for field in dataclasses.fields(self)
        }
        return ClipInputs(**values)

    def moved(self, velocity: Tensor) -> ClipInputs:
        """All frames that are no context one step of their size further."""
        assert self.step_size is not None
        step = self.step_size.masked_fill(self.is_context, 0.0)
        noisy = self.noisy - step[..., None, None, None] * velocity
        return dataclasses.replace(self, noisy=noisy, timestep=self.timestep - step)


def flow_matching_loss(
    model: nn.Module,
    far: FARConfig,
    clean: Tensor,
    actions: Tensor,
    config: TrainConfig,
    draws: Draws,
    *,
    own_context_ratio: float = 0.0,
    teacher: nn.Module | None = None,
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
        teacher: takes the half steps that a model with shortcut_steps learns from; None is the model itself.

    Returns:
        A scalar.
    """
    batch, length = actions.shape
    num_fine = min(config.fine_frames, length)
    device, null, finest = clean.device, far.null_action, far.shortcut_steps
    actions = actions.masked_fill(dropped_conditions(length, config, draws).to(device), null)
    num_context = max(length - num_fine, length - far.window)
    context = clean[:, :num_context] if num_context > 0 else None
    truth = shown = clean[:, length - num_fine :]
    if own_context_ratio and far.causal:
        predicted = own_predictions(model, truth, actions, context, config, draws)
        own = draws.uniform() < own_context_ratio
        shown = torch.where(own.to(device)[:, None, None, None, None], predicted, truth)

    noise = draws.normal(*truth.shape[1:], device=device)
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
    step_size, bootstrapped = None, torch.zeros(0, dtype=torch.int64)
    if finest is not None:
        step_size = torch.full_like(timestep, 1 / finest)
        sizes, times = flow.shortcuts_of_draws(draws.uniform(num_fine), draws.uniform(num_fine), finest)
        bootstrapped = (draws.uniform() < config.bootstrap_ratio).nonzero()[:, 0]
        chosen = bootstrapped.to(device)
        step_size[chosen], timestep[chosen] = sizes[bootstrapped].to(device), times[bootstrapped].to(device)
    noisy = torch.where(is_clean[..., None, None, None], shown, flow.add_noise(truth, noise, timestep))
    inputs = ClipInputs(noisy, timestep, is_clean, actions, context, step_size)
    if config.context_noise_max:
        inputs = noise_context(inputs, config.context_noise_max, draws)
    target = flow.velocity_target(truth, noise)
    teacher = teacher or model
    if len(bootstrapped):
        target[chosen] = two_half_steps(teacher, inputs.select(chosen))
    elif finest is not None and is_sharded(teacher):  # another rank may have some, and runs it only together with us
        first = torch.zeros(1, dtype=torch.int64, device=device)
        two_half_steps(teacher, dataclasses.replace(inputs, step_size=torch.ones_like(timestep)).select(first))
    return velocity_loss(inputs.velocity(model), target, is_clean)


def dropped_conditions(length: int, config: TrainConfig, draws: Draws) -> Tensor:
    """Which frames of some clips are not told their action, or which clips not their label, (B, T), bool."""
    if config.condition == "label":
        return (draws.uniform() < config.action_dropout)[:, None].expand(-1, length)
    dropped = draws.uniform(length) < config.action_dropout
    # The clip's first frame is the first of its stream: whatever produced it is not known.
    dropped[:, 0] = True
    return dropped


def velocity_loss(velocity: Tensor, target: Tensor, is_clean: Tensor) -> Tensor:
    """Mean squared error over the noised frames of each clip, then over clips, as the official trainer has it.

    Args:
        velocity: (B, F, C, H, W), predicted.
        target: (B, F, C, H, W), see `farworld.models.flow.velocity_target`.
        is_clean: (B, F), bool, context frames, which are not learnt.

    Returns:
        A scalar.
    """
    error = (velocity - target).square().mean(dim=(2, 3, 4))
    is_target = (~is_clean).float()
    return ((error * is_target).sum(dim=1) / is_target.sum(dim=1).clamp(min=1)).mean()


def random_context(num_fine: int, config: TrainConfig, draws: Draws) -> Tensor:
    """Which frames are clean context, (B, F), bool; at least one frame of a clip is left to learn."""
    is_clean = draws.uniform(num_fine) < config.clean_context_ratio
    is_clean[:, -1] &= ~is_clean.all(dim=1)
    return is_clean


def noise_context(inputs: ClipInputs, largest_level: float, draws: Draws) -> ClipInputs:
    """Inputs whose context frames carry noise, each of a level of its own up to the largest, of which they tell.

    The copy gate still takes over frames as they were: noise is not to be handed on from frame to frame.
    """
    context, noisy = inputs.context, inputs.noisy
    num_fine, num_coarse = noisy.shape[1], 0 if context is None else context.shape[1]
    level = largest_level * draws.uniform(num_coarse + num_fine)
    fine_noise = draws.normal(*noisy.shape[1:], device=noisy.device)
    level = level.to(noisy.device)
    shown = flow.add_noise(noisy, fine_noise, level[:, num_coarse:])
    first = inputs.actions.shape[1] - num_fine  # of the clip's frames, to be shown by fine tokens
    oldest = torch.zeros_like(noisy[:, :1]) if context is None or not first else context[:, first - 1 : first]
    if context is not None:
        coarse_noise = draws.normal(*context.shape[1:], device=context.device)
        context = flow.add_noise(context, coarse_noise, level[:, :num_coarse])
    return dataclasses.replace(
        inputs,
        noisy=torch.where(inputs.is_context[..., None, None, None], shown, noisy),
        context=context,
        noise_level=level,
        before=torch.cat([oldest, noisy[:, :-1]], dim=1),
    )


@torch.no_grad()
def two_half_steps(teacher: nn.Module, inputs: ClipInputs) -> Tensor:
    """The mean velocity of two steps of half the size that the inputs ask for, (B, F, C, H, W)."""
    assert inputs.step_size is not None
    inputs = dataclasses.replace(inputs, step_size=inputs.step_size / 2)
    first = inputs.velocity(teacher)
    second = inputs.moved(first).velocity(teacher)
    torch.clear_autocast_cache()  # see own_predictions
    return (first + second) / 2


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
    noise = draws.normal(*truth.shape[1:], device=truth.device)
    keep, one = is_clean[..., None, None, None], torch.ones(is_clean.shape, device=truth.device)
    inputs = ClipInputs(torch.where(keep, truth, noise), one, is_clean, actions, context, one)
    velocity = inputs.velocity(model)
    torch.clear_autocast_cache()  # weights cast here know no gradient, and the pass that trains would take them over
    return torch.where(keep, truth, flow.euler_step(noise, velocity, 1.0, 0.0))


def optimizer_of(model: FAR, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def new_state(
    config: TrainConfig, num_actions: int, ranks: Ranks, given: dict[str, Tensor] | None = None
) -> TrainState:
    """Weights to begin with, the same on every rank: those that the run was given, or untrained ones of its seed.

    Args:
        config: of the run.
        num_actions: of the vocabulary.
        ranks: that train.
        given: see `farworld.train.initial`.
    """
    torch.manual_seed(config.seed + 1)
    model = FAR(config.far(num_actions))
    if given is not None:
        model.load_state_dict(given)
    model.recompute = config.recompute
    model.clip_attention = clip_attention(config, ranks.device)
    in_parts = config.fsdp and ranks.count > 1
    if not in_parts:
        model = model.to(ranks.device)
    average = moving_average(model, config.ema_decay)
    if in_parts:
        for each in (model, average.module):
            assert isinstance(each, FAR)
            shard(each, ranks, torch.bfloat16 if uses_bfloat16(config, ranks.device) else torch.float32)
    if config.compile:
        model.compile_blocks()
    return TrainState(model, model if in_parts else ranks.replicate(model), optimizer_of(model, config), average)


def clip_attention(config: TrainConfig, device: torch.device) -> Callable[..., Attend]:
    """How a model in training attends, as the config has it.

    Raises:
        ValueError: FlexAttention is asked for where it has no gradients.
    """
    if config.attention == "flex" and device.type != "cuda":
        raise ValueError(f"attention=flex trains on CUDA only, not on {device.type}; leave it at auto, or set sdpa")
    runs = device.type == "cuda" and importlib.util.find_spec("triton") is not None  # which its kernels are written in
    if config.attention == "sdpa" or (config.attention == "auto" and not runs):
        return ClipAttention
    from farworld.models.flex_attention import FlexClipAttention

    return FlexClipAttention


def whole_average(state: TrainState) -> FAR | None:
    """The averaged model, whole; of a sharded one all ranks ask for it, and only the first one gets it."""
    assert state.average is not None
    average = state.average.module
    assert isinstance(average, FAR)
    if not is_sharded(average):
        return average
    weights, device = whole(average.state_dict()), average.timestep_embedding.frequencies.device
    if dist.get_rank() != 0:
        return None
    model = FAR(average.config)
    model.load_state_dict(weights)
    return model.to(device).requires_grad_(False)


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
        """The clips of these items, on their way to the device."""
        generators = [step_generator(self._config, STAGE_KEY, step, item) for item in items]
        kind = self._kind_of_step(step)
        clips = random_clips(self._latents, self._episodes, self._config, kind, self._noop, generators)
        return dataclasses.replace(
            clips, latents=to_device(clips.latents, self._device), actions=to_device(clips.actions, self._device)
        )

    def loss(self, drawn: Clips) -> Tensor:
        """See `flow_matching_loss`."""
        with autocast(self._config, self._device):
            return flow_matching_loss(
                self._state.replica,
                self._far,
                drawn.latents,
                drawn.actions,
                self._config,
                drawn.draws,
                own_context_ratio=drawn.kind.own_context_ratio,
                teacher=self._state.average and self._state.average.module,
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


def train_world(run: Run, latents: LatentDataset, data: Dataset, episodes: list[int], sample: Sample) -> TrainState:
    """Run the stage to its end.

    Args:
        run: the run's folder, config and ranks.
        latents: of all episodes of `data`.
        data: for its vocabulary.
        episodes: those to train on.
        sample: called on the first rank, at the config's cadence.

    Returns:
        The final state.
    """
    config, vocabulary = run.config, data.spec.action_vocabulary
    torch.backends.cuda.enable_cudnn_sdp(False)  # it plans for seconds whenever clips have a new length
    state = new_state(config, len(vocabulary), run.ranks, initial_weights(run))
    longest = (max(latents.num_frames(episode) for episode in episodes) - 1) // config.frame_interval + 1
    noop = vocabulary.noop if config.condition == "action" else None

    def draw(step: int) -> np.ndarray | None:
        model = whole_average(state)
        return sample(model, step) if model is not None and run.ranks.is_first else None

    kinds = partial(kind_of_step, config=config, longest_episode=longest)
    fit(
        run, STAGE, state, WorldObjective(state, config, latents, episodes, noop, kinds),
        total_steps=config.world_steps, items_per_step=config.world_batch_size,
        frames_per_step=config.world_batch_size * config.fine_frames,
        sample=draw,
    )  # fmt: skip
    return state


def split_episodes(count: int, held_out_fraction: float) -> tuple[list[int], list[int]]:
    """Episodes to train on, and the last ones that are held out (the same ones if there is only one)."""
    held_out = min(max(1, round(count * held_out_fraction)), count - 1) if count > 1 else 0
    everything = list(np.arange(count))
    train = [int(i) for i in everything[: count - held_out]]
    return train, [int(i) for i in everything[count - held_out :]] or train
