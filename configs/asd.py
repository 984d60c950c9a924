"""ASD: application servers, 19 metrics, a row every 5 minutes; a pair for each server.

    python launch.py run --config=configs/asd.py --config.data.root=DIR

`DIR` is the data folder of github.com/zhhlee/InterFusion converted to text: `train/`,
`test/` and `test_label/` with `omi-K.txt` or `omi-K.txt.gz`. A few minutes on 2 CPU
cores for 8 servers.
"""

from ml_collections import ConfigDict

from kdjax.config import get_config as defaults


def get_config() -> ConfigDict:
    """The run on ASD."""
    config = defaults()
    config.data.name = "asd"
    # As published; the default came later.
    config.threshold.method = "conformal"
    config.data.root = "data/asd"
    # Published in [0, 1].
    config.data.scaler = "none"
    # As on SMD.
    config.entity_mode = "per_entity"
    config.teacher.components = ("kmeans", "difference", "moving_average")
    config.student.components = ("autoencoder", "difference", "moving_average")
    config.student.hidden = (12,)
    config.student.epochs = 20
    config.train.warmup_steps = 50
    return config
