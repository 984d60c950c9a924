"""Atomic files, manifests, signals, environment, progress."""
