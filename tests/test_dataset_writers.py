"""Several writers in one dataset, and what is left of those that are killed."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sample_data import fill, make_episode, make_spec

from farworld.dataset import Dataset, create_or_open, recordings
from farworld.dataset import writer as writer_module

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes are killed as on POSIX systems")

WRITE = """
import sys
from sample_data import make_episode, make_spec
from farworld.dataset import create_or_open

with create_or_open(sys.argv[1], make_spec()) as writer:
    print("open", flush=True)
    for index in writer.claim(int(sys.argv[2])):
        writer.write(make_episode(index=index))
        print(index, flush=True)
"""

CLAIM = """
import sys, time
from sample_data import make_spec
from farworld.dataset import create_or_open

with create_or_open(sys.argv[1], make_spec()) as writer:
    print(writer.claim(3), flush=True)
    time.sleep(60)
"""


def start(code, *arguments):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def numbers_of(text):
    return [int(line) for line in text.split() if line.isdigit()]


def hidden(folder):
    """What writers left, other than the lock file of the folder."""
    return [path.name for path in folder.rglob(".*") if path.name != ".lock"]


def expect_intact(folder, numbers):
    """These episodes, with the content that their numbers promise, and nothing else."""
    dataset = Dataset(folder)
    assert [dataset.number(i) for i in range(len(dataset))] == sorted(numbers)
    for i in range(len(dataset)):
        dataset.verify(i)
        assert (dataset.frames(i) == make_episode(index=dataset.number(i)).frames).all()


def test_processes_fill_one_folder(tmp_path):
    """No number twice, none left out, nothing overwritten, one line for each in recordings.jsonl."""
    processes = [start(WRITE, tmp_path / "data", 8) for _ in range(4)]
    written = []
    for process in processes:
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        written.append(numbers_of(output))
    assert sorted(sum(written, [])) == list(range(32))
    expect_intact(tmp_path / "data", range(32))
    assert sorted(line["num_episodes"] for line in recordings(tmp_path / "data")) == [8] * 4
    assert hidden(tmp_path / "data") == []


def test_killed_writers_leave_whole_episodes_and_no_trace(tmp_path):
    """Killed at random moments: what they said is written is, their other numbers are free, and nothing else is."""
    folder = tmp_path / "data"
    chance = random.Random(3)
    written = []
    for _ in range(3):
        processes = [start(WRITE, folder, 1000) for _ in range(2)]
        for process in processes:
            assert process.stdout.readline() == "open\n"
        time.sleep(chance.uniform(0.05, 0.3))
        for process in processes:
            process.send_signal(signal.SIGKILL)
        written += sum((numbers_of(process.communicate(timeout=10)[0]) for process in processes), [])
        dataset = Dataset(folder)  # whole, before anybody has cleaned up
        numbers = [dataset.number(i) for i in range(len(dataset))]
        assert set(written) <= set(numbers)
        expect_intact(folder, numbers)
    create_or_open(folder, make_spec()).close()
    assert hidden(folder) == []
    noted = sum((sorted(writer_module.parse_ranges(line["episodes"])) for line in recordings(folder)), [])
    assert sorted(noted) == numbers  # also what the killed ones had written
    assert all(line["ended"] is None for line in recordings(folder))
    free = max(numbers) + 5 - len(numbers)
    with create_or_open(folder, make_spec()) as writer:
        assert sorted([*writer.claim(free), *numbers]) == list(range(max(numbers) + 5))


def test_a_claim_is_kept_while_its_writer_lives(tmp_path):
    """Though it has written nothing yet, and others sweep up."""
    process = start(CLAIM, tmp_path / "data")
    assert process.stdout.readline() == "[0, 1, 2]\n"
    try:
        with create_or_open(tmp_path / "data", make_spec()) as writer:
            assert writer.free_indices(2) == [3, 4]
            process.kill()
            process.communicate(timeout=10)
            assert writer.claim(4) == [0, 1, 2, 5]
    finally:
        process.kill()


def test_a_temporary_file_of_a_living_writer_is_not_swept_up(tmp_path, monkeypatch):
    """Another that opens the dataset meanwhile must not take it away."""
    fill(tmp_path, [0])
    link, seen = os.link, []

    def slow_link(temporary, path):
        create_or_open(tmp_path, make_spec()).close()
        seen.append(Path(temporary).exists())
        link(temporary, path)

    monkeypatch.setattr(os, "link", slow_link)
    fill(tmp_path, [1])
    assert seen == [True]
    expect_intact(tmp_path, [0, 1])


def test_threads_share_a_writer(tmp_path):
    """A recorder that plays in threads claims from all of them."""
    numbers = []
    with create_or_open(tmp_path, make_spec()) as writer:

        def work():
            for _ in range(5):
                [index] = writer.claim(1)
                writer.write(make_episode(20, index=index))
                numbers.append(index)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(numbers) == list(range(20))
    assert len(Dataset(tmp_path)) == 20


def test_shards_of_numbers_are_disjoint(tmp_path):
    """Machines that share no locks divide the numbers by residue."""
    with create_or_open(tmp_path / "a", make_spec()) as writer:
        assert writer.claim(3, shard=(0, 3)) == [0, 3, 6]
        assert writer.claim(2, shard=(2, 3)) == [2, 5]
        writer.write(make_episode(index=0))
    with create_or_open(tmp_path / "a", make_spec()) as writer:
        assert writer.claim(2, shard=(0, 3)) == [3, 6]
        for shard in ((3, 3), (-1, 2), (0, 0)):
            with pytest.raises(ValueError, match="0 <= k < n"):
                writer.claim(1, shard=shard)


def test_nothing_is_overwritten_without_locks_either(tmp_path, monkeypatch):
    """Two machines whose locks do not see each other, on the same number at the same moment."""
    fill(tmp_path, [0])
    other = make_episode(index=1, seed=9)
    link = os.link

    def raced(temporary, path):
        if not Path(path).exists():  # the other one is faster
            monkeypatch.setattr(os, "link", link)
            fill(tmp_path, [1], seed=9)
        link(temporary, path)

    monkeypatch.setattr(os, "link", raced)
    with create_or_open(tmp_path, make_spec()) as writer, pytest.raises(FileExistsError, match="never overwritten"):
        writer.write(make_episode(index=1))
    assert Dataset(tmp_path).seed(1) == other.seed
    assert hidden(tmp_path) == []


def test_without_hard_links_files_are_renamed(tmp_path, monkeypatch):
    """Sticks and some network shares have none."""

    def no_links(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    fill(tmp_path, range(3))
    expect_intact(tmp_path, range(3))
    with create_or_open(tmp_path, make_spec()) as writer, pytest.raises(FileExistsError, match="never overwritten"):
        writer.write(make_episode(index=1))
    assert hidden(tmp_path) == []


def test_without_file_locks_it_says_what_to_do(tmp_path, monkeypatch):
    """Not a traceback from deep inside."""

    def no_locks(file, kind):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(OSError, match="cannot be locked .*expected a file system with locks"):
        create_or_open(tmp_path, make_spec())


FILL = """
import resource, signal, sys
from sample_data import make_episode, make_spec
from farworld.dataset import create_or_open

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with create_or_open(sys.argv[1], make_spec()) as writer:
    for frames in (40, 40, 400):
        [index] = writer.claim(1)
        try:
            writer.write(make_episode(frames, index=index))
        except OSError as error:
            print("stopped", index, error.errno)
