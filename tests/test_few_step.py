"""The few-step and the drift benchmarks: their scores can tell what they are to tell, and they run."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from test_train import SMALL, bars, train  # noqa: F401  bars is a fixture

from farworld.train.config import override, preset

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def script(name: str):
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


few_step, drift = script("few_step"), script("drift")


def test_the_energy_score_is_best_for_the_true_distribution():
    """Neither the mean of all futures, nor too little, nor too much variety scores as well."""
    generator = torch.Generator().manual_seed(0)
    truth = 100 + 20 * torch.randn(400, 64, generator=generator)
    draws = torch.randn(4, 400, 64, generator=generator)
    scores = {std: float(few_step.energy_score(100 + std * draws, truth).mean()) for std in (0, 10, 20, 30)}
    assert min(scores, key=scores.get) == 20
    assert scores[0] == pytest.approx(20, rel=0.05) and scores[20] == pytest.approx(20 / 2**0.5, rel=0.05)
    with pytest.raises(ValueError, match="two draws"):
        few_step.energy_score(draws[:1], truth)


def test_a_shortcut_run_pays_for_its_half_steps_with_updates():
    """Three passes an update, two more for a quarter of the clips, one more for own context in the last 30 %."""
    plain = preset("maze-xs", ["world_steps=1000", "own_context_ratio=0.0"])
    shortcut = override(plain, ["shortcut_steps=8"])
    assert few_step.steps_of_same_cost(plain, plain) == 1000
    assert few_step.steps_of_same_cost(plain, shortcut) == round(1000 * 3 / 3.5)
    late = ["own_context_ratio=0.5"]
    assert few_step.steps_of_same_cost(override(plain, late), override(shortcut, late)) == round(1000 * 3.3 / 3.8)


def test_frames_before_are_those_before_the_predicted_ones():
    """The next-frame pass and the rollouts put their frames in an order of their own."""
    frames = torch.arange(2 * 60).reshape(2, 60, 1, 1, 1)
    shifted = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
    start, span = few_step.START_FRAMES, few_step.START_FRAMES + 16
    clips = torch.cat([frames[:, s : s + span] for s in (0, 24)])  # as rolled_out takes them
    assert torch.equal(few_step._before("rollout", shifted, 16), clips[:, start:].flatten(0, 1) - 1)
    assert torch.equal(few_step._before("next frame", shifted, 16), frames[:, start:].flatten(0, 1) - 1)


def test_one_command_trains_what_it_compares_and_trains_nothing_twice(bars, tmp_path, monkeypatch, capsys):  # noqa: F811
    from farworld.cli import app

    commands = []

    def in_this_process(*arguments):
        commands.append(arguments[arguments.index("--out") + 1])
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        return 1.0

    monkeypatch.setattr(few_step, "farworld", in_this_process)
    settings = (*SMALL, "autoencoder_steps=2", "world_steps=2", "own_context_ratio=0.0")
    for _ in range(2):
        few_step.few_step(
            out=tmp_path, data=bars, settings=settings, updates=7, steps=(1,), many=2, seeds=2, frames=4, episodes=2,
            json=True,
        )  # fmt: skip
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {name: facts["updates"] for name, facts in report["training"].items()} == {"plain": 7, "shortcut": 6}
    assert report["parameters"]["shortcut"] - report["parameters"]["plain"] == 4 * 96  # four step sizes, width 96
    runs = [str(tmp_path / name) for name in ("start", "plain", "plain", "shortcut", "shortcut")]
    assert commands[:5] == runs and commands[5:] == [runs[1], runs[3]]  # the second time they are found finished


def test_the_benchmarks_measure_worlds_and_end_with_json(bars, tmp_path, capsys):  # noqa: F811
    run, _ = train(tmp_path / "run", bars, "autoencoder_steps=2", "world_steps=2", "shortcut_steps=4")
    few_step.few_step(
        data=bars, worlds=(f"one={run.path}", f"two={run.path}"), steps=(1, 2), many=4, seeds=2, frames=4, episodes=2,
        json=True,
    )  # fmt: skip
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(row["kind"], row["world"], row["steps"]) for row in report["rows"]] == [
        (kind, name, n) for kind in ("next frame", "rollout") for name in ("one", "two") for n in (1, 2)
    ]
    assert report["rows"][0]["energy"] == report["rows"][2]["energy"] > 0

    drift.drift(data=bars, worlds=(f"one={run.path}",), noise=(0.2,), frames=11, sheet=tmp_path / "s.png", json=True)
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["world"] for row in report["rows"]] == ["truth (PSNR: unrelated)", "one", "one at 0.2"]
    assert report["rows"][1]["psnr"] != report["rows"][2]["psnr"] and (tmp_path / "s.png").is_file()
    with pytest.raises(ValueError, match="no episode.*1008 frames"):
        drift.drift(data=bars, worlds=(f"one={run.path}",))
