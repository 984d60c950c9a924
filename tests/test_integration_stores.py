"""Files in an object store: the program against moto's S3 server."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import kdjax
from kdjax.cli import main
from kdjax.detection.storage import save_detector
from kdjax.errors import ConfigError, DataError
from kdjax.io import stores
from kdjax.io.files import verify_manifest
from kdjax.scoring.files import score_fleet

pytestmark = [
    pytest.mark.integration,
    # aiohttp's sessions are closed by s3fs's own thread, or by the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
ROOT = Path(__file__).parent.parent
LARGE = 120_000_000  # bytes: above 100 MiB s3fs copies in parts


@pytest.fixture
def store(monkeypatch, tmp_path):
    """A server with the bucket `bkt`; gives its URL. The environment names it."""
    s3fs, server = pytest.importorskip("s3fs"), pytest.importorskip("moto.server")
    own = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    own.start()
    try:
        host, port = own.get_host_and_port()
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        environment = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path),
        }  # fmt: skip
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        forget()
        s3fs.S3FileSystem(use_listings_cache=False).mkdir("bkt")
        yield environment["AWS_ENDPOINT_URL"]
    finally:
        with contextlib.suppress(OSError):
            ask(environment["AWS_ENDPOINT_URL"], "reset")
        own.stop()
        forget()


def forget():
    """The next call makes a new client from the environment."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    stores._check_bucket.cache_clear()


def ask(url, what, data=b""):
    text = {"Content-Type": "text/plain"}
    request = urllib.request.Request(f"{url}/moto-api/{what}", data, text)
    urllib.request.urlopen(request, timeout=10).close()


def program(*arguments, **options):
    return subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), *arguments],
        check=False, capture_output=True, text=True, timeout=60, cwd=ROOT, **options,
    )  # fmt: skip


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def fetched(url, folder):
    return contents(stores.fetch(url, folder))


@pytest.fixture
def plants(small, tmp_path):
    """Files and a detector, local and in the bucket."""
    save_detector(tmp_path / "student", small)
    folder = tmp_path / "plants"
    (folder / "line").mkdir(parents=True)
    for seed, name in enumerate(("a.csv", "line/b 1.csv", "line/ü+%2F.csv")):
        values = 2 * np.random.default_rng(seed).normal(size=(400, 2))
        pd.DataFrame(values, columns=["x", "y"]).to_csv(folder / name, index=False)
    return folder


@pytest.fixture
def filled(store, plants, tmp_path):
    stores.put_folder(plants, "s3://bkt/plants")
    stores.put_folder(tmp_path / "student", "s3://bkt/detectors/student")
    return store


REMOTE = ("--detector=s3://bkt/detectors/student", "--output=s3://bkt/scores")


def test_the_program_scores_a_bucket_as_it_scores_a_folder(filled, plants, tmp_path):
    local = {"detector": tmp_path / "student", "output": tmp_path / "scores"}
    score_fleet([plants], **local)
    for word in ("3 scored, 0 verified", "0 scored, 3 verified"):
        done = program("score", "s3://bkt/plants", *REMOTE)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith(
            f"s3://bkt/scores: 3 of 3 files: {word}, 0 failed\n"
        )
    assert fetched("s3://bkt/scores", tmp_path / "back") == contents(
        tmp_path / "scores"
    )
    score_fleet(["s3://bkt/plants"], **local | {"output": tmp_path / "mixed"})
    assert contents(tmp_path / "mixed") == contents(tmp_path / "scores")
    one = ("score", str(plants / "a.csv"), "--output=s3://bkt/one/a.csv", REMOTE[0])
    assert program(*one).returncode == 0
    found = fetched("s3://bkt/one", tmp_path / "one")
    assert found == {
        name: contents(tmp_path / "scores")[name]
        for name in ("a.csv", "a.csv.events.csv")
    }


def test_a_restart_trusts_etags(filled, tmp_path, monkeypatch):
    options = {"detector": tmp_path / "student", "output": "s3://bkt/scores"}
    score_fleet(["s3://bkt/plants"], **options)
    with monkeypatch.context() as patch:

        def refuse(*_):
            raise AssertionError("nothing is to be copied")

        patch.setattr(stores, "_copy", refuse)
        patch.setattr(stores, "put_file", refuse)
        assert "3 verified" in score_fleet(["s3://bkt/plants"], **options)[-1]
    (tmp_path / "damaged").write_bytes(b"damaged")
    stores.put_file(tmp_path / "damaged", "s3://bkt/scores/a.csv")
    assert "1 scored, 2 verified" in score_fleet(["s3://bkt/plants"], **options)[-1]


