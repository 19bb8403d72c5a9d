"""convbackprop.torch against torch's own convolution: derivatives of any order, and all that PyTorch does with them."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="needs torch, which is not installed: convbackprop.torch")

from torch.nn import functional  # noqa: E402
from torch.utils import checkpoint as checkpointing  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import convbackprop.torch as ours  # noqa: E402
from convbackprop import ops, transposed  # noqa: E402
from convbackprop.arguments import resolve_padding  # noqa: E402
from convbackprop.devices.gpus import Target  # noqa: E402
from convbackprop.errors import InvalidArgument, InvalidType, UnsupportedProblem  # noqa: E402
from convbackprop.ladder import registry  # noqa: E402
from convbackprop.launch import calls  # noqa: E402
from convbackprop.torch import direct, functional as functional_of_ours, functions  # noqa: E402
from convbackprop.torch.options import allowed_by_torch, precision_of  # noqa: E402
from convbackprop.tune import choice  # noqa: E402
from tests.support.activations import PHI  # noqa: E402
from tests.support.turns import every_other_pair  # noqa: E402

#: x's and w's shapes, and the options; sizes at which nothing divides evenly.
LAYERS = {
    "plain": ((2, 3, 5, 6), (4, 3, 3, 2), {}),
    "stride, groups": ((2, 4, 7, 6), (6, 2, 3, 3), {"stride": (2, 3), "padding": (1, 2), "groups": 2}),
    "one-sided, dilated": ((1, 2, 7, 8), (3, 2, 2, 3), {"padding": ((2, 0), (1, 3)), "dilation": (2, 1)}),
    "depthwise, same": ((2, 3, 4, 5), (3, 1, 3, 2), {"padding": "same", "groups": 3}),
    "unbatched": ((2, 5, 4), (3, 2, 3, 3), {"padding": 1}),
    "one channel": ((5, 6), (3, 3), {}),
}
EVERY_LAYER = pytest.mark.parametrize("layer", LAYERS)


def tensors(layer, dtype=torch.float64, seed=0, grad=True):
    x_shape, w_shape, options = LAYERS[layer]
    generator = torch.Generator().manual_seed(seed)
    filters = w_shape[0] if len(w_shape) == 4 else 1
    made = [torch.randn(s, generator=generator, dtype=torch.float64) for s in (x_shape, w_shape, (filters,))]
    return [t.to(dtype).requires_grad_(grad) for t in made], options


def expected(x, w, b, stride=1, padding=0, dilation=1, groups=1, activation="identity"):
    """The layer by torch's operators."""
    whole = w if w.ndim == 4 else w[None, None]
    image = x if x.ndim > 2 else x[None]
    dilations = dilation if isinstance(dilation, tuple) else (dilation, dilation)
    (top, bottom), (left, right) = (
        resolve_padding(padding, tuple(whole.shape[-2:]), (1, 1), dilations)
        if isinstance(padding, str)
        else resolve_padding(padding, (1, 1), (1, 1), (1, 1))
    )
    image = functional.pad(image, (left, right, top, bottom))
    y = PHI[activation](functional.conv2d(image, whole, b, stride, 0, dilation, groups))
    return y if x.ndim > 2 else y[0]


def pair_of(layer, activation="identity", variant="naive"):
    """Our function and torch's, of (x, w, b)."""
    options = LAYERS[layer][2]
    return (
        lambda x, w, b: ours.conv2d(x, w, b, **options, activation=activation, variant=variant),
        lambda x, w, b: expected(x, w, b, **options, activation=activation),
    )


def close(got, want):
    """Whether two float64 results of a few hundred operations on numbers of size 1 agree."""
    got, want = (t if isinstance(t, tuple) else (t,) for t in (got, want))
    return all(
        a.shape == b.shape and a.dtype == b.dtype and bool(((a - b).abs() <= 1e-12 * (1 + b.abs().max())).all())
        for a, b in zip(got, want, strict=True)
    )


