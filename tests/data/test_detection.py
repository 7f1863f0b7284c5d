"""Detection data: VOC's and COCO's layouts, and one line for what is wrong with them."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from kaconv.data.detection import collate, crop_inside_and_outside, load_detection
from kaconv.data.shapes import SHAPES, draw_shapes

RACCOON = Path(__file__).parents[3] / "shared" / "data" / "raccoon"


@pytest.fixture
def shapes(tmp_path):
    return draw_shapes(tmp_path / "shapes", train=4, test=3, size=48).removeprefix("voc:")


def annotation(shapes, text):
    path = Path(shapes, "annotations", "train-0001.xml")
    path.write_text(text)
    return path


def test_voc_gives_what_torchvision_s_detectors_take(shapes):
    data = load_detection(f"voc:{shapes}")
    assert (len(data.train), len(data.test)) == (4, 3)
    assert set(data.classes) <= set(SHAPES)
    assert data.classes == sorted(data.classes)
    images, targets = collate([data.test[0], data.test[1]])
    for image, target in zip(images, targets, strict=True):
        assert image.shape == (3, 48, 48)
        assert type(image) is torch.Tensor
        assert 0 <= image.min() < image.max() <= 1
        assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
        assert target["labels"].min() >= 1  # 0 is the background
        assert target["labels"].max() <= len(data.classes)
        assert len(target["boxes"]) == len(target["labels"]) == len(target["iscrowd"])


def test_boxes_are_where_the_objects_are(shapes):
    """A box's inside is of one colour, but for its outline and the corners that a disc or triangle leaves free."""
    data = load_detection(f"voc:{shapes}")
    for image, target in (data.test[index] for index in range(3)):
        for x, y, x2, y2 in target["boxes"].long().tolist():
            middle = image[:, (3 * y2 + y) // 4 - 2 : (3 * y2 + y) // 4 + 2, (x + x2) // 2 - 2 : (x + x2) // 2 + 2]
            assert middle.flatten(1).std(dim=1).max() == 0


def test_training_images_are_mirrored_with_their_boxes(shapes):
    data = load_detection(f"voc:{shapes}")
    plain, boxes = data.train.samples[0][0], torch.tensor(data.train.samples[0][1].corners)
    found = [data.train[0] for _ in range(12)]
    mirrored = [target["boxes"] for image, target in found if not torch.equal(image, found[0][0])]
    assert mirrored
    assert Image.open(plain).size == (48, 48)
    expected = torch.stack([48 - boxes[:, 2], boxes[:, 1], 48 - boxes[:, 0], boxes[:, 3]], dim=1)
    both = {tuple(target["boxes"].flatten().tolist()) for _, target in found}
    assert both == {tuple(boxes.flatten().tolist()), tuple(expected.flatten().tolist())}


def test_the_usual_folders_of_a_year_are_found(shapes, tmp_path):
    year = tmp_path / "VOC2007"
    (year / "ImageSets" / "Main").mkdir(parents=True)
    Path(shapes, "images").rename(year / "JPEGImages")
    Path(shapes, "annotations").rename(year / "Annotations")
    Path(shapes, "train.txt").rename(year / "ImageSets" / "Main" / "train.txt")
    Path(shapes, "val.txt").rename(year / "ImageSets" / "Main" / "test.txt")
    assert len(load_detection(f"voc:{year}").test) == 3


OBJECT = (
    "<object><name>disc</name>{}<bndbox><xmin>{}</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
)


def test_difficult_objects_are_not_learned_and_not_counted(shapes):
    text = OBJECT.format("<difficult>1</difficult>", 1) + OBJECT.format("<difficult>0</difficult>", 2)
    annotation(shapes, f"<annotation>{text}</annotation>")
    Path(shapes, "val.txt").write_text("train-0001\n")
    data = load_detection(f"voc:{shapes}")
    assert data.test[0][1]["iscrowd"].tolist() == [1, 0]
    assert data.train[1][1]["iscrowd"].tolist() == [0]
    assert len(data.train[1][1]["boxes"]) == 1


def test_an_image_may_have_no_object(shapes):
    annotation(shapes, "<annotation></annotation>")
    image, target = load_detection(f"voc:{shapes}", crop=True).train[1]
    assert target["boxes"].shape == (0, 4)
    assert image.ndim == 3


def test_a_box_over_the_edge_is_cut_there_in_training(shapes):
    annotation(shapes, f"<annotation>{OBJECT.format('', -7)}</annotation>")
    corners = {tuple(load_detection(f"voc:{shapes}").train[1][1]["boxes"][0].tolist()) for _ in range(12)}
    assert corners == {(0, 1, 9, 9), (39, 1, 48, 9)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><object>", "train-0001.xml cannot be read: no element found"),
        ("", "train-0001.xml cannot be read: no element found"),
        (
            "<annotation><object><name>disc</name></object></annotation>",
            "an object lacks bndbox/xmin",
        ),
        (f"<annotation>{OBJECT.format('', 'left')}</annotation>", "train-0001.xml cannot be read: could not convert"),
        (f"<annotation>{OBJECT.format('', 20)}</annotation>", r"a box from \(20, 1\) to \(9, 9\) is upside down"),
        ("<annotation><object>disc</object></annotation>", "an object lacks name, bndbox/xmin"),
        (f"<annotation>{OBJECT.format('', '-inf')}</annotation>", r"a box from \(-inf, 1\) to \(9, 9\) is not finite"),
        (
            f"<annotation><size><width>5</width><height>48</height></size>{OBJECT.format('', 6)}</annotation>",
            r"a box from \(6, 1\) to \(9, 9\) lies outside of the image of 5 x 48 pixels",
        ),
    ],
)
def test_a_bad_annotation_is_named_in_one_line(shapes, text, message):
    annotation(shapes, text)
    with pytest.raises(ValueError, match=message) as error:
        load_detection(f"voc:{shapes}")
    assert "\n" not in str(error.value)


