"""A world run by OpenVINO: its decoder, and the passes of its transformer that play is made of.

A pass is exported as a pure function: what the cache holds goes in, keys and values of the new frames come out and are
written into the cache here. Any other pass, such as those that fill the window, stays PyTorch's.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from farworld.models.attention import QKV, Attend
from farworld.models.far import FAR, Embedded, Frames, Modulate, Modulations
from farworld.models.kv_cache import CachedAttention
from farworld.world_model import WorldModel

if TYPE_CHECKING:
    from farworld.rollout import Rollout

Precision = Literal["float32", "bfloat16"]
# Of a world that is exported unasked. Exporting larger ones takes long, and as much memory again.
MOST_PARAMETERS = 50_000_000
NEEDS_OPENVINO = 'this way to run a world needs OpenVINO: pip install "farworld[openvino]"'


def run_by_openvino(world: WorldModel, *, precision: Precision = "float32") -> None:
    """Let OpenVINO run a world, frames differ from PyTorch's by rounding.

    Exporting takes some seconds, at the first frame that needs it, and anew for other sizes of batch and context. It
    runs on as many threads as PyTorch; a part of exporting is repeated for another number.

    Args:
        world: on the CPU; packed or not.
        precision: of the arithmetic. What is remembered stays float32.

    Raises:
        ImportError: OpenVINO is not installed.
        ValueError: the world is not on the CPU, or the CPU has no such arithmetic.
    """
    try:
        import openvino
    except ImportError as error:
        raise ImportError(NEEDS_OPENVINO) from error
    if world.device.type != "cpu":
        raise ValueError(f"OpenVINO runs worlds on the CPU, and this one is on {world.device}; use --device cpu")
    core = openvino.Core()
    with kept_signal_stack():
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bfloat16" and "BF16" not in capabilities:
        raise ValueError("this CPU has no bfloat16 arithmetic; run the world in float32")
    with torch.device("meta"):
        plain = WorldModel(world.config)
    plain.load_state_dict(world.state_dict(), assign=True)  # packed layers cannot be exported, but know their weights
    plain.eval().requires_grad_(False)
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # other programs may sit on that core
    }
    decoder = Exported(plain.autoencoder.decoder, core, settings)
    passes = Exported(PurePass(plain.transformer), core, settings)
    world.autoencoder.decoder.forward = lambda latents: decoder(latents)[0]  # type: ignore[method-assign]
    world.transformer.run = ExportedRun(world.transformer, passes, (passes, decoder))  # type: ignore[method-assign]


class SignalStack(ctypes.Structure):
    """Linux's stack_t."""

    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


@contextlib.contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Give signal handlers back the stack that they had before.

    When OpenVINO loads what it has for CPUs, it gives this thread's handlers 11 KB, on which Python's overflow now and
    then: Ctrl-C would crash the process.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    sigaltstack, before = ctypes.CDLL(None).sigaltstack, SignalStack()
    sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        sigaltstack(ctypes.byref(before), None)


def use_backend(rollout: Rollout, backend: str) -> str:
    """Let torch, for which it is loaded, openvino or openvino-bf16 run a rollout's world; see `run_by_openvino`.

    Args:
        rollout: of the world; for auto primed, and as it was afterwards.
        backend: auto is openvino where it is installed, for worlds on a CPU that are small enough to be played there;
            torch elsewhere, and if OpenVINO fails to make a frame, of which a line on stderr tells.

    Returns:
        What runs it, not auto.
    """
    world = rollout.world
    if backend == "auto":
        if world.device.type != "cpu" or world.num_parameters > MOST_PARAMETERS or not find_spec("openvino"):
            return "torch"
        start = rollout.snapshot()
        try:
            run_by_openvino(world)
            rollout.step(0)  # is when it is exported
        except (ImportError, OSError, RuntimeError, AttributeError, TypeError) as error:
            run_by_torch(world)
            print(f"farworld: PyTorch runs the world, since OpenVINO can't: {error}", file=sys.stderr)
            return "torch"
        finally:
            rollout.restore(start)
        return "openvino"
    if backend != "torch":
        run_by_openvino(world, precision="bfloat16" if backend == "openvino-bf16" else "float32")
    return backend


def run_by_torch(world: WorldModel) -> list[Any]:
    """Let PyTorch run a world again; what ran it, as `by_torch` puts it back."""
    return [attributes.pop(name, None) for attributes, name in _places(world)]


@contextlib.contextmanager
def by_torch(world: WorldModel) -> Iterator[None]:
    """Let PyTorch run a world in between, whatever else does."""
    kept = run_by_torch(world)
    try:
        yield
    finally:
        for (attributes, name), method in zip(_places(world), kept, strict=True):
            if method is not None:
                attributes[name] = method


def _places(world: WorldModel) -> list[tuple[dict[str, Any], str]]:
    """Where `run_by_openvino` puts methods before those of the classes."""
    return [(vars(world.autoencoder.decoder), "forward"), (vars(world.transformer), "run")]


