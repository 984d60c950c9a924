"""Work for the executors' tests, which workers import."""

import os
import signal
import time
from pathlib import Path

from kdjax.errors import DataError


def count_devices(data):
    """JAX's devices, and the threads with which XLA computes."""
    import jax
    import jax.numpy as jnp

    jnp.dot(jnp.ones((600, 600)), jnp.ones((600, 600))).block_until_ready()
    tasks = Path("/proc/self/task").iterdir()
    names = [(task / "comm").read_text().strip() for task in tasks]
    return [jax.device_count(), names.count("tf_XLAEigen")]


def act(data):
    """Adds a line to a unit's own file, then does what `data` says, and returns a number."""
    path = Path(data["folder"]) / data["name"]
    with path.open("a") as file:
        file.write(f"{os.getpid()}\n")
    runs = path.read_text().count("\n")
    what = data.get("what")
    if what == "dies" or (what == "dies once" and runs == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "is wrong":
        raise DataError("two\n  lines")
    if what == "has a bug":
        raise TypeError("a bug")
    if what == "waits":
        end = time.monotonic() + 60
        while not (path.parent / "go").exists() and time.monotonic() < end:
            time.sleep(0.05)
    return data["number"] ** 2
