"""A model's convolutions exchanged for ours, with the activation after them where it provably follows."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.nn.modules.conv import _ConvNd

from convbackprop.activations import ACTIVATIONS, Activation, activation_name
from convbackprop.problem import DTYPES
from convbackprop.torch.module import Conv2d, Layer
from convbackprop.torch.transposed import ConvTranspose2d

Module = torch.nn.Module

#: What is exchanged, and for what.
_OURS: dict[type[Module], type[Layer]] = {torch.nn.Conv2d: Conv2d, torch.nn.ConvTranspose2d: ConvTranspose2d}

#: The activations that a layer can have fused in, by what they are in a model: a module, a function, a method of
#: tensors; functions and methods in place too.
_FUSED = [phi for phi in ACTIVATIONS.values() if phi.module]
_IN_PLACE = ("", "_")
_MODULES = {getattr(torch.nn, phi.module): phi for phi in _FUSED}
_FUNCTIONS = {
    getattr(home, phi.torch + suffix): phi
    for phi, suffix in itertools.product(_FUSED, _IN_PLACE)
    for home in (torch, torch.nn.functional)
    if hasattr(home, phi.torch + suffix)
}
_METHODS = {
    phi.torch + suffix: phi
    for phi, suffix in itertools.product(_FUSED, _IN_PLACE)
    if hasattr(torch.Tensor, phi.torch + suffix)
}


@dataclass
class Report:
    """What `from_torch` did, by the names of the modules in the model.

    Attributes
    ----------
    fused : dict of str to str
        Layers that are ours now and have the activation of this name.
    swapped : list of str
        Layers that are ours now, without an activation.
    left : dict of str to str
        Convolutions that are still torch's, and why.
    order : list of str
        All of these, as they come in the model.
    """

    fused: dict[str, str] = field(default_factory=dict)
    swapped: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        told = {
            **{name: f"swapped, with {activation}" for name, activation in self.fused.items()},
            **dict.fromkeys(self.swapped, "swapped"),
            **{name: f"left: {reason}" for name, reason in self.left.items()},
        }
        width = max(map(len, told), default=0)
        return "\n".join(f"{name:{width}}  {told[name]}" for name in self.order) or "no convolution found"


def from_torch(
    module: Module, *, trace: bool = False, variant: str = "auto", precision: str | None = None
) -> tuple[Module, Report]:
    """Return a model like this one, whose Conv2d and ConvTranspose2d layers are those of `convbackprop.torch.nn`.

    An activation that the kernels know (ReLU, LeakyReLU, Sigmoid, GELU, ...) goes into the layer before it where it is
    the next module of a torch.nn.Sequential and the layer is used there only; an Identity takes its place, so that
    names, and with them a state_dict, remain as they are.

    Parameters
    ----------
    module : torch.nn.Module
        The model; it is not changed. Parameters and buffers are shared with it: an optimizer goes on.
    trace : bool
        Read the model's own forward by torch.fx, and return a torch.fx.GraphModule: an activation is found wherever it
        is called, as a module, a function or a method. What the model decides by its mode (training or not) is decided
        now.
    variant, precision : str
        For the new layers.

    Returns
    -------
    model : torch.nn.Module
        The new model, in the same mode (train or eval).
    report : Report
        What was changed and what was left; `print` it.

    Raises
    ------
    torch.fx.proxy.TraceError
        With trace, where torch.fx cannot read the model.
    """
    tensors = [*module.parameters(), *module.buffers()]
    model = copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
    report = Report()
    if trace:
        model = fx.symbolic_trace(model)
        fusions = _fused_by_graph(model)
    else:
        fusions = _fused_by_sequence(model)
    made: dict[int, Module] = {}
    layers = dict(model.named_modules(remove_duplicate=False))
    for name, before in module.named_modules(remove_duplicate=False):
        if not isinstance(before, _ConvNd) or isinstance(before, Layer):
            continue
        title = name or "(the model)"
        report.order.append(title)
        if reason := _cannot(before):
            report.left[title] = reason
            continue
        if not isinstance(layer := layers.get(name), _ConvNd):
            report.left[title] = "the traced model calls no module of this name"
            continue
        activation = fusions.get(name, "identity")
        if activation != "identity":
            report.fused[title] = activation
        else:
            report.swapped.append(title)
        ours = made.setdefault(id(layer), _like(layer, activation, variant, precision))
        if not name:
            return ours, report
        model.set_submodule(name, ours)
    return model, report


def _cannot(layer: _ConvNd) -> str | None:
    """Return why a layer cannot be exchanged."""
    if (axes := len(layer.kernel_size)) != 2:
        return f"it is a {type(layer).__name__}, and the kernels convolve images of two axes, not {axes}"
    if type(layer) not in _OURS:
        kind = "ConvTranspose2d" if layer.transposed else "Conv2d"
        return f"it is a {type(layer).__name__}, which may do more than torch.nn.{kind}"
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(layer, kind) for kind in hooks):
        return "it has hooks"
    if (dtype := str(layer.weight.dtype).removeprefix("torch.")) not in DTYPES:
        return f"its dtype is {dtype}"
    return None


def _like(layer: _ConvNd, activation: str, variant: str, precision: str | None) -> Module:
    """Return our layer with the parameters of torch's."""
    names = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"]
    if layer.transposed:
        names.append("output_padding")
    options: dict[str, Any] = {name: getattr(layer, name) for name in names}
    options |= {"bias": layer.bias is not None, "device": "meta", "dtype": layer.weight.dtype}
    ours = _OURS[type(layer)](**options, activation=activation, variant=variant, precision=precision)
    ours.weight, ours.bias = layer.weight, layer.bias
    return ours.train(layer.training)


