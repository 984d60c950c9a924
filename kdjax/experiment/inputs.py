"""The data that settings name. Needs no JAX, so that bad input is refused before it starts."""

from collections.abc import Mapping
from typing import Any

from kdjax.data.datasets import load_benchmark
from kdjax.data.readers import load_files
from kdjax.data.series import Dataset

Settings = Mapping[str, Any]


def load_dataset(data: Settings) -> Dataset:
    """The data set that the `data` settings name."""
    if data["name"]:
        return load_benchmark(
            data["name"], root=data["root"], entities=tuple(data["entities"])
        )
    fields = (
        "test_path", "time_column", "entity_column", "label_column", "ignore", "layout",
        "tag_column", "value_column", "step", "missing", "missing_values", "order",
        "duplicates", "exclude", "memory_bytes",
    )  # fmt: skip
    limit = data["fill_limit"] or data["window"]
    options = {field: data[field] for field in fields}
    return load_files(data["path"], fill_limit=limit, **options)
