"""The key-value cache of a stream: fixed rings for coarse and for fine frames, and one scratch frame.

It serves both layouts of long short-term attention: in the sliding one a frame is written once, in the anchored
one the fine ring is written anew for each frame.

Storage is allocated once. Slots hold whole frames; `frame_of_slot` says which, −1 if none, and the mask
follows from it by the same `visible` that training uses. The rollout loop says what is written where. Streams that
have begun at different times still write into the same slots, each its own frame.

The first coarse frames may stay as sinks: they stand where the ring would have its oldest frames, as near as those
(StreamingLLM, arXiv:2309.17453), so that no distance exceeds the length of the context.

What slots hold can be taken as pages, which cost nothing until something is written over them. Many states of a
stream share the pages that they have in common: a state for every frame takes one frame's memory each.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from farworld.models.attention import QKV, attend, attention_mask, rope_table, rotate, visible, visible_coarse
from farworld.models.far import FARConfig

EMPTY = -1
GROUP_FRAMES = 2  # frames whose queries attend together; more see more keys in vain, fewer are more calls


class Page:
    """What a slot holds, whatever is written into it later; while nothing is, the slot itself is the memory."""

    __slots__ = ("__weakref__", "_kept", "_slot")

    def __init__(self, slot: Tensor) -> None:
        """A page of a slot's view of the storage, whose cache has to call `keep` before it writes there."""
        self._slot: Tensor | None = slot
        self._kept: Tensor | None = None

    def read(self) -> Tensor:
        """Keys and values, (2, layers, B, A, tokens, K)."""
        kept = self._slot if self._kept is None else self._kept
        assert kept is not None  # one of the two is there
        return kept

    def keep(self) -> None:
        """Take a copy, if there is none yet."""
        if self._kept is None:
            self._kept, self._slot = self.read().clone(), None

    def __reduce__(self) -> tuple:
        """Copies, also those on a disk, stand alone."""
        return _kept_page, (self.read().clone(),)


def _kept_page(content: Tensor) -> Page:
    page = Page(content)
    page.keep()
    return page


