"""The files that a program wrote, in a form that two runs can compare.

For `kills.py` and the tests: arrays, logs, tables and files bit for bit, but for what
is measured in seconds and the commit.
"""

import hashlib
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

# Measured anew each time, in JSON and in the text of a page.
TIMED = {"environment", "windows_per_second"}
SECONDS = re.compile(rb"&quot;(data|training|judgement|evaluation)&quot;: [0-9.]+")
# Of the code, which may be worked on meanwhile.
COMMIT = re.compile(rb"\b[0-9a-f]{40}(-dirty)?\b")


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Names of what two runs have not alike."""
    return sorted(k for k in one.keys() | other.keys() if one.get(k) != other.get(k))


def leftovers(folder: Path) -> list[str]:
    """Hidden and unfinished files that a finished program should not leave."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if re.search(r"^\.|\.tmp|tmp-|^tmp|\.new$|\.old$", path.name)
        and path.name not in (".lock", ".results.sha256")
    )


def contents(folder: Path) -> dict[str, str]:
    """A digest of each file, of what is not measured in seconds; arrays by their bytes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and "checkpoints/" not in name and path.name[0] != ".":
            found[name] = digest(path, folder)
        elif path.is_dir() and path.parent.parent.name == "checkpoints":
            steps = [int(p.name) for p in path.parent.iterdir() if p.name.isdecimal()]
            if path.name == str(max(steps)):
                found[name] = restored(path)
    return found


def digest(path: Path, folder: Path) -> str:
    """Of a file."""
    content = path.read_bytes()
    if path.suffix == ".npz":
        with np.load(path) as file:
            return json.dumps({k: hashed(v.tobytes()) for k, v in file.items()})
    if path.suffix in (".json", ".jsonl"):
        lines = content.splitlines() if path.suffix == ".jsonl" else [content]
        content = json.dumps([timeless(json.loads(line)) for line in lines]).encode()
    elif path.name == "state":  # The rest of it is a place and its digest.
        content = json.dumps(json.loads(content)["state"]["stream"]).encode()
    content = content.replace(str(folder).encode(), b"FOLDER")
    return hashed(COMMIT.sub(b"", SECONDS.sub(b"", content)))


def timeless(value: Any) -> Any:
    """JSON without what is measured in seconds."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in TIMED}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def restored(step: Path) -> str:
    """The arrays of a checkpoint."""
    import jax
    import orbax.checkpoint as ocp

    with warnings.catch_warnings():  # that the devices may be others
        warnings.simplefilter("ignore")
        arrays = ocp.PyTreeCheckpointer().restore(step / "arrays")
    return hashed(
        b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(arrays))
    )


def hashed(content: bytes) -> str:
    """SHA-256."""
    return hashlib.sha256(content).hexdigest()
