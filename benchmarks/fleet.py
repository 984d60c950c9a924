"""Times `kdjax fleet` beside loops over machines, and how it grows with their number.

    python benchmarks/fleet.py --machines=10,100,1000 --output=fleet.jsonl

Machines are made up: 5,000 rows of 10 channels, waves and noise, a Parquet file each.
All ways train one student of 16 units a machine on the data alone, with as many steps.

    loops     20 machines by `fleet`, by one `kdjax run` each, and by `KDDetector.fit` in
              one warm process, in turns (`--turns`), with one compilation cache
    kills     `fleet` on two Ray nodes of this computer, one of which is killed at a
              random moment, `--kills` times; the detectors' bytes are compared
    growth    `fleet` and `score` of 10 to 1,000 machines, local and on Ray: seconds a
              machine, and the most memory of the process that was called

`KDDetector` also trains a teacher, here of one unit in one epoch. Each measurement is a
line of the output.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROWS, WIDTH, LOOP = 5_000, 10, 20
PROGRAM = [sys.executable, str(Path(__file__).parent.parent / "launch.py")]
ALONE = ["--config.distill.alpha=0"]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machines", default="10,100,1000")
    parser.add_argument("--executors", default="local,ray")
    parser.add_argument("--turns", type=int, default=2, help="of the loops; 0 for none")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("fleet.jsonl"))
    parser.add_argument("--warm", type=Path, help="runs KDDetector over FOLDER's files")
    given = parser.parse_args()
    if given.warm:
        warm_loop(given.warm)
        return
    counts = [int(count) for count in given.machines.split(",") if count]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for turn in range(given.turns):
            for way in ("fleet", "run", "estimator"):
                record(given.output, compare(folder, way, turn))
        if given.kills:
            kill_nodes(folder, given.kills, given.output)
        for count in counts:
            plants = make(folder / f"plants{count}", count)
            for executor in given.executors.split(","):
                for line in grow(folder, plants, count, executor):
                    record(given.output, line)
    tell(given.output)


def make(folder: Path, count: int) -> Path:
    """A folder of machines."""
    folder.mkdir(exist_ok=True)
    clock = pd.date_range("2026-01-01", periods=ROWS, freq="1min")
    for machine in range(count):
        rng, time_ = np.random.default_rng(machine), np.arange(ROWS)[:, None]
        period, phase = rng.uniform(20, 90, WIDTH), rng.uniform(0, 6, WIDTH)
        waves = np.sin(2 * np.pi * time_ / period + phase) * rng.uniform(0.5, 3, WIDTH)
        values = waves + rng.normal(0, 0.1, (ROWS, WIDTH)) + rng.normal(0, 5, WIDTH)
        names = [f"c{i}" for i in range(WIDTH)]
        frame = pd.DataFrame(values.astype(np.float32), columns=names)
        frame.insert(0, "time", clock)
        frame.to_parquet(folder / f"m{machine:05d}.parquet", index=False)
    return folder


def compare(folder: Path, way: str, turn: int) -> dict[str, Any]:
    """Seconds of one way for `LOOP` machines."""
    plants, output = make(folder / "loop", LOOP), folder / f"loop-{way}"
    shutil.rmtree(output, ignore_errors=True)
    started = time.monotonic()
    if way == "fleet":
        call("fleet", str(plants), f"--output={output}", *ALONE)
    elif way == "run":
        for path in sorted(plants.iterdir()):
            source = f"--config.data.path={path}"
            call("run", source, f"--workdir={output / path.stem}", *ALONE)
    else:
        done = subprocess.run(
            [sys.executable, __file__, f"--warm={plants}"],
            check=True,
            capture_output=True,
            text=True,
        )
        seconds = float(done.stdout.split()[-1])  # without imports
        return {"what": "loop", "way": way, "turn": turn, "seconds": seconds / LOOP}
    seconds = time.monotonic() - started
    return {"what": "loop", "way": way, "turn": turn, "seconds": seconds / LOOP}


def warm_loop(plants: Path) -> None:
    """Fits `KDDetector` to each machine; prints seconds, the first machine apart."""
    import kdjax
    from kdjax.training.sharding import start_program

    start_program()
    paths = sorted(plants.iterdir())
    for number, path in enumerate([paths[0], *paths]):
        if number == 1:  # compiled
            started = time.monotonic()
        rows = pd.read_parquet(path).set_index("time")
        kdjax.KDDetector(
            detector="student", alpha=0.0, teacher_hidden=(1,), teacher_epochs=1
        ).fit(rows)
    print(time.monotonic() - started)


def grow(folder: Path, plants: Path, count: int, executor: str) -> list[dict[str, Any]]:
    """Seconds a machine and memory of `fleet` and `score`."""
    output, scores = folder / f"fleet-{count}-{executor}", folder / "scores"
    where = [f"--executor={executor}"]
    lines = []
    for verb, arguments in (
        ("fleet", [str(plants), f"--output={output}", *ALONE]),
        ("score", [str(plants), f"--detector={output}", f"--output={scores}/"]),
    ):
        started = time.monotonic()
        memory = call(verb, *arguments, *where)
        seconds = time.monotonic() - started
        lines.append(
            {
                "what": "growth",
                "verb": verb,
                "machines": count,
                "executor": executor,
                "seconds": seconds,
                "a_machine": seconds / count,
                "memory_mb": round(memory / 1e6, 1),
            }
        )
    shutil.rmtree(output)
    shutil.rmtree(scores, ignore_errors=True)
    return lines


def kill_nodes(folder: Path, times: int, output: Path) -> None:
    """Kills a node of two in mid-work; the fleet must be that of an undisturbed run."""
    from ray.cluster_utils import Cluster

    plants, rng = make(folder / "killed", 128), np.random.default_rng(0)
    small = [*ALONE, "--config.student.epochs=4", "--config.student.hidden=4"]
    call("fleet", str(plants), f"--output={folder / 'whole'}", *small)
    wanted = digests(folder / "whole")
    os.environ["RAY_AUTH_MODE"] = "disabled"
    root = str(Path(__file__).parent.parent)
    os.environ["PYTHONPATH"] = root  # of the workers
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    for turn in range(times):
        node = cluster.add_node(num_cpus=1)
        target = folder / f"turn{turn}"
        command = ["fleet", str(plants), f"--output={target}", *small]
        where = ["--executor=ray", f"--ray_address={cluster.address}"]
        with tempfile.TemporaryFile("w+") as told:
            process = subprocess.Popen(
                [*PROGRAM, *command, *where], stdout=told, stderr=told
            )
            moment = float(rng.uniform(8, 24))  # Ray takes 8 s to start
            time.sleep(moment)
            running = process.poll() is None
            cluster.remove_node(node, allow_graceful=False)
            code = process.wait()
        catalogue = pd.read_parquet(target / "catalogue.parquet")
        line = {
            "what": "kill",
            "after": round(moment, 1),
            "in_work": running,
            "exit": code,
            "ready": int((catalogue["state"] == "ready").sum()),
            "machines": len(catalogue),
            "distinct": int(catalogue["entity"].nunique()),
            "same_bytes": digests(target) == wanted,
        }
        record(output, line)
    cluster.shutdown()


def digests(folder: Path) -> dict[str, bytes]:
    """The manifests of a fleet's detectors."""
    found = folder.glob("detectors/*/MANIFEST.sha256")
    return {path.parent.name: path.read_bytes() for path in found}


