"""An adaptive search: who chooses, what is pruned, and workers that share or die."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.trial import FixedTrial
from test_sweep_tables import read_table

from kdjax.cli import main, parse
from kdjax.config import (
    get_config,
    leaves,
    override,
    resolve,
)
from kdjax.errors import ArtifactError, ConfigError, DataError
from kdjax.experiment.sweeps.design import (
    OBJECTIVES,
    make_design,
    make_search,
    suggested_changes,
)
from kdjax.experiment.sweeps.search import (
    MOST_RETRIES,
    median_pruner,
    open_study,
    retry_dead,
    run_search,
    turn,
)
from kdjax.experiment.sweeps.sweep import run_sweep
from kdjax.experiment.workdir import read_lines

TOP = Path(__file__).parent.parent
SEEDS = (0, 3)
# Two trials make a median; the next learns nothing, and the last more than they.
HOPELESS, RATES = 2, {2: 1e-9, 3: 0.05}


def rates(trial):
    rate = trial.suggest_float("rate", 3e-3, 3e-2, log=True)
    return {
        "train.learning_rate": RATES.get(trial.number, rate),
        "train.clip_norm": trial.suggest_categorical("clip", [0.5, 1.0]),
    }


@pytest.fixture(scope="session")
def search_of(tiny, plant_changes):
    """Makes a search on the plant, with changes of its base."""

    def make(search=rates, changes=None, **defined):
        # Without a teacher, which `train.learning_rate` would change as well.
        usual = {"student.epochs": 3, "teacher.seed": 0, "distill.alpha": 0.0}
        settings = leaves(tiny(plant_changes | usual | (changes or {})))
        given = {
            field: tuple(value) if isinstance(value, list) else value
            for field, value in settings
            if value is not None
        }
        pruner = optuna.pruners.MedianPruner(n_startup_trials=2)
        names = {"SEEDS": SEEDS, "PRUNER": pruner, "search": search}
        return make_search("probe", override(get_config(), given), names | defined)

    return make


@pytest.fixture(scope="session")
def first(search_of, tmp_path_factory):
    """The folder of four trials by one worker, and what they found."""
    workdir = tmp_path_factory.mktemp("search") / "first"
    return workdir, run_search(search_of(), workdir, trials=4)


def trial_losses(workdir, number):
    """`[epochs, seeds]` validation losses, as the trial's log has them."""
    lines = pd.DataFrame(read_lines(workdir / "trials" / f"{number:04d}"))
    table = lines.pivot(index="epoch", columns="phase", values="validation_loss")
    return table.to_numpy()


def journal(workdir):
    study = open_study(workdir, "probe", direction="minimize", pruner=None)
    return study.get_trials()


# One worker.


def test_a_trials_value_is_the_mean_over_seeds_of_the_lowest_loss(first):
    workdir, found = first
    done = found.trials[found.trials["status"] == "done"]
    assert done["trial"].tolist() == [0, 1, 3]
    for number, value in zip(done["trial"], done["value"], strict=True):
        losses = trial_losses(workdir, number)
        assert losses.shape == (3, len(SEEDS))
        assert value == pytest.approx(losses.min(axis=0).mean(), rel=1e-9)
        running = np.minimum.accumulate(losses).mean(axis=1)
        reported = journal(workdir)[number].intermediate_values
        assert list(reported) == [0, 1, 2]
        np.testing.assert_allclose(list(reported.values()), running, rtol=1e-9)


def test_a_hopeless_trial_is_pruned_and_leaves_no_member(first):
    workdir, found = first
    row = found.trials.iloc[HOPELESS]
    losses = trial_losses(workdir, HOPELESS)
    assert len(losses) == 1  # of three epochs
    assert row["status"] == "pruned" and np.isnan(row["value"])
    assert row["reason"] == f"validation loss {losses.mean():.6g} after epoch 1"
    assert row["seeds_done"] == 0
    assert 0 < row["steps"] < found.trials["steps"][0]
    left = {path.name for path in (workdir / "trials" / "0002").iterdir()}
    assert left <= {".lock", "metrics.jsonl", "ways.json"}
    written = pd.read_csv(workdir / "trials.csv")
    assert written["status"].tolist() == ["done", "done", "pruned", "done"]
    assert written["param:rate"].between(3e-3, 3e-2).all()


