"""Saved detectors: a folder with plain arrays, JSON and a manifest; it contains no code.

detector.json   schema, model, channels, window, entities, thresholds
arrays.npz      the model's parameters, scalers and Gaussians by name
card.json       data, splits, settings, results and limits of the detector
card.md         the same as Markdown
MANIFEST.sha256

The manifest detects corruption; `check_detector` detects parts that don't fit together,
such as arrays of other shapes or a scale of 0.
"""

import functools
import io
import json
import math
import os
import shutil
import tokenize
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from kdjax.data.scaler import Scaler
from kdjax.data.series import Ranges
from kdjax.detection.attribution import METHODS
from kdjax.detection.detector import Detector
from kdjax.detection.gaussian import Gaussian
from kdjax.detection.stream_rules import (
    PLAN_CHECKS,
    as_amount,
    as_count,
    as_flag,
    as_names,
    as_number,
    as_text,
)
from kdjax.detection.thresholds import Threshold
from kdjax.errors import ArtifactError
from kdjax.io.files import (
    MANIFEST,
    check_detector_folder,
    check_replaceable,
    check_schema,
    clear_leftovers,
    kdjax_version,
    marked,
    naming,
    sha256,
    verify_manifest,
    write_manifest,
    write_text,
)
from kdjax.models.autoencoder import Architecture
from kdjax.models.residual import ResidualModel, residual_names

SCHEMA = 2
_NUMBERS = ("window", "stride", "allowed_points", "max_gap", "step")
_RULE = ("min_duration", "cooldown", "clear")
# Fields of `Detector` in detector.json, where `attribution` is called `blame`.
_FIELDS = (
    "channels", *_NUMBERS, "attribution", *_RULE, "entities", "context", "no_data",
)  # fmt: skip
_NAMES = {field: field for field in _FIELDS} | {"attribution": "blame"}
# Fields that older detectors lack; `Detector` has their defaults.
_SINCE_2 = ("step", "blame", *_RULE, "context", "no_data")

# Errors that JSON, numpy and wrong contents raise.
_UNREADABLE = (
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,  # an array header that claims more values than fit into memory
    OSError,
    RuntimeError,  # JSON nested too deeply, or an encrypted archive
    SyntaxError,
    TypeError,
    ValueError,
    tokenize.TokenError,  # from an array header, as SyntaxError
    zipfile.BadZipFile,
)


def save_detector(folder: str | os.PathLike[str], detector: Detector) -> None:
    """Writes a detector to `folder`; an interruption leaves the old or the new one.

    Raises:
        ArtifactError: the folder contains something else.

    >>> save_detector("detectors/plant", detector)  # doctest: +SKIP
    """
    folder = Path(folder)
    clear_leftovers(folder.parent, (folder.name,))
    check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with marked() as mark, naming(folder):
        fresh = folder.with_name(f".{folder.name}.{mark}.new")
        try:
            fresh.mkdir()
            write_text(fresh / "detector.json", _to_json(_description(detector)))
            write_text(fresh / "card.json", _to_json(detector.card))
            write_text(fresh / "card.md", card_markdown(detector.card))
            np.savez(fresh / "arrays.npz", allow_pickle=False, **_arrays(detector))
            write_manifest(fresh)
            _replace(folder, fresh, folder.with_name(f".{folder.name}.{mark}.old"))
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def _replace(folder: Path, fresh: Path, old: Path) -> None:
    """Renames `fresh` to `folder`; `load_detector` repairs a kill between two renames."""
    if not folder.exists():
        fresh.rename(folder)
        return
    folder.rename(old)
    try:
        fresh.rename(folder)
    finally:
        if not folder.exists():
            old.rename(folder)
    shutil.rmtree(old)


