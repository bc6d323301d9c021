"""Forty pairs of German and English for the tests of translation, as files; and what is said of a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_optim.errors import UserError

GERMAN = [f"Der Hund {i} läuft über die Straße." for i in range(40)]
ENGLISH = [f"The dog {i} runs across the street." for i in range(40)]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Tokenizers are made anew, and not left in the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def plain(folder: Path, german=GERMAN, english=ENGLISH, split: str = "train") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{split}.de").write_text("".join(f"{line}\n" for line in german), encoding="utf-8")
    (folder / f"{split}.en").write_text("".join(f"{line}\n" for line in english), encoding="utf-8")
    return folder


def message(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)