# -- derivatives -----------------------------------------------------------------------------------------------------
@EVERY_LAYER
@pytest.mark.parametrize("activation", PHI)
def test_gradients(layer, activation):
    (x, w, b), _ = tensors(layer)
    mine, theirs = pair_of(layer, activation)
    y, want = mine(x, w, b), theirs(x, w, b)
    assert close(y, want)
    dy = torch.randn_like(want)
    for inputs in ((x, w, b), (x,), (w,), (b,), (w, b)):
        assert close(
            torch.autograd.grad(y, inputs, dy, retain_graph=True),
            torch.autograd.grad(want, inputs, dy, retain_graph=True),
        )


@pytest.mark.parametrize(("layer", "activation"), every_other_pair(LAYERS, PHI))
def test_gradcheck(layer, activation):
    (x, w, b), _ = tensors(layer)
    mine, _ = pair_of(layer, activation)
    assert torch.autograd.gradcheck(mine, (x, w, b), check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(mine, (x, w, b), check_fwd_over_rev=True, fast_mode=True)


@EVERY_LAYER
def test_higher_derivatives(layer):
    (x, w, b), _ = tensors(layer, grad=False)
    results = []
    for function in pair_of(layer, "tanh"):

        def loss(x, w, b, function=function):
            return function(x, w, b).sin().sum()

        hessian_product = torch.func.jvp(torch.func.grad(loss, argnums=(0, 1, 2)), (x, w, b), (x, w, b))[1]
        forward = torch.func.jvp(function, (x, w, b), (x, w, b))[1]
        results.append((*hessian_product, forward))
    assert close(*results)


def test_a_hessian():
    (x, w, b), _ = tensors("stride, groups", grad=False)
    hessians = [
        torch.func.hessian(lambda w, f=f: f(x, w, b).sin().sum())(w) for f in pair_of("stride, groups", "logistic")
    ]
    assert close(*hessians)


# -- vmap ------------------------------------------------------------------------------------------------------------
@EVERY_LAYER
@pytest.mark.parametrize("dims", [(0, None, None), (None, 0, None), (None, None, 0), (1, 0, 0), (0, None, 0)])
def test_vmap(layer, dims, monkeypatch):
    calls = []
    run = functions.operators.ops.conv2d
    monkeypatch.setattr(functions.operators.ops, "conv2d", lambda *a, **k: calls.append(1) or run(*a, **k))
    given, _ = tensors(layer, grad=False)
    batches = [t if dim is None else torch.stack([t, 2 * t, -t], dim=dim) for t, dim in zip(given, dims, strict=True)]
    mine, theirs = pair_of(layer, "relu")
    got = torch.vmap(mine, in_dims=dims)(*batches)
    assert len(calls) == 1, "a rule, not a loop"
    at = [[b if d is None else b.select(d, i) for b, d in zip(batches, dims, strict=True)] for i in range(3)]
    assert close(got, torch.stack([theirs(*one) for one in at]))


@EVERY_LAYER
def test_gradients_of_single_samples(layer):
    (x, w, b), _ = tensors(layer, grad=False)
    samples = torch.stack([x, x.flip(-1), x * x])
    results = []
    for function in pair_of(layer, "tanh"):
        gradient = torch.func.grad(lambda w, b, x, f=function: f(x, w, b).sin().sum(), argnums=(0, 1, 2))
        results.append(torch.vmap(gradient, in_dims=(None, None, 0))(w, b, samples))
    assert close(*results)


def test_the_operators_under_vmap():
    """What a graph calls has the rules too; the fused operator's is made of the others'."""
    (x, w, _), _ = tensors("stride, groups", grad=False)
    settings = ((2, 3), (1, 1, 2, 2), (1, 1), 2)
    y = torch.stack([functions.operators.forward(t, w, None, *settings, "tanh", "naive", "ieee") for t in (x, 2 * x)])
    dy = torch.randn_like(y)

    def gradients(x, dy, y):
        return functions.operators.backward(dy, x, w, y, [True, True, True], *settings, "tanh", "naive", "ieee")

    xs = torch.stack([x, 2 * x])
    assert close(
        torch.vmap(gradients)(xs, dy, y),
        tuple(map(torch.stack, zip(*map(gradients, xs, dy, y), strict=True))),
    )


def test_batched_cotangents():
    """torch.autograd.grad(is_grads_batched=True) sends one cotangent that stands for many."""
    (x, w, b), _ = tensors("plain")
    many = torch.randn(3, 2, 4, 3, 5, dtype=torch.float64)
    results = [
        torch.autograd.grad(f(x, w, b), (x, w, b), many, is_grads_batched=True) for f in pair_of("plain", "tanh")
    ]
    assert close(*results)


# -- graphs ----------------------------------------------------------------------------------------------------------
SETTINGS = ((2, 1), (1, 0, 1, 2), (1, 1), 2)


@pytest.mark.parametrize("name", ["forward", "input_grad", "kernel_grad", "backward"])
def test_opcheck(name):
    x, w, b = torch.randn(2, 4, 5, 6), torch.randn(2, 2, 3, 2), torch.randn(2)
    y = functions.operators.forward(x, w, b, *SETTINGS, "relu", "naive", "ieee")
    dy = torch.randn_like(y)
    arguments = {
        "forward": (x, w, b, *SETTINGS, "relu", "naive", "ieee"),
        "input_grad": (x.shape, w, dy, *SETTINGS, "naive", "ieee"),
        "kernel_grad": (x, w.shape, dy, *SETTINGS, "naive", "ieee"),
        "backward": (dy, x, w, y, [True, False, True], *SETTINGS, "relu", "naive", "ieee"),
    }[name]
    if name != "backward":
        arguments = [a.requires_grad_() if isinstance(a, torch.Tensor) else a for a in arguments]
    found = torch.library.opcheck(getattr(torch.ops.convbackprop, name).default, tuple(arguments))
    assert set(found.values()) == {"SUCCESS"}, found


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    """One graph, without a break; with dynamic shapes one for all sizes."""
    torch._dynamo.reset()
    mine, theirs = pair_of("stride, groups", "relu")
    compiled = torch.compile(lambda *t: mine(*t) * 2, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    (_, w, b), _ = tensors("stride, groups")
    with torch._dynamo.config.patch(error_on_recompile=dynamic):
        for n, height in ((11, 7), (3, 9), (5, 8)):
            x = torch.randn(n, 4, height, 6 + n, dtype=torch.float64, requires_grad=True)
            y, want = compiled(x, w, b), theirs(x, w, b) * 2
            dy = torch.randn_like(want)
            assert close(torch.autograd.grad(y, (x, w, b), dy), torch.autograd.grad(want, (x, w, b), dy))


def test_compile_without_gradients():
    (x, w, b), _ = tensors("plain", grad=False)
    mine, theirs = pair_of("plain", "relu")
    compiled = torch.compile(mine, fullgraph=True, backend="eager")
    assert close(compiled(x, w, b), theirs(x, w, b))
    with torch.no_grad():
        assert close(compiled(x, w, b), theirs(x, w, b))


def test_symbolic_trace():
    """torch.fx sees one call of conv2d, in a module and in a function."""
    (x, w, b), _ = tensors("plain", grad=False)
    model = torch.nn.Sequential(ours.nn.Conv2d(3, 4, 3, variant="naive")).double()
    mine, _ = pair_of("plain", "tanh")
    for function, given in ((model, (x,)), (lambda x, w, b: mine(x, w, b), (x, w, b))):
        traced = torch.fx.symbolic_trace(function)
        assert [n.target for n in traced.graph.nodes if n.op == "call_function"] == [ours.conv2d]
        assert close(traced(*given), function(*given))


@pytest.mark.slow
def test_compile_by_inductor():
    torch._dynamo.reset()
    model = torch.nn.Sequential(ours.nn.Conv2d(3, 4, 3, activation="relu"), ours.nn.Conv2d(4, 2, 3)).double()
    compiled = torch.compile(lambda t: model(t.to(memory_format=torch.channels_last)).sin(), fullgraph=True)
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    compiled(x).sum().backward()
    first = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(x).sin().sum().backward()
    assert close(tuple(first), tuple(p.grad for p in model.parameters()))


def test_export():
    """An exported program calls the operators, for any batch, and can be differentiated."""
    model = torch.nn.Sequential(ours.nn.Conv2d(3, 4, 3, padding=1, activation="tanh"), ours.nn.Conv2d(4, 2, 2)).double()
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("images", min=1, max=64)},))
    assert "torch.ops.convbackprop.forward" in program.graph_module.code
    more = torch.randn(5, 3, 6, 5, dtype=torch.float64)
    again = program.module()
    assert close(again(more), model(more))
    results = []
    for module in (again, model):
        module.zero_grad()
        module(more).sin().sum().backward()
        results.append(tuple(p.grad.clone() for p in model.parameters()))
    assert close(*results)


