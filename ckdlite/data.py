"""Images to learn from: cluttered Fashion-MNIST (shipped), CIFAR, and folders of images.

The shipped scenes are made with integer arithmetic from raw Philox words. The same call
therefore gives the same bytes on every machine and with every version of NumPy.
"""

import lzma
import math
from collections.abc import Callable, Sequence
from functools import cache
from operator import index
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset, Subset

from ._assets import damaged, read, read_json

#: The parts of the data. No item is in two of them.
SPLITS = ("train", "validation", "test")

#: The ten classes of the scenes; a label is a position here.
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

# `python experiments/make_fashion.py --digests` prints them.
#: Mean of each channel over the 14,000 training scenes of seed 0, in units of the [0, 1] range.
MEAN = (0.443, 0.445, 0.443)
#: Standard deviation of each channel over the same scenes, in the same units.
STD = (0.199, 0.198, 0.198)

# The amounts of the committed digests, of the cast and of the shipped networks.
_CLUTTER = 6
_NOISE = 24
_CLOUDS = 48

_SIDE = 32
_ITEM = 28
_SIZES = (18, 22)  # side of the object, in pixels of the canvas
_CROPS = (8, 11)  # side of a distractor patch
_GRID = 5  # points a side of the coarse ground; they lie 8 pixels apart
_OPAQUE = 4  # alpha is this many times the intensity, so that only the rim is translucent
_MASKED = 128  # alpha from which a pixel belongs to the object
_CHUNK = 256  # scenes made at a time: enough to vectorise, few enough to stay in the cache

# The random bytes of one scene. The patches come last, so that more clutter leaves the
# ground, the object and the first patches as they were.
_HEAD_BYTES = 8 * 4
_GRID_BYTES = _GRID * _GRID * 3
_NOISE_BYTES = _SIDE * _SIDE * 3
_GROUND_END = _HEAD_BYTES + _GRID_BYTES + _NOISE_BYTES
_PATCH_BYTES = 9 * 4


class Scenes(NamedTuple):
    """Labelled images with the mask of the object that the label names.

    A tuple of tensors, so `TensorDataset(*scenes)` is a dataset.

    Attributes:
        images: RGB, 0 to 255.
        labels: positions in `CLASSES`.
        masks: true where the object is.
    """

    images: UInt8[Tensor, "N 3 32 32"]
    labels: Int64[Tensor, " N"]
    masks: Bool[Tensor, "N 32 32"]


def cluttered(
    split: str,
    n: int | None = None,
    *,
    seed: int = 0,
    clutter: int = _CLUTTER,
    noise: int = _NOISE,
    clouds: int = _CLOUDS,
) -> Scenes:
    """Make scenes of cluttered Fashion-MNIST.

    A scene is a 32×32 RGB canvas. Its ground is a random colour with smooth clouds and noise
    a pixel. On it lie `clutter` tinted patches cut from other items of the split. On top lies
    one whole item, 18 to 22 pixels a side, tinted, at a random place. Its class is the label
    and its opaque pixels are the mask, about a fifth of the canvas.

    Scene i shows item i modulo the number of items: 14,000 in "train", 2,000 in "validation",
    4,000 in "test". Labels therefore run 0 to 9 again and again: shuffle before training. No
    item is in two splits. Scene i depends on `split`, `seed`, i and the three amounts below,
    not on `n`. More clutter keeps the ground, the object and the patches that were there.

    Args:
        split: "train", "validation" or "test".
        n: number of scenes; None shows every item of the split once.
        seed: other seeds give other scenes of the same items; 0 to 2⁶⁴ − 1.
        clutter: number of patches, 0 or more.
        noise: largest change of one channel of one ground pixel, 0 to 255.
        clouds: largest change of one channel by the smooth clouds, 0 to 255.

    Raises:
        ValueError: an argument is out of range, or a shipped file is damaged.
        FileNotFoundError: a shipped file is missing.

    Source: the items are those of Xiao et al. 2017, Fashion-MNIST, arXiv 1708.07747. The clutter
    follows cluttered MNIST of Mnih et al. 2014, Recurrent Models of Visual Attention.
    Chapters: all of them show these scenes.
    """
    items = _items(_one_of("split", split, SPLITS))
    n = len(items) if n is None else _whole("n", n, 0, 2**32)
    return _scenes(
        split,
        np.arange(n),
        seed=_whole("seed", seed, 0, 2**64 - 1),
        clutter=_whole("clutter", clutter, 0, 1000),
        noise=_whole("noise", noise, 0, 255),
        clouds=_whole("clouds", clouds, 0, 255),
    )


