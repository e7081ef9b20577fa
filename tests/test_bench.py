import json
import os

import numpy as np
import pytest

os.environ["SDL_VIDEODRIVER"] = "dummy"

from farworld.bench import bench, measure_frames, summarise
from farworld.cli import app
from farworld.play.player import open_player
from farworld.play.window import Window


def test_bench_play_prints_one_json_object(tiny_world_path, capfd):
    app(
        ["bench", "play", "--ckpt", str(tiny_world_path), "--frames", "10", "--device", "cpu", "--steps", "2",
         "--context", "8", "--layout", "anchored", "--guidance", "1.5", "--json"],
        result_action="return_value",
    )  # fmt: skip
    report = json.loads(capfd.readouterr().out)
    assert (report["layout"], report["guidance_scale"]) == ("anchored", 1.5)
    assert (report["frames"], report["steps"], report["context_frames"], report["window"]) == (10, 2, 8, 4)
    assert report["fps"] > 0 and 0 < report["median_ms"] <= report["p95_ms"]
    assert report["parameters"] > 1000 and report["torch"] and report["hardware"] and report["device"] == "cpu"


def test_the_context_is_full_before_the_measurement(tiny_world_path, monkeypatch):
    """A short past would flatter the figures."""
    seen = []

    def spy(player, frame_ms):
        seen.append((player.num_frames, player.rollout.context_in_use, len(frame_ms)))
        return summarise(player, frame_ms)

    monkeypatch.setattr("farworld.bench.summarise", spy)
    bench(
        ["play", "--ckpt", str(tiny_world_path), "--frames", "5", "--device", "cpu", "--context", "40"],
        result_action="return_value",
    )
    assert seen == [(35 + 5, 40, 5)]  # the start context has 5 frames of the 40


def test_figures_are_what_they_are_called(tiny_world_path):
    player = open_player(tiny_world_path, device="cpu")
    report = summarise(player, np.array([10.0] * 10 + [20.0] * 80 + [40.0] * 10))
    assert (report["median_ms"], report["p95_ms"], report["first_ms"], report["last_ms"]) == (20, 40, 10, 40)
    assert report["fps"] == pytest.approx(1000 / 21, abs=0.01)


def test_a_measured_frame_is_generated_and_drawn(tiny_world_path):
    player = open_player(tiny_world_path, device="cpu")
    with Window(player) as window:
        frame_ms = measure_frames(window, 6, seed=1)
        corner = window._screen.get_at((0, 0))[:3]
    assert player.num_frames == 6 and (frame_ms > 0).all()
    assert corner == tuple(player.frame[0, 0])


def test_frames_must_be_positive(tiny_world_path):
    with pytest.raises(ValueError, match="--frames must be 1 or more"):
        bench(["play", "--ckpt", str(tiny_world_path), "--frames", "0"], result_action="return_value")
