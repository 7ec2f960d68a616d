"""Bad inputs of the command, by kind: each is refused before anything is written, in a message that
names the setting (or option, or file), the value that was found, and what to do instead."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cli.test_main import failed, rllib

FILE = """
from rllib_weighted import WeightedPPOConfig

config = (
    WeightedPPOConfig()
    .environment("CartPole-v1", env_config={"size": 1})
    .env_runners(num_env_runners=2)
    .training(train_batch_size=128, minibatch_size=64)
)
stop = {"training_iteration": 1}
"""


class Bad(NamedTuple):
    """A bad input.

    Attributes:
        text: What the user writes.
        setting: What the message calls it.
        value: What the message says was found.
        remedy: What the message says to do.
    """

    text: str
    setting: str
    value: str
    remedy: str


# Setting -> values that it cannot have, and the remedy.
LEAVE_OUT = "or leave it out for the default"
VALUES: dict[str, tuple[list[object], str]] = {
    "lr": ([-1, "x", True, None, [[1, 0.1], [2, 0.2]], [[0, 0.1]], []], ": "),
    "entropy_coeff": ([-1, "x", [[5, 1], [9, 1]]], ": "),
    "gamma": ([-1, 2, "x", True, None, [1], math.inf], LEAVE_OUT),
    "lambda_": ([-1, 2, "x"], LEAVE_OUT),
    "clip_param": ([-1, 0, "x", None], LEAVE_OUT),
    "vf_clip_param": ([-1, 0, "x"], LEAVE_OUT),
    "vf_loss_coeff": ([-1, "x", None], LEAVE_OUT),
    "kl_coeff": ([-1, "x"], LEAVE_OUT),
    "kl_target": ([-1, 0, "x"], LEAVE_OUT),
    "grad_clip": ([-1, 0, "x", math.inf], LEAVE_OUT),
    "min_weight": ([-1, "x", True, [[0, 1]], [[5, 1], [9, 1]], {"a": 1}], ": "),
    "num_epochs": ([-1, 0, 1.5, "x", None], LEAVE_OUT),
    "num_envs_per_env_runner": ([-1, 0, 1.5, "x"], LEAVE_OUT),
    "num_env_runners": ([-1, 1.5, "x", None], LEAVE_OUT),
    "num_learners": ([-1, 0.5, "x"], LEAVE_OUT),
    "minibatch_size": ([0, 1, -1, 1.5, "x"], "raise it, or use None"),
    "train_batch_size": ([0, 1, -1, 1.5, "x"], "raise it, or use fewer"),
    "train_batch_size_per_learner": ([0, 1.5, "x"], "raise it, or use fewer"),
    "rollout_fragment_length": ([0, -1, 1.5, "x"], 'use "auto"'),
    "seed": ([-1, 2**32, 1.5, "x", True], LEAVE_OUT),
    "merge_unit": (["env_runer", "worker", 3], "u"),
    "advantage_normalization": (["workers", 3], "u"),
    "env_seeding": (["steam", 3], "u"),
    "env_backend": (["envpol", 3], "u"),
    "actor_export": (["bset", 3], "u"),
    "batch_mode": (["complete_episode", 3], "u"),
    "fast_learner": (["yes", 1, None], "use True"),
    "fast_sampling": (["no", 0], "use True"),
    "per_worker_parameters": ([1, "yes"], "use None, which leaves it to the merge strategy"),
    "torch_skip_nan_gradients": ([True], "dropped from the merge by itself"),
    "env_runner_cls": (["x", 3], "derive yours from it"),
    "merge_options": ([3, [1], "x"], "write"),
}


def as_shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)


SETTINGS = [
    Bad(f"{name.rstrip('_')}={json.dumps(value)}", f"`{name}`", as_shown(value), remedy)
    for name, (values, remedy) in VALUES.items()
    for value in values
]

DIGITS = "1" * 5000
DEEP = "[" * 500 + "]" * 500
BOMB = "[" + ", ".join(["*a"] * 9) + "]"

# What stands behind `--set`.
NAMES = [
    Bad("lrr=1", "no setting", "'lrr'", "did you mean 'lr'"),
    Bad("gama=1", "no setting", "'gama'", "did you mean 'gamma'"),
    Bad("merge_strtegy=sum", "no setting", "'merge_strtegy'", "did you mean 'merge_strategy'"),
    Bad("min_wieght=1", "no setting", "'min_wieght'", "did you mean 'min_weight'"),
    Bad("num_env_runner=1", "no setting", "'num_env_runner'", "did you mean 'num_env_runners'"),
    Bad("env_confg.size=1", "no setting", "'env_confg.size'", "did you mean 'env_config'"),
    Bad("gamma.x=1", "--set gamma.x", "0.99", "leave `.x` out"),
    Bad("env_config.size.x=1", "--set env_config.size.x", "it is 1", "leave `.x` out"),
    Bad("lr", "--set", "'lr'", "KEY=VALUE, e.g. --set lr=0.0003"),
    Bad("=3", "--set", "'=3'", "KEY=VALUE, e.g. --set lr=0.0003"),
    Bad("", "--set", "''", "KEY=VALUE, e.g. --set lr=0.0003"),
    Bad("lr=[1, 2", "--set lr is not valid JSON", "[1, 2", "put single quotes around the whole"),
    Bad('lr={"a": x}', "--set lr is not valid JSON", '{"a": x}', "in double quotes"),
    Bad(f"lr={DIGITS}", "--set lr", "1111", "at most 50 deep and hold no whole number of more"),
    Bad(f"lr=[{DIGITS}]", "--set lr", "1111", "hold no whole number of more than 4300 digits"),
    Bad(f"env_config={DEEP}", "--set", "found more", "nested at most 50 deep"),
    Bad('lr={"grid_search": []}', "search space", "is empty", "should list one or more values"),
    Bad('lr={"grid_search": 3}', "--set lr", "found 3", "`grid_search` takes a list"),
]
STRATEGIES = [
    Bad("merge_strategy=reward_weigthed", "`merge_strategy`", "'reward_weigthed'", "did you mean"),
    Bad("merge_strategy=Sum", "`merge_strategy`", "'Sum'", "did you mean 'sum'"),
    Bad("merge_strategy=3", "`merge_strategy`", "found 3", "should be one of"),
    Bad('merge_options={"ofset": 1}', "merge_options", "ofset", "did you mean 'offset'"),
    Bad('merge_options={"offset": "max"}', "`offset`", "'max'", "should be 'auto' or 'min'"),
    Bad('merge_options={"normalize": 1}', "`normalize`", "found 1", "a valid boolean"),
    Bad('merge_options={"top_k": 0}', "`top_k`", "found 0", "should be"),
]
ENVIRONMENTS = [
    Bad("env=CartPoel-v1", "environment", "'CartPoel-v1'", "did you mean 'CartPole-v1'"),
    Bad("env=CartPole-v99", "environment", "'CartPole-v99'", "register it in the training file"),
    Bad("env=None", "environment", "no environment is set", "use `config.environment(...)`"),
    Bad("env=3", "`env`", "found 3", "must be a name or a class"),
    Bad('env=["CartPole-v1"]', "`env`", "['CartPole-v1']", "must be a name or a class"),
    Bad("env=absent_module.Env", "environment", "'absent_module.Env'", "No module named"),
    Bad("env=.", "environment", "'.'", "cannot be imported"),
    Bad("env=..a.b", "environment", "'..a.b'", "cannot be imported"),
    Bad(
        "env=absent_module:Env-v0", "environment", "'absent_module'", "on the Python path of every"
    ),
    Bad("env=envpool:CartPoel-v1", "EnvPool", "'CartPoel-v1'", "did you mean 'CartPole-v1'"),
    Bad(
        "env=dm_control/walker-walk-v0", "environment", "'dm_control/walker-walk-v0'", "pip install"
    ),
]
TOGETHER = [
    Bad("num_learners=3", "`num_learners`=3", "the 2 workers", "use at most 2"),
    Bad("minibatch_size=129", "`minibatch_size`", "found 129", "lower it"),
    Bad("num_env_runners=1", "`merge_strategy`", "found 1 worker", "use more env runners"),
    Bad("num_aggregator_actors_per_learner=1", "`num_aggregator_actors", "found 1", "should be 0"),
    Bad("framework=tf2", "`framework`", '"tf2"', "leave it out"),
]

STOP = "'stop' must"
# What stands behind `--stop` and, where it says so, behind `--config`.
JSON = [
    Bad("{training_iteration: 1}", "--stop is not valid JSON", "{training_iteration: 1}", "quotes"),
    Bad("{'training_iteration': 1}", "--stop is not valid JSON", "{'training", "double quotes"),
    Bad('{"training_iteration": }', "--stop is not valid JSON", '{"training_it', "double quotes"),
    Bad('{"training_iteration": 1', "--stop is not valid JSON", '{"training_it', "double quotes"),
    Bad('{"a": 1} x', "--stop is not valid JSON", '{"a": 1} x', "in double quotes"),
    Bad("{\n", "--stop is not valid JSON", "line 2, column 1", "in double quotes"),
    Bad("", "--stop is not valid JSON", "line 1, column 1", "in double quotes"),
    Bad("[1]", "--stop", "found a list: [1]", "must be a JSON object {...}"),
    Bad("3", "--stop", "found a number: 3", "must be a JSON object {...}"),
    Bad('"x"', "--stop", "found a text: 'x'", "must be a JSON object {...}"),
    Bad("null", "--stop", "found null", "must be a JSON object {...}"),
    Bad('{"training_iteration": "1"}', "'training_iteration'", "a text '1'", "must be a number"),
    Bad('{"training_iteration": true}', "'training_iteration'", "a boolean True", "be a number"),
    Bad('{"training_iteration": [1]}', "'training_iteration'", "a list [1]", "must be a number"),
    Bad('{"training_iteration": NaN}', "'training_iteration'", "a number nan", "must be a number"),
    Bad('{"a": {"b": "x"}}', "'a/b'", "a text 'x'", "must be a number"),
    Bad(f'{{"a": {"1" * 4000}}}', "'a' is a number", "1111", "must be a number"),
    Bad(f'{{"a": {DIGITS}}}', "--stop", "1111", "no whole number of more than 4300 digits"),
    Bad(f'{{"a": {DEEP}}}', "--stop", "found more", "nested at most 50 deep"),
    Bad('{"a":' * 500 + "1" + "}" * 500, "--stop", "found more", "nested at most 50 deep"),
    Bad("[" * 100_000, "--stop", "found '[[[", "nested at most 50 deep"),
]
# What stands behind `--name`.
FOLDERS = [
    Bad(name, "--name", found, "choose another name, and say with --storage-path")
    for name, found in {
        "../escaped": "'../escaped'",
        "a/b": "'a/b'",
        "/absolute": "'/absolute'",
        ".": "'.'",
        "..": "'..'",
        "x" * 300: "'xxxxxx",
        "ü" * 101: "'üüüüüü",
        "a\nb": r"'a\nb'",
        "\x1b[2J": r"'\x1b[2J'",
        "a\u202eb": r"'a\u202eb'",
        "a\udc80b": r"'a\udc80b'",
    }.items()
]
# What stands behind `--storage-path`.
STORAGES = [
    Bad("nothing://x", "storage", "nothing://x", "should be a local path or a URI"),
    Bad("s3://", "s3://", "s3://", "should be a local path or a URI"),
    Bad("s3://[", "storage", "s3://[", "should be a local path or a URI"),
    Bad(
        "~nobody-of-that-name/x", "home directory", "~nobody-of-that-name/x", "Write the whole path"
    ),
    Bad("/dev/null/x", "results", "/dev/null/x", "should be a folder that you may write to"),
]

YAML_HEAD = "run: WeightedPPO, env: CartPole-v1"
# Name of a training file -> what it holds, and what the message says.
FILES = [
    ("empty.yaml", b"", "must hold experiments", "found null", "name: {run: ..., env: ..., config"),
    ("list.yaml", b"[1]", "must hold experiments", "found a list: [1]", "name: {run: ..., env"),
    ("text.yaml", b"hello", "must hold experiments", "a text: 'hello'", "name: {run: ..., env"),
    ("number.yaml", b"a: 3", "experiment 'a'", "found 3", "e.g. run: WeightedPPO"),
    ("no_run.yaml", b"a: {env: X}", "experiment 'a'", "{'env': 'X'}", "e.g. run: WeightedPPO"),
    ("key.yaml", b"a: {run: PPO, confg: {}}", "unknown keys", "'confg'", "did you mean 'config'"),
    ("key3.yaml", b"a: {run: PPO, 3: {}}", "unknown keys", "3", "known: checkpoint_at_end"),
    ("algo.yaml", b"a: {run: PPOO}", "unknown algorithm", "'PPOO'", "did you mean 'PPO'"),
    ("config.yaml", b"a: {run: PPO, config: 3}", "`config`", "found 3", "must be a dict of sett"),
    ("config0.yaml", b"a: {run: PPO, config: []}", "`config`", "found []", "must be a dict of"),
    ("name.yaml", b"a: {run: PPO, config: {lrr: 1}}", "no setting", "'lrr'", "did you mean 'lr'"),
    ("name3.yaml", b"a: {run: PPO, config: {3: 1}}", "no setting", "3", "PPOConfig has no"),
    ("stop.yaml", b"a: {run: PPO, stop: 3}", "`stop`", "a number: 3", "dict of metric to number"),
    ("stops.yaml", b"a: {run: PPO, stop: {x: y}}", "'x'", "a text 'y'", "must be a number"),
    ("stop3.yaml", b"a: {run: PPO, stop: {3: y}}", "'3'", "a text 'y'", "must be a number"),
    ("n.yaml", b"a: {run: PPO, num_samples: 0}", "`num_samples`", "found 0", "whole number >= 1"),
    ("n2.yaml", b"a: {run: PPO, num_samples: x}", "`num_samples`", "'x'", "whole number >= 1"),
    ("f.yaml", b"a: {run: PPO, checkpoint_freq: -1}", "`checkpoint_freq`", "-1", "number >= 0"),
    ("e.yaml", b"a: {run: PPO, checkpoint_at_end: 3}", "`checkpoint_at_end`", "3", "true or false"),
    ("s.yaml", b"a: {run: PPO, storage_path: 3}", "`storage_path`", "found 3", "a folder or a URI"),
    ("open.yaml", b"a: {run: PPO", "open.yaml is not valid YAML", "line 1", "expected"),
    (
        "tab.yaml",
        b"a:\n\trun: PPO",
        "tab.yaml is not valid YAML",
        "line 2",
        "cannot start any token",
    ),
    ("latin.yaml", "ä: {run: PPO}".encode("latin-1"), "latin.yaml", "0xe4", "save it as UTF-8"),
    ("latin.json", '{"ä": {}}'.encode("latin-1"), "latin.json", "0xe4", "save it as UTF-8"),
    ("utf16.json", '{"a": {}}'.encode("utf-16"), "utf16.json", "0xff", "save it as UTF-8"),
    ("digits.yaml", f"a: {DIGITS}".encode(), "digits.yaml is not", "limit (4300", "YAML"),
    ("date.yaml", b"a: 2026-99-99", "date.yaml is not valid YAML", "month", "must be in 1..12"),
    ("tag.yaml", b"a: !!python/name:os.system x", "tag.yaml is not valid", "python/name", "line 1"),
    ("int.yaml", b"a: !!int x", "int.yaml is not valid YAML", "'x'", "invalid literal for int"),
    ("deep.yaml", DEEP.encode(), "deep.yaml", "nested too deep", "write it flatter"),
    (
        "deeper.yaml",
        f"a: {{{YAML_HEAD}, config: {{env_config: {{a: {'[' * 60}{']' * 60}}}}}}}".encode(),
        "experiment 'a'",
        "found more",
        "nested at most 50 deep",
    ),
    (
        "cycle.yaml",
        f"a: {{{YAML_HEAD}, config: {{env_config: &a {{a: *a}}}}}}".encode(),
        "experiment 'a'",
        "a value that contains itself",
        "write it flatter",
    ),
    (
        "stop_cycle.yaml",
        f"a: {{{YAML_HEAD}, stop: &a {{a: *a}}}}".encode(),
        "experiment 'a'",
        "a value that contains itself",
        "write it flatter",
    ),
    (
        "bomb.yaml",
        "\n".join(
            ["x0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
            + [f"x{k + 1}: &a{k + 1} {BOMB.replace('*a', f'*a{k}')}" for k in range(8)]
        ).encode(),
        "experiment 'x0'",
        "[1, 1, 1",
        "e.g. run: WeightedPPO",
    ),
    (
        "bomb_config.yaml",
        "\n".join(
            [f"a: {{{YAML_HEAD}, config: {{env_config: {{", "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1],"]
            + [f"a{k + 1}: &a{k + 1} {BOMB.replace('*a', f'*a{k}')}," for k in range(8)]
            + ["}}}"]
        ).encode(),
        "experiment 'a'",
        "found more",
        "at most 100,000 values",
    ),
    ("empty.json", b"", "empty.json is not valid JSON", "line 1, column 1", "double quotes"),
    ("open.json", b'{"a": ', "open.json is not valid JSON", "line 1", "double quotes"),
    ("list.json", b"[1]", "must hold experiments", "found a list: [1]", "name: {run: ..., env"),
    ("digits.json", f'{{"a": {DIGITS}}}'.encode(), "digits.json", "1111", "more than 4300 digits"),
    ("deep.json", b"[" * 100_000, "deep.json", "[[[", "at most 50 deep"),
    ("number.json", b'{"a": 3}', "experiment 'a'", "found 3", "e.g. run: WeightedPPO"),
    ("nothing.py", b"", "does not define `config`", "no names", "e.g. `config = WeightedPPOConfig"),
    ("typo.py", b"confg = 3", "`config`", "confg (int)", "e.g. `config = WeightedPPOConfig"),
    ("dict.py", b"config = {}", "`config`", "found a dict", "must be an AlgorithmConfig, e.g."),
    ("def.py", b"def config(): 3", "`config`", "found a function", "call it"),
    ("syntax.py", b"config = (1,", "syntax.py is not Python", "line 1", "'(' was never closed"),
    ("train_me.py", b"config = y", "train_me.py raised", "'y' is not defined", "line 1"),
    ("exit.py", b"import sys; sys.exit(3)", "exit.py left by itself", "3", "sys.exit(3)"),
    ("latin.py", "a = 'ä'".encode("latin-1"), "latin.py is not Python", "0xe4", "utf-8"),
    ("null.py", b"a = 1\0", "null.py", "null bytes", "source code"),
    ("stop.py", FILE.encode() + b"stop = 3", "`stop`", "a number: 3", "dict of metric to number"),
    (
        "cycle.py",
        FILE.encode() + b"stop = {}\nstop['a'] = stop",
        "cycle.py",
        "a value that contains itself",
        "write it flatter",
    ),
    ("tune.py", FILE.encode() + b"tune_config = 3", "`tune_config`", "found 3", "TuneConfig"),
    ("file.txt", b"", "file.txt", "a training file ends in", ".py, .yaml, .yml, .json"),
]

# Whole command lines; `{tmp}` is an empty folder, `{tmp}/file` a file.
COMMANDS = [
    Bad("trian", "No such command", "'trian'", "Try 'rllib"),
    Bad("train", "an algorithm", "give", "rllib train --algo WeightedPPO --env CartPole-v1"),
    Bad("train --algo PPOO", "unknown algorithm", "'PPOO'", "did you mean 'PPO'"),
    Bad("train --algo PPO", "environment", "no environment is set", "`--env`"),
    Bad("train -a PPO -e CartPoel-v1", "environment", "'CartPoel-v1'", "did you mean"),
    Bad("train -a PPO -e CartPole-v1 -c 3", "--config", "found a number: 3", "JSON object {...}"),
    Bad("train -a PPO -e CartPole-v1 -c {lr:1}", "--config", "{lr:1}", "double quotes"),
    Bad('train -a PPO -e CartPole-v1 -c {"lrr":1}', "no setting", "'lrr'", "did you mean 'lr'"),
    Bad(f"train -a PPO -e CartPole-v1 -c {DEEP}", "--config", "found a list", "JSON object {...}"),
    Bad("train --resume", "--resume", "needs --name", "rllib train file FILE"),
    Bad("train --resume -n absent --storage-path {tmp}", "resume", "'absent'", "the `rllib` comm"),
    Bad("train file {tmp}/absent.py", "no file", "absent.py", "there is no file"),
    Bad("train file {tmp}", "training file", "{tmp}", ".py, .yaml, .yml, .json"),
    Bad("train --stop 3 file x.py", "--stop", "put --stop after the file", "rllib train file FILE"),
    Bad("train file x.py --bogus", "No such option", "--bogus", "Try 'rllib"),
    Bad("evaluate {tmp}/absent", "no folder", "absent", "there is no folder"),
    Bad("evaluate {tmp}", "no checkpoint", "{tmp}", "give the folder of a checkpoint"),
    Bad("evaluate {tmp} --seed -1", "--seed", "found -1", "must be from 0 to 4294967295"),
    Bad("evaluate {tmp} --seed 4294967296", "--seed", "found 4294967296", "must be from 0 to"),
    Bad("evaluate {tmp} --video {tmp}/file", "--video", "{tmp}/file", "must be a folder"),
    Bad("evaluate nothing://x", "storage", "nothing://x", "a local path or a URI"),
    Bad("report {tmp}/absent", "folder", "absent", "there is no folder"),
    Bad("report {tmp}", "trials", "{tmp}", "no trials in"),
    Bad("report {tmp} --threshold high", "--threshold", "'high'", "ENVIRONMENT=NUMBER"),
    Bad("report {tmp} --threshold 3 --threshold 4", "--threshold 3", "is for all", "give it alone"),
    Bad("example get absent", "no example", "'absent'", "there are: bipedal"),
    Bad("example get cartpol", "no example", "'cartpol'", "did you mean 'cartpole'"),
    Bad("example get cartpole --out {tmp}/file", "exists already", "file", "choose another --out"),
    Bad("example get cartpole --out {tmp}/a/b.py", "--out", "a/b.py", "a folder that is there"),
    Bad("example run absent", "no example", "'absent'", "there are: bipedal"),
]

OPTIONS = {
    "--set": [*SETTINGS, *NAMES, *STRATEGIES, *ENVIRONMENTS, *TOGETHER],
    "--stop": JSON,
    "--name": FOLDERS,
    "--storage-path": STORAGES,
}


def refused(result_of: list[str | Path], bad: Bad) -> None:
    message = " ".join(failed(rllib(*result_of)).replace("│", " ").split())
    assert len(message) < 3000
    for part in (bad.setting, bad.value, bad.remedy):
        assert " ".join(part.split()) in message, (part, message)


def shortened(text: object) -> str:
    return str(text)[:40]


@pytest.mark.parametrize(
    ("option", "bad"),
    [(option, bad) for option, table in OPTIONS.items() for bad in table],
    ids=shortened,
)
def test_options(tmp_path: Path, option: str, bad: Bad) -> None:
    file = tmp_path / "train_me.py"
    file.write_text(FILE)
    storage = tmp_path / "results"
    refused(["train", "file", file, "--storage-path", storage, f"{option}={bad.text}"], bad)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(("name", "content", "setting", "value", "remedy"), FILES, ids=shortened)
def test_files(
    tmp_path: Path, name: str, content: bytes, setting: str, value: str, remedy: str
) -> None:
    (tmp_path / name).write_bytes(content)
    options = ["--storage-path", tmp_path / "results"]
    refused(["train", "file", tmp_path / name, *options], Bad(name, setting, value, remedy))
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("bad", COMMANDS, ids=lambda bad: shortened(bad.text))
def test_commands(tmp_path: Path, bad: Bad, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    args, *texts = (text.replace("{tmp}", str(tmp_path)) for text in bad)
    refused(list(args.split()), Bad(args, *texts))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "args",
    [
        "train file x.py --num-samples 0",
        "train file x.py --num-samples x",
        "train file x.py --checkpoint-freq -1",
        "train file x.py --ray-num-cpus 0",
        "evaluate x --episodes 0",
        "report x --hold 0",
    ],
)
def test_numbers_that_typer_checks(args: str) -> None:
    """It names the option and what should be; the value it leaves out."""
    message = failed(rllib(*args.split()))
    assert f"Invalid value for '{args.split()[-2]}': Input should be" in message


def test_there_are_more_than_150_and_none_twice() -> None:
    rows = [(option, bad.text) for option, table in OPTIONS.items() for bad in table]
    rows += [("file", name) for name, *_ in FILES] + [("command", bad.text) for bad in COMMANDS]
    assert len(set(rows)) == len(rows) > 150
