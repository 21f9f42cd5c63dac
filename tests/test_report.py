"""The page of a run: what stands on it is what the files say, and it asks nobody for anything."""

import base64
import html
import io
import json
import math
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("lightning")

from PIL import Image  # noqa: E402
from test_cli import complaint, contents, fit, last, shown, small  # noqa: E402, F401 (a fixture)
from test_runs import Stop, StopAt, build, start, trainer, weights  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from ckdlite import __version__, runs, training  # noqa: E402
from ckdlite.cli import main  # noqa: E402
from ckdlite.report import report  # noqa: E402
from ckdlite.runs import RunError, checkpoint, history, read  # noqa: E402


class Page(HTMLParser):
    """Tags, attributes and texts; whether all that is opened is closed."""

    EMPTY = {"meta", "img", "br"}

    def __init__(self, path):
        super().__init__()
        self.raw = path.read_text(encoding="utf-8")
        self.tags, self.open, self.cells, self.parts = [], [], [], []
        self.feed(self.raw)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.parts).split())
        self.alts = [dict(attrs)["alt"] for tag, attrs in self.tags if tag == "img"]

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, attrs))
        if tag not in self.EMPTY:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open[-1:] == ["style"]:
            return
        self.parts.append(text)
        if self.open[-1:] in (["td"], ["th"]):
            self.cells[-1][-1] += text

    def table(self, column):
        """The rows, as dictionaries, of the first table that has this column."""
        (head,) = [i for i, row in enumerate(self.cells) if column in row][:1]
        names, rows = self.cells[head], []
        for row in self.cells[head + 1 :]:
            if len(row) != len(names) or not row[0].isdigit():
                break
            rows.append(dict(zip(names, row, strict=True)))
        return rows

    def fact(self, name):
        (value,) = [row[1] for row in self.cells if row[0] == name and len(row) == 2]
        return value


def page(run="run", out=None):
    return Page(report(run, out))


def assert_alone(page):
    """No script and no address outside the file."""
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    for tag, attrs in page.tags:
        for name, value in attrs:
            assert name not in ("href", "srcset", "action", "data", "poster")
            assert not name.startswith("on")
            if name == "src":
                assert tag == "img" and value.startswith("data:image/webp;base64,")
                picture = Image.open(io.BytesIO(base64.b64decode(value.partition(",")[2])))
                assert min(picture.size) > 100
    assert "url(" not in page.raw and "@import" not in page.raw
    assert "default-src 'none'" in page.raw
    assert page.alts and all(len(alt) > 20 for alt in page.alts)


# ---------------------------------------------------------------- what stands on it


