"""The frame loop: prime with a context, then one action in, one frame out.

`Rollout` owns the key-value cache and is its only writer. New past frames enter it in the first denoising pass of
the next frame: in the sliding layout each frame once by its fine tokens and, when it leaves the short-term window,
once by its coarse ones; in the anchored layout of the paper the whole window is encoded anew for every frame, since
its start has moved. Either way frame 10,000 costs what frame 300 costs.

Paper: FAR, arXiv:2503.19325, Sec. 3.3; the sliding, append-only layout is ours.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from farworld.models import flow
from farworld.models.far import (
    CLEAN_LONG_TERM,
    CLEAN_SHORT_TERM,
    FAR,
    TIMESTEP_SCALE,
    Frames,
    Modulate,
    context_mark,
)
from farworld.models.kv_cache import EMPTY, CachedAttention, KVCache, Page
from farworld.models.modulation_table import ModulationTable
from farworld.models.packed import Packed
from farworld.models.static_frame import NewFrames, StaticDecoder, StaticFrame
from farworld.rollout_settings import Settings, settings_of
from farworld.world_model import WorldModel

CONTEXT_NOISE_KEY = 1  # of the generators of what is added to context frames


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A rollout's whole state; restoring it and stepping alike gives the same frames.

    It is taken at no cost, whatever the context. Frames that have left the rollout's memory stay in that of the
    snapshots that need them, once for all of them. It can be copied and pickled.
    """

    pages: tuple[Page | None, ...]
    frame_of_slot: Tensor
    latents: tuple[Tensor, ...]
    actions: tuple[Tensor, ...]
    frame_index: int
    fine_end: int
    coarse_end: int
    begun: Tensor
    noise_keys: tuple[tuple[int, int], ...]
    settings: Settings


