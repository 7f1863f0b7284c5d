"""A small detection data set that is drawn: a disc, square or triangle on a noisy ground, in Pascal VOC's layout."""

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from kaconv.utils.files import replacing, write_text

SHAPES = ("disc", "square", "triangle")


def draw_shapes(folder: str | Path, *, train: int = 64, test: int = 24, size: int = 128, seed: int = 0) -> str:
    """Draw the images and their annotations into a folder, and give its spec, `voc:FOLDER`.

    The same arguments draw the same images; what the folder holds of them already is written again.

    Args:
        train, test: numbers of images.
        size: side of the images in pixels. The object's side is from a third
            to 0.6 of it: a small detector learns that in minutes.
    """
    folder = Path(folder)
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", test)):
        names = [f"{split}-{number:04d}" for number in range(count)]
        for name in names:
            image, drawn = _drawn(rng, size)
            with replacing(folder / "images" / f"{name}.png") as temporary:
                image.save(temporary, "PNG")
            write_text(folder / "annotations" / f"{name}.xml", _annotation(drawn))
        write_text(folder / f"{split}.txt", "".join(f"{name}\n" for name in names))
    return f"voc:{folder}"


Drawn = tuple[str, tuple[int, int, int, int]]  # an object's kind and corners


def _drawn(rng: np.random.Generator, size: int) -> tuple[Image.Image, Drawn]:
    ground = Image.fromarray(rng.integers(40, 216, (size, size, 3), dtype=np.uint8)).filter(ImageFilter.GaussianBlur(2))
    draw = ImageDraw.Draw(ground)
    side = int(rng.integers(size // 3, size * 6 // 10))
    left, top = (int(value) for value in rng.integers(0, size - side, 2))
    box = left, top, left + side, top + side
    kind = SHAPES[rng.integers(len(SHAPES))]
    colour = tuple(int(value) for value in rng.integers(0, 256, 3))
    if kind == "disc":
        draw.ellipse(box, fill=colour, outline="black")
    elif kind == "square":
        draw.rectangle(box, fill=colour, outline="black")
    else:
        corners = [(left + side / 2, top), (left + side, top + side), (left, top + side)]
        draw.polygon(corners, fill=colour, outline="black")
    return ground, (kind, box)


def _annotation(drawn: Drawn) -> str:
    name, box = drawn
    root = ET.Element("annotation")
    entry = ET.SubElement(root, "object")
    ET.SubElement(entry, "name").text = name
    corners = ET.SubElement(entry, "bndbox")
    for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
        ET.SubElement(corners, key).text = str(value)
    return ET.tostring(root, encoding="unicode") + "\n"
