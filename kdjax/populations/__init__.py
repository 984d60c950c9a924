"""Trainings of one shape as populations, and each the faster way."""
