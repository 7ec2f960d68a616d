"""What MkDocs cannot do alone: pages from code and notebooks, MathML, links out of docs/.

The reference pages are written here from the package at build time, so that they cannot be out of
date. `reference/*.md` in docs/ hold the prose around them; `<!-- generated: NAME -->` is replaced
by what `GENERATED[NAME]` returns.
"""

from __future__ import annotations

import dataclasses
import inspect
import posixpath
import re
from collections.abc import Callable, Mapping
from html import unescape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_MARK = re.compile(r"<!-- generated: (\w+) -->")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
_LINK = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)\)")
_SOURCE = "source"  # Where the site keeps the files outside of docs/ that its pages link to.


# What MkDocs calls


def on_files(files: Any, config: Any) -> Any:
    """Adds notebooks as pages, and the files outside of docs/ that pages link to.

    The files are added as text, so that a browser shows them.
    """
    from mkdocs.structure.files import File

    for path in sorted((ROOT / "docs").rglob("*.ipynb")):
        uri = path.relative_to(ROOT / "docs").with_suffix("")
        for name, content in notebook(path).items():
            files.append(File.generated(config, f"{uri}{name}", content=content))
    found = {path for page in files.documentation_pages() for path in _outside(page)}
    for path in sorted(found):
        text = (ROOT / path).read_text(encoding="utf-8")
        files.append(File.generated(config, f"{_SOURCE}/{path}.txt", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Fills in what is made from the code; turns links to files into those to the site's pages.

    Those are notebooks, and the site's own copies of what lies outside of docs/.
    """
    markdown = _MARK.sub(lambda match: GENERATED[match[1]](), markdown)
    markdown = re.sub(r"(\]\([^)\s]+)\.ipynb\)", r"\1.md)", markdown)
    up = "../" * page.file.src_uri.count("/")

    def turned(match: re.Match[str]) -> str:
        path = _target(page.file.src_uri, match[1])
        return f"]({up}{_SOURCE}/{path}.txt)" if path else match[0]

    return _LINK.sub(turned, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Writes formulas as MathML, which browsers draw by themselves."""
    from latex2mathml.converter import convert

    def drawn(match: re.Match[str]) -> str:
        display = "block" if match[1] == "div" else "inline"
        return str(convert(unescape(match[2]), display=display))

    return _FORMULA.sub(drawn, html)


def notebook(path: Path) -> dict[str, str | bytes]:
    """Returns a notebook with its outputs as a page, and the pictures that the page shows.

    Returns:
        What follows the notebook's stem -> content: `".md"`, and `"_0_1.png"` and so on.
    """
    from nbconvert import MarkdownExporter

    text, resources = MarkdownExporter().from_filename(
        str(path), resources={"unique_key": path.stem, "output_files_dir": "."}
    )
    download = f'<a href="{path.name}" download>Download this notebook</a>\n'
    pictures = {
        posixpath.basename(name).removeprefix(path.stem): content
        for name, content in resources["outputs"].items()
    }
    return {".md": f"{text}\n{download}", **pictures}


def _outside(page: Any) -> set[str]:
    text = page.content_string
    return {path for link in _LINK.findall(text) if (path := _target(page.src_uri, link))}


def _target(page: str, link: str) -> str | None:
    """Returns the file of the repository that a link leads to; None if it lies inside docs/."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    inside = path.startswith(("docs/", ".."))
    return None if inside or not (ROOT / path).is_file() else path


# What is made from the code


def settings() -> str:
    """The settings that `WeightedPPOConfig` adds to RLlib's, by the method that takes them."""
    from ray.rllib.algorithms.ppo import PPOConfig

    from rllib_weighted import WeightedPPOConfig

    config = WeightedPPOConfig()
    text = ""
    for method, function in vars(WeightedPPOConfig).items():
        rows = [("Setting", "Default", "Meaning")]
        meanings = arguments(function)
        for name, parameter in inspect.signature(function).parameters.items() if meanings else ():
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY and hasattr(config, name):
                default = _code(repr(getattr(config, name)))
                rows.append((f"`{name}`", default, meanings[name]))
        if hasattr(PPOConfig, method) and len(rows) > 1:
            text += f"## `.{method}()`\n\n{table(rows)}\n"
    return text


def options() -> str:
    """The `merge_options` of the strategies that are built in."""
    from rllib_weighted.merging.strategies import BUILT_IN

    meanings: dict[str, str] = {}
    strategies: dict[tuple[str, str], list[str]] = {}  # Of an option and its default.
    for name, cls in BUILT_IN.items():
        own = arguments(cls, "Attributes")
        for option in dataclasses.fields(cls):  # type: ignore[arg-type]
            strategies.setdefault((option.name, repr(option.default)), []).append(f"`{name}`")
            if option.name in own:
                meaning = meanings.setdefault(option.name, own[option.name])
                _, also, difference = own[option.name].partition("as in `RewardWeighted`; ")
                if also:
                    meanings[option.name] = f"{meaning} `{name}`: {difference}"
    rows = [("Option", "Strategies", "Default", "Meaning")]
    for (name, default), names in strategies.items():
        rows.append((f"`{name}`", ", ".join(names), _code(default), meanings[name]))
    return table(rows)


def signals() -> str:
    """The table of signals that a strategy can read."""
    from rllib_weighted.merging import SIGNALS

    rows = [("Signal", "Unit", "Measured", "What it is")]
    when = {"round": "once a round", "minibatch": "at every step"}
    rows += [(f"`{s.name}`", s.unit, when[s.when], s.meaning) for s in SIGNALS.values()]
    return table(rows)


def metrics() -> str:
    """The metrics of a merge."""
    from rllib_weighted.records.metrics import metrics_table

    return metrics_table().replace(r"\|\|", "‖")  # Markdown shows the backslash inside of code.


def history() -> str:
    """The columns of the merge history."""
    from rllib_weighted.records.metrics import WorkerRecord
    from rllib_weighted.records.schema import SCHEMA

    meanings = {
        "trial_id": "Identity of the trial.",
        "round": "Number of the round, from 1.",
        "env_steps": "Environment steps of the whole trial up to the end of the round.",
        **arguments(WorkerRecord, "Attributes"),
    }
    rows = [("Column", "Type", "May be null", "Meaning")]
    for field in SCHEMA:
        null = "yes" if field.nullable else "no"
        rows.append((f"`{field.name}`", f"`{field.type}`", null, meanings[field.name]))
    return table(rows)


def commands() -> str:
    """The `rllib` command, verb by verb, as `--help` describes it."""
    import typer
    from typer.cli import get_docs_for_click

    from rllib_weighted.cli.main import app

    command: Any = typer.main.get_command(app)
    context = typer.Context(command, info_name="rllib")
    text = get_docs_for_click(obj=command, ctx=context, name="rllib", title="`rllib`", indent=1)
    return re.sub(r"<([A-Z_]+)>", r"\\<\1>", text)  # No HTML.


GENERATED: Mapping[str, Callable[[], str]] = {
    function.__name__: function
    for function in (settings, options, signals, metrics, history, commands)
}


def arguments(documented: Any, section: str = "Args") -> dict[str, str]:
    """Returns name -> meaning, as a section of a docstring in Google's style says it.

    Several names before one colon share their meaning.
    """
    text = inspect.cleandoc(documented.__doc__ or "")  # Its own: `getdoc` inherits.
    match = re.search(rf"^{section}:\n((?:    .*\n|\n)*)", text + "\n", re.MULTILINE)
    entries = re.findall(
        r"^    (\w[\w, ]*): (.*(?:\n(?:     +.*|\s*$))*)", match[1] if match else "", re.MULTILINE
    )
    return {
        name.strip(): " ".join(meaning.split())
        for names, meaning in entries
        for name in names.split(",")
    }


def table(rows: list[tuple[str, ...]]) -> str:
    """Returns a Markdown table; the first row is its head."""
    cells = [
        [_escaped(cell) for cell in row] for row in [rows[0], ("---",) * len(rows[0]), *rows[1:]]
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{text}`"
