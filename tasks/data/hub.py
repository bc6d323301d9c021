"""Data sets of the Hub, with one line for everything that can go wrong on the way."""

from __future__ import annotations

import os
from typing import Any

from hf_optim.errors import UserError


def load(repository: str, *, config: str | None = None, key: str = "data", **how: Any) -> Any:
    """`datasets.load_dataset(repository, config, **how)`: a DatasetDict, or what `split` and `streaming` in `how` make.

    Raises:
        UserError: the Hub cannot be reached, the data set is not there or not open to you, or the current folder holds
            a path of its name: datasets would read that instead, and whatever files its README names.
    """
    import datasets

    if os.path.lexists(repository):
        raise UserError(
            f"{key}: {repository} of the current folder would be read in place of the Hub's: work elsewhere"
        )
    try:
        return datasets.load_dataset(repository, config, **how)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"{key}: {repository} cannot be loaded from the Hub ({type(error).__name__}): "
            "connect (and log in where the set asks for it), or give your own files with data=PATH, or take size small"
        ) from error
