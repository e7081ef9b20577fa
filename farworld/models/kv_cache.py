"""The key-value cache of a stream: fixed rings for coarse and for fine frames, and one scratch frame.

It serves both layouts of long short-term attention: in the sliding one a frame is written once, in the anchored
one the fine ring is written anew for each frame.

Storage is allocated once. Slots hold whole frames; `frame_of_slot` says which, −1 if none, and the mask
follows from it by the same `visible` that training uses. The rollout loop says what is written where.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from farworld.models.attention import QKV, attention_mask, visible, visible_coarse
from farworld.models.far import FARConfig

EMPTY = -1
GROUP_FRAMES = 2  # frames whose queries attend together; more see more keys in vain, fewer are more calls


class KVCache:
    """Keys (rotated, absolute positions) and values of all layers, for B streams in step.

    The token axis is [coarse ring | fine ring | scratch]: what the context needs beyond the model's short-term
    window in coarse frames, the window in fine frames, and the frame that is being denoised. Without a long-term
    stream the whole context is in the fine ring.
    """

    def __init__(
        self,
        config: FARConfig,
        *,
        batch_size: int,
        context_frames: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Allocate an empty cache for context_frames past frames; its size depends on nothing that happens later."""
        self.config = config
        # The window counts the frame to come, so that the oldest of `window` past frames is seen coarse.
        self.long_term_frames = context_frames - config.short_term_frames + 1 if config.context_patch_size else 0
        self.short_term_frames = config.short_term_frames if config.context_patch_size else context_frames
        fine_slots = self.short_term_frames + 1
        self.coarse_length = self.long_term_frames * config.coarse_tokens
        length = self.coarse_length + fine_slots * config.fine_tokens
        shape = (config.num_layers, batch_size, config.num_heads, length, config.head_size)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.frame_of_slot = torch.full((self.long_term_frames + fine_slots,), EMPTY, device=device)
        self._tokens_of_slot = torch.tensor(
            [config.coarse_tokens] * self.long_term_frames + [config.fine_tokens] * fine_slots, device=device
        )
        self.key_is_fine = torch.arange(length, device=device) >= self.coarse_length

    @property
    def num_bytes(self) -> int:
        """Memory held, in bytes."""
        return 2 * self.keys.numel() * self.keys.element_size()

    @property
    def scratch_slot(self) -> int:
        """The slot of the frame that is being denoised."""
        return len(self.frame_of_slot) - 1

    def fine_slot(self, frame: int) -> int:
        """Where a finished frame's fine tokens live."""
        return self.long_term_frames + frame % self.short_term_frames

    def coarse_slot(self, frame: int) -> int:
        """Where a frame's coarse tokens live."""
        return frame % self.long_term_frames

    def reset(self) -> None:
        """Forget everything; storage stays."""
        self.frame_of_slot.fill_(EMPTY)
        self.keys.zero_()  # what is masked counts zero times, which would not forget a NaN
        self.values.zero_()

    def key_frame(self) -> Tensor:
        """(S,), the frame of each key, EMPTY where there is none."""
        return self.frame_of_slot.repeat_interleave(self._tokens_of_slot)

    def token_range(self, slot: int) -> slice:
        """The tokens of a slot on the token axis."""
        coarse, fine = self.config.coarse_tokens, self.config.fine_tokens
        if slot < self.long_term_frames:
            return slice(slot * coarse, (slot + 1) * coarse)
        start = self.coarse_length + (slot - self.long_term_frames) * fine
        return slice(start, start + fine)


class CachedAttention:
    """Attention of a few new frames over everything in the cache; stores the new keys and values first."""

    def __init__(
        self,
        cache: KVCache,
        *,
        fine_frames: list[int],
        fine_slots: list[int],
        coarse_frames: list[int],
        first_fine: int = 0,
    ) -> None:
        """Claim slots for the new frames.

        Args:
            cache: whose slots are overwritten.
            fine_frames: absolute index of each new frame with fine tokens.
            fine_slots: where their keys and values go.
            coarse_frames: absolute index of each new frame with coarse tokens; they go to their ring slots.
            first_fine: see `farworld.models.attention.visible`; 0 in the sliding layout.
        """
        self.cache = cache
        coarse_slots = [cache.coarse_slot(frame) for frame in coarse_frames]
        for frame, slot in zip(coarse_frames + fine_frames, coarse_slots + fine_slots, strict=True):
            cache.frame_of_slot[slot] = frame
        self.fine_ranges = [cache.token_range(slot) for slot in fine_slots]
        self.coarse_ranges = [cache.token_range(slot) for slot in coarse_slots]
        config, device = cache.config, cache.keys.device
        heads, dtype = config.num_heads, cache.keys.dtype
        key_frame = cache.key_frame()
        fine_query = torch.tensor(fine_frames, device=device).repeat_interleave(config.fine_tokens)
        seen = visible(fine_query, key_frame, cache.key_is_fine, window=config.window, first_fine=first_fine)
        self.num_queries = len(fine_query)
        self.groups: list[tuple[slice, int, Tensor | None]] = []
        for start in range(0, self.num_queries, GROUP_FRAMES * config.fine_tokens):
            queries = slice(start, min(start + GROUP_FRAMES * config.fine_tokens, self.num_queries))
            stop = int(seen[queries].any(dim=0).nonzero()[-1]) + 1
            mask = None
            if config.positions.slope or not seen[queries, :stop].all():
                group = (seen[queries, :stop], fine_query[queries], key_frame[:stop])
                mask = attention_mask(*group, config.positions, heads, dtype)
            self.groups.append((queries, stop, mask))
        coarse_query = torch.tensor(coarse_frames, device=device, dtype=torch.int64)
        coarse_query = coarse_query.repeat_interleave(config.coarse_tokens)
        key_frame = key_frame[: cache.coarse_length]
        seen = visible_coarse(coarse_query, key_frame)
        self.coarse_mask = attention_mask(seen, coarse_query, key_frame, config.positions, heads, dtype)

    def __call__(self, layer: int, fine: QKV, coarse: QKV | None) -> tuple[Tensor, Tensor | None]:
        """Attention of both streams; see `farworld.models.attention.Attend`."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        _store(keys, values, fine, self.fine_ranges)
        coarse_out = None
        if coarse is not None:
            _store(keys, values, coarse, self.coarse_ranges)
            end = self.cache.coarse_length
            coarse_out = F.scaled_dot_product_attention(
                coarse.q, keys[:, :, :end], values[:, :, :end], attn_mask=self.coarse_mask
            )
        skipped = self.num_queries - fine.q.shape[2]  # leading queries that nobody needs
        outputs = []
        for queries, stop, mask in self.groups:
            start = max(queries.start, skipped)
            if start >= queries.stop:
                continue
            q = fine.q[:, :, start - skipped : queries.stop - skipped]
            mask = mask if mask is None else mask[:, :, start - queries.start :]
            k, v = keys[:, :, :stop], values[:, :, :stop]
            outputs.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
        return torch.cat(outputs, dim=2) if len(outputs) > 1 else outputs[0], coarse_out


def _store(keys: Tensor, values: Tensor, new: QKV, ranges: list[slice]) -> None:
    """Write the tokens of each new frame into its range."""
    start = 0
    for span in ranges:
        stop = start + span.stop - span.start
        keys[:, :, span] = new.k[:, :, start:stop]
        values[:, :, span] = new.v[:, :, start:stop]
        start = stop
