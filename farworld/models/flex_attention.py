"""Attention over whole clips as one FlexAttention kernel, which skips what the mask leaves out; for training on CUDA.

Mask and decay are those of `farworld.models.attention`, computed inside the kernel from the frames of queries and keys.
Block masks are made once for each length of clips. On a CPU it is a slow reference without a backward pass.

Shape letters: Q queries, S keys, A attention heads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from farworld.models.attention import QKV, Positions, frames_of, visible, visible_coarse

MASKS_KEPT = 512  # of clip lengths


@dataclass(frozen=True, slots=True)
class _Pairs:
    """The pairs of queries and keys of one attention."""

    query_frame: Tensor  # (Q,), int32
    key_frame: Tensor  # (S,), int32
    mask: BlockMask


class FlexClipAttention:
    """What `farworld.models.attention.ClipAttention` computes, with the same arguments."""

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
        layout = window, fine_frames, coarse_frames, fine_tokens, coarse_tokens, torch.device(device)
        self._fine, self._coarse = _pairs(*layout)
        self._is_compiled = torch.device(device).type == "cuda"
        self._slopes = positions.head_slopes(num_heads).expand(num_heads).to(device) if positions.slope else None

    def __call__(self, layer: int, fine: QKV, coarse: QKV | None) -> tuple[Tensor, Tensor | None]:
        """Attention of both streams; see `farworld.models.attention.Attend`."""
        k, v, coarse_out = fine.k, fine.v, None
        if coarse is not None:
            k, v = torch.cat([coarse.k, k], dim=2), torch.cat([coarse.v, v], dim=2)
            coarse_out = self._attend(_of_coarse, coarse, self._coarse)
        return self._attend(_of_fine, QKV(fine.q, k, v), self._fine), coarse_out

    def _attend(self, kernel: Callable[..., Tensor], qkv: QKV, pairs: _Pairs | None) -> Tensor:
        assert pairs is not None
        decay = None if self._slopes is None else _decay(self._slopes, pairs.query_frame, pairs.key_frame)
        if self._is_compiled:
            kernel = _compiled(kernel)
        return kernel(*qkv, decay, pairs.mask)


def _of_fine(q: Tensor, k: Tensor, v: Tensor, decay: Any, mask: BlockMask) -> Tensor:
    return cast(Tensor, flex_attention(q, k, v, score_mod=decay, block_mask=mask))


def _of_coarse(q: Tensor, k: Tensor, v: Tensor, decay: Any, mask: BlockMask) -> Tensor:
    return cast(Tensor, flex_attention(q, k, v, score_mod=decay, block_mask=mask))


@functools.cache
def _compiled(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compiled once for all clip lengths; fine and coarse queries are functions of their own, with limits of theirs."""
    return torch.compile(kernel, dynamic=True)


def _decay(slopes: Tensor, query_frame: Tensor, key_frame: Tensor) -> Callable[..., Tensor]:
    """See `farworld.models.attention.attention_mask`."""

    def decayed(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + slopes[head] * (key_frame[key] - query_frame[query])

    return decayed


@functools.lru_cache(maxsize=MASKS_KEPT)
@torch.inference_mode(False)  # what is kept serves gradients as well
def _pairs(
    window: int, fine_frames: range, coarse_frames: range, fine_tokens: int, coarse_tokens: int, device: torch.device
) -> tuple[_Pairs, _Pairs | None]:
    """Of the fine queries with coarse keys, then fine ones; and of the coarse queries, if there are any."""
    fine = frames_of(fine_frames, fine_tokens).to(device, torch.int32)
    coarse = frames_of(coarse_frames, coarse_tokens).to(device, torch.int32)
    # Tensors, since a number would be compiled into the kernel, and differ from clip length to clip length.
    limits = (
        torch.tensor(min(window, fine_frames.stop), device=device, dtype=torch.int32),
        torch.tensor(fine_frames.start, device=device, dtype=torch.int32),
    )
    both, is_fine = torch.cat([coarse, fine]), torch.arange(len(coarse) + len(fine), device=device) >= len(coarse)
    of_fine = _masked(visible, fine, both, is_fine, *limits)
    return of_fine, _masked(_visible_coarse, coarse, coarse, is_fine, *limits) if len(coarse) else None


def _masked(
    sees: Callable[..., Tensor], query_frame: Tensor, key_frame: Tensor, is_fine: Tensor, window: Tensor, first: Tensor
) -> _Pairs:
    """The pairs that `sees` chooses; its function has the same variables for both streams, as the compiler expects."""

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return sees(query_frame[query], key_frame[key], is_fine[key], window=window, first_fine=first)

    shape = None, None, len(query_frame), len(key_frame)
    return _Pairs(query_frame, key_frame, create_block_mask(seen, *shape, device=str(is_fine.device)))


def _visible_coarse(query_frame: Tensor, key_frame: Tensor, *_: Tensor, **__: Tensor) -> Tensor:
    return visible_coarse(query_frame, key_frame)
