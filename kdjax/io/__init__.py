"""Atomic files and manifests, signals, the environment, progress bars."""
