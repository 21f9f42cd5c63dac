"""The data of a run, as Lightning data modules: order, augmentation, batches.

Needs Lightning: `pip install 'ckdlite[train]'`. Chapter 3.4.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset, TensorDataset
from torchvision.transforms.v2.functional import pil_to_tensor

from . import data
from .runs import mix, one_line

#: Mean of each channel over CIFAR-10's training images, in units of the [0, 1] range.
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
#: Standard deviation of each channel over the same images, in the same units.
CIFAR_STD = (0.2470, 0.2435, 0.2616)


class _ImageData(L.LightningDataModule, ABC):
    """What all data modules share: order, augmentation, batches."""

    mean: Sequence[float] = data.MEAN
    std: Sequence[float] = data.STD
    #: Validate, and so choose the best epoch, on the test images, as the released code does. What
    #: such a run scores on them is too good. `--select_on_test true`.
    select_on_test = False
    scored = 250  # images at once in validation and test

    def __init__(
        self,
        images: int | None,
        batch_size: int,
        augment: Sequence[nn.Module],
        workers: int,
        seed: int,
    ) -> None:
        super().__init__()
        if batch_size < 1 or (images is not None and images < batch_size):
            raise ValueError(
                f"images and batch_size: got {images} and {batch_size}, wanted a batch of at least "
                "one image, and images for one batch"
            )
        self.images, self.batch_size, self.augment = images, batch_size, list(augment)
        self.workers, self.seed = workers, seed
        self._held: dict[str, Dataset] = {}

    def recipe(self) -> dict[str, Any]:
        """Every setting that all parts of one run must share, as plain values."""
        return {
            "images": self.images,
            "batch_size": self.batch_size,
            "augment": [one_line(step) for step in self.augment],
            "seed": self.seed,
            "select_on_test": self.select_on_test,
        }

    @abstractmethod
    def _open(self, split: str) -> Dataset:
        """Items are a uint8 image `[3, H, W]`, a label and whatever else there is."""

    def _some(self, found: Dataset) -> Dataset:
        """As many training images as are wanted."""
        if self.images is None:
            return found
        if self.images > len(found):
            raise ValueError(
                f"images: got {self.images}, wanted at most the {len(found)} training images of "
                f"{self.root}"
            )
        draw = torch.Generator().manual_seed(0)
        return Subset(found, torch.randperm(len(found), generator=draw)[: self.images].tolist())

    def _dataset(self, split: str) -> Dataset:
        if split not in self._held:
            self._held[split] = self._open(split)
        return self._held[split]

    def train_dataloader(self) -> DataLoader:
        images = self._dataset("train")
        order = _Order(len(images), self.seed, *self._ranks())
        if len(order) < self.batch_size:
            raise ValueError(
                f"batch_size: got {self.batch_size}, wanted at most the {len(order)} training "
                f"images of each of {order.num_replicas} processes"
            )
        return DataLoader(
            _Augmented(images, self.augment),
            self.batch_size,
            sampler=order,
            drop_last=True,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _ranks(self) -> tuple[int, int]:
        """This process's number, and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _whole(self, split: str) -> DataLoader:
        """Each image once, by one of the processes."""
        images, (rank, ranks) = self._dataset(split), self._ranks()
        if len(images) < ranks:
            raise ValueError(
                f"{split}: got {len(images)} images, wanted at least one for each of {ranks} "
                "processes"
            )
        mine = UnrepeatedDistributedSampler(images, ranks, rank, shuffle=False)
        return DataLoader(images, self.scored, sampler=mine, num_workers=self.workers)

    def val_dataloader(self) -> DataLoader:
        return self._whole("test" if self.select_on_test else "validation")

    def test_dataloader(self) -> DataLoader:
        return self._whole("test")

    def on_after_batch_transfer(self, batch: Sequence[Tensor], _index: int) -> list[Tensor]:
        images, *rest = batch
        return [data.normalise(images, self.mean, self.std), *rest]


