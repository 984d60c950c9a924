"""Training that starts from a saved detector instead of from random parameters.

The networks continue training on new rows of the same channels; scaler, Gaussian and
threshold are fitted again. The previous detector is evaluated beside the new one, unchanged.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdjax.config import Settings
from kdjax.data.prepared import Prepared
from kdjax.data.readers import match_channels
from kdjax.data.scaler import Scaler
from kdjax.data.series import Dataset
from kdjax.detection.calibration import Calibration
from kdjax.detection.detector import POOLED, Detector
from kdjax.detection.gaussian import Gaussian
from kdjax.detection.storage import load_detector
from kdjax.errors import ArtifactError, ConfigError, DataError
from kdjax.evaluation.rows import PREVIOUS, STUDENT, TEACHER
from kdjax.experiment.jobs import architecture, has_network
from kdjax.io.files import MANIFEST, sha256
from kdjax.models.model import Params
from kdjax.models.residual import NETWORK, component

NAMES = (STUDENT, TEACHER)  # the first is what the new detector is compared with


class WarmStart(NamedTuple):
    """The start of a run from a saved detector."""

    params: dict[str, Params]  # of `teacher`, `student` or both
    detector: Detector  # the previous one, to compare with
    card: dict[str, Any]  # the `descends_from` of new cards

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the manifests, by name."""
        return {f"init_from/{name}": d for name, d in self.card["sha256"].items()}


def load_warm_start(
    folder: str, channels: tuple[str, ...], settings: Settings
) -> WarmStart:
    """The detector in `folder`: a saved teacher or student, or a folder with both.

    `channels` of the new data may have another order than the detector's, else DataError;
    the networks of `settings` must have its shapes, else ConfigError. ArtifactError if
    there is no network to start from.
    """
    paths = _folders(Path(folder))
    found = {name: load_detector(path) for name, path in paths.items()}
    old = next(iter(found.values()))
    if set(old.channels) != set(channels):
        raise DataError(
            f"{folder} has other channels; missing in the new data: "
            f"{_listed(old.channels, channels)}; new: "
            f"{_listed(channels, old.channels)}. Rename or remove columns, or "
            "train without init_from."
        )
    # The teacher first, as in settings and tables.
    used = [name for name in sorted(found, reverse=True) if has_network(settings, name)]
    for name in used:
        wanted = architecture(settings, name, width=len(channels))
        shape = found[name].model.architecture
        if shape is None:
            raise ConfigError(
                f"{folder}: the {name} has no network to start from: set "
                f"{name}.components as in its run."
            )
        if shape != wanted:
            raise ConfigError(
                f"{folder}: the {name} has the shape {shape}, but the settings {wanted}: "
                f"set {name}.hidden and model as in its run."
            )
    now = (settings["data"]["window"], settings["detection"]["count"])
    if now != (old.window, old.allowed_points):
        raise ConfigError(
            f"{folder} scores windows of {old.window} rows and allows "
            f"{old.allowed_points} above τ, so its threshold is not valid for others: "
            f"set data.window={old.window} and detection.count={old.allowed_points}."
        )
    return WarmStart(
        params={name: component(found[name].model, NETWORK).params for name in used},
        detector=old,
        card={
            "title": old.card.get("title", "a detector"),
            "networks": sorted(found),
            "sha256": {key: sha256(path / MANIFEST) for key, path in paths.items()},
            "trained_on": old.card.get("data", {}),
            "descends_from": old.card.get("descends_from"),
        },
    )


def reordered(dataset: Dataset, channels: tuple[str, ...]) -> Dataset:
    """The data set with its channels in another order."""
    return dataset._replace(
        train=tuple(match_channels(series, channels) for series in dataset.train),
        test=tuple(match_channels(series, channels) for series in dataset.test),
    )


def previous_calibration(detector: Detector, prepared: Prepared) -> Calibration:
    """The previous detector's scalers, Gaussians and thresholds for these entities.

    Entities that are new to it get its pooled ones.
    """
    names = [entity.name for entity in prepared.entities]
    known = {name: place for place, name in enumerate(detector.entities)}
    pooled = len(detector.entities)
    places = [*(known.get(name, pooled) for name in names), pooled]
    unknown = [name for name in names if name not in known]
    note = (
        f"{PREVIOUS}: entities that are new to it are scored with its {POOLED} threshold: "
        f"{', '.join(unknown)}"
    )
    nothing = tuple(np.empty(0) for _ in places)
    return Calibration(
        scalers=Scaler(*(field[places] for field in detector.scalers)),
        gaussians=Gaussian(*(field[places] for field in detector.gaussians)),
        thresholds=tuple(detector.thresholds[place] for place in places),
        scores=nothing[:-1],
        starts=tuple(scores.astype(np.int64) for scores in nothing[:-1]),
        threshold_scores=nothing,
        notes=(note,) if unknown else (),
        floored={},
        constant=None if detector.constant is None else detector.constant[places],
    )


def _folders(folder: Path) -> dict[str, Path]:
    """Folders of `teacher` and `student`: the one given, or those inside or beside it.

    The first is the one that the new detector is compared with.
    """
    if (folder / MANIFEST).exists():
        detector = load_detector(folder)
        name = detector.card.get("model", {}).get("name")
        if detector.model.architecture is None or name not in NAMES:
            raise ArtifactError(
                f"{folder} is the detector {json.dumps(name)}, which has no network to "
                "start from: give a teacher or a student."
            )
        found = {str(name): folder}
        # A folder that was renamed or copied may have any neighbours.
        if folder.name == name:
            for other in NAMES:
                if (folder.parent / other / MANIFEST).exists():
                    found.setdefault(other, folder.parent / other)
        return found
    inside = folder / "detectors" if (folder / "detectors").is_dir() else folder
    found = {name: inside / name for name in NAMES if (inside / name).is_dir()}
    if not found:
        raise ArtifactError(
            f"{folder} holds no detector to start from: give a saved detector, such as "
            "WORKDIR/detectors/student."
        )
    return found


def _listed(names: tuple[str, ...], known: tuple[str, ...]) -> str:
    return ", ".join(sorted(set(names) - set(known))) or "none"
