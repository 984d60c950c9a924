"""Print versions, devices and optional extras; parameter counts of a config."""

import json

from kdjax.commands import common
from kdjax.commands.common import Flag

USAGE = "[--json] [--config=FILE] [--config.FIELD=VALUE …]"
EXAMPLE = "kdjax info --config=configs/paper.py"
FLAGS = {"Settings": common.CONFIG, "Output": (Flag("json", "", False, "Print JSON."),)}


def main(arguments: list[str], flags: common.Flags) -> None:
    """Runs the verb."""
    common.no_arguments("info", arguments)
    from kdjax.io.environment import describe_environment

    facts = describe_environment()
    if common.config_file(flags)[0] or common.config_changes(flags):
        from kdjax.experiment.pipeline import count_networks

        settings = common.read_settings(flags)
        facts["parameters"] = count_networks(settings)
        facts["context"] = ", ".join(settings["data"]["context"]) or "none"
    if flags.json:
        print(json.dumps(facts, indent=2))
        return
    for key, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {item}" for name, item in value.items())
        print(f"{key}: {value}")
