"""Data sets by name: `load_data("digits")`, `load_data("folder:my/pictures")`, each with its preprocessing."""

import contextlib
import difflib
import hashlib
import io
import logging
import os
import socket
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets
from torchvision.models._meta import _IMAGENET_CATEGORIES
from torchvision.transforms.functional import pil_to_tensor

from kaconv.data.photos import Photos
from kaconv.data.pictures import load_rgb, load_tensor, load_upright, picture_files
from kaconv.data.preprocessing import CIFAR10, DIGITS, FAKE, FASHION_MNIST, IMAGENET, Preprocessing
from kaconv.data.wnids import IMAGENET_WNIDS
from kaconv.utils.checks import MOST_PIXELS, SPLIT_RULE, VAL_FRACTION, check_values, or_none, whole
from kaconv.utils.text import printable

_LOGGER = logging.getLogger("kaconv")
DOWNLOAD_TIMEOUT = 20  # seconds without an answer


@dataclass
class DataBundle:
    """A data set. `train` (None where there is none) is augmented, `test` is not.

    Both yield (normalised float tensor (3, image_size, image_size), int label).
    """

    spec: str
    train: Dataset | None
    test: Dataset
    classes: list[str]
    preprocessing: Preprocessing
    note: str = ""  # how the splits came about, where that has to be said

    def for_classes(self, classes: Sequence[str]) -> "DataBundle":
        """The same images with labels that fit the outputs of a model for `classes`, matched by the classes' names.

        An image of a class that the model does not know gets a label beyond its outputs, so that it still has a name
        in `classes` of the result. `kaconv.inference.evaluate` counts such images in no error.
        """
        order = [*classes, *(name for name in self.classes if name not in classes)]
        if order == self.classes:
            return self
        labels = [order.index(name) for name in self.classes]
        train = None if self.train is None else _Renumbered(self.train, labels)
        return replace(self, train=train, test=_Renumbered(self.test, labels), classes=order)


class _Renumbered(Dataset):
    def __init__(self, dataset: Dataset, labels: Sequence[int]) -> None:
        self.dataset, self.labels = dataset, labels

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.dataset[index]
        return image, self.labels[label]


class TensorImages(Dataset):
    """Images kept in memory, uint8 (N, 1 or 3, H, W), so that nothing is decoded while training."""

    def __init__(self, images: Tensor, labels: Sequence[int], transform: Callable) -> None:
        self.images, self.labels, self.transform = images, [int(label) for label in labels], transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def load_data(
    spec: str,
    root: str | Path = "data/cache",
    image_size: int | None = None,
    *,
    preprocessing: Preprocessing | None = None,
    val_fraction: float = VAL_FRACTION,
) -> DataBundle:
    """Load a data set by its spec.

    `digits` (scikit-learn's handwritten digits) and `photos` (32 photographs to look at, no train split) need no
    network; `fashion_mnist`, `cifar10` and `imagenette` (found
    under `root`, else downloaded there); `imagenet:PATH` (train/ and val/, each with the 1000 wnid folders);
    `folder:PATH` (train/ and val/ or test/, each with one folder per class); `cifar10_folder:PATH` (the same for
    CIFAR-10 as image files, kept in memory and preprocessed as `cifar10` is); `fake` (noise, for trying out).
    A folder may lack train/: it is good for evaluation. A folder of class folders alone is split: `val_fraction` of
    each class are its test images, chosen by a hash of their names, so that they are the same ones everywhere and
    stay so when others are added. Folders that are called by ImageNet's ids (n01440764) are classes of ImageNet's names
    (tench). Its images are upright, as `open_image` reads them;
    ImageNet's and Imagenette's stay as they are stored, as is usual for them.

    `image_size` changes the size of the model's input from the data set's usual one. `preprocessing` replaces all of
    the data set's own, as when evaluating weights that bring theirs. ValueError for a bad spec, size or layout,
    FileNotFoundError for what is missing, with what was looked for and where.
    """
    name, path = parse_spec(spec)
    usual, load = SPECS[name]
    check_values({"image_size": image_size}, {"image_size": or_none(whole(1, MOST_PIXELS))})
    check_values({"val_fraction": val_fraction}, {"val_fraction": SPLIT_RULE})
    preprocessing = (preprocessing or usual).at(image_size)
    where = Path(path or root).expanduser()
    if name == "folder":
        _name_what_is_passed_over(where)
        if _is_unsplit(where):
            return _split(spec, where, preprocessing, val_fraction)
    train, test, classes = load(where, preprocessing)
    return DataBundle(spec, train, test, classes, preprocessing)


