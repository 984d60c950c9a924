"""Files whole or absent, and manifests that name each change."""

import hashlib
import os

import pytest

from kdjax.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    KdjaxError,
    TrainingError,
)
from kdjax.io.files import (
    MANIFEST,
    atomic_path,
    sha256,
    verify_manifest,
    write_manifest,
    write_text,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_name_at_the_end_of_the_block(tmp_path):
    target = tmp_path / "deep" / "er" / "scores.csv"
    with atomic_path(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
        assert temporary.parent == target.parent
        assert temporary.suffix == ".csv" and temporary.name.startswith(".")
    assert target.read_text() == "whole"
    assert names(target.parent) == ["scores.csv"]


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_nothing_new(tmp_path, fault):
    target = tmp_path / "scores.csv"
    for before in (None, "old"):
        if before:
            target.write_text(before)
        with pytest.raises(fault), atomic_path(target) as temporary:
            temporary.write_text("half")
            raise fault
        assert names(tmp_path) == (["scores.csv"] if before else [])
    assert target.read_text() == "old"


def test_a_block_that_writes_nothing_raises(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a"):
        pass
    assert names(tmp_path) == []


def test_a_failed_rename_leaves_the_old_file(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("Input/output error")

    write_text(tmp_path / "a", "old")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="Input/output"):
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]


def test_bytes_reach_the_disk_before_the_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, name=name, real=real: (calls.append(name), real(*a))
        )
    write_text(tmp_path / "a", "text")
    assert calls == ["fsync", "replace"]


def test_text_is_utf_8(tmp_path):
    write_text(tmp_path / "a", "τ = 1\n")
    assert (tmp_path / "a").read_bytes() == b"\xcf\x84 = 1\n"


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


@pytest.fixture
def sealed(tmp_path):
    folder = tmp_path / "sealed"
    (folder / "below").mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"abc")
    (folder / "below" / "with  two spaces").write_bytes(b"defg")
    (folder / "empty").write_bytes(b"")
    write_manifest(folder)
    return folder


def test_manifest_lists_digest_size_and_path(sealed):
    digest = hashlib.sha256(b"abc").hexdigest()
    lines = (sealed / MANIFEST).read_text().splitlines()
    assert lines[0] == f"{digest}  3  a.txt"
    assert [line.split("  ", 2)[2] for line in lines] == [
        "a.txt", "below/with  two spaces", "empty",
    ]  # fmt: skip
    verify_manifest(sealed)
    write_manifest(sealed)
    verify_manifest(sealed)


def change(sealed):
    (sealed / "a.txt").write_bytes(b"abd")


def cut(sealed):
    (sealed / "a.txt").write_bytes(b"ab")


def remove(sealed):
    (sealed / "below" / "with  two spaces").unlink()


def add(sealed):
    (sealed / "below" / "more").write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (change, r"a.txt has changed \(SHA-256 differs\)"),
        (cut, "a.txt has 2 bytes, not 3"),
        (remove, "below/with  two spaces is missing"),
        (add, "below/more is not in the manifest"),
    ],
)
def test_each_damage_is_named(sealed, damage, said):
    damage(sealed)
    with pytest.raises(ArtifactError, match=f"sealed is damaged: {said}. Restore it"):
        verify_manifest(sealed)


def test_all_damage_is_named_at_once(sealed):
    cut(sealed)
    remove(sealed)
    add(sealed)
    message = "a.txt has 2.*below/more is not.*below/with  two spaces is missing"
    with pytest.raises(ArtifactError, match=message):
        verify_manifest(sealed)


def test_a_folder_without_manifest_is_not_complete(tmp_path):
    with pytest.raises(
        ArtifactError, match="has no MANIFEST.sha256: it is not a compl"
    ):
        verify_manifest(tmp_path)


@pytest.mark.parametrize("text", [b"one two\n", b"d  size  name\n", b"\xff\xfe", b"\n"])
def test_a_manifest_of_another_shape_is_refused(sealed, text):
    (sealed / MANIFEST).write_bytes(text)
    with pytest.raises(ArtifactError, match="can't be read as a manifest"):
        verify_manifest(sealed)


def test_a_manifest_that_is_a_folder_is_refused(tmp_path):
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(ArtifactError, match="can't be read as a manifest"):
        verify_manifest(tmp_path)


def test_errors_are_one_family():
    for error in (DataError, ConfigError, TrainingError, ArtifactError):
        assert issubclass(error, KdjaxError)
    for error in (DataError, ConfigError):
        assert issubclass(error, ValueError)