def test_a_killed_program_goes_on(filled, plants, tmp_path):
    local = {"detector": tmp_path / "student", "output": tmp_path / "scores"}
    score_fleet([plants], **local)
    (tmp_path / "temporary").mkdir()
    place = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    command = [
        sys.executable,
        str(ROOT / "launch.py"),
        "score",
        "s3://bkt/plants",
        *REMOTE,
    ]
    process = subprocess.Popen(command, env=place, stdout=subprocess.PIPE)
    try:
        process.stdout.readline()  # of the first file
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    assert len([*(tmp_path / "temporary").iterdir()]) == 1
    done = program("score", "s3://bkt/plants", *REMOTE, env=place)
    assert done.returncode == 0, done.stderr
    assert not [*(tmp_path / "temporary").iterdir()]
    assert fetched("s3://bkt/scores", tmp_path / "back") == contents(
        tmp_path / "scores"
    )


def test_large_files_are_copied_in_parts(store, tmp_path):
    rows = np.random.default_rng(0).integers(0, 256, LARGE, np.uint8)
    (tmp_path / "large.bin").write_bytes(rows.tobytes())
    stored = stores.put_file(tmp_path / "large.bin", "s3://bkt/large.bin", {"k": "v"})
    assert stored.size == LARGE and "-" in stored.tag  # the ETag of parts
    found = stores.fetch("s3://bkt/large.bin", tmp_path / "back")
    assert found.read_bytes() == rows.tobytes()


def test_more_objects_than_one_page_lists(store, tmp_path):
    import s3fs

    many = {f"bkt/many/{number:04}.csv": b"1" for number in range(1_005)}
    s3fs.S3FileSystem(use_listings_cache=False).pipe(many)
    assert len(stores.list_files("s3://bkt/many", (".csv",))) == 1_005


def test_a_detector_comes_back_whole(filled, tmp_path):
    verify_manifest(stores.fetch("s3://bkt/detectors/student", tmp_path / "back"))
    with pytest.raises(DataError, match="s3://bkt/detectors/none does not exist"):
        stores.fetch("s3://bkt/detectors/none", tmp_path / "back")


def test_faults_of_the_store_are_one_line(filled, monkeypatch, capsys):
    """No bucket, no rights, no credentials, no server: exit code 2 and the URL."""

    def said(url="s3://bkt/plants", **environment):
        forget()
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            start = time.monotonic()
            assert main(["kdjax", "score", url, *REMOTE]) == 2
            assert time.monotonic() - start < 13
        text = capsys.readouterr().err
        assert text.count("\n") == 1 and text.startswith("kdjax: s3://")
        return text

    assert "s3://absent does not exist: check bucket" in said("s3://absent/plants")
    assert "s3://bkt/none does not exist" in said("s3://bkt/none")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        text = said(AWS_ENDPOINT_URL=url)
        assert "no answer within 10 s" in text and "AWS_ENDPOINT_URL" in text
    assert "Could not connect" in said(AWS_ENDPOINT_URL=url)
    ask(filled, "reset-auth", b"0")  # from now on keys have to be those of users
    assert "permissions in the environment" in said()
    ask(filled, "reset-auth", b"Infinity")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    done = program("score", "s3://bkt/plants", *REMOTE)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "credentials" in done.stderr and "AWS_ACCESS_KEY_ID" in done.stderr


def test_keys_that_would_leave_the_folder(store, tmp_path):
    import s3fs

    client = s3fs.S3FileSystem(use_listings_cache=False)
    for key in ("p/../../evil.csv", "p/a\\evil.csv", "p//evil.csv"):
        client.call_s3("put_object", Bucket="bkt", Key=key, Body=b"1")
        with pytest.raises((ConfigError, DataError), match="rename it"):
            stores.fetch("s3://bkt/p", tmp_path / "in")
        client.call_s3("delete_object", Bucket="bkt", Key=key)
    assert not [*tmp_path.rglob("*evil*")]


