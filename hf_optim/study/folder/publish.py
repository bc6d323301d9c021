"""A copy of a study's folder with nothing private in it: the plan, the YAML, the question, records and histories.

The copy is a study's folder like any other, from which tables and report are made. What is taken out says where a run
was and not what it was; a path in a run's own specification keeps its last part, and the run's id, which is the
specification's hash, changes with it. What runs printed (log.txt) is not copied.
"""

from __future__ import annotations

import itertools
import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hf_optim.core.private import Scrubber, changed, outside_paths, strings
from hf_optim.core.safe_text import html, markdown
from hf_optim.core.wording import counted
from hf_optim.errors import UserError
from hf_optim.experiment import files
from hf_optim.experiment.disk import FULL
from hf_optim.experiment.record import HISTORY, RECORD
from hf_optim.experiment.spec import id_of
from hf_optim.study.folder import questions
from hf_optim.study.folder.changes import read_plan
from hf_optim.study.folder.destination import check_destination, new_folder
from hf_optim.study.folder.results import Results, load
from hf_optim.study.folder.store import RecordStore, run_names
from hf_optim.study.plan import code
from hf_optim.study.plan.plan import Plan
from hf_optim.study.plan.source import parse

_PNG = b"\x89PNG\r\n\x1a\n"
_VERSION = re.compile(r"[0-9][0-9A-Za-z.+-]*")
_DRAWN = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # the parts of a PNG that are the picture
#: of samples, as in the report: whoever visits the copy would run what a page of a stranger's (.html, .svg) holds
_SAMPLES = (".png", ".txt")


@dataclass
class Published:
    """What was copied: `plan` as it stands in the copy, the number of `records`, and in a line each what differs."""

    plan: Plan
    records: int
    versions: dict[str, list[str]]
    told: list[str] = field(default_factory=list)


def publish(study: Path, into: Path, complete: Callable[[Path, Published], None] | None = None) -> Published:
    """Copies the study in the folder `study` to `into`, whole or not at all, without what is private.

    `complete` writes into the copy what is made from it (report, README), before it takes its place.

    Raises:
        UserError: no study there, `into` is not empty, two runs that differ in the place of a file alone, a full disk.
    """
    check_destination(into)
    source = load(study)
    store = source.store
    names = run_names(study)
    records = {name: record for name in names if (record := store.record(name)) is not None}
    histories = {name: store.history(name) for name in records}
    yaml, told = _yaml(study)
    plan = read_plan(study).to_dict()
    register = questions.kept(study)
    said = strings([plan, records, histories, register.lines, [change.words for change in register.changes]])
    scrubber = Scrubber(itertools.chain([yaml], said, _generated(store, records)), _words(source.plan))
    told += [f"{name} is a word of the study too, and stays" for name in scrubber.kept]
    told += [f"left out: {why}" for why in (*store.unreadable.values(), register.unread) if why]

    with new_folder(into) as copied:
        ids = _ids(plan, records, scrubber.scrub)
        put = _put(ids, scrubber.scrub)
        files.own_folder(copied, "runs")
        files.write_json(copied, "plan.json", changed(plan, put))
        _write_question(register, copied, scrubber.scrub)
        if yaml:
            told += _write_yaml(copied, yaml, scrubber.scrub)
        for name, record in records.items():
            home = files.own_folder(copied, "runs", ids[name])
            told += _copy_samples(store, name, home, record, scrubber.scrub)
            history = {} if record.get("history") is None else {"history": HISTORY}
            files.write_json(home, RECORD, {**changed(record, put), "id": ids[name], **history})
            if history:
                files.write_rows(home, HISTORY, changed(histories[name], scrubber.scrub))
        made = _versions([changed(record["environment"], scrubber.scrub) for record in records.values()])
        published = Published(_planned(copied, study, source, told), len(records), made, told)
        if any(old != new for old, new in ids.items()):
            told.append("runs that named a path have another id than in the study, since it was shortened")
        if complete is not None:
            complete(copied, published)
    return published


