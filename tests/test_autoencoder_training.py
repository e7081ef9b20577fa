"""The autoencoder stage: its losses, the discriminator beside it, and what a resumed run must remember."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_train import leaves
from torch import nn

from farworld.actions import Action, ActionVocabulary
from farworld.dataset import Dataset, DatasetSpec, Episode, create_or_open
from farworld.models.autoencoder import Autoencoder, AutoencoderConfig, to_pixels
from farworld.train import autoencoder as stage
from farworld.train import lpips as lpips_module
from farworld.train.config import PRESETS, TrainConfig, override
from farworld.train.discriminator import (
    PatchDiscriminator,
    adversarial_loss,
    balanced_loss,
    discriminator_loss,
    smallest_frame,
)
from farworld.train.lpips import load_lpips
from farworld.train.pipeline import open_run, run_stages
from farworld.train.ranks import Ranks
from farworld.train.run import Run

ALONE = Ranks(device=torch.device("cpu"))
SMALL = [
    "frame_size=32", "latent_channels=8", "autoencoder_widths=(16,32)", "encoder_blocks=(0,1)", "decoder_blocks=(1,1)",
    "num_layers=1", "num_heads=1", "patch_size=2", "context_patch_size=2", "short_term_frames=3", "fine_frames=4",
    "early_clip_frames=4", "max_clip_frames=4", "context_frames=4", "precision=float32", "autoencoder_batch_size=4",
    "autoencoder_steps=10", "checkpoint_every=5", "sample_every=1000", "warmup_steps=1",
    "autoencoder_lpips_weight=0.5", "autoencoder_gan_weight=0.5", "autoencoder_gan_width=8",
    "autoencoder_gan_layers=2", "autoencoder_gan_start=0.3", "autoencoder_ema_decay=0.9",
]  # fmt: skip


def config(*settings: str) -> TrainConfig:
    return override(PRESETS["maze-xs"], [*SMALL, *settings])


def textured(count: int, seed: int = 0) -> np.ndarray:
    """Frames of 32×32: a coloured gradient with coarse noise on it."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 120, (count, 8, 8, 3)).repeat(4, axis=1).repeat(4, axis=2)
    return (coarse + np.linspace(0, 120, 32)[None, :, None, None]).astype(np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("textures") / "data"
    vocabulary = ActionVocabulary((Action(name="noop"), Action(name="go", keys=("up",))))
    spec = DatasetSpec(env_id="textures", height=32, width=32, frames_per_second=10.0, action_vocabulary=vocabulary)
    with create_or_open(path, spec) as writer:
        for index in range(8):
            writer.write(
                Episode(
                    frames=textured(6, index), actions=np.zeros(5, np.int64), rewards=np.zeros(5, np.float32),
                    terminated=False, truncated=True, seed=index, index=index,
                )
            )  # fmt: skip
    return path


def train(out: Path, data: Path, *settings: str, resume: bool = False) -> Run:
    dataset = Dataset(data)
    overrides = list(settings) if resume else [*SMALL, *settings]
    run = open_run(
        out, None if resume else "maze-xs", overrides, resume=resume, stage="autoencoder", data=dataset, ranks=ALONE
    )
    with contextlib.closing(run):
        run_stages(run, dataset, "autoencoder")
    return run


def gan_step(state: stage.AutoencoderState, settings: TrainConfig, seed: int = 0) -> torch.Tensor:
    frames, noise = textured(4, seed), torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(seed))
    return stage.loss_of_frames(state, torch.from_numpy(frames), noise, None, settings, ALONE, adversarial=True)


@pytest.mark.parametrize("dies_at", [2, 7])  # before the discriminator comes, at step 3, and after
def test_ten_steps_equal_those_of_a_run_that_died_in_between(data, tmp_path, monkeypatch, dies_at):
    """Weights, average, discriminator, both optimizers, and the statistics of the latents: to the bit."""
    straight = train(tmp_path / "straight", data, "checkpoint_every=2")
    broken, draw, calls = tmp_path / "broken", stage.random_frames, 0

    def dying(*args, **options):
        nonlocal calls
        calls += 1
        if calls == dies_at + 1:
            raise OSError("no more")
        return draw(*args, **options)

    monkeypatch.setattr(stage, "random_frames", dying)
    with pytest.raises(OSError, match="no more"):
        train(broken, data, "checkpoint_every=2")
    resumed = train(broken, data, resume=True)
    for name in (stage.STAGE, stage.STATISTICS):
        states = [run.load_checkpoint(name) for run in (straight, resumed)]
        assert states[0] is not None and states[1] is not None
        one, other = (dict(leaves(state)) for state in states)
        assert one.keys() == other.keys()
        for key, tensor in one.items():
            assert torch.equal(tensor, other[key]), key
        if name == stage.STAGE:
            assert {"model", "average", "optimizer", "discriminator", "discriminator_optimizer"} <= states[0].keys()
            assert any(key.startswith(".discriminator_optimizer") for key in one)


