"""Packed convolutions change what encoding and decoding cost, never the frame or what is saved."""

import copy
import pickle

import pytest
import torch
from torch import nn

from farworld.checkpoint import load_world, save_world
from farworld.models import packed_conv
from farworld.models.autoencoder import Autoencoder, AutoencoderConfig
from farworld.models.packed_conv import PackedConv, can_pack_convolutions, pack_convolutions

needs_kernels = pytest.mark.skipif(
    not can_pack_convolutions(), reason="this PyTorch has no oneDNN convolutions for this CPU"
)


def autoencoder(attention_stages: int = 0) -> Autoencoder:
    """One whose every tensor matters: biases, batch norm's parameters and its statistics."""
    torch.manual_seed(0)
    model = Autoencoder(
        AutoencoderConfig(
            latent_channels=8, widths=(16, 32, 64), encoder_blocks=(1, 1, 1), decoder_blocks=(1, 1, 2),
            attention_stages=attention_stages,
        )
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.normal_(module.weight, mean=1.0, std=0.2)
            nn.init.normal_(module.bias, std=0.2)
    return model.eval().requires_grad_(False)


@needs_kernels
@pytest.mark.parametrize("attention_stages", [0, 1])
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 32, 32), (3, 32, 32), (2, 24, 40)])
def test_a_packed_autoencoder_makes_the_same_to_rounding(attention_stages, batch, height, width):
    """Packed for frames of 32×32; other batches and other sizes are right as well."""
    plain = autoencoder(attention_stages)
    fast = copy.deepcopy(plain)
    pack_convolutions(fast, 32, 32)
    assert not any(isinstance(module, nn.Conv2d) for module in fast.modules())
    pixels = torch.rand(batch, 3, height, width) * 2 - 1
    latents = plain.encoder(pixels)
    torch.testing.assert_close(fast.encoder(pixels), latents, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(fast.decoder(latents), plain.decoder(latents), atol=2e-5, rtol=1e-4)


@pytest.mark.skipif(not can_pack_convolutions(torch.bfloat16), reason="no oneDNN convolutions in bfloat16 here")
@pytest.mark.parametrize("attention_stages", [0, 1])
def test_a_decoder_in_bfloat16_shows_nearly_the_same_and_nothing_else_changes(attention_stages):
    """One with attention stays in float32."""
    plain = autoencoder(attention_stages)
    fast = copy.deepcopy(plain)
    pack_convolutions(fast, 32, 32, decoder_dtype=torch.bfloat16)
    assert (fast.decoder.conv_out(torch.zeros(1, 16, 8, 8)).dtype == torch.float32) == bool(attention_stages)
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    latents = plain.encoder(pixels)
    torch.testing.assert_close(fast.encoder(pixels), latents, atol=2e-5, rtol=1e-4)
    frames, expected = (model.decode(latents).double() for model in (fast, plain))
    assert 10 * torch.log10(255**2 / (frames - expected).square().mean().clamp(min=1e-9)) > 48
    assert all(torch.equal(fast.state_dict()[name], tensor) for name, tensor in plain.state_dict().items())
    assert torch.equal(pickle.loads(pickle.dumps(fast)).decode(latents), fast.decode(latents))


@needs_kernels
def test_batch_norms_and_shortcuts_cost_nothing_any_more():
    fast = autoencoder()
    pack_convolutions(fast, 32, 32)

    def forbidden(*_):
        raise AssertionError("was to be folded into a weight")

    for module in fast.modules():
        if isinstance(module, nn.BatchNorm2d | nn.ReLU | nn.SiLU):
            module.forward = forbidden
    fast(torch.zeros(1, 3, 32, 32))


@needs_kernels
@pytest.mark.parametrize("attention_stages", [0, 1])
def test_a_packed_autoencoder_saves_the_weights_it_was_made_from(attention_stages):
    """To the bit, although batch norms are folded in; and copies make the same frames."""
    plain = autoencoder(attention_stages)
    fast = copy.deepcopy(plain)
    pack_convolutions(fast, 32, 32)
    expected, state = plain.state_dict(), fast.state_dict()
    assert expected.keys() == state.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.equal(other(pixels), fast(pixels))
        assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in expected.items())


def test_convolutions_stay_as_they_are_where_the_kernels_are_missing(monkeypatch):
    def missing(self, *_, **__):
        raise NotImplementedError("no such operator")

    monkeypatch.setattr(PackedConv, "forward", missing)
    model = autoencoder()
    pack_convolutions(model, 32, 32)
    assert not can_pack_convolutions() and isinstance(model.decoder.conv_in, nn.Conv2d)


@needs_kernels
def test_a_world_loaded_for_the_cpu_has_packed_convolutions_and_saves_as_it_was(tiny_world_path, tmp_path, monkeypatch):
    fast = load_world(tiny_world_path)
    assert isinstance(fast.model.autoencoder.decoder.conv_in, PackedConv)
    save_world(
        tmp_path / "again", fast.config, fast.model.transformer, fast.model.autoencoder, fast.contexts, "card",
        matrices=torch.float32,
    )  # fmt: skip
    monkeypatch.setattr(packed_conv, "can_pack_convolutions", lambda: False)
    plain = load_world(tiny_world_path).model
    assert fast.model.num_parameters == plain.num_parameters
    expected, again = plain.state_dict(), load_world(tmp_path / "again").model.state_dict()
    assert expected.keys() == again.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in expected.items())
    frames = torch.randint(0, 256, (1, 2, 32, 32, 3), dtype=torch.uint8)
    torch.testing.assert_close(fast.model.encode(frames), plain.encode(frames), atol=2e-5, rtol=1e-4)
