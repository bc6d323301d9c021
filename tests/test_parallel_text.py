"""Aligned text: every form of the same pairs, and what is said of files that are none."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from translation_parts import ENGLISH, GERMAN, cache, message, plain  # noqa: F401 - cache: a fixture

from hf_optim.experiment.task import load
from hf_optim.tasks.data.parallel import read

TASK = load("translation")
SMOKE = TASK.preset("transformer", "smoke")


def test_every_form_of_the_same_pairs_is_the_same_corpus(tmp_path) -> None:
    files = read(plain(tmp_path / "plain"))
    rows = "\n".join(f"{i}\t{en}\t{de}" for i, (de, en) in enumerate(zip(GERMAN, ENGLISH, strict=True)))
    (tmp_path / "one.tsv").write_text(f"id\ten\tde\r\n{rows}\n", encoding="utf-8")
    pq.write_table(pa.table({"de": GERMAN, "page": list(range(40)), "en": ENGLISH}), tmp_path / "one.parquet")
    corpora = [files, read(tmp_path / "plain" / "train"), read(tmp_path / "one.tsv"), read(tmp_path / "one.parquet")]
    assert len({corpus.fingerprint for corpus in corpora}) == 1
    assert (len(files.train), len(files.validation), len(files.test)) == (32, 4, 4)
    assert "test: 4 pairs taken out of train; validation: 4" in files.note
    everything = [*files.train.source, *files.validation.source, *files.test.source]
    assert sorted(everything) == sorted(GERMAN)
    numbers = {de: en for de, en in zip(GERMAN, ENGLISH, strict=True)}
    assert all(numbers[de] == en for de, en in zip(files.train.source, files.train.target, strict=True))
    assert read(tmp_path / "one.tsv", "en", "de").train.source == files.train.target


def test_splits_that_are_there_are_taken(tmp_path) -> None:
    plain(tmp_path / "own", split="train")
    plain(tmp_path / "own", GERMAN[:5], ENGLISH[:5], "dev")
    pq.write_table(pa.table({"de": GERMAN[5:7], "en": ENGLISH[5:7]}), tmp_path / "own" / "test.parquet")
    corpus = read(tmp_path / "own")
    assert (len(corpus.train), len(corpus.validation), len(corpus.test), corpus.note) == (40, 5, 2, "")
    assert corpus.validation.source == tuple(GERMAN[:5])


def test_plain_files_of_ones_own_are_not_taken_for_multi30k(tmp_path, capsys) -> None:
    for split, count in (("train", 40), ("validation", 5), ("test", 2)):
        plain(tmp_path / "own", GERMAN[:count], ENGLISH[:count], split)
    corpus = read(tmp_path / "own")
    assert (len(corpus.train), len(corpus.validation), len(corpus.test)) == (40, 5, 2)
    assert corpus.note == "" == capsys.readouterr().err


BROKEN = [
    (GERMAN, ENGLISH[:39], r"train.de has 40 lines and train.en has 39: line N of one must be the translation"),
    ([*GERMAN[:7], " ", *GERMAN[8:]], ENGLISH, "line 8: the 'de' sentence is empty"),
    ([], [], "the train split is empty"),
    (GERMAN[:2], ENGLISH[:2], "2 train pairs are too few"),
]


@pytest.mark.parametrize(("german", "english", "expected"), BROKEN, ids=["lengths", "empty line", "empty", "few"])
def test_broken_files_say_where(tmp_path, german, english, expected) -> None:
    assert expected in message(read, plain(tmp_path / "own", german, english))


def test_other_mistakes_say_what_to_do(tmp_path) -> None:
    assert "no such file or folder" in message(read, tmp_path / "nowhere")
    assert "no sentence pairs in" in message(read, tmp_path)
    (tmp_path / "lonely.de").write_text("Hallo\n")
    assert "lonely.de has no lonely.en beside it" in message(read, tmp_path / "lonely")
    assert "neither .parquet nor .tsv" in message(read, tmp_path / "lonely.de")
    pq.write_table(pa.table({"german": GERMAN, "en": ENGLISH}), tmp_path / "x.parquet")
    wrong = message(read, tmp_path / "x.parquet")
    assert "no column 'de'; it has 'german', 'en': name the column with --model.source_column" in wrong
    assert len(read(tmp_path / "x.parquet", "german", "en").train) == 32
    numbers, hole = _table(tmp_path, de=list(range(40)), en=ENGLISH), [*ENGLISH[:3], None, *ENGLISH[4:]]
    assert "column 'de' holds int, not text" in message(read, numbers)
    assert "row 3: the 'en' sentence is empty" in message(read, _table(tmp_path, de=GERMAN, en=hole))
    assert "both 'de'" in message(read, tmp_path / "x.parquet", "de", "de")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not")
    assert "cannot be read as parquet" in message(read, tmp_path / "x.parquet")
    (tmp_path / "x.tsv").write_text("de\ten\nHallo\n")
    assert "line 2: 1 columns where the first line names 2" in message(read, tmp_path / "x.tsv")
    (tmp_path / "x.tsv").write_bytes("de\ten\nGrüße\tgreetings\n".encode("latin-1"))
    assert "cannot be read as UTF-8 text (byte 0xfc: invalid start byte): convert" in message(read, tmp_path / "x.tsv")
    plain(tmp_path / "own", split="test")
    assert "no train split" in message(read, tmp_path / "own")


def _table(folder: Path, **columns) -> Path:
    pq.write_table(pa.table(columns), folder / "y.parquet")
    return folder / "y.parquet"


def test_the_hub_that_cannot_be_reached_is_one_line() -> None:
    said = message(TASK.data, TASK.preset("transformer", "paper"), None)
    assert "bentrevett/multi30k cannot be loaded from the Hub" in said and "size small" in said
