"""FAR and FAR-Long: a frame-autoregressive transformer over latent video.

- full attention inside a frame, causal across frames; every frame has its own timestep
  (not causal, with one timestep for all, it is the Video-DiT that the paper compares with);
- long short-term context: recent frames as fine tokens, all before them as few coarse tokens with their own
  attention projections;
- one definition of what a token sees, for whole clips and for the cache (`farworld.models.attention`);
- conditioned on the action that *produced* each frame, with a null action for the first frame and for guidance;
  a class label is an action that stays the same, and without either the model is unconditional;
- adaLN modulation computed once per frame, 3-D rotary positions absolute in the stream;
- optionally a copy gate (ours): what does not move is taken over from the frame before, so that it never melts;
- optionally told the size of the denoising step (shortcut models), for few steps a frame;
- context frames may be noised, at a level that the model is told.

Papers: FAR, arXiv:2503.19325, Sec. 3; shortcut forcing, Dreamer 4, arXiv:2509.24527, Sec. 3.2.

Shape letters: B batch, F frames, C latent channels, H W latent height and width, P tokens of one frame,
N tokens, D model width, A attention heads, K width of one head.
"""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from farworld.models.attention import QKV, Attend, ClipAttention, Positions, full_attention, rope_table, rotate

# Marks of clean frames, on the timestep embedding's 0–1000 scale (flow time is 0–1); see `context_mark`.
CLEAN_SHORT_TERM = -1.0
CLEAN_LONG_TERM = -2.0
TIMESTEP_SCALE = 1000.0
TIMESTEP_FEATURES = 256
UNBOUNDED = 1 << 40  # frames
COPY_TIMESTEP_MIN = 0.2  # flow time; the velocity towards another frame grows as 1 / t
COPY_STRETCH = 0.1
ATTENTION, MLP = 0, 1  # the halves of a block
COPY_BIAS = -2.0  # of the copy gate's logits at the start: copy little, until it is learned where


@dataclass(frozen=True, kw_only=True, slots=True)
class FARConfig:
    """Sizes of a FAR model; sizes of latents in latent pixels, windows in frames."""

    latent_channels: int
    latent_height: int
    latent_width: int
    num_actions: int  # or classes of labels; 0 is unconditional
    num_layers: int
    num_heads: int
    head_size: int = 64
    mlp_ratio: int = 4
    patch_size: int = 1
    context_patch_size: int | None = 4  # None: no long-term stream, every frame is fine (FAR as opposed to FAR-Long)
    short_term_frames: int = 8  # without a long-term stream: the trained length
    copy_gate: bool = False
    coarse_output: bool = False  # coarse tokens have an output as well, as in the official weights; nothing needs it
    positions: Positions = field(default_factory=Positions)
    causal: bool = True  # False: every frame sees every other, as in Video-DiT
    shortcut_steps: int | None = None  # steps of the finest step size that the model is told; None: it is told none

    def __post_init__(self) -> None:
        for name in ("latent_channels", "latent_height", "latent_width", "num_layers", "num_heads", "mlp_ratio",
                     "patch_size", "context_patch_size", "short_term_frames"):  # fmt: skip
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_actions < 0:
            raise ValueError(f"num_actions must not be negative (0 is unconditional), got {self.num_actions}")
        for name in ("patch_size", "context_patch_size"):
            patch = getattr(self, name)
            if patch and (self.latent_height % patch or self.latent_width % patch):
                raise ValueError(
                    f"{name} must divide the latent size {self.latent_height}×{self.latent_width}, got {patch}"
                )
        if self.context_patch_size and self.context_patch_size % self.patch_size:
            raise ValueError(
                f"context_patch_size must be a multiple of patch_size {self.patch_size}, got {self.context_patch_size}"
            )
        if not self.causal and (self.context_patch_size or self.copy_gate):
            raise ValueError("causal=False (Video-DiT) needs context_patch_size=None and copy_gate=False")
        if self.shortcut_steps is not None and (self.shortcut_steps < 2 or self.shortcut_steps.bit_count() != 1):
            raise ValueError(f"shortcut_steps must be a power of two from 2 up, or None, got {self.shortcut_steps}")
        if self.shortcut_steps and not self.causal:
            raise ValueError("shortcut_steps needs causal=True: Video-DiT is a baseline, in many steps")
        if self.head_size % 16:
            raise ValueError(f"head_size must be a multiple of 16 for 3-D RoPE, got {self.head_size}")

    @property
    def width(self) -> int:
        """Model width D."""
        return self.num_heads * self.head_size

    @property
    def window(self) -> int:
        """Frames that a fine token sees by fine tokens, its own included."""
        return self.short_term_frames if self.context_patch_size else UNBOUNDED

    @property
    def null_action(self) -> int:
        """Index of the null action: of the first frame, and for guidance."""
        return self.num_actions

    @property
    def fine_tokens(self) -> int:
        """Fine tokens of one frame."""
        return self.latent_height * self.latent_width // self.patch_size**2

    @property
    def coarse_tokens(self) -> int:
        """Coarse tokens of one frame."""
        return self.latent_height * self.latent_width // self.context_patch_size**2 if self.context_patch_size else 0


