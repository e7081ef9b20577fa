"""Who sees whom, and from how far: masks, positions, and attention over whole clips.

One definition of what a token sees (`visible`) serves whole clips here and the cache in `farworld.models.kv_cache`.

Paper: FAR, arXiv:2503.19325, Secs. 3.2 and 3.3.

Shape letters: B batch, F frames, N tokens, Q queries, S keys, A attention heads, K width of one head.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ROPE_THETA = 10000.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Positions:
    """How attention knows the distance in time of two frames; rows and columns always rotate.

    The default is plain RoPE, which extrapolates beyond the trained length. Paper: FAR, Sec. 3.2 and Fig. 6.
    """

    frame_scale: float = 1.0  # of the frame index that rotates; 0 does not rotate by time at all
    slope: float = 0.0  # taken off an attention logit for each frame of distance
    slope_per_head: bool = False  # head h of A has slope · 2^(−8 (h + 1) / A)

    def __post_init__(self) -> None:
        if self.frame_scale < 0 or self.slope < 0:
            raise ValueError(f"frame_scale and slope must not be negative, got {self.frame_scale} and {self.slope}")

    @classmethod
    def flex_rope(cls, slope: float) -> Positions:
        """FlexRoPE: rotation plus one linear decay, the same for all heads."""
        return cls(slope=slope)

    @classmethod
    def interpolated(cls, *, trained_frames: int, num_frames: int) -> Positions:
        """Position interpolation (arXiv:2306.15595): num_frames are squeezed into the range of the trained ones."""
        return cls(frame_scale=min(1.0, trained_frames / num_frames))

    @classmethod
    def alibi(cls) -> Positions:
        """ALiBi (arXiv:2108.12409) in time: no rotation by frame, a linear decay that differs from head to head."""
        return cls(frame_scale=0.0, slope=1.0, slope_per_head=True)

    def head_slopes(self, num_heads: int) -> Tensor:
        """(A,), or (1,) if all heads have the same."""
        if not self.slope_per_head:
            return torch.tensor([float(self.slope)])
        return self.slope * 2.0 ** (-8 * torch.arange(1, num_heads + 1) / num_heads)


def visible(
    query_frame: Tensor, key_frame: Tensor, key_is_fine: Tensor, *, window: int | Tensor, first_fine: int | Tensor
) -> Tensor:
    """What a fine token sees: recent frames by their fine tokens, all earlier ones by their coarse tokens.

    A fine query of frame s sees fine keys of frames start … s and coarse keys of frames before start, with
    start = max(first_fine, s − window + 1). With at most `window` fine frames this is the anchored layout of
    the paper (Sec. 3.3); with more it slides along the clip, so that frames can be appended one by one and
    keys never change. Key frames below 0 are empty cache slots.

    Args:
        query_frame: (Q,), frame of each query; or the frame of one.
        key_frame: (S,), frame of each key; or the frame of one.
        key_is_fine: (S,), bool; or whether that one is.
        window: fine frames that a query sees, its own included.
        first_fine: the first frame that has fine tokens.

    Returns:
        (Q, S), bool; of one query and one key a scalar.
    """
    query = _column(query_frame)
    start = (query - window + 1).clamp(min=first_fine)
    fine = (key_frame >= start) & (key_frame <= query)
    coarse = (key_frame < start) & (key_frame >= 0)
    return torch.where(key_is_fine, fine, coarse)


def visible_coarse(query_frame: Tensor, key_frame: Tensor) -> Tensor:
    """What a coarse token sees: coarse tokens of its own and earlier frames; see `visible`."""
    return (key_frame <= _column(query_frame)) & (key_frame >= 0)


def _column(x: Tensor) -> Tensor:
    return x[:, None] if x.ndim else x


def attention_mask(
    seen: Tensor, query_frame: Tensor, key_frame: Tensor, positions: Positions, num_heads: int, dtype: torch.dtype
) -> Tensor:
    """What attention adds to its logits.

    Args:
        seen: (Q, S), bool, see `visible`.
        query_frame: (Q,), int64.
        key_frame: (S,), int64.
        positions: for the decay with distance.
        num_heads: A.
        dtype: of the queries.

    Returns:
        (1, 1 or A, Q, S), to be added to the logits; never bool, which attention would convert anew in every layer.
    """
    if not positions.slope:
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)[None, None]
    slopes = positions.head_slopes(num_heads).to(seen.device)[:, None, None]
    decay = slopes * (key_frame - query_frame[:, None])
    return decay.masked_fill(~seen, -torch.inf).to(dtype)[None]


class QKV(NamedTuple):
    """Queries, keys and values of one stream, each (B, A, N, K), queries and keys rotated."""

    q: Tensor
    k: Tensor
    v: Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention.

    Args:
        q: (B, A, Q, K).
        k: (B, A, S, K).
        v: (B, A, S, K).
        mask: added to the logits, see `attention_mask`.

    Returns:
        (B, A, Q, K).
    """
    if q.device.type in ("cpu", "cuda"):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    # Of few queries and keys that are views, as a cache has them, several releases' kernel for MPS makes garbage
    # (pytorch/pytorch#163597, #169222, #181133).
    logits = (q.contiguous() * q.shape[-1] ** -0.5) @ k.contiguous().transpose(-1, -2)
    return (logits if mask is None else logits + mask).softmax(dim=-1) @ v.contiguous()