def test_a_fleet_in_a_store_is_that_of_local_folders(store, tmp_path, monkeypatch):
    """Detectors have the same bytes; a second call fits only the machine that is new."""
    from kdjax.experiment import fleet_units

    small = [
        "--config.student.hidden=4", "--config.student.epochs=2", "--config.data.window=20",
        "--config.distill.alpha=0",
    ]  # fmt: skip
    plants = tmp_path / "plants"
    plants.mkdir()
    for seed in range(3):
        plant(seed).to_csv(plants / f"m{seed}.csv", index=False)
    plant(3).iloc[:10].to_csv(plants / "three.csv", index=False)
    stores.put_folder(plants, "s3://bkt/plants")
    command = ["kdjax", "fleet", str(plants), f"--output={tmp_path / 'local'}", *small]
    assert main(command) == 2
    remote = ["kdjax", "fleet", "s3://bkt/plants", "--output=s3://bkt/fleet", *small]
    assert main(remote) == 2
    ours = fetched("s3://bkt/fleet", tmp_path / "copy")
    theirs = contents(tmp_path / "local")

    def arrays(found):
        return {
            k: v
            for k, v in found.items()
            if k.endswith(("arrays.npz", "detector.json"))
        }

    assert len(arrays(theirs)) == 6 and arrays(ours) == arrays(theirs)
    assert {"fleet.json", "catalogue.parquet", "index.html", "machines/m0.json"} <= {
        *ours
    }
    trained = []
    real = fleet_units._train
    monkeypatch.setattr(
        fleet_units,
        "_train",
        lambda prepared, *rest: trained.extend(prepared) or real(prepared, *rest),
    )
    stores.put_file(plants / "m0.csv", "s3://bkt/plants/m9.csv")
    assert main(remote) == 2
    assert trained == ["m9"]
    catalogue = pd.read_parquet(
        stores.fetch("s3://bkt/fleet/catalogue.parquet", tmp_path / "c")
    )
    assert catalogue["state"].tolist() == ["ready", "ready", "ready", "ready", "failed"]
    assert not [
        *Path(os.environ.get("TMPDIR", "/tmp")).glob(f".kdjax.*-{os.getpid()}-*")
    ]


def test_a_fleet_in_a_store_scores(store, tmp_path, monkeypatch):
    """As the local fleet does; of the detectors those of the machines scored are copied."""
    small = [
        "--config.student.hidden=4", "--config.student.epochs=2", "--config.data.window=20",
        "--config.distill.alpha=0",
    ]  # fmt: skip
    plants, fleet = tmp_path / "plants", tmp_path / "fleet"
    plants.mkdir()
    for seed in range(3):
        plant(seed).to_csv(plants / f"m{seed}.csv", index=False)
    assert main(["kdjax", "fleet", str(plants), f"--output={fleet}", *small]) == 0
    stores.put_folder(fleet, "s3://bkt/fleet")
    got = []
    real = stores._copy
    monkeypatch.setattr(
        stores, "_copy", lambda url, *rest: got.append(url) or real(url, *rest)
    )
    (plants / "m2.csv").rename(tmp_path / "m2.csv")
    wanted, found = tmp_path / "wanted", tmp_path / "found"
    for detector, output in ((fleet, wanted), ("s3://bkt/fleet/", found)):
        command = ["kdjax", "score", str(plants), f"--detector={detector}"]
        assert main([*command, f"--output={output}/"]) == 0
    tables = {k: v for k, v in contents(found).items() if not k.endswith(".json")}
    theirs = {k: v for k, v in contents(wanted).items() if not k.endswith(".json")}
    assert len(tables) == 4 and tables == theirs
    copied = {url.split("detectors/")[1].split("/")[0] for url in got if "tors/" in url}
    assert copied == {"m0", "m1"}
    command = ["kdjax", "score", str(tmp_path / "m2.csv"), "--detector=s3://bkt/fleet"]
    assert main([*command, f"--output={tmp_path / 'one.csv'}"]) == 0
    whole = pd.read_csv(tmp_path / "one.csv")
    ours = kdjax.open_machine(fleet, "m2")[0]
    assert whole["tau"].iloc[-1] == ours.thresholds[0].tau
    command = ["kdjax", "score", str(plants), "--detector=s3://bkt/none"]
    assert main([*command, f"--output={found}/"]) == 2


def plant(seed):
    rng, time_ = np.random.default_rng(seed), np.arange(1500)[:, None]
    values = np.sin(time_ / (4 + seed + np.arange(3))) + 0.1 * rng.normal(
        size=(1500, 3)
    )
    return pd.DataFrame(values, columns=["a", "b", "c"])
