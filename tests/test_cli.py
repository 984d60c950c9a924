"""The program: each verb's happy path, and one clear line for each fault."""

import itertools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from kdjax import cli
from kdjax.cli import OLD_FLAGS, VERBS, flags_of, main, parse
from kdjax.commands import common
from kdjax.config import RENAMED, get_config, leaves
from kdjax.data import download as fetch
from kdjax.detection.storage import save_detector

TOP = Path(__file__).parent.parent
ALL_VERBS = (
    "run, sweep, fleet, score, plot, calibrate, export, stream, serve, fetch, info"
)
QUICKSTART = f"--config={TOP / 'configs' / 'quickstart.py'}"


@pytest.fixture
def say(capsys):
    """Runs a command line; gives its exit code, stdout and stderr."""

    def run(*arguments):
        code = main(["kdjax", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def refused(say):
    """The one line that a faulty command line ends with, without its `kdjax: `."""

    def run(*arguments):
        code, out, err = say(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("kdjax: ") and err.count("\n") == 1 and err.endswith("\n")
        assert "Traceback" not in err
        return err.removeprefix("kdjax: ").rstrip("\n")

    return run


@pytest.fixture
def detector(tmp_path, small):
    folder = tmp_path / "detector"
    save_detector(folder, small)
    return folder


@pytest.fixture
def rows_file(tmp_path):
    frame = pd.DataFrame(
        np.random.default_rng(0).normal(size=(9, 2)), columns=["x", "y"]
    )
    frame.to_csv(tmp_path / "a.csv", index=False)
    return tmp_path / "a.csv"


def config_file(tmp_path, body):
    path = tmp_path / "recipe.py"
    path.write_text("from kdjax.config import get_config as defaults\n\n" + body)
    return path


def all_flags(verb):
    return itertools.chain.from_iterable(VERBS[verb].FLAGS.values())


# Help.


@pytest.mark.parametrize("flag", ["--help", "-h", "-help", "--helpfull"])
def test_help_names_every_verb_and_where_to_go_on(say, flag):
    code, out, err = say(flag)
    assert (code, err) == (0, "")
    assert list(VERBS) == ALL_VERBS.split(", ")
    for verb, module in VERBS.items():
        assert f"\n  {verb:<10} {module.__doc__.splitlines()[0]}\n" in out
    assert "kdjax VERB --help" in out and "Exit codes: 0 " in out
    assert max(map(len, out.splitlines())) <= 90


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb(say, verb):
    code, out, err = say(verb, "--help")
    assert (code, err) == (0, "")
    module = VERBS[verb]
    assert out.startswith(f"Usage: kdjax {verb} ") and module.__doc__.strip() in out
    for group, flags in module.FLAGS.items():
        assert f"\n\n{group}:\n" in out
        for flag in flags:
            value = f"={flag.value} " if flag.value else " "
            assert f"\n  --{flag.name}{value}" in out
            assert flag.help.split()[0] in out
            assert flag.help.endswith(".") and (flag.default is False) == (
                not flag.value
            )
    assert f"Example:\n  kdjax {verb} " in out and "Exit codes: 0 " in out
    taken = set(re.findall(r"^  --(\w+)", out, re.MULTILINE))
    assert taken == {*flags_of(verb)}
    # The commands there are run by test_readme.
    assert f"\n{module.EXAMPLE}\n" in (TOP / "docs" / "program.md").read_text()


def test_help_shows_defaults(say):
    out = say("sweep", "--help")[1]
    assert "trials to add. [10]" in out and "[-1]" not in out and "[None]" not in out
    shown = shlex.split(say("run", "--help")[1].replace("'s ", "s "))
    fields = dict(leaves(get_config().to_dict()))
    given = [word for word in shown if word.split("=")[0] in fields]
    assert sorted(word.split("=")[0] for word in given) == sorted(fields)
    set_ones = [f"--config.{word}" for word in given if not word.endswith("=")]
    values, _ = parse(["kdjax", "run", *set_ones])
    assert values["config"].value.to_dict() == get_config().to_dict()
    for word in given:
        assert not word.endswith("=") or fields[word[:-1]] in (None, "")


def test_verbs_share_defaults_of_flags_of_one_name():
    kinds = {flag.name: flag.default for verb in VERBS for flag in all_flags(verb)}
    kinds["detector"] = None  # but for `serve`, which takes several
    assert {
        "config", "config.FIELD", "config.threshold.FIELD", "workdir", "init_from", "way",
        "missing_values", "layout", "tag_column", "value_column", "step",
        "trials", "detector", "output", "entity", "confirmed_normal", "causal", "contributions", "attribution",
        "shard", "missing", "order", "duplicates", "exclude", "time_column", "entity_column", "label_column",
        "format", "quantize", "data", "backend", "adaptive", "rolling", "state", "ignore",
        "on_error", "on_alarm", "shelve", "acknowledged", "most_open", "json", "coordinator", "num_processes", "process_id",
        "shadow", "host", "port", "token_file", "max_body", "max_rows",
        "max_waiting", "max_entities", "request_seconds", "entity_metrics", "source", "scores",
        "dead_letters", "executor", "ray_address", "unit_cpus", "unit_gpus",
    } == set(kinds)  # fmt: skip
    for verb in VERBS:
        for flag in all_flags(verb):
            if (verb, flag.name) == ("serve", "detector"):
                continue
            assert (flag.default, type(flag.default)) == (
                kinds[flag.name],
                type(kinds[flag.name]),
            )


def test_help_wins_over_faulty_flags(say):
    code, out, _ = say("run", "--bogus", "--help")
    assert code == 0 and out.startswith("Usage: kdjax run ")
    code, out, _ = say("frob", "--help")
    assert code == 0 and out == say("--help")[1]


# Names of version 0.1.


def test_bench_is_a_script_now(refused):
    for flags in ([], ["--quick"], ["--help"]):
        assert refused("bench", *flags) == (
            "the verb bench was removed: run python benchmarks/speed.py in a checkout."
        )


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("blame", "attribution", "conditional"),
        ("following", "rolling", 0.2),
        ("config.controls", "config.baselines", ("pca", "kmeans")),
        ("config.teacher.parts", "config.teacher.components", ("autoencoder", "pca")),
        ("config.student.parts", "config.student.components", ("autoencoder", "pca")),
        ("config.detection.blame", "config.detection.attribution", "conditional"),
        ("config.distill.disturbed_copies", "config.distill.augmented_copies", 2),
        ("config.threshold.following_share", "config.threshold.rolling_share", 0.2),
    ],
)
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("dashes", ["-", "--"])
def test_old_names_of_flags_are_read(capsys, old, new, value, apart, dashes):
    text = str(value)
    flag = [f"{dashes}{old}", text] if apart else [f"{dashes}{old}={text}"]
    values, rest = parse(["kdjax", "run", *flag, "more"])
    assert rest == ["run", "more"]
    if new.startswith("config."):
        found = dict(leaves(values["config"].value.to_dict()))[
            new.removeprefix("config.")
        ]
    else:
        found = values[new].value
    assert found == value
    out, err = capsys.readouterr()
    assert (out, err) == (
        "", f"kdjax: --{old} is now called --{new}; the old name still works.\n"
    )  # fmt: skip
    assert {f"config.{name}" for name in RENAMED} | {"blame", "following"} == {
        *OLD_FLAGS
    }


def test_only_flags_have_old_names(capsys):
    parse(
        ["kdjax", "score", "blame", "--output=--blame", "--config.data.path=controls"]
    )
    assert capsys.readouterr() == ("", "")


@pytest.mark.filterwarnings("default:the config field:FutureWarning")
def test_old_names_in_a_config_file_are_read_with_one_line_each(say, asked, tmp_path):
    body = (
        "def get_config():\n    c = defaults()\n    c.data.name = 'smd'\n"
        "    c.controls = ('pca',)\n    c['controls'] += ('kmeans',)\n"
        "    c.update({'detection': {'blame': 'conditional'}})\n"
        "    c.threshold.following_share = 0.2\n    return c"
    )
    path = config_file(tmp_path, body)
    code, _, err = say("run", f"--config={path}", "--config.distill.disturbed_copies=1")
    assert code == 0
    ((settings, _),) = asked
    assert settings["baselines"] == ["pca", "kmeans"]
    assert settings["detection"]["attribution"] == "conditional"
    assert settings["threshold"]["rolling_share"] == 0.2
    assert settings["distill"]["augmented_copies"] == 1
    lines = err.splitlines()
    assert lines[0].startswith("kdjax: --config.distill.disturbed_copies is now called")
    said = (
        "the config field controls is now called baselines; the old name is still read."
    )
    assert lines[1] == f"kdjax: {path}:6: {said}" and len(set(lines)) == len(lines)
    assert all(line.startswith("kdjax: ") for line in lines)
    for name in ("blame", "following_share"):
        assert err.count(f"the config field {name} is now called") == 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("classifier", ["classifier"]),
        ("moving_average,classifier", ["moving_average", "classifier"]),
        ("('pca','kmeans')", ["pca", "kmeans"]),
        ("()", []),
    ],
)
def test_kinds_are_listed_with_commas(say, asked, given, expected):
    flags = (f"--config.baselines={given}", "--config.teacher.components=pca,kmeans")
    code, _, err = say("run", "--config.data.name=smd", *flags)
    assert (code, err) == (0, "")
    ((settings, _),) = asked
    assert settings["baselines"] == expected
    assert settings["teacher"]["components"] == ["pca", "kmeans"]