def _planned(copied: Path, study: Path, source: Results, told: list[str]) -> Plan:
    """The plan of the copy. Raises UserError where runs of the study are missing in it."""
    copy = load(copied)
    if len(copy.records) != len(source.records):
        if why := next(iter(copy.store.unreadable.values()), None):  # one that was near a limit, written in lines
            raise UserError(f"{study}: its copy would hold what is not read: {why}")
        raise UserError(
            f"{study}: {counted(len(source.records) - len(copy.records), 'run')} would be lost, planned from "
            "texts that hold a path or a name: rename these in the YAML"
        )
    if paths := code.named(copy.plan):
        told.append(f"code of your own is named and not copied: {', '.join(paths)}")
    return copy.plan


def _words(plan: Plan) -> set[str]:
    """What the study calls things, which a user may be called as well. Folders on the way to a file are not among it:
    a user's own code mostly lies in a home folder.
    """
    labels = [task["label"] for task in plan.tasks] + [optimizer["label"] for optimizer in plan.optimizers]
    names = [str(task[key]) for task in plan.tasks for key in ("task", "model")]
    names += [str(o["spec"]["name"]) for o in plan.optimizers]
    names += labels
    for path in code.named(plan):
        names = [name.replace(path, re.split(r"[/\\:]", path)[-1]) for name in names]
    names = [outside_paths(name) for name in names]
    return {word for name in names for word in (name, *name.replace("_", " ").replace("/", " ").split())}


def _ids(plan: Mapping[str, Any], records: Mapping[str, Any], scrub: Callable[[str], str]) -> dict[str, str]:
    """The id of every run once its specification is scrubbed."""
    specs = {run["id"]: run["spec"] for run in plan["runs"]} | {
        name: record["spec"] for name, record in records.items()
    }
    ids: dict[str, str] = {}
    taken: dict[str, str] = {}
    for old, spec in specs.items():
        ids[old] = id_of(changed(spec, scrub))
        if taken.setdefault(ids[old], old) != old:
            raise UserError(
                f"the runs {taken[ids[old]]} and {old} differ only in what is private (the place of a file, a name): "
                "give the files names of their own"
            )
    return ids


def _put(ids: Mapping[str, str], scrub: Callable[[str], str]) -> Callable[[str], str]:
    return lambda text: ids.get(text) or scrub(text)


def _yaml(study: Path) -> tuple[str, list[str]]:
    try:
        return files.read_text(study, "study.yaml"), []
    except FileNotFoundError:
        return "", []
    except (OSError, ValueError) as error:
        return "", [f"left out: {error}"]


def _write_yaml(folder: Path, text: str, scrub: Callable[[str], str]) -> list[str]:
    scrubbed = scrub(text)
    try:
        told = parse(scrubbed, "study.yaml").value
    except UserError as error:
        return [f"left out: {error}"]
    if any(scrub(said) != said for said in strings(told)):
        return ["left out: study.yaml, in which a private text is broken over lines, or written in escapes"]
    files.write_atomically(folder, "study.yaml", scrubbed)
    return []


def _write_question(register: questions.Kept, folder: Path, scrub: Callable[[str], str]) -> None:
    """The register of the question, each line with the digest of what stands there now."""
    rows = [questions.untold(register.unread)] if register.unread else []
    for row in register.lines:
        asked = changed(row["question"], scrub)
        rows.append({**changed(row, scrub), "question": asked, "sha256": questions.digest(asked)})
    if register.changes:
        rows.append({"changed": [changed(asdict(change), scrub) for change in register.changes]})
    if rows:
        files.write_rows(folder, questions.FILE, rows)


