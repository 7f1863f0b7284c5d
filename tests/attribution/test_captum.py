"""Every class of captum.attr on inputs, layers, attention generators and neurons, equal to the reference backend."""

import inspect
import warnings

import captum.attr
import numpy as np
import pytest
import torch

from kaconv import create_model
from kaconv.attention.hooks import kaconv_layers
from kaconv.ops import use_backend

SIDE, CLASSES = 8, 3
STEPS = {"n_steps": 3}
SHAP = {"n_samples": 2, "stdevs": 0.1, "baselines": "some"}
MASK = {"feature_mask": "quarters"}
INPUTS = {
    "IntegratedGradients": STEPS,
    "DeepLift": {},
    "DeepLiftShap": {"baselines": "some"},
    "InputXGradient": {},
    "Saliency": {},
    "GuidedBackprop": {},
    "Deconvolution": {},
    "GuidedGradCam": {},
    "FeatureAblation": MASK,
    "FeaturePermutation": MASK,
    "Occlusion": {"sliding_window_shapes": (3, 4, 4), "strides": (3, 4, 4)},
    "ShapleyValueSampling": {**MASK, "n_samples": 1},
    "ShapleyValues": {"feature_mask": "halves"},  # every order of the features: 2 of them, not the quarters' 24
    "Lime": {**MASK, "n_samples": 6, "batch": 1},
    "KernelShap": {**MASK, "n_samples": 6, "batch": 1},
    "GradientShap": SHAP,
}
LAYERS = {
    "LayerConductance": STEPS,
    "LayerGradientXActivation": {},
    "LayerActivation": {"target": None},
    "LayerFeatureAblation": {"layer_mask": "one"},
    "LayerFeaturePermutation": {"layer_mask": "one", "target": None},  # Captum would pick the target twice
    "InternalInfluence": STEPS,
    "LayerGradCam": {},
    "LayerDeepLift": {},
    "LayerDeepLiftShap": {"baselines": "some"},
    "LayerGradientShap": SHAP,
    "LayerIntegratedGradients": STEPS,
}
NEURONS = {
    "NeuronConductance": STEPS,
    "NeuronFeatureAblation": MASK | {"target": None},
    "NeuronGradient": {"target": None},
    "NeuronIntegratedGradients": STEPS | {"target": None},
    "NeuronDeepLift": {"target": None},
    "NeuronDeepLiftShap": {"baselines": "some", "target": None},
    "NeuronGradientShap": SHAP | {"target": None},
    "NeuronDeconvolution": {"target": None},
    "NeuronGuidedBackprop": {"target": None},
}
ELSEWHERE = {  # bases, language models, and what test_pixels.py and the tests below look at
    "Attribution", "GradientAttribution", "PerturbationAttribution", "NeuronAttribution", "LayerAttribution",
    "LimeBase", "DataLoaderAttribution", "LLMAttribution", "LLMGradientAttribution", "RemoteLLMAttribution",
    "NoiseTunnel", "LRP", "LayerLRP",
}  # fmt: skip
PLACES = [("input", name) for name in INPUTS]
PLACES += [(place, name) for place in ("layer", "attention") for name in (*LAYERS, *NEURONS)]
CASES = [("ka_resnet11_cifar_l", *place) for place in PLACES]
CASES += [  # with depthwise layers and ReLU6
    pytest.param("ka_mobilenetv2_050_l", *place, marks=pytest.mark.slow) for place in PLACES
]


@pytest.fixture(scope="module")
def networks():
    made = {}

    def make(name):
        if name not in made:
            torch.manual_seed(0)
            made[name] = create_model(name, num_classes=CLASSES).double().train()
            made[name](torch.randn(8, 3, 16, 16, dtype=torch.float64))  # batch statistics that are not the first ones
            made[name].eval()
        return made[name]

    return make


def _attribute(model, place, name, options):
    layers = list(kaconv_layers(model).values())
    module = layers[1].attention_generator if place == "attention" else layers[1]
    generator = torch.Generator().manual_seed(1)
    batch = options.get("batch", 2)
    images = torch.randn(batch, 3, SIDE, SIDE, dtype=torch.float64, generator=generator)
    half = torch.arange(SIDE) * 2 // SIDE
    values = {
        "some": torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64, generator=generator),
        "halves": half.repeat(1, 3, SIDE, 1),
        "quarters": (2 * half[:, None] + half).repeat(1, 3, 1, 1),
        "one": torch.zeros(1, dtype=torch.long),
    }
    given = {"target": 1} | {
        option: values[value] if isinstance(value, str) else value
        for option, value in options.items()
        if option != "batch"
    }
    if given["target"] is None:
        del given["target"]
    kind = getattr(captum.attr, name)
    explained = (lambda x: model(x)[:, 1]) if name == "LayerFeaturePermutation" else model
    needs_layer = "layer" in inspect.signature(kind.__init__).parameters
    method = kind(explained, module) if needs_layer else kind(explained)
    if name in NEURONS:
        given["neuron_selector"] = (4, 1) if place == "attention" else (1, 0, 0)
    torch.manual_seed(2)
    np.random.seed(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return method.attribute(images.requires_grad_(), **given)


@pytest.mark.parametrize(("model", "place", "name"), CASES)
def test_equals_the_reference(networks, model, place, name):
    network = networks(model)
    options = (INPUTS | LAYERS | NEURONS)[name]
    found = _attribute(network, place, name, options)
    with use_backend("reference"):
        expected = _attribute(network, place, name, options)
    assert torch.isfinite(expected).all()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9 + 1e-7 * expected.abs().max().item())
    assert not [module for module in network.modules() if module._forward_hooks or module._backward_hooks]


def test_every_class_is_tried():
    classes = {
        name
        for name in captum.attr.__all__
        if inspect.isclass(kind := getattr(captum.attr, name)) and issubclass(kind, captum.attr.Attribution)
    }
    assert classes == {*INPUTS, *LAYERS, *NEURONS, *ELSEWHERE}


@pytest.mark.parametrize("name", ["LRP", "LayerLRP"])
def test_lrp_has_no_rule_for_all_modules(name):
    """The refusal of `kaviz.attribute` stands for as long as Captum's own does, which spoils the model."""
    network = create_model("ka_resnet11_cifar_l", num_classes=CLASSES).double().eval()
    with pytest.raises(TypeError, match="rule"):
        _attribute(network, "layer", name, {})


@pytest.mark.parametrize("model", ["resnet11_cifar", "ka_resnet11_cifar_h"])
def test_each_place_of_a_bottleneck_has_its_own_activation(model):
    network = create_model(model, num_classes=CLASSES)
    calls = []
    for module in network.modules():
        if isinstance(module, torch.nn.ReLU):
            module.register_forward_hook(lambda module, inputs, output: calls.append(module))
    network(torch.randn(2, 3, SIDE, SIDE))
    assert len(calls) == len(set(calls)) > 3
