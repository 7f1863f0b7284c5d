"""`ka_resnet11_cifar_l` with one choice changed, as builders for the study `reports/studies/cifar10_ablations.yaml`."""

from collections.abc import Iterator

from torch import Tensor, nn

from kaconv.bench.study_peers import PLAIN, bottlenecks, replace_triple
from kaconv.layers import KAConv2d
from kaconv.layers.attention_generators import AttentionGeneratorL, Softmax
from kaconv.models import create_model

CHANGED = "ka_resnet11_cifar_l"


def no_logit_bias(num_classes: int = 10) -> nn.Module:
    """No bias on the attention logits, as in the paper's ResNeXts and MobileNetV2s."""
    return create_model(CHANGED, num_classes, logit_bias=False)


def narrow_hidden(num_classes: int = 10) -> nn.Module:
    """A hidden width of 8 in the generators, a quarter of the usual."""
    return create_model(CHANGED, num_classes, min_hidden=8)


def wide_hidden(num_classes: int = 10) -> nn.Module:
    """A hidden width of 128 in the generators, four times the usual."""
    return create_model(CHANGED, num_classes, min_hidden=128)


def even_start(num_classes: int = 10) -> nn.Module:
    """Zeros as the generators' last matrices at first, so that attention starts even and is learnt from there."""
    model = create_model(CHANGED, num_classes)
    for layer in _kaconvs(model):
        nn.init.zeros_(layer.attention_generator.excite.weight)
    return model


def shared_norm(num_classes: int = 10) -> nn.Module:
    """One batch norm for all positions of a kernel, in place of one for each."""
    model = create_model(CHANGED, num_classes)
    for layer in _kaconvs(model):
        layer.norm = SharedNorm(layer.out_channels)
    return model


def sigmoid(num_classes: int = 10) -> nn.Module:
    """A sigmoid for each position in place of the softmax, so that positions do not compete."""
    model = create_model(CHANGED, num_classes)
    for layer in _kaconvs(model):
        hidden, positions = layer.attention_generator.squeeze.out_features, layer.geometry.positions
        layer.attention_generator = SigmoidGenerator(layer.out_channels, positions, hidden)
        layer.reset_parameters()
    return model


def first_stage(num_classes: int = 10) -> nn.Module:
    """Kernel attention in the first of the three stages alone."""
    return _with_kaconv("layer1", 3, num_classes)


def last_stage(num_classes: int = 10) -> nn.Module:
    """Kernel attention in the last of the three stages alone."""
    return _with_kaconv("layer3", 3, num_classes)


def kernel_5(num_classes: int = 10) -> nn.Module:
    """Kernel attention over 5×5 positions."""
    return _with_kaconv("layer", 5, num_classes)


def plain_kernel_5(num_classes: int = 10) -> nn.Module:
    """The plain network with kernels of 5×5, for `kernel_5` to be compared with."""
    model = create_model(PLAIN, num_classes)
    for block in bottlenecks(model):
        conv = block.conv2
        assert isinstance(conv, nn.Conv2d)
        block.conv2 = nn.Conv2d(conv.in_channels, conv.out_channels, 5, conv.stride[0], padding=2, bias=False)
        nn.init.kaiming_normal_(block.conv2.weight)  # as all of these networks begin
    return model


class SharedNorm(nn.BatchNorm2d):
    """A batch norm over samples, pixels and kernel positions: (N, K·C, H, W) to the same, with C statistics."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.reshape(-1, self.num_features, *input.shape[2:])).view_as(input)


class SigmoidGenerator(AttentionGeneratorL):
    """AG-L with attention `2 σ(T) / K`, which is 1/K where the logits are 0, as a softmax is. Arguments as of AG-L."""

    def _attention(self, logits: Tensor, softmax: Softmax) -> Tensor:
        positions = logits.shape[1]
        attention = 2 * logits.sigmoid() / positions
        return attention.lerp(attention.new_tensor(1 / positions), self.uniform_share if self.training else 0.0)


def _with_kaconv(stage: str, kernel_size: int, num_classes: int) -> nn.Module:
    """The plain network with KAConv-L, of this kernel size, in the stages whose name begins so."""
    model = create_model(PLAIN, num_classes)
    for block in bottlenecks(model, stage):
        conv = block.conv2
        assert isinstance(conv, nn.Conv2d)
        replace_triple(block, KAConv2d(conv.in_channels, conv.out_channels, kernel_size, conv.stride[0]))
    return model


def _kaconvs(model: nn.Module) -> Iterator[KAConv2d]:
    return (module for module in model.modules() if isinstance(module, KAConv2d))