Level = TypeVar("Level", float, Tensor)
# What timestep, action and step size of some frames make of them: for each block its two shifts, scales and gates,
# (B, F, 6 D), then scale and shift before the heads, (B, F, 2 D).
Modulations = tuple[Tensor, ...]
# Their source, from timestep, (B, F) or broadcast to it, action, (B, F), and step size: `FAR.modulations`, or a table.
Modulate = Callable[[Tensor, Tensor, Tensor | None], Modulations]


@dataclass(frozen=True, slots=True)
class Frames:
    """Some frames of a stream, as they enter the transformer."""

    latents: Tensor  # (B, F, C, H, W), scaled
    timestep: Tensor  # (B, F), or broadcast to it, on the embedding's scale, or the mark of a context frame
    action: Tensor  # (B, F), int64
    index: Sequence[int]  # of each, absolute in the stream; in a clip a range
    step_size: Tensor | None = None  # as timestep, flow time, see `FAR.forward`; context frames have none
    rope: tuple[Tensor, Tensor] | None = None  # see `FAR.rope`; None follows from the index


class Stream(NamedTuple):  # and no dataclass: FSDP looks for tensors in tuples
    """The fine or the coarse tokens of some frames, as they enter a block."""

    tokens: Tensor  # (B, F, P, D)
    modulation: Tensor  # (B, F, 6 D), the block's, of its frames
    rope: tuple[Tensor, Tensor]  # of all F · P tokens, see rope_table

    def last(self, frames: int) -> Stream:
        """The last frames; the positions stay those of all, which only attention reads."""
        return Stream(self.tokens[:, -frames:], self.modulation[:, -frames:], self.rope)


@dataclass(frozen=True, slots=True)
class Embedded:
    """The fine or the coarse stream before the first block, with what all blocks need of it; see `Stream`."""

    tokens: Tensor  # (B, F, P, D)
    modulations: Modulations  # of its frames
    rope: tuple[Tensor, Tensor]  # of all F · P tokens