def test_members_are_those_of_the_done_trials(first):
    workdir, found = first
    members = read_table(workdir / "members.csv")
    pd.testing.assert_frame_equal(members, found.members, check_dtype=False)
    assert members["member"].unique().tolist() == [
        "0000-0", "0000-3", "0001-0", "0001-3", "0003-0", "0003-3",
    ]  # fmt: skip
    assert set(members["entity"]) == {"press", "saw"}
    by_trial = members.groupby(members["member"].str[:4])["validation_loss"].mean()
    values = found.trials.set_index("trial")["value"].dropna()
    np.testing.assert_allclose(by_trial, values, rtol=1e-9)
    of_one = members[members["member"] == "0001-3"]
    (rate,) = set(of_one["train.learning_rate"])
    assert rate == journal(workdir)[1].params["rate"]
    assert set(of_one["seed"]) == {3}
    for name in ("0000-0", "0003-3"):
        folder = workdir / "trials" / name[:4] / "members" / name
        assert (folder / "detectors" / "student" / "card.json").exists()
    report = (workdir / "report.html").read_text("utf-8")
    assert "4 trials, 3 done, 1 pruned" in report


@pytest.mark.slow
def test_the_best_trials_command_gives_its_loss_again(first, tmp_path):
    workdir, found = first
    best = json.loads((workdir / "best.json").read_text("utf-8"))
    values = found.trials["value"]
    assert best["trial"] == values.idxmin() == 3 and best["value"] == values.min()
    assert best["changes"]["train.learning_rate"] == RATES[3]
    assert [run["seed"] for run in best["runs"]] == list(SEEDS)
    losses = [run["validation_loss"] for run in best["runs"]]
    assert np.mean(losses) == pytest.approx(best["value"])
    flags, rest = parse(best["runs"][1]["command"].split())
    assert rest == ["run"] and flags["workdir"].value == "runs/probe_0003-3"
    config = flags["config"].value
    member = workdir / "trials" / "0003" / "members" / "0003-3"
    assert resolve(config) == json.loads((member / "config.json").read_text("utf-8"))
    # Its training by itself, as `run` has it.
    design = make_design("again", config, lambda add: add(seed=3))
    again = run_sweep(design, tmp_path / "again", way="alone").members
    assert again["validation_loss"].to_list() == pytest.approx(
        [losses[1]] * 2, rel=1e-4
    )


@pytest.mark.slow
def test_other_labels_and_a_restart_change_no_trial(
    first, search_of, plant, tmp_path, monkeypatch
):
    """The same seed gives the same trials, whatever the labels are."""
    frame = pd.read_csv(plant.test)
    frame["fault"] = np.random.default_rng(0).permutation(frame["fault"])
    frame.to_csv(tmp_path / "test.csv", index=False)
    search = search_of(changes={"data.test_path": str(tmp_path / "test.csv")})
    run_search(search, tmp_path / "w", trials=1)
    again = run_search(search, tmp_path / "w", trials=2)
    columns = ["trial", "status", "value", "param:rate", "param:clip", "steps"]
    pd.testing.assert_frame_equal(again.trials[columns], first[1].trials[columns][:3])
    ours, others = again.members, first[1].members
    assert not np.array_equal(ours["f1_oracle"], others["f1_oracle"][: len(ours)])
    assert again.trials["param:rate"].nunique() == 3


@pytest.mark.parametrize("way", ["auto", pytest.param("alone", marks=pytest.mark.slow)])
def test_a_trial_with_a_failed_seed_has_failed(search_of, tmp_path, way):
    search = search_of(lambda trial: {"train.learning_rate": 1e30})
    found = run_search(search, tmp_path / "w", trials=1, way=way)
    (row,) = found.trials.to_dict("records")
    assert row["status"] == "failed" and np.isnan(row["value"])
    assert row["reason"].startswith("seed 0: ")
    assert "its loss was not finite at step" in row["reason"]
    assert found.members is None and found.best is None
    assert not (tmp_path / "w" / "members.csv").exists()


@pytest.mark.slow
def test_a_trial_of_one_network_an_entity(search_of, tmp_path):
    """Their epochs end at different steps; the value is the mean over all of them."""
    changes = {"entity_mode": "per_entity", "threshold.false_alarm_rate": 0.3}
    found = run_search(search_of(changes=changes), tmp_path / "w", trials=1)
    losses = trial_losses(tmp_path / "w", 0)
    assert losses.shape == (3, 2 * len(SEEDS))
    assert found.trials["value"][0] == pytest.approx(losses.min(axis=0).mean())
    reported = journal(tmp_path / "w")[0].intermediate_values
    assert list(reported) == [0, 1, 2]
    # Of the slower ones this is their first epoch, of the others their latest.
    assert losses.min(axis=0).mean() < reported[0] <= losses[0].mean()
    assert reported[2] == pytest.approx(losses.min(axis=0).mean())


