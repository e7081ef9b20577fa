"""The ways to run a world on a CPU, side by side: what a frame costs, and how far its frames are from eager ones.

    python benchmarks/cpu_paths.py [--ckpt dmlab] [--paths bfloat16 openvino …] [--frames 100] [--threads 1] [--json]

- eager: float32, weights packed for oneDNN.
- played: the same with the decoder in bfloat16 where the CPU has instructions for it, as worlds are played.
- unpacked: the same without packing.
- bfloat16: packed weights and their inputs in bfloat16, the rest in float32; the decoder in bfloat16 throughout.
- autocast: PyTorch's automatic mixed precision.
- int8: dynamic quantisation of linear layers (`torch.ao.quantization.quantize_dynamic`); the decoder has none.
- compile: `torch.compile` with frozen weights; needs a C++ compiler, and minutes.
- openvino, openvino-bf16: run by OpenVINO in float32 and in bfloat16; needs `pip install "farworld[openvino]"`.

The last three take a pass of the transformer as a pure function, see `farworld.exported`; they are made in the first
frame.

Every path has a rollout of its own that goes on from the same full context under the same actions, and they take turns
frame by frame, so that other load hits all alike. Processor time of all threads is what counts on a busy machine. A
path that cannot be had is a line that says why.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from unittest import mock

import numpy as np
import torch
from command import print_rows, publish, run
from cyclopts import App, Parameter
from torch import Tensor, nn

from farworld import checkpoint
from farworld.checkpoint import World, load_world
from farworld.console import progress_bar
from farworld.device import has_bfloat16
from farworld.exported import ExportedRun, PurePass, run_by_openvino
from farworld.models import packed
from farworld.models.packed import PackedLinear
from farworld.models.packed_conv import PackedConv
from farworld.rollout import Rollout

Path = Literal["eager", "played", "unpacked", "bfloat16", "autocast", "int8", "compile", "openvino", "openvino-bf16"]
ALL: tuple[Path, ...] = (
    "eager", "played", "unpacked", "bfloat16", "autocast", "int8", "compile", "openvino", "openvino-bf16",
)  # fmt: skip
WARM_UP_FRAMES = 3


# Making paths


class Unavailable(RuntimeError):
    """A path that this machine does not have; the message says why."""


def prepare(path: Path, ckpt: str, threads: int) -> World:
    """A world that runs in one of the ways.

    Raises:
        Unavailable: it needs what is not here.
    """
    if path == "played":
        return load_world(ckpt)
    if path in ("eager", "bfloat16"):
        world = _load_float32(ckpt)
        if path == "bfloat16":
            _to_bfloat16(world)
        return world
    world = _load_float32(ckpt, is_packed=False)
    transformer, decoder = world.model.transformer, world.model.autoencoder.decoder
    if path == "autocast":
        for module, name in ((transformer, "run"), (decoder, "forward")):
            setattr(module, name, torch.autocast("cpu", torch.bfloat16)(getattr(module, name)))
    elif path == "int8":
        torch.ao.quantization.quantize_dynamic(transformer.blocks, {nn.Linear}, dtype=torch.qint8, inplace=True)
    elif path == "compile":
        _compile(world, threads)
    elif path.startswith("openvino"):
        try:
            run_by_openvino(world.model, precision="bfloat16" if path.endswith("bf16") else "float32")
        except (ImportError, ValueError) as error:
            raise Unavailable(str(error)) from error
    return world


def _load_float32(ckpt: str, *, is_packed: bool = True) -> World:
    """A world as it would be on a CPU without instructions for bfloat16, or without the packed kernels."""
    with ExitStack() as changes:
        changes.enter_context(mock.patch.object(checkpoint, "has_bfloat16", return_value=False))
        if not is_packed:
            changes.enter_context(mock.patch.object(packed, "can_pack", return_value=False))
            changes.enter_context(mock.patch.object(checkpoint, "pack_convolutions"))
        return load_world(ckpt)


def _to_bfloat16(world: World) -> None:
    """Packed weights in bfloat16; linear layers still take and give float32."""
    if not has_bfloat16(torch.device("cpu")):
        raise Unavailable("this CPU has no instructions for bfloat16, and emulates them slowly")
    for name, module in world.model.transformer.named_modules():
        if isinstance(module, PackedLinear) and name.startswith("blocks"):
            module._weight = torch.ops.mkldnn._reorder_linear_weight(module._weight.to_dense().bfloat16())
            if module.bias is not None:
                module.bias = nn.Parameter(module.bias.bfloat16(), requires_grad=False)
            module.forward = _through_bfloat16(module.forward)  # type: ignore[method-assign]
    decoder = world.model.autoencoder.decoder
    for module in decoder.modules():
        if isinstance(module, PackedConv):
            dense, module._dtype = module._weight.to_dense(), torch.bfloat16
            module._weight = module._pack(dense)
            module._bias = None if module._bias is None else module._bias.bfloat16()
    decoder.forward = _through_bfloat16(decoder.forward)  # type: ignore[method-assign]


def _through_bfloat16(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: forward(x.bfloat16()).float()


def _compile(world: World, threads: int) -> None:
    if not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        raise Unavailable("torch.compile needs a C++ compiler, such as g++, and there is none")
    import torch._inductor.config as inductor

    inductor.freezing, inductor.cpp.threads = True, threads
    transformer, decoder = world.model.transformer, world.model.autoencoder.decoder
    transformer.run = ExportedRun(transformer, torch.compile(PurePass(transformer)))  # type: ignore[method-assign]
    world.model.autoencoder.decoder = torch.compile(decoder)  # type: ignore[assignment]


# Measuring


@dataclass
class Measured:
    """A path's rollout, and what its frames took: milliseconds by the clock and of the processor."""

    path: Path
    world: World
    rollout: Rollout
    transformer: list[tuple[float, float]] = field(default_factory=list)
    decoder: list[tuple[float, float]] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)

    def step(self, action: int) -> np.ndarray:
        """Generate a frame."""
        latents, took = _timed(lambda: self.rollout.step_latents(action))
        self.transformer.append(took)
        frame, took = _timed(lambda: self.rollout.decode(latents))
        self.decoder.append(took)
        return frame

    def row(self) -> dict[str, Any]:
        """The figures."""
        figures: dict[str, Any] = {"path": self.path}
        for part in ("transformer", "decoder"):
            taken = getattr(self, part)[WARM_UP_FRAMES:]
            figures[f"{part}_cpu_ms"] = round(statistics.median(cpu for _, cpu in taken), 2)
            figures[f"{part}_ms"] = round(statistics.median(clock for clock, _ in taken), 2)
        return {
            **figures,
            "min_psnr": round(min(self.psnr), 1),
            "mean_psnr": round(statistics.mean(self.psnr), 1),
            "first_frame_cpu_s": round((self.transformer[0][1] + self.decoder[0][1]) / 1000, 1),
        }


