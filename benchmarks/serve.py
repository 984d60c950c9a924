"""Times `kdjax serve` beside a plain service that scores row by row, on the same cores.

    python benchmarks/serve.py [--seconds=20] [--turns=3] [--entities=1000] [--batch=100]

Both have the same ONNX file (D = 38, L = 100, a student of 16 units) and get the same
rows over HTTP on loopback, in turns. The client runs on the same cores: its share of the
processor's time is told. `kdjax serve` commits each batch to its state before it answers;
the plain service keeps deques in memory: Starlette, onnxruntime, one call a row. It is
measured with one row a request, as such services are called, and with whole batches.
"""

import argparse
import http.client
import itertools
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from timing import kdjax_side, work

ROOT = Path(__file__).parent.parent
WIDTH, WINDOW = work.WIDTH, work.WINDOW


class Server(NamedTuple):
    """A service that runs in a process of its own."""

    name: str
    process: "subprocess.Popen[str]"
    port: int
    batch: int  # rows of a request


class Load(NamedTuple):
    """What one turn gave."""

    rows: int
    seconds: float
    delays: list[float]  # of requests, in seconds
    server: float  # seconds of the processor's time
    client: float
    memory: int  # bytes at the end


def main() -> None:
    """Prints one JSON object a turn, and a table at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--entities", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument(
        "--only",
        default="kdjax,plain_rows,plain",
        help="plain_rows gets one row a request",
    )
    parser.add_argument("--plain", nargs=2, help="runs the plain service: FILE PORT")
    given = parser.parse_args()
    if given.plain:
        plain(given.plain[0], int(given.plain[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "student.onnx"
        write_detector(file)
        names = given.only.split(",")
        servers = [start(name, file, Path(folder), given.batch) for name in names]
        try:
            compare(servers, given)
        finally:
            for server in servers:
                server.process.terminate()
                server.process.wait()


def compare(servers: list[Server], given: argparse.Namespace) -> None:
    """Loads the services in turns."""
    bodies = {
        server.batch: [
            *batches(given.entities, server.batch, 40 * given.entities // server.batch)
        ]
        for server in servers
    }
    found = defaultdict(list)
    clocks = {server.name: defaultdict[int, int](int) for server in servers}
    for server in servers:  # so that each entity has a whole window
        warm, own = server._replace(batch=given.batch), clocks[server.name]
        load(warm, bodies[given.batch], given, own, rows=(WINDOW + 10) * given.entities)
    for turn in range(given.turns):
        for server in servers:
            one = load(
                server,
                bodies[server.batch],
                given,
                clocks[server.name],
                seconds=given.seconds,
            )
            found[server.name].append(one)
            print(
                json.dumps({"turn": turn, "service": server.name, **about(one)}),
                flush=True,
            )
    for server in servers:
        single = [*batches(1, 1, 300)]
        one = argparse.Namespace(**{**vars(given), "entities": 1, "connections": 1})
        alone = load(
            server._replace(batch=1),
            single,
            one,
            defaultdict(int),
            rows=1500,
            name="alone-",
        )
        delays = sorted(alone.delays[200:])
        print(json.dumps({
            "service": server.name, "one_entity_p50_ms": round(1e3 * delays[len(delays) // 2], 2),
            "one_entity_p99_ms": round(1e3 * delays[int(0.99 * len(delays))], 2),
        }))  # fmt: skip
    for other in servers[1:]:
        ratios = [
            (a.rows / a.seconds) / (b.rows / b.seconds)
            for a, b in zip(found[servers[0].name], found[other.name], strict=True)
        ]
        text = f"ratio of rows a second, {servers[0].name} to {other.name}:"
        print(
            text,
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        )


def about(one: Load) -> dict[str, Any]:
    """A turn in numbers."""
    delays = sorted(one.delays)
    cores = len(os.sched_getaffinity(0))
    return {
        "rows_a_second": round(one.rows / one.seconds),
        "p50_ms": round(1e3 * delays[len(delays) // 2], 1),
        "p99_ms": round(1e3 * delays[int(0.99 * len(delays))], 1),
        "server_us_a_row": round(1e6 * one.server / one.rows),
        "server_share": round(one.server / one.seconds / cores, 2),
        "client_share": round(one.client / one.seconds / cores, 2),
        "memory_mb": round(one.memory / 1e6),
    }


def write_detector(file: Path) -> None:
    """The ONNX file of an untrained student, whose scores are those of noise."""
    from kdjax.export.onnx import onnx_file

    item = work.WORKS["stream_row_16"]
    file.write_bytes(onnx_file(kdjax_side._detector(item)._replace(step=1.0), 0))


def batches(entities: int, batch: int, count: int) -> Iterator[tuple[str, str, int]]:
    """Bodies without times: names and rows of a batch as JSON text, and its number of rows."""
    rng = np.random.default_rng(0)
    place = 0
    for _ in range(count):
        names = [f"m{(place + n) % entities}" for n in range(batch)]
        place = (place + batch) % entities
        rows = rng.normal(size=(batch, WIDTH)).round(4).tolist()
        yield json.dumps(names), json.dumps(rows), batch


def load(
    server: Server,
    bodies: list[tuple[str, str, int]],
    given: argparse.Namespace,
    clocks: dict[int, int],
    *,
    seconds: float = 1e9,
    rows: float = 1e18,
    name: str = "",
) -> Load:
    """Sends bodies, over several connections, for some seconds or rows.

    Each connection has entities of its own, so that their rows keep their order; `clocks`
    are the times of the next rows of each group of entities.
    """
    cpu = cpu_of(server.process.pid)
    own = resource.getrusage(resource.RUSAGE_SELF)
    begun = time.perf_counter()
    delays, sent, faults = (
        [list[float]() for _ in range(given.connections)],
        [0],
        list[str](),
    )
    per_round = max(1, given.entities // server.batch)

    def send(connection: int) -> None:
        link = http.client.HTTPConnection("127.0.0.1", server.port)
        groups = itertools.cycle(range(connection, per_round, given.connections))
        while time.perf_counter() - begun < seconds and sent[0] < rows and not faults:
            group = next(groups)
            number = group + per_round * clocks[group]
            names, values, count = bodies[number % len(bodies)]
            times = [clocks[group]] * count
            clocks[group] += 1
            if name:
                names = names.replace('"m', f'"{name}')
            body = f'{{"entity": {names}, "time": {times}, "rows": {values}}}'
            start = time.perf_counter()
            link.request("POST", "/v1/detectors/student/rows", body,
                         {"content-type": "application/json"})  # fmt: skip
            response = link.getresponse()
            text = response.read()
            delays[connection].append(time.perf_counter() - start)
            if response.status != 200 or b'"error"' in text:
                faults.append(text[:500].decode())
            sent[0] += count

    threads = [
        threading.Thread(target=send, args=(n,)) for n in range(given.connections)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    passed = time.perf_counter() - begun
    if faults:
        raise SystemExit(f"{server.name}: {faults[0]}")
    now = resource.getrusage(resource.RUSAGE_SELF)
    client = now.ru_utime + now.ru_stime - own.ru_utime - own.ru_stime
    every = [delay for one in delays for delay in one]
    return Load(sent[0], passed, every, cpu_of(server.process.pid) - cpu, client,
                memory_of(server.process.pid))  # fmt: skip


def cpu_of(pid: int) -> float:
    """Seconds of the processor's time that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_of(pid: int) -> int:
    """Bytes of memory that a process has."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def start(name: str, file: Path, folder: Path, batch: int) -> Server:
    """Starts a service and waits until it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    if name.startswith("plain"):
        command = [sys.executable, __file__, "--plain", str(file), str(port)]
    else:
        state = folder / "state"
        command = [sys.executable, str(ROOT / "launch.py"), "serve", f"--detector={file}",
                   f"--state={state}", f"--port={port}"]  # fmt: skip
    process = subprocess.Popen(command, text=True)
    for _ in range(300):
        try:
            socket.create_connection(("127.0.0.1", port), 0.1).close()
            break
        except OSError:
            time.sleep(0.1)
    return Server(name, process, port, 1 if name == "plain_rows" else batch)


