"""The ways to run a world on a CPU, side by side: what a frame costs, and how far its frames are from eager ones.

    python benchmarks/cpu_paths.py [--ckpt dmlab] [--paths bfloat16 openvino …] [--frames 100] [--threads 1] [--json]

- eager: as worlds are played: float32, weights packed for oneDNN.
- unpacked: the same without packing.
- bfloat16: packed weights and their inputs in bfloat16, the rest in float32; the decoder in bfloat16 throughout.
- autocast: PyTorch's automatic mixed precision.
- int8: dynamic quantisation of linear layers (`torch.ao.quantization.quantize_dynamic`); the decoder has none.
- compile: `torch.compile` with frozen weights; needs a C++ compiler, and minutes.
- openvino, openvino-bf16: exported and run by OpenVINO in float32 and bfloat16; needs `pip install openvino`.

The last two take a pass of the transformer as a pure function: keys and values of new frames come out, and the caller
writes them into the cache. That fits play when its window is full, in one step a frame; anything else runs eagerly.

Every path has a rollout of its own that goes on from the same full context under the same actions, and they take turns
frame by frame, so that other load hits all alike. Processor time of all threads is what counts on a busy machine. A
path that cannot be had is a line that says why.
"""

from __future__ import annotations

import json as json_format
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from cyclopts import App, CycloptsError, Parameter
from torch import Tensor, nn

from farworld import checkpoint
from farworld.bench import commit_of_checkout
from farworld.checkpoint import World, load_world
from farworld.console import progress_bar
from farworld.device import describe_hardware
from farworld.models import packed
from farworld.models.attention import QKV, rope_table
from farworld.models.far import (
    COPY_TIMESTEP_MIN,
    FAR,
    Block,
    Frames,
    Modulate,
    Stream,
    _mix_in_copy,
    _stretched,
    _unpatchify,
    patchify,
)
from farworld.models.kv_cache import CachedAttention
from farworld.models.packed import PackedLinear
from farworld.models.packed_conv import PackedConv
from farworld.rollout import Rollout

Path = Literal["eager", "unpacked", "bfloat16", "autocast", "int8", "compile", "openvino", "openvino-bf16"]
ALL: tuple[Path, ...] = (
    "eager", "unpacked", "bfloat16", "autocast", "int8", "compile", "openvino", "openvino-bf16",
)  # fmt: skip
WARM_UP_FRAMES = 3
Call = Callable[..., tuple[Tensor, ...]]


class PurePass(nn.Module):
    """A pass of the transformer in play's steady state, without side effects and with all that changes as an input."""

    def __init__(self, transformer: FAR) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(
        self,
        fine_latents: Tensor,
        coarse_latents: Tensor,
        fine_modulations: Tensor,
        coarse_modulations: Tensor,
        fine_cos: Tensor,
        fine_sin: Tensor,
        coarse_cos: Tensor,
        coarse_sin: Tensor,
        keys: Tensor,
        values: Tensor,
        fine_mask: Tensor,
        coarse_mask: Tensor,
    ) -> tuple[Tensor, ...]:
        """Velocity and copy logits of the last frame's tokens, and keys and values of the new frames.

        Args:
            fine_latents: (B, F, C, H, W).
            coarse_latents: likewise.
            fine_modulations: (B, F, M), of all layers one after the other.
            coarse_modulations: likewise.
            fine_cos: of `rope_table`.
            fine_sin: likewise.
            coarse_cos: likewise.
            coarse_sin: likewise.
            keys: (layers, B, A, S, K), the cache's.
            values: likewise.
            fine_mask: (1, 1, Q, S + N), to be added, for the cache and the N new tokens, coarse ones first.
            coarse_mask: likewise for coarse queries and keys.
        """
        model, config = self.transformer, self.transformer.config
        assert config.context_patch_size and model.copy_head is not None
        parts = [6 * config.width] * config.num_layers + [2 * config.width]
        fine = Stream(
            model.fine_embedding(patchify(fine_latents, config.patch_size)),
            tuple(fine_modulations.split(parts, dim=-1)),
            (fine_cos, fine_sin),
        )
        coarse: Stream | None = Stream(
            model.coarse_embedding(patchify(coarse_latents, config.context_patch_size)),
            tuple(coarse_modulations.split(parts, dim=-1)),
            (coarse_cos, coarse_sin),
        )
        new_keys, new_values = [], []
        coarse_length = coarse_mask.shape[-1] - coarse_cos.shape[0]

        def attend(layer: int, fine_qkv: QKV, coarse_qkv: QKV | None) -> tuple[Tensor, Tensor | None]:
            assert coarse_qkv is not None
            new_keys.append(torch.cat([coarse_qkv.k, fine_qkv.k], dim=2))
            new_values.append(torch.cat([coarse_qkv.v, fine_qkv.v], dim=2))
            queries = fine_qkv.q.shape[2]
            fine_out = F.scaled_dot_product_attention(
                fine_qkv.q,
                torch.cat([keys[layer], new_keys[-1]], dim=2),
                torch.cat([values[layer], new_values[-1]], dim=2),
                attn_mask=fine_mask[:, :, -queries:],
            )
            coarse_out = F.scaled_dot_product_attention(
                coarse_qkv.q,
                torch.cat([keys[layer, :, :, :coarse_length], coarse_qkv.k], dim=2),
                torch.cat([values[layer, :, :, :coarse_length], coarse_qkv.v], dim=2),
                attn_mask=coarse_mask,
            )
            return fine_out, coarse_out

        for block in model.blocks:
            fine, coarse = cast(Block, block)(fine, coarse, attend, 1 if block is model.blocks[-1] else None)
        tokens = model._final(fine)
        return model.velocity_head(tokens), model.copy_head(tokens), torch.stack(new_keys), torch.stack(new_values)


