"""Masked language models with sentence-order prediction, from scratch on running text: ALBERT and BERT."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_optim.core.validate import no_choice
from hf_optim.errors import UserError
from hf_optim.experiment.task import REST, Data, Metric, Preset, Primary, Size, Source, Task, Value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from transformers import PreTrainedModel, TrainerCallback

    from hf_optim.tasks.data.pairs import Pairs

HERE = Path(__file__).parent / "data"
EMBEDDED = {"wiki": "5,013 paragraphs of English Wikipedia, 412 thousand words, split by article"}
HUB = {"wikitext-2": ("Salesforce/wikitext", "wikitext-2-raw-v1")}
#: values of a preset's `model` that make the data; the others are the configuration's
TEXT = ("tokenizer", "vocabulary", "length", "mask_share", "longest_ngram")
KINDS = ("bpe", "word", "unigram", "wordpiece")

ADAMW = {"name": "adamw", "lr": 1e-3}
# Byte-pair encoding, where ALBERT has a unigram model: training gives the same tokenizer every time, which the trainers
# of unigram and WordPiece models do not.
SMOKE = {
    "tokenizer": "bpe",
    "vocabulary": 300,
    "length": 32,
    "mask_share": 0.15,
    "longest_ngram": 3,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    # About 1 / sqrt(width). With the 0.02 that suits width 768, narrow models stay at token frequencies for long.
    "initializer_range": 0.08,
}
SMALL = {
    **SMOKE,
    "vocabulary": 2000,
    "length": 64,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 512,
}
BASE = {
    "tokenizer": "bpe",
    "vocabulary": 30000,
    "length": 128,
    "mask_share": 0.15,
    "longest_ngram": 3,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "initializer_range": 0.02,
}
BASE_NOTE = (
    "the paper names ALBERT only; width and depth of its base size, 11.8 million parameters; the text's are ours"
)
#: the paper names the model; shares and lengths of masks are the code's
PARTS: dict[str, Source] = {REST: "paper", "mask_share": "code", "longest_ngram": "code"}
BERT_NOTE = "BERT-base, 110 million parameters; the pair length is ours"


def _paper(values: dict[str, Any], note: str) -> Preset:
    return Preset(
        epochs=Value(25, "paper", "AGR, ALBERT on WikiText-2"),
        batch_size=Value(16, "paper", "AGR"),
        optimizer=Value(
            {"name": "adamw", "lr": 1e-4, "weight_decay": 5e-4, "decay_all": True},
            "code",
            "AGR; the paper's Table 6 tries weight_decay 0, 2e-4, 5e-4 (its best), 1e-3, 1e-2; over all parameters",
        ),
        data=Value("wikitext-2", "paper"),
        model=Value(values, "ours", note, PARTS | {key: "ours" for key in values if key not in PARTS}),
        schedule=Value({"name": "constant"}, "code", "the paper's LambdaLR is not used for ALBERT"),
        validation=Value(0, "ours", "none: the text has a validation split"),
        drop_last=Value(False, "ours", "torch's default; the paper is silent"),
        train_evaluation=Value(4096, "ours", "about as many as there are test pairs"),
        evaluation_batch=Value(32),
    )


SIZE_TABLE = {
    "smoke": Size(
        "seconds: 120 of the embedded paragraphs, for tests",
        {
            name: Preset(
                epochs=Value(1),
                batch_size=Value(16),
                optimizer=Value(ADAMW),
                data=Value("wiki"),
                model=Value(values),
                samples=Value(120, "ours", "paragraphs of a split"),
            )
            for name, values in (("albert", {**SMOKE, "embedding_size": 16}), ("bert", SMOKE))
        },
    ),
    "small": Size(
        "2 to 3 minutes on one core: all embedded paragraphs; SOP tells optimizers apart",
        {
            name: Preset(
                epochs=Value(7, "ours", "bounded by steps"),
                steps=Value(800),
                batch_size=Value(32),
                optimizer=Value(ADAMW),
                data=Value("wiki"),
                model=Value(values),
                evaluations=Value(4),
                train_evaluation=Value(1024),
            )
            for name, values in (("albert", {**SMALL, "embedding_size": 128}), ("bert", SMALL))
        },
    ),
    "paper": Size(
        "AGR's setting on WikiText-2 from the Hub; for a GPU",
        {"albert": _paper({**BASE, "embedding_size": 128}, BASE_NOTE), "bert": _paper(BASE, BERT_NOTE)},
    ),
}


class Albert(Task):
    """See the module and `data/pairs.py`; both models predict masked tokens and the order of two segments."""

    name = "albert"
    title = "Masked language model with sentence order"
    primary = Primary("test_sop_accuracy", greater_is_better=True)
    metrics = (
        Metric("sop_accuracy", True, "share"),
        Metric("mlm_accuracy", True, "share"),
        Metric("sop_loss", False, "nats"),
        Metric("mlm_loss", False, "nats"),
        Metric("perplexity", False),
    )
    models = ("albert", "bert")
    sizes = SIZE_TABLE
    embedded = EMBEDDED
    label_names = ("labels", "sentence_order_label")

    def data(self, preset: Preset, source: str | None) -> Data:
        """The preset's text, the embedded one of a name, or files of your own (`hf_optim.tasks.data.paragraphs`)."""
        values = preset.model.value
        name = source or preset.data.value
        own = source is not None and name not in EMBEDDED
        limit = preset.samples.value if source is None else None
        splits, facts, note = _pairs(name, own, _newest(Path(name)) if own else 0, limit, *_text_values(values))
        note += f"; {', '.join(f'{len(part) // 2} {split}' for split, part in splits.items())} pairs"
        shown = Path(name).resolve().name if own else name
        from hf_optim.tasks.data.pairs import Swapping

        return Data(
            train=Swapping(splits["train"]),
            validation=splits["validation"],
            test=splits["test"],
            name=shown,
            fingerprint=facts["pairs"],
            note=note,
            facts=facts,
            train_evaluated=splits["train"],
        )

    def synthetic(self, model: str, preset: Preset) -> Data:
        """See `Task`."""
        from hf_optim.tasks.data import synthetic

        return synthetic.pairs(preset.data.value, *_text_values(preset.model.value)[1:])

    def model(self, name: str, preset: Preset, data: Data) -> PreTrainedModel:
        """The model for the data's vocabulary and length, with transformers' initialisation."""
        import transformers
        from huggingface_hub.errors import StrictDataclassError

        values = {key: value for key, value in preset.model.value.items() if key not in TEXT}
        config = transformers.AlbertConfig if name == "albert" else transformers.BertConfig
        fixed = {key: data.facts[key] for key in ("masking", "text")}
        shape = {"vocab_size": data.facts["vocabulary"], "max_position_embeddings": data.facts["text"]["length"]}
        try:
            if values["num_attention_heads"] < 1 or values["hidden_size"] % values["num_attention_heads"]:
                # transformers would fail in the first step
                raise ValueError("hidden_size must be a multiple of num_attention_heads, 1 or more")
            return self.model_class(name)(config(**{**shape, **values, **fixed}))
        except (TypeError, ValueError, ZeroDivisionError, RuntimeError, StrictDataclassError) as error:
            raise UserError(f"model {name!r}: {values} make no model: {' '.join(str(error).split())}") from error

    def model_class(self, name: str) -> type[PreTrainedModel]:
        """The class that reads a checkpoint of `name`."""
        from hf_optim.tasks.models import masked_lm

        return (
            masked_lm.NgramMaskedAlbertForPreTraining if name == "albert" else masked_lm.NgramMaskedBertForPreTraining
        )

    def callbacks(self, model: PreTrainedModel, preset: Preset, steps: int) -> Sequence[TrainerCallback]:
        """What tells the train split the epoch, with which it swaps its pairs."""
        from hf_optim.tasks.data.epochs import Epochs

        return (Epochs(),)

    def collate(self, data: Data) -> Callable[[Any], dict[str, Any]]:
        """The dataset's `__getitems__` gives whole batches."""
        return dict

    def reduce(self, logits: Any, labels: Any) -> Any:
        """[batch, 5] of a batch: nats, number and hits of its masked tokens, then nats and hit of its order."""
        import torch
        from torch.nn.functional import cross_entropy

        (scores, pair_scores), (tokens, order) = logits, labels
        masked = tokens >= 0
        # Of the masked tokens only: all scores in float32 would take most of the memory.
        nats = torch.zeros(tokens.shape, dtype=torch.float32, device=tokens.device)
        nats[masked] = cross_entropy(scores[masked].float(), tokens[masked], reduction="none")
        hits = (scores.argmax(-1) == tokens) & masked
        columns = [
            nats.sum(1),
            masked.sum(1),
            hits.sum(1),
            cross_entropy(pair_scores.float(), order, reduction="none"),
            pair_scores.argmax(-1) == order,
        ]
        return torch.stack([column.float() for column in columns], dim=1)

    def measure(self, predictions: np.ndarray, references: Any) -> dict[str, float]:
        """Losses in nats (MLM: a masked token; SOP: a pair), perplexity of masked tokens, and accuracies."""
        import numpy as np

        nats, tokens, hits, order_nats, order_hits = predictions.sum(axis=0, dtype=np.float64)
        pairs = len(predictions)
        mlm, sop = float(nats / tokens), float(order_nats / pairs)
        return {
            "loss": mlm + sop,
            "mlm_loss": mlm,
            "perplexity": float(np.exp(min(mlm, 700.0))),  # infinite, no checkpoint could be read again
            "mlm_accuracy": float(hits / tokens),
            "sop_loss": sop,
            "sop_accuracy": float(order_hits / pairs),
        }

    def suits(self, model: PreTrainedModel, data: Data) -> None:
        """A checkpoint belongs to one tokenizer, and its figures to one way of making pairs and masks."""
        text: Mapping[str, Any] = getattr(model.config, "text", None) or {}
        here = data.facts["text"]
        if text.get("tokenizer") != here["tokenizer"]:
            raise UserError(
                f"checkpoint: made with tokenizer {text.get('tokenizer')}, but the train split of {data.name} gives "
                f"tokenizer {here['tokenizer']}: give the data, the size and the options that it was trained with"
            )
        for key, value in here.items():
            if text[key] != value:
                raise UserError(
                    f"checkpoint: trained with {key} {text[key]}, but the data are made with {value}: "
                    f"give --model.{key} {text[key]}"
                )


