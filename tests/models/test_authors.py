"""The authors' layout is written down a second time here, as a plain module with their names and k² convolutions."""

import contextlib
import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
import time
import types
import zipfile
from collections import OrderedDict
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models._meta import _IMAGENET_CATEGORIES

from kaconv.cli import main
from kaconv.data.preprocessing import IMAGENET
from kaconv.models import create_model
from kaconv.models.authors import authors_views, convert, read_authors_checkpoint
from kaconv.models.checkpoints import load_checkpoint

DEPTHS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


class Shifted(nn.Module):
    """The input as one position of a 3×3 kernel sees it."""

    def __init__(self, u, v, stride):
        super().__init__()
        self.u, self.v, self.stride = u, v, stride

    def forward(self, x):
        height, width = x.shape[2:]
        x = F.pad(x, (1, 1, 1, 1))[:, :, self.u : self.u + height, self.v : self.v + width]
        return x[:, :, :: self.stride, :: self.stride]


class AttentionGenerator(nn.Module):
    def __init__(self, channels, kind):
        super().__init__()
        hidden = max(channels // 16, 32)
        first, second = ((9, 1), (1, 1)) if kind == "L" else ((1, 1), (9, 1))
        self.fc = nn.Sequential(nn.Conv2d(channels, hidden, first, bias=False), nn.BatchNorm2d(hidden), nn.ReLU())
        self.fcs = nn.ModuleList(nn.Conv2d(hidden, channels, second) for _ in range(9))

    def forward(self, q):  # (N, C, 9, 1)
        u = self.fc(q)
        return torch.stack([fc(u) for fc in self.fcs], dim=1).softmax(dim=1)  # (N, 9, C, 1, 1)


class KAConv(nn.Module):
    def __init__(self, channels, stride, kind, revision):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Sequential(
                Shifted(u, v, stride), nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
            )
            for u, v in product(range(3), repeat=2)
        )
        self.revision = revision
        self.add_module(revision, AttentionGenerator(channels, kind))

    def forward(self, x):
        maps = torch.stack([conv(x) for conv in self.convs], dim=1)  # (N, 9, C, H, W)
        pooled = maps.mean(dim=(3, 4)).transpose(1, 2)[..., None]
        return (getattr(self, self.revision)(pooled) * maps).sum(dim=1)


def conv_bn(cin, cout, kernel, stride, *more):
    return nn.Sequential(nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(cout), *more)


class Bottleneck(nn.Module):
    def __init__(self, cin, width, stride, kind, revision):
        super().__init__()
        self.conv1 = conv_bn(cin, width, 1, 1, nn.ReLU())
        self.conv2 = nn.Sequential(KAConv(width, stride, kind, revision))
        self.conv3 = conv_bn(width, 4 * width, 1, 1)
        self.shortcut = nn.Sequential() if cin == 4 * width else conv_bn(cin, 4 * width, 1, stride)

    def forward(self, x):
        return F.relu(self.conv3(self.conv2(self.conv1(x))) + self.shortcut(x))


class AuthorsNet(nn.Module):
    def __init__(self, depths, kind, revision):
        super().__init__()
        self.basic_conv = conv_bn(3, 64, 7, 2, nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        cin = 64
        for stage, depth in enumerate(depths):
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(Bottleneck(cin, 64 * 2**stage, stride, kind, revision))
                cin = 256 * 2**stage
            self.add_module(f"stage_{stage + 1}", nn.Sequential(*blocks))
        self.classifier = nn.Linear(cin, 1000)

    def forward(self, x):
        x = self.basic_conv(x)
        for stage in range(1, 5):
            x = self.get_submodule(f"stage_{stage}")(x)
        return self.classifier(x.mean(dim=(2, 3)))


def authors_net(family, kind, revision):
    with torch.device("meta"):
        model = AuthorsNet(DEPTHS[family], kind, revision)
    model.to_empty(device="cpu").eval()
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            module.num_batches_tracked.fill_(7)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, std=(2 / module.weight[0].numel()) ** 0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.5)
    for module in model.modules():
        if isinstance(module, Bottleneck):  # so that values do not grow from block to block, as in a trained network
            module.conv3[1].weight.data *= 0.2
            module.conv3[1].bias.data *= 0.2
    return model


