import builtins
import json
from dataclasses import replace

import onnx
import onnxruntime
import pytest
import torch

from kaconv.cli import main
from kaconv.data.preprocessing import DIGITS
from kaconv.models import create_model, detector
from kaconv.models.checkpoints import load_checkpoint, save_checkpoint
from kaconv.models.export import export

MODELS = ["resnet11_cifar", "ka_resnet11_cifar_l", "ka_resnet11_cifar_h"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in MODELS:
        torch.manual_seed(0)
        model = create_model(name, num_classes=3)
        for _ in range(3):
            model(torch.randn(16, 3, 16, 16))  # moves the running statistics
        classes = ["one", "two", "three"]
        save_checkpoint(folder / name, model, name=name, classes=classes, preprocessing=DIGITS, info={"epoch": 3})
    return folder


def load_pt2(path):
    extra = {"kaconv.json": ""}
    module = torch.export.load(path, extra_files=extra).module()
    return module, extra["kaconv.json"]


def load_onnx(path):
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path)
    assert [item.name for item in session.get_inputs()] == ["images"]
    assert session.get_inputs()[0].shape == ["batch", 3, 16, 16]
    assert [item.name for item in session.get_outputs()] == ["logits"]
    return (
        lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0]),
        session.get_modelmeta().custom_metadata_map["kaconv"],
    )


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("resnet11_cifar", "pt2"),
        ("ka_resnet11_cifar_l", "onnx"),
        ("ka_resnet11_cifar_h", "onnx"),
        ("ka_resnet11_cifar_h", "pt2"),
    ],
)
@torch.no_grad()
def test_outputs_are_the_model_s(tmp_path, checkpoints, capsys, name, format):
    out = tmp_path / "new" / f"model.{format}"
    argv = ["export", "--checkpoint", checkpoints / name, "--format", format, "--out", out]
    assert main([str(item) for item in argv]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert list(out.parent.iterdir()) == [out]
    exported, metadata = load_pt2(out) if format == "pt2" else load_onnx(out)
    checkpoint = load_checkpoint(checkpoints / name)
    for batch in (1, 2, 5):
        images = torch.randn(batch, 3, 16, 16)
        torch.testing.assert_close(exported(images), checkpoint.model(images), rtol=1e-4, atol=1e-4)
    metadata = json.loads(metadata)
    assert metadata == {
        "name": name,
        "classes": ["one", "two", "three"],
        "preprocessing": DIGITS.to_dict() | {"mean": list(DIGITS.mean), "std": list(DIGITS.std)},
        "info": checkpoint.info,
    }


def test_the_file_goes_beside_the_checkpoint(tmp_path, checkpoints, capsys):
    (tmp_path / "a.safetensors").write_bytes((checkpoints / "resnet11_cifar").read_bytes())
    assert main(["export", "--checkpoint", str(tmp_path / "a.safetensors"), "--format", "pt2"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", "a.pt2"}


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_named_with_the_command(tmp_path, checkpoints, capsys, monkeypatch, package):
    real = builtins.__import__

    def fake(name, *args, **kwargs):
        if name == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fake)
    out = tmp_path / "a.onnx"
    argv = ["export", "--checkpoint", checkpoints / "resnet11_cifar", "--format", "onnx", "--out", out]
    assert main([str(item) for item in argv]) == 2
    assert (
        f"kaconv: error: this needs {package}, which is not installed: pip install 'kaconv[export]'\n"
        in capsys.readouterr().err
    )
    assert not out.exists()


def test_mistakes_are_explained_in_a_line(tmp_path, checkpoints, capsys):
    argv = ["export", "--checkpoint", str(checkpoints / "resnet11_cifar"), "--format", "onnx", "--out"]
    assert main([*argv, str(tmp_path / "a.pt2")]) == 2
    assert "output must end in .onnx" in capsys.readouterr().err
    assert main([*argv, str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert main(["export", "--checkpoint", str(tmp_path / "x.safetensors"), "--format", "pt2"]) == 2
    assert "there is no checkpoint" in capsys.readouterr().err
    with pytest.raises(ValueError, match="unknown format 'tf'; choose from onnx, pt2"):
        export(load_checkpoint(checkpoints / "resnet11_cifar"), tmp_path / "a", "tf")


def test_a_detector_is_refused_in_a_line(tmp_path, checkpoints):
    checkpoint = load_checkpoint(checkpoints / "resnet11_cifar")
    checkpoint = replace(checkpoint, model=detector("mobilenetv2_050", "ssdlite", image_size=64))
    with pytest.raises(ValueError, match=r"\Aonly models that give a tensor are exported; .* gives a list\. [^\n]*\Z"):
        export(checkpoint, tmp_path / "a.pt2", "pt2")
    assert not list(tmp_path.iterdir())


def test_a_failed_export_leaves_the_old_file(tmp_path, checkpoints, monkeypatch):
    checkpoint = load_checkpoint(checkpoints / "resnet11_cifar")
    path = tmp_path / "a.pt2"
    path.write_text("old")

    def full_disk(program, file, **kwargs):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch.export, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        export(checkpoint, path, "pt2")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