def test_texts_are_listed_with_commas(say, asked):
    texts = {
        "data.missing_values": ("No Data, Bad", ["No Data", "Bad"]),
        "data.context": ("'3'", ["3"]),
        "data.ignore": ("['a,b']", ["a,b"]),  # quotes keep a comma
    }
    flags = ["--config.data.path=x.csv"]
    for name, (text, _) in texts.items():
        flags += [f"--config.{name}", text]
    code, _, err = say("run", *flags, "--config.seed=3", "--workdir=a,b")
    assert (code, err) == (0, "")
    ((settings, workdir),) = asked
    for name, (_, expected) in texts.items():
        assert settings["data"][name.removeprefix("data.")] == expected
    assert (settings["seed"], workdir) == (3, "a,b")


def test_advice_names_flags_that_are_accepted(say, tmp_path, monkeypatch):
    """A file with a marker, then with the gap that it is: each advice, then the next."""
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{row},{row % 7}\n" for row in range(900))
    Path("data.csv").write_text("a,b\nNo Data,1\n" + rows, "utf-8")
    command = ["run", "--config.data.path=data.csv", "--workdir=run"]
    _, _, err = say(*command)
    assert err.startswith("kdjax: data.csv: ")
    assert "name it in --config.data.missing_values, with --config.data.missing=" in err
    command.append("--config.data.missing_values=No Data")
    _, _, err = say(*command)
    assert "by --config.data.missing=ffill, or leave it NaN by --config.data.mi" in err
    from kdjax.experiment import pipeline

    monkeypatch.setattr(pipeline, "run", lambda *_, **__: 1 / 0)  # the data are fine
    with pytest.raises(ZeroDivisionError):
        say(*command, "--config.data.missing=mask")


