"""The paper's networks: exactly 1,124,201 (teacher) and 482,601 (student) parameters.

    python launch.py run --config=configs/paper.py --workdir=runs/paper
    python launch.py run --config=configs/paper.py:gpu --config.data.root=data/smd

Table 1's counts imply a network of input width 1, run over each channel with shared
weights: 38 times the work of `smd.py`. Without an argument: a training stride of 100,
made for one machine on a CPU, by default the one in the package; name another with
--config.data.root=… --config.data.entities=machine-1-1. With `:gpu`, the paper's stride
of 10 for all machines under data.root.
"""

from ml_collections import ConfigDict

from kdjax.config import get_config as defaults
from kdjax.errors import ConfigError


def get_config(place: str = "cpu") -> ConfigDict:
    """The paper's run on `cpu` or `gpu`."""
    if place not in ("cpu", "gpu"):
        raise ConfigError(f"paper.py:{place}: expected paper.py or paper.py:gpu.")
    config = defaults()
    config.data.name = "smd"
    # As published; the default came later.
    config.threshold.method = "conformal"
    config.data.scaler = "none"
    config.model.channels = "independent"
    config.teacher.hidden = (200, 200)
    config.teacher.epochs = 10
    config.teacher.patience = 3
    config.student.hidden = (200,)
    config.student.epochs = 10
    config.train.warmup_steps = 20
    # A window is 38 sequences here.
    config.train.batch_size = 4
    if place == "cpu":
        config.data.train_stride = 100
        config.train.learning_rate = 3e-3
    else:
        config.data.root = "data/smd"
        config.train.batch_size = 32
        config.train.learning_rate = 1e-3
        # 28 machines at stride 10 would make 7.3 GB of teacher outputs.
        config.distill.cache_bytes = 10_000_000_000
        config.detection.batch_size = 2048
    return config
