"""Stage 1: train the DC-AE on single frames, then measure its latents.

Loss: L1, mean squared error and LPIPS, each by its weight. Latents get a little noise and a small penalty, so that
neighbouring latents decode alike and the decoder forgives the world model's errors. From a step on (`gan_start`) a
patch discriminator sharpens the decoder; the encoder is frozen from there, so that latents stay what they are.

FAR's authors train with L1, LPIPS of weight 1, a discriminator of weight 0.5 in the second half, AdamW at 1e-4 with
betas (0.5, 0.9), an average of 0.9999 and 200,000 steps; every one of these is a field of the config.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from farworld.dataset import Dataset
from farworld.models.autoencoder import Autoencoder, to_frames, to_pixels
from farworld.train.batch_norm import share_batch_norms
from farworld.train.config import TrainConfig
from farworld.train.discriminator import PatchDiscriminator, adversarial_loss, balanced_loss, discriminator_loss
from farworld.train.lpips import LPIPS, load_lpips
from farworld.train.ranks import Ranks, to_device
from farworld.train.run import (
    Draws,
    Run,
    TrainState,
    autocast,
    fit,
    learning_rate_factor,
    moving_average,
    step_generator,
    with_own_settings,
)
from farworld.video import contact_sheet, write_png

STAGE = "autoencoder"
STATISTICS = "latent_statistics"  # the checkpoint that says that the stage is finished
STAGE_KEY = 1  # see step_generator
FRAMES_OF_PLACE = 4
PLACES_OF_SAMPLE = 3
STATISTICS_STEP = 2**39  # the step whose draws the latents are measured on


def random_frames(
    data: Dataset, episodes: list[int], generators: list[torch.Generator], *, flip: bool = False
) -> np.ndarray:
    """A few frames from one random place for each generator, (N · FRAMES_OF_PLACE, H, W, 3), uint8.

    With flip those of half of the places are mirrored.
    """
    frames = []
    for generator in generators:  # reading decodes whole chunks: a single frame would cost as much
        episode = episodes[int(torch.randint(len(episodes), (1,), generator=generator))]
        total = data.num_frames(episode)
        span = min(16, total)
        start = int(torch.randint(max(1, (total - 1) // 16 + 1), (1,), generator=generator)) * 16
        start = min(start, total - span)
        chosen = torch.randperm(span, generator=generator).repeat(FRAMES_OF_PLACE)[:FRAMES_OF_PLACE]
        found = data.frames(episode, start, start + span)[chosen.numpy()]
        is_mirrored = flip and float(torch.rand(1, generator=generator)) < 0.5
        frames.append(found[:, :, ::-1] if is_mirrored else found)
    return np.concatenate(frames)


def load_autoencoder(run: Run) -> Autoencoder:
    """The trained autoencoder of a run, with latent statistics.

    Raises:
        FileNotFoundError: the stage is not finished.
    """
    stored = run.load_checkpoint(STATISTICS)
    if stored is None:
        raise FileNotFoundError(
            f"{run.path} has no trained autoencoder yet; run `farworld train … --stage autoencoder` first"
        )
    model = Autoencoder(run.config.autoencoder())
    model.load_state_dict(stored["model"])
    return model.eval().requires_grad_(False)


@dataclass(slots=True)
class AutoencoderState(TrainState):
    """What the stage trains; `fit` writes the autoencoder, `update_discriminator` the discriminator."""

    discriminator: PatchDiscriminator | None = None
    discriminator_optimizer: torch.optim.Optimizer | None = None

    def state_dict(self) -> dict:
        """Everything that a resumed run needs."""
        state = TrainState.state_dict(self)
        if self.discriminator is not None and self.discriminator_optimizer is not None:
            state["discriminator"] = self.discriminator.state_dict()
            state["discriminator_optimizer"] = self.discriminator_optimizer.state_dict()
        return state

    def load_state_dict(self, state: dict) -> None:
        """The inverse of state_dict; a discriminator that was not trained yet begins now.

        Raises:
            ValueError: the discriminator's sizes are not those of the checkpoint.
        """
        TrainState.load_state_dict(self, state)
        if self.discriminator is None or self.discriminator_optimizer is None or "discriminator" not in state:
            return
        try:
            self.discriminator.load_state_dict(state["discriminator"])
        except RuntimeError as error:
            raise ValueError(
                "the run has a discriminator of other sizes; go on with the autoencoder_gan_width and "
                "autoencoder_gan_layers that it was begun with, or begin a new run with another --out"
            ) from error
        self.discriminator_optimizer.load_state_dict(
            with_own_settings(self.discriminator_optimizer, state["discriminator_optimizer"])
        )

    @property
    def result(self) -> Autoencoder:
        """The autoencoder to keep: the average where there is one."""
        model = self.average.module if self.average else self.model
        assert isinstance(model, Autoencoder)
        return model


class NoisyPass(nn.Module):
    """Reconstruction from latents with a little noise, as one call."""

    def __init__(self, autoencoder: Autoencoder, latent_noise: float) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.latent_noise = latent_noise

    def forward(self, pixels: Tensor, noise: Tensor, *, train_encoder: bool) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, H, W) in [−1, 1] and noise like their latents; latents, and pixels again, float32."""
        with torch.set_grad_enabled(train_encoder and torch.is_grad_enabled()):
            latents = self.autoencoder.encoder(pixels)
        return latents, self.autoencoder.decoder(latents + self.latent_noise * noise.to(latents)).float()