def test_an_unknown_kind_of_a_list_is_named(say):
    code, _, err = say(
        "run", "--config.data.name=smd", "--config.baselines=pca,kmean,3"
    )
    assert code == 2
    assert "baselines='kmean' must be among" in err and "baselines='3' must" in err


# The command line as a whole.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            [],
            f"no verb given: expected one of {ALL_VERBS}; see kdjax --help.",
        ),
        (["--json"], "no verb given: expected one of run,"),
        (
            ["frob"],
            f"unknown verb 'frob': expected one of {ALL_VERBS}; see",
        ),
        (["run", "--bogus"], "flags: Unknown command line flag 'bogus'."),
        (
            ["run", "--config.data.path=a.csv", "--config.threshold.budget=1/week"],
            "config: --config.threshold.budget has no effect with --config.threshold.method='blocks': add",
        ),
        (
            ["run", "--wrkdir=x"],
            "Unknown command line flag 'wrkdir'. Did you mean: work",
        ),
        (["run", "--workdir"], "flags: Missing value for flag --workdir."),
        (["run", "--config"], "flags: Missing value for flag --config."),
        (["info", "--json=perhaps"], "flags: flag --json=perhaps: "),
        (["run", "more", "words"], "run takes flags only: remove more words."),
        (["info", "more"], "info takes flags only: remove more."),
        (["score"], "score needs a file to score, got nothing."),
        (["score", "a", "b"], "score needs --detector; see kdjax score --help."),
        (["score", "a"], "score needs --detector; see kdjax score --help."),
        (
            ["score", "a", "--detector=d"],
            "score needs --output; see kdjax score --help.",
        ),
        (["export"], "export needs --detector; see kdjax export --help."),
        (["export", "--detector=d"], "export needs --output; see kdjax export --help."),
        (["export", "a.csv"], "export takes flags only: remove a.csv."),
        (["stream"], "stream needs --detector; see kdjax stream --help."),
        (["stream", "a.csv"], "stream takes flags only: remove a.csv."),
        (["stream", "--adaptive=much"], "flags: flag --adaptive=much: "),
        (["calibrate", "a", "b"], "best recorded after training), got a b."),
        (
            ["calibrate", "a", "--detector=d", "--output=o", QUICKSTART],
            "settings, except --config.threshold.FIELD: remove --config.",
        ),
        (["scor_", "a"], "unknown verb 'scor_' (did you mean 'score'?): expected"),
        (["serve", "--port=x"], "flag --port=x: expected a whole number."),
        (
            ["run", "--config.data.path=a.csv", "--config.baselines=kmean,pca"],
            "cnn_forecast, gru_forecast, memory (did you mean 'kmeans'?).",
        ),
        (
            ["run", "--config.data.path=a.csv", "--config.threshold.method=budgt"],
            "'fixed' (did you mean 'budget'?).",
        ),
        (
            ["run", "--config.data.path=a.csv", "--config.threshold.budget=1/week"],
            "add --config.threshold.method=budget, or remove it.",
        ),
        (["fetch"], "fetch needs a data set's name, smd, got nothing."),
        (["fetch", "asd"], "fetch has no data set 'asd': expected smd."),
        (["run", QUICKSTART, QUICKSTART], "flags: --config is given twice: give one."),
    ],
)
def test_faulty_command_lines(refused, arguments, said):
    assert said in refused(*arguments)


