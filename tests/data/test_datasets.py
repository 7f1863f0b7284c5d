import io
import json
import logging
import math
import shutil
import socket
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision.models._meta import _IMAGENET_CATEGORIES

from kaconv.data.datasets import load_data
from kaconv.data.pictures import load_rgb, load_upright, open_image
from kaconv.data.preprocessing import CIFAR10, IMAGENET, Preprocessing
from kaconv.data.unreadable import UNREADABLE, UnreadablePicture, describe_sample, tolerant
from kaconv.data.wnids import IMAGENET_WNIDS

SHARED = Path(__file__).parents[3] / "shared" / "data"


def write_pictures(folder: Path, classes: tuple[str, ...], count: int = 2, size: tuple[int, int] = (40, 30)) -> None:
    for index, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", size, (60 * index, 20 * number, 0)).save(folder / name / f"{number}.png")


@pytest.fixture
def pictures(tmp_path) -> Path:
    write_pictures(tmp_path / "train", ("cat", "dog"), count=3)
    write_pictures(tmp_path / "val", ("cat", "dog"))
    return tmp_path


def test_digits_are_split_in_a_fixed_stratified_way():
    data = load_data("digits")
    assert (len(data.train), len(data.test)) == (1198, 599)
    assert data.classes == [str(digit) for digit in range(10)]
    counts = np.bincount(data.test.labels)
    assert counts.min() >= 58
    assert counts.max() <= 61
    again = load_data("digits")
    assert torch.equal(data.test.images, again.test.images)
    everything = {image.numpy().tobytes() for split in (data.train, data.test) for image in split.images}
    assert len(everything) == 1797  # no digit is in both


def test_digits_are_upright_grey_and_normalised():
    data = load_data("digits")
    images = torch.stack([data.test[index][0] for index in range(len(data.test))])
    assert images.shape == (599, 3, 16, 16)
    assert torch.equal(images[:, 0], images[:, 2])
    assert images.mean().abs() < 0.05
    assert images.std() == pytest.approx(1, abs=0.05)
    zeros = images[torch.tensor(data.test.labels) == 0].mean(0)[0]
    assert zeros[7:9, 7:9].mean() < zeros[7:9, 3:6].mean()  # a nought has a hole
    assert data.preprocessing.flip is False


def test_training_pictures_are_augmented_and_test_pictures_are_not():
    data = load_data("digits")
    assert torch.equal(data.test[0][0], data.test[0][0])
    torch.manual_seed(0)
    assert len({data.train[0][0].numpy().tobytes() for _ in range(100)}) == 9  # shifts of -1, 0, 1 in two directions


@pytest.mark.parametrize("spec", ["digits", "fake"])
@pytest.mark.parametrize("image_size", [None, 24])
def test_splits_yield_images_of_the_preprocessing_s_size(spec, image_size):
    data = load_data(spec, image_size=image_size)
    assert data.preprocessing.image_size == image_size or image_size is None
    for split in (data.train, data.test):
        image, label = split[len(split) - 1]
        assert image.shape == (3, data.preprocessing.image_size, data.preprocessing.image_size)
        assert image.dtype == torch.float32
        assert isinstance(label, int)


def test_fake_is_deterministic():
    one, other = load_data("fake"), load_data("fake")
    assert all(torch.equal(one.test[i][0], other.test[i][0]) and one.test[i][1] == other.test[i][1] for i in range(5))


def test_folder(pictures):
    data = load_data(f"folder:{pictures}")
    assert data.classes == ["cat", "dog"]
    assert (len(data.train), len(data.test)) == (6, 4)
    assert data.preprocessing == IMAGENET
    assert data.train[0][0].shape == data.test[0][0].shape == (3, 224, 224)
    (pictures / "val").rename(pictures / "test")
    assert len(load_data(f"folder:{pictures}").test) == 4


def test_folder_without_train_is_good_for_evaluation(pictures):
    shutil.rmtree(pictures / "train")
    data = load_data(f"folder:{pictures}", image_size=32)
    assert data.train is None
    assert data.test[0][0].shape == (3, 32, 32)
    assert data.preprocessing.resize == 37  # 32 * 256 / 224, rounded