def test_without_data():
    """Meta and fake tensors: the shape, and the errors, of the layer."""
    from torch._subclasses import FakeTensorMode

    for layer in LAYERS:
        (x, w, b), options = tensors(layer, grad=False)
        shape = expected(x, w, b, **options).shape
        assert ours.conv2d(*(t.to("meta") for t in (x, w, b)), **options).shape == shape
        with FakeTensorMode() as mode:
            fake = [mode.from_tensor(t) for t in (x, w, b)]
            assert ours.conv2d(*fake, **options).shape == shape
            with pytest.raises(InvalidType, match=r"weight has dtype torch.float32, but it should be torch.float64"):
                ours.conv2d(fake[0], fake[1].float(), **options)
    x, w, _ = (t.to("meta") for t in tensors("plain", grad=False)[0])
    with pytest.raises(InvalidArgument, match=r"3 input channels"):
        ours.conv2d(x[:, :2], w)
    with pytest.raises(InvalidArgument, match=r"bias has shape \(3,\); it should be \(4,\)"):
        ours.conv2d(x, w, torch.empty(3, device="meta", dtype=torch.float64))


# -- precision -------------------------------------------------------------------------------------------------------
def test_precision_reaches_every_pass(monkeypatch):
    """By the direct way and by the operators, batched, in both modes and of any order."""
    asked = []

    def recording(function):
        def call(*arguments, **options):
            asked.append((function.__name__, options["precision"]))
            return function(*arguments, **options)

        return call

    for name in ("conv2d", "conv2d_input_grad", "conv2d_kernel_grad", "conv2d_backward"):
        monkeypatch.setattr(ops, name, recording(getattr(ops, name)))
    monkeypatch.setattr(transposed, "conv_transpose2d", recording(transposed.conv_transpose2d))

    (x, w, b), options = tensors("plain", torch.float32)
    for activation in ("tanh", "silu"):

        def layer(x, w, b, activation=activation):
            return ours.conv2d(x, w, b, **options, activation=activation, variant="naive", precision="tf32")

        layer(x, w, b).sum().backward()
        (dx,) = torch.autograd.grad(layer(x, w, b).sum(), x, create_graph=True)
        dx.square().sum().backward()
        torch.func.vmap(lambda x: torch.func.grad(lambda w: layer(x, w, b).sum())(w))(x.detach()[:, None])
        torch.func.jvp(layer, (x, w, b), (x, w, b))
    torch.export.export(_Precise(), (x.detach(), w.detach())).module()(x.detach(), w.detach())
    y = ours.conv_transpose2d(x, w.transpose(0, 1).contiguous(), activation="relu", precision="tf32")
    (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    dx.square().sum().backward()
    ours.nn.Conv2d(3, 2, 3, precision="tf32")(x)
    ours.nn.ConvTranspose2d(3, 2, 3, precision="tf32")(x)
    assert {name for name, _ in asked} == {
        "conv2d", "conv2d_input_grad", "conv2d_kernel_grad", "conv2d_backward", "conv_transpose2d",
    }  # fmt: skip
    assert {precision for _, precision in asked} == {"tf32"}


class _Precise(torch.nn.Module):
    def forward(self, x, w):
        return ours.conv2d(x, w, activation="tanh", precision="tf32")


def test_precision_is_asked_for_in_a_compiled_program(monkeypatch):
    """On a GPU; here the CPU's tensors are taken for its."""
    told = {True: "tf32", False: "ieee"}
    monkeypatch.setattr(functional_of_ours, "precision_of", lambda given, tensor: told[allowed_by_torch()])
    (x, w, _), _ = tensors("plain", torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, w: ours.conv2d(x, w, variant="naive"), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, w), ours.conv2d(x, w, variant="naive"))


