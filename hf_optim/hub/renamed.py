"""Weights that Trainer leaves out when it loads a checkpoint of its own.

transformers writes some models (ViT among them) under the names of an older release, which `from_pretrained` reads.
Trainer resumes by the names of this one, and would go on with fresh weights beside the optimizer's old state.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from hf_optim.core.wording import counted
from hf_optim.errors import UserError
from hf_optim.hub.offline import offline

#: of a layer, in the name of a tensor
_NUMBER = re.compile(r"(?<=\.)[0-9]+(?=\.)")


def _written(folder: Path) -> set[str]:
    """Names of the tensors in a checkpoint, in the files that Trainer takes; none where it holds no whole model."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return _names(folder / name)
    for index in (folder / "model.safetensors.index.json", folder / "pytorch_model.bin.index.json"):
        if index.is_file():  # what it says of its shards need not be so
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            if any(Path(shard).name != shard for shard in shards):
                raise UserError(f"checkpoint: {folder}: {index.name} names a file that is not beside it")
            return {name for shard in shards for name in _names(folder / shard)}
    return set()


def _names(file: Path) -> set[str]:
    if file.suffix != ".safetensors":
        return set(torch.load(file, map_location="meta", weights_only=True))
    with safe_open(file, "pt") as opened:
        return set(opened.keys())


def read_whole(cls: Any, folder: Path, **how: Any) -> PreTrainedModel:
    """`cls.from_pretrained(folder, **how)`, which by itself would draw at random what the folder lacks, unsaid.

    Raises:
        UserError: it lacks tensors of the model, holds some of another shape, or has more of its layers (a head that
            the model has not is left out, as transformers does).
    """
    with offline():
        # of tensors of another shape it would say to look at a report
        how |= {"local_files_only": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
        model, told = cls.from_pretrained(folder, **how)
    for name, there, own in sorted(told["mismatched_keys"])[:1]:
        raise UserError(
            f"checkpoint: {folder} holds {name} as {tuple(there)}, which is {tuple(own)} in {type(model).__name__} by "
            "its config.json: it is damaged, or another model's"
        )
    if absent := sorted(told["missing_keys"]):
        raise UserError(
            f"checkpoint: {folder} lacks {len(absent)} tensors of {type(model).__name__} ({absent[0]}, ...): it is "
            "damaged, or another model's"
        )
    alike = {_NUMBER.sub("#", name) for name in model.state_dict()}
    if more := sorted(name for name in told["unexpected_keys"] if _NUMBER.sub("#", name) in alike):
        raise UserError(
            f"checkpoint: {folder} holds {counted(len(more), 'tensor')} ({more[0]}, ...) of layers that "
            f"{type(model).__name__} has not by its config.json: that is damaged, or another model's"
        )
    return cast(PreTrainedModel, model)


def complete(model: nn.Module, folder: Path) -> str | None:
    """Load what the model lacks and `folder` holds under other names; a sentence where there was something.

    Args:
        model: not wrapped, not sharded; Trainer has loaded the rest.

    Raises:
        UserError: some lie there under no name that is known, or not at all.
    """
    if not isinstance(model, PreTrainedModel) or not (written := _written(folder)):
        return None
    own = model.state_dict()
    written |= set(model._keys_to_ignore_on_save or ())
    there = {own[name].data_ptr() for name in own.keys() & written}
    lacking = [name for name, tensor in own.items() if name not in written and tensor.data_ptr() not in there]
    if not lacking:  # tied ones are written once
        return None
    if (folder / "adapter_config.json").exists():  # from_pretrained would go where that leads
        raise UserError(f"checkpoint: {folder} holds adapters beside a whole model: take one of them away")
    stored = read_whole(type(model), folder, config=model.config)
    model.load_state_dict(stored.state_dict())
    return (
        f"{counted(len(lacking), 'tensor')} of {type(model).__name__} ({lacking[0]}, ...) in {folder.name} under the "
        "names of another release, by which Trainer does not load them: from_pretrained did"
    )