def test_given_preprocessing_replaces_the_data_s_own(pictures):
    own = Preprocessing(20, 20, "bilinear", mean=(0, 0, 0), std=(1, 1, 1))
    data = load_data(f"folder:{pictures}", preprocessing=own)
    image, _ = data.test[3]  # dog 1: (60, 20, 0)
    assert image.shape == (3, 20, 20)
    torch.testing.assert_close(image[:, 10, 10], torch.tensor([60, 20, 0]) / 255)


def test_a_folder_of_imagenet_s_ids_has_its_names(tmp_path):
    write_pictures(tmp_path / "train", ("n02102040", "n01440764"))
    write_pictures(tmp_path / "val", ("n02102040", "n01440764"))
    assert load_data(f"folder:{tmp_path}").classes == ["tench", "English springer"]
    assert load_data(f"folder:{tmp_path / 'train'}").classes == ["tench", "English springer"]
    write_pictures(tmp_path / "train", ("dog",))
    assert load_data(f"folder:{tmp_path / 'train'}").classes == ["dog", "n01440764", "n02102040"]


def test_imagenet_takes_the_usual_class_names(tmp_path):
    wnids = tuple(sorted(IMAGENET_WNIDS))
    write_pictures(tmp_path / "val", wnids, count=1, size=(8, 8))
    data = load_data(f"imagenet:{tmp_path}")
    assert data.train is None
    assert data.classes == list(_IMAGENET_CATEGORIES)
    assert data.test[999][1] == 999
    shutil.rmtree(tmp_path / "val" / wnids[3])
    with pytest.raises(ValueError, match=r"1000 class folders .*; missing: n01491361; not ImageNet-1K's: nothing; use"):
        load_data(f"imagenet:{tmp_path}")
    write_pictures(tmp_path / "val", ("n02084071",), count=1, size=(8, 8))  # ImageNet's "dog", not one of the 1000
    with pytest.raises(ValueError, match="missing: n01491361; not ImageNet-1K's: n02084071"):
        load_data(f"imagenet:{tmp_path}")


@pytest.mark.parametrize(
    ("wnid", "index", "name"),
    [
        ("n01440764", 0, "tench"),
        ("n02012849", 134, "crane bird"),
        ("n02099601", 207, "golden retriever"),
        ("n02113186", 264, "Cardigan"),
        ("n02123045", 281, "tabby"),
        ("n02963159", 474, "cardigan"),
        ("n03126707", 517, "crane"),
        ("n03710637", 638, "maillot"),
        ("n03710721", 639, "maillot tank suit"),
        ("n15075141", 999, "toilet tissue"),
    ],
)
def test_a_wnid_s_place_among_the_sorted_ones_is_its_class(wnid, index, name):
    assert len(IMAGENET_WNIDS) == len(set(_IMAGENET_CATEGORIES)) == 1000
    assert sorted(IMAGENET_WNIDS).index(wnid) == index
    assert _IMAGENET_CATEGORIES[index] == name


def test_imagenet_s_evaluation_is_the_paper_s():
    """Resize(256, bicubic) and CenterCrop(224) by Pillow alone."""
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC)
    left, top = round((341 - 224) / 2), (256 - 224) // 2  # 58.5 is rounded to 58
    cropped = picture.resize((341, 256), Image.Resampling.BICUBIC).crop((left, top, left + 224, top + 224))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET.mean, IMAGENET.std))
    expected = (torch.from_numpy(np.array(cropped)).movedim(-1, 0) / 255 - mean) / std
    torch.testing.assert_close(IMAGENET.eval_transform()(picture), expected)


