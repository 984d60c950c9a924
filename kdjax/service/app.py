"""The HTTP side of the service: requests, answers, limits and tokens.

Starlette handles routes and streams. Bodies are read by `kdjax.service.bodies`, since a
check of each row by a schema would cost more than scoring it.
"""

import asyncio
import contextlib
import hmac
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route as StarletteRoute

from kdjax.detection.occurrences import json_number
from kdjax.detection.thresholds import parse_budget
from kdjax.detection.timestamps import parse_timestamp
from kdjax.errors import ConfigError, DataError, KdjaxError
from kdjax.io.files import kdjax_version
from kdjax.scoring.managed import source_of
from kdjax.service import infer, openapi, page
from kdjax.service.answers import stateless, texts_of
from kdjax.service.bodies import (
    JSON,
    RequestError,
    as_object,
    check_entity,
    media_of,
    read_rows,
    read_windows,
)
from kdjax.service.engine import Engine, Limits
from kdjax.service.journal import Clock
from kdjax.service.loading import Loaded
from kdjax.service.metrics import Metrics

USUAL = Limits()
SCORERS = 4  # stateless requests in progress or in the queue
MOST = 1000  # events or entities of an answer
MOST_FAILURES = 100  # machines of a fleet that are listed with their reason
SHOWN_EVENTS = 40  # entries of an entity's history
HEARTBEAT = 15.0  # seconds between two comments to listeners
SMALL = 100_000  # bytes of a body that is read at once, not in a thread
_ENCODE = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
T = TypeVar("T")


