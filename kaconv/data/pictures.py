"""The doors through which a file becomes an image: the data sets', and that of predictions and uploads."""

import contextlib
import os
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image
from torch import Tensor
from torchvision import datasets
from torchvision.transforms.v2.functional import pil_to_tensor

from kaconv.data.unreadable import UnreadablePicture

# What Pillow's decoders raise, depending on the format and on what is wrong with the file.
BROKEN_PICTURE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF orientation
# Of images that cameras make and Pillow does not read: to be named, not to be passed over in silence.
UNREAD_ENDINGS = {".heic", ".heif", ".hif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"}
_BACKGROUND = "white"  # what most images with transparent parts are made to be seen on


def load_rgb(path: str) -> Image.Image:
    """An image of a data set as RGB, in the orientation it is stored in; `UnreadablePicture` if it is damaged."""
    try:
        return datasets.folder.default_loader(path)
    except BROKEN_PICTURE as error:
        raise UnreadablePicture(f"cannot read the image {path}: {error}") from None


def load_upright(path: str) -> Image.Image:
    """An image of a data set as `open_image` shows it; `UnreadablePicture` if it is damaged."""
    try:
        return open_image(path)
    except (OSError, ValueError) as error:
        raise UnreadablePicture(str(error)) from None


def load_tensor(path: str, load: Callable[[str], Image.Image]) -> Tensor:
    """The image that `load` reads, as uint8 (3, H, W)."""
    return pil_to_tensor(load(path))


def picture_files(folder: str | Path) -> list[Path]:
    """The images in a folder and all below it, sorted: files with the ending of an image, readable or not.

    Hidden files and folders are left out. FileNotFoundError if there are none.
    """
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN} | UNREAD_ENDINGS
    folder, files = Path(folder), []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    pictures = sorted(path for path in files if path.suffix.lower() in endings)
    if not pictures:
        raise FileNotFoundError(f"there are no images in {folder}")
    return pictures


def open_image(path: str | Path) -> Image.Image:
    """An image file as it is meant to be seen: RGB, 8 bits, upright; of an animation, the first frame.

    The EXIF orientation is applied. 16-bit grey values are scaled to 8 bits. Transparent parts show a white background.
    Every format that Pillow reads will do.

    Raises:
        OSError, ValueError: with the path, if there is no such file, it is no image, is damaged, or has more pixels
            than Pillow deems safe (about 179 million).
    """
    path = Path(path)
    if not path.is_file():
        what = (
            "it is a folder" if path.is_dir() else "it is no regular file" if path.exists() else "there is no such file"
        )
        raise FileNotFoundError(f"cannot read the image {path}: {what}")
    return read_image(path, str(path))


def read_image(file: Path | BinaryIO, name: str, *, longest: int | None = None) -> Image.Image:
    """As `open_image`, from a path or an open file.

    Args:
        name: what errors call the image.
        longest: side in pixels from which on an image is refused before it is decoded; None: any.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata, and of sizes below the limit
        try:
            with Image.open(file) as image:
                if longest is not None and max(image.size) > longest:
                    raise ValueError(f"it has {image.width} x {image.height} pixels; {longest:,} a side are the most")
                image.load()
                return _as_seen(image)
        except Image.UnidentifiedImageError:
            advice = "; convert it to JPEG or PNG" if Path(name).suffix.lower() in UNREAD_ENDINGS else ""
            raise ValueError(f"cannot read the image {name}: it is in no known format{advice}") from None
        except Exception as error:  # damaged data make some decoders raise nearly everything
            raise ValueError(f"cannot read the image {name}: {error or type(error).__name__}") from None


def _as_seen(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it also rewrites the EXIF data, and fails where a tag has an odd value.
    with contextlib.suppress(Exception):  # an image with damaged EXIF data is as good as one without
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        if orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[orientation])
    if image.mode == "F":
        raise ValueError("it has floating-point values of unknown scale")
    if image.mode == "I" or image.mode.startswith("I;16"):  # what Pillow makes of 16-bit grey; convert would clip it
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"its values go from {values.min()} to {values.max()}, beyond 16 bits")
        image = Image.fromarray((values // 257).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    background = Image.new("RGBA", image.size, _BACKGROUND)
    return Image.alpha_composite(background, image).convert("RGB")


def check_resized_size(path: str | Path, image: Image.Image, resize: int) -> None:
    """ValueError for a line of pixels that would become a huge image, when its shorter side becomes `resize`."""
    if resize**2 * max(image.size) / min(image.size) > (Image.MAX_IMAGE_PIXELS or float("inf")):
        raise ValueError(f"cannot read the image {path}: {image.width} x {image.height} pixels are too long a strip")
