"""Sends an alarm to phones by ntfy: `--on_alarm="command:python3 ntfy.py"`.

NTFY_URL is the address of a topic, such as https://ntfy.sh/a-long-random-name, which the
app on the phone subscribes to. NTFY_TOKEN is its token, if it needs one.
"""

import json
import os
import sys
import urllib.request

alarm = json.load(sys.stdin)
began = alarm["phase"] == "begin"
if alarm["kind"] == "score":
    pairs = zip(alarm["channels"], alarm["shares"], strict=False)
    text = ", ".join(f"{name} {share or 0:.0%}" for name, share in pairs)
    text = f"{float(alarm['severity']):.1f} × its threshold: {text}"
else:
    text = " ".join([*alarm["channels"], alarm["text"]])
entity = alarm["entity"].encode("ascii", "replace").decode()  # headers are ASCII
headers = {
    "Title": f"{entity}: {alarm['kind']} {alarm['phase']}",
    "Priority": "high" if began else "default",
    "Tags": "rotating_light" if began else "white_check_mark",
}
if token := os.environ.get("NTFY_TOKEN"):
    headers["Authorization"] = f"Bearer {token}"
when = alarm["start"] if began else alarm["end"]
body = f"{text}\n{when or ''}".strip().encode()
request = urllib.request.Request(os.environ["NTFY_URL"], body, headers)
# An answer other than 2xx raises: the exit code is 1, and the message comes again.
urllib.request.urlopen(request, timeout=8).close()
