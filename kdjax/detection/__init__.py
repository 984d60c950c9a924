"""From residuals to alarms: Gaussian, scores, thresholds, events, saved detectors, streams."""

from kdjax.io.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "kdjax.detection.gaussian": "Gaussian fit_gaussian",
        "kdjax.detection.scores": "alarms point_scores row_scores window_scores",
        "kdjax.detection.attribution": "contributions",
        "kdjax.detection.thresholds": "conformal_threshold pot_threshold quantile_threshold",
        "kdjax.detection.alarming": "events",
        "kdjax.detection.detector": "Detector",
        "kdjax.detection.storage": "load_detector save_detector",
        "kdjax.detection.tables": "score_events score_table",
        "kdjax.detection.streaming": "StreamDetector",
    },
)
