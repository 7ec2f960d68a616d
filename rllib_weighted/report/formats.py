"""How numbers and long texts are written in the report and in the labels of arms."""

from __future__ import annotations

import math

ABSENT = "–"


def format_number(value: float, digits: int = 3) -> str:
    """Returns a number with that many significant digits and separated thousands."""
    if not math.isfinite(value):
        return ABSENT
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def shorten(text: str, longest: int) -> str:
    """Returns text that is cut with an ellipsis where it is too long."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
