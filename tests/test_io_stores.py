"""Object stores: URLs, copies, errors, and scores of files there, on a store in memory.

`tests/test_integration_stores.py` has the same against a server.
"""

import errno
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kdjax.cli import main
from kdjax.detection.storage import save_detector
from kdjax.errors import ArtifactError, ConfigError, DataError, KdjaxError
from kdjax.io import stores
from kdjax.io.files import MANIFEST, verify_manifest
from kdjax.scoring.files import score_file, score_fleet


class Memory:
    """What kdjax uses of s3fs, over a dict of `bucket/key` to content and metadata."""

    def __init__(self):
        self.objects, self.calls, self.tagged = {}, [], True
        self.before = lambda name, key: None  # may raise, or change the store

    def _call(self, name, url):
        key = url.removeprefix("s3://")
        self.calls.append((name, key))
        self.before(name, key)
        return key

    def _entry(self, key):
        content, _ = self.objects[key]
        tag = f'"{hashlib.md5(content).hexdigest()}"' if self.tagged else ""
        return {"type": "file", "size": len(content), "ETag": tag}

    def info(self, url):
        key = self._call("info", url)
        if key in self.objects:
            return self._entry(key)
        if any(name.startswith(f"{key}/") for name in self.objects):
            return {"type": "directory", "size": 0}
        raise FileNotFoundError(key)

    def exists(self, url):
        return self._call("exists", url) in self.objects

    def find(self, url, *, detail):
        key = self._call("find", url)
        return {n: self._entry(n) for n in self.objects if n.startswith(f"{key}/")}

    def get_file(self, url, path):
        Path(path).write_bytes(self.objects[self._call("get", url)][0])

    def put_file(self, path, url, Metadata=()):
        key = self._call("put", url)
        self.objects[key] = (Path(path).read_bytes(), dict(Metadata))

    def metadata(self, url):
        return self.objects[self._call("metadata", url)][1]

    def call_s3(self, method, *, Bucket, timeout):
        assert (method, timeout) == ("head_bucket", 10)
        self._call("bucket", Bucket)

    def add(self, folder, prefix):
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name = path.relative_to(folder).as_posix()
                self.objects[f"{prefix}/{name}"] = (path.read_bytes(), {})

    def below(self, prefix):
        """Contents by name below a prefix."""
        found = self.objects.items()
        return {
            name.removeprefix(f"{prefix}/"): content
            for name, (content, _) in found
            if name.startswith(f"{prefix}/")
        }

    def names(self, call):
        return [key for name, key in self.calls if name == call]


@pytest.fixture
def memory(monkeypatch, tmp_path):
    store = Memory()
    monkeypatch.setattr(stores, "_filesystem", lambda: store)
    stores._check_bucket.cache_clear()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    yield store
    assert not [*(tmp_path / "temporary").iterdir()]


# URLs.


def test_what_is_remote(tmp_path):
    assert stores.is_remote("s3://bucket") and stores.is_remote(
        "s3://my.bucket/a b/c:d"
    )
    local = ("a.csv", "s3/a.csv", "C:/a.csv", "a:b.csv", "./s3:/a", "", tmp_path)
    assert not any(map(stores.is_remote, local))


@pytest.mark.parametrize(
    "url",
    ["gs://b/k", "az://b/k", "https://h/b/k", "file:///k", "S3://b/k", "memory://k",
     Path("s3://b/k")],
)  # fmt: skip
def test_other_schemes_are_refused(url):
    with pytest.raises(ConfigError, match="text of the form s3://BUCKET/KEY"):
        stores.is_remote(url)
    with pytest.raises(ConfigError):
        score_fleet([url], detector="d", output="o")


@pytest.mark.parametrize("url", ["s3://", "s3:///k", "s3://?/k", "s3://-b"])
def test_urls_without_a_bucket_are_refused(url):
    with pytest.raises(ConfigError, match="has no bucket"):
        stores.is_remote(url)


