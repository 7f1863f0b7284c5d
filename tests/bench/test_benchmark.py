import json
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

import kaconv
from kaconv.bench import benchmark
from kaconv.bench.benchmark import (
    COMPILED,
    MODES,
    OPTIMIZED,
    VARIANTS,
    format_benchmark,
    peak_bytes,
    read_benchmark,
    run_benchmark,
)
from kaconv.bench.peers import EXPERTS, create_peer, peer_name
from kaconv.bench.roofline import LayerCost, Peaks, floor_seconds, layer_costs, measure_peaks
from kaconv.cli import main
from kaconv.models import create_model
from kaconv.models.complexity import complexity

CPU = torch.device("cpu")
SMALL = {"device": "cpu", "batch_size": 2, "image_size": 16, "rounds": 1, "threads": 1}


@pytest.fixture(scope="module", autouse=True)
def no_repeats():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "MIN_SECONDS", 1e-9)
        patch.setattr(benchmark, "measure_peaks", lambda *args: Peaks(1e11, 1e10))
        yield


@pytest.fixture(scope="module")
def result():
    return run_benchmark(["ka_resnet11_cifar_l"], ["reference", "eager", "fused"], **SMALL | {"rounds": 3})


# Memory


@pytest.mark.parametrize("times", [1, 2])
def test_peak_memory_of_known_allocations(times):
    before = torch.zeros(1000)

    def step():
        for _ in range(times):
            a = torch.empty(1000)  # 4000 bytes
            b = torch.empty(500)
            del a
            c = torch.empty(700)
            del b, c

    assert peak_bytes(step, CPU) == 4000 + 2000
    assert before.numel() == 1000


def test_peak_memory_is_that_inside_an_operation():
    x = torch.zeros(10, 100)
    assert peak_bytes(lambda: x + 1 * x, CPU) >= 2 * x.nbytes  # 1·x is still there while the sum is made
    assert peak_bytes(lambda: None, CPU) == 0


def test_peak_memory_of_a_training_step():
    model = nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(4)])
    x = torch.zeros(8, 64)

    def step():
        model(x).sum().backward()
        model.zero_grad()

    step()
    peak = peak_bytes(step, CPU)
    weight, activation = 64 * 64 * 4, 8 * 64 * 4
    assert 4 * weight < peak < 4 * weight + 8 * activation + 256  # all gradients at the end, and little else
    assert peak == peak_bytes(step, CPU)


# Peers


@pytest.mark.parametrize(
    ("peer", "plain", "layers"),
    [("CondConv", "resnet11_cifar", 3), ("CondConv", "mobilenetv2_050", 17), ("SE", "mobilenetv2_050", 17)],
)
def test_peers_take_the_places_of_kaconv(peer, plain, layers):
    timm = pytest.importorskip("timm")
    model = create_peer(peer, plain, num_classes=10).eval()
    kind = {"CondConv": timm.layers.CondConv2d, "SE": timm.layers.SEModule}[peer]
    assert sum(isinstance(module, kind) for module in model.modules()) == layers
    twin = create_model(f"ka_{plain}_l")
    assert sum(isinstance(module, kaconv.KAConv2d) for module in twin.modules()) == layers
    with torch.inference_mode():
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_condconv_has_its_experts_shapes():
    pytest.importorskip("timm")
    plain, peer = create_model("resnet11_cifar"), create_peer("CondConv", "resnet11_cifar")
    assert peer.layer2[0].conv2.conv.weight.shape == (EXPERTS, plain.layer2[0].conv2.weight.numel())
    x = torch.randn(2, 32, 8, 8)
    assert peer.layer2[0].conv2(x).shape == plain.layer2[0].conv2(x).shape


@pytest.mark.parametrize("plain", ["resnet50", "resnext50_32x4d"])
@pytest.mark.parametrize("peer", ["SE", "SK"])
def test_timms_models_are_those_that_their_names_say(peer, plain):
    pytest.importorskip("timm")
    with torch.device("meta"):
        assert complexity(create_peer(peer, plain), 64).params > 20e6
    assert peer_name(peer, plain) == f"timm's {peer.lower()}{plain}"


def test_a_peer_that_does_not_exist_is_left_out():
    assert peer_name("SK", "mobilenetv2_100") is None
    assert peer_name("SE", "resnet11_cifar") is None


def test_without_timm_the_rows_say_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    result = run_benchmark(["ka_resnet11_cifar_l"], ["CondConv"], **SMALL)
    plain, peer = result["rows"]
    assert plain["error"] is None
    assert peer["error"].startswith("this needs timm, which is not installed: pip install 'kaconv[bench]'")
    assert [peer[mode] for mode in MODES] == [None, None]
    assert "CondConv with 4 experts  not measured: this needs timm, which is not installed" in format_benchmark(result)


