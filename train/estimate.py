"""What a training will take, before it starts: parameters, tokens, arithmetic and memory of the world stage.

A step is run on tensors without storage, so that sizes beyond this machine can be asked about. Blocks are alike, so
that two depths tell what any depth takes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from farworld.arithmetic import flop_counter
from farworld.models.autoencoder import Autoencoder
from farworld.models.far import FAR, FARConfig
from farworld.train.config import TrainConfig
from farworld.train.run import Draws, autocast
from farworld.train.world import ClipKind, clip_length, flow_matching_loss

LENGTHS = 4  # clip lengths that stand for the distribution, at even quantiles
DEPTHS = 1, 2  # layers of the models that are run; the last block, which is not like the others, is in both
STATE_BYTES = 5 * 4  # a parameter's weight, gradient, two moments of AdamW and moving average
CPU_RUNTIME_BYTES = 570 * 2**20  # of Python, PyTorch and the logs, before any tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """The figures of one process's share of a step, means over the whole run unless the name says otherwise.

    Attributes:
        parameters: of the transformer.
        autoencoder_parameters: of the autoencoder, which is trained before.
        frames_per_clip: frames.
        tokens_per_clip: that enter the transformer to be trained.
        flops_per_step: floating-point operations, forward and backward.
        memory_bytes: at the peak, of the device; on a CPU of the whole process.
    """

    parameters: int
    autoencoder_parameters: int
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
        if share
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
    length = clip_length(min(config.max_clip_frames, longest or config.max_clip_frames), config, 1.0)
    most = ClipKind(length, max(kind.own_context_ratio for _, kind in kinds))
    needed = {most, *(kind for _, kind in kinds)}
    counts = count_steps(config, num_actions, needed, clips, device)
    with torch.device("meta"):
        model, autoencoder = FAR(config.far(num_actions)), Autoencoder(config.autoencoder())
    parameters, autoencoder_parameters = (
        sum(parameter.numel() for parameter in module.parameters()) for module in (model, autoencoder)
    )
    runtime = CPU_RUNTIME_BYTES if device.type == "cpu" else 0
    state_bytes = parameters * STATE_BYTES
    if config.fsdp and processes > 1:  # and two blocks that have come together, one to compute and one ahead of it
        state_bytes = state_bytes // processes + 2 * 4 * parameters // config.num_layers
    return Estimate(
        parameters=parameters,
        autoencoder_parameters=autoencoder_parameters,
        frames_per_clip=sum(share * kind.length for share, kind in kinds),
        tokens_per_clip=sum(share * tokens_of_clip(model.config, config, kind.length) for share, kind in kinds),
        flops_per_step=sum(share * counts[kind][0] * config.accumulate for share, kind in kinds),
        memory_bytes=state_bytes + counts[most][1] + runtime,
    )


def count_steps(
    config: TrainConfig, num_actions: int, kinds: set[ClipKind], clips: int, device: torch.device
) -> dict[ClipKind, tuple[int, int]]:
    """What one part of a step takes, by the kind of its clips; from shallow models where the config's is deep.

    Args:
        config: of the run.
        num_actions: of the data's vocabulary.
        kinds: of clips.
        clips: in the part.
        device: where it would run.

    Returns:
        Floating-point operations, forward and backward, and the bytes that the forward pass keeps for the backward.
    """
    depths = DEPTHS if config.num_layers > DEPTHS[-1] else (config.num_layers,)
    runs = []
    with FakeTensorMode(allow_non_fake_inputs=True):
        for depth in depths:
            with torch.device(device):
                model = FAR(dataclasses.replace(config, num_layers=depth).far(num_actions))
            model.recompute = config.recompute
            runs.append({kind: _run(model, config, kind, clips, device) for kind in kinds})
    if len(runs) == 1:
        return runs[0]
    more = config.num_layers - depths[-1]  # blocks beyond the deeper model's, each worth the difference of the two
    return {
        kind: (
            runs[1][kind][0] + more * (runs[1][kind][0] - runs[0][kind][0]),
            runs[1][kind][1] + more * (runs[1][kind][1] - runs[0][kind][1]),
        )
        for kind in kinds
    }


def _run(model: FAR, config: TrainConfig, kind: ClipKind, clips: int, device: torch.device) -> tuple[int, int]:
    """What `count_steps` returns, of one kind, from running it."""
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


def tokens_of_clip(sizes: FARConfig, config: TrainConfig, length: int) -> int:
    """Fine tokens of the frames of a clip that are trained on, and coarse ones of what they see so."""
    num_fine = min(config.fine_frames, length)
    num_coarse = max(length - num_fine, length - sizes.window, 0)
    return num_fine * sizes.fine_tokens + num_coarse * sizes.coarse_tokens
