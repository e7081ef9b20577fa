"""Fast paths of inference: packed linear layers and tables of modulations change a frame's cost, never the frame."""

import copy
import pickle

import pytest
import torch
from test_far import clip, tiny_world
from torch import nn

from farworld.checkpoint import load_world, save_world
from farworld.models import modulation_table, packed
from farworld.models.far import CLEAN_LONG_TERM, CLEAN_SHORT_TERM
from farworld.models.modulation_table import ModulationTable
from farworld.models.packed import PackedLinear, can_pack, pack_linears
from farworld.rollout import Rollout

needs_kernels = pytest.mark.skipif(not can_pack(), reason="this PyTorch has no oneDNN linear layers for this CPU")


def layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "mlp": nn.Sequential(nn.Linear(24, 96), nn.GELU(approximate="tanh"), nn.Linear(96, 24)),
            "exact": nn.Sequential(nn.Linear(24, 40), nn.GELU()),
            "plain": nn.Linear(24, 8, bias=False),
        }
    )


@needs_kernels
@pytest.mark.parametrize("shape", [(1, 24), (3, 24), (2, 5, 7, 24)])
def test_packed_layers_make_the_same_to_rounding(shape):
    """The tanh GELU is taken along, the exact one is not."""
    plain, x = layers(), torch.randn(shape)
    fast = copy.deepcopy(plain)
    pack_linears(fast)
    assert isinstance(fast["mlp"][1], nn.Identity) and isinstance(fast["exact"][1], nn.GELU)
    assert not any(isinstance(module, nn.Linear) for module in fast.modules())
    for name in plain:
        torch.testing.assert_close(fast[name](x), plain[name](x), atol=1e-6, rtol=1e-5)


@needs_kernels
def test_packed_layers_can_be_saved_copied_and_sent():
    plain, x = layers(), torch.randn(4, 24)
    fast = copy.deepcopy(plain)
    pack_linears(fast)
    state = fast.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.state_dict().items())
    assert state.keys() == plain.state_dict().keys()
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.equal(other["mlp"](x), fast["mlp"](x))


def test_layers_stay_as_they_are_where_the_kernels_are_missing(monkeypatch):
    module = layers()

    def missing(self, *_):
        raise NotImplementedError("no such operator")

    monkeypatch.setattr(PackedLinear, "forward", missing)
    pack_linears(module)
    assert not can_pack() and isinstance(module["plain"], nn.Linear)


@needs_kernels
def test_a_world_loaded_for_the_cpu_is_packed_and_saves_as_it_was(tiny_world_path, tmp_path, monkeypatch):
    fast = load_world(tiny_world_path)
    assert any(isinstance(module, PackedLinear) for module in fast.model.modules())
    save_world(
        tmp_path / "again", fast.config, fast.model.transformer, fast.model.autoencoder, fast.contexts, "card",
        matrices=torch.float32,
    )  # fmt: skip
    monkeypatch.setattr(packed, "can_pack", lambda: False)
    plain = load_world(tiny_world_path).model
    assert fast.model.num_parameters == plain.num_parameters
    expected, again = plain.state_dict(), load_world(tmp_path / "again").model.state_dict()
    assert expected.keys() == again.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in expected.items())


def generate(world, **kwargs) -> torch.Tensor:
    frames, actions = clip(9)
    rollout = Rollout(world, batch_size=2, num_steps=3, context_frames=12, **kwargs)
    rollout.prime(frames[:, :6], actions[:, :5], seed=5)
    return torch.stack([rollout.step_latents(actions[:, 5 + step]) for step in range(3)])


@needs_kernels
@pytest.mark.parametrize("layout", ["sliding", "anchored"])
@pytest.mark.parametrize("guidance_scale", [1.0, 1.5])
def test_a_packed_world_shows_the_same_frames(layout, guidance_scale):
    world = tiny_world(copy_gate=True, layout=layout)
    fast = copy.deepcopy(world)
    pack_linears(fast)
    expected = generate(world, guidance_scale=guidance_scale)
    torch.testing.assert_close(generate(fast, guidance_scale=guidance_scale), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("num_actions", [0, 3])
def test_a_table_has_the_modulations_of_every_condition(num_actions):
    transformer = tiny_world(num_actions=num_actions).transformer
    table = ModulationTable(transformer, [1000.0, 334.0])
    timestep = torch.tensor([[CLEAN_SHORT_TERM, 1000.0, 334.0, CLEAN_LONG_TERM]])
    action = torch.tensor([[0, num_actions, min(1, num_actions), 0], [num_actions, 0, 0, min(2, num_actions)]])
    found, expected = table(timestep, action), transformer.modulations(timestep, action)
    assert len(found) == len(expected) == transformer.config.num_layers + 1
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.expand_as(one), atol=1e-5, rtol=1e-5)


def test_too_many_conditions_for_a_table_are_computed_as_they_come(monkeypatch):
    world = tiny_world()
    expected = generate(world)
    monkeypatch.setattr(modulation_table, "MOST_ROWS", 3)
    monkeypatch.setattr(ModulationTable, "__call__", None)  # nobody may look anything up
    torch.testing.assert_close(generate(world), expected, atol=2e-5, rtol=1e-4)
