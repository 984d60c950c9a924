"""SMAP and MSL: telemetry of a satellite (25 columns) and of a Mars rover (55).

    python launch.py run --config=configs/smap_msl.py:smap --config.data.root=DIR
    python launch.py run --config=configs/smap_msl.py:msl --config.data.root=DIR

`DIR` has `labeled_anomalies.csv` of github.com/khundman/telemanom and the arrays, as
`train/ID.npy` and `test/ID.npy` or as `channels/ID.npz`. Weak evidence: each channel is
one series with binary commands, and the labels have known faults.
"""

from ml_collections import ConfigDict

from kdjax.config import get_config as defaults
from kdjax.errors import ConfigError


def get_config(name: str = "smap") -> ConfigDict:
    """The run on `smap` or `msl`."""
    if name not in ("smap", "msl"):
        raise ConfigError(f"smap_msl.py:{name}: expected :smap or :msl.")
    config = defaults()
    config.data.name = name
    # As published; the default came later.
    config.threshold.method = "conformal"
    config.data.root = "data/smap_msl"
    # Scaled to [-1, 1] by the publishers.
    config.data.scaler = "none"
    # As on SMD, but for all together: one has too few calibration windows for a τ at 1 %.
    config.teacher.components = ("kmeans", "difference", "moving_average")
    config.student.components = ("autoencoder", "difference", "moving_average")
    config.student.epochs = 20
    config.train.warmup_steps = 50
    return config
