"""Any model with KAConv2d in place of its convolution, batch norm, activation triples."""

import copy
import inspect
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

from kaconv.layers import KAConv2d
from kaconv.models.complexity import Complexity, complexity
from kaconv.utils.modes import evaluating


@dataclass(frozen=True)
class ConversionRow:
    """One convolution of a model and what became of it.

    Args:
        name: the convolution's name in the model that was given.
        layer: the KAConv2d's name in the converted model; None where the convolution was left as it is.
        note: why it was left, or what was done beside.
        params_before, params_after: parameters of the triple and of the layer; of a skipped convolution, its own.
    """

    name: str
    layer: str | None
    note: str
    params_before: int
    params_after: int


@dataclass(frozen=True)
class ConversionTable:
    """The record of a conversion by `convert_to_kaconv`, printable.

    Args:
        rows: one for each convolution, in the model's order.
        params_before, params_after: of the whole model.
        before, after: cost of one image, or None where `uncounted` says why the model could not be run for it.
    """

    rows: list[ConversionRow]
    params_before: int
    params_after: int
    before: Complexity | None
    after: Complexity | None
    uncounted: str = ""

    @property
    def replaced(self) -> list[ConversionRow]:
        """The rows of the convolutions that are KAConv2d layers now."""
        return [row for row in self.rows if row.layer is not None]

    @property
    def skipped(self) -> list[ConversionRow]:
        """The rows of the convolutions that stayed."""
        return [row for row in self.rows if row.layer is None]

    def __str__(self) -> str:
        width = max((len(row.name) for row in self.replaced), default=0)
        lines = [f"replaced {len(self.replaced)} of {len(self.rows)} convolutions"]
        for row in self.replaced:
            note = f"  {row.note}" if row.note else ""
            lines.append(f"  {row.name:<{width}}  params {row.params_before:>11,} -> {row.params_after:>11,}{note}")
        reasons = defaultdict(list)
        for row in self.skipped:
            reasons[row.note].append(row.name)
        for reason, names in reasons.items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(f"skipped {len(names)}: {reason} ({', '.join(names[:3])}{more})")
        lines.append(f"params         {self.params_before:>15,} -> {self.params_after:>15,}")
        if self.before is not None and self.after is not None:
            lines.append(f"multiply-adds  {self.before.macs:>15,} -> {self.after.macs:>15,}")
        else:
            lines.append(f"multiply-adds  not counted: {self.uncounted}")
        return "\n".join(lines)


def convert_to_kaconv(
    model: nn.Module,
    attention: str = "L",
    where: str | Sequence[str] = "*",
    *,
    image_size: int | tuple[int, int] = 224,
    **kaconv_options: Any,
) -> tuple[nn.Module, ConversionTable]:
    """A copy of a model with a KAConv2d for every convolution, batch norm, activation triple, and a table of them.

    Triples are found by what the model computes (torch.fx); where the whole cannot be traced, in those of its parts
    that can. The copy keeps the model's class and methods. A layer starts from the convolution's weight; each
    position's norm from the weight, bias, eps and momentum of the triple's norm. Its running statistics are new, since
    those of the triple belong to the sum over positions: train, or run some batches in training mode, before
    evaluating. A convolution's bias goes, as batch norm takes it out again. The attention generator is new.

    A norm and an activation module that only the triple uses become `nn.Identity`, and a `nn.Sequential` of nothing
    but the triple becomes the layer itself. A ReLU or ReLU6 that others use too, or that is a function, stays behind
    the layer, where it changes nothing; with another such activation the triple is skipped.

    Args:
        attention: "L" or "H".
        where: shell patterns; a convolution is replaced if its name matches one. The paper's models are
            "layer*.conv2" of torchvision's `resnet50`, `resnet101` and `resnext50_32x4d`, and "features.*.conv.*" of
            its `mobilenet_v2`; ResNeXt and MobileNetV2 with `logit_bias=False`. A 1×1 convolution is never replaced.
        image_size: side, or (height, width), in pixels, of the image that the table's multiply-adds are of.
        kaconv_options: further arguments of `KAConv2d`, such as `reduction=8` or `generator_norm="layer"`.

    Raises:
        ValueError: if `where` matches no convolution, or an option is not KAConv2d's to choose.

    Example:
        >>> model, table = convert_to_kaconv(torchvision.models.resnet18(), where="layer*")
        >>> print(table)  # doctest: +ELLIPSIS
        replaced 8 of 20 convolutions
        ...
    """
    patterns = [where] if isinstance(where, str) else list(where)
    _check_options(kaconv_options)
    converted = copy.deepcopy(model)
    _give_each_parent_its_own(converted)
    convolutions = {name: part for name, part in converted.named_modules() if isinstance(part, _CONVOLUTIONS)}
    chosen = {name for name in convolutions if any(fnmatchcase(name, pattern) for pattern in patterns)}
    if not chosen:
        names = ", ".join(list(convolutions)[:5])
        raise ValueError(f"where={where!r} matches none of the model's {len(convolutions)} convolutions ({names} ...)")
    triples, reasons = _find_triples(converted)
    places = Counter(id(part) for _, part in converted.named_modules(remove_duplicate=False))
    rows = []
    for name, conv in convolutions.items():
        if name not in chosen:
            rows.append(_skipped(name, conv, "not matched by where"))
        elif places[id(conv)] > 1:
            rows.append(_skipped(name, conv, "it has several places in the model"))
        elif name in triples:
            rows.append(_replace(converted, name, triples[name], attention, kaconv_options))
        else:
            rows.append(_skipped(name, conv, reasons.get(name, "no trace of the model reaches it")))
    channels = next(iter(convolutions.values())).in_channels
    return converted, _table(rows, model, converted, image_size, channels)


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FUNCTIONS: dict[object, type[nn.Module]] = {
    F.relu: nn.ReLU,
    torch.relu: nn.ReLU,
    torch.relu_: nn.ReLU,
    "relu": nn.ReLU,
    "relu_": nn.ReLU,
    F.relu6: nn.ReLU6,
}
_LONGEST_REASON = 120  # characters
_CHANGE_NOTHING_TWICE = (nn.ReLU, nn.ReLU6)
_NOT_ELEMENTWISE = (nn.MultiheadAttention, nn.Softmax, nn.Softmax2d, nn.Softmin, nn.LogSoftmax, nn.GLU)
_GIVEN = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
_FROM_TRIPLE = (*_GIVEN, "bias", "norm_layer", "act_layer", "device", "dtype")


