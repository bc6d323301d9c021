"""Where the optimizers' own defaults stand, which a claim's study runs with where it sets nothing: `defaults.json`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from hf_optim import registry
from hf_optim.claims.sources import WORDS
from hf_optim.core import configs


@cache
def rules() -> Mapping[str, Mapping[str, Any]]:
    """By the optimizer's name: `of`, what they were read in, and under each word the defaults that stand there."""
    file = configs.folder("claims") / "defaults.json"
    found: Mapping[str, Mapping[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["rules"]
    return found


def by_word(name: str, given: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """word -> setting -> value of the defaults of `name`, but for those that are `given`; of a rule that is not in the
    file, nothing.
    """
    if name not in rules():
        return {}
    values = registry.info(name).defaults
    left = {word: [key for key in rules()[name].get(word, ()) if key not in given] for word in WORDS}
    return {word: {key: values[key] for key in keys} for word, keys in left.items() if keys}


def always_given(specs: Iterable[Mapping[str, Any]]) -> dict[str, set[str]]:
    """By the rule's name, bases too: the settings that every one of `specs` gives, so that no default of it runs."""
    found: dict[str, set[str]] = {}
    for spec in specs:
        name = str(spec.get("name"))
        found[name] = found.get(name, set(spec)) & set(spec)
        if isinstance(base := spec.get("base"), Mapping):
            for inner, given in always_given([base]).items():
                found[inner] = found.get(inner, given) & given
    return found
