"""The scripts for a machine with a GPU, as far as they can be tried without one."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import gymnasium as gym
import pytest

from farworld.checkpoint import load_world
from farworld.envs.environments import resolve_env_id

ROOT = Path(__file__).resolve().parent.parent
GPU = ROOT / "benchmarks" / "gpu"
# What the image of the GPU machine brings, and what neither training nor rollout needs.
THERE = {
    *("huggingface-hub", "numba", "numpy", "pillow", "rich", "safetensors", "tensorboard", "torch", "torchmetrics"),
    *("av", "opencv-python", "pygame-ce"),
}


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, GPU / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


parcel, random_world, side_by_side = (script(name) for name in ("parcel", "random_world", "side_by_side"))


@pytest.fixture
def run(tmp_path, tiny_world_path) -> Path:
    """A finished run of a recipe, as far as its files go."""
    folder = tmp_path / "tiny"
    (folder / "world").mkdir(parents=True)
    for file in tiny_world_path.iterdir():
        (folder / "world" / file.name).write_bytes(file.read_bytes())
    (folder / "base/samples").mkdir(parents=True)
    for step in (1, 2):
        (folder / f"base/samples/world-0000000{step}.png").write_bytes(bytes(2000))
    (folder / "base/checkpoints").mkdir()
    (folder / "base/checkpoints/world-00000002.pt").write_bytes(bytes(10**6))
    (folder / "evaluation.json").write_text("{}")
    return folder


def packed(run: Path, out: Path, capsys, **limits) -> dict:
    parcel.pack(run, out, **limits)
    return json.loads(capsys.readouterr().out)["parcel"]


def test_a_run_is_split_and_put_together_again(run, tmp_path, capsys):
    facts = packed(run, tmp_path / "out", capsys, part_bytes=20_000)
    parts = sorted((tmp_path / "out").iterdir())
    assert facts["parts"] == len(parts) > 3 and all(path.stat().st_size <= 20_000 for path in parts)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", path.name) for path in parts)
    parcel.unpack(tmp_path / "out", tmp_path / "home", sha256=facts["sha256"])
    for file in (run / "world").iterdir():
        assert (tmp_path / "home/world" / file.name).read_bytes() == file.read_bytes()
    assert not (tmp_path / "home/base/checkpoints").exists()
    parcel.compare(str(run / "world"), str(tmp_path / "home/world"), frames=4)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["largest_difference"] == 0


def test_a_smaller_parcel_leaves_no_part_of_a_larger_one_behind(run, tmp_path, capsys):
    packed(run, tmp_path / "out", capsys, part_bytes=20_000)
    packed(run, tmp_path / "out", capsys)
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_what_does_not_fit_is_the_least_wanted_and_is_named(run, tmp_path, capsys):
    size = sum(file.stat().st_size for file in (run / "world").iterdir())
    facts = packed(run, tmp_path / "out", capsys, most_bytes=size + 22_000)
    assert facts["left_out"] == ["base/samples/world-00000001.png"]
    assert facts["bytes"] <= size + 22_000


def test_a_missing_or_damaged_part_is_an_error(run, tmp_path, capsys):
    out = tmp_path / "out"
    facts = packed(run, out, capsys, part_bytes=20_000)
    part = out / "parcel-tiny-1"
    content = part.read_bytes()
    part.write_bytes(content[:-1] + b"?")
    with pytest.raises(ValueError, match="a part is missing or damaged"):
        parcel.unpack(out, tmp_path / "home", sha256=facts["sha256"])
    part.unlink()
    with pytest.raises(ValueError, match="expected the files parcel-NAME-0"):
        parcel.unpack(out, tmp_path / "home")


def test_worlds_that_play_differently_are_told_apart(tmp_path, tiny_world_path):
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    other.mkdir()
    for file in tiny_world_path.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    weights = load_file(other / "model.safetensors")
    save_file({name: -tensor for name, tensor in weights.items()}, other / "model.safetensors")
    with pytest.raises(ValueError, match="play differently"):
        parcel.compare(str(tiny_world_path), str(other), frames=4)


def test_every_dependency_travels_or_is_there():
    """A dependency that is new to the project must not be missed when a GPU's minutes run."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.match(r"[A-Za-z0-9-]+", text)[0].lower() for text in project["dependencies"]}
    lines = (GPU / "wheels.txt").read_text().splitlines()
    travel = {line.lower() for line in lines if not line.startswith("#")}
    assert needed - THERE <= travel and not travel & THERE


@pytest.mark.parametrize("path", sorted(GPU.glob("*.sh")), ids=lambda path: path.name)
def test_a_script_is_proper_shell(path):
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True).stderr == b""


def test_a_random_world_of_an_official_size_can_be_loaded(tmp_path, monkeypatch):
    """Its sizes fit together; here with the narrowest transformer and autoencoder."""
    small = random_world.VARIANTS["far_b"].__class__(num_layers=1, num_heads=1, context_patch_size=4)
    monkeypatch.setitem(random_world.VARIANTS, "far_m_long", small)
    monkeypatch.setitem(random_world.AUTOENCODERS, "far_m_long", (128, (32, 32, 32, 32), (0, 0, 0, 0), (0, 0, 0, 0), 1))
    random_world.make_random_world("far_m_long", tmp_path / "world")
    assert load_world(tmp_path / "world").config.model.latent_height == 8
    with pytest.raises(ValueError, match="known sizes are far_b_long"):
        random_world.make_random_world("far_z", tmp_path / "z")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="runs shell scripts")
def test_the_preflight_makes_a_world_in_slices_and_brings_it_home():
    settings = (
        "num_layers=1", "num_heads=1", "autoencoder_widths=(4,8,16)", "autoencoder_lpips_weight=0", "start_frames=2",
        "encoder_blocks=(0,0,0)", "decoder_blocks=(0,0,0)", "early_clip_frames=16", "max_clip_frames=16",
    )  # fmt: skip
    process = subprocess.run(
        ["bash", str(GPU / "preflight.sh"), "dmlab", "--preset", "maze-xs", "--workers", "0", "--set", *settings],
        env={**os.environ, "WHEELS": "no", "SCALE": "0.0005", "PYTHON": sys.executable, "FIRST_MINUTES": "0.02"},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    report = json.loads(process.stdout.splitlines()[-1])
    assert not report["first_slice"]["finished"] and report["last_slice"]["finished"]
    assert report["last_slice"]["parcel"]["left_out"] == []
    assert report["played"]["largest_difference"] == 0 and report["played"]["std"] > 1


@pytest.mark.parametrize("name", side_by_side.SHARES)
def test_a_world_goes_on_with_episodes_of_its_own_keys(name, tmp_path):
    clock = side_by_side.Clock(tmp_path / "log")
    world = side_by_side.World(name, side_by_side.SHARES[name], tmp_path, clock, 400)
    options = dict(pair.split("=") for option, pair in pairwise(map(str, world.recording)) if option == "--env-arg")
    env_id = resolve_env_id(world.recording[world.recording.index("--env") + 1])
    bundled = load_world(name).config
    assert gym.make(env_id, **options).unwrapped.action_vocabulary.names == bundled.vocabulary.names
    assert world.recording[world.recording.index("--size") + 1] == bundled.frame_height
