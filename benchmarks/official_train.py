"""What a training step costs by the official FAR implementation's schedule of work and by ours, on the same weights.

    python benchmarks/official_train.py [--frames 300] [--batch-size 1] [--steps 3] [--precision float32 bfloat16]
                                        [--threads N] [--json]

- official: our re-enactment of where the official trainer's time goes, see benchmarks/official_far.py: all tokens of
  both streams in one sequence under a dense mask of three dimensions, the condition repeated to every token before the
  modulations, both output heads over all their tokens.
- ours: `FAR.forward`.

The model is FAR-B-Long (158 M) on latents of 8×8×32 (frames of 64×64), a window of 16 frames, random weights. A step is
forward, loss over the window's frames, backward and AdamW; both have the same clips, noise and timesteps, and the
largest differences of their losses and gradients are printed. They take turns, so that other load hits both alike.
"""

from __future__ import annotations

import copy
import statistics
import time
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from command import publish, run
from cyclopts import App, Parameter
from einops import rearrange
from official_far import FAR_B_LONG, SEVERAL, OfficialSchedule, random_world
from torch import Tensor

from farworld.console import progress_bar
from farworld.models import flow
from farworld.models.far import CLEAN_LONG_TERM, CLEAN_SHORT_TERM, FAR, TIMESTEP_SCALE, Block
from farworld.train.world import velocity_loss

CLEAN_CONTEXT_RATIO = 0.1
Precision = Literal["float32", "bfloat16"]