class RecorderMeter:
    """Stands for the authors' class; tests put it into a module `metrics`, which exists only while they pickle."""

    def __init__(self):
        self.total_epoch = 3
        self.current_epoch = 2
        self.epoch_losses = np.array([[5.5, 5.25], [4.1, np.nan], [-1, -1]], dtype=np.float32)
        self.epoch_accuracy = np.asfortranarray([[10.5, 12.5], [20.1, 21.7], [0, 0]])
        self.best = np.float32(21.7)
        self.note = "text is left out"


@pytest.fixture
def recorder(monkeypatch):
    metrics = types.ModuleType("metrics")
    metrics.RecorderMeter = RecorderMeter
    monkeypatch.setitem(sys.modules, "metrics", metrics)
    monkeypatch.setattr(RecorderMeter, "__module__", "metrics")
    return RecorderMeter()


def save_as_the_authors(path, state_dict, recorder, prefix="", **options):
    content = {
        "epoch": 2,
        "recorder": recorder,
        "state_dict": OrderedDict((prefix + key, value) for key, value in state_dict.items()),
        "optimizer": torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1, momentum=0.9).state_dict(),
        "scheduler": {"milestones": [30, 60, 90], "gamma": 0.1, "last_epoch": 2, "_last_lr": [0.1]},
    }
    torch.save(content, path, **options)


@pytest.fixture(scope="module")
def hollow():
    """A state_dict of KAResNet50-L's keys and shapes that takes no room."""
    with torch.device("meta"):
        shapes = AuthorsNet(DEPTHS["resnet50"], "L", "agg").state_dict()
    return {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in shapes.items()}


