from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.learning.helpers import put_groups_back


@pytest.fixture(autouse=True)
def _pooled_groups() -> Iterator[None]:
    yield
    put_groups_back()
