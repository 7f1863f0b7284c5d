import numpy as np
import pytest
import torch

from kaconv import AttentionCapture, use_backend
from kaconv.attention.interventions import frozen, intervene, removed, shuffled, transplanted, uniform
from kaconv.ops import native

LAYER = "layer2.0.conv2"
BACKENDS = ["reference", "eager", "fused"]


@pytest.fixture
def model(small_model):
    return small_model


@pytest.fixture
def x():
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def attention(model, x, *interventions, **options):
    """The attention that took effect, and the outputs."""
    with torch.no_grad(), intervene(model, *interventions, **options), AttentionCapture(model) as capture:
        outputs = model(x)
    return capture.record().attention, outputs


def record_of(model, x):
    with AttentionCapture(model) as capture, torch.no_grad():
        model(x)
    return capture.record()


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_computes_with_what_takes_the_place(backend, model, x):
    if backend == "fused" and native.library() is None:
        pytest.skip("there is no C++ compiler for the fused backend")
    layer, inputs = model.layer2[0].conv2, torch.randn(3, 32, 8, 8)
    a = torch.rand(3, 9, 32).softmax(1)
    with use_backend(backend), torch.no_grad(), intervene(layer, lambda name, attention: a):
        output = layer(inputs)
    maps = []

    def keep(module, _, y):
        maps.append(y)

    handle = layer.act.register_forward_hook(keep)
    with torch.no_grad():
        layer(inputs)
    handle.remove()
    expected = (maps[0].unflatten(1, (9, 32)) * a[..., None, None]).sum(1)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make", [uniform, shuffled])
def test_gradients_flow_past_what_takes_the_place(backend, make, model, x):
    if backend == "fused" and native.library() is None:
        pytest.skip("there is no C++ compiler for the fused backend")
    with use_backend(backend), intervene(model, make()):
        x = x.requires_grad_()
        model(x).sum().backward()
    assert x.grad.abs().sum() > 0


def test_uniform(model, x):
    maps, _ = attention(model, x, uniform())
    assert all((array == np.float32(1 / 9)).all() for array in maps.values())


def test_frozen_to_the_mean_is_the_same_for_every_picture(model, x):
    record = record_of(model, x)
    maps, _ = attention(model, x, frozen(record))
    for layer in record.layers:
        np.testing.assert_allclose(maps[layer], np.broadcast_to(record.mean(layer), maps[layer].shape), rtol=1e-6)


def test_frozen_to_given_maps(model, x):
    given = np.random.default_rng(0).dirichlet(np.ones(9), 32).T.reshape(3, 3, 32)
    maps, _ = attention(model, x, frozen({LAYER: given}), LAYER)
    np.testing.assert_allclose(maps[LAYER], np.broadcast_to(given, (4, 3, 3, 32)), rtol=1e-6)


def test_a_picture_with_its_own_maps_is_as_without_intervention(model, x):
    record = record_of(model, x)
    _, outputs = attention(model, x[2:3], transplanted(record, 2))
    with torch.no_grad():
        torch.testing.assert_close(outputs, model(x[2:3]), rtol=1e-4, atol=1e-5)


def test_transplanted_maps_are_the_donors(model, x):
    record = record_of(model, x)
    maps, _ = attention(model, x, transplanted(record, -1))
    for layer in record.layers:
        np.testing.assert_array_equal(maps[layer], np.broadcast_to(record.attention[layer][3], maps[layer].shape))


@pytest.mark.parametrize("n", [2, 3, 8])
def test_shuffling_gives_everyone_the_maps_of_another(n, model):
    x = torch.randn(n, 3, 16, 16)
    record = record_of(model, x)
    maps, _ = attention(model, x, shuffled(), "layer1.*")
    own, taken = record.attention["layer1.0.conv2"], maps["layer1.0.conv2"]
    donors = [[np.array_equal(taken[i], own[j]) for j in range(n)] for i in range(n)]
    assert (np.sum(donors, axis=0) == 1).all()
    assert not np.diagonal(donors).any()


