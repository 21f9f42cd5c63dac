"""The benchmarks compare like with like, and the committed results are theirs."""

import argparse
import csv
from pathlib import Path

import epoch
import peers
import pytest
import speed
import torch
from PIL import Image

from ckdlite.networks import resnet8

RESULTS = Path(__file__).parents[1] / "ckdlite" / "assets" / "speed-cpu.csv"


@pytest.mark.parametrize("name", ["SpikingJelly", "snnTorch", "ckdlite compiled"])
def test_every_neuron_computes_the_same(compiles, name):
    generator = torch.Generator().manual_seed(0)
    x = 0.8 * torch.randn(4, 3, 50, generator=generator) + 0.4
    grad = torch.randn(x.shape, generator=generator)
    results = []
    for neuron in (peers.NEURONS["ckdlite plain"], peers.Neuron(name)):
        leaf = x.clone().requires_grad_()
        spikes = neuron(leaf)
        spikes.backward(grad)
        results.append((spikes.detach(), leaf.grad))
    assert 0.05 < results[0][0].mean() < 0.95
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("name", ["SpikingJelly compiled", "snnTorch compiled"])
def test_compiled_peers_compute_the_same(needs_compiler, name):
    test_every_neuron_computes_the_same(True, name)


def test_ratios_are_taken_within_a_round(monkeypatch):
    clock = iter([1.0, 2.0, 3.0, 10.0, 30.0, 40.0, 2.0, 8.0, 10.0])
    monkeypatch.setattr(speed, "_seconds", lambda function, device: next(clock))
    calls = []
    cases = [
        {"case": "a", "run": lambda: calls.append("a")},
        {"case": "b", "run": lambda: calls.append("b"), "against": "a"},
        {"case": "c", "run": lambda: calls.append("c"), "against": "a + b"},
    ]
    a, b, c = speed.measure(cases, 3, "cpu")
    assert "ratio" not in a and (a["low"], a["median"], a["high"]) == (1500, 2000, 6000)
    assert (b["ratio_low"], b["ratio"], b["ratio_high"]) == (2.5, 3, 3.5)  # of 2, 3, 4
    assert c["ratio"] == 1 and c["rounds"] == 3 and "run" not in c
    assert calls[:6] == ["a", "b", "c", "a", "b", "c"]
    with pytest.raises(ValueError, match="one name"):
        speed.measure([cases[0], cases[0]], 3, "cpu")


def test_a_group_replaces_its_own_rows_alone(tmp_path):
    path = tmp_path / "speed.csv"
    row = {"case": "copy", "unit": "ms", "median": 1.5, "timesteps": None}
    speed.write(path, "neuron", [row, row | {"case": "plain"}], "cpu")
    speed.write(path, "step", [row | {"case": "ANN"}], "cpu")
    speed.write(path, "neuron", [row | {"median": 2.5}], "cpu")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["group"], r["case"], r["median"]) for r in rows] == [
        ("neuron", "copy", "2.5"),
        ("step", "ANN", "1.5"),
    ]
    assert rows[0]["timesteps"] == "" and rows[0]["torch"] in torch.__version__
    assert [p.name for p in tmp_path.iterdir()] == ["speed.csv"]


@pytest.mark.slow
def test_the_command_measures_and_writes(compiles, tmp_path, monkeypatch):
    path = tmp_path / "speed.csv"
    monkeypatch.setattr(speed.memory, "reuse", lambda: True)  # not for the whole test process
    words = ["distil", "--alone", "--rounds", "3", "--out", str(path)]
    monkeypatch.setattr("sys.argv", ["speed.py", *words])
    small = speed._network
    monkeypatch.setattr(speed, "_network", lambda n, t, w=1, b=1: small(n, t, w, 1))
    monkeypatch.setattr(speed, "BATCH", 8)
    speed.main()
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {r["case"] for r in rows if r["timesteps"] == "4"} == {
        *("label-only", "kd", "samd", "nld", "samd and nld", "teacher forward")
    }
    assert all(float(r["median"]) > 0 for r in rows)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("words", "said"),
    [("nothing", "wanted groups of"), ("neuron --rounds 2", "at least 3 rounds")],
)
def test_bad_words(monkeypatch, capsys, words, said):
    monkeypatch.setattr("sys.argv", ["speed.py", *words.split()])
    with pytest.raises(SystemExit):
        speed.main()
    assert said in capsys.readouterr().err


