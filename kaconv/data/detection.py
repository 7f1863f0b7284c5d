"""Images with boxes: `load_detection("voc:PATH")`, `load_detection("coco:PATH")`."""

import contextlib
import io
import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.datasets import CocoDetection
from torchvision.ops import clip_boxes_to_image
from torchvision.transforms import v2

from kaconv.data.pictures import load_rgb
from kaconv.utils.extras import missing_package
from kaconv.utils.text import short_repr

KINDS = ("voc", "coco")
Target = dict[str, Tensor]


@dataclass(frozen=True)
class Boxes:
    """Objects of an image: corners x1, y1, x2, y2 in pixels, classes from 0, and those that are not to be counted.

    Args:
        uncounted: for each object, whether it is "difficult" (VOC) or a crowd (COCO): nothing is learned from it, and
            to find it or not to find it is no mistake.
    """

    corners: list[tuple[float, float, float, float]]
    classes: list[int]
    uncounted: list[bool]


class DetectionImages(Dataset):
    """Images with their boxes.

    Each sample is an RGB image (3, H, W), float in [0, 1], in the orientation it is stored in, and a target as
    torchvision's detectors take it: `boxes` (objects, 4) in pixels, `labels` (objects,) from 1, as 0 is the background,
    and `iscrowd` (objects,), 1 for those that are not to be counted.

    Args:
        samples: the path of each image, and its objects.
        transform: of the image and the target together, such as a flip.
        counted_only: leave out the uncounted objects, as in training.
    """

    def __init__(
        self, samples: list[tuple[Path, Boxes]], transform: Callable | None = None, counted_only: bool = False
    ) -> None:
        self.samples, self.counted_only = samples, counted_only
        self.transform = transform or v2.Identity()
        self._to_float = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        path, objects = self.samples[index]
        image = load_rgb(str(path))
        kept = [n for n, uncounted in enumerate(objects.uncounted) if not (self.counted_only and uncounted)]
        target = {
            "boxes": tv_tensors.BoundingBoxes(
                torch.tensor([objects.corners[n] for n in kept]).reshape(-1, 4),
                format="XYXY",
                canvas_size=(image.height, image.width),
            ),
            "labels": torch.tensor([objects.classes[n] + 1 for n in kept], dtype=torch.int64),
            "iscrowd": torch.tensor([objects.uncounted[n] for n in kept], dtype=torch.int64),
        }
        return self._to_float(*self.transform(image, target))


@dataclass
class DetectionBundle:
    """A detection data set: `train` is augmented, `test` is not."""

    spec: str
    train: DetectionImages
    test: DetectionImages
    classes: list[str]


def load_detection(spec: str, *, crop: bool = False) -> DetectionBundle:
    """Load a detection data set by its spec.

    - `voc:PATH`: Pascal VOC's layout, PATH being the folder of a year (JPEGImages/, Annotations/, ImageSets/Main/), or
      images/, annotations/, train.txt and val.txt. train.txt lists the training images by name, val.txt or test.txt the
      others. Classes are sorted by name; coordinates are taken as they stand.
    - `coco:PATH`: annotations/instances_train*.json and instances_val*.json, the images in train*/ and val*/.

    Training images are mirrored at random. A box that reaches over the edge of a training image is cut there; one
    without an area is left out.

    Args:
        crop: crop them at random, too, as SSD is trained (`v2.RandomIoUCrop`).

    Raises:
        ValueError: for a bad spec, for an annotation that is not as it should be, with its file, and for training or
            test images without any object.
        FileNotFoundError: for missing files, with what was looked for and where.
        ModuleNotFoundError: for COCO, where pycocotools is not installed.
    """
    kind, _, path = str(spec).partition(":")
    if kind not in KINDS or not path:
        raise ValueError(f"unknown detection data {short_repr(spec)}; it is given as voc:PATH or coco:PATH")
    where = Path(path).expanduser()
    if not where.is_dir():
        raise FileNotFoundError(f"there is no folder {where.resolve()}")
    train, test, classes = (_voc if kind == "voc" else _coco)(where)
    for part, samples in (("training", train), ("test", test)):
        if not any(objects.corners for _, objects in samples):
            raise ValueError(f"the {len(samples)} {part} images of {spec} have no objects")
    crops = [v2.RandomIoUCrop()] if crop else []
    steps = [v2.ClampBoundingBoxes(), *crops, v2.RandomHorizontalFlip()]  # what is over the edge would be left out
    transform = v2.Compose([*steps, v2.SanitizeBoundingBoxes(labels_getter=_of_objects)])
    return DetectionBundle(spec, DetectionImages(train, transform, counted_only=True), DetectionImages(test), classes)


