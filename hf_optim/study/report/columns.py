"""What each column of the report's tables means, in one sentence."""

from __future__ import annotations

import re

#: by a column's key, which mostly is what stands above it
EXPLAINED = {
    "verdict": "What the test says against the baseline. Undecided is no tie; the described is judged over all tasks.",
    "metric": "The mean over the units that finished, ± their standard deviation; ↑ higher is better, ↓ lower is.",
    "difference": "This optimizer's metric less the baseline's, averaged over pairs with the same weights and batches.",
    "interval of the difference": "As wide as the verdict asks: it leaves zero exactly where better or worse is said.",
    "p": "From the paired t-test, after the planned looks and Holm's correction over all comparisons of the family.",
    "P(better)": "The share of pairs in which it beats the baseline, ties counting half, with its 95 % interval.",
    "n": "How many runs finished, of how many that were planned.",
    "place": "The places that tests of all pairs, less sharp than the verdict's, leave it; ● may be the best.",
    "95 % CI": "The 95 % t-interval of the mean.",
    "median": "The middle of the units' values.",
    "IQM": "The mean of the middle half of the values, which single bad seeds do not move.",
    "mean": "The mean over units with its 95 % t-interval.",
    "d_z": "The mean paired difference over its standard deviation; positive is better.",
    "d_av": "The mean difference over the mean of the two standard deviations; positive is better.",
    "improvement": "P(better) over all combinations of units, not only the pairs.",
    "test loss": "The loss on the test split at the end of training.",
    "train loss": "The loss on the train split at the end of training, in evaluation mode.",
    "loss gap": "Test loss less train loss, both in evaluation mode.",
    "accuracy gap": "Train accuracy less test accuracy, both in evaluation mode.",
    "forward passes a step": "How often the model was run on a batch for one optimizer step.",
    "backward passes a step": "How often a gradient was computed for one optimizer step.",
    "ms a step": "The median time of one optimizer step, forward and backward passes included.",
    "of it optimizer": "The part of a step's milliseconds that the optimizer itself took.",
    "training s": "Seconds of training, evaluations left out; compare within this table only.",
    "samples a second": "Training samples a second, evaluations left out.",
    "tokens a second": "Training tokens a second, evaluations left out.",
    "FLOPs of a plain step": "Operations of a forward and a backward pass on a batch; a product with its sum is two.",
    "optimizer state": "The memory that the optimizer keeps between steps.",
    "peak of the process": "The most memory that the run's process held at a time.",
    "peak on the card": "The most memory that the run held on the card at a time.",
    "trials": "How many settings were tried on the validation split.",
    "validation": "The validation metric of the chosen setting, by which it was chosen.",
    "chosen": "The setting with the best validation metric at the end of training.",
    "run": "One optimizer with one seed: its record, settings, history, log and samples.",
}  # fmt: skip


def slug(key: str) -> str:
    """The anchor of an explanation."""
    return "col-" + re.sub(r"[^a-z0-9]+", "-", key.lower()).strip("-")
