"""What a frame costs by the official FAR implementation's schedule of work and by ours, on the same weights.

    python benchmarks/official_far.py [--steps 4 25] [--contexts 8 32 144 300] [--frames 3] [--threads N]
                                      [--modes official anchored sliding] [--json]

- official: `OfficialSchedule` below, our own re-enactment of where the official code spends its time. That code is
  not here; its work is known from measurements and traces of its calls, which tests/test_official_far.py compares.
  Where those leave open how something is computed, the fast way is taken, so the speed-ups are rather too small.
- anchored: `Rollout` in the anchored layout. It makes the same latents; the largest difference is printed.
- sliding: `Rollout` in the sliding layout. Each frame is encoded once, and the latents are others.

The model is FAR-B-Long (158 M) for frames of 64×64 with random weights, float32, batch 1; nothing is decoded, and all
modes go through the official timesteps. A context of 144 is 144 frames before the first generated one, which is timed
by itself, since it encodes the context ("prefill"); then the modes take turns frame by frame, so that other load hits
all alike. Nothing is ever forgotten, so the context grows with every frame. The sliding rollout takes over the cache
that the anchored one has after its first frame: the same slots, full to the same degree. Tokens are counted where
they enter the transformer. The JSON also has the processor time of all threads: with one thread it hardly heeds
other load, with more it counts their waiting for each other.

Shape letters as in `farworld.models.far`; N also counts the tokens of both streams in one sequence, S those that are
attended to.
"""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, Protocol

import torch
import torch.nn.functional as F
from command import publish, run
from cyclopts import App, Parameter
from einops import rearrange
from torch import Tensor, nn

from farworld.actions import Action, ActionVocabulary
from farworld.console import progress_bar
from farworld.models import flow
from farworld.models.attention import rope_table, rotate
from farworld.models.autoencoder import AutoencoderConfig
from farworld.models.far import (
    CLEAN_LONG_TERM,
    CLEAN_SHORT_TERM,
    FAR,
    TIMESTEP_SCALE,
    Block,
    FARConfig,
    StreamAttention,
)
from farworld.models.packed import pack_linears
from farworld.rollout import Rollout
from farworld.world_model import WorldConfig, WorldModel

Mode = Literal["official", "anchored", "sliding"]
MODES: tuple[Mode, ...] = ("official", "anchored", "sliding")
CONTEXTS = (8, 32, 144, 300)
SEVERAL = Parameter(consume_multiple=True, negative=())

FAR_B_LONG = FARConfig(
    latent_channels=32, latent_height=8, latent_width=8, num_actions=4, num_layers=12, num_heads=12,
    short_term_frames=16,
)  # fmt: skip


