"""What the extras of the package bring, so that a missing module is one line that names the extra to install."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from hf_optim.errors import UserError, one_line

#: extra -> the modules that it brings beside those of the extra it contains
_BROUGHT = {
    "hf": ("transformers", "accelerate", "safetensors", "huggingface_hub", "tokenizers", "tqdm", "packaging"),
    "tasks": ("datasets", "evaluate", "sklearn", "pyarrow", "PIL", "numpy", "sacrebleu", "jinja2"),
    "study": ("rich", "yaml", "scipy", "optuna", "matplotlib"),
    "vision": ("timm", "torchvision"),
    "diffusion": ("diffusers", "torchmetrics", "torch_fidelity"),
    "slurm": ("submitit",),
    "trl": ("trl", "peft"),
}
#: extra -> the extra that it contains
_CONTAINED = {"tasks": "hf", "study": "tasks", "vision": "tasks", "diffusion": "tasks", "slurm": "study", "trl": "hf"}


class MissingExtra(UserError, ModuleNotFoundError):
    """A module that an extra brings is not installed."""

    def __init__(self, message: str = "", name: str = "") -> None:
        super().__init__(message)
        self.name = name


def _chain(extra: str) -> list[str]:
    """An extra, the one that it contains, and so on."""
    return [extra, *_chain(_CONTAINED[extra])] if extra in _CONTAINED else [extra]


def bringing(module: str | None, least: str) -> str:
    """The extra that brings `module`: `least` where that is enough; empty if none does."""
    package = (module or "").partition(".")[0]
    own = next((extra for extra, modules in _BROUGHT.items() if package in modules), "")
    return least if own in _chain(least) else own


@contextmanager
def needed(what: str, least: str) -> Iterator[None]:
    """A module of an extra that is missing within the block is said in one line, as what `what` needs; `least` is the
    extra that brings all that it needs.

    Raises:
        MissingExtra: with that line, and the missing module's name.
        UserError: transformers could not import a part of itself; with the reason, which its own error hides.
    """
    try:
        yield
    except MissingExtra:  # said by what is nearer to it
        raise
    except ModuleNotFoundError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        module = cause.name if isinstance(cause, ModuleNotFoundError) else None
        extra = bringing(module, least)
        if extra:
            raise MissingExtra(f"{what} needs {module}: pip install 'hf-optim[{extra}]'", module or "") from None
        if cause is error:
            raise
        advice = "; install the torchvision that was built for your torch" * ("torchvision" in str(cause))
        raise UserError(f"{what} needs what cannot be imported here: {one_line(cause)}{advice}") from error


def installed(what: str, extra: str) -> None:
    """Say before `what` begins, in that line, which module of `extra`, or of those it contains, is missing.

    Raises:
        MissingExtra: as of `needed`.
    """
    with needed(what, extra):
        for module in (module for name in reversed(_chain(extra)) for module in _BROUGHT[name]):
            if find_spec(module) is None:
                raise ModuleNotFoundError(module, name=module)
