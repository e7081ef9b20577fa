"""Where a world runs: the device of a name, and what the machine is called."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Literal

import torch

DeviceName = Literal["auto", "cpu", "cuda", "mps"]


def choose_device(name: DeviceName | str) -> torch.device:
    """The device of a name; auto is CUDA, else MPS, else the CPU.

    Raises:
        ValueError: this machine has no such device.
    """
    available = [
        kind
        for kind, there in (
            ("cuda", torch.cuda.is_available()),
            ("mps", torch.backends.mps.is_available()),
            ("cpu", True),
        )
        if there
    ]
    if name == "auto":
        return torch.device(available[0])
    if name.partition(":")[0] not in available:
        raise ValueError(f"there is no device {name!r} here; there is {', '.join(available)}")
    return torch.device(name)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 faster than float32; a CPU without instructions for it is slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def dtype_of_play(device: torch.device) -> torch.dtype:
    """What a rollout computes in where speed counts: bfloat16 on a GPU that has it, float32 elsewhere."""
    return torch.bfloat16 if device.type == "cuda" and has_bfloat16(device) else torch.float32


def describe_hardware(device: torch.device) -> str:
    """The name of the GPU, or the name of the CPU with its cores and the threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    kind = "GPU of " if device.type == "mps" else ""
    return f"{kind}{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
