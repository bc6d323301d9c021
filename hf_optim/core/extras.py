"""What the extras of the package bring, so that a missing module is one line that names the extra to install."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

#: extra -> the modules that it brings; each of `tasks`, `study`, ... brings those of the ones it contains as well
_BROUGHT = {
    "hf": ("transformers", "accelerate", "safetensors", "huggingface_hub", "tokenizers", "tqdm", "packaging"),
    "tasks": ("datasets", "evaluate", "sklearn", "pyarrow", "PIL", "numpy", "sacrebleu"),
    "study": ("rich", "yaml", "scipy", "optuna", "matplotlib"),
    "vision": ("timm", "torchvision"),
    "diffusion": ("diffusers", "torchmetrics", "torch_fidelity"),
    "slurm": ("submitit",),
    "trl": ("trl", "peft"),
}


def bringing(module: str | None, least: str) -> str:
    """The extra that brings `module`, at least `least`, which may bring it too; empty if none does."""
    order = list(_BROUGHT)
    package = (module or "").partition(".")[0]
    own = next((extra for extra in order if package in _BROUGHT[extra]), None)
    return "" if own is None else max(own, least, key=order.index)


@contextmanager
def needed(what: str, least: str) -> Iterator[None]:
    """A module of an extra that is missing within the block is said in one line, as what `what` needs.

    Raises:
        ModuleNotFoundError: with that line, and the missing module's name.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        extra = bringing(error.name, least)
        if not extra:
            raise
        line = f"{what} needs {error.name}: pip install 'hf-optim[{extra}]'"
        raise ModuleNotFoundError(line, name=error.name) from None


def installed(what: str, extra: str) -> None:
    """Say before `what` begins, in that line, which module of `extra` (hf, tasks or study, each of which contains those
    before it) is missing.

    Raises:
        ModuleNotFoundError: as of `needed`.
    """
    chain = ("hf", "tasks", "study")
    with needed(what, extra):
        for module in (module for name in chain[: chain.index(extra) + 1] for module in _BROUGHT[name]):
            if find_spec(module) is None:
                raise ModuleNotFoundError(module, name=module)