# Roofline


@pytest.mark.parametrize("name", ["resnet50", "ka_resnext50_32x4d_l", "ka_mobilenetv2_050_h"])
def test_the_roofline_counts_the_multiply_adds_of_complexity(name):
    with torch.device("meta"):
        expected = complexity(create_model(name), 64).macs
    assert sum(cost.macs for cost in layer_costs(name, 3, 64, torch.float32)) == 3 * expected


def test_bytes_of_a_layer_by_hand():
    stem, *others = layer_costs("ka_resnet11_cifar_l", 2, 32, torch.bfloat16)
    assert (stem.name, stem.is_first) == ("conv1", True)
    assert (stem.input, stem.weight, stem.output) == (2 * 3 * 32**2 * 2, 16 * 3 * 9 * 4, 2 * 16 * 32**2 * 2)
    assert not any(cost.is_first for cost in others)
    assert {"layer1.0.conv2", "layer1.0.conv2.attention_generator.squeeze"} <= {cost.name for cost in others}


def test_the_floor_is_the_slower_of_arithmetic_and_memory():
    arithmetic = LayerCost("a", macs=500, input=1, weight=1, output=1, is_first=False)
    memory = LayerCost("b", macs=1, input=100, weight=10, output=50, is_first=True)
    floors = floor_seconds([arithmetic, memory], Peaks(flops=10.0, bandwidth=1.0))
    assert floors["inference"] == 100 + 160
    assert floors["training"] == 300 + 160 + (100 + 20 + 50)


def test_peaks_are_measured():
    peaks = measure_peaks(CPU, torch.float32)
    assert 1e9 < peaks.flops < 1e14
    assert 1e8 < peaks.bandwidth < 1e12


# The run


def test_a_result_is_json_with_its_origin(result):
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["settings"] == SMALL | {"rounds": 3, "dtype": "float32", "channels_last": False}
    assert "timm" in result["provenance"]["versions"]
    assert [row["variant"] for row in result["rows"]] == ["plain", "reference", "eager", "fused"]
    for row in result["rows"]:
        assert row["error"] is None
        assert row["params"] > 1e5
        for mode in MODES:
            measured = row[mode]
            assert len(measured["ms"]) == len(measured["ratios"]) == 3
            assert sorted(measured["ms"])[1] == pytest.approx(measured["median_ms"])
            assert measured["floor_ms"] > 0
            assert measured["peak_bytes"] > 0


def test_ratios_are_taken_within_a_round(result):
    plain, reference, *_ = result["rows"]
    for mode in MODES:
        pairs = zip(reference[mode]["ms"], plain[mode]["ms"], strict=True)
        ratios = [a / b for a, b in pairs]
        assert reference[mode]["ratios"] == pytest.approx(ratios)
        assert reference[mode]["ratio"] == pytest.approx(sorted(ratios)[1])
        assert plain[mode]["ratio"] == 1


def test_memory_repeats_exactly(result):
    again = run_benchmark(["ka_resnet11_cifar_l"], ["reference"], **SMALL)
    for row, same in zip(result["rows"], again["rows"], strict=False):
        assert [row[mode]["peak_bytes"] for mode in MODES] == [same[mode]["peak_bytes"] for mode in MODES]


def test_the_reference_keeps_more_maps_than_the_plain_model(result):
    plain, reference, *_ = result["rows"]
    extra = reference["training"]["peak_bytes"] - plain["training"]["peak_bytes"]
    assert extra > 4 * (reference["params"] - plain["params"]) + 2**19  # more than the further gradients


def test_variants_take_turns(monkeypatch):
    turns = []
    monkeypatch.setattr(benchmark._Subject, "build", lambda subject: None)
    monkeypatch.setattr(benchmark._Subject, "prepare", lambda subject, mode: None)
    monkeypatch.setattr(
        benchmark._Subject, "measure", lambda subject, mode: turns.append((mode, subject.variant, kaconv))
    )
    settings = benchmark.Settings("cpu", "float32", 2, 16, False, 3, 1)
    variants = ["plain", "reference", "fused"]
    with benchmark.tqdm(disable=True) as bar:
        benchmark._compare("ka_resnet11_cifar_l", variants, settings, bar)
    rounds = [[variant for _, variant, _ in turns[i : i + 3]] for i in range(0, len(turns), 3)]
    assert all(sorted(order) == sorted(variants) for order in rounds)
    assert [mode for mode, *_ in turns] == (["inference"] * 3 + ["training"] * 3) * 3
    assert [order[0] for order in rounds[::2]] == variants  # another one begins each round


