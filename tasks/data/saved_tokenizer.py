"""A tokenizer of a folder, which may be a stranger's: its tokenizer.json, and the few settings that are named here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_optim.errors import UserError, one_line
from hf_optim.experiment.checkpoint import LARGEST, check_files
from hf_optim.experiment.configuration import read_mapping
from hf_optim.tasks.data.blocks import check_ids
from hf_optim.tasks.data.tokenizer import using
from hf_optim.tasks.data.tokenizer_growth import check_growth

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MARKS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
SIDES = ("padding_side", "truncation_side")
#: values of a tokenizer.json; the largest there are, of 262,000 words, have some 5 million
MOST_VALUES = 20_000_000


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer that `save_pretrained` left in a folder, as its tokenizer.json has it.

    What transformers makes of such a folder goes by classes that the folder names, which read further files. None of
    these is made here: the tokenizers library reads the one file, and of the settings beside it come the special
    tokens, the inputs' names, the greatest length, the sides to pad and cut at, and the (default) chat template. The
    special tokens that such a class would know by itself are those whose ids config.json gives.

    Raises:
        UserError: there is no tokenizer.json, it cannot be read, makes a text longer without end, or drops merges at
            random; or one of the files beside it is damaged.
    """
    check_files(folder)
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError(
            f"checkpoint: {folder} holds no tokenizer.json: AutoTokenizer.from_pretrained(...).save_pretrained(...) of "
            "transformers writes one"
        )
    told, settings = read_mapping(file, LARGEST, MOST_VALUES), _settings(folder)
    check_growth(folder, told, [settings.get(mark) for mark in MARKS])
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    with using(f"checkpoint: {folder} holds a tokenizer that cannot be read: save it again"):
        # written again, so that what was looked at is what is read: of a name that comes twice readers differ
        backend = Tokenizer.from_str(json.dumps(told))
        check_ids(backend.get_vocab())  # before it is copied, which makes room up to the highest
        backend.no_padding()
        backend.no_truncation()
        for mark, number in _numbered(folder).items():
            if mark not in settings and (token := backend.id_to_token(number)):
                settings[mark] = token
        if (unknown := _unknown(told["model"])) and backend.token_to_id(unknown) is not None:
            settings["unk_token"] = unknown
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **settings)
    if getattr(backend.model, "dropout", None):
        raise UserError(
            f"checkpoint: {folder}: its tokenizer.json drops merges at random: set its model's dropout to 0"
        )
    return tokenizer


def _settings(folder: Path) -> dict[str, Any]:
    """What `PreTrainedTokenizerFast` is told, each of the one kind that it can be."""
    told = _beside(folder, "tokenizer_config.json")
    older = {} if "added_tokens_decoder" in told else _beside(folder, "special_tokens_map.json")
    settings: dict[str, Any] = {}
    for mark in MARKS:
        given = older.get(mark) or told.get(mark)
        token = given.get("content") if isinstance(given, dict) else given
        if isinstance(token, str) and token:
            settings[mark] = token
    inputs, longest = told.get("model_input_names"), told.get("model_max_length")
    if isinstance(inputs, list) and inputs and all(isinstance(name, str) for name in inputs):
        settings["model_input_names"] = inputs
    if isinstance(longest, (int, float)) and not isinstance(longest, bool):
        settings["model_max_length"] = longest
    settings |= {side: told[side] for side in SIDES if told.get(side) in ("left", "right")}
    if template := _template(folder, told.get("chat_template")):
        settings["chat_template"] = template
    return settings


def _unknown(model: Mapping[str, Any]) -> str | None:
    """What stands for words that a tokenizer's model does not know, whatever the settings call so: bits per byte count
    what it hides.
    """
    number = model.get("unk_id")  # of Unigram
    token: str | None = model.get("unk_token") if number is None else model["vocab"][number][0]
    return token


def _template(folder: Path, given: Any) -> str | None:
    """The chat template: of a file of its own before the settings', and of several their default."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"checkpoint: {file} cannot be read: {one_line(error)}") from None
    if isinstance(given, list):
        given = {str(one.get("name")): one.get("template") for one in given if isinstance(one, dict)}
    template = given.get("default") if isinstance(given, dict) else given
    return template if isinstance(template, str) else None


def _numbered(folder: Path) -> dict[str, int]:
    """The ids of special tokens that a model's configuration gives (GPT-2's tokenizer has them nowhere else)."""
    told = _beside(folder, "config.json")
    given = {mark: told.get(f"{mark}_id") for mark in MARKS}
    firsts = {mark: ids[0] if isinstance(ids, list) and ids else ids for mark, ids in given.items()}
    return {mark: n for mark, n in firsts.items() if isinstance(n, int) and 0 <= n < 2**31}


def _beside(folder: Path, name: str) -> dict[str, Any]:
    file = folder / name
    told: dict[str, Any] = read_mapping(file) if file.is_file() else {}
    return told
