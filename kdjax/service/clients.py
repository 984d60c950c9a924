"""The kinds of sources: MQTT, Kafka, Prometheus and OPC UA.

Each kind is a function that connects, then puts messages into a `Source` until it is
stopping. Its errors are counted, and it is called again. Client libraries are imported
only by the kind that needs them.
"""

import asyncio
import json
import logging
import math
import os
import re
import time
import tomllib
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from kdjax.errors import ConfigError, DataError
from kdjax.io.lazy import library
from kdjax.notify.brokers import (
    SCHEMES,
    Broker,
    client_library,
    connect_mqtt,
    kafka_options,
    mqtt_client,
    read_broker,
    step_mqtt,
)
from kdjax.service.sources import PART, Message, Source, Spec

LINGER = 0.005  # seconds to wait for further messages
LOOK = 0.2  # seconds between two checks for the end
QUERY_STEPS = 500  # most times of one query of Prometheus
QUERY_ROWS = 5000  # approximate rows of one such answer
QUERY_BYTES = 100_000_000
TOKEN = "KDJAX_PROMETHEUS_TOKEN"  # environment variables
OPCUA_PASSWORD = "KDJAX_OPCUA_PASSWORD"
_HINT = (
    "give mqtt://HOST/TOPIC, kafka://BROKERS/TOPIC or a TOML file; see docs/serve.md"
)


def read_source(text: str) -> Spec:
    """A source by its URL or file; ConfigError for another text."""
    scheme, colon, _ = text.partition("://")
    if not colon:
        return _from_file(Path(text))
    if scheme not in SCHEMES:
        raise ConfigError(f"--source: {scheme[:50]!r} is unknown: {_HINT}.")
    options = ("detector", "entity", *(["key", "config"] if scheme == "kafka" else []))
    broker = read_broker(text, flag="--source", known=options)
    if broker.options.get("key", "entity") != "entity":
        raise ConfigError(f"{broker.name}: key= can be entity only.")
    follow = _follow_kafka if scheme == "kafka" else _follow_mqtt
    if scheme == "kafka":
        kafka_options(broker)  # raises early for a faulty file
    name = broker.options.get("detector", "")
    return Spec(broker.name, name, (), lambda source: follow(broker, source))


# MQTT.


def entity_of(pattern: str, topic: str) -> str:
    """The levels of a topic in the places of `+`.

    >>> entity_of("plant/+/rows", "plant/pump/rows")
    'pump'
    """
    levels = pattern.split("/")
    if levels[0] == "$share":  # a subscription that several services share
        levels = levels[2:]
    pairs = zip(levels, topic.split("/"), strict=False)
    return "/".join(part for level, part in pairs if level == "+")


def _follow_mqtt(broker: Broker, source: Source) -> None:
    client, taken, granted = mqtt_client(broker, name=source.key), [], list[Any]()
    client.on_message = lambda *given: taken.append(given[2])
    client.on_subscribe = lambda *given: granted.extend(given[3])
    connect_mqtt(client, broker)
    try:
        client.subscribe(broker.topic, qos=1)
        while not source.stopping:
            step_mqtt(client, LOOK)
            while 0 < len(taken) < PART:
                before = len(taken)
                step_mqtt(client, LINGER)
                if len(taken) == before:
                    break
            if granted and granted[0].is_failure:
                raise OSError(f"the broker refuses the topic: {granted[0]}")
            source.up = bool(granted)
            # A retained message may be old: it is sent again with each connection.
            messages = [
                Message(
                    one.payload,
                    entity_of(broker.topic, one.topic)
                    or broker.options.get("entity", ""),
                )
                for one in taken
                if not one.retain
            ]
            source.put(messages, client.loop_misc)
            for one in taken:
                client.ack(one.mid, one.qos)
            taken.clear()
    finally:
        client.disconnect()


# Kafka.


