"""Posts an alarm to a chat: `kdjax stream … --on_alarm="command:python3 chat.py"`.

The webhook of the chat is in the environment variable CHAT_URL. The body {"text": …} is
what Slack, Mattermost and Rocket.Chat take.
"""

import json
import os
import sys
import urllib.request

alarm = json.load(sys.stdin)
time = alarm["start"] if alarm["phase"] == "begin" else alarm["end"]
text = f"{alarm['entity']}: {alarm['kind']} {alarm['phase']} {time}"
if alarm["kind"] == "score":
    pairs = zip(alarm["channels"], alarm["shares"], strict=False)
    blamed = ", ".join(f"{name} {share or 0:.0%}" for name, share in pairs)
    text += f"; {float(alarm['severity']):.1f} × its threshold; {blamed}"
else:
    text += "; " + " ".join([*alarm["channels"], alarm["text"]])

request = urllib.request.Request(
    os.environ["CHAT_URL"],
    json.dumps({"text": text}).encode(),
    {"Content-Type": "application/json"},
)
# An answer other than 2xx raises: the exit code is 1, and the message comes again.
urllib.request.urlopen(request, timeout=8).close()