@dataclass(frozen=True)
class _Triple:
    """Names of the convolution and norm; the activation, and its name where a module of it is to go."""

    conv: str
    norm: str
    act: nn.Module
    act_name: str | None


def _check_options(options: dict[str, Any]) -> None:
    allowed = [name for name in inspect.signature(KAConv2d).parameters if name not in (*_FROM_TRIPLE, "attention")]
    for name in options:
        if name not in allowed:
            raise ValueError(f"{name} is not an option of a conversion; choose from {', '.join(allowed)}")


def _give_each_parent_its_own(model: nn.Module) -> None:
    """Copies of an activation that several modules share, so that one can go without the others."""
    seen: set[int] = set()
    for parent in model.modules():
        for name, child in list(parent.named_children()):
            if _is_activation(child) and not any(True for _ in child.parameters()):
                if id(child) in seen:
                    setattr(parent, name, copy.deepcopy(child))
                seen.add(id(child))


def _is_activation(module: nn.Module) -> bool:
    home = type(module).__module__
    return home.startswith(("torch.nn.modules.activation", "timm.layers.activations")) and not isinstance(
        module, _NOT_ELEMENTWISE
    )


class _Tracer(fx.Tracer):
    """Sees convolutions, batch norms and activations as they are, and does not look into parts that hold neither."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            return False
        kinds = (*_CONVOLUTIONS, _BatchNorm)
        return isinstance(m, (*kinds, KAConv2d)) or not any(isinstance(part, kinds) for part in m.modules())


def _trace(module: nn.Module) -> fx.Graph | None:
    parameters = list(inspect.signature(module.forward).parameters.values())[1:]
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    try:
        with evaluating(module):
            return _Tracer().trace(module, concrete_args=defaults)
    except Exception:  # it is the model's code that runs, on what is no tensor
        return None


def _find_triples(model: nn.Module) -> tuple[dict[str, _Triple], dict[str, str]]:
    """The triples by their convolution's name, and for the other convolutions why they make none."""
    triples: dict[str, _Triple] = {}
    reasons: dict[str, str] = {}
    for prefix, part, graph in _graphs(model, ""):
        if graph is None:
            reasons[prefix.removesuffix(".")] = "torch.fx cannot trace the module that calls it"
            continue
        calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
        for node in graph.nodes:
            if node.op == "call_module" and isinstance(part.get_submodule(node.target), _CONVOLUTIONS):
                found = _triple(part, node, calls)
                if isinstance(found, str):
                    reasons[prefix + node.target] = found
                else:
                    names = {"conv": prefix + found.conv, "norm": prefix + found.norm}
                    act_name = None if found.act_name is None else prefix + found.act_name
                    triples[names["conv"]] = _Triple(**names, act=found.act, act_name=act_name)
    return triples, reasons