def _text_values(values: Mapping[str, Any]) -> tuple[str, int, int, float, int]:
    """What `TEXT` names, checked."""
    kind, share = values["tokenizer"], values["mask_share"]
    if kind not in KINDS:
        raise UserError(f"options: {no_choice('tokenizer', kind, KINDS)}")
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise UserError(f"options: mask_share must be between 0 and 1, got {share!r}")
    whole = []
    for key, least in (("vocabulary", 16), ("length", 16), ("longest_ngram", 1)):
        value = values[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"options: {key} must be an integer of at least {least}, got {value!r}")
        whole.append(value)
    vocabulary, length, longest = whole
    positions = values.get("max_position_embeddings", length)
    if isinstance(positions, int) and positions < length:
        raise UserError(f"options: length {length} is more than max_position_embeddings {positions}")
    return kind, vocabulary, length, float(share), longest


@lru_cache(maxsize=2)
def _pairs(
    name: str, own: bool, changed: int, limit: int | None, kind: Any, vocabulary: int, length: int, share: float,
    longest: int,
) -> tuple[dict[str, Pairs], dict[str, Any], str]:  # fmt: skip
    """The splits of a text, made once for the runs of a process; `changed` makes changed files be read anew."""
    import hashlib
    from dataclasses import asdict

    from hf_optim.tasks.data import pairs, tokenizer

    texts, note = _texts(name, own)
    if limit is not None:
        texts = {split: part[:limit] for split, part in texts.items()}
        note += f"; the first {limit} paragraphs of a split only"
    words = tokenizer.train(kind, texts["train"], vocabulary, pairs.SPECIAL, roles=pairs.ROLES, lowercase=True)
    masking = pairs.masking(words, share, longest)
    by_split = {split: pairs.build(texts[split], words, length, masking, split=split) for split in pairs.SPLITS}
    digest = hashlib.sha256("".join(part.digest() for part in by_split.values()).encode()).hexdigest()
    text = {"tokenizer": words.fingerprint, "length": length, "mask_share": share, "longest_ngram": longest}
    facts = {"vocabulary": masking.vocabulary, "masking": asdict(masking), "text": text, "pairs": digest}
    return by_split, facts, note


def _texts(name: str, own: bool) -> tuple[dict[str, list[str]], str]:
    """The paragraphs of each split."""
    from hf_optim.tasks.data import paragraphs

    if own:
        texts, note = paragraphs.read(Path(name))
        return texts, "; ".join(["files of your own", note] if note else ["files of your own"])
    if name in EMBEDDED:
        texts, _ = paragraphs.read(HERE / "wiki_paragraphs")
        return texts, f"{EMBEDDED[name]}; not comparable with published figures"
    from hf_optim.tasks.data import hub

    repository, config = HUB[name]
    parts = hub.load(repository, config=config, key="data")
    texts = {split: paragraphs.running(parts[split]["text"]) for split in paragraphs.SPLITS}
    return texts, f"{repository}, {config} from the Hub"


def _newest(path: Path) -> int:
    """The time in ns of the last change to `path` and what is directly in it; 0 if it does not exist."""
    if not path.exists():
        return 0
    return max(entry.stat().st_mtime_ns for entry in [path, *(path.iterdir() if path.is_dir() else ())])


TASK = Albert()
