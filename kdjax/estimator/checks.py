"""What scikit-learn checks of estimators and a detector of time series can't pass."""

EXPECTED_FAILED_CHECKS = {
    "check_methods_sample_order_invariance": (
        "a row is judged in the window of rows before it, so its score depends on their "
        "order: that is what a detector for time series is for"
    ),
    "check_methods_subset_invariance": (
        "rows given a few at a time lack the rows before them, and a single row is "
        "shorter than any window"
    ),
}
"""The checks of `sklearn.utils.estimator_checks.check_estimator` that fail, and why."""