def is_exported(world: WorldModel) -> bool:
    """Whether something else than PyTorch runs it."""
    return isinstance(world.transformer.run, ExportedRun)


def forget_other_threads(world: WorldModel) -> None:
    """Free what an exported world was compiled into for other numbers of threads than PyTorch's; copies of weights."""
    if isinstance(run := world.transformer.run, ExportedRun):
        for part in run.parts:
            part.forget_other_threads()


class Exported:
    """A module by OpenVINO, exported for each combination of input shapes, and compiled for each number of threads."""

    def __init__(self, module: nn.Module, core: Any, settings: dict[str, Any]) -> None:
        self._module = module
        self._core = core
        self._settings = settings
        self._models: dict[tuple[torch.Size, ...], Any] = {}
        self._requests: dict[tuple[int, tuple[torch.Size, ...]], Any] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The module's outputs for float32 inputs, which are read where they are."""
        import openvino

        shapes, threads = tuple(tensor.shape for tensor in inputs), torch.get_num_threads()
        if shapes not in self._models:
            self._models[shapes] = self._export(shapes)
        if (threads, shapes) not in self._requests:
            settings = {**self._settings, "INFERENCE_NUM_THREADS": threads}
            compiled = self._core.compile_model(self._models[shapes], "CPU", settings)
            self._requests[threads, shapes] = compiled.create_infer_request()
        request = self._requests[threads, shapes]
        arrays = [tensor.contiguous().numpy() for tensor in inputs]
        for index, array in enumerate(arrays):
            request.set_input_tensor(index, openvino.Tensor(array, shared_memory=True))
        request.infer()
        # The next call writes into the same memory.
        return tuple(torch.from_numpy(tensor.data.copy()) for tensor in request.output_tensors)

    def forget_other_threads(self) -> None:
        """See the function of this name."""
        threads = torch.get_num_threads()
        self._requests = {key: request for key, request in self._requests.items() if key[0] == threads}

    def _export(self, shapes: tuple[torch.Size, ...]) -> Any:
        import openvino
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

        # By hand: openvino.convert_model does the same, but reports its use over the network.
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            for category in (torch.jit.TracerWarning, DeprecationWarning):  # of how OpenVINO reads a module
                warnings.simplefilter("ignore", category)
            traced = torch.jit.trace(self._module, tuple(map(torch.zeros, shapes)), check_trace=False)
            source = TorchScriptPythonDecoder(traced)  # a name of its own: the reader does not keep it alive
            reader = FrontEndManager().load_by_framework("pytorch")
            model = reader.convert(reader.load(source))
        for port, shape in zip(model.inputs, shapes, strict=True):
            port.get_node().set_partial_shape(openvino.PartialShape(list(shape)))
            port.get_node().set_element_type(openvino.Type.f32)
        model.validate_nodes_and_infer_types()
        return model


