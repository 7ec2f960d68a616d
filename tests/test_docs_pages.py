"""The documentation's code runs as it stands there; its links, commands and tables are true."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import shlex
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
import typer
from nbclient import NotebookClient

import rllib_weighted
from rllib_weighted import WeightedPPOConfig
from rllib_weighted.cli import export_policy, load_file
from rllib_weighted.cli.main import app
from rllib_weighted.merging import merge_weights, unregister_strategy
from rllib_weighted.merging.strategies import BUILT_IN
from rllib_weighted.records.metrics import metrics_table
from rllib_weighted.records.schema import SCHEMA
from tests.checkpoints import write_checkpoint
from tests.report.helpers import write_sweep

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {str(page.relative_to(DOCS)): page.read_text("utf-8") for page in DOCS.rglob("*.md")}
TEXTS = {f"docs/{name}": text for name, text in PAGES.items()}
TEXTS |= {name: (ROOT / name).read_text("utf-8") for name in ("README.md", "CONTRIBUTING.md")}


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGES[page], flags=re.MULTILINE | re.DOTALL)


def run(page: str, *, only: int | None = None, **scope: Any) -> dict[str, Any]:
    """Runs a page's blocks, one after the other in one module, and returns its names."""
    module = types.ModuleType("code_of_the_docs")
    sys.modules[module.__name__] = module  # Dataclasses look their module up.
    vars(module).update(scope)
    for block in blocks(page) if only is None else [blocks(page)[only]]:
        exec(compile(block, page, "exec"), vars(module))
    return vars(module)


# The code, page by page. A page with code that is not here is an error.


def getting_started(tmp_path: Path) -> None:
    assert blocks("getting-started.md")[0] in TEXTS["README.md"]  # Which is run there.


def own_environment(tmp_path: Path) -> None:
    """The training file is one, and the corridor is learned within its rounds."""
    (block,) = blocks("tutorials/own-environment.md")
    file = tmp_path / "corridor.py"
    file.write_text(block)
    loaded = load_file(file)
    algorithm = loaded.config.build_algo()
    returns = [
        algorithm.train()["merge"]["episode_return_mean"]
        for _ in range(int(loaded.stop["training_iteration"]))
    ]
    algorithm.stop()
    assert returns[-1] > 0.9 > returns[0]


def own_strategy(tmp_path: Path) -> None:
    try:
        scope = run("tutorials/own-strategy.md")
        shares = scope["config"].resolve_merge_strategy().shares(torch.tensor([0.0, 1.0, 2.0]))
        assert shares.tolist() == pytest.approx([1 / 4, 1 / 4, 2 / 4])
        assert scope["merged"].shares.tolist() == pytest.approx([1 / 4, 1 / 4, 2 / 4])
    finally:
        unregister_strategy("above_median")


def sweep_and_report(tmp_path: Path) -> None:
    """The report's block; the sweep's has a test of its own, which is slow."""
    write_sweep(tmp_path / "ray_results" / "my_sweep")
    run("tutorials/sweep-and-report.md", only=1)
    assert (tmp_path / "report" / "report.html").is_file()


def contexts(tmp_path: Path) -> None:
    scope = run("tutorials/contexts.md")
    algorithm = scope["config"].build_algo()
    algorithm.train()
    forces = [env.unwrapped.force for env in algorithm.env_runner.env.unwrapped.envs]
    algorithm.stop()
    assert forces == pytest.approx([0.001 * (1 + 2.5 * i / 7) for i in range(8)])


def evaluate(tmp_path: Path) -> None:
    cartpole(tmp_path / "checkpoint")
    scope = run("how-to/evaluate.md", checkpoint=tmp_path / "checkpoint")
    assert 1 <= scope["total"] <= 500
    assert scope["config"].evaluation_interval == 25


def export(tmp_path: Path) -> None:
    cartpole(tmp_path / "checkpoint")
    export_policy(tmp_path / "checkpoint", onnx="policy.onnx", torchscript="policy.pt")
    run("how-to/export.md")


def only_configs(page: str) -> Callable[[Path], None]:
    def check(tmp_path: Path) -> None:
        config = run(page)["config"]
        assert isinstance(config, WeightedPPOConfig)
        config.environment(config.env or "CartPole-v1").validate()

    return check


def history(tmp_path: Path) -> None:
    write_sweep(tmp_path / "ray_results" / "my_sweep")
    assert len(run("reference/history.md")["history"]) > 0


def command(tmp_path: Path) -> None:
    sys.argv = ["cartpole.py", "--help"]
    with pytest.raises(SystemExit) as caught:
        run("reference/commands.md", __name__="__main__", __file__=str(tmp_path / "file.py"))
    assert caught.value.code == 0


def tracking(tmp_path: Path) -> None:
    run("how-to/track.md")