ODD = ("../x.csv", "a/../../x.csv", "a//x.csv", "/x.csv", "./x.csv", "a\\x.csv",
       "x.csv?versionId=y.csv")  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_keys_that_would_leave_the_folder_are_refused(memory, tmp_path, name):
    with pytest.raises(DataError, match="rename it"):
        stores.is_remote(f"s3://b/plants/{name}")
    memory.objects = {f"b/plants/{name}": (b"1", {}), "b/plants/a.csv": (b"1", {})}
    for work in (
        lambda: stores.fetch("s3://b/plants", tmp_path / "in" / "ner"),
        lambda: score_fleet(
            ["s3://b/plants"], detector=tmp_path, output=tmp_path / "o"
        ),
    ):
        with pytest.raises(KdjaxError, match=r"rename it|has no MANIFEST"):
            work()
    assert not memory.names("get")
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == set()


# Copies.


def test_files_below_a_url_are_listed(memory):
    for key in ("p/a.csv", "p/line/b.CSV", "p/c.txt", "p/line/", "p2/d.csv", "p.csv"):
        memory.objects[f"b/{key}"] = (key.encode(), {})
    tag = hashlib.md5(b"p/a.csv").hexdigest()
    assert stores.list_files("s3://b/p", (".csv",)) == {
        "s3://b/p/a.csv": (7, f'"{tag}"'),
        "s3://b/p/line/b.CSV": (12, memory._entry("b/p/line/b.CSV")["ETag"]),
    }
    assert [*stores.list_files("s3://b/p/")] == [
        "s3://b/p/a.csv", "s3://b/p/c.txt", "s3://b/p/line/b.CSV",
    ]  # fmt: skip
    assert [*stores.list_files("s3://b/p.csv")] == ["s3://b/p.csv"]
    assert len(stores.list_files("s3://b")) == 5 and not stores.list_files("s3://b/q")
    assert memory.names("bucket") == ["b"]  # asked once


def test_a_folder_goes_out_and_comes_back(memory, tmp_path, small):
    save_detector(tmp_path / "student", small)
    stores.put_folder(tmp_path / "student", "s3://b/detectors/student/")
    assert memory.names("put")[-1] == f"b/detectors/student/{MANIFEST}"
    found = stores.fetch("s3://b/detectors/student/", tmp_path / "work")
    assert found == tmp_path / "work" / "b" / "detectors" / "student"
    verify_manifest(found)
    one = stores.fetch("s3://b/detectors/student/card.md", tmp_path / "other")
    assert one.read_bytes() == (tmp_path / "student" / "card.md").read_bytes()
    memory.calls.clear()
    stores.put_folder(tmp_path / "student", "s3://b/detectors/student")
    assert not memory.names("put")  # is there
    key, content = "b/detectors/student/card.md", (found / "card.md").read_bytes()
    memory.objects[key] = (content[:-1] + b"?", {})
    stores.put_folder(tmp_path / "student", "s3://b/detectors/student")
    assert memory.names("put") == [key] and memory.objects[key] == (content, {})
    memory.objects["b/detectors/student/more"] = (b"", {})
    with pytest.raises(ArtifactError, match=r"other objects, such as s3://.*/more"):
        stores.put_folder(tmp_path / "student", "s3://b/detectors/student")


def test_what_makes_a_folder_whole_is_copied_last(memory, tmp_path):
    names = (MANIFEST, "a.done.json", "z", f"in/{MANIFEST}", "in/z", "index")
    for name in names:
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / name).write_text(name)
    stores.put_folder(tmp_path / "f", "s3://b/f")
    wanted = ["in/z", "index", "z", "a.done.json", f"in/{MANIFEST}", MANIFEST]
    assert memory.names("put") == [f"b/f/{name}" for name in wanted]
    memory.calls.clear()
    memory.objects.clear()
    stores.put_folder(tmp_path / "f", "s3://b/f", last=("index",))
    assert memory.names("put")[-1] == "b/f/index"


def test_an_interrupted_copy_is_not_whole(memory, tmp_path, small):
    save_detector(tmp_path / "student", small)

    def stop(name, key):
        if name == "put" and key.endswith("detector.json"):
            raise KeyboardInterrupt

    memory.before = stop
    with pytest.raises(KeyboardInterrupt):
        stores.put_folder(tmp_path / "student", "s3://b/student")
    assert f"b/student/{MANIFEST}" not in memory.objects and memory.objects
    with pytest.raises(ArtifactError, match=r"s3://b/student has no MANIFEST.sha256"):
        score_fleet([tmp_path], detector="s3://b/student", output=tmp_path / "o")


