"""The soak benchmark: it runs, and sees a frame that grows dearer and memory that grows."""

import json
import mmap

import pytest
from test_far import clip, tiny_world
from test_few_step import script

from farworld.rollout import Rollout

soak = script("soak")


def rollouts() -> tuple[Rollout, Rollout]:
    frames, actions = clip(4, batch=1)
    world = tiny_world()
    rollout, copy = Rollout(world), Rollout(world)
    rollout.prime(frames, actions[:, :3])
    return rollout, copy


def test_a_tiny_world_is_soaked_and_the_last_line_is_json(tiny_world_path, capsys):
    arguments = ["--ckpt", str(tiny_world_path), "--frames", "400", "--early", "20", "--span", "50", "--ratio", "99"]
    assert soak.app([*arguments, "--growth", "8"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["frames"], report["passed"], report["context_frames"]) == (400, True, 12)
    assert report["early_cpu_ms"] > 0 and report["ratio"] > 0 and report["resident_mb"] > 10


def test_dearer_frames_and_a_leak_are_seen(monkeypatch):
    """The copy waits at the early frame, and steps as the rollout would have stepped there."""
    rollout, copy = rollouts()
    step, kept, copied = rollout.step, [], []

    def worse(action):
        kept.append(mmap.mmap(-1, 100_000))  # pages of its own: a large process has freed memory to take others from
        kept[-1].write(bytes(100_000))
        return step(action)

    def time_by_number(rollout, action):
        rollout.step(action)
        return (100.0 + rollout.frame_index, 50.0)

    monkeypatch.setattr(rollout, "step", worse)
    monkeypatch.setattr(soak, "timed_step", time_by_number)
    original = copy.restore
    monkeypatch.setattr(copy, "restore", lambda snapshot: copied.append(snapshot.frame_index) or original(snapshot))
    figures = soak.soak(rollout, copy, 200, early=20, span=20, seed=0)
    assert figures["ratio"] == pytest.approx((103 + 190.5) / (103 + 30.5), rel=1e-4) and figures["clock_ratio"] == 1
    assert figures["growth_mb"] > 5
    assert copied == [3 + 20] and copy.frame_index == 3 + 40 and rollout.frame_index == 3 + 200


def test_too_few_frames_are_refused():
    with pytest.raises(ValueError, match="at least --early"):
        soak.app(["--frames", "300"])
