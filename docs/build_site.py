"""Pages that MkDocs builds from the repository: the API, notebooks, and linked files.

A hook of MkDocs and, for doctests in docstrings, an extension of griffe (`mkdocs.yml`).
"""

import json
import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File

import kdjax
from kdjax import metrics

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
FENCED = re.compile(r"(^ *```.*?^ *```$)", re.DOTALL | re.MULTILINE)
NAME = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)
LANGUAGES = {".py": "python", ".sh": "sh", ".conf": "nginx", ".service": "ini"}


def groups() -> dict[str, dict[str, str]]:
    """`kdjax.GROUPS`, and the names of `kdjax.metrics` by their modules."""
    homes: dict[str, str] = {}
    for name, value in vars(metrics).items():
        home = getattr(value, "__module__", "")
        if home.startswith("kdjax.metrics."):
            homes[home] = f"{homes.get(home, '')} {name}"
    return {**kdjax.GROUPS, "Metrics": homes}


def reference() -> dict[str, str]:
    """Pages of the API, path to Markdown: one a group, each public name once."""
    pages = {}
    for group, homes in groups().items():
        where = "kdjax.metrics" if group == "Metrics" else "kdjax"
        parts = [f"# {group}", f"Import these names from `{where}`."]
        for home, names in homes.items():
            parts += [
                f"::: {home}.{name}\n    options:\n      heading: {name}\n"
                f"      toc_label: {name}"
                for name in names.split()
            ]
        path = f"reference/{group.lower().replace(' ', '_')}.md"
        pages[path] = "\n\n".join(parts) + "\n"
    return pages


def outside(target: str) -> bool:
    """Whether a path is of no page or file of docs/: of the rest, or of a folder."""
    return not target.startswith("docs/") or (ROOT / target).is_dir()


def linked(text: str, folder: str) -> set[str]:
    """Files and folders that a page in `folder` links to and that need a page."""
    found = set()
    for part in FENCED.split(text)[::2]:
        for _, link, _ in LINK.findall(part):
            target = posixpath.normpath(posixpath.join(folder, link.split("#")[0]))
            if "://" in link or link[0] == "#" or not outside(target):
                continue
            if not (ROOT / target).exists():
                raise FileNotFoundError(f"{folder}: the link {link} leads nowhere")
            found.add(target)
    return found - {"README.md"}


def source_page(path: str) -> str:
    """The address of the page of a file or folder."""
    return f"source/{path.removesuffix('.ipynb').removesuffix('.md')}.md"


def source_text(path: str) -> str:
    """The page of a file or folder outside docs/."""
    file = ROOT / path
    hidden = "---\nsearch: {exclude: true}\n---\n\n"
    if file.is_dir():
        below = (one.name for one in sorted(file.iterdir()) if one.is_file())
        lines = (f"- [{name}]({file.name}/{name})\n" for name in below)
        return f"{hidden}# {path}/\n\n{''.join(lines)}"
    text = file.read_text("utf-8")
    if path.endswith(".md"):
        return text
    if path.endswith(".ipynb"):
        return notebook_page(json.loads(text), file.name)
    return f"{hidden}# {path}\n\n````{LANGUAGES.get(file.suffix, '')}\n{text}````\n"


