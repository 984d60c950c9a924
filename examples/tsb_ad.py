"""kdjax in the form that the benchmark TSB-AD calls detectors in.

Its `model_wrapper.py` runs a detector that learns from normal rows as
`run_NAME(data_train, data_test, **HP)`, with scores of all rows of `data_test` in [0, 1].
Copy this function there, add `kdjax` to the list of semi-supervised detectors and
`"kdjax": {}` to the best parameters in `HP_list.py`. Alone it scores one file of the benchmark:

    python examples/tsb_ad.py 057_SMD_id_1_Facility_tr_4529_1st_4629.csv scores.npy
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import kdjax
from kdjax.data.series import Series


def run_kdjax(data_train: Any, data_test: Any, **parameters: Any) -> np.ndarray:
    """Scores in [0, 1] of the rows `[N, D]` of `data_test`, by the default detector.

    A row's score is the mean over the windows that cover it. `parameters` are those of
    `KDDetector`, such as `random_state`.
    """
    detector = kdjax.KDDetector(**parameters).fit(data_train).detector_
    rows = Series("rows", np.asarray(data_test, np.float32), detector.channels)
    table = kdjax.score_table(detector, rows, entity=detector.entities[0])
    scores = table["score"].to_numpy()
    return (scores - scores.min()) / max(scores.max() - scores.min(), 1e-12)


def main(path: str, output: str) -> None:
    """Learns from the published prefix of a file, and scores all of its rows."""
    words = Path(path).stem.split("_")
    rows = pd.read_csv(path).dropna().drop(columns="Label").to_numpy(np.float64)
    np.save(output, run_kdjax(rows[: int(words[words.index("tr") + 1])], rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
