"""A model's config.json, which may be a stranger's: what of it reaches transformers."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

from hf_optim.errors import UserError, one_line
from hf_optim.experiment import files, plain_json

#: keys with which transformers would run code, or read what is not in the folder; `attribute_map` gives any of them
#: another name, and with either of two a backbone that is not named is one that older releases ask the Hub for
_ASKING = ("auto_map", "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
           "experts_implementation", "_experts_implementation", "quantization_config", "base_model_name_or_path",
           "custom_pipelines", "checkpoint_path", "configuration_files", "pretrained_cfg", "pretrained_cfg_overlay",
           "transformers_weights", "backbone", "use_timm_backbone", "backbone_kwargs", "attribute_map",
           "_experts_implementation_internal")  # fmt: skip
#: what tasks write into a model's configuration, whatever its kind: by what it was trained with
_OURS = ("tokenizer_fingerprint", "tokenizers", "text")


def asks(config: Any) -> str:
    """The first key of `_ASKING` in a configuration, at any depth, whose value is not one of torch's own words."""
    for key, value in entries(config):
        if key in _ASKING and value not in (None, "eager", "sdpa"):
            return str(key)
        if key == "architecture" and ":" in str(value):  # timm's, of a hub or another folder
            return str(key)
    return ""


def entries(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every key in plain data, at any depth, with what stands under it."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield key, inner
        yield from entries(inner)
    for inner in value if isinstance(value, list) else ():
        yield from entries(inner)


def configuration(cls: Any, folder: Path) -> PretrainedConfig:
    """What `cls.from_pretrained(folder)` takes for its configuration, without texts that its kind does not declare:
    transformers makes an attribute of any key, and of some a place where it looks for code. Numbers stay, since older
    releases had keys (`rope_theta`) that are read and declared nowhere, but in the place of what a kind itself has.

    Raises:
        UserError: `cls` goes by the kind that config.json names (transformers' `Auto...`), and there is none.
    """
    told = read_mapping(folder / "config.json")
    kind: Any = getattr(cls, "config_class", None)
    if kind is None:
        named = str(told.get("model_type"))
        if named not in CONFIG_MAPPING:
            raise UserError(f"checkpoint: {folder}: {named[:60]!r} in its config.json is no model_type that is known")
        kind = CONFIG_MAPPING[named]
    config: PretrainedConfig = kind.from_dict(_declared(kind, told))
    config.return_dict = True  # what models put out is read by name
    return config


def _declared(kind: Any, told: Mapping[str, Any]) -> dict[str, Any]:
    names = set(inspect.signature(kind).parameters)
    with suppress(Exception):  # of a kind that is made of others, and asks for them in an error of its own
        names |= {name for name in vars(kind()) if not name.startswith("_")}
    names |= {name for name in dir(kind) if isinstance(getattr(kind, name, None), property) and name[0] != "_"}
    names |= kind.attribute_map.keys()
    # its methods, what holds for all of its kind, and what Trainer leaves out of an evaluation
    own = {*dir(kind), "keys_to_ignore_at_inference"} - names - {"model_type"}
    inner = getattr(kind, "sub_configs", {})
    return {
        key: _inner(inner[key], value) if key in inner and isinstance(value, dict) else value
        for key, value in told.items()
        if key in inner or key in names or key in _OURS or not (key in own or _has_text(value))
    }


def _inner(kind: Any, told: dict[str, Any]) -> dict[str, Any]:
    """A configuration within one; transformers' `AutoConfig` goes by the kind that it names."""
    named = str(told.get("model_type"))
    if not hasattr(kind, "attribute_map"):
        kind = CONFIG_MAPPING[named] if named in CONFIG_MAPPING else PretrainedConfig
    own = _declared(kind, told)
    return own | {"model_type": told["model_type"]} if "model_type" in told else own


def _has_text(value: Any) -> bool:
    if isinstance(value, (dict, list)):
        return any(map(_has_text, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str)


def whole_numbers(value: Any) -> Iterator[int]:
    """Every whole number in plain data."""
    if isinstance(value, int):
        yield value
    for entry in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from whole_numbers(entry)


def read_mapping(file: Path, largest: int = files.LARGEST, most: int = plain_json.MOST_VALUES) -> Any:
    """What the user names may lie behind a link (a cache of models does), but must be plain data, of `largest` bytes
    and `most` values.
    """
    try:
        if file.stat().st_size > largest:
            raise ValueError(f"has more than {largest >> 20} MB")
        value = plain_json.parse_json(file.read_text(encoding="utf-8"), wide=True, most=most)
    except (OSError, ValueError) as error:
        raise UserError(f"checkpoint: {file} cannot be read: {one_line(error)}") from None
    if not isinstance(value, dict):
        raise UserError(f"checkpoint: {file} holds no mapping")
    return value
