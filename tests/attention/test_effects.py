import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from kaconv import attention_statistics, create_model
from kaconv.attention.effects import (
    ALL_LAYERS,
    OTHER_CLASS,
    SAME_CLASS,
    Outcome,
    Transplant,
    attention_correlations,
    compare_outcomes,
    draw_donors,
    measure_effects,
    measure_removals,
    pool_effects,
    usual_interventions,
)
from kaconv.attention.interventions import intervene, removed, uniform
from kaconv.data.unreadable import UnreadablePicture
from kaconv.utils.intervals import paired_interval, t_interval, wilson_interval

CLASSES = 3
LAYERS = ["layer1.0.conv2", "layer2.0.conv2", "layer3.0.conv2"]
LABELS = np.repeat(np.arange(CLASSES), 8)  # in the order of the classes


@pytest.fixture
def model():
    torch.manual_seed(0)
    return create_model("ka_resnet11_cifar_l", num_classes=CLASSES).eval()


@pytest.fixture
def data():
    x = torch.randn(len(LABELS), 3, 12, 12, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, torch.as_tensor(LABELS))


@pytest.fixture
def means(model, data):
    return attention_statistics(model, [data[:]])


def outcome(predictions, log_probabilities=None, donor_labels=None):
    n = len(predictions)
    log_probabilities = np.zeros(n) if log_probabilities is None else np.array(log_probabilities)
    donor_labels = donor_labels if donor_labels is None else np.array(donor_labels)
    return Outcome(np.zeros(n, int), np.array(predictions), log_probabilities, donor_labels)


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def direct(model, data, *intervention, **options):
    """Log-probabilities of the true classes in the order of the data."""
    x, labels = data[:]
    with torch.no_grad(), intervene(model, *intervention, **options):
        return model(x).double().log_softmax(1)[torch.arange(len(labels)), labels].numpy()


def test_the_interval_of_a_paired_difference_is_the_published_one():
    # R's PropCIs::diffpropci.mp(b = 40, c = 20, n = 160), by Agresti's group.
    assert paired_interval(20, 40, 160) == pytest.approx((-21.601726, -3.089632))
    assert paired_interval(40, 20, 160) == pytest.approx((3.089632, 21.601726))


def test_without_any_change_the_interval_is_around_zero():
    low, high = paired_interval(0, 0, 600)
    assert low == -high
    assert 0 < high < 0.5
    assert paired_interval(600, 0, 600)[1] == 100


def test_outcomes_are_compared_picture_by_picture():
    reference = outcome([0, 0, 0, 0, 0, 1, 1, 2, 0, 0], np.zeros(10))
    changed = outcome([1, 2, 1, 0, 0, 0, 1, 1, 0, 0], -np.arange(10.0))
    row = compare_outcomes(changed, reference)
    assert (row["pictures"], row["became_wrong"], row["became_right"]) == (10, 3, 1)
    assert row["error_change"] == pytest.approx(20)
    assert row["error_change_interval"] == paired_interval(3, 1, 10)
    assert row["log_probability_change"] == pytest.approx(-4.5)
    assert row["log_probability_change_interval"] == t_interval(-np.arange(10.0))
    assert row["changed"] == pytest.approx(50)
    assert row["changed_interval"] == wilson_interval(50, 10)
    assert "donors_class" not in row


def test_decisions_for_the_donors_class_are_counted_where_it_is_another():
    reference = outcome([0, 0, 0, 0])
    row = compare_outcomes(outcome([1, 2, 2, 0], donor_labels=[1, 1, 2, 2]), reference)
    assert row["donors_class"] == pytest.approx(50)
    assert row["donors_class_interval"] == wilson_interval(50, 4)
    assert "donors_class" not in compare_outcomes(outcome([0, 1, 0, 0], donor_labels=[0, 0, 0, 0]), reference)


@pytest.mark.parametrize("same_class", [True, False])
def test_donors_are_of_the_class_asked_for_and_never_oneself(same_class):
    donors = draw_donors(LABELS, same_class=same_class)
    assert ((LABELS[donors] == LABELS) == same_class).all()
    assert (donors != np.arange(len(LABELS))).all()
    assert len(np.unique(donors)) > CLASSES
    np.testing.assert_array_equal(donors, draw_donors(LABELS, same_class=same_class))
    assert (donors != draw_donors(LABELS, same_class=same_class, seed=1)).any()


def test_a_picture_without_a_donor_is_an_error_with_its_class():
    with pytest.raises(ValueError, match="3 images in a batch have only one of class 7"):
        draw_donors([5, 5, 7], same_class=True)
    with pytest.raises(ValueError, match="2 images in a batch have none but of class 5"):
        draw_donors([5, 5], same_class=False)


