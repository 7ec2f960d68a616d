"""The verb `report`: a report on results, and its headline on the terminal."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rllib_weighted.cli import InputError
from rllib_weighted.report import Report, ReportError, load_results, write_report
from rllib_weighted.report.page import check_folder
from rllib_weighted.report.tables import headline
from rllib_weighted.text import printable

DEFAULT_OUT = "report"
_COLUMNS = ("arm", "faster [95 %]", "mean steps to it", "final return", "reached", "seeds")
_SHOWN = ("env steps to threshold", "final return")
_MOST_PROBLEMS = 5
_MOST_ARMS = 20
_WIDEST_WORD = 20
_PIPE_WIDTH = 1000


def report_results(
    results: Sequence[str],
    *,
    baseline: str | None = None,
    thresholds: Sequence[str] = (),
    metric: str | None = None,
    hold: int | None = None,
    names: Sequence[str] = (),
    out: str | None = None,
    console: Console | None = None,
) -> Report:
    """Writes a report on results, and prints its headline.

    Args:
        results: Folders or URIs of trials or experiments.
        baseline: A strategy or arm; None takes "average", if it is there.
        thresholds: Texts `X`, or `ENV=X` for a single environment.
        metric: The metric to compare; None takes the mean return.
        hold: Rounds that the threshold has to be held; None takes the default.
        names: Texts `NAME=ARM`; see `results.name_arms`.
        out: The folder to write to; None takes `DEFAULT_OUT` in the current one.
        console: Where to print; None takes the standard output.

    Raises:
        InputError: There are no results, a name is unknown, or `out` holds something else.
    """
    folder = Path(out or DEFAULT_OUT)
    limits = parse_thresholds(thresholds)
    given = {} if hold is None else {"hold": hold}
    try:
        check_folder(folder)
        loaded = load_results(list(results), metric=metric, names=parse_names(names))
    except ReportError as error:
        raise InputError(str(error)) from None
    except OSError as error:
        raise InputError(printable(str(error))) from None
    try:
        report = write_report(loaded, folder, baseline=baseline, threshold=limits, **given)
    except ReportError as error:
        raise InputError(str(error)) from None
    except OSError as error:
        raise InputError(printable(f"cannot write the report to {folder}: {error}")) from None
    _print(report, console or _console())
    return report


def _console() -> Console:
    """Returns the standard output; where it is no terminal, and nobody says, no line is folded."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPE_WIDTH
    return console


def parse_names(texts: Sequence[str]) -> dict[str, str]:
    """Returns the arms in texts `NAME=ARM`, by name.

    Raises:
        InputError: A text is not of this form, or a name is there twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, _, which = map(str.strip, text.partition("="))
        if not name or not which:
            raise InputError(f"--name should be NAME=ARM or NAME=SETTING=VALUE, found {text!r}")
        if name in found:
            raise InputError(f"--name gives {name!r} twice: give several arms names of their own")
        found[name] = which
    return found


def parse_thresholds(texts: Sequence[str]) -> float | dict[str, float] | None:
    """Returns the thresholds in texts: one for all, or one by environment's name.

    Raises:
        InputError: A text is neither `X` nor `ENV=X`, or one for all comes with others.
    """
    limits: dict[str, float] = {}
    for text in texts:
        env, _, number = text.rpartition("=")
        try:
            limits[env] = float(number)
        except ValueError:
            raise InputError(
                f"--threshold should be a number, or ENVIRONMENT=NUMBER, found {text!r}"
            ) from None
        if not env and len(texts) > 1:
            raise InputError(
                f"--threshold {text} is for all environments: give it alone, or write "
                "ENVIRONMENT=NUMBER for each"
            )
    return limits.get("", limits or None)


def _text(text: str, style: str = "") -> Text:
    """Returns text for the terminal; environments and folders may be called anything."""
    return Text(printable(text), style=style)


def _table(title: str, rows: Sequence[Sequence[str]], marked: Collection[int]) -> Table:
    """Returns the arms as a table; long cells are folded between words, none is cut off."""
    table = Table(
        title=_text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    longest = max((len(word) for row in rows for word in row[0].split()), default=1)
    table.add_column(_COLUMNS[0], overflow="fold", min_width=min(longest, _WIDEST_WORD))
    for name in _COLUMNS[1:]:
        table.add_column(name, justify="right", overflow="fold")
    for number, row in enumerate(rows[:_MOST_ARMS]):
        style = "bold" if number in marked else ""
        table.add_row(*map(_text, row), style=style)
    return table


def _print(report: Report, console: Console) -> None:
    tables = report.tables
    for problem in tables.problems[:_MOST_PROBLEMS]:
        console.print(_text(problem, style="yellow"))
    if (more := len(tables.problems) - _MOST_PROBLEMS) > 0:
        console.print(Text(f"and {more} more; see the report", style="yellow"))
    for env, limit in tables.thresholds.items():
        view = headline(tables, env)
        title = f"{env}, threshold {limit.value:g}" if limit.exists else f"{env}, no threshold"
        console.print(_table(title, [row[: len(_COLUMNS)] for row in view.rows], view.marked))
        for verdict in tables.verdicts[env]:
            console.print(_text(verdict))
        if limit.origin != "given":
            console.print(_text(f"Threshold {limit.origin}.", style="dim"))
        if len(view.rows) > _MOST_ARMS:
            console.print(f"and {len(view.rows) - _MOST_ARMS} arms more; see the report")
    claims = [sentence for sentence in tables.sentences if sentence.claim]
    for sentence in claims[:_MOST_ARMS]:
        if sentence.measure in _SHOWN:
            console.print(_text(sentence.text))
    if tables.sentences and not claims:
        console.print("No difference to the baseline can be claimed; the report says why.")
    console.print(_text(f"Report: {report.page}"), soft_wrap=True)
