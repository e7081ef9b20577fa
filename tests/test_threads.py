"""How many threads a world runs on: a measurement that changes nothing else, and only in programs."""

import json

import pytest
import torch
from test_far import clip, tiny_world

from farworld import threads
from farworld.cli import app
from farworld.play.player import open_player
from farworld.rollout import Rollout
from farworld.world_model import WorldModel


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """The other tests keep their threads, and the environment of the tests says nothing of them."""
    before = torch.get_num_threads()
    for name in threads.SET_BY_USER:
        monkeypatch.delenv(name, raising=False)
    yield
    torch.set_num_threads(before)


def primed(world: WorldModel | None = None) -> Rollout:
    frames, actions = clip(5, batch=1)
    rollout = Rollout(world or tiny_world(copy_gate=True))
    rollout.prime(frames, actions[:, :4], seed=3)
    return rollout


def test_the_fastest_number_wins_and_fewer_where_more_hardly_help():
    assert threads.fastest({1: [30.0, 28.0], 2: [31.0, 40.0]}) == 1
    assert threads.fastest({1: [50.0], 2: [40.0, 99.0], 4: [39.0]}) == 2
    assert threads.fastest({1: [50.0], 2: [49.0], 4: [30.0], 6: [31.0]}) == 4
    assert threads.fastest({1: [100.0], 2: [96.0], 4: [94.0]}) == 4  # measured against the choice so far


def test_powers_of_two_and_all_cores_are_tried():
    assert [threads.numbers_to_try(cores) for cores in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]
    assert 1 <= threads.physical_cores()


def test_the_measurement_leaves_the_stream_as_it_was():
    rollout = primed()
    untouched = primed(rollout.world)
    assert threads.measured_threads(rollout, [1, 2]) in (1, 2)
    assert all((rollout.step(1) == untouched.step(1)).all() for _ in range(4))


def test_a_slow_frame_gets_all_cores_at_once(monkeypatch):
    rollout, steps = primed(), []
    monkeypatch.setattr(threads, "MOST_MS", 0.0)
    monkeypatch.setattr(rollout, "step", lambda action: steps.append(action))
    assert threads.measured_threads(rollout, [1, 2, 3]) == 3 and len(steps) == 2


def test_a_wish_and_the_environment_go_before_the_measurement(monkeypatch):
    rollout = primed()
    monkeypatch.setattr(threads, "measured_threads", lambda *_: 2)
    assert threads.settle_threads(rollout, 3) == 3 == torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert threads.settle_threads(rollout, None) == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads.settle_threads(rollout, None) == 2
    with pytest.raises(ValueError, match="--threads must be 1 or more"):
        threads.settle_threads(rollout, 0)


def test_play_and_bench_settle_threads_and_a_user_of_the_library_keeps_his(tiny_world_path, monkeypatch, capfd):
    torch.set_num_threads(2)
    open_player(tiny_world_path, device="cpu")
    assert torch.get_num_threads() == 2
    for command in (["play", "--headless", "--frames", "2"], ["bench", "play", "--frames", "2", "--context", "4"]):
        arguments = [*command, "--ckpt", str(tiny_world_path), "--device", "cpu", "--json"]
        app([*arguments, "--threads", "1"], result_action="return_value")
        assert torch.get_num_threads() == 1
        monkeypatch.setattr(threads, "measured_threads", lambda *_: 2)
        app(arguments, result_action="return_value")
        assert torch.get_num_threads() == 2
        lines = capfd.readouterr().out.splitlines()
        assert [json.loads(line)["frames"] for line in lines] == [2, 2]
