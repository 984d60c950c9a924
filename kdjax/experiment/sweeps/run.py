"""A sweep from its design to its tables, resumed wherever it stopped.

sweep.json     the base settings and the members' changes; another sweep's are refused
data.json      digests of the data; other data are refused
metrics.jsonl  a line an epoch of each network
checkpoints/   of networks by name, and of populations in training
members/NNN/   see kdjax.experiment.sweeps.members
members.csv    a line a member and entity
summary.csv    means and standard deviations of members that differ in their seed only
report.html    tables and figures

With several processes each trains and judges its share of the members; those after the
first keep checkpoints and log in `process-I/`.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from rich.console import Console

from kdjax.config import completed, differences, leaves
from kdjax.errors import ConfigError
from kdjax.experiment.populations import AUTO, Trained
from kdjax.experiment.sweeps.design import Design, Member
from kdjax.experiment.sweeps.members import (
    EvaluationCache,
    evaluate_member,
    fail_member,
    read_member,
    table_lines,
)
from kdjax.experiment.sweeps.networks import (
    SweepData,
    failures,
    folders,
    load_sweep_data,
    networks_of,
    train_members,
)
from kdjax.experiment.sweeps.plan import data_key
from kdjax.experiment.sweeps.report import write_sweep_report
from kdjax.experiment.sweeps.tables import (
    DONE,
    LOSS,
    measure_names,
    members_table,
    summary,
    write_members,
)
from kdjax.experiment.workdir import (
    check_data,
    is_unclaimed,
    locked,
    read_json,
    read_lines,
)
from kdjax.io.environment import describe_environment
from kdjax.io.files import write_text
from kdjax.training import hosts

SWEEP = "sweep.json"
MEMBERS, SUMMARY, REPORT = "members.csv", "summary.csv", "report.html"

ORACLE_NOTE = (
    "Columns named oracle use the test labels: they are the best that any threshold "
    "could do, and choose nothing here."
)
LOSS_NOTE = "The validation loss is MSE(X', X) of the student, without labels."


class SweepResult(NamedTuple):
    """What a sweep found.

    Attributes:
        members: the tidy table, see `kdjax.experiment.sweeps.tables`.
        fields: the swept fields.
        measures: what was measured.
    """

    members: pd.DataFrame
    fields: tuple[str, ...]
    measures: tuple[str, ...]


def run_sweep(
    design: Design,
    workdir: Path,
    *,
    way: str = AUTO,
    console: Console | None = None,
) -> SweepResult:
    """Trains, judges and tabulates all members; goes on where a killed sweep stopped.

    Args:
        design: base settings and members.
        workdir: of the sweep.
        way: `together`, `alone` or `auto`, see `kdjax.populations`.
        console: shows progress; quiet by default.
    """
    console = console if console and hosts.is_first() else Console(quiet=True)
    with hosts.failing_together():
        described = json.dumps(_described(design), sort_keys=True)
        hosts.check_alike("members", described)
        with locked(workdir):
            return _run(design, workdir, way, console)


def _run(design: Design, workdir: Path, way: str, console: Console) -> SweepResult:
    """The sweep in a folder that nobody else writes to."""
    hosts.on_first(lambda: _check_design(workdir, design))
    sweep_data = load_sweep_data(design)
    hosts.on_first(lambda: _claim(workdir, design))
    check_data(workdir, sweep_data.digests)
    waiting = [m for m in design.members if read_member(workdir, m) is None]
    console.print(_opening(design, waiting))
    trained = train_members(waiting, sweep_data, workdir, way=way, console=console)
    evaluate_models = partial(
        _judge, sweep_data, trained, workdir, EvaluationCache({}, {}), console
    )
    own = hosts.share(waiting)
    for number, member in enumerate(own, start=1):
        with hosts.working_alone():
            evaluate_models(member, f"member {member.name} ({number} of {len(own)})")
    hosts.barrier("judged")
    return _tabulate(design, workdir)


def _judge(
    sweep_data: SweepData,
    trained: Mapping[str, Trained],
    workdir: Path,
    bench: EvaluationCache,
    console: Console,
    member: Member,
    told: str,
) -> None:
    """Judges one member, or leaves word of why it can't be."""
    parts = sweep_data.parts[data_key(member.settings)]
    why = failures(member, sweep_data, trained)
    if why:
        entities = [e.name for part in parts.values() for e in part.entities]
        fail_member(workdir, member, entities, "; ".join(why))
        console.print(f"{told}: failed, {why[0]}", highlight=False)
        return
    networks = networks_of(member, sweep_data, trained)
    console.print(f"{told}: calibrates and scores", highlight=False)
    evaluate_member(
        workdir, member, parts, networks, bench=bench, digests=sweep_data.digests
    )


