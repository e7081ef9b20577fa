"""Table 6: the resolution of the long-term context, and what it costs.

    python benchmarks/paper/coarse_resolution.py --out DIR [--data DATASET] [--seeds 1]

The paper: distant frames can be patched four times as coarsely as recent ones (16 times fewer tokens) with little loss
of quality, and training becomes much faster.

Here: a small long short-term FAR is trained with long-term patches of one, two and four times the side of the
short-term ones, on the same clips. Held-out clips are shown in full length but for the frames that are rolled out,
under the true actions. "window alone" is the same model whose memory ends with the short-term window: what it loses
is what the long-term context is worth to it, at any resolution. Cost: processor seconds of a training step, and of a
rolled-out frame (transformer alone, one stream) with a full context, by the length of the clip or context.

A loss counts as little if it is at most 2 % of LPIPS by its upper bound, the mean plus two standard errors.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch
from study import CLEAR, Clips, Difference, Result, Study, difference, main, roll_out, sheet_of, stacked
from tokens import seconds_of_step

from farworld.rollout import Rollout
from farworld.train.prediction import Scores
from farworld.world_model import WorldModel

LITTLE = 0.02  # of the LPIPS at full resolution
FASTER = 1.5  # times, a step of training on the longest clips
TIMED_FRAMES = 5
NUM_STEPS = 4  # of the timed frames


def is_cheap(loss: Difference, lpips: float, speed: float) -> bool:
    """Whether the loss of LPIPS is little at most, of so much, and training so many times as fast is faster."""
    return loss.mean + CLEAR * loss.error <= LITTLE * lpips and speed >= FASTER


@torch.inference_mode()
def seconds_of_frame(world: WorldModel, clip: Clips, context: int) -> float:
    """Processor seconds of the next frame's latents after so many frames, the median of a few."""
    rollout = Rollout(world, num_steps=NUM_STEPS, context_frames=context)
    rollout.prime_latents(clip.latents[:1, :context], clip.actions[:1, :context])
    took = []
    for _ in range(TIMED_FRAMES + 1):
        began = time.process_time()
        rollout.step_latents(0)
        took.append(time.process_time() - began)
    return statistics.median(took[1:])


def coarse_resolution(study: Study) -> Result:
    """Long-term context at a half and a quarter of the resolution: quality and speed."""
    scale = study.scale
    clips, shown = study.clips(scale.long_clip), scale.long_clip - scale.predict
    truth = clips.frames[:, shown:]
    longest = scale.clip * scale.lengths[-1]
    lpips: dict[int, np.ndarray] = {}
    worth: dict[int, str] = {}
    steps: dict[int, float] = {}
    scores: dict[str, list[Scores]] = {}
    costs, rollouts = [], []
    for coarseness in scale.coarseness:
        settings = study.long(window=scale.window, coarseness=coarseness)
        worlds = study.trained(f"window-{scale.window}-coarse-{coarseness}", settings)
        options = {"num_steps": scale.denoising_steps}
        drawn = [roll_out(world, clips, shown, **options) for world in worlds]
        near = [roll_out(world, clips, shown, remember=scale.window, **options) for world in worlds]
        scores[f"{coarseness}×"] = [study.score(each, truth) for each in drawn]
        lpips[coarseness] = stacked(scores[f"{coarseness}×"], "lpips")
        alone = stacked([study.score(each, truth) for each in near], "lpips")
        worth[coarseness] = str(difference(alone, lpips[coarseness], clips.episodes))
        rollouts.append(drawn[0])
        config = study.config(*settings)
        steps[coarseness] = seconds_of_step(config, longest, len(study.data.spec.action_vocabulary))
        whole = study.clips(longest, 1)
        costs.append(
            {
                "tokens of a distant frame": worlds[0].config.model.coarse_tokens,
                "LPIPS, window alone": f"{alone.mean():.4f}",
                f"CPU s, step on {scale.long_clip} frames": f"{seconds_of_step(config, scale.long_clip, 7):.3f}",
                f"on {longest} frames": f"{steps[coarseness]:.3f}",
                f"CPU ms, frame after {longest}": f"{1000 * seconds_of_frame(worlds[0], whole, longest):.1f}",
            }
        )
    quality = study.table("side of a long-term patch", scores, clips, shown)
    rows = [{**row, **cost} for row, cost in zip(quality, [*costs, {}], strict=True)]
    fine, coarse = scale.coarseness[0], scale.coarseness[-1]
    loss = difference(lpips[coarse], lpips[fine], clips.episodes)
    usual = float(lpips[fine].mean())
    speed = steps[fine] / steps[coarse]
    return Result(
        title="Table 6, resolution of the long-term context",
        paper="long-term patches of four times the side cost little quality and make training much faster.",
        setup=f"{study.describe_training(settings)} of up to {scale.long_clip} frames, window {scale.window}; "
        f"{len(clips.frames)} held-out clips, {shown} frames shown and {scale.predict} rolled out in "
        f"{scale.denoising_steps} Euler steps each; a timed step has one clip, a timed frame {NUM_STEPS} Euler steps.",
        rows=rows,
        rule=f"LPIPS at {coarse}× is at most {LITTLE:.0%} above that at {fine}×, as an upper bound of two standard "
        f"errors, and a step on {longest} frames is at least {FASTER} times as fast",
        reproduced=is_cheap(loss, usual, speed),
        found=f"LPIPS {coarse}× minus {fine}×: {loss}, where {LITTLE * usual:.4f} is allowed; a step {speed:.1f} "
        "times as fast",
        notes=(
            "What the long-term context is worth, LPIPS of the window alone minus that of all: "
            + ", ".join(f"{side}× {value}" for side, value in worth.items())
            + ". Where that is nothing, its resolution cannot cost anything either.",
        ),
        sheet=sheet_of(truth, rollouts),
    )


if __name__ == "__main__":
    main("coarse_resolution", coarse_resolution)
