import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset

from kaconv import attention_statistics, create_model
from kaconv.attention.decisions import label_with_decisions
from kaconv.attention.effects import SAME_CLASS, measure_effects, usual_interventions
from kaconv.attention.interventions import uniform
from kaconv.data.unreadable import UnreadablePicture


class Brightest(nn.Module):
    """Decides for the channel with the largest mean."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return self.scale * images.mean((2, 3))


def images_of(decisions):
    """One image for each, of which `Brightest` decides so; its red corner holds its number."""
    images = nn.functional.one_hot(torch.tensor(decisions), 3)[:, :, None, None].expand(-1, -1, 4, 4).float().clone()
    images[:, 0, 0, 0] += torch.arange(len(decisions)) / 1000
    return images


class Pictures(Dataset):
    """Images of classes that no model knows, some of which cannot be read."""

    def __init__(self, decisions, broken=()):
        self.images, self.broken = images_of(decisions), broken

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index in self.broken:
            raise UnreadablePicture("a broken image")
        return self.images[index], 1000

    def transform(self, picture):
        return torch.zeros(3, 4, 4)


def numbers(dataset):
    return [round(float(image[0, 0, 0] % 1) * 1000) for image, _ in dataset]


@pytest.mark.parametrize("batch_size", [2, 256])
def test_images_are_labelled_with_the_decisions_that_others_share(batch_size):
    labelled = label_with_decisions(Brightest(), Pictures([2, 0, 1, 2, 0, 2]), batch_size=batch_size)
    assert [label for _, label in labelled] == [2, 0, 2, 0, 2]
    assert numbers(labelled) == [0, 1, 3, 4, 5]


def test_images_that_cannot_be_read_are_passed_over_and_share_nothing():
    labelled = label_with_decisions(Brightest(), Pictures([2, 2, 0, 1, 0, 1, 0], broken=(0, 2)))
    assert [label for _, label in labelled] == [1, 0, 1, 0]
    assert numbers(labelled) == [3, 4, 5, 6]


def test_the_images_of_a_part_are_those_of_the_part():
    labelled = label_with_decisions(Brightest(), Subset(Pictures([0, 1, 2, 1, 2, 1]), [5, 4, 3, 2, 0]))
    assert [label for _, label in labelled] == [1, 2, 1, 2]
    assert numbers(labelled) == [5, 4, 3, 2]


@pytest.mark.parametrize(("decisions", "shared"), [([0, 1, 2], "none is"), ([0, 0, 0, 1], "one is")])
def test_one_decision_is_none(decisions, shared):
    with pytest.raises(ValueError, match=f"on {len(decisions)} images cannot stand for labels: .*, and {shared}; take"):
        label_with_decisions(Brightest(), Pictures(decisions))


def test_effects_on_decisions_are_counted_in_decisions_that_turn():
    torch.manual_seed(0)
    model = create_model("ka_resnet11_cifar_l", num_classes=3).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():  # attention that matters
            if "attention_generator" in name:
                weight.mul_(30)
    images = torch.randn(40, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(images, torch.full((40,), 1000))
    with torch.no_grad():
        model.fc.bias.copy_(-model(images).mean(0))
        logits = model(images)
    labelled = label_with_decisions(model, data)
    np.testing.assert_array_equal([label for _, label in labelled], logits.argmax(1))
    usual = usual_interventions(attention_statistics(model, [(images, None)]))
    effects = measure_effects(model, labelled, usual | {"uniform": lambda batch: uniform()}, batch_size=16)
    assert not effects.untouched.wrong.any()
    rows = effects.rows()
    assert any(row["became_wrong"] for row in rows)
    assert [row["error_change"] for row in rows] == pytest.approx([row["changed"] for row in rows])
    same = effects.outcomes[SAME_CLASS, "all layers"]
    np.testing.assert_array_equal(same.donor_labels, same.labels)