@pytest.mark.parametrize(
    ("family", "kind", "revision", "prefix", "options"),
    [
        ("resnet50", "L", "agg", "module.", {}),
        ("resnet50", "H", "ag", "", {"_use_new_zipfile_serialization": False}),
        ("resnet101", "L", "ag", "module.", {}),
        ("resnet101", "H", "agg", "", {}),
    ],
)
@torch.no_grad()
def test_outputs_are_the_authors(tmp_path, recorder, family, kind, revision, prefix, options):
    theirs = authors_net(family, kind, revision)
    save_as_the_authors(tmp_path / "best_model.pkl", theirs.state_dict(), recorder, prefix, **options)
    del sys.modules["metrics"]  # it does not exist where files are converted
    name = f"ka_{family}_{kind.lower()}"
    assert convert(tmp_path / "best_model.pkl", tmp_path / "out.safetensors").name == name
    checkpoint = load_checkpoint(tmp_path / "out.safetensors")
    assert checkpoint.name == name
    assert checkpoint.info["revision"] == revision
    assert checkpoint.info["prefix"] == prefix
    images = torch.randn(3, 3, 64, 64)
    expected = theirs(images)
    assert 0.1 < expected.std() < 100
    assert (expected[0] - expected[1]).abs().max() > 0.01  # the images matter
    torch.testing.assert_close(checkpoint.model(images), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_the_checkpoint_says_what_it_is(tmp_path, recorder, hollow):
    path = tmp_path / "best_model.pkl"
    save_as_the_authors(path, hollow, recorder, "module.")
    checkpoint = read_authors_checkpoint(path)
    assert not checkpoint.model.training
    assert checkpoint.preprocessing == IMAGENET
    info = checkpoint.info
    assert info.pop("sha256") == hashlib.sha256(path.read_bytes()).hexdigest()
    assert info == {
        "source": "best_model.pkl",
        "revision": "agg",
        "prefix": "module.",
        "epoch": 2,
        "recorder": {
            "total_epoch": 3,
            "current_epoch": 2,
            "epoch_losses": [[5.5, 5.25], [4.1, None], [-1, -1]],
            "epoch_accuracy": [[10.5, 12.5], [20.1, 21.7], [0, 0]],
            "best": 21.7,
        },
    }


def test_classes_are_in_torchvision_s_order(tmp_path, recorder, hollow):
    save_as_the_authors(tmp_path / "a.pkl", hollow, recorder)
    classes = read_authors_checkpoint(tmp_path / "a.pkl").classes
    assert classes == list(_IMAGENET_CATEGORIES)  # as imagenet:PATH has them
    named = {0: "tench", 1: "goldfish", 207: "golden retriever", 281: "tabby", 817: "sports car", 999: "toilet tissue"}
    assert {index: classes[index] for index in named} == named


@pytest.mark.parametrize("name", ["ka_resnet50_l", "ka_resnet101_h"])
def test_every_weight_has_a_name_in_the_authors_layout(name):
    with torch.device("meta"):
        model = create_model(name)
    model.to_empty(device="cpu")
    state = model.state_dict()
    for value in state.values():
        value.zero_()
    for view in authors_views(model).values():
        view.fill_(1)
    assert all((value == 1).all() for value in state.values())


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_arrays_of_numpy_1_and_2_are_read(tmp_path, recorder, hollow, module):
    save_as_the_authors(tmp_path / "a.pkl", hollow, recorder)
    rewritten = rewrite_pickle(tmp_path / "a.pkl", b"numpy._core.multiarray", module.encode())
    assert read_authors_checkpoint(rewritten).info["recorder"]["epoch_accuracy"][1] == [20.1, 21.7]


def rewrite_pickle(path, old, new):
    """The same file with another text in its pickle."""
    out = path.with_name("rewritten.pkl")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("data.pkl"):
                assert old in data
                data = data.replace(old, new)
            target.writestr(name, data)
    return out


def changed(hollow, **changes):
    return {key: value for key, value in (hollow | changes).items() if value is not None}


FC = "stage_2.1.conv2.0.agg.fc.0.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classifier.bias": None}, r"does not fit ka_resnet50_l: missing: classifier\.bias$"),
        ({"extra.weight": torch.zeros(2)}, r"left over: extra\.weight$"),
        ({"classifier.bias": None, "classifier.biass": torch.zeros(2)}, "missing: classifier.bias; left over: class"),
        (
            {FC: torch.zeros(32, 128, 1, 1)},
            r"unlike: stage_2\.1\S+ is \(32, 128, 1, 1\) float32, not \(32, 128, 9, 1\) float32$",
        ),
        ({"classifier.bias": torch.zeros(10)}, r"classifier.bias is \(10,\) float32, not \(1000,\) float32"),
        ({"classifier.bias": torch.zeros(1000).half()}, r"classifier.bias is \(1000,\) float16, not"),
        ({"classifier.bias": torch.zeros(1000).to_sparse()}, r"is \(1000,\) float32 sparse_coo, not"),
        ({"classifier.bias": torch.zeros(1000, device="meta")}, r"is \(1000,\) float32 meta, not"),
        ({"classifier.bias": [1.0]}, "classifier.bias in state_dict should be tensors by name"),
        ({"module.classifier.bias": torch.zeros(1000)}, "keys twice, with and without module."),
    ],
)
def test_keys_shapes_and_dtypes_are_checked(tmp_path, recorder, hollow, changes, message):
    save_as_the_authors(tmp_path / "a.pkl", changed(hollow, **changes), recorder)
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "a.pkl", tmp_path / "a.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pkl"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("stage_4.2", "have 3, 4, 6, 2 bottlenecks; known are 3, 4, 6, 3 .resnet50. and 3, 4, 23, 3 .resnet101."),
        ("agg", "no conv2.0.agg.fc.0.weight"),
        ("stage_3.1.", r"stage_1 to stage_4 have 3, 4, 5, 3"),
        (".2.running", r"missing: .*, \.\.\. \(288 in all\)$"),
        ("", "stage_1 to stage_4 have 0, 0, 0, 0"),
    ],
)
def test_what_is_missing_is_named(tmp_path, recorder, hollow, pattern, message):
    rest = {key: value for key, value in hollow.items() if pattern not in key}
    save_as_the_authors(tmp_path / "a.pkl", rest, recorder)
    with pytest.raises(ValueError, match=message) as caught:
        read_authors_checkpoint(tmp_path / "a.pkl")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "not the authors' checkpoint, a dict with a state_dict: it holds a list"),
        ({"weights": 1, "epoch": 3}, "it holds a dict of weights, epoch"),
        ({"state_dict": [1]}, "it holds a dict of state_dict"),
        ({}, "it holds a dict of nothing"),
        (torch.zeros(2), "it holds a Tensor"),
    ],
)
def test_other_contents_are_named(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pkl")
    with pytest.raises(ValueError, match=message):
        read_authors_checkpoint(tmp_path / "a.pkl")


def test_odd_recorders_do_no_harm(tmp_path, hollow, recorder):
    recorder.__dict__ = {"a": np.array(["x", None], dtype=object), "b": np.zeros(20_000), "c": 10**400, "d": None, 5: 6}
    save_as_the_authors(tmp_path / "a.pkl", hollow, recorder)
    assert "recorder" not in read_authors_checkpoint(tmp_path / "a.pkl").info
    odd_state = Reduced(type(recorder), (1, 2), (None, {"__class__": torch.Size, "__setstate__": torch.Size}))
    save_as_the_authors(tmp_path / "a.pkl", hollow, odd_state)
    assert "recorder" not in read_authors_checkpoint(tmp_path / "a.pkl").info
    save_as_the_authors(tmp_path / "a.pkl", hollow, None)
    assert "recorder" not in read_authors_checkpoint(tmp_path / "a.pkl").info


def test_damaged_files_are_refused(tmp_path, hollow, recorder, capsys):
    save_as_the_authors(tmp_path / "whole.pkl", hollow, recorder)
    save_as_the_authors(tmp_path / "legacy.pkl", hollow, recorder, _use_new_zipfile_serialization=False)
    out = tmp_path / "out.safetensors"
    whole, legacy = (tmp_path / "whole.pkl").read_bytes(), (tmp_path / "legacy.pkl").read_bytes()
    damaged = [b"", b"\n", b"hello, I am no pickle", b"\x80", b"PK\x03\x04", os.urandom(1000)]
    damaged += [data[: len(data) * part // 10] for data in (whole, legacy) for part in range(1, 10)]
    for data in damaged:
        (tmp_path / "a.pkl").write_bytes(data)
        assert main(["convert", str(tmp_path / "a.pkl"), str(out)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(
            f"kaconv: error: {tmp_path / 'a.pkl'} is not a whole checkpoint that can be read safely"
        )
        assert error.count("\n") == 1
        assert "False" not in error
        assert not out.exists()


# --- Files that mean harm: unpickled, they would create the file `canary`.


class Reduced:
    """Pickles as a call, and perhaps a state for its result."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


class EvaluatesItsState:
    def __setstate__(self, state):
        eval(state)


def call_by_hand(module, name, argument):
    """A pickle that calls module.name(argument)."""
    text = argument.encode()
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"X" + len(text).to_bytes(4, "little") + text + b"\x85R."


def write_zip(path, pickled, **more):
    with zipfile.ZipFile(path, "w") as file:
        for name, data in {"data.pkl": pickled, "version": b"3\n", **more}.items():
            file.writestr(f"archive/{name}", data)


def write_tar(path, data):
    """As torch saved long ago."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


FOREIGN_NAMES = [
    ("metrics", "RecorderMeter.__init__.__globals__"),
    ("metrics", "RecorderMeter.__class__.__base__.__subclasses__"),
    ("metrics.RecorderMeter", "__class__"),
    ("numpy", "dtype.__class__"),
    ("numpy.core.multiarray", "fromfile"),
    ("numpy.f2py.crackfortran", "myeval"),
    ("os", "system"),
    ("posix", "system"),
    ("sys", "exit"),
    ("builtins", "__import__"),
    ("__builtin__", "eval"),
    ("torch", "hub.load"),
    ("torch.serialization", "load"),
    ("torch.storage", "_load_from_bytes"),
    ("kaconv.models.authors", "_load"),
    ("pickle", "loads"),
]


def write_harmful_files(folder, recorder):
    """Files that create folder/canary. What the error must say of each, by its name."""
    touch, code = f"touch {folder / 'canary'}", f"open({str(folder / 'canary')!r}, 'w')"
    evil = Reduced(os.system, (touch,))
    weights = {"classifier.bias": torch.zeros(2)}
    whole = {"epoch": 1, "recorder": recorder, "state_dict": weights}
    meter = type(recorder)
    contents = {
        **{f"in_{key}": whole | {key: evil} for key in whole},
        "beside": whole | {"more": evil},
        "in_a_weight": whole | {"state_dict": weights | {"x": evil}},
        "in_the_state_of_the_recorder": whole | {"recorder": Reduced(meter, (), {"epoch_losses": evil})},
        "in_the_slots_of_the_recorder": whole | {"recorder": Reduced(meter, (), (None, {"__setstate__": evil}))},
        "in_the_arguments_of_the_recorder": whole | {"recorder": Reduced(meter, (evil,))},
        "eval": whole | {"epoch": Reduced(eval, (code,))},
        "exec": whole | {"epoch": Reduced(exec, (code,))},
        "popen": whole | {"epoch": Reduced(subprocess.Popen, (["touch", str(folder / "canary")],))},
        "setstate": whole | {"recorder": Reduced(EvaluatesItsState, (), code)},
    }
    expected = {}
    for name, content in contents.items():
        wanted = {"eval": "eval", "exec": "exec", "popen": "Popen", "setstate": "EvaluatesItsState"}.get(name, "system")
        for form in ("zip", "legacy"):
            expected[f"{name}.{form}"] = wanted
            torch.save(content, folder / f"{name}.{form}", _use_new_zipfile_serialization=form == "zip")
    inner = pickle.dumps(evil, protocol=2)
    for number, (module, name) in enumerate(FOREIGN_NAMES):
        pickled = call_by_hand(module, name, touch)
        write_zip(folder / f"by_hand_{number}.zip", pickled)
        (folder / f"by_hand_{number}.bare").write_bytes(pickled)
        expected |= {f"by_hand_{number}.{form}": name.rpartition(".")[2] for form in ("zip", "bare")}
    write_zip(folder / "nested.zip", inner, **{"data/0": inner, "archive/data.pkl": inner})
    write_zip(folder / "torchscript.zip", inner, **{"constants.pkl": inner, "code/a.py": code})
    write_tar(folder / "old.tar", inner)
    pickled = {protocol: pickle.dumps({"epoch": evil}, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)}
    for protocol, data in pickled.items():
        (folder / f"protocol_{protocol}.bare").write_bytes(data)
    return (
        expected
        | {"nested.zip": "system", "torchscript.zip": "", "old.tar": ""}
        | {f"protocol_{protocol}.bare": "" for protocol in pickled}
    )


def test_nothing_in_a_harmful_file_is_run(tmp_path, recorder, capsys):
    expected = write_harmful_files(tmp_path, recorder)
    admitted = set(torch.serialization.get_safe_globals())
    for name, wanted in expected.items():
        path = tmp_path / name
        assert main(["convert", str(path), str(tmp_path / "out" / "a.safetensors")]) == 2, name
        out, error = capsys.readouterr()
        assert out == ""
        assert error.startswith(f"kaconv: error: {path} is "), error
        assert error.count("\n") == 1, error
        assert wanted in error
        assert "False" not in error  # torch advises to load such files with weights_only=False
        if wanted:
            assert "is refused, and nothing in it was run: it asks for " in error
        assert {path.name for path in tmp_path.iterdir()} == set(expected), name  # no canary, no output
    assert set(torch.serialization.get_safe_globals()) == admitted


class TrustingUnpickler(pickle.Unpickler):
    def persistent_load(self, pid):
        return None

    def find_class(self, module, name):
        return super().find_class(module, name) if module != "torch._utils" else lambda *arguments: None


def test_the_harmful_files_would_do_harm(tmp_path, recorder):
    for name in write_harmful_files(tmp_path, recorder):
        if name.startswith("by_hand") or name.endswith((".legacy", ".tar")):
            continue
        data = (tmp_path / name).read_bytes()
        if name.endswith(".zip"):
            with zipfile.ZipFile(tmp_path / name) as file:
                data = next(file.read(entry) for entry in file.namelist() if entry.endswith("/data.pkl"))
        with contextlib.suppress(TypeError, AttributeError, pickle.UnpicklingError):  # behind the harm
            TrustingUnpickler(io.BytesIO(data)).load()
        for _ in range(100):  # Popen does not wait
            if (tmp_path / "canary").exists():
                break
            time.sleep(0.05)
        (tmp_path / "canary").unlink()


def test_the_command_says_what_it_found(tmp_path, recorder, hollow, capsys):
    save_as_the_authors(tmp_path / "a.pkl", hollow, recorder, "module.")
    out = tmp_path / "new" / "a.safetensors"
    assert main(["convert", str(tmp_path / "a.pkl"), str(out)]) == 0
    assert capsys.readouterr().out == (
        f"{out}: ka_resnet50_l, epoch 2, from the authors' keys of revision 'agg', each after 'module.'\n"
    )
    assert main(["convert", str(tmp_path / "b.pkl"), str(out)]) == 2
    assert "there is no file" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "a.pkl"), str(tmp_path / "a.pkl")]) == 2
    assert "output must end in .safetensors" in capsys.readouterr().err
