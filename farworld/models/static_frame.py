"""A frame of the steady state as one function of fixed tensors, for CUDA graphs and compilers.

Once every new frame puts one past frame by its fine and one by its coarse tokens into the cache, frames differ in
numbers only: which slots are written, who sees whom, positions, noise, actions. They come in buffers of fixed size, by
one copy of all integers and one of all floats; from there on nothing is read back, and nothing depends on a Python
number. On a GPU the whole frame, all its denoising passes, is one CUDA graph; anywhere else it is just called.

The mask covers all slots, empty ones included, so that it holds while the rings fill, and for streams that have begun
at different times.

Shape letters: B streams, R streams times branches of guidance, F frames, C H W of latents, Q queries, S keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from farworld.models import flow
from farworld.models.attention import QKV, attend, visible, visible_coarse
from farworld.models.autoencoder import Autoencoder
from farworld.models.cuda_graph import Replayed
from farworld.models.far import (
    CLEAN_LONG_TERM,
    CLEAN_SHORT_TERM,
    FAR,
    TIMESTEP_SCALE,
    Frames,
    Modulate,
    context_mark,
)
from farworld.models.kv_cache import KVCache


@dataclass(frozen=True, slots=True)
class NewFrames:
    """What a frame depends on; tensors on the CPU but for the latents, own frames as each stream counts them.

    Without a long-term stream the parts of the coarse frame are not read.
    """

    fine: Tensor  # (1 or B, 2), int64, own frames: the newest past one, and the one to come
    coarse: Tensor  # (1 or B, 1), int64, the one that leaves the window
    fine_token: int  # where the newest past frame's fine tokens go, on the cache's token axis
    coarse_token: int
    actions: Tensor  # (B, 3), int64: of the newest past frame, the one to come, and the one that leaves the window
    noise: Tensor  # (B, 3, C, H, W), standard normal: added to the newest and the leaving one, and to start from
    newest: Tensor  # (B, C, H, W), without noise
    leaving: Tensor


class Buffers:
    """Named tensors of one type in one block, on the CPU and on the device; one copy brings all of them over."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, device: torch.device) -> None:
        """Allocate them; pinned where that makes the copy asynchronous."""
        sizes = [math.prod(shape) for shape in shapes.values()]
        self._blocks = (
            torch.zeros(sum(sizes), dtype=dtype, pin_memory=device.type == "cuda"),
            torch.zeros(sum(sizes), dtype=dtype, device=device),
        )
        self.host, self.device = (
            {name: part.view(shape) for (name, shape), part in zip(shapes.items(), block.split(sizes), strict=True)}
            for block in self._blocks
        )

    def send(self) -> None:
        """Copy all to the device."""
        self._blocks[1].copy_(self._blocks[0], non_blocking=True)