def test_precision_is_torchs_unless_it_is_given():
    on_gpu, on_cpu = SimpleNamespace(is_cuda=True), SimpleNamespace(is_cuda=False)
    before = torch.backends.cudnn.allow_tf32
    try:
        for allowed in (True, False):
            torch.backends.cudnn.allow_tf32 = allowed
            assert precision_of(None, on_gpu) == ("tf32" if allowed else "ieee")
            assert precision_of(None, on_cpu) == "ieee"
            assert [precision_of(given, on_gpu) for given in ("ieee", "tf32")] == ["ieee", "tf32"]
    finally:
        torch.backends.cudnn.allow_tf32 = before


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch before 2.9 has one flag")
def test_precision_follows_what_torchs_convolution_follows():
    """Not torch.set_float32_matmul_precision, which is of products of matrices: a flag for convolution, and for all."""
    on_gpu, conv = SimpleNamespace(is_cuda=True), torch.backends.cudnn.conv
    before, matmul = conv.fp32_precision, torch.get_float32_matmul_precision()
    try:
        conv.fp32_precision = "tf32"  # as torch starts; a `bench` of this process says otherwise
        for asked in ("highest", "high", "medium"):
            torch.set_float32_matmul_precision(asked)
            assert precision_of(None, on_gpu) == "tf32"
        for said in ("ieee", "tf32"):
            conv.fp32_precision = said
            assert precision_of(None, on_gpu) == said
        conv.fp32_precision = "none"
        for said in ("ieee", "tf32"):
            torch.backends.fp32_precision = said
            assert precision_of(None, on_gpu) == said
    finally:
        torch.backends.fp32_precision = "none"
        conv.fp32_precision = before
        torch.set_float32_matmul_precision(matmul)


