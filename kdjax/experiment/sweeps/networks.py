"""Data and networks of a sweep's members, each loaded, prepared and trained once.

Trained networks are found again by their names, in the folder of whichever process
trained them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from kdjax.data.prepared import Prepared
from kdjax.data.series import Dataset
from kdjax.detection.calibration import check_enough
from kdjax.errors import ConfigError
from kdjax.experiment.assemble import calibration_rules, data_digests
from kdjax.experiment.jobs import (
    AugmentedCache,
    Training,
    TrainingData,
    architecture,
    has_network,
    make_training_data,
    progress_text,
    student_training,
    teacher_training,
)
from kdjax.experiment.pipeline import load_dataset, prepare_parts
from kdjax.experiment.populations import (
    Judge,
    Trained,
    finished,
    train_all,
)
from kdjax.experiment.sweeps.design import Design, Member
from kdjax.experiment.sweeps.members import STUDENT, TEACHER, Networks
from kdjax.experiment.sweeps.plan import (
    Need,
    data_key,
    need,
    scoring_key,
)
from kdjax.experiment.train import scorers_of
from kdjax.models.residual import NETWORK, Fits, ResidualModel, fit_components
from kdjax.training import hosts
from kdjax.training.targets import ScoreFunction

TrainTeachers = Callable[[Sequence[Training]], dict[str, Trained]]


class SweepData(NamedTuple):
    """The sweep's data, each thing once: data sets, parts and windows by their key.

    `fits` has the baselines that were fitted to each part.
    """

    digests: dict[str, str]
    parts: dict[str, dict[str, Prepared]]
    training_sets: dict[str, dict[str, TrainingData]]
    fits: dict[tuple[str, str], Fits]


def load_sweep_data(design: Design, sweep_data: SweepData | None = None) -> SweepData:
    """All data that the members need, found large enough for their thresholds.

    Args:
        design: of the members.
        shelf: what is there already; the rest is put into it.
    """
    datasets: dict[str, Dataset] = {}
    sweep_data = sweep_data or SweepData({}, {}, {}, {})
    for member in design.members:
        settings, key = member.settings, data_key(member.settings)
        if settings["init_from"]:
            raise ConfigError(
                f"{design.name}: member {member.name} has init_from: a sweep starts its "
                "networks anew; run the member by itself."
            )
        if key not in sweep_data.parts:
            source = json.dumps(settings["data"], sort_keys=True)
            if source not in datasets:
                datasets[source] = load_dataset(settings["data"])
                sweep_data.digests.update(data_digests(datasets[source]))
            sweep_data.parts[key] = prepare_parts(datasets[source], settings)
            sweep_data.training_sets[key] = {
                part: make_training_data(prepared, settings["data"])
                for part, prepared in sweep_data.parts[key].items()
            }
        for prepared in sweep_data.parts[key].values():
            check_enough(prepared, calibration_rules(settings, prepared).threshold)
    return sweep_data


def train_members(
    members: Sequence[Member],
    sweep_data: SweepData,
    workdir: Path,
    *,
    way: str,
    console: Console,
    evaluate_models: Judge = lambda courses: None,
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
    for member, _, needed, training_data in _needs(members, sweep_data):
        if needed.teacher is not None and has_network(member.settings, TEACHER):
            teachers.setdefault(
                needed.teacher,
                teacher_training(training_data, member.settings, name=needed.teacher),
            )
    if train_teachers is None:
        trained = _train([*teachers.values()], workdir, way, console)
    else:
        trained = train_teachers([*teachers.values()])
    models = _teachers(members, sweep_data, trained)
    students: dict[str, Training] = {}
    disturbed: AugmentedCache = {}
    scorers: dict[tuple[str, str], tuple[ScoreFunction, ...]] = {}
    for member, part, needed, training_data in _needs(members, sweep_data):
        if needed.student in students:
            continue
        teacher = models.get(needed.teacher or "")
        if needed.teacher is not None and teacher is None:
            continue  # Its training failed.
        if teacher is not None:
            key = (needed.teacher or "", scoring_key(member.settings))
            if key not in scorers:
                prepared = sweep_data.parts[data_key(member.settings)][part]
                scorers[key] = scorers_of(teacher, prepared, member.settings)
        students[needed.student] = student_training(
            training_data,
            member.settings,
            name=needed.student,
            teacher=teacher,
            scorers=scorers[key] if teacher is not None else (),
            known=disturbed,
        )
    return trained | _train(
        [*students.values()], workdir, way, console, evaluate_models
    )


def _teachers(
    members: Sequence[Member], sweep_data: SweepData, trained: Mapping[str, Trained]
) -> dict[str, ResidualModel]:
    """The teachers that students learn from, but for those whose training failed."""
    models: dict[str, ResidualModel] = {}
    for member, part, needed, training_data in _needs(members, sweep_data):
        name = needed.teacher
        if name is not None and name not in models and _is_ready(member, name, trained):
            models[name] = _model(
                member, TEACHER, part, sweep_data, training_data, trained.get(name)
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
    sweep_data: SweepData,
    training_data: TrainingData,
    trained: Trained | None,
) -> ResidualModel:
    """A member's teacher or student of one part of the data, with all its own parts."""
    network = None
    if trained is not None:
        assert trained.params is not None
        shape = architecture(member.settings, name, width=training_data.rows.shape[1])
        network = ResidualModel(NETWORK, trained.params, shape)
    key = data_key(member.settings)
    return fit_components(
        member.settings[name]["components"],
        sweep_data.parts[key][part],
        network,
        fits=sweep_data.fits.setdefault((key, part), {}),
    )


