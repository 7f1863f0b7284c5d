"""A small detection data set that is drawn: discs, squares and triangles on a noisy ground, in Pascal VOC's layout."""

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from kaconv.utils.files import replacing, write_text

SHAPES = ("disc", "square", "triangle")
_MOST_OBJECTS = 3
_TRIES = 50  # places that are tried for an object before an image has to do with fewer


def draw_shapes(folder: str | Path, *, train: int = 64, test: int = 24, size: int = 128, seed: int = 0) -> str:
    """Draw the images and their annotations into a folder, and give its spec, `voc:FOLDER`.

    The same arguments draw the same images; what the folder holds of them already is written again.

    Args:
        train, test: numbers of images.
        size: side of the images in pixels. An object's side is from a fifth to a half of it.
    """
    folder = Path(folder)
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", test)):
        names = [f"{split}-{number:04d}" for number in range(count)]
        for name in names:
            image, objects = _drawn(rng, size)
            with replacing(folder / "images" / f"{name}.png") as temporary:
                image.save(temporary, "PNG")
            write_text(folder / "annotations" / f"{name}.xml", _annotation(objects))
        write_text(folder / f"{split}.txt", "".join(f"{name}\n" for name in names))
    return f"voc:{folder}"


Box = tuple[int, int, int, int]
Drawn = tuple[str, Box]  # an object's kind and corners


def _drawn(rng: np.random.Generator, size: int) -> tuple[Image.Image, list[Drawn]]:
    ground = Image.fromarray(rng.integers(40, 216, (size, size, 3), dtype=np.uint8)).filter(ImageFilter.GaussianBlur(2))
    draw = ImageDraw.Draw(ground)
    objects: list[Drawn] = []
    for _ in range(rng.integers(1, _MOST_OBJECTS + 1)):
        box = _free_place(rng, size, [box for _, box in objects])
        if box is None:
            continue
        kind = SHAPES[rng.integers(len(SHAPES))]
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        left, top, right, bottom = box
        if kind == "disc":
            draw.ellipse(box, fill=colour, outline="black")
        elif kind == "square":
            draw.rectangle(box, fill=colour, outline="black")
        else:
            draw.polygon([((left + right) / 2, top), (right, bottom), (left, bottom)], fill=colour, outline="black")
        objects.append((kind, box))
    return ground, objects


def _free_place(rng: np.random.Generator, size: int, taken: list[Box]) -> Box | None:
    for _ in range(_TRIES):
        side = int(rng.integers(size // 5, size // 2))
        left, top = (int(value) for value in rng.integers(0, size - side, 2))
        right, bottom = left + side, top + side
        if all(right < x or x2 < left or bottom < y or y2 < top for x, y, x2, y2 in taken):
            return left, top, right, bottom
    return None


def _annotation(objects: list[Drawn]) -> str:
    root = ET.Element("annotation")
    for name, box in objects:
        entry = ET.SubElement(root, "object")
        ET.SubElement(entry, "name").text = name
        corners = ET.SubElement(entry, "bndbox")
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            ET.SubElement(corners, key).text = str(value)
    return ET.tostring(root, encoding="unicode") + "\n"