class TimestepEmbedding(nn.Module):
    """Sinusoidal features of a timestep (0–1000 scale, or a clean mark), then a two-layer MLP."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.empty(TIMESTEP_FEATURES // 2), persistent=False)
        self.reset_buffers()
        self.linear_1 = nn.Linear(TIMESTEP_FEATURES, width)
        self.linear_2 = nn.Linear(width, width)

    def reset_buffers(self) -> None:
        """Fill the buffers that are computed and not stored; bit for bit the same on every machine."""
        # A timestep of 1000 makes a visible angle of the last bit of a frequency, and float32 exp rounds it
        # differently on different CPUs: hence float64, and by name the two near-ties that the official
        # implementation was found to round the other way.
        exponent = -math.log(10000.0) * torch.arange(TIMESTEP_FEATURES // 2) / (TIMESTEP_FEATURES // 2 - 1)
        frequencies = exponent.double().exp().float()
        for index, direction in ((10, 1.0), (52, 0.0)):
            frequencies[index] = torch.nextafter(frequencies[index], torch.tensor(direction))
        self.frequencies.copy_(frequencies)

    def forward(self, timestep: Tensor) -> Tensor:
        """Embed (B, F) as (B, F, D)."""
        angles = timestep.float()[..., None] * self.frequencies
        return self.linear_2(F.silu(self.linear_1(torch.cat([angles.cos(), angles.sin()], dim=-1))))


class StreamAttention(nn.Module):
    """The attention projections of one stream: q, k, v, the norms of q and k, and the output."""

    def __init__(self, width: int, head_size: int, *, has_output: bool = True) -> None:
        super().__init__()
        self.head_size = head_size
        self.qkv = nn.Linear(width, 3 * width)
        self.norm_q = nn.RMSNorm(head_size, eps=1e-6)
        self.norm_k = nn.RMSNorm(head_size, eps=1e-6)
        self.output = nn.Linear(width, width) if has_output else None

    def project(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> QKV:
        """(B, F, P, D) to rotated queries and keys, and values."""
        q, k, v = rearrange(self.qkv(x), "b f p (s a k) -> s b a (f p) k", s=3, k=self.head_size)
        return QKV(rotate(_head_norm(q, self.norm_q), rope), rotate(_head_norm(k, self.norm_k), rope), v)

    def merge(self, x: Tensor, like: Tensor) -> Tensor:
        """Heads (B, A, F · P, K), through the output projection if any, to the shape of `like`, (B, F, P, D)."""
        merged = rearrange(x, "b a (f p) k -> b f p (a k)", f=like.shape[1])
        return merged if self.output is None else self.output(merged)


class Block(nn.Module):
    """One transformer block; both streams share modulation and MLP, each has its own attention projections.

    The last block has no output projection of the coarse stream, and reads it only as keys and values unless the
    model has a coarse output.
    """

    def __init__(self, config: FARConfig, layer: int) -> None:
        super().__init__()
        width = config.width
        self.layer = layer
        self.modulation_1 = nn.Linear(width, 3 * width)
        self.modulation_2 = nn.Linear(width, 3 * width)
        self.fine_attention = StreamAttention(width, config.head_size)
        is_last = layer == config.num_layers - 1
        self.coarse_goes_on = config.coarse_output or not is_last
        if config.context_patch_size:
            self.coarse_attention = StreamAttention(width, config.head_size, has_output=not is_last)
        self.mlp = nn.Sequential(
            nn.Linear(width, config.mlp_ratio * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.mlp_ratio * width, width),
        )

    def modulation(self, condition: Tensor) -> Tensor:
        """Two shifts, scales and gates, (B, F, 6 D), from the condition of each frame, (B, F, D)."""
        return torch.cat([self.modulation_1(condition), self.modulation_2(condition)], dim=-1)

    def forward(
        self, fine: Stream, coarse: Stream | None, attend: Attend, num_outputs: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The tokens of both streams behind this block.

        With num_outputs, of the fine ones only those of that many frames, the last ones.
        """
        fine_qkv = self.project(self.fine_attention, fine)
        if num_outputs is not None:  # the other frames are only seen
            fine = fine.last(num_outputs)
            fine_qkv = QKV(fine_qkv.q[:, :, -num_outputs * fine.tokens.shape[2] :], fine_qkv.k, fine_qkv.v)
        if coarse is None:
            fine_out, _ = attend(self.layer, fine_qkv, None)
            return self.finish(self.fine_attention, fine, fine_out), None
        coarse_tokens, coarse_qkv = coarse.tokens, self.project(self.coarse_attention, coarse)
        fine_out, coarse_out = attend(self.layer, fine_qkv, coarse_qkv)
        if coarse_out is not None and self.coarse_goes_on:
            coarse_tokens = self.finish(self.coarse_attention, coarse, coarse_out)
        return self.finish(self.fine_attention, fine, fine_out), coarse_tokens

    def project(self, attention: StreamAttention, stream: Stream) -> QKV:
        """What is before attention: one stream's tokens, normed, shifted and scaled, to queries, keys and values."""
        return attention.project(_normed(stream.tokens, stream.modulation, ATTENTION), stream.rope)

    def finish(self, attention: StreamAttention, stream: Stream, attended: Tensor) -> Tensor:
        """What is behind attention: the stream's tokens with attention's output, (B, A, N, K), then the MLP's."""
        tokens, modulation, _ = stream
        tokens = _added(tokens, modulation, ATTENTION, attention.merge(attended, tokens))
        return _added(tokens, modulation, MLP, self.mlp(_normed(tokens, modulation, MLP)))


