"""Streamed corpora: documents split by their hashes, packed once, mapped, the same figures as text held in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hf_optim.errors import UserError
from hf_optim.experiment.spec import RunSpec
from hf_optim.experiment.task import Data, load
from hf_optim.experiment.training import train
from hf_optim.tasks.data import blocks, cache, corpora, paragraphs


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


DOCUMENTS = [f"Document {i} tells of the number {i * i}.\n\nIt has  two parts, née {i}." for i in range(1200)]


def words() -> object:
    return blocks.words(DOCUMENTS, 400)


def test_no_document_stands_on_both_sides_and_equal_held_out_ones_count_once() -> None:
    held = [d for d in DOCUMENTS if corpora.split_of(d) != "train"]
    assert 2 < len(held) < 40 and {corpora.split_of(d) for d in held} == {"validation", "test"}
    corpus = corpora.prepare([*DOCUMENTS, *DOCUMENTS], "twice", words(), 10**9)
    assert corpus.facts["dropped"] == len(held) and corpus.facts["ended"]
    counted = {split: counts["documents"] for split, counts in corpus.facts["splits"].items()}
    assert counted["validation"] + counted["test"] == len(held)
    assert counted["train"] == 2 * (len(DOCUMENTS) - len(held))


def test_tokens_bytes_and_blocks_are_those_of_text_in_memory() -> None:
    tokenizer = words()
    corpus = corpora.prepare(DOCUMENTS, "once", tokenizer, 10**9)
    for split in paragraphs.SPLITS:
        texts = [d for d in DOCUMENTS if corpora.split_of(d) == split]
        whole = blocks.encode(tokenizer, texts)
        for part in ("ids", "covered", "unknown"):
            assert np.array_equal(getattr(corpus.streams[split], part), getattr(whole, part)), (split, part)
        assert corpus.facts["splits"][split]["bytes"] == sum(len(t.encode()) for t in texts)
        ours, theirs = corpora.Packed(corpus.streams[split], 9), blocks.Blocks(whole, 9, whole=False)
        assert len(ours) == len(theirs) > 1
        a, b = ours.__getitems__(range(len(ours))), theirs.__getitems__(range(len(ours)))
        assert all(a[key].equal(b[key]) for key in ("input_ids", "labels", "covered"))


def test_a_token_of_many_bytes_counts_with_all_of_them() -> None:
    """Beyond 65,535 the count began anew at 0, and bits per byte were of a part of the text."""
    long = [f"{'x' * 70_000}{i} {' ' * 70_000}end" for i in range(1200)]
    corpus = corpora.prepare(long, "long", words(), 10**9)
    for split in paragraphs.SPLITS:
        size = sum(len(d) for d in long if corpora.split_of(d) == split)
        assert corpus.streams[split].bytes == corpus.facts["splits"][split]["bytes"] == size > 0


def test_it_is_read_only_as_far_as_asked_and_only_once() -> None:
    read = []

    def source() -> Iterator[str]:
        for document in DOCUMENTS * 9:
            read.append(document)
            yield document

    corpus = corpora.prepare(source(), "some", words(), 1000)
    assert (
        1000 <= corpus.facts["splits"]["train"]["tokens"] and len(read) == corpora.BATCH and not corpus.facts["ended"]
    )
    again = corpora.prepare(source(), "some", words(), 1000)
    assert len(read) == corpora.BATCH and again.facts == corpus.facts
    assert not list(cache.folder().glob("making-*"))


def test_a_source_that_breaks_leaves_nothing_and_another_maker_may_have_won() -> None:
    def broken() -> Iterator[str]:
        yield from DOCUMENTS
        raise UserError("the line is dead")

    with pytest.raises(UserError, match="dead"):
        corpora.prepare(broken(), "broken", words(), 10**9)
    assert not list(cache.folder().glob("corpus-*")) and not list(cache.folder().glob("making-*"))

    def slow() -> Iterator[str]:
        yield from DOCUMENTS
        corpora.prepare(DOCUMENTS, "raced", words(), 10**9)  # somebody else is done first

    assert corpora.prepare(slow(), "raced", words(), 10**9).facts["ended"]


def folder(tmp_path: Path) -> Path:
    """Documents in two kinds of files, in a folder within a folder."""
    import pyarrow
    import pyarrow.parquet

    home = tmp_path / "mine" / "part"
    home.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": DOCUMENTS[:600]}), home / "a.parquet")
    lines = "".join(json.dumps({"text": d}) + "\n" for d in DOCUMENTS[600:])
    (home / "b.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "mine" / "c.txt").write_text("One more document.", encoding="utf-8")
    return tmp_path / "mine"


def test_a_folder_of_documents_trains_and_has_bits_per_byte(tmp_path: Path) -> None:
    mine = folder(tmp_path)
    assert corpora.is_folder_of_documents(mine)
    assert sorted(corpora.documents_in(mine)) == sorted([*DOCUMENTS, "One more document."])
    options = {"parameters": 2000, "vocabulary": 300, "block": 16, "held_out": 4, "corpus_tokens": 20_000}
    spec = RunSpec(
        "lm",
        "gpt2",
        "smoke",
        {"name": "adamw"},
        data=str(mine),
        options=options,
        overrides={"steps": 4, "batch_size": 2},
    )
    record = train(spec, tmp_path / "run", progress=False)
    assert record["status"] == "ok", record["error"]
    assert record["metrics"]["test_bits_per_byte"] > 0 and "split by their hashes" in record["data"]["note"]


def test_a_folder_with_a_train_split_is_no_corpus(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a\n", encoding="utf-8")
    assert not corpora.is_folder_of_documents(tmp_path)


def test_a_corpus_of_the_hub_is_streamed_from_its_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load_dataset(repository: str, config: str | None, *, split: str, streaming: bool) -> list[dict[str, str]]:
        asked.append((repository, config, split, streaming))
        return [{"text": d} for d in DOCUMENTS[:3]]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(corpora.documents("fineweb-edu")) == DOCUMENTS[:3]
    assert asked == [("HuggingFaceFW/fineweb-edu", "sample-100BT", "train", True)]

    def dead(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", dead)
    with pytest.raises(UserError, match="allenai/c4 cannot be loaded"):
        list(corpora.documents("c4"))


def test_texts_of_the_hub_are_held_out_without_those_of_train_unless_they_are_asked_for(monkeypatch) -> None:
    from hf_optim.tasks.data import hub

    parts = {"train": ["a b", "c d"], "validation": ["c d", "e f"], "test": ["a b", "g h", "g h"]}
    monkeypatch.setattr(hub, "load", lambda *_, **__: {split: {"text": part} for split, part in parts.items()})

    def data(**options: str) -> Data:
        lm = load("lm")
        values = {"tokenizer": "words", "vocabulary": 20, "block": 3, **options}
        return lm.data(lm.with_options("gpt2", lm.preset("gpt2", "paper"), values), "wikitext-2")

    apart, whole = data(), data(duplicates="keep")
    assert "; 2 held-out texts left out" in apart.note and "left out" not in whole.note
    assert apart.facts["bytes"] == {"train": 6, "validation": 3, "test": 6}
    assert whole.facts["bytes"] == {"train": 6, "validation": 6, "test": 9}
    with pytest.raises(UserError, match="duplicates must be drop or keep, got 'no'"):
        data(duplicates="no")


def test_texts_of_ones_own_are_held_out_without_those_of_train() -> None:
    splits = {"train": ["a", "b"], "validation": ["b", "c"], "test": ["c", "d", "a"]}
    assert paragraphs.apart(splits) == 3
    assert splits == {"train": ["a", "b"], "validation": ["c"], "test": ["d"]}
    with pytest.raises(UserError, match="every text of the test split"):
        paragraphs.apart({"train": ["a"], "validation": ["b"], "test": ["a"]})