def _graphs(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module, fx.Graph | None]]:
    """The graph of a module, or of those of its parts that can be traced; None for a convolution outside of them."""
    if not any(isinstance(part, _CONVOLUTIONS) for part in module.modules()):
        return
    graph = None if isinstance(module, _CONVOLUTIONS) else _trace(module)
    if graph is not None or isinstance(module, _CONVOLUTIONS):
        yield prefix, module, graph
        return
    for name, child in module.named_children():
        yield from _graphs(child, f"{prefix}{name}.")


def _triple(root: nn.Module, node: fx.Node, calls: Counter) -> _Triple | str:
    """The triple that a convolution's call begins, or why there is none."""
    name = str(node.target)
    conv = root.get_submodule(name)
    if reason := _bad_convolution(conv):
        return reason
    if calls[name] > 1:
        return "it is called more than once"
    after = _next(root, node)
    norm = _module(root, after)
    if isinstance(norm, FrozenBatchNorm2d):
        return "its batch norm is frozen, with statistics of the whole kernel: build it with norm_layer=nn.BatchNorm2d"
    if after is None or not isinstance(norm, _BatchNorm):
        before = _module(root, node.all_input_nodes[0])
        if before is not None and (_is_activation(before) or _has_own_activation(before)):
            return f"norm and activation come before it, and {_describe(root, after)} after it"
        return f"{_describe(root, after)} comes after it, not a batch norm"
    if calls[str(after.target)] > 1:
        return "its batch norm is called more than once"
    if _has_own_activation(norm):
        drop, act = norm.get_submodule("drop"), norm.get_submodule("act")
        if not isinstance(drop, nn.Identity):
            return f"{type(drop).__name__} stands between its norm and activation"
        if not isinstance(act, nn.Identity):
            return _check_activation(act) or _Triple(name, str(after.target), act, None)
    elif type(norm) not in (nn.BatchNorm2d, nn.SyncBatchNorm):
        return f"its norm is {type(norm).__name__}, not a plain batch norm"
    return _with_activation(root, name, after, calls)


def _with_activation(root: nn.Module, name: str, norm: fx.Node, calls: Counter) -> _Triple | str:
    after = _next(root, norm)
    act = _module(root, after)
    if after is not None and act is not None and _is_activation(act):
        target = str(after.target)
        if reason := _check_activation(act):
            return reason
        if calls[target] == 1:
            return _Triple(name, str(norm.target), act, target)
        if isinstance(act, _CHANGE_NOTHING_TWICE):
            return _Triple(name, str(norm.target), act, None)
        return f"its activation, {type(act).__name__}, is called elsewhere too, and would act twice"
    if after is not None and after.op in ("call_function", "call_method") and after.target in _FUNCTIONS:
        return _Triple(name, str(norm.target), _FUNCTIONS[after.target](), None)
    return f"{_describe(root, after)} comes after its batch norm, not an activation that can be replaced"


def _bad_convolution(conv: nn.Module) -> str | None:
    if type(conv) is not nn.Conv2d:
        return f"it is a {type(conv).__name__}, not a plain Conv2d"
    if conv.kernel_size == (1, 1):
        return "its kernel is 1×1"
    if conv.padding_mode != "zeros":
        return f"its padding is {conv.padding_mode!r}, not zeros"
    if conv.padding == "same" and any(d * (k - 1) % 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)):
        return "its padding differs between the two sides"
    if conv._forward_hooks or conv._forward_pre_hooks:
        return "it has hooks, which a weight norm, too, rests on"
    return None


def _check_activation(act: nn.Module) -> str | None:
    if isinstance(act, nn.PReLU) and act.num_parameters > 1:
        return "its activation, PReLU, has a parameter for each channel"
    return None


def _has_own_activation(norm: nn.Module) -> bool:
    """Whether it is one of timm's norms with an activation in them."""
    return isinstance(getattr(norm, "act", None), nn.Module) and isinstance(getattr(norm, "drop", None), nn.Module)


def _next(root: nn.Module, node: fx.Node) -> fx.Node | None:
    """The only user of a result, past modules that do nothing."""
    users = list(node.users)
    if len(users) != 1:
        return None
    return _next(root, users[0]) if isinstance(_module(root, users[0]), nn.Identity) else users[0]


