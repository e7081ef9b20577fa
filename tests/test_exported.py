"""A world run by OpenVINO shows the frames that PyTorch shows, to rounding."""

import copy
import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from test_far import clip, tiny_world

from farworld import threads
from farworld.bench import bench
from farworld.checkpoint import load_world
from farworld.cli import app
from farworld.exported import by_torch, is_exported, run_by_openvino, use_backend
from farworld.rollout import Rollout

NUM_STEPS = 100


@pytest.fixture
def needs_openvino():
    pytest.importorskip("openvino", reason='needs OpenVINO: pip install "farworld[openvino]"')


@pytest.mark.parametrize(
    ("settings", "eager_passes"),
    [
        ({"num_steps": 1}, 0),
        ({"num_steps": 2, "guidance_scale": 1.5}, 0),
        ({"num_steps": 2, "layout": "anchored"}, 1),  # the first one has the whole past to put into the cache
    ],
    ids=str,
)
def test_latents_are_the_same_to_rounding_while_the_cache_goes_round(needs_openvino, settings, eager_passes):
    """Over more frames than the context has; a key that lands in a wrong slot would be seen."""
    world = tiny_world(copy_gate=True, num_layers=2)
    other = copy.deepcopy(world)
    run_by_openvino(other)
    passes = []
    run = other.transformer.run._passes
    other.transformer.run._passes = lambda *inputs: passes.append(1) or run(*inputs)
    frames, actions = clip(9)
    expected, exported = (Rollout(each, batch_size=2, context_frames=12, **settings) for each in (world, other))
    for rollout in (expected, exported):
        rollout.prime(frames[:, :6], actions[:, :5], seed=5)
    for step in range(16):
        action = torch.tensor([step % 3, (step // 2) % 3])
        latents = expected.step_latents(action)
        torch.testing.assert_close(exported.step_latents(action), latents, atol=1e-4, rtol=1e-3)
    assert len(passes) == 16 * settings["num_steps"] - eager_passes


def play(path, *, precision=None, num_steps=NUM_STEPS):
    """Frames of random actions from a world's first start."""
    world = load_world(path)
    if precision is not None:
        run_by_openvino(world.model, precision=precision)
        assert is_exported(world.model)
    rollout, context = Rollout(world.model), world.contexts[0]
    rollout.prime(context.frames[None], context.actions[None])
    actions = np.random.default_rng(0).integers(len(world.config.vocabulary), size=num_steps)
    return np.concatenate([rollout.step(int(action)) for action in actions]).astype(np.float32)


def psnr(frames, others):
    """The lowest of all frames."""
    errors = ((frames - others) ** 2).mean(axis=(1, 2, 3))
    return 10 * np.log10(255**2 / errors.max().clip(min=1e-6))


def test_a_played_world_shows_the_same_frames(needs_openvino, tiny_world_path, monkeypatch):
    monkeypatch.setattr("farworld.checkpoint.has_bfloat16", lambda device: False)  # else ours decodes in bfloat16
    expected = play(tiny_world_path)
    assert np.abs(play(tiny_world_path, precision="float32") - expected).max() <= 1


def test_an_exported_world_is_measured_with_all_cores_and_half_of_them(needs_openvino, tiny_world_path, monkeypatch):
    """It is traced once and compiled for both, and the stream is as it was."""
    world = load_world(tiny_world_path)
    run_by_openvino(world.model)
    rollout, context = Rollout(world.model), world.contexts[0]
    rollout.prime(context.frames[None], context.actions[None])
    monkeypatch.setattr(threads, "MOST_MS", 1e9)
    monkeypatch.setattr(threads, "physical_cores", lambda: 4)
    for name in threads.SET_BY_USER:
        monkeypatch.delenv(name, raising=False)
    before, compiled = torch.get_num_threads(), []
    monkeypatch.setattr(threads, "fastest", lambda frame_ms: compiled.extend(frame_ms) or 2)
    passes = world.model.transformer.run._passes
    try:
        assert threads.settle_threads(rollout, None) == 2
        assert sorted(compiled) == [2, 4]
        assert {number for number, _ in passes._requests} == {2}  # of the other nothing stays
        assert len(passes._requests) == len(passes._models) > 0
    finally:
        torch.set_num_threads(before)
    expected = play(tiny_world_path, precision="float32", num_steps=3)
    for action, frame in zip(
        np.random.default_rng(0).integers(len(world.config.vocabulary), size=3), expected, strict=True
    ):
        assert np.abs(rollout.step(int(action))[0] - frame).max() <= 1


def test_bfloat16_shows_nearly_the_same_frames(needs_openvino, tiny_world_path):
    expected = play(tiny_world_path)
    try:
        frames = play(tiny_world_path, precision="bfloat16")
    except ValueError as error:
        pytest.skip(str(error))
    assert 40 <= psnr(frames, expected) < 99


def test_the_weights_of_an_exported_world_stay_its_own(needs_openvino, tiny_world_path):
    plain, exported = load_world(tiny_world_path).model, load_world(tiny_world_path).model
    run_by_openvino(exported)
    state = exported.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.state_dict().items())
    assert exported.num_parameters == plain.num_parameters


def test_bench_says_who_ran_the_world_and_counts_its_arithmetic_by_pytorch(
    needs_openvino, tiny_world_path, capfd, monkeypatch
):
    monkeypatch.setattr("farworld.arithmetic.matmul_rate", lambda device, dtype: 1e9)
    words = [
        "env",
        "--ckpt",
        str(tiny_world_path),
        "--frames",
        "5",
        "--device",
        "cpu",
        "--backend",
        "openvino",
        "--json",
    ]
    bench(words, result_action="return_value")
    report = json.loads(capfd.readouterr().out)
    assert report["backend"] == "openvino" and report["fps"] > 0 and report["breakdown_ms"]["transformer"] > 0
    assert "attention" not in report["breakdown_ms"]
    words[words.index("openvino")] = "torch"
    bench(words, result_action="return_value")
    assert report["flops_per_frame"] == json.loads(capfd.readouterr().out)["flops_per_frame"] > 0


def test_pytorch_runs_an_exported_world_in_between(needs_openvino, tiny_world_path):
    world = load_world(tiny_world_path).model
    with by_torch(world):
        assert not is_exported(world)
    assert not is_exported(world)  # nor afterwards, if nobody has exported it
    run_by_openvino(world)
    parts = world.transformer.run, world.autoencoder.decoder.forward
    with pytest.raises(KeyError), by_torch(world):
        assert not is_exported(world)
        assert world.autoencoder.decoder.forward is not parts[1]
        raise KeyError
    assert parts == (world.transformer.run, world.autoencoder.decoder.forward)


@pytest.mark.parametrize(
    ("installed", "device", "parameters"),
    [(True, "cpu", 50_000_001), (True, "cuda", 10), (False, "cpu", 10)],
)
def test_auto_is_torch_where_openvino_is_not_for(installed, device, parameters, monkeypatch):
    world = types.SimpleNamespace(device=torch.device(device), num_parameters=parameters)
    monkeypatch.setattr("farworld.exported.find_spec", lambda name: installed and name == "openvino")
    monkeypatch.setattr("farworld.exported.run_by_openvino", None)
    assert use_backend(types.SimpleNamespace(world=world), "auto") == "torch"


def primed(path):
    world = load_world(path)
    rollout, context = Rollout(world.model), world.contexts[0]
    rollout.prime(context.frames[None], context.actions[None])
    return rollout


def test_auto_is_openvino_where_it_can_be(needs_openvino, tiny_world_path):
    rollout = primed(tiny_world_path)
    assert use_backend(rollout, "auto") == "openvino" and is_exported(rollout.world)
    assert np.abs(rollout.step(1).astype(int) - primed(tiny_world_path).step(1)).max() <= 3


@pytest.mark.parametrize("place", ["openvino.Core", "farworld.exported.Exported._export"])
@pytest.mark.parametrize("error", [RuntimeError, AttributeError])
def test_auto_is_torch_where_openvino_fails(place, error, needs_openvino, tiny_world_path, monkeypatch, capsys):
    """Also if that shows only at the first frame."""

    def fail(*arguments):
        raise error("its libraries are of another machine")

    monkeypatch.setattr(place, fail)
    rollout = primed(tiny_world_path)
    assert use_backend(rollout, "auto") == "torch" and not is_exported(rollout.world)
    assert "its libraries are of another machine" in capsys.readouterr().err
    assert (rollout.step(1) == primed(tiny_world_path).step(1)).all()


@pytest.mark.parametrize(
    ("words", "expected"), [([], ["auto", "torch"]), (["--backend", "openvino"], ["openvino", "openvino"])]
)
def test_a_window_is_run_by_what_is_best(words, expected, tiny_world_path, monkeypatch):
    """And what is played headless by PyTorch, whose frames do not depend on what is installed."""
    asked = []
    monkeypatch.setattr("farworld.exported.use_backend", lambda rollout, backend: asked.append(backend) or "torch")
    monkeypatch.setattr("farworld.play.cli._run_window", lambda *arguments: None)
    monkeypatch.setattr("farworld.play.window.require_display", lambda: None)
    command = ["play", "--ckpt", str(tiny_world_path), "--device", "cpu", "--threads", str(torch.get_num_threads())]
    app([*command, *words], result_action="return_value")
    app([*command, *words, "--headless", "--frames", "1"], result_action="return_value")
    assert asked == expected


def test_without_openvino_the_command_says_what_to_install(tiny_world_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r'pip install "farworld\[openvino\]"'):
        bench(["play", "--ckpt", str(tiny_world_path), "--backend", "openvino"], result_action="return_value")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for the stack of signal handlers")
def test_signal_handlers_keep_their_stack(needs_openvino):
    """OpenVINO gave them one so small that Ctrl-C crashed; in a process of its own, since it does so once."""
    code = """
import ctypes
from test_far import tiny_world
from farworld.exported import SignalStack, run_by_openvino

def stack():
    now = SignalStack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(now))
    return now.start, now.flags, now.size

before = stack()
run_by_openvino(tiny_world())
assert stack() == before, (before, stack())
"""
    tests = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=tests, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
