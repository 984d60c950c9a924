"""Hypothesis strategies for the fuzzers' targets: odd texts, and seeds with changed bytes."""

from collections.abc import Callable

from fuzz_readers import KINDS, TEXTS
from fuzz_seeds import SEEDS
from fuzz_targets import FIELDS
from hypothesis import strategies as st

CELLS = (
    *("", "0", "1", "2.5", "-3", "+4", "1e3", "1.5E-2", ".5", "5.", "1e400", "-1e400"),
    *("1,5", "1.234,5", "1,234.5", "1.234", "1,000", "1 000", "1_000", "0x10", "0b1"),
    *("nan", "NaN", "NAN", "-nan", "inf", "-Infinity", "null", "None", "NA", "True"),
    *("false", "１", "٣", "−1", "1e", "1d5", "1.2.3", "--1", "5%", "x", " 1 ", "\t1"),
    *("\x0b1", "\xa01", "1\x00", '"1"', '"1"2', '"1', '1"', '"1,5"', '"1;5"', '"1.5"'),
    *("99999999999999999999", "1" * 400, "1e99999999999", "0." + "0" * 30 + "1", "-0"),
    *("2024-01-01", "2024-01-01 00:00", "2024-01-01T00:00:00Z", "now", "today"),
    *("2024-01-01T00:00:00+02:00", "2024-01-01T00:00+2", "20240101", "2024", "1:00"),
    *("2024-01-01T00:00:00+200", "01.02.2024", "1.2.2024", "NaT", "\ufeff1", "\u2028"),
)
NAMES = (
    "a",
    "b",
    "time",
    "t",
    "m",
    "y",
    "note",
    "date",
    "",
    "1",
    "a ",
    "ü",
    '"a"',
    "x",
)
MARKS = (",", ";", "\t", "|", " ")
ENDS = ("\n", "\r\n", "\r", "\n\n", "")
NUMBERS = st.one_of(
    st.floats(width=32, allow_nan=False).map(repr),
    st.integers(-(10**30), 10**30).map(str),
    st.sampled_from(CELLS),
)
PLAIN = st.sampled_from(("0", "1", "2.5", "-3.25", "1e3", "7", "12", "100.125"))
JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.floats(), st.integers(-(10**400), 10**400),
        st.text(st.characters(exclude_categories=()), max_size=4),
    ),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=6,
)  # fmt: skip


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """A table of odd cells, mostly of one width."""
    mark, end = draw(st.sampled_from(MARKS)), draw(st.sampled_from(ENDS[:3]))
    width = draw(st.integers(1, 4))
    names = st.lists(
        st.sampled_from(NAMES), min_size=width, max_size=width, unique=True
    )
    comma = mark != "," and draw(st.booleans())
    plain = PLAIN.map(lambda cell: cell.replace(".", ",")) if comma else PLAIN
    rows = draw(
        st.lists(
            st.lists(plain, min_size=width, max_size=width), min_size=1, max_size=5
        )
    )
    for _ in range(draw(st.integers(0, 2))):
        row = draw(st.sampled_from(rows))
        row[draw(st.integers(0, len(row) - 1))] = draw(NUMBERS)
    if draw(st.integers(0, 19)) == 0:
        draw(st.sampled_from(rows)).append("1")
    lines = [mark.join(draw(names))] if draw(st.integers(0, 9)) else []
    lines += [mark.join(row) for row in rows]
    text = end.join(lines) + draw(st.sampled_from(ENDS))
    bom = b"\xef\xbb\xbf" if draw(st.integers(0, 9)) == 0 else b""
    return bom + text.encode("utf-8", "surrogatepass")


@st.composite
def json_lines(draw: st.DrawFn) -> bytes:
    """Objects with the channels of the stream and more, one a line."""
    import json

    lines = []
    for _ in range(draw(st.integers(1, 5))):
        value = draw(st.one_of(JSON, st.floats(width=32), st.integers(-5, 5)))
        row = {"a": 1, "b": value, draw(st.sampled_from(NAMES)): draw(JSON)}
        lines.append(json.dumps(row, ensure_ascii=draw(st.booleans())))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


@st.composite
def changed(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A seed with some bytes set, put in, or taken out."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        gone = draw(st.sampled_from((0, 1, 1, 2, 8, 64)))
        data[at : at + gone] = draw(st.binary(max_size=6))
    return bytes(data)


@st.composite
def assignments(draw: st.DrawFn) -> bytes:
    """Fields of the config with values of any type."""
    value = st.one_of(
        JSON, st.tuples(st.integers()), st.sampled_from([10**400, 1e308, (), (8, 8)])
    )
    lines = [
        f"{draw(st.sampled_from(sorted(FIELDS)))}={draw(value)!r}"
        for _ in range(draw(st.integers(1, 3)))
    ]
    text = "\n".join(["data.path='a.csv'", *lines])
    return b"\3" + text.encode(
        "utf-8", "surrogateescape" if text.isascii() else "ignore"
    )


@st.composite
def overrides(draw: st.DrawFn) -> bytes:
    """Flags for fields of the config."""
    words = st.one_of(NUMBERS, st.text(max_size=6), st.sampled_from(("(8,", "(1,2)")))
    lines = [
        f"--config.{draw(st.sampled_from(sorted(FIELDS)))}={draw(words)}"
        for _ in range(draw(st.integers(1, 3)))
    ]
    return b"\0" + "\n".join(["--config.data.path=a.csv", *lines]).encode(
        "utf-8", "replace"
    )


def readers() -> st.SearchStrategy[bytes]:
    """Tables of odd cells, and changed files of all formats."""
    options = st.one_of(st.sampled_from((0, 2, 4, 8, 16)), st.integers(0, 255))
    kinds = st.integers(0, len(TEXTS) - 1) | st.just(KINDS.index("spans"))
    text = st.builds(lambda k, o, t: bytes([k, o]) + t, kinds, options, tables())
    return st.one_of(text, text, changed(SEEDS["readers"]()), st.binary(max_size=60))


def configs() -> st.SearchStrategy[bytes]:
    """Assignments, overrides, and changed seeds."""
    return st.one_of(assignments(), overrides(), changed(SEEDS["configs"]()))


def artifacts() -> st.SearchStrategy[bytes]:
    """Changed seeds: where, how many bytes go, which come."""
    return changed(SEEDS["artifacts"]()) | st.binary(min_size=2, max_size=16)


def stream() -> st.SearchStrategy[bytes]:
    """Tables, JSON lines and changed seeds."""
    lines = st.one_of(tables(), json_lines())
    text = st.builds(lambda o, t: bytes([o]) + t, st.integers(0, 7), lines)
    return st.one_of(text, text, changed(SEEDS["stream"]()), st.binary(max_size=60))


STRATEGIES: dict[str, Callable[[], st.SearchStrategy[bytes]]] = {
    "readers": readers,
    "configs": configs,
    "artifacts": artifacts,
    "stream": stream,
}
