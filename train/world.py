"""Stage 3: train FAR-Long on cached latents.

Frame-wise flow matching with an independent timestep per frame and stochastic clean context: each of a clip's
last frames is either a noised target or clean context, all earlier ones are clean coarse context. In the last part
of the training, while the learning rate falls, clips are long and some context frames are the model's own predictions.
Video-DiT, the paper's baseline, has one timestep for all frames of a clip and no context.

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
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from farworld.dataset import Dataset
from farworld.models import flow
from farworld.models.far import CLEAN_LONG_TERM, CLEAN_SHORT_TERM, FAR, TIMESTEP_SCALE, context_mark
from farworld.train.config import TrainConfig
from farworld.train.initial import initial_weights
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

    def velocity(self, model: FAR) -> Tensor:
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

    def first(self, count: int) -> ClipInputs:
        """The first clips of the batch."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return ClipInputs(**{name: value if value is None else value[:count] for name, value in values.items()})

    def moved(self, velocity: Tensor) -> ClipInputs:
        """All frames that are no context one step of their size further."""
        assert self.step_size is not None
        step = self.step_size.masked_fill(self.is_context, 0.0)
        noisy = self.noisy - step[..., None, None, None] * velocity
        return dataclasses.replace(self, noisy=noisy, timestep=self.timestep - step)


def flow_matching_loss(
    model: FAR,
    clean: Tensor,
    actions: Tensor,
    config: TrainConfig,
    generator: torch.Generator,
    *,
    own_context_ratio: float = 0.0,
    teacher: FAR | None = None,
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
        teacher: takes the half steps that a model with shortcut_steps learns from; None is the model itself.

    Returns:
        A scalar.
    """
    batch, length = actions.shape
    num_fine = min(config.fine_frames, length)
    device, null, finest = clean.device, model.config.null_action, model.config.shortcut_steps
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
    step_size, num_bootstrapped = None, 0
    if finest is not None:
        step_size = torch.full_like(timestep, 1 / finest)
        # Rounded at random, so that the share holds whatever the size of a batch.
        num_bootstrapped = int(config.bootstrap_ratio * batch + float(torch.rand(1, generator=generator)))
        sizes, times = flow.sample_shortcuts((num_bootstrapped, num_fine), finest, generator)
        step_size[:num_bootstrapped], timestep[:num_bootstrapped] = sizes.to(device), times.to(device)
    noisy = torch.where(is_clean[..., None, None, None], shown, flow.add_noise(truth, noise, timestep))
    inputs = ClipInputs(noisy, timestep, is_clean, actions, context, step_size)
    if config.context_noise_max:
        inputs = noise_context(inputs, config.context_noise_max, generator)
    target = flow.velocity_target(truth, noise)
    if num_bootstrapped:
        halves = two_half_steps(teacher or model, inputs.first(num_bootstrapped))
        target = torch.cat([halves, target[num_bootstrapped:]])
    return velocity_loss(inputs.velocity(model), target, is_clean)


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


def random_context(batch: int, num_fine: int, config: TrainConfig, generator: torch.Generator) -> Tensor:
    """Which frames are clean context, (B, F), bool; at least one frame of a clip is left to learn."""
    is_clean = torch.rand((batch, num_fine), generator=generator) < config.clean_context_ratio
    is_clean[:, -1] &= ~is_clean.all(dim=1)
    return is_clean


def noise_context(inputs: ClipInputs, largest_level: float, generator: torch.Generator) -> ClipInputs:
    """Inputs whose context frames carry noise, each of a level of its own up to the largest, of which they tell.

    The copy gate still takes over frames as they were: noise is not to be handed on from frame to frame.
    """
    context, noisy = inputs.context, inputs.noisy
    num_fine, num_coarse = noisy.shape[1], 0 if context is None else context.shape[1]
    level = largest_level * torch.rand((len(noisy), num_coarse + num_fine), generator=generator)
    fine_noise = torch.randn(noisy.shape, generator=generator).to(noisy.device)
    level = level.to(noisy.device)
    shown = flow.add_noise(noisy, fine_noise, level[:, num_coarse:])
    first = inputs.actions.shape[1] - num_fine  # of the clip's frames, to be shown by fine tokens
    oldest = torch.zeros_like(noisy[:, :1]) if context is None or not first else context[:, first - 1 : first]
    if context is not None:
        coarse_noise = torch.randn(context.shape, generator=generator).to(context.device)
        context = flow.add_noise(context, coarse_noise, level[:, :num_coarse])
    return dataclasses.replace(
        inputs,
        noisy=torch.where(inputs.is_context[..., None, None, None], shown, noisy),
        context=context,
        noise_level=level,
        before=torch.cat([oldest, noisy[:, :-1]], dim=1),
    )


@torch.no_grad()
def two_half_steps(teacher: FAR, inputs: ClipInputs) -> Tensor:
    """The mean velocity of two steps of half the size that the inputs ask for, (B, F, C, H, W)."""
    assert inputs.step_size is not None
    inputs = dataclasses.replace(inputs, step_size=inputs.step_size / 2)
    first = inputs.velocity(teacher)
    second = inputs.moved(first).velocity(teacher)
    torch.clear_autocast_cache()  # see own_predictions
    return (first + second) / 2


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
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)


def new_state(
    config: TrainConfig, num_actions: int, device: torch.device, given: dict[str, Tensor] | None = None
) -> TrainState:
    """Weights to begin with: those that the run was given (`farworld.train.initial`), or untrained ones of its seed."""
    torch.manual_seed(config.seed + 1)
    model = FAR(config.far(num_actions))
    if given is not None:
        model.load_state_dict(given)
    model = model.to(device)
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
    state = new_state(config, len(data.spec.action_vocabulary), device, initial_weights(run))
    model = state.model
    assert isinstance(model, FAR) and state.average is not None
    average = state.average.module
    assert isinstance(average, FAR)

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
                teacher=average,
            )

    fit(
        run, STAGE, state, total_steps=config.world_steps,
        frames_per_step=config.world_batch_size * config.fine_frames, loss_of_step=loss_of_step,
        sample=lambda step: sample(average, step),
    )  # fmt: skip
    return state


def split_episodes(count: int, held_out_fraction: float) -> tuple[list[int], list[int]]:
    """Episodes to train on, and the last ones that are held out (the same ones if there is only one)."""
    held_out = min(max(1, round(count * held_out_fraction)), count - 1) if count > 1 else 0
    everything = list(np.arange(count))
    train = [int(i) for i in everything[: count - held_out]]
    return train, [int(i) for i in everything[count - held_out :]] or train
