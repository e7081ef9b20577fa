"""Recipes: from nothing to a world, stopped and gone on with anywhere, with fresh data in every round."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_train import SMALL

from farworld.checkpoint import load_world
from farworld.dataset import Dataset, recordings
from farworld.envs.environments import PixelEnv
from farworld.envs.policies import known_policies
from farworld.train import run as run_module
from farworld.train.recipes import RECIPES, recipe_of
from farworld.train.recipes.dmlab import DMLAB
from farworld.train.recipes.flow import STAGES, RecipeRun
from farworld.train.recipes.recipe import FEW_STEPS, Order, Recipe

ROOT = Path(__file__).resolve().parent.parent
TINY = dataclasses.replace(
    DMLAB, name="tiny", size=16, frames=14, episodes=4, held_out_episodes=2, held_out_frames=6, preset="maze-xs",
    settings=(*SMALL, "checkpoint_every=3"), autoencoder_steps=6, world_steps=8, few_step_steps=4,
)  # fmt: skip


def cook(out: Path, recipe: Recipe = TINY, *, rounds: int = 1, until: str = "evaluate", **order) -> dict:
    run = RecipeRun(recipe, out, Order(recipe=recipe.name, **order), workers=0, device=torch.device("cpu"))
    with contextlib.closing(run):
        return run.work(rounds=rounds, until=until)


@pytest.fixture(scope="module")
def cooked(tmp_path_factory) -> Path:
    """A finished run of two rounds."""
    out = tmp_path_factory.mktemp("cooked") / "run"
    report = cook(out, rounds=2)
    assert report["finished"] and report["world"] == str(out / "world")
    return out


def test_a_recipe_makes_a_world_with_its_card_and_its_scores(cooked):
    world = load_world(cooked)
    assert world.config.name == "tiny" and world.config.model.shortcut_steps == FEW_STEPS
    assert world.config.training["recipe"]["scale"] == 1.0
    card = (cooked / "world" / "README.md").read_text()
    scores = json.loads((cooked / "evaluation.json").read_text())["one_step"]
    assert set(scores) == {"1_steps", "2_steps", "4_steps", "shuffled_actions"}
    for text in (TINY.intro, TINY.rights, "50% explore", "farworld recipe tiny", f"{scores['2_steps']['psnr']:.2f} dB"):
        assert text in card
    assert "Apache License" in (cooked / "world" / "LICENSE-dmlab").read_text()


def test_each_round_sees_new_episodes_and_goes_on_with_the_weights_of_the_one_before(cooked):
    seeds = [set(), set(), set()]
    for seen, name in zip(seeds, ("data-1", "data-2", "held-out"), strict=True):
        data = Dataset(cooked / name)
        seen |= {data.episode(i).seed for i in range(len(data))}
    assert len(set.union(*seeds)) == sum(map(len, seeds)) == 10
    first = load_world(cooked / "few-step-1").model.transformer.state_dict()
    begun = torch.load(next((cooked / "few-step-2/checkpoints").glob("initial-*.pt")), weights_only=True)["model"]
    assert all(torch.equal(begun[name], tensor) for name, tensor in first.items())
    learned = load_world(cooked / "few-step-2").model.transformer.state_dict()
    assert not all(torch.equal(learned[name], tensor) for name, tensor in first.items())


def test_latents_are_not_encoded_twice(cooked):
    """On a CPU that takes minutes; the few-step training begins with the autoencoder and the episodes of the base."""
    base, few_step = (
        json.loads((cooked / name / "latents/progress.json").read_text()) for name in ("base", "few-step-1")
    )
    assert base == few_step
    files = [cooked / name / "latents/latents.f16" for name in ("base", "few-step-1")]
    assert files[0].read_bytes() == files[1].read_bytes()


class Cuts:
    """Interrupts a training before every so many steps."""

    def __init__(self, every: int) -> None:
        self.left = self.every = every
        self.step = run_module.train_step

    def __call__(self, *args, **kwargs):
        """As `farworld.train.run.train_step`, if it is not cut."""
        if not self.left:
            self.left = self.every
            raise KeyboardInterrupt
        self.left -= 1
        return self.step(*args, **kwargs)


def test_a_recipe_that_is_cut_again_and_again_makes_the_very_same_world(cooked, tmp_path, monkeypatch):
    """As by kill -9: what was not in a checkpoint is learnt again, and comes out the same."""
    monkeypatch.setattr(run_module, "train_step", Cuts(every=7))
    sittings = 0
    while True:
        sittings += 1
        with contextlib.suppress(KeyboardInterrupt):
            report = cook(tmp_path / "run", rounds=2)
            break
        assert sittings < 20
    assert report["finished"] and sittings > 2
    for name in ("model.safetensors", "autoencoder.safetensors", "contexts.safetensors"):
        assert (tmp_path / "run/world" / name).read_bytes() == (cooked / "world" / name).read_bytes(), name


def test_what_is_finished_is_not_done_again(cooked):
    before = {path: path.stat().st_mtime_ns for path in cooked.rglob("*") if path.is_file() and path.name != ".lock"}
    assert cook(cooked, rounds=2)["finished"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not cook(cooked, rounds=3, until="autoencoder")["finished"]
    assert len(Dataset(cooked / "data-2")) == 4 and not (cooked / "few-step-3").exists()


def test_a_training_killed_before_it_had_its_first_weights_begins_with_them_again(tmp_path):
    """Without them it would go on from untrained ones, and nobody would notice."""
    cook(tmp_path, until="world")
    (tmp_path / "few-step-1/checkpoints").mkdir(parents=True)
    (tmp_path / "few-step-1/run.json").write_text((tmp_path / "base/run.json").read_text())
    assert cook(tmp_path)["finished"]
    assert any((tmp_path / "few-step-1/checkpoints").glob("initial-*.pt"))
    assert load_world(tmp_path).config.model.shortcut_steps == FEW_STEPS


def test_scale_shrinks_episodes_and_steps_and_nothing_else(tmp_path):
    big = dataclasses.replace(TINY, episodes=40, held_out_episodes=20, autoencoder_steps=60, world_steps=80)
    cook(tmp_path, big, scale=0.1, until="world")
    assert (len(Dataset(tmp_path / "data-1")), len(Dataset(tmp_path / "held-out"))) == (4, 2)
    assert Dataset(tmp_path / "data-1").num_frames(0) == TINY.frames
    config = json.loads((tmp_path / "base/run.json").read_text())
    assert (config["autoencoder_steps"], config["world_steps"]) == (6, 8)
    with pytest.raises(ValueError, match=r"begun with scale=0.1, not 0.2.*another --out"):
        cook(tmp_path, big, scale=0.2)


def test_a_recipe_can_begin_with_a_world(cooked, tmp_path):
    """A warm restart trains no autoencoder: it has the world's."""
    assert cook(tmp_path, init=str(cooked))["finished"]
    assert not (tmp_path / "base").exists()
    theirs, ours = (folder / "world/autoencoder.safetensors" for folder in (cooked, tmp_path))
    assert theirs.read_bytes() == ours.read_bytes()


