"""Data and networks of a sweep's members, each loaded, prepared and trained once.

Trained networks are found again by their names, in the folder of whichever process
trained them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from kdjax import hosts
from kdjax.assembly import data_digests
from kdjax.controls import Fits, fit_parts
from kdjax.data.prepared import Prepared
from kdjax.data.series import Dataset
from kdjax.detection.calibration import check_enough
from kdjax.errors import ConfigError
from kdjax.fitting import course_text
from kdjax.lessons import Scorer
from kdjax.models.residual import NETWORK, ResidualModel
from kdjax.pipeline import load_dataset, prepare_parts
from kdjax.populations.run import Judge, Trained, finished, train_all
from kdjax.rules import calibration_rules
from kdjax.scorers import scorers_of
from kdjax.sweep.design import Design, Member
from kdjax.sweep.members import STUDENT, TEACHER, Networks
from kdjax.sweep.plan import Need, data_key, need, scoring_key
from kdjax.trainings import (
    Disturbed,
    Ground,
    Training,
    architecture,
    has_network,
    student_training,
    teacher_training,
    training_ground,
)

TrainTeachers = Callable[[Sequence[Training]], dict[str, Trained]]


class Shelf(NamedTuple):
    """The sweep's data, each thing once: data sets, parts and windows by their key.

    `fits` has the controls that were fitted to each part.
    """

    digests: dict[str, str]
    parts: dict[str, dict[str, Prepared]]
    grounds: dict[str, dict[str, Ground]]
    fits: dict[tuple[str, str], Fits]


def load_shelf(design: Design, shelf: Shelf | None = None) -> Shelf:
    """All data that the members need, found large enough for their thresholds.

    Args:
        design: of the members.
        shelf: what is there already; the rest is put into it.
    """
    datasets: dict[str, Dataset] = {}
    shelf = shelf or Shelf({}, {}, {}, {})
    for member in design.members:
        settings, key = member.settings, data_key(member.settings)
        if settings["init_from"]:
            raise ConfigError(
                f"{design.name}: member {member.name} has init_from: a sweep starts its "
                "networks anew; run the member by itself."
            )
        if key not in shelf.parts:
            source = json.dumps(settings["data"], sort_keys=True)
            if source not in datasets:
                datasets[source] = load_dataset(settings["data"])
                shelf.digests.update(data_digests(datasets[source]))
            shelf.parts[key] = prepare_parts(datasets[source], settings)
            shelf.grounds[key] = {
                part: training_ground(prepared, settings["data"])
                for part, prepared in shelf.parts[key].items()
            }
        for prepared in shelf.parts[key].values():
            check_enough(prepared, calibration_rules(settings, prepared).threshold)
    return shelf


def train_members(
    members: Sequence[Member],
    shelf: Shelf,
    workdir: Path,
    *,
    way: str,
    console: Console,
    judge: Judge = lambda courses: None,
    train_teachers: TrainTeachers | None = None,
) -> dict[str, Trained]:
    """The networks of all members by their trainings' names, teachers first.

    Args:
        members: whose networks.
        shelf: their data.
        workdir: where checkpoints and the log are.
        way: as of `train_all`.
        console: shows progress.
        judge: of the students, as of `train_all`.
        train_teachers: trains teachers elsewhere than in `workdir`.
    """
    teachers: dict[str, Training] = {}
    for member, _, needed, ground in _needs(members, shelf):
        if needed.teacher is not None and has_network(member.settings, TEACHER):
            teachers.setdefault(
                needed.teacher,
                teacher_training(ground, member.settings, name=needed.teacher),
            )
    if train_teachers is None:
        trained = _train([*teachers.values()], workdir, way, console)
    else:
        trained = train_teachers([*teachers.values()])
    models = _teachers(members, shelf, trained)
    students: dict[str, Training] = {}
    disturbed: Disturbed = {}
    scorers: dict[tuple[str, str], tuple[Scorer, ...]] = {}
    for member, part, needed, ground in _needs(members, shelf):
        if needed.student in students:
            continue
        teacher = models.get(needed.teacher or "")
        if needed.teacher is not None and teacher is None:
            continue  # Its training failed.
        if teacher is not None:
            key = (needed.teacher or "", scoring_key(member.settings))
            if key not in scorers:
                prepared = shelf.parts[data_key(member.settings)][part]
                scorers[key] = scorers_of(teacher, prepared, member.settings)
        students[needed.student] = student_training(
            ground,
            member.settings,
            name=needed.student,
            teacher=teacher,
            scorers=scorers[key] if teacher is not None else (),
            known=disturbed,
        )
    return trained | _train([*students.values()], workdir, way, console, judge)


def _teachers(
    members: Sequence[Member], shelf: Shelf, trained: Mapping[str, Trained]
) -> dict[str, ResidualModel]:
    """The teachers that students learn from, but for those whose training failed."""
    models: dict[str, ResidualModel] = {}
    for member, part, needed, ground in _needs(members, shelf):
        name = needed.teacher
        if name is not None and name not in models and _is_ready(member, name, trained):
            models[name] = _model(
                member, TEACHER, part, shelf, ground, trained.get(name)
            )
    return models


def _is_ready(member: Member, teacher: str, trained: Mapping[str, Trained]) -> bool:
    if not has_network(member.settings, TEACHER):
        return True
    return teacher in trained and trained[teacher].params is not None


def _model(
    member: Member,
    name: str,
    part: str,
    shelf: Shelf,
    ground: Ground,
    trained: Trained | None,
) -> ResidualModel:
    """A member's teacher or student of one part of the data, with all its own parts."""
    network = None
    if trained is not None:
        assert trained.params is not None
        shape = architecture(member.settings, name, width=ground.rows.shape[1])
        network = ResidualModel(NETWORK, trained.params, shape)
    key = data_key(member.settings)
    return fit_parts(
        member.settings[name]["parts"],
        shelf.parts[key][part],
        network,
        fits=shelf.fits.setdefault((key, part), {}),
    )


