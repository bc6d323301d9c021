"""Documentation comes from the code: docstrings are whole, and docs/optimizers is what the code says today."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import hf_optim

ROOT = Path(__file__).parent.parent
NAMES = hf_optim.list_optimizers()
#: presets share their class's docstring
CLASSES = {hf_optim.info(n).cls: n for n in reversed(NAMES) if not hf_optim.info(n).arguments}


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_docs", ROOT / "scripts" / "build_docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


docs = load()


@pytest.mark.parametrize("cls", CLASSES)
def test_a_docstring_has_algorithm_arguments_and_source(cls):
    info = hf_optim.info(CLASSES[cls])
    doc = docs.sections(info.doc)
    algorithm = [line for line in doc["body"].splitlines() if line.startswith("    ")]
    assert len(algorithm) >= 2, f"{cls}: print the algorithm, indented, before Args"
    assert any("=" in line for line in algorithm), f"{cls}: the algorithm has no formula"
    assert doc["summary"].endswith("."), f"{cls}: the first line is a sentence"
    assert len(doc["source"]) > 20, f"{cls}: say under 'Source:' where it is from and how it was read"
    named = {name.strip() for names in doc["args"] for name in names.split(",")}
    signature = {*info.required, *info.defaults, *info.options, "base" if info.family == "wrapper" else "params"}
    assert signature <= named, f"{cls}: Args leaves out {', '.join(sorted(signature - named))}"
    assert named <= signature, f"{cls}: Args names {', '.join(sorted(named - signature))}, which it does not take"


@pytest.mark.parametrize("cls", CLASSES)
def test_defaults_in_the_text_are_those_of_the_code(cls):
    """Where an argument's text begins with a number, it is the default."""
    info = hf_optim.info(CLASSES[cls])
    for name, text in docs.sections(info.doc)["args"].items():
        match = re.match(r"(?:[\w ]+, )?(\d+(?:\.\d+)?(?:e-?\d+)?)(?=[.,;:]|$)", text)
        default = info.defaults.get(name)
        if match and isinstance(default, (int, float)) and not isinstance(default, bool):
            assert float(match[1]) == pytest.approx(default), f"{cls}: {name} is {match[1]} in Args, {default} in code"


def test_the_pages_are_up_to_date():
    assert docs.stale() == [], "run python scripts/build_docs.py"


def test_stale_pages_are_noticed(tmp_path):
    wanted = docs.pages()
    for name, text in wanted.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert docs.stale(tmp_path) == [] and docs.pages() == wanted
    (tmp_path / "smaran.md").write_text(wanted["smaran.md"] + "x", encoding="utf-8")
    (tmp_path / "gone.md").write_text("", encoding="utf-8")
    (tmp_path / "adan.md").unlink()
    assert docs.stale(tmp_path) == ["adan.md", "gone.md", "smaran.md"]


@pytest.mark.parametrize("name", NAMES)
def test_a_page_says_what_the_registry_knows(name):
    info, page = hf_optim.info(name), docs.page(name)
    for word in (info.cls, info.family, info.paper, *info.defaults, *info.required, *info.options):
        assert word in page, f"{name}: {word}"
    assert f"[{name}]({name}.md)" in docs.index()
    assert not re.search(r"[ \t]$", page, re.MULTILINE) and page.count("```") % 2 == 0


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("tlr_sgd", "tlr_sgdm")])
def test_the_examples_run(name):
    import torch

    model = torch.nn.Linear(3, 2)

    def forward() -> torch.Tensor:
        return model(torch.ones(4, 3)).pow(2).mean()

    def closure() -> torch.Tensor:
        opt.zero_grad()
        loss = forward()
        loss.backward()
        return loss

    code = docs.example(hf_optim.info(name)).strip("`").removeprefix("python\n")
    setup, call = code.strip().split("\n", 1)
    scope = {"hf_optim": hf_optim, "model": model, "closure": closure, "loss": forward()}
    exec(setup, scope)
    opt = scope["opt"]
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(2):  # some first steps move nothing
        scope["loss"] = forward()
        exec(call, scope)
    assert not all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
