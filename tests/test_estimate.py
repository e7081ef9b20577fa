"""What a training will take, said before it starts, and measured."""

import json

import pytest
import torch
from test_train import SMALL, bars, draws  # noqa: F401 - a fixture
from torch.utils.flop_counter import FlopCounterMode

from farworld.cli import app
from farworld.models.far import FAR
from farworld.train import bench_cli
from farworld.train.config import PRESETS, override
from farworld.train.estimate import clip_kinds, estimate_world
from farworld.train.world import flow_matching_loss

CPU = torch.device("cpu")


def config(*settings: str):
    return override(PRESETS["maze-xs"], [*SMALL, "early_clip_frames=6", "max_clip_frames=6", *settings])


def test_the_shares_of_the_kinds_of_clips_add_up_and_their_lengths_span_the_range():
    kinds = clip_kinds(override(PRESETS["maze-s"], []))
    assert sum(share for share, _ in kinds) == pytest.approx(1.0)
    early = [kind.length for _, kind in kinds if not kind.own_context_ratio]
    late = [kind.length for _, kind in kinds if kind.own_context_ratio]
    assert 16 <= min(early) < max(early) <= 32 and 32 < max(late) <= 300
    assert max(kind.length for _, kind in clip_kinds(PRESETS["maze-s"], longest=40)) <= 40


def test_arithmetic_without_storage_is_that_of_a_real_step():
    """The matrix products of a real step, counted by PyTorch; attention on a CPU it does not count, we do."""
    settings = config("own_context_ratio=0.0")
    estimate = estimate_world(settings, 3, CPU)
    model = FAR(settings.far(3))
    clean, actions = torch.randn(4, 6, 8, 4, 4), torch.zeros(4, 6, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        flow_matching_loss(model, model.config, clean, actions, settings, draws(4)).backward()
    products = counter.get_total_flops()
    assert products < estimate.flops_per_step < 1.6 * products
    assert estimate.parameters == sum(parameter.numel() for parameter in model.parameters())
    # 6 fine frames of 4 tokens, and the first 3 of them once more by 4 coarse ones.
    assert (estimate.frames_per_clip, estimate.tokens_per_clip) == (6.0, 6 * 4 + 3 * 4)


def test_parts_processes_and_recomputed_blocks_take_less_memory():
    whole = estimate_world(config("world_batch_size=64"), 3, CPU)
    for settings, processes in ((("accumulate=4",), 1), ((), 4), (("recompute=True",), 1)):
        less = estimate_world(config("world_batch_size=64", *settings), 3, CPU, processes=processes)
        assert less.memory_bytes < whole.memory_bytes - 2**20, settings


def test_a_model_in_parts_takes_less_memory_of_each_process():
    """A fourth of 20 bytes a parameter instead of all, and two blocks that have come together, here the whole model."""
    whole, part = (estimate_world(config(f"fsdp={fsdp}"), 3, CPU, processes=4) for fsdp in (False, True))
    assert whole.memory_bytes - part.memory_bytes == pytest.approx((20 - 20 / 4 - 4) * whole.parameters, rel=0.01)


def test_a_dry_run_says_what_it_takes_and_writes_nothing(bars, tmp_path, capfd):  # noqa: F811
    out = tmp_path / "run"
    arguments = ["train", "--data", str(bars), "--out", str(out), "--preset", "maze-xs", "--device", "cpu", "--dry-run"]
    app([*arguments, "--json", "--set", *SMALL], result_action="return_value")
    report = json.loads(capfd.readouterr().out)
    assert report["episodes"] == 24 and report["frames"] == 480 and report["clips_per_step"] == 4
    assert report["parameters"] > 1000 and report["flops_per_step"] > 1e6 and report["memory_bytes"] > 1e6
    app([*arguments, "--set", *SMALL], result_action="return_value")
    assert "tokens per clip" in capfd.readouterr().out and not out.exists()


def test_bench_train_prints_one_json_object(capfd, monkeypatch):
    monkeypatch.setattr("farworld.arithmetic.matmul_rate", lambda device, dtype: 1e12)
    monkeypatch.setattr(bench_cli, "EPISODES", 2)
    settings = [*SMALL, "early_clip_frames=6", "max_clip_frames=6"]
    arguments = ["bench", "train", "--preset", "maze-xs", "--device", "cpu", "--repeats", "1", "--json", "--set"]
    app([*arguments, *settings], result_action="return_value")
    report = json.loads(capfd.readouterr().out)
    assert report["frames_per_second"] == pytest.approx(6 * report["clips_per_second"], rel=0.01)
    assert report["flops_utilisation"] == pytest.approx(report["flops_per_second"] / 1e12, abs=1e-3)
    assert 0 <= report["waiting_for_data"] < 1 and report["peak_memory_mb"] > 100 and report["dtype"] == "float32"
