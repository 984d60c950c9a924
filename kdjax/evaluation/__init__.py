"""How good a detector is: metrics, oracle thresholds, result rows, tables, report.

numpy and scikit-learn only; matplotlib and rich are imported by the modules that draw.
"""
