"""The format of the official FAR weights, mapped to ours and back.

The official implementation is github.com/showlab/FAR; its weights, guyuchao/FAR_Models, are flat dictionaries of
tensors, one of a transformer and one of a DC-AE. This module renames, stacks and splits tensors and checks each of
them by name and shape; it reads no files.

- Queries, keys and values have a projection each there, and one together here.
- `context_proj_out` turns coarse tokens into velocities that nobody reads: checked, then left out, unless
  `FARConfig.coarse_output` is set.
- The DC-AE's first stage has no blocks, so that its width is that of the second; we do not count it as a stage.
  The outputs of its `to_q`, `to_k` and `to_v` are concatenated and then regrouped, so that their names do not say what
  their channels are used for; our `to_qkv` has the same layout.

Paper: FAR, arXiv:2503.19325, Table 1.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from farworld.models.attention import Positions
from farworld.models.autoencoder import Autoencoder, AutoencoderConfig
from farworld.models.far import FAR, FARConfig

REPOSITORY = "guyuchao/FAR_Models"  # on the Hugging Face hub
SCALING_FACTOR = 0.2889  # of all official latents
HEAD_SIZE = 64
ATTENTION_HEAD_SIZE = 32  # of the DC-AE

Condition = Literal["action", "label"]
# Our module, to the official modules whose parameters it has stacked along their first axis.
Modules = dict[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """A size of the paper's Table 1; heads are 64 wide, and windows 16 frames long."""

    num_layers: int
    num_heads: int
    context_patch_size: int | None = None


VARIANTS = {
    "far_b": Variant(num_layers=12, num_heads=12),
    "far_m": Variant(num_layers=12, num_heads=16),
    "far_l": Variant(num_layers=24, num_heads=16),
    "far_xl": Variant(num_layers=28, num_heads=18),
    "far_b_long": Variant(num_layers=12, num_heads=12, context_patch_size=4),
    "far_m_long": Variant(num_layers=12, num_heads=16, context_patch_size=4),
}
SHORT_TERM_FRAMES = 16


def variant_of(config: FARConfig) -> str | None:
    """The name of a model's size in `VARIANTS`, or None if it has another one."""
    size = Variant(
        num_layers=config.num_layers, num_heads=config.num_heads, context_patch_size=config.context_patch_size
    )
    return next((name for name, variant in VARIANTS.items() if variant == size), None)