def parse_spec(spec: str) -> tuple[str, str | None]:
    """Split a spec into its name and PATH (None where it has none). ValueError if there is no such spec."""
    name, colon, path = str(spec).partition(":")
    if name not in SPECS:
        raise ValueError(f"unknown data {spec!r}{_suggestion(str(spec), name)}; known: {', '.join(_spec_forms())}")
    if name in WITH_PATH and not path:
        raise ValueError(f"data {spec!r} lacks its path: {name}:PATH")
    if name not in WITH_PATH and colon:
        raise ValueError(
            f"data {name!r} takes no path, got {spec!r} (the place to look in is root, on the terminal --data-root)"
        )
    return name, path or None


def _suggestion(spec: str, name: str) -> str:
    if Path(spec).is_dir():
        return f" (for a folder of images: 'folder:{spec}')"
    close = difflib.get_close_matches(name, SPECS, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _spec_forms() -> list[str]:
    return [f"{name}:PATH" if name in WITH_PATH else name for name in SPECS]


Load = Callable[[str], Image.Image]  # raises UnreadablePicture
Splits = tuple[Dataset | None, Dataset, list[str]]  # train, test, classes


def _in_memory(train: tuple, test: tuple, classes: Sequence[str], preprocessing: Preprocessing) -> Splits:
    """Splits of (uint8 images (N, C, H, W), labels) pairs, resized once here: the transforms need not."""
    resize = preprocessing.resizing()
    return (
        TensorImages(resize(train[0]), train[1], preprocessing.train_transform()),
        TensorImages(resize(test[0]), test[1], preprocessing.eval_transform()),
        list(classes),
    )


def _digits(root: Path, preprocessing: Preprocessing) -> Splits:
    from sklearn.datasets import load_digits  # not at the top: it takes a second, and no other data set needs it
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images / 16 * 255).round().to(torch.uint8).unsqueeze(1)  # values are 0..16
    labels = torch.from_numpy(digits.target)
    train, test = train_test_split(range(len(labels)), test_size=1 / 3, stratify=labels, random_state=0)
    names = [str(name) for name in digits.target_names]
    return _in_memory((images[train], labels[train]), (images[test], labels[test]), names, preprocessing)


def _fashion_mnist(root: Path, preprocessing: Preprocessing) -> Splits:
    where = root / "FashionMNIST" / "raw"
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    train, test = _found_or_downloaded(
        lambda download: [datasets.FashionMNIST(root, train=train, download=download) for train in (True, False)],
        "fashion_mnist",
        where,
        f"put {', '.join(f'{name}-ubyte.gz' for name in names)} there",
    )
    return _in_memory(
        (train.data.unsqueeze(1), train.targets), (test.data.unsqueeze(1), test.targets), train.classes, preprocessing
    )


def _cifar10(root: Path, preprocessing: Preprocessing) -> Splits:
    train, test = _found_or_downloaded(
        lambda download: [datasets.CIFAR10(root, train=train, download=download) for train in (True, False)],
        "cifar10",
        root / "cifar-10-batches-py",
        f"put cifar-10-python.tar.gz (the Python version) into {root.resolve()}",
    )
    train_pair, test_pair = ((torch.from_numpy(split.data).movedim(-1, 1), split.targets) for split in (train, test))
    return _in_memory(train_pair, test_pair, train.classes, preprocessing)


def _imagenette(root: Path, preprocessing: Preprocessing) -> Splits:
    train, _ = _found_or_downloaded(
        lambda download: [
            datasets.Imagenette(root, split, size="320px", download=download) for split in ("train", "val")
        ],
        "imagenette",
        root / "imagenette2-320",
        f"put imagenette2-320.tgz into {root.resolve()}, or unpack it there",
    )
    classes = [names[0] for names in train.classes]
    where = root / "imagenette2-320"
    return training_pictures(where / "train", preprocessing), _test_pictures(where / "val", preprocessing), classes