class OfficialTraining(OfficialSchedule):
    """The whole sequence at once, as the official model trains."""

    def forward(self, noisy: Tensor, timestep: Tensor, action: Tensor, context: Tensor) -> Tensor:
        """Velocities of the window's frames; see `FAR.forward`."""
        model, config = self.transformer, self.transformer.config
        num_long, num_frames = context.shape[1], action.shape[1]
        assert config.context_patch_size
        marks = torch.full(context.shape[:2], CLEAN_LONG_TERM)
        long, long_condition = self._tokens(
            context, marks, action[:, :num_long], model.coarse_embedding, config.context_patch_size
        )
        short, condition = self._tokens(noisy, timestep, action[:, num_long:], model.fine_embedding, config.patch_size)
        tokens, condition = torch.cat([long, short], dim=1), torch.cat([long_condition, condition], dim=1)
        rope, mask = self._positions(num_frames, num_long)
        empty = noisy.new_zeros(noisy.shape[0], config.num_heads, 0, config.head_size)
        num_long_tokens = long.shape[1]
        for block in model.blocks:
            assert isinstance(block, Block)
            tokens, _ = self._block(block, tokens, condition, num_long_tokens, rope, mask, (empty, empty))
        scale, shift = model.final_modulation(F.silu(condition)).chunk(2, dim=-1)
        tokens = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1 + scale) + shift
        self.coarse_head(tokens[:, :num_long_tokens])
        return rearrange(
            model.velocity_head(tokens[:, num_long_tokens:]), "b (f h w) (c i j) -> b f c (h i) (w j)",
            f=noisy.shape[1], h=config.latent_height // config.patch_size, i=config.patch_size, j=config.patch_size,
        )  # fmt: skip

    def _tokens(
        self, latents: Tensor, timestep: Tensor, action: Tensor, embedding: Any, patch: int
    ) -> tuple[Tensor, Tensor]:
        """Tokens and the condition of each, both (B, N, D)."""
        model = self.transformer
        tokens = embedding(rearrange(latents, "b f c (h i) (w j) -> b (f h w) (c i j)", i=patch, j=patch))
        condition = model.timestep_embedding(timestep) + model.action_embedding(action)  # type: ignore[misc]
        return tokens, condition.repeat_interleave(tokens.shape[1] // latents.shape[1], dim=1)


class Step:
    """A training step of one of the two, and what it cost."""

    def __init__(self, model: FAR, forward: Any) -> None:
        self.model = model
        self.forward = forward
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
        self.seconds: list[float] = []
        self.loss = 0.0

    def run(self, batch: dict[str, Tensor], precision: Precision) -> None:
        """Forward, backward, update; the learning rate is zero, so that both keep the same weights."""
        began = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            velocity = self.forward(batch["noisy"], batch["timestep"], batch["action"], batch["context"])
        loss = velocity_loss(velocity.float(), flow.velocity_target(batch["truth"], batch["noise"]), batch["is_clean"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.loss = float(loss.detach())
        self.seconds.append(time.perf_counter() - began)


def random_batch(batch_size: int, num_frames: int, seed: int) -> dict[str, Tensor]:
    """Random clips, noised as in training."""
    config, draw = FAR_B_LONG, torch.Generator().manual_seed(seed)
    shape = batch_size, num_frames, config.latent_channels, config.latent_height, config.latent_width
    clean = torch.randn(shape, generator=draw)
    num_context = num_frames - config.short_term_frames
    truth = clean[:, num_context:]
    noise = torch.randn(truth.shape, generator=draw)
    timestep = flow.timesteps_of_draws(
        torch.randn(truth.shape[:2], generator=draw), torch.rand(truth.shape[:2], generator=draw)
    )
    is_clean = torch.rand(truth.shape[:2], generator=draw) < CLEAN_CONTEXT_RATIO
    is_clean[:, -1] = False
    return {
        "truth": truth,
        "noise": noise,
        "is_clean": is_clean,
        "noisy": torch.where(is_clean[..., None, None, None], truth, flow.add_noise(truth, noise, timestep)),
        "timestep": torch.where(is_clean, CLEAN_SHORT_TERM, timestep * TIMESTEP_SCALE),
        "action": torch.randint(config.num_actions, (batch_size, num_frames), generator=draw),
        "context": clean[:, :num_context],
    }


def compare(batch_size: int, num_frames: int, num_steps: int, precision: Precision, advance: Any) -> dict[str, Any]:
    """Measure both, in turns; one step each to warm up."""
    ours = random_world(FAR_B_LONG).transformer.requires_grad_(True).train()
    theirs = copy.deepcopy(ours)
    steps = {"official": Step(theirs, OfficialTraining(theirs, [1.0, 0.0]).forward), "ours": Step(ours, ours)}
    difference = 0.0
    for index in range(num_steps + 1):
        batch = random_batch(batch_size, num_frames, index)
        for step in steps.values():
            step.run(batch, precision)
            advance()
        difference = max(difference, abs(steps["official"].loss - steps["ours"].loss))
    gradients = max(
        float((a.grad - b.grad).abs().max()) if a.grad is not None and b.grad is not None else 0.0
        for a, b in zip(theirs.parameters(), ours.parameters(), strict=True)
    )
    median = {name: statistics.median(step.seconds[1:]) for name, step in steps.items()}
    return {
        "precision": precision,
        "official_s": median["official"],
        "ours_s": median["ours"],
        "ours_min_s": min(steps["ours"].seconds[1:]),
        "official_min_s": min(steps["official"].seconds[1:]),
        "speed_up": median["official"] / median["ours"],
        "clips_per_second": batch_size / median["ours"],
        "loss_difference": difference,
        "gradient_difference": gradients,
    }


app = App(
    name="official_train.py",
    version_flags=(),
    result_action="return_value",
    help="A training step by the official FAR's schedule of work and by ours, on a CPU.",
)


@app.default
def official_train(
    *,
    frames: Annotated[int, Parameter(help="Frames of a clip, the window's 16 included.")] = 300,
    batch_size: Annotated[int, Parameter(help="Clips of a step.")] = 1,
    steps: Annotated[int, Parameter(help="Steps to measure, after one to warm up.")] = 3,
    precision: Annotated[tuple[Precision, ...], SEVERAL, Parameter(help="Of matrix products.")] = (
        "float32",
        "bfloat16",
    ),
    threads: Annotated[int | None, Parameter(help="That torch uses; its own choice without it.")] = None,
    json: Annotated[bool, Parameter(negative=(), help="Also print one JSON object, as the last line.")] = False,
) -> None:
    """Measure each precision."""
    smallest = {"--batch-size": batch_size, "--steps": steps, "--threads": threads}
    for name, value in smallest.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    if frames <= FAR_B_LONG.short_term_frames:
        raise ValueError(f"--frames must be more than the window of {FAR_B_LONG.short_term_frames}, got {frames}")
    if threads is not None:
        torch.set_num_threads(threads)
    with progress_bar("measuring", len(precision) * (steps + 1) * 2, unit="steps") as advance:
        rows = [compare(batch_size, frames, steps, kind, advance) for kind in precision]
    print("| precision | official s (min) | ours s (min) | × official | clips/s | difference of losses, of gradients |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['precision']} | {row['official_s']:.2f} ({row['official_min_s']:.2f}) "
            f"| {row['ours_s']:.2f} ({row['ours_min_s']:.2f}) | {row['speed_up']:.2f} | {row['clips_per_second']:.3f} "
            f"| {row['loss_difference']:.1e}, {row['gradient_difference']:.1e} |"
        )
    publish({"frames": frames, "batch_size": batch_size}, rows, device=torch.device("cpu"), json=json)


if __name__ == "__main__":
    run(app)
