"""The routes of the service in one table, and the OpenAPI document from it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kdjax.io.files import kdjax_version

OPEN, READ, CHANGE = "open", "read", "change"
_TEXT, _OBJECT = {"type": "string"}, {"type": "object"}
_WHOLE = {"type": "integer", "minimum": 0}
_CELL = {"type": ["number", "null"]}
_NAME = {**_TEXT, "minLength": 1, "maxLength": 200}  # of an entity
_MOST = {"type": "integer", "minimum": 1, "maximum": 1000}
_NEEDED = {**_NAME}  # a required parameter
_ROW = {
    "oneOf": [
        {"type": "array", "items": _CELL},
        {"type": "object", "additionalProperties": {}},
    ]
}
_LIST = {"type": "array", "minItems": 1}
_TIMES = {"type": "array", "items": {"type": ["number", "string", "null"]}}
_LINES = {**_TEXT, "minLength": 1}
_PLAIN = {"application/x-ndjson": _LINES, "text/csv": _LINES}


def _object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    found = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**found, "required": [*required]} if required else found


_ROWS = _object(("rows",), rows={**_LIST, "items": _ROW}, time=_TIMES, sequence=_WHOLE)
_MANY = _object(
    ("rows",),
    rows={**_LIST, "items": _ROW},
    time=_TIMES,
    entity={"type": "array", "items": _NAME},
)
_WINDOW = {**_LIST, "items": {**_LIST, "items": _CELL}}
_SCORE = {
    "oneOf": [
        _object(("rows",), rows={**_LIST, "items": _ROW}, time=_TIMES),
        _object(("windows",), windows={**_LIST, "items": _WINDOW}),
    ]
}
_TAU = {"type": "number", "exclusiveMinimum": 0}
_CHANGE = {"entity": {**_NAME, "type": ["string", "null"]}, "note": _TEXT}
_INFER = {
    "type": "object",
    "required": ["inputs"],
    "properties": {"inputs": {"type": "array", "items": _OBJECT}},
}


class Route(NamedTuple):
    """A route: a method of `App` answers it."""

    method: str
    path: str
    handler: str
    summary: str
    token: str = READ  # who may call it: see `docs/serve.md`
    bodies: Mapping[str, Any] = {}  # schemas by media type
    query: Mapping[str, Any] = {}
    codes: tuple[int, ...] = ()  # of errors, besides those of all routes
    answers: tuple[str, ...] = ("application/json",)


_ROWS_OUT = ("application/json", "application/x-ndjson")
_REFUSED = (400, 408, 413, 415, 429, 503)
ROUTES = (
    Route("GET", "/", "page", "The live page.", OPEN, answers=("text/html",)),
    Route("GET", "/healthz", "health", "Whether the process runs.", OPEN),
    Route("GET", "/readyz", "readiness", "Whether rows are accepted.", OPEN, codes=(503,)),
    Route("GET", "/metrics", "metrics", "Metrics in OpenMetrics.", OPEN,
          answers=("application/openmetrics-text",)),
    Route("GET", "/openapi.json", "openapi", "This document.", OPEN),
    Route("GET", "/v1/detectors", "detectors", "The detectors in service."),
    Route("GET", "/v1/detectors/{name}", "detector",
          "Channels, thresholds, digest and card of a detector, or a fleet's summary.",
          query={"entity": _TEXT}, codes=(400, 404, 409)),
    Route("GET", "/v1/detectors/{name}/entities", "entities",
          "Entities with their state, the worst first.",
          query={"find": _TEXT, "most": _MOST}, codes=(400, 404)),
    Route("GET", "/v1/detectors/{name}/history", "history",
          "The latest rows and events of an entity.", query={"entity": _NEEDED},
          codes=(400, 404)),
    Route("POST", "/v1/detectors/{name}/rows", "rows",
          "Answers rows of many entities, in order.",
          bodies={"application/json": _MANY, **_PLAIN}, answers=_ROWS_OUT, codes=(403, 404, 409, *_REFUSED)),
    Route("POST", "/v1/detectors/{name}/streams/{entity}/rows", "stream",
          "Answers rows of an entity as they arrive.",
          bodies={"application/json": _ROWS, **_PLAIN}, answers=_ROWS_OUT, codes=(403, 404, 409, *_REFUSED)),
    Route("POST", "/v1/detectors/{name}/score", "score",
          "Scores rows or windows without state.",
          bodies={"application/json": _SCORE, **_PLAIN},
          query={"entity": _NAME, "contributions": {"type": "boolean"}},
          codes=(404, *_REFUSED)),
    Route("POST", "/v1/detectors/{name}/threshold", "threshold",
          "Changes the threshold, by a number or by events a day.", CHANGE,
          {"application/json": {"oneOf": [
              _object(("tau",), tau=_TAU, **_CHANGE),
              _object(("budget",), budget=_TEXT, **_CHANGE)]}},
          codes=(403, 404, 409, *_REFUSED)),
    Route("GET", "/v1/detectors/{name}/shadow", "shadow",
          "Compares a detector with its shadow.", codes=(404,)),
    Route("POST", "/v1/detectors/{name}/promote", "promote",
          "Makes the shadow the detector.", CHANGE, codes=(403, 404, 409, 503)),
    Route("GET", "/v1/events", "events",
          "Events since a number or a time; as they arrive for text/event-stream.",
          query={"since": _TEXT, "most": _MOST, "latest": {"type": "boolean"}},
          answers=("application/json", "text/event-stream"), codes=(400, 429)),
    Route("POST", "/v1/events/{id}/ack", "acknowledge", "Acknowledges an event.",
          CHANGE, {"application/json": _object(by=_TEXT, note=_TEXT)},
          codes=(403, 404, *_REFUSED)),
    Route("POST", "/v1/events/{id}/shelve", "shelve",
          "Shelves messages of its entity and kind.", CHANGE,
          {"application/json": _object(
              until={"type": ["number", "string", "null"]}, reason=_TEXT, by=_TEXT)},
          codes=(403, 404, *_REFUSED)),
    Route("GET", "/v2", "v2", "Open Inference Protocol: the server.", OPEN),
    Route("GET", "/v2/health/live", "live", "Open Inference Protocol: alive.", OPEN),
    Route("GET", "/v2/health/ready", "ready", "Open Inference Protocol: ready.", OPEN,
          codes=(503,)),
    Route("GET", "/v2/models/{name}", "model", "Open Inference Protocol: inputs, outputs.",
          codes=(404,)),
    Route("GET", "/v2/models/{name}/ready", "model_ready", "Open Inference Protocol: ready.",
          codes=(404, 503)),
    Route("POST", "/v2/models/{name}/infer", "infer",
          "Open Inference Protocol: windows to scores.",
          bodies={"application/json": _INFER, "application/octet-stream": {"type": "string"}},
          answers=("application/json", "application/octet-stream"),
          codes=(404, *_REFUSED)),
)  # fmt: skip


def document(detectors: Sequence[str]) -> dict[str, Any]:
    """The OpenAPI document of a service with these detectors."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(
            route, detectors
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kdjax serve",
            "version": kdjax_version(),
            "description": "Anomaly detection on multivariate time series, row by row.",
        },
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                "Error": {
                    "type": "object",
                    "required": ["error"],
                    "properties": {"error": _TEXT},
                }
            },
        },
    }


def _operation(route: Route, detectors: Sequence[str]) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    codes = {*route.codes, *(() if route.token == OPEN else (401,))}
    answers: dict[str, Any] = {
        "200": {
            "description": "The answer.",
            "content": {media: {} for media in route.answers},
        }
    }
    answers |= {
        str(code): {"description": "Refused.", "content": error}
        for code in sorted(codes)
    }
    found: dict[str, Any] = {
        "operationId": route.handler,
        "summary": route.summary,
        "responses": answers,
    }
    names = re.findall(r"{(\w+)}", route.path)
    known = {"name": {**_TEXT, "enum": [*detectors]}}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": known.get(name, _TEXT)}
        for name in names
    ]
    parameters += [
        {"name": name, "in": "query", "schema": schema, "required": schema is _NEEDED}
        for name, schema in route.query.items()
    ]
    if parameters:
        found["parameters"] = parameters
    if route.bodies:
        content = {media: {"schema": schema} for media, schema in route.bodies.items()}
        # Those that mark an event also accept an empty body.
        needed = not route.path.startswith("/v1/events")
        found["requestBody"] = {"required": needed, "content": content}
    if route.token != OPEN:
        found["security"] = [{"token": []}]
    return found
