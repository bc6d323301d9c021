"""What says whose machine a text is from, taken out of it: paths, names of users and hosts, addresses, secrets.

A path keeps its last part, so that `data: /home/somebody/digits.parquet` still says which file it was.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from hf_optim.core import safe_text
from hf_optim.errors import UserError

#: instead of what was taken out
USER, HOST, SECRET, MAIL, ADDRESS = "USER", "HOST", "REMOVED", "MAIL", "ADDRESS"
#: users and hosts that are everybody's
EVERYBODY = {"root", "user", "users", "admin", "ubuntu", "runner", "nobody", "home", "host", "localhost", "jovyan"}
MOST_OWNERS = 500
#: so often is an escape escaped: an address in the question of another one's is written in escapes twice
MOST_ESCAPES = 3
_SECRET_NAME = re.compile(
    r"TOKEN|SECRET|(?:^|_)PASS|PASSW|_PWD$|CREDENTIAL|AUTH|(?:^|_|API)KEY|PRIVATE|COOKIE|_PAT$|_PIN$", re.IGNORECASE
)
_PART = r"[^\s/\\:;,'\"<>|()\[\]{}=`]+"
#: of a folder on the way, as runs are called (lr=0.1,seed=1): what would end a path, but where another one begins
_PASSED = r"(?:[^\s/\\:;,'\"<>|()\[\]{}=`]|[:;,=](?=[^\s/\\'\"]))+"
_HOMES = "home|Users|root|tmp|mnt|media|var|private|scratch|work|workspace|data|opt|usr|srv|gpfs|lustre|nfs"
#: the second from the root, or on the way to more: "users/day" is no folder
_OWNER = re.compile(rf"(?:(?<=[/\\])|(?<![\w.-])(?=\w+[/\\]+{_PART}[/\\]))(?:home|[Uu]sers)[/\\]+({_PART})")
#: a backslash and what it stands for in JSON, in Python and in what either says of a path
_BACKSLASH = re.compile(r"\\(?:([nrt\"'/\\])|(?:x|u00)([0-9a-fA-F]{2}))")
#: a terminal's colour, whose last letter would stand before a name as if it were the name's
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
#: behind no letter and no number, where \b is none behind an underscore
_OWN = r"(?<![A-Za-z0-9])"
#: an address of hexadecimal digits begins: not behind more of them, nor within a name of C++ (at::c10::d1)
_BEFORE = r"(?<!\w)(?<![0-9a-f]:)(?<!::)"
_CONTROLS = dict(zip("nrt", "\n\r\t", strict=True))
# No pattern looks to the end of a text from each of its places: texts of a stranger's are long, and there are many.
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"-{4,5} ?BEGIN [A-Z0-9 ]+-{4,5}.*?(?:-{4,5} ?END [A-Z0-9 ]+-{4,5}|\Z)", re.DOTALL), SECRET),
    (re.compile(r"PuTTY-User-Key-File-\d.*", re.DOTALL), SECRET),
    (re.compile(r"(?<=://)[^\s/@]+@"), ""),  # a name and a password before a host
    (re.compile(r"(?i)\b(Bearer|Authorization[\"']?: *[\"']?(?:Basic|Digest|Token)) +[^\s\"']+"), rf"\1 {SECRET}"),
    (
        re.compile(rf"(?i)\b((?:Authorization|Cookie)[\"']?: *[\"']?)(?!\w+ {SECRET})[^\s\"'][^\r\n\"']*"),
        rf"\1{SECRET}",
    ),
    # the forms of those who give tokens out, and a JSON web token; 40 hexadecimal digits are W&B's,
    # 32 are Kaggle's
    (re.compile(_OWN + r"(?:hf_[A-Za-z0-9]{20,}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,})"), SECRET),
    (re.compile(_OWN + r"(?:gh[oprsu]|github_pat|glpat|xox[abeprs]|xapp|npm)[-_](?=[\w-]{0,200}\d)[\w-]{16,}"), SECRET),
    (re.compile(_OWN + r"(?:pypi|dckr_pat|gsk|nvapi|xai|wandb_v1|sk|pk|rk)[-_](?=[\w-]{0,200}\d)[\w-]{16,}"), SECRET),
    (re.compile(_OWN + r"(?:(?:lsv2|whsec|dop_v1|pcsk)_[\w-]{16,}|dapi[0-9a-f]{32}|\d{8,10}:AA[\w-]{20,})"), SECRET),
    (re.compile(_OWN + r"(?:ya29\.|1//0|ATATT3|ATBB|GOCSPX-|AGE-SECRET-KEY-1|SG\.[\w-]{16,40}\.)[\w-]{20,}"), SECRET),
    (re.compile(_OWN + r"(?:sq0\w{3}-[\w-]{22,}|tskey-[\w-]{16,}|sntry[su]_[\w+/=-]{40,}|EAA\w{60,})"), SECRET),
    (re.compile(_OWN + r"(?:hvs\.|pscale_[a-z]{2,8}_|api_org_|fm2_|\w{3}\dQ~)[\w.~+/=-]{16,}"), SECRET),
    (re.compile(_OWN + r"eyJ(?:[\w-]{8,4000}\.[\w-]{8,}\.[\w-]*|[\w+/-]{40,4000}=*)"), SECRET),
    (re.compile(r"(?<![0-9a-fA-F])[0-9a-f]{32}(?:[0-9a-f]{8})?(?![0-9a-fA-F])"), SECRET),
    # an environment's variable, and a word that says what follows
    (
        re.compile(
            _OWN + r"((?=[0-9_]{0,20}[A-Z])[A-Z0-9]{1,101}_[A-Z0-9_]{1,100})="
            r"(?:\"(?:[^\"\\]|\\.)*\"|'[^']*'|(?:\\.|[^\s\\])+)"
        ),
        rf"\1={SECRET}",
    ),
    (
        re.compile(
            r"(?i)((?:(?:api|account|access|private|secret)[-_]?key|(?:access|api|auth|bot|csrf|hf|hub|refresh|session)[-_]?token|session[-_]?id|\btoken|secret)"
            r"[\"']?\s*[=:]\s*[\"']?)[^\s\"',}]{6,}"
        ),
        rf"\1{SECRET}",
    ),
    (
        re.compile(
            r"(?i)(?<![\w-])(--?(?:[a-z0-9]{1,20}[-_]){0,3}(?:pass(?:wd|word|phrase)?|secret|token|key) +)[^\s-]\S*"
        ),
        rf"\1{SECRET}",
    ),
    (  # in quotes, up to where they close
        re.compile(
            r"(?i)((?:passw(?:or)?d|passphrase|\bpwd)[\"']?\s*[=:]\s*[\"']?)(?:(?<=\")[^\"]*|(?<=')[^']*|[^\s\"',};]+)"
        ),
        rf"\1{SECRET}",
    ),
    (re.compile(_OWN + r"((?:[A-Z][A-Z0-9_]{0,100}(?:TOKEN|SECRET|KEY)|[A-Za-z]{1,20}-Key): *)\S+"), rf"\1{SECRET}"),
    (re.compile(r"(?<![\w-])((?:PASS|pass)[=:])[^\s\"',;]+"), rf"\1{SECRET}"),
    # behind a letter of one program's own
    (
        re.compile(
            r"\b((?:mysql\w*|mariadb[\w-]*|sshpass|7z\w?|login|upload)\b[^\n;|&]{0,200}?\s-p *"
            r"|(?:un)?zip\b[^\n;|&]{0,200}?\s-P *|redis-cli\b[^\n;|&]{0,200}?\s-a +)(?:\"[^\"]*\"|'[^']*'|[^\s\"';]+)"
        ),
        rf"\1{SECRET}",
    ),
    # sshpass's variable, a netrc file, curl's option, a settings file of Docker's or npm's
    (re.compile(r"\b(SSHPASS=|(?i:login)\s+\S{1,200}\s+(?i:password)\s+)[^\s\"']+"), rf"\1{SECRET}"),
    (re.compile(r"(?<![\w-])((?:-[uU]|--(?:proxy-)?user)[ =]+[\"']?[^\s:%\"']{1,200}[:%])[^\s\"']+"), rf"\1{SECRET}"),
    (re.compile(r"([\"'](?:pass|_?auth)[\"']\s*:\s*[\"'])[^\"']+"), rf"\1{SECRET}"),
    # in addresses: of one that is signed, and of one that whoever knows it may post to
    (re.compile(r"(?i)((?:[?&](?:sig|key|[\w-]{0,40}signature)|\bX-\w{1,20}-Signature)=)[^\s&\"']+"), rf"\1{SECRET}"),
    (re.compile(r"(?i)\b(hooks\.slack\.com/services|discord(?:app)?\.com/api/webhooks)/\S+"), rf"\1/{SECRET}"),
    (re.compile(r"(?<![\w.+-])[\w.+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*"), MAIL),
    (re.compile(r"(?<!\d)(?<!\d\.)\d{1,3}(?:\.\d{1,3}){3}(?!\.?\d)"), ADDRESS),
    # of a network's card, and of IP's sixth version: in full, and with a gap
    (re.compile(rf"(?i){_BEFORE}(?:[0-9a-f]{{2}}:){{5}}[0-9a-f]{{2}}(?!:*\w)"), ADDRESS),
    (re.compile(r"(?i)(?<![\w.-])(?=[0-9.-]*[a-f])(?:(?:[0-9a-f]{2}-){5}[0-9a-f]{2}|(?:[0-9a-f]{4}\.){2}[0-9a-f]{4})(?![.-]?\w)"),
     ADDRESS),
    (re.compile(rf"(?i){_BEFORE}(?:[0-9a-f]{{1,4}}:){{7}}[0-9a-f]{{1,4}}(?!:*\w)"), ADDRESS),
    (re.compile(rf"(?i){_BEFORE}(?=[0-9a-f:]*\d)[0-9a-f]{{1,4}}(?::[0-9a-f]{{1,4}})*::[0-9a-f]{{1,4}}(?::[0-9a-f]{{1,4}})*(?!:*\w)"),
     ADDRESS),
)  # fmt: skip
#: a token of whoever else's: a short word, and behind it letters and digits without end, but for a class by its words
#: (models.T5ForConditionalGeneration, models.Wav2Vec2ConformerConfig)
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9\\])[A-Za-z][A-Za-z0-9]{1,11}[-_.](?=[A-Za-z]{0,200}\d)(?=\d{0,200}[A-Za-z])"
    r"(?![A-Za-z0-9]{0,60}(?:For[A-Z]|Processor|[A-Z][a-z]{4,20}(?![A-Za-z0-9])))[A-Za-z0-9]{20,}"
)
_PATHS = (
    re.compile(rf"(?i)\bfile://[\w.-]*/+(?:{_PASSED}/+)*({_PART})?/?"),
    # one slash or, but for what follows an address's scheme, several: of a share, of SQLAlchemy's sqlite:////
    re.compile(rf"(?<![\w./~\\-])(?<!:/)(?:~[\w.-]*)?(?:/(?!/)|(?:(?<!:)//|(?<=:)///)/*)(?={_PART})(?:{_PASSED}/+)*({_PART})?/?"),
    # up from here, where others' folders lie
    re.compile(rf"(?<![\w./~\\-])(?:\.[\\/]+)*\.\.[\\/]+(?:{_PASSED}[\\/]+)*({_PART})?/?"),
    re.compile(rf"/(?:{_HOMES})/(?:{_PASSED}/+)*({_PART})?/?"),  # behind a letter too, as in -I/home/somebody
    re.compile(rf"(?:\b[A-Za-z]:[\\/]+|\\{{2,}})(?:{_PASSED}[\\/]+)*({_PART})?[\\/]*"),
)  # fmt: skip


def strings(value: Any) -> Iterator[str]:
    """Every text in plain data, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from strings(key)
            yield from strings(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from strings(entry)


def changed(value: Any, change: Callable[[str], str]) -> Any:
    """Plain data with every text in it, keys too, put through `change`. A UserError where two keys become one."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        put = {changed(key, change): changed(entry, change) for key, entry in value.items()}
        if len(put) < len(value):  # a figure would be lost
            twice = next(name for name, often in Counter(map(change, value)).items() if often > 1)
            raise UserError(
                f"two names that are {twice!r} without what is private (the place of a file, a name): give them names "
                "of their own"
            )
        return put
    if isinstance(value, (list, tuple)):
        return [changed(entry, change) for entry in value]
    return value


def outside_paths(text: str) -> str:
    """`text` without the paths in it."""
    for pattern in _PATHS:
        text = pattern.sub(" ", text)
    return text


class Scrubber:
    """Takes out of texts what is private: `scrub(text)`.

    Args:
        texts: what will be scrubbed, as far as it is known: the owners of home folders in it are users.
        spoken: words that mean something else here (labels, names of optimizers and models): a user who is called
            Adam does not rename them. `kept` holds those that are names and stay for that reason.

    Raises:
        UserError: texts that name the home folders of more than `MOST_OWNERS` users.
    """

    def __init__(self, texts: Iterable[str] = (), spoken: Collection[str] = ()) -> None:
        users = {_user(), Path.home().name}
        for text in texts:
            users |= {*_OWNER.findall(text), *_OWNER.findall(_read(text))}
            if len(users) > MOST_OWNERS:  # each is looked for in every text
                raise UserError(f"the home folders of more than {MOST_OWNERS} users are named: nothing is published")
        host = socket.gethostname()
        names = dict.fromkeys(users, USER) | dict.fromkeys((host, host.partition(".")[0]), HOST)
        names = {name: put for name, put in names.items() if len(name) > 2 and name.lower() not in EVERYBODY}
        self._spoken = {word.lower() for word in spoken}
        self.kept = sorted(name for name in names if name.lower() in self._spoken)
        secrets = {v for k, v in os.environ.items() if _SECRET_NAME.search(k) and len(v) >= 8 and not v.isdigit()}
        self._known = [(re.compile(re.escape(secret)), SECRET) for secret in sorted(secrets, key=len, reverse=True)] + [
            (re.compile(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", re.IGNORECASE), put)
            for name, put in sorted(names.items(), key=lambda pair: -len(pair[0]))
            if name not in self.kept
        ]

    def scrub(self, text: str) -> str:
        """`text` without what is private; a text without any is returned as it is. One that holds more of it in the
        escapes of addresses, JSON, HTML, terminals (%2Fhome%2F, \\"password\\") is returned as it reads without these.
        """
        text = read = self._scrubbed(text)
        for _ in range(MOST_ESCAPES):
            if (plain := _read(read)) == read:
                break
            read = self._scrubbed(plain)
            text = text if read == plain else read
        return text

    def _scrubbed(self, text: str) -> str:
        secrets = [known for known in self._known if known[1] == SECRET]
        for pattern, put in (*secrets, *_PATTERNS):
            text = pattern.sub(self._mail if put == MAIL else put, text)
        text = _TOKEN.sub(self._token, text)
        for pattern in _PATHS:
            # by itself, before it stands behind a letter (-I/home/somebody), where it would be no name
            text = pattern.sub(lambda path: self.unnamed(path[1] or ""), text)
        return self.unnamed(text)

    def _mail(self, found: re.Match[str]) -> str:
        """Instead of an address of e-mail; a word of the study's of that form (the model resnet50@agr) is none."""
        return found[0] if "." not in found[0].partition("@")[2] and found[0].lower() in self._spoken else MAIL

    def _token(self, found: re.Match[str]) -> str:
        """Instead of what looks like a token; a word of the study's (the label adamw-lr0p0003wd0p1warm100) is none."""
        return found[0] if found[0].lower() in self._spoken else SECRET

    def unnamed(self, text: str) -> str:
        """`text` without names of users and machines, and without the environment's secrets; paths stay."""
        for pattern, put in self._known:
            text = pattern.sub(put, text)
        return text


def _read(text: str) -> str:
    """What a text says in which characters are escaped, or coloured, once."""
    if "\x1b" in text:
        text = _COLOUR.sub("", text)
    if "\\" in text:
        text = _BACKSLASH.sub(lambda m: chr(int(m[2], 16)) if m[2] else _CONTROLS.get(m[1], m[1]), text)
    return safe_text.of_html(unquote(text)) if "%" in text or "&" in text else text


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return ""
