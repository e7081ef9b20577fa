"""An autoencoder's convolutions for inference on a CPU: weights laid out once for oneDNN, neighbours taken along.

PyTorch lays a convolution's weight out anew at every call, and hands small batches to a slow kernel when it has one
thread. Here batch norms and up-sampling shortcuts become part of the weights, and activations and residual sums part
of the kernel. The results differ by rounding; the state is that of the original layers.

A decoder may work in bfloat16: what it shows then differs by about as much as rounding to 8 bits does (58 dB), and goes
nowhere else.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from farworld.models.autoencoder import Autoencoder, ResBlock, Up
from farworld.models.packed import Packed

Sizes = dict[str, list[int]]


class PackedConv(Packed):
    """A convolution without gradients, and perhaps what is behind it; its state is that of the convolution."""

    def __init__(
        self,
        conv: nn.Conv2d,
        input_size: list[int],
        *,
        norm: nn.BatchNorm2d | None = None,
        repeats: int = 0,
        activation: str = "none",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Pack a layer's float32 weight, (out, in, kernel, kernel), which is on the CPU.

        Args:
            conv: the layer, its stride 1.
            input_size: (B, C, H, W), what it will mostly see; others are right, but perhaps slower.
            norm: in evaluation mode, applied to the result.
            repeats: if not 0, each input channel is added to so many output channels, one after the other.
            activation: of the result: none, relu or swish (which is SiLU).
            dtype: of the product, and of the result.
        """
        super().__init__()
        self.num_packed = conv.weight.numel()
        self.bias = conv.bias
        self._window = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self._input_size = input_size
        self._activation: tuple[str, list, str] = (activation, [], "")
        weight, bias = conv.weight.detach(), None if conv.bias is None else conv.bias.detach()
        if norm is not None:
            assert norm.running_mean is not None and norm.running_var is not None
            scale = norm.weight.detach() * (norm.running_var + norm.eps).rsqrt()
            bias = ((0 if bias is None else bias) - norm.running_mean) * scale + norm.bias.detach()
            weight = weight * scale[:, None, None, None]
        if repeats:
            outputs = torch.arange(len(weight))
            weight = weight.clone()
            weight[outputs, outputs // repeats, weight.shape[2] // 2, weight.shape[3] // 2] += 1
        # What is folded into a weight cannot be taken out again to the last bit.
        is_changed = norm is not None or repeats or dtype != conv.weight.dtype
        self._original = conv.weight.detach() if is_changed else None
        self._dtype = dtype
        self._bias = None if bias is None else bias.to(dtype)
        # Not a buffer: the packed layout is opaque, and cannot move to another device.
        self._weight = self._pack(weight)

    def _pack(self, weight: Tensor) -> Tensor:
        weight = weight.to(self._dtype).contiguous()
        return torch.ops.mkldnn._reorder_convolution_weight(weight, *self._window, self._input_size)

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """(B, in, H, W) to (B, out, H, W), plus `added` of that shape."""
        x = x.to(self._dtype)
        if added is None:
            return torch.ops.mkldnn._convolution_pointwise(
                x, self._weight, self._bias, *self._window, *self._activation
            )
        return torch.ops.mkldnn._convolution_pointwise.binary(
            x, added.to(self._dtype), self._weight, self._bias, *self._window, "add", 1.0, None, [], None
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_weight": self._weight.to_dense()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._weight = self._pack(self._weight)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self._weight.to_dense() if self._original is None else self._original
        super()._save_to_state_dict(destination, prefix, keep_vars)


class PackedResBlock(nn.Module):
    """A decoder's block in two calls; the batch norm is kept for its state alone."""

    def __init__(self, block: ResBlock, conv1: PackedConv, conv2: PackedConv) -> None:
        super().__init__()
        self.conv1 = conv1
        self.conv2 = conv2
        self.norm = block.norm

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return self.conv2(self.conv1(x), added=x)


class PackedUp(nn.Module):
    """Up with its shortcut in the convolution."""

    def __init__(self, conv: PackedConv) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, out_channels, 2H, 2W)."""
        return F.pixel_shuffle(self.conv(x), 2)


def can_pack_convolutions(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this PyTorch has the kernels for this CPU."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        with torch.inference_mode():
            x = torch.zeros(1, 16, 4, 4)
            PackedConv(nn.Conv2d(16, 16, 3, padding=1), [1, 16, 4, 4], activation="swish", dtype=dtype)(x)
            PackedConv(nn.Conv2d(16, 16, 3, padding=1), [1, 16, 4, 4], dtype=dtype)(x, added=x)
    except (AttributeError, NotImplementedError, RuntimeError):  # the operators have no stable interface
        return False
    return True


def pack_convolutions(
    autoencoder: Autoencoder, frame_height: int, frame_width: int, *, decoder_dtype: torch.dtype = torch.float32
) -> None:
    """Replace an autoencoder's convolutions in place, for inference on the CPU; nothing where it can't be done.

    Args:
        autoencoder: float32, on the CPU, in evaluation mode; its gradients are given up.
        frame_height: pixels of the frames that it will mostly see.
        frame_width: likewise.
        decoder_dtype: what the decoder multiplies in, if it has kernels for that and no attention, which is float32.
    """
    if not can_pack_convolutions():
        return
    if autoencoder.config.attention_stages or not can_pack_convolutions(decoder_dtype):
        decoder_dtype = torch.float32
    autoencoder.requires_grad_(False)
    sizes = _input_sizes(autoencoder, frame_height, frame_width)
    _pack(autoencoder.encoder, "encoder.", sizes, torch.float32)
    _pack(autoencoder.decoder, "decoder.", sizes, decoder_dtype)


def _pack(module: nn.Module, prefix: str, sizes: Sizes, dtype: torch.dtype) -> None:
    for name, child in list(module.named_children()):
        path = f"{prefix}{name}"
        if isinstance(child, nn.Conv2d):
            setattr(module, name, PackedConv(child, sizes[path], dtype=dtype))
        elif isinstance(child, Up):
            conv = PackedConv(child.conv, sizes[f"{path}.conv"], repeats=child.repeats, dtype=dtype)
            setattr(module, name, PackedUp(conv))
        elif isinstance(child, ResBlock):
            one, two = sizes[f"{path}.conv1"], sizes[f"{path}.conv2"]
            if isinstance(child.norm, nn.BatchNorm2d):  # a decoder's, with ReLU
                conv1 = PackedConv(child.conv1, one, activation="relu", dtype=dtype)
                conv2 = PackedConv(child.conv2, two, norm=child.norm, dtype=dtype)
                setattr(module, name, PackedResBlock(child, conv1, conv2))
            else:  # an encoder's, with SiLU
                setattr(child, "conv1", PackedConv(child.conv1, one, activation="swish", dtype=dtype))  # noqa: B010
                setattr(child, "conv2", PackedConv(child.conv2, two, dtype=dtype))  # noqa: B010
                child.activation = nn.Identity()
        else:
            _pack(child, f"{path}.", sizes, dtype)


def _input_sizes(autoencoder: Autoencoder, frame_height: int, frame_width: int) -> Sizes:
    """What each convolution sees of one frame, found by a run without numbers."""
    with torch.device("meta"):
        shadow, frame = Autoencoder(autoencoder.config), torch.empty(1, 3, frame_height, frame_width)
    sizes: Sizes = {}
    for name, module in shadow.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(
                lambda _, inputs, name=name: sizes.__setitem__(name, list(inputs[0].shape))
            )
    with torch.inference_mode():
        shadow(frame)
    return sizes
