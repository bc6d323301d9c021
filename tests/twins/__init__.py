"""Reference twins: every registered optimizer once more, in plain NumPy float64 and at most 25 lines.

A twin is written from the paper, by somebody who has not read the rule it is compared with. It is a generator that
gets the tensors ``x`` (a list it updates in place, entry by entry), the problem ``f(x, t) -> (loss, gradients)`` with
t = 1, 2, ... and the hyper-parameters ``h``, one namespace a tensor, so that parameter groups need no code of their
own. After each update it yields a dict: ``lr`` is the effective rate of every tensor where the rule adapts one, ``m``
the momentum buffers (for Lookahead, which may pull them back), everything else is named by the twin.
"""

import twins.adaptive
import twins.language
import twins.language_variants
import twins.lossaware
import twins.matrices
import twins.papers
import twins.torchs
import twins.wrappers  # noqa: F401
from twins.core import DEFAULTS, TWINS, begin, run

__all__ = ["DEFAULTS", "TWINS", "begin", "run"]
