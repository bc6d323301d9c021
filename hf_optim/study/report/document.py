"""A whole HTML page with its content policy."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

from hf_optim.core.safe_text import html as escape

# No script but the one below, whose hash this is: what a label might smuggle in does not run.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{hash}'; img-src data:; base-uri 'none'; \
form-action 'none'"


def document(title: str, style: str, body: Sequence[str], script: str = "") -> str:
    """A whole page with its content policy, which allows this one script by its hash, and no other."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = POLICY.format(hash=digest) if script else POLICY.replace("'sha256-{hash}'", "'none'")
    # The lines of the style sheet are kept as they are: the report is also read as source.
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style></head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + (f"\n<script>{script}</script>" if script else "")
        + "\n</body></html>\n"
    )
