"""How good a detector is: oracle thresholds, result rows, intervals, tables, report."""