def test_sizes_are_verified(memory, tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    memory.objects["b/a"] = (b"12345", {})

    def cut(name, key):
        if name in ("get", "info") and memory.calls[-2:-1] != [("bucket", "b")]:
            memory.objects[key] = (b"1234", {})

    memory.before = cut
    with pytest.raises(DataError, match=r"s3://b/a has 4 bytes, not 5: it changed"):
        stores.fetch("s3://b/a", tmp_path / "work")
    assert not [p for p in (tmp_path / "work").rglob("*") if p.is_file()]
    with pytest.raises(ArtifactError, match=r"s3://b/a has 4 bytes after a copy of 5"):
        stores.put_file(tmp_path / "a", "s3://b/a")


# Errors.


class NoCredentialsError(Exception):
    __module__ = "botocore.exceptions"


@pytest.mark.parametrize(
    ("raised", "kind", "text"),
    [
        (FileNotFoundError("x"), DataError, "does not exist: check bucket and key"),
        (
            PermissionError("Forbidden"),
            DataError,
            r"\(Forbidden\): check .* permissions",
        ),
        (NoCredentialsError("Unable"), ConfigError, r"\(Unable\): check .*AWS_ACCESS"),
        (TimeoutError(), ConfigError, r"\(no answer within 10 s\): check the endpoint"),
        (OSError(errno.EBUSY, "Slow down"), ConfigError, "Slow down"),
    ],
)
def test_errors_name_the_url(memory, tmp_path, raised, kind, text):
    memory.objects["b/a"] = (b"1", {})

    def fail(name, key):
        if name == "get":
            raise raised

    memory.before = fail
    with pytest.raises(kind, match=rf"^s3://b/a .*{text}"):
        stores.fetch("s3://b/a", tmp_path)


def test_faults_of_the_store_as_a_whole_are_of_settings(memory, tmp_path):
    def fail(name, key):
        if name in fails:
            raise fails[name]

    memory.before, fails = fail, {"bucket": FileNotFoundError("404")}
    with pytest.raises(ConfigError, match=r"^s3://b does not exist: check bucket"):
        stores.list_files("s3://b/a")
    fails = {"bucket": PermissionError("403"), "put": PermissionError("Access Denied")}
    assert stores.list_files("s3://b/a") == {}  # no right to ask is no fault
    (tmp_path / "a").write_text("1")
    with pytest.raises(ConfigError, match=r"^s3://b/a can't be used \(Access Denied\)"):
        stores.put_file(tmp_path / "a", "s3://b/a")


def test_faults_of_the_local_disk_stay_what_they_are(memory, tmp_path):
    def fill(name, key):
        if name == "get":
            raise OSError(errno.ENOSPC, "No space left on device")

    memory.objects["b/a"], memory.before = (b"1", {}), fill
    with pytest.raises(OSError, match="No space left") as caught:
        stores.fetch("s3://b/a", tmp_path)
    assert caught.value.filename == str(tmp_path / "b" / "a")
    with pytest.raises(FileNotFoundError):
        stores.put_file(tmp_path / "absent", "s3://b/a")

    def refuse(name, key):
        if name == "get":
            raise PermissionError(errno.EACCES, "Permission denied", "local")

    memory.before = refuse
    with pytest.raises(PermissionError, match="denied"):
        stores.fetch("s3://b/a", tmp_path)


def test_the_extra_is_named_where_it_lacks(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    stores._check_bucket.cache_clear()
    with pytest.raises(ConfigError, match=r'pip install "kdjax\[s3\]"'):
        stores.list_files("s3://b/a")


# Scores.


@pytest.fixture
def plants(tmp_path, small):
    """A folder of three files, one in a folder, and a detector."""
    folder = tmp_path / "plants"
    (folder / "line").mkdir(parents=True)
    save_detector(tmp_path / "student", small)
    for seed, name in enumerate(("a.csv", "line/b.parquet", "c.npy")):
        values = 2 * np.random.default_rng(seed).normal(size=(14, 2))
        frame = pd.DataFrame(values.astype(np.float32), columns=["x", "y"])
        if name.endswith(".csv"):
            frame.to_csv(folder / name, index=False)
        elif name.endswith(".parquet"):
            frame.to_parquet(folder / name)
        else:
            np.save(folder / name, frame.to_numpy())
    (folder / "notes.md").write_text("none")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "d.csv").write_text("x,y\n1,2\n")
    return folder


@pytest.fixture
def filled(memory, plants, tmp_path):
    memory.add(plants, "b/plants")
    memory.add(tmp_path / "student", "b/student")
    return memory


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


REMOTE = {"detector": "s3://b/student", "output": "s3://b/scores/"}


@pytest.mark.parametrize("where", ["all", "input", "output", "detector"])
def test_scores_and_records_have_the_same_bytes(filled, plants, tmp_path, where):
    local = {"detector": tmp_path / "student", "output": tmp_path / "scores"}
    score_fleet([plants], contributions=True, **local)
    wanted = contents(tmp_path / "scores")
    assert len(wanted) == 9
    options = {k: v for k, v in REMOTE.items() if where in ("all", k)}
    options = {**local, "output": tmp_path / "mixed", **options}
    path = "s3://b/plants" if where in ("all", "input") else plants
    for word in ("3 scored, 0 verified", "0 scored, 3 verified"):
        said = score_fleet([path], contributions=True, **options)
        output = str(options["output"]).rstrip("/")
        assert said[-1] == f"{output}: 3 of 3 files: {word}, 0 failed"
    assert said[0].startswith("skipped (hidden") and "notes.md" in said[0]
    remote = output.startswith("s3://")
    assert (filled.below("b/scores") if remote else contents(Path(output))) == wanted


def test_a_restart_copies_only_what_it_must(filled, plants, tmp_path):
    score_fleet(["s3://b/plants"], **REMOTE)
    names = ["b/plants/a.csv", "b/plants/c.npy", "b/plants/line/b.parquet"]
    assert [n for n in filled.names("get") if "student" not in n] == names
    puts = filled.names("put")
    ends = ("a.csv", "a.csv.events.csv", "a.csv.done.json")
    assert puts[:3] == [f"b/scores/{name}" for name in ends]

    def again(word, path="s3://b/plants", **options):
        filled.calls.clear()
        said = score_fleet([path], **{**REMOTE, **options})
        assert f" {word}, 0 failed" in said[-1]
        return [n for n in filled.names("get") if "student" not in n]

    assert again("0 scored, 3 verified") == [] == filled.names("put")
    # Rows from another place: the record's seal is of another ETag, SHA-256 are compared.
    assert len(again("0 scored, 3 verified", plants)) == 9
    # As after `aws s3 cp`, which gives no metadata.
    filled.objects["b/scores/a.csv.done.json"] = (
        filled.below("b/scores")["a.csv.done.json"],
        {},
    )
    assert again("0 scored, 3 verified") == [names[0]] + [
        f"b/scores/{name}" for name in (ends[2], ends[0], ends[1])
    ]
    # One input changed, one output damaged, one record gone.
    content = filled.below("b/plants")["a.csv"] + b"1,1\n"
    filled.objects["b/plants/a.csv"] = (content, {})
    assert names[0] in again("1 scored, 2 verified")
    filled.objects["b/scores/c.csv.events.csv"] = (b"damaged", {})
    assert names[1] in again("1 scored, 2 verified")
    del filled.objects["b/scores/line/b.parquet.done.json"]
    assert again("1 scored, 2 verified") == [names[2]]
    assert again("3 scored, 0 verified", causal=True)
    assert again("0 scored, 3 verified", causal=True) == []
    filled.tagged = False  # a store without ETags
    assert len(again("0 scored, 3 verified", causal=True)) == 12


def test_a_store_without_etags_is_verified_by_content(filled):
    filled.tagged = False
    score_fleet(["s3://b/plants"], **REMOTE)
    content = filled.below("b/scores")["a.csv"]
    filled.objects["b/scores/a.csv"] = (content[:-2] + b"9\n", {})
    said = score_fleet(["s3://b/plants"], **REMOTE)
    assert " 1 scored, 2 verified, 0 failed" in said[-1]
    assert filled.below("b/scores")["a.csv"] == content


def test_a_record_is_of_the_files_that_were_verified(filled, tmp_path):
    score_fleet(["s3://b/plants"], **REMOTE)
    for name in ("a.csv", "a.csv.events.csv", "a.csv.done.json"):
        content, _ = filled.objects[f"b/scores/{name}"]
        if name.endswith("json"):
            record = json.loads(content)
            assert record["input"]["name"] == "a.csv"
        else:
            assert (
                record_of(filled)["outputs"][name]
                == hashlib.sha256(content).hexdigest()
            )


def record_of(store):
    return json.loads(store.objects["b/scores/a.csv.done.json"][0])


def test_an_interrupted_run_goes_on(filled, tmp_path):
    def stop(name, key):
        if (name, key) == ("put", "b/scores/c.csv.events.csv"):
            raise KeyboardInterrupt

    filled.before = stop
    with pytest.raises(KeyboardInterrupt):
        score_fleet(["s3://b/plants"], **REMOTE)
    assert "c.csv.done.json" not in filled.below("b/scores")
    filled.before = lambda name, key: None
    assert (
        " 2 scored, 1 verified, 0 failed"
        in score_fleet(["s3://b/plants"], **REMOTE)[-1]
    )


def test_the_disk_holds_one_file_at_a_time(filled, tmp_path):
    held = []

    def count(name, key):
        work = next((tmp_path / "temporary").iterdir())
        assert work.stat().st_mode & 0o077 == 0
        inner = [*work.glob("b/plants/**/*"), *work.glob("b/scores/**/*")]
        held.append(sum(path.is_file() for path in inner))

    score = {"detector": tmp_path / "student", "output": "s3://b/scores"}
    filled.before = count
    score_fleet(["s3://b/plants"], **score)
    assert max(held) == 4  # an input, scores, events and record


def test_shares_and_further_options(filled, plants, tmp_path):
    spans = tmp_path / "spans.csv"
    spans.write_text("start,end\n6,8\n")
    filled.objects["b/plants/spans.csv"] = (spans.read_bytes(), {})
    local = {"detector": tmp_path / "student", "output": tmp_path / "scores"}
    score_fleet([plants], exclude=str(spans), **local)
    for share in ("0/2", "1/2"):
        options = {"exclude": "s3://b/plants/spans.csv", "shard": share}
        said = score_fleet(["s3://b/plants"], **options, **REMOTE)
        assert f"s3://b/scores: shard {share}, " in said[-1]
        assert any("spans.csv" in line for line in said if "skipped" in line)
    assert filled.below("b/scores") == contents(tmp_path / "scores")


@pytest.mark.parametrize("output", ["s3://b/one.csv", "local"])
def test_one_file(filled, plants, tmp_path, output):
    target = tmp_path / "one.csv"
    score_file(plants / "a.csv", detector=tmp_path / "student", output=target)
    wanted = {p.name: p.read_bytes() for p in tmp_path.glob("one.csv*")}
    local = output == "local"
    output = tmp_path / "o" / "one.csv" if local else output
    said = score_file("s3://b/plants/a.csv", detector="s3://b/student", output=output)
    assert said[-1].startswith(f"{output}: ")
    found = contents(tmp_path / "o") if local else filled.below("b")
    assert {k: v for k, v in found.items() if k.startswith("one")} == wanted
    assert len(wanted) == 2


def test_faulty_files_are_named_by_their_urls(filled):
    filled.objects["b/plants/a.csv"] = (b"x,y\n1,2\n1,oh\n", {})

    def deny(name, key):
        if (name, key) == ("get", "b/plants/c.npy"):
            raise PermissionError("Access Denied")

    filled.before = deny
    said = []
    with pytest.raises(
        DataError, match="2 of 3 files failed; the first is a.csv: s3://b/"
    ):
        score_fleet(["s3://b/plants"], log=said.append, **REMOTE)
    failed = [line for line in said if line.startswith("failed")]
    assert failed[0].startswith("failed: a.csv: s3://b/plants/a.csv: row 2")
    assert "c.npy: s3://b/plants/c.npy can't be used (Access Denied)" in failed[1]
    assert "1 scored, 0 verified, 2 failed" in said[-1]
    assert {*filled.below("b/scores")} == {
        f"line/b.parquet{end}" for end in ("", ".events.csv", ".done.json")
    }


@pytest.mark.parametrize(
    ("paths", "options", "kind", "text"),
    [
        (["s3://b/none"], {}, DataError, "s3://b/none does not exist"),
        (["s3://b/plants"], {"detector": "s3://b/plants"}, ArtifactError,
         "s3://b/plants has no MANIFEST.sha256"),
        (["s3://b/plants"], {"output": "s3://b/plants/scores"}, ConfigError,
         "output=s3://b/plants/scores is inside the input s3://b/plants"),
        (["s3://b/plants/a.csv"], {"output": "s3://b/plants/"}, ConfigError,
         "s3://b/plants/a.csv would replace the input s3://b/plants/a.csv"),
        (["s3://b/plants"], {"output": "s3://b/student/scores"}, ConfigError,
         "s3://b/student is sealed by its MANIFEST.sha256"),
        (["s3://b/plants/notes.md"], {}, DataError, "s3://b/plants/notes.md has an unknown"),
        (["s3://b/student"], {}, DataError, "s3://b/student: no file to score"),
    ],
)  # fmt: skip
def test_refusals(filled, paths, options, kind, text):
    before = dict(filled.objects)
    with pytest.raises(kind, match=text):
        score_fleet(paths, **{**REMOTE, **options})
    assert filled.objects == before


def test_a_damaged_detector_is_refused(filled):
    content, _ = filled.objects["b/student/arrays.npz"]
    filled.objects["b/student/arrays.npz"] = (content[:-1] + b"?", {})
    with pytest.raises(
        ArtifactError, match="s3://b/student is damaged: arrays.npz has"
    ):
        score_fleet(["s3://b/plants"], **REMOTE)


def test_what_a_killed_process_left_is_removed(filled, tmp_path):
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    from kdjax.io.files import _host

    mark = f"{_host()}-{int(done.stdout)}-0a1b2c"
    left = tmp_path / "temporary" / f".kdjax.{mark}.old"
    live = tmp_path / "temporary" / f".kdjax.{_host()}-{os.getppid()}-0a1b2c.old"
    for folder in (left, live):
        (folder / "b").mkdir(parents=True)
    score_fleet(["s3://b/plants/a.csv"], **REMOTE)
    assert not left.exists() and live.exists()
    (live / "b").rmdir()
    live.rmdir()


# The program.


def test_the_program_scores_from_and_into_a_store(filled, capsys):
    call = ["kdjax", "score", "s3://b/plants", "--detector=s3://b/student"]
    assert main([*call, "--output=s3://b/scores"]) == 0
    assert "s3://b/scores: 3 of 3 files: 3 scored" in capsys.readouterr().out
    call[2] = "s3://b/plants/a.csv"
    assert main([*call, "--output=s3://b/one.csv"]) == 0
    assert filled.below("b")["one.csv"] == filled.below("b/scores")["a.csv"]
    assert main([*call, "--output=s3://b/one"]) == 2
    assert "or in / for a folder" in capsys.readouterr().err
    assert main([*call[:2], "s3://b/plants", call[3], "--output=s3://b/o.csv"]) == 2
    assert "must be a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "call",
    [
        ["run", "--config.data.path=s3://b/plant.csv"],
        ["run", "--config.data.path=x.csv", "--config.data.test_path=gs://b/plant.csv"],
        ["calibrate", "s3://b/plant.csv", "--detector=D", "--output=D2"],
    ],
)
def test_other_verbs_say_which_verb_takes_urls(call, tmp_path, small, capsys):
    save_detector(tmp_path / "student", small)
    call = [word.replace("=D", f"={tmp_path / 'student'}") for word in call]
    assert main(["kdjax", *call]) == 2
    said = capsys.readouterr().err
    if "run" in call:
        assert "data.path=s3://b/" in said or "data.test_path=gs://b/" in said
    assert (
        "copy it to the local disk first; of the verbs only score and fleet read"
        in said
    )
