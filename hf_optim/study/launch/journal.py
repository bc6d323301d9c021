"""The tuning of a study as an Optuna journal, for Optuna's own tools (dashboard, importances, ...).

`tuning.journal` in the study's folder holds an Optuna study for each optimizer on each task. It is a log: what counts
is the records, from which it is brought up to date before the trials and after them. So it may be lost, and a launcher
that is killed while it writes spoils nothing.
"""

from __future__ import annotations

import hashlib
import json
import stat
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_optim.errors import UserError
from hf_optim.experiment.files import LARGEST, numbered, set_aside
from hf_optim.study.folder.locks import alone
from hf_optim.study.folder.searches import Search, Trial
from hf_optim.study.plan import tuning_points as points
from hf_optim.study.plan.plan import Plan

if TYPE_CHECKING:
    import optuna

FILE = "tuning.journal"


def update(plan: Plan, searches: Sequence[Search], folder: Path) -> None:
    """Asks for every trial that is known and tells the result of every finished one."""
    import optuna

    greater = {task["label"]: task["primary"]["greater_is_better"] for task in plan.tasks}
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with alone(folder, FILE), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            try:
                _bring_up(folder / FILE, searches, greater)
            except UserError:
                raise
            except Exception:  # whatever Optuna says of a journal that is not one of ours: it is set aside, not lost
                _set_aside(folder / FILE)
                _bring_up(folder / FILE, searches, greater)
    finally:
        optuna.logging.set_verbosity(before)


def _bring_up(file: Path, searches: Sequence[Search], greater: Mapping[str, bool]) -> None:
    import optuna

    storage = _open(file)
    for search in searches:
        if search.trials:
            study = optuna.create_study(
                storage=storage,
                study_name=name(search),
                direction="maximize" if greater[search.task] else "minimize",
                load_if_exists=True,
            )
            _ask(study, search)
            _tell(study, search)


def name(search: Search) -> str:
    """The Optuna study of a search; its last part changes with the space."""
    digest = hashlib.sha256(json.dumps(search.space, sort_keys=True).encode()).hexdigest()[:6]
    budget = "" if search.budget == 1 else f", budget {search.budget:g}"
    return f"{search.task}, {search.optimizer}, tuning seed {search.seed}{budget}, space {digest}"


def _ask(study: optuna.Study, search: Search) -> None:
    from optuna.trial import TrialState

    known = _latest(study)
    for trial in search.trials:
        last = known.get(trial.number)
        again = last is not None and last.state is TrialState.FAIL and trial.status != "failed"
        if last is None or again:
            attributes = {"number": trial.number, "run": trial.run.id}
            study.enqueue_trial(points.encode(search.space, trial.point), user_attrs=attributes)
    space = points.distributions(search.space)
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    if len(waiting) > len(search.trials):  # each costs a look at all of them
        raise ValueError("trials wait in it that are none of the search")
    for _ in waiting:
        study.ask(space)


def _tell(study: optuna.Study, search: Search) -> None:
    from optuna.trial import TrialState

    known = _latest(study)
    for trial in search.trials:
        if trial.status and known[trial.number].state is TrialState.RUNNING:
            state = {"failed": TrialState.FAIL, "pruned": TrialState.PRUNED}.get(trial.status)
            study.tell(known[trial.number].number, _value(trial), state=state)


def _value(trial: Trial) -> float | None:
    return trial.value if trial.status == "ok" else None


def _latest(study: optuna.Study) -> Mapping[int, optuna.trial.FrozenTrial]:
    """By our number; the last one, where a failed trial was made again."""
    return {t.user_attrs["number"]: t for t in study.get_trials(deepcopy=False)}


class _Held:
    """The lock that Optuna asks for: ours is held already, and unlike Optuna's it ends with its process."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _open(path: Path) -> Any:
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    try:
        there = path.lstat()
    except FileNotFoundError:
        pass
    else:
        if not stat.S_ISREG(there.st_mode) or there.st_nlink > 1:  # it is appended to, and only ours
            raise UserError(f"{path}: is a link or no plain file, and is not written to: remove it")
    _repair(path)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=_Held()))  # type: ignore[arg-type]


def _repair(path: Path) -> None:
    """Cuts off a last line that was not written whole; a journal damaged elsewhere, or without end, is set aside."""
    if not path.exists():
        return
    if path.stat().st_size > LARGEST:
        _set_aside(path)
        return
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        with path.open("r+b") as file:
            file.truncate(len(whole))
    try:
        for line in whole.splitlines():
            json.loads(line)
    except ValueError:
        _set_aside(path)


def _set_aside(path: Path) -> None:
    """Under a name that nothing has: what was set aside before may be somebody's, too."""
    set_aside(path.parent, path.name, numbered(path.stem, ".damaged"))
