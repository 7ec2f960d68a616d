"""What is quoted of the errors of others."""

from __future__ import annotations

from rllib_weighted.cli.train import root_cause


def test_root_cause_is_the_first_of_a_chain() -> None:
    chain = (
        "Traceback (most recent call last):\n  \x1b[36mFile\x1b[39m 'a'\nValueError: the cause\n\n"
        "The above exception was the direct cause of the following exception:\n\n"
        "RuntimeError\n\nDuring handling of the above exception, another exception occurred:\n\n"
        "AttributeError: a consequence\n"
    )
    assert root_cause(chain, 2) == "  File 'a'\nValueError: the cause"