def test_shuffling_follows_the_seed(model):
    x = torch.randn(8, 3, 16, 16)
    first, second, other = (attention(model, x, shuffled(seed))[1] for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_removed_position_leaves_the_others_in_their_proportions(model, x):
    own = record_of(model, x).attention["layer1.0.conv2"]
    maps, _ = attention(model, x, removed(), "layer1.*", positions=[4])
    maps = maps["layer1.0.conv2"]
    assert (maps[:, 1, 1] == 0).all()
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), 1, rtol=1e-5)
    ratios = np.delete((maps / own).reshape(4, 9, 16), 4, axis=1)
    np.testing.assert_allclose(ratios, np.broadcast_to(ratios[:, :1], ratios.shape), rtol=1e-4)


def test_removing_the_only_position_that_counted_leaves_an_even_rest(model, x):
    peak = np.zeros((3, 3, 32), np.float32)
    peak[0, 1] = 1
    with intervene(model, frozen({LAYER: peak}), LAYER):
        maps, _ = attention(model, x, removed(), LAYER, positions=[1])
    expected = np.full((3, 3), 1 / 8)
    expected[0, 1] = 0
    np.testing.assert_allclose(maps[LAYER], np.broadcast_to(expected[..., None], (4, 3, 3, 32)), rtol=1e-6)


def test_at_some_positions_only(model, x):
    own = record_of(model, x).attention["layer1.0.conv2"].reshape(4, 9, 16)
    maps, _ = attention(model, x, uniform(), "layer1.*", positions=[0, 8])
    maps = maps["layer1.0.conv2"].reshape(4, 9, 16)
    np.testing.assert_allclose(maps[:, [0, 8]], 1 / 9, rtol=1e-6)
    rest = own[:, 1:8] / own[:, 1:8].sum(axis=1, keepdims=True) * 7 / 9
    np.testing.assert_allclose(maps[:, 1:8], rest, rtol=1e-5)


def test_all_positions_are_as_none(model, x):
    every, _ = attention(model, x, uniform(), positions=range(9))
    none, _ = attention(model, x, uniform())
    for layer in every:
        np.testing.assert_allclose(every[layer], none[layer], rtol=1e-6)


def test_outside_it_the_generators_own_attention_is_seen(model, x):
    own = record_of(model, x).attention["layer1.0.conv2"]
    with torch.no_grad(), AttentionCapture(model) as capture, intervene(model, uniform()):
        model(x)
    np.testing.assert_array_equal(capture.record().attention["layer1.0.conv2"], own)


def test_the_model_is_afterwards_as_it_was(model, x):
    with torch.no_grad():
        before = model(x)
        with intervene(model, uniform()):
            assert not torch.allclose(model(x), before)
        with pytest.raises(ZeroDivisionError), intervene(model, lambda layer, attention: 1 / 0):
            model(x)
        assert hooks(model) == 0
        assert torch.equal(model(x), before)


@pytest.mark.parametrize(
    ("enter", "message"),
    [
        (lambda model: intervene(model, uniform(), "layer9.*"), "no KAConv2d layer matches 'layer9"),
        (lambda model: intervene(model, removed()), r"removed\(\) needs positions"),
        (lambda model: intervene(model, removed(), positions=[9]), r"numbers from 0 to 8; got \[9\]"),
        (lambda model: intervene(model, removed(), positions=[]), r"numbers from 0 to 8; got \[\]"),
        (lambda model: intervene(model, removed(), positions=range(9)), "would leave nothing"),
    ],
)
def test_what_cannot_be_is_refused_at_once(enter, message, model):
    with pytest.raises(ValueError, match=message), enter(model):
        pass
    assert hooks(model) == 0


def test_what_does_not_fit_is_named(model, x):
    record = record_of(model, x)
    with pytest.raises(ValueError, match="the record has 4 samples; there is no sample 4"):
        transplanted(record, 4)
    with pytest.raises(ValueError, match=r"at least 2 of them in a batch; got 1"), intervene(model, shuffled()):
        model(x[:1])
    only = frozen({LAYER: record.mean(LAYER)})
    with pytest.raises(ValueError, match=r"no maps for the layer layer1\.0\.conv2; there are some for layer2"):
        attention(model, x, only)
    wrong = frozen({LAYER: record.mean("layer1.0.conv2")})
    with pytest.raises(ValueError, match=r"maps for layer2.0.conv2 are \(9, 16\), its attention \(9, 32\)"):
        attention(model, x, wrong, LAYER)
    with pytest.raises(ValueError, match=r"must keep the shape .* layer1.0.conv2 got \(4, 9\) for \(4, 9, 16\)"):
        attention(model, x, lambda layer, attention: attention[..., 0])