def shown(outcome: SweepResult) -> list[str]:
    """The few measures that a terminal has room for: what was learnt, what it is worth."""
    own = [m for m in outcome.measures if m.startswith("f1_") and m != "f1_oracle"]
    table = outcome.members
    return [m for m in (LOSS, *own[:1]) if table[m].notna().any()]


def _check_design(workdir: Path, design: Design) -> None:
    """Refuses a folder of another sweep, or of something else."""
    if is_unclaimed(workdir, SWEEP, "the work directory of a sweep"):
        return
    old, new = read_json(workdir / SWEEP), _described(design)
    # A field that came after the sweep was made had its default then.
    changed = differences(completed(old["base"]), completed(new["base"]))
    before, after = old["members"], new["members"]
    changed += [
        f"member {name}: {before.get(name)} -> {after.get(name)}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
    if changed:
        more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ConfigError(
            f"{workdir} was made with another sweep ({'; '.join(changed[:3])}{more}): "
            "give another --workdir, or the sweep it was made with."
        )


def _claim(workdir: Path, design: Design) -> None:
    if not (workdir / SWEEP).exists():
        text = json.dumps(_described(design), indent=2, sort_keys=True)
        write_text(workdir / SWEEP, text + "\n")


def _described(design: Design) -> dict[str, Any]:
    usual = dict(leaves(design.base))
    described = {
        "name": design.name,
        "base": design.base,
        "members": {
            member.name: {k: v for k, v in member.changes.items() if v != usual[k]}
            for member in design.members
        },
    }
    plain: dict[str, Any] = json.loads(json.dumps(described))
    return plain


def _opening(design: Design, waiting: Sequence[Member]) -> str:
    done = len(design.members) - len(waiting)
    told = f"{design.name}: {len(design.members)} members"
    return f"{told}, {done} of them finished" if done else told


def _tabulate(design: Design, workdir: Path) -> SweepResult:
    lines, notes = [], []
    for member in design.members:
        results = read_member(workdir, member)
        assert results is not None
        lines += table_lines(member, results)
        if results["status"] != DONE:
            notes.append(f"member {member.name} failed: {results['reason']}")
    measures = measure_names(lines, design.fields)
    table = members_table(lines, fields=design.fields, measures=measures)
    outcome = SweepResult(table, design.fields, measures)
    if hosts.is_first():
        _write_tables(design, outcome, workdir, notes)
    return outcome


def _write_tables(
    design: Design, outcome: SweepResult, workdir: Path, notes: Sequence[str]
) -> None:
    table, fields, measures = outcome
    write_members(workdir / MEMBERS, table)
    means = summary(table, fields=fields, measures=measures)
    write_text(workdir / SUMMARY, means.to_csv(index=False))
    method = f"f1_{design.base['threshold']['method']}"
    labelled = method in measures and table[method].notna().any()
    write_sweep_report(
        workdir / REPORT,
        name=design.name,
        members=table,
        fields=fields,
        measures=measures,
        measure=method if labelled else LOSS,
        settings=design.base,
        history=[line for folder in folders(workdir) for line in read_lines(folder)],
        notes=[*notes, ORACLE_NOTE, LOSS_NOTE],
        environment=describe_environment(),
    )
