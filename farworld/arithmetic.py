"""Floating-point operations: how many something takes, and how many a second this machine does."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, sdpa_backward_flop_count, sdpa_flop_count


def flop_counter() -> FlopCounterMode:
    """A context manager that counts matrix products, convolutions and attention; a multiplication and its sum are two.

    PyTorch's own counter knows the attention kernels of GPUs; this one also those of CPUs, and the packed layers.
    """
    kernels: dict[Any, Callable[..., int]] = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
        ),
    }
    for name, count in (("_linear_pointwise", _linear_flops), ("_convolution_pointwise", _convolution_flops)):
        if hasattr(torch.ops.mkldnn, name):
            kernels[getattr(torch.ops.mkldnn, name)] = count
    return FlopCounterMode(display=False, custom_mapping=kernels)


def count_flops(function: Callable[[], object]) -> int:
    """What one call takes; see `flop_counter`."""
    with flop_counter() as counter:
        function()
    return counter.get_total_flops()


def _linear_flops(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * weight[0]


def _convolution_flops(x: torch.Size, *others: Any, out_shape: torch.Size, **__: Any) -> int:
    """Of x, weight, bias, …, or with something added to the result: of x, added, weight, …."""
    weight, maybe_bias = others[:2]
    if maybe_bias is not None and len(maybe_bias) == len(x):
        weight = maybe_bias
    return conv_flop_count(list(x), list(weight), list(out_shape))


def matmul_rate(device: torch.device, dtype: torch.dtype, *, seconds: float = 1.0) -> float:
    """Floating-point operations a second that this machine reaches on large matrix products; measured.

    On a CPU the better one of PyTorch's own product and the packed layers' (`farworld.models.packed`).
    """
    from farworld.models.packed import PackedLinear, can_pack

    # On a busy CPU only a product that is over before another program's turn shows what the CPU can do.
    sizes = (8192,) if device.type == "cuda" else (512, 1024)
    products: list[tuple[int, Callable[[], object]]] = []
    for size in sizes:
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        products.append((size, functools.partial(torch.matmul, a, b)))
        if device.type == "cpu" and dtype == torch.float32 and can_pack():
            products.append((size, functools.partial(PackedLinear(torch.nn.Linear(size, size)), a)))
    best, end = 0.0, time.perf_counter() + seconds
    with torch.inference_mode():
        while time.perf_counter() < end:
            for size, product in products:
                synchronise(device)
                began = time.perf_counter()
                product()
                synchronise(device)
                best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was told; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
