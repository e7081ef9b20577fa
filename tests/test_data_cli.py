"""`farworld data`: what a person and a program get to see of a dataset."""

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from farworld.cli import main
from farworld.dataset import Dataset
from farworld.envs.recorder import Recording, record

DMLAB = Path(__file__).parent / "data" / "dmlab_teco_episode.npz"


@pytest.fixture
def run(monkeypatch, capfd):
    """Run `farworld` with arguments; returns exit code, stdout and stderr."""

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["farworld", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capfd.readouterr()

    return command


@pytest.fixture
def folder(tmp_path):
    """Three episodes of 20 frames."""
    record(Recording(env_id="tiny_env:Tiny-v0", num_frames=20), tmp_path / "data", episodes=3)
    return tmp_path / "data"


def picture_of(path):
    """The frames of a picture or video file."""
    with av.open(os.fspath(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def test_info_prints_one_json_object(run, folder):
    """Every number that a script needs, and nothing else on stdout."""
    code, output, _ = run("data", "info", folder, "--json")
    assert code == 0
    assert output.count("\n") == 1
    summary = json.loads(output)
    assert (summary["episodes"], summary["frames"]) == (3, 60)
    assert (summary["height"], summary["width"]) == (32, 48)
    assert (summary["action_timing"], summary["frames_per_second"]) == ("after_frame", 5.0)
    assert summary["env"] == "tiny_env:Tiny-v0"
    assert [action["name"] for action in summary["actions"]] == ["NOOP", "FIRE", "UPLEFT", "open door"]
    assert sum(action["count"] for action in summary["actions"]) == 57
    dataset = Dataset(folder)
    fired = sum(int((dataset.actions(i) == 1).sum()) for i in range(3))
    assert summary["actions"][1] == {"name": "FIRE", "keys": ["space"], "count": fired}
    assert summary["bad"] == 0
    assert summary["packed"] is False
    assert summary["bytes"] == sum(dataset.num_bytes(i) for i in range(3)) > 3000
    assert sum(row["episodes"] for row in summary["policies"].values()) == 3


def test_info_prints_a_table_for_people(run, folder):
    """The same facts, readable."""
    code, output, _ = run("data", "info", folder)
    assert code == 0
    for word in ("tiny_env:Tiny-v0", "32 x 48", "after_frame", "UPLEFT", "up + left", "no key"):
        assert word in output


def test_info_counts_bad_files_and_leaves_them_out(run, folder):
    """Truncated, damaged and foreign files are named with their reasons."""
    os.truncate(folder / "episodes" / "episode-000001.tar", 3000)
    damaged = folder / "episodes" / "episode-000002.tar"
    damaged.write_bytes(damaged.read_bytes().replace(b"NUMPY", b"NUMQY"))
    (folder / "episodes" / "holiday.jpg").write_bytes(b"no tar")
    (folder / "junk.tar").write_bytes(b"no tar either")
    code, output, _ = run("data", "info", folder, "--json")
    summary = json.loads(output)
    assert (code, summary["episodes"], summary["frames"], summary["bad"]) == (0, 1, 20, 4)
    reasons = {Path(row["path"]).name: row["reason"] for row in summary["bad_files"]}
    assert "truncated" in reasons["episode-000001.tar"]
    assert "checksum" in reasons["episode-000002.tar"]
    assert "foreign" in reasons["holiday.jpg"]
    assert "foreign" in reasons["junk.tar"]
    assert "bad files          4" in run("data", "info", folder)[1]


def test_verify_tells_whole_from_damaged(run, folder):
    """Exit code 1, so that a script can stop."""
    code, output, _ = run("data", "verify", folder, "--json")
    assert (code, json.loads(output)["episodes"]) == (0, 3)
    path = folder / "episodes" / "episode-000002.tar"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    code, output, _ = run("data", "verify", folder, "--json")
    summary = json.loads(output)
    assert (code, summary["episodes"], summary["bad"]) == (1, 2, 1)
    assert summary["bad_files"][0]["path"] == str(path)


def test_view_writes_a_contact_sheet(run, folder, tmp_path):
    """The pixels are those of the episode: first frame at the top left, last at the bottom right."""
    code, *_ = run("data", "view", folder, tmp_path / "sheet.png", "--episode", 1, "--frames", 16)
    sheet = picture_of(tmp_path / "sheet.png")[0]
    frames = Dataset(folder).frames(1)
    assert code == 0
    assert sheet.shape == (2 * 32 + 2, 8 * 48 + 7 * 2, 3)
    np.testing.assert_array_equal(sheet[:32, :48], frames[0])
    np.testing.assert_array_equal(sheet[-32:, -48:], frames[-1])


def test_view_writes_a_video(run, folder, tmp_path):
    """All frames, at the world's speed, enlarged, and close to the recorded ones."""
    code, *_ = run("data", "view", folder, tmp_path / "video.mp4", "--frames", 12)
    assert code == 0
    frames = picture_of(tmp_path / "video.mp4")
    assert frames.shape == (12, 256, 384, 3)
    expected = Dataset(folder).frames(0, 0, 12).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(frames.mean(axis=(1, 2, 3)), expected, atol=3)
    with av.open(os.fspath(tmp_path / "video.mp4")) as file:
        assert float(file.streams.video[0].average_rate) == 5.0


@pytest.mark.parametrize(
    ("arguments", "frames"),
    [(("sheet.png",), 20), (("sheet.png", "--frames", 9), 9), (("video.mp4", "--frames", 50), 20)],
)
def test_view_reports_in_json(run, folder, tmp_path, arguments, frames):
    """What was written, and how many frames are in it."""
    out = tmp_path / arguments[0]
    code, output, _ = run("data", "view", folder, out, *arguments[1:], "--episode", 2, "--json")
    assert (code, output.count("\n")) == (0, 1)
    result = json.loads(output)
    assert result == {"data": str(folder), "out": str(out), "episode": 2, "frames": frames, "height": 32, "width": 48}
    assert out.stat().st_size > 0


def test_view_does_not_write_into_the_dataset(run, folder):
    """The sheet would be a foreign file there, over which the next training stops."""
    code, _, errors = run("data", "view", folder, folder / "episodes" / "sheet.png")
    assert code == 2
    assert "give a place outside" in errors
    assert run("data", "verify", folder)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sheet.gif",), "ends in .png or .mp4"),
        (("sheet.png", "--episode", 7), "no readable episode 7; its 3 episodes lie between episode-000000"),
        (("sheet.png", "--frames", 0), "1 or more, got 0"),
    ],
)
def test_view_says_what_it_cannot_show(run, folder, tmp_path, arguments, message):
    """One line, exit code 2."""
    code, _, errors = run("data", "view", folder, tmp_path / arguments[0], *arguments[1:])
    assert code == 2
    assert message in errors


@pytest.mark.parametrize("command", ["info", "verify"])
def test_a_missing_dataset_is_one_line(run, tmp_path, command):
    """With the command that makes one."""
    code, output, errors = run("data", command, tmp_path / "none")
    assert (code, output) == (2, "")
    assert "farworld record" in errors
    assert errors.count("\n") == 1


def test_import_teco_reports_in_json(run, tmp_path):
    """What came in, and what was there already."""
    code, output, _ = run("data", "import-teco", "dmlab", DMLAB, tmp_path / "data", "--json")
    result = json.loads(output)
    assert (code, result["episodes"], result["frames"], result["known"]) == (0, 1, 120, 0)
    _, output, _ = run("data", "import-teco", "dmlab", DMLAB.parent, tmp_path / "data", "--json")
    assert json.loads(output)["known"] == 1
    assert len(Dataset(tmp_path / "data")) == 1


@pytest.mark.skipif(os.name != "posix", reason="finds the C library as POSIX systems do")
def test_what_c_libraries_still_hold_does_not_follow_the_json():
    """Into a pipe they print by the block, which would come out at exit, on the stdout that is back by then."""
    code = """
import ctypes, os, sys
from farworld.console import print_json, stdout_to_stderr

library, stdout = ctypes.CDLL(None), sys.stdout
with stdout_to_stderr():
    library.printf(b"buffered by C\\n")
    stdout.write("buffered by Python\\n")
    print("printed")
    os.system("echo a child")
print_json({"value": 1})
"""
    # PYTHONUNBUFFERED would take C's buffer away too.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert child.stdout == '{"value": 1}\n'
    for words in ("buffered by C", "buffered by Python", "printed", "a child"):
        assert words in child.stderr


@pytest.mark.parametrize("command", ["info", "verify", "view", "import-teco"])
def test_json_is_all_that_stdout_gets(run, folder, tmp_path, monkeypatch, command):
    """Whatever the libraries underneath print."""
    read = Dataset.__init__

    def chatty(dataset, *arguments, **options):
        os.write(1, b"a chatty library\n")
        print("a chatty module")
        read(dataset, *arguments, **options)

    monkeypatch.setattr(Dataset, "__init__", chatty)
    arguments = {"view": (folder, tmp_path / "sheet.png"), "import-teco": ("dmlab", DMLAB, tmp_path / "teco")}
    for _ in range(2):  # an import reads the dataset when it is there already
        code, output, errors = run("data", command, *arguments.get(command, (folder,)), "--json")
        assert code == 0
        assert output.count("\n") == 1
        json.loads(output)
    assert "a chatty library" in errors
    assert "a chatty module" in errors


# Datasets out of datasets


def test_stats_prints_numbers_for_people_and_programs(run, folder):
    """The same ones; `tests/test_dataset_derive.py` has their values."""
    code, output, _ = run("data", "stats", folder, "--json")
    result = json.loads(output)
    assert (code, output.count("\n"), result["episodes"]) == (0, 1, 3)
    code, output, _ = run("data", "stats", folder)
    assert code == 0
    assert f"{result['frame_difference']['mean']:.2f}" in output
    assert ", ".join(f"{value:.1f}" for value in result["pixels"]["mean"]) in output
    for word in ("UPLEFT", "20 to 20, median 20", "truncated          3"):
        assert word in output


def test_parts_and_wholes_from_the_command_line(run, folder, tmp_path):
    """Split, merged again, filtered and packed: every step reports itself, and the frames stay the same."""
    few, many, whole, some, packed = (tmp_path / name for name in ("few", "many", "whole", "some", "packed"))
    code, output, _ = run("data", "split", folder, few, many, "--episodes", 1, "--seed", 3, "--json")
    assert code == 0
    assert [(part["out"], part["episodes"], part["linked"]) for part in json.loads(output)["parts"]] == [
        (str(few), 1, 1),
        (str(many), 2, 2),
    ]
    code, output, _ = run("data", "merge", few, many, folder, whole, "--json")
    result = json.loads(output)
    assert (code, result["out"], result["episodes"], result["frames"], result["copies"]) == (0, str(whole), 3, 60, 3)
    code, output, _ = run("data", "filter", whole, some, "--min-frames", 20, "--action", "FIRE", "--json")
    assert (code, json.loads(output)["episodes"] + json.loads(output)["left_out"]) == (0, 3)
    code, output, _ = run("data", "pack", whole, packed, "--shard-mb", 0.02, "--json")
    result = json.loads(output)
    assert (code, result["episodes"], result["shards"]) == (0, 3, 3)
    for i in range(3):
        np.testing.assert_array_equal(Dataset(packed).frames(i), Dataset(folder).frames(i))
    code, output, _ = run("data", "info", packed, "--json")
    assert (code, json.loads(output)["packed"], json.loads(output)["shards"]) == (0, True, 3)
    assert "3 shards" in run("data", "info", packed)[1]
    assert run("data", "verify", packed)[:2] == (0, "3 episodes are intact, 0 files are bad\n")


def test_the_same_is_said_to_people(run, folder, tmp_path):
    """One line for each dataset that was made."""
    few, many, whole = (tmp_path / name for name in ("few", "many", "whole"))
    _, output, _ = run("data", "split", folder, few, many, "--fraction", 0.4)
    assert output == f"1 episodes, 20 frames -> {few}\n2 episodes, 40 frames -> {many}\n"
    _, output, _ = run("data", "merge", few, folder, whole)
    assert output == f"3 episodes, 60 frames -> {whole}; 1 left out, which are in it already\n"
    _, output, _ = run("data", "pack", folder, tmp_path / "packed")
    assert output.startswith(f"3 episodes, 60 frames -> {tmp_path / 'packed'} (1 shards, 0.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("merge", "DATA"), "expected one or more datasets and the new folder, got 1"),
        (("merge", "DATA", "none", "OUT"), "no dataset at none"),
        (("merge", "DATA", "DATA"), "is there already"),
        (("split", "DATA", "OUT", "OUT", "--episodes", 1), "two folders"),
        (("split", "DATA", "OUT", "DATA", "--episodes", 1), "is there already"),
        (("split", "DATA", "OUT", "OUT2"), "either a fraction or a number"),
        (("filter", "DATA", "OUT", "--policy", "nobody"), "none of the 3 episodes"),
        (("filter", "DATA", "OUT", "--action", "fly"), "unknown action 'fly'; this world knows NOOP, FIRE"),
        (("pack", "DATA", "OUT", "--shard-mb", 0), "1 or more bytes"),
        (("push", "DATA", "nobody"), "expected a hub repository owner/name"),
        (("pull", "nobody", "OUT"), "expected a hub repository owner/name"),
        (("pull", "owner/name", "DATA"), "is there already"),
    ],
)
def test_what_cannot_be_made_is_one_line(run, folder, tmp_path, arguments, message):
    """Exit code 2, and nothing is made."""
    places = {"DATA": folder, "OUT": tmp_path / "out", "OUT2": tmp_path / "out2"}
    code, output, errors = run("data", *(places.get(argument, argument) for argument in arguments))
    assert (code, output) == (2, "")
    assert message in errors.splitlines()[-1]  # there may be a progress bar before it
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_without_a_token_or_a_network_the_hub_is_one_line(run, folder, tmp_path, monkeypatch):
    """That says what to do."""
    import huggingface_hub
    import huggingface_hub.constants as constants

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    code, _, errors = run("data", "push", folder, "owner/name")
    assert code == 2
    assert "hf auth login" in errors.splitlines()[-1]
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    code, _, errors = run("data", "pull", "owner/name", tmp_path / "out")
    assert (code, errors.count("\n")) == (2, 1)
    assert "owner/name could not be pulled" in errors


def test_view_writes_a_row_for_each_episode(run, folder, tmp_path):
    """First and last frame of each at the ends of its row."""
    code, output, _ = run("data", "view", folder, tmp_path / "all.png", "--all", "--frames", 5, "--json")
    assert (code, json.loads(output)["episodes"], json.loads(output)["frames"]) == (0, 3, 15)
    sheet = picture_of(tmp_path / "all.png")[0]
    assert sheet.shape == (3 * 32 + 2 * 2, 5 * 48 + 4 * 2, 3)
    dataset = Dataset(folder)
    for i in range(3):
        top = i * 34
        np.testing.assert_array_equal(sheet[top : top + 32, :48], dataset.frames(i)[0])
        np.testing.assert_array_equal(sheet[top : top + 32, -48:], dataset.frames(i)[-1])
    code, _, errors = run("data", "view", folder, tmp_path / "all.mp4", "--all")
    assert code == 2 and "--all makes one .png" in errors
