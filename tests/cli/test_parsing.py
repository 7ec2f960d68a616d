"""What a user types: JSON, settings and stop criteria."""

from __future__ import annotations

import pytest

from rllib_weighted.cli import InputError
from rllib_weighted.cli.parsing import (
    merge_stop,
    parse_json,
    parse_json_object,
    parse_setting,
    parse_settings,
    read_stop,
)


def test_bad_json_points_at_the_position() -> None:
    text = '{"training_iteration": 10, lr: 1}'
    with pytest.raises(InputError) as caught:
        parse_json(text, "--stop")
    message = str(caught.value)
    assert "--stop is not valid JSON" in message
    assert "line 1, column 28" in message
    shown, caret = message.splitlines()[2:4]
    assert shown[caret.index("^")] == "l"
    assert shown.strip() == text


def test_bad_json_far_out_is_shown_around_the_position() -> None:
    text = '{"a": [' + "1, " * 100 + "x]}"
    with pytest.raises(InputError) as caught:
        parse_json(text, "--config")
    shown, caret = str(caught.value).splitlines()[2:4]
    assert shown[caret.index("^")] == "x"
    assert len(shown) < 80


def test_bad_json_in_a_later_line_shows_that_line() -> None:
    with pytest.raises(InputError, match="line 2, column 8") as caught:
        parse_json('{\n  "a": oops\n}', "file.json")
    assert '"a": oops' in str(caught.value)


@pytest.mark.parametrize("text", ["", "   "])
def test_empty_json_is_an_error_without_a_crash(text: str) -> None:
    with pytest.raises(InputError, match="not valid JSON"):
        parse_json(text, "--stop")


@pytest.mark.parametrize(("text", "kind"), [("[1]", "a list"), ("3", "a number"), ("null", "null")])
def test_json_options_must_be_objects(text: str, kind: str) -> None:
    with pytest.raises(InputError, match=f"must be a JSON object .*; found {kind}"):
        parse_json_object(text, "--config")


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("lr=0.0003", ("lr", 0.0003)),
        ("lr=3e-4", ("lr", 3e-4)),
        ("merge_strategy=reward_weighted", ("merge_strategy", "reward_weighted")),
        ('merge_strategy="sum"', ("merge_strategy", "sum")),
        ("use_kl_loss=false", ("use_kl_loss", False)),
        ("use_kl_loss=False", ("use_kl_loss", False)),
        ("grad_clip=null", ("grad_clip", None)),
        ("grad_clip=None", ("grad_clip", None)),
        ("lr=[[0, 0.1], [10, 0.2]]", ("lr", [[0, 0.1], [10, 0.2]])),
        ("env_config.name=a=b", ("env_config.name", "a=b")),
        ("env=", ("env", "")),
    ],
)
def test_setting_values(text: str, setting: tuple[str, object]) -> None:
    assert parse_setting(text) == setting


@pytest.mark.parametrize("text", ["lr", "=3", " =3", ""])
def test_setting_without_key_or_value(text: str) -> None:
    with pytest.raises(InputError, match="--set must be KEY=VALUE"):
        parse_setting(text)


def test_setting_that_begins_like_json_must_be_json() -> None:
    with pytest.raises(InputError, match="--set lr is not valid JSON"):
        parse_setting("lr=[1, 2")


def test_last_setting_of_a_key_counts() -> None:
    assert parse_settings(["lr=1", "gamma=0.9", "lr=2"]) == {"lr": 2, "gamma": 0.9}


def test_nested_stop_becomes_flat() -> None:
    stop = read_stop({"env_runners": {"episode_return_mean": 475}, "training_iteration": 3}, "f")
    assert stop == {"env_runners/episode_return_mean": 475, "training_iteration": 3}


def test_old_names_of_stop_criteria_still_work() -> None:
    assert read_stop({"episode_reward_mean": 150, "timesteps_total": 1000}, "f") == {
        "env_runners/episode_return_mean": 150,
        "num_env_steps_sampled_lifetime": 1000,
    }


@pytest.mark.parametrize("value", [True, "10", None, [1], float("nan")])
def test_stop_values_must_be_numbers(value: object) -> None:
    with pytest.raises(InputError, match="must be a number; found: 'training_iteration'"):
        read_stop({"training_iteration": value}, "f")


def test_stop_must_be_a_dict() -> None:
    with pytest.raises(InputError, match="`stop` must be a dict"):
        read_stop(10, "f")  # type: ignore[arg-type]


def test_stop_of_the_file_holds_without_an_option() -> None:
    assert merge_stop({"training_iteration": 2}, None) == {"training_iteration": 2}


def test_stop_option_overrides_adds_and_removes() -> None:
    merged = merge_stop(
        {"training_iteration": 2, "time_total_s": 60},
        '{"training_iteration": 5, "timesteps_total": 100, "time_total_s": null}',
    )
    assert merged == {"training_iteration": 5, "num_env_steps_sampled_lifetime": 100}