class KVCache:
    """Keys (rotated, absolute positions) and values of all layers, for B streams that take their steps together.

    The token axis is [coarse ring | fine ring | scratch]: what the context needs beyond the model's short-term
    window in coarse frames, the window in fine frames, and the frame that is being denoised. Without a long-term
    stream the whole context is in the fine ring.

    Attributes:
        frame_of_slot: (R, slots), int64, on the CPU; R is 1 while all streams have the same frames, and then the
            number of streams, which the branches of guidance share. Sinks have the frames that they stand for.
    """

    def __init__(
        self,
        config: FARConfig,
        *,
        batch_size: int,
        context_frames: int,
        sink_frames: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Allocate an empty cache for context_frames past frames; its size depends on nothing that happens later.

        Raises:
            ValueError: sinks leave the coarse ring no frame, or there is none.
        """
        self.config = config
        # The window counts the frame to come, so that the oldest of `window` past frames is seen coarse.
        self.long_term_frames = context_frames - config.short_term_frames + 1 if config.context_patch_size else 0
        self.short_term_frames = config.short_term_frames if config.context_patch_size else context_frames
        if sink_frames and not 0 < sink_frames < self.long_term_frames:
            raise ValueError(
                f"sink_frames must be in [0, {max(0, self.long_term_frames - 1)}], fewer than the coarse frames of the "
                f"context, got {sink_frames}"
            )
        self.sink_frames = sink_frames
        fine_slots = self.short_term_frames + 1
        self.coarse_length = self.long_term_frames * config.coarse_tokens
        length = self.coarse_length + fine_slots * config.fine_tokens
        shape = (2, config.num_layers, batch_size, config.num_heads, length, config.head_size)
        self._storage = torch.zeros(shape, device=device, dtype=dtype)
        self.keys, self.values = self._storage.unbind(0)
        self.frame_of_slot = torch.full((1, self.long_term_frames + fine_slots), EMPTY)
        self.tokens_of_slot = torch.tensor(
            [config.coarse_tokens] * self.long_term_frames + [config.fine_tokens] * fine_slots
        )
        self.key_is_fine = torch.arange(length) >= self.coarse_length
        # The scratch slot is written before anybody reads it, and needs no page.
        # Sinks are stored as they were encoded, and again in the ring, turned to where they stand.
        self._sinks = self._storage[..., : sink_frames * config.coarse_tokens, :].clone()
        self._slots = [
            (self._sinks if slot < sink_frames else self._storage)[..., self.token_range(slot), :]
            for slot in range(self.scratch_slot)
        ]
        self._no_coarse, self._no_fine = torch.zeros_like(self._slots[0]), torch.zeros_like(self._slots[-1])
        self._pages: list[weakref.ref[Page] | None] = [None] * self.scratch_slot  # of what the slots hold now

    @property
    def num_bytes(self) -> int:
        """Memory held, in bytes."""
        return (self._storage.numel() + self._sinks.numel()) * self._storage.element_size()

    @property
    def token_bytes(self) -> int:
        """Memory of one token's keys and values, in bytes."""
        return self._storage[..., 0, :].numel() * self._storage.element_size()

    @property
    def scratch_slot(self) -> int:
        """The slot of the frame that is being denoised."""
        return self.frame_of_slot.shape[1] - 1

    def fine_slot(self, frame: int) -> int:
        """Where a finished frame's fine tokens live."""
        return self.long_term_frames + frame % self.short_term_frames

    def coarse_slot(self, frame: int) -> int:
        """Where a frame's coarse tokens live."""
        sinks = self.sink_frames
        return frame if 0 <= frame < sinks else sinks + (frame - sinks) % (self.long_term_frames - sinks)

    def reset(self) -> None:
        """Forget everything; storage stays."""
        for slot in range(self.scratch_slot):
            self._leave(slot)
        self.frame_of_slot = torch.full((1, self.frame_of_slot.shape[1]), EMPTY)
        self._sinks.zero_()
        self._storage.zero_()  # what is masked counts zero times, which would not forget a NaN

    def claim(self, slot: int, frame: Tensor) -> None:
        """Let a slot be a frame's, (R,) with EMPTY for streams without it, whose keys and values are written next."""
        if slot != self.scratch_slot:
            self._leave(slot)
        self.frame_of_slot[:, slot] = frame

    def keep_sinks(self) -> None:
        """Remember the sinks, which were encoded just now and stand where they were encoded."""
        self._sinks.copy_(self._storage[..., : self._sinks.shape[-2], :])

    def place_sinks(self, first: int) -> None:
        """Let the sinks stand for the frames from `first` on."""
        sinks, positions, size = self.sink_frames, self.config.positions, self.config.head_size
        self.frame_of_slot[:, :sinks] = torch.arange(first, first + sinks)
        turn = rope_table([first], 1, 1, 1, size, frame_scale=positions.frame_scale, device=self.keys.device)
        self.keys[..., : self._sinks.shape[-2], :] = rotate(self._sinks[0], turn)
        self.values[..., : self._sinks.shape[-2], :] = self._sinks[1]

    def adopt(self, stream: int, num_streams: int, other: KVCache, slots: dict[int, int]) -> None:
        """Let a stream have the one stream of a cache of the same sizes for its past.

        Args:
            stream: whose past is forgotten.
            num_streams: streams here, without the branches of guidance.
            other: of one stream, with as many branches.
            slots: which of this cache takes which of the other; what the rest hold is not taken over.
        """
        for slot in range(self.scratch_slot):
            self._leave(slot)
        if len(self.frame_of_slot) != num_streams:
            self.frame_of_slot = self.frame_of_slot.repeat(num_streams, 1)
        self.frame_of_slot[stream] = EMPTY
        mine = self._storage[:, :, stream::num_streams]
        mine.zero_()
        for slot, theirs in slots.items():
            self.frame_of_slot[stream, slot] = other.frame_of_slot[0, theirs]
            mine[..., self.token_range(slot), :] = other._slots[theirs]

    def pages(self) -> tuple[Page | None, ...]:
        """What every slot but the scratch one holds; None where it is empty."""
        taken = []
        for slot, is_empty in enumerate(self._are_empty()):
            known = self._pages[slot]
            page = None if known is None or is_empty else known()
            if page is None and not is_empty:
                page = Page(self._slots[slot])
                self._pages[slot] = weakref.ref(page)
            taken.append(page)
        return tuple(taken)

    def put(self, pages: Sequence[Page | None], frame_of_slot: Tensor) -> None:
        """Hold what these pages hold, of this cache or of one alike; what is there already is not written again."""
        held = [None if known is None else known() for known in self._pages]
        changed = [
            slot
            for slot, (page, here, is_empty) in enumerate(zip(pages, held, self._are_empty(), strict=True))
            if page is not here or (page is None and not is_empty)
        ]
        contents = {}
        for slot in changed:
            if (here := held[slot]) is not None:
                here.keep()
            page = pages[slot]
            empty = self._no_coarse if slot < self.long_term_frames else self._no_fine
            contents[slot] = empty if page is None else page.read()
            self._pages[slot] = None if page is None else weakref.ref(page)
        self._write(contents)
        self.frame_of_slot = frame_of_slot.clone()
        if self.sink_frames and (first := int(frame_of_slot[0, 0])) != EMPTY:
            self.place_sinks(first)
            self.frame_of_slot = frame_of_slot.clone()  # not all of them may be there yet

    def _write(self, contents: dict[int, Tensor]) -> None:
        """Copy contents into their slots."""
        on_cpu = self.keys.is_cpu and all(content.is_cpu for content in contents.values())
        on_one_thread = on_cpu and torch.get_num_threads() == 1
        if on_one_thread and not self.sink_frames and 2 * len(contents) > self.scratch_slot:
            # All of the storage in its order, what stays as well: 10 to 20 % faster on one thread than slot by slot.
            kept = [contents[i] if i in contents else slot.clone() for i, slot in enumerate(self._slots)]
            torch.cat([*kept, self._no_fine], dim=-2, out=self._storage)  # whatever, in the scratch slot
        elif contents:
            torch._foreach_copy_([self._slots[slot] for slot in contents], list(contents.values()))

    def _are_empty(self) -> list[bool]:
        """Of each slot but the scratch one, whether it is empty in all streams."""
        return (self.frame_of_slot[:, :-1] == EMPTY).all(dim=0).tolist()

    def _leave(self, slot: int) -> None:
        """See to what somebody may still have of a slot that is about to be overwritten."""
        known, self._pages[slot] = self._pages[slot], None
        if known is not None and (page := known()) is not None:
            page.keep()

    def key_frame(self) -> Tensor:
        """(R, S), the frame of each key, EMPTY where there is none."""
        return self.frame_of_slot.repeat_interleave(self.tokens_of_slot, dim=1)

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
        fine_frames: Tensor,
        fine_slots: list[int],
        coarse_frames: Tensor,
        coarse_slots: list[int],
        first_fine: Tensor,
    ) -> None:
        """Claim slots for the new frames.

        Args:
            cache: whose slots are overwritten.
            fine_frames: (R, F), int64, each new frame with fine tokens; EMPTY for streams without it.
            fine_slots: F, where their keys and values go.
            coarse_frames: (R, G), each new frame with coarse tokens.
            coarse_slots: G.
            first_fine: (R,), see `farworld.models.attention.visible`; 0 in the sliding layout.
        """
        self.cache = cache
        frames = torch.cat([coarse_frames, fine_frames], dim=1).unbind(1)
        for frame, slot in zip(frames, coarse_slots + fine_slots, strict=True):
            cache.claim(slot, frame)
        self.fine_ranges = [cache.token_range(slot) for slot in fine_slots]
        self.coarse_ranges = [cache.token_range(slot) for slot in coarse_slots]
        config = cache.config
        key_frame = cache.key_frame()
        fine_query = fine_frames.repeat_interleave(config.fine_tokens, dim=1)
        seen = self._seen(
            visible(query, key, cache.key_is_fine, window=config.window, first_fine=int(first))
            for query, key, first in zip(fine_query, key_frame, first_fine, strict=True)
        )
        self.num_queries = fine_query.shape[1]
        self.groups: list[tuple[slice, int, Tensor | None]] = []
        for start in range(0, self.num_queries, GROUP_FRAMES * config.fine_tokens):
            queries = slice(start, min(start + GROUP_FRAMES * config.fine_tokens, self.num_queries))
            stop = int(seen[:, queries].flatten(0, 1).any(dim=0).nonzero()[-1]) + 1
            mask = None
            if config.positions.slope or not seen[:, queries, :stop].all():
                mask = self._mask(seen[:, queries, :stop], fine_query[:, queries], key_frame[:, :stop])
            self.groups.append((queries, stop, mask))
        if coarse_slots:
            coarse_query = coarse_frames.repeat_interleave(config.coarse_tokens, dim=1)
            key_frame = key_frame[:, : cache.coarse_length]
            seen = self._seen(visible_coarse(*stream) for stream in zip(coarse_query, key_frame, strict=True))
            self.coarse_mask = self._mask(seen, coarse_query, key_frame)

    @staticmethod
    def _seen(streams: Iterable[Tensor]) -> Tensor:
        """(R, Q, S) of each stream's (Q, S).

        A query of a frame that its stream does not have sees everything: nobody reads what comes of it, but of nothing
        at all attention would make NaN.
        """
        seen = torch.stack(list(streams))
        return seen if len(seen) == 1 else seen | ~seen.any(dim=-1, keepdim=True)

    def _mask(self, seen: Tensor, query_frame: Tensor, key_frame: Tensor) -> Tensor:
        """`attention_mask` of each stream, (1 or B, 1 or A, Q, S)."""
        config, keys = self.cache.config, self.cache.keys
        masks = [
            attention_mask(*stream, config.positions, config.num_heads, keys.dtype)
            for stream in zip(seen, query_frame, key_frame, strict=True)
        ]
        mask = masks[0] if len(masks) == 1 else torch.cat(masks * (keys.shape[1] // len(masks)))
        return mask.to(keys.device)

    def __call__(self, layer: int, fine: QKV, coarse: QKV | None) -> tuple[Tensor, Tensor | None]:
        """Attention of both streams; see `farworld.models.attention.Attend`."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        _store(keys, values, fine, self.fine_ranges)
        coarse_out = None
        if coarse is not None:
            _store(keys, values, coarse, self.coarse_ranges)
            end = self.cache.coarse_length
            coarse_out = attend(coarse.q, keys[:, :, :end], values[:, :, :end], self.coarse_mask)
        skipped = self.num_queries - fine.q.shape[2]  # leading queries that nobody needs
        outputs = []
        for queries, stop, mask in self.groups:
            start = max(queries.start, skipped)
            if start >= queries.stop:
                continue
            q = fine.q[:, :, start - skipped : queries.stop - skipped]
            mask = mask if mask is None else mask[:, :, start - queries.start :]
            k, v = keys[:, :, :stop], values[:, :, :stop]
            outputs.append(attend(q, k, v, mask))
        return torch.cat(outputs, dim=2) if len(outputs) > 1 else outputs[0], coarse_out


def _store(keys: Tensor, values: Tensor, new: QKV, ranges: list[slice]) -> None:
    """Write the tokens of each new frame into its range."""
    start = 0
    for span in ranges:
        stop = start + span.stop - span.start
        keys[:, :, span] = new.k[:, :, start:stop]
        values[:, :, span] = new.v[:, :, start:stop]
        start = stop
