"""Metadata and digest of exported files.

A file holds its own SHA-256 digest, taken with 64 zeros in the digest's place. It is
verified before anything else in the file is read. It detects corruption, not tampering.
"""

import hashlib
import json
import os
from pathlib import Path

from kdjax.detection.stream_rules import Plan, plan_from_json, plan_to_json
from kdjax.errors import ArtifactError
from kdjax.io.files import check_schema, kdjax_version

SCHEMA = 1
# What protobuf, ONNX's encoding, can hold.
MAX_BYTES = 2**31 - 1

_BLANK = b"0" * 64
_AGAIN = "Copy it again, or export the detector again (kdjax export)."


def metadata_of(plan: Plan) -> dict[str, str]:
    """The metadata of an exported detector."""
    return {
        "channels": json.dumps(plan.channels),
        "window": str(plan.window),
        "threshold": repr(plan.tau),
        "threshold_method": plan.threshold_method,
        "entity": plan.entity,
        "schema": str(SCHEMA),
        "kdjax_version": kdjax_version(),
        "plan": plan_to_json(plan),
    }


def read_plan(metadata: dict[str, str], name: str) -> Plan:
    """The plan in a verified file's metadata.

    Raises:
        ArtifactError: it is of a newer schema, or not what kdjax writes.
    """
    try:
        schema, text = int(metadata["schema"]), metadata["plan"]
    except (LookupError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{name} has no plan of kdjax in its metadata ({error!r}). {_AGAIN}"
        ) from error
    check_schema(name, schema, known=SCHEMA, version=metadata.get("kdjax_version"))
    return plan_from_json(text)


def sealed(data: bytes, before: bytes) -> bytes:
    """`data` with its digest written over the 64 zeros that follow `before`."""
    place = data.index(before + _BLANK) + len(before)
    digest = hashlib.sha256(data).hexdigest().encode()
    return data[:place] + digest + data[place + len(digest) :]


def read_sealed(
    source: str | os.PathLike[str] | bytes, before: bytes, *, kind: str
) -> bytes:
    """The bytes of a sealed file, verified.

    Args:
        source: a path, or the file's bytes.
        before: the bytes right before the digest, once in a file.
        kind: of file, for messages.

    Raises:
        ArtifactError: the file is missing, too large, damaged, or of another origin.
    """
    name = source_name(source)
    data = source if isinstance(source, bytes) else _read(Path(source))
    if data.count(before) != 1:
        raise ArtifactError(
            f"{name} is no {kind} of kdjax, or it is damaged: its digest is missing. "
            f"{_AGAIN}"
        )
    place = data.index(before) + len(before)
    end = place + len(_BLANK)
    found = hashlib.sha256(data[:place] + _BLANK + data[end:]).hexdigest()
    if found.encode() != data[place:end]:
        raise ArtifactError(
            f"{name} is damaged: its SHA-256 digest differs from the one inside. "
            f"{_AGAIN}"
        )
    return data


def source_name(source: str | os.PathLike[str] | bytes) -> str:
    """The name of a file in messages."""
    return "the file" if isinstance(source, bytes) else os.fspath(source)


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ArtifactError(
                f"{path} has {size:,} bytes, an exported detector has {MAX_BYTES:,} at "
                "most: give a file that kdjax exported."
            )
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{path} can't be read ({error.strerror}): give a file that kdjax exported."
        ) from error
