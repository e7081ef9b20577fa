import errno
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import gymnasium
import pytest
from rich.console import Console

from farworld.cli import app, main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RED = "\x1b[31m"


def call(monkeypatch, capsys, *arguments):
    """Run the command line in this process; its exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["farworld", *arguments])
    monkeypatch.setattr(app, "console", Console(width=200, force_terminal=False))  # so that help is not cut
    with pytest.raises(SystemExit) as exit_:
        main()
    captured = capsys.readouterr()
    return exit_.value.code, captured.out, captured.err


def subcommands(parent=app, names=()):
    """The names of every command that runs something, as tuples."""
    for name in parent:
        if name.startswith("-"):
            continue
        command = parent[name]
        inner = list(subcommands(command, (*names, name)))
        if command.default_command or not inner:
            yield (*names, name)
        yield from inner


@pytest.fixture
def failing_info(monkeypatch):
    """Makes `farworld data info` raise what it is given."""

    def fail_with(error):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr("farworld.envs.data_cli.Dataset", fail)

    return fail_with


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["frobnicate"], 'Unknown command "frobnicate"'),
        (["data", "inf"], 'Did you mean "info"?'),
        (["record", "--env", "maze"], "--episodes requires an argument"),
        (["play", "--ckpt", "x", "--stepss", "3"], "Unknown option: --stepss. Did you mean --steps?"),
        (["play", "--ckpt", "x", "--device", "abacus"], 'Choose from: "auto", "cpu", "cuda", "mps"'),
        (["play", "--ckpt", "no-such-world", "--headless", "--frames", "1"], "unknown world 'no-such-world'"),
        (["data", "info", "no/such/folder"], "no dataset at no/such/folder: no such folder; record one with"),
        (["record", "--env", "mase", "--episodes", "1", "--out", "x"], "unknown environment 'mase'"),
        (["record", "--env", "Nope-v0", "--episodes", "1", "--out", "x"], "unknown environment 'Nope-v0'"),
        (["train", "--data", "nowhere", "--preset", "maze-xs", "--out", "x"], "no dataset at nowhere"),
        (["bench", "play", "--ckpt", "x", "--frames", "0"], "--frames must be 1 or more, got 0"),
        (["eval", "--ckpt", "no-such-world", "--data", "y"], "unknown world 'no-such-world'"),
        (["eval", "--ckpt", "x", "--data", "y", "--context", "0"], "--context must be 1 or more, got 0"),
        (["eval", "--ckpt", "x", "--data", "y", "--pareto", "--steps", "3"], "--pareto stands for --steps 1 2 4"),
        (["eval", "--ckpt", "x", "--data", "y", "--one-step", "--steps", "1", "2"], "--one-step takes one number"),
        (["eval", "--ckpt", "dmlab", "--data", "y", "--i3d", "z"], "no dataset at y"),
        (["eval", "compare", "before.json", "after.html"], "no results at before.json"),
    ],
)
def test_bad_input_is_one_red_line_and_exit_code_2(monkeypatch, capsys, tmp_path, arguments, complaint):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.chdir(tmp_path)
    code, out, err = call(monkeypatch, capsys, *arguments)
    assert code == 2 and out == ""
    assert err.startswith(f"{RED}farworld: ") and err.count("\n") == 1 and complaint in err
    assert not any(tmp_path.iterdir())


def test_python_m_farworld_is_the_command_and_without_a_terminal_its_errors_are_plain():
    result = subprocess.run(
        [sys.executable, "-m", "farworld", "frobnicate"],
        cwd=ROOT, env={**os.environ, "NO_COLOR": "1"}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith('farworld: Unknown command "frobnicate".') and result.stderr.count("\n") == 1


def out_of_memory():
    import torch

    return torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 9 GiB")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (lambda: ValueError("first\n  second"), "farworld: first second"),
        (lambda: ImportError("install this"), "farworld: install this"),
        (lambda: TimeoutError(), "farworld: TimeoutError"),
        (lambda: gymnasium.error.DependencyNotInstalled("pip install that"), "farworld: pip install that"),
        (lambda: OSError(errno.ENOSPC, "No space left"), "farworld: the disk is full; everything finished before"),
        (
            out_of_memory,
            "farworld: out of memory; choose another --device, or a shorter context or smaller batch (CUDA",
        ),
        (lambda: MemoryError(), "farworld: out of memory; "),
        (lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 TiB"), "farworld: out of memory; "),
    ],
)
def test_an_expected_error_is_one_line_and_a_traceback_only_with_debug(monkeypatch, capsys, failing_info, error, line):
    failing_info(error())
    code, out, err = call(monkeypatch, capsys, "data", "info", "x")
    assert code == 2 and out == "" and err.startswith(line) and err.count("\n") == 1
    monkeypatch.setattr(sys, "argv", ["farworld", "data", "info", "x", "--debug"])
    with pytest.raises(type(error())):
        main()


@pytest.mark.parametrize("error", [TypeError, KeyError, AssertionError, RuntimeError])
def test_an_error_of_the_program_keeps_its_traceback(monkeypatch, failing_info, error):
    failing_info(error("a bug"))
    monkeypatch.setattr(sys, "argv", ["farworld", "data", "info", "x"])
    with pytest.raises(error, match="a bug"):
        main()


def test_ctrl_c_is_one_line_and_exit_code_130(monkeypatch, capsys, failing_info):
    """The parser used to swallow it, and said nothing."""
    failing_info(KeyboardInterrupt())
    code, out, err = call(monkeypatch, capsys, "data", "info", "x")
    assert code == 130 and out == "" and err == "farworld: interrupted; everything finished before is on disk\n"


def test_a_closed_pipe_is_no_error_message(monkeypatch, capsys, failing_info):
    failing_info(BrokenPipeError())
    assert call(monkeypatch, capsys, "data", "info", "x") == (141, "", "")


def test_the_commands_are_those_that_the_readme_lists():
    listed = re.findall(r"^\| `farworld ([a-z ]+)` \|", README, flags=re.MULTILINE)
    names = {names[0] if names[0] in ("data", "eval") else " ".join(names) for names in subcommands()}
    assert sorted(listed) == sorted(names)


@pytest.mark.parametrize("names", [(), ("data",), ("bench",), *subcommands()], ids=lambda names: " ".join(names) or "-")
def test_every_command_explains_itself_and_takes_json(monkeypatch, capsys, names):
    code, out, err = call(monkeypatch, capsys, *names, "--help")
    assert code == 0 and err == ""
    assert out.startswith(f"Usage: {' '.join(('farworld', *names))}")
    if names in list(subcommands()):
        assert "--json" in out


LIST_MODULES = """
import atexit, sys
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
from farworld.cli import main
main()
"""


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["--help"], "farworld.cli"),
        (["play", "--help"], "farworld.play.cli"),
        (["eval", "--help"], "farworld.train.eval_cli"),
    ],
)
def test_help_does_not_wait_for_torch(arguments, needed):
    result = subprocess.run(
        [sys.executable, "-c", LIST_MODULES, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0 and "Usage: " in result.stdout
    modules = set(result.stderr.split())
    assert needed in modules
    assert not modules & {"torch", "pygame", "av", "cv2", "numba", "farworld.checkpoint"}


def readme_commands():
    """The words of the `farworld ...` lines in the README's code blocks, but for the first."""
    commands = []
    blocks = re.findall(r"^```sh\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    for line in "".join(blocks).splitlines():
        words = shlex.split(line, comments=True)
        if words and Path(words[0]).name == "farworld":
            commands.append(words[1:])
    return commands


def test_the_readme_shows_every_step_from_recording_to_playing():
    shown = {words[0] for words in readme_commands()}
    assert shown == {name for name in app if not name.startswith("-")}


@pytest.mark.parametrize("words", readme_commands(), ids=" ".join)
def test_a_command_of_the_readme_is_understood(words):
    """Every word is parsed, to the end, into an argument of a command that is there."""
    command, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    assert callable(command) and bound.arguments


@pytest.mark.parametrize(
    ("name", "row"), re.findall(r"^\| `farworld ([a-z ]+)` \| (.*) \|$", README, flags=re.MULTILINE)
)
def test_what_the_readme_says_of_a_command_stands_in_its_help(monkeypatch, capsys, name, row):
    text = call(monkeypatch, capsys, *name.split(), "--help")[1]
    for option in re.findall(r"--[a-z][a-z-]*", row):
        assert re.search(rf"{option}(?![a-z-])", text), option
    if name == "data":
        assert {names[1] for names in subcommands() if names[0] == name} == set(re.findall(r"`([a-z-]+)[` ]", row))
