"""The files that deploy the service name what exists, and agree with each other."""

import configparser
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from kdjax.cli import flags_of

ROOT = Path(__file__).parent.parent
HERE = ROOT / "examples" / "serve"


def lines_of(path, word):
    """What stands behind a word at the begin of lines."""
    text = path.read_text("utf-8")
    return re.findall(rf"^{word}[ =](.*)$", text, flags=re.MULTILINE)


def command_of(path):
    """The command line of the Dockerfile or the unit."""
    if path.name == "Dockerfile":
        return json.loads(lines_of(path, "CMD")[0])
    return shlex.split(lines_of(path, "ExecStart")[0])


def port_of(command):
    (port,) = [a.partition("=")[2] for a in command if a.startswith("--port=")]
    return port


def test_the_list_of_libraries_is_that_of_the_package():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", "utf-8")
    serve = config["options.extras_require"]["serve"].split("\n")[1:]
    known = {*serve, *config["options"]["install_requires"].split("\n")[1:]}
    text = (HERE / "requirements.txt").read_text("utf-8")
    listed = [line for line in text.splitlines() if line[0] != "#"]
    assert {*serve} <= {*listed} <= known and listed == sorted({*listed})
    assert not [line for line in listed if re.match("jax|flax|optax|orbax", line)]


@pytest.mark.parametrize("path", [ROOT / "Dockerfile", HERE / "kdjax-serve.service"])
def test_commands_have_flags_that_exist(path):
    _, verb, *flags = command_of(path)
    names = {flag.partition("=")[0].removeprefix("--") for flag in flags}
    assert verb == "serve" and names <= flags_of("serve").keys()


def test_the_image_copies_what_its_context_has():
    path = ROOT / "Dockerfile"
    kept = {*re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)}
    copied = [line.split()[:-1] for line in lines_of(path, "COPY") if "--" not in line]
    assert {name for names in copied for name in names} == kept
    assert all((ROOT / name).exists() for name in kept)
    assert lines_of(path, "EXPOSE") == [port_of(command_of(path))]
    assert f":{port_of(command_of(path))}/" in lines_of(path, "HEALTHCHECK")[0]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", lines_of(path, "USER")[-1])


def test_compose_mounts_what_exists_where_it_is_read():
    compose = yaml.safe_load((HERE / "compose.yaml").read_text("utf-8"))
    services = compose["services"]
    assert services.keys() == {"kdjax", "prometheus", "grafana"}
    assert (HERE / services["kdjax"]["build"] / "Dockerfile").exists()
    mounts = {}
    for name, service in services.items():
        for volume in service["volumes"]:
            source, target, *_ = volume.split(":")
            mounts[name, target] = source
            if source.startswith("./"):
                assert (HERE / source).is_file(), volume
            elif not source.startswith("../../"):
                assert source in compose["volumes"]
    # The service: its port, and the folders that its command names.
    command = command_of(ROOT / "Dockerfile")
    assert f"127.0.0.1:8080:{port_of(command)}" in services["kdjax"]["ports"]
    assert mounts["kdjax", "/state"] == "state" and "--state=/state" in command
    assert mounts["kdjax", "/detectors"] == "../../detectors"
    assert "--detector=/detectors/plant.onnx" in command
    # Prometheus: it reads its configuration there by default.
    folder = Path("/etc/prometheus")
    config = mounts["prometheus", str(folder / "prometheus.yml")]
    config = yaml.safe_load((HERE / config).read_text("utf-8"))
    assert [f"kdjax:{port_of(command)}"] == config["scrape_configs"][0][
        "static_configs"
    ][0]["targets"]
    for rules in config["rule_files"]:
        assert mounts["prometheus", str(folder / rules)] == f"./{rules}"
    # Grafana: its source is Prometheus, and it finds the dashboard.
    folder = "/etc/grafana/provisioning"
    source = mounts["grafana", f"{folder}/datasources/kdjax.yml"]
    (source,) = yaml.safe_load((HERE / source).read_text("utf-8"))["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    provider = mounts["grafana", f"{folder}/dashboards/kdjax.yml"]
    (provider,) = yaml.safe_load((HERE / provider).read_text("utf-8"))["providers"]
    path = provider["options"]["path"]
    assert mounts["grafana", f"{path}/kdjax.json"] == "./grafana.json"
    board = json.loads((HERE / "grafana.json").read_text("utf-8"))
    variables = {one["name"]: one for one in board["templating"]["list"]}
    assert variables["datasource"]["query"] == source["type"]
    for panel in board["panels"]:
        for part in (panel, *panel["targets"]):
            assert part["datasource"]["uid"] == "${datasource}"
