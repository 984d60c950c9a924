"""What kdjax runs on: versions, devices, optional parts, the source's commit."""

import importlib.metadata
import importlib.util
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = (
    "kdjax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "scipy",
    "pandas",
    "scikit-learn",
)
# The modules that each extra of setup.cfg brings.
EXTRAS = {
    "onnx": ("onnx", "onnxruntime"),
    "bench": ("torch",),
    "sweep": ("optuna",),
    "large": ("grain",),
}


def describe_environment() -> dict[str, Any]:
    """Versions, devices and optional parts, as JSON-able values."""
    import jax

    return {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "device": device_name(jax.devices()[0]),
        "devices": [device_name(device) for device in jax.devices()],
        "optional": {
            extra: all(importlib.util.find_spec(module) for module in modules)
            for extra, modules in EXTRAS.items()
        },
        "commit": git_commit(),
    }


def device_name(device: Any) -> str:
    """Such as `cpu` or `gpu (NVIDIA H100)`."""
    if device.platform == "cpu":
        return "cpu"
    return f"{device.platform} ({device.device_kind})"


def git_commit() -> str | None:
    """The commit of the checkout that this package runs from, or None."""
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return None
    command = [
        "git",
        "-C",
        str(folder),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
    ]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
