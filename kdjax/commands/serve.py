"""Score rows of HTTP requests; answer with scores, alarms, events and metrics.

Answers equal those of `kdjax stream`. The server listens on 127.0.0.1 unless --host is
given; an ONNX file needs onnxruntime only. SIGTERM answers open requests, saves the
state and ends. Needs pip install "kdjax[serve]"; docs/serve.md lists the routes.
"""

import contextlib
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kdjax.commands import common
from kdjax.commands.common import Flag
from kdjax.errors import ArtifactError, ConfigError
from kdjax.io.files import check_detector_folder, check_target, is_fleet
from kdjax.io.lazy import library
from kdjax.notify.outbox import receivers

USAGE = "--detector=DIR_OR_ONNX [--detector=…] [--state=DIR]"
EXAMPLE = "kdjax serve --detector=plant.onnx --state=state"
FLAGS = {
    "Detectors": (
        Flag(
            "detector",
            "DIR_OR_ONNX",
            (),
            "Saved detector or ONNX file, named by its stem. May be repeated.",
        ),
        Flag("shadow", "DIR_OR_ONNX", None, "Second detector, for comparison."),
    ),
    "Network": (
        Flag("host", "ADDRESS", "127.0.0.1", "Address to listen on."),
        Flag("port", "PORT", 8080, "Port to listen on; 0 takes a free one, printed."),
        Flag(
            "token_file",
            "FILE",
            None,
            "File with the token of requests; without it, changes are refused.",
        ),
    ),
    "Sources": (
        Flag(
            "source",
            "SOURCE",
            (),
            "Where to fetch rows: mqtt://HOST/TOPIC, kafka://BROKERS/TOPIC, or a "
            "TOML file for Prometheus or OPC UA. May be repeated.",
        ),
        Flag(
            "scores",
            "RECEIVER",
            (),
            "Where to send the answers to rows of --source; values as in --on_alarm.",
        ),
        Flag(
            "dead_letters",
            "FILE",
            None,
            "File for faulty rows of --source, with the reasons.",
        ),
    ),
    "State and alarms": (
        Flag("state", "DIR", None, "Folder of the state; without it none is kept."),
        common.EXCLUDE,
        Flag("on_alarm", "RECEIVER", (), "Where to send events; see stream --help."),
    ),
    "Limits": (
        Flag("max_body", "BYTES", 8_000_000, "Most bytes of a request's body."),
        Flag("max_rows", "N", 5000, "Most rows of a request."),
        Flag("max_waiting", "N", 20_000, "Most rows in a detector's queue."),
        Flag("max_entities", "N", 10_000, "Most entities of a detector."),
        Flag("most_open", "N", 1000, "Most entities of a detector in memory."),
        Flag("request_seconds", "S", 30.0, "Most seconds to receive a request."),
        Flag("entity_metrics", "BOOL", True, "Metrics of each entity, of up to 1,000."),
    ),
}