def test_effects_are_those_of_the_interventions(model, data):
    effects = measure_effects(model, data, {"uniform": lambda batch: uniform()}, batch_size=7)
    assert list(effects.outcomes) == [("uniform", layer) for layer in [*LAYERS, ALL_LAYERS]]
    untouched = direct(model, data, lambda layer, attention: attention)
    np.testing.assert_allclose(np.sort(effects.untouched.log_probabilities), np.sort(untouched), atol=1e-5)
    for row, pattern in zip(effects.rows(), [*LAYERS, "*"], strict=True):
        expected = (direct(model, data, uniform(), layers=pattern) - untouched).mean()
        assert row["log_probability_change"] == pytest.approx(expected, abs=1e-5)
        assert row["pictures"] == len(LABELS)
        assert abs(expected) > 1e-4


def test_what_changes_nothing_has_no_effect(model, data):
    own = {
        "itself": lambda batch: lambda layer, attention: attention,
        "own maps": lambda batch: Transplant(batch, np.arange(len(batch))),
    }
    for row in measure_effects(model, data, own).rows():
        assert row["error_change"] == row["changed"] == 0
        assert row["log_probability_change"] == pytest.approx(0, abs=1e-6)


def test_every_batch_has_all_classes_even_if_the_data_are_in_their_order(model, data):
    seen = []

    def watch(batch):
        seen.append(np.bincount(batch.labels, minlength=CLASSES).tolist())
        return uniform()

    effects = measure_effects(model, data, {"watch": watch}, LAYERS[0], batch_size=6)
    assert list(effects.outcomes) == [("watch", LAYERS[0])]
    assert seen == [[2, 2, 2]] * 4
    np.testing.assert_array_equal(np.sort(effects.untouched.labels), LABELS)


@pytest.mark.parametrize("batch_size", [4, 5, 7, 11])
def test_an_image_is_never_alone_of_its_class_in_a_batch(model, batch_size):
    labels = torch.tensor([0] * 3 + [1] * 2 + [2] * 9)[torch.randperm(14, generator=torch.Generator().manual_seed(2))]
    data = TensorDataset(torch.randn(14, 3, 12, 12, generator=torch.Generator().manual_seed(1)), labels)
    batches = []

    def watch(batch):
        batches.append(batch.labels)
        return uniform()

    measure_effects(model, data, {"watch": watch}, LAYERS[0], batch_size=batch_size)
    assert len(batches) == -(-14 // batch_size)
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.sort(labels))
    assert max(map(len, batches)) <= batch_size + 2
    assert all(np.unique(batch, return_counts=True)[1].min() > 1 for batch in batches)


def test_transplants_come_from_the_untouched_model_for_all_layers(model, data, means):
    effects = measure_effects(model, data, usual_interventions(means))
    outcomes = effects.outcomes
    same, other = (outcomes[name, ALL_LAYERS] for name in (SAME_CLASS, OTHER_CLASS))
    np.testing.assert_array_equal(same.donor_labels, same.labels)
    assert (other.donor_labels != other.labels).all()
    assert outcomes["uniform", ALL_LAYERS].donor_labels is None
    assert [row["layer"] for row in effects.rows() if "donors_class" in row] == [*LAYERS, ALL_LAYERS]


def test_a_contrast_is_of_two_interventions(model, data, means):
    effects = measure_effects(model, data, usual_interventions(means))
    rows = effects.contrast(OTHER_CLASS, SAME_CLASS)
    assert [row["layer"] for row in rows] == [*LAYERS, ALL_LAYERS]
    assert {(row["intervention"], row["reference"]) for row in rows} == {(OTHER_CLASS, SAME_CLASS)}
    changes = {(row["intervention"], row["layer"]): row["log_probability_change"] for row in effects.rows()}
    for row in rows:
        difference = changes[OTHER_CLASS, row["layer"]] - changes[SAME_CLASS, row["layer"]]
        assert row["log_probability_change"] == pytest.approx(difference)
    with pytest.raises(ValueError, match="'frozen' was not measured; there are frozen to the mean"):
        effects.contrast("frozen", SAME_CLASS)


def test_removals_are_of_each_position_by_itself(model, data, means):
    rows = measure_removals(model, data, means, LAYERS[1])
    assert [(row["layer"], row["row"], row["column"]) for row in rows] == [
        (LAYERS[1], row, column) for row in range(3) for column in range(3)
    ]
    untouched = direct(model, data, lambda layer, attention: attention)
    maps = means.mean(LAYERS[1]).mean(axis=-1)
    for position, row in enumerate(rows):
        expected = (direct(model, data, removed(), layers=LAYERS[1], positions=[position]) - untouched).mean()
        assert row["log_probability_change"] == pytest.approx(expected, abs=1e-6)
        assert row["attention"] == pytest.approx(maps[row["row"], row["column"]])


