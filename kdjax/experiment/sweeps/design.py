"""The members of a sweep, as a config file's `sweep(add)` lists them.

    def sweep(add):
        for changes in ParameterGrid({"student.hidden": [(8,), (16,)], "seed": [0, 1]}):
            add(changes)

scikit-learn's `ParameterGrid` and `ParameterSampler` make grids and random designs.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from kdjax.config import (
    leaves,
    override,
    resolve,
    to_json,
)
from kdjax.errors import ConfigError

Settings = dict[str, Any]
Add = Callable[..., None]


class Member(NamedTuple):
    """One of a sweep's runs.

    Attributes:
        name: its number, such as `007`.
        changes: values of the swept fields; those it doesn't change have the base's.
        settings: all of them, after all checks.
    """

    name: str
    changes: dict[str, Any]
    settings: Settings


class Design(NamedTuple):
    """A whole sweep.

    Attributes:
        name: of the config file.
        base: the settings that members start from.
        fields: the swept ones, in order of first appearance.
        members: at least one.
    """

    name: str
    base: Settings
    fields: tuple[str, ...]
    members: tuple[Member, ...]


def make_design(name: str, config: Any, sweep: Callable[[Add], None]) -> Design:
    """The members that `sweep` adds to a config.

    Args:
        name: of the sweep.
        config: the base, a `ConfigDict`.
        sweep: calls `add({"distill.alpha": 0.5, "seed": 1})` for each member; fields
            without a dot may be keywords, `add(seed=1)`.

    Raises:
        ConfigError: no member, two alike, or one with faulty settings.
    """
    listed: list[dict[str, Any]] = []

    def add(
        changes: Mapping[str, Any] = MappingProxyType({}), /, **fields: Any
    ) -> None:
        listed.append({**changes, **fields})

    sweep(add)
    if not listed:
        raise ConfigError(
            f"{name}: sweep(add) added no member: call add at least once."
        )
    base = resolve(config)
    fields = tuple(dict.fromkeys(field for changes in listed for field in changes))
    width = max(3, len(str(len(listed) - 1)))
    members = []
    for number, changes in enumerate(listed):
        settings = member_settings(config, changes, f"{name}: member {number}")
        values = swept_values(settings, fields)
        members.append(Member(f"{number:0{width}d}", values, settings))
    _check_different(name, members)
    return Design(name, base, fields, tuple(members))


def member_settings(config: Any, changes: Mapping[str, Any], who: str) -> Settings:
    """The base with a member's changes, after all checks; `who` is named in errors."""
    try:
        return resolve(override(config, dict(changes)))
    except ConfigError as error:
        raise ConfigError(f"{who} ({_listed(changes)}): {error}") from error


def value_text(value: Any) -> float | str:
    """A field's value as a table holds it: a number, or a text such as `64,64`."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)


def swept_values(settings: Settings, fields: Iterable[str]) -> dict[str, Any]:
    """The values of dotted fields."""
    values = dict(leaves(settings))
    return {field: values[field] for field in fields}


def _check_different(name: str, members: list[Member]) -> None:
    known: dict[str, str] = {}
    for member in members:
        other = known.setdefault(to_json(member.settings), member.name)
        if other != member.name:
            raise ConfigError(
                f"{name}: members {other} and {member.name} have the same settings "
                f"({_listed(member.changes)}): add each once, or give them other seeds."
            )


def _listed(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{field}={json.dumps(v)}" for field, v in changes.items())
