"""The report's tables in a real browser, sorted by a column, and its charts, saved as files of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from study_fakes import make_study, replan
from test_report_browser import BROWSER, visit

from hf_optim.commands.main import main

#: every column of a task's tables, sorted upwards; and what is saved of every chart, read as XML
SORT = """
addEventListener("load", async () => {
  const sorted = {}, saved = [];
  for (const table of document.querySelectorAll("section.task table")) {
    [...table.querySelectorAll("thead th")].forEach((head, column) => {
      head.querySelector("button").click();
      sorted[head.textContent] ??= [...table.tBodies[0].rows].map((row) => row.cells[column].textContent);
    });
  }
  HTMLAnchorElement.prototype.click = function () { saved.push([this.download, this.href]); };
  const buttons = document.querySelectorAll(".save button");
  for (const b of buttons) b.click();
  for (let i = 0; i < 40 && saved.length < buttons.length; i++) await new Promise((done) => setTimeout(done, 50));
  const read = (href) => new DOMParser().parseFromString(decodeURIComponent(href.split(",")[1]), "image/svg+xml");
  const drawings = saved.filter(([name]) => name.endsWith("svg")).map(([, href]) => read(href));
  const wrong = drawings.map((svg) => svg.querySelector("parsererror")?.textContent).filter(Boolean);
  const out = document.createElement("pre");
  out.id = "seen";
  out.textContent = JSON.stringify({ sorted, wrong, unsaved: buttons.length - saved.length });
  document.body.append(out);
});
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_tables_are_sorted_by_their_numbers_and_charts_are_saved(tmp_path: Path) -> None:
    """Beside "baseline" and "2/2 runs failed" numbers were sorted as words, kilobytes were more than megabytes, and a
    space that does not break, in the name of a metric, left no chart to be saved.
    """
    labels, named = ("adamw", "smaran", "adan", "lion", "sgd"), {"name": "test_a\u00a0<b", "greater_is_better": True}
    away = {"adamw": 0.0, "smaran": -0.2, "adan": -0.1, "lion": 0.1, "sgd": 0.0}
    failed = [("sgd", 0), ("sgd", 1)]
    folder = make_study(
        tmp_path / "study", labels, seeds=2, failed=failed, value=lambda label, seed: 0.5 + away[label] + seed / 100
    )
    replan(folder, lambda plan: [task.update(primary=named) for task in plan["tasks"]])
    for file in folder.glob("runs/*/record.json"):
        record = json.loads(file.read_text())
        record["metrics"] |= {named["name"]: record["metrics"].get("test_accuracy")} if record["metrics"] else {}
        size = {"adamw": 999, "smaran": 1_200_000, "adan": 8000}.get(record["spec"]["optimizer"]["name"], 20_000)
        file.write_text(json.dumps({**record, "primary": named, "memory": {"optimizer_state_bytes": size}}))
    assert main(["report", str(folder)]) == 0
    seen = visit(folder / "report.html", 900, SORT, tmp_path / "profile")
    assert seen["wrong"] == [] and seen["unsaved"] == 0
    sorted_by = seen["sorted"]
    assert sorted_by["− adamw"][:3] == ["-0.2000", "-0.1000", "+0.1000"]
    assert [text[:3] for text in sorted_by["test a\u00a0<b ↑"]] == ["0.3", "0.4", "0.5", "0.6", "2/2"]
    assert sorted_by["optimizer state"] == ["999 B", "8.0 kB", "20.0 kB", "1.2 MB", "–"]
