"""Versions, devices, optional extras and the commit that kdjax runs on."""

import importlib.metadata
import importlib.util
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = (
    *("kdjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint"),
    *("numpy", "scipy", "pandas", "scikit-learn"),
)
# The modules that each extra of setup.cfg installs.
EXTRAS = {
    "onnx": ("onnx", "onnxruntime"),
    "bench": ("torch",),
    "sweep": ("optuna",),
    "large": ("grain",),
    "serve": ("onnxruntime", "prometheus_client", "starlette", "uvicorn"),
}


def describe_environment() -> dict[str, Any]:
    """Versions, devices and optional extras, as JSON-able values."""
    import jax

    devices = [device_name(device) for device in jax.devices()]
    return {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "device": devices[0],
        "devices": devices,
        "optional": {
            extra: all(map(importlib.util.find_spec, modules))
            for extra, modules in EXTRAS.items()
        },
        "commit": git_commit(),
    }


def device_name(device: Any) -> str:
    """A name such as `cpu` or `gpu (NVIDIA H100)`."""
    kind = "" if device.platform == "cpu" else f" ({device.device_kind})"
    return f"{device.platform}{kind}"


def git_commit() -> str | None:
    """The commit of the checkout that this package runs from, or None."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None
    options = ("--always", "--dirty", "--abbrev=40")
    try:
        done = subprocess.run(
            ["git", "-C", str(checkout), "describe", *options],
            check=False,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