def _needs(
    members: Sequence[Member], shelf: Shelf
) -> list[tuple[Member, str, Need, Ground]]:
    return [
        (member, part, need(member.settings, part), ground)
        for member in members
        for part, ground in shelf.grounds[data_key(member.settings)].items()
    ]


def _train(
    trainings: Sequence[Training],
    workdir: Path,
    way: str,
    console: Console,
    judge: Judge = lambda courses: None,
) -> dict[str, Trained]:
    """Trains this process's share; gives all, from the folders of all processes."""
    folder = _own_folder(workdir)
    hosts.barrier("before training")
    elsewhere = [other for other in folders(workdir) if other != folder]
    found = _finished(trainings, elsewhere)
    # Nobody finishes one before all have looked.
    hosts.barrier("looked")
    own = [t for t in hosts.share(trainings) if t.name not in found]
    with hosts.apart():
        found |= train_all(own, folder, console, way=way, judge=judge)
    hosts.barrier("trained")
    others = [t for t in trainings if t.name not in found]
    return found | _finished(others, folders(workdir))


def _own_folder(workdir: Path) -> Path:
    number = hosts.process()
    folder = workdir / f"process-{number}" if number else workdir
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def folders(workdir: Path) -> list[Path]:
    """Where any process, now or before, keeps what it trained."""
    return [workdir, *sorted(workdir.glob("process-*"))]


def _finished(
    trainings: Sequence[Training], where: Sequence[Path]
) -> dict[str, Trained]:
    found = {}
    for training in trainings:
        for folder in where:
            with hosts.apart():
                done = finished(training, folder)
            if done is not None:
                found[training.name] = done
                break
    return found


def failures(member: Member, shelf: Shelf, trained: Mapping[str, Trained]) -> list[str]:
    """Why a member has no networks to judge; nothing if it has."""
    return [
        f"{name}: {_failure(trained.get(name))}"
        for _, _, needed, _ in _needs([member], shelf)
        for name in (_trained_teacher(member, needed), needed.student)
        if name is not None and (name not in trained or not trained[name].params)
    ]


def _trained_teacher(member: Member, needed: Need) -> str | None:
    """The name of the teacher's training, if it has one."""
    return needed.teacher if has_network(member.settings, TEACHER) else None


def _failure(trained: Trained | None) -> str:
    return "was not trained" if trained is None else course_text(trained.course)


def networks_of(
    member: Member, shelf: Shelf, trained: Mapping[str, Trained]
) -> dict[str, Networks]:
    """The networks of each part of a member, all of which are trained."""
    teachers = _teachers([member], shelf, trained)
    return {
        part: Networks(
            _model(member, STUDENT, part, shelf, ground, trained[needed.student]),
            teachers[needed.teacher] if needed.teacher else None,
            trained[needed.student].course,
            needed.teacher,
        )
        for _, part, needed, ground in _needs([member], shelf)
    }