def _fused_by_sequence(model: Module) -> dict[str, str]:
    """Take activations out of Sequentials, and return them by the name of the layer that they belong to."""
    uses = Counter(id(child) for parent in model.modules() for child in parent._modules.values())
    found = {}
    for name, parent in model.named_modules():
        if type(parent).forward is not torch.nn.Sequential.forward or uses[id(parent)] > 1:
            continue
        children = list(parent._modules.items())
        for (layer_name, layer), (after_name, after) in itertools.pairwise(children):
            activation = _activation_of_module(after)
            ours = isinstance(layer, _ConvNd) and not _cannot(layer) and uses[id(layer)] == 1
            if activation and ours:
                parent._modules[after_name] = torch.nn.Identity()
                found[f"{name}.{layer_name}" if name else layer_name] = activation
    return found


def _has_hooks(module: Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _fused_by_graph(model: fx.GraphModule) -> dict[str, str]:
    """Take activations out of a graph, and return them by the name of the layer that they belong to."""
    calls = Counter(node.target for node in model.graph.nodes if node.op == "call_module")
    found = {}
    for node in list(model.graph.nodes):
        if node.op != "call_module" or calls[node.target] > 1 or len(node.users) != 1:
            continue
        layer = model.get_submodule(node.target)
        (user,) = node.users
        activation = _activation_of(user, model)
        if isinstance(layer, _ConvNd) and not _cannot(layer) and activation and user.args[:1] == (node,):
            user.replace_all_uses_with(node)
            model.graph.erase_node(user)
            found[node.target] = activation
    model.delete_all_unused_submodules()
    model.recompile()
    return found


def _activation_of_module(module: Module) -> str | None:
    """Return the activation that a module computes, if it is one, and nothing else."""
    phi = _MODULES.get(type(module))
    if phi is None or _has_hooks(module):
        return None
    return _accepted(phi, {name: getattr(module, name) for name in phi.parameters})


def _activation_of(node: Any, model: fx.GraphModule) -> str | None:
    """Return the activation that a node of a graph computes, if it is one."""
    if node.op == "call_module":
        return _activation_of_module(model.get_submodule(node.target))
    phi = {"call_function": _FUNCTIONS, "call_method": _METHODS}.get(node.op, {}).get(node.target)
    if phi is None:
        return None
    given = dict(zip((*phi.parameters, "inplace"), node.args[1:], strict=False)) | node.kwargs
    given.pop("inplace", None)
    return _accepted(phi, {**phi.parameters, **given})


def _accepted(phi: Activation, parameters: dict[str, Any]) -> str | None:
    """Return the activation's name with these parameters, if the kernels compute it."""
    constants = all(isinstance(value, (str, int, float)) for value in parameters.values())
    if parameters.keys() != phi.parameters.keys() or not constants:
        return None
    name = phi.accepts(**parameters)
    return None if name is None else activation_name(name)
