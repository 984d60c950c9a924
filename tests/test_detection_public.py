"""The names of the room, and what it leaves unimported."""

import subprocess
import sys
from pathlib import Path

import pytest

import kdjax.detection

ONNX = Path(__file__).parent / "data" / "releases" / "0.1.0" / "detector.onnx"
STREAM = """
import sys
from kdjax.scoring.opening import open_stream
stream = open_stream(sys.argv[1], backend="onnxruntime")
for _ in range(2 * stream.plan.window):
    row = stream.update([0.0] * len(stream.plan.channels))
assert row.state != "unknown"
print([name for name in ("jax", "flax", "onnx") if name in sys.modules])
"""


def test_every_name_resolves():
    for name in kdjax.detection.__all__:
        assert getattr(kdjax.detection, name).__doc__
    assert set(dir(kdjax.detection)) == set(kdjax.detection.__all__)
    with pytest.raises(AttributeError, match="kdjax.detection' has no attribute 'no'"):
        kdjax.detection.no  # noqa: B018


def test_a_stream_on_onnxruntime_leaves_jax_alone():
    pytest.importorskip("onnxruntime")
    done = subprocess.run(
        [sys.executable, "-c", STREAM, ONNX], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
