"""The report for who does not see it, or sees it in the dark: structure, names and contrast."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest
from study_fakes import make_study
from tuning_fakes import YAML, expand, whole

from hf_optim.study.findings import analysis, protocol, table
from hf_optim.study.folder import results as records
from hf_optim.study.plan.plan import Run
from hf_optim.study.report import html as report
from hf_optim.study.report import run_pages
from hf_optim.study.report.pieces import file_names

VOID = ("meta", "img", "input", "br", "link", "circle", "path", "line")


class Page(HTMLParser):
    """Every element with its attributes, its path of ancestors and the text directly inside it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[dict] = []
        self.elements: list[dict] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = {"tag": tag, "text": "", "inside": [e["tag"] for e in self.open], "parts": [], **dict(attrs)}
        if self.open:
            self.open[-1]["parts"].append(element)
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop()["tag"] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.open:
            self.open[-1]["text"] += data

    def all(self, *tags: str) -> list[dict]:
        return [element for element in self.elements if element["tag"] in tags]


def spoken(element: dict) -> str:
    """The text of an element and of everything in it."""
    return " ".join([element["text"], element.get("aria-label", ""), *map(spoken, element["parts"])]).strip()


def check(text: str) -> Page:
    page = Page(text)
    ids = Counter(element["id"] for element in page.elements if "id" in element)
    assert max(ids.values(), default=1) == 1, [name for name, count in ids.items() if count > 1]
    for element in page.elements:
        for key in ("aria-labelledby", "aria-describedby"):
            assert element.get(key, "tip") in ids or key not in element, element
        assert not element.get("href", "").startswith("#") or element["href"][1:] in ids, element["href"]
    for element in page.all("table"):
        caption = [part for part in element["parts"] if part["tag"] == "caption"]
        assert element.get("aria-labelledby") or spoken(caption[0]), "a table without a name"
    assert all(element.get("scope") in ("row", "col") for element in page.all("th"))
    assert all(element.get("alt") for element in page.all("img"))
    for element in page.all("svg"):
        drawn = element.get("role") == "img" and len(element.get("aria-label", "")) > 10
        assert drawn or element.get("aria-hidden") == "true", "a drawing that says nothing"
    for element in page.all("select", "input"):
        assert "label" in element["inside"] or element.get("aria-label"), element
    assert all(spoken(element) for element in page.all("button", "a", "summary", "h1", "h2", "h3"))
    assert len(page.all("h1")) == len(page.all("main")) == 1 and page.all("html")[0]["lang"] == "en"
    levels = [int(element["tag"][1]) for element in page.all("h1", "h2", "h3")]
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False)), "a heading of a level too deep"
    # What scrolls on its own has to be reached by keyboard.
    scrolling = [e for e in page.elements if "scroll" in (e.get("class") or "").split() or e["tag"] == "pre"]
    assert all(element.get("tabindex") == "0" for element in scrolling)
    return page


def test_every_part_of_the_report_has_a_name_and_a_place(tmp_path: Path) -> None:
    results = records.load(whole(expand(YAML.replace("trials: 6", "trials: 2")), tmp_path))
    tables = table.build(results)
    text = report.render(results, tables, analysis.analyse(results, tables), protocol.build(results))
    page = check(text)
    inside = [element for element in page.all("section", "nav") if "main" not in element["inside"]]
    assert not inside, "outside of the main part"
    assert all(element.get("aria-labelledby") for element in page.all("section") if element.get("class") == "task")
    (contents,) = (element for element in page.all("nav") if element.get("class") == "contents")
    assert [spoken(link) for link in contents["parts"]] == [spoken(title).split(" (")[0] for title in page.all("h2")]


def test_so_has_the_page_of_a_run(tmp_path: Path) -> None:
    results = records.load(make_study(tmp_path))
    for make in run_pages.parts(results):
        make()
    check(next((tmp_path / "pages").iterdir()).read_text(encoding="utf-8"))


def test_the_page_of_a_run_says_why_one_that_finished_counts_as_failed(tmp_path: Path) -> None:
    def outcome(run: Run) -> dict[str, float]:
        after = 0.1 if run.seed % 2 else 0.5
        return {"validation_accuracy": after, "validation_loss": 0.5, "test_accuracy": 0.8}

    results = records.load(whole(expand(YAML.replace("trials: 6", "trials: 2")), tmp_path, outcome))
    for make in run_pages.parts(results):
        make()
    told = "It counts as failed: validation_accuracy is 0.1, no better than untrained (0.1)."
    for run in results.plan.runs:
        page = (tmp_path / "pages" / f"{run.id}.html").read_text(encoding="utf-8")
        assert "<p>finished" in page and (told in page) == (run.seed % 2 == 1), run


