"""A file of your own: CSV, Parquet or .npy, one row a time step.

    python launch.py run --config=configs/own_data.py --config.data.path=plant.csv

Name labelled rows to judge on with --config.data.test_path=… and
--config.data.label_column=…; without them the detector is trained and calibrated and
its alarm rate is shown. On public data `detectors/classifier` detects most, see
docs/results/tsbad.md.
"""

from ml_collections import ConfigDict

from kdjax.config import get_config as defaults


def get_config() -> ConfigDict:
    """The defaults, a classifier beside them, and every window of a short file."""
    config = defaults()
    config.data.dense_below = 20_000
    config.baselines = (*config.baselines, "classifier")
    return config
