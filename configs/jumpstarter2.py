"""JumpStarter's second data set: online services, 19 metrics, a row every 5 minutes.

    python launch.py run --config=configs/jumpstarter2.py --config.data.root=DIR

`DIR` is dataset/Dataset2 of github.com/NetManAIOps/JumpStarter: `train/`, `test/` and
`test_label/` with `serviceK.csv` or `serviceK.csv.gz`. Values come in raw units, up to
several 1e8. A few minutes on 2 CPU cores for 20 services.
"""

from ml_collections import ConfigDict

from kdjax.config import get_config as defaults


def get_config() -> ConfigDict:
    """The run on JumpStarter2."""
    config = defaults()
    config.data.name = "jumpstarter2"
    # As published; the default came later.
    config.threshold.method = "conformal"
    config.data.root = "data/jumpstarter2"
    config.data.scaler = "minmax"
    # As on SMD, but for all together: one has too few calibration windows for a τ at 1 %.
    config.teacher.components = ("kmeans", "difference", "moving_average")
    config.student.components = ("autoencoder", "difference", "moving_average")
    config.student.epochs = 20
    config.train.warmup_steps = 50
    return config
