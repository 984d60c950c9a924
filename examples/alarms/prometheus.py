"""Metrics of alarms for the textfile collector of Prometheus' node exporter.

kdjax stream … --on_alarm="command:python3 prometheus.py /var/lib/node_exporter/kdjax.prom"

What is open, and how many events began, is kept in FILE.json. A message that comes again
changes nothing, as long as its event is among the latest.
"""

import json
import os
import sys
from pathlib import Path

LATEST = 1000  # events that are known one by one

alarm, target = json.load(sys.stdin), Path(sys.argv[1])
memory = target.with_name(f"{target.name}.json")
known = {"open": {}, "total": {}, "seen": []}
if memory.exists():
    known = json.loads(memory.read_text("utf-8"))

label = json.dumps([alarm["entity"], alarm["kind"]])
if alarm["phase"] == "begin" and alarm["id"] not in known["seen"]:
    known["seen"] = [*known["seen"], alarm["id"]][-LATEST:]
    known["total"][label] = known["total"].get(label, 0) + 1
    known["open"][alarm["id"]] = label
elif alarm["phase"] == "end":
    known["open"].pop(alarm["id"], None)


def labels(text):
    """`{entity="…",kind="…"}`, escaped as the format asks."""
    entity, kind = (
        value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        for value in json.loads(text)
    )
    return f'{{entity="{entity}",kind="{kind}"}}'


lines = [
    "# HELP kdjax_alarms_total Events that began.",
    "# TYPE kdjax_alarms_total counter",
    *(f"kdjax_alarms_total{labels(key)} {n}" for key, n in known["total"].items()),
    "# HELP kdjax_alarms_open Events that have not ended.",
    "# TYPE kdjax_alarms_open gauge",
]
opened = [*known["open"].values()]
lines += [
    f"kdjax_alarms_open{labels(key)} {opened.count(key)}" for key in known["total"]
]
for path, text in ((memory, json.dumps(known)), (target, "\n".join(lines))):
    temporary = path.with_name(f".{path.name}.new")  # the collector reads *.prom only
    temporary.write_text(f"{text}\n", "utf-8")
    os.replace(temporary, path)
