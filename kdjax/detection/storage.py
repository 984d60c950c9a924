"""Saved detectors: a folder with plain arrays, JSON and a manifest; no code in it.

detector.json   schema, model, channels, window, entities, thresholds
arrays.npz      the model's parameters, scalers and Gaussians by name
card.json       where the detector comes from and what it was never tested on
card.md         the same to read
MANIFEST.sha256

Whether the parts of a detector that was read fit together.

A manifest tells damage. This tells what a hand, or a fault of whoever wrote it, has put
together: shapes that differ, a scale of 0, a window of text.
"""

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

from kdjax.data.scaler import Scaler
from kdjax.data.series import Ranges
from kdjax.detection.attribution import METHODS
from kdjax.detection.detector import Detector
from kdjax.detection.gaussian import Gaussian
from kdjax.detection.stream_rules import (
    amount,
    names,
    number,
    whole,
    word,
)
from kdjax.detection.thresholds import Threshold
from kdjax.errors import ArtifactError
from kdjax.io.files import (
    MANIFEST,
    check_folder,
    check_schema,
    clear_leftovers,
    kdjax_version,
    marked,
    naming,
    verify_manifest,
    write_manifest,
    write_text,
)
from kdjax.models.autoencoder import Architecture
from kdjax.models.residual import ResidualModel, residual_names

SCHEMA = 2
# What schema 1 lacks, for which the defaults of `Detector` stand:
# fields of the file by those of `Detector`.
_SINCE_2 = {
    "step": "step",
    "blame": "attribution",
    "min_duration": "min_duration",
    "cooldown": "cooldown",
}

# What JSON, numpy and a description of another shape raise. A header that claims more
# values than memory holds is as unreadable as one cut short.
_UNREADABLE = (
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,  # JSON nested too deeply, or an archive that is encrypted
    SyntaxError,
    TypeError,
    ValueError,
    tokenize.TokenError,  # from a header, as SyntaxError
    zipfile.BadZipFile,
)


def save_detector(folder: str | os.PathLike[str], detector: Detector) -> None:
    """Writes a detector to `folder`, which holds the old one or the new one whole.

    Raises:
        ArtifactError: the folder holds something else, which is left alone.
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
            _put(fresh, folder, folder.with_name(f".{folder.name}.{mark}.old"))
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def _put(fresh: Path, folder: Path, old: Path) -> None:
    """Gives a folder its name; a kill between two names is mended by `load_detector`."""
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
    """Reads a detector after its manifest has verified.

    Raises:
        ArtifactError: the folder is missing, damaged, or of a newer schema.
    """
    folder = Path(folder)
    if not folder.is_dir():
        clear_leftovers(folder.parent, (folder.name,))
    if not folder.is_dir():
        raise ArtifactError(
            f"{folder} is no folder: give the detector's folder, such as "
            "WORKDIR/detectors/student."
        )
    nested = sorted(path.parent for path in folder.glob("*/detector.json"))
    if nested and not (folder / "detector.json").exists():
        raise ArtifactError(
            f"{folder} has no {MANIFEST} but holds detectors ({len(nested)}): give one of "
            f"them, such as {nested[0]}."
        )
    verify_manifest(folder)
    try:
        description = json.loads((folder / "detector.json").read_text("utf-8"))
        card = json.loads((folder / "card.json").read_text("utf-8"))
        check_schema(
            str(folder),
            description["schema"],
            known=SCHEMA,
            version=description.get("kdjax_version"),
        )
        found = _detector(description, _read_arrays(folder / "arrays.npz"), card)
        check_detector(found)
        return found
    except _UNREADABLE as error:
        raise ArtifactError(
            f"{folder} does not hold a kdjax detector ({error!r}). Give a folder that "
            "kdjax wrote, or train it again."
        ) from error


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file, none of which may claim more than the file holds."""
    arrays, held = {}, 0
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{member.filename} is compressed")
            data = archive.read(member)
            held += len(data)
            if held > path.stat().st_size:
                raise ValueError(f"{member.filename} lies where others do")
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


def check_replaceable(folder: Path) -> None:
    """Refuses to put a detector in the place of anything but an older one."""
    check_folder(folder.parent)
    if folder.is_dir():
        if not any(folder.iterdir()) or (folder / MANIFEST).exists():
            return
    elif not folder.exists():
        return
    raise ArtifactError(
        f"{folder} exists and holds no kdjax detector: give a new folder, or remove it."
    )


def card_markdown(card: Mapping[str, Any]) -> str:
    """A card as Markdown: a heading per field, lists for what lies below."""
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
    if isinstance(value, list):
        return [f"{indent}- {_inline(item)}" for item in value]
    return [f"{indent}{value}"]


def _inline(item: Any) -> str:
    if isinstance(item, Mapping):
        return ", ".join(f"{key} {value}" for key, value in item.items())
    return str(item)