def test_autocast_reaches_the_tensor_cores(quick_commands):
    """On a GPU; the rule is asked what it takes there of the passes that are computed here."""
    passes = []
    tell = lambda pass_name, problem, device: passes.append((pass_name, problem))  # noqa: E731
    x, w = (torch.randn(shape, requires_grad=True) for shape in ((1, 16, 7, 8), (16, 16, 3, 3)))
    choice.listeners.append(tell)
    calls.forget()
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = ours.conv2d(x, w, padding=1, activation="relu")
        y.float().sum().backward()
    finally:
        choice.listeners.remove(tell)
        calls.forget()
    assert {name for name, _ in passes} >= {"forward", "input_grad", "kernel_grad"}
    for name, problem in passes:
        if name == "backward":  # one rung for all gradients: of one channel
            continue
        assert problem.dtype == "bfloat16"
        assert registry.choose(name, "auto", problem, Target("cuda", 108, "sm_80")).name == "tensor_core"
        assert registry.choose(name, "auto", problem, Target("cuda", 40, "sm_75")).name != "tensor_core"


# -- the rest of PyTorch ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    (x, w, b), _ = tensors("plain", torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        y = ours.conv2d(x, w, b, activation="relu", variant="naive")
        doubles = [t.double().detach() for t in (x, w, b)]
        assert ours.conv2d(*doubles, variant="naive").dtype == torch.float64  # as torch's own layer
    assert y.dtype == dtype
    rounded = [t.detach().to(dtype).requires_grad_() for t in (x, w, b)]
    want = ours.conv2d(*rounded, activation="relu", variant="naive")
    assert torch.equal(y, want)
    dy = torch.randn_like(y)
    got = torch.autograd.grad(y, (x, w, b), dy)
    assert [g.dtype for g in got] == [torch.float32] * 3
    for g, r in zip(got, torch.autograd.grad(want, rounded, dy), strict=True):
        assert torch.equal(g, r.float())


def test_views():
    (x, w, b), _ = tensors("stride, groups")
    mine, theirs = pair_of("stride, groups", "relu")
    for view in (x.flip(-1).flip(-1), x.transpose(2, 3).contiguous().transpose(2, 3)):
        y, want = mine(view, w, b), theirs(view, w, b)
        assert y.is_contiguous()
        assert close(y, want)
        assert close(torch.autograd.grad(y.sum(), (x, w, b)), torch.autograd.grad(want.sum(), (x, w, b)))


