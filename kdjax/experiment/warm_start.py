"""Training that starts from a saved detector instead of from random parameters.

Normal behaviour moves; a detector made a year ago knows most of what it needs. Its
networks go on learning on new rows of the same channels, everything else (scaler,
Gaussian, threshold) is made anew, and the old detector stands in the table beside the new
one, judged on the same rows as it was.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdjax.data.prepared import Prepared
from kdjax.data.scaler import Scaler
from kdjax.detection.calibration import Calibration
from kdjax.detection.detector import (
    POOLED,
    Detector,
    gaussian_of,
    scaler_of,
)
from kdjax.detection.gaussian import Gaussian
from kdjax.detection.storage import load_detector
from kdjax.errors import ArtifactError, ConfigError, DataError
from kdjax.experiment.jobs import architecture, has_network
from kdjax.io.files import MANIFEST, sha256
from kdjax.models.model import Params
from kdjax.models.residual import NETWORK, component

NETWORKS = ("student", "teacher")
PREVIOUS = "previous"


class WarmStart(NamedTuple):
    """What a run starts from.

    Attributes:
        params: first parameters of `teacher`, `student` or both.
        detector: the one to compare with.
        card: what new cards say of it, as JSON.
    """

    params: dict[str, Params]
    detector: Detector
    card: dict[str, Any]


def load_warm_start(
    folder: str, channels: tuple[str, ...], settings: Mapping[str, Any]
) -> WarmStart:
    """The detector in `folder`, and what stands beside it under the other's name.

    Args:
        folder: of a saved teacher or student, or one that holds both.
        channels: of the new data; others than the detector's are refused, their order
            doesn't matter.
        settings: of the run, whose networks must have the detector's shapes.

    Raises:
        ArtifactError: there is no network to start from.
        ConfigError: its shape is another than the settings'.
        DataError: its channels are others.
    """
    paths = _folders(Path(folder))
    found = {name: load_detector(path) for name, path in paths.items()}
    old = next(iter(found.values()))
    if set(old.channels) != set(channels):
        raise DataError(
            f"{folder} knows other channels; missing in the new data: "
            f"{_listed(set(old.channels) - set(channels))}; new: "
            f"{_listed(set(channels) - set(old.channels))}. Rename or remove columns, or "
            "train without init_from."
        )
    # The teacher first, as in settings and tables.
    for network, detector in sorted(found.items(), reverse=True):
        if not has_network(settings, network):
            continue
        wanted = architecture(settings, network, width=len(channels))
        if detector.model.architecture is None:
            raise ConfigError(
                f"{folder}: the {network} has no network to start from: set "
                f"{network}.components as they were."
            )
        if detector.model.architecture != wanted:
            raise ConfigError(
                f"{folder}: the {network} has the shape {detector.model.architecture}, "
                f"the settings say {wanted}: set {network}.hidden and model as they were."
            )
    now = (settings["data"]["window"], settings["detection"]["count"])
    if now != (old.window, old.allowed_points):
        raise ConfigError(
            f"{folder} judges windows of {old.window} rows and allows "
            f"{old.allowed_points} above τ, so that its threshold means nothing for "
            f"others: set data.window={old.window} and "
            f"detection.count={old.allowed_points}."
        )
    return WarmStart(
        params={
            network: component(detector.model, NETWORK).params
            for network, detector in found.items()
            if has_network(settings, network)
        },
        detector=old,
        card={
            "title": old.card.get("title", "a detector"),
            "networks": sorted(found),
            "sha256": {key: sha256(path / MANIFEST) for key, path in paths.items()},
            "trained_on": old.card.get("data", {}),
            "descends_from": old.card.get("descends_from"),
        },
    )


def previous_calibration(detector: Detector, prepared: Prepared) -> Calibration:
    """The old detector's scalers, Gaussians and thresholds for the entities at hand.

    Entities that it doesn't know get its pooled ones.
    """
    names = [entity.name for entity in prepared.entities]
    known = {name: place for place, name in enumerate(detector.entities)}
    pooled = len(detector.entities)
    places = [*(known.get(name, pooled) for name in names), pooled]
    scalers = [scaler_of(detector, place) for place in places]
    gaussians = [gaussian_of(detector, place) for place in places]
    strangers = [name for name in names if name not in known]
    note = (
        f"{PREVIOUS}: the old detector doesn't know {', '.join(strangers)}, so its "
        f"{POOLED} threshold judges"
    )
    nothing = tuple(np.empty(0) for _ in places)
    return Calibration(
        scalers=Scaler(*map(np.stack, zip(*scalers, strict=True))),
        gaussians=Gaussian(*map(np.stack, zip(*gaussians, strict=True))),
        thresholds=tuple(detector.thresholds[place] for place in places),
        scores=nothing[:-1],
        starts=tuple(scores.astype(np.int64) for scores in nothing[:-1]),
        threshold_scores=nothing,
        notes=(note,) if strangers else (),
        floored={},
    )


def _folders(folder: Path) -> dict[str, Path]:
    """Folders of `teacher` and `student`: the one given, or those inside or beside it.

    First the one that the new detector is compared with.
    """
    if (folder / MANIFEST).exists():
        name = _network_name(folder, load_detector(folder))
        beside = {
            other: folder.parent / other
            for other in NETWORKS
            if other != name and (folder.parent / other / MANIFEST).exists()
        }
        # Beside a detector that was renamed or copied lies whatever it may be.
        return {name: folder} | (beside if folder.name == name else {})
    inside = folder / "detectors" if (folder / "detectors").is_dir() else folder
    found = {name: inside / name for name in NETWORKS if (inside / name).is_dir()}
    if not found:
        raise ArtifactError(
            f"{folder} holds no detector to start from: give a saved detector, such as "
            "WORKDIR/detectors/student."
        )
    return found


def _network_name(folder: Path, detector: Detector) -> str:
    name = detector.card.get("model", {}).get("name")
    if detector.model.architecture is None or name not in NETWORKS:
        raise ArtifactError(
            f"{folder} is the detector {json.dumps(name)}, which has no network to start "
            "from: give a teacher or a student."
        )
    return str(name)


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"
