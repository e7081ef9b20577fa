"""The steady state as one function of fixed tensors: the frames are the same, and a graph could hold it."""

import numpy as np
import pytest
import torch
from test_far import WINDOW, clip, tiny_world
from torch.utils._python_dispatch import TorchDispatchMode

from farworld.models import modulation_table
from farworld.models.attention import Positions
from farworld.models.cuda_graph import Replayed
from farworld.models.packed import can_pack, pack_linears
from farworld.models.static_frame import StaticDecoder, StaticFrame
from farworld.rollout import Rollout

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
CASES = {
    "plain": ({"copy_gate": True}, {}),
    "short": ({"context_patch_size": None}, {}),
    "a window of the frame itself": ({"short_term_frames": 1, "copy_gate": True}, {}),
    "FlexRoPE, guided": ({"positions": Positions.flex_rope(0.3)}, {"guidance_scale": 1.5}),
    "ALiBi, no action heeded": ({"positions": Positions.alibi()}, {"guidance_scale": 0.0}),
    "told the step, noised context": ({"shortcut_steps": 4, "copy_gate": True}, {"context_noise": 0.2}),
    "sinks": ({"copy_gate": True}, {"sink_frames": 2}),
    "following": ({"frame_action": "following"}, {}),
    "unconditional": ({"num_actions": 0}, {}),
}


def spied(monkeypatch) -> list[int]:
    """Calls of static frames are counted in its first item."""
    calls, original = [0], StaticFrame.__call__

    def call(self, new):
        calls[0] += 1
        return original(self, new)

    monkeypatch.setattr(StaticFrame, "__call__", call)
    return calls


@pytest.mark.parametrize("case", CASES)
def test_static_frames_are_those_of_the_ordinary_path(case, monkeypatch):
    """From the first frame that leaves the window on, while the rings fill, after they are full, after a restore."""
    model, settings = CASES[case]
    world, calls = tiny_world(**model), spied(monkeypatch)
    settings = {"batch_size": 2, "num_steps": 2, "context_frames": 9, **settings}
    frames, actions = clip(2)
    actions = actions % max(1, world.config.model.num_actions)
    plain, static = (Rollout(world, static=flag, **settings) for flag in (False, True))
    for rollout in (plain, static):
        rollout.prime(frames, actions[:, :1], seed=3)
    for step in range(20):
        if step == 12:
            snapshots = plain.snapshot(), static.snapshot()
        action = torch.tensor([step % 3, (step + 1) % 3]) % max(1, world.config.model.num_actions)
        expected = plain.step_latents(action)
        torch.testing.assert_close(static.step_latents(action), expected, atol=2e-5, rtol=1e-4)
    for rollout, snapshot in zip((plain, static), snapshots[::-1], strict=True):
        rollout.restore(snapshot)
    torch.testing.assert_close(static.step_latents(0), plain.step_latents(0), atol=2e-5, rtol=1e-4)
    window = world.config.model.short_term_frames if world.config.model.context_patch_size else 0
    assert calls[0] == 21 - max(0, window - 2)


def test_static_frames_serve_streams_that_begin_anew(monkeypatch):
    world, calls = tiny_world(copy_gate=True), spied(monkeypatch)
    frames, actions = clip(12, batch=3)
    plain, static = (Rollout(world, batch_size=3, num_steps=2, context_frames=9, static=flag) for flag in (False, True))
    for rollout in (plain, static):
        rollout.prime(frames[:, :4], actions[:, :3], seed=3)
    for step in range(16):
        for when, stream, length in ((2, 0, 11), (5, 1, 1), (6, 2, WINDOW)):
            for rollout in (plain, static) if step == when else ():
                rollout.reset_stream(stream, frames[stream, :length], actions[stream, : length - 1], seed=step)
        torch.testing.assert_close(static.step_latents(1), plain.step_latents(1), atol=2e-5, rtol=1e-4)
    assert calls[0] == 16 - 3  # the frame after a reset finds nothing left to encode


def test_the_anchored_layout_has_no_static_frames():
    assert Rollout(tiny_world(), layout="anchored", static=True)._static is None
    assert Rollout(tiny_world())._static is None


