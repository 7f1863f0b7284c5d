"""Data sets by name, and the images in them."""

from kaconv.data.datasets import DataBundle, load_data, parse_spec, training_pictures
from kaconv.data.pictures import open_image
from kaconv.data.preprocessing import IMAGENET, Preprocessing
from kaconv.data.unreadable import UNREADABLE, describe_sample, tolerant

__all__ = [
    "IMAGENET",
    "UNREADABLE",
    "DataBundle",
    "Preprocessing",
    "describe_sample",
    "load_data",
    "open_image",
    "parse_spec",
    "tolerant",
    "training_pictures",
]
