"""Several processes learn what one learns, and none is left hanging."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_train import SMALL, bars, leaves, train  # noqa: F401 - a fixture

from farworld.train import world as world_stage
from farworld.train.ranks import Ranks

CPU = torch.device("cpu")
STEPS = ["world_steps=6", "autoencoder_steps=6", "log_every=1", "checkpoint_every=3"]


def curve(run: Path, stage: str) -> np.ndarray:
    rows = [json.loads(line) for line in (run / "logs" / f"{stage}.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return np.array([[row["loss"], row["gradient_norm"]] for row in rows])


def command(data: Path, out: Path, *settings: str, processes: int = 1) -> list[str]:
    launcher = [] if processes == 1 else ["torch.distributed.run", "--nproc-per-node", str(processes), "-m"]
    return [sys.executable, "-m", *launcher, "farworld", "train", "--data", str(data), "--out", str(out),
            "--preset", "maze-xs", "--device", "cpu", "--json", "--set", *SMALL, *settings]  # fmt: skip


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def launch(data: Path, out: Path, *settings: str) -> dict:
    """Go on with a run in two processes; the first one's report."""
    arguments = [*command(data, out, *settings, processes=2), "--resume"]
    done = subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1  # the first process alone reports
    return json.loads(done.stdout)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(bars, tmp_path):  # noqa: F811
    """Same data, same seed, same global batch: the same curve to rounding, and one world at the end."""
    train(tmp_path / "one", bars, *STEPS, stage="autoencoder")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    train(tmp_path / "one", bars, resume=True)
    assert launch(bars, tmp_path / "two", *STEPS)["processes"] == 2
    np.testing.assert_allclose(curve(tmp_path / "two", "world"), curve(tmp_path / "one", "world"), rtol=1e-4)
    assert (tmp_path / "two" / "world" / "model.safetensors").is_file()


def world_checkpoint(run: Path, step: int) -> dict:
    return torch.load(run / "checkpoints" / f"world-{step:08d}.pt")


@pytest.mark.slow
def test_two_processes_train_autoencoder_and_discriminator_as_one_does(bars, tmp_path):  # noqa: F811
    """Statistics of batch norms and the weight of the adversarial loss are those of the whole batch."""
    settings = [
        "autoencoder_gan_weight=0.5", "autoencoder_gan_layers=1", "autoencoder_gan_width=8",
        "autoencoder_gan_start=0.5", "autoencoder_ema_decay=0.9",
    ]  # fmt: skip
    train(tmp_path / "one", bars, *STEPS, *settings, stage="autoencoder")
    arguments = [*command(bars, tmp_path / "two", *STEPS, *settings, processes=2), "--stage", "autoencoder"]
    done = subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    runs = tmp_path / "one", tmp_path / "two"
    np.testing.assert_allclose(*(curve(run, "autoencoder") for run in runs), rtol=1e-4)
    one, two = (dict(leaves(torch.load(run / "checkpoints" / "autoencoder-00000006.pt"))) for run in runs)
    assert one.keys() == two.keys() and any("discriminator" in name for name in one)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_two_processes_with_a_half_of_the_model_each_learn_what_one_learns_and_go_on_from_one_another(bars, tmp_path):  # noqa: F811
    """FSDP: the same curve, average and checkpoints, which one process reads, and those of one that two read.

    With all that runs the model besides its training pass: own predictions, half steps of the average, recomputation,
    parts of a batch, a clip without coarse frames, samples.
    """
    options = [*STEPS, "shortcut_steps=4", "bootstrap_ratio=0.3", "short_term_frames=6", "sample_every=2"]
    one, two, back = (tmp_path / name for name in ("one", "two", "back"))
    train(one, bars, *options, stage="autoencoder")
    shutil.copytree(one, two)
    train(one, bars, *options, resume=True)
    assert launch(bars, two, *options, "fsdp=True", "recompute=True", "accumulate=2")["world_steps"] == 6
    np.testing.assert_allclose(curve(two, "world"), curve(one, "world"), rtol=1e-4)
    for step in (3, 6):
        expected, found = world_checkpoint(one, step), world_checkpoint(two, step)
        torch.testing.assert_close(found, expected | {"seconds": found["seconds"]}, rtol=1e-3, atol=2e-5)
    assert (two / "samples" / "world-00000004.png").is_file()
    assert (two / "world" / "model.safetensors").is_file()

    shutil.copytree(one, back)
    for run in (back, two):  # both stopped after step 3
        (run / "checkpoints" / "world-00000006.pt").unlink()
        log = run / "logs" / "world.jsonl"
        log.write_text("".join(log.read_text().splitlines(keepends=True)[:3]))
    train(two, bars, *options, "fsdp=True", resume=True)
    launch(bars, back, *options, "fsdp=True")
    for run in (back, two):
        np.testing.assert_allclose(curve(run, "world"), curve(one, "world"), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True])
def test_a_killed_process_ends_the_job_with_an_error(bars, tmp_path, fsdp):  # noqa: F811
    settings = [*STEPS, f"fsdp={fsdp}", "world_steps=100000", "autoencoder_steps=1"]
    process = subprocess.Popen(
        command(bars, tmp_path / "run", *settings, processes=2), env=ENVIRONMENT, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        log, deadline = tmp_path / "run" / "logs" / "world.jsonl", time.monotonic() + 120
        while not (log.is_file() and log.read_text().count("\n") > 2):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if not children.is_file():
            pytest.skip("needs Linux's list of a process's children")
        os.kill(int(children.read_text().split()[-1]), signal.SIGKILL)
        assert process.wait(timeout=60) != 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def test_parts_and_recomputed_blocks_change_nothing_but_memory(bars, tmp_path):  # noqa: F811
    """Half batches one after the other, and blocks that run again in the backward pass: the same curve."""
    train(tmp_path / "whole", bars, *STEPS, stage="autoencoder")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    train(tmp_path / "whole", bars, resume=True)
    train(tmp_path / "parts", bars, "accumulate=2", "recompute=True", resume=True)
    np.testing.assert_allclose(curve(tmp_path / "parts", "world"), curve(tmp_path / "whole", "world"), rtol=1e-4)


def test_a_batch_that_cannot_be_shared_is_refused():
    assert Ranks(device=CPU, rank=1, count=2).share(8, 2) == [range(4, 6), range(6, 8)]
    with pytest.raises(ValueError, match="multiple of processes times accumulated parts, 3 × 2, got 8"):
        Ranks(device=CPU, count=3).share(8, 2)


def test_a_loss_that_is_not_finite_stops_with_the_items_on_record(bars, tmp_path, monkeypatch):  # noqa: F811
    """The weights stay as they were, and whoever looks for the cause finds the clips."""
    original = world_stage.WorldObjective.loss
    calls = 0

    def diverging(self, drawn):
        nonlocal calls
        calls += 1
        return original(self, drawn) * (torch.nan if calls == 4 else 1.0)

    monkeypatch.setattr(world_stage.WorldObjective, "loss", diverging)
    with pytest.raises(ValueError, match="world loss is nan .* at step 3 .*failed_step.json has the items"):
        train(tmp_path / "run", bars, *STEPS, "sample_every=1000")
    note = json.loads((tmp_path / "run" / "failed_step.json").read_text())
    assert (note["stage"], note["step"], len(note["items"])) == ("world", 3, 4)
    assert all(0 <= item["episode"] < 24 and item["frames"] >= 6 for item in note["items"])
    stored = torch.load(tmp_path / "run" / "checkpoints" / "world-00000003.pt")
    assert all(torch.isfinite(tensor).all() for tensor in stored["model"].values())