def _found_or_downloaded(load: Callable[[bool], list], name: str, where: Path, advice: str) -> list:
    """`load(False)`, or else `load(True)` with a download; one FileNotFoundError if neither works."""
    with contextlib.suppress(RuntimeError):  # torchvision's "not found"
        return load(False)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # torchvision prints each failed mirror
            return load(True)
    except (RuntimeError, OSError, EOFError) as error:  # URLError is an OSError; a bad archive gives any of them
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(
            f"{name} is not in {where.resolve()} and could not be downloaded ({reason}). Without a network, {advice}."
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)


def _folder(path: Path, preprocessing: Preprocessing, load: Load = load_upright) -> Splits:
    train_folder, test_folder = _split_folders(path)
    test = _test_pictures(test_folder, preprocessing, load)
    if train_folder is None:
        return None, test, test.classes
    train = training_pictures(train_folder, preprocessing, load)
    if train.classes != test.classes:
        different = sorted(set(train.classes) ^ set(test.classes))
        raise ValueError(
            f"{train_folder.name}/ and {test_folder.name}/ in {path.resolve()} must hold the same classes; "
            f"only in one of them: {_some(different)}"
        )
    return train, test, test.classes


def _is_unsplit(path: Path) -> bool:
    """Whether a folder holds folders, but none of the splits."""
    folders = [item.name for item in path.iterdir() if item.is_dir()] if path.is_dir() else []
    return bool(folders) and not {"train", "val", "test"} & set(folders)


def _split(spec: str, path: Path, preprocessing: Preprocessing, val_fraction: float) -> DataBundle:
    train = training_pictures(path, preprocessing, load_upright)
    test = _test_pictures(path, preprocessing, load_upright)
    samples = train.samples
    tested = _chosen_by_name(path, samples, train.classes, val_fraction)
    _keep(train, [sample for sample in samples if sample[0] not in tested])
    _keep(test, [sample for sample in samples if sample[0] in tested])
    note = (
        f"{path} has no val/ or test/: {len(test)} of its {len(samples)} images, {val_fraction:.0%} of each class, are "
        "kept for testing; their names decide which"
    )
    return DataBundle(spec, train, test, _class_names(test.classes), preprocessing, note)


def _chosen_by_name(path: Path, samples: list[tuple[str, int]], classes: list[str], share: float) -> set[str]:
    """Images to test on: of each class those whose names, relative to `path`, have the lowest hashes."""
    files_of: list[list[str]] = [[] for _ in classes]
    for file, label in samples:
        files_of[label].append(file)
    chosen: set[str] = set()
    for name, files in zip(classes, files_of, strict=True):
        if len(files) < 2:
            raise ValueError(f"class {name!r} in {path.resolve()} has a single image; to train and to test takes two")
        files.sort(key=lambda file: hashlib.sha256(os.fsencode(Path(file).relative_to(path).as_posix())).digest())
        chosen.update(files[: min(max(round(share * len(files)), 1), len(files) - 1)])
    return chosen


def _keep(dataset: datasets.ImageFolder, samples: list[tuple[str, int]]) -> None:
    dataset.samples = dataset.imgs = samples
    dataset.targets = [label for _, label in samples]


