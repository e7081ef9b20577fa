"""`farworld bench`: figures are what they are called, and are measured on what they say."""

import json
import os
import sys

import numpy as np
import pytest

os.environ["SDL_VIDEODRIVER"] = "dummy"

from farworld import bench as bench_module
from farworld.bench import PlayedWindow, bench, curve, measure_frames, summarise
from farworld.cli import app
from farworld.models import kv_cache
from farworld.play.player import open_player
from farworld.play.window import Window

TINY_ENV = "tiny_env:Tiny-v0"


@pytest.fixture(autouse=True)
def known_rate(monkeypatch):
    """The machine's rate takes a second to measure, and differs."""
    monkeypatch.setattr("farworld.arithmetic.matmul_rate", lambda device, dtype: 1e9)


def run(capfd, *arguments):
    """The JSON object that a benchmark prints."""
    app(["bench", *map(str, arguments), "--json"], result_action="return_value")
    out = capfd.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


def test_bench_play_prints_one_json_object(tiny_world_path, capfd):
    report = run(
        capfd, "play", "--ckpt", tiny_world_path, "--frames", "10", "--device", "cpu", "--steps", "2",
        "--context", "8", "--layout", "anchored", "--guidance", "1.5",
    )  # fmt: skip
    assert (report["layout"], report["guidance_scale"]) == ("anchored", 1.5)
    assert (report["frames"], report["steps"], report["context_frames"], report["window"]) == (10, 2, 8, 4)
    assert report["fps"] > 0 and 0 < report["median_ms"] <= report["p95_ms"] <= report["p99_ms"]
    assert report["parameters"] > 1000 and report["torch"] and report["hardware"] and report["device"] == "cpu"
    assert report["load_to_first_frame_ms"] > 0 and report["reset_to_first_frame_ms"] > 0
    assert report["flops_per_frame"] > 1e5 and 0 < report["cpu_ms"]
    assert report["flops_per_second"] == pytest.approx(report["flops_per_frame"] * report["fps"], rel=0.01)
    assert report["flops_utilisation"] == pytest.approx(report["flops_per_second"] / 1e9, rel=0.01, abs=1e-3)


def test_the_parts_of_a_frame_are_all_of_it_and_nothing_stays_watched(tiny_world_path, capfd):
    before = kv_cache.CachedAttention.__call__, kv_cache.CachedAttention.__init__, kv_cache._store
    report = run(
        capfd, "play", "--ckpt", tiny_world_path, "--frames", "30", "--device", "cpu", "--backend", "torch",
    )  # fmt: skip
    parts = report["breakdown_ms"]
    assert list(parts) == ["transformer", "attention", "cache", "decode", "draw", "rest"]
    assert all(ms > 0 for ms in parts.values())
    assert before == (kv_cache.CachedAttention.__call__, kv_cache.CachedAttention.__init__, kv_cache._store)


def test_figures_without_json_have_a_line_each(tiny_world_path, capsys):
    bench(["play", "--ckpt", str(tiny_world_path), "--frames", "5", "--device", "cpu"], result_action="return_value")
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"fps", "p99_ms", "breakdown_ms", "peak_memory_mb"} < set(names) and "curve" not in names


@pytest.mark.parametrize("arguments", [("play",), ("env",), ("env", "--batch-size", "3")])
def test_the_context_is_full_before_the_measurement(tiny_world_path, monkeypatch, capfd, arguments):
    """A short past would flatter the figures."""
    calls = []

    def spy(subject, num_frames, *rest):
        rollout = subject.rollout
        calls.append((num_frames, rollout.context_in_use))
        return measure_frames(subject, num_frames, *rest)

    monkeypatch.setattr(bench_module, "measure_frames", spy)
    report = run(
        capfd, *arguments, "--ckpt", tiny_world_path, "--frames", "5", "--device", "cpu", "--context", "40", "--seed", 4
    )
    (one, start), (more, _), (measured, context) = calls
    assert (one, start + 1 + more, measured, context) == (1, 40, 5, 40)
    assert [number for number, _ in report["curve"]] == list(range(1, 41 - start + 5))


def test_figures_are_what_they_are_called():
    frame_ms = np.array([10.0] * 10 + [20.0] * 80 + [40.0] * 9 + [50.0])
    report = summarise(frame_ms)
    assert (report["median_ms"], report["p95_ms"], report["first_ms"], report["last_ms"]) == (20, 40, 10, 40)
    assert report["p99_ms"] == pytest.approx(40.1) and report["fps"] == pytest.approx(1000 / 21.1, abs=0.01)
    assert summarise(frame_ms, 4)["fps"] == pytest.approx(4000 / 21.1, abs=0.01)  # of all streams
    points = curve(np.arange(640.0))
    assert len(points) == 64 and points[0] == (1, 4.5) and points[-1] == (631, 634.5)


def test_a_measured_frame_is_generated_and_drawn(tiny_world_path):
    player = open_player(tiny_world_path, device="cpu")
    with Window(player) as window:
        frame_ms = measure_frames(PlayedWindow(window, player, seed=1), 6)
        corner = window._screen.get_at((0, 0))[:3]
    assert player.num_frames == 6 and (frame_ms > 0).all()
    assert corner == tuple(player.frame[0, 0])


