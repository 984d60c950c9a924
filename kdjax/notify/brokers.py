"""Message brokers: addresses, and delivery of lines by MQTT (paho) or Kafka."""

import contextlib
import hashlib
import json
import os
import re
import ssl
import time
import urllib.parse
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from kdjax.errors import ArtifactError, ConfigError
from kdjax.io.lazy import library

MQTT_PORTS = {"mqtt": 1883, "mqtts": 8883}
SCHEMES = (*MQTT_PORTS, "kafka")
PASSWORD = "KDJAX_MQTT_PASSWORD"  # the environment variable
TIMEOUT = 10.0  # seconds for a connection, and for one delivery
_EXAMPLES = "mqtt://host:1883/plant/alarms or kafka://host:9092/alarms"


class Broker(NamedTuple):
    """A topic of a broker."""

    scheme: str  # of `SCHEMES`
    place: str  # host and port; of Kafka several, between commas
    topic: str
    user: str
    options: dict[str, str]

    @property
    def name(self) -> str:
        """The name for messages, without secrets."""
        return f"{self.scheme}://{self.place}/{self.topic}"


def read_broker(text: str, *, flag: str, known: Collection[str] = ()) -> Broker:
    """A broker's topic by its URL, whose options are among `known`.

    ConfigError for another URL, and if the client library is missing.

    >>> read_broker("kafka://a:9092,b:9092/rows", flag="source").topic  # doctest: +SKIP
    'rows'
    """
    try:
        parts = urllib.parse.urlsplit(text, allow_fragments=False)
        # A `#` in a topic is a wild card.
        scheme, topic = parts.scheme, urllib.parse.unquote(parts.path[1:])
        user, _, place = parts.netloc.rpartition("@")
        given = urllib.parse.parse_qsl(
            parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)
        )
        if scheme not in SCHEMES or not place or not topic:
            raise ValueError("it needs a scheme, a host and a topic")
        if ":" in user or (user and scheme == "kafka"):
            raise ValueError(
                f"a password: put it into {PASSWORD}, of Kafka into the file of ?config="
            )
        options = dict(given)
        if unknown := options.keys() - {*known}:
            raise ValueError(f"unknown option {min(unknown)!r}")
        if scheme != "kafka":
            port = parts.port or MQTT_PORTS[scheme]
            host = parts.hostname or ""
            place = f"{f'[{host}]' if ':' in host else host}:{port}"
    except ValueError as error:
        # Without the text, which may contain a password.
        raise ConfigError(
            f"{flag}: this URL is not a topic of a broker ({error}): give one such as "
            f"{_EXAMPLES}."
        ) from None
    client_library(scheme)
    return Broker(scheme, place, topic, urllib.parse.unquote(user), options)


def client_library(scheme: str) -> Any:
    """The library of a scheme; ConfigError, with the command that installs it, without it."""
    if scheme == "kafka":
        return library("confluent_kafka", "confluent-kafka is not installed", "kafka")
    return library("paho.mqtt.client", "paho-mqtt is not installed", "serve")


def mqtt_client(broker: Broker, *, name: str = "") -> Any:
    """A client before its connection; with a name the broker keeps what it missed."""
    paho = client_library(broker.scheme)
    client = paho.Client(
        paho.CallbackAPIVersion.VERSION2,
        client_id=name or f"kdjax-{os.urandom(6).hex()}",
        clean_session=not name,
        protocol=paho.MQTTv311,  # which all brokers support
        manual_ack=True,
    )
    client.connect_timeout = TIMEOUT
    if broker.user:
        client.username_pw_set(broker.user, os.environ.get(PASSWORD))
    if broker.scheme == "mqtts":
        client.tls_set_context(ssl.create_default_context())
    return client


