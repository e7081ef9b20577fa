"""Datasets on the hub, which a small server stands in for, and packed ones behind any URL."""

import hashlib
import http.server
import json
import pickle
import re
import threading
import urllib.parse
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants as constants
import pytest
from sample_data import fill, make_episode, same_episodes

from farworld.dataset import Dataset, hub, pack, remote, select
from farworld.dataset.remote import RemoteDataset

TOKEN = "hf_test"


class Handler(http.server.BaseHTTPRequestHandler):
    """What is needed of the hub's interface to read a repository, with ranges and private ones."""

    def do_HEAD(self):  # noqa: D102
        self.do_GET()

    def do_GET(self):  # noqa: D102
        server = self.server
        path = urllib.parse.unquote(self.path).partition("?")[0]
        server.requests.append((self.command, path, self.headers.get("Range")))
        if server.private and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        if match := re.fullmatch(r"/api/datasets/owner/name(?:/(revision|tree)/([^/]+))?", path):
            if match[1] == "tree":
                rows = [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in server.files.items()
                ]
                return self._send(200, json.dumps(rows).encode())
            siblings = [{"rfilename": name} for name in server.files]
            info = {"id": "owner/name", "sha": server.commit, "siblings": siblings, "tags": []}
            return self._send(200, json.dumps(info).encode())
        match = re.fullmatch(r"/datasets/owner/name/resolve/([^/]+)/(.+)", path)
        if not match or match[1] not in ("main", server.commit, "v1") or match[2] not in server.files:
            code = "EntryNotFound" if match else "RepoNotFound"
            return self._send(404, b"", {"X-Error-Code": code})
        if match[2] in server.refused:
            return self._send(403, b"")
        data = server.files[match[2]]
        headers = {"X-Repo-Commit": server.commit, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if wanted and server.ranges:
            start = int(wanted[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self._send(206, data[start:], headers)
        return self._send(200, data, headers)

    def _send(self, status, data, headers=None):
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            cut = self.server.cuts.pop() if self.server.cuts and len(data) > 10_000 else len(data)
            self.wfile.write(data[:cut])
            if cut < len(data):
                self.connection.close()

    def log_message(self, *_):  # noqa: D102
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    """The hub, empty; `files` is what its only repository holds."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.requests, server.cuts, server.refused = {}, [], [], set()
    server.private, server.ranges, server.commit = False, True, "a" * 40
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    Committing.server = server
    monkeypatch.setattr(huggingface_hub, "HfApi", Committing)
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()


class Committing(huggingface_hub.HfApi):
    """The hub's client, whose commits go straight into the server, since uploads speak another protocol."""

    def create_repo(self, name, *, repo_type, private, exist_ok):  # noqa: D102
        assert (name, repo_type, exist_ok) == ("owner/name", "dataset", True)
        self.server.private = private

    def create_commit(self, name, operations, *, commit_message, repo_type):  # noqa: D102
        assert (name, repo_type) == ("owner/name", "dataset") and commit_message
        for operation in operations:
            if isinstance(operation, huggingface_hub.CommitOperationDelete):
                del self.server.files[operation.path_in_repo]
            else:
                with operation.as_file() as file:
                    self.server.files[operation.path_in_repo] = file.read()
        self.server.commit = hashlib.sha1(repr(sorted(self.server.files.items())).encode()).hexdigest()

        class Commit:
            commit_url = f"{self.server.url}/datasets/owner/name/commit/{self.server.commit}"

        return Commit()


@pytest.fixture
def folder(tmp_path):
    """Six episodes."""
    return fill(tmp_path / "data", range(6), policy="tour")


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def test_what_is_pushed_is_what_is_pulled(tmp_path, folder, server):
    """Packed on the way, through the hub's own client on the way back."""
    result = hub.push(folder, "owner/name", shard_bytes=150_000)
    assert (result.episodes, result.repository) == (6, "owner/name")
    assert result.url == f"{server.url}/datasets/owner/name/commit/{server.commit}"
    assert {name for name in server.files if "/" in name} == {f"shards/shard-{i:06d}.tar" for i in range(3)}
    assert result.num_bytes == sum(map(len, server.files.values()))
    assert names(tmp_path) == ["data"]
    server.requests.clear()
    pulled = hub.pull("owner/name", tmp_path / "pulled")
    fetched = [path for _, path, _ in server.requests if "/resolve/" in path]
    assert fetched and all(f"/resolve/{server.commit}/" in path for path in fetched)  # a push meanwhile changes nothing
    assert names(tmp_path) == ["data", "pulled"]
    assert names(tmp_path / "pulled") == [
        "README.md", "dataset.json", "episodes", "index.json", "recordings.jsonl", "shards",
    ]  # fmt: skip
    for i in range(6):
        pulled.verify(i)
        same_episodes(pulled.episode(i), make_episode(index=i, policy="tour"))
    hub.push(tmp_path / "pulled", "owner/name")
    again = hub.pull(f"owner/name@{server.commit}", tmp_path / "again")
    assert len(again) == 6


def test_a_push_replaces_what_was_there(tmp_path, folder, server):
    """Shards of the older, larger dataset would lie there unnamed for ever."""
    hub.push(folder, "owner/name", shard_bytes=100_000)
    assert len(server.files) == 6 + 4
    pack(folder, tmp_path / "packed")
    select(Dataset(tmp_path / "packed"), [1, 4], tmp_path / "few")
    assert not hub.is_whole_shards(Dataset(tmp_path / "few"))
    hub.push(tmp_path / "few", "owner/name")
    assert len(server.files) == 1 + 4
    pulled = hub.pull("owner/name", tmp_path / "pulled")
    assert [pulled.number(i) for i in range(2)] == [1, 4]
    assert pulled.shards[0].num_bytes < 160_000  # not the shard of all six


def test_the_card_says_what_is_in_the_dataset(folder, server):
    """YAML that the hub reads in front, then what a person needs."""
    hub.push(folder, "owner/name", licence="cc-by-4.0")
    card = server.files["README.md"].decode()
    front = huggingface_hub.DatasetCard(card).data
    assert (front.license, front.size_categories, front.pretty_name) == ("cc-by-4.0", ["n<1K"], "name")
    assert {"farworld", "webdataset"} <= set(front.tags)
    for words in ("6 episodes, 240 frames of\n16x32", "tour (6)", "`after_frame`", "| 1 | `forward` | up |"):
        assert words in card
    assert "farworld data pull owner/name DIR" in card


def test_a_card_that_a_person_wrote_is_kept(tmp_path, folder, server):
    """A generated one is made anew, and keeps its licence."""
    pack(folder, tmp_path / "packed")
    (tmp_path / "packed" / "README.md").write_text("# Mine\n")
    hub.push(tmp_path / "packed", "owner/name")
    assert server.files["README.md"] == b"# Mine\n"
    generated = hub.dataset_card(Dataset(folder), "owner/name", "mit")
    (tmp_path / "packed" / "README.md").write_text(generated.replace("6 episodes", "7 episodes"))
    hub.push(tmp_path / "packed", "owner/name")
    card = server.files["README.md"].decode()
    assert "6 episodes" in card and "license: mit" in card


def test_without_a_token_a_push_says_how_to_get_one(folder, server, monkeypatch):
    """Before anything is packed or sent."""
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ConnectionError, match="no token .*hf auth login"):
        hub.push(folder, "owner/name")
    assert server.requests == []


@pytest.mark.parametrize("name", ["name", "a/b/c", "/x", "owner/", "owner/na me", "owner/name@v1"])
def test_a_push_needs_the_name_of_a_repository(folder, name):
    """With what was given."""
    with pytest.raises(ValueError, match=re.escape(name)):
        hub.push(folder, name)


def test_a_pull_of_nothing_is_one_line(tmp_path, server):
    """No such repository, none that is ours, no network; nothing is left behind."""
    server.files = {"notes.txt": b"hello"}
    with pytest.raises(ValueError, match="no farworld dataset: dataset.json is missing"):
        hub.pull("owner/name", tmp_path / "out")
    with pytest.raises(
        ConnectionError, match=r"owner/other could not be pulled \(404 .*Repository Not Found.*check the name"
    ):
        hub.pull("owner/other", tmp_path / "out")
    server.shutdown()
    server.server_close()
    with pytest.raises(ConnectionError, match="could not be pulled"):
        hub.pull("owner/name", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_pull_goes_on(tmp_path, folder, server):
    """What it had fetched is not fetched again; the dataset appears when all of it is there."""
    hub.push(folder, "owner/name", shard_bytes=100_000)
    last = "shards/shard-000005.tar"
    server.refused = {last}
    with pytest.raises(ConnectionError, match="could not be pulled"):
        hub.pull("owner/name", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    server.refused.clear()
    server.requests.clear()
    assert len(hub.pull("owner/name", tmp_path / "out")) == 6
    fetched = {path.partition("/resolve/")[2] for command, path, _ in server.requests if command == "GET"}
    assert {path.partition("/")[2] for path in fetched if ".tar" in path} == {last}
    assert names(tmp_path) == ["data", "out"]


def test_a_damaged_pull_is_named_and_not_kept(tmp_path, folder, server):
    """Else every later pull would go on from it."""
    hub.push(folder, "owner/name")
    whole = server.files["shards/shard-000000.tar"]
    server.files["shards/shard-000000.tar"] = whole[:-512]
    with pytest.raises(ValueError, match="owner/name is damaged, .*truncated"):
        hub.pull("owner/name", tmp_path / "out")
    assert names(tmp_path) == ["data"]


def test_remote_episodes_equal_local_ones(tmp_path, folder, server):
    """From a folder, a file URL, a web server, the hub; also some of them only."""
    hub.push(folder, "owner/name", shard_bytes=150_000)
    pack(folder, tmp_path / "packed", shard_bytes=150_000)
    web = f"{server.url}/datasets/owner/name/resolve/main"
    for source in (tmp_path / "packed", (tmp_path / "packed").as_uri(), web, "owner/name", "owner/name@v1"):
        dataset = pickle.loads(pickle.dumps(RemoteDataset(source)))
        assert dataset.spec == Dataset(folder).spec
        episodes = [stored for shard in dataset.shards for stored in dataset.episodes(shard)]
        assert [stored.number for stored in episodes] == list(range(6))
        for stored in episodes:
            same_episodes(stored.episode(), make_episode(index=stored.number, policy="tour"))
        [only] = dataset.episodes(dataset.shards[1], {3})
        same_episodes(only.episode(), make_episode(index=3, policy="tour"))


def test_what_is_passed_over_is_not_fetched(folder, server):
    """A worker that has the end of a shard begins there."""
    hub.push(folder, "owner/name")
    dataset = RemoteDataset("owner/name")
    server.requests.clear()
    [only] = dataset.episodes(dataset.shards[0], {4})
    start = dataset.shards[0].episodes[4].start
    assert start > 0
    assert server.requests == [
        ("GET", f"/datasets/owner/name/resolve/{server.commit}/{dataset.shards[0].file}", f"bytes={start}-")
    ]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_stream_goes_on_where_its_connection_broke(folder, server, ranges):
    """Also with a server that always begins at the front."""
    hub.push(folder, "owner/name")
    dataset = RemoteDataset("owner/name")
    server.ranges = ranges
    server.cuts = [200_000, 30_000, 5_000] if not ranges else [30_000, 100_000, 5_000]
    episodes = list(dataset.episodes(dataset.shards[0]))
    assert server.cuts == []
    for i, stored in enumerate(episodes):
        same_episodes(stored.episode(), make_episode(index=i, policy="tour"))


def test_a_stream_gives_up_in_the_end(folder, server):
    """With the place."""
    hub.push(folder, "owner/name")
    dataset = RemoteDataset("owner/name")
    server.cuts = [0] * 10
    with pytest.raises(ConnectionError, match="shard-000000.tar: the connection broke 4 times at byte 0"):
        list(dataset.episodes(dataset.shards[0]))


def test_a_push_under_way_does_not_change_a_stream(folder, server):
    """The revision that was found first is read to the end."""
    hub.push(folder, "owner/name")
    dataset = RemoteDataset("owner/name")
    assert dataset.url.endswith(f"/datasets/owner/name/resolve/{server.commit}")


def test_a_private_dataset_needs_a_token(folder, server, monkeypatch):
    """Which is sent to the hub only."""
    hub.push(folder, "owner/name", private=True)
    assert len(RemoteDataset("owner/name").shards) == 1
    with pytest.raises(ConnectionError, match="401 .*hf auth login"):
        RemoteDataset(f"{server.url}/datasets/owner/name/resolve/main")


def test_what_cannot_be_streamed_is_named(tmp_path, folder, server):
    """Not packed, not there, not a dataset."""
    with pytest.raises(ValueError, match="not packed; pack it first"):
        RemoteDataset(folder)
    with pytest.raises(FileNotFoundError, match="no file .*dataset.json"):
        RemoteDataset(f"{server.url}/nowhere")
    with pytest.raises(FileNotFoundError, match="no file .*dataset.json"):
        RemoteDataset(tmp_path.as_uri())
    with pytest.raises(ValueError, match="expected the folder or URL of a packed dataset, or owner/name"):
        RemoteDataset("no such thing")
    with pytest.raises(ConnectionError, match="could not be reached"):
        RemoteDataset("http://127.0.0.1:9/data")
