"""Models ready for inference: `optimize_for_inference`."""

import copy
import functools
import logging

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from kaconv.layers import KAConv2d
from kaconv.ops import cpu_taps, operators
from kaconv.ops.dispatch import is_traced
from kaconv.ops.eager import folded_batch_norm
from kaconv.ops.fused import cap_of, infer

_LOGGER = logging.getLogger("kaconv")


def optimize_for_inference(model: nn.Module) -> nn.Module:
    """A copy of a model that infers faster and cannot be trained.

    Batch norms are folded into the convolutions before them, those of a KAConv and of its attention generator too; the
    kernels of KAConvs are packed, so that no call repeats it. The copy gives the model's outputs up to rounding,
    can be compiled and exported, and has no gradients. A forward hook on a KAConv's `attention_generator` still sees,
    or replaces, the attention. A KAConv that has no fused kernels here (another norm or activation, no compiler) stays
    as it is. Works on plain models, too.

    Raises:
        RuntimeError: from the copy's `train()`.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    _fold_batch_norms(model)
    if isinstance(model, KAConv2d):
        model = _optimized(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, KAConv2d):
                setattr(parent, name, _optimized(child))
    model.eval()  # what was put in as well
    model.train = functools.partial(_refuse_training, model)  # type: ignore[method-assign]
    return model


class InferenceKAConv2d(nn.Module):
    """A KAConv2d with its norms folded and its kernel packed: (N, Cin, Hin, Win) to (N, C, H, W).

    Attributes:
        weight: as the layer's, in memory as the passes on the CPU read it.
        scale, shift: of each position and channel, (K, C); they stand for the layer's `norm`.
        attention_generator: as the layer's, its norm folded.
    """

    weight: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, layer: KAConv2d) -> None:
        super().__init__()
        self.geometry = layer.geometry
        self.cap = cap_of(layer.act)  # type: ignore[arg-type]
        weight = cpu_taps.packed(layer.weight.detach(), self.geometry)
        scale, shift = folded_batch_norm(layer.norm, self.geometry.positions)  # type: ignore[arg-type]
        for name, buffer in (("weight", weight), ("scale", scale.detach()), ("shift", shift.detach())):
            self.register_buffer(name, buffer.clone(memory_format=torch.preserve_format))
        self.attention_generator = layer.attention_generator
        generator = self.attention_generator
        squeeze, norm = getattr(generator, "squeeze", None), getattr(generator, "norm", None)
        if type(squeeze) is nn.Linear and type(norm) is nn.BatchNorm1d and norm.track_running_stats:
            generator.squeeze, generator.norm = fuse_linear_bn_eval(squeeze, norm), nn.Identity()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.weight.shape[1] * self.geometry.groups or x.dtype != self.weight.dtype:
            wanted = f"(N, {self.weight.shape[1] * self.geometry.groups}, height, width) of {self.weight.dtype}"
            raise ValueError(f"this layer expects an input {wanted}; got {tuple(x.shape)} of {x.dtype}")
        if torch.compiler.is_compiling() or is_traced(x) or (torch.is_grad_enabled() and x.requires_grad):
            return self._by_operators(x)
        taps_type, reason = operators.taps_for(x, self.weight, self.geometry)
        if reason:
            raise RuntimeError(f"this model was optimized for fused kernels, which cannot run here: {reason}")
        return infer(
            x, self.weight, self.scale, self.shift, self.cap, self.attention_generator, self.geometry, taps_type
        )

    def _by_operators(self, x: Tensor) -> Tensor:
        """What can be traced and exported, and refuses a gradient; it costs a call more for each pass."""
        cap, numbers = operators.finite_cap(self.cap), self.geometry.numbers()
        z = operators.prepared(x, self.weight, numbers)
        return operators.inferred(x, self.weight, z, self.scale, self.shift, cap, self.attention_generator, numbers)

    def train(self, mode: bool = True) -> "InferenceKAConv2d":
        if mode:
            raise RuntimeError(_REFUSAL)
        return super().train(mode)


_REFUSAL = "this model was optimized for inference and cannot be trained; train the model that it was made from"


def _refuse_training(model: nn.Module, mode: bool = True) -> nn.Module:
    if mode:
        raise RuntimeError(_REFUSAL)
    return type(model).train(model, mode)


def _optimized(layer: KAConv2d) -> nn.Module:
    norm, act, weight = layer.norm, layer.act, layer.weight
    if type(norm) is not nn.BatchNorm2d or norm.running_mean is None or type(act) not in (nn.ReLU, nn.ReLU6):
        return layer
    size = [2 + d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    _, reason = operators.taps_for(weight.new_empty(1, layer.in_channels, *size), weight, layer.geometry)
    return layer if reason else InferenceKAConv2d(layer)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, KAConv2d) or super().is_leaf_module(m, module_qualified_name)


def _fold_batch_norms(model: nn.Module) -> None:
    """Put each batch norm that alone reads a convolution's output into the convolution."""
    if isinstance(model, KAConv2d):
        return
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # whatever a model's forward does with a traced value
        _LOGGER.warning("batch norms outside of KAConvs stay: the model cannot be traced (%s)", error)
        return
    calls = [node for node in graph.nodes if node.op == "call_module"]
    targets = [node.target for node in calls]
    for node in calls:
        before = node.args[0]
        if not (isinstance(before, fx.Node) and before.op == "call_module" and len(before.users) == 1):
            continue
        norm, conv = model.get_submodule(str(node.target)), model.get_submodule(str(before.target))
        called_once = targets.count(node.target) == targets.count(before.target) == 1
        if type(norm) is nn.BatchNorm2d and norm.running_mean is not None and type(conv) is nn.Conv2d and called_once:
            model.set_submodule(str(before.target), fuse_conv_bn_eval(conv, norm))
            model.set_submodule(str(node.target), nn.Identity())