def test_labels_that_are_written_alike_have_places_of_their_own(tmp_path: Path) -> None:
    labels = ["A b", "a-b", "A/b 2", "(a b)", "日本", "中文"]
    assert list(file_names(labels).values()) == ["a-b", "a-b-2", "a-b-2-2", "a-b-3", "", "-2"]
    results = records.load(make_study(tmp_path, ("adamw", "smaran"), labels[:4]))
    page = check(report.render(results, table.build(results)))
    places = [element["href"] for element in page.all("a") if element.get("href", "").startswith("#task-")]
    assert len(set(places)) == 4
    saved = [element["data-name"] for element in page.all("span") if "data-name" in element]
    assert len(saved) == len(set(saved)), "two charts would be saved under one name"


def test_words_that_nobody_has_to_know_are_explained_also_on_paper(tmp_path: Path) -> None:
    results = records.load(make_study(tmp_path / "a", seeds=5))
    page = check(report.render(results, table.build(results)))
    (terms,) = (element for element in page.all("dl") if element.get("class") == "terms")
    words = {part["text"] for part in terms["parts"] if part["tag"] == "dt"}
    asked = {"this design finds a difference of … with 80 %", "if planned beforehand"}
    assert words == {"look", "undecided", "untrained", "Holm"} | asked
    hidden = re.search(r"@media print.*?\n((?:.*\n)*?)}", css("report.css"))
    assert hidden and ".more" in hidden[0] and "terms" not in hidden[0]
    around = re.search(r'<section([^>]*)><h2 id="reading">How to read it</h2><dl class="terms">', report.render(
        results, table.build(results)))  # fmt: skip
    assert around and "more" not in around[1], "what is no part of the printed page"
    # Of words that the page does not use, nothing is said.
    two = records.load(make_study(tmp_path / "b", ("adamw", "smaran"), seeds=5))
    assert "<dt>Holm</dt>" not in report.render(two, table.build(two))


# --- colours -------------------------------------------------------------------------------------------------------


def css(name: str) -> str:
    return (files("hf_optim.study.report") / name).read_text(encoding="utf-8")


def schemes(text: str) -> dict[str, dict[str, str]]:
    """The colours of each scheme: a media query's own in place of the first ones."""
    blocks = re.findall(r"(?:@media ([^{]*)\{[^\n]*\n?\s*)?:root \{(.*?)\}", text, re.DOTALL)
    named = {media.strip(): dict(re.findall(r"--(\w+): (#\w+)", body)) for media, body in blocks}
    return {media: {**named[""], **colours} for media, colours in named.items()}


def contrast(first: str, second: str) -> float:
    """By WCAG 2.2, of two colours as #rrggbb or #rgb."""

    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        linear = []
        for i in (0, 2, 4):
            v = int(digits[i : i + 2], 16) / 255
            linear.append(v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4)
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("name, count", [("report.css", 3), ("run_page.css", 2)])
def test_text_and_lines_stand_out_in_light_dark_and_print(name: str, count: int) -> None:
    assert contrast("#000", "#ffffff") == pytest.approx(21) and contrast("#777777", "#fff") == pytest.approx(
        4.48, abs=0.01
    )
    named = schemes(css(name))
    assert len(named) == count and any("dark" in media for media in named)
    for media, colours in named.items():
        for word in ("ink", "soft", "faint", "accent", "good", "bad", *(f"t{i}" for i in range(8))):
            for ground in ("page", "panel"):
                if word in colours and ground in colours:
                    assert contrast(colours[word], colours[ground]) >= 4.5, (media, word, ground)
        for i in range(8 if name == "report.css" else 0):
            assert contrast(colours[f"p{i}"], colours["page"]) >= 3, (media, i)
    text = css(name)
    assert not re.search(r"(?<![-\w])(?:color|fill): #", re.sub(r":root \{.*?\}", "", text, flags=re.DOTALL))
    letters = re.findall(r"text[^{}]*\{[^}]*fill: var\(--(\w+)\)", text)
    assert "c" not in letters, "a name in the colour of its line"
