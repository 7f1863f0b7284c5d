from PIL import Image

from kaconv.data.datasets import load_data
from kaconv.data.photos import FOLDER, IMAGENETTE, photo_credits
from kaconv.data.unreadable import describe_sample


def test_every_photograph_is_credited_and_nothing_else_is_there():
    credits = photo_credits()
    assert sorted(credit.file for credit in credits) == sorted(path.name for path in FOLDER.glob("*.jpg"))
    assert 24 <= len(credits) <= 40
    for credit in credits:
        assert credit.author == credit.author.strip() != ""
        assert credit.licence == "https://creativecommons.org/licenses/by/2.0/"
        assert credit.page.startswith("http")


def test_photos_are_images_to_look_at():
    photos = load_data("photos", image_size=96)
    assert photos.train is None
    assert photos.classes[: len(IMAGENETTE)] == list(IMAGENETTE)
    labels = [label for _, label in photos.test]
    assert sum(label < len(IMAGENETTE) for label in labels) == 9  # those that a network for Imagenette can know
    for index, (credit, label) in enumerate(zip(photo_credits(), labels, strict=True)):
        assert photos.classes[label] == credit.label
        assert describe_sample(photos.test, index).endswith(credit.file)
    assert photos.test[0][0].shape == (3, 96, 96)
    with Image.open(FOLDER / photo_credits()[0].file) as photo:
        assert photo.size == (299, 299)


def test_labels_are_numbered_for_a_model_by_the_names_of_its_classes():
    photos = load_data("photos", image_size=8)
    assert photos.for_classes(IMAGENETTE) is photos
    for_animals = photos.for_classes(["zebra", "horse", "church"])
    assert for_animals.classes[:4] == ["zebra", "horse", "church", "tench"]
    assert len(for_animals.test) == len(photos.test)
    for index, credit in enumerate(photo_credits()):
        image, label = for_animals.test[index]
        assert image.equal(photos.test[index][0])
        assert for_animals.classes[label] == credit.label
        assert (label < 3) == (credit.label in ("zebra", "church"))
        assert describe_sample(for_animals.test, index).endswith(credit.file)
