"""Stage 1: train the DC-AE on single frames, then measure its latents.

Loss: L1 and mean squared error. Latents get a little noise and a small penalty, so that neighbouring latents
decode alike and the decoder forgives the world model's errors.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from farworld.dataset import Dataset
from farworld.models.autoencoder import Autoencoder, to_frames, to_pixels
from farworld.train.config import TrainConfig
from farworld.train.ranks import to_device
from farworld.train.run import Draws, Run, TrainState, autocast, fit, step_generator
from farworld.video import contact_sheet, write_png

STAGE = "autoencoder"
STATISTICS = "latent_statistics"  # the checkpoint that says that the stage is finished
STAGE_KEY = 1  # see step_generator
FRAMES_OF_PLACE = 4
PLACES_OF_SAMPLE = 3
STATISTICS_STEP = 2**39  # the step whose draws the latents are measured on


def random_frames(data: Dataset, episodes: list[int], generators: list[torch.Generator]) -> np.ndarray:
    """A few frames from one random place for each generator, (N · FRAMES_OF_PLACE, H, W, 3), uint8."""
    frames = []
    for generator in generators:  # reading decodes whole chunks: a single frame would cost as much
        episode = episodes[int(torch.randint(len(episodes), (1,), generator=generator))]
        total = data.num_frames(episode)
        span = min(16, total)
        start = int(torch.randint(max(1, (total - 1) // 16 + 1), (1,), generator=generator)) * 16
        start = min(start, total - span)
        chosen = torch.randperm(span, generator=generator).repeat(FRAMES_OF_PLACE)[:FRAMES_OF_PLACE]
        frames.append(data.frames(episode, start, start + span)[chosen.numpy()])
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
    torch.manual_seed(config.seed)
    model = Autoencoder(config.autoencoder()).to(ranks.device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.autoencoder_learning_rate, betas=(0.9, 0.99), weight_decay=0.0
    )
    state = TrainState(model, ranks.replicate(NoisyPass(model, config.latent_noise)), optimizer)

    @torch.no_grad()
    def sample(step: int) -> None:
        generators = [step_generator(config, STAGE_KEY, 0, place) for place in range(PLACES_OF_SAMPLE)]
        frames = torch.from_numpy(random_frames(data, held_out, generators)).to(ranks.device)
        model.eval()
        with autocast(config, ranks.device):
            decoded = to_frames(model(to_pixels(frames)))
        rows = np.concatenate([frames.cpu().numpy(), decoded.cpu().numpy()])
        write_png(run.samples / f"{STAGE}-{step:08d}.png", contact_sheet(rows, columns=len(frames)))

    fit(
        run, STAGE, state, AutoencoderObjective(state, config, data, episodes), total_steps=config.autoencoder_steps,
        items_per_step=config.autoencoder_batch_size // FRAMES_OF_PLACE, frames_per_step=config.autoencoder_batch_size,
        sample=sample,
    )  # fmt: skip
    if ranks.is_first:
        _measure_latents(model, data, episodes, config, ranks.device)
        run.save_checkpoint(STATISTICS, {"step": state.step, "seconds": state.seconds, "model": model.state_dict()})


class NoisyPass(nn.Module):
    """Reconstruction from latents with a little noise, as one call."""

    def __init__(self, autoencoder: Autoencoder, latent_noise: float) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.latent_noise = latent_noise

    def forward(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, H, W) in [−1, 1] and noise like their latents; latents, and pixels again."""
        latents = self.autoencoder.encoder(pixels)
        return latents, self.autoencoder.decoder(latents + self.latent_noise * noise.to(latents))


class AutoencoderObjective:
    """Reconstruction of random frames; see `farworld.train.run.Objective`. An item is a place with its few frames."""

    def __init__(self, state: TrainState, config: TrainConfig, data: Dataset, episodes: list[int]) -> None:
        self._state, self._config, self._data, self._episodes = state, config, data, episodes
        self._device = next(state.model.parameters()).device
        side = config.frame_size // config.autoencoder().compression
        self._latent_shape = FRAMES_OF_PLACE, config.latent_channels, side, side

    def draw(self, step: int, items: range) -> tuple[Tensor, Tensor, list[int]]:
        """Frames (B, H, W, 3), uint8, noise for their latents, and the number of each place in its step."""
        generators = [step_generator(self._config, STAGE_KEY, step, item) for item in items]
        frames = torch.from_numpy(random_frames(self._data, self._episodes, generators))
        return frames, Draws(generators).normal(*self._latent_shape).flatten(0, 1), list(items)

    def loss(self, drawn: tuple[Tensor, Tensor, list[int]]) -> Tensor:
        """L1 and mean squared error of the pixels, and the penalty of large latents."""
        frames, noise, _ = drawn
        pixels = to_pixels(to_device(frames, self._device))
        with autocast(self._config, self._device):
            latents, reconstruction = self._state.replica(pixels, to_device(noise, self._device))
        error = reconstruction.float() - pixels
        penalty = self._config.latent_penalty * latents.float().square().mean()
        return error.abs().mean() + error.square().mean() + penalty

    def describe(self, drawn: tuple[Tensor, Tensor, list[int]]) -> list[int]:
        """The numbers of the places, from which with the seed and the step their frames follow."""
        return drawn[2]


@torch.no_grad()
def _measure_latents(
    model: Autoencoder, data: Dataset, episodes: list[int], config: TrainConfig, device: torch.device
) -> None:
    """Set shift and scale so that latents of training frames have zero mean and unit variance per channel."""
    model.eval()
    batches = []
    for batch in range(32):
        generators = [step_generator(config, STAGE_KEY, STATISTICS_STEP, batch, place) for place in range(8)]
        frames = torch.from_numpy(random_frames(data, episodes, generators)).to(device)
        with autocast(config, device):
            batches.append(model.encoder(to_pixels(frames)).float())
    latents = torch.cat(batches)
    model.latent_shift.copy_(latents.mean(dim=(0, 2, 3)))
    model.latent_scale.copy_(1 / latents.std(dim=(0, 2, 3)).clamp(min=1e-4))