def test_the_committed_results_are_whole():
    with RESULTS.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == speed.COLUMNS
    assert list(dict.fromkeys(r["group"] for r in rows)) == list(speed.GROUPS)
    cases = {(r["group"], r["case"]) for r in rows}
    for r in rows:
        assert float(r["median"]) > 0 and r["unit"] and r["torch"] and r["date"]
        if r["unit"] == "ms":
            assert int(r["rounds"]) >= 3
            assert float(r["low"]) <= float(r["median"]) <= float(r["high"])
        if r["ratio_low"]:
            assert float(r["ratio_low"]) <= float(r["ratio"]) <= float(r["ratio_high"])
            assert all((r["group"], base) in cases for base in r["against"].split(" + "))


def test_the_readme_shows_the_measured_speed():
    with RESULTS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")

    def one(group, column="ratio", **columns):
        found = [r for r in rows if r["group"] == group]
        (row,) = [r for r in found if all(r[k] == v for k, v in columns.items())]
        return float(row[column])

    for name in peers.NEURONS:
        time = one("neuron", case=name, batch=str(2**22), precision="float32")
        unit = "bytes a neuron and step"
        kept = one("saved", "median", case=name, timesteps="4", unit=unit)
        assert f"| {name} | {time:.1f} | {kept:.0f} |\n" in readme
        steps = [
            one("libraries", case=f"{name}, T = {timesteps}", layout="channels last")
            for timesteps in (2, 4)
        ]
        assert f"| {name} | {steps[0]:.1f} | {steps[1]:.1f} |\n" in readme
    for group in ("step", "unused"):
        same = {"precision": "float32", "layout": "channels last"}
        shares = [
            one(group, case=f"ckdlite compiled, T = {timesteps}", **same) / timesteps
            for timesteps in (1, 2, 4, 8)
        ]
        assert f" | {' | '.join(f'{share:.2f}' for share in shares)} |\n" in readme
    distilled = [one("distil", case="samd and nld", timesteps=str(t)) for t in (2, 4)]
    assert f"{min(distilled):.2f} to {max(distilled):.2f} times the sum" in readme


def test_an_epoch_is_timed_through_network_and_engine(monkeypatch):
    """Every kind of case ends in a number, on a network small enough."""
    monkeypatch.setattr(epoch, "resnet19", resnet8)
    monkeypatch.setattr(epoch, "BATCH", 4)
    given = argparse.Namespace(device="cpu", precision="32-true", images=8, folder=None)
    found = epoch.cases(None)
    assert [name for name, _ in found if name in peers.NEURONS] == 2 * list(peers.NEURONS)
    # Without the compiler, which has tests of its own.
    monkeypatch.setitem(epoch.NEURONS, "ckdlite compiled", epoch.NEURONS["ckdlite plain"])
    for case in (("ANN", None), ("ckdlite plain", 2), ("SpikingJelly", 1), ("loss paper", 2)):
        assert epoch.epoch(*case, given)["images_per_second"] > 0


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_the_data_path_is_timed_on_a_folder(tmp_path):
    for part, count in (("train", 60), ("test", 1)):
        for label in range(10):
            (tmp_path / part / str(label)).mkdir(parents=True)
            for i in range(count):
                picture = Image.new("RGB", (32, 32), (25 * label, i, 90))
                picture.save(tmp_path / part / str(label) / f"{i}.jpg")
    given = argparse.Namespace(folder=tmp_path, loaded=128)
    assert epoch.epoch("data path, 0 workers", None, given)["images_per_second"] > 0
    with pytest.raises(ValueError, match="too few images for 2 workers' first batches"):
        epoch.epoch("data path, 2 workers", None, given)


def test_a_case_of_an_epoch_replaces_its_own_row_alone(tmp_path):
    path = tmp_path / "epoch.csv"
    row = dict.fromkeys(epoch.COLUMNS, "") | {"case": "ANN", "images_per_second": 5}
    epoch.write(row, path)
    epoch.write(row | {"timesteps": 4}, path)
    epoch.write(row | {"images_per_second": 6}, path)
    with path.open(newline="") as file:
        rows = [(r["timesteps"], r["images_per_second"]) for r in csv.DictReader(file)]
    assert rows == [("", "6"), ("4", "5")]