class StaticFrame:
    """The next frame's latents; writes into a cache whose slots have been claimed."""

    def __init__(
        self,
        transformer: FAR,
        cache: KVCache,
        *,
        batch_size: int,
        timesteps: Sequence[float],
        step_sizes: Sequence[float] | None,
        guidance_scale: float,
        context_noise: float,
        modulate: Modulate | None,
        compiler: str | Callable | None = None,
    ) -> None:
        """Allocate all buffers.

        Args:
            transformer: whose weights stay where they are.
            cache: of B streams, twice as many if guidance mixes two branches.
            batch_size: B.
            timesteps: flow times from 1 to 0.
            step_sizes: of each step, for models that are told.
            guidance_scale: see `farworld.rollout.Rollout`.
            context_noise: flow time, of past frames.
            modulate: see `FAR.run`.
            compiler: a backend of `torch.compile`, "inductor" for instance; None compiles nothing.
        """
        config, device = transformer.config, cache.keys.device
        self._transformer, self._cache, self._modulate = transformer, cache, modulate
        self._timesteps, self._step_sizes = list(timesteps), step_sizes
        self._guidance_scale, self._context_noise = guidance_scale, context_noise
        self._branches = cache.keys.shape[1] // batch_size
        self._has_coarse = config.context_patch_size is not None
        latent = (config.latent_channels, config.latent_height, config.latent_width)
        fine, coarse, head = config.fine_tokens, config.coarse_tokens, config.head_size
        slots = cache.frame_of_slot.shape[1]
        self._integers = Buffers(
            {
                "frame_of_slot": (batch_size, slots), "fine": (batch_size, 2), "coarse": (batch_size, 1),
                "actions": (batch_size, 3), "fine_token": (1,), "coarse_token": (1,),
            },
            torch.int64, device,
        )  # fmt: skip
        self._floats = Buffers(
            {
                "noise": (batch_size, 3, *latent),
                "fine_cos": (batch_size, 1, 2 * fine, head), "fine_sin": (batch_size, 1, 2 * fine, head),
                "coarse_cos": (batch_size, 1, coarse, head), "coarse_sin": (batch_size, 1, coarse, head),
            },
            torch.float32, device,
        )  # fmt: skip
        self._latents = torch.zeros((batch_size, 2, *latent), device=device)  # the newest and the leaving frame
        self._result = torch.zeros((batch_size, *latent), device=device)
        # Constants, which a capture could not bring over from the CPU.
        self._slot_of_token = torch.arange(slots).repeat_interleave(cache.tokens_of_slot).to(device)
        self._key_is_fine = cache.key_is_fine.to(device)
        self._fine_arange, self._coarse_arange = torch.arange(fine, device=device), torch.arange(coarse, device=device)
        self._scratch = self._fine_arange + cache.token_range(cache.scratch_slot).start
        self._slopes = config.positions.head_slopes(config.num_heads).to(device)[:, None, None]
        self._noise_level = torch.full((batch_size,), context_noise, device=device)
        marks = [context_mark(mark, context_noise) for mark in (CLEAN_SHORT_TERM, CLEAN_LONG_TERM)]
        self._coarse_timestep = torch.full((1, 1), marks[1], device=device)
        self._fine_timesteps = [
            torch.tensor([[marks[0], now * TIMESTEP_SCALE]], device=device) for now in self._timesteps[:-1]
        ]
        self._fine_sizes = [torch.full((1, 2), size, device=device) for size in step_sizes or ()]
        frame: Callable[[], None] = self._frame
        if compiler is not None:
            frame = torch.compile(self._frame, backend=compiler, fullgraph=True, dynamic=False)
        self._run = Replayed(frame, device)
        self._sent = torch.cuda.Event() if device.type == "cuda" else None

    def __call__(self, new: NewFrames) -> Tensor:
        """The latents of the frame to come, (B, C, H, W)."""
        if self._sent is not None:
            self._sent.synchronize()  # or the copies of the frame before could still read what is written now
        config, cache = self._transformer.config, self._cache
        integers, floats = self._integers.host, self._floats.host
        integers["frame_of_slot"].copy_(cache.frame_of_slot)
        integers["fine"].copy_(new.fine)
        integers["coarse"].copy_(new.coarse)
        integers["actions"].copy_(new.actions)
        integers["fine_token"].fill_(new.fine_token)
        integers["coarse_token"].fill_(new.coarse_token)
        floats["noise"].copy_(new.noise)
        for name, frames, patch in (
            ("fine", new.fine, config.patch_size), ("coarse", new.coarse, config.context_patch_size)
        ):  # fmt: skip
            if patch is not None:
                tables = self._transformer.rope(frames.flatten().tolist(), patch)
                for part, table in zip(("cos", "sin"), tables, strict=True):
                    floats[f"{name}_{part}"].copy_(table.unflatten(0, (len(frames), 1, -1)))
        self._integers.send()
        self._floats.send()
        if self._sent is not None:
            self._sent.record(torch.cuda.current_stream(cache.keys.device))
        self._latents[:, 0].copy_(new.newest)
        self._latents[:, 1].copy_(new.leaving)
        self._run()
        return self._result.clone()

    def _frame(self) -> None:
        """All passes, from the buffers into the result."""
        masks = self._masks()
        x = self._floats.device["noise"][:, 2]
        for step, (now, then) in enumerate(zip(self._timesteps, self._timesteps[1:], strict=False)):
            x = flow.euler_step(x, self._velocity(x, step, *masks), now, then)
        self._result.copy_(x)

    def _masks(self) -> tuple[Tensor, Tensor | None]:
        """What is added to the logits of the fine and of the coarse queries, (R, 1 or A, Q, S)."""
        config, integers, cache = self._transformer.config, self._integers.device, self._cache
        key_frame = integers["frame_of_slot"][:, self._slot_of_token]
        fine = self._mask(
            integers["fine"], config.fine_tokens, key_frame,
            lambda query, key: visible(query, key, self._key_is_fine, window=config.window, first_fine=0),
        )  # fmt: skip
        if not self._has_coarse:
            return fine, None
        key_frame = key_frame[:, : cache.coarse_length]
        return fine, self._mask(integers["coarse"], config.coarse_tokens, key_frame, visible_coarse)

    def _mask(self, frames: Tensor, tokens: int, key_frame: Tensor, sees: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        batch, num_frames = frames.shape
        keys = key_frame[:, None].expand(-1, num_frames, -1)
        seen = sees(frames.flatten(), keys.flatten(0, 1)).unflatten(0, (batch, num_frames))
        seen = seen | ~seen.any(dim=-1, keepdim=True)  # see `CachedAttention`
        decay = self._slopes * (key_frame[:, None] - frames[..., None])[:, None]
        mask = torch.where(seen[:, None], decay, -torch.inf).to(self._cache.keys.dtype)
        return self._both(mask[:, :, :, None].expand(-1, -1, -1, tokens, -1).flatten(2, 3))

    def _velocity(self, x: Tensor, step: int, fine_mask: Tensor, coarse_mask: Tensor | None) -> Tensor:
        """One pass; the first one also encodes the past frames."""
        config, integers, floats = self._transformer.config, self._integers.device, self._floats.device
        first, actions = step == 0, integers["actions"]
        count, tokens = (2, 2 * config.fine_tokens) if first else (1, config.fine_tokens)
        latents, where = x[:, None], self._scratch
        coarse = coarse_where = None
        if first:
            latents = torch.stack([self._as_context(0), x], dim=1)
            where = torch.cat([self._fine_arange + integers["fine_token"], self._scratch])
        if first and self._has_coarse:
            coarse_where = self._coarse_arange + integers["coarse_token"]
            coarse = Frames(
                self._both(self._as_context(1)[:, None]), self._coarse_timestep, self._conditions(actions[:, 2:]), (),
                rope=(self._both(floats["coarse_cos"]), self._both(floats["coarse_sin"])),
            )  # fmt: skip
        rope = tuple(self._both(floats[name][:, :, -tokens:]) for name in ("fine_cos", "fine_sin"))
        sizes = self._fine_sizes[step][:, -count:] if self._fine_sizes else None
        fine = Frames(
            self._both(latents), self._fine_timesteps[step][:, -count:], self._conditions(actions[:, 2 - count : 2]),
            (1,) * count, sizes, (rope[0], rope[1]),
        )  # fmt: skip
        attend = _StaticAttention(
            self._cache, where, coarse_where, fine_mask[:, :, -tokens:], coarse_mask if first else None
        )
        velocity = self._transformer.run(
            fine, coarse, attend, before=self._both(self._latents[:, :1]), num_outputs=1, modulate=self._modulate
        )[:, -1].float()
        if self._branches == 2:
            unconditional, conditional = velocity.chunk(2)
            velocity = unconditional + self._guidance_scale * (conditional - unconditional)
        return velocity

    def _as_context(self, index: int) -> Tensor:
        """The newest or the leaving frame as the model sees it, (B, C, H, W)."""
        latents = self._latents[:, index]
        if not self._context_noise:
            return latents
        return flow.add_noise(latents, self._floats.device["noise"][:, index], self._noise_level)

    def _both(self, x: Tensor) -> Tensor:
        return x.repeat(self._branches, *[1] * (x.ndim - 1))

    def _conditions(self, actions: Tensor) -> Tensor:
        """See `Rollout`: the null action for the unconditional branch."""
        null = torch.full_like(actions, self._transformer.config.null_action)
        if self._guidance_scale == 0.0:
            return null
        return actions if self._branches == 1 else torch.cat([null, actions])


class _StaticAttention:
    """See `farworld.models.kv_cache.CachedAttention`; where new tokens go is said by tensors."""

    def __init__(
        self, cache: KVCache, where: Tensor, coarse_where: Tensor | None, mask: Tensor, coarse_mask: Tensor | None
    ) -> None:
        """Places are (N,), int64, on the cache's token axis."""
        self.cache, self.where, self.coarse_where = cache, where, coarse_where
        self.mask, self.coarse_mask = mask, coarse_mask

    def __call__(self, layer: int, fine: QKV, coarse: QKV | None) -> tuple[Tensor, Tensor | None]:
        """See `farworld.models.attention.Attend`."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys.index_copy_(2, self.where, fine.k)
        values.index_copy_(2, self.where, fine.v)
        coarse_out = None
        if coarse is not None and self.coarse_where is not None:
            keys.index_copy_(2, self.coarse_where, coarse.k)
            values.index_copy_(2, self.coarse_where, coarse.v)
            end = self.cache.coarse_length
            coarse_out = attend(coarse.q, keys[:, :, :end], values[:, :, :end], self.coarse_mask)
        mask = self.mask[:, :, -fine.q.shape[2] :]  # leading queries may be left out, when nobody needs them
        return attend(fine.q, keys, values, mask), coarse_out


class StaticDecoder:
    """Latents to frames, of as many streams each time."""

    def __init__(self, autoencoder: Autoencoder, latents: tuple[int, ...], device: torch.device) -> None:
        """Allocate all buffers.

        Args:
            autoencoder: whose weights stay where they are.
            latents: the shape (B, C, H, W).
            device: theirs.
        """
        batch, _, *size = latents
        height, width = (side * autoencoder.config.compression for side in size)
        self._autoencoder = autoencoder
        self._latents = torch.zeros(latents, device=device)
        self._frames = torch.zeros((batch, height, width, 3), dtype=torch.uint8, device=device)
        self._run = Replayed(self._decode, device)

    def __call__(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, H, W) to frames (B, height, width, 3), uint8, which the next call overwrites."""
        self._latents.copy_(latents)
        self._run()
        return self._frames

    def _decode(self) -> None:
        self._frames.copy_(self._autoencoder.decode(self._latents))