def _follow_kafka(broker: Broker, source: Source) -> None:
    kafka = client_library(broker.scheme)
    usual = {"group.id": f"kdjax-{source.engine.name}", "auto.offset.reset": "earliest"}
    lost = list[Any]()

    def failed(error: Any) -> None:
        source.fault("connection", error.str())
        if error.fatal() or error.code() == kafka.KafkaError._ALL_BROKERS_DOWN:
            lost.append(error)

    def assigned(*_: Any) -> None:
        source.up = True

    consumer = kafka.Consumer(
        usual
        | kafka_options(broker)
        # An offset is committed after its rows; the buffer holds 16 MB.
        | {"enable.auto.commit": False, "queued.max.messages.kbytes": 16_384}
        | {"error_cb": failed}
    )
    try:
        consumer.subscribe([broker.topic], on_assign=assigned)
        while not source.stopping:
            found = consumer.consume(PART, timeout=LOOK)
            if lost:
                raise OSError(lost[0].str())
            for one in found:
                if one.error():
                    raise OSError(one.error().str())
            if found:
                source.up = True
                _take_records(broker, source, found)
                _commit(kafka, consumer, source, found)
    finally:
        consumer.close()


def _take_records(broker: Broker, source: Source, found: Sequence[Any]) -> None:
    marks, messages = dict(source.engine.marks), list[Message]()
    for one in found:
        place, (_, stamp) = f"{broker.name} {one.partition()}", one.timestamp()
        offset, latest = marks.get(place, (-1, 0))
        # Answered before, but its offset was not committed. A later time is that of a
        # topic which was created again.
        if one.offset() <= offset and stamp <= latest:
            continue
        entity = broker.options.get("entity", "")
        if "key" in broker.options:
            entity = (one.key() or b"").decode("utf-8", "backslashreplace") or entity
        mark = {place: (one.offset(), max(stamp, latest))}
        marks |= mark
        messages.append(Message(one.value() or b"", entity, mark))
    source.put(messages)


def _commit(kafka: Any, consumer: Any, source: Source, found: Sequence[Any]) -> None:
    behind = {(one.topic(), one.partition()): one.offset() + 1 for one in found}
    places = [kafka.TopicPartition(*key, offset) for key, offset in behind.items()]
    try:
        consumer.commit(offsets=places, asynchronous=False)
    except kafka.KafkaException as error:  # such as after a rebalance
        source.fault("commit", f"offsets are not committed ({error})")


# Files: Prometheus and OPC UA, which are queried at the step of the detector.


class File(NamedTuple):
    """A source from a TOML file; fields are its keys."""

    url: str
    channels: dict[str, str]  # an expression or node per channel
    detector: str = ""
    entity: str = ""  # of rows whose series name none
    entities: tuple[str, ...] = ()  # of OPC UA: for `{entity}` in nodes
    entity_label: str = ""  # of Prometheus
    step: float = 0.0  # seconds; 0: the detector's
    delay: float = -1.0  # seconds for late samples; below 0: two steps
    since: datetime | None = None
    security: str = ""  # of OPC UA: policy,mode,certificate,key
    user: str = ""


_SHARED = {"url", "channels", "detector", "entity", "step"}
_KEYS = {
    "http": _SHARED | {"entity_label", "delay", "since"},
    "opc.tcp": _SHARED | {"entities", "security", "user"},
}
_KEYS["https"] = _KEYS["http"]


