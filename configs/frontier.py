"""How small may a student be? Widths and depths, with and without a teacher, by seeds.

    python launch.py sweep --config=configs/frontier.py --config.data.root=data/smd
    python launch.py sweep --config=configs/frontier.py:sample

Eight shapes from 1,022 to 221,990 parameters by α = 0.35 and 0 by three seeds: 48 students
of one teacher, which is trained once. `members.csv` has their quality beside parameters,
bytes of the exported file and measured milliseconds per window; the report draws it.
`:sample` takes the machine that ships with the package and six small shapes.
"""

from collections.abc import Callable

from ml_collections import ConfigDict
from sklearn.model_selection import ParameterGrid

from kdjax.config import get_config as defaults
from kdjax.errors import ConfigError

SHAPES = ((4,), (8,), (16,), (32,), (61,), (128,), (8, 8), (32, 32))
SMALL = ((2,), (4,), (8,), (16,), (32,), (8, 8))


def get_config(data: str = "smd") -> ConfigDict:
    """What all members share, on `smd` or on `sample`."""
    if data not in ("smd", "sample"):
        raise ConfigError(f"frontier.py:{data}: expected frontier.py or :sample.")
    config = defaults()
    config.data.name = "smd"
    # As published; the default came later.
    config.threshold.method = "conformal"
    config.data.scaler = "none"
    # One teacher, whatever the students' seeds are.
    config.teacher.seed = 0
    config.train.batch_size = 64
    config.train.warmup_steps = 50
    if data == "smd":
        config.data.root = "data/smd"
        config.data.train_stride = 20
        config.teacher.hidden = (200, 200)
        config.teacher.epochs = 10
        config.teacher.patience = 3
        config.student.epochs = 10
    else:
        config.teacher.hidden = (64, 64)
        config.teacher.epochs = 12
        config.student.epochs = 20
        config.train.learning_rate = 1e-2
    return config


def sweep(add: Callable[..., None], data: str = "smd") -> None:
    """Adds the members."""
    grid = {
        "student.hidden": SHAPES if data == "smd" else SMALL,
        "distill.alpha": (0.35, 0.0),
        "seed": (0, 1, 2),
    }
    for changes in ParameterGrid(grid):
        add(changes)
