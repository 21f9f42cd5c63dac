"""The shipped networks load, are what their manifest says, and score what it says."""

import csv

import pytest
import torch

from ckdlite import _assets
from ckdlite.data import cluttered, normalise
from ckdlite.measure import accuracy, predict
from ckdlite.networks import pretrained, record
from ckdlite.saliency import grad_cam, pointing_game, spike_map

WEIGHTS = _assets.read_json("weights.json")
# The scores were measured where the networks were trained. Another processor rounds otherwise, and
# a spiking network turns a rounding into a spike more or less: measured, up to 0.0015.
TOLERANCE = 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", WEIGHTS)
def test_scores_what_the_manifest_says(name):
    test = cluttered("test")
    images, net = normalise(test.images), pretrained(name)
    assert not net.training
    logits = predict(net, images)
    assert accuracy(logits, test.labels) == pytest.approx(
        WEIGHTS[name]["test_accuracy"], abs=TOLERANCE
    )
    hits = []
    for x, y, masks in zip(
        images.split(500), test.labels.split(500), test.masks.split(500), strict=True
    ):
        if net.timesteps is None:
            maps = grad_cam(net, "stage3", x, y)[0]
        else:
            with torch.no_grad(), record(net, "stage3") as features:
                net(x)
            maps = spike_map(features["stage3"])
        hits.append(pointing_game(maps, masks))
    assert torch.cat(hits).mean().item() == pytest.approx(
        WEIGHTS[name]["test_pointing_game"], abs=TOLERANCE
    )


def test_every_network_has_its_runs():
    with (_assets.FOLDER / "shipped.csv").open() as file:
        runs = list(csv.DictReader(file))
    assert {(r["network"], r["seed"]) for r in runs} == {(n, s) for n in WEIGHTS for s in "012"}
    for run in runs:
        assert 0.5 < float(run["accuracy"]) < 1
        if run["seed"] == "0":
            assert float(run["accuracy"]) == pytest.approx(
                WEIGHTS[run["network"]]["test_accuracy"], abs=1e-4
            )


def test_shipped_files_are_named_in_a_manifest():
    named = {entry["file"] for entry in WEIGHTS.values()}
    assert {p.name for p in _assets.FOLDER.glob("*.safetensors")} == named


@pytest.mark.bad_input
def test_unknown_missing_and_damaged(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="got 'student', wanted one of teacher, label-only"):
        pretrained("student")
    for name in ("weights.json", "teacher.safetensors"):
        (tmp_path / name).write_bytes((_assets.FOLDER / name).read_bytes())
    monkeypatch.setattr(_assets, "FOLDER", tmp_path)
    pretrained("teacher")
    raw = bytearray((tmp_path / "teacher.safetensors").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "teacher.safetensors").write_bytes(raw)
    with pytest.raises(ValueError, match=r"teacher\.safetensors is damaged; reinstall ckdlite"):
        pretrained("teacher")
    with pytest.raises(FileNotFoundError, match=r"samd\.safetensors is missing"):
        pretrained("samd")
    (tmp_path / "weights.json").write_text("{")
    with pytest.raises(ValueError, match=r"weights\.json is damaged"):
        pretrained("teacher")