def test_the_page_of_a_student(capsys):
    options = ["--trainer.max_epochs", "2", "--seed_everything", "3"]
    assert fit("paper", options=options) == 0
    before = contents(runs.Path("run"))
    capsys.readouterr()
    assert main(["report", "--run", "run"]) == 0
    assert capsys.readouterr().out.strip() == "run/report.html"
    found = Page(runs.Path("run/report.html"))
    assert_alone(found)

    assert found.fact("module") == "Distil" and found.fact("seed") == "3"
    assert found.fact("student").endswith("resnet8")
    assert found.fact("teacher").endswith("pretrained")
    assert found.fact("epochs") == "2 of 2" and found.fact("steps") == "4"
    assert found.fact("weights of the terms") == "samd 1, nld 1"
    assert __version__ in found.fact("page drawn by")

    # Every number of an epoch is the mean of the file's.
    rows = history("run")
    names = set().union(*rows) - {"epoch", "step"}
    assert {"gradient/samd", "train/nld", "val/divergence", "rate/stage3.0.act1"} <= names
    shown = [found.table("train/loss"), found.table("stage3.0.act1")]
    for epoch in (0, 1):
        row = {f"rate/{k}": v for k, v in shown[1][epoch].items()} | shown[0][epoch]
        assert row["epoch"] == str(epoch)
        for name in names:
            values = [r[name] for r in rows if name in r and r["step"] // 2 == epoch]
            values = [x for x in values if not math.isnan(x)]
            mean = sum(values) / len(values) if values else math.nan
            assert float(row[name]) == pytest.approx(mean, rel=1e-3, nan_ok=True), name

    # The weights are those of the last validation, and the confusions say so.
    saved = [r["val/accuracy"] for r in rows if "val/accuracy" in r][-1]
    right, count = re.search(r"last\.ckpt: (\d+) of (\d+) right", found.text).groups()
    assert int(count) == 40 and int(right) == round(40 * saved)
    energy = {row[0]: row[1:] for row in found.cells if row[0] in ("student", "teacher")}
    assert len(energy["student"]) == 3 and energy["teacher"][1] == "0"
    assert "6 of validation" in found.text and "Horowitz 2014" in found.text
    assert "class" not in found.fact("data") and "Not tested yet" in found.text
    assert "Rows: image, teacher, epoch 0, epoch 1." in " ".join(found.alts)
    assert html.escape(runs.Path("run/config.yaml").read_text()) in found.raw

    # Nothing else in the folder has changed, and the page may be made again.
    assert contents(runs.Path("run")).items() - before.items() == {
        (runs.Path("run/report.html"), found.raw.encode())
    }
    assert main(["report", "--run=run", "--out", "other.html"]) == 0
    assert runs.Path("other.html").exists()
    assert main(["test", "--run", "run"]) == 0
    found = page()
    tested = json.loads(runs.Path("run/test.json").read_text())
    assert f"epoch {tested['epoch']}, chosen on validation." in found.text
    for name, value in tested["scores"].items():
        assert float(found.fact(name)) == pytest.approx(value, rel=1e-3, nan_ok=True)
    assert f"by ckdlite {__version__}" in found.fact("started")


def test_the_page_of_a_teacher():
    assert fit("teacher") == 0
    found = page()
    assert_alone(found)
    assert found.fact("module") == "Teacher"
    assert "None was logged" in found.text  # no firing rates
    assert "Rows: image, epoch 0." in " ".join(found.alts)
    assert "right, accuracy" in found.text
    assert [row[0] for row in found.cells if len(row) == 4][1:] == ["network"]


def test_a_run_that_was_stopped_in_its_first_epoch(tmp_path):
    """It was started from Python too, so that no file says how many epochs were wanted."""
    with pytest.raises(Stop):
        start(tmp_path, StopAt(2))
    found = page(tmp_path)
    assert_alone(found)
    assert found.fact("epochs").startswith("0; not ended: the command that began the run")
    assert found.text.count("were not opened: no epoch has ended") == 2
    assert "The run kept no maps, and none can be made: no epoch has ended" in found.text
    assert "train/loss" in found.text and "No config.yaml" in found.text


def test_a_run_that_was_stopped_later(tmp_path):
    with pytest.raises(Stop):
        start(tmp_path, StopAt(5))
    found = page(tmp_path)
    assert_alone(found)
    assert found.fact("epochs").startswith("1 of 3; not ended")
    assert found.fact("module") == "Distil" and found.fact("student") == "ResNet"
    assert found.text.count("were not opened: there is no config.yaml") == 2
    assert "Rows: image, teacher, epoch 0." in " ".join(found.alts)
    assert [row["epoch"] for row in found.table("train/loss")] == ["0", "1"]
    start(tmp_path)
    found = page(tmp_path)
    assert found.fact("epochs") == "3 of 3"
    assert [row["epoch"] for row in found.table("train/loss")] == ["0", "1", "2"]


def test_networks_that_are_not_here(monkeypatch):
    """The page says so, and shows the rest."""
    assert fit("kd") == 0
    file = runs.Path("run/config.yaml")
    file.write_text(file.read_text().replace("ckdlite.networks.resnet8", "gone.Net"))
    found = page()
    assert "the networks and the data were not opened" in found.text and "gone" in found.text
    assert "train/kd" in found.text and "Rows: image, teacher, epoch 0." in " ".join(found.alts)


def test_a_run_that_kept_no_maps():
    """As those of earlier versions: they are made of the last weights."""
    assert fit("kd") == 0
    maps = runs.Path("run/maps")
    kept = {p.name: dict(np.load(p)) for p in maps.iterdir()}
    for file in maps.iterdir():
        file.unlink()
    found = page()
    assert "The run kept no maps; these are of its last checkpoint" in found.text
    assert "Rows: image, teacher, last." in " ".join(found.alts)
    assert kept.keys() == {"images.npz", "epoch-0000.npz"}


def test_what_comes_from_files_is_text(tmp_path):
    run = tmp_path / "<b>x"
    assert fit("kd", run=run) == 0
    settings = run / "config.yaml"
    hostile = '"><script>alert(1)</script>'
    settings.write_text(f"# {hostile}\n{settings.read_text()}")
    (run / "test.json").write_text(json.dumps({"checkpoint": hostile, "scores": {hostile: 0.5}}))
    starts = run / "starts.jsonl"
    starts.write_text(json.dumps(json.loads(starts.read_text()) | {"ckdlite": "<i>"}) + "\n")
    log = run / "csv" / "version_0" / "metrics.csv"
    log.write_text(log.read_text().replace("train/kd", "train/<b>kd"))
    found = page(run)
    assert_alone(found)
    assert not {"b", "i"} & {tag for tag, _ in found.tags}
    for text in ("<b>x", hostile, "train/<b>kd", "ckdlite <i>"):
        assert text in found.text


@pytest.mark.parametrize("kind", [training.Distil, training.Teacher])
def test_data_of_my_own(tmp_path, kind):
    """Images and labels, fewer than the pictures wanted, from a plain loader."""
    module, _ = build(kind=kind)
    loader = DataLoader(TensorDataset(torch.rand(4, 3, 32, 32), torch.arange(4)), batch_size=4)
    trainer(tmp_path, 1).fit(module, loader, loader)
    found = page(tmp_path)
    assert_alone(found)
    assert "The first 4 images of the validation split" in found.text


def test_many_validations_are_a_few_rows():
    assert fit("kd") == 0
    maps = runs.Path("run/maps")
    for epoch in range(1, 30):
        (maps / f"epoch-{epoch:04d}.npz").write_bytes((maps / "epoch-0000.npz").read_bytes())
    found = page()
    assert "8 of 30 validations are shown" in found.text
    assert "Rows: image, teacher, epoch 0, epoch 4," in " ".join(found.alts)
    assert "epoch 29." in " ".join(found.alts)


def test_drawing_leaves_chance_and_style_alone():
    import matplotlib as mpl

    assert fit("kd") == 0
    style = dict(mpl.rcParams)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    report("run")
    assert torch.equal(torch.get_rng_state(), state)
    assert dict(mpl.rcParams) == style


# ---------------------------------------------------------------- the maps that a run keeps


@pytest.mark.parametrize("kind", [training.Distil, training.Teacher])
def test_keeping_maps_changes_nothing(tmp_path, kind):
    start(tmp_path / "with", kind=kind)
    module, scenes = build(kind=kind)
    without = trainer(tmp_path / "without")
    without.callbacks = [c for c in without.callbacks if not isinstance(c, runs._Maps)]
    without.fit(module, datamodule=scenes)
    assert not (tmp_path / "without" / "maps").exists()
    for which in ("last", "best"):
        a, b = weights(tmp_path / "with", which), weights(tmp_path / "without", which)
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert str(history(tmp_path / "with")) == str(history(tmp_path / "without"))

    files = sorted((tmp_path / "with" / "maps").iterdir())
    assert [f.name for f in files] == [*(f"epoch-000{e}.npz" for e in range(3)), "images.npz"]
    held = [dict(np.load(f, allow_pickle=False)) for f in files]
    assert held[0].keys() == ({"own"} if kind is training.Teacher else {"own", "guide"})
    assert all(a.dtype == np.uint8 and len(a) == 6 for maps in held[:-1] for a in maps.values())
    assert held[-1]["images"].shape == (6, 3, 32, 32)
    # What is kept is the map of these images by the weights of that epoch.
    if kind is training.Teacher:
        path = checkpoint(tmp_path / "with", "last")
        module.load_state_dict(read(path)["state_dict"])
        batch = scenes.on_after_batch_transfer(next(iter(scenes.val_dataloader())), 0)
        maps, _ = training.grad_cam(module.network.eval(), "stage1", batch[0][:6], batch[1][:6])
        assert np.abs(runs._bytes(maps).astype(int) - held[2]["own"]).max() <= 1
        assert batch[1][:6].tolist() == held[-1]["labels"].tolist()


def test_a_validation_alone_keeps_no_maps(tmp_path):
    start(tmp_path, epochs=1)
    before = contents(tmp_path / "maps")
    module, scenes = build()
    path = checkpoint(tmp_path, "last")
    trainer(tmp_path, logger=False).validate(
        module, datamodule=scenes, ckpt_path=path, verbose=False
    )
    assert contents(tmp_path / "maps") == before


def test_pictures_of_any_batch():
    maps = torch.rand(8, 4, 4, dtype=torch.float32)
    labels = torch.arange(8)
    grey, found = runs.pictures(runs.Seen(labels, maps), [torch.rand(8, 1, 5, 5), labels])
    assert grey["images"].shape == (6, 3, 5, 5) and grey["images"].max() == 255
    assert found.keys() == {"own"} and (found["own"].max((1, 2)) == 255).all()
    frames = [torch.rand(2, 8, 2, 5, 5), labels]
    none, found = runs.pictures(runs.Seen(labels, torch.zeros(8, 4, 4)), frames)
    assert none["images"].shape == (0, 3, 1, 1) and not found["own"].any()
    assert none["labels"].tolist() == [0, 1, 2, 3, 4, 5]


# ---------------------------------------------------------------- what is refused


@pytest.mark.bad_input
def test_no_run_and_nothing_logged(tmp_path, capsys):
    text = complaint(capsys, main(["report", "--run", "nowhere"]))
    assert "nowhere holds no run; ckdlite fit --run FOLDER makes one" in text
    (tmp_path / "run").mkdir()
    with pytest.raises(RunError, match="run holds no run"):
        report("run")
    (tmp_path / "run" / "config.yaml").write_text("trainer: {}\n")
    with pytest.raises(RunError, match="nothing was logged yet. Wait for the first steps"):
        report("run")
    log = tmp_path / "run" / "csv" / "version_0" / "metrics.csv"
    log.parent.mkdir(parents=True)
    log.write_text("epoch,step\n")
    with pytest.raises(RunError, match="nothing was logged yet"):
        report("run")
    log.write_text("epoch,step,val/ce\n0,0,much\n")
    with pytest.raises(RunError, match="csv is damaged: .*much"):
        report("run")
    assert not (tmp_path / "run" / "report.html").exists()


@pytest.mark.bad_input
def test_damaged_files(tmp_path, capsys):
    assert fit("kd") == 0
    capsys.readouterr()

    def said(name, content):
        file = tmp_path / "run" / name
        before = file.read_bytes() if file.exists() else None
        file.write_text(content)
        text = complaint(capsys, main(["report", "--run", "run"]))
        file.unlink() if before is None else file.write_bytes(before)
        assert f"run/{name} is damaged" in text
        return text

    for content in ("seed_every", "a: [1, {", "", "- 1", "model: 3"):
        assert "Remove it: the report then does without" in said("config.yaml", content)
    for content in ("", "{", "[]", "{}", '{"scores": 3}', '{"scores": {"ce": "low"}}'):
        assert "`ckdlite test --run run` writes it again" in said("test.json", content)
    assert "the report does without" in said("maps/epoch-0000.npz", "PK")
    for content in ("{\n", "[]\n", '{"date": 1}\n'):
        assert "the report does without" in said("starts.jsonl", content)
    assert "take the other one" in said("checkpoints/last.ckpt", "half")
    path = checkpoint("run", "last")
    before = path.read_bytes()
    torch.save({"state_dict": {}}, path)
    assert "is no checkpoint of ckdlite" in complaint(capsys, main(["report", "--run", "run"]))
    path.write_bytes(before)
    assert main(["report", "--run", "run"]) == 0


@pytest.mark.bad_input
def test_without_matplotlib(monkeypatch):
    assert fit("kd") == 0
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "ckdlite.figures", raising=False)
    monkeypatch.delattr("ckdlite.figures", raising=False)
    with pytest.raises(RunError, match=r"pip install 'ckdlite\[chapters\]'"):
        report("run")


@pytest.mark.bad_input
def test_a_command_that_is_wrong(capsys):
    assert "required: run" in complaint(capsys, main(["report"]))
    assert "--nosuch" in complaint(capsys, main(["report", "--run", "run", "--nosuch", "1"]))


def test_help_names_the_report(capsys):
    assert "ckdlite report --run runs/paper" in shown(capsys, "--help")
    assert "report.html" in shown(capsys, "report", "--help")
