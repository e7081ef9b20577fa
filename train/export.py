"""Samples of a run in progress, and the world directory at its end."""

from __future__ import annotations

import importlib.metadata

import numpy as np
import torch

from farworld.checkpoint import Context, save_world
from farworld.dataset import Dataset
from farworld.device import describe_hardware
from farworld.models import flow
from farworld.models.autoencoder import Autoencoder
from farworld.models.far import FAR
from farworld.rollout import Rollout, denoise_clip
from farworld.train import config as train_config
from farworld.train.evaluate import one_step
from farworld.train.run import Run, TrainState
from farworld.video import contact_sheet, write_png
from farworld.world_model import WorldConfig, WorldModel

SAMPLE_EPISODES = 4
SAMPLE_FRAMES = 12
CLIP_STEPS = 25  # denoising steps of a whole clip
CARD_EPISODES = 8
CARD_FRAMES = 100


def assemble(run: Run, data: Dataset, transformer: FAR, autoencoder: Autoencoder, training: dict) -> WorldModel:
    """Join a transformer and an autoencoder into a world model, without copying them."""
    config = run.config
    world_config = WorldConfig(
        name=run.path.resolve().name,
        model=transformer.config,
        autoencoder=autoencoder.config,
        vocabulary=data.spec.action_vocabulary,
        frame_height=config.frame_size,
        frame_width=config.frame_size,
        frames_per_second=data.spec.frames_per_second,
        num_steps=config.num_steps,
        context_frames=config.context_frames,
        context_noise=config.context_noise,
        training=training,
    )
    with torch.device("meta"):
        world = WorldModel(world_config)
    world.transformer, world.autoencoder = transformer, autoencoder
    return world.eval()


def draw_samples(
    run: Run, data: Dataset, held_out: list[int], transformer: FAR, autoencoder: Autoencoder, step: int
) -> None:
    """Roll out held-out episodes under their own actions: truth above, prediction below, frame by frame."""
    world = assemble(run, data, transformer, autoencoder, {})
    start = run.config.start_frames if transformer.config.causal else 0
    rows = []
    for episode in held_out[:SAMPLE_EPISODES]:
        if data.num_frames(episode) < start + SAMPLE_FRAMES:
            continue
        frames, actions = data.frames(episode, 0, start + SAMPLE_FRAMES), data.actions(episode)
        if transformer.config.causal:
            rollout = Rollout(world)
            rollout.prime(frames[None, :start], actions[None, : start - 1])
            predicted = [rollout.step(int(action))[0] for action in actions[start - 1 : start - 1 + SAMPLE_FRAMES]]
        else:
            predicted = list(_dream_clip(world, actions))
        rows += [*frames[start:], *predicted]
    if rows:
        write_png(run.samples / f"world-{step:08d}.png", contact_sheet(np.stack(rows), columns=SAMPLE_FRAMES))


def _dream_clip(world: WorldModel, actions: np.ndarray) -> np.ndarray:
    """A clip of SAMPLE_FRAMES frames under the first actions of an episode, all frames at once."""
    config = world.config.model
    produced_by = torch.tensor([config.null_action, *actions[: SAMPLE_FRAMES - 1].tolist()], device=world.device)
    shape = (1, SAMPLE_FRAMES, config.latent_channels, config.latent_height, config.latent_width)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(world.device)
    latents = denoise_clip(world, produced_by[None], noise, flow.euler_timesteps(CLIP_STEPS))
    with torch.inference_mode():
        return world.decode(latents[0]).cpu().numpy()