CHANNELS_LAST = torch.channels_last


@pytest.mark.parametrize("way", ["direct", "second order", "operators", "compiled"])
@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize(
    "shape", [(2, 4, 7, 6), *(pytest.param(s, marks=pytest.mark.slow) for s in ((2, 1, 7, 6), (2, 4, 1, 1))), (4, 7, 6)]
)
def test_memory_formats(shape, activation, way):
    """y and the gradients have the values of torch's, and lie in memory as these."""

    def mine(x, w):
        return ours.conv2d(x, w, activation=activation, variant="naive")

    def theirs(x, w):
        return PHI[activation](functional.conv2d(x, w))

    size = min(shape[-1], 3)
    for last in ("x", "w") if way == "compiled" else ("x", "w", "xw", "dy", ""):
        x, w = torch.randn(shape, dtype=torch.float64), torch.randn(6, shape[-3], size, size, dtype=torch.float64)
        x = x.to(memory_format=CHANNELS_LAST) if "x" in last and x.ndim == 4 else x
        w = w.to(memory_format=CHANNELS_LAST) if "w" in last else w
        x.requires_grad_()
        w.requires_grad_()
        results = []
        for function in (mine, theirs):
            compiled = way == "compiled" and function is mine
            torch._dynamo.reset()
            run = torch.compile(function, backend="aot_eager", fullgraph=True) if compiled else function
            with FlopCounterMode(display=False) if way == "operators" else contextlib.nullcontext():
                y = run(x, w)
                dy = y.detach().sin().contiguous()
                dy = dy.to(memory_format=CHANNELS_LAST) if last == "dy" and y.ndim == 4 else dy
                results.append((y, *torch.autograd.grad(y, (x, w), dy, create_graph=way == "second order")))
        assert close(*results)
        mine_, theirs_ = (
            [[stride for stride, n in zip(t.stride(), t.shape, strict=True) if n > 1] for t in made] for made in results
        )
        assert mine_ == theirs_, last


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant):
    (x, w, b), _ = tensors("plain")
    mine, theirs = pair_of("plain", "tanh")
    y = checkpointing.checkpoint(lambda t: mine(t, w, b).sin(), x, use_reentrant=reentrant)
    want = theirs(x, w, b).sin()
    found = []
    for result in (y, want):
        x.grad = w.grad = b.grad = None
        result.sum().backward()
        found.append((x.grad, w.grad, b.grad))
    assert close(*found)


