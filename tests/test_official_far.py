"""The benchmark against the official schedule of work: its re-enactment does what the official recordings say."""

import json
from pathlib import Path

import parity
import pytest
import torch
from test_few_step import script

from farworld.models import flow
from farworld.models.far import FARConfig

REFERENCE = Path(__file__).parent / "data" / "reference"
RECORDED = [name for name in parity.case_names(REFERENCE) if name.startswith("c_long")]
UNGUIDED = [name for name in RECORDED if "g1.5" not in name]  # the re-enactment has no guidance
TINY = FARConfig(
    latent_channels=2, latent_height=4, latent_width=4, num_actions=3, num_layers=2, num_heads=2, head_size=16,
    context_patch_size=2, short_term_frames=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def benchmark():
    return script("official_far")


@pytest.mark.parametrize("name", UNGUIDED)
def test_reenactment_equals_the_official_recordings(benchmark, name):
    """Tokens fed and cached in every call, and latents: without this the speed-ups would be over a straw man."""
    case = parity.load_case(REFERENCE, name)
    noise, context, (weights,) = case["noise"], case.get("context_latents"), case.weights()
    context = noise[:, :0] if context is None else context
    model = parity.load_far(weights, case.info["config"], *noise.shape[-2:]).eval()
    num_context = context.shape[1]
    action = parity.actions_of(case, model.config, num_context + noise.shape[1])
    if parity.guidance_of(case, model.config) == 0.0:
        action = torch.full_like(action, model.config.null_action)
    calls = []

    class Traced(benchmark.OfficialSchedule):
        def _call(self, noisy, action, t, *, is_cache_step):
            velocity = super()._call(noisy, action, t, is_cache_step=is_cache_step)
            calls.append(
                {
                    "is_cache_step": is_cache_step,
                    "tokens_fed": counter.take(),
                    "cache_key_len_after": self.persistent[0][0].shape[2],
                    "cache_key_all_len_after": self.for_frame[0][0].shape[2],
                }
            )
            return velocity

    counter = benchmark.TokenCounter(model)
    official = Traced(model, flow.official_timesteps(case.info["num_inference_steps"]))
    official.prime_latents(context, action[:, :num_context])
    for index in range(noise.shape[1]):
        frame = official.step_latents(action[:, num_context + index], noise=noise[:, index])
        expected = case["latents_out"][:, num_context + index]
        assert (frame - expected).abs().max() <= parity.TOLERANCE
    recorded = [
        {
            "is_cache_step": call["is_cache_step"],
            "tokens_fed": call["short_tokens_fed"] + call["long_tokens_fed"],
            "cache_key_len_after": call["cache_key_len_after"] or 0,
            "cache_key_all_len_after": call["cache_key_all_len_after"] or 0,
        }
        for call in case.info["model_calls"]
    ]
    assert calls == recorded


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("num_context", [1, 3, 4, 9])  # around the window of 4 frames
def test_anchored_makes_the_same_latents(benchmark, num_context, packed):
    world = benchmark.random_world(TINY)
    modes = ("official", "anchored", "sliding")
    sizes = {"num_steps": 3, "num_context": num_context, "num_frames": 3}
    rows = [row for row in benchmark.compare(world, modes, **sizes, packed=packed) if row]
    assert [row["mode"] for row in rows] == list(modes)
    assert 0 < rows[1]["max_abs_difference"] < 1e-4 and rows[0]["speed_up"] == 1.0


def test_tokens_of_a_steady_frame(benchmark):
    """The official schedule encodes a known coarse frame again, the anchored layout does not, sliding no window."""
    fine, coarse, window, steps = TINY.fine_tokens, TINY.coarse_tokens, TINY.short_term_frames, 3
    world = benchmark.random_world(TINY)
    compared = benchmark.compare(
        world, ("official", "anchored", "sliding"), num_steps=steps, num_context=9, num_frames=2, packed=True
    )
    official, anchored, sliding = (row for row in compared if row)
    assert official["tokens_per_frame"] == 2 * coarse + (window + steps - 1) * fine
    assert anchored["tokens_per_frame"] == coarse + (window + steps - 1) * fine
    assert sliding["tokens_per_frame"] == coarse + (1 + steps) * fine
    # 9 frames and the one to come are 6 coarse and 4 fine ones.
    first = 6 * coarse + (window + steps - 1) * fine
    assert official["first_frame_tokens"] == anchored["first_frame_tokens"] == first
    assert sliding["first_frame_tokens"] is None


def test_the_command_prints_a_row_for_each_mode_and_one_json_object(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "FAR_B_LONG", TINY)
    arguments = "--steps 1 2 --contexts 2 6 --frames 1 --modes official sliding --json"
    monkeypatch.setattr("sys.argv", ["official_far.py", *arguments.split()])
    benchmark.run(benchmark.app)
    lines = capsys.readouterr().out.splitlines()
    report = json.loads(lines[-1])
    assert len(report["rows"]) == 8 == sum(line.startswith("| ") for line in lines) - 1
    assert {"hardware", "torch", "commit"} <= set(report) and report["dtype"] == "float32"
    assert {row["mode"] for row in report["rows"]} == {"official", "sliding"}
    assert all(row["min_s"] <= row["median_s"] <= row["max_s"] for row in report["rows"])


@pytest.mark.parametrize("arguments", [["--frames", "0"], ["--contexts", "8", "0"], ["--modes", "fast"], ["--x"]])
def test_bad_input_is_one_line_and_exit_code_2(benchmark, monkeypatch, capsys, arguments):
    monkeypatch.setattr("sys.argv", ["official_far.py", *arguments])
    with pytest.raises(SystemExit) as exit_:
        benchmark.run(benchmark.app)
    output = capsys.readouterr()
    assert exit_.value.code == 2 and output.out == ""
    assert output.err.startswith("error: ") and output.err.count("\n") == 1
