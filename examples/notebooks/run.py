"""Runs notebooks without Jupyter and stores their output.

    python examples/notebooks/run.py [--folder=DIR] FILE.ipynb ...

A cell's output is what it prints, the value of its last expression and the figures of
matplotlib that it made. Cells run in a temporary folder that has the checkout's layout.
`--folder` writes the notebooks there, and leaves FILE as it is.
"""

import argparse
import ast
import base64
import contextlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

ROOT = Path(__file__).resolve().parents[2]


def run_cell(code: str, space: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """The outputs of a cell, in the notebook format, from running it in `space`."""
    tree, value = ast.parse(code), None
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    texts = {"stdout": io.StringIO(), "stderr": io.StringIO()}
    with (
        contextlib.redirect_stdout(texts["stdout"]),
        contextlib.redirect_stderr(texts["stderr"]),
    ):
        exec(compile(tree, f"<cell {count}>", "exec"), space)  # noqa: S102 - its code
        if last is not None:
            expression = ast.Expression(last.value)
            value = eval(compile(expression, f"<cell {count}>", "eval"), space)
    outputs: list[dict[str, Any]] = [
        {"name": name, "output_type": "stream", "text": lines(text.getvalue())}
        for name, text in texts.items()
        if text.getvalue()
    ]
    if value is not None and not code.rstrip().endswith(";"):
        data = {"text/plain": lines(repr(value))}
        if hasattr(value, "_repr_html_"):
            data["text/html"] = lines(value._repr_html_())
        outputs.append({"execution_count": count, "output_type": "execute_result"})
        outputs[-1] |= {"data": data, "metadata": {}}
    for number in pyplot.get_fignums():
        outputs.append(picture(pyplot.figure(number)))
    pyplot.close("all")
    return outputs


def picture(figure: Any) -> dict[str, Any]:
    """The output of a figure: a PNG, and the title of its first axes as text."""
    file = io.BytesIO()
    figure.savefig(file, bbox_inches="tight", metadata={"Software": None})
    data = {
        "image/png": base64.b64encode(file.getvalue()).decode() + "\n",
        "text/plain": [figure.axes[0].get_title()],
    }
    return {"data": data, "metadata": {}, "output_type": "display_data"}


def lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def run(notebook: dict[str, Any]) -> None:
    """Runs the code of a notebook in order and stores the outputs in it."""
    space: dict[str, Any] = {"__name__": "__main__"}
    codes = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for count, cell in enumerate(codes, start=1):
        cell["outputs"] = run_cell("".join(cell["source"]), space, count)
        cell["execution_count"] = count


def main() -> None:
    """Reads flags, runs each notebook in a folder of its own, and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where to write; else in place")
    parser.add_argument("files", type=Path, nargs="+")
    given = parser.parse_args()
    for path in [path.resolve() for path in given.files]:
        notebook = json.loads(path.read_text("utf-8"))
        target = given.folder.resolve() / path.name if given.folder else path
        with tempfile.TemporaryDirectory() as top, contextlib.chdir(top):
            for name in ("benchmarks", "docs"):
                os.symlink(ROOT / name, name)
            os.makedirs("examples/notebooks")
            os.chdir("examples/notebooks")
            run(notebook)
        text = json.dumps(notebook, indent=1, ensure_ascii=False)
        target.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
