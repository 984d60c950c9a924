"""Download a data set: smd, the Server Machine Dataset (486 MB).

Checksums verify each file; files that exist and verify are not downloaded again.
"""

from rich.console import Console
from rich.progress import Progress

from kdjax.commands import common
from kdjax.commands.common import Flag
from kdjax.errors import ConfigError

USAGE = "smd [--output=DIR]"
EXAMPLE = "kdjax fetch smd"
FLAGS = {"Output": (Flag("output", "DIR", None, "Folder; data/smd by default."),)}


def main(arguments: list[str], flags: common.Flags) -> None:
    """Runs the verb."""
    name = common.one_argument("fetch", arguments, "a data set's name, smd")
    if name != "smd":
        raise ConfigError(f"fetch has no data set {name!r}: expected smd.")
    from kdjax.data.download import fetch_smd

    folder = flags.output or "data/smd"
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("SMD", total=None)

        def show(name: str, done: int, total: int) -> None:
            bar.update(task, description=name, completed=done, total=total)

        fetched = fetch_smd(folder, progress=show)
    downloaded, skipped = len(fetched.downloaded), len(fetched.skipped)
    print(f"{folder}: {downloaded} files downloaded, {skipped} already verified")