def test_values_may_stand_apart_from_their_flags(refused):
    line = refused("run", "--workdir", "x", "--config.seed", "-3", "--bogus")
    assert line == "flags: Unknown command line flag 'bogus'."
    line = refused("run", "--config.seed", "x", "--bogus")
    assert line == (
        "flags: flag --config.seed=x: expected a whole number; "
        "Unknown command line flag 'bogus'."
    )


def test_all_faulty_flags_come_in_one_line(refused):
    line = refused(
        "run", "--config.data.windw=3", "--config.seed=x", "--nothing", "--json=perhaps"
    )
    assert "unknown field data.windw (did you mean --config.data.window?)" in line
    assert "flag --config.seed=x: expected a whole number" in line
    assert "Unknown command line flag 'nothing'" in line
    assert "flag --json=perhaps" in line


# Config flags.


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        (
            "data.windw=3",
            "unknown field data.windw (did you mean --config.data.window?)",
        ),
        (
            "distil.alpha=0",
            "unknown field distil.alpha (did you mean --config.distill.alpha?)",
        ),
        ("data.window=3.5", "flag --config.data.window=3.5: "),
        ("distill.alpha=much", "flag --config.distill.alpha=much: expected a number"),
        (
            "alarm.frozen=much",
            "flag --config.alarm.frozen=much: expected true or false",
        ),
        ("teacher.hidden=a,b", "teacher.hidden must be a tuple of one or more whole"),
        ("data.scaler=log", "data.scaler='log' must be one of 'quantile', 'minmax'"),
        ("train.learning_rate=-1", "train.learning_rate=-1.0 must lie in (0, inf)"),
        ("train.learning_rate=inf", "must be a finite number, got inf"),
        (
            "detection.count=100",
            "detection.count=100 must be below --config.data.window=100",
        ),
        ("data.train_stride=x", "flag --config.data.train_stride=x: "),
        ("data=3", "flag --config.data=3: "),
    ],
)
def test_faulty_overrides(refused, tmp_path, flag, said):
    line = refused(
        "run", QUICKSTART, f"--config.{flag}", f"--workdir={tmp_path / 'run'}"
    )
    assert said in line
    assert not (tmp_path / "run").exists()


def test_without_a_data_set_it_says_what_to_set(refused):
    assert (
        "set one of --config.data.path (your own CSV, Parquet or .npy file"
        in refused("run")
    )


@pytest.fixture
def asked(monkeypatch):
    """Catches what `run` would run: settings and folder."""
    from kdjax.evaluation import tables
    from kdjax.experiment import pipeline

    calls = []

    def catch(settings, workdir, *, console):
        assert isinstance(console, Console)
        calls.append((settings, str(workdir)))
        return {"notes": ["saw borrowed"]}

    monkeypatch.setattr(common, "check_inputs", lambda settings, workdir: None)
    monkeypatch.setattr(pipeline, "run", catch)
    monkeypatch.setattr(tables, "results_tables", lambda results: "the tables")
    return calls


