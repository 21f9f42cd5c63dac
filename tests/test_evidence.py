"""The plan's runs: their settings exist, a run is scored by every outcome, none is made twice."""

import csv
import shutil
from pathlib import Path

import evidence
import pytest
import torch
from PIL import Image

from ckdlite import cli, datamodules
from ckdlite.data import cluttered
from ckdlite.runs import checkpoint


def test_the_plan_is_whole():
    runs = evidence.plan()
    names = [run.name for run in runs]
    assert len(set(names)) == len(names)
    jobs = evidence.jobs()
    assert len({(run.name, seed) for run, seed in jobs}) == len(jobs)
    before: set[tuple[str, int]] = set()
    for run, seed in jobs:  # the teacher comes before its student
        assert not run.teacher or (run.teacher, seed) in before
        before.add((run.name, seed))
    assert len([name for name in names if name[:7] in {f"paper {i}" for i in range(1, 10)}]) == 9
    folders = {evidence.folder(run.name, seed, Path("work")) for run, seed in jobs}
    assert len(folders) == len(jobs)


@pytest.mark.slow
def test_every_setting_is_one_that_the_command_knows(capsys):
    for run in evidence.plan():
        with pytest.raises(SystemExit) as end:
            cli.main([*evidence.command(run, 0, Path("work"), Path("photos")), "--print_config"])
        said = capsys.readouterr()
        assert end.value.code == 0, f"{run.name}: {said.err}"


@pytest.mark.slow
def test_a_run_is_made_scored_and_not_repeated(tmp_path, monkeypatch, capsys):
    evidence.scenes.cache_clear()
    photos = tmp_path / "photos"
    for part, count in (("train", 9), ("test", 3)):
        for label in range(10):
            (photos / part / str(label)).mkdir(parents=True)
            for i in range(count):
                picture = Image.new("RGB", (32, 32), (20 * label, 20 * i, 90))
                picture.save(photos / part / str(label) / f"{i}.png")
    few = {"train": 128, "validation": 50, "test": 50}
    for module in (datamodules.data, evidence.data):
        monkeypatch.setattr(
            module, "cluttered", lambda s, n=None, **amounts: cluttered(s, few[s], **amounts)
        )

    def fit(path, words):
        short = ["--data.batch_size", "64", "--data.images", "64", "--trainer.max_epochs", "1"]
        assert cli.main([*words, *short, "--trainer.check_val_every_n_epoch", "1"]) == 0
        made.append(path.name)
        return 1.0

    made = []
    monkeypatch.setattr(evidence, "fit", fit)
    monkeypatch.setattr(torch, "set_num_threads", lambda _n: None)
    table = tmp_path / "evidence.csv"
    names = ["teacher", "kd+samd", "photos teacher", "photos paper", "paper 4 relu last"]
    names += ["label-only, more clutter"]
    words = ["evidence", "--at-once", "1", "--work", str(tmp_path), "--table", str(table)]
    first = [(run, seed) for run, seed in evidence.jobs() if run.name in names and seed == 0]
    # Its own teacher would take another run.
    first[-1] = (first[-1][0]._replace(teacher="teacher"), 0)
    monkeypatch.setattr(evidence, "jobs", lambda: first)
    monkeypatch.setattr("sys.argv", words)
    evidence.main()
    assert made == ["teacher-0", "kd+samd-0", "paper-4-relu-last-0", "label-only-more-clutter-0"]
    assert "question 6 is left out" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*words, "--photos", str(photos)])
    for _ in range(2):
        evidence.main()
    assert made[4:] == ["photos-teacher-0", "photos-paper-0"]
    with table.open() as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == evidence.COLUMNS
    assert [row["run"] for row in rows] == names
    for row in rows:
        none = set()
        if row["run"].endswith("teacher"):
            none |= {"divergence", "firing_rate", "synaptic_operations", "microjoules"}
        if row["run"].startswith("photos"):
            none |= {"peak_on_object", "peak_aside", "mass_on_object"}
        if row["run"].startswith("photos") or row["run"].endswith("more clutter"):
            none |= {"shifted_accuracy", "shifted_peak"}
        assert none == {column for column in evidence.SCORES if row[column] == ""}
        assert all(float(row[column]) >= 0 for column in evidence.SCORES if column not in none)
    # A table without the folders: the teacher of a missing row is made again, nothing else.
    kept = [line for line in table.read_text().splitlines(True) if not line.startswith("kd+samd")]
    table.write_text("".join(kept))
    shutil.rmtree(evidence.folder("teacher", 0, tmp_path))
    shutil.rmtree(evidence.folder("kd+samd", 0, tmp_path))
    made.clear()
    evidence.main()
    assert made == ["teacher-0", "kd+samd-0"]
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", [*words, "--list"])
    evidence.main()
    evidence.scenes.cache_clear()
    assert capsys.readouterr().out.count("done") == len(names)


@pytest.mark.slow
def test_what_is_not_logged_changes_no_weight(tmp_path):
    """The plan's students are neither validated nor asked for gradient norms; readers' are."""
    run = next(run for run in evidence.plan() if run.name == "both")._replace(teacher="")
    words = evidence.command(run, 0, tmp_path, None)
    words += ["--data.images", "64", "--data.batch_size", "32", "--trainer.max_epochs", "2"]
    students = []
    for name, more in {
        "plan": ["--trainer.check_val_every_n_epoch", "1000", "--model.gradient_norms_every", "0"],
        "reader": ["--trainer.limit_val_batches", "2", "--model.gradient_norms_every", "1"],
    }.items():
        every = ["--trainer.check_val_every_n_epoch", "1"] if name == "reader" else []
        words[2] = str(tmp_path / name)
        assert cli.main([*words, *more, *every]) == 0
        saved = torch.load(checkpoint(tmp_path / name, "last"), weights_only=True)["state_dict"]
        students.append({k: v for k, v in saved.items() if k.startswith("student.")})
    assert students[0].keys() == students[1].keys()
    assert all(torch.equal(students[0][key], students[1][key]) for key in students[0])


@pytest.mark.slow
def test_a_run_has_a_process_of_its_own(tmp_path):
    """What it says is in its log; where it ends badly, that is an error here."""
    path = tmp_path / "work" / "wrong-0"
    with pytest.raises(RuntimeError, match="ckdlite fit ended with status 1"):
        evidence.fit(path, ["fit", "--config", "nowhere", "--run", str(path)])
    assert "got 'nowhere'" in path.with_suffix(".log").read_text()


@pytest.mark.bad_input
def test_an_unknown_run_is_named(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["evidence", "--only", "kdd"])
    with pytest.raises(SystemExit):
        evidence.main()
    assert "got ['kdd']" in capsys.readouterr().err


@pytest.mark.bad_input
def test_other_settings_do_not_go_under_the_plans_names(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["evidence", "--only", "kd", "--trainer.max_epochs", "2"])
    with pytest.raises(SystemExit):
        evidence.main()
    assert "--trainer.max_epochs 2) are other runs" in capsys.readouterr().err