def load_detector(folder: str | os.PathLike[str]) -> Detector:
    """Reads a detector and verifies its manifest.

    Raises:
        ArtifactError: the folder is missing, damaged, or of a newer schema.

    >>> detector = load_detector("runs/plant/detectors/classifier")  # doctest: +SKIP
    >>> detector.window, detector.channels  # doctest: +SKIP
    (100, ('load', 'heat', 'flow'))
    """
    folder = Path(folder)
    check_detector_folder(folder)
    verify_manifest(folder)
    try:
        description = json.loads((folder / "detector.json").read_text("utf-8"))
        card = json.loads((folder / "card.json").read_text("utf-8"))
        version = description.get("kdjax_version")
        check_schema(str(folder), description["schema"], known=SCHEMA, version=version)
        found = _detector(description, _read_arrays(folder / "arrays.npz"), card)
        check_detector(found)
        return found
    except _UNREADABLE as error:
        raise ArtifactError(
            f"{folder} does not hold a kdjax detector ({error!r}). Give a folder that "
            "kdjax wrote, or train it again."
        ) from error


def kept_detector(folder: str | os.PathLike[str]) -> Detector:
    """`load_detector`, once a process for each content of the manifest."""
    path = Path(folder).absolute()
    manifest = path / MANIFEST
    # Without one `load_detector` says what is wrong.
    return _kept(path, sha256(manifest) if manifest.is_file() else "")