def begin(config: TrainConfig, ranks: Ranks) -> AutoencoderState:
    """The state of a new run, the same on every rank."""
    torch.manual_seed(config.seed)
    model = Autoencoder(config.autoencoder()).to(ranks.device)
    share_batch_norms(model, ranks)

    def adam(module: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            module.parameters(), lr=learning_rate, betas=config.autoencoder_betas, weight_decay=0.0
        )

    replica = ranks.replicate(NoisyPass(model, config.latent_noise))
    state = AutoencoderState(model, replica, adam(model, config.autoencoder_learning_rate))
    if config.autoencoder_ema_decay:
        state.average = moving_average(model, config.autoencoder_ema_decay)
    if config.autoencoder_gan_weight:
        sizes = config.autoencoder_gan_width, config.autoencoder_gan_layers
        state.discriminator = PatchDiscriminator(*sizes).to(ranks.device)
        share_batch_norms(state.discriminator, ranks)
        state.discriminator_optimizer = adam(state.discriminator, config.autoencoder_gan_learning_rate)
    return state


def lpips_of(config: TrainConfig, device: torch.device) -> LPIPS | None:
    """LPIPS if the config asks for it; without its weights a warning, and training goes on without."""
    if not config.autoencoder_lpips_weight:
        return None
    try:
        return load_lpips(device)
    except FileNotFoundError as error:
        warnings.warn(f"the autoencoder is trained without LPIPS: {error}", stacklevel=2)
        return None