@pytest.mark.parametrize("order", [1, -1], ids=["config_first", "config_last"])
@pytest.mark.parametrize("apart", [False, True])
def test_overrides_hold_wherever_they_stand(say, asked, order, apart):
    name, path = QUICKSTART.split("=")
    parts = [
        ["run"],
        [name, path] if apart else [QUICKSTART],
        ["--config.data.window=50"],
        ["--config.student.hidden=8,4"],
        ["--config.data.train_stride=7"],
    ]
    assert say(*itertools.chain(*parts[::order]))[0] == 0
    (settings, workdir), = asked  # fmt: skip
    assert settings["data"]["window"] == 50 and settings["student"]["hidden"] == [8, 4]
    assert settings["data"]["train_stride"] == 7
    assert settings["data"]["name"] == "smd" and settings["teacher"]["epochs"] == 12
    assert workdir == "runs/quickstart"


@pytest.mark.parametrize(
    ("arguments", "workdir"),
    [
        ([QUICKSTART], "runs/quickstart"),
        ([QUICKSTART, "--workdir=elsewhere/x"], "elsewhere/x"),
        (["--config.data.path=some/plant.v2.csv"], "runs/plant"),
        (["--config.data.name=smd"], "runs/smd"),
        ([f"--config={TOP / 'configs' / 'paper.py'}:gpu"], "runs/paper_gpu"),
    ],
)
def test_default_work_directories(say, asked, arguments, workdir):
    assert say("run", *arguments)[0] == 0
    assert asked[0][1] == workdir


def test_the_argument_of_a_config_is_part_of_the_work_directory(say, asked, tmp_path):
    body = (
        "def get_config(root):\n    c = defaults()\n    c.data.name = 'asd'\n"
        "    c.data.root = root\n    return c"
    )
    assert say("run", f"--config={config_file(tmp_path, body)}:some/where")[0] == 0
    settings, workdir = asked[0]
    assert (
        settings["data"]["root"] == "some/where" and workdir == "runs/recipe_some-where"
    )


def test_run_tells_its_table_notes_and_files(say, asked):
    _, out, err = say("run", QUICKSTART)
    lines = out.splitlines()
    assert lines[:2] == ["the tables", "Note: saw borrowed"]
    assert lines[2] == (
        "Next: kdjax score FILE --detector=runs/quickstart/detectors/student "
        "--output=scores.csv"
    )
    assert "".join(lines[3:]).startswith("Written: runs/quickstart/results.json")
    assert err == ""


def test_the_argument_of_a_config_is_passed_on(say, asked):
    for argument in ("smap", "msl"):
        recipe = TOP / "configs" / "smap_msl.py"
        assert say("run", f"--config={recipe}:{argument}")[0] == 0
    assert [settings["data"]["name"] for settings, _ in asked] == ["smap", "msl"]


# Config files.


def test_a_missing_config_file_is_named(refused):
    for more in ([], ["--config.data.path=plant.csv"]):
        assert refused("run", *more, "--config=configs/nowhere.py") == (
            "--config=configs/nowhere.py can't be read: check the path; configs/… are files "
            "of a checkout of kdjax."
        )


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise RuntimeError('no such\\nplant')", "no such plant"),
        ("def get_config(:", "invalid syntax"),
        ("def get_config():\n    raise KeyError('plant')", "flags: plant."),
        ("import nothing_of_this_name", "No module named 'nothing_of_this_name'"),
        ("raise ValueError", "ValueError"),
        (
            "def get_config():\n    c = defaults()\n    c.data.windw = 3\n    return c",
            'flags: Key "windw" does not exist and cannot be added since the config is locked',
        ),
        (
            "def get_config():\n    c = defaults()\n    c.data.window = 'x'\n    return c",
            "override field 'window'",
        ),
        ("def get_config():\n    return 3", "can't be read: check the path"),
        (
            "def get_config():\n    c = defaults().unlock()\n    c.a = {1}\n    return c",
            "type set is not JSON serializable; use numbers, texts and tuples",
        ),
        (
            "def get_config():\n    c = defaults().unlock()\n    c.data.windw = 3\n    return c",
            "unknown field data.windw (did you mean --config.data.window?)",
        ),
    ],
)
def test_faulty_config_files(refused, tmp_path, body, said):
    assert said in refused("run", f"--config={config_file(tmp_path, body)}")


def test_a_recipe_refuses_an_unknown_argument_in_one_line(refused):
    line = refused("run", f"--config={TOP / 'configs' / 'paper.py'}:tpu")
    assert "paper.py:tpu: expected paper.py or paper.py:gpu." in line


# Files and folders.


def test_missing_data_is_named(refused, tmp_path):
    path = tmp_path / "plant.csv"
    line = refused("run", f"--config.data.path={path}", f"--workdir={tmp_path / 'w'}")
    assert line == f"{path} does not exist: check the path."
    line = refused(
        "run", f"--config.data.name=asd --config.data.root={tmp_path}".split()[0]
    )
    assert "data.name='asd' needs --config.data.root" in line