def upgrade(tmp_path: Path) -> None:
    strategy = run("upgrade.md")["AboveMedian"]()
    assert strategy.signals == ("return",)
    assert strategy.shares(torch.tensor([1.0, 2.0, 3.0])).tolist() == [1 / 4, 1 / 4, 2 / 4]


RUNS: dict[str, Callable[[Path], None]] = {
    "getting-started.md": getting_started,
    "tutorials/own-environment.md": own_environment,
    "tutorials/own-strategy.md": own_strategy,
    "tutorials/sweep-and-report.md": sweep_and_report,
    "tutorials/contexts.md": contexts,
    "how-to/evaluate.md": evaluate,
    "how-to/export.md": export,
    "how-to/diagnostics.md": only_configs("how-to/diagnostics.md"),
    "how-to/gpu.md": only_configs("how-to/gpu.md"),
    "how-to/levels.md": only_configs("how-to/levels.md"),
    "how-to/envpool.md": only_configs("how-to/envpool.md"),
    "how-to/environments.md": only_configs("how-to/environments.md"),
    "how-to/migrate.md": only_configs("how-to/migrate.md"),
    "how-to/track.md": tracking,
    "upgrade.md": upgrade,
    "reference/history.md": history,
    "reference/commands.md": command,
}


def cartpole(folder: Path) -> None:
    config = WeightedPPOConfig().environment("CartPole-v1").training(merge_strategy="average")
    write_checkpoint(folder, config.env_runners(num_env_runners=0))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is both the home and the working one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setitem(sys.modules, "code_of_the_docs", types.ModuleType("code_of_the_docs"))
    return tmp_path


# Of torch, where the page on exporting reads TorchScript.
@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated:DeprecationWarning")
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=pytest.mark.slow) if "track" in p else p for p in RUNS]
)
def test_the_code_of_a_page_runs(page: str, elsewhere: Path) -> None:
    RUNS[page](elsewhere)


def test_every_page_with_code_is_run() -> None:
    shown = {page for page in PAGES if blocks(page)} - {"specification.md"}  # See test_docs.py.
    assert shown == set(RUNS)


NOTEBOOKS = sorted(DOCS.rglob("*.ipynb"))


def noise(notebook: Any) -> list[str]:
    """What a reader would see in red: warnings, logs, tracebacks."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    return [str(out) for out in outputs if out.get("name") == "stderr" or "ename" in out]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore:.*Kernel is running over TCP:UserWarning")
def test_a_notebook_runs_and_is_quiet(
    path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own, with a Ray of its own, as a reader's would be."""
    # EnvPool sets it where it is imported, as in other tests; a reader's kernel starts without.
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = nbformat.read(path, as_version=4)
    assert noise(notebook) == []  # As it is shown.
    NotebookClient(notebook, timeout=1800, kernel_name="python3").execute()
    assert noise(notebook) == []
    shown = [
        out["data"] for cell in notebook.cells for out in cell.get("outputs", []) if "data" in out
    ]
    assert sum("<table>" in "".join(data.get("text/html", "")) for data in shown) == 3
    assert sum("image/png" in data for data in shown) == 1


def test_noise_is_noticed() -> None:
    cell = nbformat.v4.new_code_cell("import warnings")
    assert noise(nbformat.v4.new_notebook(cells=[cell])) == []
    cell.outputs = [nbformat.v4.new_output("stream", name="stderr", text="Warning: …")]
    assert len(noise(nbformat.v4.new_notebook(cells=[cell]))) == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_links_to_pages_and_names_no_machine(path: Path) -> None:
    text = path.read_text("utf-8")
    links = re.findall(r"\]\(([^)#\s]+)\)", text)
    assert [at for at in links if "://" not in at and not (path.parent / at).is_file()] == []
    assert re.findall(r"/(?:work|tmp|root|opt)/[^\"\s]*", text) == []


