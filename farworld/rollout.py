"""The frame loop: prime with a context, then one action in, one frame out.

`Rollout` owns the key-value cache and is its only writer. A finished frame's fine tokens enter the cache once,
merged into the first denoising pass of the next frame; when a frame leaves the short-term window its coarse
tokens enter once. Frame 10,000 costs what frame 300 costs.

Paper: FAR, arXiv:2503.19325, Sec. 3.3; the sliding, append-only layout is ours.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from farworld.models import flow
from farworld.models.far import CLEAN_SHORT_TERM, TIMESTEP_SCALE
from farworld.models.kv_cache import EMPTY, CachedAttention, KVCache
from farworld.world_model import WorldModel


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A rollout's whole state; restoring it and stepping alike gives the same frames."""

    keys: Tensor
    values: Tensor
    frame_of_slot: Tensor
    latents: tuple[Tensor, ...]
    actions: tuple[Tensor, ...]
    frame_index: int
    seed: int


class Rollout:
    """B streams of one world, in step with each other.

    The noise of frame i of stream s is drawn from a generator keyed by (seed, s, i): the same seed, context
    and actions give the same frames, bit for bit on one machine.
    """

    def __init__(
        self,
        world: WorldModel,
        *,
        batch_size: int = 1,
        num_steps: int | None = None,
        context_frames: int | None = None,
        guidance_scale: float = 1.0,
    ) -> None:
        """Allocate the cache.

        Args:
            world: its device and weights are used as they are.
            batch_size: streams.
            num_steps: denoising steps a frame; None is the world's own number.
            context_frames: frames remembered, the short-term window included; None is the world's own number.
            guidance_scale: 1.0 is off; more runs a second, unconditional half of the batch.

        Raises:
            ValueError: num_steps below 1, a context shorter than the short-term window, or guidance below 1.
        """
        window = world.config.model.short_term_frames
        context_frames = world.config.context_frames if context_frames is None else context_frames
        if context_frames < window:
            raise ValueError(
                f"the context must be at least the short-term window of {window} frames, got {context_frames}"
            )
        if guidance_scale < 1.0:
            raise ValueError(f"guidance_scale must be at least 1.0 (off), got {guidance_scale}")
        self.world = world
        self.batch_size = batch_size
        self.context_frames = context_frames
        self.guidance_scale = guidance_scale
        self.timesteps = flow.euler_timesteps(world.config.num_steps if num_steps is None else num_steps)
        self.seed = 0
        self.frame_index = EMPTY  # of the newest frame; EMPTY before the first
        self._branches = 1 if guidance_scale == 1.0 else 2
        self._cache = KVCache(
            world.config.model,
            batch_size=batch_size * self._branches,
            long_term_frames=context_frames - window + 1,  # the window counts the frame to come
            device=world.device,
        )
        # The newest `window` frames, still needed: the newest for its fine tokens, the oldest for its coarse ones.
        self._latents: deque[Tensor] = deque(maxlen=window)
        self._actions: deque[Tensor] = deque(maxlen=window)

    @property
    def num_steps(self) -> int:
        """Denoising steps a frame."""
        return len(self.timesteps) - 1

    @property
    def context_in_use(self) -> int:
        """Frames that the next frame will see."""
        return min(self.frame_index + 1, self.context_frames)

    @torch.inference_mode()
    def prime(self, frames: np.ndarray | Tensor, actions: np.ndarray | Tensor, *, seed: int = 0) -> None:
        """Forget everything and start from a context.

        Args:
            frames: (B, F, H, W, 3), uint8, F at least 1.
            actions: (B, F − 1), integers in [0, num_actions); action t produced frame t + 1.
            seed: of all noise to come.

        Raises:
            ValueError: shapes, dtypes or actions out of range.
        """
        frames = torch.as_tensor(frames)
        latents = self.world.encode(frames)
        actions = self._check_actions(actions, (self.batch_size, frames.shape[1] - 1))
        if frames.shape[0] != self.batch_size:
            raise ValueError(f"expected the frames of {self.batch_size} streams, got {frames.shape[0]}")
        self._cache.reset()
        self._latents.clear()
        self._actions.clear()
        self.frame_index = EMPTY
        self.seed = seed
        null = torch.full((self.batch_size, 1), self.world.config.model.null_action, device=actions.device)
        produced_by = torch.cat([null, actions], dim=1)
        for index in range(frames.shape[1]):
            if self._latents:
                self._append()
            self._remember(latents[:, index], produced_by[:, index])

    def step(self, action: int | np.ndarray | Tensor) -> np.ndarray:
        """Take an action in every stream and return the frames that it produces.

        Args:
            action: one integer for all streams, or (B,), in [0, num_actions).

        Returns:
            (B, H, W, 3), uint8.

        Raises:
            ValueError: before `prime`, or an action out of range.
        """
        return self.decode(self.step_latents(action))

    def decode(self, latents: Tensor) -> np.ndarray:
        """Latents (B, C, h, w) to frames (B, H, W, 3), uint8."""
        with torch.inference_mode():
            return self.world.decode(latents).cpu().numpy()

    @torch.inference_mode()
    def step_latents(self, action: int | np.ndarray | Tensor) -> Tensor:
        """`step` without the decoder: (B, C, h, w), scaled latents."""
        actions = self._check_actions(action, (self.batch_size,))
        latents = self._denoise(actions)
        self._remember(latents, actions)
        return latents

    @torch.inference_mode()
    def peek_then_observe(self, action: np.ndarray | Tensor, frames: np.ndarray | Tensor) -> Tensor:
        """Predict the next frame, then go on from the true one.

        Args:
            action: (B,), the action that produces the frame.
            frames: (B, H, W, 3), uint8, the frame that it really produced.

        Returns:
            (B, C, h, w), the predicted latents.
        """
        actions = self._check_actions(action, (self.batch_size,))
        predicted = self._denoise(actions)
        self._remember(self.world.encode(torch.as_tensor(frames)[:, None])[:, 0], actions)
        return predicted

    def snapshot(self) -> Snapshot:
        """Copy the state."""
        cache = self._cache
        return Snapshot(
            cache.keys.clone(), cache.values.clone(), cache.frame_of_slot.clone(),
            tuple(self._latents), tuple(self._actions), self.frame_index, self.seed,
        )  # fmt: skip

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot of this rollout, or of one of the same sizes."""
        self._cache.keys.copy_(snapshot.keys)
        self._cache.values.copy_(snapshot.values)
        self._cache.frame_of_slot.copy_(snapshot.frame_of_slot)
        self._latents.clear()
        self._latents.extend(snapshot.latents)
        self._actions.clear()
        self._actions.extend(snapshot.actions)
        self.frame_index, self.seed = snapshot.frame_index, snapshot.seed

    def _check_actions(self, actions: int | np.ndarray | Tensor, shape: tuple[int, ...]) -> Tensor:
        """Actions as (B, …) int64 on the device, or ValueError naming the range."""
        tensor = torch.as_tensor(actions)
        vocabulary = self.world.config.vocabulary
        if tensor.ndim == 0:
            tensor = tensor.expand(shape)
        if tuple(tensor.shape) != shape or tensor.is_floating_point():
            raise ValueError(f"actions must be integers of shape {shape}, got {tensor.dtype} {tuple(tensor.shape)}")
        if tensor.numel() and not (0 <= int(tensor.min()) and int(tensor.max()) < len(vocabulary)):
            vocabulary.check(int(tensor.max()) if tensor.max() >= len(vocabulary) else int(tensor.min()))
        return tensor.to(device=self.world.device, dtype=torch.int64)

    def _remember(self, latents: Tensor, actions: Tensor) -> None:
        """Make these latents the newest frame."""
        self._latents.append(latents)
        self._actions.append(actions)
        self.frame_index += 1

    def _attention(self, *, with_noisy: bool, with_newest: bool) -> tuple[CachedAttention, Tensor | None, Tensor]:
        """Claim slots for one pass; also the coarse latents and actions that enter with it."""
        newest, window = self.frame_index, self.world.config.model.short_term_frames
        fine_frames, fine_slots, coarse_frames = [], [], []
        if with_newest:
            fine_frames.append(newest)
            fine_slots.append(self._cache.fine_slot(newest))
            if newest + 1 >= window and self._cache.long_term_frames:
                coarse_frames.append(newest + 1 - window)
        if with_noisy:
            fine_frames.append(newest + 1)
            fine_slots.append(self._cache.scratch_slot)
        attention = CachedAttention(
            self._cache, fine_frames=fine_frames, fine_slots=fine_slots, coarse_frames=coarse_frames
        )
        if not coarse_frames:
            return attention, None, self._actions[0]
        return attention, self._latents[0], self._actions[0]

    def _run(self, latents: list[Tensor], timesteps: list[float], actions: list[Tensor], attention: CachedAttention,
             coarse: Tensor | None, coarse_action: Tensor, frames: list[int]) -> Tensor:  # fmt: skip
        """One pass through the transformer; the velocity of the last frame, guided."""
        device, null = self.world.device, self.world.config.model.null_action
        fine = torch.stack(latents, dim=1)
        action = torch.stack(actions, dim=1)
        coarse_actions = coarse_action[:, None]
        if self._branches == 2:
            fine = fine.repeat(2, 1, 1, 1, 1)
            coarse = coarse if coarse is None else coarse.repeat(2, 1, 1, 1)
            action = torch.cat([torch.full_like(action, null), action])
            coarse_actions = torch.cat([torch.full_like(coarse_actions, null), coarse_actions])
        velocity = self.world.transformer.run(
            fine,
            torch.tensor([timesteps], device=device),
            action,
            torch.tensor(frames, device=device),
            self._latents[-1].repeat(self._branches, 1, 1, 1) if len(frames) == 1 else None,
            coarse if coarse is None else coarse[:, None],
            coarse_actions,
            torch.tensor([self.frame_index + 1 - len(self._latents)], device=device),
            attention,
        )[:, -1]
        if self._branches == 2:
            unconditional, conditional = velocity.chunk(2)
            velocity = unconditional + self.guidance_scale * (conditional - unconditional)
        return velocity

    def _append(self) -> None:
        """Put the newest frame into the cache by a pass of its own."""
        attention, coarse, coarse_action = self._attention(with_noisy=False, with_newest=True)
        self._run([self._latents[-1]], [CLEAN_SHORT_TERM], [self._actions[-1]], attention, coarse, coarse_action,
                  [self.frame_index])  # fmt: skip

    def _denoise(self, actions: Tensor) -> Tensor:
        """Draw the latents of the next frame; the first pass also puts the newest frame into the cache."""
        if not self._latents:
            raise ValueError("the rollout has no context yet: call prime(frames, actions) first")
        newest = self.frame_index
        x = self._noise(newest + 1)
        for step, (now, then) in enumerate(zip(self.timesteps, self.timesteps[1:], strict=False)):
            first = step == 0
            attention, coarse, coarse_action = self._attention(with_noisy=True, with_newest=first)
            velocity = self._run(
                [self._latents[-1], x] if first else [x],
                [CLEAN_SHORT_TERM, now * TIMESTEP_SCALE] if first else [now * TIMESTEP_SCALE],
                [self._actions[-1], actions] if first else [actions],
                attention, coarse, coarse_action,
                [newest, newest + 1] if first else [newest + 1],
            )  # fmt: skip
            x = flow.euler_step(x, velocity, now, then)
        return x

    def _noise(self, frame: int) -> Tensor:
        """(B, C, h, w), standard normal, keyed by seed, stream and frame."""
        config = self.world.config.model
        shape = (config.latent_channels, config.latent_height, config.latent_width)
        streams = []
        for stream in range(self.batch_size):
            key = np.random.SeedSequence([self.seed, stream, frame]).generate_state(1, np.uint64)[0]
            generator = torch.Generator().manual_seed(int(key >> np.uint64(1)))
            streams.append(torch.randn(shape, generator=generator))
        return torch.stack(streams).to(self.world.device)