def plain(file: str, port: int) -> None:
    """The usual service by hand: a deque for each entity, one call of the model a row."""
    import onnxruntime
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        file, options, providers=["CPUExecutionProvider"]
    )
    buffers: dict[str, deque[list[float]]] = defaultdict(lambda: deque(maxlen=WINDOW))

    async def rows(request: Request) -> JSONResponse:
        body, answers = await request.json(), []
        for name, when, row in zip(
            body["entity"], body["time"], body["rows"], strict=True
        ):
            buffer = buffers[name]
            buffer.append(row)
            answer: dict[str, Any] = {
                "entity": name,
                "time": when,
                "score": None,
                "alarm": 0,
            }
            if len(buffer) == WINDOW:
                x = np.array(buffer, np.float32)[None]
                points, scores, alarm = session.run(
                    ["point_score", "window_score", "alarm"], {"x": x}
                )
                answer |= {
                    "score": float(points[0, -1]),
                    "window_score": float(scores[0]),
                    "alarm": int(alarm[0]),
                }
            answers.append(answer)
        return JSONResponse({"rows": answers})

    app = Starlette(
        routes=[Route("/v1/detectors/student/rows", rows, methods=["POST"])]
    )
    uvicorn.run(app, port=port, log_level="error")


if __name__ == "__main__":
    main()
