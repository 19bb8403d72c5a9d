"""convbackprop.torch.nn: the module, and a model's layers exchanged."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs torch, which is not installed: convbackprop.torch.nn")

from torch.nn import functional  # noqa: E402

from convbackprop.errors import InvalidArgument  # noqa: E402
from convbackprop.torch import nn  # noqa: E402


def close(got, want):
    return got.shape == want.shape and bool(((got - want).abs() <= 1e-12 * (1 + want.abs().max())).all())


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, (2, 1), "same", "valid"])
def test_like_torchs(padding, padding_mode):
    options = {"padding": padding, "padding_mode": padding_mode, "groups": 2, "dtype": torch.float64}
    theirs = torch.nn.Conv2d(4, 6, (3, 2), **options)
    mine = nn.Conv2d(4, 6, (3, 2), **options, activation="relu", variant="naive")
    mine.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(mine.state_dict())
    x = torch.randn(2, 4, 6, 7, dtype=torch.float64)
    y, want = mine(x), theirs(x).relu()
    assert close(y, want)
    dy = torch.randn_like(y)
    for got, expected in zip(
        torch.autograd.grad(y, tuple(mine.parameters()), dy),
        torch.autograd.grad(want, tuple(theirs.parameters()), dy),
        strict=True,
    ):
        assert close(got, expected)


def test_what_it_says():
    layer = nn.Conv2d(3, 4, 3, padding=1, activation="sigmoid", variant="naive", device="meta")
    assert repr(layer).endswith("padding=(1, 1), activation='logistic', variant='naive')")
    assert repr(nn.Conv2d(3, 4, 3, precision="tf32", device="meta")).endswith("stride=(1, 1), precision='tf32')")
    assert layer(torch.empty(2, 3, 5, 5, device="meta")).shape == (2, 4, 5, 5)
    with pytest.raises(InvalidArgument, match="activation is 'mish'; it should be one of identity"):
        nn.Conv2d(1, 1, 3, activation="mish")
    with pytest.raises(InvalidArgument, match="variant is 'fast'; it should be one of auto, untuned, naive"):
        nn.Conv2d(1, 1, 3, variant="fast")
    with pytest.raises(InvalidArgument, match="precision is 'half'; it should be one of ieee, tf32"):
        nn.Conv2d(1, 1, 3, precision="half")


# -- from_torch ------------------------------------------------------------------------------------------------------
class Block(torch.nn.Module):
    """A residual block as torchvision writes it: one ReLU module, called twice, and a function."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(4, 4, 3, padding=1)
        self.second = torch.nn.Conv2d(4, 4, 3, padding=1)
        self.third = torch.nn.Conv2d(4, 4, 1)
        self.twice = torch.nn.Conv2d(4, 4, 1)
        self.relu = torch.nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.second(self.relu(self.first(x)))
        z = torch.tanh(self.third(self.relu(x + y)))
        s = self.twice(z)
        return s + self.twice(functional.relu(s)).sigmoid()


def model():
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, stride=2),
        torch.nn.ReLU(),
        Block(),
        torch.nn.Conv2d(4, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(),
        torch.nn.Conv2d(4, 2, 1, bias=False),
        torch.nn.Sigmoid(),
        torch.nn.Flatten(),
    ).double()


FUSED_BY_SEQUENCE = {"0": "relu", "6": "logistic"}
FUSED_BY_TRACE = {**FUSED_BY_SEQUENCE, "2.first": "relu", "2.third": "tanh"}


@pytest.mark.parametrize("trace", [False, True])
def test_a_model(trace):
    theirs = model()
    before = repr(theirs)
    mine, report = nn.from_torch(theirs, trace=trace, variant="naive")
    assert repr(theirs) == before
    assert report.fused == (FUSED_BY_TRACE if trace else FUSED_BY_SEQUENCE)
    assert {*report.fused, *report.swapped} == {"0", "2.first", "2.second", "2.third", "2.twice", "3", "6"}
    assert not report.left
    assert mine.get_submodule("3").variant == "naive"
    x = torch.randn(2, 3, 13, 12, dtype=torch.float64)
    y, want = mine(x), theirs(x)
    assert close(y, want)
    got = torch.autograd.grad(y.sin().sum(), tuple(mine.parameters()))
    for mine_, theirs_ in zip(got, torch.autograd.grad(want.sin().sum(), tuple(theirs.parameters())), strict=True):
        assert close(mine_, theirs_)
    assert {id(p) for p in mine.parameters()} == {id(p) for p in theirs.parameters()}
    fresh = model()
    fresh.load_state_dict(mine.state_dict())
    mine.load_state_dict(fresh.state_dict())


def test_a_single_layer():
    mine, report = nn.from_torch(torch.nn.Conv2d(3, 4, 3).eval())
    assert type(mine) is nn.Conv2d
    assert not mine.training
    assert str(report) == "(the model)  swapped"


class Counting(torch.nn.Conv2d):
    """A layer of somebody's own."""


def test_what_is_left():
    shared, hooked = torch.nn.Conv2d(3, 3, 1), torch.nn.Conv2d(3, 3, 1)
    hooked.register_forward_hook(lambda *_: None)
    watched = torch.nn.ReLU()
    watched.register_forward_hook(lambda *_: None)
    theirs = torch.nn.Sequential(
        shared, torch.nn.ReLU(), shared, Counting(3, 3, 1), torch.nn.ReLU(), hooked, torch.nn.ReLU(),
        torch.nn.Conv2d(3, 3, 1), watched, torch.nn.Conv2d(3, 2, 1, dtype=torch.complex64),
    )  # fmt: skip
    mine, report = nn.from_torch(theirs)
    assert not report.fused
    assert report.swapped == ["0", "2", "7"]
    assert mine[0] is mine[2]
    assert set(report.left) == {"3", "5", "9"}
    assert str(report).splitlines() == [
        "0  swapped",
        "2  swapped",
        "3  left: it is a Counting, which may do more than torch.nn.Conv2d",
        "5  left: it has hooks",
        "7  swapped",
        "9  left: its dtype is complex64",
    ]
    assert str(nn.from_torch(torch.nn.ReLU())[1]) == "no convolution found"