def test_imagenette_as_torchvision_lays_it_out(tmp_path):
    for split in ("train", "val"):
        for wnid in ("n01440764", "n02102040"):
            folder = tmp_path / "imagenette2-320" / split / wnid
            folder.mkdir(parents=True)
            Image.new("RGB", (20, 10)).save(folder / "0.JPEG")
    data = load_data("imagenette", tmp_path)
    assert data.classes == ["tench", "English springer"]
    assert data.train[1][1] == data.test[1][1] == 1
    assert describe_sample(data.test, 1).endswith("imagenette2-320/val/n02102040/0.JPEG")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", r"unknown data 'digit' \(did you mean 'digits'\?\); known: digits, .*folder:PATH"),
        ("folder", "data 'folder' lacks its path: folder:PATH"),
        ("digits:here", "data 'digits' takes no path"),
        (None, "unknown data None"),
    ],
)
def test_a_bad_spec_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        load_data(spec)


def test_a_bare_folder_gets_a_hint(pictures):
    with pytest.raises(ValueError, match=f"'folder:{pictures}'"):
        load_data(str(pictures))


@pytest.mark.parametrize("image_size", [0, -4, 2.5, "32"])
def test_a_bad_image_size_is_refused(image_size):
    with pytest.raises(ValueError, match="image_size must be a whole number"):
        load_data("digits", image_size=image_size)


def test_a_wrong_layout_is_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*missing"):
        load_data(f"folder:{tmp_path / 'missing'}")
    write_pictures(tmp_path, ("cat", "dog"))
    with pytest.raises(FileNotFoundError, match=r"looked for val/ or test/ .* found cat, dog"):
        load_data(f"imagenet:{tmp_path}")
    write_pictures(tmp_path / "val", ("cat", "dog"))
    write_pictures(tmp_path / "train", ("cat", "cow"))
    with pytest.raises(ValueError, match="same classes; only in one of them: cow, dog"):
        load_data(f"folder:{tmp_path}")
    (tmp_path / "val" / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"val must hold one folder of images per class.*empty"):
        load_data(f"folder:{tmp_path}")