def test_an_oracle_objective_uses_the_labels_and_says_so(search_of, tmp_path):
    search = search_of(OBJECTIVE="oracle_f1")
    found = run_search(search, tmp_path / "w", trials=1)
    f1 = found.members.groupby("member")["pooled_f1_oracle"].first()
    assert found.trials["value"][0] == pytest.approx(f1.mean())
    study = open_study(tmp_path / "w", "probe", direction="maximize", pruner=None)
    assert study.direction.name == "MAXIMIZE"
    assert study.get_trials()[0].intermediate_values == {}
    assert "with the test labels" in (tmp_path / "w" / "report.html").read_text("utf-8")


def test_the_usual_pruner_waits_for_five_trials_and_a_quarter_of_the_epochs():
    def pruned(done):
        """For each of 8 epochs whether the worst of all trials would end there."""
        study = optuna.create_study(pruner=median_pruner(8))
        for _ in range(done):
            trial = study.ask()
            for epoch in range(8):
                trial.report(1.0, epoch)
            study.tell(trial, 1.0)
        trial, found = study.ask(), []
        for epoch in range(8):
            trial.report(2.0, epoch)
            found.append(trial.should_prune())
        return found

    assert pruned(4) == [False] * 8
    assert pruned(5) == [False] * 2 + [True] * 6


# Faults of the user's.


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"data.window": 20}, "changes data.window, but validation losses of diff"),
        ({"data.scaler": "none"}, "changes data.scaler, but validation losses of"),
        ({"model.head": "sigmoid"}, "changes model.head, but validation losses of"),
        ({"entity_mode": "per_entity"}, "changes entity_mode, but validation losses"),
        ({"detection.floor": 0.1}, "has no effect on the validation loss: set it in"),
        ({"threshold.method": "pot"}, "has no effect on the validation loss"),
        (
            {"student.components": ("classifier",), "distill.alpha": 0.0},
            "student.components=('classifier',) has no autoencoder, so no validation_loss",
        ),
        ({"seed": 1}, "changes seed: list the seeds of a trial in SEEDS"),
        ({"train.rate": 1}, "unknown field train.rate (did you mean train."),
        ({"train.batch_size": 0}, "train.batch_size=0 must lie in"),
        ([1e-3], r"returned [0.001]: return a dict of changes"),
    ],
)
def test_changes_that_no_trial_may_make(search_of, given, said):
    search = search_of(lambda trial: given)
    with pytest.raises(ConfigError) as raised:
        suggested_changes(search, FixedTrial({}))
    assert said in str(raised.value)


def test_objectives_with_labels_may_change_the_data(search_of):
    labelled = [name for name in OBJECTIVES if name != "validation_loss"]
    assert all(name.startswith("oracle_") for name in labelled)
    for name in labelled:
        search = search_of(lambda trial: {"data.window": 20}, OBJECTIVE=name)
        assert suggested_changes(search, FixedTrial({})) == {"data.window": 20}


@pytest.mark.parametrize(
    ("defined", "said"),
    [
        ({"SEEDS": ()}, r"SEEDS=\(\) must be a tuple of different whole numbers"),
        ({"SEEDS": (1, 1)}, r"SEEDS=\(1, 1\) must be a tuple of different"),
        ({"SEEDS": 3}, "SEEDS=3 must be a tuple"),
        (
            {"OBJECTIVE": "f1"},
            "OBJECTIVE='f1' is unknown: use one of validation_loss, oracle",
        ),
    ],
)
def test_faulty_constants(search_of, defined, said):
    with pytest.raises(ConfigError, match=said):
        search_of(**defined)


def test_a_search_that_raises_is_told_and_its_trial_has_failed(search_of, tmp_path):
    search = search_of(lambda trial: {"train.learning_rate": 1 / 0})
    said = r"search\(trial\) raised ZeroDivisionError: division by zero"
    with pytest.raises(ConfigError, match=said):
        run_search(search, tmp_path / "w", trials=2)
    (trial,) = journal(tmp_path / "w")
    assert trial.state.name == "FAIL" and "division by" in trial.user_attrs["reason"]


