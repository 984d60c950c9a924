"""What the fuzzers start from: valid bytes of every format, one or more each."""

import gzip
import io
import json
from collections.abc import Callable

import numpy as np
import pandas as pd
from fuzz_artifacts import WAYS, base, example_state
from fuzz_readers import KINDS
from fuzz_targets import FIELDS

from kdjax.config import get_config, to_json
from kdjax.io.files import MANIFEST

TABLES = (
    "a,b\n1,2.5\n3,-4e2\n",
    "time,m,a,y\n1,x,1,0\n2,x,2,1\n1,z,1e3,0\n",
    "t;a;b\n2024-01-01 00:00:00;1,5;2\n2024-01-01 00:01:00;3;,25\n",
    "date\ta\tb\n2024-01-01T00:00:00+02:00\t1.\t2\n2024-01-01T01:00:00+02:00\t\tNaN\n",
    '"a, left",b\n"1.5", "2"\n3,4\n',
    "a b\n1 2\n3  4\n",
    "\ufeffx|y\r\n1|2\r\n3|4\r\n",
    "1,2\n3,4\n",
    "a\n1\n\n2\n",
    "a;b\n1.234;5\n6;7.5\n",
    "a,b\nTrue,1\nFalse,2\n",
    "a,b\n99999999999999999999,1e400\n",
)
LINES = (
    "time,a,b\n1,2,3\n2,,4\n3,x,5\n",
    "a;b;note\n1,5;2;x\n3;NaN;y\n",
    "1\t2\n3\t4e1\n",
    '{"time": 1, "a": 1, "b": 2.5}\n{"time": 2, "a": null, "b": 1e3}\n',
    '{"t": "2024-01-01T00:00:00Z", "a": 1, "b": 2, "note": {"x": [1]}}\n',
    '"time","b","a"\n"2024-01-01 00:00:00","1","2"\n\n"2024-01-01 00:00:01",3,4\n',
    "\ufeffa|b\r\n1|2\r\n",
)


def readers() -> list[bytes]:
    """Files of data behind the bytes that choose format and options."""
    found = []
    for number, text in enumerate(TABLES):
        for kind in (number % 3, 0):
            options = (0, 2, 4 + 8, 16)[number % 4]
            found.append(bytes([kind, options]) + text.encode())
    zipped = gzip.compress(TABLES[0].encode(), mtime=0)
    found.append(bytes([KINDS.index(".csv.gz"), 0]) + zipped)
    for kind in ("<f4", "<f8", ">i2", "|b1"):
        target = io.BytesIO()
        np.save(target, np.arange(6).reshape(2, 3).astype(kind))
        found.append(bytes([KINDS.index(".npy"), 32]) + target.getvalue())
    target = io.BytesIO()
    np.savez(target, train=np.eye(2, dtype=np.float32))
    found.append(bytes([KINDS.index(".npz"), 0]) + target.getvalue())
    found += [bytes([KINDS.index(".parquet"), 32]) + one for one in parquets()]
    spans = b"start,end,entity,reason\n1,2,x,clean\n3,4,,\n"
    return [*found, bytes([KINDS.index("spans"), 0]) + spans]


def parquets() -> list[bytes]:
    """Small Parquet files of several types and encodings."""
    frames = (
        pd.DataFrame({"a": [1.5, 2.5], "b": [1, None], "c": ["1", "2"]}),
        pd.DataFrame({"time": pd.date_range("2024", periods=2), "a": [True, False]}),
        pd.DataFrame({"a": pd.to_timedelta([1, None], unit="s"), "b": [b"1", b"2"]}),
    )
    found = []
    for frame, packed in zip(frames, (None, "snappy", "zstd"), strict=True):
        target = io.BytesIO()
        frame.to_parquet(target, compression=packed)
        found.append(target.getvalue())
    return found


def configs() -> list[bytes]:
    """Overrides, saved settings, broken files and assignments."""
    flags = ("--config.data.path=a.csv", "--config.seed=3", "--config.data.window=50")
    more = (
        "--config.teacher.hidden=(8,4)",
        "--config.train.learning_rate=1e-3",
        "--config.evaluation.point_adjusted=true",
        "--config.baselines=pca,kmeans",
        "--config.threshold.value=2.5",
        "--config.threshold.method=fixed",
        "--workdir=x",
        "--noconfig.evaluation.point_adjusted",
    )
    found = [b"\0" + "\n".join((flags[0], one)).encode() for one in (*flags, *more)]
    found.append(b"\0" + "\n".join(flags + more).encode())
    text = to_json(get_config()).replace('"path": ""', '"path": "a.csv"')
    found.append(b"\1" + text.encode())
    found.append(b"\2def get_config(:\n    return (\n")
    for key, value in FIELDS.items():
        found.append(f"\3data.path='a.csv'\n{key}={value!r}".encode())
    return found


def artifacts() -> list[bytes]:
    """The sound things, and one small change for each way of changing them."""
    found = []
    for way in range(len(WAYS)):
        for which in range(5):
            found.append(bytes([way, which, 40, 0, 0, 1, 65 + which]))
            found.append(bytes([way, which, 0, 0, 0, 0]))
    names = [way.__name__ for way in WAYS]
    whole = {
        "_manifest": (base().folder / MANIFEST).read_bytes(),
        "_resealed_state": json.dumps(example_state(), sort_keys=True).encode(),
        "_plan": b"{}",
    }
    for name, content in whole.items():
        found.append(bytes([names.index(name), 0]) + content)
    records = names.index("_records")
    log = {"phase": "teacher", "epoch": 1, "step": 4, "loss": 0.5, "train_loss": 0.5}
    for which, text in enumerate(
        (json.dumps(log), to_json(get_config()), '{"train/a": "1"}', '{"schema": 1}')
    ):
        found.append(bytes([records, which]) + text.encode() + b"\n")
    return found


def stream() -> list[bytes]:
    """Lines behind the byte of options."""
    return [bytes([n % 8]) + text.encode() for n, text in enumerate(LINES)] + [
        bytes([2]) + text.encode() for text in LINES
    ]


SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "readers": readers,
    "configs": configs,
    "artifacts": artifacts,
    "stream": stream,
}
