"""One side of a comparison, in a process of its own: `-m kdjax.bench.worker PEER NAME`.

It speaks lines of JSON, one to each command that it reads:

    (start)  {"built": true}, or {"missing": "torch"} and the end
    warm     {"ready": true, "library": …, "device": …, "one_off_seconds": …}
    go       {"seconds": …} of one measurement
    rate     {"flops": …, "bandwidth": …}

and ends with its input. Building overlaps between processes, what follows `warm` must
not: compiling and choosing a batch size want the machine for themselves.
"""

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from kdjax.bench import work
from kdjax.bench.work import Unit

OPTIONAL = ("torch", "onnx", "onnxruntime")
WARM_UPS = 1

Builder = Callable[[], Unit]


def builder(peer: str, name: str, *, quick: bool) -> Builder:
    """What builds the measurement of `name` for `peer`, its libraries imported.

    Raises:
        ModuleNotFoundError: a library of the peer is not installed.
    """
    item, size = work.find_work(name), work.choose_size(quick=quick)
    if peer in ("torch", "torch_cached"):
        importlib.import_module("torch")
        torch_peer = importlib.import_module("kdjax.bench.torch_peer")
        return lambda: torch_peer.build(item, size=size, cached=peer == "torch_cached")
    if peer == "onnxruntime":
        importlib.import_module("onnxruntime")
        onnx_peer = importlib.import_module("kdjax.bench.onnx_peer")
        return lambda: onnx_peer.build(item, size=size)
    ours = importlib.import_module("kdjax.bench.ours")
    build = ours.build_serial if peer == "serial" else ours.build
    return lambda: build(name, quick=quick)


def serve(
    build: Builder, commands: Iterable[str], answer: Callable[[dict[str, Any]], None]
) -> None:
    """Answers commands until they end."""
    unit = Unit(lambda: None, None, {})
    for command in commands:
        match command.strip():
            case "warm":
                unit = build()
                answer({"ready": True} | unit.facts | _warm_up(unit))
            case "go":
                answer({"seconds": _seconds(unit.run)})
            case "rate":
                from kdjax.bench.floor import measure_rates

                answer(measure_rates()._asdict())
            case other:
                answer({"unknown": other})


def main(arguments: list[str]) -> None:
    """The process: its answers go to stdout, everything else to stderr."""
    parser = argparse.ArgumentParser()
    parser.add_argument("peer")
    parser.add_argument("name", choices=[*work.WORKS])
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args(arguments)
    # Libraries print where they like, also from C++: only this copy stays clean.
    with os.fdopen(os.dup(1), "w", buffering=1) as output:
        os.dup2(2, 1)

        def answer(values: dict[str, Any]) -> None:
            output.write(json.dumps(values) + "\n")

        try:
            build = builder(given.peer, given.name, quick=given.quick)
        except ModuleNotFoundError as error:
            if error.name not in OPTIONAL:
                raise
            answer({"missing": error.name})
            return
        answer({"built": True})
        serve(build, iter(sys.stdin.readline, ""), answer)


def _warm_up(unit: Unit) -> dict[str, float]:
    """Runs everything until it is compiled; what the one-off part costs after that."""
    facts = {}
    if unit.one_off is not None:
        unit.one_off()
        facts["one_off_seconds"] = _seconds(unit.one_off)
    for _ in range(WARM_UPS):
        unit.run()
    return facts


def _seconds(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


if __name__ == "__main__":
    main(sys.argv[1:])
