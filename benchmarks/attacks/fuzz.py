"""Fuzzing of what kdjax reads: any bytes give a KdjaxError or a right answer.

    python benchmarks/attacks/fuzz.py atheris readers --seconds=600 --output=readers.json
    python benchmarks/attacks/fuzz.py hypothesis readers --seconds=120 --output=readers.json

Targets: readers, configs, artifacts, stream (`fuzz_targets.py`, `fuzz_artifacts.py`). The
first engine is guided by coverage of kdjax's Python code and needs `pip install atheris`
(wheels for Linux, up to Python 3.13 by 2025); the second is Hypothesis, which makes and
shrinks its own examples. Both start from the same seeds, one a format. A finding is any
exception that is no KdjaxError, a number that an oracle contradicts, or a call of more
than 5 seconds; the run goes on behind it, and the report has one of each kind with its
bytes. Memory is bounded, so that a file that asks for all of it is a finding too. As long
as asked for, on one core.
"""

import argparse
import base64
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz_seeds import SEEDS
from fuzz_targets import TARGETS, attempt

from kdjax.io.environment import describe_environment
from kdjax.io.files import write_text

MEMORY = 12 * 2**30  # of addresses, which jax takes many of
SLOW = 5.0  # seconds of the processor
STATUS = re.compile(r"#(\d+)\s.*cov: (\d+) ft: (\d+) corp: (\d+)/(\S+)")


def main() -> None:
    """Runs an engine on a target and writes what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=("atheris", "hypothesis", "child"))
    parser.add_argument("target", choices=tuple(TARGETS))
    parser.add_argument("--seconds", default=600, type=int)
    parser.add_argument("--seed", default=1, type=int)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--corpus", type=Path, help="kept and gone on from, if given")
    given = parser.parse_args()
    if given.engine == "child":
        run_child(given)
        return
    started = time.monotonic()
    run = run_atheris if given.engine == "atheris" else run_hypothesis
    report = {
        "engine": given.engine,
        "target": given.target,
        "seed": given.seed,
        **run(given),
        "seconds": round(time.monotonic() - started, 1),
        "environment": describe_environment(),
    }
    write_text(given.output, json.dumps(report, indent=1) + "\n")
    print({k: v for k, v in report.items() if k not in ("environment", "findings")})
    for finding in report["findings"]:
        print("FINDING", finding["kind"], finding["times"])


def recorder(
    target: str, folder: Path, findings: dict[str, dict[str, Any]], words: Counter[str]
) -> Callable[[bytes], None]:
    """A function of bytes that keeps what is wrong instead of raising it."""

    def call(data: bytes) -> None:
        started, kind, told = time.process_time(), "", ""
        try:
            words[attempt(target, data, folder)] += 1
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            kind, told = kind_of(error), "".join(traceback.format_exception(error))
        seconds = time.process_time() - started
        if seconds > SLOW:
            kind, told = f"{kind} slow", f"{seconds:.1f} seconds\n{told}"
        if not kind:
            return
        words["finding"] += 1
        text = base64.b64encode(data).decode()
        new = {"kind": kind, "times": 0, "data": text, "told": told[-3000:]}
        found = findings.setdefault(kind, new)
        found["times"] += 1
        if len(text) < len(found["data"]):
            found |= {"data": text, "told": told[-3000:]}

    return call


def kind_of(error: Exception) -> str:
    """An exception's name and where it was raised, which tells findings apart."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/kdjax/" in f.filename] or frames
    place = f"{Path(own[-1].filename).name}:{own[-1].name}"
    said = (
        "" if not isinstance(error, AssertionError) else re.sub(r"\W+", " ", str(error))
    )
    return f"{type(error).__name__} {place} {said[:60]}".strip()


def run_atheris(given: argparse.Namespace) -> dict[str, Any]:
    """The engine runs in a process of its own, which it ends itself."""
    with tempfile.TemporaryDirectory() as name:
        dataset, seeds = given.dataset or Path(name) / "corpus", Path(name) / "seeds"
        for folder in (dataset, seeds):
            folder.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(SEEDS[given.target]()):
            (seeds / f"seed_{number}").write_bytes(seed)
        found = Path(name) / "found.json"
        options = (
            f"-max_total_time={given.seconds}",
            f"-seed={given.seed}",
            "-max_len=4096",
            "-timeout=60",
            f"-rss_limit_mb={8 * 1024}",
            f"-artifact_prefix={name}/",
            "-print_final_stats=1",
        )
        command = [
            *(sys.executable, __file__, "child", given.target, f"--output={found}"),
            *(f"--corpus={dataset}", f"--seed={given.seed}"),
        ]
        ended = subprocess.run(
            [*command, f"--seconds={given.seconds}"],
            input="\n".join([*options, str(dataset), str(seeds)]),
            capture_output=True,
            text=True,
            check=False,
        )
        statuses = STATUS.findall(ended.stderr)
        done = re.findall(r"Done (\d+) runs", ended.stderr)
        if not statuses or not done:
            raise SystemExit(f"the engine ended early:\n{ended.stderr[-3000:]}")
        _, coverage, features, entries, size = statuses[-1]
        return {
            "executions": int(done[-1]),
            "coverage": int(coverage),
            "features": int(features),
            "corpus_files": len([*dataset.iterdir()]),
            "corpus_entries": int(entries),
            "corpus_size": size,
            **json.loads(found.read_text("utf-8")),
        }


def run_child(given: argparse.Namespace) -> None:
    """The process of the engine: instruments kdjax, then reads the engine's options."""
    import atheris

    # What is imported already knows nothing of coverage.
    names = ("kdjax", "fuzz_")
    for name in [name for name in sys.modules if name.startswith(names)]:
        del sys.modules[name]
    with atheris.instrument_imports(include=["kdjax"], enable_loader_override=False):
        import fuzz_targets
    global attempt
    attempt = fuzz_targets.attempt
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    folder = Path(tempfile.mkdtemp(prefix="kdjax-fuzz-"))
    findings: dict[str, dict[str, Any]] = {}
    words: Counter[str] = Counter()
    call = recorder(given.target, folder, findings, words)
    if given.target == "artifacts":
        fuzz_targets.artifacts(b"\5\0\0\0\0\0", folder)  # makes what it changes
    written = 0.0

    def one(data: bytes) -> None:
        nonlocal written
        call(data)
        if time.monotonic() - written > 2:
            written = time.monotonic()
            text = json.dumps({"words": words, "findings": [*findings.values()]})
            write_text(given.output, text)

    options = sys.stdin.read().split("\n")
    atheris.Setup([sys.argv[0], *options], one)
    atheris.Fuzz()


def run_hypothesis(given: argparse.Namespace) -> dict[str, Any]:
    """Examples until the time is over, some hundreds at once."""
    from fuzz_strategies import STRATEGIES
    from hypothesis import HealthCheck, Phase, settings
    from hypothesis import given as examples
    from hypothesis import seed as start_from

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    findings: dict[str, dict[str, Any]] = {}
    words: Counter[str] = Counter()
    ends = time.monotonic() + given.seconds
    with tempfile.TemporaryDirectory() as name:
        call = recorder(given.target, Path(name), findings, words)
        strategy = STRATEGIES[given.target]()
        for number in range(10**6):
            if time.monotonic() > ends:
                break
            test = examples(strategy)(call)
            test = start_from(given.seed * 10**6 + number)(test)
            settings(
                max_examples=500,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=[*HealthCheck],
            )(test)()
    return {
        "executions": sum(words.values()),
        "words": dict(words),
        "findings": [*findings.values()],
    }


if __name__ == "__main__":
    main()
