"""Uses an installed kdjax away from its checkout: `cd FOLDER && python …/.ci/outside.py`.

Fits a detector to the sample, saves it, and scores a file by the program `kdjax`; prints
the file's mean row score.
"""

import subprocess
import sys
import warnings
from pathlib import Path

import pandas as pd

import kdjax

home = Path(kdjax.__file__)
if Path(__file__).resolve().parent.parent in home.resolve().parents:
    sys.exit(f"this is the checkout's kdjax: {home}")

sample = kdjax.load_sample()
train, test = (
    pd.DataFrame(part[0].values).add_prefix("metric_")
    for part in (sample.train, sample.test)
)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the sample has that users should look at
    kdjax.KDDetector(detector="mahalanobis").fit(train[:4000]).save("detector")
test[:1000].to_csv("rows.csv", index=False)

program = Path(sys.executable).parent / "kdjax"
score = ["score", "rows.csv", "--detector=detector", "--output=scores.csv"]
for words in (["info"], score):
    subprocess.run([program, *words], check=True)
scores = pd.read_csv("scores.csv")
assert len(scores) == 1000 and scores["score"].notna().any()
print(f"mean score {scores['score'].mean():.4f}")
