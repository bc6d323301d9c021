"""Fine-tuning of a causal language model on questions and answers: all weights, or LoRA's through PEFT."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_optim.core import extras
from hf_optim.errors import UserError
from hf_optim.experiment.task import Data, Metric, Preset, Primary, Rung, Size, Task, Value
from hf_optim.tasks.presets import shapes

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

HERE = Path(__file__).parent / "data"
EMBEDDED = {"letters": "how many letters a word has, of the words of the embedded Wikipedia paragraphs; split by word"}
CHECKPOINT = (
    "its checkpoint: a folder of save_pretrained; none: one that is trained first on the embedded text and kept"
)


def _preset(size: str, rate: float, **model: Any) -> Preset:
    smoke = size == "smoke"
    return Preset(
        epochs=Value(1),
        steps=Value(8 if smoke else 300),
        evaluations=Value(2 if smoke else 6),
        batch_size=Value(8 if smoke else 16),
        evaluation_batch=Value(64),
        train_evaluation=Value(64 if smoke else 256),
        optimizer=Value({"name": "adamw", "lr": rate}),
        schedule=Value({"name": "cosine", "warmup": 0.05}),
        max_grad_norm=Value(1.0),
        data=Value("letters"),
        samples=Value(200 if smoke else None, "ours", "questions of train; a tenth of that of the others"),
        model=Value(model, "ours", CHECKPOINT),
    )


SMOKE: dict[str, Any] = {"checkpoint": None, "base_size": "smoke", "parameters": 2500, "vocabulary": 384}
SMOKE |= {"base_steps": 4, "length": 48}
SMALL: dict[str, Any] = {"checkpoint": None, "base_size": "small", "parameters": 120_000, "vocabulary": 512}
SMALL |= {"base_steps": 600, "length": 48}
LORA = {"rank": 8, "alpha": 16}
#: wider than any layer that there is
MOST_RANK = 1 << 16
#: of the model that is trained first, on a text of some hundred thousand words
MOST = {"parameters": 20_000_000, "base_steps": 20_000}


class FineTuning(Task):
    """See the module. Only the answer is trained on, and judged: its loss, and whether all of it is the likeliest."""

    name = "finetune"
    title = "Fine-tuning of a causal language model"
    primary = Primary("test_loss", greater_is_better=False)
    metrics = (
        Metric("accuracy", True, "share"),
        Metric("token_accuracy", True, "share"),
        Metric("bits_per_byte", False, "bits"),
    )
    models = ("full", "lora")
    embedded = EMBEDDED
    label_names = ("labels", "answer_bytes")
    sizes: Mapping[str, Size] = {
        "smoke": Size(
            "seconds: a model of 2,500 parameters and 200 words, for tests",
            {"full": _preset("smoke", 1e-3, **SMOKE), "lora": _preset("smoke", 3e-3, **SMOKE, **LORA)},
        ),
        "small": Size(
            "minutes on two cores: a model of 120 thousand parameters that is trained first",
            {"full": _preset("small", 1e-3, **SMALL), "lora": _preset("small", 3e-3, **SMALL, **LORA)},
        ),
        "paper": Size(
            "a checkpoint and pairs of your own, for a GPU",
            {
                "full": _preset("small", 2e-5, **{**SMALL, "length": 512}),
                "lora": _preset("small", 2e-4, **{**SMALL, "length": 512}, **{**LORA, "rank": 16, "alpha": 32}),
            },
        ),
    }

    def data(self, preset: Preset, source: str | None) -> Data:
        """Conversations of the embedded pairs or of your own (`data/answers.py`), by the checkpoint's tokenizer."""
        from hf_optim.tasks.data import paragraphs

        values = _checked(preset.model.value)
        own = source is not None and source not in EMBEDDED
        changed = Path(str(source)).stat().st_mtime_ns if own and Path(str(source)).exists() else 0
        if own:  # before a model is trained for them
            paragraphs.sources(Path(str(source)), paragraphs.TABLES)
        limit = None if own else preset.samples.value
        return _data(source or preset.data.value, own, limit, str(_checkpoint(values)), values["length"], changed)

    def synthetic(self, model: str, preset: Preset) -> None:
        """None: the tokenizer is the checkpoint's. What a run would refuse is a `UserError`, as for others."""
        _checked(preset.model.value)

    def model(self, name: str, preset: Preset, data: Data) -> PreTrainedModel:
        """The checkpoint's model; for `lora` with adapters at every linear layer, which alone are trained."""
        from hf_optim.tasks.models.language import pretrained

        values = preset.model.value
        model: Any = pretrained(str(_checkpoint(values)), data.facts)
        if name == "lora":
            model = _adapted(model, values)
        model.tokenizer = data.facts["tokenizer"]
        return model  # type: ignore[no-any-return]

    def model_class(self, name: str) -> type[PreTrainedModel]:
        """transformers finds the class of a full checkpoint; one of adapters is read into the model that has them."""
        import transformers

        chosen: type[PreTrainedModel] = transformers.AutoModelForCausalLM  # type: ignore[assignment]
        return chosen

    def rung(self, model: str, preset: Preset) -> Rung:
        """The size of the model that is trained first; a sample counts as all its places."""
        values = preset.model.value
        if values["checkpoint"] is not None:
            raise UserError("task 'finetune': a ladder trains its models first: leave checkpoint out")
        around = (values["vocabulary"], values["length"], True)
        shape = shapes.options("gpt2", values["parameters"], *around)
        count = shapes.count("gpt2", shape, *around)
        cost = shapes.flops("gpt2", shape, count, values["length"])
        return Rung(count, values["length"], cost, "6 a parameter and token, 12 x layers x width x length in attention")

    def collate(self, data: Data) -> Callable[[Any], dict[str, Any]]:
        """The dataset's `__getitems__` gives whole batches."""
        return dict

    def reduce(self, logits: Any, labels: Any) -> Any:
        """[batch, 5] float64: nats of the answer, its tokens, those that are the likeliest, whether all are, bytes."""
        import torch

        from hf_optim.tasks.models.language import next_tokens

        tokens, size = labels
        nats, kept, right = next_tokens(logits, tokens)
        whole = right.sum(1) == kept.sum(1)
        parts = [nats.sum(1), kept.sum(1), right.sum(1), whole, size]
        return torch.stack([part.double() for part in parts], dim=1)

    def measure(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        """loss (nats a token of the answers), accuracy (share of answers that greedy decoding gives word for word: it
        does where every token is the likeliest after the right ones), token_accuracy, and bits_per_byte.
        """
        import numpy as np

        nats, tokens, right, whole, size = predictions.sum(axis=0)
        return {
            "loss": float(nats / tokens),
            "accuracy": float(whole / len(predictions)),
            "token_accuracy": float(right / tokens),
            "bits_per_byte": float(nats / np.log(2) / size),
        }

    def suits(self, model: PreTrainedModel, data: Data) -> None:
        """Raise a `UserError` if a checkpoint's model is none for this tokenizer and length, or no causal one."""
        from hf_optim.tasks.models.language import fits

        fits(model, data.facts)

    def callbacks(self, model: PreTrainedModel, preset: Preset, steps: int) -> list[Any]:
        """The tokenizer goes into every checkpoint."""
        from hf_optim.tasks.models.language import KeepTokenizer

        tokenizer: Any = model.tokenizer
        return [KeepTokenizer(tokenizer)]


def _checked(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options; a `UserError` names one that is out of range."""
    for key in ("parameters", "vocabulary", "base_steps", "length"):
        if isinstance(values[key], bool) or not isinstance(values[key], int) or values[key] < 1:
            raise UserError(f"options: {key} must be a whole number of at least 1, got {values[key]!r}")
    for key, most in MOST.items():  # it is trained whenever its tokenizer is asked for, by an evaluation too
        if values[key] > most:
            raise UserError(f"options: {key} must be at most {most:,}, got {values[key]}: bring a checkpoint")
    if not isinstance(values["checkpoint"], str | None):  # a folder is looked for among texts alone
        raise UserError(f"options: checkpoint must be a text, got {values['checkpoint']!r}")
    for key in (key for key in LORA if key in values):
        if isinstance(values[key], bool) or not isinstance(values[key], int | float) or values[key] < 1:
            raise UserError(f"options: {key} must be a number of at least 1, got {values[key]!r}")
    if values.get("rank", 1) > MOST_RANK:  # what evaluates a checkpoint has it from a spec.json
        raise UserError(f"options: rank must be at most {MOST_RANK:,}, got {values['rank']!r}")
    return values


def _checkpoint(values: Mapping[str, Any]) -> Path:
    if values["checkpoint"] is not None:
        return Path(values["checkpoint"])
    from hf_optim.tasks.models import base

    sizes = [values[key] for key in ("base_size", "parameters", "vocabulary", "length", "base_steps")]
    return base.checkpoint(*sizes)


def _adapted(model: Any, values: Mapping[str, Any]) -> Any:
    with extras.needed("model 'lora'", "trl"):
        from peft import LoraConfig, get_peft_model
    # GPT-2 keeps its weights the other way round.
    turned = any(type(module).__name__ == "Conv1D" for module in model.modules())
    adapters = LoraConfig(
        r=int(values["rank"]), lora_alpha=values["alpha"], target_modules="all-linear", fan_in_fan_out=turned,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    return get_peft_model(model, adapters)


@lru_cache(maxsize=4)
def _data(name: str, own: bool, limit: int | None, checkpoint: str, length: int, changed: int) -> Data:
    from hf_optim.tasks.data import answers, blocks
    from hf_optim.tasks.models.language import tokenizer_of

    if own:
        pairs, note = answers.read(Path(name))
    else:
        pairs, note = answers.letters(HERE / "wiki_paragraphs"), EMBEDDED[name]
    if limit:
        pairs = {split: part[: limit if split == "train" else max(1, limit // 10)] for split, part in pairs.items()}
    tokenizer = tokenizer_of(checkpoint)
    splits, dropped = answers.splits(tokenizer, pairs, length)
    if dropped:
        note += f"; longer than {length} tokens and left out: " + ", ".join(f"{n} of {s}" for s, n in dropped.items())
    commonest = _commonest([answer for _, answer in pairs["train"]], [answer for _, answer in pairs["test"]])
    note += f"; always giving train's commonest answer: {commonest:.3f} of test"
    digest = hashlib.sha256(repr((length, blocks.fingerprint(tokenizer))).encode())
    for split, part in splits.items():
        for tensor in (part.ids, part.labels):
            digest.update(split.encode() + tensor.numpy().tobytes())
    facts = {
        "tokenizer": tokenizer,
        "fingerprint": blocks.fingerprint(tokenizer),
        "vocabulary": blocks.ids_of(tokenizer),
        "block": length,
    }
    shown = Path(name).resolve().name if own else name
    return Data(**splits, name=shown, fingerprint=digest.hexdigest(), note=note, facts=facts)


def _commonest(train: list[str], test: list[str]) -> float:
    ((answer, _),) = Counter(train).most_common(1)
    return test.count(answer) / len(test)


TASK = FineTuning()
