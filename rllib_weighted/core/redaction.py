"""Texts without credentials: what is shown, logged or written of a storage's URI."""

from __future__ import annotations

import re

_USER_INFO = re.compile(r"(?<=://)[^\s'\"@/]*:(?:[^\s'\"/]*|[^\s'\"@]*)@")
_SECRET_OPTION = re.compile(
    r"(?i)([?&][^=&\s]*(?:secret|token|password|key|sig)[^=&\s]*=)[^&\s'\"]*"
)


def redact(text: str) -> str:
    """Returns a text without the credentials of the URIs in it."""
    return _SECRET_OPTION.sub(r"\1…", _USER_INFO.sub("", text))