def cast() -> tuple[Scenes, tuple[str, ...]]:
    """Return the six scenes that every chapter shows, and their names.

    They are test scenes of seed 0 with the default amounts. `assets/cast.json` says why each
    was chosen.

    Raises:
        ValueError: a shipped file is damaged.
        FileNotFoundError: a shipped file is missing.

    Source: see `cluttered`. Chapters: all of them.
    """
    members = read_json("cast.json")
    try:
        names = tuple(str(member["name"]) for member in members)
        places = [_whole("index", member["index"], 0, 2**32) for member in members]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(damaged("cast.json")) from error
    amounts = {"clutter": _CLUTTER, "noise": _NOISE, "clouds": _CLOUDS}
    return _scenes("test", np.array(places), seed=0, **amounts), names


def normalise(
    images: UInt8[Tensor, "*B 3 H W"],
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Float32[Tensor, "*B 3 H W"]:
    r"""Turn bytes into the numbers a network reads, channel by channel; without unit.

    .. math:: (x / 255 - \text{mean}) / \text{std}

    Args:
        images: RGB, 0 to 255.
        mean: of each channel, in units of the [0, 1] range; by default that of the training scenes.
        std: standard deviation of each channel, above 0; by default that of the training scenes.

    Raises:
        ValueError: the images are not uint8, or have no three channels; not three means or
            standard deviations, or one that is not finite or a std not above 0.

    Chapters: all that run a network.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype}; normalise wants torch.uint8, 0 to 255")
    if images.dim() < 3 or images.shape[-3] != 3:
        raise ValueError(f"images have shape {tuple(images.shape)}; normalise wants [..., 3, H, W]")
    for name, values, low in (("mean", mean, -math.inf), ("std", std, 0)):
        if len(values) != 3 or not all(low < value < math.inf for value in values):
            above = " above 0" if name == "std" else ""
            raise ValueError(f"{name} is {values}; normalise wants three finite numbers{above}")
    centre, scale = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (mean, std))
    return (images.float() / 255 - centre) / scale


def cifar(
    name: str,
    root: str | Path,
    split: str,
    *,
    download: bool = False,
    transform: Callable[[Any], Any] | None = None,
) -> Dataset:
    """Open CIFAR-10 or CIFAR-100 through torchvision.

    The validation split is one tenth of every class of the official training images: 5,000
    images, always the same. The train split is the other 45,000.

    Items are (image, label). The image is a 32×32 RGB `PIL.Image`, or what `transform` makes of
    it. The names of the classes are in `.dataset.classes`.

    The official files are Python pickles. torchvision reads them only if their MD5 is the
    published one.

    Args:
        name: "cifar10" or "cifar100".
        root: folder that holds, or will hold, the unpacked official archive.
        split: "train", "validation" or "test".
        download: fetch the archive if it is not there, with a bar of progress; its MD5 is checked.
        transform: called on each image.

    Raises:
        ImportError: torchvision is not installed.
        ValueError: `name` or `split` is unknown.
        FileNotFoundError: the files are missing or damaged; with `download`, the archive could not
            be fetched, or what came is not the official one.

    Source: Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images.
    """
    _one_of("name", name, ("cifar10", "cifar100"))
    _one_of("split", split, SPLITS)
    datasets = _torchvision().datasets
    kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    files = Path(root) / kind.base_folder
    try:
        whole = kind(root, train=split != "test", transform=transform, download=download)
    except URLError as error:
        raise FileNotFoundError(
            f"{name}: {kind.url} could not be fetched ({error.reason}); without a network, put the "
            f"unpacked archive into {files}"
        ) from error
    except RuntimeError as error:
        if download:
            raise FileNotFoundError(
                f"{name}: {Path(root) / kind.filename} is not the official archive: what was "
                f"fetched from {kind.url} has another MD5. Try again, or put the unpacked archive "
                f"into {files}"
            ) from error
        raise FileNotFoundError(
            f"{name}: the official files are missing or damaged in {files}; put the unpacked "
            "archive there, or remove what is there and pass download=True to fetch it"
        ) from error
    return Subset(whole, _members(whole.targets, split))


def folder(
    root: str | Path,
    split: str,
    *,
    size: int | None = None,
    resize: int | None = None,
    test: str = "test",
    transform: Callable[[Any], Any] | None = None,
) -> Dataset:
    """Open a folder of images, `root/train/<class>/*` and `root/test/<class>/*`.

    Labels follow the alphabetical order of the class folders. The validation split is one tenth
    of every class of the training images, at least one, always the same for the same files.
    The train split is the rest.

    Items are (image, label). The image is an RGB `PIL.Image`, or what `transform` makes of it.
    The names of the classes are in `.dataset.classes`.

    Args:
        root: folder that holds `train` and `test`.
        split: "train", "validation" or "test".
        size: side of the square, in pixels. The shorter side is resized to it (bilinear,
            antialiased), then the centre is cut out. None leaves every image as it is.
        resize: what the shorter side is resized to, where it is not `size` but more.
        test: the folder of the test images, as "val" of ImageNet.
        transform: called on each image after the resize.

    Raises:
        ImportError: torchvision is not installed.
        ValueError: `split` is unknown, `size` is below 1, `resize` below `size` or given without
            it, the classes of train and test differ, or a class has too few images. Reading a
            damaged image raises it too.
        FileNotFoundError: `root/train` or `root/test` is missing.
    """
    _one_of("split", split, SPLITS)
    if size is not None:
        _whole("size", size, 1, 2**16)
    if resize is not None:
        if size is None:
            raise ValueError(f"resize is {resize} without a size; give the size to cut out as well")
        _whole("resize", resize, size, 2**16)
    tv = _torchvision()
    root = Path(root)
    names = {part: _class_names(root / part) for part in ("train", test)}
    if names["train"] != names[test]:
        lone = sorted(names["train"] ^ names[test])
        raise ValueError(
            f"{root}: train and {test} must have the same classes; only one of them has "
            + ", ".join(lone)
        )
    steps = [] if transform is None else [transform]
    if size is not None:
        scale = tv.transforms.Resize(resize or size)
        steps = [scale, tv.transforms.CenterCrop(size), *steps]
    where = root / (test if split == "test" else "train")
    # allow_empty, because the check below names the class and says how many images it wants.
    whole = tv.datasets.ImageFolder(
        where,
        loader=_open,
        transform=tv.transforms.Compose(steps) if steps else None,
        allow_empty=True,
    )
    wanted = 1 if split == "test" else 2  # one to train on and one to hold out
    counts = np.bincount(whole.targets, minlength=len(whole.classes))
    for name, count in zip(whole.classes, counts, strict=True):
        if count < wanted:
            raise ValueError(
                f"{where / name} has {count} images; a class wants at least {wanted} there "
                f"({', '.join(tv.datasets.folder.IMG_EXTENSIONS)})"
            )
    return Subset(whole, _members(whole.targets, split))


def _one_of(what, given, wanted):
    if given not in wanted:
        raise ValueError(f"{what} is {given!r}; it must be one of {', '.join(wanted)}")
    return given


def _whole(what, given, low, high):
    try:
        value = index(given)
    except TypeError:
        raise ValueError(f"{what} is {given!r}; it must be a whole number") from None
    if not low <= value <= high:
        raise ValueError(f"{what} is {value}; it must be from {low} to {high}")
    return value


def _torchvision():
    try:
        import torchvision
    except ImportError as error:
        raise ImportError(
            "reading CIFAR or a folder of images wants torchvision: pip install 'ckdlite[train]'"
        ) from error
    return torchvision


def _open(path):
    """Read one image as RGB, and name it where it is damaged."""
    try:
        return _torchvision().datasets.folder.default_loader(path)
    except OSError as error:
        raise ValueError(f"{path} is damaged or no image; replace it or take it away") from error


def _class_names(where):
    if not where.is_dir():
        raise FileNotFoundError(f"{where} is missing; expected {where}/<class>/<image>")
    names = {entry.name for entry in where.iterdir() if entry.is_dir()}
    if not names:
        raise ValueError(f"{where} has no class folders; expected {where}/<class>/<image>")
    return names


def _members(targets, split):
    """Say which images of the official part belong to `split`."""
    if split == "test":
        return list(range(len(targets)))
    targets = np.asarray(targets)
    # Raw words as sort keys: their stream is fixed, that of Generator.permutation is not.
    keys = np.random.Philox(key=0).random_raw(len(targets))
    held_out = np.zeros(len(targets), dtype=bool)
    for label in np.unique(targets):
        places = np.flatnonzero(targets == label)
        order = np.argsort(keys[places], kind="stable")
        held_out[places[order[: max(1, len(places) // 10)]]] = True
    return np.flatnonzero(held_out if split == "validation" else ~held_out).tolist()


@cache
def _items(split):
    """Read the shipped items of a split: uint8 [N, 28, 28], item i of class i % 10."""
    manifest = read_json("fashion.json")
    try:
        pieces = [(piece["name"], piece["sha256"]) for piece in manifest[split]]
    except (KeyError, TypeError) as error:
        raise ValueError(damaged("fashion.json")) from error
    raw = b"".join(lzma.decompress(read(*piece)) for piece in pieces)
    return np.frombuffer(raw, np.uint8).reshape(-1, _ITEM, _ITEM)


def _scenes(split, places, *, seed, clutter, noise, clouds):
    """Make the scenes of the given places, a chunk at a time."""
    items = _items(split)
    n = len(places)
    images = np.empty((n, 3, _SIDE, _SIDE), np.uint8)
    masks = np.empty((n, _SIDE, _SIDE), bool)
    for start in range(0, n, _CHUNK):
        part = slice(start, start + _CHUNK)
        images[part], masks[part] = _paint(
            items, _words(split, seed, places[part], clutter), places[part], noise, clouds
        )
    labels = (places % len(items) % len(CLASSES)).astype(np.int64)
    return Scenes(*(torch.from_numpy(array) for array in (images, labels, masks)))


def _words(split, seed, places, clutter):
    """Draw the random bytes of each scene: uint8 [n, bytes].

    One Philox key a scene, so that no scene depends on another.
    """
    count = -(-(_GROUND_END + clutter * _PATCH_BYTES) // 8)
    raw = np.empty((len(places), count), "<u8")
    for row, place in zip(raw, places, strict=True):
        key = np.array([seed, SPLITS.index(split) << 48 | int(place)], np.uint64)
        row[:] = np.random.Philox(key=key).random_raw(count)
    return raw.view(np.uint8)


def _fields(raw):
    """Read four bytes a field, lowest first, as int64 columns."""
    return np.ascontiguousarray(raw).view("<u4").astype(np.int64).T


def _scale(field, count):
    """Map a field onto 0 .. count − 1."""
    return field * count >> 32


def _divide(a, b):
    """Divide and round half up."""
    return (2 * a + b) // (2 * b)


def _paint(items, raw, places, noise, clouds):
    """Paint one chunk: images uint8 [n, 3, 32, 32] and masks bool [n, 32, 32]."""
    n = len(raw)
    head = _fields(raw[:, :_HEAD_BYTES])
    # The windows of _paste are as large as the largest patch, so they reach past the edge.
    margin = _SIZES[1] - _SIZES[0]
    canvas = np.zeros((n, _SIDE + margin, _SIDE + margin, 3), np.int32)
    canvas[:, :_SIDE, :_SIDE] = _ground(head[5:], raw[:, _HEAD_BYTES:_GROUND_END], noise, clouds)

    own = places % len(items)
    for start in range(_GROUND_END, raw.shape[1] - _PATCH_BYTES + 1, _PATCH_BYTES):
        field = _fields(raw[:, start : start + _PATCH_BYTES])
        # One of the other items: counting on from the scene's own never comes back to it.
        item = (own + 1 + _scale(field[0], len(items) - 1)) % len(items)
        size = _SIZES[0] + _scale(field[1], _SIZES[1] - _SIZES[0] + 1)
        side = _CROPS[0] + _scale(field[2], _CROPS[1] - _CROPS[0] + 1)
        inside = np.arange(_CROPS[1]) < side[:, None]
        rows = _scale(field[3], size - side + 1)[:, None] + np.arange(_CROPS[1])
        columns = _scale(field[4], size - side + 1)[:, None] + np.arange(_CROPS[1])
        value = _resize(items[item], size, rows, columns)
        value *= inside[:, :, None] & inside[:, None, :]
        top, left = (_scale(f, _SIDE - side + 1) for f in field[5:7])
        _paste(canvas, value, _tint(field[7], field[8]), top, left)

    size = _SIZES[0] + _scale(head[0], _SIZES[1] - _SIZES[0] + 1)
    grid = np.broadcast_to(np.arange(_SIZES[1]), (n, _SIZES[1]))
    value = _resize(items[own], size, grid, grid)
    top, left = (_scale(f, _SIDE - size + 1) for f in head[1:3])
    alpha = _paste(canvas, value, _tint(head[3], head[4]), top, left)

    image = canvas[:, :_SIDE, :_SIDE].transpose(0, 3, 1, 2).astype(np.uint8)
    return image, alpha[:, :_SIDE, :_SIDE] >= _MASKED


def _ground(fields, raw, noise, clouds):
    """Paint the ground: int32 [n, 32, 32, 3]."""
    base = (40 + _scale(fields, 120)).T[:, None, None, :]
    coarse = raw[:, :_GRID_BYTES].reshape(-1, _GRID, _GRID, 3).astype(np.int32)
    fine = raw[:, _GRID_BYTES:].reshape(-1, _SIDE, _SIDE, 3).astype(np.int32)
    # Bilinear between grid points: weights in eighths along each axis, in 1/64 together.
    low, weight = np.divmod(np.arange(_SIDE), 8)
    weight = weight[:, None, None]
    rows = coarse[:, low] * (8 - weight) + coarse[:, low + 1] * weight
    weight = weight[:, 0]
    smooth = rows[:, :, low] * (8 - weight) + rows[:, :, low + 1] * weight
    # A byte b stands for (2 b − 255) / 255, from −1 to 1.
    ground = base + _divide((2 * smooth - 255 * 64) * clouds, 255 * 64)
    ground += _divide((2 * fine - 255) * noise, 255)
    return ground.clip(0, 255)


def _tint(hue, paleness):
    """Make bright colours, int32 [n, 3]: a pure hue, mixed with 20 to 80 % white."""
    h = _scale(hue, 6 * 256)
    pure = np.stack([abs(h - 768) - 256, 512 - abs(h - 512), 512 - abs(h - 1024)], axis=1)
    pure = pure.clip(0, 255)
    white = 51 + _scale(paleness, 154)[:, None]
    return (pure + _divide((255 - pure) * white, 255)).astype(np.int32)


def _resize(items, size, rows, columns):
    """Average items over the pixels of a size×size grid: int32 [n, rows, columns].

    Lengths count in units in which an item's pixel is `size` long and a new pixel 28, so every
    overlap is whole and the weights of a new pixel sum to 28 × 28. Rows and columns from `size`
    on are 0.
    """
    n = len(items)
    total = np.zeros((n, rows.shape[1], _ITEM), np.int32)
    for pixel, weight in _overlaps(size, rows):
        total += items[np.arange(n)[:, None], pixel] * weight[:, :, None]
    value = np.zeros((n, rows.shape[1], columns.shape[1]), np.int32)
    for pixel, weight in _overlaps(size, columns):
        value += np.take_along_axis(total, pixel[:, None, :], axis=2) * weight[:, None, :]
    return _divide(value, _ITEM * _ITEM)


def _overlaps(size, new):
    """Yield the item's pixels under each new pixel, at most three, and the overlap with each."""
    size = size[:, None]
    first = _ITEM * new // size
    for pixel in (first, first + 1, first + 2):
        end = np.minimum(_ITEM * (new + 1), size * (pixel + 1))
        overlap = end - np.maximum(_ITEM * new, size * pixel)
        yield (
            pixel.clip(max=_ITEM - 1),
            np.where(pixel < _ITEM, overlap.clip(min=0), 0).astype(np.int32),
        )


def _paste(canvas, value, tint, top, left):
    """Lay a tinted patch [n, h, w] on the canvas in place, and return its alpha there."""
    _, h, w = value.shape
    where = (
        np.arange(len(canvas))[:, None, None],
        (top[:, None] + np.arange(h))[:, :, None],
        (left[:, None] + np.arange(w))[:, None, :],
    )
    alpha = np.minimum(_OPAQUE * value, 255)
    # Black cloth keeps a quarter of the tint, or nobody could see it.
    shade = 64 + _divide(value * 191, 255)
    colour = _divide(shade[..., None] * tint[:, None, None, :], 255)
    cover = alpha[..., None]
    canvas[where] = _divide(cover * colour + (255 - cover) * canvas[where], 255)
    covered = np.zeros(canvas.shape[:3], np.int32)
    covered[where] = alpha
    return covered