def test_an_unfinished_training_can_be_played(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "train_step", Cuts(every=12))
    with pytest.raises(KeyboardInterrupt):
        cook(tmp_path)
    run = RecipeRun(TINY, tmp_path, Order(recipe="tiny"), workers=0, device=torch.device("cpu"))
    with contextlib.closing(run):
        assert run.export_so_far(1) == tmp_path / "so-far"
    assert load_world(tmp_path / "so-far").config.training["world"] == {"steps": 6, "unfinished": True}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_of_a_bundled_world_can_be_recorded(name):
    """Its environment takes its arguments and has its policies, and their shares add up."""
    recipe = recipe_of(name)
    try:
        recording = recipe.recording(seed=recipe.seed, frames=recipe.frames)
    except ImportError as error:
        pytest.skip(str(error))
    env = PixelEnv(recording)
    try:
        assert set(recipe.policies) <= set(known_policies(env.env))
        assert env.spec.height == recipe.size and env.spec.action_vocabulary.noop is not None
    finally:
        env.close()
    assert sum(recipe.policies.values()) == pytest.approx(1)
    assert recipe.held_out_seed > recipe.seed + 1000


def test_the_stages_are_those_that_the_command_offers():
    from typing import get_args

    from farworld.train.recipe_cli import Stage

    assert get_args(Stage) == STAGES


BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pygame", "av", "cv2"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Block())
from farworld.cli import main
main()
"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", BLOCK, "recipe", "dmlab", "--workers", "0", *arguments]


TOY = ["--preset", "maze-xs", "--scale", "0.0005", "--json", "--set", *(s for s in SMALL if "frame_size" not in s),
       "autoencoder_widths=(4,8,16)", "encoder_blocks=(0,0,0)", "decoder_blocks=(0,0,0)"]  # fmt: skip


def run_command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_command_needs_neither_pygame_nor_opencv_nor_av_and_stops_in_time(tmp_path):
    """Machines with a GPU have none of them; a time limit leaves all on disk, and the same command goes on."""
    out = str(tmp_path / "run")
    early = run_command("--out", out, "--minutes", "0.0001", *TOY)
    assert early.returncode == 0, early.stderr
    report = json.loads(early.stdout)
    assert not report["finished"] and early.stdout.count("\n") == 1
    late = run_command("--out", out, *TOY)
    assert late.returncode == 0, late.stderr
    report = json.loads(late.stdout)
    assert report["finished"] and np.isfinite(report["one_step"]["1_steps"]["psnr"])
    assert recordings(Path(out) / "data-1")[0]["policy"] == "explore=0.5,revisit=0.35,random=0.15"


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_sigterm_ends_it_like_ctrl_c_also_in_the_background(tmp_path):
    """A shell starts its background jobs deaf to Ctrl-C."""
    out = tmp_path / "run"
    process = subprocess.Popen(
        command("--out", str(out), *[text.replace("0.0005", "100") for text in TOY]), cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (out / "held-out/dataset.json").is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted; everything finished before is on disk" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["doomm", "--out", "x"], "did you mean doom"),
        (["dmlab", "--out", "x", "--scale", "0"], "--scale must be above 0"),
        (["dmlab", "--out", "x", "--minutes", "0"], "--minutes must be above 0"),
        (["dmlab", "--out", "x", "--rounds", "0"], "--rounds must be 1 or more"),
    ],
)
def test_bad_input_is_named(arguments, complaint):
    from farworld.cli import app

    with pytest.raises(ValueError, match=complaint):
        app(["recipe", *arguments], exit_on_error=False, print_error=False, result_action="return_value")
