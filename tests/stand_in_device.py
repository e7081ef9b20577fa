"""A device that is no CPU and no CUDA, to see what a rollout does on MPS where there is none.

Run as a program, with a world's directory: it plays the world on the stand-in and on the CPU and prints as JSON which
operations met tensors of the device, the dtypes that were there, and how far the frames are apart.

The stand-in's tensors wrap CPU tensors. They meet CPU tensors only where real devices allow it, and know no float64.
"""

import json
import sys
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

torch.inference_mode = torch.no_grad  # wrapped tensors have no views in inference mode; read when farworld is imported

import numpy as np  # noqa: E402

from farworld.checkpoint import load_world  # noqa: E402
from farworld.rollout import Rollout  # noqa: E402

NAME = "standin"
_setup_privateuseone_for_python_backend(NAME)
DEVICE = torch.device(NAME, 0)
# Between devices there is copying, and an index may lie on the CPU.
CROSSING = ("aten._to_copy", "aten.copy_", "aten.index")


class Wrapped(torch.Tensor):
    """A tensor that says it is on the stand-in."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "Wrapped":
        """A tensor without memory of its own."""
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=DEVICE,
        )  # fmt: skip

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return SEEN.run(op, args, kwargs or {})


class Seen(TorchDispatchMode):
    """Computes on the CPU what the stand-in is asked for, and remembers what that was."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: set[str] = set()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, op: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return self.run(op, args, kwargs or {})

    def run(self, op: Any, args: tuple, kwargs: dict) -> Any:
        """Do it on the CPU; the result is on the stand-in if that was asked for, or if arguments are."""
        given = tree_leaves((args, kwargs))
        wrapped = [x for x in given if isinstance(x, Wrapped)]
        device = kwargs.get("device")
        to_device = bool(wrapped) if device is None else torch.device(device).type == NAME
        if to_device and device is not None:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        elif device is not None and wrapped:
            kwargs = {**kwargs, "device": torch.device(device)}
        strangers = [x for x in given if isinstance(x, torch.Tensor) and not isinstance(x, Wrapped) and x.ndim]
        if wrapped and strangers and not str(op).startswith(CROSSING):
            raise RuntimeError(f"{op} met tensors on {NAME} and on the CPU")
        inner = tree_map(lambda x: x.inner if isinstance(x, Wrapped) else x, (args, kwargs))
        result = op(*inner[0], **inner[1])
        if wrapped or to_device:
            self.operations.add(str(op).removeprefix("aten.").removesuffix(".default"))
        if str(op).startswith("aten.copy_") and not isinstance(args[0], Wrapped):
            return result
        if not to_device:
            return result
        known = {id(x.inner): x for x in wrapped}

        def wrap(x: Any) -> Any:
            if not isinstance(x, torch.Tensor):
                return x
            self.dtypes.add(x.dtype)
            return known[id(x)] if id(x) in known else Wrapped(x)

        return tree_map(wrap, result)


class FromData(TorchFunctionMode):
    """torch.tensor(..., device=...) makes its tensor where no dispatch mode sees it."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.tensor and torch.device(kwargs.get("device") or "cpu").type == NAME:
            return function(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        return function(*args, **kwargs)


def played(path: str, device: torch.device, **settings: Any) -> np.ndarray:
    """Frames (F, B, H, W, 3) of two streams, with a new start and a step back among them."""
    world = load_world(path, device=device)
    context = world.contexts[0]
    start, actions = np.stack([context.frames] * 2), np.stack([context.actions] * 2)
    rollout = Rollout(world.model, batch_size=2, context_frames=12, **settings)
    rollout.prime(start, actions, seed=[1, 2])
    frames = [rollout.step(i % 3) for i in range(14)]
    snapshot = rollout.snapshot()
    frames.append(rollout.step(1))
    rollout.restore(snapshot)
    frames.append(rollout.step(1))
    rollout.reset_stream(1, context.frames[:3], context.actions[:2], seed=5)
    frames += [rollout.step(i % 3) for i in range(4)]
    return np.stack(frames)


def main() -> None:
    settings: list[dict[str, Any]] = [
        {}, {"layout": "anchored"}, {"guidance_scale": 1.5, "num_steps": 3}, {"context_noise": 0.1, "static": True},
    ]  # fmt: skip
    apart, steps_back = [], []
    for each in settings:
        expected = played(sys.argv[1], torch.device("cpu"), **each)
        with SEEN, FromData():
            frames = played(sys.argv[1], DEVICE, **each)
        apart.append(int(np.abs(frames.astype(int) - expected).max()))
        steps_back.append(bool((frames[14] == frames[15]).all()))
    report = {
        "operations": sorted(SEEN.operations),
        "dtypes": sorted(str(dtype) for dtype in SEEN.dtypes),
        "apart": apart,
        "steps_back": steps_back,
    }
    print(json.dumps(report))


SEEN = Seen()

if __name__ == "__main__":
    main()
