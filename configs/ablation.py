"""What does distillation bring? The same student, taught in several ways or not at all.

    python launch.py sweep --config=configs/ablation.py --config.data.root=data/smd
    python launch.py sweep --config=configs/ablation.py:sample

Five lessons by three seeds, each judged as a network alone and joined with the filters of
`smd.py`; a student for each machine. The teacher is that of `smd.py`. About 40 minutes for
13 machines on 2 CPU cores; `:sample` takes the machine in the package.
"""

import itertools
from collections.abc import Callable

from ml_collections import ConfigDict

from kdjax.config import get_config as defaults
from kdjax.errors import ConfigError

FILTERS = ("difference", "moving_average")
PARTS = (("autoencoder",), ("autoencoder", *FILTERS))
SEEDS = (0, 1, 2)

# α, what is compared, disturbed copies of the training rows.
LESSONS = (
    (0.0, "reconstruction", 0),
    (0.35, "reconstruction", 0),
    (1.0, "reconstruction", 0),
    (0.35, "reconstruction", 3),
    (0.35, "errors", 3),
)


def get_config(data: str = "smd") -> ConfigDict:
    """What all members share, on `smd` or on `sample`."""
    if data not in ("smd", "sample"):
        raise ConfigError(f"ablation.py:{data}: expected ablation.py or :sample.")
    config = defaults()
    config.data.name = "smd"
    config.data.root = "data/smd" if data == "smd" else ""
    config.data.scaler = "none"
    config.entity_mode = "per_entity"
    config.teacher.parts = ("kmeans", *FILTERS)
    config.student.hidden = (12,)
    config.student.epochs = 20
    config.train.warmup_steps = 50
    # The answers to three disturbed copies of all rows, on two devices.
    config.distill.cache_bytes = 8_000_000_000
    return config


def sweep(add: Callable[..., None], data: str = "smd") -> None:
    """Adds the members."""
    for lesson, parts, seed in itertools.product(LESSONS, PARTS, SEEDS):
        alpha, target, copies = lesson
        add(
            {
                "distill.alpha": alpha,
                "distill.target": target,
                "distill.disturbed_copies": copies,
                "student.parts": parts,
                "seed": seed,
            }
        )