def test_a_workdir_that_can_be_no_folder_is_refused(refused, tmp_path, rows_file):
    line = refused("run", f"--config.data.path={rows_file}", f"--workdir={rows_file}")
    assert line == f"{rows_file} is a file, but must be a folder: give another path."


def test_a_full_disk_is_one_line(say, monkeypatch):
    def full(arguments, flags):
        raise OSError(28, "No space left on device", "runs/x/config.json")

    monkeypatch.setattr(VERBS["run"], "main", full)
    code, _, err = say("run")
    assert code == 2
    assert err == (
        "kdjax: [Errno 28] No space left on device: 'runs/x/config.json': free disk "
        "space, then rerun the command.\n"
    )


def test_other_faults_of_the_system_are_one_line(say, monkeypatch):
    def closed(arguments, flags):
        raise PermissionError(13, "Permission denied", "plant.csv")

    monkeypatch.setattr(VERBS["run"], "main", closed)
    wanted = "'plant.csv': check the path and its permissions.\n"
    assert say("run")[2] == f"kdjax: [Errno 13] Permission denied: {wanted}"


def test_messages_of_many_lines_become_one(say, monkeypatch):
    def broken(arguments, flags):
        raise cli.KdjaxError("first\n  second\tthird")

    monkeypatch.setattr(VERBS["run"], "main", broken)
    assert say("run") == (2, "", "kdjax: first second third\n")


def test_interruption_has_its_own_code(say, monkeypatch):
    def interrupt(arguments, flags):
        raise KeyboardInterrupt

    monkeypatch.setattr(VERBS["run"], "main", interrupt)
    code, _, err = say("run")
    assert code == 130
    assert err == "kdjax: interrupted; rerun the same command to resume\n"


# run.


def test_a_run_that_was_there_is_reported_again(say, finished):
    overrides = [
        f"--config.{group}.{field}={','.join(map(str, v)) if isinstance(v, list) else v}"
        for group, fields in finished.settings.items()
        if isinstance(fields, dict)
        for field, v in fields.items()
        if v not in (None, "", [])
    ]
    code, out, err = say("run", *overrides, f"--workdir={finished.workdir}")
    assert (code, err) == (0, "")
    assert "is finished: nothing to do." in "".join(out.splitlines())
    for word in ("teacher", "student_alone", "moving_average", "Note: too few"):
        assert word in out


def test_a_workdir_of_another_config_is_refused(refused, finished):
    line = refused("run", QUICKSTART, f"--workdir={finished.workdir}")
    assert "was made with another config (" in line and "data.window: 10 -> 100" in line


# score.


def test_score_writes_a_table(say, detector, rows_file, tmp_path):
    output = tmp_path / "scores.csv"
    code, out, err = say(
        "score", rows_file, f"--detector={detector}", f"--output={output}"
    )
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "a: 9 rows scored with the threshold of a"
    assert out.splitlines()[1].startswith(f"{output}: ")
    table = pd.read_csv(output)
    assert len(table) == 9 and list(table.columns[:3]) == ["entity", "time", "score"]


def test_flags_of_score_reach_it(say, detector, rows_file, tmp_path):
    frame = pd.read_csv(rows_file)
    frame = frame.assign(unit="a", when=pd.date_range("2024", periods=9), bad=0)
    frame.to_csv(rows_file, index=False)
    output = tmp_path / "scores.parquet"
    code, out, _ = say(
        "score", f"--detector={detector}", rows_file, f"--output={output}",
        "--entity=pooled", "--causal", "--entity_column=unit", "--label_column=bad",
        "--time_column=when",
    )  # fmt: skip
    assert code == 0 and "with the detector's threshold" in out
    table = pd.read_parquet(output)
    assert table["time"].dtype.kind == "M" and table["score"][:3].isna().all()


@pytest.mark.parametrize(
    "name", ["scores.txt", "scores", "scores.csv.gz", "scores.CSV"]
)
def test_outputs_of_another_ending_are_refused(refused, detector, rows_file, name):
    line = refused("score", rows_file, f"--detector={detector}", f"--output={name}")
    assert line == (
        f"--output={name} must end in .csv or .parquet, or in / for a folder."
    )


