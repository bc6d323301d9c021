"""Family x situation: a cell each, and the page that is written from them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("optuna")
from hub_matrix import FAMILIES, SITUATIONS  # noqa: E402

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "trainer-matrix.md"


def _builder():
    spec = importlib.util.spec_from_file_location("build_trainer_matrix", ROOT / "scripts" / "build_trainer_matrix.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def written():
    return _builder().read(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("title", SITUATIONS)
def test_cell(tmp_path, record_property, written, title, family):
    outcome = SITUATIONS[title](tmp_path, family)
    record_property("cell", f"{title}|{family}|{outcome}")
    if written.get((title, family)) is not None:
        assert written[title, family] == outcome, "run python scripts/build_trainer_matrix.py"


def test_the_page_has_every_cell(written):
    missing = [(t, f) for t in SITUATIONS for f in FAMILIES if (t, f) not in written]
    gone = [cell for cell in written if cell[0] not in SITUATIONS or cell[1] not in FAMILIES]
    assert not missing and not gone, "run python scripts/build_trainer_matrix.py"


def test_a_page_without_a_cell_is_noticed():
    builder = _builder()
    cells = {(t, f): "yes" for t in SITUATIONS for f in FAMILIES}
    assert builder.read(builder.page(cells, list(FAMILIES))) == cells
    first = next(iter(cells))
    with pytest.raises(SystemExit, match="no result"):
        builder.page({k: v for k, v in cells.items() if k != first}, list(FAMILIES), list(SITUATIONS))
