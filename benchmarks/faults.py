"""Measures the tests: applies one-line faults to kdjax and counts those that tests find.

    python benchmarks/faults.py --check
    python benchmarks/faults.py --output=faults.jsonl [--shard=0/4] [--only=7]

`faults.txt` lists the faults, three lines each: `- ` a fragment of one line of kdjax, `+ `
what takes its place, `? ` the tests to run (names between `test_` and `.py`, with
wildcards; `doctest` for the doctests of the changed file). A fragment stands on exactly
one line of `kdjax/`, wherever code moves.

Faults are applied one at a time to a copy of the checkout. A fault is found if the tests
pass without it and fail with it. Tests marked slow do not run. The output has one JSON
line for each fault; a rerun continues after those that it has.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LIST = Path(__file__).with_suffix(".txt")
LIMIT = 900  # seconds of one run of tests
BAD = ("survived", "missing", "no tests", "broken tests")


class Fault(NamedTuple):
    """A fault; numbers count from 1 in the order of the list."""

    number: int
    old: str
    new: str
    tests: tuple[str, ...]


class Place(NamedTuple):
    """Where a fault applies: the file and its text, before and after."""

    file: Path
    line: int
    before: str
    after: str


def read_faults(text: str) -> list[Fault]:
    """The faults of a list.

    >>> read_faults("# a comment\\n- a + b\\n+ a - b\\n? sums doctest\\n")
    [Fault(number=1, old='a + b', new='a - b', tests=('sums', 'doctest'))]
    """
    lines = [line for line in text.splitlines() if line.strip() and line[0] != "#"]
    faults = []
    for number, first in enumerate(range(0, len(lines), 3), start=1):
        old, new, tests = lines[first : first + 3]
        if (old[:2], new[:2], tests[:2]) != ("- ", "+ ", "? "):
            raise ValueError(f"fault {number} is not - + ?: {old!r}")
        faults.append(Fault(number, old[2:], new[2:], tuple(tests[2:].split())))
    return faults


def locate(fault: Fault, root: Path) -> Place:
    """Where a fault applies; raises LookupError unless that is exactly one line."""
    places = []
    for file in sorted((root / "kdjax").rglob("*.py")):
        text = file.read_text("utf-8")
        for start in _occurrences(text, fault.old):
            after = text[:start] + fault.new + text[start + len(fault.old) :]
            places.append(Place(file, text.count("\n", 0, start) + 1, text, after))
    if len(places) != 1:
        where = ", ".join(f"{p.file.name}:{p.line}" for p in places) or "nowhere"
        raise LookupError(f"fault {fault.number}: {fault.old!r} stands {where}")
    return places[0]


def find_tests(fault: Fault, place: Place, root: Path) -> list[str]:
    """The test files of a fault, relative to the root; LookupError if there are none."""
    found = {
        path
        for name in fault.tests
        for path in (root / "tests").glob(f"test_{name}.py")
    }
    if "doctest" in fault.tests:
        found.add(place.file)
    if not found:
        raise LookupError(f"fault {fault.number}: no tests match {fault.tests}")
    return sorted(str(path.relative_to(root)) for path in found)


def check(faults: Sequence[Fault], root: Path) -> list[str]:
    """What is wrong with a list: fragments that are not unique, tests that are gone."""
    problems = []
    for fault in faults:
        try:
            find_tests(fault, locate(fault, root), root)
        except LookupError as error:
            problems.append(str(error))
    return problems


def run_fault(
    fault: Fault, root: Path, passing: dict[tuple[str, ...], bool]
) -> dict[str, object]:
    """Applies a fault to the tree at `root`, runs its tests and takes it back.

    Args:
        fault: what to change.
        root: a copy of the checkout.
        passing: whether sets of test files pass without a fault; gets new entries.
    """
    report: dict[str, object] = {**fault._asdict(), "tests": [*fault.tests]}
    try:
        place = locate(fault, root)
        tests = find_tests(fault, place, root)
    except LookupError as error:
        return report | {"outcome": "missing", "detail": str(error)}
    report["file"] = str(place.file.relative_to(root))
    report["line"] = place.line
    started = time.monotonic()
    key = tuple(tests)
    if key not in passing:
        passing[key] = run_tests(tests, root)[0] == "survived"
    if not passing[key]:
        return report | {"outcome": "broken tests"}
    place.file.write_text(place.after, "utf-8")
    try:
        outcome, detail = run_tests(tests, root)
    finally:
        place.file.write_text(place.before, "utf-8")
    seconds = round(time.monotonic() - started, 1)
    return report | {"outcome": outcome, "detail": detail, "seconds": seconds}


def run_tests(tests: Sequence[str], root: Path) -> tuple[str, str]:
    """`found` and the first failure, or `survived`, `no tests` or `found (timeout)`."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", *tests]
    environment = os.environ | {"PYTHONPATH": str(root)}
    try:
        done = subprocess.run(
            command,
            check=False,
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
    except subprocess.TimeoutExpired:
        return "found (timeout)", f"over {LIMIT} s"
    failures = [
        line
        for line in done.stdout.splitlines()
        if line.startswith(("FAILED", "ERROR"))
    ]
    outcomes = {0: "survived", 1: "found", 5: "no tests"}
    return (
        outcomes.get(done.returncode, "found (collection)"),
        failures[0] if failures else "",
    )


def copy_tree(target: Path) -> None:
    """Copies the files that git tracks, as they are in the working tree."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the faults that are asked for, and prints a summary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="only check the list")
    parser.add_argument("--only", type=int, action="append", help="number of a fault")
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th fault from i")
    parser.add_argument("--output", type=Path, help="JSON lines, continued if there")
    given = parser.parse_args(arguments)
    faults = read_faults(LIST.read_text("utf-8"))
    if given.check:
        problems = check(faults, ROOT)
        print("\n".join([*problems, f"{len(faults)} faults, {len(problems)} problems"]))
        sys.exit(1 if problems else 0)
    index, count = map(int, given.shard.split("/"))
    wanted = [f for f in faults if given.only is None or f.number in given.only]
    wanted = wanted[index::count]
    done = _read_output(given.output)
    passing: dict[tuple[str, ...], bool] = {}
    with tempfile.TemporaryDirectory() as name:
        copy_tree(Path(name))
        for fault in wanted:
            if (fault.old, fault.new) in done:
                continue
            report = run_fault(fault, Path(name), passing)
            done[fault.old, fault.new] = report
            print(f"{fault.number:4} {report['outcome']:12} {fault.new}", flush=True)
            if given.output:
                with given.output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(report) + "\n")
    reports = [done[fault.old, fault.new] for fault in wanted]
    outcomes = Counter(str(report["outcome"]) for report in reports)
    found = sum(n for outcome, n in outcomes.items() if outcome not in BAD)
    print(f"{found} of {len(wanted)} found; {dict(outcomes)}")
    for report in reports:
        if report["outcome"] in BAD:
            print(f"{report['outcome']}: {report.get('file')}: {report['new']}")


def _read_output(path: Path | None) -> dict[tuple[str, str], dict[str, object]]:
    if path is None or not path.exists():
        return {}
    reports = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return {(report["old"], report["new"]): report for report in reports}


def _occurrences(text: str, fragment: str) -> Iterator[int]:
    start = text.find(fragment)
    while start >= 0:
        yield start
        start = text.find(fragment, start + 1)


if __name__ == "__main__":
    main()
