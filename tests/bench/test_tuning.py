import json
import os
import subprocess
import sys

import pytest
import torch

from kaconv.bench import tuning
from kaconv.ops import triton_tiles
from kaconv.ops.triton_tiles import NAMES, blocks_for

CPU = torch.device("cpu")
RECKONED = dict(zip(NAMES, (64, 64, 32, 4, 3), strict=True))


class Device:
    """A device of our own: passes whose time is told by their blocks, and a clock that goes by what they take."""

    def __init__(self, cost):
        self.cost, self.now, self.last = cost, 0.0, []

    def pass_of(self, *shape_classes):
        def run():
            self.last = [(name, blocks_for(name, RECKONED, CPU)) for name in shape_classes]
            return [self.result(*asked) for asked in self.last]

        return run

    def result(self, name, blocks):
        return torch.ones(3)

    def timer(self, run):
        run()
        seconds = sum(self.cost(name, blocks) for name, blocks in self.last)
        self.now += seconds
        return seconds

    def tune(self, *passes, seconds=1e9):
        return tuning.tune(passes, self.timer, seconds, clock=lambda: self.now)


def far_from(**best):
    """A cost that grows with each step away from the best sizes."""
    return lambda name, blocks: 1 + sum(abs(blocks[size] - value) / value for size, value in best.items())


def test_it_climbs_to_the_best_sizes():
    device = Device(far_from(BLOCK_P=16, BLOCK_C=128, num_warps=8, num_stages=2))
    choices = device.tune(device.pass_of("a"))
    assert choices["a"]["blocks"] == {"BLOCK_P": 16, "BLOCK_C": 128, "BLOCK_CI": 32, "num_warps": 8, "num_stages": 2}
    assert choices["a"]["time_ratio"] == 0.182  # 1 of 1 + 3 + 1/2 + 1/2 + 1/2


def test_the_reckoned_sizes_stay_where_nothing_is_faster():
    device = Device(far_from(BLOCK_P=64, BLOCK_C=64, num_warps=4, num_stages=3))
    assert device.tune(device.pass_of("a"), device.pass_of("b")) == {}


def test_classes_of_one_pass_are_tuned_apart():
    best = {"a": far_from(BLOCK_P=128), "b": far_from(BLOCK_P=32)}
    device = Device(lambda name, blocks: best[name](name, blocks))
    choices = device.tune(device.pass_of("a", "b"))
    assert {name: choice["blocks"]["BLOCK_P"] for name, choice in choices.items()} == {"a": 128, "b": 32}


def test_the_slowest_class_comes_first_and_the_time_ends_the_search():
    device = Device(lambda name, blocks: {"quick": 1, "slow": 10}[name] * blocks["BLOCK_P"] / 64)
    choices = device.tune(device.pass_of("quick"), device.pass_of("slow"), seconds=12)
    assert list(choices) == ["slow"]
    assert device.now < 30


def test_without_time_nothing_is_chosen():
    device = Device(far_from(BLOCK_P=16))
    assert device.tune(device.pass_of("a"), seconds=0) == {}


def test_sizes_that_fail_or_give_something_else_are_not_taken():
    device = Device(far_from(BLOCK_P=256, BLOCK_C=256))

    def result(name, blocks):
        if blocks["BLOCK_P"] > 64:
            raise RuntimeError("out of resources")
        return torch.ones(3) * (2 if blocks["BLOCK_C"] > 128 else 1)

    device.result = result
    assert device.tune(device.pass_of("a"))["a"]["blocks"] == {**RECKONED, "BLOCK_C": 128}


def test_the_kernels_read_the_file_of_their_device(tmp_path, monkeypatch):
    monkeypatch.setattr(triton_tiles, "FOLDER", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.version, "hip", None)
    blocks = {**RECKONED, "BLOCK_P": 128}
    choices = {"a": {"blocks": blocks, "time_ratio": 0.9}}
    (tmp_path / "sm_90.json").write_text(json.dumps({"choices": choices}))
    cuda = torch.device("cuda")
    assert blocks_for("a", RECKONED, cuda) == blocks
    assert blocks_for("b", RECKONED, cuda) == RECKONED
    assert blocks_for("a", RECKONED, CPU) == RECKONED
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert blocks_for("a", RECKONED, cuda) == RECKONED


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"choices": {"a": {"blocks": {"BLOCK_P": 64}}}}', '{"choices": {"a": 1}}']
    + [json.dumps({"choices": {"a": {"blocks": {**RECKONED, "BLOCK_P": size}}}}) for size in (48, 0, "64")],
)
def test_a_file_of_something_else_is_named(content, tmp_path):
    path = tmp_path / "sm_90.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"sm_90\.json is no file of tile sizes"):
        triton_tiles.measured(path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so_in_a_line(tmp_path, capsys):
    out = tmp_path / "tiles.json"
    assert tuning.main(["--out", str(out)]) == 1
    assert capsys.readouterr().err == "tuning: there is no CUDA device, so nothing was measured\n"
    assert not out.exists()


def test_all_layers_and_passes_of_a_model_are_tuned():
    passes = list(tuning.passes_of(["ka_mobilenetv2_050_l"], CPU, torch.float32, image_size=32))
    found = tuning._layers("ka_mobilenetv2_050_l", 32)
    layers = {(tuple(layer.weight.shape), layer.stride, shape) for layer, shape in found}
    assert len(passes) == 6 * len(layers) > 6


SEARCH = """
import torch
from kaconv.bench import tuning
from kaconv.ops.geometry import Geometry
tuning.BATCH_SIZE = 1
tried = []
for channels, groups, stride in ((20, 1, 1), (130, 1, 2), (8, 8, 2), (16, 2, 1)):
    geometry = Geometry((1, 3), (stride, stride), (0, 1), (1, 1), groups)
    shape = torch.Size((1, channels, 5, 5))
    kernel = torch.Size((channels, channels // groups, 1, 3))
    for run in tuning._passes(kernel, geometry, shape, torch.device("cpu"), torch.float32):
        expected = run()
        asked = {}
        with tuning.trying(asked):
            run()
        assert asked
        for name, blocks in asked.items():
            for other in tuning.neighbours(blocks):
                if other["BLOCK_P"] != blocks["BLOCK_P"] or other["BLOCK_C"] != blocks["BLOCK_C"]:
                    assert tuning._time(run, {name: other}, expected, lambda run: 1.0), (name, other)
                    tried.append(name)
print(len(tried), len(set(tried)))
"""


@pytest.mark.slow
def test_every_neighbour_gives_the_same_in_the_interpreter():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", SEARCH], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    runs, classes = map(int, done.stdout.split())
    assert runs > 2 * classes > 40