def _parts(modulation: Tensor, half: int) -> tuple[Tensor, ...]:
    """Shift, scale and gate of half a block, each (B, F, 1, D)."""
    return modulation.unsqueeze(2).chunk(6, dim=-1)[3 * half : 3 * half + 3]


def _normed(tokens: Tensor, modulation: Tensor, half: int) -> Tensor:
    """What a half of a block reads: tokens normed, shifted and scaled, (B, F, P, D)."""
    shift, scale, _ = _parts(modulation, half)
    return torch.addcmul(shift, _norm(tokens), 1 + scale)


def _added(tokens: Tensor, modulation: Tensor, half: int, change: Tensor) -> Tensor:
    """Tokens with what that half of a block makes of them added through its gate."""
    *_, gate = _parts(modulation, half)
    return torch.addcmul(tokens, gate, change)


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def _head_norm(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """RMS norm over each head's channels, in x's own dtype: mixed ones miss the fused kernel."""
    return F.rms_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.eps)


def _stretched(gate: Tensor) -> Tensor:
    """A sigmoid's (0, 1) widened by COPY_STRETCH at both ends and cut, so that a gate can be open and shut entirely.

    The hard concrete gate without its noise, arXiv:1712.01312.
    """
    return (gate * (1 + 2 * COPY_STRETCH) - COPY_STRETCH).clamp(0.0, 1.0)


def _mix_in_copy(
    velocity: Tensor, gate: Tensor, frames: Frames, before: Tensor, shortest_time: float = COPY_TIMESTEP_MIN
) -> Tensor:
    """Mix the velocity of each frame with the one that leads to the context frame before it.

    A network that must redraw all that stands still repeats its small errors frame after frame, until the picture
    melts. At gate 1 the frame before is reached exactly, from any number of steps down to `shortest_time`.

    Args:
        velocity: (B, N, C, H, W), of the network, for the last N of the frames.
        gate: (B, N, 1, H, W), in [0, 1].
        frames: the network's input; only frames that are marked as context can be copied.
        before: (B, N, C, H, W), the frame before each of the last N, without noise.
        shortest_time: flow time; from below it the frame before is approached no faster.

    Returns:
        (B, N, C, H, W).
    """
    outputs = slice(frames.latents.shape[1] - velocity.shape[1], None)
    timestep = frames.timestep.expand(frames.latents.shape[:2])
    is_first = torch.full_like(timestep[:, :1], frames.index[0] == 0, dtype=torch.bool)
    has_source = torch.cat([~is_first, timestep[:, :-1] < 0], dim=1)
    gate = gate * has_source[:, outputs, None, None, None]
    t = (timestep[:, outputs] / TIMESTEP_SCALE).clamp(min=shortest_time)[..., None, None, None]
    return torch.lerp(velocity, (frames.latents[:, outputs] - before) / t, gate.expand_as(velocity))


