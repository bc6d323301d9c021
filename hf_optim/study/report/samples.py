"""What a run has generated, read from its own folder alone: a picture as data, a text as text."""

from __future__ import annotations

import base64
from pathlib import PurePosixPath
from typing import Any

from hf_optim.core.safe_text import html as escape
from hf_optim.study.folder.results import Results
from hf_optim.study.plan.plan import Run


def read(results: Results, run: Run, name: Any, most: int) -> tuple[PurePosixPath, bytes] | None:
    """The file that a record names and what is in it; None where it is not there, larger than `most` bytes, or not one
    of the run's own samples.
    """
    try:
        return PurePosixPath(str(name)), results.store.sample(run.id, str(name), most)
    except OSError:
        return None


def picture(file: PurePosixPath, content: bytes, alt: str) -> str:
    """A PNG as an <img>; "" for anything else."""
    if file.suffix != ".png" or not content.startswith(b"\x89PNG\r\n"):
        return ""
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'


def text(file: PurePosixPath, content: bytes, letters: int) -> str:
    """The beginning of a text as a <pre>; "" for anything else."""
    shown = escape(content.decode("utf-8", errors="replace")[:letters])
    return f'<pre tabindex="0">{shown}</pre>' if file.suffix == ".txt" else ""
