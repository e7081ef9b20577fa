"""Stage 1: train the DC-AE on single frames, then measure its latents.

Loss: L1 and mean squared error. Latents get a little noise and a small penalty, so that neighbouring latents
decode alike and the decoder forgives the world model's errors.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from farworld.dataset import Dataset
from farworld.models.autoencoder import Autoencoder, to_frames, to_pixels
from farworld.train.config import TrainConfig
from farworld.train.run import Run, TrainState, autocast, fit, step_generator
from farworld.video import contact_sheet, write_png

STAGE = "autoencoder"
STATISTICS = "latent_statistics"  # the checkpoint that says that the stage is finished
STAGE_KEY = 1  # see step_generator
FRAMES_OF_SAMPLE = 12


def random_frames(data: Dataset, episodes: list[int], count: int, generator: torch.Generator) -> Tensor:
    """Frames of random episodes, four from one place each: reading decodes whole chunks."""
    frames = []
    for _ in range(-(-count // 4)):
        episode = episodes[int(torch.randint(len(episodes), (1,), generator=generator))]
        total = data.num_frames(episode)
        span = min(16, total)
        start = int(torch.randint(max(1, (total - 1) // 16 + 1), (1,), generator=generator)) * 16
        start = min(start, total - span)
        clip = data.frames(episode, start, start + span)
        frames.append(clip[torch.randperm(span, generator=generator)[:4].numpy()])
    return torch.from_numpy(np.concatenate(frames)[:count])


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


def train_autoencoder(run: Run, data: Dataset, episodes: list[int], held_out: list[int], device: torch.device) -> None:
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
    torch.manual_seed(config.seed)
    model = Autoencoder(config.autoencoder()).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.autoencoder_learning_rate, betas=(0.9, 0.99), weight_decay=0.0
    )
    state = TrainState(model, optimizer)

    def loss_of_step(step: int) -> Tensor:
        generator = step_generator(config, STAGE_KEY, step)
        frames = random_frames(data, episodes, config.autoencoder_batch_size, generator).to(device)
        pixels = to_pixels(frames)
        with autocast(config, device):
            latents = model.encoder(pixels)
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            reconstruction = model.decoder(latents + config.latent_noise * noise).float()
        error = reconstruction - pixels
        return error.abs().mean() + error.square().mean() + config.latent_penalty * latents.float().square().mean()

    @torch.no_grad()
    def sample(step: int) -> None:
        frames = random_frames(data, held_out, FRAMES_OF_SAMPLE, step_generator(config, STAGE_KEY, 0)).to(device)
        model.eval()
        with autocast(config, device):
            decoded = to_frames(model(to_pixels(frames)))
        rows = np.concatenate([frames.cpu().numpy(), decoded.cpu().numpy()])
        write_png(run.samples / f"{STAGE}-{step:08d}.png", contact_sheet(rows, columns=FRAMES_OF_SAMPLE))

    fit(
        run, STAGE, state, total_steps=config.autoencoder_steps, frames_per_step=config.autoencoder_batch_size,
        loss_of_step=loss_of_step, sample=sample,
    )  # fmt: skip
    _measure_latents(model, data, episodes, config, device)
    run.save_checkpoint(STATISTICS, {"step": state.step, "seconds": state.seconds, "model": model.state_dict()})


@torch.no_grad()
def _measure_latents(
    model: Autoencoder, data: Dataset, episodes: list[int], config: TrainConfig, device: torch.device
) -> None:
    """Set shift and scale so that latents of training frames have zero mean and unit variance per channel."""
    model.eval()
    generator = step_generator(config, STAGE_KEY, 2**39)
    batches = []
    for _ in range(32):
        frames = random_frames(data, episodes, 32, generator).to(device)
        with autocast(config, device):
            batches.append(model.encoder(to_pixels(frames)).float())
    latents = torch.cat(batches)
    model.latent_shift.copy_(latents.mean(dim=(0, 2, 3)))
    model.latent_scale.copy_(1 / latents.std(dim=(0, 2, 3)).clamp(min=1e-4))
