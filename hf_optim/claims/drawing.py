"""A reproduction's figures as a drawing: published and obtained, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_optim.core.safe_text import html as escape

if TYPE_CHECKING:
    from hf_optim.claims.judge import Outcome


def drawing(outcome: Outcome) -> str:
    """Published and obtained as two panels of dots with bars of one standard deviation; empty without both."""
    shown = [pair for pair in outcome.pairs if pair.belongs and pair.obtained.n and pair.published["value"] is not None]
    if not shown:
        return ""
    height, label, panel, gap = 22, 330, 250, 30
    width, total = label + 2 * panel + gap + 20, 46 + height * len(shown) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" font-family="system-ui, sans-serif" '
        'font-size="12" role="img">',
        f"<title>{escape(outcome.claim.title)}</title>",
        f'<rect width="{width}" height="{total}" fill="#fff"/>',
    ]
    columns = [
        ("published", [(float(p.published["value"]), float(p.published.get("std") or 0)) for p in shown]),
        (f"obtained ({outcome.size})", [(p.obtained.mean, p.obtained.sd) for p in shown]),
    ]
    for i, pair in enumerate(shown):
        y = 46 + height * i
        parts.append(f'<text x="{label - 10}" y="{y + 4}" text-anchor="end">{escape(pair.label[:52])}</text>')
    for column, (name, values) in enumerate(columns):
        left = label + column * (panel + gap)
        spread = [(v - (s if s == s else 0), v + (s if s == s else 0)) for v, s in values]
        low, high = min(a for a, _ in spread), max(b for _, b in spread)
        pad = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
        low, high = low - pad, high + pad
        parts.append(f'<text x="{left}" y="20" font-weight="600">{escape(name)}</text>')
        bottom = 46 + height * len(shown) - height / 2
        parts.append(f'<path d="M{left} 32V{bottom:.1f}H{left + panel}" fill="none" stroke="#bbb"/>')
        for share in (0.0, 0.5, 1.0):
            value = low + share * (high - low)
            anchor = ("start", "middle", "end")[int(2 * share)]
            at = f'x="{left + share * panel:.1f}" y="{bottom + 16:.1f}"'
            parts.append(f'<text {at} text-anchor="{anchor}" fill="#555">{value:.4g}</text>')
        for i, ((value, _), (start, end)) in enumerate(zip(values, spread, strict=True)):
            y = 46 + height * i
            x, a, b = (left + panel * (v - low) / (high - low) for v in (value, start, end))
            parts.append(f'<path d="M{a:.1f} {y}H{b:.1f}" stroke="#0b62a8" stroke-width="2"/>')
            parts.append(f'<circle cx="{x:.1f}" cy="{y}" r="4" fill="#0b62a8"/>')
    return "\n".join([*parts, "</svg>\n"])
