"""Samples of a run in progress, and the world directory at its end."""

from __future__ import annotations

import contextlib
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
from farworld.video import VideoWriter, contact_sheet, write_png
from farworld.world_model import WorldConfig, WorldModel

SAMPLE_EPISODES = 4
SAMPLE_FRAMES = 12  # of a sheet, and the least that an episode must have after the start
VIDEO_FRAMES = 48  # of a video, if the episodes have them
VIDEO_SIDE = 256  # pixels; smaller frames are enlarged to about this
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
        layout=config.layout,
        frame_action="label" if config.condition == "label" else "producing",
        context_noise=config.context_noise,
        training=training,
    )
    with torch.device("meta"):
        world = WorldModel(world_config)
    world.transformer, world.autoencoder = transformer, autoencoder
    return world.eval()


def draw_samples(
    run: Run, data: Dataset, held_out: list[int], transformer: FAR, autoencoder: Autoencoder, step: int
) -> np.ndarray | None:
    """Roll out held-out episodes under their own actions, into a sheet and a video.

    Args:
        run: its folder takes `samples/world-STEP.png`, truth above and dream below, frame by frame, and
            `samples/world-STEP.mp4`, truth to the left and dream to the right.
        data: as the run sees it.
        held_out: episodes; those that are too short are passed over.
        transformer: to be judged.
        autoencoder: of the run.
        step: of training, for the names.

    Returns:
        The sheet; None if no episode is long enough.
    """
    world = assemble(run, data, transformer, autoencoder, {})
    start = run.config.start_frames if transformer.config.causal else 0
    chosen = [episode for episode in held_out if data.num_frames(episode) >= start + SAMPLE_FRAMES][:SAMPLE_EPISODES]
    if not chosen:
        return None
    count = SAMPLE_FRAMES
    if transformer.config.causal:
        count = min(VIDEO_FRAMES, *(data.num_frames(episode) - start for episode in chosen))
    frames = np.stack([data.frames(episode, 0, start + count) for episode in chosen])
    actions = np.stack([data.actions(episode)[: start + count - 1] for episode in chosen])
    truth, dream = frames[:, start:], _dream(world, frames[:, :start], actions)
    rows = np.stack([truth[:, :SAMPLE_FRAMES], dream[:, :SAMPLE_FRAMES]], axis=1)
    sheet = contact_sheet(rows.reshape(-1, *rows.shape[3:]), columns=SAMPLE_FRAMES)
    write_png(run.samples / f"world-{step:08d}.png", sheet)
    pairs = np.stack([truth, dream], axis=2)  # (episodes, frames, 2, H, W, 3)
    pictures = [contact_sheet(pairs[:, t].reshape(-1, *pairs.shape[3:]), columns=2) for t in range(count)]
    scale = max(1, VIDEO_SIDE // run.config.frame_size)
    rate = data.spec.frames_per_second
    with contextlib.suppress(ModuleNotFoundError):  # machines that only train may lack av
        with VideoWriter(run.samples / f"world-{step:08d}.mp4", rate, *pictures[0].shape[:2], scale=scale) as video:
            for picture in pictures:
                video.write(picture)
    return sheet


def _dream(world: WorldModel, start: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Frames after a start, (B, N, H, W, 3), uint8; those of a model that isn't causal all at once and without one.

    Args:
        world: dreams.
        start: (B, F, H, W, 3), uint8.
        actions: (B, F + N − 1), between all frames.
    """
    num_start = start.shape[1]
    if world.config.model.causal:
        rollout = Rollout(world, batch_size=len(start))
        rollout.prime(start, actions[:, : num_start - 1])
        return np.stack([rollout.step(actions[:, t]) for t in range(num_start - 1, actions.shape[1])], axis=1)
    conditions = world.config.conditions(torch.from_numpy(actions)).to(world.device)
    config, (batch, count) = world.config.model, conditions.shape
    shape = batch, count, config.latent_channels, config.latent_height, config.latent_width
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(world.device)
    latents = denoise_clip(world, conditions, noise, flow.euler_timesteps(CLIP_STEPS))
    with torch.inference_mode():
        return world.decode(latents.flatten(0, 1)).unflatten(0, (batch, count)).cpu().numpy()


def export_world(
    run: Run,
    data: Dataset,
    held_out: list[int],
    transformer: FAR,
    state: TrainState,
    autoencoder: Autoencoder,
    autoencoder_state: dict,
) -> dict:
    """Write `world/` with averaged weights, start contexts and a model card.

    Returns:
        One-step scores on held-out episodes; see `farworld.train.evaluate.one_step`.
    """
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
    if run.config.condition == "action":
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
        f"{scores['copy_last_psnr']:.2f} dB / {scores['copy_last_ssim']:.3f} |"
        if moving
        else "| frames that differ from the one before | none | none |"
    )
    if moving and "shuffled_actions_psnr" in scores:
        rows += f"\n| the same with the actions shuffled | {scores['shuffled_actions_psnr']:.2f} dB | |"
    condition = training["config"]["condition"]
    kind = "FAR-Long" if config.model.context_patch_size else "FAR"
    video = "action-conditioned-video" if condition == "action" else "video-generation"
    told = {
        "action": f"Actions: {', '.join(config.vocabulary.names)}.",
        "label": f"Labels, each an action that stays the same: {', '.join(config.vocabulary.names)}.",
        "none": "It is told no actions.",
    }[condition]
    return f"""---
library_name: farworld
tags: [world-model, {video}, autoregressive, flow-matching]
---
# {config.name}

A {kind} world model (frame-autoregressive flow matching, arXiv:2503.19325) of `{training["data"]["env"]}`:
{config.frame_height}×{config.frame_width} pixels at {config.frames_per_second:g} frames/s,
{world.num_parameters / 1e6:.1f} M parameters with its autoencoder.

Play it: `farworld play --ckpt PATH`. {told}

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
