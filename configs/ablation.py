"""Ablation: the same student trained by each setting of `distill`, and alone.

    python launch.py sweep --config=configs/ablation.py --config.data.root=data/smd
    python launch.py sweep --config=configs/ablation.py:sample

Each setting, three seeds, and the network alone or combined with the filters of `smd.py`;
a student for each machine. The teacher is that of `smd.py`; that of the last two settings
is an LSTM. About an hour and a half for 13 machines on 2 CPU cores; `:sample` takes the
machine in the package.
"""

import itertools
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from kdjax.config import get_config as defaults
from kdjax.errors import ConfigError

FILTERS = ("difference", "moving_average")
PARTS = (("autoencoder",), ("autoencoder", *FILTERS))
SEEDS = (0, 1, 2)

LSTM: dict[str, Any] = {"teacher.components": ("autoencoder",)}

# What each setting changes; under the first the student learns alone.
DISTILLATIONS: tuple[dict[str, Any], ...] = (
    {"distill.alpha": 0.0},
    {},
    {"distill.alpha": 1.0},
    {"distill.weights": (1.0, 1.0, 1.0)},
    {"distill.augmented_copies": 3},
    {"distill.target": "errors", "distill.augmented_copies": 3},
    {"distill.target": "scores"},
    {"distill.target": "scores", "distill.augmented_copies": 3},
    LSTM,
    LSTM | {"distill.target": "hidden"},
)


def get_config(data: str = "smd") -> ConfigDict:
    """What all members share, on `smd` or on `sample`."""
    if data not in ("smd", "sample"):
        raise ConfigError(f"ablation.py:{data}: expected ablation.py or :sample.")
    config = defaults()
    config.data.name = "smd"
    # As published; the default came later.
    config.threshold.method = "conformal"
    config.data.root = "data/smd" if data == "smd" else ""
    config.data.scaler = "none"
    config.entity_mode = "per_entity"
    config.teacher.components = ("kmeans", *FILTERS)
    config.student.hidden = (12,)
    config.student.epochs = 20
    config.train.warmup_steps = 50
    # The teacher's outputs for three disturbed copies of all rows, on two devices.
    config.distill.cache_bytes = 8_000_000_000
    return config


def sweep(add: Callable[..., None], data: str = "smd") -> None:
    """Adds the members."""
    for distillation, parts, seed in itertools.product(DISTILLATIONS, PARTS, SEEDS):
        add({**distillation, "student.components": parts, "seed": seed})