def test_a_broken_picture_is_named(pictures):
    (pictures / "val" / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cannot read the image .*val/cat/0\.png"):
        load_data(f"folder:{pictures}").test[0]


@pytest.mark.parametrize(
    "error", [SyntaxError("broken PNG file"), EOFError("end"), ValueError("bad"), struct.error("unpack requires")]
)
@pytest.mark.parametrize("load", [load_rgb, load_upright])
def test_whatever_a_decoder_raises_the_picture_is_named(pictures, monkeypatch, load, error):
    def decoder(*args):
        raise error

    monkeypatch.setattr("PIL.Image.open", decoder)
    with pytest.raises(UnreadablePicture, match=rf"cannot read the image .*val/cat/0\.png: {error}"):
        load(str(pictures / "val" / "cat" / "0.png"))


def picture_bytes(picture: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def noise(size: tuple[int, int] = (50, 40)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def break_jpeg(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


BREAK = {
    "truncated": break_jpeg,
    "cut in its header": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("404 not found"),
    "html": lambda path: path.write_text("<html>" * 100),
    "vanished": Path.unlink,
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "bomb": lambda path: Image.new("L", (200, 100)).save(path),
}


@pytest.fixture
def jpegs(tmp_path) -> Path:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(2):
                noise().save(tmp_path / split / name / f"{number}.jpg")
    return tmp_path


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("how", BREAK)
def test_unreadable_pictures_are_tolerated(jpegs, split, how, monkeypatch):
    data = load_data(f"folder:{jpegs}", image_size=16)
    dataset = data.train if split == "train" else data.test
    path = jpegs / split / "dog" / "0.jpg"
    BREAK[how](path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)  # the good ones have 2000, the "bomb" 20000
    with pytest.raises(UnreadablePicture, match=rf"cannot read the image .*{split}/dog/0\.jpg: ."):
        dataset[2]
    images, labels = next(iter(DataLoader(tolerant(dataset), batch_size=4)))
    assert labels.tolist() == [0, 0, UNREADABLE, 1]
    assert (images[2] == 0).all()
    assert all((image != 0).any() for image in images[[0, 1, 3]])
    assert describe_sample(dataset, 2) == str(path)


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_unreadable_pictures_are_tolerated_in_loading_processes(jpegs, method):
    data = load_data(f"folder:{jpegs}", image_size=16)
    BREAK["truncated"](jpegs / "train" / "cat" / "1.jpg")
    loader = DataLoader(tolerant(data.train), batch_size=4, num_workers=1, multiprocessing_context=method)
    images, labels = next(iter(loader))
    assert images.shape == (4, 3, 16, 16)
    assert labels.tolist() == [0, UNREADABLE, 1, 1]


def test_a_sample_is_described_through_wrappers(jpegs):
    test = load_data(f"folder:{jpegs}").test
    wrapped = tolerant(Subset(tolerant(Subset(test, [3, 1, 0])), [1, 2]))
    assert describe_sample(wrapped, 0) == str(jpegs / "val" / "cat" / "1.jpg")
    assert describe_sample(load_data("digits").test, 17) == "sample 17"


def test_an_unreadable_picture_leaves_the_random_crops_of_the_others(jpegs):
    dataset = tolerant(load_data(f"folder:{jpegs}", image_size=16).train)
    BREAK["text"](jpegs / "train" / "cat" / "0.jpg")
    torch.manual_seed(0)
    expected = dataset[1][0]
    torch.manual_seed(0)
    assert dataset[0][1] == UNREADABLE
    assert torch.equal(dataset[1][0], expected)


def test_other_errors_are_not_tolerated(jpegs):
    data = load_data(f"folder:{jpegs}")

    def broken_transform(picture):
        raise ValueError("a mistake in the code")

    data.test.transform = broken_transform
    with pytest.raises(ValueError, match="a mistake in the code"):
        tolerant(data.test)[0]


EXIF = Image.Exif()
EXIF[0x0112] = 6  # to be turned by 90 degrees
FILES = {
    "rgb.jpg": picture_bytes(noise(), "JPEG"),
    "progressive.jpg": picture_bytes(noise(), "JPEG", progressive=True, subsampling=0),
    "grey.jpg": picture_bytes(noise().convert("L"), "JPEG"),
    "cmyk.jpg": picture_bytes(noise().convert("CMYK"), "JPEG"),
    "turned.jpg": picture_bytes(noise(), "JPEG", exif=EXIF),
    "png.jpg": picture_bytes(noise(), "PNG"),  # ImageNet has such a file
    "palette.png": picture_bytes(noise().convert("P"), "PNG"),
    "alpha.png": picture_bytes(noise().convert("RGBA"), "PNG"),
    "lossy.webp": picture_bytes(noise(), "WEBP"),
}


@pytest.mark.parametrize("name", FILES)
def test_both_splits_decode_to_the_same_pixels(tmp_path, name):
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        (tmp_path / split / "a" / name).write_bytes(FILES[name])
    data = load_data(f"folder:{tmp_path}")
    data.train.transform = data.test.transform = None
    train, test = data.train[0][0], data.test[0][0]
    assert train.dtype == torch.uint8
    assert torch.equal(train, torch.from_numpy(np.array(test)).movedim(-1, 0))


@pytest.mark.parametrize("name", FILES)
def test_what_is_learned_is_what_is_predicted_for(tmp_path, name):
    """A phone's photographs were learned sideways and predicted upright; transparent parts were black and white."""
    (tmp_path / "val" / "a").mkdir(parents=True)
    (tmp_path / "val" / "a" / name).write_bytes(FILES[name])
    data = load_data(f"folder:{tmp_path}")
    data.test.transform = None
    assert np.array_equal(data.test[0][0], open_image(tmp_path / "val" / "a" / name))


def test_imagenet_s_pictures_stay_as_they_are_stored(tmp_path):
    path = tmp_path / "turned.jpg"
    path.write_bytes(FILES["turned.jpg"])
    assert load_rgb(str(path)).size == (50, 40)
    assert load_upright(str(path)).size == (40, 50)


def test_training_crops_as_pillow_does(jpegs):
    noise((20, 15)).resize((400, 300), Image.Resampling.BICUBIC).save(jpegs / "train" / "cat" / "0.jpg")
    data = load_data(f"folder:{jpegs}", image_size=96)
    levels = 255 * torch.tensor(IMAGENET.std).view(3, 1, 1)
    differences = []
    for seed in range(10):
        torch.manual_seed(seed)
        torchs = data.train[0][0]
        torch.manual_seed(seed)
        pillows = data.train.transform(Image.open(jpegs / "train" / "cat" / "0.jpg"))
        differences.append(((torchs - pillows) * levels).abs().mean())
    assert torch.stack(differences).mean() < 0.5
    assert torch.stack(differences).max() > 0  # if they were equal, evaluation could do the same


@pytest.mark.parametrize("spec", ["fashion_mnist", "cifar10", "imagenette"])
def test_missing_downloads_give_one_quiet_error(spec, tmp_path, monkeypatch, capfd):
    def no_network(*args, **kwargs):
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    timeout = socket.getdefaulttimeout()
    with pytest.raises(FileNotFoundError, match=rf"{spec} is not in {tmp_path}.*Without a network, put"):
        load_data(spec, tmp_path)
    assert capfd.readouterr() == ("", "")
    assert socket.getdefaulttimeout() == timeout


def test_preprocessing_survives_json():
    own = load_data("digits").preprocessing
    assert Preprocessing.from_dict(json.loads(json.dumps(own.to_dict()))) == own
    with pytest.raises(ValueError, match="unknown preprocessing fields: colour"):
        Preprocessing.from_dict(own.to_dict() | {"colour": "blue"})
    with pytest.raises(ValueError, match=r"incomplete preprocessing .*mean"):
        Preprocessing.from_dict({"image_size": 3})
    with pytest.raises(ValueError, match="must be a dict"):
        Preprocessing.from_dict([3])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", "32"),
        ("resize", 0),
        ("interpolation", ["bilinear"]),
        ("mean", [0, 0]),
        ("std", [1, 1, 0]),
        ("padding", -1),
        ("flip", "yes"),
    ],
)
def test_bad_preprocessing_is_refused(name, value):
    with pytest.raises(ValueError, match=f"bad preprocessing: {name} "):
        Preprocessing.from_dict(IMAGENET.to_dict() | {name: value})


def test_eval_transform_takes_pictures_and_tensors_alike():
    pixels = np.random.default_rng(0).integers(0, 256, (224, 256, 3), dtype=np.uint8)
    transform = IMAGENET.at(28).eval_transform()
    picture = transform(Image.fromarray(pixels))
    assert picture.shape == (3, 28, 28)
    tensor = transform(torch.from_numpy(pixels).movedim(-1, 0))
    assert (picture - tensor).abs().mean() < 0.05  # PIL and torch round a little differently
    grey = transform(Image.new("L", (50, 50), 255))
    torch.testing.assert_close(grey.amax((1, 2)), (1 - torch.tensor(IMAGENET.mean)) / torch.tensor(IMAGENET.std))


def test_denormalise_inverts():
    images = torch.rand(2, 3, 5, 5)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET.mean, IMAGENET.std))
    torch.testing.assert_close(IMAGENET.denormalise((images - mean) / std), images)
    torch.testing.assert_close(IMAGENET.denormalise((images[0] - mean) / std), images[0])


