"""A sweep from its design to its tables; a killed one is resumed by the same call.

sweep.json     base settings and the members' changes; another sweep's are refused
data.json      digests of the data; other data are refused
metrics.jsonl  a line an epoch of each network
checkpoints/   of networks by name, and of populations in training
members/NNN/   see kdjax.experiment.sweeps.members
members.csv    a line a member and entity
summary.csv    means and standard deviations of members that differ in their seed only
report.html    tables and figures

Several processes each train and evaluate a share of the members; those after the first
keep checkpoints and log in `process-I/`. Workers of Ray do units of this, see
`kdjax.experiment.sweeps.units`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from rich.console import Console

from kdjax.config import RENAMED, completed, differences, leaves
from kdjax.errors import ConfigError, counted
from kdjax.experiment.populations import AUTO
from kdjax.experiment.sweeps import members, report, units
from kdjax.experiment.sweeps.design import DONE, LOSS, Design
from kdjax.experiment.workdir import (
    check_data,
    is_unclaimed,
    locked,
    read_json,
    read_lines,
)
from kdjax.io.environment import describe_environment
from kdjax.io.executors import LOCAL, ONE_CORE, Resources, connected
from kdjax.io.files import write_text
from kdjax.training import hosts

SWEEP = "sweep.json"
ORACLE_NOTE = (
    "Columns named oracle use the test labels: they are the best that any threshold "
    "could reach, and no choice here depends on them."
)
LOSS_NOTE = "The validation loss is MSE(X', X) of the student, without labels."


class SweepResult(NamedTuple):
    """The table of a sweep: a row a member and entity, swept fields and measures."""

    members: pd.DataFrame
    fields: tuple[str, ...]
    measures: tuple[str, ...]


def run_sweep(
    design: Design,
    workdir: Path,
    *,
    way: str = AUTO,
    console: Console | None = None,
    executor: str = LOCAL,
    address: str = "",
    resources: Resources = ONE_CORE,
) -> SweepResult:
    """Trains, evaluates and tabulates all members; resumes a sweep that was killed.

    Args:
        design: base settings and members.
        workdir: of the sweep; ConfigError if it was made with another.
        way: `together`, `alone` or `auto`, see `kdjax.experiment.populations`.
        console: shows progress; quiet by default.
        executor, address, resources: see `kdjax.io.executors.run_units`.

    Raises:
        DataError: on Ray, after all else is done: some units failed.

    >>> from kdjax.experiment.sweeps.design import make_design
    >>> design = make_design("seeds", config, sweep)  # doctest: +SKIP
    >>> run_sweep(design, "runs/seeds").members  # doctest: +SKIP
    """
    console = console if console and hosts.is_first() else Console(quiet=True)
    elsewhere = executor != LOCAL
    if elsewhere and hosts.processes() > 1:
        raise ConfigError("--executor=ray has its own workers: remove --coordinator.")
    described = describe_sweep(design)
    with hosts.failing_together():
        hosts.check_alike("members", json.dumps(described, sort_keys=True))
        with locked(workdir):
            hosts.on_first(lambda: check_record(workdir / SWEEP, "sweep", described))
            sweep_data = members.load_sweep_data(design.name, design.members)
            hosts.on_first(lambda: write_record(workdir / SWEEP, described))
            check_data(workdir, sweep_data.digests)
            waiting = [
                m for m in design.members if members.read_member(workdir, m) is None
            ]
            finished = len(design.members) - len(waiting)
            already = f", {finished} of them finished" if finished else ""
            console.print(
                f"{design.name}: {counted(len(design.members), 'member')}{already}"
            )
            if elsewhere:
                execution: dict[str, Any] = {
                    "executor": executor,
                    "address": address,
                    "resources": resources,
                }
                workers = units.Workers(
                    workdir, way, console, execution, sweep_data.digests, set(), []
                )
                with connected(**execution):
                    units.train_and_evaluate(waiting, sweep_data, workers)
                return _tabulate(design, workdir)
            tasks = members.tasks_of(waiting, sweep_data)
            trained = members.train_members(tasks, workdir, way=way, console=console)
            own = hosts.share(waiting)
            for number, member in enumerate(own, start=1):
                which = f"member {member.name} ({number} of {len(own)})"
                reasons = members.failures(member, sweep_data, trained)
                if reasons:
                    members.fail_member(workdir, member, sweep_data, reasons)
                    console.print(f"{which}: failed, {reasons[0]}", highlight=False)
                    continue
                console.print(f"{which}: calibrating and scoring", highlight=False)
                with hosts.working_alone():
                    members.evaluate_member(workdir, member, sweep_data, trained)
            hosts.barrier("evaluated")
            return _tabulate(design, workdir)


def shown(result: SweepResult) -> list[str]:
    """The measures for a terminal: the loss, and the label-free F1 if there is one."""
    own = [m for m in result.measures if m.startswith("f1_") and m != "f1_oracle"]
    return [m for m in (LOSS, *own[:1]) if result.members[m].notna().any()]


def check_record(path: Path, kind: str, described: Mapping[str, Any]) -> None:
    """Raises for a folder of another sweep or search, or of something else.

    `described` is the content that the file `path` must have if it is there.
    """
    if is_unclaimed(path.parent, path.name, f"the work directory of a {kind}"):
        return
    changed = differences(_comparable(read_json(path)), _comparable(described))
    if changed:
        more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ConfigError(
            f"{path.parent} was made with another {kind} ({'; '.join(changed[:3])}"
            f"{more}): give another --workdir, or the original {kind}."
        )


def write_record(path: Path, described: Mapping[str, Any]) -> None:
    """Writes the record for `check_record`, if it doesn't exist yet."""
    if not path.exists():
        write_text(path, json.dumps(described, indent=2, sort_keys=True) + "\n")


