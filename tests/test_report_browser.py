"""The report in a real browser, at desktop and phone width: it fits, and what can be clicked does what it says."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from study_fakes import accuracy, make_study, replan

from hf_optim.commands.main import main
from hf_optim.core import safe_text

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser", "chrome"))), None)
# Runs in the page, after the report's own script, and leaves what it saw in an element.
VISIT = """
addEventListener("load", async () => {
  const seen = {}, saved = [];
  HTMLAnchorElement.prototype.click = function () {
    saved.push([this.download, this.href.slice(0, 22), this.href.length]);
  };
  const all = (selector) => [...document.querySelectorAll(selector)];
  const off = () => all(".s.off").length;
  seen.wide = document.documentElement.scrollWidth - innerWidth;
  const [first, second] = all(".legend button");
  seen.before = off();
  first.click();
  seen.clicked = [off(), first.getAttribute("aria-pressed")];
  first.click();
  seen.again = [off(), first.getAttribute("aria-pressed")];
  second.click(); second.click();
  second.dispatchEvent(new MouseEvent("dblclick", { bubbles: true }));
  seen.alone = all('.legend button[aria-pressed="true"]').map((b) => b.textContent.trim());
  second.click(); second.click();
  second.dispatchEvent(new MouseEvent("dblclick", { bubbles: true }));
  seen.back = off();
  const curve = all("svg").find((svg) => svg.querySelector(".hair"));
  curve.scrollIntoView();
  const box = curve.getBoundingClientRect();
  const at = { clientX: box.left + box.width * 0.4, clientY: box.top + box.height * 0.5, bubbles: true };
  curve.dispatchEvent(new PointerEvent("pointermove", at));
  const tip = document.getElementById("tip"), place = tip.getBoundingClientRect();
  seen.tip = [tip.style.display, tip.textContent];
  seen.inside = place.left >= 0 && place.right <= innerWidth && place.top >= 0 && place.bottom <= innerHeight;
  curve.dispatchEvent(new PointerEvent("pointerleave"));
  seen.left = tip.style.display;
  const details = all("details");
  for (const d of details) d.querySelector("summary").click();
  seen.open = details.every((d) => d.open);
  seen.wideOpen = document.documentElement.scrollWidth - innerWidth;
  for (const b of all("figure .save button").slice(0, 2)) b.click();
  for (let i = 0; i < 40 && saved.length < 2; i++) await new Promise((done) => setTimeout(done, 50));
  seen.saved = saved;

  // sort, and what a column means
  const table = document.querySelector("table.result"), heads = [...table.querySelectorAll("thead th")];
  const sorter = heads.find((h) => h.textContent === "test accuracy ↑"), column = heads.indexOf(sorter);
  const texts = () => [...table.tBodies[0].rows].map((row) => row.cells[column].textContent);
  const button = sorter.querySelector("button");
  seen.sorted = [0, 1].map(() => { button.click(); return [texts(), sorter.getAttribute("aria-sort")]; });
  button.dispatchEvent(new PointerEvent("pointerenter"));
  seen.told = [tip.style.display, tip.textContent];
  dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
  seen.told.push(tip.style.display);

  // copy
  const copies = [];
  Object.defineProperty(navigator, "clipboard", { value: { writeText: async (t) => { copies.push(t); } } });
  document.execCommand = () => { copies.push(document.activeElement.value); return true; };
  for (const b of all(".copy")[0].querySelectorAll("button")) b.click();
  seen.copies = copies;

  // another baseline and metric, and back
  const section = document.querySelector("section.task"), asked = section.querySelector(".asked");
  const set = (name, value) => {
    const select = section.querySelector(`[data-set="${name}"]`);
    select.selectedIndex = [...select.options].findIndex((o) => [o.value, o.textContent].includes(value));
    select.dispatchEvent(new Event("change"));
  };
  const cells = (row) => [...row.cells].slice(1, 7).map((c) => c.textContent);
  const state = () => [
    Object.fromEntries([...table.tBodies[0].rows].map((row) => [row.cells[0].textContent, cells(row)])),
    getComputedStyle(asked).display === "none", section.querySelector(".forest").textContent,
  ];
  seen.registered = state();
  set("baseline", "adan");
  seen.other = state();
  set("metric", "test loss");
  seen.loss = state();
  asked.querySelector("button").click();
  seen.home = state();

  // another axis, and single seeds
  const line = section.querySelector(".curves .line"), before = line.getAttribute("d");
  set("axis", "passes");
  seen.axis = [section.querySelector(".curves .xs").textContent, line.getAttribute("d") !== before];
  const chart = line.closest("svg");
  const xs = (path) => path.getAttribute("d").match(/[ML]-?[0-9.]+/g).map((m) => Number(m.slice(1)));
  seen.leads = [...chart.querySelectorAll(".tag")].map((tag) =>
    xs(tag.querySelector(".lead"))[0] - xs(chart.querySelector(`[data-k="${tag.dataset.k}"] .line`)).at(-1));
  set("axis", "step");
  seen.axis.push(line.getAttribute("d") === before);
  const singles = () => all(".curves .seed1").filter((p) => getComputedStyle(p).display !== "none").length;
  seen.seeds = [singles()];
  line.parentNode.dispatchEvent(new MouseEvent("click", { bubbles: true }));
  seen.seeds.push(singles());
  section.querySelector('[data-set="seeds"]').click();
  seen.seeds.push(singles());

  // contents, links, and where the verdict stands
  seen.anchors = all(".contents a").map((a) => document.querySelector(a.getAttribute("href")) !== null);
  seen.pages = all('a[href^="pages/"]').map((a) => a.getAttribute("href"));
  seen.verdict = document.querySelector("table.result tbody td").getBoundingClientRect().right - innerWidth;

  // whether every text that is shown can be read: the least contrast with what is behind it
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => numbers(colour).slice(0, 3)
    .map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const ground = getComputedStyle(e).backgroundColor;
      if (numbers(ground)[3] !== 0) return ground;
    }
    return "rgb(255, 255, 255)";
  };
  seen.read = [99, "", 0];
  for (const e of all("body *")) {
    const own = [...e.childNodes].filter((n) => n.nodeType === 3).map((n) => n.textContent.trim()).join("");
    if (!own || e.matches("script, style, option") || !e.checkVisibility()) continue;
    const style = getComputedStyle(e), two = [e.closest("svg") ? style.fill : style.color, behind(e)].map(light);
    const contrast = (Math.max(...two) + 0.05) / (Math.min(...two) + 0.05);
    seen.read[2] += 1;
    if (contrast < seen.read[0]) seen.read = [contrast, own.slice(0, 40), seen.read[2]];
  }
  seen.dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const out = document.createElement("pre");
  out.id = "seen";
  out.textContent = JSON.stringify(seen);
  document.body.append(out);
});
"""


def visit(page: Path, width: int, script: str, profile: Path, *flags: str) -> dict:
    """What `script` saw on a page; its hash joins the page's own, or the page's policy would keep it from running."""
    assert BROWSER is not None
    text = page.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert text.count("script-src 'sha256-") == 1
    text = text.replace("script-src ", f"script-src 'sha256-{digest}' ")
    visited = page.with_name("visited.html")
    visited.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", *flags,
         f"--user-data-dir={profile}", "--virtual-time-budget=20000", "--dump-dom", visited.as_uri()],
        capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    match = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match, "the visit did not come to its end"
    return json.loads(unescape(match[1]))


def apart(label: str, seed: int) -> float:
    """adan far behind, the others close together."""
    return accuracy(label, seed) - 0.2 * (label == "adan")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize("width, dark", [(1280, False), (390, True)])
def test_a_reader_clicks_through_the_report(width: int, dark: bool, tmp_path: Path) -> None:
    labels = ("adamw", "smaran", "adan", "a rule with a rather long name")
    folder = make_study(tmp_path / "study", labels, value=apart, seeds=5, spent=True)
    assert main(["report", str(folder)]) == 0
    scheme = ["--force-dark-mode"] if dark else []
    seen = visit(folder / "report.html", width, VISIT, tmp_path / "profile", *scheme)
    least, said, texts = seen["read"]
    assert seen["dark"] == dark and texts > 200 and least >= 4.5, f"{said!r} has a contrast of {least:.2f}"
    assert seen["wide"] <= 0 and seen["wideOpen"] <= 0, "the page is wider than the window"
    assert seen["before"] == 0 and seen["clicked"][0] > 0 and seen["clicked"][1] == "false"
    assert seen["again"] == [0, "true"]
    assert len(seen["alone"]) == 1 and seen["back"] == 0
    assert seen["tip"][0] == "block" and "step" in seen["tip"][1] and "smaran" in seen["tip"][1] and seen["inside"]
    assert seen["left"] == "none"
    assert seen["open"]
    (svg, _, _), (png, kind, size) = seen["saved"]
    assert svg.endswith(".svg") and png.endswith(".png") and kind == "data:image/png;base64," and size > 5000
    (up, upward), (down, downward) = seen["sorted"]
    numbers = [float(text.split()[0]) for text in up]
    assert numbers == sorted(numbers) and down == up[::-1] and (upward, downward) == ("ascending", "descending")
    assert seen["told"][0] == "block" and "mean over the units" in seen["told"][1] and seen["told"][2] == "none"
    csv, latex, markdown = seen["copies"]
    assert csv.startswith("optimizer,verdict,test accuracy (higher is better),") and csv.count("\n") == 5
    assert (
        "\\toprule" in latex
        and "$\\pm$" in latex
        and "$\\uparrow$" in latex
        and markdown.splitlines()[1].startswith("| --- | ---: |")
    )
    registered, hidden, drawn = seen["registered"]
    assert hidden and registered["adan"][0] == "worse" and "difference to adamw" in drawn
    other, hidden, drawn = seen["other"]
    assert not hidden and other["adamw"][0] == "better (exploratory)" and other["adan"][2] == "baseline"
    assert other["adamw"][1] == registered["adamw"][1] and "difference to adan" in drawn
    assert not seen["loss"][1] and seen["loss"][0]["adan"][1].startswith("0.2") and "test loss" in seen["loss"][2]
    assert seen["home"] == seen["registered"]
    assert "passes" in seen["axis"][0] and seen["axis"][1:] == [True, True]
    assert len(seen["leads"]) == 4 and all(0 < gap < 5 for gap in seen["leads"]), "a name that is not led to its curve"
    assert seen["seeds"] == [0, 15, 60]  # three charts of curves, five seeds, four optimizers
    assert seen["anchors"] and all(seen["anchors"])
    assert len(seen["pages"]) == 20 and all((folder / name).is_file() for name in seen["pages"])
    assert seen["verdict"] <= 0, "the verdict cannot be seen without scrolling"


#: what a reader who points at the end of each curve is told
POINT = """
addEventListener("load", () => {
  const seen = [...document.querySelectorAll(".curves svg.chart")].map((svg) => {
    svg.scrollIntoView();
    const at = svg.querySelector(".line").getAttribute("d").match(/[ML]-?[0-9.]+/g).map((m) => Number(m.slice(1)));
    const matrix = svg.getScreenCTM(), clientX = matrix.e + matrix.a * at.at(-1);
    svg.dispatchEvent(new PointerEvent("pointermove", { clientX, clientY: 9, bubbles: true }));
    const tip = document.getElementById("tip");
    return [tip.style.display, ...tip.querySelectorAll("b, td:last-child")].map((e) => e.textContent ?? e);
  });
  const out = document.createElement("pre");
  out.id = "seen";
  out.textContent = JSON.stringify(seen);
  document.body.append(out);
});
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_curve_of_large_numbers_says_what_it_shows(tmp_path: Path) -> None:
    """Two million steps, or a loss of a hundred million, were read back from the drawing as other numbers."""
    folder = make_study(tmp_path / "study", ("adamw",), seeds=1)
    (file,) = folder.glob("runs/*/history.jsonl")
    rows = [{"step": step, "train_loss": 1e9 - 100 * step, "validation_accuracy": 1 - 1e-11} for step in (0, 2_000_000)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["report", str(folder)]) == 0
    loss, accuracy = visit(folder / "report.html", 900, POINT, tmp_path / "profile")
    assert loss == ["block", "step 2000000", "8.00e+8"]
    assert accuracy == ["block", "step 2000000", "1"]


