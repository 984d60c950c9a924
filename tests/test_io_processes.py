"""Processes that were forked, and what is said in them."""

import multiprocessing
import os
import subprocess
import sys

import pytest

AFTER = """
import multiprocessing, warnings
import numpy as np
import kdjax

warnings.simplefilter("ignore")  # JAX warns of the fork itself


def use(job):
    detector, rows = job
    answers = []
    for name in ("predict", "fit", "detect", "calibrate"):
        try:
            getattr(detector, name)(rows)
            answers.append("done")
        except kdjax.ConfigError as error:
            answers.append(str(error))
    return answers


rows = np.random.default_rng(0).normal(size=(600, 2))
options = {"window_size": 8, "stride": 2, "false_alarm_rate": 0.1}
detector = kdjax.KDDetector(detector="mahalanobis", **options).fit(rows)
with multiprocessing.get_context("fork").Pool(1) as pool:
    print("|".join(pool.map(use, [(detector, rows)])[0]))
"""

BEFORE = """
import os
import numpy as np
import kdjax

rows = np.random.default_rng(0).normal(size=(600, 2))
options = {"window_size": 8, "stride": 2, "false_alarm_rate": 0.1}
detector = kdjax.KDDetector(detector="mahalanobis", **options)
child = os.fork()
if not child:
    print(detector.fit(rows).predict(rows).shape, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""

pytestmark = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="needs fork"
)


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    return done.stdout.strip()


def test_a_process_forked_after_jax_started_is_refused_at_once():
    answers = run(AFTER).split("|")
    assert len(answers) == 4
    for answer in answers:
        assert answer.startswith(
            "this process was forked from one that had started JAX"
        )
        assert 'multiprocessing.get_context("spawn")' in answer


def test_a_process_forked_before_jax_started_computes():
    assert run(BEFORE) == "(600,)"
