"""Copy the first images of each class, by name, of an image folder with train/ and val/.

python reports/studies/balanced_subset.py data/cache/cifar10_jpeg data/cache/cifar10_small --train 500 --val 200
"""

import argparse
import shutil
import sys
from pathlib import Path

from kaconv.data.pictures import picture_files


def copy_first(source: Path, target: Path, number: int) -> None:
    """Copy the first `number` images of each class folder of `source`; ValueError where a class has fewer."""
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        files = sorted(picture_files(folder))
        if len(files) < number:
            raise ValueError(f"{folder} has {len(files)} images, fewer than {number}")
        (target / folder.name).mkdir(parents=True)
        for file in files[:number]:
            shutil.copyfile(file, target / folder.name / file.name)


def main() -> None:
    """Make the subset that the command line asks for; it appears when it is whole."""
    parser = argparse.ArgumentParser(description="Copy the first images of each class of an image folder.")
    parser.add_argument("source", type=Path, help="a folder with train/ and val/, each with one folder per class")
    parser.add_argument("target", type=Path, help="where the subset goes; must not exist yet")
    parser.add_argument("--train", type=int, required=True, metavar="N", help="training images of each class")
    parser.add_argument("--val", type=int, required=True, metavar="N", help="test images of each class")
    args = parser.parse_args()
    if args.target.exists():
        sys.exit(f"{args.target} exists already; choose another name")
    unfinished = args.target.with_name(f".{args.target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        for split in ("train", "val"):
            copy_first(args.source / split, unfinished / split, getattr(args, split))
        unfinished.rename(args.target)
    except (OSError, ValueError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        sys.exit(str(error))


if __name__ == "__main__":
    main()
