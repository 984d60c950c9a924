"""The study that a search's workers share: Optuna's journal, and who runs which trial.

The journal is a file that grows by lines, fit for a shared file system; Optuna's lock
around each line is a file made with O_EXCL. A worker holds a lock of the operating
system on its trial's folder, which is free again however the worker ended. So a trial
that runs by the journal and whose lock can be had is dead: it fails, and its values are
tried again by whoever asks next. For this, locks must reach all hosts: NFS 4, or NFS 3
with its lock service.

The only user of Optuna, which is imported when a search starts.
"""

import contextlib
import json
import logging
import os
import shutil
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import filelock
import numpy as np

from kdjax.errors import ArtifactError, ConfigError, KdjaxError

if TYPE_CHECKING:
    from optuna import Study, Trial

logger = logging.getLogger(__name__)

JOURNAL = "journal.log"
# Of a trial whose worker ended; one that kills its workers must not go on for ever.
MOST_RETRIES = 2
# Trials that end before any can be pruned: a median of fewer says little.
LEAST_COMPLETE = 5

# What a trial carries in the journal besides Optuna's own.
CHANGES, REASON, WORKER = "changes", "reason", "worker"
SEEDS_DONE, STEPS, RETRIES, RETRY_OF = "seeds_done", "steps", "retries", "retry_of"


class Claimed(NamedTuple):
    """A trial that this process runs.

    Attributes:
        trial: Optuna's.
        changes: what `search(trial)` gave.
        lock: of its folder.
    """

    trial: "Trial"
    changes: dict[str, Any]
    lock: filelock.BaseFileLock


def load_optuna() -> Any:
    """The library; ConfigError where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            f'a search needs Optuna ({error}): pip install "kdjax[sweep]".'
        ) from error
    return optuna


def trial_folder(workdir: Path, number: int) -> Path:
    """Such as `trials/0012`."""
    return workdir / "trials" / f"{number:04d}"


@contextlib.contextmanager
def turn(workdir: Path) -> Iterator[None]:
    """One worker at a time: for what must not change between a look and an act."""
    workdir.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(workdir / ".turn.lock"):
        yield


def open_study(workdir: Path, *, name: str, direction: str, pruner: Any) -> "Study":
    """The study in the folder's journal; a new one where there is none."""
    optuna = load_optuna()
    # Its tellings of each trial stand beside ours.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path, journal = str(workdir / JOURNAL), optuna.storages.journal
    try:
        lock = journal.JournalFileOpenLock(path)
        storage = optuna.storages.JournalStorage(
            journal.JournalFileBackend(path, lock_obj=lock)
        )
        study: Study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction=direction,
            pruner=pruner or optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
    except (ValueError, KeyError) as error:
        raise ArtifactError(
            f"{path} can't be read as Optuna's journal ({error}): restore it from a "
            "copy, or start anew in another --workdir."
        ) from error
    return study


def median_pruner(epochs: int) -> Any:
    """Ends a trial whose best loss so far is worse than the others' median by then.

    Args:
        epochs: of a student; none is pruned in the first quarter of them.
    """
    return load_optuna().pruners.MedianPruner(
        n_startup_trials=LEAST_COMPLETE, n_warmup_steps=max(1, epochs // 4)
    )


def claim_trial(
    study: "Study",
    workdir: Path,
    *,
    seed: int,
    suggest: Callable[["Trial"], dict[str, Any]],
) -> Claimed | None:
    """The next trial, held by this process; None where `suggest` gave it up.

    Args:
        study: from `open_study`.
        workdir: of the search.
        seed: decides, with the trial's number and what was found before, its values.
        suggest: gives a trial's changes from its suggestions.

    Raises:
        ConfigError: from `suggest`; the trial has failed then.
    """
    optuna = load_optuna()
    with turn(workdir):
        retry_dead(study, workdir)
        count = len(study.get_trials(deepcopy=False))
        study.sampler = _sampler(seed, count)
        trial = study.ask()
        lock = _lock(trial_folder(workdir, trial.number))
        lock.acquire()
        try:
            trial.set_user_attr(WORKER, f"{socket.gethostname()}:{os.getpid()}")
            # The others see its values before they ask.
            changes = suggest(trial)
            trial.set_user_attr(CHANGES, json.loads(json.dumps(changes)))
            return Claimed(trial, changes, lock)
        except optuna.TrialPruned as error:
            said = str(error) or "search(trial) gave it up"
            end_trial(study, trial, workdir, optuna.trial.TrialState.PRUNED, said)
        except KdjaxError as error:
            end_trial(study, trial, workdir, optuna.trial.TrialState.FAIL, str(error))
            lock.release()
            raise
        except BaseException:
            lock.release()
            raise
        lock.release()
    return None


def end_trial(
    study: "Study", trial: "Trial", workdir: Path, state: Any, why: str
) -> None:
    """Tells that a trial ended without a value; only its log stays."""
    trial.set_user_attr(REASON, why)
    _clear(trial_folder(workdir, trial.number))
    study.tell(trial, state=state)


def retry_dead(study: "Study", workdir: Path) -> None:
    """Fails the trials whose worker has ended, and puts their values up again."""
    states = load_optuna().trial.TrialState
    for trial in study.get_trials(deepcopy=False, states=(states.RUNNING,)):
        folder = trial_folder(workdir, trial.number)
        try:
            with _lock(folder):
                _clear(folder)
                study.tell(trial.number, state=states.FAIL)
        except filelock.Timeout:
            continue
        retries = trial.user_attrs.get(RETRIES, 0)
        again = bool(trial.params) and retries < MOST_RETRIES
        if again:
            told = {RETRIES: retries + 1, RETRY_OF: trial.number}
            study.enqueue_trial(trial.params, user_attrs=told)
        logger.warning(
            "trial %04d: its worker ended before it; its values are %s",
            trial.number,
            "tried again" if again else "given up",
        )


def _sampler(seed: int, count: int) -> Any:
    """The sampler of one trial, after `count` others.

    One for the whole search would draw again, after a restart or in a second worker,
    what it drew first.
    """
    optuna = load_optuna()
    (own,) = np.random.SeedSequence([seed, count]).generate_state(1)
    with warnings.catch_warnings():
        # So Optuna 4 calls what is the default of 5: `multivariate`, `constant_liar`.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=int(own), multivariate=True, constant_liar=True
        )


def _lock(folder: Path) -> filelock.BaseFileLock:
    folder.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(folder / ".lock", timeout=0)


def _clear(folder: Path) -> None:
    """Takes away what only a finished trial has."""
    for path in (folder / "checkpoints", folder / "members"):
        shutil.rmtree(path, ignore_errors=True)
