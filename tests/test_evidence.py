"""The plan's runs: their settings exist, a run is scored by every outcome, none is made twice."""

import csv
import shutil
from pathlib import Path

import evidence
import pytest
import torch

from ckdlite import cli, training
from ckdlite.data import cluttered


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
            cli.main([*evidence.command(run, 0, Path("work")), "--print_config"])
        said = capsys.readouterr()
        assert end.value.code == 0, f"{run.name}: {said.err}"


@pytest.mark.slow
def test_a_run_is_made_scored_and_not_repeated(tmp_path, monkeypatch, capsys):
    few = {"train": 128, "validation": 50, "test": 50}
    for module in (training.data, evidence.data):
        monkeypatch.setattr(
            module, "cluttered", lambda s, n=None, **amounts: cluttered(s, few[s], **amounts)
        )

    def fit(run, seed, work, more):
        words = [*evidence.command(run, seed, work), "--data.batch_size", "64"]
        words += ["--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1"]
        assert cli.main(words) == 0
        made.append(run.name)
        return 1.0

    made = []
    monkeypatch.setattr(evidence, "fit", fit)
    monkeypatch.setattr(torch, "set_num_threads", lambda _n: None)
    table = tmp_path / "evidence.csv"
    names = ["teacher", "kd+samd", "paper 4 relu last", "paper 9 two-layer head"]
    words = ["evidence", "--at-once", "1", "--work", str(tmp_path), "--table", str(table)]
    first = [(run, seed) for run, seed in evidence.jobs() if run.name in names and seed == 0]
    monkeypatch.setattr(evidence, "jobs", lambda: first)
    monkeypatch.setattr("sys.argv", words)
    for _ in range(2):
        evidence.main()
    assert made == names
    with table.open() as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == evidence.COLUMNS
    assert [row["run"] for row in rows] == names
    for row in rows:
        for column in evidence.SCORES:
            if row["run"] == "teacher" and column in (
                *("divergence", "firing_rate", "synaptic_operations", "microjoules"),
            ):
                assert row[column] == ""
            else:
                assert float(row[column]) >= 0
    # A table without the folders: the teacher of a missing row is made again, nothing else.
    kept = [line for line in table.read_text().splitlines(True) if not line.startswith("kd+samd")]
    table.write_text("".join(kept))
    shutil.rmtree(evidence.folder("teacher", 0, tmp_path))
    shutil.rmtree(evidence.folder("kd+samd", 0, tmp_path))
    made.clear()
    evidence.main()
    assert made == ["teacher", "kd+samd"]
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", [*words, "--list"])
    evidence.main()
    assert capsys.readouterr().out.count("done") == len(names)


@pytest.mark.bad_input
def test_an_unknown_run_is_named(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["evidence", "--only", "kdd"])
    with pytest.raises(SystemExit):
        evidence.main()
    assert "got ['kdd']" in capsys.readouterr().err