def far_config(
    official_config: Mapping[str, Any], latent_height: int, latent_width: int, *, coarse_output: bool = False
) -> FARConfig:
    """The config of an official transformer.

    Args:
        official_config: what its constructor takes; without `context_patch_size` it has no long-term stream.
        latent_height: latent pixels; the official config does not say.
        latent_width: latent pixels.
        coarse_output: keep the output of the coarse tokens.

    Raises:
        ValueError: a field is missing or unknown, or has a value that our model does not know.
    """
    fields = dict(official_config)
    source = "the official FAR config"
    values = {name: _take(fields, name, source) for name in ("patch_size", "in_channels", "out_channels", "num_layers")}
    head_size, num_heads = (_take(fields, name, source) for name in ("attention_head_dim", "num_attention_heads"))
    if values["in_channels"] != values["out_channels"]:
        raise ValueError(
            f"{source} must have as many out_channels as in_channels, "
            f"got {values['out_channels']} and {values['in_channels']}"
        )
    axes, expected = list(_take(fields, "axes_dims_rope", source)), [head_size // 4, *[head_size * 3 // 8] * 2]
    if axes != expected:
        raise ValueError(f"{source} must have axes_dims_rope = {expected}, as our rotary positions, got {axes}")
    slope, window = _take(fields, "slope_scale", source), _take(fields, "short_term_ctx_winsize", source)
    condition, context_patch_size = _take(fields, "condition_cfg", source), fields.pop("context_patch_size", None)
    _refuse_rest(fields, source)
    return FARConfig(
        latent_channels=values["in_channels"],
        latent_height=latent_height,
        latent_width=latent_width,
        num_actions=_num_classes(condition),
        num_layers=values["num_layers"],
        num_heads=num_heads,
        head_size=head_size,
        patch_size=values["patch_size"],
        context_patch_size=context_patch_size,
        short_term_frames=window,
        coarse_output=coarse_output and context_patch_size is not None,
        positions=Positions.flex_rope(slope) if slope else Positions(),
    )


def _take(fields: dict[str, Any], name: str, source: str) -> Any:
    if name not in fields:
        raise ValueError(f"{source} lacks the field {name!r}")
    return fields.pop(name)


def _refuse_rest(fields: Mapping[str, Any], source: str) -> None:
    if fields:
        raise ValueError(f"{source} has the field {next(iter(fields))!r}, which our model does not know")


def _num_classes(condition: Mapping[str, Any] | None) -> int:
    """Classes of the official `condition_cfg`: none, labels or actions."""
    if condition is None:
        return 0
    known = {"label": "num_classes", "action": "num_action_classes"}
    name = known.get(condition.get("type", ""))
    if name is None or set(condition) != {"type", name}:
        raise ValueError(
            "the official condition_cfg must be null, {'type': 'label', 'num_classes': N} or "
            f"{{'type': 'action', 'num_action_classes': N}}, got {dict(condition)}"
        )
    return condition[name]


def recognise_far(
    official: Mapping[str, Tensor],
    latent_height: int,
    latent_width: int,
    *,
    short_term_frames: int = SHORT_TERM_FRAMES,
    coarse_output: bool = False,
) -> FARConfig:
    """The config of an official transformer, read off its tensors' names and shapes.

    Args:
        official: its state dict.
        latent_height: latent pixels, which no tensor tells.
        latent_width: latent pixels.
        short_term_frames: the window, which no tensor tells either.
        coarse_output: keep the output of the coarse tokens.

    Raises:
        ValueError: these are no official FAR weights.
    """
    embedding = _matrix(official, "x_embedder.weight", 2, "FAR")
    width, channels = embedding.shape
    if not channels or not width or width % HEAD_SIZE:
        raise ValueError(
            f"these are no official FAR weights: 'x_embedder.weight' must have a multiple of {HEAD_SIZE} rows and at "
            f"least one column, found shape {tuple(embedding.shape)}"
        )
    context_patch_size = None
    if "context_embedder.weight" in official:
        context_patch_size = round((_matrix(official, "context_embedder.weight", 2, "FAR").shape[1] / channels) ** 0.5)
    table_name = f"{_condition(official)}_embedder.embedding_table.weight"
    table = _matrix(official, table_name, 2, "FAR") if table_name in official else None
    return FARConfig(
        latent_channels=channels,
        latent_height=latent_height,
        latent_width=latent_width,
        num_actions=0 if table is None else table.shape[0] - 1,
        num_layers=_count(official, r"transformer_blocks\.(\d+)\."),
        num_heads=width // HEAD_SIZE,
        head_size=HEAD_SIZE,
        context_patch_size=context_patch_size,
        short_term_frames=short_term_frames,
        coarse_output=coarse_output and context_patch_size is not None,
    )


def _matrix(official: Mapping[str, Tensor], name: str, ndim: int, kind: str) -> Tensor:
    """A tensor that tells sizes."""
    if name not in official:
        raise ValueError(f"these are no official {kind} weights: the tensor {name!r} is missing")
    if official[name].ndim != ndim:
        raise ValueError(
            f"these are no official {kind} weights: the tensor {name!r} must have {ndim} axes, "
            f"found shape {tuple(official[name].shape)}"
        )
    return official[name]


def _count(names: Collection[str], pattern: str) -> int:
    """One more than the largest number that the pattern finds at the start of a name, at most as many as names."""
    highest = max((int(match[1]) + 1 for name in names if (match := re.match(pattern, name))), default=0)
    return min(highest, len(names))  # a number out of all proportion is soon found to lack its tensors


def _condition(official: Collection[str]) -> Condition:
    return "label" if "label_embedder.embedding_table.weight" in official else "action"


def far_state_dict(official: Mapping[str, Tensor], config: FARConfig) -> dict[str, Tensor]:
    """The state dict of our transformer; tensors that are not stacked share the official ones' memory.

    Args:
        official: the official state dict. With `config.coarse_output` False, `context_proj_out` is checked and left
            out.
        config: see `far_config`.

    Returns:
        Every tensor of `FAR(config)`, float32.

    Raises:
        ValueError: an official tensor is missing, surplus or mis-shaped.
    """
    if config.copy_gate:
        raise ValueError("the official weights have no copy gate; take copy_gate=False")
    # The whole model is checked, whatever of it is kept.
    with torch.device("meta"):
        whole = FAR(replace(config, coarse_output=config.context_patch_size is not None)).state_dict()
    stacked = _stack(official, whole, _far_modules(config, _condition(official)), "FAR")
    return {name: tensor for name, tensor in stacked.items() if config.coarse_output or "coarse_head" not in name}


def official_gradients(
    named: Mapping[str, Tensor], config: FARConfig, *, condition: Condition = "action"
) -> dict[str, Tensor]:
    """Tensors that go with our parameters, such as gradients, under the official names.

    Args:
        named: our parameters' names, to tensors of their shapes.
        config: the model's.
        condition: what the model's classes are, and so what the official table is called.

    Raises:
        ValueError: a name is none of our parameters'.
    """
    modules = _far_modules(config, condition)
    split = {}
    for name, tensor in named.items():
        module, _, kind = name.rpartition(".")
        if module not in modules:
            raise ValueError(f"the official format has no counterpart of {name!r}")
        parts = modules[module]
        split.update({f"{part}.{kind}": chunk for part, chunk in zip(parts, tensor.chunk(len(parts)), strict=True)})
    return split


def _far_modules(config: FARConfig, condition: Condition) -> Modules:
    modules: Modules = {
        "fine_embedding": ("x_embedder",),
        "coarse_embedding": ("context_embedder",),
        "timestep_embedding.linear_1": ("timestep_embedder.linear_1",),
        "timestep_embedding.linear_2": ("timestep_embedder.linear_2",),
        "action_embedding": (f"{condition}_embedder.embedding_table",),
        "final_modulation": ("norm_out.linear",),
        "velocity_head": ("proj_out",),
        "coarse_head": ("context_proj_out",),
    }
    block = {
        "modulation_1": ("norm1.linear",),
        "fine_attention.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "fine_attention.norm_q": ("attn.norm_q",),
        "fine_attention.norm_k": ("attn.norm_k",),
        "fine_attention.output": ("attn.to_out.0",),
        "coarse_attention.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "coarse_attention.norm_q": ("attn.norm_added_q",),
        "coarse_attention.norm_k": ("attn.norm_added_k",),
        "coarse_attention.output": ("attn.to_add_out",),
        "modulation_2": ("norm2.linear",),
        "mlp.0": ("mlp.net.0.proj",),
        "mlp.2": ("mlp.net.2",),
    }
    for layer in range(config.num_layers):
        for ours, parts in block.items():
            modules[f"blocks.{layer}.{ours}"] = tuple(f"transformer_blocks.{layer}.{part}" for part in parts)
    return modules


def autoencoder_config(official_config: Mapping[str, Any]) -> AutoencoderConfig:
    """The config of an official DC-AE.

    Args:
        official_config: what its constructor takes, or its config file.

    Raises:
        ValueError: a field is missing or unknown, or has a value that our autoencoder does not know.
    """
    source = "the official DC-AE config"
    fields = {name: value for name, value in official_config.items() if not name.startswith("_")}
    fields.pop("scaling_factor", None)  # goes with the state dict
    latent_channels, head_size, kinds, widths, encoder_blocks, decoder_blocks = (
        _take(fields, name, source)
        for name in (
            "latent_channels", "attention_head_dim", "encoder_block_types", "encoder_block_out_channels",
            "encoder_layers_per_block", "decoder_layers_per_block",
        )
    )  # fmt: skip
    attention_stages = list(kinds).count("EfficientViTBlock")
    residual_stages = len(kinds) - attention_stages
    no_multiscales: list[list] = [[] for _ in kinds]
    expected = {
        "encoder_block_types": ["ResBlock"] * residual_stages + ["EfficientViTBlock"] * attention_stages,
        "decoder_block_types": list(kinds),
        "decoder_block_out_channels": list(widths),
        "encoder_qkv_multiscales": no_multiscales,
        "decoder_qkv_multiscales": no_multiscales,
        "decoder_norm_types": ["batch_norm"] * residual_stages + ["rms_norm"] * attention_stages,
        "decoder_act_fns": ["relu"] * residual_stages + ["silu"] * attention_stages,
        "in_channels": 3,
        "upsample_block_type": "pixel_shuffle",
        "downsample_block_type": "pixel_unshuffle",
    }
    for name, value in expected.items():
        found = kinds if name == "encoder_block_types" else _take(fields, name, source)
        if found != value:
            raise ValueError(f"{source} must have {name} = {value}, got {found}")
    _refuse_rest(fields, source)
    if encoder_blocks[0] or decoder_blocks[0]:
        raise ValueError(
            f"{source} must have no blocks in its first stage, got {encoder_blocks[0]} and {decoder_blocks[0]}"
        )
    return AutoencoderConfig(
        latent_channels=latent_channels,
        widths=tuple(widths[1:]),
        encoder_blocks=tuple(encoder_blocks[1:]),
        decoder_blocks=tuple(decoder_blocks[1:]),
        attention_stages=attention_stages,
        attention_head_size=head_size,
    )


def recognise_autoencoder(official: Mapping[str, Tensor]) -> AutoencoderConfig:
    """The config of an official DC-AE, of any compression, read off its tensors' names and shapes.

    Raises:
        ValueError: these are no official DC-AE weights.
    """
    conv_in = _matrix(official, "decoder.conv_in.weight", 4, "DC-AE")
    last = _count(official, r"encoder\.down_blocks\.(\d+)\.") - 1
    stages = range(1, last + 1)
    # But for the last stage, the last block of a stage is the way down, and the first one the way up.
    encoder_blocks = [_count(official, rf"encoder\.down_blocks\.{i}\.(\d+)\.") - (i < last) for i in stages]
    decoder_blocks = [_count(official, rf"decoder\.up_blocks\.{i}\.(\d+)\.") - (i < last) for i in stages]
    widths = [
        _matrix(official, f"encoder.down_blocks.{i}.{blocks}.conv.weight", 4, "DC-AE").shape[1]
        for i, blocks in zip(stages, encoder_blocks, strict=True)
        if i < last
    ]
    return AutoencoderConfig(
        latent_channels=conv_in.shape[1],
        widths=(*widths, conv_in.shape[0]),
        encoder_blocks=tuple(encoder_blocks),
        decoder_blocks=tuple(decoder_blocks),
        attention_stages=sum(f"encoder.down_blocks.{i}.0.attn.to_q.weight" in official for i in stages),
        attention_head_size=ATTENTION_HEAD_SIZE,
    )


def autoencoder_state_dict(
    official: Mapping[str, Tensor], config: AutoencoderConfig, scaling_factor: float = SCALING_FACTOR
) -> dict[str, Tensor]:
    """The state dict of our autoencoder; tensors that are not stacked share the official ones' memory.

    Args:
        official: the official state dict, with its batch norms' statistics.
        config: see `autoencoder_config`.
        scaling_factor: what latents are multiplied by.

    Returns:
        Every tensor of `Autoencoder(config)`.

    Raises:
        ValueError: an official tensor is missing, surplus or mis-shaped.
    """
    with torch.device("meta"):
        ours = Autoencoder(config).state_dict()
    statistics = {
        "latent_shift": torch.zeros(config.latent_channels),
        "latent_scale": torch.full((config.latent_channels,), scaling_factor),
    }
    named = {name: tensor for name, tensor in ours.items() if name not in statistics}
    return {**_stack(official, named, _autoencoder_modules(config), "DC-AE"), **statistics}


def _autoencoder_modules(config: AutoencoderConfig) -> Modules:
    modules: Modules = {
        "encoder.conv_in": ("encoder.conv_in.conv",),
        "encoder.conv_out": ("encoder.conv_out",),
        "decoder.conv_in": ("decoder.conv_in",),
        "decoder.norm_out": ("decoder.norm_out",),
        "decoder.conv_out": ("decoder.conv_out.conv",),
    }
    attention = {
        "0.to_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "0.to_out": ("attn.to_out",),
        "0.norm_out": ("attn.norm_out",),
        "1.inverted": ("conv_out.conv_inverted",),
        "1.depthwise": ("conv_out.conv_depth",),
        "1.point": ("conv_out.conv_point",),
        "1.norm": ("conv_out.norm",),
    }
    residual = {name: (name,) for name in ("conv1", "conv2", "norm")}
    resampling = {"conv": ("conv",)}

    last = len(config.widths) - 1
    for half, side, counts in (
        ("encoder", "down_blocks", config.encoder_blocks),
        ("decoder", "up_blocks", config.decoder_blocks),
    ):
        is_encoder = half == "encoder"
        position = 0  # in our list of blocks, which has all stages in a row
        for stage in range(last + 1) if is_encoder else range(last, -1, -1):
            blocks = [attention if stage > last - config.attention_stages else residual] * counts[stage]
            change = [resampling] if stage < last else []
            for index, block in enumerate([*blocks, *change] if is_encoder else [*change, *blocks]):
                theirs = f"{half}.{side}.{stage + 1}.{index}"
                for ours, parts in block.items():
                    modules[f"{half}.stages.{position}.{ours}"] = tuple(f"{theirs}.{part}" for part in parts)
                position += 1
    return modules


def _stack(
    official: Mapping[str, Tensor], ours: Mapping[str, Tensor], modules: Modules, kind: str
) -> dict[str, Tensor]:
    """Our state dict, every official tensor accounted for by name and shape.

    Args:
        official: the official state dict.
        ours: the shapes and types wanted, by our names.
        modules: where each of our modules comes from.
        kind: of the weights, for messages.
    """
    parts_of: dict[str, list[str]] = {}
    expected: dict[str, tuple[int, ...]] = {}
    for name, tensor in ours.items():
        module, _, parameter = name.rpartition(".")
        parts = [f"{part}.{parameter}" for part in modules[module]]
        shape = (tensor.shape[0] // len(parts), *tensor.shape[1:]) if tensor.ndim else ()
        parts_of[name] = parts
        expected.update(dict.fromkeys(parts, shape))
    for name, shape in expected.items():
        if name not in official:
            raise ValueError(f"the official {kind} weights lack the tensor {name!r} of shape {shape}")
        tensor = official[name]
        if (
            not tensor.is_floating_point()
            and not name.endswith("num_batches_tracked")
            or tensor.layout != torch.strided
        ):
            raise ValueError(
                f"the official {kind} weights must have dense floating-point numbers in {name!r}, "
                f"found {tensor.dtype}, {tensor.layout}"
            )
        if tuple(official[name].shape) != shape:
            raise ValueError(
                f"the official {kind} weights must have the tensor {name!r} in shape {shape}, "
                f"found {tuple(official[name].shape)}"
            )
    surplus = sorted(official.keys() - expected.keys())
    if surplus:
        raise ValueError(
            f"the official {kind} weights hold {len(surplus)} tensors that the model does not have, "
            f"first {surplus[0]!r} of shape {tuple(official[surplus[0]].shape)}"
        )
    return {
        name: (official[parts[0]] if len(parts) == 1 else torch.cat([official[part] for part in parts])).to(
            ours[name].dtype
        )
        for name, parts in parts_of.items()
    }
