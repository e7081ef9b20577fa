"""The official FAR implementation and ours: equal on every reference case, and the check can fail."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import parity
import pytest
from safetensors.torch import load_file, save_file

REFERENCE = Path(__file__).parent / "data" / "reference"
ROOT = Path(__file__).parents[1]
# Of each type a small case, and what it expects of us.
EXPECTED = {
    "a_long_train_T4": "output",
    "b_long_gen_0to5_g1.0_nocache": "latents_out",
    "c_long_gen_6to8_g1.5_kvcache": "latents_out",
    "d_short_gen_label_2to5_g2.0_slope0_kvcache": "latents_out",
    "e_dcae_32x48": "reconstructions",
    "f_scheduler": "sigmas_25",
    "g_pixel_pipeline_kvcache": "video_out",
    "h_train_step_long_context": "grad.context_embedder.bias",
    "p_primitives": "rope_y",
}


def run(folder: Path) -> tuple[int, dict[str, str], dict]:
    """Exit code, the line of each case by its name, and the last line."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = parity.main([str(folder)])
    *lines, last = output.getvalue().splitlines()
    return code, {line.split()[1]: line for line in lines}, json.loads(last)


@pytest.fixture(scope="module")
def reference():
    return run(REFERENCE)


def copy_case(name: str, folder: Path, weights: tuple[str, ...] = ()) -> Path:
    """The case alone in a folder, with the weights that it needs."""
    for file in (f"{name}.json", f"{name}.safetensors", *weights):
        shutil.copy(REFERENCE / file, folder)
    return folder


@pytest.mark.parametrize("name", parity.case_names(REFERENCE))
def test_reference_case_equals_ours(reference, name):
    """Weights, caches, positions, noising, gradients: whatever the case records."""
    assert reference[1][name].startswith("ok "), reference[1][name]


def test_last_line_sums_up_and_the_exit_code_says_all_passed(reference):
    code, lines, summary = reference
    listed = json.loads((REFERENCE / "index.json").read_text())["cases"]
    assert code == 0
    assert set(lines) == set(listed)
    assert set(summary) == {"cases", "passed", "max_abs_diff"}
    assert summary["cases"] == summary["passed"] == len(listed)
    assert 0 < summary["max_abs_diff"] <= 5e-5


def test_no_tensor_of_the_reference_is_left_out(reference):
    assert not [line for line in reference[1].values() if "not compared" in line]


@pytest.mark.parametrize(("name", "tensor"), EXPECTED.items())
def test_a_reference_that_is_a_little_off_fails(tmp_path, name, tensor):
    """A check that cannot fail proves nothing: one number of the reference is moved by ten tolerances."""
    weights = tuple(path.name for path in REFERENCE.glob("*.weights.safetensors"))
    copy_case(name, tmp_path, weights)
    path = tmp_path / f"{name}.safetensors"
    tensors = load_file(path)
    tensors[tensor].view(-1)[0] += 10 * (parity.SIGMA_TOLERANCE if name[0] == "f" else 5e-5)
    save_file(tensors, path)
    result = parity.run_case(tmp_path, name)
    assert not result.passed
    assert [c.name for c in result.comparisons if not c.passed] == [tensor]


@pytest.mark.parametrize(
    "weight",
    [
        "transformer_blocks.0.attn.norm_added_k.weight",
        "transformer_blocks.1.mlp.net.2.bias",
        "action_embedder.embedding_table.weight",
        "context_proj_out.bias",
    ],
)
def test_a_weight_that_is_a_little_off_fails(tmp_path, weight):
    folder = copy_case("a_long_train_T9", tmp_path)
    weights = load_file(REFERENCE / "far_long.weights.safetensors")
    weights[weight] *= 1.01
    save_file(weights, folder / "far_long.weights.safetensors")
    result = parity.run_case(folder, "a_long_train_T9")
    assert not result.passed and result.error is None


def test_a_missing_type_of_case_is_a_failure(tmp_path):
    code, lines, summary = run(copy_case("f_scheduler", tmp_path))
    assert code == 1
    assert lines["f_scheduler"].startswith("ok ")
    for kind in "abcdeghp":
        assert lines[kind].startswith("FAIL") and "no case of this type" in lines[kind]
    assert (summary["cases"], summary["passed"]) == (9, 1)


def test_damaged_and_missing_files_fail_by_name_and_the_rest_still_runs(tmp_path):
    for name in ("f_scheduler", "a_long_train_T3", "e_dcae_32x48", "p_primitives"):
        copy_case(name, tmp_path, ("dcae.weights.safetensors", "far_long.weights.safetensors"))
    cut = tmp_path / "a_long_train_T3.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1000])
    (tmp_path / "dcae.weights.safetensors").unlink()
    (tmp_path / "p_primitives.json").write_text("{")
    (tmp_path / "d_orphan.safetensors").write_bytes(cut.read_bytes())
    shutil.copy(tmp_path / "f_scheduler.json", tmp_path / "z_scheduler.json")
    (tmp_path / "index.json").write_text(json.dumps({"cases": ["f_scheduler", "b_listed"]}))
    code, lines, summary = run(tmp_path)
    assert code == 1
    assert lines["f_scheduler"].startswith("ok ") and summary["passed"] == 1
    for name, reason in {
        "a_long_train_T3": "a_long_train_T3.safetensors is damaged",
        "e_dcae_32x48": "dcae.weights.safetensors is missing",
        "p_primitives": "p_primitives.json is damaged",
        "d_orphan": "d_orphan.json is missing",
        "z_scheduler": "unknown type of case",
        "b_listed": "b_listed.json is missing",
    }.items():
        assert lines[name].startswith("FAIL") and reason in lines[name], lines[name]


def test_a_case_that_compares_nothing_is_a_failure():
    assert not parity.Result("a_empty").passed


def test_nan_is_a_failure_and_null_in_the_last_line():
    import torch

    difference = parity.compare("x", torch.tensor([float("nan")]), torch.tensor([1.0]))
    result = parity.Result("a_nan", (difference,))
    assert not result.passed
    assert parity.summary([result]) == {"cases": 1, "passed": 0, "max_abs_diff": None}


@pytest.mark.parametrize("kind", ["absent", "a file", "empty", "a damaged index"])
def test_what_is_no_folder_of_cases_is_one_line_and_exit_code_2(tmp_path, capsys, kind):
    folder = tmp_path / "cases"
    if kind == "a file":
        folder.write_text("")
    elif kind != "absent":
        folder.mkdir()
    if kind == "a damaged index":
        (folder / "index.json").write_text("[]")
    assert parity.main([str(folder)]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("error: ") and output.err.count("\n") == 1
    assert str(folder) in output.err


def test_it_runs_as_a_module_from_the_repository(tmp_path):
    """Without an __init__.py `tests` is a namespace package; the environments in tiny_env.py need it so."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.parity", str(tmp_path / "absent")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
