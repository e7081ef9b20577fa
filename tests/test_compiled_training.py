"""Compiled blocks compute what uncompiled ones do, for clips of any length."""

import copy
import shutil

import pytest
import torch
from test_far import randomise
from test_train import SMALL, draws

from farworld.models.far import FAR
from farworld.train.config import PRESETS, override
from farworld.train.ranks import Ranks
from farworld.train.world import clip_attention, flow_matching_loss, new_state

CPU = torch.device("cpu")


def small_model(*settings: str) -> FAR:
    config = override(PRESETS["maze-xs"], [*SMALL, *settings])
    model = FAR(config.far(3))
    randomise(model)
    return model


def loss_and_gradients(model: FAR, length: int, own_context_ratio: float, *settings: str, device=CPU):
    config = override(PRESETS["maze-xs"], [*SMALL, *settings])
    generator = torch.Generator().manual_seed(length)
    clean = torch.randn(2, length, 8, 4, 4, generator=generator).to(device)
    actions = torch.arange(2 * length, device=device).reshape(2, -1) % 3
    model.zero_grad(set_to_none=True)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        loss = flow_matching_loss(
            model, model.config, clean, actions, config, draws(2), own_context_ratio=own_context_ratio
        )
    loss.backward()
    return loss.detach(), {
        name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()
    }


def assert_equal(model: FAR, compiled: FAR, length: int, own_context_ratio: float, *settings: str, rtol: float = 1e-4):
    expected, expected_gradients = loss_and_gradients(model, length, own_context_ratio, *settings)
    found, gradients = loss_and_gradients(compiled, length, own_context_ratio, *settings)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=0)
    for name, gradient in expected_gradients.items():
        difference = (gradients[name] - gradient).abs().max()
        assert difference <= rtol * gradient.abs().max() + 1e-6, (name, float(difference))


@pytest.fixture
def traced(monkeypatch) -> list:
    """Graphs that were traced, and run as they are: machine code takes long to make."""
    graphs: list = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: original(function, backend=backend, **options))
    torch.compiler.reset()
    yield graphs
    torch.compiler.reset()


@pytest.mark.slow
def test_compiled_blocks_give_the_same_loss_and_gradients_for_clips_of_any_length(traced):
    """All blocks and lengths share a few graphs; so does a copy, with weights of its own."""
    model = small_model("num_layers=3")
    compiled = copy.deepcopy(model)
    compiled.compile_blocks()
    assert_equal(model, compiled, 12, 0.0)
    count = len(traced)
    assert 4 <= count <= 6
    assert_equal(model, compiled, 7, 0.0)
    assert list(compiled.state_dict()) == list(model.state_dict())
    other = copy.deepcopy(compiled)
    randomise(other, seed=1)
    assert_equal(model, compiled, 9, 0.0)
    assert loss_and_gradients(other, 9, 0.0)[0] != loss_and_gradients(model, 9, 0.0)[0]
    assert len(traced) == count


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "cl"))), reason="needs a C++ compiler")
def test_blocks_that_are_compiled_to_machine_code_give_the_same_loss_and_gradients():
    settings = ["num_layers=1", "context_patch_size=None"]
    model = small_model(*settings)
    compiled = copy.deepcopy(model)
    compiled.compile_blocks()
    assert_equal(model, compiled, 6, 0.0, *settings)


def test_blocks_are_compiled_if_the_config_says_so_and_those_of_the_average_are_not():
    config = override(PRESETS["maze-xs"], SMALL)
    for setting in (True, False):
        state = new_state(override(config, [f"compile={setting}"]), 3, Ranks(device=CPU))
        average = state.average.module
        assert all({"project", "finish"} <= vars(block).keys() for block in state.model.blocks) == setting
        assert not any("project" in vars(block) for block in average.blocks)
        assert list(state.state_dict()["model"]) == list(average.state_dict())


def test_attention_is_chosen_once_by_device_and_setting(monkeypatch):
    config = override(PRESETS["maze-xs"], SMALL)
    state = new_state(config, 3, Ranks(device=CPU))
    assert state.model.clip_attention.__name__ == state.average.module.clip_attention.__name__ == "ClipAttention"
    cases = (True, "auto", "Flex"), (False, "auto", ""), (True, "sdpa", ""), (True, "flex", "Flex")
    for has_triton, name, expected in cases:
        monkeypatch.setattr("importlib.util.find_spec", lambda module, there=has_triton: module if there else None)
        chosen = clip_attention(override(config, [f"attention={name}"]), torch.device("cuda"))
        assert chosen.__name__ == f"{expected}ClipAttention"
    with pytest.raises(ValueError, match="attention=flex trains on CUDA only, not on cpu; leave it at auto"):
        new_state(override(config, ["attention=flex"]), 3, Ranks(device=CPU))
    with pytest.raises(ValueError, match="recompute=True and compile=True exclude each other"):
        override(config, ["compile=True", "recompute=True"])
    with pytest.raises(ValueError, match="attention must be auto, sdpa or flex"):
        override(config, ["attention=flash"])