def _from_file(path: Path) -> Spec:
    try:
        given = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--source={path} is not a TOML file ({error}): {_HINT}."
        ) from None
    url = str(given.get("url", ""))
    scheme = url.partition("://")[0]
    if scheme not in _KEYS:
        raise ConfigError(
            f"{path}: url must be of Prometheus (http://…) or OPC UA (opc.tcp://…)."
        )
    shown = urllib.parse.urlsplit(url)
    if "@" in shown.netloc:
        raise ConfigError(
            f"{path}: url has a password; put it into the environment variable "
            f"{OPCUA_PASSWORD if scheme == 'opc.tcp' else TOKEN}."
        )
    if unknown := given.keys() - _KEYS[scheme]:
        raise ConfigError(
            f"{path}: {min(unknown)!r} is not a key: use {', '.join(sorted(_KEYS[scheme]))}."
        )
    kinds: dict[str, Any] = {"step": (int, float), "delay": (int, float)}
    kinds |= {"channels": dict, "entities": list, "since": datetime}
    for key, value in given.items():
        texts = value.values() if key == "channels" and value else value
        if (
            not isinstance(value, kinds.get(key, str))
            or isinstance(value, bool)
            or (key == "step" and not 0 < value < math.inf)
            or (key == "delay" and not 0 <= value < math.inf)
            or (key == "since" and value.tzinfo is None)
            or (key in ("channels", "entities") and not all(_is_text(t) for t in texts))
        ):
            raise ConfigError(f"{path}: {key} = {value!r} is wrong; see docs/serve.md.")
    if not given.get("channels"):
        raise ConfigError(f"{path}: give [channels], one expression or node each.")
    file = File(**{**given, "entities": tuple(given.get("entities", ()))})
    if scheme == "opc.tcp":
        library("asyncua", "asyncua is not installed", "opcua")
        nodes = "".join(file.channels.values())
        if bool(file.entities) == bool(file.entity) or (
            bool(file.entities) != ("{entity}" in nodes)
        ):
            raise ConfigError(
                f"{path}: give entity, or entities and nodes with {{entity}}."
            )
    elif bool(file.entity) == bool(file.entity_label):
        raise ConfigError(f"{path}: give entity or entity_label.")
    follow = _follow_opcua if scheme == "opc.tcp" else _follow_prometheus
    name = f"{scheme}://{shown.netloc}{shown.path} ({path.name})"
    return Spec(
        name, file.detector, (*file.channels,), lambda source: follow(file, source)
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _step_of(file: File, source: Source) -> float:
    """Seconds between two rows; DataError if neither file nor detector has them."""
    source.check_channels()  # the detector may have changed
    step = file.step or source.plan.step
    if not step:
        raise DataError("the detector has no cadence: give step in the file")
    return step


def _message(
    source: Source, when: float, entity: str, values: Mapping[str, Any]
) -> Message:
    """A row as the body of a request; NaN is a missing value."""
    row = [_cell(values.get(name)) for name in source.plan.channels]
    time = datetime.fromtimestamp(when, UTC).isoformat()
    body = {"rows": [row], "time": [time], "entity": [entity]}
    return Message(json.dumps(body).encode())


def _cell(value: Any) -> Any:
    """A value for JSON; texts, infinity among them, are refused as not numbers."""
    if isinstance(value, float):
        return None if math.isnan(value) else str(value) if math.isinf(value) else value
    return value if isinstance(value, int | None) else str(value)


# Prometheus.


def _follow_prometheus(file: File, source: Source) -> None:
    step, place = _step_of(file, source), f"{source.name} time"
    delay = file.delay if file.delay >= 0 else 2 * step
    since = file.since.timestamp() if file.since else -math.inf
    # Without a mark the first window is filled from the past.
    usual = time.time() - delay - (source.plan.window - 1) * step
    mark = source.engine.marks.get(place)
    start = max(since, mark + step / 2) if mark else (since if file.since else usual)
    first, steps = math.ceil(start / step), 10  # the next time, in steps
    while not source.stopping:
        _step_of(file, source)
        last = math.floor((time.time() - delay) / step)
        if last < first:
            source.wait(min(first * step + delay - time.time(), LOOK))
            continue
        count = min(steps, last - first + 1)
        found = list(read_series(file, first, count, step, lambda q: _ask(file, q)))
        source.up = True
        messages = [_message(source, *row) for row in found]
        if messages:
            mark = (first + count - 1) * step
            messages[-1] = messages[-1]._replace(marks={place: mark})
        source.put(messages)
        first += count
        steps = max(
            1, min(QUERY_STEPS, QUERY_ROWS * count // max(len(found), 1), 2 * steps)
        )


def read_series(
    file: File,
    first: int,
    count: int,
    step: float,
    ask: Callable[[Mapping[str, str]], Any],
) -> Iterator[tuple[float, str, dict[str, float]]]:
    """Rows of a range query a channel: time (s), entity and values by channel.

    Rows are in the order of time. DataError for several series of an entity.
    """
    times = {
        "start": f"{first * step:.3f}",
        "end": f"{(first + count - 1) * step:.3f}",
        "step": f"{step:.3f}",
    }
    rows = dict[tuple[int, str], dict[str, float]]()
    for channel, expression in file.channels.items():
        seen = set[str]()
        for series in ask({"query": expression, **times}):
            entity = file.entity or str(series["metric"].get(file.entity_label, ""))
            if entity in seen:
                raise DataError(
                    f"{channel}: {expression!r} gives several series"
                    f"{f' for {entity!r}' if file.entity_label else ''}: aggregate them"
                    f"{'' if file.entity_label else ', or give entity_label'}"
                )
            seen.add(entity)
            for when, text in series["values"]:
                row = rows.setdefault((round(when / step), entity), {})
                row[channel] = float(text)
    for place, entity in sorted(rows):
        if not all(map(math.isnan, rows[place, entity].values())):
            yield place * step, entity, rows[place, entity]


def _ask(file: File, query: Mapping[str, str]) -> Any:
    """The series of a range query; DataError if Prometheus refuses it."""
    request = urllib.request.Request(
        f"{file.url.rstrip('/')}/api/v1/query_range",
        urllib.parse.urlencode(query).encode(),
    )
    if token := os.environ.get(TOKEN):
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read(QUERY_BYTES + 1)
    except urllib.error.HTTPError as error:
        with error:
            told = error.read(2000).decode("utf-8", "replace")
        reason = re.search(r'"error":\s*"((?:[^"\\]|\\.)*)', told)
        why = reason[1] if reason else error.reason
        raise DataError(f"{query['query']!r}: {error.code} {why}") from None
    if len(text) > QUERY_BYTES:
        raise DataError(
            f"{query['query']!r}: an answer of more than {QUERY_BYTES} bytes"
        )
    return json.loads(text)["data"]["result"]


# OPC UA.


def _follow_opcua(file: File, source: Source) -> None:
    asyncio.run(_read_nodes(file, source))


async def _read_nodes(file: File, source: Source) -> None:
    asyncua = library("asyncua", "asyncua is not installed", "opcua")
    logging.getLogger("asyncua").setLevel(logging.CRITICAL)
    client = asyncua.Client(file.url, timeout=4)
    if file.user:
        client.set_user(file.user)
        client.set_password(os.environ.get(OPCUA_PASSWORD, ""))
    if file.security:
        await client.set_security_string(file.security)
    async with client:
        entities = file.entities or (file.entity,)
        nodes = [
            client.get_node(node.replace("{entity}", entity))
            for entity in entities
            for node in file.channels.values()
        ]
        place = math.ceil(time.time() / _step_of(file, source))
        while not source.stopping:
            step = _step_of(file, source)
            left = place * step - time.time()
            if left > 0:
                await asyncio.sleep(min(left, LOOK))
                continue
            found = await client.read_attributes(nodes)
            source.up = True
            values = [_value(source, *pair) for pair in zip(nodes, found, strict=True)]
            rest, messages = iter(values), list[Message]()
            for entity in entities:
                row = dict(zip(file.channels, rest, strict=False))
                messages.append(_message(source, place * step, entity, row))
            await asyncio.to_thread(source.put, messages)
            place = max(place + 1, math.ceil(time.time() / step))


def _value(source: Source, node: Any, found: Any) -> Any:
    """The value of a node; None, and a fault, if its status isn't good."""
    status = found.StatusCode
    if status is not None and not status.is_good():
        source.fault("value", f"{node}: {status.name}")
        return None
    return found.Value and found.Value.Value
