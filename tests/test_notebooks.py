"""The example notebooks: their stored output, and that running them gives it again."""

import ast
import base64
import copy
import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import kdjax

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples" / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
NAMES = ["distil_your_own_detector", "functional", "own_data", "tsbad"]
NUMBER = re.compile(r"(?<![\w.])[-−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
MACHINE = re.compile(r"/(?:home|root|tmp|usr|opt|Users|work|private)/|\b[A-Z]:\\")

books = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def read(path):
    return json.loads(path.read_text("utf-8"))


def codes(book):
    return [cell for cell in book["cells"] if cell["cell_type"] == "code"]


def text_of(cell):
    """What a cell printed and returned."""
    texts = [
        output.get("text") or output["data"]["text/plain"] for output in cell["outputs"]
    ]
    return "\n".join("".join(text) for text in texts)


def pictures(cell):
    """The PNG files of a cell."""
    found = [output.get("data", {}).get("image/png") for output in cell["outputs"]]
    return [base64.b64decode(picture) for picture in found if picture]


def size(png):
    """Width and height of a PNG file."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">2I", png[16:24])


def numbers(text):
    return [float(n.replace(",", "").replace("−", "-")) for n in NUMBER.findall(text)]


def differences(stored, found):
    """Cells whose new text or pictures are not the stored ones; numbers may move a little."""
    wrong = []
    for old, new in zip(codes(stored), codes(found), strict=True):
        texts = [text_of(old), text_of(new)]
        words = [NUMBER.sub("#", text).split() for text in texts]
        values = [numbers(text) for text in texts]
        sizes = [[size(picture) for picture in pictures(cell)] for cell in (old, new)]
        same = words[0] == words[1]
        for pair, rtol, atol in ((values, 0.15, 0.02), (sizes, 0.1, 0.0)):
            first, second = np.array(pair[0]), np.array(pair[1])
            same = same and first.shape == second.shape
            same = same and np.allclose(first, second, rtol=rtol, atol=atol)
        if not same:
            wrong.append(f"{old['id']}: {texts[0]!r} became {texts[1]!r}")
    return wrong


def run(path, folder):
    """The notebook after a run in a process of its own."""
    command = [sys.executable, FOLDER / "run.py", f"--folder={folder}", path]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return read(folder / path.name)


def test_the_notebooks_are_these():
    assert [path.stem for path in PATHS] == NAMES


@books
def test_output_is_stored_without_errors_warnings_and_paths(path):
    book = read(path)
    assert book["nbformat"] == 4 and book["metadata"]["kernelspec"]["name"] == "python3"
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    assert "".join(book["cells"][0]["source"]).startswith("# ")
    cells = codes(book)
    counts = [cell["execution_count"] for cell in cells]
    assert counts == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    kinds = {output["output_type"] for output in outputs}
    assert {"stream", "display_data"} <= kinds and "error" not in kinds
    tables = [
        o["data"]["text/html"] for o in outputs if "text/html" in o.get("data", {})
    ]
    assert all('class="dataframe"' in "".join(table) for table in tables)
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    assert not MACHINE.search("\n".join(map(text_of, cells)))
    assert not MACHINE.search(json.dumps([cell["source"] for cell in book["cells"]]))
    assert "Warning" not in json.dumps([text_of(cell) for cell in cells])
    found = [picture for cell in cells for picture in pictures(cell)]
    assert 1 <= len(found) <= 3
    for picture in found:
        assert len(picture) < 150_000 and size(picture)[0] < 1000
    assert path.stat().st_size < 300_000


@books
def test_only_public_names_are_used(path):
    tree = ast.parse("\n".join("".join(c["source"]) for c in codes(read(path))))
    nodes = list(ast.walk(tree))
    used = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "kdjax"
    }
    assert used and used <= {*kdjax.__all__, "metrics"}
    imported = {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
    imported |= {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    assert not {name for name in imported if name.startswith("kdjax.")}


def test_drift_is_seen_and_rounding_is_not():
    book = read(FOLDER / "tsbad.ipynb")
    printing = next(i for i, c in enumerate(codes(book)) if "VUS-PR 0." in text_of(c))
    showing = next(i for i, cell in enumerate(codes(book)) if pictures(cell))

    def changed(**outputs):
        other = copy.deepcopy(book)
        codes(other)[printing]["outputs"][0] |= outputs
        return [line.split(":")[0] for line in differences(book, other)]

    name = codes(book)[printing]["id"]
    text = text_of(codes(book)[printing])
    *_, value = numbers(text)
    before, _, after = text.rpartition(str(value))
    assert changed() == []
    assert changed(text=f"{before}{value + 0.01:.2f}{after}") == []
    assert changed(text=f"{before}{2 * value + 0.1:.2f}{after}") == [name]
    assert changed(text=f"{before}high{after}") == [name]
    assert changed(text=f"{text}1\n") == [name]
    other = copy.deepcopy(book)
    codes(other)[showing]["outputs"].pop()
    assert len(differences(book, other)) == 1


def test_a_cell_that_raises_fails_and_what_runs_is_stored(tmp_path):
    book = read(FOLDER / "tsbad.ipynb")
    code = (
        "import sys\nimport matplotlib.pyplot as plt\nplt.figure().subplots()",
        "plt.gca().set_title('none')\nprint('said')\nprint('seen', file=sys.stderr)\n2",
        "plt.plot([1, 2])\nplt.title('line');\nplt.gcf().set_size_inches(2, 1)",
    )
    empty = {"cell_type": "code", "execution_count": None, "metadata": {}}
    book["cells"] = [
        empty | {"id": f"c{i}", "outputs": [], "source": [text]}
        for i, text in enumerate(code)
    ]
    path = tmp_path / "small.ipynb"
    path.write_text(json.dumps(book), encoding="utf-8")
    (tmp_path / "out").mkdir()
    found = run(path, tmp_path / "out")
    _, second, third = codes(found)
    assert [cell["execution_count"] for cell in codes(found)] == [1, 2, 3]
    assert [one["output_type"] for one in second["outputs"]] == [
        "stream", "stream", "execute_result", "display_data",
    ]  # fmt: skip
    assert text_of(second) == "said\n\nseen\n\n2\nnone"
    assert pictures(third) and text_of(third) == "line"
    assert not codes(read(path))[0]["outputs"]  # --folder leaves the file as it is

    book["cells"][1]["source"] = ["1 / 0"]
    path.write_text(json.dumps(book), encoding="utf-8")
    with pytest.raises(AssertionError, match=r"<cell 2>(.|\n)*ZeroDivisionError"):
        run(path, tmp_path / "out")


@pytest.mark.slow
@books
def test_a_run_gives_the_stored_output(path, tmp_path):
    if path.stem in ("distil_your_own_detector", "own_data"):
        pytest.importorskip("onnxruntime")
    assert differences(read(path), run(path, tmp_path)) == []
