"""Studies in a notebook or a program: run one, load one, and have its runs, curves and verdicts as pandas frames."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_optim.core import yaml12
from hf_optim.core.safe_text import html as escape
from hf_optim.core.safe_text import line, terminal
from hf_optim.errors import UserError
from hf_optim.experiment.files import by_default
from hf_optim.experiment.own_training import OwnTraining
from hf_optim.study.findings import table, verdicts
from hf_optim.study.findings.cells import head, result_cells
from hf_optim.study.folder import results as records
from hf_optim.study.folder import rows
from hf_optim.study.plan.source import Source, parse

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

#: of a frame that is as good as empty
MOST_CELLS = 5_000_000

with warnings.catch_warnings():
    # Where a notebook has no ipywidgets, tqdm warns once and draws plain bars, which is all that anybody needs here.
    warnings.simplefilter("ignore")
    import tqdm.auto  # noqa: F401


def run(
    study: Mapping[str, Any] | str | Path,
    output: str | Path | None = None,
    *,
    jobs: int | None = None,
    seeds: int | None = None,
    retry_failed: bool = False,
    accept_change: bool = False,
) -> Study:
    """Runs what is missing of a study and gives it; interrupted, the same call goes on.

    Args:
        study: a mapping as a study's YAML holds it (a task may be a function made by `study.training`), a YAML file, a
            study's folder, or the name of a shipped one.
        output: the study's folder; default studies/NAME.
        jobs, seeds, retry_failed, accept_change: as `hf-optim study` takes them.

    Raises:
        UserError: for anything wrong with the study or the folder, before a run starts.
    """
    from hf_optim.study import conduct
    from hf_optim.study.plan import plan as planning
    from hf_optim.study.plan import shipped

    source: Source | None = None
    if isinstance(study, Mapping):
        source, name = _source(study), f"{study.get('name', 'study')}.yaml"
    else:
        name = str(study)
    asked = None if output is None else str(output)
    if output is None:
        named, known = (source, None) if source else (shipped.find(name)[0], shipped.folder_of(name))
        output = known or by_default("studies", planning.expand(named, seeds=seeds).name)
    conduct.study(
        name,
        output=asked,
        jobs=jobs,
        seeds=seeds,
        retry_failed=retry_failed,
        accept_change=accept_change,
        source=source,
    )
    return Study(output)


def load(folder: str | Path) -> Study:
    """A study that was run, from its folder. Raises UserError if it holds none."""
    return Study(folder)


def _source(study: Mapping[str, Any]) -> Source:
    def plain(value: Any) -> Any:
        if isinstance(value, OwnTraining):
            return value.path
        if callable(value):
            name = getattr(value, "__name__", value)
            raise UserError(f"{name}: decorate it with @hf_optim.study.training(...) first")
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return parse(yaml12.dump(plain(study)), "")


class Study:
    """A study's folder as it stands now. Frames are pandas'; what is shown in a notebook is the verdicts."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._results = records.load(self.folder)

    @cached_property
    def _tables(self) -> list[table.TaskTable]:
        return table.build(self._results)

    @property
    def sentences(self) -> list[str]:
        """What the study says, one sentence an optimizer."""
        return [line(sentence) for sentence in verdicts.sentences(self._results, self._tables)]

    @cached_property
    def runs(self) -> pandas.DataFrame:
        """A row a run, trials too: task, optimizer, seed, status, stage, every metric, costs and settings."""
        return _frame(rows.of(self._results))

    @cached_property
    def curves(self) -> pandas.DataFrame:
        """A row a logged step of a judged run: task, optimizer, seed, id, step and what was logged."""
        rows = []
        for run in self._results.plan.runs:
            head = {"task": run.task, "optimizer": run.optimizer, "seed": run.seed, "id": run.id}
            rows += [head | row | head for row in self._results.history(run)]  # a row may call itself anything
        return _frame(rows)

    @cached_property
    def verdicts(self) -> pandas.DataFrame:
        """A row an optimizer and task: mean, deviation, the paired difference with its interval, p, the verdict, and
        the optimizer as the verdict names it: with its search space and trials, or with these settings.
        """
        rows = []
        for task_table in self._tables:
            for row in task_table.rows:
                c = row.comparison
                rows.append(
                    {
                        "task": task_table.task,
                        "optimizer": row.optimizer,
                        "metric": task_table.metric,
                        "n": len(row.values),
                        "failed": row.failed,
                        "mean": row.mean.mean,
                        "sd": row.mean.sd,
                        "baseline": task_table.baseline,
                        "difference": c.difference.mean if c else math.nan,
                        "low": c.difference.low if c else math.nan,
                        "high": c.difference.high if c else math.nan,
                        "p": c.adjusted if c else math.nan,
                        "verdict": "baseline" if row.baseline else row.verdict,
                        "named": row.named,
                    }
                )
        return _frame(rows)

    def plot(
        self, what: str = "result", *, task: str | None = None, over: str = "step", axes: Axes | None = None
    ) -> Axes:
        """Draws on matplotlib axes (new ones by default) and gives them.

        Args:
            what: "result" (each seed, the mean and its interval), "difference" (to the baseline), or a figure that was
                logged, such as "train_loss".
            task: a task's label; default the first.
            over: of a curve: "step", "passes", "tokens", "flops" or "seconds".
            axes: where to draw.
        """
        from hf_optim.study.report import figures

        return figures.draw(self._results, self._tables, what, task=task, over=over, axes=axes)

    def report(self) -> Path:
        """Writes tables and report.html again and gives its path."""
        from hf_optim.study import conduct

        conduct.finish(self.folder, quiet=True)
        return self.folder / "report.html"

    def __repr__(self) -> str:
        lines = [f"{self._results.plan.title} ({self.folder})", *self.sentences]
        return "\n".join(map(line, [*lines, *filter(None, [verdicts.progress(self._results)])]))

    def _repr_html_(self) -> str:
        shown = "".join(_html(task_table) for task_table in self._tables)
        said = "".join(f"<li>{escape(sentence)}</li>" for sentence in self.sentences)
        going = verdicts.progress(self._results)
        title = f"<p><b>{escape(self._results.plan.title)}</b> {escape(going)}</p>"
        # MathJax, which a notebook has, would take what stands between dollars for a formula, and make links of some.
        return f'<div class="tex2jax_ignore mathjax_ignore">{title}{shown}<ul>{said}</ul></div>'


