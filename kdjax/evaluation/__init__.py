"""Evaluation of models on test rows: result rows, intervals, summary, report."""