def _to_json(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def _description(detector: Detector) -> dict[str, Any]:
    architecture = detector.model.architecture
    return {
        "schema": SCHEMA,
        "kdjax_version": kdjax_version(),
        "kind": detector.model.kind,
        "architecture": architecture and architecture._asdict(),
        "channels": detector.channels,
        "window": detector.window,
        "stride": detector.stride,
        "allowed_points": detector.allowed_points,
        "max_gap": detector.max_gap,
        "step": detector.step,
        "blame": detector.attribution,
        "min_duration": detector.min_duration,
        "cooldown": detector.cooldown,
        "entities": detector.entities,
        "thresholds": [threshold._asdict() for threshold in detector.thresholds],
    }


def _arrays(detector: Detector) -> dict[str, np.ndarray]:
    optional = {
        f"calibration/{place}": scores
        for place, scores in enumerate(detector.calibration)
    }
    if detector.ranges is not None:
        optional["range/low"], optional["range/high"] = detector.ranges
    if detector.reference is not None:
        optional["reference"] = detector.reference
    return {
        **optional,
        "scaler/offset": detector.scalers.offset,
        "scaler/scale": detector.scalers.scale,
        "normal/mean": detector.gaussians.mean,
        "normal/whiten": detector.gaussians.whiten,
        **_flatten(detector.model.params, "params/"),
    }


def _flatten(tree: Mapping[str, Any], prefix: str) -> dict[str, np.ndarray]:
    flat: dict[str, np.ndarray] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}/")
        else:
            flat[prefix + key] = np.asarray(value)
    return flat


def _unflatten(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in arrays.items():
        if name.startswith(prefix):
            *path, leaf = name.removeprefix(prefix).split("/")
            node = tree
            for key in path:
                node = node.setdefault(key, {})
            node[leaf] = value
    return tree


def _detector(
    description: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    card: dict[str, Any],
) -> Detector:
    architecture = description["architecture"]
    if architecture is not None:
        hidden = tuple(architecture["hidden"])
        architecture = Architecture(**{**architecture, "hidden": hidden})
    return Detector(
        model=ResidualModel(
            description["kind"], _unflatten(arrays, "params/"), architecture
        ),
        channels=tuple(description["channels"]),
        window=description["window"],
        stride=description["stride"],
        allowed_points=description["allowed_points"],
        max_gap=description["max_gap"],
        entities=tuple(description["entities"]),
        scalers=Scaler(arrays["scaler/offset"], arrays["scaler/scale"]),
        gaussians=Gaussian(arrays["normal/mean"], arrays["normal/whiten"]),
        thresholds=tuple(Threshold(**t) for t in description["thresholds"]),
        card=card,
        ranges=_ranges(arrays),
        calibration=_calibration(arrays),
        reference=arrays.get("reference"),
        **{
            field: description[name]
            for name, field in _SINCE_2.items()
            if name in description
        },
    )


def _ranges(arrays: Mapping[str, np.ndarray]) -> Ranges | None:
    if "range/low" not in arrays:
        return None
    return Ranges(arrays["range/low"], arrays["range/high"])


def _calibration(arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    count = sum(name.startswith("calibration/") for name in arrays)
    return tuple(arrays[f"calibration/{place}"] for place in range(count))


_COUNTS = {
    "window": 1,
    "stride": 1,
    "allowed_points": 0,
    "min_duration": 1,
    "cooldown": 0,
}


def check_detector(detector: Detector) -> None:
    """Refuses parts that mean nothing, alone or together.

    Raises:
        LookupError, TypeError, ValueError: what is wrong with which part.
    """
    for name, least in _COUNTS.items():
        whole(least)(getattr(detector, name))
    for value in (detector.max_gap, detector.step):
        amount(value)
    names(list(detector.channels))
    for entity in detector.entities:
        word(entity)
    if detector.allowed_points >= detector.window:
        raise ValueError("allowed_points is not below window")
    if detector.attribution not in METHODS:
        raise ValueError(f"{detector.attribution!r} divides no score")
    if len(detector.thresholds) != len(detector.entities) + 1:
        raise ValueError("there is no threshold for each entity")
    for threshold in detector.thresholds:
        word(threshold.method)
        number(threshold.tau)
        amount(threshold.rate)
    if not isinstance(detector.card, dict):
        raise TypeError("the card is no JSON object")
    _check_arrays(detector)


def _check_arrays(detector: Detector) -> None:
    """Scalers and Gaussians: one an entity, of as many channels and errors."""
    places, width = len(detector.entities) + 1, len(detector.channels)
    errors = len(residual_names(word(detector.model.kind), detector.channels))
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
    # Channels never seen have no range, and scores may be infinite.
    for values in detector.ranges or ():
        _check_floats(values, (places, width), "range")
    if detector.reference is not None:
        _check_floats(detector.reference, (len(detector.reference), width), "reference")
    if detector.calibration and len(detector.calibration) != places:
        raise ValueError("there are no calibration scores for each entity")


def _check_floats(values: np.ndarray, shape: tuple[int, ...], name: str) -> None:
    if values.dtype.kind != "f" or values.shape != shape:
        raise ValueError(
            f"{name} is {values.dtype} of shape {values.shape}, expected floats of shape "
            f"{shape}"
        )