@pytest.mark.usefixtures("ray_session")
@pytest.mark.slow
def test_the_sweep_sweeps(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = "tutorials/sweep-and-report.md"
    monkeypatch.setitem(PAGES, page, PAGES[page].replace("100_000", "1_000"))
    results = list(run(page, only=0)["results"])
    assert not any(result.error for result in results)
    arms = {(r.config["merge_strategy"], r.config["min_weight"], r.config["seed"]) for r in results}
    assert len(arms) == len(results) == 4 * 2
    assert ("average", None, 0) in arms


def test_the_pure_functions_line() -> None:
    assert "`rllib_weighted.merge_weights([1.0, 3.0]) == [0.75, 1.25]`" in PAGES["method.md"]
    assert merge_weights([1.0, 3.0]).tolist() == [0.75, 1.25]


# Links and commands


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_to_files(name: str) -> None:
    folder = (ROOT / name).parent
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", TEXTS[name])
    missing = [at for at in links if "://" not in at and not (folder / at).is_file()]
    assert missing == []


def given_commands() -> list[tuple[str, str]]:
    """Every `rllib …` and `make …` line in a block without a language: (page, line)."""
    found = []
    for name, text in TEXTS.items():
        for block in re.findall(r"^```\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [(name, line) for line in lines if re.match(r"(rllib|make) ", line)]
    return found


@pytest.mark.parametrize(("page", "line"), given_commands())
def test_commands_have_the_options_that_pages_give_them(page: str, line: str) -> None:
    words = shlex.split(re.sub(r"<.*?>", "FOLDER", line), comments=True)
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert [word for word in words[1:] if "=" not in word and word not in targets] == []
        return
    found: Any = typer.main.get_command(app)
    rest = words[1:]
    while hasattr(found, "commands") and rest and rest[0] in found.commands:
        found = found.commands[rest.pop(0)]
    assert not getattr(found, "commands", None) or found.name == "train", line
    known = {option for parameter in found.params for option in parameter.opts}
    unknown = [word for word in rest if word.startswith("-") and word not in known]
    assert unknown == [] or found.context_settings.get("ignore_unknown_options"), line


# What is generated


@pytest.fixture(scope="module")
def hooks() -> Any:
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def first_cells(table: str) -> list[str]:
    return [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()[2:]]


def test_settings_are_those_of_the_config(hooks: Any) -> None:
    table = hooks.settings()
    ours = vars(WeightedPPOConfig()).keys() - vars(rllib_weighted.config.PPOConfig()).keys()
    shown = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(shown) == sorted(name for name in ours if not name.startswith("_"))
    methods = re.findall(r"^## `\.(\w+)\(\)`", table, re.MULTILINE)
    assert methods[:3] == ["training", "env_runners", "learners"]
    assert "build_learner_group" not in methods
    assert "| `advantage_normalization` | `'worker'` | Over what advantages" in table


def test_options_are_those_of_the_strategies(hooks: Any) -> None:
    table = hooks.options()
    fields = {field.name for cls in BUILT_IN.values() for field in dataclasses.fields(cls)}
    assert {cell.strip("`") for cell in first_cells(table)} == fields
    row = "| `normalize` | `reward_weighted`, `loss_weighted` | `False` | divide the weights by"
    assert row in table
    assert "None: they are not. `inverse_variance`: None is N/2. |" in table
    assert "| `smoothing` | `inverse_variance` | `0.95` | b in [0, 1) of a moving" in table


def test_signals_metrics_and_columns(hooks: Any) -> None:
    assert "| `round_value_loss` | loss | once a round | value loss on the" in hooks.signals()
    assert hooks.metrics() == metrics_table().replace(r"\|\|", "‖")
    table = hooks.history()
    assert [cell.strip("`") for cell in first_cells(table)] == SCHEMA.names
    assert "| `drift` | `double` | yes | How far its own parameters are" in table


def test_commands_are_those_of_the_command(hooks: Any) -> None:
    text = hooks.commands()
    for verb in ("train file", "evaluate", "export", "report", "example run", "version"):
        assert f"`rllib {verb}`" in text
    assert "--torchscript FILE" in text


def test_meanings_are_read_from_docstrings(hooks: Any) -> None:
    def documented() -> None:
        """Does something.

        Args:
            first: What it is,
                over two lines.
            second, third: Both.

        Returns:
            nothing: at all.
        """

    meanings = {"first": "What it is, over two lines.", "second": "Both.", "third": "Both."}
    assert hooks.arguments(documented) == meanings


def test_links_out_of_the_docs_go_to_copies(hooks: Any) -> None:
    page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri="tutorials/own-strategy.md"))
    markdown = "[a](../../CONTRIBUTING.md) [b](../method.md) [c](../../not_there.md)"
    turned = "[a](../source/CONTRIBUTING.md.txt) [b](../method.md) [c](../../not_there.md)"
    assert hooks.on_page_markdown(markdown, page, None, None) == turned


def test_links_to_notebooks_lead_to_their_pages(hooks: Any) -> None:
    page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri="index.md"))
    turned = hooks.on_page_markdown("[a](tutorials/two-merges.ipynb) `x.ipynb`", page, None, None)
    assert turned == "[a](tutorials/two-merges.md) `x.ipynb`"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_a_page_with_its_pictures(hooks: Any, path: Path) -> None:
    page = hooks.notebook(path)
    text = page.pop(".md")
    assert text.startswith("# ")
    assert "```python" in text
    assert f'<a href="{path.name}" download>' in text
    assert page
    for name, content in page.items():
        assert f"]({path.stem}{name})" in text.replace("(./", "(")
        assert content.startswith(b"\x89PNG")


def test_the_figure_shows_the_numbers_of_the_table() -> None:
    drawn = (DOCS / "figures" / "throughput.svg").read_text("utf-8")
    rows = [line for line in PAGES["speed.md"].splitlines() if line.startswith("| `average` | ")]
    medians = re.findall(r"([\d,]+) \(", rows[0])
    assert len(medians) == 3
    assert [median for median in medians if median not in drawn] == []