THEIRS = """</script><script>document.title='ran'</script><img src=x onerror="document.title='ran'">"""
#: opens, clicks, chooses and types whatever there is
TOUCH = """
addEventListener("load", async () => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  HTMLAnchorElement.prototype.click = () => {};
  const wide = document.documentElement.scrollWidth - innerWidth;
  for (const d of all("details")) d.open = true;
  for (const e of all("button, summary, select, input, svg, .line")) {
    e.dispatchEvent(new MouseEvent("click", { bubbles: true }));
    const box = e.getBoundingClientRect(), at = { clientX: box.left + 99, clientY: box.top + 9, bubbles: true };
    e.dispatchEvent(new PointerEvent("pointermove", at));
    for (const option of e.options ?? []) {
      e.value = option.value;
      e.dispatchEvent(new Event("change", { bubbles: true }));
    }
  }
  for (let i = 0; i < 10; i++) await new Promise((done) => setTimeout(done, 50));
  const theirs = (e) => [...e.attributes].some((a) => a.name.startsWith("on")) || e.matches("img:not([src^='data:'])");
  const seen = { wide, title: document.title, theirs: all("*").filter(theirs).length };
  const out = document.createElement("pre");
  out.id = "seen";
  out.textContent = JSON.stringify(seen);
  document.body.append(out);
});
"""


