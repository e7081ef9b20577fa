"""What a training will take, before it starts: parameters, tokens, arithmetic and memory of the world stage.

A step is run on tensors without storage, so that sizes beyond this machine can be asked about.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from farworld.arithmetic import flop_counter
from farworld.models.far import FAR
from farworld.train.config import TrainConfig
from farworld.train.run import Draws, autocast
from farworld.train.world import ClipKind, clip_length, flow_matching_loss

LENGTHS = 4  # clip lengths that stand for the distribution, at even quantiles
STATE_BYTES = 5 * 4  # a parameter's weight, gradient, two moments of AdamW and moving average
CPU_RUNTIME_BYTES = 570 * 2**20  # of Python, PyTorch and the logs, before any tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """The figures of one process's share of a step, means over the whole run unless the name says otherwise.

    Attributes:
        parameters: of the transformer.
        frames_per_clip: frames.
        tokens_per_clip: that enter the transformer to be trained.
        flops_per_step: floating-point operations, forward and backward.
        memory_bytes: at the peak, of the device; on a CPU of the whole process.
    """

    parameters: int
    frames_per_clip: float
    tokens_per_clip: float
    flops_per_step: float
    memory_bytes: int

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return asdict(self)


def clip_kinds(config: TrainConfig, longest: int | None = None) -> list[tuple[float, ClipKind]]:
    """Kinds of clips that stand for a whole training, each with its share of the steps.

    They lie at even quantiles of the lengths before and in the decay.

    Args:
        config: of the run.
        longest: frames of the longest episode; None takes clips of any length for granted.
    """
    late = 1 - config.decay_start(config.world_steps) / config.world_steps
    limit = longest or config.max_clip_frames
    phases = (
        (1 - late, min(config.early_clip_frames, limit), 0.0),
        (late, min(config.max_clip_frames, limit), config.own_context_ratio),
    )
    return [
        (share / LENGTHS, ClipKind(clip_length(most, config, (index + 0.5) / LENGTHS), own_context_ratio))
        for share, most, own_context_ratio in phases
        for index in range(LENGTHS)
    ]


def estimate_world(
    config: TrainConfig, num_actions: int, device: torch.device, *, longest: int | None = None, processes: int = 1
) -> Estimate:
    """What the world stage takes.

    Args:
        config: of the run.
        num_actions: of the data's vocabulary.
        device: where it would run.
        longest: frames of the longest episode; None takes clips of any length for granted.
        processes: that share the batch.
    """
    kinds = clip_kinds(config, longest)
    clips = config.world_batch_size // processes // config.accumulate
    frames = tokens = flops = 0.0
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device(device):
            model = FAR(config.far(num_actions))
        model.recompute = config.recompute
        counts = {kind: _run(model, config, kind, clips, device)[0] for kind in {kind for _, kind in kinds}}
        for share, kind in kinds:
            frames += share * kind.length
            tokens += share * _tokens(model, config, kind.length)
            flops += share * counts[kind] * config.accumulate
        most = ClipKind(min(config.max_clip_frames, longest or config.max_clip_frames), config.own_context_ratio)
        _, saved = _run(model, config, most, clips, device)
        parameters = sum(parameter.numel() for parameter in model.parameters())
    runtime = CPU_RUNTIME_BYTES if device.type == "cpu" else 0
    return Estimate(
        parameters=parameters,
        frames_per_clip=frames,
        tokens_per_clip=tokens,
        flops_per_step=flops,
        memory_bytes=parameters * STATE_BYTES + saved + runtime,
    )


def _run(model: FAR, config: TrainConfig, kind: ClipKind, clips: int, device: torch.device) -> tuple[int, int]:
    """Floating-point operations of one part of a step, and the bytes that its forward pass keeps for the backward."""
    sizes = model.config
    shape = clips, kind.length, sizes.latent_channels, sizes.latent_height, sizes.latent_width
    clean = torch.zeros(shape, device=device)
    actions = torch.zeros(clips, kind.length, dtype=torch.int64, device=device)
    draws = Draws([torch.Generator() for _ in range(clips)])
    own_weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own_weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    def same(tensor: Tensor) -> Tensor:
        return tensor

    with flop_counter() as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, same), autocast(config, device):
            loss = flow_matching_loss(
                model, sizes, clean, actions, config, draws, own_context_ratio=kind.own_context_ratio
            )
        loss.backward()
    for parameter in model.parameters():
        parameter.grad = None
    return counter.get_total_flops(), sum(kept.values())


def _tokens(model: FAR, config: TrainConfig, length: int) -> int:
    """Tokens of a clip: fine ones of the frames that are trained on, coarse ones of what they see so."""
    sizes, num_fine = model.config, min(config.fine_frames, length)
    num_coarse = max(length - num_fine, length - sizes.window, 0)
    return num_fine * sizes.fine_tokens + num_coarse * sizes.coarse_tokens
