"""Four students of one teacher on the machine that ships with the package.

    python launch.py sweep --config=configs/sweep_quick.py --workdir=runs/sweep_quick

Two values of α by two seeds: does distillation do more than another seed? About a
minute on 2 CPU cores. The students train side by side; the teacher is trained once.
"""

from collections.abc import Callable

from ml_collections import ConfigDict
from sklearn.model_selection import ParameterGrid

from kdjax.config import get_config as defaults


def get_config() -> ConfigDict:
    """What all members share."""
    config = defaults()
    config.data.name = "smd"
    # As published; the default came later.
    config.threshold.method = "conformal"
    # SMD is published scaled to [0, 1].
    config.data.scaler = "none"
    config.teacher.hidden = (32, 32)
    config.teacher.epochs = 6
    # One teacher, whatever the students' seeds are.
    config.teacher.seed = 0
    config.student.hidden = (16,)
    config.student.epochs = 10
    config.train.learning_rate = 1e-2
    return config


def sweep(add: Callable[..., None]) -> None:
    """Adds the members."""
    for changes in ParameterGrid({"distill.alpha": [0.35, 0.7], "seed": [0, 1]}):
        add(changes)
