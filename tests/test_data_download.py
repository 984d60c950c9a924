"""Downloads against a local server: right, wrong, cut short and retried."""

import hashlib
import http.server
import socket
import threading

import pytest

from kdjax.data import download as fetch
from kdjax.data.download import SMD_URL, fetch_smd
from kdjax.errors import DataError

FILES = {
    "train/machine-1-1.txt": b"0.1,0.2\n" * 500,
    "test/machine-1-1.txt": b"0.3,0.4\n" * 300,
    "test_label/machine-1-1.txt": b"0\n1\n" * 150,
}


class _Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files`; `server.faults` holds what goes wrong first, by path."""

    def do_GET(self):
        name = self.path.removeprefix("/smd/")
        self.server.requests.append(name)
        faults = self.server.faults.get(name, [])
        fault = faults.pop(0) if faults else ""
        content = self.server.files.get(name)
        if fault == "500" or content is None:
            self.send_error(500 if fault else 404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """A server of three files that stand for the registry; waits between tries are 0."""
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
    entries = [
        fetch._Entry(name, digests[name], len(data)) for name, data in FILES.items()
    ]
    monkeypatch.setattr(fetch, "_registry", lambda: entries)
    monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.files, server.faults, server.requests = dict(FILES), {}, []
        server.url = f"http://127.0.0.1:{server.server_port}/smd/"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _content(folder):
    """All files below the folder, so that a forgotten temporary file shows."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_registry_is_the_whole_set():
    entries = fetch._registry()
    assert len(entries) == 112
    assert len({entry.name.rsplit("/", 1)[1] for entry in entries}) == 28
    assert {entry.name.split("/")[0] for entry in entries} == {
        "train",
        "test",
        "test_label",
        "interpretation_label",
    }
    for entry in entries:
        assert len(bytes.fromhex(entry.digest)) == 32
        assert entry.size > 0


def test_registry_knows_the_machine_in_the_package():
    import gzip
    from importlib import resources

    sample = resources.files("kdjax.data") / "sample"
    known = {entry.name: entry for entry in fetch._registry()}
    for folder in ("train", "test", "test_label"):
        packed = (sample / folder / "machine-1-2.txt.gz").read_bytes()
        data = gzip.decompress(packed)
        entry = known[f"{folder}/machine-1-2.txt"]
        assert (hashlib.sha256(data).hexdigest(), len(data)) == entry[1:]


def test_address_is_pinned_to_a_commit():
    assert SMD_URL.startswith("https://raw.githubusercontent.com/NetManAIOps/")
    assert "/7fb0e0acf89ea49908896bcc9f9e80fcfff6baf4/" in SMD_URL


def test_downloads_all_then_nothing(server, tmp_path):
    seen = []
    fetched = fetch_smd(
        tmp_path / "smd", base_url=server.url, progress=lambda *call: seen.append(call)
    )
    assert _content(tmp_path / "smd") == FILES
    assert [path.relative_to(tmp_path / "smd").as_posix() for path in fetched[0]] == [
        *FILES
    ]
    assert fetched.skipped == ()
    assert seen == [(name, i + 1, 3) for i, name in enumerate(FILES)]
    again = fetch_smd(str(tmp_path / "smd"), base_url=server.url.rstrip("/"))
    assert again.downloaded == ()
    assert again.skipped == fetched.downloaded
    assert len(server.requests) == 3
    assert fetched.downloaded[0].stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 4000, None])
def test_wrong_or_missing_file_is_replaced(server, tmp_path, damage):
    fetch_smd(tmp_path, base_url=server.url)
    path = tmp_path / "train/machine-1-1.txt"
    assert len(FILES["train/machine-1-1.txt"]) == 4000
    path.unlink() if damage is None else path.write_bytes(damage)
    fetched = fetch_smd(tmp_path, base_url=server.url)
    assert fetched.downloaded == (path,)
    assert len(fetched.skipped) == 2
    assert _content(tmp_path) == FILES


@pytest.mark.parametrize("fault", ["500", "cut"])
def test_failing_server_is_asked_again(server, tmp_path, fault):
    server.faults = {"test/machine-1-1.txt": [fault] * 4}
    fetch_smd(tmp_path, base_url=server.url)
    assert _content(tmp_path) == FILES
    assert len(server.requests) == 3 + 4


@pytest.mark.parametrize("fault", ["500", "cut"])
def test_server_that_keeps_failing(server, tmp_path, fault):
    name = "test/machine-1-1.txt"
    server.faults = {name: [fault] * 9}
    expected = (
        rf"{name} could not be downloaded from {server.url}{name} to .*check network"
    )
    with pytest.raises(DataError, match=expected) as caught:
        fetch_smd(tmp_path, base_url=server.url, retries=2)
    assert "\n" not in str(caught.value)
    assert server.requests.count(name) == 3
    # What was done before stays, and the next call goes on from there.
    first = {"train/machine-1-1.txt": FILES["train/machine-1-1.txt"]}
    assert _content(tmp_path) == first
    server.faults = {}
    fetched = fetch_smd(tmp_path, base_url=server.url)
    assert len(fetched.skipped) == 1
    assert _content(tmp_path) == FILES


@pytest.mark.parametrize("content", [b"x" * 4000, b"0.1,0.2\n" * 250, b""])
def test_wrong_content_never_gets_the_final_name(server, tmp_path, content):
    name = "train/machine-1-1.txt"
    server.files[name] = content
    with pytest.raises(DataError, match=f"{name} could not be downloaded .*hash"):
        fetch_smd(tmp_path, base_url=server.url, retries=1)
    assert server.requests == [name] * 2
    assert _content(tmp_path) == {}


def test_wrong_size_in_the_registry_is_noticed(server, tmp_path, monkeypatch):
    (first, *rest) = fetch._registry()
    entries = [first._replace(size=first.size + 1), *rest]
    monkeypatch.setattr(fetch, "_registry", lambda: entries)
    with pytest.raises(
        DataError, match="has 4000 bytes, expected 4001: rerun the command"
    ):
        fetch_smd(tmp_path, base_url=server.url)
    assert _content(tmp_path) == {}


def test_wrong_content_does_not_replace_what_was_there(server, tmp_path):
    path = tmp_path / "train/machine-1-1.txt"
    path.parent.mkdir()
    path.write_bytes(b"older")
    server.files["train/machine-1-1.txt"] = b"wrong"
    with pytest.raises(DataError, match="could not be downloaded"):
        fetch_smd(tmp_path, base_url=server.url, retries=0)
    assert _content(tmp_path) == {"train/machine-1-1.txt": b"older"}


def test_interruption_leaves_nothing_under_a_final_name(server, tmp_path, monkeypatch):
    def interrupted(path, *_, **__):
        with open(path, "rb") as file:
            assert file.read(10)
        raise KeyboardInterrupt

    monkeypatch.setattr("pooch.core.hash_matches", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch_smd(tmp_path, base_url=server.url)
    assert _content(tmp_path) == {}


def test_no_server(server, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        with pytest.raises(DataError, match="could not be downloaded from http://127"):
            fetch_smd(tmp_path, base_url=url, retries=0)


def test_destination_that_is_a_file(server, tmp_path):
    (tmp_path / "smd").write_text("in the way")
    with pytest.raises(
        DataError, match="could not be downloaded .*check network, mirror"
    ):
        fetch_smd(tmp_path / "smd", base_url=server.url)


def test_nothing_is_printed(server, tmp_path, capfd):
    fetch_smd(tmp_path, base_url=server.url)
    assert capfd.readouterr() == ("", "")