class Forbidding(TorchDispatchMode):
    """No operation may read a tensor back, have a size that depends on data, or make a float64 tensor on the device."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")

    def __init__(self, device: str, *, captured: bool) -> None:
        super().__init__()
        self.device, self.captured, self.count = device, captured, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        everything = [t for t in torch.utils._pytree.tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
        if any(t.device.type == self.device for t in everything):
            self.count += 1
            assert func.overloadpacket.__name__ not in self.FORBIDDEN, func
        assert not any(t.device.type == self.device and t.dtype == torch.float64 for t in everything), func
        if self.captured:
            assert all(t.device.type == self.device or t.ndim == 0 for t in everything), func
        return result


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_nothing_on_the_device_is_float64_or_read_back(case, static, monkeypatch):
    """What MPS can't do, and what would make a GPU wait; on the device that has no numbers at all."""
    model, settings = CASES[case]
    for most_rows in (0, 512) if case == "told the step, noised context" else (512,):
        monkeypatch.setattr(modulation_table, "MOST_ROWS", most_rows)
        world = tiny_world(**{"num_layers": 1, **model}).to("meta")
        frames, actions = torch.zeros(2, 5, 16, 16, 3, dtype=torch.uint8), torch.zeros(2, 4, dtype=torch.int64)
        for layout in ("sliding",) if static or settings.get("sink_frames") else ("sliding", "anchored"):
            with Forbidding("meta", captured=False) as mode:
                rollout = Rollout(
                    world, batch_size=2, num_steps=2, context_frames=9, static=static, layout=layout, **settings
                )
                rollout.prime(frames, actions)
                if not rollout.sink_frames:
                    rollout.reset_stream(0, frames[0, :4], actions[0, :3])
                for _ in range(3):
                    latents = rollout.step_latents(0)
                start = rollout.snapshot()
                rollout.step_latents(0)
                rollout.restore(start)
                assert world.decode(latents).device.type == "meta"
            assert mode.count > 500
        if static:  # what a graph would hold: it also touches no tensor on the CPU
            with torch.inference_mode(), Forbidding("meta", captured=True) as mode:
                rollout._static._frame()
            assert mode.count > 100


def test_a_static_decoder_shows_the_same_frames():
    world = tiny_world()
    decode = StaticDecoder(world.autoencoder, (2, 4, 4, 4), world.device)
    with torch.inference_mode():
        for seed in range(3):
            latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(seed))
            assert torch.equal(decode(latents), world.decode(latents))


