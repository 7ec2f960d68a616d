"""Whatever is typed, or lies in a file: the command refuses it with a message, or takes it.

Inputs are drawn by hypothesis, the same ones in every run (`derandomize`); FUZZ_EXAMPLES=2000 in
the environment draws more for each test, FUZZ_SEED=1 others.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from hypothesis import HealthCheck, example, given, seed, settings
from hypothesis import strategies as st

from rllib_weighted import WeightedPPOConfig
from rllib_weighted.cli import train
from rllib_weighted.cli.storage import RECORD_FILE
from tests.cli.test_main import rllib

SEED = os.environ.get("FUZZ_SEED")
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 100))


def fuzzed(test: Any) -> Any:
    """Draws the same inputs in every run, or those of a seed."""
    limits = settings(
        derandomize=SEED is None,
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    return limits(test if SEED is None else seed(int(SEED))(test))


@pytest.fixture(scope="module", autouse=True)
def _nothing_starts() -> Iterator[None]:
    """Ends the command with 0 where it would start Ray: its input has been taken."""

    def started(*args: object) -> None:
        raise typer.Exit(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "start_ray", started)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def run(*args: str | Path) -> int:
    """Runs the command; a traceback fails the test."""
    result = rllib(*args)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in (0, 2), result.output
    assert "Traceback" not in result.output
    assert len(result.stderr) < 25_000
    if result.exit_code:
        assert result.output.strip()
        assert not {"\x1b", "\x9b", "\u202e"} & set(result.stderr)
    return result.exit_code


# What an argument of a process may hold: no NUL.
TEXT = st.text(st.characters(exclude_characters="\0"), max_size=300)
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, 2**63, -1, 0])
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
KNOWN = sorted(name for name in WeightedPPOConfig().to_dict() if not name.startswith("_"))
KEYS = st.sampled_from([*KNOWN, "env_config.a", "model_config.fcnet_hiddens", "lambda"]) | TEXT
SETTINGS = st.dictionaries(KEYS, JSON, max_size=3)
STOP = st.dictionaries(st.sampled_from(["training_iteration", "a/b"]) | TEXT, JSON, max_size=3)
ALGORITHM = ["train", "--algo", "WeightedPPO", "--env", "CartPole-v1"]


@fuzzed
@given(text=TEXT | JSON.map(json.dumps) | SETTINGS.map(json.dumps))
@example(text="{\n")
@example(text="[" * 600 + "]" * 600)
@example(text='{"gamma": ' + "1" * 5000 + "}")
def test_config(text: str) -> None:
    run(*ALGORITHM, "--config", text)


@fuzzed
@given(text=TEXT | JSON.map(json.dumps) | STOP.map(json.dumps))
@example(text='{"a":' * 500 + "1" + "}" * 500)
@example(text='{"a": ' + "1" * 4000 + "}")
def test_stop(text: str) -> None:
    run(*ALGORITHM, "--stop", text)


@fuzzed
@given(key=KEYS, value=TEXT | JSON.map(json.dumps))
def test_set(key: str, value: str) -> None:
    run(*ALGORITHM, "--set", f"{key}={value}")


EXPERIMENT = st.fixed_dictionaries(
    {"run": st.sampled_from(["PPO", "WeightedPPO"]) | JSON},
    optional={
        "env": st.just("CartPole-v1") | JSON,
        "stop": STOP | JSON,
        "config": SETTINGS | JSON,
        "num_samples": JSON,
        "checkpoint_freq": JSON,
        "checkpoint_at_end": JSON,
        "storage_path": st.just("results") | JSON,
    },
)
EXPERIMENTS = st.dictionaries(TEXT, EXPERIMENT | JSON, max_size=3)


@fuzzed
@given(experiments=EXPERIMENTS, form=st.sampled_from(["json", "yaml"]))
def test_experiments(
    folder: Path, experiments: dict[str, Any], form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    path = folder / f"experiments.{form}"
    write = json.dumps if form == "json" else yaml.safe_dump
    path.write_text(write(experiments), encoding="utf-8", errors="surrogatepass")
    run("train", "file", path)


@fuzzed
@given(content=st.binary(max_size=200) | TEXT.map(str.encode), form=st.sampled_from("jyp"))
@example(content=b"a: &a {<<: *a}", form="y")
@example(content=b"a: !!timestamp x", form="y")
@example(content=b"? [a]\n: b", form="y")
def test_files(folder: Path, content: bytes, form: str) -> None:
    path = folder / {"j": "any.json", "y": "any.yaml", "p": "any.py"}[form]
    path.write_bytes(content)
    result = rllib("train", "file", path)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ")


@fuzzed
@given(name=TEXT | st.text("./ab", max_size=8))
@example(name="../escaped")
@example(name="x" * 300)
def test_names(folder: Path, name: str) -> None:
    before = sorted(folder.parent.iterdir())
    run(*ALGORITHM, f"--name={name}", "--storage-path", folder / "results")
    assert sorted(folder.parent.iterdir()) == before


ARGUMENTS = st.fixed_dictionaries(
    {"algo": st.just("PPO") | JSON, "env": st.just("CartPole-v1") | JSON, "config": SETTINGS | JSON}
)
RECORD = st.fixed_dictionaries(
    {},
    optional={
        "file": TEXT | JSON,
        "experiment": JSON,
        "arguments": ARGUMENTS | JSON,
        "settings": st.lists(st.just("lr=1") | TEXT) | JSON,
        "local_mode": st.booleans() | JSON,
    },
)


@fuzzed
@given(content=(RECORD | JSON).map(json.dumps).map(str.encode) | st.binary(max_size=50))
@example(content=b"[" * 100_000)
def test_records_of_experiments(folder: Path, content: bytes) -> None:
    """How an experiment was started is read from its folder when it is resumed."""
    experiment = folder / "storage" / "recorded"
    experiment.mkdir(parents=True, exist_ok=True)
    (experiment / "tuner.pkl").touch()
    (experiment / RECORD_FILE).write_bytes(content)
    run("train", "--resume", "--name", "recorded", "--storage-path", folder / "storage")


# No host that could be asked.
URIS = st.builds(
    "{}{}".format,
    st.sampled_from(["file://", "mock://", "nothing://", "s3:/", "s3://[", "~", "./", "://"]),
    st.text(st.characters(exclude_characters="\0@"), max_size=30),
)


@fuzzed
@given(location=URIS | TEXT)
@example(location="s3://")
@example(location="~nobody-of-that-name")
@example(location="x" * 300)
def test_storages(folder: Path, location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    run(*ALGORITHM, "--name", "run", f"--storage-path={location}")
    run(*ALGORITHM, "--name", "run", "--resume", f"--storage-path={location}")


@fuzzed
@given(location=URIS | TEXT, episodes=st.integers(), number=st.integers())
@example(location=".", episodes=1, number=2**70)
def test_evaluate(
    folder: Path, location: str, episodes: int, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert run("evaluate", f"--episodes={episodes}", f"--seed={number}", "--", location) == 2


@fuzzed
@given(location=URIS | TEXT, threshold=TEXT | NUMBERS.map(str))
def test_report(
    folder: Path, location: str, threshold: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    run("report", f"--threshold={threshold}", "--", location)


WORDS = ["train", "file", "evaluate", "report", "example", "list", "get", "run", "version", "-h"]
WORDS += ["cartpole", "--stop", "{}", "--set", "lr=1", "--resume", "--name", "x", "-v", "--", "PPO"]


@fuzzed
@given(words=st.lists(st.sampled_from(WORDS) | TEXT, max_size=5))
def test_command_lines(folder: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    run(*words)
