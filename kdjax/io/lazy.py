"""Names and libraries that are imported when they are first used."""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

from kdjax.errors import ConfigError


def library(name: str, without: str, extra: str) -> Any:
    """A library; ConfigError, what is so `without` it and how to install it, else."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(f'{without}: pip install "kdjax[{extra}]".') from None


def lazy_names(
    package: str, homes: Mapping[str, str]
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """`__all__`, `__getattr__` and `__dir__` of a package (PEP 562).

    `homes` are modules, each with the names that it defines, separated by blanks; those
    outside of the package are left out.

    >>> names, find, _ = lazy_names("kdjax.io", {"kdjax.io.lazy": "lazy_names"})
    >>> names, find("lazy_names") is lazy_names
    (['lazy_names'], True)
    """
    inside = (home for home in homes if home.startswith(f"{package}."))
    found = {name: home for home in inside for name in homes[home].split()}

    def find(name: str) -> Any:
        if name in found:
            return getattr(importlib.import_module(found[name]), name)
        # Its own modules, so that `import kdjax` is enough for `kdjax.metrics.auc_roc`.
        inner = f"{package}.{name}"
        if name.startswith("_") or importlib.util.find_spec(inner) is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return importlib.import_module(inner)

    return list(found), find, lambda: list(found)
