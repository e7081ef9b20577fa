"""Benchmarks of ways to run a world on a CPU, and of a peer: what they compare is what they say."""

import json
import sys

import numpy as np
import pytest
from test_few_step import script

from farworld.models.packed import can_pack

command, cpu_paths, peer = script("command"), script("cpu_paths"), script("peer")
compare, psnr = cpu_paths.compare, cpu_paths.psnr


def test_paths_go_on_from_one_context_and_are_compared_with_eager(tiny_world_path, monkeypatch):
    def none(*_):
        raise cpu_paths.Unavailable("not here")

    monkeypatch.setattr(cpu_paths, "_to_bfloat16", none)
    rows = compare(str(tiny_world_path), ("eager", "unpacked", "autocast", "played", "bfloat16"), 5, 1)
    assert [row["path"] for row in rows] == ["eager", "unpacked", "autocast", "played", "bfloat16"]
    eager, unpacked, autocast, played, missing = rows
    assert eager["min_psnr"] == 99.0 and unpacked["min_psnr"] > 60  # to rounding of a grey level
    assert played["min_psnr"] > 48
    assert autocast["min_psnr"] <= autocast["mean_psnr"] < 99.0
    assert min(eager["transformer_cpu_ms"], eager["decoder_cpu_ms"]) > 0
    assert missing == {"path": "bfloat16", "unavailable": "not here"}


@pytest.mark.skipif(not can_pack(), reason="this PyTorch has no oneDNN linear layers for this CPU")
def test_bfloat16_is_bfloat16_and_close(tiny_world_path):
    try:
        rows = compare(str(tiny_world_path), ("eager", "bfloat16"), 5, 1)
    except RuntimeError as error:  # oneDNN without bfloat16
        pytest.skip(str(error))
    if "unavailable" in rows[1]:
        pytest.skip(rows[1]["unavailable"])
    assert 30 < rows[1]["min_psnr"] < 99.0


def test_psnr_is_known():
    frame = np.zeros((2, 2, 3), np.uint8)
    assert psnr(frame, frame) == 99.0
    assert psnr(frame, frame + 5) == pytest.approx(20 * np.log10(255 / 5), abs=1e-3)


def test_a_peer_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "world_models", None)
    with pytest.raises(ImportError, match="pip install --no-deps torchwm"):
        peer.Diamond("small")


def test_our_side_of_the_peers_benchmark_has_a_full_context(tiny_world_path):
    ours = peer.Ours(str(tiny_world_path))
    (row,) = peer.compare([ours], 3)
    assert row["context_frames"] == ours._rollout.context_in_use and row["gflop_per_frame"] >= 0
    assert row["min_ms"] <= row["median_ms"] and json.dumps(row)


@pytest.mark.parametrize("module", [cpu_paths, peer], ids=["cpu_paths", "peer"])
def test_bad_input_is_one_line(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", "--frames", "0"])
    with pytest.raises(SystemExit) as exit_:
        command.run(module.app)
    assert exit_.value.code == 2 and capsys.readouterr().err == "error: --frames must be 1 or more, got 0\n"