def _html(task_table: table.TaskTable) -> str:
    cells = [result_cells(task_table, row) for row in task_table.rows]
    heads = "".join(f'<th scope="col">{escape(head(task_table, key))}</th>' for key in cells[0]) if cells else ""
    body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row.values()) + "</tr>" for row in cells)
    return f"<table><caption>{escape(task_table.task + task_table.suffix)}</caption><tr>{heads}</tr>{body}</table>"


def _frame(rows: Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    try:
        pandas = importlib.import_module("pandas")
    except ModuleNotFoundError:
        raise UserError("frames need pandas: pip install pandas") from None
    columns = {name for row in rows for name in row}
    if len(rows) * len(columns) > max(MOST_CELLS, 50 * sum(map(len, rows))):
        raise UserError(
            f"the frame would have {len(rows):,} rows of {len(columns):,} columns, nearly all of them empty"
        )
    shown = {name: terminal(name) for name in columns}  # a frame prints what it holds
    return pandas.DataFrame([{shown[name]: _printed(value) for name, value in row.items()} for row in rows])


def _printed(value: Any) -> Any:
    """Plain data of whose texts none moves a cursor."""
    if isinstance(value, Mapping):
        return {terminal(name): _printed(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_printed(inner) for inner in value]
    return terminal(value) if isinstance(value, str) else value
