"""`kdjax serve` on Ray Serve: each process has entities and a state of its own.

    pip install "kdjax[serve,ray]"
    python ray_serve.py plant.onnx --state=state --processes=2

Process 0 answers under /0, process 1 under /1, and so on, with all routes of `kdjax serve`.
The client sends the rows of an entity always to the same one (docs/serve.md). Ray starts a
process that dies again; it goes on from its state.
"""

import argparse
import signal
import threading
from pathlib import Path

import ray
from ray import serve

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("detector", type=Path, help="ONNX file")
parser.add_argument("--state", type=Path, required=True, help="folder for the states")
parser.add_argument("--processes", type=int, default=2)
parser.add_argument("--port", type=int, default=8080)


def deployment(detector, state):
    """One process: a replica, since two can't have one state."""

    def application():
        from kdjax.service.app import App
        from kdjax.service.engine import Engine, Limits

        state.mkdir(parents=True, exist_ok=True)
        name, engines, limits = detector.stem, {}, Limits()
        app = App(engines, limits=limits)
        engines[name] = Engine(
            name, detector, state, limits=limits, clock=app.clock, committed=app.committed,
            log=print,
        )  # fmt: skip
        return app.asgi

    options = {
        "num_replicas": 1, "max_ongoing_requests": 100, "health_check_period_s": 1,
        "graceful_shutdown_wait_loop_s": 0.1, "graceful_shutdown_timeout_s": 5,
    }  # fmt: skip
    return serve.deployment(**options)(serve.ingress(application)()).bind()


if __name__ == "__main__":
    given = parser.parse_args()
    detector, state = given.detector.resolve(), given.state.resolve()
    serve.start(http_options={"host": "127.0.0.1", "port": given.port})
    ended = threading.Event()
    # In place of Ray's own, and before `serve.run`, which may wait for a replica.
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: ended.set())
    for number in range(given.processes):
        one = deployment(detector, state / str(number))
        serve.run(one, name=f"kdjax-{number}", route_prefix=f"/{number}")
    ended.wait()
    serve.shutdown()
    ray.shutdown()
