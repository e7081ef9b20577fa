"""Rollouts on Apple's GPUs: on the GPU itself where there is one, and on a stand-in for it everywhere."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils import backend_registration

from farworld.checkpoint import load_world
from farworld.models.attention import attend
from farworld.rollout import Rollout

SCRIPT = Path(__file__).parent / "stand_in_device.py"
NEAR = 4  # of 255: where a CPU decodes in bfloat16


@pytest.fixture(scope="module")
def report(tiny_world_path):
    """What `stand_in_device.py` saw."""
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch has no devices made in Python")
    command = [sys.executable, str(SCRIPT), str(tiny_world_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_frames_of_another_device_are_those_of_the_cpu(report):
    """Both layouts, guidance, noised context, static frames; nothing mixes devices unless it may."""
    assert len(report["apart"]) == 4 and max(report["apart"]) <= NEAR
    assert all(report["steps_back"])


def test_nothing_on_the_device_is_of_a_kind_that_mps_lacks(report):
    """It has no float64 and no complex128."""
    assert {"torch.float32", "torch.int64"} <= set(report["dtypes"])
    assert not {"torch.float64", "torch.complex128"} & set(report["dtypes"])


def test_torch_has_kernels_for_mps_of_all_operations(report):
    kernels = kernels_by_operation()
    assert not has_mps(kernels, "linalg_eig")  # it is on CPUs and CUDA alone: the list does tell
    assert len(report["operations"]) > 40
    assert [name for name in report["operations"] if not has_mps(kernels, name)] == []


def kernels_by_operation() -> dict[str, tuple[set[str], str | None]]:
    """Of each operation in torch's own list: backends with kernels, and the operation that it is another form of."""
    import torchgen

    listed = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    kernels = {}
    for entry in listed.read_text(encoding="utf-8").split("\n- func: ")[1:]:
        dispatch = re.search(r"^  dispatch:\n((?:    .*\n?)+)", entry, re.MULTILINE)
        lines = dispatch[1].splitlines() if dispatch else ["CompositeImplicitAutograd: "]
        backends = {name.strip() for line in lines for name in line.partition(":")[0].split(",")}
        delegate = re.search(r"structured_delegate: (\S+)", entry)
        kernels[entry.partition("(")[0].strip()] = backends, delegate[1] if delegate else None
    return kernels


def has_mps(kernels: dict[str, tuple[set[str], str | None]], name: str) -> bool:
    """Whether an operation runs on MPS, by a kernel or by others."""
    backends, delegate = kernels[name]
    if delegate is not None:
        return has_mps(kernels, delegate)
    return any(backend == "MPS" or backend.startswith("Composite") for backend in backends)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_spelled_out_is_attention(masked, monkeypatch):
    """As other devices have it, here on a tensor that says it is on one."""
    generator = torch.Generator().manual_seed(0)
    storage = torch.randn(2, 2, 3, 40, 8, generator=generator)
    q, k, v = torch.randn(2, 3, 4, 8, generator=generator), *storage[:, :, :, 3:30].unbind(0)
    mask = torch.randn(1, 1, 4, 27, generator=generator).masked_fill(torch.arange(27) > 20, -torch.inf)

    class Elsewhere(torch.Tensor):
        device = torch.device("meta")

    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask if masked else None)
    assert torch.allclose(attend(q, k, v, mask if masked else None), expected)
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)
    found = attend(q.as_subclass(Elsewhere), k, v, mask if masked else None)
    assert torch.allclose(found.as_subclass(torch.Tensor), expected, atol=1e-6)


@pytest.mark.skipif(not torch.backends.mps.is_available(), reason="there is no Apple GPU here")
@pytest.mark.parametrize("world", ["dmlab", "minecraft"])
def test_frames_of_the_gpu_are_those_of_the_cpu(world):
    frames = []
    for device in ("cpu", "mps"):
        loaded = load_world(world, device=device)
        context = loaded.contexts[0]
        rollout = Rollout(loaded.model, context_frames=32)
        rollout.prime(context.frames[None], context.actions[None], seed=3)
        frames.append(np.stack([rollout.step(i % 5) for i in range(12)]).astype(int))
    assert np.abs(frames[0] - frames[1]).mean() < 1
