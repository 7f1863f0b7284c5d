import json
import re

import pytest
import torch
from safetensors.torch import save_file

from kaconv.data.preprocessing import DIGITS
from kaconv.models import create_model
from kaconv.models.checkpoints import load_checkpoint, load_weights, save_checkpoint

NAME = "ka_resnet11_cifar_l"
CLASSES = ["one", "two", "three"]


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return create_model(NAME, num_classes=3)


def save(path, model, **changes):
    save_checkpoint(path, model, **({"name": NAME, "classes": CLASSES, "preprocessing": DIGITS} | changes))


def test_a_checkpoint_comes_back_whole(tmp_path, model):
    model(torch.randn(4, 3, 16, 16))  # moves the running statistics
    save(tmp_path / "new" / "a.safetensors", model, info={"epoch": 3, "test_error": 1.5})
    checkpoint = load_checkpoint(tmp_path / "new" / "a.safetensors")
    assert (checkpoint.name, checkpoint.classes, checkpoint.preprocessing) == (NAME, CLASSES, DIGITS)
    assert checkpoint.info["epoch"] == 3
    assert checkpoint.info["versions"].keys() == {"kaconv", "torch"}
    assert not checkpoint.model.training
    assert model.training
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(checkpoint.model(images), model.eval()(images))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.safetensors"]


def test_equal_models_are_equal_files(tmp_path, model):
    save(tmp_path / "a", model, info={"epoch": 1})
    save(tmp_path / "b", model.to(memory_format=torch.channels_last), info={"epoch": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("what", ["weights", "class names"])
def test_a_damaged_checkpoint_is_refused(tmp_path, model, what):
    path = tmp_path / "a.safetensors"
    save(path, model)
    content = bytearray(path.read_bytes())
    place = content.index(b"three") if what == "class names" else len(content) - 5000
    content[place] ^= 1
    path.write_bytes(content)
    for load in (load_checkpoint, lambda path: load_weights(path, NAME, 3)):
        with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: damaged: [^\n]*\Z"):
            load(path)


def test_a_checkpoint_without_a_checksum_is_read(tmp_path, model):
    path = tmp_path / "a.safetensors"
    save_file(model.state_dict(), path, {"kaconv": json.dumps(WHOLE)})
    assert torch.equal(load_checkpoint(path).model.conv1.weight, model.conv1.weight)


def test_a_failed_write_leaves_the_old_file(tmp_path, model):
    path = tmp_path / "a.safetensors"
    save(path, model)
    before = path.read_bytes()
    with pytest.raises(TypeError, match="JSON"):
        save(path, model, info={"what": object()})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_checkpoint_is_refused(tmp_path, model):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*missing\.safetensors"):
        load_checkpoint(tmp_path / "missing.safetensors")
    torch.save(model.state_dict(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt is not a safetensors file"):
        load_checkpoint(tmp_path / "a.pt")
    save_file({"weight": torch.zeros(2)}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="says no model name"):
        load_checkpoint(tmp_path / "b.safetensors")
    save(tmp_path / "c.safetensors", model, classes=[*CLASSES, "four"])
    with pytest.raises(ValueError, match=f"the weights do not fit {NAME} with 4 classes"):
        load_checkpoint(tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match="ka_resnet11_cifar_l"):  # the close match
        save(tmp_path / "d.safetensors", model, name="ka_resnet11_cifar")
    assert not (tmp_path / "d.safetensors").exists()


WHOLE = {"name": NAME, "classes": CLASSES, "preprocessing": DIGITS.to_dict(), "info": {}}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ('{"name": ', "Expecting value"),
        ("[1]", "must be an object"),
        ({"name": NAME}, "lacks classes"),
        (WHOLE | {"name": 3}, "name must be a str, got 3"),
        (WHOLE | {"name": "nothing"}, "nothing"),
        (WHOLE | {"classes": 3}, "classes must be a list"),
        (WHOLE | {"classes": []}, "classes must be names"),
        (WHOLE | {"classes": [1, 2, 3]}, "classes must be names"),
        (WHOLE | {"preprocessing": [1]}, "preprocessing must be a dict"),
        (WHOLE | {"preprocessing": DIGITS.to_dict() | {"mean": 3}}, "incomplete preprocessing"),
        (WHOLE | {"preprocessing": DIGITS.to_dict() | {"image_size": "3"}}, "bad preprocessing: image_size '3'"),
        (WHOLE | {"info": None}, "info must be a dict"),
        (WHOLE | {"name": "os:abort"}, "os:abort is a builder outside of kaconv, which runs when the model is built"),
        (WHOLE | {"options": [1]}, "options must be a dict"),
    ],
)
def test_bad_metadata_is_explained_with_the_file_s_name(tmp_path, metadata, message):
    path = tmp_path / "a.safetensors"
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    save_file({"weight": torch.zeros(2)}, path, {"kaconv": text})
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: .*{re.escape(message)}[^\n]*\Z"):
        load_checkpoint(path)