def _timed(function: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    began, cpu_began = time.perf_counter(), time.process_time()
    result = function()
    return result, (1000 * (time.perf_counter() - began), 1000 * (time.process_time() - cpu_began))


def psnr(frame: np.ndarray, other: np.ndarray) -> float:
    """Of two uint8 frames; 99 where they are the same."""
    error = float(((frame.astype(np.float32) - other.astype(np.float32)) ** 2).mean())
    return 10 * float(np.log10(255**2 / error)) if error else 99.0


def compare(ckpt: str, paths: tuple[Path, ...], num_frames: int, threads: int) -> list[dict[str, Any]]:
    """A row for each path; a path that is not here has a reason in place of figures."""
    first = load_world(ckpt)
    rng, num_actions = np.random.default_rng(0), len(first.config.vocabulary)
    source = Rollout(first.model)
    source.prime(first.contexts[0].frames[None], first.contexts[0].actions[None])
    missing = source.context_frames - source.context_in_use
    with progress_bar("filling the context", missing, unit="frames") as advance:
        for _ in range(missing):
            source.step_latents(int(rng.integers(num_actions)))
            advance()
    rows: list[dict[str, Any]] = []
    all_measured: list[Measured] = []
    for path in paths:
        try:
            world = prepare(path, ckpt, threads)
        except Unavailable as error:
            rows.append({"path": path, "unavailable": str(error)})
            continue
        all_measured.append(Measured(path, world, Rollout(world.model)))
        all_measured[-1].rollout.restore(source.snapshot())
    with progress_bar("measuring", num_frames, unit="frames") as advance:
        for _ in range(num_frames):
            action = int(rng.integers(num_actions))
            frames = [measured.step(action) for measured in all_measured]
            for measured, frame in zip(all_measured, frames, strict=True):
                measured.psnr.append(psnr(frame, frames[0]))
            advance()
    return [measured.row() for measured in all_measured] + rows


app = App(
    name="cpu_paths.py",
    version_flags=(),
    result_action="return_value",
    help="The ways to run a world on a CPU, side by side.",
)


@app.default
def cpu_paths(
    *,
    ckpt: Annotated[str, Parameter(help="The world, see `farworld play`.")] = "dmlab",
    paths: Annotated[
        tuple[Path, ...], Parameter(consume_multiple=True, negative=(), help="What to measure beside eager.")
    ] = ALL,
    frames: Annotated[int, Parameter(help="Frames to measure; 3 more warm up.")] = 100,
    threads: Annotated[int, Parameter(help="That every path uses.")] = 1,
    json: Annotated[bool, Parameter(negative=(), help="Also print one JSON object, as the last line.")] = False,
) -> None:
    """Measure the paths in turns."""
    for name, value in {"--frames": frames, "--threads": threads}.items():
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    torch.set_num_threads(threads)
    rows = compare(ckpt, tuple(dict.fromkeys(("eager", *paths))), frames + WARM_UP_FRAMES, threads)
    print_rows(rows)
    publish(
        {
            "ckpt": ckpt,
            "frames": frames,
            "measured": "transformer with its cache, and decoder; context full; PSNR of frames against eager ones",
        },
        rows,
        device=torch.device("cpu"),
        json=json,
    )


if __name__ == "__main__":
    run(app)
