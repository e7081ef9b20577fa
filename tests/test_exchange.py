"""Minari and LeRobot datasets come in and go out with every frame, every action at its frame, and nothing twice.

`data/exchange_real.zip` holds small datasets that the real minari and lerobot wrote, and the scripts that made them;
a frame there is as bright as the action before it.
"""

import dataclasses
import json
import os
import signal
import sys
import time
import zipfile
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from sample_data import fill, make_episode, make_spec, same_episodes

from farworld.cli import main
from farworld.dataset import Dataset, create_or_open, describe_space, stack_actions
from farworld.envs import minari_export
from farworld.envs.exchange import ActionMap, ImportOptions, import_source, is_picture_shape, open_source, space_of
from farworld.envs.lerobot_export import _combined, _picture_statistics, _statistics, export_lerobot
from farworld.envs.minari_export import dataset_id, export_minari
from farworld.envs.vocabulary import read_action_file

REAL = Path(__file__).parent / "data" / "exchange_real.zip"
REASON = 'pip install "farworld[test]"'

KEYS = """
[[actions]]
name = "idle"
[[actions]]
name = "forward"
keys = ["up"]
action = { forward = 1 }
[[actions]]
name = "look_right"
keys = ["right"]
action = { camera = [0, 90] }
"""
TURNS = """
[[actions]]
name = "idle"
[[actions]]
name = "left"
keys = ["left"]
action = [1, 0]
[[actions]]
name = "right"
keys = ["right"]
action = [-1, 0]
[[actions]]
name = "forward"
keys = ["up"]
action = { forward = 1 }
"""


@pytest.fixture
def h5py():
    return pytest.importorskip("h5py", reason=REASON)


@pytest.fixture
def pyarrow():
    return pytest.importorskip("pyarrow.parquet", reason=REASON)


@pytest.fixture
def real(tmp_path):
    """The datasets that the real packages wrote."""
    with zipfile.ZipFile(REAL) as file:
        file.extractall(tmp_path / "real")
    return tmp_path / "real"


