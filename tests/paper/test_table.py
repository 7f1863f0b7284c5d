import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from kaconv import KAConv2d, create_model
from kaconv.models.complexity import complexity, paper_flops
from kaconv.paper.published import TABLE, as_printed
from kaconv.paper.table import RESULTS_DIR, all_agree, format_table, read_results, table_row, table_rows


@pytest.fixture(scope="module")
def rows():
    return table_rows()


def test_all_30_figures_agree(rows):
    assert len(rows) == 15
    assert all_agree(rows)
    assert "30 of 30 figures agree" in format_table(rows)


@pytest.mark.parametrize(
    ("model", "flops"),
    [
        ("ka_resnet101_h", 7_915_413_464),
        ("ka_mobilenetv2_100_l", 378_706_872),
        ("mobilenetv2_050", 138_455_992),
    ],
)
def test_unrounded_flops(rows, model, flops):
    row = next(row for row in rows if row["model"] == model)
    assert row["paper_flops"] == flops


def test_a_figure_that_disagrees_is_marked():
    row = table_row(replace(TABLE[-1], flops="401.45M"))
    assert row["agrees"] == {"params": True, "flops": False}
    assert not all_agree([row])
    text = format_table([row])
    assert "✗" in text
    assert "1 of 2 figures agree" in text


def test_rows_are_plain_data(rows):
    assert json.loads(json.dumps(rows)) == rows
    assert all(type(row[key]) is int for row in rows for key in ("params", "paper_flops", "macs"))


def test_as_printed():
    assert as_printed(3_504_872, "3.5M") == "3.5M"
    assert as_printed(4_150_301_592, "4.15G") == "4.15G"
    assert as_printed(188_999_999, "189.00M") == "189.00M"


def test_multiply_adds_of_a_convolution_and_a_linear_layer():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5))
    cost = complexity(model, 8)
    assert cost.macs == 8 * 16 * 27 + 8 * 16 * 5
    assert cost.paper_flops == 8 * 16 * (27 + 1) + (2 * 8 * 16 - 1) * 5
    assert cost.params == 8 * 27 + 8 + 8 * 16 * 5 + 5


@pytest.mark.parametrize(("attention", "hidden_positions"), [("L", 1), ("H", 4)])
def test_paper_flops_of_one_layer_by_hand(attention, hidden_positions):
    layer = KAConv2d(6, 12, 2, stride=2, padding=0, groups=3, attention=attention, min_hidden=5, logit_bias=True)
    maps = 4 * 12 * 3 * 3
    squeeze_inputs = 12 * 4 if attention == "L" else 12
    excite_inputs = 5 if attention == "L" else 5 * 4
    expected = maps * 2 + 2 * maps + (maps + 4 * 12)  # taps, norms, pooling
    expected += hidden_positions * 5 * squeeze_inputs + 2 * hidden_positions * 5  # squeeze and its norm
    expected += 4 * 12 * (excite_inputs + 1)
    assert paper_flops(layer, 6, channels=6) == expected


def test_counting_leaves_the_model_as_it_was():
    model = create_model("ka_resnet11_cifar_l")
    model.layer1.eval()
    before = {name: (module.training, len(module._forward_hooks)) for name, module in model.named_modules()}
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    complexity(model, 32)
    with pytest.raises(ValueError, match="expects an input"):
        complexity(KAConv2d(4, 4, 3), 32)
    assert {name: (m.training, len(m._forward_hooks)) for name, m in model.named_modules()} == before
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())


def test_a_model_without_parameters_costs_nothing():
    assert complexity(nn.ReLU(), 8).params == 0
    assert paper_flops(nn.ReLU(), 8) == 0


def result(model="resnet50", data="imagenet:/data", top1=24.0, date="2026-01-01"):
    provenance = {"date": date, "machine": "m"}
    errors = {"top1_error": top1, "top5_error": 7.0}
    return {
        "model": model,
        "data": data,
        "n": 50000,
        "image_size": 224,
        "protocol": "paper",
        **errors,
        "provenance": provenance,
    }


def test_measured_results_are_shown(tmp_path):
    for name, content in {
        "old.json": result(top1=25.0),
        "new.json": result(top1=23.5, date="2026-02-01"),
        "other.json": result(model="ka_resnet50_l", data="digits"),
    }.items():
        (tmp_path / name).write_text(json.dumps(content))
    measured = read_results(tmp_path)
    assert measured.keys() == {"resnet50"}
    assert measured["resnet50"]["top1_error"] == 23.5
    assert measured["resnet50"]["provenance"]["date"] == "2026-02-01"
    text = format_table([table_row(TABLE[0], measured["resnet50"]), table_row(TABLE[1])])
    assert "23.50 / 7.00" in text
    assert "not measured" in text


def test_a_result_of_another_protocol_says_so(tmp_path):
    (tmp_path / "small.json").write_text(json.dumps(result() | {"n": 1000, "image_size": 64}))
    row = table_row(TABLE[0], read_results(tmp_path)["resnet50"])
    assert "24.00 / 7.00 of 1,000 images at 64²" in format_table([row])
    (tmp_path / "small.json").write_text(json.dumps(result() | {"protocol": "checkpoint"}))
    row = table_row(TABLE[0], read_results(tmp_path)["resnet50"])
    assert "24.00 / 7.00, prepared otherwise than in the paper" in format_table([row])


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"data": "imagenet:/x"}',
        '{"data": 3}',
        *(
            json.dumps(result(top1=top1))
            for top1 in (None, "?", math.nan, math.inf, -math.inf, 10**400, -0.5, 100.5, True)
        ),
        *(json.dumps(result() | {"n": n}) for n in (0, -3, 2.5, math.inf, "many")),
        json.dumps(result() | {"image_size": math.nan}),
        json.dumps(result()).replace("24.0", "1e999"),
        json.dumps(result()).replace("24.0", "9" * 5000),
        "[" * 100_000,
    ],
    ids=lambda content: content[:20],
)
def test_a_file_that_is_no_result_is_named(tmp_path, content):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(ValueError, match=r"bad\.json is not a result of `kaconv evaluate`") as error:
        read_results(tmp_path)
    assert len(str(error.value)) < 700
    assert "\n" not in str(error.value)


def test_only_the_usual_folder_of_results_may_be_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_results(RESULTS_DIR) == {}
    with pytest.raises(FileNotFoundError, match=r"no folder of results at .*missing"):
        read_results(tmp_path / "missing")
