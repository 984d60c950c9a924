"""kdjax: distils anomaly detectors for multivariate time series.

The public names, by groups. They are imported when first used, so that `import kdjax`
is fast and only what computes imports JAX. Metrics are in `kdjax.metrics`.
"""

from typing import TYPE_CHECKING

from kdjax.io.lazy import lazy_names

if TYPE_CHECKING:
    from kdjax import metrics as metrics
    from kdjax.config import get_config as get_config
    from kdjax.config import override as override
    from kdjax.config import resolve as resolve
    from kdjax.data.datasets import load_benchmark as load_benchmark
    from kdjax.data.datasets import load_sample as load_sample
    from kdjax.data.disturb import disturb_windows as disturb_windows
    from kdjax.data.download import fetch_smd as fetch_smd
    from kdjax.data.readers import load_files as load_files
    from kdjax.data.readers import read_table as read_table
    from kdjax.data.scaler import Scaler as Scaler
    from kdjax.data.scaler import apply_scaler as apply_scaler
    from kdjax.data.scaler import fit_scaler as fit_scaler
    from kdjax.data.splits import split as split
    from kdjax.data.windowing import windows as windows
    from kdjax.detection.alarming import alarm_measures as alarm_measures
    from kdjax.detection.alarming import events as events
    from kdjax.detection.attribution import contributions as contributions
    from kdjax.detection.detector import Detector as Detector
    from kdjax.detection.fleet import CATALOGUE_SCHEMA as CATALOGUE_SCHEMA
    from kdjax.detection.fleet import open_machine as open_machine
    from kdjax.detection.fleet import read_catalogue as read_catalogue
    from kdjax.detection.gaussian import Gaussian as Gaussian
    from kdjax.detection.gaussian import fit_gaussian as fit_gaussian
    from kdjax.detection.scores import alarms as alarms
    from kdjax.detection.scores import point_scores as point_scores
    from kdjax.detection.scores import row_scores as row_scores
    from kdjax.detection.scores import window_scores as window_scores
    from kdjax.detection.storage import load_detector as load_detector
    from kdjax.detection.storage import save_detector as save_detector
    from kdjax.detection.streaming import StreamDetector as StreamDetector
    from kdjax.detection.tables import score_events as score_events
    from kdjax.detection.tables import score_table as score_table
    from kdjax.detection.thresholds import blocks_threshold as blocks_threshold
    from kdjax.detection.thresholds import conformal_threshold as conformal_threshold
    from kdjax.detection.thresholds import pot_threshold as pot_threshold
    from kdjax.detection.thresholds import quantile_threshold as quantile_threshold
    from kdjax.errors import ArtifactError as ArtifactError
    from kdjax.errors import ConfigError as ConfigError
    from kdjax.errors import DataError as DataError
    from kdjax.errors import KdjaxError as KdjaxError
    from kdjax.estimator import KDDetector as KDDetector
    from kdjax.experiment.fleet import finish_fleet as finish_fleet
    from kdjax.experiment.fleet import fit_fleet as fit_fleet
    from kdjax.experiment.fleet import fit_partition as fit_partition
    from kdjax.experiment.pipeline import run as run
    from kdjax.experiment.recalibrate import recalibrated as recalibrated
    from kdjax.experiment.sweeps.design import make_design as make_design
    from kdjax.experiment.sweeps.sweep import run_sweep as run_sweep
    from kdjax.export.files import export_file as export_file
    from kdjax.export.files import export_onnx as export_onnx
    from kdjax.export.files import export_stablehlo as export_stablehlo
    from kdjax.losses import distillation_loss as distillation_loss
    from kdjax.losses import reconstruction_loss as reconstruction_loss
    from kdjax.models.autoencoder import lstm_autoencoder as lstm_autoencoder
    from kdjax.models.baselines import baseline as baseline
    from kdjax.models.classifier import classifier_scores as classifier_scores
    from kdjax.models.lstm import LSTMCell as LSTMCell
    from kdjax.models.lstm import lstm_cell as lstm_cell
    from kdjax.models.model import Model as Model
    from kdjax.models.model import residuals as residuals
    from kdjax.scoring.files import score_fleet as score_fleet
    from kdjax.scoring.opening import open_stream as open_stream
    from kdjax.scoring.opening import open_streams as open_streams
    from kdjax.scoring.partitions import SCORE_SCHEMA as SCORE_SCHEMA
    from kdjax.scoring.partitions import score_partition as score_partition
    from kdjax.training.batching import Batch as Batch
    from kdjax.training.batching import WindowDataset as WindowDataset
    from kdjax.training.batching import batches as batches
    from kdjax.training.batching import memory_batches as memory_batches
    from kdjax.training.fitting import fit_classifier as fit_classifier
    from kdjax.training.loop import fit as fit
    from kdjax.training.loop import resume as resume
    from kdjax.training.sharding import use_all_cores as use_all_cores
    from kdjax.training.steps import TrainState as TrainState
    from kdjax.training.steps import init_state as init_state
    from kdjax.training.steps import make_optimizer as make_optimizer
    from kdjax.training.steps import make_student_step as make_student_step
    from kdjax.training.steps import make_teacher_step as make_teacher_step