def notebook_page(notebook: dict[str, Any], name: str) -> str:
    """A notebook and its stored output as Markdown, below its title a link to the file."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            parts.append(f"```python\n{source}\n```")
            parts += [output_text(output) for output in cell["outputs"]]
        else:
            parts.append(source)
    title, _, rest = "\n\n".join(parts).partition("\n")
    return (
        f'{title}\n\n<a href="../{name}" download>Download the notebook</a>\n{rest}\n'
    )


def output_text(output: dict[str, Any]) -> str:
    """An output of a cell as Markdown: a picture, a table, or text."""
    data = output.get("data", {"text/plain": output.get("text")})
    data = {kind: "".join(value) for kind, value in data.items()}
    if "image/png" in data:
        source = f"data:image/png;base64,{data['image/png'].strip()}"
        return f'<p><img alt="{data["text/plain"]}" src="{source}"></p>'
    if "text/html" in data:  # of pandas; without its style and classes
        (table,) = re.findall(r"<table.*</table>", data["text/html"], re.DOTALL)
        return re.sub(r"<table[^>]*>", "<table>", table)
    return f"```text\n{data['text/plain'].rstrip()}\n```"


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages of the API and of what other pages link to."""
    for path, text in reference().items():
        files.append(File.generated(config, path, content=text))
    queue = {"SECURITY.md", "CHANGELOG.md"}
    for page in files.documentation_pages():
        if not page.src_uri.startswith("reference/"):
            folder = posixpath.join("docs", posixpath.dirname(page.src_uri))
            queue |= linked(page.content_string, posixpath.normpath(folder))
    done = set()
    while queue:
        path = queue.pop()
        done.add(path)
        text = source_text(path)
        files.append(File.generated(config, source_page(path), content=text))
        if path.endswith(".ipynb"):
            file = str(ROOT / path)
            files.append(File.generated(config, f"source/{path}", abs_src_path=file))
        if path.endswith((".md", ".ipynb")) or (ROOT / path).is_dir():
            queue |= linked(text, posixpath.dirname(path)) - done
    return files


def on_config(config: Any) -> Any:
    """Puts the pages of the API into the navigation."""
    pages = next(one["API"] for one in config["nav"] if "API" in one)
    pages += [{g: path} for g, path in zip(groups(), reference(), strict=True)]
    return config


def on_page_markdown(text: str, page: Any, config: Any, files: Any) -> str:
    """Leads links to repository files to their pages, and names of the API to theirs."""
    own = page.file.src_uri
    if own.startswith("reference/"):
        return text
    path = own.removeprefix("source/")
    home = posixpath.join("docs", own) if path == own else path
    folder = posixpath.dirname(home)

    def moved(match: re.Match[str]) -> str:
        before, link, after = match.groups()
        link, mark, anchor = link.partition("#")
        if not link or "://" in link:
            return match[0]
        target = posixpath.normpath(posixpath.join(folder, link))
        if target == "README.md":
            to = "index.md"
        else:
            inside = target.removeprefix("docs/")
            to = source_page(target) if outside(target) else inside
        to = posixpath.relpath(to, posixpath.dirname(own) or ".")
        return before + to + mark + anchor + after

    parts = FENCED.split(text)
    parts[::2] = [LINK.sub(moved, part) for part in parts[::2]]
    text = "".join(parts)
    if own == "api.md":
        homes = {
            name: home
            for group in groups().values()
            for home, names in group.items()
            for name in names.split()
        }
        text = NAME.sub(lambda m: f"| [`{m[1]}`][{homes[m[1]]}.{m[1]}] |", text)
    return text


class Docstrings(griffe.Extension):
    """Fences examples, which Markdown would take for quotations; comments tell of fields."""

    def on_attribute(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Gives a field the comment above it or behind it as its docstring."""
        if attr.docstring or attr.lineno is None:
            return
        lines = attr.module.source.splitlines()
        own = lines[attr.lineno - 1 : attr.endlineno]
        found = [one.partition("  # ")[2] for one in own]
        for line in reversed(lines[: attr.lineno - 1]):
            if not line.strip().startswith("# "):
                break
            found.insert(0, line.strip()[2:])
        if text := " ".join(filter(None, found)):
            text = text[0].upper() + text[1:]
            attr.docstring = griffe.Docstring(text, parent=attr)

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            pattern = r"((?:^>>> .*\n?)(?:^.+\n?)*)"
            obj.docstring.value = re.sub(
                pattern,
                lambda match: f"```pycon\n{match[0].rstrip()}\n```\n",
                obj.docstring.value,
                flags=re.MULTILINE,
            )
