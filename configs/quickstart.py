"""Quickstart: one real server machine, the one that ships with the package.

    python launch.py run --config=configs/quickstart.py --workdir=runs/quickstart

Teacher 2+2 layers of 64, student 1+1 of 16, baselines, a small classifier. About two
minutes on 2 CPU cores. The networks and `mahalanobis` end at the same F1 of windows,
0.60 with τ from the labels and about 0.3 without: one machine tells them apart no further.
Its training rows hold stretches as odd as the anomalies, so a τ without labels is high.
"""

from ml_collections import ConfigDict

from kdjax.config import get_config as defaults


def get_config() -> ConfigDict:
    """The run on the embedded machine of SMD."""
    config = defaults()
    config.data.name = "smd"
    # SMD is published scaled to [0, 1].
    config.data.scaler = "none"
    config.teacher.hidden = (64, 64)
    config.teacher.epochs = 12
    config.student.hidden = (16,)
    config.student.epochs = 20
    config.train.learning_rate = 1e-2
    # Beside them the classifier of `KDDetector()`, half as large and trained for less long.
    config.baselines = (*config.baselines, "classifier")
    config.classifier.networks = 2
    config.classifier.steps = 400
    return config