def test_the_discriminator_comes_at_its_step_and_the_encoder_stays_from_there(data, tmp_path):
    """Latents that a world model learns do not move while the decoder is sharpened."""
    fresh = stage.begin(config(), ALONE)
    run = train(tmp_path / "run", data, "autoencoder_steps=10", "checkpoint_every=1", "autoencoder_gan_start=0.9")
    last, before = (torch.load(file) for file in run.checkpoint_files(stage.STAGE))
    assert (before["step"], last["step"]) == (9, 10)
    assert fresh.discriminator is not None
    for name, tensor in fresh.discriminator.state_dict().items():
        assert torch.equal(tensor, before["discriminator"][name]), name
    assert not torch.equal(before["discriminator"]["layers.0.weight"], last["discriminator"]["layers.0.weight"])
    for name, tensor in before["model"].items():
        if name.startswith("encoder."):
            assert torch.equal(tensor, last["model"][name]), name
    assert not torch.equal(before["model"]["decoder.conv_in.weight"], last["model"]["decoder.conv_in.weight"])


def test_gradients_of_decoder_and_discriminator_do_not_mix():
    settings = config()
    state = stage.begin(settings, ALONE)
    assert state.discriminator is not None
    model_before = {name: tensor.clone() for name, tensor in state.model.named_parameters()}
    judge_before = {name: tensor.clone() for name, tensor in state.discriminator.named_parameters()}
    loss = gan_step(state, settings)
    assert all(torch.equal(tensor, model_before[name]) for name, tensor in state.model.named_parameters())
    assert all(p.grad is None for p in state.model.parameters())
    judge = {name: tensor.clone() for name, tensor in state.discriminator.named_parameters()}
    assert not any(torch.equal(tensor, judge_before[name]) for name, tensor in judge.items())
    loss.backward()
    assert all(p.grad is None for p in state.discriminator.parameters())
    assert all(torch.equal(tensor, judge[name]) for name, tensor in state.discriminator.named_parameters())
    assert isinstance(state.model, Autoencoder)
    assert all(p.grad is None for p in state.model.encoder.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in state.model.decoder.parameters())


def test_the_balanced_loss_has_the_value_and_gradients_of_the_formula():
    """VQGAN's formula, written out: three passes through the decoder instead of one."""
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1))
    judge, latents, truth = PatchDiscriminator(8, 2), torch.randn(2, 4, 16, 16), torch.randn(2, 3, 16, 16)
    judge.requires_grad_(False)

    def losses() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        decoded = decoder(latents)
        return decoded, (decoded - truth).abs().mean(), adversarial_loss(judge(decoded))

    _, reconstruction, against = losses()
    last = decoder[2].weight
    norms = [torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in (reconstruction, against)]
    weight = 0.5 * (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()
    expected = reconstruction + weight * against
    expected_gradients = torch.autograd.grad(expected, list(decoder.parameters()))

    decoded, reconstruction, against = losses()
    loss, found = balanced_loss(reconstruction, against, decoded, last, 0.5)
    torch.testing.assert_close(found, weight)
    torch.testing.assert_close(loss, expected)
    for one, other in zip(torch.autograd.grad(loss, list(decoder.parameters())), expected_gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_reconstruction_loss_is_the_weighted_sum_of_its_terms():
    settings = config("autoencoder_square_weight=0.25", "autoencoder_lpips_weight=2.0")
    pixels = to_pixels(torch.from_numpy(textured(2)))
    decoded, lpips = pixels.flip(0), load_lpips()
    loss, terms = stage.reconstruction_loss(decoded, pixels, lpips, settings)
    l1, square, distance = F.l1_loss(decoded, pixels), F.mse_loss(decoded, pixels), lpips(decoded, pixels).mean()
    torch.testing.assert_close(loss, l1 + 0.25 * square + 2.0 * distance)
    torch.testing.assert_close(terms, {"l1": l1, "square": square, "lpips": distance})
    without, terms = stage.reconstruction_loss(decoded, pixels, None, settings)
    torch.testing.assert_close(without, l1 + 0.25 * square)
    assert "lpips" not in terms


def test_hinge_loss_of_known_logits():
    """Real ones above 1 and decoded ones below −1 are good enough."""
    real, decoded = torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 0.5])
    assert discriminator_loss(real, decoded).item() == pytest.approx(0.5 * (0.5 * 1.0 + 0.5 * 1.5))
    assert adversarial_loss(decoded).item() == pytest.approx(1.25)