def test_fashion_mnist_as_torchvision_lays_it_out(tmp_path):
    source = SHARED / "FashionMNIST"
    if not source.is_dir():
        pytest.skip(f"needs Fashion-MNIST in {source}")
    shutil.copytree(source, tmp_path / "FashionMNIST")
    data = load_data("fashion_mnist", tmp_path)
    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    image, label = data.test[0]
    assert data.classes[label] == "Ankle boot"
    assert image.shape == (3, 32, 32)
    black = (0 - torch.tensor(data.preprocessing.mean)) / torch.tensor(data.preprocessing.std)
    torch.testing.assert_close(image[:, :2].amax((1, 2)), black)  # two rows of border
    assert (image[:, 2:30, 2:30] > black.view(3, 1, 1)).any()


def test_cifar10_as_image_files_is_prepared_as_cifar10_is(tmp_path):
    for split in ("train", "val"):
        write_pictures(tmp_path / split, ("airplane", "cat"), size=(32, 32))
    data = load_data(f"cifar10_folder:{tmp_path}")
    assert data.preprocessing == load_data("cifar10_folder:" + str(tmp_path)).preprocessing == CIFAR10
    assert data.classes == ["airplane", "cat"]
    image, label = data.test[3]
    assert label == 1
    torch.testing.assert_close(data.preprocessing.denormalise(image)[:, 0, 0] * 255, torch.tensor([60.0, 20, 0]))
    write_pictures(tmp_path / "train", ("dog",), size=(40, 32))
    write_pictures(tmp_path / "val", ("dog",), size=(32, 32))
    with pytest.raises(ValueError, match=r"of 32 x 32 pixels, but .*dog.* has 40 x 32$"):
        load_data(f"cifar10_folder:{tmp_path}")


