"""The paper's settings by name, and what they would take."""

import dataclasses

import pytest
import torch
from test_train import SMALL, draws
from torch._subclasses.fake_tensor import FakeTensorMode

from farworld.models.far import FAR
from farworld.models.official import SHORT_TERM_FRAMES, VARIANTS, variant_of
from farworld.train import estimate
from farworld.train.config import PRESETS, TrainConfig, override, preset
from farworld.train.run import learning_rate_factor
from farworld.train.world import clip_length, dropped_conditions

CPU = torch.device("cpu")
# Parameters of the official models, counted: of the transformer with its classes, and of the DC-AE of its compression.
OFFICIAL = {
    "far-l-ucf101-128": ("far_l", 101, 456_939_552, 16),
    "far-l-ucf101-128-uncond": ("far_l", 0, 456_835_104, 16),
    "far-l-ucf101-256": ("far_l", 101, 456_939_552, 32),
    "far-l-ucf101-256-uncond": ("far_l", 0, 456_835_104, 32),
    "far-xl-ucf101-256": ("far_xl", 101, 673_821_088, 32),
    "far-xl-ucf101-256-uncond": ("far_xl", 0, 673_703_584, 32),
    "far-b-ucf101-64": ("far_b", 0, 129_560_864, 8),
    "far-b-bair-64": ("far_b", 0, 129_560_864, 8),
    "far-b-long-dmlab-64": ("far_b_long", 4, 158_111_776, 8),
    "far-m-long-minecraft-128": ("far_m_long", 4, 280_544_800, 16),
}
OFFICIAL_AUTOENCODERS = {8: 127_920_940, 16: 215_758_380, 32: 323_356_460}


@pytest.mark.parametrize("name", PRESETS)
def test_a_dry_run_of_every_preset_prints_sane_figures(name, monkeypatch):
    """No preset but says what it takes, in seconds and without the memory; the paper's have the official sizes."""
    monkeypatch.setattr(estimate, "LENGTHS", 1)
    config, classes = PRESETS[name], OFFICIAL.get(name, ("", 5))[1]
    longest = None if name in OFFICIAL else config.fine_frames  # ours are traced with few lengths, to be quick
    report = estimate.estimate_world(config, classes, CPU, longest=longest)
    tokens = config.world_batch_size * report.tokens_per_clip
    # Two for the product of a weight, thrice for forward and backward, and attention besides. The conditioning, a
    # third of the weights, is per frame, hence the lower bound; own predictions cost another forward pass.
    assert 0.5 < report.flops_per_step / (6 * report.parameters * tokens) < 3
    assert report.memory_bytes > 20 * report.parameters
    assert 2 <= report.frames_per_clip <= config.max_clip_frames
    if name not in OFFICIAL:
        return
    _, _, parameters, compression = OFFICIAL[name]
    assert report.parameters == pytest.approx(parameters, rel=0.01)
    assert report.autoencoder_parameters == pytest.approx(OFFICIAL_AUTOENCODERS[compression], rel=0.01)


def test_every_preset_of_the_paper_has_the_size_and_settings_of_its_name():
    ours = {f"{world}-{size}" for world in ("maze", "voxel") for size in ("xs", "s", "m")}
    assert {*OFFICIAL, *ours} == set(PRESETS)
    for name, (variant, classes, _, compression) in OFFICIAL.items():
        config = PRESETS[name]
        model = config.far(classes or 7)
        assert config.preset == name and model.num_actions == classes
        assert variant_of(model) == variant and name.startswith(variant.replace("_", "-"))
        assert (model.latent_channels, model.latent_height, config.frame_size) == (32, 8, 8 * compression)
        assert name.removesuffix("-uncond").endswith(str(config.frame_size)) or "bair" in name
        assert (config.learning_rate, config.betas, config.weight_decay) == (1e-4, (0.9, 0.999), 0.0)
        assert (config.ema_decay, config.clean_context_ratio, config.world_batch_size) == (0.9999, 0.1, 32)
        assert not (config.copy_gate or config.own_context_ratio or config.pure_noise_ratio or config.idle_ratio)
        is_long = VARIANTS[variant].context_patch_size is not None
        assert config.layout == ("anchored" if is_long else "sliding")
        assert config.fine_frames == config.short_term_frames == (30 if "bair" in name else SHORT_TERM_FRAMES)
        assert config.flip == ("ucf101" in name)
        assert config.frame_interval == (3 if config.flip and config.frame_size > 64 else 1)


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
    with FakeTensorMode(allow_non_fake_inputs=True):
        extrapolated = estimate._at_depth(config, 3, kinds, 2, CPU)
        whole = FAR(config.far(3))
        assert extrapolated == {kind: estimate._run(whole, config, kind, 2, CPU) for kind in kinds}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
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
