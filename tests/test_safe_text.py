"""Whatever a label, a title, an error or a path holds, it stands in each document as text."""

from __future__ import annotations

import ast
import base64
import csv
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from study_fakes import make_study

from hf_optim.commands.main import main
from hf_optim.core import safe_text
from hf_optim.errors import UserError
from hf_optim.study.plan.plan import expand
from hf_optim.study.plan.source import parse

ROOT = Path(__file__).resolve().parents[1]
EVIL = "<script>alert(1)</script>"
LABELS = (
    f"{EVIL}",
    "x\" onload='alert(1)",
    "=HYPERLINK(0)",
    "![p](file:///etc/passwd)",
    "\\input{/etc/passwd}%",
    "a|b`c`",
    "<svg/onload=x>",
)


class Tags(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.script, self.data, self._inside = "", "", ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        kind = dict(attrs).get("type")
        self._inside = "" if tag != "script" else "data" if kind == "application/json" else "script"

    def handle_data(self, data: str) -> None:
        if self._inside:
            setattr(self, self._inside, getattr(self, self._inside) + data)

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""


def put_everywhere(value: object, keep: tuple[str, ...]) -> object:
    """Each text in plain data with a tag and a control character behind it, but for the keys in `keep`."""
    if isinstance(value, dict):
        return {k: v if k in keep else put_everywhere(v, keep) for k, v in value.items()}
    if isinstance(value, list):
        return [put_everywhere(entry, keep) for entry in value]
    return f"{value} {EVIL}\x1b[31m\x07" if isinstance(value, str) else value


def drawings(value: object) -> list[str]:
    """Every text in the views that is put in as markup; cells and headings are put in as text."""
    if isinstance(value, dict):
        texts = ("rows", "heads", "head", "columns", "name")
        return [t for key, v in value.items() if key not in texts for t in drawings(v)]
    return [t for v in value for t in drawings(v)] if isinstance(value, list) else [value] * isinstance(value, str)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Every label, title, error, note and environment is an attack."""
    folder = make_study(tmp_path / "study", LABELS, tasks=(f"T {EVIL} \x1b[2J",), seeds=2, failed=[("a|b`c`", 1)])
    plan = json.loads((folder / "plan.json").read_text())
    plan["title"] = plan["tasks"][0]["title"] = f"# {EVIL}\x1b]0;owned\x07"
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "study.yaml").write_text(f"name: x # {EVIL}")
    for file in folder.glob("runs/*/record.json"):
        record = put_everywhere(json.loads(file.read_text()), ("id", "spec", "status", "history", "primary"))
        record["metrics"][f"test_{EVIL}"] = 1.0  # type: ignore[index]
        record["environment"][EVIL] = EVIL  # type: ignore[index]
        file.write_text(json.dumps(record))
    return folder


def test_the_report_holds_no_tag_that_is_not_ours(study: Path) -> None:
    assert main(["report", str(study)]) == 0
    page = (study / "report.html").read_text()
    parsed = Tags(page)
    assert [a.get("type") for tag, a in parsed.tags if tag == "script"] == ["application/json", None]
    views = json.loads(parsed.data)["tasks"]  # what the page puts in place of its own tables and drawings
    assert all(task["metrics"] for task in views.values())
    for drawing in drawings(views):
        parsed.tags += Tags(drawing).tags
    links = [a["href"] for tag, a in parsed.tags if tag == "a"]
    assert links and all(re.fullmatch(r"#[a-z0-9-]+|pages/[0-9a-f]{12}\.html", link or "") for link in links)
    assert not [(tag, key) for tag, attributes in parsed.tags for key in attributes if key.startswith("on")]
    assert {tag for tag, _ in parsed.tags} <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "section", "ul", "li", "b", "nav",
        "button",
        "svg", "path", "text", "g", "circle", "line", "figure", "figcaption", "span", "div", "table", "thead",
        "tbody", "tr",
        "th", "td", "i", "small", "details", "summary", "pre", "code", "script", "rect", "a", "header", "main",
        "label", "select", "option", "input", "caption", "dl", "dt", "dd",
    }  # fmt: skip
    assert "\x1b" not in page and "\x07" not in page
    (policy,) = (a["content"] for t, a in parsed.tags if t == "meta" and "http-equiv" in a)
    digest = base64.b64encode(hashlib.sha256(parsed.script.encode()).digest()).decode()
    for file in (study / "pages").glob("*.html"):
        tags = Tags(file.read_text())
        assert "script" not in dict(tags.tags) and "script-src 'none'" in file.read_text()
        assert not [key for _, attributes in tags.tags for key in attributes if key.startswith("on")]
        to = [a["href"] for tag, a in tags.tags if tag == "a"]
        assert all(re.fullmatch(r"\.\./(report\.html|runs/[0-9a-f]{12}/[a-z.]+)", x or "") for x in to)
    assert policy is not None and f"script-src 'sha256-{digest}';" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]


def test_markdown_csv_and_latex_hold_texts(study: Path, tmp_path: Path) -> None:
    main(["report", str(study)])
    for file in study.glob("*.md"):
        for line in file.read_text().splitlines():
            assert "<script" not in line and "\x1b" not in line and not re.search(r"!\[[^\]\\]*\]\(", line), line
    for file in study.glob("*.csv"):
        for row in csv.reader(io.StringIO(file.read_text())):
            assert not [c for c in row if c[:1] in "=+-@" and c and not re.fullmatch(r"[-+][\d.e+-]+", c)], row
            assert "\x1b" not in "".join(row)
    for name in ("x.csv", "x.md", "x.tex", "x.parquet"):
        assert main(["results", str(study), "--export", str(tmp_path / name)]) == 0
    tex = (tmp_path / "x.tex").read_text()
    assert "\\input" not in tex and not re.search(r"(?<!\\)%", tex) and "\\textbackslash{}input\\{" in tex
    assert "'=HYPERLINK(0)" in (tmp_path / "x.csv").read_text()
    rows = [line for line in (tmp_path / "x.md").read_text().splitlines() if line]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in rows}) == 1  # no label made a cell


def test_the_terminal_gets_no_escape_sequence(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["report", study], ["results", study], ["results", f"{study}\x1b[31m"], ["report", "\x1b[31m"]):
        main([str(word) for word in arguments])
        out, err = capsys.readouterr()
        assert not [c for c in out + err if ord(c) < 32 and c != "\n"], (out + err)[:300]
    main(["\x1b[31m"])
    main(["report", "--\x1b[31m"])
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "safe"),
    [
        ("a <b> & c", "a &lt;b> & c"),
        ("&lt;script&gt;", "&amp;lt;script&amp;gt;"),
        ("p < 0.001, [1, 2]", "p < 0.001, [1, 2]"),
        ("[x](javascript:1)", "[x\\](javascript:1)"),
        ("[x]: http://a", "[x\\]: http\\://a"),
        ("see https://a.b/c or www.a.b", "see https\\://a.b/c or www\\.a.b"),
        ("`rm`|x", "\\`rm\\`\\|x"),
        (r"$\href{javascript:1}{x}$", r"\$\\href{javascript:1}{x}\$"),
        ("1. one", "1\\. one"),
        ("# head\n- item", "\\# head - item"),
        ("~~~sh", "\\~~~sh"),
        (">said", "\\>said"),
        ("* item", "\\* item"),
        ("*stress* a_b ~1", "*stress* a_b ~1"),
    ],
)
def test_markdown(given: str, safe: str) -> None:
    assert safe_text.markdown(given) == safe


def test_each_function_by_hand() -> None:
    assert safe_text.html("<a href='x'>\x00&\ud800") == "&lt;a href=&#x27;x&#x27;&gt;�&amp;�"
    assert safe_text.latex("50% of $x_1 & #2 ~^\\{}") == (
        r"50\% of \$x\_1 \& \#2 \textasciitilde{}\textasciicircum{}\textbackslash{}\{\}"
    )
    assert safe_text.latex("[4pt] x") == "{}[4pt] x"
    assert [safe_text.csv(x) for x in ("=1", " +1a", "@x", "-0.5", "+1e-3", "a", 3, None)] == [
        "'=1", "' +1a", "'@x", "-0.5", "+1e-3", "a", 3, None
    ]  # fmt: skip
    assert safe_text.terminal("a\x1b[31m\u202eb\tc\nd\x9b") == "a�[31m�b�c\nd�".replace("b�c", "b\tc")
    assert [safe_text.is_plain(x) for x in ("a b", "", " ", "a\nb", "a\x1b", "a\u202eb", "é ✓")] == [
        True, False, False, False, False, False, True
    ]  # fmt: skip


@pytest.mark.parametrize("bad", ['""', '"a\\nb"', '"\\e[31m"', '"\\u202Ex"', "x" * 41])
def test_labels_have_a_length_and_nothing_hidden(bad: str) -> None:
    yaml = "name: s\nseeds: 1\ntasks: [{task: vision}]\noptimizers:\n  - {name: adamw, label: %s}\n"
    with pytest.raises(ValueError, match="line 5: a label has 1 to 40 characters in one line"):
        expand(parse(yaml % bad, "s.yaml"))
    yaml = "name: s\nseeds: 1\ntasks:\n  - {task: vision, label: %s}\noptimizers: [adamw]\n"
    with pytest.raises(ValueError, match="line 4: a label has 1 to 80 characters in one line"):
        expand(parse(yaml % (bad if len(bad) < 41 else "x" * 81), "s.yaml"))


def test_nothing_is_written_past_these_functions() -> None:
    """The means of writing HTML, CSV and to a terminal are imported in one file alone."""
    for file in [*(ROOT / "hf_optim").rglob("*.py")]:
        if file == ROOT / "hf_optim" / "core" / "safe_text.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            whole = [f"{getattr(node, 'module', None)}.{name}" for name in names] if names else []
            assert not {"html.escape", "None.html"} & set(whole), f"{file}: {whole}"
            if isinstance(node, ast.Attribute) and node.attr in ("writer", "DictWriter"):
                raise AssertionError(f"{file}:{node.lineno}: a CSV writer of its own")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Console":
                raise AssertionError(f"{file}:{node.lineno}: a Console of its own, which shows what it is given")


def safe_to_print(node: ast.expr) -> bool:
    """A text that stands in the source, or what one of the functions for a terminal has made."""
    if isinstance(node, ast.JoinedStr):
        return all(safe_to_print(part.value if isinstance(part, ast.FormattedValue) else part) for part in node.values)
    if not isinstance(node, ast.Call):
        return isinstance(node, ast.Constant)
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return called in ("terminal", "line", "one_line", "dumps")


def test_a_message_is_safe_where_python_prints_it() -> None:
    """In a notebook or a script of one's own no command stands between a message and the terminal."""
    assert str(UserError("format \x1b[2J\u202e\r\nof\udc80 others")) == "format �[2J� of� others"


def test_nothing_is_printed_past_these_functions() -> None:
    """The name of a study's folder, which a shell's star gives, moved the cursor where its charts were listed."""
    for file in [*(ROOT / "hf_optim").rglob("*.py"), *(ROOT / "tasks").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                assert all(map(safe_to_print, node.args)), f"{file}:{node.lineno}: print(terminal(...))"


def test_a_folder_is_called_what_it_will(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = make_study(tmp_path / "x\x1b[2J\u202ey")
    assert main(["export", str(study), "--figure", "svg"]) == 0
    assert main(["export", str(study), "--table", "csv", "--output", str(study / "t.csv")]) == 0
    assert main(["results", str(study), "--export", str(study / "r.csv")]) == 0
    said = capsys.readouterr()
    assert "mlp-result.svg" in said.out and not {"\x1b", "\u202e"} & {*said.out, *said.err}