class FAR(nn.Module):
    """FAR-Long: predicts the velocity of noisy frames from fine recent and coarse earlier frames."""

    def __init__(self, config: FARConfig) -> None:
        super().__init__()
        self.config = config
        # Set by who trains.
        self.recompute = False  # trade time for memory: blocks run again in the backward pass
        self.clip_attention: Callable[..., Attend] = ClipAttention  # or FlexClipAttention
        width, channels = config.width, config.latent_channels
        self.fine_embedding = nn.Linear(channels * config.patch_size**2, width)
        if config.context_patch_size:
            self.coarse_embedding = nn.Linear(channels * config.context_patch_size**2, width)
        self.timestep_embedding = TimestepEmbedding(width)
        self.action_embedding = nn.Embedding(config.num_actions + 1, width) if config.num_actions else None
        # One row for each power of two of steps: 1, 2, … shortcut_steps.
        self.step_embedding = nn.Embedding(config.shortcut_steps.bit_length(), width) if config.shortcut_steps else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.final_modulation = nn.Linear(width, 2 * width)
        self.velocity_head = nn.Linear(width, channels * config.patch_size**2)
        self.copy_head = nn.Linear(width, config.patch_size**2) if config.copy_gate else None
        self.coarse_head: nn.Linear | None = None
        if config.coarse_output and config.context_patch_size:
            self.coarse_head = nn.Linear(width, channels * config.context_patch_size**2)
        self._initialise()

    def _initialise(self) -> None:
        """Xavier matrices; modulations and heads start at zero, so that each block starts as the identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        # A quiet start hides the action behind the timestep: with 0.02 small models take many times longer to heed it.
        if self.action_embedding is not None:
            nn.init.normal_(self.action_embedding.weight, std=0.5)
        if self.step_embedding is not None:  # a trained model goes on as it was before it was told
            nn.init.zeros_(self.step_embedding.weight)
        nn.init.normal_(self.timestep_embedding.linear_1.weight, std=0.02)
        nn.init.normal_(self.timestep_embedding.linear_2.weight, std=0.02)
        for name, parameter in self.named_parameters():
            if "modulation" in name or "_head" in name:
                nn.init.zeros_(parameter)
        if self.copy_head is not None:
            nn.init.constant_(self.copy_head.bias, COPY_BIAS)

    def compile_blocks(self) -> None:
        """Compile all of the blocks but attention itself, once for all blocks and clip lengths; names stay as they are.

        What runs takes a while to start, and then less time and memory. A copy that is made later is compiled as well.
        """
        for name in ("project", "finish"):
            compiled = torch.compile(getattr(Block, name), dynamic=True)
            for block in self.blocks:
                setattr(block, name, types.MethodType(compiled, block))

    def forward(
        self,
        noisy: Tensor,
        timestep: Tensor,
        action: Tensor | None,
        context: Tensor | None,
        *,
        step_size: Tensor | None = None,
        context_timestep: Tensor | None = None,
        before: Tensor | None = None,
    ) -> Tensor:
        """Velocities of the last F frames of a clip of T frames.

        Args:
            noisy: (B, F, C, H, W), scaled latents of the clip's last F frames, noised to `timestep`.
            timestep: (B, F), flow time in [0, 1] times 1000, or the mark of a context frame: CLEAN_SHORT_TERM for a
                clean one, see `context_mark`.
            action: (B, T), int64, the action that produced each frame of the clip; null_action if none. An
                unconditional model does not read it: None is a clip of F + L frames.
            context: (B, L, C, H, W), clean scaled latents of the clip's first L frames, seen by their coarse
                tokens; L must be at least T − F and T − short_term_frames. None if L is 0.
            step_size: (B, F), flow time, a power of two from 1 / shortcut_steps to 1: the mean velocity over a step
                of this size is wanted. Only read by models with shortcut_steps, for frames that are no context; None
                is the finest.
            context_timestep: (B, L), marks of `context`; None is CLEAN_LONG_TERM.
            before: (B, F, C, H, W), the frame before each of the last F, without noise, for the copy gate; None takes
                them from `noisy` and `context`, which is right if context is clean.

        Returns:
            (B, F, C, H, W), noise − data; with `coarse_output` (B, L + F, C, H, W), the coarse frames first.

        Raises:
            ValueError: shapes that don't fit together.
        """
        config = self.config
        num_fine, num_coarse = noisy.shape[1], 0 if context is None else context.shape[1]
        if action is None:
            action = torch.zeros((noisy.shape[0], num_coarse + num_fine), dtype=torch.int64, device=noisy.device)
        num_frames = action.shape[1]
        needed = max(num_frames - num_fine, num_frames - config.window)
        if num_coarse and config.context_patch_size is None:
            raise ValueError("a model without a long-term stream takes no context; give all frames as fine ones")
        if num_fine > num_frames or needed > num_coarse:
            raise ValueError(
                f"a clip of {num_frames} frames with {num_fine} fine ones needs between 1 and {num_frames} fine "
                f"frames and at least {max(needed, 0)} context frames, got {num_coarse}"
            )
        first = num_frames - num_fine
        fine = Frames(noisy, timestep, action[:, first:], range(first, num_frames), step_size)
        coarse = None
        if context is not None:
            coarse = context_frames(context, action[:, :num_coarse], range(num_coarse), context_timestep)
        attend = full_attention
        if config.causal:
            attend = self._clip_attention(noisy, range(first, num_frames), range(num_coarse))
        if before is None:
            oldest = torch.zeros_like(noisy[:, :1]) if context is None or not first else context[:, first - 1 : first]
            before = torch.cat([oldest, noisy[:, :-1]], dim=1)
        return self.run(fine, coarse, attend, before=before)

    def _clip_attention(self, latents: Tensor, fine: range, coarse: range) -> Attend:
        config, device = self.config, latents.device
        is_mixed = torch.is_autocast_enabled(device.type)
        return self.clip_attention(
            window=config.window,
            fine_frames=fine,
            coarse_frames=coarse,
            fine_tokens=config.fine_tokens,
            coarse_tokens=config.coarse_tokens,
            positions=config.positions,
            num_heads=config.num_heads,
            dtype=torch.get_autocast_dtype(device.type) if is_mixed else latents.dtype,
            device=device,
        )

    def run(
        self,
        fine: Frames,
        coarse: Frames | None,
        attend: Attend,
        *,
        before: Tensor | None = None,
        num_outputs: int | None = None,
        modulate: Modulate | None = None,
    ) -> Tensor:
        """Both streams through all blocks, attending as `attend` does: over a clip or through a cache.

        Args:
            fine: frames that get fine tokens.
            coarse: frames that get coarse tokens, see `context_frames`.
            attend: see `Attend`.
            before: (B, N, C, H, W), the frame before each frame that has a velocity, without noise, whatever stands
                in for a stream's first one. Only the copy gate reads it; None keeps the gate shut.
            num_outputs: how many of the last fine frames have a velocity; None is all of them.
            modulate: where modulations come from; None computes them.

        Returns:
            As `forward`.
        """
        fine_in, coarse_in = self.embed(fine, coarse, modulate)
        tokens, coarse_tokens = self.through_blocks(fine_in, coarse_in, attend, num_outputs)
        velocity = self.read_out(*self.heads(tokens, fine_in.modulations[-1]), fine, before)
        config = self.config
        if coarse_tokens is not None and coarse_in and self.coarse_head is not None and config.context_patch_size:
            coarse_velocity = self.coarse_head(_final(coarse_tokens, coarse_in.modulations[-1]))
            velocity = torch.cat([_unpatchify(coarse_velocity, config, config.context_patch_size), velocity], dim=1)
        return velocity

    def embed(self, fine: Frames, coarse: Frames | None, modulate: Modulate | None) -> tuple[Embedded, Embedded | None]:
        """Both streams as they come to the blocks; see `run`."""
        config, modulate = self.config, modulate or self.modulations
        coarse_in = None
        if coarse is not None and config.context_patch_size:
            coarse_in = self._embed(coarse, self.coarse_embedding, config.context_patch_size, modulate)
        return self._embed(fine, self.fine_embedding, config.patch_size, modulate), coarse_in

    def through_blocks(
        self, fine: Embedded, coarse: Embedded | None, attend: Attend, num_outputs: int | None
    ) -> tuple[Tensor, Tensor | None]:
        """The tokens of both streams behind the last block, of the fine one those of num_outputs frames; see `run`."""
        tokens, coarse_tokens = fine.tokens, None if coarse is None else coarse.tokens
        for layer, block in enumerate(self.blocks):
            outputs = num_outputs if block is self.blocks[-1] else None
            run_block: Callable = block
            if self.recompute and torch.is_grad_enabled():
                run_block = functools.partial(checkpoint, block, use_reentrant=False)
            coarse_stream = None
            if coarse is not None and coarse_tokens is not None:
                coarse_stream = Stream(coarse_tokens, coarse.modulations[layer], coarse.rope)
            fine_stream = Stream(tokens, fine.modulations[layer], fine.rope)
            tokens, coarse_tokens = run_block(fine_stream, coarse_stream, attend, outputs)
        return tokens, coarse_tokens

    def heads(self, tokens: Tensor, modulation: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the heads say of each fine token: velocity, and the copy gate's logits, if there is one.

        Args:
            tokens: (B, N, P, D), behind the blocks, of the last N of F frames.
            modulation: (B, F, 2 D), the last one.
        """
        tokens = _final(tokens, modulation)
        return self.velocity_head(tokens), None if self.copy_head is None else self.copy_head(tokens)

    def read_out(self, velocity: Tensor, copy: Tensor | None, fine: Frames, before: Tensor | None) -> Tensor:
        """What `heads` say, as velocities of the last frames, (B, N, C, H, W), with the frames before mixed in."""
        config = self.config
        velocity = _unpatchify(velocity, config, config.patch_size)
        if copy is None or before is None:
            return velocity
        gate = _stretched(_unpatchify(copy, config, config.patch_size).float().sigmoid())
        shortest = min(COPY_TIMESTEP_MIN, 1 / (config.shortcut_steps or 1))
        return _mix_in_copy(velocity.float(), gate, fine, before, shortest)

    def modulations(self, timestep: Tensor, action: Tensor, step_size: Tensor | None = None) -> Modulations:
        """See `Modulations`; timestep and step_size (B, F) or broadcast to it, action (B, F)."""
        condition = self.timestep_embedding(timestep)
        if self.step_embedding is not None:
            condition = condition + self._step_condition(self.step_embedding.weight, timestep, step_size)
        if self.action_embedding is not None:
            condition = condition + self.action_embedding(action)
        condition = F.silu(condition)
        blocks = cast(Iterable[Block], self.blocks)
        return *(block.modulation(condition) for block in blocks), self.final_modulation(condition)

    @staticmethod
    def _step_condition(rows: Tensor, timestep: Tensor, step_size: Tensor | None) -> Tensor:
        """The row of each frame's step size, (B, F, D); context frames take no step and get zeros."""
        if step_size is None:
            step_size = torch.full_like(timestep, 0.5 ** (len(rows) - 1))
        level = (-torch.log2(step_size)).round().long()
        return F.embedding(level, rows) * (timestep >= 0)[..., None]

    def _embed(self, frames: Frames, embedding: nn.Module, patch: int, modulate: Modulate) -> Embedded:
        rope = frames.rope or self.rope(frames.index, patch, device=frames.latents.device)
        modulations = modulate(frames.timestep, frames.action, frames.step_size)
        return Embedded(embedding(patchify(frames.latents, patch).to(modulations[0].dtype)), modulations, rope)

    def rope(self, index: Sequence[int], patch: int, *, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """See `farworld.models.attention.rope_table`, of frames in patches of this size."""
        config = self.config
        return rope_table(
            index, config.latent_height // patch, config.latent_width // patch, patch // config.patch_size,
            config.head_size, frame_scale=config.positions.frame_scale, device=device,
        )  # fmt: skip


def _final(tokens: Tensor, modulation: Tensor) -> Tensor:
    """Tokens (B, N, P, D), normed and modulated for the heads; modulation (B, F, 2 D), of which the last N count."""
    scale, shift = modulation[:, -tokens.shape[1] :].unsqueeze(2).chunk(2, dim=-1)
    return torch.addcmul(shift, _norm(tokens), 1 + scale)


def context_mark(mark: float, noise_level: Level) -> Level:
    """What a context frame has in place of a timestep: a clean frame's mark, lowered by its noise.

    Below zero like the marks, so that a slightly noised context frame is not taken for one that is to be denoised.

    Args:
        mark: CLEAN_SHORT_TERM or CLEAN_LONG_TERM.
        noise_level: flow time, 0 is clean.
    """
    return mark - noise_level * TIMESTEP_SCALE


def context_frames(latents: Tensor, action: Tensor, index: Sequence[int], timestep: Tensor | None = None) -> Frames:
    """Frames of the long-term stream, which are always context; see `Frames`. Without marks they are clean."""
    if timestep is None:
        timestep = torch.full((1, 1), CLEAN_LONG_TERM, device=latents.device)
    return Frames(latents, timestep, action, index)


def patchify(latents: Tensor, patch: int) -> Tensor:
    """(B, F, C, H, W) to one token per patch, (B, F, P, C · patch²), channels slowest."""
    return rearrange(latents, "b f c (h i) (w j) -> b f (h w) (c i j)", i=patch, j=patch)


def _unpatchify(tokens: Tensor, config: FARConfig, patch: int) -> Tensor:
    """The inverse of `patchify`, with any number of channels."""
    rows = config.latent_height // patch
    return rearrange(tokens, "b f (h w) (c i j) -> b f c (h i) (w j)", h=rows, i=patch, j=patch)