def test_what_is_missing_is_named(shapes, tmp_path):
    annotation(shapes, "").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no annotation .*train-0001\.xml"):
        load_detection(f"voc:{shapes}")
    Path(shapes, "images", "train-0000.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"train\.txt names train-0000, but there is no image of that name"):
        load_detection(f"voc:{shapes}")
    Path(shapes, "train.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"train\.txt cannot be read: 'utf-8' codec"):
        load_detection(f"voc:{shapes}")
    Path(shapes, "train.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"looked for train\.txt in"):
        load_detection(f"voc:{shapes}")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_detection(f"voc:{tmp_path / 'nothing'}")
    for spec in ("digits", "voc:", f"folder:{shapes}"):
        with pytest.raises(ValueError, match="it is given as voc:PATH or coco:PATH"):
            load_detection(spec)


@pytest.mark.parametrize(("part", "found"), [("train", "4 training"), ("val", "3 test")])
def test_images_without_any_object_teach_and_measure_nothing(shapes, part, found):
    for path in Path(shapes, "annotations").glob(f"{'train' if part == 'train' else 'val'}-*.xml"):
        path.write_text("<annotation></annotation>")
    with pytest.raises(ValueError, match=f"the {found} images of voc:.* have no objects"):
        load_detection(f"voc:{shapes}")


def test_crops_are_from_inside_an_object_and_from_outside_of_all(tmp_path):
    data = load_detection(draw_shapes(tmp_path, train=1, test=12, size=96)).test
    crops = crop_inside_and_outside(data, 32, least=12)
    assert crops.inside.shape == crops.outside.shape == crops.other.shape == (len(crops.images), 3, 32, 32)
    assert not torch.equal(crops.outside, crops.other)
    for inside, outside in zip(crops.inside, crops.outside, strict=True):
        assert inside[:, 14:18, 14:18].flatten(1).std(dim=1).max() < 1e-3  # an object is of one colour
        assert outside[:, 12:20, 12:20].flatten(1).std(dim=1).max() > 1e-3  # the ground is not
    with pytest.raises(ValueError, match="none of the 12 images has room for squares of 90 pixels"):
        crop_inside_and_outside(data, 32, least=90)


@pytest.fixture
def coco(shapes, tmp_path):
    """The same images as COCO has them, a crowd among the objects, and a box without an area."""
    pytest.importorskip("pycocotools")
    where, voc = tmp_path / "coco", load_detection(f"voc:{shapes}")
    (where / "annotations").mkdir(parents=True)
    categories = [{"id": 7 + 2 * n, "name": name} for n, name in enumerate(voc.classes)]
    for split, data in (("train2017", voc.train), ("val2017", voc.test)):
        (where / split).mkdir()
        images, objects = [], []
        for number, (path, boxes) in enumerate(data.samples, 100):
            Image.open(path).save(where / split / path.name)
            images.append({"id": number, "file_name": path.name, "width": 48, "height": 48})
            for (x, y, x2, y2), label in zip(boxes.corners, boxes.classes, strict=True):
                box = {"bbox": [x, y, x2 - x, y2 - y], "category_id": categories[label]["id"], "iscrowd": 0}
                objects.append({"id": len(objects) + 1, "image_id": number, "area": 1.0, **box})
        objects.append(objects[-1] | {"id": 1000, "iscrowd": 1})
        objects.append(objects[-1] | {"id": 1001, "bbox": [3, 3, 0, 5]})
        content = {"images": images, "annotations": objects, "categories": categories}
        (where / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return where


def test_coco_gives_the_same_as_voc(coco, shapes, capsys):
    ours, theirs = load_detection(f"coco:{coco}"), load_detection(f"voc:{shapes}")
    assert ours.classes == theirs.classes
    for index in range(2):
        (image, target), (expected, wanted) = ours.test[index], theirs.test[index]
        assert torch.equal(image, expected)
        assert torch.equal(target["boxes"], wanted["boxes"])
        assert torch.equal(target["labels"], wanted["labels"])
    assert ours.test[2][1]["iscrowd"].tolist() == [0] * len(theirs.test[2][1]["labels"]) + [1]
    assert len(ours.train.samples[-1][1].corners) == len(ours.train[3][1]["boxes"]) + 1  # all but the crowd
    assert capsys.readouterr().out == ""


def test_bad_coco_annotations_are_named(coco):
    file = coco / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())

    def with_first(part, **changes):
        first, *others = content[part]
        first = {key: value for key, value in (first | changes).items() if value is not None}
        return content | {part: [first, *others]}

    for broken, message in (
        (with_first("annotations", bbox=[1, 2]), "image 100 of .*train2017 has a bad annotation: not enough values"),
        (with_first("annotations", bbox=None), "bad annotation: an entry lacks bbox"),
        (with_first("annotations", bbox=[48, 0, 9, 9]), "lies outside of the image of 48 x 48 pixels"),
        (with_first("annotations", category_id=1), "its category 1 is not among the categories 7, 9"),
        (with_first("annotations", category_id=None), "cannot be read: an entry lacks category_id"),
        (with_first("categories", name=None), "cannot be read: an entry lacks name"),
        (with_first("categories", name="cat"), "category 7 is cat in training, but .* in validation"),
        (with_first("images", file_name=None), "bad annotation: an entry lacks file_name"),
        (with_first("images", id=101), "have several images of one id"),
        ({"images": content["images"]}, "lack annotations, categories"),
        (content | {"images": []}, "lack images"),
    ):
        file.write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=message) as error:
            load_detection(f"coco:{coco}")
        assert "\n" not in str(error.value)
    file.write_text(json.dumps(with_first("images", file_name="other.png")))
    with pytest.raises(FileNotFoundError, match=r"there is no image .*other\.png, which the annotations name"):
        load_detection(f"coco:{coco}")
    file.write_text("{")
    with pytest.raises(ValueError, match=r"instances_train2017\.json cannot be read"):
        load_detection(f"coco:{coco}")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"looked for one instances_train\*\.json in .*, found none"):
        load_detection(f"coco:{coco}")


@pytest.mark.skipif(not RACCOON.is_dir(), reason="the raccoon data set is not here")
def test_a_real_data_set():
    data = load_detection(f"voc:{RACCOON}", crop=True)
    assert (len(data.train), len(data.test), data.classes) == (160, 40, ["raccoon"])
    assert sum(len(boxes.corners) for split in (data.train, data.test) for _, boxes in split.samples) == 217
    for index in range(0, 160, 20):
        image, target = data.train[index]
        assert (target["boxes"] >= 0).all()
        assert (target["boxes"] <= torch.tensor([*image.shape[:0:-1]] * 2)).all()