def test_streams_share_a_step_and_its_arithmetic(tiny_world_path, capfd):
    """Figures are of frames, whatever the number of streams."""
    one = run(capfd, "env", "--ckpt", tiny_world_path, "--frames", "4", "--device", "cpu")
    four = run(capfd, "env", "--ckpt", tiny_world_path, "--frames", "4", "--device", "cpu", "--batch-size", "4")
    assert (one["batch_size"], four["batch_size"]) == (1, 4) and one["env"] == "farworld/World-v0"
    assert four["flops_per_frame"] == one["flops_per_frame"]
    assert four["fps"] == pytest.approx(4 * 1000 / four["median_ms"], rel=0.9)


def test_a_real_environment_is_measured_beside_the_dream(capfd):
    """Its episodes end after 3 steps, which is not held against it."""
    report = run(capfd, "env", "--env", TINY_ENV, "--env-arg", "ends_after=3", "--frames", "10", "--frame-size", "32")
    assert (report["env"], report["frames"], report["frame_size"]) == (TINY_ENV, 10, "32x32")
    assert report["fps"] > 0 and report["reset_to_first_frame_ms"] > 0 and len(report["curve"]) == 30
    assert not {"ckpt", "steps", "flops_per_frame", "breakdown_ms"} & report.keys()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["play", "--ckpt", "x", "--frames", "0"], "--frames must be 1 or more"),
        (["play", "--ckpt", "x", "--record", "no/such/folder/speed.jsonl"], "--record expects a file in a folder"),
        (["env", "--frames", "3"], "give --ckpt"),
        (["env", "--env", "maze", "--seed", "-1"], "--seed must be 0 or more, got -1"),
        (["env", "--ckpt", "x", "--batch-size", "0"], "--batch-size must be 1 or more"),
        (["env", "--ckpt", "x", "--frame-size", "64"], "--frame-size goes with a real environment"),
        (["env", "--env", "maze", "--ckpt", "x"], "--ckpt goes with --env farworld/World-v0"),
        (["env", "--env", "maze", "--backend", "openvino"], "--backend goes with --env farworld/World-v0"),
        (["env", "--env", "maze", "--batch-size", "2"], "--batch-size goes with --env farworld/World-v0"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_loaded(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        bench(arguments, result_action="return_value")


@pytest.fixture
def records(tiny_world_path, tmp_path, capfd):
    """A folder with records of play in two contexts and of an environment."""
    for name in ("records", "records/more"):
        (tmp_path / name).mkdir()
    file = tmp_path / "records" / "speed.jsonl"
    for context in (30, 8):
        printed = run(
            capfd, "play", "--ckpt", tiny_world_path, "--frames", "4", "--device", "cpu", "--context", context,
            "--backend", "torch", "--record", file,
        )  # fmt: skip
        assert json.loads(file.read_text().splitlines()[-1]) == printed
    run(capfd, "env", "--env", TINY_ENV, "--frames", "4", "--record", file)
    return tmp_path / "records"


def test_records_become_a_table(records, capfd):
    bench(["report", str(records)], result_action="return_value")
    rows = [line for line in capfd.readouterr().out.splitlines() if line.startswith("| ")]
    recorded = [json.loads(line) for line in (records / "speed.jsonl").read_text().splitlines()]
    for row, record in zip(rows[2:5], recorded, strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert str(record["fps"]) in cells and str(record.get("context_frames", "")) in cells
    assert rows[2].startswith("| play tiny |") and rows[4].startswith(f"| env {TINY_ENV} |")
    assert rows[6].count("|") == rows[5].count("|") == 8  # what, and six parts


def test_records_become_a_plot(records, tmp_path, capfd):
    """Two lines of cost, and a line and a level of speed."""
    pytest.importorskip("matplotlib", reason='plots need matplotlib: pip install "farworld[report]"')
    from farworld.bench_report import draw, read_records

    report = run(capfd, "report", records / "speed.jsonl", "--out", tmp_path / "out")
    assert report["records"] == 3 and "](speed.png)" in (tmp_path / "out/report.md").read_text()
    assert (tmp_path / "out/speed.png").read_bytes().startswith(b"\x89PNG")
    speed, cost = draw(read_records([records])).axes
    assert [list(line.get_xdata()) for line in speed.lines if line.get_marker() == "o"] == [[8, 30]]
    assert len(speed.lines) == 2 and len(cost.lines) == 3
    assert cost.lines[0].get_xdata()[0] == 1
    slow_start = {"bench": "env", "fps": 10.0, "curve": [[1, 9000.0], [2, 100.0], [3, 100.0]]}
    assert draw([slow_start]).axes[1].get_ylim()[1] == 300  # what is usual can be seen


def test_a_table_needs_no_plot_library_and_a_plot_says_which(records, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    bench(["report", str(records)], result_action="return_value")
    assert "play tiny" in capfd.readouterr().out
    with pytest.raises(ImportError, match=r'pip install "farworld\[report\]"'):
        bench(["report", str(records), "--out", str(tmp_path / "out")], result_action="return_value")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no records in"),
        ('{"bench": "play"}\n', "line 1 is no record .* it lacks fps"),
        ("\n[1]\n", "line 2 is no record"),
        ("frames 3\n", "line 1: expected a line of JSON"),
    ],
)
def test_what_is_no_record_is_named(tmp_path, text, complaint):
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(ValueError, match=complaint):
        bench(["report", str(tmp_path)], result_action="return_value")
    with pytest.raises(FileNotFoundError, match="no records at"):
        bench(["report", str(tmp_path / "y")], result_action="return_value")
