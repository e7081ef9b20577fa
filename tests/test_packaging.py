import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"farworld": "farworld", "envs": "farworld/envs", "train": "farworld/train", "assets": "farworld/assets"}
NEEDED_SETUPTOOLS = 77  # as pyproject.toml has it
EXAMPLE_WORLD = "assets/worlds/example/config.json"  # so that the test says something without bundled worlds, too

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the sources, so that nothing is left in the checkout and nothing old there gets into the wheel."""
    folder = tmp_path_factory.mktemp("source")
    for name in (*FOLDERS, "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    (folder / EXAMPLE_WORLD).parent.mkdir(parents=True)
    (folder / EXAMPLE_WORLD).write_text("{}")
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """The names of the files in the wheel."""
    if not (importlib.util.find_spec("pip") and importlib.util.find_spec("setuptools")):
        pytest.skip("a wheel is built with pip and setuptools, which are not both installed here")
    version = importlib.metadata.version("setuptools")
    if int(version.split(".")[0]) < NEEDED_SETUPTOOLS:
        pytest.skip(f"a wheel is built with setuptools {NEEDED_SETUPTOOLS} or newer, here is {version}")
    target = tmp_path_factory.mktemp("wheel")
    result = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
         "--wheel-dir", str(target), str(source)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (file,) = target.glob("farworld-*.whl")
    with zipfile.ZipFile(file) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(source, wheel):
    """Packages are listed by hand in pyproject.toml: a new one that is forgotten there is missed here."""
    expected = {
        f"{package}/{file.relative_to(source / folder).as_posix()}"
        for folder, package in FOLDERS.items()
        for file in (source / folder).rglob("*")
        if file.is_file()
    }
    assert {name for name in wheel if ".dist-info/" not in name} == expected


def test_the_wheel_holds_what_it_needs_to_run(wheel):
    for name in ("cli.py", "py.typed", "play/window.py", "models/far.py", "envs/maze.py", "train/cli.py"):
        assert f"farworld/{name}" in wheel
    assert f"farworld/{EXAMPLE_WORLD}" in wheel
    assert any(name.startswith("farworld/assets/textures/") and name.endswith(".png") for name in wheel)
    assert not any("test" in Path(name).parts[0] or "/tests/" in name for name in wheel)