class Rollout:
    """B streams of one world, which take their steps together; each may begin anew while the others go on.

    The noise of frame i of stream s is drawn from a generator keyed by (seed, s, i): the same seed, context
    and actions give the same frames, bit for bit on one machine. A stream with a seed of its own has the noise of a
    rollout of one stream with that seed.
    """

    def __init__(
        self,
        world: WorldModel,
        *,
        batch_size: int = 1,
        num_steps: int | None = None,
        context_frames: int | None = None,
        guidance_scale: float = 1.0,
        layout: str | None = None,
        timesteps: Sequence[float] | None = None,
        context_noise: float | None = None,
        sink_frames: int | None = None,
        dtype: torch.dtype = torch.float32,
        static: bool | None = None,
        compiler: str | Callable | None = None,
    ) -> None:
        """Allocate the cache.

        Args:
            world: its device and weights are used as they are, and must not change while the rollout lives.
            batch_size: streams.
            num_steps: denoising steps a frame; None is the world's own number.
            context_frames: frames remembered, the short-term window included; None is the world's own number.
            guidance_scale: 1.0 is off, 0.0 heeds no action at all; any other value mixes both predictions, by a
                second, unconditional half of the batch.
            layout: of long short-term attention, "sliding" or "anchored"; None is the world's own. Weights trained
                in one run in the other as well, at some loss.
            timesteps: flow times from 1 to 0, one step between each two; None is evenly spaced, in num_steps, or for
                models that are told the step size what `farworld.models.flow.shortcut_timesteps` says.
            context_noise: flow time, of past frames as the model sees them, which is told; None is the world's own.
            sink_frames: of a stream's first frames, which stay in the context, by their coarse tokens, when it is
                full; None is the world's own number in the sliding layout, and 0 in the other.
            dtype: of the transformer's weights, of which another one makes a copy, and of the cache: float32 or
                bfloat16. Latents, noise and the autoencoder stay float32.
            static: make frames of the steady state by `farworld.models.static_frame`, on a GPU in one CUDA graph; None
                does so on a GPU. Frames before it, and all in the anchored layout, are made as without.
            compiler: of the static frame, a backend of `torch.compile` such as "inductor"; None is none. The first
                frame then takes a minute.

        Raises:
            ValueError: batch_size or num_steps below 1, timesteps that don't fall from 1 to 0 or beside num_steps, a
                context shorter than the short-term window, negative guidance, an unknown layout, a noise level outside
                [0, 1), sinks that do not fit, a world packed for float32 in another dtype, or a model that isn't
                causal.
        """
        self.world = world
        self.settings = settings = settings_of(
            world, batch_size=batch_size, num_steps=num_steps, context_frames=context_frames,
            guidance_scale=guidance_scale, layout=layout, timesteps=timesteps, context_noise=context_noise,
            sink_frames=sink_frames, dtype=dtype,
        )  # fmt: skip
        self.frame_index = EMPTY  # of the newest frame; EMPTY before the first
        # One count of frames serves all streams. A stream's own frame 0, by which positions and noise go, is at
        # `_begun`, (R,): a single 0 until a stream begins anew.
        self._begun = torch.zeros(1, dtype=torch.int64)
        self._noise_keys: tuple[tuple[int, int], ...] = ()  # of each stream: seed and number
        self._single: Rollout | None = None  # where a stream begins anew
        self._transformer = _in_dtype(world.transformer, dtype)
        self._modulate = _modulations(world, settings)
        self._rewrites_window = self.layout == "anchored" and settings.model.context_patch_size is not None
        self._cache = KVCache(
            settings.model, batch_size=batch_size * settings.branches, context_frames=self.context_frames,
            sink_frames=self.sink_frames, device=world.device, dtype=dtype,
        )  # fmt: skip
        self._static: StaticFrame | None = None
        self._decoder: StaticDecoder | None = None
        if self.layout == "sliding" and (world.device.type == "cuda" if static is None else static):
            self._make_static(compiler)
        # Past frames that are not in the cache for good: the newest ones, up to frame_index.
        self._latents: list[Tensor] = []
        self._actions: list[Tensor] = []
        self._fine_end = 0  # frames before it are in the cache by their fine tokens, if still in the window
        self._coarse_end = 0  # frames before it are in the cache by their coarse tokens, if still in the ring
        self._primed = False

    @torch.inference_mode()
    def _make_static(self, compiler: str | Callable | None) -> None:
        """Prepare frames of the steady state, and on a GPU their decoding."""
        settings, model = self.settings, self.settings.model
        self._static = StaticFrame(
            self._transformer, self._cache, batch_size=settings.batch_size, timesteps=settings.timesteps,
            step_sizes=settings.step_sizes, guidance_scale=settings.guidance_scale,
            context_noise=settings.context_noise, modulate=self._modulate, compiler=compiler,
        )  # fmt: skip
        if self.world.device.type == "cuda":
            latents = (settings.batch_size, model.latent_channels, model.latent_height, model.latent_width)
            self._decoder = StaticDecoder(self.world.autoencoder, latents, self.world.device)

    def alike(self, *, static: bool | None = None, **changes: Any) -> Rollout:
        """A new rollout of the same world, not primed, with the same settings but for the given ones of `Settings`.

        Whether its frames are static is no setting; see `Rollout`.
        """
        settings = dataclasses.asdict(dataclasses.replace(self.settings, **changes))
        del settings["model"]
        return Rollout(self.world, static=static, **settings)

    @property
    def batch_size(self) -> int:
        """Streams."""
        return self.settings.batch_size

    @property
    def context_frames(self) -> int:
        """Frames remembered, the short-term window included."""
        return self.settings.context_frames

    @property
    def sink_frames(self) -> int:
        """Of a stream's first frames that stay in a full context."""
        return self.settings.sink_frames

    @property
    def layout(self) -> str:
        """Of long short-term attention."""
        return self.settings.layout

    @property
    def guidance_scale(self) -> float:
        """1.0 is off."""
        return self.settings.guidance_scale

    @property
    def context_noise(self) -> float:
        """Flow time, of past frames as the model sees them."""
        return self.settings.context_noise

    @property
    def timesteps(self) -> tuple[float, ...]:
        """Flow times from 1 to 0."""
        return self.settings.timesteps

    @property
    def dtype(self) -> torch.dtype:
        """Of the transformer and its cache."""
        return self.settings.dtype

    @property
    def num_steps(self) -> int:
        """Denoising steps a frame."""
        return len(self.timesteps) - 1

    @property
    def context_in_use(self) -> int:
        """Frames that the next frame will see."""
        return min(self.frame_index + 1 - self._first_frame, self.context_frames)

    @torch.inference_mode()
    def prime(
        self, frames: np.ndarray | Tensor, actions: np.ndarray | Tensor, *, seed: int | Sequence[int] | np.ndarray = 0
    ) -> None:
        """Forget everything and start from a context.

        Args:
            frames: (B, F, H, W, 3), uint8, F at least 1.
            actions: (B, F − 1), integers in [0, num_actions); action t produced frame t + 1.
            seed: of all noise to come, 0 or more; or B of them, one of each stream.

        Raises:
            ValueError: shapes, dtypes or actions out of range.
        """
        frames = torch.as_tensor(frames)
        if frames.ndim < 2 or frames.shape[1] < 1:
            raise ValueError(f"expected frames (B, F, H, W, 3) with F at least 1, got shape {tuple(frames.shape)}")
        latents = self.world.encode(frames)
        actions = self._check_actions(actions, (self.batch_size, frames.shape[1] - 1))
        self.prime_latents(latents, self.world.config.conditions(actions), seed=seed)

    @torch.inference_mode()
    def prime_latents(
        self, latents: Tensor, produced_by: Tensor, *, seed: int | Sequence[int] | np.ndarray = 0
    ) -> None:
        """`prime` without the encoder, and with an action for the first frame.

        Args:
            latents: (B, F, C, h, w), scaled latents; F may be 0 for a stream that starts from nothing.
            produced_by: (B, F), int64, the action that produced each frame; null_action if none.
            seed: see `prime`.

        Raises:
            ValueError: another number of streams, or not one action for each frame.
        """
        if latents.shape[0] != self.batch_size:
            raise ValueError(f"expected the frames of {self.batch_size} streams, got {latents.shape[0]}")
        if produced_by.shape != latents.shape[:2]:
            raise ValueError(
                f"expected the actions that produced {tuple(latents.shape[:2])} frames, got {tuple(produced_by.shape)}"
            )
        if isinstance(seed, Sequence | np.ndarray):
            keys = [(int(each), 0) for each in seed]
        else:
            keys = [(int(seed), stream) for stream in range(self.batch_size)]
        if len(keys) != self.batch_size or any(s < 0 for s, _ in keys):
            raise ValueError(f"expected a seed of 0 or more, or one for each of {self.batch_size} streams, got {seed}")
        self._cache.reset()
        self._latents.clear()
        self._actions.clear()
        self._fine_end = self._coarse_end = 0
        self.frame_index = EMPTY
        self._begun = torch.zeros(1, dtype=torch.int64)
        self._noise_keys = tuple(keys)
        self._primed = True
        for frame, action in zip(latents.unbind(1), produced_by.cpu().unbind(1), strict=True):
            if self._latents and self._heeds_following():
                self._actions[-1], action = action, torch.full_like(action, self.world.config.model.null_action)
            if self._latents and self.layout == "sliding":
                self._run(None, 0, first=True)
            self._remember(frame, action)

    @torch.inference_mode()
    def reset_stream(
        self, stream: int, frames: np.ndarray | Tensor, actions: np.ndarray | Tensor, *, seed: int = 0
    ) -> None:
        """Let one stream forget everything and start from a context, of any length, while the others go on.

        From here on it is, to rounding, a rollout of one stream that was primed alike.

        Args:
            stream: in [0, B).
            frames: (F, H, W, 3), uint8, F at least 1.
            actions: (F − 1,), see `prime`.
            seed: of all of the stream's noise to come.

        Raises:
            ValueError: before `prime`; no such stream; shapes, dtypes or actions out of range; one of several streams
                with sinks.
        """
        self._check_primed()
        if not 0 <= stream < self.batch_size:
            raise ValueError(f"stream must be in [0, {self.batch_size - 1}], got {stream}")
        frames, actions = torch.as_tensor(frames)[None], torch.as_tensor(actions)[None]
        if self.batch_size == 1:
            self.prime(frames, actions, seed=seed)
            return
        if self.sink_frames:
            raise ValueError("with sink_frames streams can't begin anew one by one: give sink_frames=0, or prime all")
        if self._single is None:
            self._single = self.alike(batch_size=1)
            self._single._transformer = self._transformer  # one copy is enough
        self._single.prime(frames, actions, seed=seed)
        self._single._settle()
        self._settle()
        self._adopt(stream, self._single)

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
            decode: Callable[[Tensor], Tensor] = self.world.decode
            if self._decoder is not None and len(latents) == self.batch_size:
                decode = self._decoder
            return decode(latents).cpu().numpy()

    @torch.inference_mode()
    def step_latents(self, action: int | np.ndarray | Tensor, *, noise: Tensor | None = None) -> Tensor:
        """`step` without the decoder.

        Args:
            action: see `step`.
            noise: (B, C, h, w), to start from; None is drawn by the seed.

        Returns:
            (B, C, h, w), scaled latents.
        """
        actions = self._condition(action)
        latents = self._denoise(actions, noise)
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
        actions = self._condition(action)
        predicted = self._denoise(actions, None)
        self._remember(self.world.encode(torch.as_tensor(frames)[:, None])[:, 0], actions)
        return predicted

    @property
    def snapshot_bytes(self) -> int:
        """What one frame more adds to the memory that snapshots of all frames take."""
        model = self.world.config.model
        tokens = model.coarse_tokens + (0 if self._rewrites_window else model.fine_tokens)
        latents = self.batch_size * model.latent_channels * model.latent_height * model.latent_width
        return tokens * self._cache.token_bytes + latents * torch.float32.itemsize

    def snapshot(self) -> Snapshot:
        """The state; what comes later does not change it."""
        pages, frame_of_slot, fine_end = self._cache.pages(), self._cache.frame_of_slot.clone(), self._fine_end
        if self._rewrites_window and self._first_fine > self._first_frame:  # the next frame encodes the window anew
            num_coarse = self._cache.long_term_frames
            pages = (*pages[:num_coarse], *[None] * (len(pages) - num_coarse))
            frame_of_slot[:, num_coarse:] = EMPTY
            fine_end = self._first_fine
        return Snapshot(
            pages, frame_of_slot, tuple(self._latents), tuple(self._actions), self.frame_index, fine_end,
            self._coarse_end, self._begun, self._noise_keys, self.settings,
        )  # fmt: skip

    @torch.inference_mode()
    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot of this rollout, or of one made alike; it costs what has changed since.

        Raises:
            ValueError: of a rollout with other settings.
        """
        for field in dataclasses.fields(Settings):
            mine, theirs = getattr(self.settings, field.name), getattr(snapshot.settings, field.name)
            if mine != theirs:
                raise ValueError(f"a snapshot fits rollouts made alike: expected {field.name} {mine}, got {theirs}")
        self._cache.put(snapshot.pages, snapshot.frame_of_slot)
        self._latents, self._actions = list(snapshot.latents), list(snapshot.actions)
        self.frame_index, self._begun = snapshot.frame_index, snapshot.begun
        self._noise_keys = snapshot.noise_keys
        self._fine_end, self._coarse_end = snapshot.fine_end, snapshot.coarse_end
        self._primed = bool(snapshot.noise_keys)

    def _check_actions(self, actions: int | np.ndarray | Tensor, shape: tuple[int, ...]) -> Tensor:
        """Actions as (B, …) int64 on the CPU, or ValueError naming the range."""
        tensor = torch.as_tensor(actions).cpu()
        vocabulary = self.world.config.vocabulary
        if tensor.ndim == 0:
            tensor = tensor.expand(shape)
        if tuple(tensor.shape) != shape or tensor.is_floating_point():
            raise ValueError(f"actions must be integers of shape {shape}, got {tensor.dtype} {tuple(tensor.shape)}")
        if tensor.numel() and not (0 <= int(tensor.min()) and int(tensor.max()) < len(vocabulary)):
            vocabulary.check(int(tensor.max()) if tensor.max() >= len(vocabulary) else int(tensor.min()))
        return tensor.to(torch.int64)

    def _check_primed(self) -> None:
        if not self._primed:
            raise ValueError("the rollout has no context yet: call prime(frames, actions) first")

    def _heeds_following(self) -> bool:
        """Whether frames are conditioned on the action that follows them, as the official DMLab weights are."""
        return self.world.config.frame_action == "following"

    def _condition(self, action: int | np.ndarray | Tensor) -> Tensor:
        """The next frame's condition, (B,), from the action that is to produce it.

        Where frames are conditioned on the action that follows them, the action belongs to the newest frame; what
        will follow the next one nobody knows yet, so that it gets the null action. A label is the first frame's too.
        """
        self._check_primed()
        actions = self._check_actions(action, (self.batch_size,))
        if self._actions:
            self._actions[-1] = torch.where(self._waits_for_action(), actions, self._actions[-1])
        return torch.full_like(actions, self.world.config.model.null_action) if self._heeds_following() else actions

    def _waits_for_action(self) -> Tensor:
        """Of which streams the newest frame's condition is the action that comes next, (R,), bool."""
        is_first = self._own([self.frame_index])[:, 0] == 0
        if self.world.config.frame_action == "label":
            return is_first
        return torch.full_like(is_first, self._heeds_following())

    def _remember(self, latents: Tensor, actions: Tensor) -> None:
        """Make these latents the newest frame."""
        self._latents.append(latents)
        self._actions.append(actions)
        self.frame_index += 1

    @property
    def _first_frame(self) -> int:
        """The oldest frame that any stream has had; below 0 if a stream has begun anew with a longer past."""
        return int(self._begun.min())

    @property
    def _first_fine(self) -> int:
        """The first frame that the next frame sees by fine tokens."""
        return max(self._first_frame, self.frame_index + 1 - self.world.config.model.window + 1)

    def _own(self, frames: Sequence[int]) -> Tensor:
        """Frames as each stream counts them, (R, F); EMPTY for those that it does not have."""
        return (torch.tensor(frames, dtype=torch.int64) - self._begun[:, None]).clamp(min=EMPTY)

    def _settle(self) -> None:
        """Put all past frames into the cache now, and not with the next frame."""
        if self._fine_end <= self.frame_index:
            actions = torch.full_like(self._actions[-1], self.world.config.model.null_action)
            whatever = torch.zeros_like(self._latents[-1])  # as what comes next
            self._run((whatever, actions), 0, first=True)

    def _adopt(self, stream: int, single: Rollout) -> None:
        """Let a stream go on as a rollout of one stream would; both are settled."""
        cache, shift = self._cache, self.frame_index - single.frame_index
        slots = {}
        for slot, frame in enumerate(single._cache.frame_of_slot[0, :-1].tolist()):
            if frame != EMPTY and slot < cache.long_term_frames:
                slots[cache.coarse_slot(frame + shift)] = slot
            elif frame != EMPTY and not self._rewrites_window:
                slots[cache.fine_slot(frame + shift)] = slot
        cache.adopt(stream, self.batch_size, single._cache, slots)
        self._begun = self._begun.repeat(self.batch_size // len(self._begun))
        self._begun[stream] = shift
        self._noise_keys = (*self._noise_keys[:stream], *single._noise_keys, *self._noise_keys[stream + 1 :])
        null = torch.full_like(self._actions[-1], self.world.config.model.null_action)
        while len(self._latents) < len(single._latents):  # frames that only this stream has
            self._latents.insert(0, torch.zeros_like(self._latents[-1]))
            self._actions.insert(0, null)
        for age in range(1, len(self._latents) + 1):
            self._latents[-age], self._actions[-age] = self._latents[-age].clone(), self._actions[-age].clone()
            has_it = age <= len(single._latents)
            self._latents[-age][stream] = single._latents[-age][0] if has_it else 0
            self._actions[-age][stream] = single._actions[-age][0] if has_it else null[0]
        self._coarse_end = max(self._first_frame, self.frame_index + 1 - self.world.config.model.window + 1)
        if self._waits_for_action().any():  # the newest frame was settled without its action
            self._fine_end, self._coarse_end = self.frame_index, min(self._coarse_end, self.frame_index)
        if self._rewrites_window:
            self._fine_end = self._first_frame  # the window may begin elsewhere now

    def _to_encode(self) -> tuple[list[int], list[int]]:
        """Past frames that the next frame's first pass has to put into the cache, by fine and by coarse tokens."""
        cache, coming, first_fine = self._cache, self.frame_index + 1, self._first_fine
        # What is older than the rings reach would be overwritten before anyone sees it.
        coarse = range(max(self._coarse_end, first_fine - cache.long_term_frames), first_fine)
        fine = range(max(self._fine_end, coming - cache.short_term_frames), coming)
        if self._rewrites_window and first_fine > self._first_frame:
            fine = range(first_fine, coming)
        return list(fine), list(coarse)

    def _run(self, noisy: tuple[Tensor, Tensor] | None, step: int, *, first: bool) -> Tensor:
        """One pass through the transformer.

        Args:
            noisy: latents (B, C, h, w) and actions (B,) of the next frame; None only encodes what came before.
            step: of denoising, which says the noisy latents' flow time.
            first: also encode past frames that are not in the cache.

        Returns:
            (B, C, h, w), the velocity of the last frame, guided.
        """
        cache, coming = self._cache, self.frame_index + 1
        fine_frames, coarse_frames = self._to_encode() if first else ([], [])
        self._place_sinks(coarse_frames)
        kept = coming - len(self._latents)  # frame of the oldest latents at hand
        latents = [self._as_context(frame) for frame in fine_frames]
        actions = [self._actions[frame - kept] for frame in fine_frames]
        timesteps = [context_mark(CLEAN_SHORT_TERM, self.context_noise)] * len(fine_frames)
        if noisy is not None:
            latents.append(noisy[0])
            actions.append(noisy[1])
            timesteps.append(self.timesteps[step] * TIMESTEP_SCALE)
        frames = fine_frames + [coming] * (noisy is not None)
        first_fine = torch.zeros(1, dtype=torch.int64).expand_as(self._begun)
        if self._rewrites_window:  # in order: then no query has to pass over the keys of later frames
            slots = [cache.long_term_frames + frame - self._first_fine for frame in frames]
            first_fine = (self._first_fine - self._begun).clamp(min=0)
        else:
            slots = [cache.scratch_slot if frame == coming else cache.fine_slot(frame) for frame in frames]
        own_fine, own_coarse = self._own(frames), self._own(coarse_frames)
        attention = CachedAttention(
            cache, fine_frames=own_fine, fine_slots=slots, coarse_frames=own_coarse,
            coarse_slots=[cache.coarse_slot(frame) for frame in coarse_frames], first_fine=first_fine,
        )  # fmt: skip
        before = self._both(self._latents[-1][:, None]) if self._latents else None
        device = self.world.device
        size = None
        if self.settings.step_sizes is not None:
            size = torch.full((1, len(frames)), self.settings.step_sizes[step], device=device)
        fine = Frames(
            self._both(torch.stack(latents, dim=1)),
            torch.tensor([timesteps], device=device),
            self._both_conditions(torch.stack(actions, dim=1)).to(device),
            frames,
            size,
            self._rope(own_fine, self.world.config.model.patch_size),
        )
        coarse = None
        if coarse_frames:
            coarse = Frames(
                self._both(torch.stack([self._as_context(frame) for frame in coarse_frames], dim=1)),
                torch.full((1, 1), context_mark(CLEAN_LONG_TERM, self.context_noise), device=device),
                self._both_conditions(torch.stack([self._actions[frame - kept] for frame in coarse_frames], dim=1)).to(
                    device
                ),
                coarse_frames,
                rope=self._rope(own_coarse, self.world.config.model.context_patch_size or 1),
            )
        velocity = self._transformer.run(
            fine, coarse, attention, before=before, num_outputs=1, modulate=self._modulate
        )[:, -1].float()
        if first:
            self._have_encoded(coarse_frames)
        if self.settings.branches == 2:
            unconditional, conditional = velocity.chunk(2)
            velocity = unconditional + self.guidance_scale * (conditional - unconditional)
        return velocity

    def _place_sinks(self, coarse_frames: list[int]) -> None:
        """Let the sinks stand where they are to be seen from these frames on."""
        if self.sink_frames and coarse_frames:
            beyond = coarse_frames[-1] - self._cache.long_term_frames + 1
            if beyond > 0:
                self._cache.place_sinks(beyond)

    def _have_encoded(self, coarse_frames: list[int]) -> None:
        """All past frames are in the cache now, these by their coarse tokens: forget what nobody needs any more."""
        coming, window = self.frame_index + 1, self.world.config.model.window
        kept = coming - len(self._latents)
        if coarse_frames and coarse_frames[0] < self.sink_frames:
            self._cache.keep_sinks()
        self._fine_end = coming
        self._coarse_end = max(self._coarse_end, coming - window + 1)
        # The frame that leaves the window next is the oldest that is still needed; the newest always is.
        needed = self._coarse_end if self.world.config.model.context_patch_size else coming
        surplus = max(0, min(needed, coming - 1) - kept)
        del self._latents[:surplus], self._actions[:surplus]

    def _rope(self, frames: Tensor, patch: int) -> tuple[Tensor, Tensor] | None:
        """Positions of each stream's own frames, (R, F), for all branches; None while the count is one for all."""
        if len(frames) == 1:
            return None
        tables = self.world.transformer.rope(frames.flatten().tolist(), patch, device=self.world.device)
        cos, sin = (
            table.unflatten(0, (len(frames), 1, -1)).repeat(self.settings.branches, 1, 1, 1) for table in tables
        )
        return cos, sin

    def _both(self, latents: Tensor) -> Tensor:
        """The same latents for the unconditional and the conditional branch."""
        return latents.repeat(self.settings.branches, *[1] * (latents.ndim - 1))

    def _both_conditions(self, actions: Tensor) -> Tensor:
        """Actions (B, F) of all branches: the null action for the unconditional one."""
        null = torch.full_like(actions, self.world.config.model.null_action)
        if self.guidance_scale == 0.0:
            return null
        return actions if self.settings.branches == 1 else torch.cat([null, actions])

    def _denoise(self, actions: Tensor, noise: Tensor | None) -> Tensor:
        """The latents of the next frame; the first pass also puts what is new into the cache."""
        if noise is None:
            noise = self._noise(self.frame_index + 1)
        if self._static is not None:
            fine, coarse = self._to_encode()
            if (len(fine), len(coarse)) == (1, int(self.world.config.model.context_patch_size is not None)):
                return self._static_frame(self._static, coarse, actions, noise)
        x = noise.to(self.world.device)
        for step, (now, then) in enumerate(zip(self.timesteps, self.timesteps[1:], strict=False)):
            x = flow.euler_step(x, self._run((x, actions), step, first=step == 0), now, then)
        return x

    def _static_frame(self, make: StaticFrame, coarse: list[int], actions: Tensor, noise: Tensor) -> Tensor:
        """The latents of the next frame, if its first pass encodes the newest frame and the one leaving the window."""
        cache, newest, coming = self._cache, self.frame_index, self.frame_index + 1
        leaving = coarse[0] if coarse else newest
        self._place_sinks(coarse)
        fine_slot, coarse_slot = cache.fine_slot(newest), cache.coarse_slot(leaving) if coarse else 0
        own_fine, own_coarse = self._own([newest, coming]), self._own([leaving])
        cache.claim(fine_slot, own_fine[:, 0])
        cache.claim(cache.scratch_slot, own_fine[:, 1])
        if coarse:
            cache.claim(coarse_slot, own_coarse[:, 0])
        added = [torch.zeros(noise.shape)] * 2
        if self.context_noise:
            added = [self._noise(frame, CONTEXT_NOISE_KEY) for frame in (newest, leaving)]
        oldest = coming - len(self._latents)
        latents = make(
            NewFrames(
                fine=own_fine, coarse=own_coarse, fine_token=cache.token_range(fine_slot).start,
                coarse_token=cache.token_range(coarse_slot).start,
                actions=torch.stack([self._actions[-1], actions, self._actions[leaving - oldest]], dim=1),
                noise=torch.stack([*added, noise.cpu()], dim=1),
                newest=self._latents[-1], leaving=self._latents[leaving - oldest],
            )
        )  # fmt: skip
        self._have_encoded(coarse)
        return latents

    def _as_context(self, frame: int) -> Tensor:
        """A past frame's latents as the model sees them, (B, C, h, w), the same ones every time."""
        latents = self._latents[frame - (self.frame_index + 1 - len(self._latents))]
        if not self.context_noise:
            return latents
        level = torch.full((len(latents),), self.context_noise, device=latents.device)
        return flow.add_noise(latents, self._noise(frame, CONTEXT_NOISE_KEY).to(latents.device), level)

    def _noise(self, frame: int, *purpose: int) -> Tensor:
        """(B, C, h, w), standard normal, on the CPU, keyed by seed, stream, frame, and purpose if not to start from."""
        config = self.world.config.model
        shape = (config.latent_channels, config.latent_height, config.latent_width)
        streams = []
        for key, own in zip(
            self._noise_keys, self._own([frame]).expand(self.batch_size, 1)[:, 0].tolist(), strict=True
        ):
            entropy = [*key, max(own, 0), *purpose]  # of a frame that the stream does not have any will do
            key = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
            generator = torch.Generator().manual_seed(int(key >> np.uint64(1)))
            streams.append(torch.randn(shape, generator=generator))
        return torch.stack(streams)


def _in_dtype(transformer: FAR, dtype: torch.dtype) -> FAR:
    """A transformer, or a copy of it in another dtype.

    Raises:
        ValueError: it is packed for float32.
    """
    if dtype == torch.float32:
        return transformer
    if any(isinstance(module, Packed) for module in transformer.modules()):
        raise ValueError(f"a world that is packed for a CPU computes in float32, not in {dtype}")
    return copy.deepcopy(transformer).to(dtype)


def _modulations(world: WorldModel, settings: Settings) -> Modulate | None:
    """How the transformer's modulations are found, if not as it computes them itself."""
    noise_levels = [t * TIMESTEP_SCALE for t in settings.timesteps[:-1]]
    if ModulationTable.fits(world.transformer, noise_levels):
        with torch.inference_mode():
            return ModulationTable(
                world.transformer, noise_levels, step_sizes=settings.step_sizes,
                context_noise=settings.context_noise, dtype=settings.dtype,
            )  # fmt: skip
    if settings.dtype == torch.float32:
        return None
    # What comes of a timestep is sensitive to its last bits.
    return lambda *condition: tuple(part.to(settings.dtype) for part in world.transformer.modulations(*condition))


@torch.inference_mode()
def denoise_clip(world: WorldModel, actions: Tensor, noise: Tensor, timesteps: Sequence[float]) -> Tensor:
    """A whole clip from noise at one timestep for all frames, as Video-DiT makes it.

    Args:
        world: with a model that isn't causal.
        actions: (B, F), int64, the action that produced each frame; null_action if none.
        noise: (B, F, C, h, w), standard normal.
        timesteps: flow times from 1 to 0, see `farworld.models.flow.euler_timesteps`.

    Returns:
        (B, F, C, h, w), scaled latents.
    """
    x = noise
    for now, then in zip(timesteps, timesteps[1:], strict=False):
        t = torch.full(actions.shape, now * TIMESTEP_SCALE, device=x.device)
        x = flow.euler_step(x, world.transformer(x, t, actions, None), now, then)
    return x