def call(*arguments: str) -> int:
    """Runs the program; the most memory that its process held, in bytes."""
    with tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen([*PROGRAM, *arguments], stdout=told, stderr=told)
        most = 0
        while process.poll() is None:
            most = max(most, held(process.pid))
            time.sleep(0.1)
        if process.returncode:
            told.seek(0)
            raise SystemExit(told.read()[-2000:])
    return most


def held(pid: int) -> int:
    """The peak of a process's resident memory so far."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8") as file:
            found = [line.split()[1] for line in file if line.startswith("VmHWM")]
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 1024 * int(found[0]) if found else 0


def record(output: Path, line: dict[str, Any]) -> None:
    """Prints a line and keeps it."""
    line = {**line, "load": round(os.getloadavg()[0], 1)}
    print(json.dumps(line), flush=True)
    with output.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def tell(output: Path) -> None:
    """Medians and ratios."""
    lines = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    loops: dict[str, list[float]] = {}
    for line in lines:
        if line["what"] == "loop":
            loops.setdefault(line["way"], []).append(line["seconds"])
    for way, seconds in loops.items():
        ratio = statistics.median(seconds) / statistics.median(loops["fleet"])
        print(
            f"{way}: {statistics.median(seconds):.2f} s a machine, {ratio:.1f} x fleet"
        )
    for verb in ("fleet", "score"):
        own = [one for one in lines if one.get("verb") == verb]
        for executor in sorted({one["executor"] for one in own}):
            points = [one for one in own if one["executor"] == executor]
            x = [one["machines"] for one in points]
            y = [one["seconds"] for one in points]
            if len(x) > 1 and y[-1] > y[0]:
                slope, start = np.polyfit(x, y, 1)
                print(
                    f"{verb} on {executor}: {start:.1f} s and {slope:.3f} s a machine; by "
                    f"this slope 10^6 machines take {slope * 1e6 / 3600:,.0f} hours "
                    "(projection)"
                )


if __name__ == "__main__":
    main()