class SceneData(_ImageData):
    """Cluttered Fashion-MNIST for training, with torchvision's augmentations.

    Training batches are images `[B, 3, 32, 32]`, normalised, and labels; those of validation (2,000
    scenes) and test (4,000) have the object masks third. Order and augmentation depend on the seed,
    the epoch and the image alone, not on the number of workers.

    Args:
        images: how many training scenes, up to 14,000 with each item shown once.
        batch_size: images a training batch, on each device.
        augment: transforms of a training image, uint8 `[3, 32, 32]`, in this order.
        clutter: distracting patches a scene.
        workers: processes that load; 0 loads in the training process.
        seed: fixes the order and the augmentation, not the scenes.

    Source: see `data.cluttered`. Chapter 3.4.
    """

    def __init__(
        self,
        images: int = 14000,
        batch_size: int = 128,
        augment: Sequence[nn.Module] = (),
        clutter: int = 6,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(images, batch_size, augment, workers, seed)
        self.clutter = clutter

    def recipe(self) -> dict[str, Any]:
        return super().recipe() | {"clutter": self.clutter}

    def _open(self, split: str) -> Dataset:
        n = self.images if split == "train" else None
        return TensorDataset(*data.cluttered(split, n, clutter=self.clutter))


class CIFARData(_ImageData):
    """CIFAR-10 or CIFAR-100 for training: 45,000 images train, 5,000 validate, 10,000 test.

    Batches are images `[B, 3, 32, 32]`, normalised, and labels. Order and augmentation depend on
    the seed, the epoch and the image alone, not on the number of workers. There are no masks: where
    a map lies is not scored.

    Args:
        name: "cifar10" or "cifar100".
        root: folder of the unpacked official archive.
        images: how many training images, a random choice that is always the same; None takes all.
        download: fetch the archive where it is not there; torchvision checks its MD5.
        batch_size: images a training batch, on each device.
        augment: transforms of a training image, uint8 `[3, 32, 32]`, in this order.
        mean: of each channel, in units of the [0, 1] range; CIFAR-10's, for both, as in the
            released code.
        std: standard deviation of each channel, likewise.
        workers: processes that load; 0 loads in the training process.
        seed: fixes the order and the augmentation, not which images.

    Raises:
        FileNotFoundError: the files are missing or damaged, when the images are first wanted.
        ValueError: an unknown name, or more images wanted than there are.

    Source: see `data.cifar`.
    """

    def __init__(
        self,
        name: str = "cifar10",
        root: str | Path = "data",
        images: int | None = None,
        download: bool = False,
        batch_size: int = 128,
        augment: Sequence[nn.Module] = (),
        mean: Sequence[float] = CIFAR_MEAN,
        std: Sequence[float] = CIFAR_STD,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(images, batch_size, augment, workers, seed)
        self.name, self.root, self.download = name, Path(root), download
        self.mean, self.std = tuple(mean), tuple(std)

    def recipe(self) -> dict[str, Any]:
        # Not the root: a run may go on where the images lie elsewhere.
        return super().recipe() | {"name": self.name, "mean": self.mean, "std": self.std}

    def prepare_data(self) -> None:
        """Fetch the archive once, before the processes of several devices look for it."""
        if self.download:
            data.cifar(self.name, self.root, "test", download=True)

    def _open(self, split: str) -> Dataset:
        found = data.cifar(self.name, self.root, split, transform=pil_to_tensor)
        return self._some(found) if split == "train" else found


class FolderData(_ImageData):
    """A folder of images for training, `root/train/<class>/*` and `root/test/<class>/*`.

    Batches are images `[B, 3, size, size]`, normalised, and labels. One tenth of every class of the
    training images is the validation split. Order and augmentation depend on the seed, the epoch
    and the image alone, not on the number of workers. There are no masks: where a map lies is not
    scored.

    Args:
        root: the folder.
        images: how many training images, a random choice that is always the same; None takes all.
        size: side of the square to which each image is resized and cut; None leaves them as they
            are, all of one size.
        resize: for large images of many sizes. Of validation and test images the shorter side is
            resized to it, before the centre of `size` is cut out. Training images are then left as
            they are: the first step of `augment` has to cut them, as RandomResizedCrop does.
        test: the folder of the test images; ImageNet's is "val".
        batch_size: images a training batch, on each device.
        augment: transforms of a training image, uint8 `[3, size, size]`, or with `resize` of the
            image's own size, in this order.
        memory: decode each image once and keep it, for small images of one size that are seen
            often; 60,000 of 32 x 32 take 184 MB.
        mean: of each channel, in units of the [0, 1] range. The default is CIFAR-10's.
        std: standard deviation of each channel. The default is CIFAR-10's.
        workers: processes that load; 0 loads in the training process.
        seed: fixes the order and the augmentation, not which images.

    Raises:
        FileNotFoundError: no such folder, when its images are first wanted.
        ValueError: more images wanted than there are, images of several sizes where they are kept
            in memory, `resize` without a step in `augment`, and all that `data.folder` raises.

    Source: see `data.folder`.
    """

    def __init__(
        self,
        root: str | Path,
        images: int | None = None,
        size: int | None = 32,
        resize: int | None = None,
        test: str = "test",
        batch_size: int = 128,
        augment: Sequence[nn.Module] = (),
        memory: bool = False,
        mean: Sequence[float] = CIFAR_MEAN,
        std: Sequence[float] = CIFAR_STD,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(images, batch_size, augment, workers, seed)
        self.root, self.size, self.mean, self.std = Path(root), size, tuple(mean), tuple(std)
        self.memory, self.resize, self.test = memory, resize, test
        if resize is not None:
            if not self.augment:
                raise ValueError(
                    f"resize: got {resize}, with which training images keep their own size; wanted "
                    "a step in augment that cuts them, as RandomResizedCrop does"
                )
            self.scored = batch_size  # what is too large to train on is too large to score

    def recipe(self) -> dict[str, Any]:
        # Not the root: a run may go on where the images lie elsewhere.
        about = {"size": self.size, "resize": self.resize, "mean": self.mean, "std": self.std}
        return super().recipe() | about

    def _open(self, split: str) -> Dataset:
        # With `resize`, what is cut out of a training image is the first augmentation's choice.
        whole = split == "train" and self.resize is not None
        sizes = {} if whole else {"size": self.size, "resize": self.resize}
        found = data.folder(self.root, split, test=self.test, transform=pil_to_tensor, **sizes)
        found = self._some(found) if split == "train" else found
        if not self.memory:
            return found
        images, labels = zip(*found, strict=True)
        sizes = {tuple(image.shape) for image in images}
        if len(sizes) > 1:
            raise ValueError(
                f"{self.root}: images of {len(sizes)} sizes cannot be kept in memory; give a size"
            )
        return TensorDataset(torch.stack(images), torch.tensor(labels))


class _Order(DistributedSampler):
    """Positions in random order, each with the seed of its augmentation.

    Both are drawn from the seed and the epoch, which Lightning sets; rank r of n takes every n-th.
    """

    def __init__(self, count: int, seed: int, rank: int, ranks: int) -> None:
        # Of this kind Lightning leaves it alone, whatever its `use_distributed_sampler` is.
        super().__init__(range(count), ranks, rank, seed=seed, drop_last=True)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        draw = torch.Generator().manual_seed(mix(self.seed, self.epoch))
        order = torch.randperm(len(self.dataset), generator=draw)[: self.total_size]
        seeds = torch.randint(2**62, (len(order),), generator=draw)
        mine = slice(self.rank, None, self.num_replicas)
        return iter(list(zip(order[mine].tolist(), seeds[mine].tolist(), strict=True)))


class _Augmented(Dataset):
    """Images and labels by `(position, seed)`; the seed alone decides the augmentation.

    That holds for transforms that draw from torch's generator, as torchvision's do. One that draws
    from NumPy's or Python's would depend on the number of workers.

    Each image is augmented by itself, where it is loaded. Crop, flip and erasing on whole batches
    would take 0.72 of the time that reading and augmenting take so, images kept in memory 0.55
    (`benchmarks/data_path.py`, `assets/data-path-cpu.csv`). The batch is left alone: an image's
    augmentation would depend on the batch that it is in, and so on the number of devices.
    """

    def __init__(self, images: Dataset | Sequence[Any], steps: Sequence[nn.Module]) -> None:
        self.images, self.steps = images, steps

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor | int]:
        position, seed = key
        image, label = self.images[position][:2]
        with torch.random.fork_rng(devices=[]):  # transforms draw from the global generator
            torch.default_generator.manual_seed(seed)
            for step in self.steps:
                image = step(image)
        return image, label