def test_where_no_graph_can_be_captured_frames_are_made_without(monkeypatch):
    """Some drivers, and some kernels, do not let themselves be captured."""

    def fail(self):
        raise RuntimeError("operation not permitted when stream is capturing\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(Replayed, "_captured", fail)
    make = Rollout(tiny_world(), static=True)._static
    with pytest.warns(UserWarning, match="without a CUDA graph.* operation not permitted when stream is capturing$"):
        assert make._run._replayable() == make._run.function


def test_a_static_frame_is_compiled_once():
    """In one piece, and not anew when the rings fill, wrap around, or a stream begins anew."""
    model, settings = CASES["FlexRoPE, guided"]
    world, graphs = tiny_world(num_layers=1, **model), []

    def compiler(graph, _):
        graphs.append(graph)
        return graph.forward

    frames, actions = clip(WINDOW)
    plain, compiled = (
        Rollout(world, batch_size=2, num_steps=2, context_frames=6, static=flag, compiler=flag and compiler, **settings)
        for flag in (None, True)
    )
    for rollout in (plain, compiled):
        rollout.prime(frames, actions[:, : WINDOW - 1])
    for step in range(12):
        if step == 8:
            for rollout in (plain, compiled):
                rollout.reset_stream(0, frames[0], actions[0, : WINDOW - 1])
        expected = plain.step_latents(step % 3)
        torch.testing.assert_close(compiled.step_latents(step % 3), expected, atol=2e-5, rtol=1e-4)
    assert len(graphs) == 1


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("most_rows", [0, 512])
def test_bfloat16_shows_nearly_the_same_frames(static, most_rows, monkeypatch):
    """The copy gate's path stays float32: what stands still is held exactly."""
    monkeypatch.setattr(modulation_table, "MOST_ROWS", most_rows)
    world = tiny_world(copy_gate=True)
    frames, actions = clip(5)
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        rollout = Rollout(world, batch_size=2, num_steps=2, dtype=dtype, static=static)
        rollout.prime(frames, actions[:, :4])
        results.append(torch.stack([rollout.step_latents(1) for _ in range(8)]))
    assert results[1].dtype == torch.float32 and world.transformer.velocity_head.weight.dtype == torch.float32
    error = (results[0] - results[1]).square().mean() / results[0].square().mean()
    assert 0 < error < 1e-3
    world.transformer.copy_head.weight.zero_()
    world.transformer.copy_head.bias.fill_(30.0)
    rollout = Rollout(world, batch_size=2, num_steps=2, dtype=torch.bfloat16, static=static)
    rollout.prime(frames, actions[:, :4])
    for _ in range(8):
        latents = rollout.step_latents(1)
    torch.testing.assert_close(latents, world.encode(frames[:, -1:])[:, 0], atol=1e-4, rtol=0)


@pytest.mark.skipif(not can_pack(), reason="this PyTorch has no oneDNN linear layers for this CPU")
def test_a_packed_world_is_not_cast():
    world = tiny_world()
    pack_linears(world)
    with pytest.raises(ValueError, match="packed for a CPU"):
        Rollout(world, dtype=torch.bfloat16)


# On a GPU


def on_gpu(world, *, dtype=torch.float32, steps=30, **settings):
    frames, actions = clip(6)
    settings = {"static": True, **settings}
    rollout = Rollout(world, batch_size=2, num_steps=2, context_frames=12, dtype=dtype, **settings)
    keys = max(1, world.config.model.num_actions)
    rollout.prime(frames, actions[:, :5] % keys, seed=3)
    return rollout, torch.stack([rollout.step_latents(step % keys) for step in range(steps)]).cpu()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("case", CASES)
def test_graphed_frames_are_those_of_the_eager_gpu_and_of_the_cpu(case):
    model, settings = CASES[case]
    world = tiny_world(**model)
    _, on_cpu = on_gpu(world, **settings)
    world = world.to("cuda")
    rollout, graphed = on_gpu(world, **settings)
    assert rollout._static._run.is_graph
    _, eager = on_gpu(world, static=False, **settings)
    torch.testing.assert_close(graphed, eager, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(graphed, on_cpu, atol=1e-3, rtol=1e-2)


@pytest.mark.gpu
@needs_gpu
def test_a_graphed_decoder_shows_the_same_frames():
    world = tiny_world().to("cuda")
    rollout, _ = on_gpu(world, steps=1)
    for seed in range(3):
        latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(seed)).to("cuda")
        shown = rollout.decode(latents).astype(int)
        assert np.abs(shown - world.decode(latents).cpu().numpy().astype(int)).max() <= 1
    assert rollout._decoder._run.is_graph


@pytest.mark.gpu
@needs_gpu
def test_graphed_frames_allocate_nothing_that_lasts():
    """Nor is anything captured again, over a ring that wraps and a stream that begins anew."""
    world = tiny_world(copy_gate=True).to("cuda")
    rollout, _ = on_gpu(world)
    frames, actions = clip(6)
    rollout.step(1)
    replays = [rollout._static._run._replay, rollout._decoder._run._replay]
    rollout.reset_stream(1, frames[1], actions[1, :5])
    for _ in range(20):
        rollout.step(1)
    before = torch.cuda.memory_stats()
    for _ in range(50):
        rollout.step(2)
    after = torch.cuda.memory_stats()
    for name in ("allocated_bytes.all.current", "allocation.all.current", "num_device_alloc", "segment.all.allocated"):
        assert after.get(name) == before.get(name), name
    assert replays == [rollout._static._run._replay, rollout._decoder._run._replay]


@pytest.mark.gpu
@needs_gpu
def test_bfloat16_on_the_gpu_shows_nearly_the_same_frames():
    world = tiny_world(copy_gate=True).to("cuda")
    _, exact = on_gpu(world, steps=8)
    rollout, rough = on_gpu(world, steps=8, dtype=torch.bfloat16)
    frames = [np.asarray(rollout.decode(x.to("cuda")), dtype=np.float64) for x in (exact[-1], rough[-1])]
    psnr = 10 * np.log10(255**2 / max(1e-9, np.square(frames[0] - frames[1]).mean()))
    assert psnr > 35


@pytest.mark.gpu
@pytest.mark.slow
@needs_gpu
def test_a_compiled_graph_shows_the_same_frames():
    world = tiny_world(copy_gate=True).to("cuda")
    _, eager = on_gpu(world, static=False)
    _, compiled = on_gpu(world, compiler="inductor")
    torch.testing.assert_close(compiled, eager, atol=1e-3, rtol=1e-2)