def test_each_variant_runs_with_its_backend(monkeypatch):
    seen = []
    use_backend = benchmark.use_backend
    monkeypatch.setattr(benchmark, "use_backend", lambda name: seen.append(name) or use_backend(name))
    monkeypatch.setattr(benchmark, "layer_costs", lambda *args: [])
    run_benchmark(["ka_resnet11_cifar_l"], ["eager", "fused"], **SMALL)
    assert list(dict.fromkeys(seen)) == ["eager", "fused"]


def test_a_failure_is_a_row_and_not_a_crash(monkeypatch):
    step = benchmark._Subject._step

    def failing(subject, mode):
        if subject.variant == "reference" and mode == "training":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")
        if subject.variant == "eager":
            raise NotImplementedError("no such kernel\nC++ stack")
        step(subject, mode)

    monkeypatch.setattr(benchmark._Subject, "_step", failing)
    result = run_benchmark(["ka_resnet11_cifar_l"], ["reference", "eager"], **SMALL)
    plain, reference, eager = result["rows"]
    assert plain["error"] is None
    assert reference["error"] == "out of memory (training)"
    assert reference["inference"]["ratio"] > 0
    assert reference["training"] is None
    assert eager["error"] == "no such kernel (inference); no such kernel (training)"
    text = format_benchmark(result)
    assert re.search(r"l, reference +not measured: out of memory \(training\)", text)
    assert re.search(r"l, reference +0\.45M", text)  # inference


def test_without_a_plain_model_there_is_no_ratio(monkeypatch):
    step = benchmark._Subject._step

    def failing(subject, mode):
        if subject.variant == "plain":
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        step(subject, mode)

    monkeypatch.setattr(benchmark._Subject, "_step", failing)
    result = run_benchmark(["ka_resnet11_cifar_l"], ["reference"], **SMALL)
    plain, reference = result["rows"]
    assert plain["error"] == "out of memory (inference); out of memory (training)"
    assert reference["training"]["ratio"] is None
    assert reference["training"]["median_ms"] > 0
    assert "out of memory" in format_benchmark(result)


def test_training_on_one_picture_is_refused_by_the_layer_alone():
    result = run_benchmark(["ka_resnet11_cifar_l"], ["reference"], **SMALL | {"batch_size": 1})
    plain, reference = result["rows"]
    assert plain["error"] is None
    assert "at least 2 samples" in reference["error"]
    assert reference["inference"] is not None


def test_other_dtypes_and_layouts_run():
    result = run_benchmark(["ka_resnet11_cifar_l"], ["eager"], dtype="bfloat16", channels_last=True, **SMALL)
    assert [row["error"] for row in result["rows"]] == [None, None]
    assert "bfloat16, channels_last" in format_benchmark(result)


def test_the_process_is_left_as_it_was():
    threads, cudnn, rng = torch.get_num_threads(), torch.backends.cudnn.benchmark, torch.get_rng_state()
    run_benchmark(["ka_resnet11_cifar_l"], ["plain"], **SMALL | {"threads": 2})
    assert torch.get_num_threads() == threads
    assert torch.backends.cudnn.benchmark == cudnn
    assert torch.equal(torch.get_rng_state(), rng)


def test_what_kaconv_logs_belongs_to_the_result(monkeypatch):
    prepare = benchmark._Subject.prepare

    def logging(subject, mode):
        benchmark.logging.getLogger("kaconv").warning("no kernel for %s", "tests")
        prepare(subject, mode)

    monkeypatch.setattr(benchmark._Subject, "prepare", logging)
    result = run_benchmark(["ka_resnet11_cifar_l"], ["plain"], **SMALL)
    assert result["log"] == ["no kernel for tests"]
    assert format_benchmark(result).endswith("Note: no kernel for tests")


def test_the_table_says_what_was_measured(result):
    lines = format_benchmark(result).splitlines()
    assert lines[0].startswith("Inference, batch 2, 16×16 pixels")
    names = ["resnet11_cifar", *(f"ka_resnet11_cifar_l, {backend}" for backend in ("reference", "eager", "fused"))]
    for line, name in zip(lines[2:6], names, strict=True):
        assert line.startswith(f"{name} ")
    reference = result["rows"][1]["inference"]
    assert f"{reference['ratio']:.2f}  ({reference['ratio_quartiles'][0]:.2f}–" in lines[3]
    assert any(line.startswith("Training step, batch 2") for line in lines)


# The command