GROUPS: dict[str, dict[str, str]] = {
    "Models": {
        "kdjax.models.model": "Model residuals",
        "kdjax.models.lstm": "LSTMCell lstm_cell",
        "kdjax.models.autoencoder": "lstm_autoencoder",
        "kdjax.models.baselines": "baseline",
        "kdjax.models.classifier": "classifier_scores",
    },
    "Losses": {
        "kdjax.losses": "distillation_loss reconstruction_loss",
    },
    "Training": {
        "kdjax.training.batching": "Batch WindowDataset batches memory_batches",
        "kdjax.training.steps": "TrainState init_state make_optimizer make_student_step make_teacher_step",
        "kdjax.training.loop": "fit resume",
        "kdjax.training.fitting": "fit_classifier",
    },
    "Data": {
        "kdjax.data.scaler": "Scaler apply_scaler fit_scaler",
        "kdjax.data.windowing": "windows",
        "kdjax.data.disturb": "disturb_windows",
        "kdjax.data.splits": "split",
        "kdjax.data.readers": "load_files read_table",
        "kdjax.data.datasets": "load_benchmark load_sample",
        "kdjax.data.download": "fetch_smd",
    },
    "Detection": {
        "kdjax.detection.gaussian": "Gaussian fit_gaussian",
        "kdjax.detection.scores": "alarms point_scores row_scores window_scores",
        "kdjax.detection.attribution": "contributions",
        "kdjax.detection.thresholds": "blocks_threshold conformal_threshold pot_threshold quantile_threshold",
        "kdjax.detection.alarming": "alarm_measures events",
    },
    "Saved detectors and files": {
        "kdjax.detection.detector": "Detector",
        "kdjax.detection.storage": "load_detector save_detector",
        "kdjax.detection.fleet": "CATALOGUE_SCHEMA open_machine read_catalogue",
        "kdjax.detection.tables": "score_events score_table",
        "kdjax.export.files": "export_file export_onnx export_stablehlo",
    },
    "Program": {
        "kdjax.config": "get_config override resolve",
        "kdjax.experiment.pipeline": "run",
        "kdjax.experiment.fleet": "finish_fleet fit_fleet fit_partition",
        "kdjax.experiment.recalibrate": "recalibrated",
        "kdjax.experiment.sweeps.design": "make_design",
        "kdjax.experiment.sweeps.sweep": "run_sweep",
        "kdjax.scoring.files": "score_fleet",
        "kdjax.scoring.partitions": "SCORE_SCHEMA score_partition",
        "kdjax.scoring.opening": "open_stream open_streams",
        "kdjax.detection.streaming": "StreamDetector",
        "kdjax.estimator": "KDDetector",
        "kdjax.training.sharding": "use_all_cores",
    },
    "Errors": {
        "kdjax.errors": "ArtifactError ConfigError DataError KdjaxError",
    },
}
# The names of each module; the packages below have their own.
HOMES = {home: names for group in GROUPS.values() for home, names in group.items()}

__all__, __getattr__, __dir__ = lazy_names(__name__, HOMES)