def _needs(
    members: Sequence[Member], sweep_data: SweepData
) -> list[tuple[Member, str, Need, TrainingData]]:
    return [
        (member, part, need(member.settings, part), training_data)
        for member in members
        for part, training_data in sweep_data.training_sets[
            data_key(member.settings)
        ].items()
    ]


def _train(
    trainings: Sequence[Training],
    workdir: Path,
    way: str,
    console: Console,
    evaluate_models: Judge = lambda courses: None,
) -> dict[str, Trained]:
    """Trains this process's share; gives all, from the folders of all processes."""
    folder = _own_folder(workdir)
    hosts.barrier("before training")
    elsewhere = [other for other in folders(workdir) if other != folder]
    found = _finished(trainings, elsewhere)
    # Nobody finishes one before all have looked.
    hosts.barrier("looked")
    own = [t for t in hosts.share(trainings) if t.name not in found]
    with hosts.working_alone():
        found |= train_all(
            own, folder, console, way=way, evaluate_models=evaluate_models
        )
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
            with hosts.working_alone():
                done = finished(training, folder)
            if done is not None:
                found[training.name] = done
                break
    return found


def failures(
    member: Member, sweep_data: SweepData, trained: Mapping[str, Trained]
) -> list[str]:
    """Why a member has no networks to judge; nothing if it has."""
    return [
        f"{name}: {_failure(trained.get(name))}"
        for _, _, needed, _ in _needs([member], sweep_data)
        for name in (_trained_teacher(member, needed), needed.student)
        if name is not None and (name not in trained or not trained[name].params)
    ]


def _trained_teacher(member: Member, needed: Need) -> str | None:
    """The name of the teacher's training, if it has one."""
    return needed.teacher if has_network(member.settings, TEACHER) else None


def _failure(trained: Trained | None) -> str:
    return "was not trained" if trained is None else progress_text(trained.progress)


def networks_of(
    member: Member, sweep_data: SweepData, trained: Mapping[str, Trained]
) -> dict[str, Networks]:
    """The networks of each part of a member, all of which are trained."""
    teachers = _teachers([member], sweep_data, trained)
    return {
        part: Networks(
            _model(
                member,
                STUDENT,
                part,
                sweep_data,
                training_data,
                trained[needed.student],
            ),
            teachers[needed.teacher] if needed.teacher else None,
            trained[needed.student].progress,
            needed.teacher,
        )
        for _, part, needed, training_data in _needs([member], sweep_data)
    }
