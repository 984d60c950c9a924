"""What the fuzzers call: bytes in, "refused" or "right" out; anything else is a finding.

Four targets, each a function of bytes and of a folder to write into:

    readers    a user's file of any format (CSV, Parquet, NumPy, spans to leave out)
    configs    overrides, config files and saved settings
    artifacts  detectors, manifests, stream states, exports, plans, work directories
    stream     the line protocol

The first bytes choose the format and the options, the rest is the content. A KdjaxError
is "refused". What is accepted has to agree with an oracle that is written apart from the
package; AssertionError says where it doesn't.
"""

import ast
import itertools
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz_artifacts import artifacts
from fuzz_readers import outcome, readers
from fuzz_stream import stream

from kdjax import cli
from kdjax.commands.common import read_settings
from kdjax.config import (
    completed,
    differences,
    get_config,
    leaves,
    override,
    resolve,
)
from kdjax.errors import KdjaxError
from kdjax.experiment.workdir import read_json

Target = Callable[[bytes, Path], str]

FIELDS = dict(leaves(get_config().to_dict()))
DEFAULTS = json.loads(json.dumps(FIELDS))
_number = itertools.count()


def configs(data: bytes, folder: Path) -> str:
    """Settings: 0 overrides, 1 config.json, 2 a broken file, 3 a file of assignments."""
    kind, content = data[0] % 4, data[1:]
    if kind == 1:
        path = folder / "config.json"
        path.write_bytes(content)
        settings = completed(read_json(path))
        differences(settings, json.loads(json.dumps(get_config().to_dict())))
        return _check_resolved(resolve(settings))
    if kind == 2:
        return _broken_file(content, folder)
    text = content.decode("utf-8", "surrogateescape")
    lines = [line for line in text.split("\n") if line]
    if kind == 0:
        return _overrides([*filter(_harmless, lines)])
    changes = dict(pair for pair in map(_assignment, lines) if pair)
    direct = outcome(lambda: resolve(override(get_config(), changes)))
    if isinstance(direct, KdjaxError):
        raise direct
    for key, value in changes.items():
        assert _equal(dict(leaves(direct))[key], value), f"{key}: {value!r}"
    return _check_resolved(direct)


def _check_resolved(settings: dict[str, Any]) -> str:
    assert resolve(settings) == settings
    assert json.loads(json.dumps(settings, allow_nan=False)) == settings
    return "right"


def _harmless(argument: str) -> bool:
    """Whether a flag names no file: those that do would be run or opened."""
    return not re.match(r"--?(config|flagfile)(=|$)", argument)


def _overrides(arguments: list[str]) -> str:
    values, _ = cli.parse(["kdjax", "run", *arguments])
    settings = read_settings(values)
    known = dict(leaves(settings))
    given = {}
    for argument in arguments:
        if argument == "--":
            break
        if match := re.match(r"--?config\.([a-z_.]+)=(.*)", argument, re.DOTALL):
            given[match[1]] = match[2]
        elif match := re.match(r"--?noconfig\.([a-z_.]+)$", argument):
            given[match[1]] = "false"
    for key, text in given.items():
        assert _reading(text, DEFAULTS[key], known[key]), f"{key}: {text!r}"
    return _check_resolved(settings)


def _reading(text: str, default: Any, found: Any) -> bool:
    """Whether a value is what the text of a flag says."""
    if isinstance(default, str):
        return bool(found == text)
    if isinstance(default, bool):
        return found == (text.lower() in ("true", "t", "1"))
    if isinstance(default, list):
        if all(isinstance(item, str) for item in found):
            return all(item in text for item in found)
        digits = [float(word) for word in re.findall(r"[\w.+-]+", text)]
        return digits == [float(item) for item in found]
    if type(found) is int:
        return found == (int(text, 0) if re.match("0[xo]", text) else int(text))
    return bool(found == float(text))


def _assignment(line: str) -> tuple[str, Any] | None:
    """A field and a literal, such as `data.window=5`."""
    key, _, text = line.partition("=")
    if key not in FIELDS or len(text) > 1000:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return key, ast.literal_eval(text)
        except (MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
            return None


def _equal(found: Any, given: Any) -> bool:
    if isinstance(given, (tuple, list)):
        return len(found) == len(given) and all(map(_equal, found, given))
    return bool(found == given) and isinstance(found, bool) == isinstance(given, bool)


def _broken_file(content: bytes, folder: Path) -> str:
    """A config file that is no Python; any other is a program and is not run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(content, "config", "exec")
        except (MemoryError, RecursionError, SyntaxError, ValueError):
            pass
        else:
            return "right"
    path = folder / f"config_{next(_number)}.py"
    path.write_bytes(content)
    try:
        cli.parse(["kdjax", "run", f"--config={path}"])
    finally:
        path.unlink()
    raise AssertionError("a config file that is no Python was taken")


TARGETS: dict[str, Target] = {
    "readers": readers,
    "configs": configs,
    "artifacts": artifacts,
    "stream": stream,
}


def attempt(name: str, data: bytes, folder: Path) -> str:
    """What a target says of bytes; whatever but a KdjaxError it raises is a finding."""
    if len(data) < 2:
        return "refused"
    try:
        return TARGETS[name](data, folder)
    except KdjaxError as error:
        assert str(error).strip(), "an error without a message"
        return "refused"
