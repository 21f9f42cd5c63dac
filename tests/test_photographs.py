"""The runs on photographs: their commands are recipes, their rows are whole, nothing runs twice."""

import csv
import shutil
from pathlib import Path

import photographs
import pytest
from PIL import Image

from ckdlite import cli


@pytest.fixture
def folder(tmp_path):
    for part, count in (("train", 14), ("test", 2)):
        for label in range(10):
            (tmp_path / "mine" / part / str(label)).mkdir(parents=True)
            for i in range(count):
                picture = Image.new("RGB", (32, 32), (25 * label, 15 * i, 90))
                picture.save(tmp_path / "mine" / part / str(label) / f"{i}.jpg")
    return tmp_path / "mine"


def given(tmp_path, monkeypatch, *words):
    monkeypatch.setattr(
        "sys.argv",
        [
            *("photographs", str(tmp_path / "mine"), "--seeds", "1", "--workers", "0"),
            *("--precision", "32-true", "--work", str(tmp_path / "work")),
            *("--results", str(tmp_path / "results"), "--commit", "abc", *words),
        ],
    )


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_command_is_one_of_the_recipes(tmp_path, monkeypatch, folder, capsys):
    """`ckdlite` takes it; what it would run is the recipe, short, on the folder."""
    asked = []
    monkeypatch.setattr(photographs, "ckdlite", lambda words, log: asked.append(words))
    for network in photographs.TIMESTEPS:
        given(tmp_path, monkeypatch, "--network", network)
        with pytest.raises(SystemExit, match="5 runs failed"):  # nothing was trained
            photographs.main()
    asked = [words for words in asked if words[0] == "fit"]
    assert len(asked) == 10
    capsys.readouterr()
    for words in asked:
        with pytest.raises(SystemExit) as stop:
            cli.main([*words, "--print_config"])
        assert stop.value.code == 0
        said = capsys.readouterr().out
        assert f"max_epochs: {photographs.EPOCHS[words[4].partition('-')[2]]}" in said
        assert "FolderData" in said and "AutoAugment" not in said


@pytest.mark.slow
def test_a_teacher_and_its_student_leave_their_rows(tmp_path, monkeypatch, folder):
    monkeypatch.setattr(photographs, "EPOCHS", {"resnet20": 2})
    given(tmp_path, monkeypatch, "--methods", "teacher", "kd")
    photographs.main()
    table = tmp_path / "results" / "cifar10-jpeg.csv"
    found = rows(table)
    assert [(r["method"], r["seed"], r["epochs"], r["images"]) for r in found] == [
        ("teacher", "0", "2", "130"),
        ("kd", "0", "2", "130"),
    ]
    assert all(0 <= float(r["accuracy"]) <= 1 and r["commit"] == "abc" for r in found)
    assert found[0]["timesteps"] == "" and found[1]["timesteps"] == "2"
    assert "--data.root FOLDER" in found[1]["command"] and str(tmp_path) not in found[1]["command"]
    epochs = rows(tmp_path / "results" / "cifar10-jpeg-epochs.csv")
    assert {(r["method"], r["epoch"]) for r in epochs} == {("teacher", "1"), ("kd", "1")}
    # Again: nothing is trained or tested anew, and no row changes.
    times = {p: p.stat().st_mtime for p in (tmp_path / "work").rglob("*.ckpt")}
    photographs.main()
    assert {p: p.stat().st_mtime for p in (tmp_path / "work").rglob("*.ckpt")} == times
    assert rows(table) == found
    # A row whose folder is gone stays too; its teacher comes back for a student that is missing.
    shutil.rmtree(tmp_path / "work")
    asked = []
    monkeypatch.setattr(photographs, "ckdlite", lambda words, log: asked.append(words[2]))
    photographs.main()
    assert asked == [] and rows(table) == found
    given(tmp_path, monkeypatch, "--methods", "teacher", "kd", "paper")
    with pytest.raises(SystemExit, match="2 runs failed"):  # nothing was trained
        photographs.main()
    assert {Path(path).name for path in asked} == {"resnet20-teacher-0", "resnet20-paper-0"}


def test_rows_take_the_place_of_their_own(tmp_path):
    table = tmp_path / "results" / "table.csv"
    row = dict.fromkeys(photographs.COLUMNS, "") | {"network": "resnet20", "seed": 0}
    photographs.write([row | {"method": "kd", "accuracy": 0.5}], table, photographs.COLUMNS)
    photographs.write([row | {"method": "teacher"}], table, photographs.COLUMNS)
    photographs.write([row | {"method": "kd", "accuracy": 0.6}], table, photographs.COLUMNS)
    assert [(r["method"], r["accuracy"]) for r in rows(table)] == [("teacher", ""), ("kd", "0.6")]