def _comparable(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record on one level, with the names and the fields of today's config."""
    record = dict(record)
    # A field that came after the record was made had its default then.
    flat = completed(record.pop("base"))
    if listed := record.pop("members", {}):
        record.pop("name")  # it decides nothing; that of a search names its study
    for name, changes in listed.items():
        renamed = {RENAMED.get(field, field): value for field, value in changes.items()}
        flat[f"member {name}"] = json.dumps(renamed, sort_keys=True)
    return flat | record


def describe_sweep(design: Design) -> dict[str, Any]:
    """The content of sweep.json: the base, and what each member changes in it."""
    base = dict(leaves(design.base))
    return {
        "name": design.name,
        "base": design.base,
        "members": {
            member.name: {k: v for k, v in member.changes.items() if v != base[k]}
            for member in design.members
        },
    }


def _tabulate(design: Design, workdir: Path) -> SweepResult:
    """Reads the folders of all members and writes the tables and the report."""
    lines, notes = list[dict[str, Any]](), []
    for member in design.members:
        results = members.read_member(workdir, member)
        assert results is not None
        lines += members.table_lines(member, results)
        if results["status"] != DONE:
            notes.append(f"member {member.name} failed: {results['reason']}")
    fields, table = design.fields, report.members_table(lines, design.fields)
    measures = report.measure_names(table, fields)
    if hosts.is_first():
        logs = map(read_lines, members.process_folders(workdir))
        means = report.summary_means(table, fields=fields, measures=measures)
        write_text(workdir / "summary.csv", means.to_csv(index=False))
        write_tables(
            workdir,
            table,
            fields,
            name=design.name,
            measure=f"f1_{design.base['threshold']['method']}",
            settings=design.base,
            history=[line for log in logs for line in log],
            notes=[*notes, ORACLE_NOTE, LOSS_NOTE],
        )
    return SweepResult(table, fields, measures)


def write_tables(
    workdir: Path,
    table: pd.DataFrame,
    fields: Sequence[str],
    *,
    measure: str,
    **of_report: Any,
) -> None:
    """Writes members.csv and the report; without labels its figures show the loss."""
    labelled = measure in table and table[measure].notna().any()
    report.write_table(workdir / "members.csv", table)
    report.write_sweep_report(
        workdir / "report.html",
        members=table,
        fields=fields,
        measure=measure if labelled else LOSS,
        environment=describe_environment(),
        **of_report,
    )