class OfficialSchedule:
    """Frame after frame by the schedule of work of the official implementation, with a FAR's weights.

    The waste is on purpose:

    - the first call of a frame ("cache step") encodes the whole window again, and the two newest long-term frames,
      of which one is known;
    - conditions are repeated to every token before the modulations;
    - keys are kept as they are before rotation; tables for all positions and the rotation of all keys come anew with
      every call;
    - the mask is made for all pairs of tokens at every call, and has three dimensions: torch has no fused attention
      for such a mask on a CPU;
    - caches grow by concatenation;
    - the last block, the final norm and the output heads go over all tokens, those of the long-term stream included.
    """

    def __init__(self, transformer: FAR, timesteps: Sequence[float]) -> None:
        """Start without frames.

        Args:
            transformer: with a long-term stream; its weights are used as they are.
            timesteps: flow times from 1 to 0.
        """
        config = transformer.config
        assert config.context_patch_size and config.causal and not config.copy_gate
        assert config.positions.frame_scale == 1.0 and not config.positions.slope_per_head
        self.transformer = transformer
        self.timesteps = list(timesteps)
        # Its output is thrown away, and it is zero in published weights, so that a FAR need not have it.
        self.coarse_head = nn.Linear(config.width, config.latent_channels * config.context_patch_size**2)
        self._latents: list[Tensor] = []
        self._actions: list[Tensor] = []
        self._reset()

    def _reset(self, batch_size: int = 1) -> None:
        """Empty the cache: what stays from frame to frame, and that with what only this frame needs."""
        config, weight = self.transformer.config, self.transformer.velocity_head.weight
        empty = weight.new_zeros(batch_size, config.num_heads, 0, config.head_size)
        self.persistent = [(empty, empty)] * config.num_layers
        self.for_frame = list(self.persistent)
        self._num_persistent = 0  # frames
        self._has_two_levels = False

    def prime_latents(self, latents: Tensor, produced_by: Tensor) -> None:
        """Forget everything and start from a context; see `Rollout.prime_latents`."""
        self._latents, self._actions = list(latents.unbind(1)), list(produced_by.unbind(1))
        self._reset(len(latents))

    @torch.inference_mode()
    def step_latents(self, action: Tensor, *, noise: Tensor) -> Tensor:
        """Generate a frame; see `Rollout.step_latents`."""
        x = noise
        for step, (now, then) in enumerate(pairwise(self.timesteps)):
            velocity = self._call(x, action, now, is_cache_step=step == 0 and bool(self._latents))
            x = flow.euler_step(x, velocity, now, then)
        self._latents.append(x)
        self._actions.append(action)
        return x

    def _call(self, noisy: Tensor, action: Tensor, t: float, *, is_cache_step: bool) -> Tensor:
        """The velocity (B, C, H, W) of the next frame."""
        model, config = self.transformer, self.transformer.config
        latents, actions = [*self._latents, noisy], [*self._actions, action]
        num_frames = len(latents)
        num_long = max(0, num_frames - config.short_term_frames)
        if is_cache_step and num_long and not self._has_two_levels:
            self._reset(len(noisy))  # everything so far was cached in fine tokens
            self._has_two_levels = True
        long, short = range(0), range(num_frames - 1, num_frames)
        if is_cache_step:
            long = range(self._num_persistent, num_long)
            short = range(num_long if num_long else self._num_persistent, num_frames)

        short_times = [CLEAN_SHORT_TERM] * (len(short) - 1) + [t * TIMESTEP_SCALE]
        tokens, condition = self._embed(latents, actions, short, short_times, model.fine_embedding, config.patch_size)
        num_long_tokens = len(long) * config.coarse_tokens
        if long:
            assert config.context_patch_size
            long_tokens, long_condition = self._embed(
                latents, actions, long, [CLEAN_LONG_TERM] * len(long), model.coarse_embedding, config.context_patch_size
            )
            tokens = torch.cat([long_tokens, tokens], dim=1)
            condition = torch.cat([long_condition, condition], dim=1)

        rope, mask = self._positions(num_frames, num_long)
        mask = mask[:, -tokens.shape[1] :]
        grown = []
        for block, cached in zip(model.blocks, self.persistent if is_cache_step else self.for_frame, strict=True):
            assert isinstance(block, Block)
            tokens, keys_values = self._block(block, tokens, condition, num_long_tokens, rope, mask, cached)
            grown.append(keys_values)
        if is_cache_step:
            self._keep(grown, num_frames, num_long)

        scale, shift = model.final_modulation(F.silu(condition)).chunk(2, dim=-1)
        tokens = _norm(tokens) * (1 + scale) + shift
        velocity = model.velocity_head(tokens[:, num_long_tokens:])
        if long:
            self.coarse_head(tokens[:, :num_long_tokens])
        return rearrange(
            velocity[:, -config.fine_tokens :], "b (h w) (c i j) -> b c (h i) (w j)",
            h=config.latent_height // config.patch_size, i=config.patch_size, j=config.patch_size,
        )  # fmt: skip

    def _embed(
        self,
        latents: list[Tensor],
        actions: list[Tensor],
        frames: range,
        timesteps: list[float],
        embedding: nn.Module,
        patch: int,
    ) -> tuple[Tensor, Tensor]:
        """Tokens of some frames, and the condition of each token; both (B, N, D)."""
        model = self.transformer
        clip = torch.stack([latents[frame] for frame in frames], dim=1)
        tokens = embedding(rearrange(clip, "b f c (h i) (w j) -> b (f h w) (c i j)", i=patch, j=patch))
        condition = model.timestep_embedding(torch.tensor([timesteps]))
        if model.action_embedding is not None:
            condition = condition + model.action_embedding(torch.stack([actions[frame] for frame in frames], dim=1))
        condition = condition.expand(len(tokens), -1, -1)
        return tokens, condition.repeat_interleave(tokens.shape[1] // len(frames), dim=1)

    def _positions(self, num_frames: int, num_long: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Rotary tables of all S tokens, and what attention adds, (1, S, S)."""
        config = self.transformer.config
        assert config.context_patch_size
        frames = torch.arange(num_frames)
        parts = []
        for which, patch in ((frames[:num_long], config.context_patch_size), (frames[num_long:], config.patch_size)):
            rows, columns = config.latent_height // patch, config.latent_width // patch
            parts.append(rope_table(which.tolist(), rows, columns, patch // config.patch_size, config.head_size))
        (long_cos, long_sin), (cos, sin) = parts
        frame = torch.cat(
            [
                frames[:num_long].repeat_interleave(config.coarse_tokens),
                frames[num_long:].repeat_interleave(config.fine_tokens),
            ]
        )
        distance = frame - frame[:, None]  # (S queries, S keys), of the key from the query
        mask = torch.zeros(distance.shape).masked_fill_(distance > 0, -torch.inf)
        if config.positions.slope:
            mask += config.positions.slope * distance
        return (torch.cat([long_cos, cos]), torch.cat([long_sin, sin])), mask[None]

    def _block(
        self,
        block: Block,
        tokens: Tensor,
        condition: Tensor,
        num_long_tokens: int,
        rope: tuple[Tensor, Tensor],
        mask: Tensor,
        cached: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Tokens (B, N, D) one block further; also keys before rotation and values of all S tokens, (B, A, S, K)."""
        shift, scale, gate = block.modulation_1(F.silu(condition)).chunk(3, dim=-1)
        normed = _norm(tokens) * (1 + scale) + shift
        q, k, v = _project(block.fine_attention, normed[:, num_long_tokens:])
        if num_long_tokens:
            long = _project(block.coarse_attention, normed[:, :num_long_tokens])
            q, k, v = (torch.cat(pair, dim=2) for pair in zip(long, (q, k, v), strict=True))
        k, v = torch.cat([cached[0], k], dim=2), torch.cat([cached[1], v], dim=2)
        cos, sin = rope
        queries = slice(-q.shape[2], None)
        q, rotated = rotate(q, (cos[queries], sin[queries])), rotate(k, rope)
        seen = rearrange(F.scaled_dot_product_attention(q, rotated, v, attn_mask=mask), "b a n k -> b n (a k)")
        assert block.fine_attention.output is not None
        attended = block.fine_attention.output(seen[:, num_long_tokens:])
        if num_long_tokens:
            output = block.coarse_attention.output
            long_seen = seen[:, :num_long_tokens]
            attended = torch.cat([long_seen if output is None else output(long_seen), attended], dim=1)
        tokens = tokens + gate * attended
        shift, scale, gate = block.modulation_2(F.silu(condition)).chunk(3, dim=-1)
        return tokens + gate * block.mlp(_norm(tokens) * (1 + scale) + shift), (k, v)

    def _keep(self, grown: list[tuple[Tensor, Tensor]], num_frames: int, num_long: int) -> None:
        """Cache what a cache step has computed, except for the noisy frame's."""
        config = self.transformer.config
        self.for_frame = [(k[:, :, : -config.fine_tokens], v[:, :, : -config.fine_tokens]) for k, v in grown]
        if not num_long:
            self.persistent, self._num_persistent = self.for_frame, num_frames - 1
            return
        self._num_persistent = num_long - 1  # the newest is computed again next time
        stay = slice(self._num_persistent * config.coarse_tokens)
        self.persistent = [(k[:, :, stay], v[:, :, stay]) for k, v in grown]


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def _project(attention: StreamAttention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys, normed but not rotated, and values of (B, N, D) by three linears; each (B, A, N, K)."""
    weights, biases = attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3)
    q, k, v = (
        rearrange(F.linear(x, weight, bias), "b n (a k) -> b a n k", k=attention.head_size)
        for weight, bias in zip(weights, biases, strict=True)
    )
    return attention.norm_q(q), attention.norm_k(k), v


class TokenCounter:
    """Counts the tokens of one stream that the embeddings of transformers make."""

    def __init__(self, *transformers: FAR) -> None:
        self._count = 0
        for transformer in transformers:
            for embedding in (transformer.fine_embedding, transformer.coarse_embedding):
                embedding.register_forward_hook(self._add)

    def _add(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._count += output.shape[1:-1].numel()

    def take(self) -> int:
        """Tokens since the last call."""
        count, self._count = self._count, 0
        return count


class Generator(Protocol):
    """What is measured."""

    def step_latents(self, action: Tensor, *, noise: Tensor) -> Tensor:
        """Generate the next frame."""


class Measured:
    """A generator with the cost of each of its frames; the noise and actions of frame i are the same for all."""

    def __init__(self, generator: Generator, config: FARConfig, counter: TokenCounter) -> None:
        self.generator = generator
        self.config = config
        self.counter = counter
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.tokens: list[int] = []
        self.latents: list[Tensor] = []

    def step(self) -> None:
        """Generate a frame."""
        config, index = self.config, len(self.latents)
        draw = torch.Generator().manual_seed(index)
        noise = torch.randn(1, config.latent_channels, config.latent_height, config.latent_width, generator=draw)
        action = torch.randint(config.num_actions, (1,), generator=draw)
        self.counter.take()
        began, cpu_began = time.perf_counter(), time.process_time()
        latents = self.generator.step_latents(action, noise=noise)
        self.seconds.append(time.perf_counter() - began)
        self.cpu_seconds.append(time.process_time() - cpu_began)
        self.tokens.append(self.counter.take())
        self.latents.append(latents)

    def row(self) -> dict[str, Any]:
        """The figures: the first frame by itself, then the others."""
        first, *steady = self.seconds
        return {
            "tokens_per_frame": statistics.median(self.tokens[1:]),
            "median_s": statistics.median(steady),
            "min_s": min(steady),
            "max_s": max(steady),
            "median_cpu_s": statistics.median(self.cpu_seconds[1:]),
            "first_frame_s": first,
            "first_frame_tokens": self.tokens[0],
        }


def random_world(config: FARConfig) -> WorldModel:
    """A world whose transformer has random weights, none of them zero; the autoencoder is a placeholder.

    Args:
        config: of the transformer; num_actions must not be 0.
    """
    autoencoder = AutoencoderConfig(
        latent_channels=config.latent_channels, widths=(4 * config.latent_channels,), encoder_blocks=(0,),
        decoder_blocks=(0,),
    )  # fmt: skip
    world = WorldModel(
        WorldConfig(
            name="random",
            model=config,
            autoencoder=autoencoder,
            vocabulary=ActionVocabulary(tuple(Action(name=str(index)) for index in range(config.num_actions))),
            frame_height=config.latent_height * autoencoder.compression,
            frame_width=config.latent_width * autoencoder.compression,
            frames_per_second=1.0,
        )
    )
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in world.transformer.named_parameters():
            if parameter.ndim == 2:
                std = 0.5 if name.startswith("action_embedding") else parameter.shape[1] ** -0.5
                parameter.normal_(std=std, generator=draw)
            else:
                parameter.normal_(mean=float("norm_" in name), std=0.1, generator=draw)
    return world.eval().requires_grad_(False)


def compare(
    world: WorldModel, modes: Sequence[Mode], *, num_steps: int, num_context: int, num_frames: int, packed: bool
) -> Iterator[dict[str, Any] | None]:
    """Measure the modes side by side.

    Args:
        world: see `random_world`.
        modes: without repetition.
        num_steps: Euler steps a frame.
        num_context: frames before the first generated one, at least 1.
        num_frames: frames that each mode generates after its first one.
        packed: our modes have packed linear layers, as worlds on a CPU do.

    Yields:
        None after each round of frames, num_frames + 1 times; then a row of figures for each mode.
    """
    config = world.config.model
    timesteps = flow.official_timesteps(num_steps)
    draw = torch.Generator().manual_seed(num_context)
    shape = (1, num_context, config.latent_channels, config.latent_height, config.latent_width)
    context = torch.randn(shape, generator=draw)
    produced_by = torch.randint(config.num_actions, shape[:2], generator=draw)
    capacity = max(num_context + num_frames + 1, config.short_term_frames)
    played = copy.deepcopy(world)
    if packed:
        pack_linears(played)
    counter = TokenCounter(world.transformer, played.transformer)
    measured: dict[Mode, Measured] = {}

    if "official" in modes:
        official = OfficialSchedule(world.transformer, timesteps)
        official.prime_latents(context, produced_by)
        measured["official"] = Measured(official, config, counter)
    anchored = Rollout(played, context_frames=capacity, layout="anchored", timesteps=timesteps)
    anchored.prime_latents(context, produced_by)
    measured["anchored"] = Measured(anchored, config, counter)
    for each in measured.values():
        each.step()
    if "sliding" in modes:
        sliding = Rollout(played, context_frames=capacity, layout="sliding", timesteps=timesteps)
        # The time of a frame does not depend on what it shows: the anchored past fills this cache, too.
        sliding.restore(dataclasses.replace(anchored.snapshot(), settings=sliding.settings))
        measured["sliding"] = Measured(sliding, config, counter)
        measured["sliding"].step()  # to warm up
    yield None

    for _ in range(num_frames):
        for mode in modes:
            measured[mode].step()
        yield None

    rows: dict[Mode, dict[str, Any]] = {mode: measured[mode].row() for mode in modes}
    for mode, row in rows.items():
        speed_up = difference = None
        if "official" in rows:
            speed_up = rows["official"]["median_s"] / row["median_s"]
        if mode == "sliding":  # the first frame has not encoded the context
            row["first_frame_s"] = row["first_frame_tokens"] = None
        if mode == "anchored" and "official" in rows:
            pairs = zip(measured["official"].latents, measured["anchored"].latents, strict=True)
            difference = max(float((theirs - ours).abs().max()) for theirs, ours in pairs)
        yield {
            "context": num_context, "steps": num_steps, "mode": mode, **row,
            "speed_up": speed_up, "max_abs_difference": difference,
        }  # fmt: skip


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print a Markdown table."""
    print("| context | steps | mode | tokens fed | s per frame (min–max) | × official | difference | first frame |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        speed_up = "" if row["speed_up"] is None else f"{row['speed_up']:.2f}"
        difference = "" if row["max_abs_difference"] is None else f"{row['max_abs_difference']:.1e}"
        first = ""
        if row["first_frame_s"] is not None:
            first = f"{row['first_frame_s']:.2f} s, {row['first_frame_tokens']} tokens"
        print(
            f"| {row['context']} | {row['steps']} | {row['mode']} | {row['tokens_per_frame']:g} "
            f"| {row['median_s']:.3f} ({row['min_s']:.3f}–{row['max_s']:.3f}) | {speed_up} | {difference} | {first} |"
        )


app = App(
    name="official_far.py",
    version_flags=(),
    result_action="return_value",
    help="Frame costs of the official FAR's schedule of work and of ours, on a CPU.",
)


@app.default
def official_far(
    *,
    steps: Annotated[tuple[int, ...], SEVERAL, Parameter(help="Euler steps a frame.")] = (4, 25),
    contexts: Annotated[tuple[int, ...], SEVERAL, Parameter(help="Frames before the first generated one.")] = CONTEXTS,
    frames: Annotated[int, Parameter(help="Frames to measure in each mode, after the first one.")] = 3,
    threads: Annotated[int | None, Parameter(help="That torch uses; its own choice without it.")] = None,
    modes: Annotated[tuple[Mode, ...], SEVERAL, Parameter(help="What to measure.")] = MODES,
    packed: Annotated[bool, Parameter(help="Our modes multiply with packed weights, as worlds on a CPU do.")] = True,
    json: Annotated[bool, Parameter(negative=(), help="Also print one JSON object, as the last line.")] = False,
) -> None:
    """Measure every context with every number of steps."""
    smallest = {"--steps": min(steps), "--contexts": min(contexts), "--frames": frames, "--threads": threads}
    for name, value in smallest.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    modes = tuple(dict.fromkeys(modes))
    if threads is not None:
        torch.set_num_threads(threads)
    world = random_world(FAR_B_LONG)
    rows: list[dict[str, Any]] = []
    with progress_bar("measuring", len(contexts) * len(steps) * (frames + 1), unit="rounds") as advance:
        for num_context in contexts:
            for num_steps in steps:
                sizes = {"num_steps": num_steps, "num_context": num_context, "num_frames": frames}
                for row in compare(world, modes, **sizes, packed=packed):
                    if row is None:
                        advance()
                    else:
                        rows.append(row)
    print_table(rows)
    publish(
        {
            "parameters": sum(parameter.numel() for parameter in world.transformer.parameters()),
            "dtype": str(world.transformer.velocity_head.weight.dtype).removeprefix("torch."),
            "frames": frames,
            "packed": packed,
            "measured": "transformer, all Euler steps; no decoder",
        },
        rows,
        device=world.device,
        json=json,
    )


if __name__ == "__main__":
    run(app)
