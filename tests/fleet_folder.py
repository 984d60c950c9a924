"""A fleet made by hand, for tests of what uses one."""

import hashlib
import json

from kdjax.config import get_config, override, resolve
from kdjax.detection.fleet import CATALOGUE, DETECTORS, STUDENT, catalogue_frame, quoted
from kdjax.detection.storage import save_detector
from kdjax.detection.thresholds import Threshold
from kdjax.io.files import kdjax_version


class FleetFolder:
    """Machines of `moving`, each with its own scale and τ; the student is `moving` itself.

    Its entity is called `p`, so that machines without their own have the pooled values.
    """

    def __init__(self, path, moving):
        self.path, self._moving, self._rows = path, moving, {}
        path.mkdir()
        self.configure()
        save_detector(path / STUDENT, moving._replace(entities=("p",)))
        self.add("m1", tau=3.0)
        self.add("m2", tau=5.0, scale=2.0)
        self.add("few", reason="uses the fleet's values: 9 rows are too few")
        self.add("bad", state="failed", reason="3 rows, fewer than a window of 4.")

    def configure(self, **changes):
        given = {"data.path": "plants", "data.window": 4, **changes}
        about = {
            "schema": 1,
            "kdjax_version": kdjax_version(),
            "channels": ["x", "y"],
            "settings": resolve(override(get_config(), given)),
        }
        (self.path / "fleet.json").write_text(json.dumps(about))

    def add(self, name, *, tau=None, scale=1.0, state="ready", reason="", **changes):
        """Adds a machine to the catalogue, or changes it; one with τ has its own detector."""
        folder = STUDENT if state == "ready" else ""
        if tau is not None:
            folder = f"{DETECTORS}/{quoted(name)}"
            own = self._moving._replace(
                entities=(name,),
                scalers=self._moving.scalers._replace(
                    scale=scale * self._moving.scalers.scale
                ),
                thresholds=(Threshold(tau, "fixed", 0.0, 9, 9, "own"),) * 2,
                **changes,
            )
            save_detector(self.path / folder, own)
        self._rows[name] = {
            "entity": name,
            "state": state,
            "reason": reason,
            "detector": folder,
            "rows": 60,
            "threshold": tau,
            "events_a_day": 100.0 * (tau or 1.0) if state == "ready" else None,
        }
        fresh = self.path / ".fresh"
        catalogue_frame([*self._rows.values()]).to_parquet(fresh, index=False)
        fresh.replace(self.path / CATALOGUE)

    def digest(self, name):
        """The SHA-256 of the manifest of a machine's detector."""
        manifest = self.of(name) / "MANIFEST.sha256"
        return hashlib.sha256(manifest.read_bytes()).hexdigest()

    def of(self, name):
        """The folder of the detector of a machine."""
        return self.path / self._rows[name]["detector"]
