"""The wheel: what it holds, and that it works away from the checkout."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import kdjax

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parent.parent
NEEDED = """py.typed data/smd_sha256.txt data/sample/train/machine-1-2.txt.gz
data/sample/LICENSE evaluation/report.html.jinja service/page.html"""


def run(*words, cwd=ROOT):
    done = subprocess.run(words, check=False, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of the source distribution of a copy of the checkout's files."""
    pytest.importorskip("build")
    copy, out = (tmp_path_factory.mktemp(name) for name in ("source", "dist"))
    names = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in run(*names).splitlines():
        if (ROOT / name).is_file() and not name.startswith(("docs/", "benchmarks/")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    # The tools of this environment, so that no network is needed.
    build = [sys.executable, "-m", "build", "--no-isolation"]
    run(*build, "--outdir", str(out), cwd=copy)
    pytest.importorskip("twine")
    assert run(
        sys.executable, "-m", "twine", "check", "--strict", *map(str, out.iterdir())
    )
    (wheel,) = out.glob("*.whl")
    return wheel


def test_the_wheel_has_the_files_of_the_package_and_no_others(wheel):
    with zipfile.ZipFile(wheel) as archive:
        found = {n for n in archive.namelist() if ".dist-info/" not in n}
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "kdjax").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert found == package
    assert {f"kdjax/{name}" for name in NEEDED.split()} <= found


def test_the_wheel_works_away_from_the_checkout(wheel, tmp_path):
    fresh, away = tmp_path / "fresh", tmp_path / "away"
    venv.create(fresh, symlinks=True)
    away.mkdir()
    place = {"base": str(fresh), "platbase": str(fresh)}
    site = Path(sysconfig.get_path("purelib", "venv", vars=place))
    python = fresh / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q"]
    run(*pip, "--no-deps", "--no-index", str(wheel), cwd=away)
    # Dependencies of this environment. `.pth` files in there, such as an editable
    # kdjax, are not followed from here.
    (site / "parent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    script = str(ROOT / ".ci" / "outside.py")
    said = run("env", "-u", "PYTHONPATH", str(python), script, cwd=away)
    assert f"kdjax {wheel.name.split('-')[1]}, jax " in said
    # The same as from the checkout.
    scores = pd.read_csv(away / "scores.csv")["score"]
    assert float(said.rsplit("mean score ", 1)[1]) == pytest.approx(
        scores.mean(), abs=1e-4
    )
    detector = kdjax.load_detector(away / "detector")
    (series,) = kdjax.read_table(away / "rows.csv")
    wanted = kdjax.score_table(detector, series, entity="pooled")["score"]
    np.testing.assert_allclose(scores, wanted, rtol=1e-4)