def main(arguments: list[str], flags: common.Flags) -> None:
    """Runs the verb."""
    common.no_arguments("serve", arguments)
    if not flags.detector:
        raise ConfigError("serve needs --detector; see kdjax serve --help.")
    for name in ("starlette", "uvicorn", "prometheus_client"):
        library(name, f"serve needs {name}", "serve")
    if flags.shadow and len(flags.detector) > 1:
        raise ConfigError("--shadow compares with one detector: give one --detector.")
    paths = [Path(path) for path in (*flags.detector, *filter(None, [flags.shadow]))]
    for path in paths:
        if not path.is_file():
            check_detector_folder(path, fleets=True)
    if flags.shadow and any(map(is_fleet, paths)):
        raise ConfigError(
            "--shadow compares single detectors: give FLEET/detectors/MACHINE for a "
            "machine of a fleet."
        )
    if flags.exclude and not Path(flags.exclude).is_file():
        raise ConfigError(f"--exclude={flags.exclude} is not a file: correct the path.")
    token = _token(flags.token_file)
    to = receivers(flags.on_alarm, inputs=paths)
    scores = receivers(flags.scores, inputs=paths, flag="scores")
    if flags.dead_letters:
        check_target(flags.dead_letters, inputs=paths, name="--dead_letters")
    if (scores or flags.dead_letters) and not flags.source:
        raise ConfigError(
            "--scores and --dead_letters need --source: they take rows of sources only."
        )
    from kdjax.scoring.managed import Spans
    from kdjax.service.app import App, names_of
    from kdjax.service.engine import Engine, Limits
    from kdjax.service.server import serve_until_signal
    from kdjax.service.sources import DeadLetters, open_sources

    specs = []
    if flags.source:
        from kdjax.service.clients import read_source

        specs = [*map(read_source, dict.fromkeys(flags.source))]
    names = names_of(flags.detector)
    for name in ("max_body", "max_rows", "max_waiting", "max_entities", "most_open"):
        if (value := int(flags[name].value or 0)) < 1:
            raise ConfigError(f"--{name}={value}: give 1 or more.")
    limits = Limits(
        body=flags.max_body,
        rows=flags.max_rows,
        waiting=flags.max_waiting,
        entities=flags.max_entities,
        open=flags.most_open,
        seconds=max(0.1, flags.request_seconds),
    )
    excluded = Spans(Path(flags.exclude), _say) if flags.exclude else None
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(_listening(flags.host, flags.port))
        if any(path.is_dir() for path in paths):
            common.start_jax()
        folder = stack.enter_context(_folder(flags.state))
        engines: dict[str, Engine] = {}
        app = App(
            engines, limits=limits, token=token, entity_metrics=flags.entity_metrics
        )
        for name, path in zip(names, flags.detector, strict=True):
            engines[name] = Engine(
                name,
                Path(path),
                folder,
                limits=limits,
                clock=app.clock,
                to=to,
                shadow=Path(flags.shadow) if flags.shadow else None,
                excluded=excluded,
                log=_say,
                committed=app.committed,
            )
            stack.callback(engines[name].close)
            loaded = engines[name].loaded
            _say(
                f"{name}: {len(loaded.plan.channels)} channels, windows of "
                f"{loaded.plan.window} rows, on {loaded.backend}"
            )
        sources = app.collected.sources
        sources += open_sources(
            specs,
            engines,
            dead=DeadLetters(
                Path(flags.dead_letters) if flags.dead_letters else None, _say
            ),
            scores=scores,
            kept=str(folder.absolute()) if flags.state else "",
            most=limits.body,
            log=_say,
        )
        for source in sources:
            stack.callback(source.close)
            source.start()
        if flags.state is None:
            _say("no --state: the state is lost when the server ends.")
        host, port = listening.getsockname()[:2]
        if not token and host not in ("127.0.0.1", "::1"):
            _say(f"no --token_file: every client that reaches {host} can send rows.")
        shown = f"[{host}]" if ":" in host else host
        _say(f"listening on http://{shown}:{port}")
        serve_until_signal(app, listening)


def _token(path: str | None) -> str:
    """The token in a file; empty without a file."""
    if path is None:
        return ""
    try:
        token = Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"--token_file: {path} can't be read ({error}).") from None
    if (
        len(token) < 16
        or not token.isascii()
        or not token.isprintable()
        or " " in token
    ):
        raise ConfigError(
            f"--token_file: {path} has no token of 16 or more ASCII characters without "
            "spaces: write one with openssl rand -hex 32"
        )
    return token


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"--host={host} --port={port}: can't listen there ({error}): give another "
            "port, or end the program that uses it."
        ) from None


@contextlib.contextmanager
def _folder(state: str | None) -> Iterator[Path]:
    """The folder of the states; a temporary one for None."""
    if state is None:
        with tempfile.TemporaryDirectory(prefix="kdjax-serve-") as temporary:
            yield Path(temporary)
        return
    folder = Path(state)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"--state={state} is not a folder ({error}).") from None
    yield folder


def _say(text: str) -> None:
    print(f"kdjax: {common.in_flags(text)}", file=sys.stderr, flush=True)
