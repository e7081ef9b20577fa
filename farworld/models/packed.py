"""Linear layers for inference on a CPU, their weights laid out once for oneDNN's kernels.

PyTorch hands float32 products to MKL, which leaves half of the vector unit of an AMD CPU idle; oneDNN does not, and
takes the GELU along. The results differ by rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Packed(nn.Module):
    """A layer whose weight, of `num_packed` numbers, is no parameter any more."""

    num_packed: int


class PackedLinear(Packed):
    """A linear layer, and perhaps the GELU behind it, without gradients; its state is that of the linear layer."""

    def __init__(self, linear: nn.Linear, *, gelu: bool = False) -> None:
        """Pack a layer's float32 weight, (out, in), which is on the CPU; the bias is shared."""
        super().__init__()
        self.num_packed = linear.weight.numel()
        # Not a buffer: the packed layout is opaque, and cannot move to another device.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = linear.bias
        self._activation: tuple[str, list, str] = ("gelu", [], "tanh") if gelu else ("none", [], "")

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out), float32."""
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self.bias, *self._activation)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_weight": self._weight.to_dense()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self._weight.to_dense()
        super()._save_to_state_dict(destination, prefix, keep_vars)


def can_pack() -> bool:
    """Whether this PyTorch has the kernels for this CPU."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        with torch.inference_mode():
            PackedLinear(nn.Linear(16, 16))(torch.zeros(1, 16))
    except (AttributeError, NotImplementedError, RuntimeError):  # the operators have no stable interface
        return False
    return True


def pack_linears(module: nn.Module) -> None:
    """Replace the linear layers inside a module in place, for inference on the CPU; nothing where it can't be done.

    Args:
        module: float32, on the CPU; its gradients are given up.
    """
    if can_pack():
        module.requires_grad_(False)
        _pack(module)


def _pack(module: nn.Module) -> None:
    children = list(module.named_children())
    for position, (name, child) in enumerate(children):
        if isinstance(child, nn.Linear):
            after = children[position + 1][1] if position + 1 < len(children) else None
            gelu = isinstance(module, nn.Sequential) and isinstance(after, nn.GELU) and after.approximate == "tanh"
            setattr(module, name, PackedLinear(child, gelu=gelu))
            if gelu:
                setattr(module, children[position + 1][0], nn.Identity())
        else:
            _pack(child)
