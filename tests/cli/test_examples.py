"""The tuned examples as the command sees them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rllib_weighted.cli import InputError, examples


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    beside = tmp_path / "tuned_examples"
    beside.mkdir()
    (beside / "walker.py").write_text('"""A walker.\n\nLong story."""\nconfig = 1\n')
    (beside / "cart.py").write_text("config = 2\n")
    (beside / "_shared.py").write_text("")
    monkeypatch.setattr(examples, "_FOLDERS", (tmp_path / "absent", beside))
    return beside


def test_list_is_sorted_and_has_summaries(folder: Path) -> None:
    found = [(example.name, example.summary) for example in examples.list_examples()]
    assert found == [("cart", ""), ("walker", "A walker.")]


@pytest.mark.parametrize("word", ["WALK", "story", "a walker"])
def test_list_of_those_with_a_word_in_name_or_text(folder: Path, word: str) -> None:
    assert [example.name for example in examples.list_examples(word)] == ["walker"]


def test_a_word_that_no_example_has(folder: Path) -> None:
    with pytest.raises(InputError, match=r"no example has 'zebra' .*\(there are: cart, walker\)"):
        examples.list_examples("zebra")


@pytest.mark.parametrize("name", ["walker", "walker.py"])
def test_find(folder: Path, name: str) -> None:
    example = examples.find_example(name)
    assert example.path == folder / "walker.py"
    assert example.source().endswith("config = 1\n")


def test_unknown_example_suggests(folder: Path) -> None:
    with pytest.raises(InputError, match=r"no example 'walkr'; did you mean 'walker'\? \(there"):
        examples.find_example("walkr")


def test_installation_without_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "_FOLDERS", (tmp_path,))
    with pytest.raises(InputError, match="no tuned examples found"):
        examples.list_examples()
