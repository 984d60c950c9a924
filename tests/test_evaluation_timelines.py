"""A timeline as HTML: lanes, curves, zoom without a script, and the map of channels."""

import base64
import html
import io
import re
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest

from kdjax.evaluation.strips import WIDTH
from kdjax.evaluation.timelines import (
    HEAT_BINS,
    MOST_CHANNELS,
    ZOOMS,
    Heat,
    Timeline,
    heat_bins,
    timeline_html,
)

EVIL = "<script>alert('x')</script>\"&"
SCORES = np.array([1.0, 9.0, 2.0, 8.0, 3.0])
LABELS = np.array([False, True, True, False, False])
HOUR = np.timedelta64(1, "h")


class Page(HTMLParser):
    """Tags with their attributes, and texts by the class that they stand in."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.stack = [], [], []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("img", "input"):
            self.stack.append((tag, dict(attrs).get("class", "")))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop()[0] == tag

    def handle_data(self, data):
        self.texts.append((self.stack[-1][1], data))

    def of(self, name):
        """Texts of a class."""
        return [text for style, text in self.texts if style == name]


def bars_of(text, style):
    """Spans of the bars of a class in the drawing, in [0, 1]."""
    (path,) = re.findall(rf'<path class="{style}" d="([^"]*)"/>', text)
    found = re.findall(r"M(\d+) \d+H(\d+)v", path)
    return [(int(a) / WIDTH, int(b) / WIDTH) for a, b in found]


def timeline(**changes):
    both = {"teacher": SCORES, "student": SCORES * 2}
    taus = {"teacher": 5.0, "student": 17.0}
    fields = {"entity": "m", "time": None, "labels": LABELS, "scores": both}
    return Timeline(**{**fields, "thresholds": taus, **changes})


def image_of(text):
    """The heat map as RGBA, `[D, K, 4]`."""
    (source,) = re.findall(r'class="heat".*?base64,([^"]+)"', text)
    picture = matplotlib.image.imread(io.BytesIO(base64.b64decode(source)), "png")
    return np.round(picture * 255).astype(int)


def heat(parts, channels=None, threshold=100.0):
    parts = np.array(parts, np.float64)
    names = channels or tuple("abcdefg"[: parts.shape[1]])
    return Heat("student", names, parts, threshold)


def test_true_and_detected_events_stand_above_the_curves():
    events = {"teacher": np.array([[1, 2], [3, 4]]), "student": np.empty((0, 2), int)}
    text = timeline_html(timeline(events=events), key="t0")
    page = Page(text)
    assert page.of("lane") == ["true events", "teacher", "student"]
    assert bars_of(text, "event true") == [(0.2, 0.6)] == bars_of(text, "shade")
    assert bars_of(text, "event c0") == [(0.2, 0.4), (0.6, 0.8)]
    assert bars_of(text, "event c1") == []
    assert page.of("level tau") == ["τ 5", "τ 17"]
    styles = [a.get("class") for tag, a in page.tags if tag == "path"]
    assert [s for s in styles if s.startswith(("curve", "tau"))] == [
        "curve c0", "tau", "curve c1", "tau",
    ]  # fmt: skip
    assert "events that it detects" in text and "labelled anomalies" in text


def test_without_labels_and_events_none_are_spoken_of():
    text = timeline_html(timeline(labels=None), key="t0", what="Training row scores")
    assert "true events" not in text and "labelled" not in text
    assert "detects" not in text and "Training row scores" in text


def test_zoom_needs_no_script():
    text = timeline_html(timeline(), key="t7")
    page = Page(text)
    switches = [attributes for tag, attributes in page.tags if tag == "input"]
    assert {s["type"] for s in switches} == {"radio"} and len(switches) == len(ZOOMS)
    assert {s["name"] for s in switches} == {"t7"}
    assert ["checked" in s for s in switches] == [True, False, False]
    labels = [attributes["for"] for tag, attributes in page.tags if tag == "label"]
    assert labels == [s["id"] for s in switches]
    assert "<script" not in text and "onclick" not in text
    # The switches come before the plot, for the styles look at what follows them.
    assert text.rindex("<input") < text.index('class="plot"')


def test_a_closer_look_has_more_ticks_at_the_right_places():
    rows = 10_000
    text = timeline_html(
        timeline(labels=None, scores={"student": np.ones(rows)}), key="t"
    )
    found = {}
    for zoom in ZOOMS:
        (ticks,) = re.findall(rf'<div class="ticks z{zoom}">(.*?)</div>', text)
        marks = re.findall(r'left:([\d.]+)%">([\d,]+)<', ticks)
        found[zoom] = marks
        for place, label in marks:
            row = int(label.replace(",", ""))
            assert float(place) == pytest.approx(100 * row / rows, abs=0.01)
    assert 3 <= len(found[1]) < len(found[4]) < len(found[16]) < 120


def test_dates_are_written_as_dates():
    time = np.datetime64("2024-03-01", "ns") + np.arange(5) * 12 * HOUR
    text = timeline_html(timeline(time=time), key="t")
    (ticks,) = re.findall(r'<div class="ticks z1">(.*?)</div>', text)
    marks = dict(re.findall(r'left:([\d.]+)%">(.*?)<', ticks))
    # Five rows of half a day: the second day begins at 2 of 5 rows.
    assert "02" in marks["40.00"] and "over time (2024-Mar" in text
    numbers = timeline_html(timeline(time=np.arange(5.0) + 100), key="t")
    assert ">102<" in numbers and "over time;" in numbers


@pytest.mark.parametrize("unit", ["ms", "s", "m", "h", "D"])
@pytest.mark.parametrize("rows", [2, 7, 45, 160, 1000, 4000])
def test_dates_of_any_length_have_some_ticks(unit, rows):
    time = np.datetime64("2019-12-31T23:58:01", "ns") + np.arange(rows) * (
        np.timedelta64(1, unit).astype("timedelta64[ns]")
    )
    text = timeline_html(
        timeline(time=time, labels=None, scores={"m": np.ones(rows)}), key="t"
    )
    for zoom, most in ((1, 12), (4, 32), (16, 110)):
        (ticks,) = re.findall(rf'<div class="ticks z{zoom}">(.*?)</div>', text)
        assert 1 <= ticks.count("<span") <= most


def test_names_are_escaped():
    parts = np.ones((5, 1))
    text = timeline_html(
        timeline(
            entity=EVIL,
            scores={EVIL: SCORES},
            thresholds={},
            heat=heat(parts, (EVIL,)),
        ),
        key="t",
    )
    assert "<script" not in text and text.count(html.escape(EVIL)) == 3
    Page(text)


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_short_timelines(rows):
    days = np.datetime64("2024-01-01", "ns") + np.arange(rows) * HOUR
    for time in (None, days, np.arange(rows) * 1.0, np.zeros(rows)):
        text = timeline_html(
            timeline(
                time=time, labels=np.ones(rows, bool), scores={"m": np.ones(rows)}
            ),
            key="t",
        )
        Page(text)
        assert "nan" not in text
    Page(timeline_html(Timeline("m", None, None, {}, {}), key="t"))


# The map of channels.


def test_a_column_of_the_map_is_a_stretch_of_the_axis():
    assert heat_bins(None, 3).tolist() == [0, 1, 2]
    assert heat_bins(np.array([0.0, 1.0, 2.0, 7.0]), 4).tolist() == [0, 1, 2, 7]
    many = heat_bins(None, 23_694)
    assert many[0] == 0 and many[-1] == HEAT_BINS - 1
    assert np.array_equal(many, np.arange(23_694) * HEAT_BINS // 23_694)
    assert heat_bins(None, 0).tolist() == []


@pytest.mark.parametrize("rows", range(1, 700, 7))
def test_no_column_of_regular_rows_is_empty(rows):
    for time in (None, np.arange(rows) * 0.1 + 3):
        bins = heat_bins(time, rows)
        assert np.array_equal(np.unique(bins), np.arange(min(rows, HEAT_BINS)))


def test_strength_is_logarithmic_from_a_hundredth_of_tau():
    parts = [[0.5, 1.0], [10.0, 100.0], [1e4, np.inf], [np.nan, np.nan]]
    text = timeline_html(timeline(heat=heat(parts)), key="t")
    image = image_of(text)
    assert image.shape == (2, 4, 4)  # channels down, time across
    # τ/100 = 1 is clear, 10⁴ is full; a hundred is halfway.
    assert image[0, :3, 3].tolist() == [0, 64, 255]
    assert image[1, :3, 3].tolist() == [0, 128, 255]
    assert image[0, 3].tolist() == image[1, 3].tolist()
    assert len(set(image[0, 3, :3])) == 1 and image[0, 3, 3] > 0  # grey
    assert "τ/100 or less (clear) to 10000 (full); grey: no score" in text
    (names,) = re.findall(r'<div class="channels">(.*?)</div>', text)
    assert re.findall("<span>(.*?)</span>", names) == ["a", "b"]


def test_the_largest_of_many_channels_are_shown_in_their_order():
    count = MOST_CHANNELS + 5
    parts = np.ones((3, count))
    parts[1] = 2.0
    small = [3, 17, 20, 30, 44]
    parts[:, small] = 0.1
    parts[:, 44] = np.nan
    names = tuple(f"c{n}" for n in range(count))
    text = timeline_html(timeline(heat=heat(parts, names)), key="t")
    (shown,) = re.findall(r'<div class="channels">(.*?)</div>', text)
    assert re.findall("<span>(.*?)</span>", shown) == [
        name for number, name in enumerate(names) if number not in small
    ]
    assert image_of(text).shape[0] == MOST_CHANNELS
    assert f"The {MOST_CHANNELS} largest of {count} channels." in text


@pytest.mark.parametrize("threshold", [0.0, -1.0, np.nan, np.inf, 5.0])
@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, 1e-300, 1e300])
def test_degenerate_maps(value, threshold):
    found = heat(np.full((3, 2), value), threshold=threshold)
    text = timeline_html(timeline(heat=found), key="t")
    image = image_of(text)
    assert image.shape == (2, 3, 4)
    if value == np.inf:
        assert (image[..., 3] == 255).all()
    if value == 0:
        assert (image[..., 3] == 0).all()
