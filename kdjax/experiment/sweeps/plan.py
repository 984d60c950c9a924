"""Which networks a sweep's members need, each trained once however many share it.

A network is known by a digest of what decides it: members that differ only in their
threshold share all networks, and students of one teacher share that.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from kdjax.experiment.groups import group_name
from kdjax.experiment.jobs import is_distilled, teacher_seed

Settings = Mapping[str, Any]

# What `train` has that changes no network.
_IDLE = ("log_every", "checkpoint_seconds")
# What else decides a lesson, with what it is where it isn't used.
_FURTHER: dict[str, Any] = {"alpha_end": None, "temperature_end": None, "weights": []}


class Need(NamedTuple):
    """The networks of one part of one member, by the names of their trainings.

    Attributes:
        teacher: None where the student learns from the data alone.
        student: the one that is judged.
    """

    teacher: str | None
    student: str


def data_key(settings: Settings) -> str:
    """Tells whether two members see the same rows and windows."""
    return json.dumps([settings["data"], settings["entity_mode"]], sort_keys=True)


def teacher_name(settings: Settings) -> str:
    """The name of a member's teacher, without its part."""
    facts = _facts(settings, "teacher") | {"seed": teacher_seed(settings)}
    facts["network"] = {k: v for k, v in settings["teacher"].items() if k != "seed"}
    return f"teacher-{_digest(facts)}"


def student_name(settings: Settings) -> str:
    """The name of a member's student, without its part."""
    facts = _facts(settings, "student") | {"seed": settings["seed"]}
    # Its network is the same, whatever it is joined with.
    facts["network"] = {k: v for k, v in settings["student"].items() if k != "parts"}
    distill = settings["distill"]
    if is_distilled(distill):
        facts["teacher"] = teacher_name(settings)
        fields = (
            "alpha",
            "temperature",
            "temperature_mode",
            "target",
            "augmented_copies",
        )
        facts["distill"] = [distill[field] for field in fields]
        # Only where they are used, so that earlier sweeps find their networks.
        further = {
            field: distill[field]
            for field, usual in _FURTHER.items()
            if distill[field] != usual
        }
        if distill["target"] == "scores":
            further["scoring"] = scoring_key(settings)
        if further:
            facts["further"] = further
    return f"student-{_digest(facts)}"


def need(settings: Settings, part: str) -> Need:
    """The networks that one part of a member needs."""
    distilled = is_distilled(settings["distill"])
    return Need(
        group_name(teacher_name(settings), part) if distilled else None,
        group_name(student_name(settings), part),
    )


def scoring_key(settings: Settings) -> str:
    """Tells whether two members' teachers of one training score windows alike."""
    distill = settings["distill"]
    facts = [distill["target"], distill["weights"], settings["detection"]]
    return json.dumps(facts, sort_keys=True)


def _facts(settings: Settings, network: str) -> dict[str, Any]:
    train = {k: v for k, v in settings["train"].items() if k not in _IDLE}
    return {
        "data": data_key(settings),
        "model": settings["model"],
        "train": train,
        "network": settings[network],
        "init_from": settings["init_from"],
    }


def _digest(facts: Mapping[str, Any]) -> str:
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