def test_faults_of_score(refused, detector, rows_file, tmp_path):
    output = f"--output={tmp_path / 'o.csv'}"
    line = refused("score", rows_file, f"--detector={tmp_path / 'none'}", output)
    assert line.endswith(
        "none is not a folder: give the folder of a detector, such as "
        f"WORKDIR/detectors/student (1 near it: {detector})."
    )
    line = refused("score", tmp_path / "none.csv", f"--detector={detector}", output)
    assert line.endswith("none.csv does not exist: check the path.")
    (detector / "card.md").write_text("changed")
    line = refused("score", rows_file, f"--detector={detector}", output)
    assert "is damaged: card.md has 7 bytes" in line
    assert not (tmp_path / "o.csv").exists()


def test_refusals_do_not_wait_for_jax(
    refused, monkeypatch, detector, rows_file, tmp_path
):
    monkeypatch.setattr(common, "start_jax", lambda *_: pytest.fail("JAX started"))
    text = tmp_path / "text.csv"
    text.write_text("x,y\n1,2\n3,high\n")
    other = tmp_path / "other.csv"
    other.write_text("x,z\n1,2\n")
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "photo.jpg").write_text("")
    known, output = f"--detector={detector}", f"--output={tmp_path / 'o.csv'}"
    cell = "text.csv: row 2 (line 3), column 2 ('y'): 'high' is not a number"
    for words, message in (
        (("score", "none.csv", known, output), "none.csv does not exist"),
        (("score", "rows.dat", known, output), "rows.dat has an unknown ending"),
        (("score", text, known, output), cell),
        (("score", other, known, output), "missing: y; not expected: z"),
        (("score", rows_file, f"--detector={tmp_path}", output), "(1 near it: "),
        (("calibrate", text, known, output), cell),
        (("calibrate", text, f"--detector={workdir}", output), "has no MANIFEST"),
        (("export", f"--data={text}", known, output), cell),
        (("export", "--detector=none", output), "none is not a folder"),
        (("stream", "--detector=none"), "none is not a folder"),
        (("run", "--config.data.path=none.csv"), "none.csv does not exist"),
        (("run", f"--config.data.path={text}"), cell),
        (
            ("run", f"--config.data.path={rows_file}", f"--workdir={workdir}"),
            "photo.jpg",
        ),
    ):
        assert message in refused(*words)


def test_large_files_are_read_once(refused, monkeypatch, detector, rows_file, tmp_path):
    started = []
    monkeypatch.setattr(common, "start_jax", lambda *_: started.append(1))
    monkeypatch.setattr(common, "_SMALL", 10)
    rows_file.write_text("x,y\n1,2\n3,high\n")
    output = f"--output={tmp_path / 'o.csv'}"
    assert "'high'" in refused("score", rows_file, f"--detector={detector}", output)
    assert started


def test_an_unknown_entity_is_refused_with_those_known(
    say, detector, rows_file, tmp_path
):
    code, _, err = say(
        "score", rows_file, f"--detector={detector}", f"--output={tmp_path / 'o.csv'}",
        "--entity=b",
    )  # fmt: skip
    assert code == 2
    assert err == "kdjax: the detector has no entity 'b': give one of a, or pooled.\n"


@pytest.fixture
def folder(tmp_path, rows_file):
    """Six files in a folder."""
    for number in range(6):
        copy = tmp_path / "plants" / f"unit{number}.csv"
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(rows_file.read_bytes())
    return tmp_path / "plants"


def test_score_takes_a_folder_in_shares(say, detector, folder, tmp_path):
    flags = (f"--detector={detector}", f"--output={tmp_path / 'out'}", "--causal")
    for place in range(2):
        code, out, err = say("score", folder, *flags, f"--shard={place}/2")
        assert (code, err) == (0, "")
        assert f": shard {place}/2, " in out.splitlines()[-1]
    tables = sorted((tmp_path / "out").glob("unit?.csv"))
    assert [path.name for path in tables] == [f"unit{n}.csv" for n in range(6)]
    table = pd.read_csv(tables[0])
    assert len(table) == 9 and table["score"][:3].isna().all()
    code, out, err = say("score", folder, *flags)
    assert out.splitlines()[-1].endswith("0 scored, 6 verified, 0 failed")


@pytest.mark.parametrize(("ending", "exists"), [("/", False), ("", True)])
def test_score_takes_one_file_into_a_folder(
    say, detector, rows_file, tmp_path, ending, exists
):
    output = tmp_path / "out"
    if exists:
        output.mkdir()
    flags = (f"--detector={detector}", f"--output={output}{ending}")
    assert say("score", rows_file, *flags)[0] == 0
    names = {"a.csv", "a.csv.events.csv", "a.csv.done.json"}
    assert {path.name for path in output.iterdir()} == names