"""


def test_a_file_that_cannot_grow_leaves_what_was_written(tmp_path):
    """The system itself refuses to write on, as on a full disk."""
    limit = 200_000
    assert 40 * 16 * 32 * 3 < limit < 400 * 16 * 32 * 3
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    result = subprocess.run(
        [sys.executable, "-c", FILL, tmp_path],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert (result.returncode, result.stdout.split()) == (0, ["stopped", "2", "27"]), result.stderr
    expect_intact(tmp_path, [0, 1])
    assert hidden(tmp_path) == []


def test_a_recording_that_could_not_be_noted_is_noted_later(tmp_path, monkeypatch):
    """On a full disk the line waits for the next writer."""

    def full(directory, facts):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writer_module, "append_recording", full)
        fill(tmp_path, [0, 1])
    assert recordings(tmp_path) == []
    create_or_open(tmp_path, make_spec()).close()
    [line] = recordings(tmp_path)
    assert line["episodes"] == "0-1"
    assert json.dumps(line)


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([3], "3"), ([0, 1, 2, 5, 9, 8], "0-2,5,8-9"), ([10**6], "1000000")]
)
def test_numbers_are_written_as_ranges(numbers, text):
    """A million of them is one short line."""
    assert writer_module.format_ranges(numbers) == text
    assert writer_module.parse_ranges(text) == set(numbers)