@functools.lru_cache(maxsize=64)
def _kept(path: Path, digest: str) -> Detector:
    return load_detector(path)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file; an array may not exceed the size of the file."""
    arrays, held = {}, 0
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{member.filename} is compressed")
            data = archive.read(member)
            held += len(data)
            if held > path.stat().st_size:
                raise ValueError(f"{member.filename} overlaps others")
            content = io.BytesIO(data)
            version = np.lib.format.read_magic(content)
            if version != (1, 0):
                raise ValueError(f"{member.filename} has format {version}")
            shape, _, dtype = np.lib.format.read_array_header_1_0(content)
            if content.tell() + math.prod(shape) * dtype.itemsize != len(data):
                raise ValueError(f"{member.filename} claims {dtype} of shape {shape}")
            content.seek(0)
            name = member.filename.removesuffix(".npy")
            arrays[name] = np.load(content, allow_pickle=False)
    return arrays


def card_markdown(card: Mapping[str, Any]) -> str:
    """A card as Markdown: a heading per field, nested lists below."""
    lines = [f"# {card.get('title', 'Detector')}", ""]
    for key, value in card.items():
        if key != "title":
            lines += [f"## {key.replace('_', ' ').capitalize()}", ""]
            lines += [*_markdown(value), ""]
    return "\n".join(lines)


def _markdown(value: Any, indent: str = "") -> list[str]:
    if isinstance(value, Mapping):
        lines = []
        for key, item in value.items():
            if isinstance(item, (Mapping, list)) and item:
                lines += [f"{indent}- {key}:", *_markdown(item, indent + "  ")]
            else:
                lines.append(f"{indent}- {key}: {item}")
        return lines
    if not isinstance(value, list):
        return [f"{indent}{value}"]
    return [
        f"{indent}- {', '.join(f'{key} {part}' for key, part in item.items())}"
        if isinstance(item, Mapping)
        else f"{indent}- {item}"
        for item in value
    ]


def _to_json(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def _description(detector: Detector) -> dict[str, Any]:
    architecture = detector.model.architecture
    return {
        "schema": SCHEMA,
        "kdjax_version": kdjax_version(),
        "kind": detector.model.kind,
        "architecture": architecture and architecture._asdict(),
        **{name: getattr(detector, field) for field, name in _NAMES.items()},
        "thresholds": [
            # In the form of version 0.1.0, if it could have written them.
            {k: v for k, v in tau._asdict().items() if k != "spacing" or v}
            for tau in detector.thresholds
        ],
    }


def _arrays(detector: Detector) -> dict[str, np.ndarray]:
    tree: dict[str, Any] = {
        "calibration": {str(i): own for i, own in enumerate(detector.calibration)}
    }
    if detector.ranges is not None:
        tree["range"] = detector.ranges._asdict()
    for name in ("reference", "constant", "unchanged"):
        if (values := getattr(detector, name)) is not None:
            tree[name] = values
    tree["scaler"] = detector.scalers._asdict()
    tree["normal"] = detector.gaussians._asdict()
    tree["params"] = detector.model.params
    return flatten_dict(tree, sep="/")  # type: ignore[no-untyped-call]


def _detector(
    description: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    card: dict[str, Any],
) -> Detector:
    architecture = description["architecture"]
    if architecture is not None:
        hidden = tuple(architecture["hidden"])
        architecture = Architecture(**{**architecture, "hidden": hidden})
    tree = unflatten_dict(arrays, sep="/")  # type: ignore[no-untyped-call]
    fields = {
        field: description[name]
        for field, name in _NAMES.items()
        if name in description or name not in _SINCE_2
    }
    fields |= {name: tuple(fields[name]) for name in ("channels", "entities")}
    context = tuple(map(fields["channels"].index, fields.pop("context", ())))
    params = tree.get("params", {})
    ranges, scores = tree.get("range"), tree.get("calibration", {})
    return Detector(
        **fields,
        model=ResidualModel(description["kind"], params, architecture, context),
        scalers=Scaler(arrays["scaler/offset"], arrays["scaler/scale"]),
        gaussians=Gaussian(arrays["normal/mean"], arrays["normal/whiten"]),
        thresholds=tuple(Threshold(**t) for t in description["thresholds"]),
        card=card,
        ranges=ranges and Ranges(ranges["low"], ranges["high"]),
        calibration=tuple(scores[str(place)] for place in range(len(scores))),
        reference=arrays.get("reference"),
        constant=arrays.get("constant"),
        unchanged=arrays.get("unchanged"),
    )


def check_detector(detector: Detector) -> None:
    """Checks that the parts of a detector are valid and fit together.

    Raises:
        LookupError, TypeError, ValueError: names the faulty part.
    """
    as_names(list(detector.channels))
    for name in (*_NUMBERS, *_RULE):
        PLAN_CHECKS[name](getattr(detector, name))
    for entity in detector.entities:
        as_text(entity)
    if detector.allowed_points >= detector.window:
        raise ValueError("allowed_points is not below window")
    if detector.attribution not in METHODS:
        raise ValueError(f"{detector.attribution!r} is not an attribution method")
    if len(detector.thresholds) != len(detector.entities) + 1:
        raise ValueError("the number of thresholds is not that of the entities")
    for threshold in detector.thresholds:
        as_text(threshold.method)
        as_number(threshold.tau)
        as_amount(threshold.rate)
        as_count(0)(threshold.spacing)
    if not isinstance(detector.card, dict):
        raise TypeError("the card is not a JSON object")
    places, width = len(detector.entities) + 1, len(detector.channels)
    scored = np.delete(detector.channels, detector.model.context).tolist()
    errors = len(residual_names(as_text(detector.model.kind), scored))
    offset, scale = detector.scalers
    mean, whiten = detector.gaussians
    for values, shape, name in (
        (offset, (places, width), "scaler/offset"),
        (scale, (places, width), "scaler/scale"),
        (mean, (places, errors), "normal/mean"),
        (whiten, (places, errors, errors), "normal/whiten"),
    ):
        _check_floats(values, shape, name)
        if not np.isfinite(values).all():
            raise ValueError(f"{name} holds a value that is not finite")
    if not (scale > 0).all():
        raise ValueError("scaler/scale is not above 0 throughout")
    # Channels without a value have no range, and scores may be infinite.
    for values in detector.ranges or ():
        _check_floats(values, (places, width), "range")
    if detector.constant is not None:
        _check_floats(detector.constant, (places, width), "constant")
    if (runs := detector.unchanged) is not None:
        whole = runs.dtype == np.int64 and runs.shape == (places, width + 1)
        if not whole or (runs < 0).any():
            raise ValueError(f"unchanged is {runs.dtype} of shape {runs.shape}")
    as_flag(detector.no_data)
    if detector.reference is not None:
        _check_floats(detector.reference, (len(detector.reference), width), "reference")
    if detector.calibration and len(detector.calibration) != places:
        raise ValueError("the number of calibration arrays is not that of the entities")


def _check_floats(values: np.ndarray, shape: tuple[int, ...], name: str) -> None:
    if values.dtype not in (np.float32, np.float64) or values.shape != shape:
        raise ValueError(
            f"{name} is {values.dtype} of shape {values.shape}, expected floats of shape "
            f"{shape}"
        )