class App:
    """The service's routes; `asgi` is the application.

    Args:
        engines: detectors in service, by name.
        limits: of requests.
        token: that requests must send; empty for none: then changes are refused.
        entity_metrics: whether entities have metrics of their own.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        *,
        limits: Limits = USUAL,
        token: str = "",
        entity_metrics: bool = True,
    ) -> None:
        self.engines, self.limits, self.clock = engines, limits, Clock()
        self._token = token.encode()
        self.collected = Metrics(engines, entities=entity_metrics)
        self._scoring = self._listening = 0
        self._ending = False
        self._news = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        routes = [
            StarletteRoute(route.path, self._guarded(route), methods=[route.method])
            for route in openapi.ROUTES
        ]
        self.asgi = Starlette(
            routes=routes,
            lifespan=self._lifespan,
            exception_handlers={HTTPException: _http_error, Exception: _fault},
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self._loop = asyncio.get_running_loop()
        yield
        self.end()

    def end(self) -> None:
        """Ends sources, and open requests, at the end of the service."""
        self._ending = True
        for source in self.collected.sources:
            source.stop()
        self.committed()

    def committed(self) -> None:
        """Wakes up requests that wait for events; for any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _guarded(self, route: openapi.Route) -> Callable[[Request], Any]:
        """A handler with its token check, errors as JSON, and metrics."""
        handler = getattr(self, route.handler)

        async def answer(request: Request) -> Response:
            begun = request.state.begun = time.perf_counter()
            try:
                self._check_token(request, route.token)
                response = await handler(request)
            except RequestError as error:
                if error.reason != "sequence":
                    self.collected.refused_requests.labels(error.reason).inc()
                response = _refusal(error)
                error.__traceback__ = None  # its frames refer to the body, in a cycle
            except ClientDisconnect:
                response = Response(status_code=400)
            begun = request.state.begun
            seconds = self.collected.seconds.labels(route.path)
            seconds.observe(time.perf_counter() - begun)
            self.collected.requests.labels(route.path, response.status_code).inc()
            return response

        return answer

    def _check_token(self, request: Request, kind: str) -> None:
        if kind == openapi.OPEN:
            return
        if not self._token:
            if kind == openapi.CHANGE:
                raise RequestError(
                    403,
                    "changes are refused: start the service with --token_file.",
                    "token",
                )
            return
        given = request.headers.get("authorization", "")
        way, _, token = given.partition(" ")
        found = token.strip().encode("utf-8", "surrogateescape")
        if way.lower() != "bearer" or not hmac.compare_digest(found, self._token):
            text = "send the token: Authorization: Bearer TOKEN."
            header = ("WWW-Authenticate", "Bearer")
            raise RequestError(401, text, "token", header=header)

    def _engine(self, request: Request) -> Engine:
        name = request.path_params["name"]
        if name not in self.engines:
            raise RequestError(404, f"no detector {name[:100]!r}; see /v1/detectors.")
        return self.engines[name]

    async def _body(self, request: Request) -> bytes:
        """The body, within the limits of bytes and seconds."""
        most, seconds = self.limits.body, self.limits.seconds
        given = request.headers.get("content-length", "0")
        if given.isdigit() and int(given) > most:
            raise RequestError(413, f"a body of more than {most} bytes.", "body")
        found, size = list[bytes](), 0
        try:
            async with asyncio.timeout(seconds):
                async for piece in request.stream():
                    found.append(piece)
                    size += len(piece)
                    if size > most:
                        raise RequestError(
                            413, f"a body of more than {most} bytes.", "body"
                        )
        except TimeoutError:
            text, header = (
                f"the body took more than {seconds:g} s.",
                ("Connection", "close"),
            )
            raise RequestError(408, text, "slow", header=header) from None
        request.state.begun = time.perf_counter()
        return b"".join(found)

    async def _object(self, request: Request, *keys: str) -> dict[str, Any]:
        """A small JSON object; an empty one for no body."""
        data = await self._body(request)
        if not data:
            return {}
        media_of(request.headers, (JSON,))
        return as_object(data, keys)

    # Health and metrics.

    async def health(self, request: Request) -> Response:
        return _json({"status": "alive", "version": kdjax_version()})

    async def readiness(self, request: Request) -> Response:
        faults = {
            n: e.fault or "starting" for n, e in self.engines.items() if not e.ready
        }
        if faults or self._ending:
            return _json({"status": "not ready", "detectors": faults}, 503)
        return _json({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        text, media = self.collected.text()
        return Response(text, media_type=media)

    async def openapi(self, request: Request) -> Response:
        return _json(openapi.document([*self.engines]))

    # Detectors.

    async def detectors(self, request: Request) -> Response:
        found = [_about(name, engine) for name, engine in self.engines.items()]
        return _json({"detectors": found})

    async def detector(self, request: Request) -> Response:
        engine, entity = self._engine(request), request.query_params.get("entity", "")
        loaded = engine.loaded
        about = _about(request.path_params["name"], engine)
        if loaded.fleet and not entity:
            found = await to_thread.run_sync(fleet_summary, loaded)
            return _json({**about, **found, "limits": self.limits._asdict()})
        if loaded.fleet:
            loaded = await _of_machine(engine, entity)
            about |= {"entity": entity, "digest": loaded.digest}
        plan = loaded.plan
        tau = engine.tau(entity if engine.loaded.fleet else "", loaded)
        about |= {
            "channels": plan.channels,
            "entities": loaded.entities,
            "step": plan.step,
            "threshold": {
                "tau": json_number(tau),
                "of_detector": json_number(plan.tau),
                "method": plan.threshold_method,
                "rate": plan.rate,
                "changes": engine.thresholds.changes[-100:],
            },
            "limits": self.limits._asdict(),
            "card": loaded.card,
        }
        return _json(about)

    async def page(self, request: Request) -> Response:
        data, headers = page.page_file()
        return Response(data, headers=headers, media_type="text/html")

    async def entities(self, request: Request) -> Response:
        engine, most = self._engine(request), _most(request)
        find = request.query_params.get("find", "")
        found = await to_thread.run_sync(page.entity_list, engine, find, most)
        return _json(found)

    async def history(self, request: Request) -> Response:
        engine = self._engine(request)
        entity = check_entity(request.query_params.get("entity", ""))
        if entity not in engine.machines.names:
            raise RequestError(404, f"no rows of {entity[:100]!r} have arrived.")
        events = await to_thread.run_sync(
            lambda: engine.log.after(0, most=SHOWN_EVENTS, entity=entity, latest=True)
        )
        return _json(page.entity_history(engine, entity, events))

    async def rows(self, request: Request) -> Response:
        return await self._answered(request, "")

    async def stream(self, request: Request) -> Response:
        return await self._answered(
            request, check_entity(request.path_params["entity"])
        )

    async def _answered(self, request: Request, entity: str) -> Response:
        engine = self._engine(request)
        media = media_of(request.headers)
        data = await self._body(request)
        plan, most = engine.loaded.plan, self.limits.rows
        body = await _in_thread(
            len(data), lambda: read_rows(data, media, plan, most=most, entity=entity)
        )
        answers = await _result(engine.submit(body))
        if media != JSON:
            return Response(texts_of(answers), media_type="application/x-ndjson")
        events = [e for several in answers.events for e in several]
        text = f'{{"rows":[{",".join(answers.texts)}],"events":{_ENCODE(events)}}}'
        return Response(text, media_type=JSON)

    async def score(self, request: Request) -> Response:
        engine = self._engine(request)
        media = media_of(request.headers)
        loaded = await _of_machine(engine, request.query_params.get("entity", ""))
        plan, most = loaded.plan, self.limits.rows
        entity = request.query_params.get("entity", plan.entity)
        known = engine.loaded.fleet or entity in (*loaded.entities, plan.entity)
        if not known:
            raise RequestError(400, f"no entity {entity[:100]!r}; see the detector's.")
        explain = _flag(request, "contributions")
        data = await self._body(request)

        def work() -> str:
            if media == JSON:
                found = as_object(data, ("rows", "time", "windows"))
                if "windows" in found:
                    if len(found) > 1:
                        raise RequestError(400, "give rows or windows, not both.")
                    windows = read_windows(
                        found["windows"], plan, most=most * plan.window
                    )
                    tau = engine.tau(entity, loaded)
                    return _windows_text(loaded, tau, windows, entity, explain)
            body = read_rows(data, media, plan, most=most, entity=entity)
            own = engine.thresholds.of(entity)
            answers = stateless(loaded, own, body.lines, explain)
            texts = ",".join(text for text, _ in answers)
            events = [e for _, row in answers if row for e in row.events]
            return f'{{"rows":[{texts}],"events":{_ENCODE(events)}}}'

        return Response(await self._scored(work), media_type=JSON)

    async def _scored(self, work: Callable[[], T]) -> T:
        """Runs stateless work in a thread; raises if too much of it is in the queue."""
        if self._scoring >= SCORERS:
            text = "too many requests are being scored: try again later."
            raise RequestError(429, text, "queue", header=("Retry-After", "1"))
        self._scoring += 1
        try:
            return await to_thread.run_sync(work)
        except (DataError, ConfigError) as error:
            raise RequestError(400, str(error)) from error
        finally:
            self._scoring -= 1

    async def threshold(self, request: Request) -> Response:
        engine = self._engine(request)
        given = await self._object(request, "tau", "budget", "entity", "note")
        tau, budget = given.get("tau"), given.get("budget")
        if (tau is None) == (budget is None):
            raise RequestError(400, "give tau or budget.")
        if tau is not None and (
            type(tau) not in (int, float) or not math.isfinite(_float(tau)) or tau <= 0
        ):
            raise RequestError(400, "tau is a number above 0.")
        try:
            per_day = None if budget is None else parse_budget(_text(given, "budget"))
        except ConfigError as error:
            raise RequestError(400, str(error)) from None
        entity = None if given.get("entity") is None else _text(given, "entity")
        if engine.loaded.fleet and entity is None:
            raise RequestError(
                400, "give the entity: each machine of a fleet has its own threshold."
            )
        if entity is not None and check_entity(entity) not in engine.machines.names:
            raise RequestError(404, f"no rows of {entity[:100]!r} have arrived.")
        note = _text(given, "note")
        number = None if tau is None else float(tau)
        change = await _result(
            engine.call(lambda: engine.set_threshold(number, per_day, entity, note))
        )
        return _json(change)

    async def shadow(self, request: Request) -> Response:
        engine = self._engine(request)
        if engine.shadow is None:
            raise RequestError(
                404, "there is no shadow: start the service with --shadow."
            )
        return _json(await _result(engine.call(engine.shadow.compared)))

    async def promote(self, request: Request) -> Response:
        engine = self._engine(request)
        await _result(engine.call(engine.promote))
        return _json(_about(request.path_params["name"], engine))

    # Events.

    async def events(self, request: Request) -> Response:
        since = request.headers.get("last-event-id") or request.query_params.get(
            "since", "0"
        )
        number = _number_of(since)
        most, latest = _most(request), _flag(request, "latest")
        if "text/event-stream" not in request.headers.get("accept", ""):
            found = await to_thread.run_sync(self._since, number, most, latest)
            last = found[-1]["number"] if found else number
            return _json({"events": found, "next": last})
        if self._listening >= self.limits.listeners:
            text, header = "too many listeners.", ("Retry-After", "10")
            raise RequestError(429, text, "listeners", header=header)
        headers = {"Cache-Control": "no-store"}
        return StreamingResponse(
            self._told(number), media_type="text/event-stream", headers=headers
        )

    def _since(
        self, number: int, most: int, latest: bool = False
    ) -> list[dict[str, Any]]:
        found = [
            entry
            for engine in self.engines.values()
            for entry in engine.log.after(number, most=most, latest=latest)
        ]
        found.sort(key=lambda entry: entry["number"])
        return found[-most:] if latest else found[:most]

    async def _told(self, number: int) -> AsyncIterator[str]:
        """Events as they arrive, as server-sent events."""
        self._listening += 1
        try:
            yield ": events follow\n\n"
            while not self._ending:
                news = self._news
                found = await to_thread.run_sync(self._since, number, MOST)
                for entry in found:
                    number = entry["number"]
                    yield f"id: {number}\nevent: event\ndata: {_ENCODE(entry)}\n\n"
                if not found:
                    try:
                        await asyncio.wait_for(news.wait(), HEARTBEAT)
                    except TimeoutError:
                        yield ": nothing new\n\n"
        finally:
            self._listening -= 1

    async def acknowledge(self, request: Request) -> Response:
        given = await self._object(request, "by", "note")
        mark = {
            "time": time.time(),
            "by": _text(given, "by"),
            "note": _text(given, "note"),
        }
        name, engine, entry = await self._event(request)
        await _result(engine.call(lambda: engine.acknowledge(name, mark)))
        return _json({**entry, "acknowledged": mark})

    async def shelve(self, request: Request) -> Response:
        given = await self._object(request, "until", "reason", "by")
        until = given.get("until")
        if until is not None:
            until = _number_of(str(until)) / 1e6
        mark = {
            "time": time.time(), "until": until, "reason": _text(given, "reason"),
            "by": _text(given, "by"),
        }  # fmt: skip
        _, engine, entry = await self._event(request)
        await _result(engine.call(lambda: engine.shelve(source_of(entry), mark)))
        return _json({**entry, "shelved": mark})

    async def _event(self, request: Request) -> tuple[str, Engine, dict[str, Any]]:
        """The latest entry of the event in a path."""
        name = request.path_params["id"]
        for engine in self.engines.values():
            log = engine.log
            found = await to_thread.run_sync(lambda: log.after(0, most=10, name=name))  # noqa: B023
            if found:
                return name, engine, found[-1]
        raise RequestError(404, f"no event {name[:100]!r}; see /v1/events.")

    # Open Inference Protocol.

    async def v2(self, request: Request) -> Response:
        return _json(infer.about_server())

    async def live(self, request: Request) -> Response:
        return _json({"live": True})

    async def ready(self, request: Request) -> Response:
        ready = all(engine.ready for engine in self.engines.values())
        return _json({"ready": ready}, 200 if ready else 503)

    async def model(self, request: Request) -> Response:
        name, engine = request.path_params["name"], _single(self._engine(request))
        return _json(infer.about_model(name, engine.loaded))

    async def model_ready(self, request: Request) -> Response:
        engine = self._engine(request)
        return _json(
            {"name": request.path_params["name"], "ready": engine.ready},
            200 if engine.ready else 503,
        )

    async def infer(self, request: Request) -> Response:
        engine, name = _single(self._engine(request)), request.path_params["name"]
        # tritonclient names none; nothing is stored, so that any page may send requests.
        media_of(request.headers, (JSON, "application/octet-stream"), usual=JSON)
        data = await self._body(request)
        loaded, most = engine.loaded, self.limits.rows * engine.loaded.plan.window
        found, headers = await self._scored(
            lambda: infer.answer_inference(
                name, loaded, data, request.headers, most=most
            )
        )
        return Response(found, headers=headers)


async def _of_machine(engine: Engine, entity: str) -> Loaded:
    """The detector of a machine of a fleet, else the one in service."""
    if not engine.loaded.fleet:
        return engine.loaded
    return await to_thread.run_sync(engine.loaded_of, entity)


def _single(engine: Engine) -> Engine:
    """An engine of a single detector; RequestError for a fleet."""
    if engine.loaded.fleet:
        raise RequestError(
            400, f"{engine.name} is a fleet, whose machines have models of their own: "
            "send rows with their entity, or serve the folder of a machine.",
        )  # fmt: skip
    return engine


def fleet_summary(loaded: Loaded) -> dict[str, Any]:
    """A summary of a fleet: its machines by state, and its channels."""
    from kdjax.detection.fleet import FAILED, READY, STUDENT, catalogue_rows

    rows = [*catalogue_rows(loaded.path).items()]
    failed = {name: why for name, (state, why, _) in rows if state == FAILED}
    ready = [detector for _, (state, _, detector) in rows if state == READY]
    return {
        "fleet": {
            "machines": len(rows),
            "ready": len(ready),
            "failed": len(failed),
            "with_fleets_values": ready.count(STUDENT),
            "failures": dict(sorted(failed.items())[:MOST_FAILURES]),
        },
        "channels": loaded.plan.channels,
    }


async def _result(future: "Future[T]") -> T:
    """The result of work in another thread, which continues if the client disconnects."""
    try:
        return await asyncio.shield(asyncio.wrap_future(future))
    except RequestError:
        raise
    except (KdjaxError, OSError) as error:
        raise RequestError(503, str(error), "disk") from error


async def _in_thread(size: int, work: Callable[[], T]) -> T:
    """Work on so many bytes; much of it runs in a thread, not to delay other requests."""
    return work() if size <= SMALL else await to_thread.run_sync(work)


def _windows_text(
    loaded: Loaded, tau: float, windows: np.ndarray, entity: str, explain: bool
) -> str:
    found = loaded.scored(windows, entity)
    answer: dict[str, Any] = {
        "window_score": _numbers(found.window_score),
        "alarm": [int(score > tau) for score in found.window_score.tolist()],
        "point_score": [*map(_numbers, found.point_score)],
    }
    if explain:
        answer["contributions"] = [[*map(_numbers, one)] for one in found.contribution]
    return _ENCODE(answer)


def _numbers(values: Any) -> list[Any]:
    return [*map(json_number, values.tolist())]


def _about(name: str, engine: Engine) -> dict[str, Any]:
    loaded = engine.loaded
    return {
        "name": name,
        "ready": engine.ready,
        "backend": loaded.backend,
        "digest": loaded.digest,
        "window": loaded.plan.window,
        "known_entities": len(engine.machines.names),
        "rows": engine.machines.rows,
        "shadow": engine.shadow and engine.shadow.loaded.digest,
    }


def _number_of(text: str) -> int:
    """The event number for a number, or for a time: seconds since 1970 or ISO."""
    if text.isascii() and text.isdigit() and len(text) > 12:
        return min(int(text[:19]), 2**62)
    try:
        time = parse_timestamp(text)
    except DataError as error:
        raise RequestError(400, f"since or until: {error}") from None
    micros = time.value * 1e6 if time.clock == "number" else time.value / 1000
    if not 0 <= micros < 2**62:
        raise RequestError(400, "since or until: seconds since 1970 or an ISO time.")
    return int(micros)


def _most(request: Request) -> int:
    most = request.query_params.get("most", str(MOST))
    if not (
        most.isascii() and most.isdigit() and len(most) < 6 and 0 < int(most) <= MOST
    ):
        raise RequestError(400, f"most must be from 1 to {MOST}.")
    return int(most)


def _flag(request: Request, name: str) -> bool:
    value = request.query_params.get(name, "false")
    if value not in ("true", "false"):
        raise RequestError(400, f"{name} must be true or false.")
    return value == "true"


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _text(given: Mapping[str, Any], key: str) -> str:
    value = given.get(key, "")
    if not isinstance(value, str) or len(value) > 1000:
        raise RequestError(400, f"{key} must be a text of at most 1000 characters.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RequestError(400, f"{key} must be a text.") from None
    return value


def _json(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    return Response(_ENCODE(value), status, dict(headers or {}), JSON)


def _refusal(error: RequestError) -> Response:
    return _json({"error": str(error), **error.keys}, error.status, error.headers)


async def _http_error(_: Request, error: Exception) -> Response:
    """Starlette's own errors, such as for an unknown path."""
    assert isinstance(error, HTTPException)
    return _json({"error": error.detail}, error.status_code, error.headers)


async def _fault(_: Request, error: Exception) -> Response:
    return _json({"error": "internal error of the service; see its log."}, 500)


def names_of(paths: Sequence[str]) -> list[str]:
    """Names of detectors: the stems of their folders or files."""
    found = [Path(path).resolve().name.removesuffix(".onnx") for path in paths]
    for name in found:
        if found.count(name) > 1:
            raise ConfigError(
                f"two detectors are named {name!r} by their folder or file: rename one."
            )
        check_entity(name)
    return found