def test_a_discriminator_learns_to_tell_blurred_frames():
    settings = config("autoencoder_gan_learning_rate=0.003")
    state = stage.begin(settings, ALONE)
    assert state.discriminator is not None
    losses = []
    for step in range(30):
        pixels = to_pixels(torch.from_numpy(textured(4, step)))
        blurred = F.avg_pool2d(pixels, 5, 1, 2)
        losses.append(float(stage.update_discriminator(state, pixels, blurred, 1.0, settings, ALONE)))
    assert losses[0] > 0.8 and losses[-1] < 0.3


@pytest.mark.parametrize(("num_layers", "patch"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_a_patch_of_the_size_that_is_documented(num_layers, patch):
    judge = PatchDiscriminator(4, num_layers).eval()
    pixels = torch.zeros(1, 3, 160, 160, requires_grad=True)
    logits = judge(pixels)
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    assert pixels.grad is not None
    rows = pixels.grad.abs().sum(dim=(0, 1, 3)).nonzero()
    assert int(rows.max() - rows.min()) + 1 == patch
    size = smallest_frame(num_layers)
    assert judge(torch.zeros(1, 3, size, size)).shape == (1, 1, 1, 1)


def test_training_without_the_weights_of_lpips_says_so_and_goes_on(data, tmp_path, monkeypatch):
    monkeypatch.setattr(lpips_module, "weights_file", lambda: tmp_path / "alex_v0.1.safetensors")
    with pytest.warns(UserWarning, match="without LPIPS: .*alex_v0.1.safetensors is missing") as warned:
        run = train(tmp_path / "run", data, "autoencoder_steps=2", "autoencoder_gan_weight=0")
    assert len(warned) == 1 and "\n" not in str(warned[0].message)
    stored = run.load_checkpoint(stage.STAGE)
    assert stored is not None and stored["step"] == 2


def test_the_average_is_what_is_kept(data, tmp_path):
    run = train(tmp_path / "run", data)
    trained, kept = run.load_checkpoint(stage.STAGE), run.load_checkpoint(stage.STATISTICS)
    assert trained is not None and kept is not None
    weights = [kept["model"]["decoder.conv_in.weight"], trained["average"]["module.decoder.conv_in.weight"]]
    assert torch.equal(*weights) and not torch.equal(weights[0], trained["model"]["decoder.conv_in.weight"])


def test_latents_of_the_data_have_no_mean_and_unit_variance_in_every_channel(data, tmp_path):
    run = train(tmp_path / "run", data)
    frames = torch.from_numpy(np.concatenate([textured(6, index) for index in range(8)]))
    latents = stage.load_autoencoder(run).encode(frames)
    assert latents.mean(dim=(0, 2, 3)).abs().max() < 0.15
    assert (latents.std(dim=(0, 2, 3)) - 1).abs().max() < 0.15


def test_one_scaling_factor_for_all_channels_is_a_special_case():
    """As published: encoded latents times 0.2889, and divided by it before decoding."""
    torch.manual_seed(0)
    model = Autoencoder(
        AutoencoderConfig(latent_channels=8, widths=(16, 32), encoder_blocks=(0, 0), decoder_blocks=(0, 0))
    )
    frames = torch.from_numpy(textured(2))
    plain = model.encoder(to_pixels(frames))
    model.latent_scale.fill_(0.2889)
    torch.testing.assert_close(model.encode(frames), 0.2889 * plain)
    decoded = model.decoder(plain)
    expected = ((decoded + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    assert (model.decode(0.2889 * plain).int() - expected.int()).abs().max() <= 1


def test_a_run_without_a_discriminator_can_get_one_but_not_one_of_other_sizes(data, tmp_path):
    run = train(tmp_path / "run", data, "autoencoder_gan_weight=0")
    assert "discriminator" not in (run.load_checkpoint(stage.STAGE) or {})
    train(run.path, data, "autoencoder_steps=12", "autoencoder_gan_weight=0.5", resume=True)
    assert "discriminator" in (run.load_checkpoint(stage.STAGE) or {})
    with pytest.raises(ValueError, match="discriminator of other sizes.*autoencoder_gan_width"):
        train(run.path, data, "autoencoder_steps=14", "autoencoder_gan_width=16", resume=True)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("autoencoder_lpips_weight=-1", "autoencoder_lpips_weight must be at least 0"),
        ("autoencoder_gan_start=2.0", r"share of the steps in \[0, 1\]"),
        ("autoencoder_betas=(0.9,1.5)", r"two numbers in \[0, 1\)"),
        ("autoencoder_betas=(0.9,)", r"two numbers in \[0, 1\)"),
        ("autoencoder_ema_decay=1.0", r"autoencoder_ema_decay must be in \[0, 1\)"),
        ("autoencoder_gan_layers=4", "at least 48 pixels, got 32"),
        ("frame_size=16", "at least 31 pixels, got 16.*autoencoder_lpips_weight=0"),
        ("autoencoder_gan_width=0", "autoencoder_gan_width must be at least 1"),
    ],
)
def test_losses_that_cannot_be_computed_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        config(setting)
