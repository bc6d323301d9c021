"""Code that a user names: `package.module:Name` or `file.py:Name`. Nothing else is ever imported from a name."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from hf_optim.core import validate
from hf_optim.errors import UserError


def import_path(path: str) -> Any:
    """The object behind an import path.

    Raises:
        UserError: no such file, module or name, or the code fails while it is imported.
    """
    where, _, attribute = path.rpartition(":")
    try:
        module = _from_file(where) if where.endswith(".py") else importlib.import_module(where)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: cannot import {where} ({type(error).__name__}: {error})") from error
    if not hasattr(module, attribute):
        raise UserError(f"{path}: {where} has no {attribute}{validate.closest(attribute, dir(module))}")
    return getattr(module, attribute)


def _from_file(name: str) -> ModuleType:
    file = Path(name).expanduser().resolve()
    if not file.is_file():
        raise UserError(f"there is no file {name}")
    key = f"hf_optim_user_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[key] = module  # before it runs, so that its classes can be pickled
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[key]
            raise
    return sys.modules[key]