def _generated(store: RecordStore, records: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The texts that runs have generated."""
    for name, record in records.items():
        for _, content in _samples(store, name, record):
            if isinstance(content, bytes) and not content.startswith(_PNG) and b"\0" not in content:
                yield content.decode("utf-8", errors="replace")


def _samples(store: RecordStore, name: str, record: Mapping[str, Any]) -> Iterator[tuple[str, bytes | OSError]]:
    """What a run has generated, or why that is not read: beyond `LARGEST_RUN` bytes of it, too, which are nothing on a
    disk where they are a file's holes, and hours to look through.
    """
    room = files.LARGEST_RUN
    for sample in dict.fromkeys(record.get("samples") or ()):
        try:
            content = store.sample(name, sample, min(room, files.LARGEST))
        except OSError as error:
            yield sample, error
        else:
            room -= len(content)
            yield sample, content


def _copy_samples(
    store: RecordStore, name: str, home: Path, record: Mapping[str, Any], scrub: Callable[[str], str]
) -> list[str]:
    """What was generated: texts scrubbed, pictures without what is written beside them in the file."""
    told = []
    for sample, content in _samples(store, name, record):
        place = scrub(sample)
        try:
            if not place.endswith(_SAMPLES):
                raise ValueError(f"is not called {' or '.join(_SAMPLES)}")
            if isinstance(content, OSError):
                raise content
            if content.startswith(_PNG):
                content = picture(content)
            elif b"\0" in content:  # of UTF-16, in which no name would be found, or of no text
                raise ValueError("is neither a text nor a PNG")
            else:
                content = scrub(content.decode("utf-8")).encode()
            if (home / place).exists():
                raise ValueError("has the name of another sample in the copy")
            with files.whole(home, place) as file:
                file.write(content)
        except (OSError, ValueError, struct.error) as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            told.append(f"left out: runs/{name}/{sample}: {error}")
    return told


def picture(content: bytes) -> bytes:
    """A PNG's picture alone. Raises ValueError or struct.error where it is none."""
    parts, at = [_PNG], len(_PNG)
    while at < len(content):
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        part = content[at : at + length + 12]
        if len(part) != length + 12 or struct.unpack(">I", part[-4:])[0] != zlib.crc32(part[4:-4]):
            raise ValueError("is a damaged PNG")
        if kind in _DRAWN:
            parts.append(part)
        at += length + 12
        if kind == b"IEND":
            break
    return b"".join(parts)


def _versions(environments: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The versions that the runs were made with, by package."""
    return {
        package: sorted({str(v) for environment in environments if (v := environment.get(package))})
        for package in ("hf_optim", "python", "torch", "transformers", "accelerate")
    }


def readme(published: Published) -> str:
    """README.md: a Hub's front matter (of a data set and of a static Space), what is here, and how to make it again."""
    plan, versions = published.plan, {name: some for name, some in published.versions.items() if some}
    version = versions.get("hf_optim", [""])
    # It stands in a command, where nothing can be escaped.
    pinned = f"=={version[0]}" if len(version) == 1 and _VERSION.fullmatch(version[0]) else ""
    paths = code.named(plan)
    lines = [
        "---",
        f"title: {json.dumps(markdown(plan.title))}",
        "sdk: static",
        "app_file: index.html",
        "tags: [hf_optim, optimizers]",
        "configs:",
        "- {config_name: runs, data_files: runs.parquet}",
        "---",
        "",
        f"# {markdown(plan.title)}",
        "",
        f"A comparison of optimizers by hf_optim: {counted(published.records, 'run')} of "
        f"{counted(len(plan.optimizers), 'optimizer')} on {counted(len(plan.tasks), 'task')}, "
        f"baseline {markdown(plan.baseline)}.",
        "[report.html](report.html) is all of it in one page.",
        "",
        "- [table.md](table.md), [table.csv](table.csv): what each optimizer reached",
        "- [statistics.md](statistics.md): the comparisons; [costs.md](costs.md): time and memory",
        "- `runs.parquet`: a row a run, trials of tuning too: settings, metrics, costs",
        "- `runs.csv`: the metrics of the judged runs; `runs/`: each run's record and history",
        "- `study.yaml`, `plan.json`, `questions.jsonl`: what was asked, and when",
        "",
        "## Make it again",
        "",
        "```bash",
        f'pip install "hf-optim[study]{pinned}"',
        "hf-optim report .                            # tables and report again, from the records",
        "hf-optim study study.yaml --output again     # every run again",
        "```",
        "",
        *([f"Needs code that is not here: {', '.join(f'`{markdown(name)}`' for name in paths)}.", ""] if paths else []),
        "Made with " + ", ".join(f"{name} {markdown(', '.join(some))}" for name, some in versions.items()) + ".",
        "Paths are shortened to their last part; names of users and machines, addresses and tokens are removed.",
    ]
    return "\n".join(lines) + "\n"


def index(title: str) -> str:
    """index.html, which leads to the report."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="refresh" content="0; url=report.html"><title>{html(title)}</title></head>'
        f'<body><a href="report.html">{html(title)}</a></body></html>\n'
    )
