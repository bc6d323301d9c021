"""Data sets of the Hub, with one line for everything that can go wrong on the way."""

from __future__ import annotations

from typing import Any

from hf_optim.errors import UserError


def load(repository: str, *, config: str | None = None, key: str = "data") -> Any:
    """`datasets.load_dataset(repository, config)`: a DatasetDict.

    Raises:
        UserError: the Hub cannot be reached, or the data set is not there or not open to you.
    """
    import datasets

    try:
        return datasets.load_dataset(repository, config)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"{key}: {repository} cannot be loaded from the Hub ({type(error).__name__}): "
            "connect (and log in where the set asks for it), or give your own files with data=PATH, or take size small"
        ) from error
