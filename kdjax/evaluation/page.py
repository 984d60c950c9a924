"""The page that every report is: one HTML file that fetches nothing and runs nothing.

Styles and pictures are inside the file, and a policy in it forbids all else. Light and
dark follow the reader's system.
"""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, Protocol

# No fetching and no script, even if a name in the data could bring one in.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2127; --soft: #5b6370; --paper: #f6f7f9;
  --card: #ffffff; --line: #d9dde3; --mark: #1f6fb2; --true: #e5484d; --c0: #1f6fb2;
  --c1: #d9541e; --c2: #2e8b57; --c3: #8a4fb0; --c4: #8a6d1f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e6ea; --soft: #9aa3b0;
  --paper: #101216; --card: #181b20; --line: #30353d; --mark: #6db3f2; --true: #ff6369;
  --c0: #6db3f2; --c1: #ff9660; --c2: #6fcf97; --c3: #c79bec; --c4: #d9bd6a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
.soft, figcaption, caption { color: var(--soft); font-size: .875rem; }
.verdict { border-left: 4px solid var(--mark); padding: .9rem 1.1rem; margin: 1rem 0;
  background: var(--card); border-radius: 0 8px 8px 0; max-width: 60rem; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .7rem; text-align: right; white-space: nowrap; }
tbody th, thead tr:first-child th:first-child { text-align: left; }
thead tr:first-child th { color: var(--soft); font-weight: 500; font-size: .8rem; }
thead tr:first-child th[colspan] { text-align: center; }
tbody tr { border-top: 1px solid var(--line); }
tbody th { font-weight: 600; position: sticky; left: 0; background: var(--card); }
.texts th, .texts td { text-align: left; }
.texts td { white-space: normal; overflow-wrap: anywhere; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; padding: .6rem; }
picture { display: block; overflow-x: auto; }
img { display: block; width: 100%; min-width: 38rem; height: auto; }
details { border-top: 1px solid var(--line); padding: .5rem 0; }
summary { cursor: pointer; font-weight: 600; padding: .3rem 0;
  overflow-wrap: anywhere; }
details > * + * { margin-top: .6rem; }
pre { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; padding: .8rem; font-size: .8rem; line-height: 1.45; }
li { overflow-wrap: anywhere; }
.pair { display: grid; gap: .6rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.pair img { min-width: 20rem; }
.timeline label { margin: 0 .8rem 0 .3rem; font-size: .875rem; }
.timeline input { margin-left: .6rem; }
.plot { display: flex; margin: .5rem 0; font-size: 11px; line-height: 1; }
.names { flex: none; width: 5.6rem; }
.names > div { position: relative; }
.names div > span { position: absolute; right: 6px; white-space: nowrap; color: var(--soft); }
.names .lane { left: 0; right: 6px; line-height: 14px; overflow: hidden;
  text-overflow: ellipsis; color: var(--ink); font-weight: 600; }
.names .level { transform: translateY(-50%); font-variant-numeric: tabular-nums; }
.names .level.tau { color: var(--ink); }
.names .channels span { position: static; display: block; height: 11px; font-size: 9px;
  line-height: 11px; padding-right: 6px; text-align: right; overflow: hidden;
  text-overflow: ellipsis; }
.box { flex: 1; overflow-x: auto; }
.wide { min-width: 15rem; }
.wide svg { display: block; width: 100%; }
.wide path { vector-effect: non-scaling-stroke; fill: none; stroke-linecap: round; }
.wide .c0 { color: var(--c0); } .wide .c1 { color: var(--c1); }
.wide .c2 { color: var(--c2); } .wide .c3 { color: var(--c3); }
.wide .c4 { color: var(--c4); } .wide .true { color: var(--true); }
.wide .curve { stroke: currentColor; stroke-linejoin: round; }
/* Their edges keep events of one row wider than a pixel. */
.wide .event { fill: currentColor; stroke: currentColor; }
.wide .shade { fill: var(--true); stroke: var(--true); opacity: .16; }
.wide .grid { stroke: var(--line); }
.wide .tau { stroke: var(--ink); stroke-dasharray: 5 4; stroke-linecap: butt; }
.wide .heat { width: 100%; min-width: 0; margin-top: 4px; image-rendering: pixelated;
  outline: 1px solid var(--line); }
.names .channels { margin-top: 4px; }
.ticks { position: relative; height: 20px; color: var(--soft); }
.ticks span { position: absolute; top: 5px; transform: translateX(-50%);
  white-space: nowrap; font-variant-numeric: tabular-nums; }
.z4, .z16 { display: none; }
.x4:checked ~ .plot .wide { width: 400%; }
.x16:checked ~ .plot .wide { width: 1600%; }
.x4:checked ~ .plot .z4, .x16:checked ~ .plot .z16 { display: block; }
.x4:checked ~ .plot .z1, .x16:checked ~ .plot .z1 { display: none; }
@media print { body { background: none; } main { max-width: none; }
  .timeline input, .timeline label, .timeline > .soft { display: none; } }
"""


class Draw(Protocol):
    """A picture that still needs its theme."""

    def __call__(self, *, theme: str) -> bytes:
        """The picture as PNG."""


def page(title: str, sections: Iterable[str]) -> str:
    """The whole file; empty sections are left out."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        "<body>\n<main>\n" + "\n".join(filter(None, sections)) + "\n</main>\n</body>\n"
        "</html>\n"
    )


def notes_section(notes: Sequence[str]) -> str:
    """A list of sentences under a heading; nothing for none."""
    if not notes:
        return ""
    items = "".join(f"<li>{escape(str(note))}</li>" for note in notes)
    return f"<h2>Notes</h2>\n<ul>{items}</ul>"


def figure(draw: Draw, alt: str, words: str) -> str:
    """A picture for light and one for dark, with a caption."""
    light, dark = (data_uri(draw(theme=theme)) for theme in ("light", "dark"))
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img alt="{escape(alt)}" src="{light}"></picture>'
        f"<figcaption>{escape(words)}</figcaption></figure>"
    )


def data_uri(picture: bytes) -> str:
    """A PNG as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(picture).decode("ascii")


def json_section(title: str, content: Mapping[str, Any] | None) -> str:
    """An object as JSON under a heading; nothing for none."""
    if not content:
        return ""
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str)
    return f"<h2>{escape(title)}</h2>\n<pre>{escape(text)}</pre>"
