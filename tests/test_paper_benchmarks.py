"""The studies of the paper's claims: each runs by one command, and its rule can say no."""

import importlib
import json
import sys

import numpy as np
import pytest
import torch
from test_few_step import BENCHMARKS

from farworld.models.attention import Positions

COMMANDS = ("tokens", "clean_context", "coarse_resolution", "short_window", "convergence", "flexrope")
PAPER = BENCHMARKS / "paper"

sys.path.insert(0, str(PAPER))
try:
    study, *studies = (importlib.import_module(name) for name in ("study", *COMMANDS))
finally:
    sys.path.remove(str(PAPER))
tokens, clean_context, coarse_resolution, short_window, convergence, flexrope = studies


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One folder for all studies, and the commands that the first of them ran."""
    return tmp_path_factory.mktemp("paper")


@pytest.fixture
def in_this_process(monkeypatch):
    """Recording without a process of its own; the commands."""
    from farworld.cli import app

    commands = []

    def run(*arguments):
        commands.append(arguments[0])
        app([*arguments, "--workers", "0"], exit_on_error=False, print_error=False, result_action="return_value")

    monkeypatch.setattr(study, "farworld", run)
    return commands


def run_command(module, home, capsys, *options):
    study.main(module.__name__, getattr(module, module.__name__), ["--out", f"{home}", "--scale", "tiny", *options])
    return capsys.readouterr().out


@pytest.mark.parametrize("module", studies, ids=COMMANDS)
def test_every_claim_is_one_command_that_ends_in_a_verdict(module, home, in_this_process, capsys):
    out = run_command(module, home, capsys, "--json")
    report = json.loads(out.splitlines()[-1])
    assert report["verdict"] in ("same direction", "not reproduced") and report["rows"] and report["commit"]
    text = (home / f"{module.__name__}.md").read_text(encoding="utf-8")
    assert text in out and report["verdict"] in text and report["hardware"] in text
    for picture in home.glob(f"paper_{module.__name__}.svg"):
        assert picture.name in text


def test_what_is_trained_is_not_trained_again(home, in_this_process, capsys, monkeypatch):
    run_command(clean_context, home, capsys)
    before = {file: file.stat().st_mtime_ns for file in home.glob("runs/*/snapshots/*.pt")}
    assert len(list(home.glob("runs/far-0/snapshots/*.pt"))) == 2
    monkeypatch.setattr(study, "train_world", None)
    run_command(clean_context, home, capsys)
    assert before == {file: file.stat().st_mtime_ns for file in home.glob("runs/*/snapshots/*.pt")}
    assert "record" not in in_this_process[1:]
    setup = study.Study(out=home, scale=study.SCALES["tiny"])
    with pytest.raises(ValueError, match="other settings"):
        setup.train("far", setup.short("learning_rate=0.1"))
    (home / "data.txt").write_text("of other episodes")
    with pytest.raises(ValueError, match="other data"):
        study.Study(out=home, scale=study.SCALES["tiny"]).data  # noqa: B018
    (home / "data.txt").unlink()


def test_variants_are_played_on_the_same_clips_of_held_out_episodes(home, in_this_process, capsys):
    """What is compared clip by clip has to be the same frames, latents and noise."""
    run_command(clean_context, home, capsys)
    setup = study.Study(out=home, scale=study.SCALES["tiny"])
    clips = setup.clips(6, 2)
    assert set(clips.episodes) == {2, 3, 4} and len(clips.frames) == 6
    null = len(setup.data.spec.action_vocabulary)
    assert (clips.actions[:, 0] == null).all() and (clips.actions[:, 1:] < null).all()
    assert np.array_equal(clips.frames[0], setup.data.frames(2, 0, 6))
    assert np.array_equal(clips.frames[1], setup.data.frames(2, 18, 24))
    (world,) = setup.trained("far", setup.short())
    whole = study.roll_out(world, clips, 4, num_steps=1)
    alone = study.roll_out(world, clips.part(slice(0, 1)), 4, num_steps=1)
    assert whole.shape == (6, 2, 64, 64, 3) and np.abs(whole[:1].astype(int) - alone).max() <= 1  # to rounding
    # Shown at timestep 0 in place of its mark, and with another decay, the same weights say something else.
    with torch.no_grad():
        for parameter in world.transformer.parameters():
            parameter.normal_(std=0.2)
    marked = study.roll_out(world, clips, 4, num_steps=1)
    assert (study.roll_out(clean_context.unmarked(world), clips, 4, num_steps=1) != marked).any()
    decayed = study.with_positions(world, Positions.flex_rope(3.0))
    assert (study.roll_out(decayed, clips, 4, num_steps=1) != marked).any()


def test_alibi_is_trained_and_other_positions_are_put_on_trained_weights(home, in_this_process, capsys):
    run_command(flexrope, home, capsys)
    setup = study.Study(out=home, scale=study.SCALES["tiny"])
    (alibi,) = setup.trained("alibi", setup.short("positions=alibi"))
    (rope,) = setup.trained("far", setup.short())
    assert alibi.config.model.positions == alibi.transformer.config.positions == Positions.alibi()
    assert rope.config.model.positions == Positions()
    decayed = study.with_positions(rope, Positions.flex_rope(0.2))
    assert decayed.config.model.positions == decayed.transformer.config.positions == Positions.flex_rope(0.2)
    for name, weights in rope.transformer.state_dict().items():
        assert torch.equal(decayed.transformer.state_dict()[name], weights)


def test_a_difference_is_clear_only_beyond_its_error_and_in_every_seed():
    episodes = np.repeat(np.arange(8), 2)
    noise = np.random.default_rng(0).normal(size=(2, 16))
    nothing = study.difference(noise, noise - 0.01 * np.sign(np.arange(16) % 4 - 1.5), episodes)
    assert not nothing.is_clear
    something = study.difference(noise + 1, 0.9 * noise, episodes)
    assert something.is_clear and something.mean == pytest.approx(1, abs=0.1) and something.error > 0
    seeds_apart = study.difference(noise + np.array([[3.0], [-0.5]]), noise, episodes)
    assert seeds_apart.mean > 2 * seeds_apart.error and not seeds_apart.is_clear
    # Clips of one episode are not independent: as many clips of fewer episodes say less.
    few = study.difference(noise + 1, 0.9 * noise, np.repeat(np.arange(2), 8))
    assert few.error != something.error


def test_the_rules_can_say_no():
    assert short_window.saturates(0.2, True, 0.01)
    assert not short_window.saturates(0.2, False, 0.01)  # no gain that is clear
    assert not short_window.saturates(-0.2, True, 0.0)  # longer is worse
    assert not short_window.saturates(0.2, True, 0.1)  # still rising

    clear, unclear = study.Difference(0.1, 0.01, (0.1,)), study.Difference(0.1, 0.2, (0.1,))
    worse = study.Difference(-0.1, 0.01, (-0.1,))
    assert flexrope.judge({"a": clear, "b": clear})
    assert not flexrope.judge({"a": clear, "b": unclear}) and not flexrope.judge({"a": clear, "b": worse})

    rows = [{"one": 3.0, "other": 4.0, "error": 0.1}] * 3
    assert convergence.is_better(rows)
    assert not convergence.is_better([*rows, {"one": 3.0, "other": 3.1, "error": 0.1}])  # not clear at the end
    assert not convergence.is_better([{"one": 5.0, "other": 4.0, "error": 0.1}] * 3 + rows[:1])  # worse on the way

    assert clean_context.is_reproduced(clear)
    assert not clean_context.is_reproduced(unclear) and not clean_context.is_reproduced(worse)

    assert coarse_resolution.is_cheap(study.Difference(0.001, 0.001, (0.001,)), 0.3, 2.0)
    assert not coarse_resolution.is_cheap(study.Difference(0.001, 0.01, (0.001,)), 0.3, 2.0)  # nobody knows
    assert not coarse_resolution.is_cheap(study.Difference(0.02, 0.001, (0.02,)), 0.3, 2.0)  # it costs quality
    assert not coarse_resolution.is_cheap(study.Difference(0.001, 0.001, (0.001,)), 0.3, 1.1)  # it brings no speed


def test_a_frechet_distance_knows_the_nearer_model_and_how_sure_it_is():
    rng, episodes = np.random.default_rng(0), np.repeat(np.arange(12), 4)
    truth, near = (rng.normal(size=(48, 2, 6)) for _ in range(2))
    one, other, error = study.distance_and_error(near, near + 1, truth, episodes)
    assert one < other and 0 < error < (other - one) / 2
    one, other, error = study.distance_and_error(near, rng.normal(size=(48, 2, 6)), truth, episodes)
    assert abs(one - other) < 3 * error


def test_without_shown_frames_replacement_is_a_clip_from_nothing(home, in_this_process, capsys):
    """And with some they come out as they went in."""
    run_command(clean_context, home, capsys)
    setup = study.Study(out=home, scale=study.SCALES["tiny"])
    (world,) = setup.trained("video-dit", setup.short("causal=False"))
    clips = setup.clips(4, 1)
    noise = convergence.noise_of(clips)
    clip = convergence.denoise_clip(world, clips.actions, noise, convergence.flow.euler_timesteps(3))
    assert torch.allclose(convergence.replaced(world, clips, noise, 0, 3), clip, atol=1e-5)
    last = convergence.replaced(world, clips, noise, 2, 50)[:, :2]
    assert (last - clips.latents[:, :2]).abs().mean() < 0.2 * clips.latents.abs().mean()


@pytest.mark.parametrize(
    ("options", "message"), [(["--scale", "huge"], "--scale must be one of small, tiny"), (["--seeds", "0"], "--seeds")]
)
def test_bad_input_is_one_line(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        study.main("tokens", tokens.tokens, ["--out", f"{tmp_path}", *options])
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and error.startswith("error: ") and message in error and error.count("\n") == 1
