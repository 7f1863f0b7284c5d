import io
import json
import struct
import warnings
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from kaconv.cli import main
from kaconv.data.pictures import open_image
from kaconv.data.preprocessing import IMAGENET, Preprocessing
from kaconv.inference import prediction
from kaconv.inference.prediction import predict
from kaconv.models import create_model
from kaconv.models.checkpoints import load_checkpoint, save_checkpoint

CLASSES = ["red", "green", "blue"]
PREPROCESSING = Preprocessing(8, 8, "bilinear", mean=(0.0,) * 3, std=(1.0,) * 3)


@pytest.fixture(scope="module")
def checkpoint_path(tmp_path_factory):
    """A model that says which colour an image has."""
    torch.manual_seed(0)
    model = create_model("resnet11_cifar", num_classes=3)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    labels = torch.arange(3).repeat(20)
    for _ in range(12):
        images = torch.eye(3)[labels][..., None, None] * (0.6 + 0.4 * torch.rand(60, 1, 1, 1)).expand(60, 3, 8, 8)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("model") / "a.safetensors"
    save_checkpoint(path, model, name="resnet11_cifar", classes=CLASSES, preprocessing=PREPROCESSING)
    return path


def halves(left, right, mode="RGB", size=(20, 10)):
    image = Image.new(mode, size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def colours(image):
    """Left and right of an image's middle row."""
    return [image.getpixel((x, image.height // 2)) for x in (2, image.width - 3)]


def close(seen, expected, most=12):
    return np.abs(np.array(seen, dtype=int) - np.array(expected)).max() <= most


RED_BLUE = [(255, 0, 0), (0, 0, 255)]


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("a.jpg", "RGB", {"quality": 95, "subsampling": 0}),
        ("a.png", "RGB", {}),
        ("a.png", "P", {}),
        ("a.png", "RGBA", {}),
        ("a.webp", "RGB", {"lossless": True}),
        ("a.bmp", "RGB", {}),
        ("a.tiff", "RGB", {}),
        ("a.gif", "P", {}),
        ("image without a suffix", "RGB", {"format": "PNG"}),
    ],
)
def test_every_format_is_read(tmp_path, name, mode, options):
    halves((255, 0, 0), (0, 0, 255)).convert(mode).save(tmp_path / name, **options)
    image = open_image(tmp_path / name)
    assert (image.mode, image.size) == ("RGB", (20, 10))
    assert close(colours(image), RED_BLUE)


def test_cmyk_jpeg_has_its_colours(tmp_path):
    halves((0, 255, 255, 0), (255, 255, 0, 0), "CMYK").save(tmp_path / "a.jpg", quality=95)
    assert Image.open(tmp_path / "a.jpg").mode == "CMYK"
    assert close(colours(open_image(tmp_path / "a.jpg")), RED_BLUE)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_exif_orientation_is_applied(tmp_path, name, orientation):
    upright = Image.new("RGB", (24, 16), "white")
    upright.paste("red", (0, 0, 12, 8))  # the upper left quarter
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that `orientation` turns back
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / name, exif=exif, quality=95)
    image = open_image(tmp_path / name)
    assert image.size == (24, 16)
    corners = [image.getpixel(xy) for xy in ((3, 3), (20, 3), (3, 12), (20, 12))]
    assert close(corners, [(255, 0, 0)] + [(255, 255, 255)] * 3, 20)


def test_16_bits_are_scaled_not_clipped(tmp_path):
    values = np.tile(np.array([0, 257, 0x8000, 65535], dtype=np.uint16), (4, 1))
    for name in ("a.png", "a.tiff", "a.pgm"):
        Image.fromarray(values).save(tmp_path / name)
        image = open_image(tmp_path / name)
        assert [image.getpixel((x, 0)) for x in range(4)] == [(v, v, v) for v in (0, 1, 127, 255)]


def png16(path, colour_type, rows, size=None):
    """A PNG of 16 bits per sample, of a colour type that Pillow does not write; perhaps one that lies on its size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    width, height = size or rows.shape[1::-1]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    data = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("colour_type", "pixel", "expected"),
    [
        (2, (65535, 0x8000, 0), (255, 128, 0)),
        (6, (65535, 0x8000, 0, 65535), (255, 128, 0)),
        (6, (65535, 0, 0, 0), (255, 255, 255)),
        (4, (0x8000, 65535), (128, 128, 128)),
        (4, (0, 0), (255, 255, 255)),
    ],
)
def test_16_bit_colours_and_alpha(tmp_path, colour_type, pixel, expected):
    png16(tmp_path / "a.png", colour_type, np.tile(np.array(pixel), (4, 4, 1)))
    assert close(open_image(tmp_path / "a.png").getpixel((1, 1)), expected, 1)


def test_what_is_transparent_shows_white(tmp_path):
    halves((255, 0, 0, 255), (0, 0, 255, 0), "RGBA").save(tmp_path / "a.png")
    halves((255, 0, 0, 255), (0, 0, 255, 0), "RGBA").save(tmp_path / "a.webp", lossless=True)
    halves((0, 128), (0, 0), "LA").save(tmp_path / "la.png")
    palette = halves(0, 1, "P")
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.save(tmp_path / "p.png", transparency=1)
    palette.save(tmp_path / "a.gif", transparency=1)
    halves((255, 0, 0), (0, 0, 255)).save(tmp_path / "key.png", transparency=(0, 0, 255))
    for name in ("a.png", "a.webp", "p.png", "a.gif", "key.png"):
        assert colours(open_image(tmp_path / name)) == [(255, 0, 0), (255, 255, 255)], name
    assert colours(open_image(tmp_path / "la.png")) == [(127, 127, 127), (255, 255, 255)]


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_of_an_animation_the_first_frame_counts(tmp_path, name):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
    assert close(open_image(tmp_path / name).getpixel((4, 4)), (255, 0, 0))


def bad_pictures(folder):
    """What the error must say, by path."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    for name in ("cut.png", "cut.jpg", "cut.webp", "cut.gif"):
        noise.save(folder / name)
        (folder / name).write_bytes((folder / name).read_bytes()[: (folder / name).stat().st_size // 2])
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no image")
    png16(folder / "bomb.png", 2, np.zeros((1, 1, 3)), size=(60_000, 60_000))
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(folder / "float.tiff")
    return {
        **dict.fromkeys(("cut.png", "cut.jpg", "cut.webp", "cut.gif"), ""),
        "empty.png": "it is in no known format",
        "text.png": "it is in no known format",
        "missing.png": "there is no such file",
        "bomb.png": "could be decompression bomb",
        "float.tiff": "floating-point values",
    }


@pytest.mark.parametrize("format", ["text", "json"])
def test_bad_pictures_are_named_and_the_others_done(tmp_path, checkpoint_path, capsys, format):
    bad = bad_pictures(tmp_path)
    paths = []
    for number, (name, colour) in enumerate(zip(bad, CLASSES * 4, strict=False)):
        Image.new("RGB", (9, 9), colour).save(tmp_path / f"{number}.png")
        paths += [str(tmp_path / f"{number}.png"), str(tmp_path / name)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["predict", "--checkpoint", str(checkpoint_path), "--format", format, *paths]) == 1
    out, err = capsys.readouterr()
    for line, (name, message) in zip(err.splitlines(), bad.items(), strict=True):
        assert line.startswith(f"kaconv: cannot read the image {tmp_path / name}: ")
        assert message in line
    found = [r["path"] for r in json.loads(out)] if format == "json" else [r for r in out.splitlines() if r[0] != " "]
    assert found == paths[::2]


def test_json_is_as_documented(tmp_path, checkpoint_path, capsys):
    for colour in CLASSES:
        Image.new("RGB", (30, 20), {"green": (0, 255, 0)}.get(colour, colour)).save(tmp_path / f"{colour}.png")
    paths = [str(tmp_path / f"{colour}.png") for colour in reversed(CLASSES)]
    assert main(["predict", "--checkpoint", str(checkpoint_path), "--format", "json", "--topk", "2", *paths]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    results = json.loads(out)
    assert [result["path"] for result in results] == paths
    model = load_checkpoint(checkpoint_path).model
    for result, expected in zip(results, reversed(range(3)), strict=True):
        assert result.keys() == {"path", "topk"}
        first, second = result["topk"]
        assert first.keys() == {"class", "index", "probability"}
        assert (first["class"], first["index"]) == (CLASSES[expected], expected)
        assert second["class"] == CLASSES[second["index"]]
        assert second["probability"] < first["probability"]
        with torch.no_grad():
            picture = torch.eye(3)[expected][None, :, None, None].expand(1, 3, 8, 8)
            assert first["probability"] == pytest.approx(model(picture).softmax(1)[0, expected].item(), abs=1e-5)


def test_text_names_classes(tmp_path, checkpoint_path, capsys):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.png")
    assert main(["predict", "--checkpoint", str(checkpoint_path), str(tmp_path / "a.png")]) == 0
    path, first, *rest = capsys.readouterr().out.splitlines()
    assert path == str(tmp_path / "a.png")
    assert first.endswith(" %  red (0)")
    assert len(rest) == 2  # there are no five classes


def test_many_pictures_go_in_batches(tmp_path, checkpoint_path, monkeypatch):
    monkeypatch.setattr(prediction, "BATCH_SIZE", 2)
    for name, colour in zip("abcde", ["red", (0, 255, 0), "blue", "red", "blue"], strict=True):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.png")
    checkpoint = load_checkpoint(checkpoint_path)
    sizes = []
    checkpoint.model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    results = predict(checkpoint, [tmp_path / f"{name}.png" for name in "abcde"], topk=1)
    assert [result["topk"][0]["index"] for result in results] == [0, 1, 2, 0, 2]
    assert sizes == [2, 2, 1]


def test_errors_of_the_library(tmp_path, checkpoint_path):
    checkpoint = load_checkpoint(checkpoint_path)
    with pytest.raises(ValueError, match="topk must be a whole number of at least 1, got 0"):
        predict(checkpoint, [], topk=0)
    assert predict(checkpoint, []) == []
    with pytest.raises(FileNotFoundError, match=r"a\.png: there is no such file"):
        predict(checkpoint, [tmp_path / "a.png"])
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    checkpoint.model.fc.bias.data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"not finite for .*a\.png"):
        predict(checkpoint, [tmp_path / "a.png"])


def test_a_strip_that_would_become_huge_is_refused(tmp_path, checkpoint_path):
    Image.new("L", (1, 60_000)).save(tmp_path / "a.png")
    checkpoint = load_checkpoint(checkpoint_path)
    assert len(predict(checkpoint, [tmp_path / "a.png"])) == 1  # resized to 8 x 480000
    checkpoint.preprocessing = IMAGENET
    with pytest.raises(ValueError, match=r"a\.png: 1 x 60000 pixels are too long a strip"):
        predict(checkpoint, [tmp_path / "a.png"])


def test_damaged_pictures_never_stop_the_rest(tmp_path):
    """Bytes changed at random: an image, or an error that names the file."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    outcomes = set()
    for format in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        buffer = io.BytesIO()
        noise.save(buffer, format, **({"exif": exif} if format != "GIF" else {}))
        for _ in range(60):
            data = np.frombuffer(buffer.getvalue(), dtype=np.uint8).copy()
            where = rng.integers(0, min(len(data), 400), 4)
            data[where] = rng.integers(0, 256, 4)
            (tmp_path / "a").write_bytes(data.tobytes())
            try:
                outcomes.add(open_image(tmp_path / "a").mode)
            except ValueError as error:
                outcomes.add(str(error).partition(": ")[0])
    assert outcomes == {"RGB", f"cannot read the image {tmp_path / 'a'}"}


def test_odd_exif_data_do_not_matter(tmp_path):
    for number, exif in enumerate([b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b""]):
        halves((255, 0, 0), (0, 0, 255)).save(tmp_path / f"{number}.jpg", exif=exif, quality=95, subsampling=0)
        assert close(colours(open_image(tmp_path / f"{number}.jpg")), RED_BLUE)


def test_a_folder_stands_for_all_its_pictures(tmp_path, checkpoint_path, capsys):
    for name in ("b.png", "a.JPG", "sub/c.webp", ".hidden.png", ".thumbnails/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (9, 9), "red").save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "sub" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x24ftypheic" + bytes(100))
    argv = ["predict", "--checkpoint", str(checkpoint_path), "--format", "json", str(tmp_path)]
    assert main(argv) == 1
    out, err = capsys.readouterr()
    assert [r["path"] for r in json.loads(out)] == [str(tmp_path / name) for name in ("a.JPG", "b.png", "sub/c.webp")]
    heic = tmp_path / "sub" / "IMG_1.HEIC"
    assert err == f"kaconv: cannot read the image {heic}: it is in no known format; convert it to JPEG or PNG\n"
    heic.unlink()
    assert main(argv) == 0


def test_a_folder_without_pictures_is_named_and_the_others_done(tmp_path, checkpoint_path, capsys):
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (9, 9), "red").save(tmp_path / "a.png")
    paths = [str(tmp_path / "empty"), str(tmp_path / "a.png")]
    assert main(["predict", "--checkpoint", str(checkpoint_path), *paths]) == 1
    out, err = capsys.readouterr()
    assert err == f"kaconv: there are no images in {tmp_path / 'empty'}\n"
    assert out.startswith(paths[1])
    with pytest.raises(FileNotFoundError, match="no images in"):
        predict(load_checkpoint(checkpoint_path), paths)


def test_names_are_printed_without_their_escapes(tmp_path, capsys):
    model = create_model("resnet11_cifar", num_classes=2)
    classes = ["\x1b]0;owned\a\x1b[31mcat", "dog\u202egod"]
    preprocessing = replace(IMAGENET, image_size=8, resize=8)
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model, name="resnet11_cifar", classes=classes, preprocessing=preprocessing)
    Image.new("RGB", (9, 9)).save(tmp_path / "a\x1b[2J.png")
    (tmp_path / "b\x1b[2J.png").write_text("no image")
    assert main(["predict", "--checkpoint", str(path), str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert not any(character in out + err for character in "\x1b\a\u202e")
    assert r"\x1b]0;owned\x07\x1b[31mcat" in out
    assert r"a\x1b[2J.png" in out
    assert r"b\x1b[2J.png" in err


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.safetensors"])
def test_a_file_of_torch_save_says_what_to_do(tmp_path, capsys, name, legacy):
    model = create_model("resnet11_cifar", num_classes=2)
    torch.save(model.state_dict(), tmp_path / name, _use_new_zipfile_serialization=not legacy)
    assert main(["predict", "--checkpoint", str(tmp_path / name), "a.png"]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / name} is not a safetensors file: " in error
    if not (legacy and name.endswith(".safetensors")):
        assert "it is a pickle, as torch.save writes" in error
        assert "save_checkpoint" in error


@pytest.mark.parametrize("field", ["resize", "image_size"])
def test_a_size_beyond_all_use_blames_itself_not_the_picture(tmp_path, checkpoint_path, field):
    preprocessing = load_checkpoint(checkpoint_path).preprocessing.to_dict()
    with pytest.raises(ValueError, match=f"bad preprocessing: {field} 100000"):
        Preprocessing.from_dict(preprocessing | {field: 10**5})
