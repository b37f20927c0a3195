"""The workflow for GitHub agrees with the project."""

import pathlib
import re
import tomllib

import yaml

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
JOBS = yaml.safe_load(TEXT)["jobs"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_pythons_are_those_that_the_project_declares():
    declared = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"]))
    for job in ("tests", "oldest"):
        assert JOBS[job]["strategy"]["matrix"]["python"] == declared


def test_each_session_exists():
    sessions = set(
        re.findall(r"\ndef (\w+)\(session\)", (ROOT / "noxfile.py").read_text())
    )
    named = [x.split() for x in re.findall(r"nox -s ([\w ]+)", TEXT)]
    assert named and {x for names in named for x in names} <= sessions


def test_it_may_read_only_and_actions_have_a_version():
    assert yaml.safe_load(TEXT)["permissions"] == {"contents": "read"}
    assert all("permissions" not in job for job in JOBS.values())
    used = [
        step["uses"] for job in JOBS.values() for step in job["steps"] if "uses" in step
    ]
    assert used and all(re.fullmatch(r"actions/[\w-]+@v\d+", name) for name in used)