@pytest.fixture
def unsplit(tmp_path) -> Path:
    """Class folders of 10 and 5 images, as people have them."""
    write_pictures(tmp_path / "mine", ("cat",), count=10)
    write_pictures(tmp_path / "mine", ("dog",), count=5)
    return tmp_path / "mine"


def names(dataset) -> set[str]:
    return {"/".join(Path(path).parts[-2:]) for path, _ in dataset.samples}


def test_class_folders_without_splits_are_split(unsplit):
    data = load_data(f"folder:{unsplit}", image_size=8)
    assert data.classes == ["cat", "dog"]
    assert (len(data.train), len(data.test)) == (12, 3)
    assert not names(data.train) & names(data.test)
    assert [data.test[index][1] for index in range(3)] == [0, 0, 1]
    assert data.test.targets == [0, 0, 1]
    assert f"{unsplit} has no val/ or test/: 3 of its 15 images, 20% of each class" in data.note
    assert names(load_data(f"folder:{unsplit}", val_fraction=0.5).test) > names(data.test)


def test_the_split_follows_from_the_names_alone(unsplit, tmp_path):
    tested = names(load_data(f"folder:{unsplit}").test)
    shutil.move(unsplit, tmp_path / "elsewhere")
    write_pictures(tmp_path / "elsewhere", ("cow",), count=2)
    assert {name for name in names(load_data(f"folder:{tmp_path / 'elsewhere'}").test) if "cow" not in name} == tested


def test_every_class_is_in_both_splits(unsplit):
    for fraction in (0.01, 0.99):
        data = load_data(f"folder:{unsplit}", val_fraction=fraction)
        assert set(data.train.targets) == set(data.test.targets) == {0, 1}
    write_pictures(unsplit, ("emu",), count=1)
    with pytest.raises(ValueError, match=r"class 'emu' in .* has a single image"):
        load_data(f"folder:{unsplit}")


@pytest.mark.parametrize("fraction", [0, 1, -0.5, math.nan, "half", True])
def test_a_bad_val_fraction_is_refused(unsplit, fraction):
    with pytest.raises(ValueError, match="val_fraction must be a number between 0 and 1, got"):
        load_data(f"folder:{unsplit}", val_fraction=fraction)


def test_train_alone_gets_a_hint(pictures):
    shutil.rmtree(pictures / "val")
    with pytest.raises(FileNotFoundError, match=f"folder:{pictures / 'train'} takes a share of that for testing"):
        load_data(f"folder:{pictures}")


def test_pictures_that_no_data_set_reads_are_named(unsplit, caplog):
    for name in ("cat/IMG_1.HEIC", "dog/b.gif"):
        (unsplit / name).write_bytes(b"?")
    (unsplit / "cat" / "notes.txt").write_text("a cat")
    with caplog.at_level(logging.WARNING, "kaconv"):
        load_data(f"folder:{unsplit}")
    message = "2 .gif, .heic files are passed over; convert to JPEG or PNG"
    assert caplog.messages == [f"{message}: {unsplit}/cat/IMG_1.HEIC, {unsplit}/dog/b.gif"]