class PureRun:
    """Stands in for `FAR.run`: a pure pass where one fits, else the eager one."""

    def __init__(self, transformer: FAR, make_pass: Callable[[PurePass, tuple[Tensor, ...]], Call]) -> None:
        """Take over a transformer.

        Args:
            transformer: whose `run` this is to be.
            make_pass: makes a pure pass fast, given an example of what it will see.
        """
        self.eager = transformer.run
        self.pure = PurePass(transformer).eval()
        self.make_pass = make_pass
        self.fast: Call | None = None
        self.seconds_to_make = 0.0

    def __call__(
        self,
        fine: Frames,
        coarse: Frames | None,
        attend: CachedAttention,
        *,
        before: Tensor | None = None,
        num_outputs: int | None = None,
        modulate: Modulate | None = None,
    ) -> Tensor:
        """See `FAR.run`."""
        fits = coarse is not None and (len(fine.index), len(coarse.index), num_outputs) == (2, 1, 1)
        if not fits or modulate is None or before is None:
            return self.eager(fine, coarse, attend, before=before, num_outputs=num_outputs, modulate=modulate)
        assert coarse is not None
        inputs = self._inputs(fine, coarse, attend, modulate)
        if self.fast is None:
            began = time.process_time()
            self.fast = self.make_pass(self.pure, inputs)
            self.seconds_to_make = time.process_time() - began
        velocity, copy, new_keys, new_values = self.fast(*inputs)
        start = 0
        for span in attend.coarse_ranges + attend.fine_ranges:
            stop = start + span.stop - span.start
            attend.cache.keys[:, :, :, span] = new_keys[:, :, :, start:stop]
            attend.cache.values[:, :, :, span] = new_values[:, :, :, start:stop]
            start = stop
        config = self.pure.transformer.config
        gate = _stretched(_unpatchify(copy, config, config.patch_size).sigmoid())
        shortest = min(COPY_TIMESTEP_MIN, 1 / (config.shortcut_steps or 1))
        return _mix_in_copy(_unpatchify(velocity, config, config.patch_size), gate, fine, before, shortest)

    def _inputs(self, fine: Frames, coarse: Frames, attend: CachedAttention, modulate: Modulate) -> tuple[Tensor, ...]:
        """What `PurePass.forward` takes."""
        config, cache = self.pure.transformer.config, attend.cache
        assert config.context_patch_size
        ropes = [
            rope_table(
                frames.index, config.latent_height // patch, config.latent_width // patch, patch // config.patch_size,
                config.head_size, frame_scale=config.positions.frame_scale,
            )
            for frames, patch in ((fine, config.patch_size), (coarse, config.context_patch_size))
        ]  # fmt: skip
        modulations = [torch.cat(modulate(frames.timestep, frames.action, None), dim=-1) for frames in (fine, coarse)]
        new = torch.cat([torch.arange(span.start, span.stop) for span in attend.coarse_ranges + attend.fine_ranges])
        mask = torch.full((1, 1, attend.num_queries, cache.keys.shape[3]), -torch.inf)
        for queries, stop, group in attend.groups:
            mask[:, :, queries, :stop] = 0.0 if group is None else group
        coarse_new = new[: len(attend.coarse_ranges) * config.coarse_tokens]
        return (
            fine.latents, coarse.latents, *modulations, *ropes[0], *ropes[1], cache.keys, cache.values,
            _moved_to_the_end(mask, new), _moved_to_the_end(attend.coarse_mask.clone(), coarse_new),
        )  # fmt: skip


def _moved_to_the_end(mask: Tensor, new: Tensor) -> Tensor:
    """The mask for keys whose new ones are behind the cache and not yet in their slots."""
    at_the_end = mask[..., new]
    mask[..., new] = -torch.inf
    return torch.cat([mask, at_the_end], dim=-1)


# Making paths


class Unavailable(RuntimeError):
    """A path that this machine does not have; the message says why."""


