"""Events to frames by the real tonic; CIFAR10-DVS's recipes on generated recordings."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from ckdlite import events, runs
from ckdlite.cli import main
from ckdlite.networks import MeanFrames, resnet8
from ckdlite.runs import RunError, checkpoint, history, read

tonic = pytest.importorskip("tonic")

FIELDS = [("t", np.int64), ("x", np.int16), ("y", np.int16), ("p", np.int8)]
BASE = "cifar10-dvs-resnet20"
METHODS = ("label-only", "kd", "paper", "released")
# The recipe, but for its size and the compiler.
SMALL = [
    *("--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1"),
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    *("--trainer.enable_model_summary", "false", "--trainer.log_every_n_steps", "1"),
    *("--trainer.limit_val_batches", "1", "--trainer.limit_test_batches", "1"),
    *("--data.batch_size", "2", "--data.images", "4", "--data.workers", "0"),
    *("--data.root", "mine", "--data.recordings", "0"),
]
PLAIN = ["--model.student.neuron.compiled", "false", "--model.gradient_norms_every", "1"]


def recording(seed=0, count=3000, span=100_000):
    draw = np.random.default_rng(seed)
    made = np.zeros(count, FIELDS)
    made["t"] = 5_000 + np.sort(draw.integers(0, span, count))
    made["x"], made["y"] = draw.integers(0, 128, (2, count))
    made["p"] = draw.integers(0, 2, count)
    return made


def write(root, classes=2, count=10, dense=500):
    """Recordings whose class and number are the place of their first event."""
    for label in range(classes):
        folder = Path(root) / "abcdefghij"[label]
        folder.mkdir(parents=True)
        for i in range(count):
            made = recording(100 * label + i, dense)
            made["x"][0], made["y"][0], made["p"][0] = i, label, 1
            np.save(folder / f"cifar10_{i}.npy", made)


@pytest.fixture(autouse=True)
def there(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def fit(*overlays, run, options=()):
    configs = [word for name in (BASE, *overlays) for word in ("--config", name)]
    return main(["fit", "--run", run, *configs, *SMALL, *options])


@pytest.mark.parametrize("timesteps", [1, 3, 10])
def test_frames_count_events_by_bin_polarity_and_pixel(timesteps):
    made = recording()
    wanted = torch.zeros(timesteps, 2, 128, 128)
    start, end = int(made["t"][0]), int(made["t"][-1])
    for t, x, y, p in made.tolist():
        if (b := (t - start) // ((end - start) // timesteps)) < timesteps:
            wanted[b, p, y, x] += 1
    got = events.frames(made, timesteps, size=None)
    assert torch.equal(got, wanted) and got.dtype == torch.float32
    assert len(made) - 20 < got.sum() < len(made)


def test_resized_frames_keep_the_mean_count():
    whole = events.frames(recording(), size=None)
    small = events.frames(recording())
    assert small.shape == (10, 2, 48, 48)
    assert small.mean((1, 2, 3)).tolist() == pytest.approx(whole.mean((1, 2, 3)).tolist(), rel=0.05)


def changed(**fields):
    made = recording()
    for name, value in fields.items():
        made[name][7] = value
    return made


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (recording()[["t", "x", "y"]], r"fields t, x, y, wanted at least one event with"),
        (np.zeros(9), r"shape \(9,\) with the fields none"),
        (recording()[:0], r"shape \(0,\)"),
        (recording()[None], r"shape \(1, 3000\)"),
        (changed(x=128), r"x from 0 to 128, wanted 0 to 127"),
        (changed(y=-1), r"y from -1 to 127, wanted 0 to 127"),
        (changed(p=2), r"p from 0 to 2, wanted 0 to 1"),
        (changed(t=999_999), r"wanted rising ones"),
        (recording(span=9), r"span at least T = 10 microseconds"),
    ],
)
def test_what_is_no_recording_is_refused(given, said):
    with pytest.raises(ValueError, match=f"events: got .*{said}"):
        events.frames(given)


@pytest.mark.bad_input
def test_sizes_below_one_are_refused():
    for wrong in ({"timesteps": 0}, {"size": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}.* 0"):
            events.frames(recording(), **wrong)
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}.* 0"):
            events.EventData(**wrong)
    with pytest.raises(ValueError, match="pixels: got -1"):
        events.Roll(-1)


def places(module, split):
    """Class and number of each recording of a split, read off its first event."""
    found = []
    for i in range(len(held := module._dataset(split))):
        label, number = held.places[i]
        marked = held[i][0]
        assert held[i][1] == label and marked.shape == (3, 2, 128, 128)
        assert marked[0, 1, label, number] >= 1
        found.append((label, number))
    return found


def test_the_last_tenth_of_each_class_tests_and_a_tenth_of_the_rest_validates():
    write("mine", count=30)
    module = events.EventData("mine", timesteps=3, size=128, recordings=30)
    train, held, test = (places(module, split) for split in ("train", "validation", "test"))
    # By number, not by name: 9 comes before 10.
    assert test == [(label, i) for label in (0, 1) for i in (27, 28, 29)]
    assert len(train) == 50 and [label for label, _ in held] == [0, 0, 1, 1]
    assert sorted(train + held + test) == [(label, i) for label in (0, 1) for i in range(30)]
    again = events.EventData("mine", timesteps=3, size=128, recordings=0, seed=5)
    assert places(again, "validation") == held
    some = events.EventData("mine", timesteps=3, size=128, recordings=30, images=8, batch_size=4)
    assert len(some._dataset("train")) == 8 and len(some._dataset("test")) == 6
    with pytest.raises(ValueError, match="images: got 51, wanted at most the 50 training images"):
        events.EventData("mine", 3, 128, 0, images=51, batch_size=4).train_dataloader()


def test_frames_are_made_once_and_whole(monkeypatch, capsys):
    write("mine")
    module = events.EventData("mine", recordings=0)
    made = module._frames()
    assert [str(path) for path in made] == ["mine-frames/10x48/a.npy", "mine-frames/10x48/b.npy"]
    assert np.load(made[0]).dtype == np.float16
    direct = events.frames(np.load("mine/a/cifar10_3.npy")).half()
    assert torch.equal(torch.from_numpy(np.load(made[0])[3]), direct)
    assert capsys.readouterr().err.count("making the frames of 10 x") == 2
    with monkeypatch.context() as patch:
        patch.setattr(events, "frames", None)  # not called again
        events.EventData("mine", recordings=0)._frames()
    assert capsys.readouterr().err == ""
    # Another T or size has files of its own.
    assert events.EventData("mine", 2, recordings=0)._frames()[0].parent.name == "2x48"

    made[1].unlink()
    calls = []

    def stops(*given):
        calls.append(given)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return torch.zeros(10, 2, 48, 48)

    with monkeypatch.context() as patch:
        patch.setattr(events, "frames", stops)
        with pytest.raises(KeyboardInterrupt):
            module._frames()
    assert made[0].exists() and not made[1].exists()
    module._frames()
    assert made[1].exists() and not list(made[1].parent.glob("*.part"))


def test_the_frames_of_a_sample_are_augmented_alike():
    still = torch.rand(1, 2, 48, 48).expand(10, 2, 48, 48)
    for step in (events.Roll(5), v2.RandomHorizontalFlip(1.0)):
        changed = step(still)
        assert torch.equal(changed, changed[:1].expand_as(changed))
    shifts = set()
    spot = torch.zeros(3, 2, 48, 48)
    spot[..., 0, 0] = 1
    for _ in range(400):
        rolled = events.Roll(2)(spot)
        assert rolled.sum() == spot.sum()
        y, x = rolled[0, 0].nonzero()[0].tolist()
        shifts.add(((y + 2) % 48, (x + 2) % 48))
    assert shifts == {(y, x) for y in range(5) for x in range(5)}
    assert torch.equal(events.Roll(0)(spot), spot)


def test_the_seed_alone_decides_a_samples_augmentation():
    write("mine")
    steps = [v2.RandomHorizontalFlip(), events.Roll(5)]
    options = {"recordings": 0, "batch_size": 4, "augment": steps}
    one = [
        torch.cat([batch[0] for batch in module.train_dataloader()])
        for module in (events.EventData("mine", **options, seed=s) for s in (0, 0, 1))
    ]
    assert torch.equal(one[0], one[1]) and not torch.equal(one[0], one[2])
    assert repr(events.Roll(5)) == "Roll(pixels=5)"


def test_batches_come_time_first():
    write("mine")
    module = events.EventData("mine", recordings=0, batch_size=4)
    raw = next(iter(module.train_dataloader()))
    samples, labels = module.on_after_batch_transfer(raw, 0)
    assert samples.shape == (10, 4, 2, 48, 48) and samples.dtype == torch.float32
    assert torch.equal(samples[3, 1], raw[0][1, 3].float()) and labels.shape == (4,)


def test_the_teacher_sees_the_mean_over_time():
    network = resnet8(in_channels=2).eval()
    x = torch.rand(5, 3, 2, 16, 16)
    with torch.no_grad():
        assert torch.equal(MeanFrames(network)(x), network(x.mean(0)))
    with pytest.raises(ValueError, match=r"got shape \[3, 2, 16, 16\], wanted \[T, B, C, H, W\]"):
        MeanFrames(network)(x[0])


@pytest.mark.slow
def test_every_method_trains_on_recordings():
    """A teacher, and each method with it: two steps of 10 x 2 x 48 x 48, a validation, a test."""
    write("mine", classes=10, count=3, dense=100_000)
    assert fit(f"{BASE}-teacher", run=f"runs/{BASE}-teacher") == 0
    best = read(checkpoint(f"runs/{BASE}-teacher", "best"))["state_dict"]
    assert best["network.network.stem.0.weight"].shape == (16, 2, 3, 3)
    for method in METHODS:
        assert fit(method, run=f"runs/{method}", options=PLAIN) == 0
        saved = read(checkpoint(f"runs/{method}", "last"))
        assert saved["global_step"] == 2
        assert saved["recipe"]["data"]["timesteps"] == 10
        weights = saved["state_dict"]
        for name, value in best.items():
            if name.startswith("network.") and "running" not in name and "num_b" not in name:
                own = weights["teacher." + name.removeprefix("network.")]
                assert torch.equal(own, value)
        rows = history(f"runs/{method}")
        names = set().union(*rows)
        wanted = {"kd": {"kd"}, "paper": {"samd", "nld"}, "released": {"samd", "nld"}}
        for term in ("kd", "samd", "nld"):
            assert (f"train/{term}" in names) == (term in wanted.get(method, ()))
        rates = [row["val/firing_rate"] for row in rows if "val/firing_rate" in row]
        assert rates and all(0 <= rate < 1 for rate in rates)
        assert {"val/divergence", "val/accuracy"} <= names
    assert main(["test", "--run", "runs/paper"]) == 0
    assert main(["report", "--run", "runs/paper"]) == 0


def test_firing_rates_are_weighted_by_recordings_not_by_timesteps():
    """Validation batches of 2 and 1: their mean is that of three recordings."""
    import lightning.pytorch as L

    from ckdlite.training import Distil

    write("mine", count=20, dense=200_000)
    torch.manual_seed(0)
    student = resnet8(classes=2, timesteps=4, in_channels=2)
    module = Distil(student, MeanFrames(resnet8(2, in_channels=2)), "stage3", "network.stage3")
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options |= {"accelerator": "cpu", "inference_mode": False, "enable_checkpointing": False}
    found = []
    for scored in (2, 1):
        held = events.EventData("mine", 4, 32, recordings=0)
        held.scored = scored
        held._held["validation"] = torch.utils.data.Subset(held._dataset("test"), range(3))
        (scores,) = L.Trainer(**options).validate(module, held, verbose=False)
        found.append(scores["val/firing_rate"])
    assert 0 < found[0] == pytest.approx(found[1], rel=1e-5)


def test_another_number_of_timesteps_is_two_options_and_one_is_refused(capsys):
    write("mine")
    four = ["--data.timesteps", "4"]
    assert fit(f"{BASE}-teacher", run=f"runs/{BASE}-teacher", options=four) == 0
    capsys.readouterr()
    assert fit("paper", run="runs/paper", options=[*PLAIN, *four]) == 1
    said = capsys.readouterr().err
    assert "the student has 10, the data 4 frames" in said
    assert "--model.student.timesteps and --data.timesteps" in said
    both = [*PLAIN, *four, "--model.student.timesteps", "4"]
    assert fit("paper", run="runs/paper", options=both) == 0
    assert runs.resume("runs/paper")
    # The recordings' number of timesteps belongs to the run.
    assert fit("paper", run="runs/paper", options=[*PLAIN]) == 1
    assert "data.timesteps: saved 4, now 10" in capsys.readouterr().err


def test_every_setting_but_where_the_recordings_lie_belongs_to_the_run():
    one, other = events.EventData("here"), events.EventData("there")
    assert one.recipe() == other.recipe()
    assert events.EventData("here", size=32).recipe() != one.recipe()


@pytest.mark.bad_input
def test_recordings_that_are_missing_or_damaged(capsys):
    def refused(error, said, **options):
        with pytest.raises(error, match=said):
            events.EventData("mine", **({"recordings": 0} | options)).prepare_data()

    refused(FileNotFoundError, r"mine: no folders of recordings .* --data.download true")
    assert fit("label-only", run="runs/x", options=PLAIN[:2]) == 1
    assert "runs/cifar10-dvs-resnet20-teacher is missing" in capsys.readouterr().err
    assert fit(f"{BASE}-teacher", run="runs/x") == 1
    assert "mine: no folders of recordings there" in capsys.readouterr().err
    write("mine")
    refused(FileNotFoundError, r"a: 10 recordings .* wanted 1000; .* begin again", recordings=1000)
    damaged = Path("mine/b/cifar10_4.npy")
    whole = damaged.read_bytes()
    for piece in (b"", whole[:200], b"nonsense"):
        damaged.write_bytes(piece)
        refused(RunError, r"b/cifar10_4.npy is damaged or no recording: .*; replace it")
    np.save(damaged, changed(x=128))
    refused(RunError, r"b/cifar10_4.npy is damaged .* x from 0 to 128")
    damaged.write_bytes(whole)
    module = events.EventData("mine", recordings=0)
    module.prepare_data()
    cached = Path("mine-frames/10x48/a.npy")
    cached.write_bytes(cached.read_bytes()[:1000])
    refused(RunError, r"10x48/a.npy is damaged; remove it")
    cached.unlink()
    module.prepare_data()
    Path("mine/a/cifar10_9.npy").unlink()
    refused(RunError, r"a.npy has shape \(10, .*mine/a wants \(9, .* remove it")
    for i in range(2, 9):
        Path(f"mine/a/cifar10_{i}.npy").unlink()
    refused(FileNotFoundError, r"a: 2 recordings .* wanted at least 3")


def test_a_download_is_tonics_and_its_failure_says_what_to_do(monkeypatch):
    asked = []

    def fails(self):
        asked.append(self.location_on_system)
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr(tonic.datasets.CIFAR10DVS, "download", fails)
    module = events.EventData("data/CIFAR10DVS", download=True)
    with pytest.raises(RunError, match=r"could not be fetched: File not .* into data/CIFAR10DVS"):
        module.prepare_data()
    assert asked == ["data/CIFAR10DVS"]
    assert len(tonic.datasets.CIFAR10DVS.file_md5) == 32
    with pytest.raises(FileNotFoundError, match="no folders of recordings"):
        events.EventData("data/CIFAR10DVS").prepare_data()
    assert len(asked) == 1
    with pytest.raises(ValueError, match="root: got mine to download to"):
        events.EventData("mine", download=True)


def test_an_aedat4_file_is_read_by_tonic():
    """300 events, 1 ms apart, written by the maker's own library, dv-processing 2.0.4."""
    pytest.importorskip("aedat")
    path = Path(__file__).parent / "generated.aedat4"
    found = events._read(path)
    assert set(found.dtype.names) == {"t", "x", "y", "p"}
    assert len(found) == 300 and set(np.diff(found["t"].astype(np.int64))) == {1000}
    first = found[0]
    assert (int(first["x"]), int(first["y"]), bool(first["p"])) == (108, 81, True)
    assert events.frames(found, size=None).sum((1, 2, 3)).tolist() == [30] * 9 + [29]
    damaged = Path("mine/a/cut.aedat4")
    damaged.parent.mkdir(parents=True)
    for name in ("cut", "one", "two"):
        damaged.with_stem(name).write_bytes(path.read_bytes()[:2000])
    with pytest.raises(RunError, match=r"cut.aedat4 is damaged or no recording"):
        events.EventData("mine", recordings=0).prepare_data()


def test_without_the_packages_the_extra_is_named(monkeypatch):
    for missing, wants, given in (
        ("aedat", events._read, Path("x.aedat4")),
        ("tonic", events.frames, recording()),
    ):
        monkeypatch.setitem(sys.modules, missing, None)
        with pytest.raises(ImportError, match=r"pip install 'ckdlite\[events\]'"):
            wants(given)