def _module(root: nn.Module, node: fx.Node | None) -> nn.Module | None:
    return root.get_submodule(str(node.target)) if node is not None and node.op == "call_module" else None


def _describe(root: nn.Module, node: fx.Node | None) -> str:
    if node is None:
        return "more than one operation"
    module = _module(root, node)
    if module is not None:
        return type(module).__name__
    return "the end" if node.op == "output" else str(getattr(node.target, "__name__", node.target))


def _replace(
    model: nn.Module, name: str, triple: _Triple, attention: str, kaconv_options: dict[str, Any]
) -> ConversionRow:
    conv, norm = model.get_submodule(triple.conv), model.get_submodule(triple.norm)
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, _BatchNorm)
    layer = _layer(conv, norm, triple.act, attention, kaconv_options)
    before = _params(conv) + _params(norm) + (0 if triple.act_name is None else _params(triple.act))
    place = name
    notes = ["its bias went"] if conv.bias is not None else []
    parent_name = name.rpartition(".")[0]
    parent = model.get_submodule(parent_name)
    children = [name, triple.norm, *([] if triple.act_name is None else [triple.act_name])]
    whole = [f"{parent_name}.{child}" for child, _ in parent.named_children()] == children
    if parent_name and whole and type(parent).forward is nn.Sequential.forward:
        place = parent_name
        notes.append(f"as {place}")
    else:
        for part in children[1:]:
            model.set_submodule(part, nn.Identity())
    model.set_submodule(place, layer)
    return ConversionRow(name, place, ", ".join(notes), before, _params(layer))


def _layer(
    conv: nn.Conv2d, norm: _BatchNorm, act: nn.Module, attention: str, kaconv_options: dict[str, Any]
) -> KAConv2d:
    norm_type = nn.SyncBatchNorm if isinstance(norm, nn.SyncBatchNorm) else nn.BatchNorm2d
    layer = KAConv2d(
        conv.in_channels,
        conv.out_channels,
        _pair(conv.kernel_size),
        _pair(conv.stride),
        _padding(conv),
        _pair(conv.dilation),
        conv.groups,
        attention=attention,
        norm_layer=partial(
            norm_type,
            eps=norm.eps,
            momentum=norm.momentum,
            affine=norm.affine,
            track_running_stats=norm.track_running_stats,
        ),
        act_layer=partial(copy.deepcopy, act),
        device=conv.weight.device,
        dtype=conv.weight.dtype,
        **kaconv_options,
    )
    positions = layer.kernel_size[0] * layer.kernel_size[1]
    with torch.no_grad():
        layer.weight.copy_(conv.weight)
        for parameter, given in zip(layer.norm.parameters(), norm.parameters(recurse=False), strict=True):
            parameter.copy_(given.repeat(positions))
            parameter.requires_grad_(given.requires_grad)
        if isinstance(layer.act, nn.PReLU) and isinstance(act, nn.PReLU):
            layer.act.weight.copy_(act.weight)  # the layer made it new
    layer.weight.requires_grad_(conv.weight.requires_grad)
    return layer.train(conv.training)


def _pair(value: tuple[int, ...]) -> tuple[int, int]:
    return value[0], value[1]


def _padding(conv: nn.Conv2d) -> tuple[int, int]:
    if conv.padding == "same":
        return _pair(tuple(d * (k - 1) // 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)))
    return (0, 0) if isinstance(conv.padding, str) else _pair(conv.padding)


def _skipped(name: str, conv: nn.Module, reason: str) -> ConversionRow:
    return ConversionRow(name, None, reason, _params(conv), _params(conv))


def _params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _table(
    rows: list[ConversionRow],
    model: nn.Module,
    converted: nn.Module,
    image_size: int | tuple[int, int],
    channels: int,
) -> ConversionTable:
    costs: list[Complexity | None] = []
    uncounted = ""
    for counted in (model, converted):
        try:
            costs.append(complexity(copy.deepcopy(counted).to("meta"), image_size, channels))
        except Exception as error:  # the model's own, for an image that it does not take
            lines = str(error).strip().splitlines() or [type(error).__name__]
            reason = textwrap.shorten(lines[0], _LONGEST_REASON, placeholder=" ...")  # torch can take a paragraph
            uncounted = f"the model does not run on one image of {image_size} with {channels} channels: {reason}"
            costs.append(None)
    return ConversionTable(rows, _params(model), _params(converted), costs[0], costs[1], uncounted)
