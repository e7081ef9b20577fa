"""Fig. 7: how many tokens a training clip has, and what they cost, against the length of its context.

    python benchmarks/paper/tokens.py --out DIR

The paper: with all of the context in full resolution tokens grow so fast with the length of a video that long videos
cannot be trained on; with long short-term context they grow slowly.

Here: the paper's FAR-B (130 M parameters, 64 tokens of a frame) with every frame in full resolution, and its FAR-B-Long
(a window of 16 full frames, 4 tokens of each frame before), by the length of the clip: tokens that enter the
transformer, floating-point operations of a step forward and backward, and what the pass forward keeps for the other,
counted without running it (`farworld.train.estimate`; in full resolution attention is one dense product under a mask,
half of which a causal kernel would save). And the seconds of the processor that a step of one clip takes
with the studies' small model (16 tokens of a frame, or a window of 4 such frames and 1 token of each before),
measured. The paper's figure has tokens only.
"""

from __future__ import annotations

import dataclasses
import statistics
import time

import torch
from study import Result, Study, main

from farworld.line_plot import line_plot
from farworld.train.config import PRESETS, TrainConfig
from farworld.train.estimate import count_steps, tokens_of_clip
from farworld.train.ranks import Ranks
from farworld.train.run import Draws
from farworld.train.world import ClipKind, flow_matching_loss, new_state

REPEATS = 3  # steps that are timed, after one that warms up
NUM_ACTIONS = 3  # of DMLab
AT_MOST = 0.5  # of the full tokens, and of the full operations, at the longest clip


def of_length(config: TrainConfig, length: int) -> TrainConfig:
    """The training on clips of this length alone, one a step."""
    fine = length if config.context_patch_size is None else min(config.fine_frames, length)
    return dataclasses.replace(
        config, world_batch_size=1, accumulate=1, fine_frames=fine, early_clip_frames=length, max_clip_frames=length,
        short_term_frames=min(config.short_term_frames, fine), context_frames=length, clip_lengths="log-uniform",
        layout="sliding", precision="float32",
    )  # fmt: skip


def full_resolution(config: TrainConfig) -> TrainConfig:
    """The same model without a long-term stream."""
    return dataclasses.replace(config, context_patch_size=None)


def seconds_of_step(config: TrainConfig, length: int, num_actions: int) -> float:
    """Processor seconds of a step on one clip: loss, gradient, optimizer; the median of a few."""
    config = of_length(config, length)
    state = new_state(config, num_actions, Ranks(device=torch.device("cpu")))
    far = config.far(num_actions)
    clean = torch.randn(1, length, far.latent_channels, far.latent_height, far.latent_width)
    actions = torch.zeros(1, length, dtype=torch.int64)
    took = []
    for step in range(REPEATS + 1):
        began = time.process_time()
        state.optimizer.zero_grad()
        draws = Draws([torch.Generator().manual_seed(step)])
        flow_matching_loss(state.model, far, clean, actions, config, draws).backward()
        state.optimizer.step()
        took.append(time.process_time() - began)
    return statistics.median(took[1:])


def tokens(study: Study) -> Result:
    """Tokens and cost of a training clip against its length, with and without long short-term context."""
    paper = PRESETS["far-b-long-dmlab-64"]
    ours = study.config(*study.long(window=study.scale.window, coarseness=4))
    lengths, rows, large = study.scale.contexts, [], {}
    for name, config, small in (
        ("full resolution", full_resolution(paper), full_resolution(ours)),
        ("long short-term", paper, ours),
    ):
        for length in lengths:
            whole, kind = of_length(config, length), ClipKind(length, 0.0)
            ((operations, kept),) = count_steps(whole, NUM_ACTIONS, {kind}, 1, torch.device("cpu")).values()
            count = tokens_of_clip(whole.far(NUM_ACTIONS), whole, length)
            large[name, length] = count, operations
            rows.append(
                {
                    "context": name,
                    "frames of a clip": length,
                    "tokens": f"{count:,}",
                    "TFLOP a step": f"{operations / 1e12:.2f}",
                    "kept for the backward pass, GB": f"{kept / 2**30:.1f}",
                    "small model: CPU s a step": f"{seconds_of_step(small, length, 7):.3f}",
                }
            )
    longest = lengths[-1]
    one, other = large["long short-term", longest], large["full resolution", longest]
    share, work = one[0] / other[0], one[1] / other[1]
    lines = {
        name: [(length, large[name, length][0]) for length in lengths]
        for name in ("full resolution", "long short-term")
    }
    return Result(
        title="Fig. 7, tokens against the length of the context",
        paper="in full resolution tokens grow so fast with the length of a video that long ones cannot be trained on; "
        "with long short-term context they can.",
        setup="models of the paper's FAR-B size, counted, and the studies' small one, timed; one clip a step, float32.",
        rows=rows,
        rule=f"at {longest} frames long short-term context takes at most {AT_MOST:.0%} of both the tokens and the "
        "floating-point operations of full resolution",
        reproduced=max(share, work) <= AT_MOST,
        found=f"{share:.0%} of the tokens, {work:.0%} of the operations",
        figure=line_plot(lines, x_label="frames of a clip", y_label="tokens of a clip", marks=True),
    )


if __name__ == "__main__":
    main("tokens", tokens)