@pytest.fixture
def run(monkeypatch, capfd):
    """Run `farworld data` with arguments; returns exit code, stdout and stderr."""

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["farworld", "data", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capfd.readouterr()

    return command


def take(source, folder, *, actions="", **options):
    """Import a dataset, with a vocabulary if its text is given; the result, and ours."""
    if actions:
        path = folder.parent / "actions.toml"
        path.write_text(actions)
        options["actions"] = path
    options = ImportOptions(**options)
    return import_source(open_source(source, None, options), folder, options), Dataset(folder)


def shown(frames):
    """What a frame of the real datasets shows: the action before it, or 0."""
    return np.rint(frames.mean(axis=(1, 2, 3)) / 50).astype(int)


def many(folder, space=None, count=3, **changes):
    """Episodes of different ends, of this action space, of which the last is one frame only."""
    spec = make_spec(env_id="farworld/Maze-v0", env_kwargs={"size": 64}, policy="explore", **changes)
    if space is not None:
        spec = dataclasses.replace(spec, action_space=describe_space(space))
        space.seed(0)
    with create_or_open(folder, spec) as writer:
        for index, length in enumerate([*range(20, 20 + count), 1]):
            own = {}
            if space is not None and not (length == 1 and isinstance(space, spaces.Discrete)):
                own = stack_actions(spec.action_space, [space.sample() for _ in range(length - 1)])
            ended = index == 1
            ends = {"terminated": ended, "truncated": not ended, "seed": 2**40 + index, "policy": "explore"}
            source = "human" if index == 2 else ""
            writer.write(make_episode(length, index=2 * index, env_actions=own, source=source, **ends))
    return Dataset(folder)


# What the real packages wrote


@pytest.mark.parametrize("name", ["raw", "arrow"])
def test_a_real_minari_dataset_comes_in_whole(h5py, pyarrow, real, tmp_path, name):
    """Its HDF5 and its Arrow files: pictures, actions that produced them, rewards, ends, seeds and environment."""
    result, dataset = take(real / "minari" / "test" / f"{name}-v0", tmp_path / "data")
    assert (result.episodes, result.frames, result.lossy, result.left_out) == (2, 12, "", ("infos",))
    spec = dataset.spec
    assert (spec.env_id, spec.policy, spec.height, spec.width) == ("Shows-v0", "sampled", 32, 32)
    assert spec.env_kwargs == {"kind": "number" if name == "raw" else "several"}
    for i, (length, seed) in enumerate([(6, 40), (4, 41)]):
        episode = dataset.episode(i)
        taken = episode.actions + 1 if name == "raw" else 1 + episode.env_actions["action"] @ [2, 1]
        np.testing.assert_array_equal(shown(episode.frames), [0, *taken])
        np.testing.assert_array_equal(episode.rewards, 50 * taken)
        assert bool(episode.env_actions) == (name == "arrow")  # the index of a plain number says it all
        assert (len(taken), episode.seed, episode.policy) == (length, seed, "sampled")
        assert (episode.terminated, episode.truncated) == (length == 6, length == 4)
        assert dataset.source(i).startswith(f"minari test/{name}-v0 episode {i} sha256:")
    assert result.approximated == 0


def test_minaris_jpeg_pictures_say_that_they_lost_something(h5py, real, tmp_path):
    """And a Dict action of keys and a camera is kept as it is beside the nearest of the vocabulary."""
    source = real / "minari" / "test" / "keys-v0"
    result, dataset = take(source, tmp_path / "data", obs_key="pov", actions=KEYS)
    assert (result.lossy, result.left_out) == ("JPEG", ("observations/map", "observations/pos", "infos"))
    assert "lossy JPEG" in dataset.source(0)
    assert dataset.spec.obs_key == "pov"
    for i in range(2):
        episode = dataset.episode(i)
        forward, yaw = episode.env_actions["forward"], episode.env_actions["camera"][:, 1]
        np.testing.assert_array_equal(shown(episode.frames), [0, *(1 + forward)])
        assert episode.env_actions["camera"].dtype == np.float32
        expected = np.where(forward == 1, np.where(yaw <= 90, 1, 2), np.where(yaw > 45, 2, 0))
        np.testing.assert_array_equal(episode.actions, expected)
    assert result.approximated == 10


@pytest.mark.parametrize(("name", "lossy"), [("lerobot30", "av1 video"), ("lerobot21", "")])
def test_a_real_lerobot_dataset_comes_in_whole(pyarrow, real, tmp_path, name, lossy):
    """Layouts 3.0 with a video of all episodes, and 2.1 with pictures: a row's action made the next row's frame.

    The last action, whose result was not recorded, is dropped, and so is an end that it brought.
    """
    result, dataset = take(real / name, tmp_path / "data", actions=TURNS)
    assert (result.episodes, result.frames, result.lossy, result.approximated) == (2, 12, lossy, 0)
    assert (dataset.spec.frames_per_second, dataset.spec.obs_key) == (5.0, "observation.images.front")
    assert ("lossy av1 video" in dataset.source(0)) == bool(lossy)
    assert result.left_out == ("observation.state", "task")
    for i, length in enumerate([7, 5]):
        episode = dataset.episode(i)
        assert len(episode.frames) == length
        np.testing.assert_array_equal(shown(episode.frames), [0, *(episode.actions + 1)])
        np.testing.assert_array_equal(episode.rewards, episode.actions)
        assert (episode.terminated, episode.truncated) == (i == 0, i == 1)
        assert np.abs(episode.env_actions["action"]).sum() == (episode.actions > 0).sum()


@pytest.mark.parametrize("name", ["minari/test/raw-v0", "lerobot30", "lerobot21"])
def test_importing_twice_adds_nothing(h5py, pyarrow, real, tmp_path, name):
    """Nor does what was moved; with a part missing the rest comes in when run again."""
    actions = {} if "minari" in name else {"actions": TURNS}
    take(real / name, tmp_path / "data", **actions)
    (tmp_path / "data" / "episodes" / "episode-000000.tar").unlink()
    (real / name).rename(real / Path(name).name.replace("raw", "moved"))
    result, dataset = take(real / Path(name).name.replace("raw", "moved"), tmp_path / "data", **actions)
    assert (result.episodes, result.known, len(dataset)) == (1, 1, 2)


def test_a_source_without_its_extra_names_the_command(real, monkeypatch):
    """Not everybody needs these formats."""
    monkeypatch.setitem(sys.modules, "h5py", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r'pip install "farworld\[minari\]"'):
        open_source(real / "minari" / "test" / "raw-v0", None, ImportOptions())
    with pytest.raises(ImportError, match=r'pip install "farworld\[lerobot\]"'):
        open_source(real / "lerobot30", None, ImportOptions())


# There and back

SPACES = {
    "plain": None,
    "numbered": spaces.Discrete(2, start=3),
    "several": spaces.MultiDiscrete([3, 2]),
    "continuous": spaces.Box(-1, 1, (2,), np.float32),
    "camera": spaces.Dict(forward=spaces.Discrete(2), camera=spaces.Box(-180, 180, (2,), np.float32)),
    "nested": spaces.Dict(hand=spaces.Tuple([spaces.MultiBinary(3), spaces.Discrete(2)]), jump=spaces.Discrete(2)),
}


def export(kind, dataset, out, **options):
    return export_minari(dataset, out) if kind == "minari" else export_lerobot(dataset, out, **options)


WAYS = [
    ("minari", {}),
    ("lerobot", {}),
    ("lerobot", {"layout": "v2.1"}),
    ("lerobot", {"images": "mp4-lossless"}),
    ("lerobot", {"images": "mp4-lossless", "layout": "v2.1"}),
]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(("kind", "options"), WAYS)
def test_what_goes_out_comes_back_the_same(h5py, pyarrow, tmp_path, kind, options, space):
    """Every pixel, both kinds of actions, rewards, ends, seeds, policies, and all that dataset.json says."""
    dataset = many(tmp_path / "data", SPACES[space])
    result = export(kind, dataset, tmp_path / "out-v0", **options)
    assert (result.episodes, result.frames) == (4, 20 + 21 + 22 + 1)
    result, back = take(tmp_path / "out-v0", tmp_path / "back")
    assert (result.lossy, result.left_out, result.approximated) == ("", (), 0)
    assert back.spec == dataset.spec
    for i in range(4):
        read, written = back.episode(i), dataset.episode(i)
        assert read.source.startswith("human; " if i == 2 else kind)
        same_episodes(dataclasses.replace(read, source=written.source), written)


def test_an_mp4_is_lossy_and_says_so(pyarrow, tmp_path):
    """It is for people's players, and small."""
    dataset = many(tmp_path / "data")
    export_lerobot(dataset, tmp_path / "out", images="mp4")
    result, back = take(tmp_path / "out", tmp_path / "back")
    assert result.lossy == "h264 video"
    assert back.source(0).split(" sha256")[0] == "lerobot out episode 0, lossy h264 video"
    difference = np.abs(back.frames(0).astype(int) - dataset.frames(0))
    assert 1 < difference.mean() < 60


@pytest.mark.parametrize(("kind", "options"), WAYS)
def test_an_export_goes_on_where_it_stopped(h5py, pyarrow, tmp_path, monkeypatch, kind, options):
    """An exception in the middle, half a line of a journal, an extended dataset: each episode is there once."""
    limit = 0.02 if options.get("images", "png") == "png" else 0  # an encoder writes late
    monkeypatch.setattr("farworld.envs.lerobot_export.MAX_FILE_MB", limit)  # so that files hold an episode or two
    dataset, out = many(tmp_path / "data", count=5), tmp_path / "out-v0"
    whole = Dataset.episode

    def broken(self, i):
        if i == 4:
            raise KeyboardInterrupt
        return whole(self, i)

    monkeypatch.setattr(Dataset, "episode", broken)
    with pytest.raises(KeyboardInterrupt):
        export(kind, dataset, out, **options)
    monkeypatch.setattr(Dataset, "episode", whole)
    if kind == "lerobot":
        with open(out / "meta" / "farworld.jsonl", "a") as file:
            file.write('{"episode_index": 3, "numb')
    result = export(kind, dataset, out, **options)
    assert result.known >= 2
    assert result.known + result.episodes == len(dataset)
    with create_or_open(tmp_path / "data", dataset.spec) as writer:
        writer.write(make_episode(9, index=100))
    result = export(kind, Dataset(tmp_path / "data"), out, **options)
    assert (result.episodes, result.frames, result.known) == (1, 9, 6)
    hidden = [path for path in out.rglob(".*") if path.name != ".lock"]
    assert hidden == []
    _, back = take(out, tmp_path / "back")
    assert [back.num_frames(i) for i in range(7)] == [20, 21, 22, 23, 24, 1, 9]


@pytest.mark.parametrize("kind", ["minari", "lerobot"])
def test_numbers_that_start_elsewhere_are_the_environments_own(h5py, pyarrow, tmp_path, kind):
    """An environment with Discrete(2, start=3) took 3 and 4, whatever the vocabulary calls them."""
    spec = make_spec(action_space=describe_space(spaces.Discrete(2, start=3)))
    dataset = Dataset(fill(tmp_path / "data", [0], spec=spec))
    export(kind, dataset, tmp_path / "out-v0")
    if kind == "minari":
        with h5py.File(tmp_path / "out-v0" / "data" / "main_data.hdf5") as file:
            taken = file["episode_0/actions"][()]
    else:
        taken = np.asarray(pyarrow.read_table(tmp_path / "out-v0/data/chunk-000/file-000.parquet")["action"])[:-1]
    np.testing.assert_array_equal(taken, dataset.actions(0) + 3)
    _, back = take(tmp_path / "out-v0", tmp_path / "back")
    same_episodes(dataclasses.replace(back.episode(0), source=""), dataset.episode(0))


def test_minaris_parts_are_put_together_once(h5py, tmp_path, monkeypatch):
    """Also when the export was stopped after that, and before it had cleaned up."""
    dataset, write = many(tmp_path / "data"), minari_export._write_metadata

    def broken(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(minari_export, "_write_metadata", broken)
    with pytest.raises(KeyboardInterrupt):
        export_minari(dataset, tmp_path / "out-v0")
    monkeypatch.setattr(minari_export, "_write_metadata", write)
    assert export_minari(dataset, tmp_path / "out-v0").known == 4
    assert take(tmp_path / "out-v0", tmp_path / "back")[0].episodes == 4


@pytest.mark.skipif(os.name != "posix", reason="forks, to be quick")
@pytest.mark.parametrize("kind", ["minari", "lerobot"])
def test_a_killed_export_leaves_nothing_half(h5py, pyarrow, tmp_path, monkeypatch, kind):
    """After kill -9 at some moments the same command completes the dataset."""
    monkeypatch.setattr("farworld.envs.lerobot_export.MAX_FILE_MB", 0.1)
    dataset = Dataset(fill(tmp_path / "data", range(20)))
    killed = 0
    for delay in (0.02, 0.1, 0.2):
        child = os.fork()
        if not child:
            export(kind, dataset, tmp_path / "out-v0")
            os._exit(0)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        killed += os.waitpid(child, 0)[1] == signal.SIGKILL
    assert killed
    export(kind, dataset, tmp_path / "out-v0")
    result, back = take(tmp_path / "out-v0", tmp_path / "back")
    assert (result.episodes, result.missing) == (20, 0)
    same_episodes(dataclasses.replace(back.episode(19), source=""), make_episode(index=19))


def test_an_export_of_one_dataset_does_not_take_another(h5py, pyarrow, tmp_path):
    """Nor does a folder with other things in it, and nothing there is touched."""
    first, second = Dataset(fill(tmp_path / "a", [0])), Dataset(fill(tmp_path / "b", [0], num_frames=9))
    for kind in ("minari", "lerobot"):
        export(kind, first, tmp_path / kind)
        with pytest.raises(ValueError, match="holds another episode-000000"):
            export(kind, second, tmp_path / kind)
        (tmp_path / "foreign").mkdir(exist_ok=True)
        (tmp_path / "foreign" / "data").mkdir(exist_ok=True)
        (tmp_path / "foreign" / "letter.txt").write_text("dear")
        with pytest.raises(ValueError, match="is no export of a farworld dataset; give a new folder"):
            export(kind, first, tmp_path / "foreign")
    with pytest.raises(ValueError, match="begun with --images png, not mp4"):
        export_lerobot(first, tmp_path / "lerobot", images="mp4")
    assert sorted(path.name for path in (tmp_path / "foreign").iterdir()) == ["data", "letter.txt"]


# What the others expect of what we write


def test_minari_finds_all_that_it_reads(h5py, tmp_path):
    """As its HDF5Storage reads it: names, shapes, ends at the last step only, an environment that can be made."""
    space = spaces.Dict(jump=spaces.Tuple([spaces.Discrete(2), spaces.Box(-np.inf, 5, (1, 2), np.float32)]))
    export_minari(many(tmp_path / "data", space), tmp_path / "maze-v3")
    metadata = json.loads((tmp_path / "maze-v3" / "data" / "metadata.json").read_text())
    assert (metadata["dataset_id"], metadata["total_episodes"], metadata["total_steps"]) == ("maze-v3", 4, 60)
    assert (metadata["data_format"], metadata["jpeg_encoding"], metadata["minari_version"]) == ("hdf5", False, "0.5.4")
    assert json.loads(metadata["observation_space"])["shape"] == [16, 32, 3]
    inner = json.loads(metadata["action_space"])["subspaces"]["jump"]["subspaces"]
    assert inner[0] == {"type": "Discrete", "dtype": "int64", "start": 0, "n": 2}
    assert inner[1]["low"] == [[-np.inf, -np.inf]]
    env = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(metadata["env_spec"]))
    assert env.spec.id == "farworld/Maze-v0"
    env.close()
    with h5py.File(tmp_path / "maze-v3" / "data" / "main_data.hdf5") as file:
        assert sorted(file) == [f"episode_{i}" for i in range(4)]
        group = file["episode_1"]
        assert (group.attrs["id"], group.attrs["seed"], group.attrs["total_steps"]) == (1, 2**40 + 1, 20)
        assert group["observations"].shape == (21, 16, 32, 3)
        assert group["actions/jump/_index_1"].shape == (20, 1, 2)
        assert group["terminations"][()].tolist() == [False] * 19 + [True]
        assert not group["truncations"][()].any()


def test_lerobots_rows_pair_a_frame_with_the_action_after_it(pyarrow, tmp_path):
    """The last frame repeats the action before it; reward and end stand where they were caused."""
    dataset = many(tmp_path / "data")
    export_lerobot(dataset, tmp_path / "out")
    info = json.loads((tmp_path / "out" / "meta" / "info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_frames"]) == ("v3.0", 5, 64)
    table = pyarrow.read_table(tmp_path / "out" / info["data_path"].format(chunk_index=0, file_index=0))
    numbers = np.asarray(table["episode_index"])
    np.testing.assert_array_equal(np.asarray(table["index"]), np.arange(64))
    for i in range(3):
        episode, rows = dataset.episode(i), table.filter(numbers == i)
        np.testing.assert_array_equal(np.asarray(rows["action"]), [*episode.actions, episode.actions[-1]])
        np.testing.assert_array_equal(np.asarray(rows["next.reward"]), [*episode.rewards, 0])
        done = [False] * (len(episode.frames) - 2) + [episode.terminated] * 2
        np.testing.assert_array_equal(np.asarray(rows["next.done"]), done)
        np.testing.assert_allclose(np.asarray(rows["timestamp"]), np.arange(len(rows)) / 5, atol=1e-6)
    task = pyarrow.read_table(tmp_path / "out" / "meta" / "tasks.parquet").to_pylist()
    assert task == [{"task_index": 0, "__index_level_0__": "farworld/Maze-v0"}]
    rows = pyarrow.read_table(tmp_path / "out" / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [(row["dataset_from_index"], row["dataset_to_index"]) for row in rows] == [
        (0, 20),
        (20, 41),
        (41, 63),
        (63, 64),
    ]


def test_statistics_are_those_of_the_data():
    """Policies scale their inputs by them."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 200, (5, 8, 9, 3), dtype=np.uint8)
    found = _picture_statistics(frames)
    scaled = frames.reshape(-1, 3) / 255
    for name, expected in (
        *(("min", scaled.min(axis=0)), ("max", scaled.max(axis=0)), ("mean", scaled.mean(axis=0))),
        *(("std", scaled.std(axis=0)), ("q10", np.quantile(scaled, 0.1, axis=0, method="inverted_cdf"))),
    ):
        np.testing.assert_allclose(np.array(found[name]), expected.reshape(3, 1, 1), atol=1e-9)
    values = rng.normal(size=(40, 2))
    parts = [_statistics(values[:10]), _statistics(values[10:])]
    together, expected = _combined(parts), _statistics(values)
    for name in ("min", "max", "mean", "std", "count"):
        np.testing.assert_allclose(together[name], expected[name])


@pytest.mark.parametrize(
    ("folder", "name"),
    [("maze-v0", "maze-v0"), ("maze", "maze-v0"), ("a maze (1)", "a-maze-1-v0"), ("root/lab/maze-v2", "lab/maze-v2")],
)
def test_a_minari_dataset_is_called_as_minari_finds_it(tmp_path, monkeypatch, folder, name):
    """By its place in Minari's own folder, or by its folder's name."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    assert dataset_id(tmp_path / folder) == name


# Choices


def test_the_nearest_action_weighs_buttons_and_amounts(tmp_path):
    """A button that differs counts as much as all of the camera's range in the vocabulary."""
    (tmp_path / "keys.toml").write_text(KEYS)
    space = SPACES["camera"]
    mapping = ActionMap(read_action_file(tmp_path / "keys.toml", space))
    rows = [(0, 0), (1, 0), (0, 50), (0, 40), (0, 90), (1, 90), (0, -180), (1, 60)]
    actions = [{"forward": key, "camera": np.array([0, yaw], np.float32)} for key, yaw in rows]
    indices, inexact = mapping.nearest(stack_actions(describe_space(space), actions))
    assert indices.tolist() == [0, 1, 2, 0, 2, 1, 0, 1]
    assert inexact == 5
    several = spaces.MultiDiscrete([5, 5])  # there 3 is no nearer to 4 than 0 is
    (tmp_path / "several.toml").write_text(
        '[[actions]]\nname="a"\naction=[0, 0]\n[[actions]]\nname="b"\naction=[4, 4]\nkeys=["b"]'
    )
    steps = stack_actions(describe_space(several), [[3, 3], [4, 1], [4, 0]])
    assert ActionMap(read_action_file(tmp_path / "several.toml", several)).nearest(steps)[0].tolist() == [0, 1, 0]
    indices, inexact = mapping.nearest(stack_actions(describe_space(space), []))
    assert (indices.shape, inexact) == ((0,), 0)


@pytest.mark.parametrize("space", [space for space in SPACES.values() if space is not None])
def test_a_described_space_can_be_made_again(space):
    """Bounds, starts and shapes included."""
    assert space_of(describe_space(space)) == space


def test_parts_of_a_data_set_go_together_under_one_name(h5py, pyarrow, real, tmp_path):
    """Else a dataset is of one world, which is called as its source."""
    take(real / "lerobot30", tmp_path / "data", actions=TURNS, env_id="walk")
    with pytest.raises(ValueError, match="env_id is 'walk' there and 'lerobot/lerobot21' now"):
        take(real / "lerobot21", tmp_path / "data", actions=TURNS)
    _, dataset = take(real / "lerobot21", tmp_path / "data", actions=TURNS, env_id="walk")
    assert (len(dataset), dataset.spec.env_id) == (4, "walk")


def test_small_arrays_are_no_pictures():
    """MiniGrid's 7x7 codes are uint8 with three channels too."""
    assert is_picture_shape((64, 48, 3)) and is_picture_shape((3, 64, 48)) and is_picture_shape((64, 48))
    assert not is_picture_shape((7, 7, 3)) and not is_picture_shape((64, 48, 4)) and not is_picture_shape((64,))


def test_pictures_are_cut_and_resized(h5py, tmp_path):
    """As the recorder does it: the middle, by area; or all of it, squeezed."""
    dataset = many(tmp_path / "data")
    export_minari(dataset, tmp_path / "out-v0")
    _, cropped = take(tmp_path / "out-v0", tmp_path / "crop", size=8, frames_per_second=3.0)
    assert (cropped.spec.height, cropped.spec.width, cropped.spec.frames_per_second) == (8, 8, 3.0)
    middle = dataset.frames(0)[:, :, 8:24].reshape(-1, 8, 2, 8, 2, 3).mean(axis=(2, 4))
    assert np.abs(cropped.frames(0) - middle).max() <= 1
    _, squeezed = take(tmp_path / "out-v0", tmp_path / "stretch", size=8, fit="stretch")
    whole = dataset.frames(0).reshape(-1, 8, 2, 8, 4, 3).mean(axis=(2, 4))
    assert np.abs(squeezed.frames(0) - whole).max() <= 1


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("minari/test/keys-v0",), "has 2 pictures; choose one with --obs-key: map, pov"),
        (("minari/test/keys-v0", "--obs-key", "eye"), "has no picture 'eye'; choose --obs-key from map, pov"),
        (("minari/test/keys-v0", "--obs-key", "pov"), "has continuous actions (camera"),
        (("lerobot30",), "say which to tell apart with --actions FILE.toml"),
        (("lerobot30", "--actions", "nothing.toml"), "no such file: nothing.toml"),
        (("lerobot30", "--format", "minari"), "no Minari dataset at"),
        (("minari",), "no Minari or LeRobot dataset at"),
        (("nowhere",), "no such folder"),
        (("minari/test/raw-v0", "--size", "0"), "size must be 1 or more pixels, got 0"),
        (("minari/test/raw-v0", "--fps", "-1"), "frames per second must be positive, got -1"),
    ],
)
def test_what_is_missing_or_ambiguous_is_one_line(h5py, pyarrow, run, real, tmp_path, arguments, message):
    """What was expected, what came, what to do; nothing is made."""
    code, output, errors = run("import", real / arguments[0], tmp_path / "data", *arguments[1:])
    assert (code, output) == (2, "")
    assert message in errors.splitlines()[-1]
    assert not (tmp_path / "data").exists()


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 2000] = b"\xa5" * len(content[len(content) // 3 :][:2000])
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "how", "message"),
    [
        ("minari/test/raw-v0/data/metadata.json", lambda path: path.write_text("{}"), "not the metadata of a Minari"),
        ("minari/test/raw-v0/data/main_data.hdf5", lambda path: os.truncate(path, 900), "episode 0 is damaged"),
        ("minari/test/raw-v0/data/main_data.hdf5", Path.unlink, "episode 0 is damaged"),
        ("minari/test/arrow-v0/data/1/part-0.arrow", lambda path: os.truncate(path, 500), "episode 1 is damaged"),
        ("lerobot30/meta/info.json", lambda path: path.write_text("[]"), "not the description of a LeRobot dataset"),
        ("lerobot30/data/chunk-000/file-000.parquet", lambda path: os.truncate(path, 900), "damaged, or no parquet"),
        ("lerobot30/videos/observation.images.front/chunk-000/file-000.mp4", damage, "episode 0"),
        ("lerobot30/videos/observation.images.front/chunk-000/file-000.mp4", Path.unlink, "there is no video"),
        ("lerobot30/meta/episodes/chunk-000/file-000.parquet", Path.unlink, "no video is named for it"),
        ("lerobot21/data/chunk-000/episode_000001.parquet", damage, "episode"),
    ],
)
def test_damage_is_one_line_that_names_it(h5py, pyarrow, run, real, tmp_path, file, how, message):
    """A download that broke off is the usual case."""
    how(real / file)
    (tmp_path / "actions.toml").write_text(TURNS)
    root = real / "/".join(Path(file).parts[: 3 if file.startswith("minari") else 1])
    more = [] if file.startswith("minari") else ["--actions", tmp_path / "actions.toml"]
    code, output, errors = run("import", root, tmp_path / "data", *more)
    assert (code, output) == (2, "")
    assert message in errors.splitlines()[-1]


