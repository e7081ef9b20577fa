"""The paper's settings by name, and what they would take."""

import dataclasses

import pytest
import torch
from test_official import layout
from test_train import SMALL, draws
from torch._subclasses.fake_tensor import FakeTensorMode

from farworld.models.far import FAR
from farworld.models.official import autoencoder_config, far_config
from farworld.train import estimate
from farworld.train.config import PRESETS, TrainConfig, override, preset
from farworld.train.run import learning_rate_factor
from farworld.train.world import clip_length, dropped_conditions

CPU = torch.device("cpu")
NUM_CLASSES = {"label": 101}  # of UCF-101
# The official model of each preset of the paper, and its DC-AE.
OFFICIAL = {
    "far-l-ucf101-128": ("FAR_L_label101", "MyAutoencoderDC_16x_c32"),
    "far-l-ucf101-128-uncond": ("FAR_L_uncond", "MyAutoencoderDC_16x_c32"),
    "far-l-ucf101-256": ("FAR_L_label101", "MyAutoencoderDC_32x_c32"),
    "far-l-ucf101-256-uncond": ("FAR_L_uncond", "MyAutoencoderDC_32x_c32"),
    "far-xl-ucf101-256": ("FAR_XL_label101", "MyAutoencoderDC_32x_c32"),
    "far-xl-ucf101-256-uncond": ("FAR_XL_uncond", "MyAutoencoderDC_32x_c32"),
    "far-b-ucf101-64": ("FAR_B_uncond", "MyAutoencoderDC_8x_c32"),
    "far-b-bair-64": ("FAR_B_uncond_win30_bair", "MyAutoencoderDC_8x_c32"),
    "far-b-long-dmlab-64": ("FAR_B_Long_action4", "MyAutoencoderDC_8x_c32"),
    "far-m-long-minecraft-128": ("FAR_M_Long_action4", "MyAutoencoderDC_16x_c32"),
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_dry_run_of_every_preset_prints_sane_figures(name, monkeypatch):
    """No preset but says what it takes, in seconds and without the memory; the paper's have the official sizes."""
    monkeypatch.setattr(estimate, "LENGTHS", 1)
    config = PRESETS[name]
    longest = None if name in OFFICIAL else config.fine_frames  # ours are traced with few lengths, to be quick
    report = estimate.estimate_world(config, NUM_CLASSES.get(config.condition, 4), CPU, longest=longest)
    tokens = config.world_batch_size * report.tokens_per_clip
    # Two for the product of a weight, thrice for forward and backward, and attention besides. The conditioning, a
    # third of the weights, is per frame, hence the lower bound; own predictions cost another forward pass.
    assert 0.5 < report.flops_per_step / (6 * report.parameters * tokens) < 3
    assert report.memory_bytes > 20 * report.parameters
    assert 2 <= report.frames_per_clip <= config.max_clip_frames
    if name in OFFICIAL:
        found = report.parameters, report.autoencoder_parameters
        assert found == pytest.approx(tuple(layout(model)["total_parameters"] for model in OFFICIAL[name]), rel=0.01)


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_preset_of_the_paper_has_the_sizes_of_the_official_model_and_the_settings_of_its_training(name):
    config, transformer, autoencoder = PRESETS[name], *(layout(model)["config"] for model in OFFICIAL[name])
    official = far_config(transformer, 8, 8)
    assert config.far(official.num_actions) == official and config.autoencoder() == autoencoder_config(autoencoder)
    assert config.preset == name and f"-{config.frame_size}" in name
    assert config.condition == ("action" if "long" in name else "label" if official.num_actions else "none")
    assert (config.learning_rate, config.betas, config.weight_decay) == (1e-4, (0.9, 0.999), 0.0)
    assert (config.ema_decay, config.clean_context_ratio, config.world_batch_size) == (0.9999, 0.1, 32)
    assert not (config.own_context_ratio or config.pure_noise_ratio or config.idle_ratio or config.latent_noise)
    assert config.fine_frames == official.short_term_frames
    assert config.layout == ("anchored" if "long" in name else "sliding")
    assert config.flip == ("ucf101" in name)
    assert config.frame_interval == (3 if config.flip and config.frame_size > 64 else 1)


def test_our_presets_are_three_sizes_of_each_world_beside_those_of_the_paper():
    ours = {f"{world}-{size}" for world in ("maze", "voxel") for size in ("xs", "s", "m")}
    assert {*OFFICIAL, *ours} == set(PRESETS)


def test_the_learning_rate_of_the_paper_rises_and_stays():
    long, short = PRESETS["far-b-long-dmlab-64"], PRESETS["far-b-bair-64"]
    factors = [learning_rate_factor(step, long.world_steps, long) for step in (0, 4_999, 9_999, 10_000, 999_999)]
    assert factors == pytest.approx([1e-4, 0.5, 1.0, 1.0, 1.0])
    assert {learning_rate_factor(step, short.world_steps, short) for step in (0, 1, 199_999)} == {1.0}


def test_clips_of_the_paper_are_uniform_from_the_window_up_and_below_the_longest():
    config = PRESETS["far-b-long-dmlab-64"]
    lengths = [clip_length(300, config, draw / 10_000) for draw in range(10_000)]
    assert (min(lengths), max(lengths)) == (16, 299)
    assert sum(lengths) / len(lengths) == pytest.approx((16 + 299) / 2, abs=0.5)
    assert {clip_length(300, PRESETS["far-b-bair-64"], draw) for draw in (0.0, 0.5, 0.999)} == {30}
    assert clip_length(300, PRESETS["maze-s"], 1.0) == 300


def test_a_label_is_dropped_for_a_whole_clip_and_an_action_for_one_frame():
    settings = [*SMALL, "action_dropout=0.5", "idle_ratio=0"]
    labelled = dropped_conditions(9, override(PRESETS["maze-xs"], [*settings, "condition=label"]), draws(64))
    assert (labelled == labelled[:, :1]).all() and 16 < int(labelled[:, 0].sum()) < 48
    acted = dropped_conditions(9, override(PRESETS["maze-xs"], settings), draws(64))
    assert acted[:, 0].all() and 0.4 < acted[:, 1:].float().mean() < 0.6 and not (acted == acted[:, 1:2]).all()


def test_what_a_deep_model_takes_follows_from_two_shallow_ones():
    """Exactly: its blocks are alike but for the last, which both have."""
    config: TrainConfig = override(PRESETS["maze-xs"], [*SMALL, "num_layers=5", "own_context_ratio=1.0"])
    kinds = {estimate.ClipKind(12, 1.0)}
    extrapolated = estimate.count_steps(config, 3, kinds, 2, CPU)
    with FakeTensorMode(allow_non_fake_inputs=True):
        whole = FAR(config.far(3))
        assert extrapolated == {kind: estimate._run(whole, config, kind, 2, CPU) for kind in kinds}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["positions=absolute"], "positions must be rope or alibi, got 'absolute'"),
        (["condition=words"], "condition must be action, label or none, got 'words'"),
        (["layout=circular"], "layout must be sliding or anchored"),
        (["flip=True"], "a left turn is a right one"),
        (["frame_interval=2"], "set condition to label or none"),
        (["condition=none"], "idle_ratio repeats frames under an action"),
        (["layout=anchored"], "fine_frames 16 and short_term_frames 8"),
        (["condition=label", "idle_ratio=0", "start_frames=1"], "start_frames must be at least 2 with labels"),
        (["betas=(0.9,1.0)"], r"betas must be two numbers in \[0, 1\)"),
        (["decay_fraction=1.5"], r"decay_fraction must be in \[0, 1\]"),
        (["latent_scale=-1"], "latent_scale must be at least 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        preset("maze-s", settings)


def test_an_old_config_means_what_it_meant():
    """Worlds and runs from before say nothing of the new fields, which then change nothing."""
    fields = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    assert (fields["condition"], fields["layout"], fields["clip_lengths"]) == ("action", "sliding", "log-uniform")
    assert (fields["frame_interval"], fields["flip"], fields["latent_scale"]) == (1, False, 0.0)
    assert fields["betas"] == (0.9, 0.98)
