"""The publishing workflows, which run elsewhere: what can be held of them here."""

import re
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".github" / "workflows"
# Named by hand: a workflow that nobody has looked at shall not slip in.
NAMES = ["cold", "publish"]


def read(name):
    """A workflow."""
    return yaml.safe_load((FOLDER / f"{name}.yml").read_text(encoding="utf-8"))


def steps(name):
    """The steps of all jobs, in order."""
    return [step for job in read(name)["jobs"].values() for step in job["steps"]]


def commands(name):
    """The lines of shell of all jobs, in order."""
    return [line for step in steps(name) for line in step.get("run", "").splitlines()]


def made(name):
    """The make targets that a workflow names, in order."""
    return [line.split()[1] for line in commands(name) if line.startswith("make ")]


def test_there_are_no_others():
    assert sorted(path.name for path in FOLDER.iterdir()) == [f"{name}.yml" for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_every_make_target_exists_and_none_of_the_tests_is_left_out(name):
    rules = re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    ours = re.findall(r"^make ([\w-]+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert set(made(name)) <= set(rules)
    assert set(ours) <= set(made(name)) and ours


@pytest.mark.parametrize(
    "name, triggers",
    [
        ("publish", {"push": {"branches": ["main"]}, "workflow_dispatch": None}),
        ("cold", {"schedule": [{"cron": "17 4 * * 1"}], "workflow_dispatch": None}),
    ],
)
def test_triggers(name, triggers):
    assert read(name)[True] == triggers  # YAML takes the word "on" for a truth value


def test_nothing_may_be_written_but_by_the_jobs_that_publish():
    assert read("cold")["permissions"] == read("publish")["permissions"] == {"contents": "read"}
    given = {
        job: content["permissions"]
        for name in NAMES
        for job, content in read(name)["jobs"].items()
        if "permissions" in content
    }
    assert given == {
        "branch": {"contents": "write"},
        "pages": {"pages": "write", "id-token": "write"},
    }


def test_what_is_published_was_tested():
    jobs = read("publish")["jobs"]
    assert jobs["branch"]["needs"] == "book" and set(jobs["pages"]["needs"]) == {"book", "branch"}
    book = jobs["book"]["steps"]
    last = [step.get("uses", "").partition("@")[0] for step in book][-1]
    assert last == "actions/upload-pages-artifact"
    assert not any(step.get("continue-on-error") for name in NAMES for step in steps(name))


def test_the_address_is_that_of_the_repository_it_runs_in():
    publish = read("publish")
    address = "${{ github.server_url }}/${{ github.repository }}"
    assert publish["env"] == {"REPOSITORY": address, "BRANCH": "published"}
    stamps = [line for line in commands("publish") if "stamp" in line and line.startswith("make")]
    # What is tested and what is pushed for Colab are stamped alike, and before anything is built.
    assert stamps == ['make stamp URL="$REPOSITORY" BRANCH="$BRANCH"'] * 2
    assert made("publish").index("stamp") < made("publish").index("book")
    for name in NAMES:
        assert "://" not in (FOLDER / f"{name}.yml").read_text(), "an address is written out"


def test_executed_chapters_are_kept_by_notebooks_and_library_and_never_by_the_cold_build():
    (cache,) = [step for step in steps("publish") if "actions/cache@" in step.get("uses", "")]
    for part in ("book/*.ipynb", "ckdlite/**", "requirements.txt"):
        assert part in cache["with"]["key"]
    # Together: tools/build.py drops the executed chapters of another library by the second.
    assert cache["with"]["path"].split() == ["_build/.jupyter_cache", "_build/library.sha256"]
    assert not any("cache" in str(step) for step in steps("cold"))


@pytest.mark.parametrize("name", NAMES)
def test_the_report_of_a_failed_cell_is_kept(name):
    (report,) = [step for step in steps(name) if step.get("if") == "failure()"]
    assert report["uses"].startswith("actions/upload-artifact@")
    assert report["with"]["path"] == "_build/html/reports"
    assert '"html" / "reports"' in (ROOT / "tools" / "build.py").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_actions_are_the_official_ones_and_scripts_hold_no_expressions(name):
    used = [step["uses"] for step in steps(name) if "uses" in step]
    assert used and all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in used)
    # An expression in a script would be pasted into it, whatever it holds.
    assert not [line for line in commands(name) if "${{" in line]
    assert all("timeout-minutes" in job for job in read(name)["jobs"].values())
