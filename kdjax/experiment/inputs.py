"""The data that settings name. Needs no JAX, so that bad input is refused before it starts."""

from kdjax.config import Settings
from kdjax.data.datasets import load_benchmark
from kdjax.data.readers import load_files
from kdjax.data.schema import Reading
from kdjax.data.series import Dataset


def load_dataset(data: Settings) -> Dataset:
    """The data set that the `data` settings name."""
    if data["name"]:
        return load_benchmark(
            data["name"], root=data["root"], entities=tuple(data["entities"])
        )
    fields = {*Reading._fields, "test_path", "exclude", "memory_bytes"} & data.keys()
    limit = data["fill_limit"] or data["window"]
    options = {field: data[field] for field in fields} | {"fill_limit": limit}
    return load_files(data["path"], **options)
