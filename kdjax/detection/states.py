"""Files that a stream goes on from: JSON with its own SHA-256."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdjax.artifacts import write_text
from kdjax.errors import ArtifactError


def save_state(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Writes JSON objects such as a `StreamDetector.state`, whole or not at all."""
    write_text(path, _state_text(state))


def _state_text(state: Mapping[str, Any]) -> str:
    text = json.dumps(state, allow_nan=False, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f'{{"sha256": "{digest}", "state": {text}}}\n'


def load_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `save_state` wrote; ArtifactError if a byte of it has changed."""
    try:
        content = Path(path).read_bytes()
        state: dict[str, Any] = dict(json.loads(content.decode("utf-8"))["state"])
        # All of it is compared, so that no byte is passed over, such as a blank.
        if _state_text(state).encode() != content:
            raise ValueError("its SHA-256 differs")
    except (LookupError, OSError, RecursionError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{path} is no state of a stream ({error}): restore it from a copy, or "
            "remove it to start anew."
        ) from error
    return state