def test_a_faulty_file_of_many_is_told_and_fails_the_verb(
    say, detector, folder, tmp_path
):
    (folder / "unit2.csv").write_text("x,y\n1,word\n")
    files = sorted(folder.iterdir())
    flags = (f"--detector={detector}", f"--output={tmp_path / 'out'}")
    code, out, err = say("score", *files, *flags)
    assert code == 2 and err.count("\n") == 1
    assert err.startswith("kdjax: 1 of 6 files failed; the first is unit2.csv: ")
    told = [line for line in out.splitlines() if line.startswith("failed: unit2.csv: ")]
    assert len(told) == 1 and "column 2 ('y')" in told[0]
    assert len(list((tmp_path / "out").glob("*.done.json"))) == 5


def test_faults_of_score_with_many_files(refused, detector, folder, tmp_path):
    known = f"--detector={detector}"
    for path in ("o.csv", "o.parquet"):
        line = refused("score", folder, known, f"--output={path}")
        assert line.startswith(
            f"--output={path} must be a folder to score several files"
        )
    line = refused("score", folder, known, f"--output={folder / 'o'}")
    assert line.endswith(f" is inside the input {folder}: give a folder outside of it.")
    output = f"--output={tmp_path / 'o'}"
    line = refused("score", folder, known, output, "--shard=2/2")
    assert line.startswith(
        "shard='2/2' is invalid: expected i/n with i from 0 to n - 1"
    )
    line = refused(
        "score", folder / "unit0.csv", known, "--output=o.csv", "--shard=0/2"
    )
    assert "--output=o.csv must be a folder" in line


# fetch.


@pytest.mark.parametrize(
    ("flags", "folder"), [([], "data/smd"), (["--output=elsewhere"], "elsewhere")]
)
def test_fetch_says_what_it_fetched(say, monkeypatch, flags, folder):
    asked = []

    def pretend(destination, *, progress):
        asked.append(str(destination))
        progress("train/a.txt", 1, 3)
        return fetch.Fetched(downloaded=(Path("a"), Path("b")), skipped=(Path("c"),))

    monkeypatch.setattr(fetch, "fetch_smd", pretend)
    code, out, _ = say("fetch", "smd", *flags)
    assert code == 0 and asked == [folder]
    assert out == f"{folder}: 2 files downloaded, 1 already verified\n"


# info.


def test_info_as_json(say):
    code, out, err = say("info", "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert {"python", "versions", "devices", "optional"} <= set(facts)
    assert "parameters" not in facts


def test_info_counts_a_configs_networks(say):
    code, out, _ = say("info", "--json", QUICKSTART, "--config.student.hidden=200")
    assert code == 0
    parameters = json.loads(out)["parameters"]
    assert set(parameters) == {"teacher", "student"}
    assert parameters["student"] == 519_638
    paper = f"--config={TOP / 'configs' / 'paper.py'}"
    facts = json.loads(say("info", "--json", paper)[1])
    assert facts["parameters"] == {"teacher": 1_124_201, "student": 482_601}


def test_info_to_read(say):
    code, out, _ = say("info", QUICKSTART)
    assert code == 0
    lines = dict(line.split(": ", 1) for line in out.splitlines())
    assert lines["parameters"].startswith("teacher ")
    assert f"numpy {np.__version__}" in lines["versions"]


# As a program of its own.


def program(*arguments):
    return subprocess.run(
        [sys.executable, "launch.py", *arguments],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=False,
    )


def test_launch_is_the_program():
    done = program("--help")
    assert done.returncode == 0 and done.stderr == ""
    assert "Usage: kdjax VERB [ARGUMENTS] [FLAGS]" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["frob"], "kdjax: unknown verb 'frob'"),
        (["run", "--config.data.windw=3"], "kdjax: flags: unknown field data.windw"),
        (["run", "--config=launch.py"], "has no attribute 'get_config'"),
        (["run", "--config=nowhere.py"], "kdjax: --config=nowhere.py can't be read"),
    ],
)
def test_a_fault_of_the_program_is_one_line_and_code_2(arguments, said):
    done = program(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr and done.stderr.count("\n") == 1


def test_the_installed_command_is_the_same_program():
    text = (TOP / "setup.cfg").read_text()
    assert "kdjax = kdjax.cli:program" in text
    assert "from kdjax.cli import program" in (TOP / "launch.py").read_text()