def test_what_was_not_downloaded_is_counted(pyarrow, run, real, tmp_path):
    """The rest comes in."""
    (real / "lerobot21" / "data" / "chunk-000" / "episode_000000.parquet").unlink()
    (tmp_path / "actions.toml").write_text(TURNS)
    arguments = (real / "lerobot21", tmp_path / "data", "--actions", tmp_path / "actions.toml")
    code, output, _ = run("import", *arguments)
    assert code == 0
    assert "1 episodes that the source names are not there" in output
    assert len(Dataset(tmp_path / "data")) == 1


def test_both_commands_report_in_json(h5py, pyarrow, run, real, tmp_path):
    """One object on stdout, with what a script needs."""
    source = real / "minari" / "test" / "raw-v0"
    code, output, _ = run("import", source, tmp_path / "data", "--json")
    result = json.loads(output)
    assert (code, result["episodes"], result["frames"], result["known"]) == (0, 2, 12, 0)
    assert (result["frames_per_second"], result["assumed_rate"], result["name"]) == (10.0, True, "minari test/raw-v0")
    for kind in ("minari", "lerobot"):
        arguments = ("export", tmp_path / "data", tmp_path / kind, "--format", kind, "--json")
        code, output, _ = run(*arguments)
        assert (code, output.count("\n")) == (0, 1)
        result = json.loads(output)
        assert (result["format"], result["episodes"], result["frames"], result["known"]) == (kind, 2, 12, 0)
        assert json.loads(run(*arguments)[1])["known"] == 2
    code, _, errors = run("export", tmp_path / "data", tmp_path / "data" / "out", "--format", "minari")
    assert code == 2
    assert "give a place outside" in errors
    code, _, errors = run("import", tmp_path / "data", tmp_path / "other")
    assert "is a farworld dataset already" in errors