def theirs(folder: Path) -> Path:
    """A study in which every text is a script."""
    make_study(folder, seeds=2)

    def renamed(plan: dict) -> None:
        plan |= {key: plan[key] + THEIRS for key in ("title", "origin", "baseline")}
        for task in plan["tasks"]:
            task |= {"title": THEIRS, "label": task["label"] + THEIRS, "only": [x + THEIRS for x in task["only"]]}
        for optimizer in plan["optimizers"]:
            optimizer["label"] += THEIRS
        for run in plan["runs"]:
            run |= {key: run[key] + THEIRS for key in ("task", "optimizer")}

    replan(folder, renamed)
    for number, file in enumerate(sorted(folder.glob("runs/*/record.json"))):
        record = json.loads(file.read_text())
        for part in ("environment", "data"):
            record[part] |= {key: THEIRS for key in (THEIRS, *record[part])}
        record |= {"started": THEIRS, "settled": [THEIRS], "in_force": [{THEIRS: THEIRS}], "error": THEIRS}
        record["status"] = "ok" if number else "failed"
        file.write_text(json.dumps(record))
        rows = [json.loads(line) | {THEIRS: 1.0} for line in (file.parent / "history.jsonl").read_text().splitlines()]
        (file.parent / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_texts_of_a_stranger_run_nothing_and_fit_the_page(tmp_path: Path) -> None:
    folder = theirs(tmp_path / "study")
    assert main(["report", str(folder)]) == 0
    seen = visit(folder / "report.html", 600, TOUCH, tmp_path / "profile")
    assert THEIRS in seen["title"] and seen["theirs"] == 0
    assert seen["wide"] <= 0, "the page is wider than the window"


#: copies every table in every language, shows every view, and keeps whatever goes wrong
COPIES = """
const wrong = [];
addEventListener("error", (event) => wrong.push(String(event.message)));
addEventListener("load", async () => {
  const copies = [];
  Object.defineProperty(navigator, "clipboard", { value: { writeText: async (t) => { copies.push(t); } } });
  document.execCommand = () => { copies.push(document.activeElement.value); return true; };
  for (const select of document.querySelectorAll("select")) {
    for (const option of select.options) {
      select.value = option.value;
      select.dispatchEvent(new Event("change"));
    }
  }
  const seen = { based: document.querySelector("tr.base th").textContent, heads: DATA_HEADS() };
  for (const b of document.querySelectorAll(".copy button, thead button")) b.click();
  seen.texts = TEXTS.map((text) => [plain.csv(text), plain.latex(text), plain.markdown(text)]);
  Object.assign(seen, { copies, wrong });
  const out = document.createElement("pre");
  out.id = "seen";
  out.textContent = JSON.stringify(seen);
  document.body.append(out);
});
const DATA_HEADS = () => [...document.querySelectorAll("table.result thead button")].map((b) => b.textContent);
"""
#: what is an object's own in JavaScript, and what is not shown or turns the order
ODD = ("__proto__", "constructor", "toString", "a\u202eb", "a\u200bb", "=1+1", "é", "e\u0301", "[x] ^^5cinput y")
HOSTILE = (
    '=HYPERLINK("http://a.b")',
    "^^5cinput x",
    "![x](http://a.b/c)",
    'a~b`c`×"d"',
    "www.a.b &amp; <i>",
    "1. x",
    "a_b%",
)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_what_is_copied_is_text_wherever_it_is_put(tmp_path: Path) -> None:
    """An error or a metric's name was copied as a formula of a spreadsheet, a command of TeX or a picture; a label of
    which a letter is not shown ended the page's script.
    """
    folder = make_study(tmp_path / "study", ODD, tasks=("__proto__", "valueOf"), seeds=2, failed=[("constructor", 1)])
    for number, file in enumerate(sorted(folder.glob("runs/*/record.json"))):
        record = json.loads(file.read_text())
        record["error"] = record["error"] and " ".join(HOSTILE)
        record["groups"] = [{"parameters": 1, HOSTILE[number % len(HOSTILE)]: text} for text in HOSTILE]
        record["settled"] = [HOSTILE[number % len(HOSTILE)]]
        if record["status"] == "ok":
            record["metrics"] |= {f"test_{text}": 1.0 for text in HOSTILE}
        file.write_text(json.dumps(record))
    assert main(["report", str(folder)]) == 0
    script = f"const TEXTS = {json.dumps(HOSTILE)};{COPIES}"
    seen = visit(folder / "report.html", 900, script, tmp_path / "profile")
    assert seen["wrong"] == []
    expected = [[safe_text.csv(x), safe_text.latex(x), safe_text.markdown(x)] for x in HOSTILE]
    assert [[*csv.reader([cells[0]])][0] + cells[1:] for cells in seen["texts"]] == expected
    assert len(seen["copies"]) > 20 and "undefined" not in "".join(seen["copies"])
    for text in seen["copies"]:
        if "\\toprule" in text:
            assert not re.search(r"(?m)(?<!\\)[\^~`#]|^\[", text), text
        elif re.match(r"\| .* \|\n\| ---", text):
            assert (
                "![x](" not in text
                and not re.search(r"(?<!\w)www\.a", text)
                and len(set(map(cells_of, text.splitlines()))) == 1
            ), text
        else:
            cells = [cell for row in csv.reader(text.splitlines()) for cell in row]
            assert not [c for c in cells if c[:1] in "=+-@" and c and not re.fullmatch(r"[-+][\d.e+-]+", c)], text


def cells_of(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line))
