"""Processes forked from one that had started JAX, whose threads a fork doesn't copy."""

import os
import sys

from kdjax.errors import ConfigError

_started_before_fork = False
_forked = False


def _look() -> None:
    """Records, right before a fork, whether JAX has started here."""
    global _started_before_fork
    # JAX has no public name for it.
    bridge = sys.modules.get("jax._src.xla_bridge")
    started = getattr(bridge, "backends_are_initialized", None)
    _started_before_fork = _forked or bool(started and started())


def _mark() -> None:
    global _forked
    _forked = _started_before_fork


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_look, after_in_child=_mark)


def check_not_forked() -> None:
    """Raises in a forked process, where JAX would block for ever.

    Raises:
        ConfigError: this process was forked from one that had started JAX.
    """
    if _forked:
        raise ConfigError(
            "this process was forked from one that had started JAX, whose threads it "
            "lacks, so that JAX would block: start processes with "
            'multiprocessing.get_context("spawn") or "forkserver", or with joblib\'s loky, '
            "or use threads."
        )
