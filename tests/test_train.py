"""Training: stages, resume, export and the scores of a world that was really learned."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from farworld.actions import Action, ActionVocabulary
from farworld.checkpoint import load_world
from farworld.dataset import Dataset, DatasetSpec, Episode, create_or_open
from farworld.models.far import FAR
from farworld.train import autoencoder as autoencoder_stage
from farworld.train import world as world_stage
from farworld.train.config import PRESETS, override, preset
from farworld.train.evaluate import one_step, psnr
from farworld.train.latents import LatentDataset
from farworld.train.pipeline import open_run, run_stages
from farworld.train.ranks import Ranks
from farworld.train.run import Draws, Run, learning_rate_factor

VOCABULARY = ActionVocabulary(
    (Action(name="noop"), Action(name="left", keys=("left",)), Action(name="right", keys=("right",)))
)
ALONE = Ranks(device=torch.device("cpu"))
SMALL = [
    "frame_size=16", "latent_channels=8", "autoencoder_widths=(16,32)", "encoder_blocks=(0,1)", "decoder_blocks=(1,1)",
    "num_layers=2", "num_heads=3", "patch_size=2", "context_patch_size=2", "short_term_frames=3", "fine_frames=6",
    "early_clip_frames=12", "max_clip_frames=12", "world_batch_size=4", "autoencoder_batch_size=16",
    "context_frames=8", "start_frames=3", "num_contexts=2", "precision=float32", "autoencoder_lpips_weight=0",
    "warmup_steps=5", "checkpoint_every=5", "sample_every=1000",
]  # fmt: skip


def bar_episode(index: int, num_frames: int = 20) -> Episode:
    """A bright bar on a dark ring; the action moves it four pixels left or right, or leaves it."""
    rng = np.random.default_rng(index)
    actions = rng.integers(0, 3, num_frames - 1)
    shifts = np.array([0, -4, 4])[actions]
    position = (4 * int(rng.integers(4)) + np.concatenate([[0], np.cumsum(shifts)])) % 16
    frames = np.full((num_frames, 16, 16, 3), 30, np.uint8)
    for t, x in enumerate(position):
        frames[t, :, [x, (x + 1) % 16, (x + 2) % 16]] = (220, 160, 60)
    return Episode(
        frames=frames, actions=actions.astype(np.int64), rewards=np.zeros(num_frames - 1, np.float32),
        terminated=False, truncated=True, seed=index, index=index,
    )  # fmt: skip


@pytest.fixture(scope="module")
def bars(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bars") / "data"
    spec = DatasetSpec(
        env_id="bars", env_kwargs={"level": 3}, height=16, width=16, frames_per_second=10.0,
        action_vocabulary=VOCABULARY,
    )  # fmt: skip
    with create_or_open(path, spec) as writer:
        for index in range(24):
            writer.write(bar_episode(index))
    return path


def train(
    out: Path, data: Path, *settings: str, resume: bool = False, stage: str = "all", ranks: Ranks = ALONE
) -> tuple[Run, dict]:
    dataset, settings = Dataset(data), [*SMALL, *settings]
    preset_name = None if resume else "maze-xs"
    run = open_run(out, preset_name, settings, resume=resume, stage=stage, data=dataset, ranks=ranks)
    with contextlib.closing(run):
        return run, run_stages(run, dataset, stage)


@pytest.fixture(scope="module")
def learned(bars, tmp_path_factory) -> Path:
    """A run that is trained long enough to know what the keys do."""
    out = tmp_path_factory.mktemp("learned") / "run"
    train(out, bars, "autoencoder_steps=150", "world_steps=400", "autoencoder_learning_rate=0.004",
          "learning_rate=0.003",
          "ema_decay=0.98", "checkpoint_every=100", "world_batch_size=8", "early_clip_frames=8",
          "max_clip_frames=8")  # fmt: skip
    return out


def test_a_trained_world_beats_copying_and_heeds_the_action(learned, bars):
    """The bars that an issue sets for real worlds, on a world that is learned in seconds."""
    world = load_world(learned).model  # a run folder is accepted wherever a checkpoint is
    data = Dataset(bars)
    scores = one_step(world, data, [22, 23])
    shuffled = one_step(world, data, [22, 23], shuffle_actions=True)
    assert scores["psnr"] > scores["copy_last_psnr"] + 3
    assert scores["psnr"] > shuffled["psnr"] + 1
    assert scores["episodes"] == 2 and scores["frames"] == 38 and scores["steps"] == world.config.num_steps
    assert scores["idle_psnr"] > scores["copy_last_psnr"]


def test_a_run_folder_holds_what_the_readme_says(learned):
    for name in ("checkpoints", "logs", "samples", "world/model.safetensors", "world/autoencoder.safetensors",
                 "world/contexts.safetensors", "world/config.json", "world/README.md", "run.json"):  # fmt: skip
        assert (learned / name).exists(), name
    told = load_world(learned).config.training["data"]  # what the exams make the environment anew with
    assert told["env"] == "bars" and told["env_kwargs"] == {"level": 3}
    assert list((learned / "logs").glob("world/events.*")) and list((learned / "samples").glob("world-*.png"))
    config = json.loads((learned / "world" / "config.json").read_text())
    assert config["action_timing"] == "after_frame" and config["training"]["config"]["world_steps"] == 400
    card = (learned / "world" / "README.md").read_text()
    assert "held-out episodes" in card and card.count("# run\n") == 1


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(bars, tmp_path, monkeypatch):
    """Ctrl-C in the middle of a step of each stage: the step is finished and kept, and 5 + 5 steps equal 10."""
    steps = ("autoencoder_steps=10", "world_steps=10", "checkpoint_every=4")
    straight, _ = train(tmp_path / "straight", bars, *steps)
    calls = 0

    def interrupting(loss):
        def interrupted(*args):
            nonlocal calls
            calls += 1
            if calls in (5, 5 + 10):
                signal.raise_signal(signal.SIGINT)
            return loss(*args)

        return interrupted

    for objective in (autoencoder_stage.AutoencoderObjective, world_stage.WorldObjective):
        monkeypatch.setattr(objective, "loss", interrupting(objective.loss))
    broken = tmp_path / "broken"
    for attempt, stage in enumerate(("autoencoder", "world")):
        with pytest.raises(KeyboardInterrupt):
            train(broken, bars, *steps, resume=attempt > 0)
        assert [file.name for file in (broken / "checkpoints").glob(f"{stage}-*")].count(f"{stage}-00000005.pt") == 1
    train(broken, bars, *steps, resume=True)
    weights = [torch.load(run / "checkpoints" / "world-00000010.pt") for run in (straight.path, broken)]
    for key in ("model", "average"):
        for name, tensor in weights[0][key].items():
            assert torch.equal(tensor, weights[1][key][name]), name


def test_architecture_and_autoencoder_are_fixed_once_weights_depend_on_them(bars, tmp_path):
    """A resume cannot quietly swap what trained weights rest on, and the refused settings leave no trace."""
    steps = ("autoencoder_steps=2", "world_steps=2")
    run, _ = train(tmp_path / "run", bars, *steps)
    with pytest.raises(ValueError, match="num_layers=2.*another --out"):
        train(run.path, bars, "num_layers=3", resume=True)
    with pytest.raises(ValueError, match="a world model is trained on it"):
        train(run.path, bars, "autoencoder_steps=4", resume=True)
    _, result = train(run.path, bars, "autoencoder_steps=2", "world_steps=3", resume=True)
    assert result["world_steps"] == 3


def test_a_resumed_run_heeds_settings_of_the_optimizer(bars, tmp_path):
    """A checkpoint brought those of the earlier sitting, and --set was taken without an effect."""
    run, _ = train(tmp_path / "run", bars, "autoencoder_steps=2", "world_steps=2")
    train(run.path, bars, "autoencoder_steps=2", "world_steps=3", "weight_decay=0.25", "betas=(0.5,0.75)", resume=True)
    optimizer = torch.load(run.path / "checkpoints" / "world-00000003.pt")["optimizer"]
    matrices, vectors = optimizer["param_groups"]
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.25, 0)
    assert tuple(matrices["betas"]) == tuple(vectors["betas"]) == (0.5, 0.75)
    assert {int(moments["step"]) for moments in optimizer["state"].values()} == {3}  # and the moments go on


def test_an_infinite_loss_stops_the_run_and_keeps_the_last_checkpoint(bars, tmp_path, monkeypatch):
    run, _ = train(tmp_path / "run", bars, "autoencoder_steps=4", "checkpoint_every=2", stage="autoencoder")
    monkeypatch.setattr(autoencoder_stage, "to_pixels", lambda frames: frames.permute(0, 3, 1, 2).float() * torch.inf)
    with pytest.raises(ValueError, match="lower the stage's learning rate"):
        train(run.path, bars, "autoencoder_steps=8", resume=True, stage="autoencoder")
    stored = run.load_checkpoint("autoencoder")
    assert stored is not None and stored["step"] == 4


def test_a_full_disk_leaves_the_last_checkpoint_and_no_rubbish(bars, tmp_path, monkeypatch):
    run, _ = train(tmp_path / "run", bars, "autoencoder_steps=2", stage="autoencoder")
    before = sorted(run.checkpoints.iterdir())

    def full(state, file):
        file.write(b"half a checkpoint")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        train(run.path, bars, "autoencoder_steps=4", resume=True, stage="autoencoder")
    assert sorted(run.checkpoints.iterdir()) == before


def test_damaged_episodes_stop_training_unless_they_are_left_out(bars, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(bars, data)
    victim = sorted((data / "episodes").glob("*.tar"))[3]
    victim.write_bytes(victim.read_bytes()[:700])
    command = [sys.executable, "-m", "farworld", "train", "--data", str(data), "--out", str(tmp_path / "run"),
               "--preset", "maze-xs", "--stage", "autoencoder", "--json", "--set", *SMALL,
               "autoencoder_steps=1"]  # fmt: skip
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2 and victim.name in refused.stderr and "--skip-bad" in refused.stderr
    accepted = subprocess.run([*command, "--skip-bad"], capture_output=True, text=True)
    assert accepted.returncode == 0 and json.loads(accepted.stdout)["bad_files"] == 1


def test_kill_minus_nine_and_resume_through_the_command(bars, tmp_path):
    """The command line trains, dies at any moment, and goes on with --resume; JSON is the only stdout."""
    command = [sys.executable, "-m", "farworld", "train", "--data", str(bars), "--out", str(tmp_path / "run"), "--json"]
    new = [*command, "--preset", "maze-xs", "--steps", "40", "--set", *SMALL, "checkpoint_every=2"]
    process = subprocess.Popen(new, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while not list((tmp_path / "run" / "checkpoints").glob("autoencoder-*.pt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
    process.communicate()

    again = subprocess.run(new, capture_output=True, text=True)
    assert again.returncode == 2 and "--resume" in again.stderr and "Traceback" not in again.stderr
    resumed = subprocess.run([*command, "--resume", "--steps", "8"], capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.count("\n") == 1
    result = json.loads(resumed.stdout)
    assert result["world_steps"] == 8 and Path(result["world"]).is_dir() and result["psnr"] > 0


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_hundred_steps_equal_those_of_a_process_that_was_killed_in_between(bars, tmp_path):
    """Weights, moving average and optimizer, to the bit, though nobody could tidy up: `kill -9`, then --resume."""
    command = [sys.executable, "-m", "farworld", "train", "--data", str(bars), "--device", "cpu", "--json", "--out"]
    settings = ["--preset", "maze-xs", "--set", *SMALL, "autoencoder_steps=2", "world_steps=100", "checkpoint_every=10"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    subprocess.run([*command, str(straight), *settings], check=True, env=environment, capture_output=True)
    process = subprocess.Popen(
        [*command, str(broken), *settings], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (broken / "checkpoints" / "world-00000050.pt").is_file():
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    found = sorted(file.name for file in (broken / "checkpoints").glob("world-*.pt"))
    assert "world-00000050.pt" in found and "world-00000100.pt" not in found
    subprocess.run([*command, str(broken), "--resume"], check=True, env=environment, capture_output=True)
    states = [torch.load(run / "checkpoints" / "world-00000100.pt") for run in (straight, broken)]
    assert states[0].keys() == states[1].keys() and states[0]["step"] == states[1]["step"] == 100
    for key in ("model", "average", "optimizer"):
        one, other = (dict(leaves(state[key])) for state in states)
        assert one.keys() == other.keys() and one
        for name, tensor in one.items():
            assert torch.equal(tensor, other[name]), f"{key}{name}"


def leaves(value: object, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of a nested state."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f"{name}.{key}")


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before_loudly(bars, tmp_path):
    run, _ = train(tmp_path / "run", bars, "autoencoder_steps=10", "checkpoint_every=5", stage="autoencoder")
    newest = run.checkpoint_files("autoencoder")[0]
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="going back to the one before"):
        stored = run.load_checkpoint("autoencoder")
    assert stored is not None and stored["step"] == 5


def test_two_processes_cannot_train_one_run(bars, tmp_path):
    run = open_run(tmp_path / "run", "maze-xs", SMALL, resume=False, stage="all", data=Dataset(bars), ranks=ALONE)
    with pytest.raises(ValueError, match="another process is writing into"):
        open_run(tmp_path / "run", None, [], resume=True, stage="all", data=Dataset(bars), ranks=ALONE)
    run.close()
    open_run(tmp_path / "run", None, [], resume=True, stage="all", data=Dataset(bars), ranks=ALONE).close()


def test_latents_are_cached_once_and_again_for_another_autoencoder(bars, tmp_path):
    run, _ = train(tmp_path / "run", bars, "autoencoder_steps=2", stage="autoencoder")
    _, result = train(run.path, bars, resume=True, stage="latents")
    progress = json.loads((run.latents / "progress.json").read_text())
    assert result["cached_frames"] == 24 * 20 and progress["episodes"] == 24
    before = (run.latents / "latents.f16").stat().st_mtime_ns
    train(run.path, bars, resume=True, stage="latents")
    assert (run.latents / "latents.f16").stat().st_mtime_ns == before
    for file in run.checkpoint_files("latent_statistics"):
        file.unlink()
    train(run.path, bars, "autoencoder_steps=4", resume=True, stage="autoencoder")
    train(run.path, bars, resume=True, stage="latents")
    assert json.loads((run.latents / "progress.json").read_text())["key"] != progress["key"]


@pytest.mark.parametrize(
    ("settings", "is_playable"),
    [
        (["context_patch_size=None"], True),
        (["context_patch_size=None", "causal=False", "copy_gate=False"], False),
    ],
)
def test_far_without_a_long_term_stream_and_video_dit_are_trained_by_the_same_command(
    bars, tmp_path, settings, is_playable
):
    run, result = train(tmp_path / "run", bars, *settings, "world_steps=2", "autoencoder_steps=2", "sample_every=2")
    assert result["world_steps"] == 2
    assert (run.samples / "world-00000002.png").is_file()
    assert ("world" in result) == run.world.is_dir() == is_playable


def test_learning_rate_warms_up_and_ends_at_zero():
    config = override(PRESETS["maze-s"], ["warmup_steps=10", "decay_fraction=0.5"])
    factors = [learning_rate_factor(step, 100, config) for step in range(101)]
    assert factors[0] == pytest.approx(0.1) and max(factors) == 1.0 == factors[49] and factors[100] == 0.0
    assert factors[75] == pytest.approx(0.5)


def test_own_predictions_as_context_leave_every_weight_its_gradient():
    """Under autocast a pass without gradients caches weights that the training pass must not take over."""
    config = override(PRESETS["maze-xs"], [*SMALL, "precision=bfloat16"])
    model = FAR(config.far(3))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    clean = torch.randn(2, 10, 8, 4, 4)
    actions = torch.randint(0, 3, (2, 10))
    with torch.autocast("cpu", torch.bfloat16):
        loss = world_stage.flow_matching_loss(
            model, model.config, clean, actions, config, draws(2), own_context_ratio=1.0
        )
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # The last block's coarse queries feed nothing.
    assert set(without) <= {"blocks.1.coarse_attention.norm_q.weight"}


def test_own_predictions_keep_the_frames_that_are_context():
    config = override(PRESETS["maze-xs"], SMALL)
    model = FAR(config.far(3))
    truth = torch.randn(2, 6, 8, 4, 4)
    mixed = world_stage.own_predictions(
        model, truth, torch.zeros(2, 6, dtype=torch.int64), truth[:, :3], config, draws(2)
    )
    same = (mixed == truth).flatten(2).all(dim=2)
    expected = world_stage.random_context(6, config, draws(2))
    assert torch.equal(same, expected) and 0 < same.sum() < same.numel()


def draws(count: int, first_seed: int = 0) -> Draws:
    return Draws([torch.Generator().manual_seed(first_seed + item) for item in range(count)])


def test_psnr_of_known_errors():
    """An error of 16 grey levels everywhere is 20 · log10(255 / 16) = 24.05 dB."""
    frames = torch.full((2, 16, 16, 3), 100, dtype=torch.uint8)
    worse = frames.clone()
    worse[0] += 16
    assert psnr(worse, frames)[0].item() == pytest.approx(24.0485, abs=1e-3)
    assert psnr(worse, frames)[1].item() == 100.0  # an exact frame, capped


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("maze-xxs", [], "did you mean maze-xs"),
        ("maze-xs", ["checkpoint_evry=10"], "did you mean checkpoint_every"),
        ("maze-xs", ["checkpoint_every=often"], "expects a int"),
        ("maze-xs", ["checkpoint_every"], "field=value"),
        ("maze-xs", ["checkpoint_every=0"], "at least 1"),
        ("maze-xs", ["precision=float8"], "precision must be"),
    ],
)
def test_bad_settings_are_named(name, settings, message):
    with pytest.raises(ValueError, match=message):
        preset(name, settings)


def test_data_of_another_size_is_refused_with_what_to_do(bars, tmp_path):
    with pytest.raises(ValueError, match="64×64.*16×16.*--size 64"):
        open_run(tmp_path / "run", "maze-xs", [], resume=False, stage="all", data=Dataset(bars), ranks=ALONE)
    with pytest.raises(ValueError, match="needs --preset"):
        open_run(tmp_path / "run", None, [], resume=False, stage="all", data=Dataset(bars), ranks=ALONE)


def test_idle_clips_repeat_one_frame_under_the_noop():
    """With idle_ratio 1 nothing moves and the action says why; a world without a noop is left alone."""
    latents = LatentDataset(
        np.arange(40 * 2, dtype=np.float16).reshape(40, 2, 1, 1), np.array([0, 40]), np.full(40, 2, np.int64)
    )
    config = override(PRESETS["maze-xs"], [*SMALL, "idle_ratio=1.0"])
    kind, generators = world_stage.ClipKind(12, 0.0), [torch.Generator().manual_seed(seed) for seed in range(3)]
    clips = world_stage.random_clips(latents, [0], config, kind, 0, generators)
    assert torch.equal(clips.latents, clips.latents[:, :1].expand_as(clips.latents)) and (clips.actions == 0).all()
    clips = world_stage.random_clips(latents, [0], config, kind, None, generators)
    assert (clips.latents[:, 1:] - clips.latents[:, :-1] == 2).all() and (clips.actions == 2).all()
    assert [float(clip[0, 0]) for clip in clips.latents] == [2 * start for _, start in clips.places]