def test_deterministic_and_saved_tensor_hooks():
    (x, w, b), _ = tensors("plain")
    mine, _ = pair_of("plain", "relu")
    packed = []
    torch.use_deterministic_algorithms(True)
    try:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
            first = torch.autograd.grad(mine(x, w, b).sum(), (x, w, b))
        again = torch.autograd.grad(mine(x, w, b).sum(), (x, w, b))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, first, again))
    assert len(packed) == 3  # x, w and y, and nothing that could be formed again


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_padding_contributes_nothing_whatever_is_wanted(groups, value):
    """dw of a gradient that is not finite at a border does not depend on whether dx is wanted, nor dx on dw."""
    x, w = torch.ones(2, 3, 4, 4), torch.ones(3, 3 // groups, 3, 3)
    for at in ((0, 0, 0, 0), (1, 2, 0, 3), (0, 1, 3, 3), (1, 0, 2, 1)):
        dy = torch.zeros(2, 3, 4, 4)
        dy[at] = value
        both = [t.clone().requires_grad_() for t in (x, w)]
        ours.conv2d(*both, padding=1, groups=groups).backward(dy)
        for i in (0, 1):
            alone = [t.clone().requires_grad_(i == j) for j, t in enumerate((x, w))]
            ours.conv2d(*alone, padding=1, groups=groups).backward(dy)
            torch.testing.assert_close(alone[i].grad, both[i].grad, rtol=0, atol=0, equal_nan=True)
        _, k, p, q = at
        meets = torch.zeros(3, 3, dtype=torch.bool)  # taps (r, s) with a pixel under them
        meets[max(0, 1 - p) : 5 - p, max(0, 1 - q) : 5 - q] = True
        assert torch.equal(~both[1].grad[k].isfinite(), meets.expand(w.shape[1:]))


def test_only_needed_gradients_are_computed(monkeypatch):
    (x, w, b), _ = tensors("plain")
    seen = []
    backward = direct.ops.conv2d_backward
    monkeypatch.setattr(direct.ops, "conv2d_backward", lambda *a, **k: seen.append(k["needs"]) or backward(*a, **k))
    mine, _ = pair_of("plain")
    mine(x.detach(), w, b).sum().backward()
    mine(x, w.detach(), None).sum().backward()
    assert seen == [(False, True, True), (True, False, False)]


class Named(torch.Tensor):
    """A subclass that only has a name."""


def test_other_ways_to_call():
    (x, w, b), _ = tensors("plain", grad=False)
    mine, theirs = pair_of("plain")
    assert type(mine(x.as_subclass(Named), w, b)) is Named
    with torch.inference_mode():
        assert close(mine(x, w, b), theirs(x, w, b))
    level = torch.autograd.forward_ad
    with level.dual_level():
        tangents = [level.unpack_dual(f(level.make_dual(x, x.sin()), w, b)).tangent for f in (mine, theirs)]
    assert close(*tangents)
    jacobians = [way(lambda t: mine(t, w, b).tanh())(x) for way in (torch.func.jacrev, torch.func.jacfwd)]
    assert close(*jacobians)
    nested = torch.vmap(torch.vmap(mine, (0, None, None)), (None, 0, None))(
        torch.stack([x, -x]), torch.stack([w] * 3), b
    )
    assert close(nested, torch.stack([torch.stack([mine(x, w, b), mine(-x, w, b)])] * 3))


def test_an_image_changed_in_place_is_noticed():
    (x, w, b), _ = tensors("plain")
    mine, _ = pair_of("plain")
    image = x * 1
    y = mine(image, w, b)
    image += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_no_images():
    (_, w, b), _ = tensors("plain")
    x = torch.randn(0, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    y = ours.conv2d(x, w, b, variant="naive")
    y.sum().backward()
    assert y.shape == (0, 4, 3, 5)
    assert x.grad.shape == x.shape
    assert not w.grad.any()
    assert not b.grad.any()


# -- what is refused -------------------------------------------------------------------------------------------------
class Wrapped(torch.Tensor):
    """A tensor that takes operators into its own hands."""

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError("nothing is run")


def test_refusals():
    (x, w, b), _ = tensors("plain", grad=False)
    wrapped = torch.Tensor._make_subclass(Wrapped, x)
    with pytest.raises(InvalidType, match="input is a Wrapped, which is no tensor that the kernels know"):
        ours.conv2d(wrapped, w, b)
    with pytest.raises(InvalidType, match=r"input is a list; it should be"):
        ours.conv2d([1.0], w)
    with pytest.raises(InvalidType, match="complex"):
        ours.conv2d(x.to(torch.complex128), w.to(torch.complex128))
    with pytest.raises(InvalidArgument, match="activation is 'mish'; it should be one of identity, relu"):
        ours.conv2d(x, w, activation="mish")
    with pytest.raises(InvalidArgument, match="variant is 'fast'"):
        ours.conv2d(x, w, variant="fast")
    with pytest.raises(InvalidType, match="weight has dtype float32, but it should be float64: input is float64"):
        ours.conv2d(x, w.float())
    with pytest.raises(InvalidArgument, match="weight is on device meta, but input is on cpu"):
        ours.conv2d(x, w.to("meta"))
    with pytest.raises(UnsupportedProblem):
        ours.conv2d(x, w, stride=2, variant="coalesced")


def test_the_direct_way_is_taken(monkeypatch):
    """Plain tensors do not go through the dispatcher, and a mode that looks at operators sees them."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Looking(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    seen = []
    (x, w, b), _ = tensors("plain")
    mine, _ = pair_of("plain")
    with Looking():
        mine(x, w, b).sum().backward()
    assert "convbackprop.forward.default" in seen
    assert "convbackprop.backward.default" in seen
    monkeypatch.setattr(functions.operators, "forward", None)
    mine(x, w, b)
