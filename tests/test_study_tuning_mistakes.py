"""What is wrong with a tuning, sensitivity or variance block is said in one line, with its file, line and remedy."""

from __future__ import annotations

import pytest
from tuning_fakes import YAML, expand

from hf_optim.errors import UserError

BAD = {
    "unknown key": (
        ("trials: 6", "trials: 6\n  budget: 3"),
        11,
        "unknown key 'budget'; valid keys: trials, repetitions, seeds, steps",
    ),
    "no trials": (("trials: 6", "seed: 6"), 9, "'trials' is missing"),
    "zero trials": (("trials: 6", "trials: 0"), 10, "trials must be at least 1"),
    "trials in words": (("trials: 6", "trials: many"), 10, "trials must be a whole number"),
    "a judged seed": (("trials: 6", "trials: 6\n  seed: 2"), 11, "the tuning seed 2 is also a judged seed"),
    "a seed too large": (("trials: 6", "trials: 6\n  seed: 4294967296"), 11, "between 0 and 4294967295"),
    "unknown sampler": (
        ("trials: 6", "trials: 6\n  sampler: tpe"),
        11,
        "sampler must be qmc or random, got the text 'tpe'",
    ),
    "unknown pruner": (("trials: 6", "trials: 6\n  prune: true"), 11, "prune must be none or median"),
    "unknown label": (("SMARAN: {lr", "smaran: {lr"), 12, "no optimizer has the label 'smaran'"),
    "unknown hyper-parameter": (("{lr: [0.003, 1.0, log]}", "{rl: [0.003, 1.0, log]}"), 12, "rl"),
    "not a range": (
        ("[0.003, 1.0, log]", "[0.003, 1.0]"),
        12,
        "lr must be [low, high, log], [low, high, linear] or {choices",
    ),
    "ends exchanged": (("[0.003, 1.0, log]", "[1.0, 0.003, log]"), 12, "the lower end must be below the upper one"),
    "log of zero": (("[0.003, 1.0, log]", "[0, 1.0, log]"), 12, "a log range must lie above 0"),
    "a number for a range": (("[0.003, 1.0, log]", "0.1"), 12, "lr must be [low, high, log]"),
    "empty choices": (("[0.003, 1.0, log]", "{choices: []}"), 12, "choices must be a list of different values"),
    "choices misspelt": (("[0.003, 1.0, log]", "{choice: [1]}"), 12, "unknown key 'choice' (did you mean choices?)"),
    "fixed and searched": (
        ("label: SMARAN", "label: SMARAN, lr: 0.1"),
        12,
        "lr is searched here, but fixed where 'SMARAN'",
    ),
    "nothing declared": (
        ("  - adamw", "  - {name: 'torch.optim:NAdam', label: nadam}"),
        6,
        "'nadam' has nothing to tune: give a space under tuning: space: (compare: --space), as {nadam: {lr: [",
    ),
    "steps without a length": (
        (
            ", overrides: {steps: 100}",
            ", overrides: {epochs: 1}}\n  - {task: vision, label: b, size: smoke, overrides: {steps: 9}",
        ),
        12,
        "is measured in epochs",
    ),
    "steps below a run": (("trials: 6", "trials: 6\n  steps: 99"), 11, "one run of 'MLP' takes 100 steps already"),
    "not a mapping": ((YAML[YAML.index("tuning:") :], "tuning: 8\n"), 9, "expected a mapping with the keys trials"),
    "the same twice": (("  - adamw", "  - adamw\n  - {name: adamw, label: again}"), 7, "same"),
    "sensitivity to nothing": (
        ("tuning:", "sensitivity: {key: temperature}\ntuning:"),
        9,
        "no optimizer of this study has the hyper-parameter",
    ),
    "one value": (("tuning:", "sensitivity: {values: [0.1]}\ntuning:"), 9, "at least two different numbers"),
    "more seeds than there are": (("tuning:", "sensitivity: {seeds: 4}\ntuning:"), 9, "between 1 and the study's 3"),
    "unknown source": (
        ("tuning:", "variance: {sources: [luck]}\ntuning:"),
        9,
        "'luck' is none of split, init, order, tuning",
    ),
    "a source twice": (("tuning:", "variance: {sources: [init, init]}\ntuning:"), 9, "is given twice"),
    "one variance seed": (("tuning:", "variance: {seeds: 1}\ntuning:"), 9, "seeds must be at least 2"),
    "variance of nobody": (
        ("tuning:", "variance: {optimizers: [sgd]}\ntuning:"),
        9,
        "is none of adamw, SMARAN, tlr(sgd)",
    ),
    "tuning varied without tuning": (
        (YAML[YAML.index("tuning:") :], "variance: {sources: [tuning]}\n"),
        9,
        "only be varied in a study with a tuning",
    ),
    "a varied tuning seed is judged": (
        ("seeds: 3", "seeds: {these: [0, 1001]}\nvariance: {seeds: 3}"),
        3,
        "the tuning seed 1001 would also be a judged seed",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_blocks_say_file_line_and_remedy(case: str) -> None:
    (old, new), line, message = BAD[case]
    assert old in YAML
    text = YAML.replace(old, new, 1)
    if case == "steps without a length":
        text = text.replace("trials: 6", "trials: 6\n  steps: 1000")
    with pytest.raises(UserError) as error:
        expand(text)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith(f"s.yaml, line {line}: "), str(error.value)