def test_a_search_may_give_a_trial_up(search_of, tmp_path):
    def give_up(trial):
        trial.suggest_int("n", 1, 3)
        raise optuna.TrialPruned("no such pair")

    found = run_search(search_of(give_up), tmp_path / "w", trials=2)
    assert found.trials["status"].tolist() == ["pruned", "pruned"]
    assert set(found.trials["reason"]) == {"no such pair"}


@pytest.mark.parametrize(
    ("changes", "defined", "said"),
    [
        ({"train.batch_size": 7}, {}, "train.batch_size: 32 -> 7"),
        ({}, {"SEEDS": (0,)}, r"seeds: \[0, 3\] -> \[0\]"),
        ({}, {"OBJECTIVE": "oracle_f1"}, "'validation_loss' -> 'oracle_f1'"),
    ],
)
def test_another_search_is_refused(first, search_of, changes, defined, said):
    search = search_of(changes=changes, **defined)
    before = (first[0] / "journal.log").read_bytes()
    with pytest.raises(ConfigError, match=f"was made with another search.*{said}"):
        run_search(search, first[0], trials=1)
    assert (first[0] / "journal.log").read_bytes() == before


def test_other_data_and_other_folders_are_refused(first, search_of, plant, tmp_path):
    copied = tmp_path / "test.csv"
    frame = pd.read_csv(plant.test)
    frame.to_csv(copied, index=False)
    search = search_of(changes={"data.test_path": str(copied)})
    run_search(search, tmp_path / "w", trials=0)
    frame.assign(load=frame["load"] + 1).to_csv(copied, index=False)
    with pytest.raises(DataError, match="the data changed since"):
        run_search(search, tmp_path / "w", trials=0)
    with pytest.raises(ArtifactError, match=r"holds test.csv.* but no search.json"):
        run_search(search, tmp_path, trials=0)


def test_joined_processes_are_no_workers(search_of, tmp_path, monkeypatch):
    monkeypatch.setattr("kdjax.training.hosts.processes", lambda: 2)
    with pytest.raises(
        ConfigError, match="workers of a search are independent: remove --coord"
    ):
        run_search(search_of(), tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_a_member_that_was_taken_away_is_named(first, search_of, tmp_path):
    shutil.copytree(first[0], tmp_path / "w")
    (tmp_path / "w/trials/0000/members/0000-3/results.json").unlink()
    with pytest.raises(ArtifactError, match="trials/0000 lacks member 0000-3, but"):
        run_search(search_of(), tmp_path / "w", trials=0)


def test_a_journal_that_is_no_journal(first, search_of, tmp_path):
    shutil.copytree(first[0], tmp_path / "w")
    with (tmp_path / "w" / "journal.log").open("a") as file:
        file.write("not a line of it\n{}\n")
    with pytest.raises(ArtifactError, match="can't be read as Optuna's journal"):
        run_search(search_of(), tmp_path / "w", trials=0)


def recipe(tmp_path, search_of, body):
    """A config file of the search `probe` with more in it."""
    fields = dict(leaves(search_of().base))
    text = f"""
import os, time
import optuna
from kdjax.config import get_config as defaults, override

FIELDS = {fields!r}

def get_config():
    return override(defaults(), {{
        field: tuple(value) if isinstance(value, list) else value
        for field, value in FIELDS.items() if value is not None
    }})

{body}
"""
    path = tmp_path / "probe.py"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("body", "flag", "said"),
    [
        ("def search(trial): pass\ndef sweep(add): pass", "", "sweep and search: def"),
        ("", "", "probe has no sweep(add)"),
        ("def search(trial): pass", "--trials=-1", "--trials=-1 must be 0 or more."),
        ("def search(trial): pass", "--trials=x", "flag --trials=x: "),
    ],
)
def test_faulty_command_lines(tmp_path, search_of, capsys, body, flag, said):
    path = recipe(tmp_path, search_of, body)
    rest = [flag] if flag else []
    workdir = f"--workdir={tmp_path / 'w'}"
    assert main(["kdjax", "sweep", f"--config={path}", workdir, *rest]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1
    assert not (tmp_path / "w").exists()


def test_without_optuna_it_says_what_to_install(
    tmp_path, search_of, capsys, monkeypatch
):
    path = recipe(tmp_path, search_of, "def search(trial): pass")
    path.write_text(path.read_text("utf-8").replace("import optuna\n", ""))
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["kdjax", "sweep", f"--config={path}"]) == 2
    _, err = capsys.readouterr()
    assert 'pip install "kdjax[sweep]"' in err and err.count("\n") == 1


