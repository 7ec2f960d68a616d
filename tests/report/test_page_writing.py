"""Whole reports: what is in them, what they escape, what they refuse to overwrite."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rllib_weighted.records import HISTORY_DIR
from rllib_weighted.report import ReportError, load_results, write_report
from rllib_weighted.report import figures as figures_module
from tests.report.helpers import curve, write_sweep, write_trial

PNG = b"\x89PNG\r\n"


class Page(HTMLParser):
    """Collects tags, attributes and visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    @property
    def images(self) -> list[str]:
        return [value or "" for name, value in self.attributes if name == "src"]


def report(results: Path, out: Path, **kwargs: Any) -> Page:
    return Page(write_report(load_results(results), out, **kwargs).page)


@pytest.fixture(scope="module")
def standard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report on three arms of three seeds."""
    folder = tmp_path_factory.mktemp("standard")
    write_sweep(folder / "results")
    report(folder / "results", folder / "out", threshold=80.0)
    return folder / "out"


def test_a_report(standard: Path) -> None:
    page = Page(standard / "report.html")
    for text in (
        "Report on CartPole-v1",
        "9 runs in 3 arms",
        "can be claimed from 3 paired seeds",
        "Kaplan-Meier",
        "reward_weighted, m=0.5",
        "num_envs_per_env_runner",
        "Dropped workers",
    ):
        assert text in page.text
    stems = {path.stem for path in (standard / "figures").iterdir()}
    assert {stem.split("_")[0] for stem in stems} == {
        *("curves", "reached", "faster", "finals", "profile"),
        *("sensitivity", "effective", "shares"),
    }
    for stem in stems:
        assert (standard / "figures" / f"{stem}.png").read_bytes().startswith(PNG)
        ET.parse(standard / "figures" / f"{stem}.svg")
    assert len(page.images) == len(stems)


def test_it_opens_with_the_verdict(standard: Path) -> None:
    text = Page(standard / "report.html").text
    verdict = text.index("No arm is shown to be better than average. The best, ")
    assert text.index("Report on CartPole-v1") < verdict < text.index("At a glance")
    assert "a difference of 20 %" in text[verdict : text.index("Threshold:")]


def test_figures_lead_to_the_large_ones(standard: Path) -> None:
    page = Page(standard / "report.html")
    links = {value for name, value in page.attributes if name == "href"}
    assert links == {f"figures/{path.name}" for path in (standard / "figures").glob("*.svg")}
    assert all((standard / str(link)).is_file() for link in links)


def test_tables_are_the_same_in_both_forms(standard: Path) -> None:
    folder = standard / "tables"
    names = {path.stem for path in folder.iterdir()}
    assert names >= {"runs", "arms", "learning_curves", "convergence", "comparisons", "drops"}
    for name in names:
        table = pd.read_parquet(folder / f"{name}.parquet")
        text = pd.read_csv(folder / f"{name}.csv")
        assert list(table.columns) == list(text.columns)
        assert len(table) == len(text)
        assert (len(table) > 0) == (name != "pooled_scores")  # Of a single environment.


def test_nothing_is_loaded_from_anywhere(standard: Path) -> None:
    page = Page(standard / "report.html")
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert all(image.startswith("data:image/svg+xml;base64,") for image in page.images)
    assert ("content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in (
        page.attributes
    )
    style = (standard / "report.html").read_text().split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


NASTY = '<script>alert("1")</script>&$x_{2}$_\x07é漢'


def test_names_are_shown_and_never_run(tmp_path: Path) -> None:
    for seed in (1, 2):
        for number, strategy in enumerate(("average", f"_{NASTY}", "$\\frac{")):
            write_trial(
                tmp_path / "results" / f"WeightedPPO_{seed}_{number}",
                curve(50.0 + seed),
                env=NASTY,
                merge_strategy=strategy,
                seed=seed,
                env_config={NASTY: NASTY},
            )
    page = report(tmp_path / "results", tmp_path / "out")
    assert "script" not in page.tags
    assert '<script>alert("1")</script>&$x_{2}$_' in page.text
    assert "<script" not in (tmp_path / "out" / "report.html").read_text().split("</style>")[1]
    for image in page.images:
        picture = base64.b64decode(image.split(",")[1])
        assert b"<script" not in picture
        ET.fromstring(picture)


UNITLESS = {"environment steps", "round", "effective workers", "worker", "minimum weight m"}


def test_every_axis_has_a_label_with_its_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels: list[tuple[str, str]] = []
    original = figures_module.pictures

    def spy(figure: Any) -> Any:
        axes = figure.axes[0]
        labels.append((axes.get_xlabel(), axes.get_ylabel()))
        return original(figure)

    monkeypatch.setattr(figures_module, "pictures", spy)
    write_sweep(tmp_path / "results")
    report(tmp_path / "results", tmp_path / "out", threshold=80.0)
    assert len(labels) == 11
    for across, up in labels:
        for label in filter(None, (across, up)):  # Rows of arms are named, not measured.
            has_unit = re.fullmatch(r".+ \(.+\)", label)
            assert bool(has_unit) != (
                label in UNITLESS or label.startswith("mean environment steps")
            )


def test_the_same_results_make_the_same_report(standard: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    report(standard.parent / "results", again, threshold=80.0)
    files = [path.relative_to(standard) for path in standard.rglob("*.*")]
    assert len(files) > 30
    for file in files:
        if file.name != "report.html":  # It has the time.
            assert (standard / file).read_bytes() == (again / file).read_bytes(), file


def test_an_earlier_report_is_replaced(tmp_path: Path) -> None:
    write_sweep(tmp_path / "results")
    report(tmp_path / "results", tmp_path / "out")
    (tmp_path / "out" / "figures" / "old.png").touch()
    (tmp_path / "out" / "figures" / "notes.txt").touch()
    report(tmp_path / "results", tmp_path / "out")
    assert not (tmp_path / "out" / "figures" / "old.png").exists()
    assert (tmp_path / "out" / "figures" / "notes.txt").exists()


def test_other_folders_are_not_touched(tmp_path: Path) -> None:
    results = load_results(write_sweep(tmp_path / "results"))
    with pytest.raises(ReportError, match="holds something else than a report"):
        write_report(results, tmp_path / "results")
    (tmp_path / "html").mkdir()
    (tmp_path / "html" / "report.html").write_text("<html>mine</html>")
    with pytest.raises(ReportError, match="choose another folder with --out"):
        write_report(results, tmp_path / "html")
    with pytest.raises(ReportError, match="is a file"):
        write_report(results, tmp_path / "html" / "report.html")
    assert (tmp_path / "html" / "report.html").read_text() == "<html>mine</html>"


def test_nobody_reached_the_threshold(tmp_path: Path) -> None:
    write_sweep(tmp_path / "results")
    page = report(tmp_path / "results", tmp_path / "out", threshold=1e6)
    assert "No run ever held it (the best arm's final return is" in page.text
    assert "cannot be compared: no run of either held 1,000,000" in page.text
    assert "Learning curves" in page.text


def test_runs_without_merge_history(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_trial(tmp_path / "results" / f"PPO_{seed}", curve(50.0), stock=True, seed=seed)
    page = report(tmp_path / "results", tmp_path / "out")
    assert "nothing is known of weights" in page.text
    assert "there is no baseline among PPO: choose one with --baseline" in page.text
    assert "Baseline: none" in page.text


def test_one_run_that_has_just_begun(tmp_path: Path) -> None:
    write_trial(tmp_path / "results" / "t1", [20.0], finished=False)
    page = report(tmp_path / "results", tmp_path / "out")
    assert "did not improve" in page.text
    assert "1 run in 1 arm" in page.text


def test_a_run_that_never_finished_an_episode(tmp_path: Path) -> None:
    write_trial(tmp_path / "results" / "t1", [float("nan")] * 3)
    assert "never finished an episode" in report(tmp_path / "results", tmp_path / "out").text


@pytest.mark.slow
def test_many_arms_are_spread_over_figures(tmp_path: Path) -> None:
    arms = [("average", None), *((name, m / 8) for name in ("sum_x", "sum_y") for m in range(9))]
    write_sweep(tmp_path / "results", arms, seeds=(1, 2))
    page = report(tmp_path / "results", tmp_path / "out")
    names = {path.stem for path in (tmp_path / "out" / "figures").iterdir()}
    curves = {name for name in names if name.startswith("curves")}
    assert len(curves) == 4  # two for each strategy, average in all of them
    assert "Heat maps of the first 6 of 19 arms" in page.text


def test_several_environments(tmp_path: Path) -> None:
    for env in ("A", "B"):
        write_sweep(tmp_path / "results" / env, env=env)
    folder = tmp_path / "results" / "B"
    for file in folder.rglob("*"):
        if file.name in ("progress.csv", "result.json"):
            file.write_text(file.read_text().replace("WeightedPPO_CartPole-v1", "B"))
        if file.parent.name == HISTORY_DIR:
            file.unlink()
    page = report(tmp_path / "results", tmp_path / "out", threshold={"A": 80.0})
    assert page.text.index("B : ") < page.text.index("Over all environments")  # Its verdict.
    assert "Over all environments" in page.text
    assert (tmp_path / "out" / "figures" / "pooled_0.svg").is_file()
    assert "80, given" in page.text
    assert "derived from these results" in page.text


def test_other_hardware_is_another_arm(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        for learners in (0, 2):
            for strategy in ("average", "sum"):
                name = f"W_{seed}_{learners}_{strategy}"
                write_trial(
                    tmp_path / "results" / name,
                    curve(40.0 + seed + learners),
                    merge_strategy=strategy,
                    num_learners=learners,
                    seed=seed,
                )
    written = write_report(load_results(tmp_path / "results"), tmp_path / "out")
    pairs = written.tables.comparisons[["arm", "baseline"]].drop_duplicates()
    assert pairs.to_numpy().tolist() == [
        ["sum, num_learners=0", "average, num_learners=0"],
        ["sum, num_learners=2", "average, num_learners=2"],
    ]


@pytest.mark.slow
def test_a_random_search_is_cut_to_what_can_be_read(tmp_path: Path) -> None:
    arms = [("zero", 1.0), *(("reward_weighted", m / 100) for m in range(50))]
    write_sweep(tmp_path / "results", arms, seeds=(1,))
    page = report(tmp_path / "results", tmp_path / "out", threshold=80.0, baseline="zero")
    assert "The first 24 of" in page.text
    assert "15 arms more are not drawn; they are in the tables." in page.text
    assert len(pd.read_csv(tmp_path / "out" / "tables" / "final_returns.csv")) == 51


def test_labels_that_are_cut_alike_have_files_of_their_own(tmp_path: Path) -> None:
    for seed in (1, 2):
        for end in "ab":
            write_trial(
                tmp_path / "results" / f"W_{seed}_{end}",
                curve(50.0 + seed),
                seed=seed,
                env_config={"x" * 60: end},
            )
    page = report(tmp_path / "results", tmp_path / "out")
    shares = list((tmp_path / "out" / "figures").glob("shares*.svg"))
    assert len(shares) == 2
    assert len(page.images) == len(list((tmp_path / "out" / "figures").glob("*.svg")))


def test_runs_that_go_on_are_named(tmp_path: Path) -> None:
    write_sweep(tmp_path / "results", finished=False)
    page = report(tmp_path / "results", tmp_path / "out")
    assert "CartPole-v1: 9 runs still going or cut off" in page.text
