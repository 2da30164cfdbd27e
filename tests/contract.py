"""How a test says which rows of the S2I contract it shows, and how ocis2i does on them.

    @same("--env")
    @better("--exclude", "matches paths of the source")
    @refused("--network container:", "there is no daemon that knows containers", section="1.3")
    @ignored("--url", "there is no daemon")
    def test_...

Several of them may stand on one test, on a class of tests, or as `marks=` of one `pytest.param` in
a `parametrize`. Rows have their ids in `tests/contract_rows.py`; words after a flag narrow it down.
`tests/contract_table.py` reads all this without importing the tests: so the arguments are literals.
"""

from __future__ import annotations

import pytest


def same(row: str, *, section: str = "") -> pytest.MarkDecorator:
    """ocis2i does what source-to-image does."""
    return pytest.mark.contract("same", row, "", section)


def better(row: str, how: str, *, section: str = "") -> pytest.MarkDecorator:
    """ocis2i does it otherwise; `how` says what a user gets."""
    return pytest.mark.contract("better", row, how, section)


def refused(row: str, why: str, *, section: str = "") -> pytest.MarkDecorator:
    """ocis2i ends with an error that names it."""
    return pytest.mark.contract("refused", row, why, section)


def ignored(row: str, why: str, *, section: str = "") -> pytest.MarkDecorator:
    """ocis2i accepts it with a warning, and it has no effect."""
    return pytest.mark.contract("ignored", row, why, section)