def collate(samples: list[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    """A batch as torchvision's detectors take it: images of several sizes stay apart."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


@dataclass(frozen=True)
class Crops:
    """Squares of images, (N, 3, side, side) in [0, 1]: from inside an object, and two from outside of all objects.

    Args:
        images: which images of the data set they are of, (N,).
    """

    inside: Tensor
    outside: Tensor
    other: Tensor
    images: list[int]


def crop_inside_and_outside(dataset: DetectionImages, side: int, *, least: int = 24, seed: int = 0) -> Crops:
    """Cut three squares of one size from each image: the middle of its largest object, and two places without any.

    The squares are as large as the object and the free ground allow, and are resized to `side` alike, so that inside
    and outside differ in what they show, not in sharpness. Images without room for them are left out.

    Args:
        least: side in pixels of the smallest square that is cut.

    Raises:
        ValueError: if no image has room.
    """
    generator = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []
    places = []
    for index in range(len(dataset)):
        image, target = dataset[index]
        shape = (image.shape[1], image.shape[2])
        if squares := _squares(shape, clip_boxes_to_image(target["boxes"], shape), least, generator):
            parts = [image[:, y : y + size, x : x + size] for x, y, size in squares]
            found.append(torch.stack([v2.functional.resize(part, [side, side], antialias=True) for part in parts]))
            places.append(index)
    if not found:
        raise ValueError(f"none of the {len(dataset)} images has room for squares of {least} pixels beside its objects")
    inside, outside, other = torch.stack(found, dim=1)
    return Crops(inside, outside, other, places)


_TRIED = 100  # places for a square, of each size


def _squares(
    shape: tuple[int, ...], boxes: Tensor, least: int, generator: torch.Generator
) -> list[tuple[int, int, int]] | None:
    """Left, top and size of a square in the largest box, and of two beside all boxes that do not overlap."""
    if not len(boxes):
        return None
    extents = boxes[:, 2:] - boxes[:, :2]
    largest = int(extents.prod(dim=1).argmax())
    size = int(extents[largest].min())
    while size >= least:
        taken = boxes.clone()
        outside = []
        limits = torch.tensor([shape[1] - size, shape[0] - size])
        for corner in (torch.rand(_TRIED, 2, generator=generator) * (limits + 1)).long().tolist():
            x, y = corner
            if not _overlaps(taken, x, y, size):
                outside.append((x, y, size))
                taken = torch.cat([taken, taken.new_tensor([[x, y, x + size, y + size]])])
            if len(outside) == 2:
                left, top = ((boxes[largest, :2] + boxes[largest, 2:] - size) / 2).long().tolist()
                return [(left, top, size), *outside]
        size = int(0.8 * size)
    return None


def _overlaps(boxes: Tensor, x: int, y: int, size: int) -> bool:
    left, top, right, bottom = boxes.unbind(1)
    return bool(((left < x + size) & (x < right) & (top < y + size) & (y < bottom)).any())


def _of_objects(sample: tuple[Any, Target]) -> tuple[Tensor, Tensor]:
    """What goes with a box that a crop has cut away."""
    return sample[1]["labels"], sample[1]["iscrowd"]


Samples = list[tuple[Path, Boxes]]


# Pascal VOC -----------------------------------------------------------------------------------------------------------


def _voc(where: Path) -> tuple[Samples, Samples, list[str]]:
    images = _first(where, "JPEGImages", "images")
    annotations = _first(where, "Annotations", "annotations")
    lists = where / "ImageSets" / "Main"
    lists = lists if lists.is_dir() else where
    splits = []
    for split in (_first(lists, "train.txt"), _first(lists, "val.txt", "test.txt")):
        try:
            names = [line.split()[0] for line in split.read_text(encoding="utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise ValueError(f"{split} cannot be read: {error}") from None
        if not names:
            raise ValueError(f"{split} names no image")
        files = _files_by_stem(images)
        missing = [name for name in names if name not in files]
        if missing:
            raise FileNotFoundError(f"{split} names {missing[0]}, but there is no image of that name in {images}")
        splits.append([(files[name], _voc_objects(annotations / f"{name}.xml")) for name in names])
    classes = sorted({name for split in splits for _, objects in split for name, _, _ in objects})
    train, test = ([(path, _boxes(objects, classes)) for path, objects in split] for split in splits)
    return train, test, classes


def _first(where: Path, *names: str) -> Path:
    for name in names:
        if (where / name).exists():
            return where / name
    raise FileNotFoundError(f"looked for {' or '.join(names)} in {where.resolve()}")


def _files_by_stem(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in folder.iterdir() if path.is_file()}


_CORNERS = ("bndbox/xmin", "bndbox/ymin", "bndbox/xmax", "bndbox/ymax")
Size = tuple[float, float]  # width and height in pixels, infinite where the annotation does not say
Object = tuple[str, tuple[float, float, float, float], bool]  # class, corners, uncounted


def _voc_objects(path: Path) -> list[Object]:
    try:
        root = ET.parse(path).getroot()
        width, height = (float(root.findtext(f"size/{name}") or 0) or math.inf for name in ("width", "height"))
        return [_voc_object(entry, (width, height)) for entry in root.iter("object")]
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no annotation {path}") from None
    except (ET.ParseError, ValueError) as error:
        raise ValueError(f"the annotation {path} cannot be read: {error}") from None


def _voc_object(entry: ET.Element, size: Size) -> Object:
    found = {name: entry.findtext(name) for name in ("name", *_CORNERS)}
    if missing := [name for name, text in found.items() if text is None]:
        raise ValueError(f"an object lacks {', '.join(missing)}")
    left, top, right, bottom = (float(str(found[name])) for name in _CORNERS)
    return (
        str(found["name"]).strip(),
        _checked(left, top, right, bottom, size),
        entry.findtext("difficult", "0").strip() == "1",
    )


def _checked(left: float, top: float, right: float, bottom: float, size: Size) -> tuple[float, float, float, float]:
    corners, (width, height) = (left, top, right, bottom), size
    where = f"a box from ({left:g}, {top:g}) to ({right:g}, {bottom:g})"
    if not all(map(math.isfinite, corners)):
        raise ValueError(f"{where} is not finite")
    if left > right or top > bottom:
        raise ValueError(f"{where} is upside down")
    has_area = left < right and top < bottom
    if has_area and (right <= 0 or bottom <= 0 or left >= width or top >= height):
        raise ValueError(f"{where} lies outside of the image of {width:g} x {height:g} pixels")
    return corners


def _boxes(objects: list[Object], classes: list[str]) -> Boxes:
    """Those with an area: a box without one cannot be learned, and COCO has some."""
    kept = [(name, box, uncounted) for name, box, uncounted in objects if box[0] < box[2] and box[1] < box[3]]
    return Boxes([box for _, box, _ in kept], [classes.index(name) for name, _, _ in kept], [u for _, _, u in kept])


# COCO -----------------------------------------------------------------------------------------------------------------


def _coco(where: Path) -> tuple[Samples, Samples, list[str]]:
    loaded = [_coco_split(where, split) for split in ("train", "val")]
    (_, ours), (_, theirs) = loaded
    if renamed := [number for number in ours if theirs.get(number, ours[number]) != ours[number]]:
        first = renamed[0]
        raise ValueError(
            f"category {first} is {ours[first]} in training, but {theirs[first]} in validation, in {where}"
        )
    names = ours | theirs
    classes = [names[number] for number in sorted(names)]
    train, test = (_coco_samples(data, own, classes) for data, own in loaded)
    return train, test, classes


def _coco_split(where: Path, split: str) -> tuple[CocoDetection, dict[int, str]]:
    """The annotated images, and the categories' names by number."""
    pattern = f"instances_{split}*.json"
    files = sorted((where / "annotations").glob(pattern))
    if len(files) != 1:
        found = "none" if not files else ", ".join(file.name for file in files)
        raise FileNotFoundError(f"looked for one {pattern} in {(where / 'annotations').resolve()}, found {found}")
    folder = where / files[0].stem.removeprefix("instances_")
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder.resolve()} with the images of {files[0].name}")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools says that it loads
            data = CocoDetection(folder, str(files[0]))
        content = data.coco.dataset
        missing = [name for name in ("images", "annotations", "categories") if not content.get(name)]
        names = {entry["id"]: str(entry["name"]) for entry in content.get("categories", [])}
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(missing_package(error), name=error.name) from None
    except (json.JSONDecodeError, UnicodeDecodeError, AssertionError, KeyError, TypeError) as error:
        raise ValueError(f"the annotations {files[0]} cannot be read: {_reason(error)}") from None
    if missing:
        raise ValueError(f"the annotations {files[0]} lack {', '.join(missing)}")
    if len(data.ids) < len(content["images"]):
        raise ValueError(f"the annotations {files[0]} have several images of one id")
    return data, names


def _coco_samples(data: CocoDetection, names: dict[int, str], classes: list[str]) -> Samples:
    samples = []
    for number in data.ids:
        entry = data.coco.loadImgs(number)[0]
        try:
            size = (entry.get("width") or math.inf, entry.get("height") or math.inf)
            objects = [_coco_object(annotation, names, size) for annotation in data.coco.imgToAnns[number]]
            path = Path(data.root) / entry["file_name"]
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"image {number} of {data.root} has a bad annotation: {_reason(error)}") from None
        if not path.is_file():
            raise FileNotFoundError(f"there is no image {path}, which the annotations name")
        samples.append((path, _boxes(objects, classes)))
    return samples


def _coco_object(annotation: dict[str, Any], names: dict[int, str], size: Size) -> Object:
    left, top, width, height = (float(value) for value in annotation["bbox"])
    box = _checked(left, top, left + width, top + height, size)
    if (category := annotation["category_id"]) not in names:
        raise ValueError(f"its category {category} is not among the categories {', '.join(map(str, sorted(names)))}")
    return names[category], box, bool(annotation.get("iscrowd", 0))


def _reason(error: Exception) -> str:
    return f"an entry lacks {error.args[0]}" if isinstance(error, KeyError) else str(error)