class Applied(torch.nn.Module):
    """A layer, and what is called on its result."""

    def __init__(self, call):
        super().__init__()
        self.layer, self.call = torch.nn.Conv2d(3, 4, 3, dtype=torch.float64), call

    def forward(self, x):
        return self.call(self.layer(x))


#: What is put after a layer, and the activation that the layer then has, or None.
AFTER = [
    (torch.nn.ReLU(inplace=True), "relu"),
    (torch.nn.ReLU6(), "relu6"),
    (torch.nn.LeakyReLU(), "leaky_relu"),
    (torch.nn.LeakyReLU(0.2), "leaky_relu:0.2"),
    (torch.nn.LeakyReLU(-0.2), None),
    (torch.nn.Softplus(), "softplus"),
    (torch.nn.Softplus(beta=2), None),
    (torch.nn.SiLU(), "silu"),
    (torch.nn.GELU(), "gelu"),
    (torch.nn.GELU("tanh"), "gelu_tanh"),
    (torch.nn.Hardswish(), "hardswish"),
    (torch.nn.ELU(), None),
    (functional.relu, "relu"),
    (torch.sigmoid_, "logistic"),
    (lambda s: functional.relu6(s, inplace=True), "relu6"),
    (lambda s: functional.leaky_relu(s, 0.3, True), "leaky_relu:0.3"),
    (lambda s: functional.leaky_relu(s, negative_slope=1), "leaky_relu:1.0"),
    (lambda s: functional.leaky_relu_(s), "leaky_relu"),
    (lambda s: functional.leaky_relu(s, -1), None),
    (lambda s: functional.leaky_relu(s, s.shape[1]), None),
    (lambda s: functional.softplus(s, 1, 30), "softplus"),
    (lambda s: functional.softplus(s, 1, 3), None),
    (lambda s: functional.gelu(s, approximate="tanh"), "gelu_tanh"),
    (functional.silu, "silu"),
    (functional.hardswish, "hardswish"),
    (functional.elu, None),
    (lambda s: s.relu_(), "relu"),
    (lambda s: s.sigmoid(), "logistic"),
    (lambda s: s.tanh_(), "tanh"),
    (lambda s: s.square_(), None),
]  # fmt: skip


@pytest.mark.parametrize("trace", [False, True])
def test_a_transposed_layer(trace):
    theirs = torch.nn.Sequential(
        torch.nn.ConvTranspose2d(4, 6, (3, 2), 2, (1, 0), (1, 0), 2, False, (1, 2), dtype=torch.float64),
        torch.nn.GELU(),
        type("Mine", (torch.nn.ConvTranspose2d,), {})(6, 2, 1, dtype=torch.float64),
    )
    mine, report = nn.from_torch(theirs, trace=trace, variant="naive")
    assert str(report).splitlines() == [
        "0  swapped, with gelu",
        "2  left: it is a Mine, which may do more than torch.nn.ConvTranspose2d",
    ]
    assert type(mine.get_submodule("0")) is nn.ConvTranspose2d
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    assert close(mine(x), theirs(x))


@pytest.mark.parametrize("after, activation", AFTER)
def test_every_activation_is_fused(after, activation):
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    models = [(Applied(after), True)]
    if isinstance(after, torch.nn.Module):
        models.append((torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, dtype=torch.float64), after), False))
    for theirs, trace in models:
        mine, report = nn.from_torch(theirs, trace=trace, variant="naive")
        assert list(report.fused.values()) == ([activation] if activation else []), report
        assert len(report.swapped) == (activation is None)
        # torch's softplus is cut off at its threshold
        assert (mine(x) - theirs(x)).abs().max() < (1e-8 if activation == "softplus" else 1e-12)


def test_convolutions_of_other_kinds_are_named():
    """In the order of the model's modules, also where its forward has another one."""

    class Backwards(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.volume = torch.nn.Conv3d(1, 1, 1)
            self.line = torch.nn.Conv1d(1, 1, 1)
            self.up = torch.nn.ConvTranspose2d(1, 1, 1)
            self.image = torch.nn.Conv2d(1, 1, 1)
            self.idle = torch.nn.Conv2d(1, 1, 1)

        def forward(self, x):
            image = self.up(self.image(x))
            return self.volume(self.line(image[:, :, 0])[:, :, None, None])

    for trace in (False, True):
        mine, report = nn.from_torch(Backwards(), trace=trace)
        assert mine(torch.randn(1, 1, 2, 2)).shape == (1, 1, 1, 1, 2)
        assert str(report).splitlines() == [
            "volume  left: it is a Conv3d, and the kernels convolve images of two axes, not 3",
            "line    left: it is a Conv1d, and the kernels convolve images of two axes, not 1",
            "up      swapped",
            "image   swapped",
            f"idle    {'left: the traced model calls no module of this name' if trace else 'swapped'}",
        ]


def test_parametrizations_are_left():
    theirs = torch.nn.Sequential(torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv2d(2, 2, 3)), torch.nn.ReLU())
    _, report = nn.from_torch(theirs)
    assert list(report.left) == ["0"]
    assert isinstance(theirs[1], torch.nn.ReLU)