def connect_mqtt(client: Any, broker: Broker) -> bool:
    """Connects; returns whether the broker knows the client's session. OSError if refused.

    No thread is started: call `step_mqtt` repeatedly.
    """
    answers = list[Any]()
    client.on_connect = lambda *given: answers.append(given[2:4])
    host, _, port = broker.place.rpartition(":")
    try:
        client.connect(host.strip("[]"), int(port), keepalive=30)
    except ValueError as error:  # an invalid host
        raise OSError(str(error)) from error
    end = time.monotonic() + TIMEOUT
    while not answers:
        if time.monotonic() > end:
            raise OSError(f"no answer within {TIMEOUT:g} s")
        client.loop(0.1)  # the broker's answer says more than its return code
        if not answers and client.socket() is None:
            raise OSError("the broker closed the connection")
    client.on_connect = None
    flags, reason = answers[0]
    if reason.is_failure:
        raise OSError(f"the broker refuses: {reason}")
    return bool(flags.session_present)


def step_mqtt(client: Any, seconds: float) -> None:
    """Reads and writes available data, for at most a time; OSError if disconnected."""
    if code := client.loop(seconds):
        raise OSError(f"the connection is lost ({code.name})")


def mqtt_sender(broker: Broker) -> Callable[[bytes], None]:
    """Publishes each line as a message of QoS 1, and waits until all are confirmed."""

    def deliver(lines: bytes) -> None:
        client = mqtt_client(broker)
        connect_mqtt(client, broker)
        end = time.monotonic() + TIMEOUT
        try:
            sent = [
                client.publish(broker.topic, line, qos=1) for line in lines.splitlines()
            ]
            while not all(info.is_published() for info in sent):
                if time.monotonic() > end:
                    raise OSError(f"the broker has not confirmed it in {TIMEOUT:g} s")
                step_mqtt(client, 0.1)
        except RuntimeError as error:  # from paho, for a message that was not written
            raise OSError(str(error)) from error
        finally:
            client.disconnect()

    return deliver


def kafka_options(broker: Broker) -> dict[str, Any]:
    """Options of librdkafka, with those of the file that `?config=` names."""
    found: dict[str, Any] = {"log_level": 0}
    if path := broker.options.get("config"):
        try:
            text = Path(path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactError(f"config={path} can't be read ({error}).") from None
        for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
            key, equals, value = line.partition("=")
            if line and not line.startswith("#"):
                if not equals:
                    raise ConfigError(f"{path}, line {number}: give KEY=VALUE.")
                found[key.strip()] = value.strip()
    return found | {"bootstrap.servers": broker.place}


def kafka_sender(broker: Broker) -> Callable[[bytes], None]:
    """Produces each line as a message under its entity, and waits for all brokers."""
    kafka = client_library("kafka")
    options = kafka_options(broker) | {
        "enable.idempotence": True,
        "delivery.timeout.ms": int(TIMEOUT * 1000),
    }
    kept = list[Any]()

    def deliver(lines: bytes) -> None:
        faults = list[Any]()
        try:
            if not kept:
                kept.append(kafka.Producer(options))
            (producer,) = kept
            for line in lines.splitlines():
                found = json.loads(line)  # an answer, an event's line or a message
                producer.produce(
                    broker.topic,
                    line,
                    key=found.get("event", found).get("entity") or None,
                    on_delivery=lambda error, _: faults.append(error),
                )
                producer.poll(0)
            left = producer.flush(TIMEOUT + 1)
            faults = [error for error in faults if error]
        except (kafka.KafkaException, BufferError) as error:
            left, faults = 0, [error]
        if left or faults:
            with contextlib.suppress(kafka.KafkaException):
                for producer in kept:
                    producer.purge()
            kept.clear()
            raise OSError(str(faults[0]) if faults else f"{left} lines not confirmed")

    return deliver


def sender(broker: Broker) -> Callable[[bytes], None]:
    """Delivers lines to a topic; OSError unless all of them are accepted."""
    if broker.scheme == "kafka":
        return kafka_sender(broker)
    if re.search(r"[+#]", broker.topic):
        raise ConfigError(f"{broker.name}: remove + and # from the topic of messages.")
    return mqtt_sender(broker)


def digest_of(*texts: str) -> str:
    """A short name for texts."""
    return hashlib.sha256(
        "\n".join(texts).encode("utf-8", "surrogateescape")
    ).hexdigest()[:12]
