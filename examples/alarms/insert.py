"""Keeps events in a table: `kdjax stream … --on_alarm="command:python3 insert.py alarms.db"`.

One row an event. A message that comes again changes nothing.
"""

import json
import sqlite3
import sys

alarm = json.load(sys.stdin)
alarm["channels"] = ";".join(alarm["channels"])
with sqlite3.connect(sys.argv[1], timeout=8) as database:
    database.execute(
        "CREATE TABLE IF NOT EXISTS events (id TEXT PRIMARY KEY, kind TEXT, entity TEXT, "
        '"start" TEXT, "end" TEXT, severity REAL, peak TEXT, channels TEXT, detector TEXT)'
    )
    database.execute(
        "INSERT INTO events VALUES (:id, :kind, :entity, :start, :end, :severity, :peak, "
        ':channels, :detector) ON CONFLICT (id) DO UPDATE SET "end" = excluded."end", '
        "severity = excluded.severity, peak = excluded.peak, channels = excluded.channels "
        'WHERE excluded."end" IS NOT NULL',
        alarm,
    )