def test_the_command_prints_a_table_and_writes_the_result(tmp_path, capfd):
    out = tmp_path / "new" / "speed.json"
    argv = ["bench", "--models", "ka_resnet11_cifar_l", "--variants", "eager", "--rounds", "1", "--threads", "1"]
    argv += ["--device", "cpu", "--batch-size", "2", "--image-size", "16", "--out", str(out)]
    assert main(argv) == 0
    captured = capfd.readouterr()
    result = read_benchmark(out)
    assert captured.out == format_benchmark(result) + "\n"
    assert captured.err == ""
    assert [row["variant"] for row in result["rows"]] == ["plain", "eager"]
    assert main(argv) == 0  # over the first result


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "ka_resnet11_cifr_l"], "unknown model 'ka_resnet11_cifr_l'; did you mean ka_resnet11_cifar_l"),
        (["--models", "resnet50"], "resnet50 is a plain model"),
        (["--dtype", "float16"], "unknown dtype 'float16'; choose from float32, bfloat16"),
        (["--device", "tpu"], "unknown device 'tpu'; choose from cpu, cuda"),
        (["--variants", "odconv"], f"unknown variant 'odconv'; choose from {', '.join(VARIANTS)}"),
        (["--rounds", "0"], "rounds must be a whole number >= 1, got 0"),
        (["--batch-size", "-4"], "batch_size must be a whole number >= 1, got -4"),
        (["--out", "speed.txt"], "output must end in .json"),
    ],
)
def test_mistakes_are_explained_in_a_line(options, message, capsys):
    assert main(["bench", *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"kaconv: error: {message}")
    assert captured.err.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none_is_explained(capsys):
    assert main(["bench", "--device", "cuda"]) == 2
    assert "device cuda is not available" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[]", '{"rows": []}'])
def test_only_a_result_is_read_or_replaced(tmp_path, text, capsys):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json is not a result of `kaconv bench`"):
        read_benchmark(path)
    assert main(["bench", "--out", str(path)]) == 2
    assert "exists and is not a result of kaconv bench" in capsys.readouterr().err
    assert path.read_text() == text


def test_help_does_not_wait_for_torch():
    command = "import sys; from kaconv.cli import build_parser; build_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command]).returncode == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda():
    device = torch.device("cuda")
    assert peak_bytes(lambda: torch.empty(2**20, dtype=torch.uint8, device=device), device) == 2**20
    result = run_benchmark(["ka_resnet11_cifar_l"], dtype="bfloat16", **SMALL | {"device": "cuda"})
    assert result["rows"][0]["error"] is None
    assert result["rows"][1]["training"]["ratio"] > 0


def test_optimized_models_stand_beside_each_other_at_inference():
    result = run_benchmark(["ka_resnet11_cifar_l"], ["fused-optimized"], **SMALL | {"rounds": 2})
    plain, plain_optimized, optimized = result["rows"]
    assert [row["variant"] for row in result["rows"]] == ["plain", *OPTIMIZED]
    assert [row["name"] for row in result["rows"]] == ["resnet11_cifar", "resnet11_cifar", "ka_resnet11_cifar_l"]
    assert plain["training"] is not None
    assert optimized["training"] is None
    pairs = zip(optimized["inference"]["ms"], plain_optimized["inference"]["ms"], strict=True)
    assert optimized["inference"]["ratios"] == pytest.approx([a / b for a, b in pairs])
    text = format_benchmark(result)
    assert "ka_resnet11_cifar_l, fused-optimized  not measured: an optimized model does not train (training)" in text


@pytest.mark.slow
def test_compiled_models_stand_beside_each_other(monkeypatch):
    compile_module = nn.Module.compile
    quick = {"backend": "eager"}  # Inductor would take minutes, and is not what is tested
    monkeypatch.setattr(nn.Module, "compile", lambda module, **options: compile_module(module, **options | quick))
    result = run_benchmark(["ka_resnet11_cifar_l"], ["fused-compiled"], **SMALL | {"rounds": 2})
    plain, plain_compiled, fused_compiled = result["rows"]
    assert [row["variant"] for row in result["rows"]] == ["plain", *COMPILED]
    assert [row["error"] for row in result["rows"]] == [None] * 3
    for mode in MODES:
        assert plain[mode]["compile_seconds"] is None
        assert min(plain_compiled[mode]["compile_seconds"], fused_compiled[mode]["compile_seconds"]) > 0
        pairs = zip(fused_compiled[mode]["ms"], plain_compiled[mode]["ms"], strict=True)
        assert fused_compiled[mode]["ratios"] == pytest.approx([a / b for a, b in pairs])
    text = format_benchmark(result)
    assert re.search(r"ka_resnet11_cifar_l, fused-compiled .* \d+ s\n", text)
