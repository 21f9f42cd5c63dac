"""Make the shipped part of Fashion-MNIST, and the digests of the scenes made from it.

    python experiments/make_fashion.py [FOLDER]      the items, then the digests
    python experiments/make_fashion.py --digests     the digests only

FOLDER holds the four official files as `*-ubyte.gz`. Debian's package dataset-fashion-mnist
puts them in /usr/share/datasets/fashion-mnist.

The first 1,400 of each class of the official training images become "train", the next 200
become "validation", and the first 400 of each class of the official test images become
"test". Item i has class i % 10. An image that is already in another split is passed over.
"""

import argparse
import gzip
import hashlib
import json
import lzma
from pathlib import Path

import numpy as np

from ckdlite import data
from ckdlite._assets import FOLDER

A_CLASS = {"train": 1400, "validation": 200, "test": 400}
PIECES = {
    "train": ("fashion-train-1.xz", "fashion-train-2.xz"),
    "validation": ("fashion-validation.xz",),
    "test": ("fashion-test.xz",),
}
LARGEST_PIECE = 4 * 2**20
LARGEST_TOTAL = 8_000_000


def official(folder, part):
    """Read one official part: images [N, 28, 28] and labels [N]."""
    raw = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    assert np.frombuffer(raw, ">u4", 4).tolist()[::2] == [0x803, 28]
    images = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28)
    raw = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    assert np.frombuffer(raw, ">u4", 2).tolist() == [0x801, len(images)]
    return images, np.frombuffer(raw, np.uint8, offset=8)


def choose(images, labels, count, seen):
    """Say where the next `count` images of each class lie, interleaved; add them to `seen`."""
    chosen = []
    for label in range(10):
        of_class = []
        for place in np.flatnonzero(labels == label):
            if len(of_class) < count and images[place].tobytes() not in seen:
                of_class.append(place)
                seen.add(images[place].tobytes())
        assert len(of_class) == count
        chosen.append(of_class)
    return np.array(chosen).T.ravel()


def make_items(folder):
    """Write the pieces and their manifest."""
    manifest, total, seen = {}, 0, set()
    train = official(folder, "train")
    test = official(folder, "t10k")
    for split, (images, labels) in (("train", train), ("validation", train), ("test", test)):
        places = choose(images, labels, A_CLASS[split], seen)
        assert (labels[places] == np.arange(len(places)) % 10).all()
        manifest[split] = []
        for name, part in zip(
            PIECES[split], np.split(images[places], len(PIECES[split])), strict=True
        ):
            packed = lzma.compress(part.tobytes(), preset=9 | lzma.PRESET_EXTREME)
            assert len(packed) < LARGEST_PIECE
            total += len(packed)
            (FOLDER / name).write_bytes(packed)
            manifest[split].append(
                {
                    "name": name,
                    "items": len(part),
                    "sha256": hashlib.sha256(packed).hexdigest(),
                }
            )
            print(f"{name}: {len(part)} items, {len(packed)} bytes")
    assert total <= LARGEST_TOTAL
    print(f"{total} bytes in all")
    (FOLDER / "fashion.json").write_text(json.dumps(manifest, indent=1) + "\n")


def digest(split, n):
    """Hash the first n scenes of a split: images, then labels, then masks."""
    sha = hashlib.sha256()
    for tensor in data.cluttered(split, n):
        # Labels are hashed lowest byte first, whatever the machine's order.
        array = tensor.numpy()
        sha.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return sha.hexdigest()


def make_digests():
    """Write the digests and print the constants that `ckdlite/data.py` must hold."""
    sizes = [(split, 1000) for split in data.SPLITS] + [("train", 10_000)]
    digests = [{"split": s, "n": n, "sha256": digest(s, n)} for s, n in sizes]
    (FOLDER / "scenes.json").write_text(json.dumps(digests, indent=1) + "\n")
    images, _, masks = data.cluttered("train")
    images = images.double() / 255
    for name, value in ("MEAN", images.mean((0, 2, 3))), ("STD", images.std((0, 2, 3))):
        print(f"{name} = ({', '.join(f'{x:.4f}' for x in value.tolist())})")
    print(f"masks cover {masks.double().mean():.1%} of the canvas")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default="/usr/share/datasets/fashion-mnist", type=Path)
    parser.add_argument("--digests", action="store_true", help="rewrite the digests only")
    given = parser.parse_args()
    if not given.digests:
        make_items(given.folder)
    make_digests()
