"""The errors a user can cause: one clear line each, never a bug in the library."""

import re

#: what is not shown, or turns the order of what is: controls, bidirectional marks, letters of no width (but the joiners
#: that scripts and emoji need), tags, half characters, and what no XML may hold
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)


class UserError(ValueError):
    """What was wrong, where, and what to do; the command line prints it and exits with 2.

    Of what a stranger's file may hold a name of more than 500 letters is shortened, and what would move a terminal's
    cursor shows as "�", as Python prints a message as it is; what shows in several lines, as a tensor does, stands in
    one."""

    def __init__(self, message: str = "") -> None:
        line = HIDDEN.sub("�", re.sub(r"\s*\n\s*", " ", str(message)))
        super().__init__(re.sub(r"\S{501,}", lambda m: f"{m[0][:200]}... ({len(m[0])} letters)", line))


class UnknownName(UserError):
    """A hyper-parameter that an optimizer does not have, or a name that its file, module or folder does not have."""


class MissingLoss(UserError):
    """A loss-aware rule was stepped without the loss of the batch."""


class BadLoss(UserError):
    """The loss handed to `step` is NaN, infinite, or below what the rule's theory allows."""


class BadCheckpoint(UserError):
    """A state dict that another rule, or the same rule with another structure, has written."""


class DamagedCheckpoint(UserError):
    """A run's own checkpoint with which it cannot go on, which says nothing about the run."""


#: how torch says that memory is lacking
OF_MEMORY = ("out of memory", "allocate memory")


def of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is lacking; torch's own of it are no MemoryError."""
    told = isinstance(error, RuntimeError) and any(words in str(error) for words in OF_MEMORY)
    return told or isinstance(error, MemoryError)


def first_line(error: BaseException) -> str:
    """What a library's error says, without what follows on further lines; at most 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def one_line(error: BaseException) -> str:
    """An error as one line: a message to the user up to 2,000 characters, as what to do stands at its end; any other
    with its kind and at most 500.
    """
    text, kind, most = " ".join(str(error).split()), type(error).__name__, 2000
    if isinstance(error, MemoryError) and not text:  # Python's own says nothing
        text = "there is not enough memory"
    if not isinstance(error, UserError) or not text:
        text, most = (f"{kind}: {text}" if text else kind), 500
    return text if len(text) <= most else f"{text[: most - 3]}..."