def _name_what_is_passed_over(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # no image at all: what follows says so
        files = [file for file in picture_files(path) if file.suffix.lower() not in datasets.folder.IMG_EXTENSIONS]
        if files:
            endings = ", ".join(sorted({file.suffix.lower() for file in files}))
            names = printable(_some([str(file) for file in files]))
            count = f"{len(files)} {endings} file" + ("s are" if len(files) > 1 else " is")
            _LOGGER.warning("%s passed over; convert to JPEG or PNG: %s", count, names)


def _named_folder(path: Path, preprocessing: Preprocessing) -> Splits:
    train, test, folders = _folder(path, preprocessing)
    return train, test, _class_names(folders)


def _class_names(folders: list[str]) -> list[str]:
    """Names of the classes in such folders: ImageNet's, where all of them have its ids, else those of the folders."""
    if not set(folders) <= IMAGENET_WNIDS:
        return folders
    names = dict(zip(sorted(IMAGENET_WNIDS), _IMAGENET_CATEGORIES, strict=True))
    return [names[wnid] for wnid in folders]


def _imagenet(path: Path, preprocessing: Preprocessing) -> Splits:
    train, test, wnids = _folder(path, preprocessing, load_rgb)  # as stored: so were the published figures measured
    missing, unknown = sorted(IMAGENET_WNIDS - set(wnids)), sorted(set(wnids) - IMAGENET_WNIDS)
    if missing or unknown:
        raise ValueError(
            f"imagenet: {path.resolve()} must hold the {len(IMAGENET_WNIDS)} class folders of ImageNet-1K "
            f"(n01440764, ...) in each split; missing: {_some(missing)}; not ImageNet-1K's: {_some(unknown)}; "
            f"use folder:{path} for images of other classes"
        )
    return train, test, list(_IMAGENET_CATEGORIES)  # sorted wnids are the usual order of the classes


def _cifar10_folder(path: Path, preprocessing: Preprocessing) -> Splits:
    train, test, classes = _folder(path, preprocessing)
    if train is None:
        raise FileNotFoundError(f"looked for train/ in {path.resolve()}, as CIFAR-10 has")
    return _in_memory(_decoded(train), _decoded(test), classes, preprocessing)


def _decoded(split: datasets.ImageFolder) -> tuple[Tensor, list[int]]:
    images = [pil_to_tensor(load_upright(path)) for path, _ in split.samples]
    for image, (path, _) in zip(images, split.samples, strict=True):
        if image.shape != (3, 32, 32):
            raise ValueError(
                f"CIFAR-10's images are of 32 x 32 pixels, but {path} has {image.shape[2]} x {image.shape[1]}"
            )
    return torch.stack(images), split.targets


def _split_folders(path: Path) -> tuple[Path | None, Path]:
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path.resolve()}")
    test = next((path / name for name in ("val", "test") if (path / name).is_dir()), None)
    if test is None:
        found = sorted(item.name for item in path.iterdir())
        hint = f"; folder:{path / 'train'} takes a share of that for testing" if (path / "train").is_dir() else ""
        raise FileNotFoundError(
            f"looked for val/ or test/ (and train/) in {path.resolve()}, found {_some(found)}{hint}"
        )
    return (path / "train" if (path / "train").is_dir() else None), test


def training_pictures(path: str | Path, preprocessing: Preprocessing, load: Load = load_rgb) -> datasets.ImageFolder:
    """The images in a folder of class folders, augmented as for training: cropped and resized by torch.

    So all that follows decoding takes about half of the time that it takes with Pillow. Over ImageNet images the
    result differs from Pillow's by 0.03 of 255 levels in the mean, in single pixels by up to 13.
    """
    return _image_folder(Path(path), preprocessing.train_transform(), partial(load_tensor, load=load))


def _test_pictures(path: Path, preprocessing: Preprocessing, load: Load = load_rgb) -> datasets.ImageFolder:
    # Pillow resizes, as it did for the published figures; torch's result may differ by 2 of the 255 levels.
    return _image_folder(path, preprocessing.eval_transform(), load)


def _image_folder(path: Path, transform: Callable, loader: Callable) -> datasets.ImageFolder:
    try:
        return datasets.ImageFolder(path, transform, loader=loader)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path.resolve()} must hold one folder of images per class: {error}") from None


def _photos(root: Path, preprocessing: Preprocessing) -> Splits:
    photos = Photos(preprocessing.eval_transform(), load_upright)
    return None, photos, photos.classes


def _fake(root: Path, preprocessing: Preprocessing) -> Splits:
    size = (3, preprocessing.resize, preprocessing.resize)
    train = datasets.FakeData(96, size, 10, preprocessing.train_transform())
    test = datasets.FakeData(50, size, 10, preprocessing.eval_transform(), random_offset=len(train))
    return train, test, [f"class {index}" for index in range(10)]


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "nothing"


WITH_PATH = ("imagenet", "folder", "cifar10_folder")
SPECS: dict[str, tuple[Preprocessing, Callable[[Path, Preprocessing], Splits]]] = {
    "digits": (DIGITS, _digits),
    "photos": (IMAGENET, _photos),
    "fashion_mnist": (FASHION_MNIST, _fashion_mnist),
    "cifar10": (CIFAR10, _cifar10),
    "imagenette": (IMAGENET, _imagenette),
    "imagenet": (IMAGENET, _imagenet),
    "folder": (IMAGENET, _named_folder),
    "cifar10_folder": (CIFAR10, _cifar10_folder),
    "fake": (FAKE, _fake),
}