class OneBroken(Dataset):
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        if index == 3:
            raise UnreadablePicture("a broken image")
        image, label = self.data[index]
        return image, int(label)

    def transform(self, picture):
        return torch.zeros(3, 12, 12)


def test_an_unreadable_picture_is_passed_over(model, data):
    effects = measure_effects(model, OneBroken(data), {"uniform": lambda batch: uniform()}, LAYERS[0])
    assert effects.rows()[0]["pictures"] == len(LABELS) - 1


def test_the_model_is_afterwards_as_it_was(model, data):
    model.train()
    model.layer1.eval()
    modes, before = [module.training for module in model.modules()], hooks(model)
    measure_effects(model, data, {"uniform": lambda batch: uniform()})

    def fail(batch):
        raise RuntimeError("an intervention that fails")

    with pytest.raises(RuntimeError, match="fails"):
        measure_effects(model, data, {"fail": fail})
    assert [module.training for module in model.modules()] == modes
    assert hooks(model) == before


def test_bad_arguments_are_named(model, data):
    with pytest.raises(ValueError, match="no interventions"):
        measure_effects(model, data, {})
    with pytest.raises(ValueError, match="no KAConv2d layer matches 'layer9'"):
        measure_effects(model, data, {"uniform": lambda batch: uniform()}, "layer9")
    unknown = TensorDataset(data.tensors[0], data.tensors[1] + 1)
    with pytest.raises(ValueError, match="images must be of the model's 3 classes; got a label 3"):
        measure_effects(model, unknown, {"uniform": lambda batch: uniform()})
    only_first = attention_statistics(model, [data[:]], LAYERS[0])
    with pytest.raises(ValueError, match=r"no mean for the layer layer2.0.conv2; there are some for layer1.0.conv2"):
        measure_removals(model, data, only_first)


def effect_row(seed, error, model="ka_resnet11_cifar_l", **more):
    row = {"model": model, "seed": seed, "intervention": "uniform", "layer": LAYERS[0], "error_change": error}
    row |= {"error_change_interval": (error - 1, error + 1), "changed": 2 * error, "changed_interval": (0, 9)}
    return row | {"log_probability_change": -error, "log_probability_change_interval": (-9, 0)} | more


def test_seeds_are_pooled_with_an_interval_over_them():
    rows = [effect_row(seed, error) for seed, error in enumerate([1.0, 2.0, 6.0])]
    pooled, other = pool_effects([*rows, effect_row(0, 4.0, "ka_resnet11_cifar_h")])
    assert (pooled["model"], pooled["layer"], pooled["seeds"]) == ("ka_resnet11_cifar_l", LAYERS[0], [0, 1, 2])
    assert pooled["error_change"] == pytest.approx(3)
    assert pooled["error_change_values"] == [1, 2, 6]
    assert pooled["error_change_intervals"] == [(0, 2), (1, 3), (5, 7)]
    assert pooled["error_change_interval"] == t_interval([1, 2, 6])
    assert pooled["log_probability_change"] == pytest.approx(-3)
    assert "donors_class" not in pooled
    assert (other["seeds"], other["error_change_interval"]) == ([0], (3, 5))  # of a single seed, over images


def removal_rows(seed, attention, changes):
    names = {"model": "ka_resnet11_cifar_l", "seed": seed, "layer": LAYERS[0]}
    return [
        names | {"attention": a, "log_probability_change": change} for a, change in zip(attention, changes, strict=True)
    ]


def test_attention_and_the_cost_of_removal_are_correlated_by_rank():
    attention = [0.1, 0.2, 0.3, 0.4]
    up, down = removal_rows(0, attention, [-1, -2, -3, -100]), removal_rows(1, attention, [-4, -3, -2, -1])
    (single,) = attention_correlations(up)
    assert (single["correlation"], single["correlation_interval"]) == (pytest.approx(1), None)
    (both,) = attention_correlations([*up, *down])
    assert both["correlation_values"] == pytest.approx([1, -1])
    assert both["correlation"] == pytest.approx(0)
    assert both["correlation_interval"] == (-1, 1)  # Student's is wider than correlations can be
    (alike,) = attention_correlations(removal_rows(0, attention, [-1] * 4))
    assert np.isnan(alike["correlation"])