def reconstruction_loss(
    decoded: Tensor, pixels: Tensor, lpips: LPIPS | None, config: TrainConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """L1 + squared error + LPIPS, by their weights, of pixels (B, 3, H, W) in [−1, 1]; and each without its weight."""
    error = decoded - pixels
    terms = {"l1": error.abs().mean(), "square": error.square().mean()}
    loss = terms["l1"] + config.autoencoder_square_weight * terms["square"]
    if lpips is not None:
        terms["lpips"] = lpips(decoded, pixels).mean()
        loss = loss + config.autoencoder_lpips_weight * terms["lpips"]
    return loss, {name: term.detach() for name, term in terms.items()}


def update_discriminator(
    state: AutoencoderState, pixels: Tensor, decoded: Tensor, factor: float, config: TrainConfig, ranks: Ranks
) -> Tensor:
    """One step of the discriminator on real and decoded pixels; the decoder is left alone.

    Args:
        state: with a discriminator.
        pixels: (B, 3, H, W), real, in [−1, 1].
        decoded: likewise, as the decoder made them.
        factor: of the learning rate.
        config: of the run.
        ranks: whose gradients are averaged.

    Returns:
        The loss before the step.
    """
    discriminator, optimizer = state.discriminator, state.discriminator_optimizer
    assert discriminator is not None and optimizer is not None
    discriminator.train()
    for group in optimizer.param_groups:
        group["lr"] = config.autoencoder_gan_learning_rate * factor
    loss = discriminator_loss(discriminator(pixels).float(), discriminator(decoded.detach()).float())
    loss.backward()
    ranks.average_gradients(discriminator)
    nn.utils.clip_grad_norm_(discriminator.parameters(), config.gradient_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def loss_of_frames(
    state: AutoencoderState,
    frames: Tensor,
    noise: Tensor,
    lpips: LPIPS | None,
    config: TrainConfig,
    ranks: Ranks,
    *,
    adversarial: bool,
    factor: float = 1.0,
) -> Tensor:
    """The autoencoder's loss of a batch; with `adversarial`, after a step of the discriminator on the same batch.

    Args:
        state: the models; `metrics` gets the terms of the loss.
        frames: (B, H, W, 3), uint8.
        noise: (B, C, h, w), standard normal, for the latents.
        lpips: None is without.
        config: of the run.
        ranks: the device, and who trains besides.
        adversarial: whether the discriminator takes part; the encoder then gets no gradient.
        factor: of the discriminator's learning rate.
    """
    model, device = state.model, ranks.device
    assert isinstance(model, Autoencoder)
    pixels = to_pixels(to_device(frames, device))
    with autocast(config, device):
        latents, decoded = state.replica(pixels, to_device(noise, device), train_encoder=not adversarial)
    loss, state.metrics = reconstruction_loss(decoded, pixels, lpips, config)
    if not adversarial:
        return loss + config.latent_penalty * latents.float().square().mean()
    assert state.discriminator is not None
    # Autocast keeps converted weights until it ends: not beyond the discriminator's step.
    with autocast(config, device):
        state.metrics["discriminator"] = update_discriminator(state, pixels, decoded, factor, config, ranks)
    with autocast(config, device):
        against = adversarial_loss(state.discriminator(decoded).float())
    last_layer, gan_weight = model.decoder.conv_out.weight, config.autoencoder_gan_weight
    loss, weight = balanced_loss(loss, against, decoded, last_layer, gan_weight, ranks.mean)
    state.metrics.update(adversarial=against.detach(), gan_weight=weight)
    return loss


@dataclass(frozen=True, slots=True)
class Places:
    """Frames from some places of a step."""

    step: int
    items: list[int]  # the places' numbers in the step, from which with the seed their frames follow
    frames: Tensor  # (B, H, W, 3), uint8
    noise: Tensor  # (B, C, h, w), for their latents


class AutoencoderObjective:
    """Reconstruction of random frames; see `farworld.train.run.Objective`. An item is a place with its few frames.

    Where a batch is gone through in parts, the discriminator takes a step for each part.
    """

    def __init__(self, state: AutoencoderState, run: Run, data: Dataset, episodes: list[int]) -> None:
        config = run.config
        self._state, self._config, self._ranks, self._data, self._episodes = state, config, run.ranks, data, episodes
        self._lpips = lpips_of(config, run.ranks.device)
        side = config.frame_size // config.autoencoder().compression
        self._latent_shape = FRAMES_OF_PLACE, config.latent_channels, side, side

    def draw(self, step: int, items: range) -> Places:
        """Frames of these places."""
        generators = [step_generator(self._config, STAGE_KEY, step, item) for item in items]
        frames = torch.from_numpy(random_frames(self._data, self._episodes, generators, flip=self._config.flip))
        return Places(step, list(items), frames, Draws(generators).normal(*self._latent_shape).flatten(0, 1))

    def loss(self, drawn: Places) -> Tensor:
        """See `loss_of_frames`."""
        config, total = self._config, self._config.autoencoder_steps
        return loss_of_frames(
            self._state, drawn.frames, drawn.noise, self._lpips, config, self._ranks,
            adversarial=drawn.step >= config.gan_start(total), factor=learning_rate_factor(drawn.step, total, config),
        )  # fmt: skip

    def describe(self, drawn: Places) -> list[int]:
        """The numbers of the places."""
        return drawn.items


def train_autoencoder(run: Run, data: Dataset, episodes: list[int], held_out: list[int]) -> None:
    """Run the stage to its end, then measure and store the latents' mean and scale."""
    config: TrainConfig = run.config
    finished = run.load_checkpoint(STATISTICS)
    if finished is not None and finished["step"] >= config.autoencoder_steps:
        return  # measuring again could move the scale under a world model that is half trained
    if run.checkpoint_files("world"):
        raise ValueError(
            f"the autoencoder of {run.path} has {finished['step'] if finished else 0} steps and a world model is "
            f"trained on it; to train it to {config.autoencoder_steps} begin a new run, or go on with --stage world"
        )
    ranks = run.ranks
    state = begin(config, ranks)

    @torch.no_grad()
    def sample(step: int) -> np.ndarray | None:
        if not ranks.is_first:
            return None
        generators = [step_generator(config, STAGE_KEY, 0, place) for place in range(PLACES_OF_SAMPLE)]
        frames = torch.from_numpy(random_frames(data, held_out, generators)).to(ranks.device)
        model = state.result.eval()
        with autocast(config, ranks.device):
            decoded = to_frames(model(to_pixels(frames)))
        rows = np.concatenate([frames.cpu().numpy(), decoded.cpu().numpy()])
        sheet = contact_sheet(rows, columns=len(frames))
        write_png(run.samples / f"{STAGE}-{step:08d}.png", sheet)
        return sheet

    fit(
        run, STAGE, state, AutoencoderObjective(state, run, data, episodes), total_steps=config.autoencoder_steps,
        items_per_step=config.autoencoder_batch_size // FRAMES_OF_PLACE, frames_per_step=config.autoencoder_batch_size,
        sample=sample,
    )  # fmt: skip
    if ranks.is_first:
        model = state.result
        _measure_latents(model, data, episodes, config, ranks.device)
        run.save_checkpoint(STATISTICS, {"step": state.step, "seconds": state.seconds, "model": model.state_dict()})


@torch.no_grad()
def _measure_latents(
    model: Autoencoder, data: Dataset, episodes: list[int], config: TrainConfig, device: torch.device
) -> None:
    """Set shift and scale so that latents of training frames have zero mean and unit variance per channel.

    With a latent_scale in the config they are only multiplied by that.
    """
    model.eval()
    if config.latent_scale:
        model.latent_shift.zero_()
        model.latent_scale.fill_(config.latent_scale)
        return
    batches = []
    for batch in range(32):
        generators = [step_generator(config, STAGE_KEY, STATISTICS_STEP, batch, place) for place in range(8)]
        frames = torch.from_numpy(random_frames(data, episodes, generators)).to(device)
        with autocast(config, device):
            batches.append(model.encoder(to_pixels(frames)).float())
    latents = torch.cat(batches)
    model.latent_shift.copy_(latents.mean(dim=(0, 2, 3)))
    model.latent_scale.copy_(1 / latents.std(dim=(0, 2, 3)).clamp(min=1e-4))