class PurePass(nn.Module):
    """A pass of a transformer with all that changes as an input and without side effects."""

    def __init__(self, transformer: FAR) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(
        self,
        keys: Tensor,
        values: Tensor,
        fine_mask: Tensor,
        fine_tokens: Tensor,
        fine_modulations: Tensor,
        fine_cos: Tensor,
        fine_sin: Tensor,
        coarse_mask: Tensor | None = None,
        coarse_tokens: Tensor | None = None,
        coarse_modulations: Tensor | None = None,
        coarse_cos: Tensor | None = None,
        coarse_sin: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Of the last frame only.

        Args:
            keys: (layers, B, A, S, K), of the cache.
            values: likewise.
            fine_mask: (1 or B, 1 or A, Q, S + N), to be added, for the cache and N new tokens, coarse ones first.
            fine_tokens: (B, F, P, D), as they enter the blocks.
            fine_modulations: (B, F, M), of all layers one after the other.
            fine_cos: of the positions, likewise `fine_sin`.
            fine_sin: likewise.
            coarse_mask: as fine_mask, for the coarse queries and keys; None if no frame has coarse tokens.
            coarse_tokens: likewise.
            coarse_modulations: likewise.
            coarse_cos: likewise.
            coarse_sin: likewise.

        Returns:
            Keys and values of the new tokens, (layers, B, A, N, K); then what the heads say, see `FAR.heads`.
        """
        new_keys: list[Tensor] = []
        new_values: list[Tensor] = []

        def attend(layer: int, fine: QKV, coarse: QKV | None) -> tuple[Tensor, Tensor | None]:
            coarse_out = None
            if coarse is not None and coarse_mask is not None:
                old = coarse_mask.shape[-1] - coarse.k.shape[2]
                k = torch.cat([keys[layer, :, :, :old], coarse.k], dim=2)
                v = torch.cat([values[layer, :, :, :old], coarse.v], dim=2)
                coarse_out = F.scaled_dot_product_attention(coarse.q, k, v, attn_mask=coarse_mask)
            streams = [fine] if coarse is None else [coarse, fine]
            new_keys.append(torch.cat([stream.k for stream in streams], dim=2))
            new_values.append(torch.cat([stream.v for stream in streams], dim=2))
            k = torch.cat([keys[layer], new_keys[-1]], dim=2)
            v = torch.cat([values[layer], new_values[-1]], dim=2)
            mask = fine_mask[:, :, -fine.q.shape[2] :]
            return F.scaled_dot_product_attention(fine.q, k, v, attn_mask=mask), coarse_out

        fine = Embedded(fine_tokens, self._split(fine_modulations), (fine_cos, fine_sin))
        coarse = None
        if coarse_tokens is not None and coarse_modulations is not None:
            rope = cast("tuple[Tensor, Tensor]", (coarse_cos, coarse_sin))
            coarse = Embedded(coarse_tokens, self._split(coarse_modulations), rope)
        tokens, _ = self.transformer.through_blocks(fine, coarse, cast(Attend, attend), 1)
        heads = [head for head in self.transformer.heads(tokens, fine.modulations[-1]) if head is not None]
        return torch.stack(new_keys), torch.stack(new_values), *heads

    def _split(self, modulations: Tensor) -> Modulations:
        config = self.transformer.config
        return modulations.split([6 * config.width] * config.num_layers + [2 * config.width], dim=-1)


class ExportedRun:
    """Stands in for `FAR.run` where a pass has few new frames and one to denoise, as in play."""

    def __init__(
        self, transformer: FAR, passes: Callable[..., tuple[Tensor, ...]], parts: tuple[Exported, ...] = ()
    ) -> None:
        """Remember how the transformer runs by itself.

        Args:
            transformer: whose `run` this is to be.
            passes: runs what `PurePass` says.
            parts: all of the world that OpenVINO runs.
        """
        self.parts = parts
        self._transformer = transformer
        self._eager = transformer.run
        self._passes = passes

    def __call__(
        self,
        fine: Frames,
        coarse: Frames | None,
        attend: Attend,
        *,
        before: Tensor | None = None,
        num_outputs: int | None = None,
        modulate: Modulate | None = None,
    ) -> Tensor:
        """See `FAR.run`."""
        if not (isinstance(attend, CachedAttention) and num_outputs == 1 and self._is_of_play(fine, coarse)):
            return self._eager(fine, coarse, attend, before=before, num_outputs=num_outputs, modulate=modulate)
        inputs = _inputs(attend, *self._transformer.embed(fine, coarse, modulate))
        new_keys, new_values, velocity, *copy = self._passes(*inputs)
        start = 0
        for span in _new_ranges(attend, coarse):
            stop = start + span.stop - span.start
            attend.cache.keys[:, :, :, span] = new_keys[:, :, :, start:stop]
            attend.cache.values[:, :, :, span] = new_values[:, :, :, start:stop]
            start = stop
        return self._transformer.read_out(velocity, copy[0] if copy else None, fine, before)

    def _is_of_play(self, fine: Frames, coarse: Frames | None) -> bool:
        """Whether it is a frame's first pass with a full window, or a later one: few shapes, so few exports."""
        config = self._transformer.config
        if float(fine.timestep[0, -1]) < 0:  # a context frame: nothing is denoised
            return False
        if coarse is None:
            return len(fine.index) == 1
        return len(coarse.index) == 1 and len(fine.index) in (2, config.window) and not config.coarse_output


def _new_ranges(attend: CachedAttention, coarse: object | None) -> list[slice]:
    """Where new tokens belong in the cache, coarse ones first."""
    return [*(attend.coarse_ranges if coarse is not None else []), *attend.fine_ranges]


def _inputs(attend: CachedAttention, fine: Embedded, coarse: Embedded | None) -> list[Tensor]:
    """What `PurePass.forward` takes."""
    cache = attend.cache
    new = torch.cat([torch.arange(span.start, span.stop) for span in _new_ranges(attend, coarse)])
    groups = [(queries, stop, mask) for queries, stop, mask in attend.groups if mask is not None]
    sizes = torch.broadcast_shapes((1, 1), *(mask.shape[:2] for *_, mask in groups))
    mask = torch.full((*sizes, attend.num_queries, cache.keys.shape[3]), -torch.inf)
    for queries, stop, group in attend.groups:
        mask[:, :, queries, :stop] = 0.0 if group is None else group
    inputs = [cache.keys, cache.values, _new_at_the_end(mask, new), *_parts(fine)]
    if coarse is not None:
        num_coarse = sum(span.stop - span.start for span in attend.coarse_ranges)
        inputs += [_new_at_the_end(attend.coarse_mask, new[:num_coarse]), *_parts(coarse)]
    return inputs


def _parts(stream: Embedded) -> tuple[Tensor, ...]:
    return stream.tokens, torch.cat(stream.modulations, dim=-1), *stream.rope


def _new_at_the_end(mask: Tensor, new: Tensor) -> Tensor:
    """The mask for new keys that are behind the cache instead of in their slots, whose old ones nobody sees."""
    return torch.cat([mask.index_fill(-1, new, -torch.inf), mask[..., new]], dim=-1)
