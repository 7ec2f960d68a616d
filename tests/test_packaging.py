"""The package's metadata, its pinned versions, and the rules of the house that a tool can count."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from rllib_weighted.core.envs import _FAMILIES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
PIN = re.compile(r"(?P<name>[a-z0-9.-]+)==(?P<version>[0-9][0-9a-z.]*)")

REQUIREMENTS = [
    Requirement(line)
    for line in [
        *PROJECT["dependencies"],
        *(line for extra in PROJECT["optional-dependencies"].values() for line in extra),
    ]
]


def read_constraints() -> list[str]:
    lines = (ROOT / "ci" / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def read_pins() -> dict[str, Version]:
    matches = [PIN.fullmatch(line) for line in read_constraints()]
    return {
        canonicalize_name(match["name"]): Version(match["version"]) for match in matches if match
    }


def test_version_is_that_of_the_installed_distribution():
    assert importlib.metadata.version("rllib-weighted") == PROJECT["version"]


def test_version_of_the_package_is_that_of_the_distribution():
    import rllib_weighted

    assert rllib_weighted.__version__ == PROJECT["version"]


def test_rllib_command_resolves_to_a_function():
    (entry_point,) = importlib.metadata.entry_points(group="console_scripts", name="rllib")
    assert entry_point.value == PROJECT["scripts"]["rllib"]
    assert callable(entry_point.load())


@pytest.mark.parametrize("line", read_constraints())
def test_every_constraint_pins_one_version(line):
    assert PIN.fullmatch(line), f"{line!r} is not of the form 'name==version' (no local label)"


def test_constraints_are_sorted_and_name_nothing_twice():
    names = [line.split("==")[0] for line in read_constraints()]
    assert names == sorted(set(names))


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_every_declared_bound_holds_for_the_pinned_version(requirement):
    pins = read_pins()
    if requirement.marker and not requirement.marker.evaluate():
        pytest.skip("not for this Python")
    name = canonicalize_name(requirement.name)
    assert name in pins, f"{name} is declared but not pinned in ci/constraints.txt"
    assert pins[name] in requirement.specifier


def test_every_extra_that_a_message_names_is_one():
    extras = PROJECT["optional-dependencies"].keys()
    named = {
        extra
        for file in (ROOT / "rllib_weighted").rglob("*.py")
        for names in re.findall(r"rllib-weighted\[([a-z0-9,-]+)\]", file.read_text("utf-8"))
        for extra in names.split(",")
    } | {family.extra for family in _FAMILIES}
    assert named <= extras


@pytest.mark.parametrize("requirement", ["torch==2.13.0+cpu", "ray>=2.60", "numpy", "-e ."])
def test_a_line_that_does_not_pin_is_noticed(requirement):
    assert not PIN.fullmatch(requirement)


def test_gymnasium_is_the_version_that_ray_pins():
    of_ray = [Requirement(line) for line in importlib.metadata.requires("ray") or []]
    (pinned,) = {
        str(requirement.specifier)
        for requirement in of_ray
        if requirement.name == "gymnasium"
        and requirement.marker
        and requirement.marker.evaluate({"extra": "rllib"})
    }
    (ours,) = (str(each.specifier) for each in REQUIREMENTS if each.name == "gymnasium")
    assert ours == pinned


def test_default_file_of_make_train_exists():
    (default,) = re.findall(r"^FILE \?= (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert (ROOT / default).is_file()


def test_every_target_of_make_is_there_once():
    """Twice, make would run the later recipe; a name of `.PHONY` alone would do nothing."""
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    assert sorted(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)) == sorted(phony.split())


def test_changelog_knows_the_version_or_is_unreleased():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{PROJECT['version']}]" in changelog or "## [Unreleased]" in changelog


def test_package_is_marked_as_typed():
    assert (ROOT / "rllib_weighted" / "py.typed").is_file()


def test_every_folder_of_the_package_is_a_package():
    """Without an `__init__.py` the import rules would silently not be checked there."""
    folders = {file.parent for file in (ROOT / "rllib_weighted").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


@pytest.mark.slow
def test_wheel_holds_types_examples_and_license(tmp_path, user_home):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path, ROOT],
        check=True,
        env={**os.environ, "HOME": user_home},
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "rllib_weighted/py.typed" in names
    assert "rllib_weighted/tuned_examples/bipedal.py" in names
    assert "rllib_weighted/report/report.html.jinja" in names
    assert "rllib_weighted/report/report.mplstyle" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names} == {
        "rllib_weighted",
        f"rllib_weighted-{PROJECT['version']}.dist-info",
    }


def test_the_container_copies_and_installs_what_there_is():
    text = (ROOT / "ci" / "Containerfile").read_text().replace("\\\n", " ")
    sources = [
        source
        for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert {"rllib_weighted", "pyproject.toml", "README.md", "LICENSE"} <= set(sources)
    assert [source for source in sources if not (ROOT / source).exists()] == []
    (extras,) = re.findall(r"'\.\[([a-z0-9,]+)\]'", text)
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
    (python,) = re.findall(r"^FROM python:(\S+)-slim$", text, re.MULTILINE)
    assert f"Programming Language :: Python :: {python}" in PROJECT["classifiers"]


def test_the_kubernetes_job_runs_the_pinned_ray_and_a_command_that_there_is():
    job = yaml.safe_load((ROOT / "ci" / "rayjob.yaml").read_text())
    cluster = job["spec"]["rayClusterSpec"]
    assert Version(cluster["rayVersion"]) == read_pins()["ray"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = {c["image"] for g in groups for c in g["template"]["spec"]["containers"]}
    assert images == {"rllib-weighted"}
    words = job["spec"]["entrypoint"].split()
    assert words[:3] == ["rllib", "train", "file"]
    assert (ROOT / words[3]).is_file()
    cpus = sum(
        int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
        * group.get("replicas", 1)
        for group in groups
    )
    assert cpus >= 1 + 4  # The trial and its env runners, a CPU each.