# Several workers.


WORKERS = """
class Slow(optuna.pruners.BasePruner):
    def prune(self, study, trial):
        while os.environ.get("HANGS"):
            time.sleep(0.05)
        return False

SEEDS = (0, 3)
PRUNER = Slow()

def search(trial):
    return {"distill.alpha": trial.suggest_float("alpha", 0.1, 0.9)}
"""


def start(path, workdir, trials, **environment):
    command = [sys.executable, "launch.py", "sweep", f"--config={path}"]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", f"--trials={trials}"],
        cwd=TOP,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_workers_share_a_study_and_outlive_each_other(search_of, tmp_path):
    path, workdir = recipe(tmp_path, search_of, WORKERS), tmp_path / "w"
    hangs = start(path, workdir, 2, HANGS="1")
    with hangs, start(path, workdir, 2) as works:
        try:
            said, _ = works.communicate(timeout=500)
            assert works.returncode == 0, said
            deadline = time.monotonic() + 200
            while not running_and_reported(workdir):
                assert time.monotonic() < deadline and hangs.poll() is None
                time.sleep(0.1)
        finally:
            hangs.send_signal(signal.SIGKILL)
            works.kill()
    before = {trial.number: trial for trial in journal(workdir)}
    states = {number: trial.state.name for number, trial in before.items()}
    (dead,) = (n for n, state in states.items() if state == "RUNNING")
    assert sorted(states.values()) == ["COMPLETE", "COMPLETE", "RUNNING"]
    assert list(states) == [0, 1, 2]
    drawn = {trial.params["alpha"] for trial in before.values()}
    workers = {t.user_attrs["worker"] for t in before.values()}
    assert (len(drawn), len(workers)) == (3, 2)
    (teacher,) = (workdir / "teachers").iterdir()
    epochs = [line["epoch"] for line in read_lines(teacher) if "train_loss" in line]
    assert epochs == [1, 2]  # by one of the two

    def alphas(trial):
        return {"distill.alpha": trial.suggest_float("alpha", 0.1, 0.9)}

    found = run_search(search_of(alphas, PRUNER=None), workdir, trials=1)
    rows = found.trials.to_dict("records")
    assert [row["status"] for row in rows].count("done") == 3
    assert rows[dead]["status"] == "failed"
    assert rows[dead]["reason"] == "its worker ended before it"
    assert (rows[3]["status"], rows[3]["retry_of"]) == ("done", dead)
    assert rows[3]["param:alpha"] == before[dead].params["alpha"]
    assert found.members["member"].nunique() == 3 * len(SEEDS)


def test_the_values_of_an_interrupted_trial_are_tried_again(search_of, tmp_path):
    def interrupted(trial):
        trial.suggest_float("rate", 1e-3, 1e-2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_search(search_of(interrupted), tmp_path / "w", trials=1)
    study = open_study(tmp_path / "w", "probe", direction="minimize", pruner=None)
    assert [trial.state.name for trial in study.get_trials()] == ["RUNNING"]
    retry_dead(study, tmp_path / "w")
    dead, again = study.get_trials()
    assert (dead.state.name, again.state.name) == ("FAIL", "WAITING")
    assert again.system_attrs["fixed_params"] == dead.params


def running_and_reported(workdir):
    return any(
        trial.state.name == "RUNNING" and trial.intermediate_values
        for trial in journal(workdir)
    )


@pytest.mark.parametrize("retries", [0, MOST_RETRIES - 1, MOST_RETRIES])
def test_a_trial_that_kills_its_workers_is_given_up(tmp_path, retries):
    with turn(tmp_path):
        study = open_study(tmp_path, "probe", direction="minimize", pruner=None)
    study.enqueue_trial({"x": 0.5}, user_attrs={"retries": retries})
    study.ask().suggest_float("x", 0, 1)
    study.ask()  # its worker ended before it had a value
    retry_dead(study, tmp_path)
    states = [trial.state.name for trial in study.get_trials()]
    assert states == ["FAIL", "FAIL", *(["WAITING"] if retries < MOST_RETRIES else [])]
    if retries < MOST_RETRIES:
        assert study.ask().suggest_float("x", 0, 1) == 0.5
        assert study.get_trials()[2].user_attrs == {
            "retries": retries + 1, "retry_of": 0,
        }  # fmt: skip