def prepare(path: Path, ckpt: str, threads: int) -> World:
    """A world that runs in one of the ways.

    Raises:
        Unavailable: it needs what is not here.
    """
    if path in ("eager", "bfloat16"):
        world = load_world(ckpt)
        if path == "bfloat16":
            _to_bfloat16(world)
        return world
    world = _load_unpacked(ckpt)
    transformer, decoder = world.model.transformer, world.model.autoencoder.decoder
    if path == "autocast":
        for module, name in ((transformer, "run"), (decoder, "forward")):
            setattr(module, name, torch.autocast("cpu", torch.bfloat16)(getattr(module, name)))
    elif path == "int8":
        torch.ao.quantization.quantize_dynamic(transformer.blocks, {nn.Linear}, dtype=torch.qint8, inplace=True)
    elif path == "compile":
        _compile(world, threads)
    elif path.startswith("openvino"):
        _export(world, "bf16" if path.endswith("bf16") else "f32", threads)
    return world


def _load_unpacked(ckpt: str) -> World:
    """A world as it would be without the packed kernels."""
    found = packed.can_pack, checkpoint.pack_convolutions
    packed.can_pack, checkpoint.pack_convolutions = lambda: False, lambda *_: None
    try:
        return load_world(ckpt)
    finally:
        packed.can_pack, checkpoint.pack_convolutions = found


def _to_bfloat16(world: World) -> None:
    """Packed weights in bfloat16; linear layers still take and give float32."""
    if not torch.cpu.get_capabilities().get("avx512_bf16") and not torch.cpu.get_capabilities().get("amx_bf16"):
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
            module._weight = module._pack(module._weight.to_dense().bfloat16())
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
    transformer.run = PureRun(transformer, lambda pure, _: torch.compile(pure))  # type: ignore[assignment]
    world.model.autoencoder.decoder = torch.compile(decoder)  # type: ignore[assignment]


def _export(world: World, precision: str, threads: int) -> None:
    try:
        import openvino
    except ImportError as error:
        raise Unavailable("OpenVINO is not installed: pip install openvino") from error
    core = openvino.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }

    def export(module: nn.Module, inputs: tuple[Tensor, ...]) -> Call:
        """The module by OpenVINO, for inputs of these shapes; it reads them where they are."""
        example = tuple(tensor.clone() for tensor in inputs)
        with torch.inference_mode(False), torch.no_grad():
            exported = openvino.convert_model(module, example_input=tuple(torch.zeros_like(t) for t in example))
        for port, tensor in zip(exported.inputs, example, strict=True):
            port.get_node().set_partial_shape(openvino.PartialShape(list(tensor.shape)))
        exported.validate_nodes_and_infer_types()
        request = core.compile_model(exported, "CPU", settings).create_infer_request()

        def call(*tensors: Tensor) -> tuple[Tensor, ...]:
            for index, tensor in enumerate(tensors):
                array = tensor.contiguous().numpy()
                request.set_input_tensor(index, openvino.Tensor(array, shared_memory=True))
            request.infer()
            # Its memory is written again by the next call.
            return tuple(torch.from_numpy(output.data.copy()) for output in request.output_tensors)

        return call

    transformer, decoder = world.model.transformer, world.model.autoencoder.decoder
    transformer.run = PureRun(transformer, export)  # type: ignore[assignment]
    config = world.config.model
    decode = export(decoder, (torch.zeros(1, config.latent_channels, config.latent_height, config.latent_width),))
    decoder.forward = lambda latents: decode(latents)[0]  # type: ignore[method-assign]


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
        run = self.world.model.transformer.run
        figures: dict[str, Any] = {"path": self.path}
        for part in ("transformer", "decoder"):
            taken = getattr(self, part)[WARM_UP_FRAMES:]
            figures[f"{part}_cpu_ms"] = round(statistics.median(cpu for _, cpu in taken), 2)
            figures[f"{part}_ms"] = round(statistics.median(clock for clock, _ in taken), 2)
        return {
            **figures,
            "min_psnr": round(min(self.psnr), 1),
            "mean_psnr": round(statistics.mean(self.psnr), 1),
            "cpu_s_to_make": round(run.seconds_to_make, 1) if isinstance(run, PureRun) else None,
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
    headings = list(rows[0])
    print("| " + " | ".join(headings) + " |")
    print("|" + "---|" * len(headings))
    for row in rows:
        cells = [row.get(heading, "") for heading in headings] if "unavailable" not in row else list(row.values())
        print("| " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |")
    report = {
        "ckpt": ckpt,
        "frames": frames,
        "measured": "transformer with its cache, and decoder; context full; PSNR of frames against eager ones",
        "hardware": describe_hardware(torch.device("cpu")),
        "torch": torch.__version__,
        "commit": commit_of_checkout(),
    }
    print()
    for heading, fact in report.items():
        print(f"{heading:<10} {fact}")
    if json:
        print(json_format.dumps({**report, "rows": rows}))


def main() -> None:
    """Run the command line; an expected error is one line and exit code 2."""
    try:
        app(sys.argv[1:], exit_on_error=False, print_error=False)
    except (CycloptsError, OSError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