class Attend(Protocol):
    """How the blocks attend: over a whole clip, or through a cache."""

    def __call__(self, layer: int, fine: QKV, coarse: QKV | None) -> tuple[Tensor, Tensor | None]:
        """Attention outputs (B, A, N, K) of the fine and the coarse queries; the former may be the last ones only."""


class ClipAttention:
    """Attention over a whole clip without a cache.

    The band of fine keys is narrow, so queries go in groups of frames, each against the keys that some query
    of the group can see; the result is that of one dense mask.
    """

    def __init__(
        self,
        *,
        window: int,
        fine_frames: range,
        coarse_frames: range,
        fine_tokens: int,
        coarse_tokens: int,
        positions: Positions,
        num_heads: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        """Prepare masks.

        Args:
            window: see `visible`.
            fine_frames: the frames that have fine tokens, in order.
            coarse_frames: those that have coarse tokens, from 0 on.
            fine_tokens: of a frame.
            coarse_tokens: of a frame.
            positions: see `attention_mask`, also for `num_heads` and `dtype`.
            num_heads: A.
            dtype: of the queries.
            device: of the queries.
        """
        first_fine = fine_frames.start
        # Larger groups waste work on masked pairs, smaller ones on calls, which are what a GPU waits for.
        group_frames = max(1, window // 2) if torch.device(device).type == "cpu" else max(1, len(fine_frames))

        def mask_of(seen: Tensor, query_frame: Tensor, key_frame: Tensor) -> Tensor:
            return attention_mask(seen, query_frame, key_frame, positions, num_heads, dtype).to(device)

        coarse_frame = frames_of(coarse_frames, coarse_tokens)
        self.coarse_mask = mask_of(visible_coarse(coarse_frame, coarse_frame), coarse_frame, coarse_frame)
        self.groups: list[tuple[slice, slice, slice, Tensor]] = []
        for low in range(first_fine, fine_frames.stop, group_frames):
            queries = range(low, min(low + group_frames, fine_frames.stop))
            fine = range(max(first_fine, low - window + 1), queries.stop)
            coarse = range(min(max(first_fine, low + group_frames - window), coarse_frames.stop))
            query_frame = frames_of(queries, fine_tokens)
            key_frame = torch.cat([frames_of(coarse, coarse_tokens), frames_of(fine, fine_tokens)])
            is_fine = torch.arange(len(key_frame)) >= len(coarse) * coarse_tokens
            seen = visible(query_frame, key_frame, is_fine, window=window, first_fine=first_fine)
            spans = (
                _span(queries, first_fine, fine_tokens),
                _span(fine, first_fine, fine_tokens),
                _span(coarse, 0, coarse_tokens),
            )
            self.groups.append((*spans, mask_of(seen, query_frame, key_frame)))

    def __call__(self, layer: int, fine: QKV, coarse: QKV | None) -> tuple[Tensor, Tensor | None]:
        """Attention of both streams; see `Attend`."""
        outputs = []
        for queries, fine_keys, coarse_keys, mask in self.groups:
            k, v = fine.k[:, :, fine_keys], fine.v[:, :, fine_keys]
            if coarse is not None:
                k = torch.cat([coarse.k[:, :, coarse_keys], k], dim=2)
                v = torch.cat([coarse.v[:, :, coarse_keys], v], dim=2)
            outputs.append(attend(fine.q[:, :, queries], k, v, mask))
        coarse_out = None
        if coarse is not None:
            coarse_out = attend(coarse.q, coarse.k, coarse.v, self.coarse_mask)
        return torch.cat(outputs, dim=2), coarse_out


def full_attention(layer: int, fine: QKV, coarse: QKV | None) -> tuple[Tensor, Tensor | None]:
    """Attention of every frame to every frame, as in Video-DiT; see `Attend`."""
    return attend(fine.q, fine.k, fine.v), None


def frames_of(frames: range, tokens: int) -> Tensor:
    """The frame of each token, int64, if each of the frames has so many."""
    return torch.arange(frames.start, frames.stop).repeat_interleave(tokens)


def _span(frames: range, first: int, tokens: int) -> slice:
    """The tokens of some frames on an axis that begins with frame `first`."""
    return slice((frames.start - first) * tokens, (frames.stop - first) * tokens)


def rope_table(
    frames: Sequence[int],
    rows: int,
    columns: int,
    stride: int,
    head_size: int,
    *,
    frame_scale: float = 1.0,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines of 3-D rotary positions, which `rotate` takes.

    A quarter of the head turns with the frame, the rest equally with row and column (16, 24, 24 of 64). Both channels
    of a pair have the same cosine; the sine of the first one is negative. Angles are computed in float64, so that a
    stream may run for millions of frames.

    Args:
        frames: F absolute frame indices.
        rows: tokens of a frame from top to bottom.
        columns: tokens of a frame from left to right.
        stride: distance of neighbouring tokens in fine tokens.
        head_size: K.
        frame_scale: see `Positions`.
        device: of the result.

    Returns:
        Two tensors (F · rows · columns, K), float32.
    """
    # On the CPU: not every accelerator knows float64.
    of_frame = _turns(np.asarray(frames, dtype=np.float64) * frame_scale, head_size // 4)
    of_place = _turns_of_grid(rows, columns, stride, head_size * 3 // 8)
    cos, sin = (
        np.concatenate([frame.repeat(len(place), axis=0), np.tile(place, (len(frames), 1))], axis=-1)
        for frame, place in zip(of_frame, of_place, strict=True)
    )
    return torch.from_numpy(cos).to(device), torch.from_numpy(sin).to(device)


def _turns(positions: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and signed sines, (N, size), float32, of positions (N,) along one axis."""
    angles = positions[:, None] * ROPE_THETA ** (-np.arange(0, size, 2) / size)
    sin = np.sin(angles)
    signed = np.stack([-sin, sin], axis=-1).reshape(len(positions), size)
    return np.cos(angles).repeat(2, axis=-1).astype(np.float32), signed.astype(np.float32)


@functools.lru_cache(maxsize=16)
def _turns_of_grid(rows: int, columns: int, stride: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """`_turns` of the places of a frame, (R · C, 2 size), by row and by column."""
    of_row, of_column = (_turns(np.arange(count) * float(stride), size) for count in (rows, columns))
    cos, sin = (
        np.concatenate([np.repeat(row, columns, axis=0), np.tile(column, (rows, 1))], axis=-1)
        for row, column in zip(of_row, of_column, strict=True)
    )
    return cos, sin


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate neighbouring channel pairs of (B, A, N, K) by the angles of `rope_table`."""
    cos, sin = rope
    exact = x.to(torch.promote_types(x.dtype, cos.dtype))
    swapped = exact.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return torch.addcmul(exact * cos, swapped, sin).to(x.dtype)