def export_world(
    run: Run, data: Dataset, held_out: list[int], state: TrainState, autoencoder: Autoencoder, autoencoder_state: dict
) -> dict:
    """Write `world/` with averaged weights, start contexts and a model card.

    Returns:
        One-step scores on held-out episodes; see `farworld.train.evaluate.one_step`.
    """
    assert state.average is not None
    transformer = state.average.module
    assert isinstance(transformer, FAR)
    device = next(transformer.parameters()).device
    training = {
        "farworld": importlib.metadata.version("farworld") if _installed() else "checkout",
        "torch": torch.__version__,
        "hardware": describe_hardware(device),
        "commands": run.commands,
        "config": train_config.to_json(run.config),
        "data": {
            "env": data.spec.env_id,
            "env_kwargs": data.spec.env_kwargs,
            "policy": data.spec.policy,
            "seed": data.spec.seed,
            "episodes": len(data),
            "frames": sum(data.num_frames(i) for i in range(len(data))),
            "held_out_episodes": len(held_out),
        },
        "autoencoder": {"steps": autoencoder_state["step"], "seconds": round(autoencoder_state["seconds"])},
        "world": {"steps": state.step, "seconds": round(state.seconds)},
    }
    world = assemble(run, data, transformer, autoencoder, training)
    scores = one_step(world, data, held_out[:CARD_EPISODES], max_frames=CARD_FRAMES)
    shuffled = one_step(world, data, held_out[:CARD_EPISODES], max_frames=CARD_FRAMES, shuffle_actions=True)
    scores["shuffled_actions_psnr"] = shuffled["psnr"]
    training["held_out_one_step"] = scores
    contexts = [_context(data, episode, run.config.start_frames) for episode in held_out[: run.config.num_contexts]]
    save_world(run.world, world.config, transformer, autoencoder, contexts, _card(world, scores))
    return scores


def _context(data: Dataset, episode: int, num_frames: int) -> Context:
    frames = data.frames(episode, 0, min(num_frames, data.num_frames(episode)))
    return Context(frames, data.actions(episode)[: len(frames) - 1])


def _installed() -> bool:
    try:
        importlib.metadata.version("farworld")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _card(world: WorldModel, scores: dict) -> str:
    """A Hugging Face model card."""
    config, training = world.config, world.config.training
    idle = "–" if scores["idle_psnr"] is None else f"{scores['idle_psnr']:.1f} dB"
    moving = scores["psnr"] is not None
    rows = (
        f"| frames that differ from the one before | {scores['psnr']:.2f} dB / {scores['ssim']:.3f} | "
        f"{scores['copy_last_psnr']:.2f} dB / {scores['copy_last_ssim']:.3f} |\n"
        f"| the same with the actions shuffled | {scores['shuffled_actions_psnr']:.2f} dB | |"
        if moving
        else "| frames that differ from the one before | none | none |"
    )
    return f"""---
library_name: farworld
tags: [world-model, action-conditioned-video, autoregressive, flow-matching]
---
# {config.name}

A FAR-Long world model (frame-autoregressive flow matching, arXiv:2503.19325) of `{training["data"]["env"]}`:
{config.frame_height}×{config.frame_width} pixels at {config.frames_per_second:g} frames/s,
{world.num_parameters / 1e6:.1f} M parameters with its autoencoder.

Play it: `farworld play --ckpt PATH`. Actions: {", ".join(config.vocabulary.names)}.

## Training

- Data: {training["data"]["episodes"]} episodes, {training["data"]["frames"]:,} frames of `{training["data"]["env"]}`,
  recorded with policy {training["data"]["policy"]} and seed {training["data"]["seed"]};
  {training["data"]["held_out_episodes"]} episodes held out.
- Autoencoder: {training["autoencoder"]["steps"]} steps, {training["autoencoder"]["seconds"] / 60:.0f} minutes.
  World model: {training["world"]["steps"]} steps, {training["world"]["seconds"] / 60:.0f} minutes.
- Hardware: {training["hardware"]}; torch {training["torch"]}.
- Commands, in order; all settings are in `config.json`:
{"".join(f"  - `{command}`" + chr(10) for command in training["commands"])}
## Quality

One step from true context on {scores["episodes"]} held-out episodes, {scores["frames"]} frames,
{scores["steps"]} denoising steps:

| | PSNR / SSIM | copying the last frame |
|---|---|---|
{rows}
| frames that do not change | {idle} | exact |

Small models blur what they reveal and drift over long rollouts.
"""
