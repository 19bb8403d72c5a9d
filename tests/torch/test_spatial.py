"""Images split by rows among ranks, against the layer unsplit: small integers, so that every sum is exact."""

from __future__ import annotations

import copy
import datetime
import itertools
import json
import random
import re
import runpy
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs torch, which is not installed: layers split among processes")

import torch.distributed as dist  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

from convbackprop import InvalidArgument, InvalidType, RankMissing  # noqa: E402
from convbackprop.torch import conv2d, halo, nn, spatial  # noqa: E402
from convbackprop.torch.rows import RowSplit  # noqa: E402


# -- which rank computes which rows ----------------------------------------------------------------------------------
def geometries(count):
    source = random.Random(0)
    for _ in range(count):
        heights = tuple(source.randint(1, 14) for _ in range(source.randint(2, 4)))
        yield {
            "heights": heights,
            "filter_height": source.randint(1, 7),
            "stride": source.randint(1, 3),
            "dilation": source.randint(1, 3),
            "padding": (source.randint(0, 8), source.randint(0, 8)),
        }


def test_rows_are_split_as_the_rule_says():
    split = 0
    for geometry in geometries(3000):
        heights, stride, (top, bottom) = geometry["heights"], geometry["stride"], geometry["padding"]
        reach = geometry["dilation"] * (geometry["filter_height"] - 1)
        try:
            rows = RowSplit(**geometry)
        except InvalidArgument as refusal:
            least = re.search(r"at least (\d+)", str(refusal))
            assert least is None or min(heights) < int(least[1]), geometry
            continue
        split += 1
        holder = [rank for rank, height in enumerate(heights) for _ in range(height)]
        outputs = range((sum(heights) + top + bottom - reach - 1) // stride + 1)
        middles = [min(max(p * stride - top + reach // 2, 0), sum(heights) - 1) for p in outputs]
        owners = [rank for rank, height in enumerate(rows.output_heights) for _ in range(height)]
        assert owners == [holder[middle] for middle in middles], geometry
        for rank in range(len(heights)):
            first, end = rows.bounds[rank : rank + 2]
            above, below = rows.halo(rank)
            assert above <= reach // 2 and below <= reach - reach // 2
            reads = [(True, False), (False, False), (False, True)]
            pieces = rows.pieces(rank)
            if pieces[1] is None:
                reads[0] = (True, True)
            computed = []
            for piece, (reads_above, reads_below) in zip(pieces, reads, strict=True):
                if piece:
                    computed += range(piece.first, piece.end)
                    assert first - above * reads_above <= piece.low < piece.high <= end + below * reads_below
            assert computed == [p for p in outputs if owners[p] == rank], geometry
    assert split > 1500


def test_same_padding_keeps_the_rows():
    assert RowSplit((5, 9, 4), 7, 1, 1, (3, 3)).output_heights == (5, 9, 4)
    assert RowSplit((5, 9, 4), 4, 1, 1, (1, 2)).output_heights == (5, 9, 4)  # as torch pads an even filter


@pytest.mark.parametrize(
    ("geometry", "sentence"),
    [
        (((6, 2, 6), 7, 1, 1, (3, 3)), r"rank 0 reads 3 rows below its own, but rank 1 has 2; .* at least 3 .*6, 2, 6"),
        (((8, 5, 9), 7, 1, 2, (6, 6)), r"rank 0 reads 6 rows below its own, but rank 1 has 5; .* at least 6"),
        (((5, 1, 6), 3, 3, 1, (1, 1)), r"rank 1 has 1 .* middle of no output row; .* at least 3"),
        (((2, 9), 5, 1, 1, (0, 0)), r"rank 0 has 2 .* middle of no output row; .* at least 3"),
        (((2, 2), 7, 1, 1, (0, 0)), r"4 rows on all ranks together .* spans 7"),
    ],
)
def test_too_few_rows_are_refused(geometry, sentence):
    with pytest.raises(InvalidArgument, match=sentence):
        RowSplit(*geometry)


# -- the same numbers as unsplit -------------------------------------------------------------------------------------
#: heights of four ranks (two take the first two), filter, stride, padding, dilation, activation; and the reason.
CASES = {
    "as one expects": ((6, 5, 7, 4), (3, 3), 1, "same", 1, "relu"),
    "7 rows, the least that a rank may have": ((3, 3, 4, 3), (7, 3), 1, "same", 1, "identity"),
    "an even filter: the last rank lends only": ((4, 6, 5, 4), (2, 2), 1, "same", 1, "relu"),
    "dilated, more rows below than above": ((9, 7, 8, 9), (4, 2), 1, "same", (3, 1), "identity"),
    "no padding": ((7, 9, 5, 8), (5, 3), 1, 0, 1, "relu"),
    "a stride, odd heights": ((7, 5, 9, 6), (3, 3), 2, 1, 1, "relu"),
    "a stride, rows that nobody reads": ((9, 8, 7, 9), (2, 1), (4, 1), 0, 1, "identity"),
    "padding on one side, wider than the filter": ((6, 8, 5, 7), (3, 3), 1, ((6, 0), (0, 1)), 1, "relu"),
    "no halo": ((3, 2, 4, 1), (1, 1), 1, 0, 1, "identity"),
}


def integers(seed, *shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 3, shape, generator=generator).to(dtype)


def own_rows(whole, own):
    """Return this rank's part of something that lies as `own` does on all ranks."""
    heights = [None] * dist.get_world_size()
    dist.all_gather_object(heights, own.shape[-2])
    return spatial.split_rows(whole, heights=heights)


def gathered(rows):
    return spatial.gather_rows(rows.detach())


def agrees(heights, taps, stride, padding, dilation, activation, twice=True):
    """Return which of a layer's results are the unsplit layer's, gradients and gradients of gradients among them."""
    heights = heights[: dist.get_world_size()]
    x, w, b = integers(1, 2, 3, sum(heights), 8), integers(2, 4, 3, *taps), integers(3, 4)
    options = {"activation": activation, "variant": "naive"}
    geometry = (stride, padding, dilation)

    def derivatives(layer, x, dy, of_rows):
        inputs = [tensor.clone().requires_grad_() for tensor in (x, w, b)]
        y = layer(*inputs, *geometry, **options)
        dy = dy(y).requires_grad_()
        first = torch.autograd.grad(y, inputs, dy, create_graph=twice)
        if not twice:
            return y, first, ()
        penalty = (first[0] * of_rows(integers(5, 2, 3, sum(heights), 8))).sum()
        once = layer is conv2d or dist.get_rank() == 0  # what all ranks have counts once
        penalty = penalty + once * ((first[1] * integers(6, *w.shape)).sum() + (first[2] ** 2).sum())
        return y, first, torch.autograd.grad(penalty, (*inputs[:2], dy))

    whole_dy = None

    def make_dy(y):
        nonlocal whole_dy
        whole_dy = integers(4, *y.shape)
        return whole_dy.clone()

    y, (dx, dw, db), second = derivatives(conv2d, x, make_dy, lambda whole: whole)
    mine = spatial.split_rows(x, heights=heights)
    y_i, (dx_i, dw_i, db_i), second_i = derivatives(
        spatial.conv2d, mine, lambda y: own_rows(whole_dy, y), lambda whole: spatial.split_rows(whole, heights=heights)
    )
    pairs = {"y": (gathered(y_i), y), "dx": (gathered(dx_i), dx), "dw": (dw_i, dw), "db": (db_i, db)}
    if twice:
        pairs["x of gradients"] = gathered(second_i[0]), second[0]
        pairs["w of gradients"] = second_i[1], second[1]
        pairs["dy of gradients"] = gathered(second_i[2]), second[2]
    return {name: torch.equal(ours, whole) and bool(whole.any()) for name, (ours, whole) in pairs.items()}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_two_ranks_agree_with_one(two, case):
    for results in two.run(agrees, *case):
        assert all(results.values()), results


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_four_ranks_agree_with_one(four, case):
    for results in four.run(agrees, *case):
        assert all(results.values()), results


@pytest.mark.slow
def test_many_geometries_agree(four):
    for geometry in list(geometries(150))[::3]:
        if len(geometry["heights"]) < 4:
            continue
        try:
            RowSplit(**geometry)
        except InvalidArgument:
            continue
        padding = (geometry["padding"], (1, 0))
        case = (geometry["heights"], (geometry["filter_height"], 2), geometry["stride"], padding, geometry["dilation"])
        for results in four.run(agrees, *case, "relu"):
            assert all(results.values()), (geometry, results)


def wrong(mutation, *case):
    """Return what `agrees` says of an exchange that is wrong in one way."""
    edges, adjoint, add = halo._edges, halo._LendAdjoint.forward, halo._Sum.forward
    try:
        if mutation == "rows off by one":
            halo._edges = lambda image, top, bottom: edges(torch.roll(image, 1, -2), top, bottom)
        elif mutation == "no adjoint":

            def without(ctx, exchange, image, *strips):  # fmt: skip
                return adjoint(ctx, exchange, image, *strips) * 0 + image

            halo._LendAdjoint.forward = staticmethod(without)  # fmt: skip
        elif mutation == "gradients of this rank alone":
            halo._Sum.forward = staticmethod(lambda ctx, group, *tensors: setattr(ctx, "group", group) or tensors)
        return agrees(*case, twice=False)
    finally:
        halo._edges = edges
        halo._LendAdjoint.forward, halo._Sum.forward = staticmethod(adjoint), staticmethod(add)


@pytest.mark.parametrize(
    ("mutation", "shows_in"),
    [
        ("nothing", set()),
        ("rows off by one", {"y", "dx", "dw", "db"}),
        ("no adjoint", {"dx"}),
        ("gradients of this rank alone", {"dw", "db"}),
    ],
)
def test_a_wrong_exchange_is_seen(two, mutation, shows_in):
    for results in two.run(wrong, mutation, *CASES["as one expects"]):
        assert {name for name, right in results.items() if not right} == shows_in


# -- layers ----------------------------------------------------------------------------------------------------------
def trained(ranks, **options):
    """Return whether a stack of layers learns as the stack on one process, and what else is asked of a module."""
    torch.manual_seed(dist.get_rank())  # the parameters are the first rank's
    layer = {"variant": "naive", "dtype": torch.float64}

    def stack(kind, **more):
        return torch.nn.Sequential(
            kind(2, 4, 3, padding=1, activation="relu", **layer, **more),
            kind(4, 4, 5, padding="same", dilation=2, bias=False, **layer, **more),
            torch.nn.ReLU(),
            kind(4, 3, 3, stride=2, padding=1, **layer, **more),
        )

    model = stack(spatial.SpatialConv2d, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((3 * parameter).round())
    whole = stack(nn.Conv2d)
    whole.load_state_dict(model.state_dict())
    same = []
    for step in range(2):
        x = integers(step, 2, 2, 21 * ranks + 1 + step, 10)  # another height, and not the same rows on each rank
        mine = spatial.split_rows(x).requires_grad_()
        x.requires_grad_()
        for net, image in ((whole, x), (model, mine)):
            net.zero_grad()
            torch.square(net(image)).sum().backward()
        same += [torch.equal(gathered(mine.grad), x.grad)]
        same += [
            torch.equal(ours.grad, its.grad) for ours, its in zip(model.parameters(), whole.parameters(), strict=True)
        ]
        with torch.no_grad():
            for parameter in (*model.parameters(), *whole.parameters()):
                parameter.copy_((parameter - parameter.grad.sign()).clamp(-3, 3))
    copied = copy.deepcopy(model)
    same.append(torch.equal(copied(mine), model(mine)))
    return same, repr(model[0])


def test_a_stack_of_layers_learns_as_on_one_process(two):
    for same, text in two.run(trained, 2):
        assert all(same)
        assert text.startswith("SpatialConv2d(2, 4, kernel_size=(3, 3)")


@pytest.mark.slow
def test_a_stack_of_layers_on_four_ranks(four):
    for same, _ in four.run(trained, 4):
        assert all(same)


def checkpointed_and_autocast():
    """Return whether recomputed layers give the same gradients, and what an autocast layer returns."""
    from torch.utils.checkpoint import checkpoint

    layer = spatial.SpatialConv2d(2, 2, 3, padding=1, activation="relu", variant="naive", dtype=torch.float64)
    x = spatial.split_rows(integers(7, 1, 2, 12, 6))
    torch.square(layer(layer(x))).sum().backward()
    plain = layer.weight.grad.clone()
    layer.zero_grad()
    torch.square(
        checkpoint(lambda image: layer(layer(image)), x.requires_grad_(), use_reentrant=False)
    ).sum().backward()
    half = spatial.SpatialConv2d(2, 2, 3, padding=1, variant="naive")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = half(x.detach().float())
    y.float().sum().backward()
    return torch.equal(plain, layer.weight.grad), y.dtype, half.weight.grad.dtype


def test_checkpointing_and_autocast(two):
    for same, dtype, of_gradient in two.run(checkpointed_and_autocast):
        assert same and dtype == torch.bfloat16 and of_gradient == torch.float32


def two_dimensions():
    """Return the gradient of images split among two ranks, two of them at a time, and that of all on one process."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    columns = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    rank = dist.get_rank()
    layer = spatial.SpatialConv2d(2, 3, 3, padding=1, group=groups[rank // 2], variant="naive", dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(integers(8, *layer.weight.shape))
    model = DistributedDataParallel(layer, process_group=columns[rank % 2])
    images = integers(9, 2, 2, 11, 7)
    torch.square(model(spatial.split_rows(images[rank // 2 :][:1], groups[rank // 2]))).sum().backward()
    weight = integers(8, *layer.weight.shape).requires_grad_()
    torch.square(conv2d(images, weight, layer.bias.detach(), 1, 1, variant="naive")).sum().backward()
    return (2 * layer.weight.grad - weight.grad).abs().max().item(), weight.grad.abs().max().item()


@pytest.mark.slow
def test_spatial_and_data_parallel(four):
    for difference, size in four.run(two_dimensions):
        assert difference <= 1e-13 * size  # the bias is no integer; DDP averages


# -- the exchange and the computation at the same time ---------------------------------------------------------------
def traced(path):
    """Return the profiler's events of a step, (name, start, end), as the Chrome trace has them."""
    from torch.profiler import ProfilerActivity, profile

    layer = spatial.SpatialConv2d(3, 3, 3, padding=1, variant="naive", dtype=torch.float64)
    x = spatial.split_rows(integers(1, 1, 3, 64, 32)).requires_grad_()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        layer(x).sum().backward()
    profiler.export_chrome_trace(f"{path}/{dist.get_rank()}.json")


def test_interior_rows_are_computed_during_the_exchange(two, tmp_path):
    two.run(traced, str(tmp_path))
    for rank in range(2):
        events = json.loads((tmp_path / f"{rank}.json").read_text())["traceEvents"]
        spans = sorted((e["ts"], e["ts"] + e["dur"], e["name"]) for e in events if e.get("ph") == "X")
        starts = [end for _, end, name in spans if name == "spatial: exchange starts"]
        waits = [begin for begin, _, name in spans if name == "spatial: exchange is waited for"]
        assert len(starts) == len(waits) == 2  # forward and backward
        for start, wait, operator in zip(starts, waits, ("forward", "backward"), strict=True):
            between = [name for begin, end, name in spans if start <= begin and end <= wait]
            assert f"convbackprop::{operator}" in between


# -- refusals: on all ranks, before any exchange ---------------------------------------------------------------------
def refusal(call):
    try:
        call()
    except Exception as error:
        return type(error), str(error)
    return None, "nothing was raised"


def refused(what):
    """Return what this rank raises."""
    odd = dist.get_rank() == 1
    shape, options, w = [2, 3, 8, 6], {"padding": 1, "variant": "naive"}, integers(2, 4, 3, 3, 3)
    x_dtype, needs = torch.float64, False
    if what == "channels of weight":
        w = integers(2, 4, 2 if odd else 3, 3, 3)
    elif what == "filters":
        w = integers(2, 5 if odd else 4, 3, 3, 3)
    elif what == "width":
        shape[3] += odd
    elif what == "batch":
        shape[0] += odd
    elif what == "axes":
        shape = shape[1:] if odd else shape
    elif what == "dtype of both":
        x_dtype = torch.float32 if odd else torch.float64
        w = w.to(x_dtype)
    elif what == "dtype of input":
        x_dtype = torch.float32 if odd else torch.float64
    elif what == "padding":
        options["padding"] = 2 if odd else 1
    elif what == "gradient":
        needs = odd
    elif what == "rows":
        shape[2], w, options["padding"] = 2 if odd else 8, integers(2, 4, 3, 7, 1), 0
    elif what == "no argument":
        shape = [8]
    elif what == "variant":
        options["variant"] = "quick" if odd else "naive"
    x = integers(1, *shape, dtype=x_dtype).requires_grad_(needs)
    found = refusal(lambda: spatial.conv2d(x, w, **options))
    rest = spatial.conv2d(integers(1, 1, 3, 8, 6), integers(2, 4, 3, 3, 3), padding=1, variant="naive")  # goes on
    return *found, rest.shape


@pytest.mark.parametrize(
    ("what", "sentences"),
    [
        (
            "channels of weight",
            (r"rank 1: weight has shape \(4, 2, 3, 3\)", r"^weight has shape \(4, 2, 3, 3\).*has 3"),
        ),
        ("filters", [r"weight's shape is \(4, 3, 3, 3\) on rank 0 and \(5, 3, 3, 3\) on rank 1"] * 2),
        ("width", [r"input's shape is \(2, 3, \*, 6\) on rank 0 and \(2, 3, \*, 7\) on rank 1"] * 2),
        ("batch", [r"\(2, 3, \*, 6\) on rank 0 and \(3, 3, \*, 6\) on rank 1"] * 2),
        ("axes", [r"\(2, 3, \*, 6\) on rank 0 and \(3, \*, 6\) on rank 1"] * 2),
        ("dtype of both", [r"input's dtype is float64 on rank 0 and float32 on rank 1"] * 2),
        (
            "dtype of input",
            ("rank 1: weight has dtype torch.float64", "should be torch.float32: input is torch.float32"),
        ),
        ("padding", [r"padding is \(\(1, 1\), \(1, 1\)\) on rank 0 and \(\(2, 2\), \(2, 2\)\) on rank 1"] * 2),
        ("gradient", ["what needs a gradient is nothing on rank 0 and input on rank 1"] * 2),
        ("rows", [r"rank 1 has 2 of the image's rows, .* no output row; each rank should have at least 4 .*8, 2"] * 2),
        ("no argument", [r"input has shape \(8,\)"] * 2),
        ("variant", ("rank 1: variant is 'quick'", "variant is 'quick'; it should be one of auto, untuned, naive")),
    ],
)
def test_refused_on_all_ranks(two, what, sentences):
    for (kind, text, rest), sentence in zip(two.run(refused, what), sentences, strict=True):
        assert kind in (InvalidArgument, InvalidType) and re.search(sentence, text), text
        assert rest == (1, 4, 8, 6)


def thin():
    x, w = integers(1, 1, 3, 2 if dist.get_rank() == 1 else 6, 5), integers(2, 4, 3, 7, 1)
    return refusal(lambda: spatial.conv2d(x, w, padding=(3, 0), variant="naive"))


@pytest.mark.slow
def test_a_halo_larger_than_a_rank_is_refused(four):
    sentence = "rank 0 reads 3 rows below its own, but rank 1 has 2; each rank should have at least 3"
    for kind, text in four.run(thin):
        assert kind is InvalidArgument and sentence in text, text


def asked(check):
    """Return how often ranks asked for shapes in four calls, two of which one rank has seen the shape of before."""
    count = 0
    all_gather = dist.all_gather

    def counted(*arguments):
        nonlocal count
        count += 1
        return all_gather(*arguments)

    w = integers(2, 2, 1, 3, 3)
    halo._heights_of.clear()
    dist.all_gather, same = counted, []
    try:
        for heights in ((10, 10), (10, 10)) if check == "once" else ((10, 10), (10, 11), (10, 10), (10, 11)):
            x = integers(1, 1, 1, sum(heights), 5)
            mine = spatial.split_rows(x, heights=heights)
            y = spatial.conv2d(mine, w, padding=1, check=check, variant="naive")
            same.append(torch.equal(y, spatial.split_rows(conv2d(x, w, None, 1, 1, variant="naive"), heights=heights)))
    finally:
        dist.all_gather = all_gather
    return count, all(same)


def test_a_rank_that_has_seen_its_shape_before_asks_nevertheless(two):
    assert two.run(asked, "always") == [(4, True)] * 2
    assert two.run(asked, "once") == [(1, True)] * 2


def channels_last(taps):
    """Return which tensors are channels_last if the image is, and whether they agree with the unsplit layer's."""
    x, w = (
        integers(1, 2, 3, 12, 8).to(memory_format=torch.channels_last),
        integers(2, 4, 3, taps, taps).requires_grad_(),
    )
    rows = spatial.split_rows(x).requires_grad_()
    y = spatial.conv2d(rows, w, padding=taps // 2, activation="relu", variant="naive")
    dx, dw = torch.autograd.grad(y, (rows, w), torch.ones_like(y))
    made = {"rows": rows, "y": y, "dx": dx, "dw": dw, "whole": gathered(y)}
    right = torch.equal(made["whole"], conv2d(x, w, None, 1, taps // 2, activation="relu", variant="naive"))
    return {name for name, t in made.items() if t.is_contiguous(memory_format=torch.channels_last)}, right


@pytest.mark.parametrize("taps", [1, 3])
def test_channels_last(two, taps):
    assert two.run(channels_last, taps) == [({"rows", "y", "dx", "dw", "whole"}, True)] * 2


def left_alone(where):
    """Return what rank 0 raises when rank 1 does not come, and the group's time-out in milliseconds.

    That is a second, or more where a machine is so slow, or so busy, that it passes while both ranks are there.
    """
    x = integers(1, 1, 1, 6, 5).requires_grad_(where == "backward")
    w = integers(2, 1, 1, 3, 3)
    for seconds in (4**n for n in itertools.count()):
        failed, here = False, [False] * 2
        try:
            group = dist.new_group(timeout=datetime.timedelta(seconds=seconds))
            y = spatial.conv2d(x, w, padding=1, group=group, variant="naive")
        except Exception:
            failed = True
        dist.all_gather_object(here, not failed)
        if all(here):
            break
    found = None, ""
    if dist.get_rank() == 0:
        if where == "backward":
            found = refusal(lambda: y.sum().backward())
        else:
            found = refusal(lambda: spatial.conv2d(x, w, padding=1, group=group, variant="naive"))
    dist.barrier()
    return *found, 1000 * seconds


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ("forward", "rank 0 of 2 waited for the shapes of all ranks' images in vain: .*Timed out waiting {}ms"),
        ("backward", "rank 0 of 2 waited for rows of rank 1 in vain: .*Timed out waiting {}ms"),
    ],
)
def test_a_missing_rank_is_no_hang(two, where, sentence):
    (kind, text, milliseconds), _ = two.run(left_alone, where)
    assert kind is RankMissing and re.search(sentence.format(milliseconds), text, re.DOTALL), text


def helpers():
    x = integers(1, 2, 7, 3)
    return [
        [tuple(spatial.split_rows(x).shape), torch.equal(spatial.gather_rows(spatial.split_rows(x)), x)],
        refusal(lambda: spatial.split_rows(x, heights=(3, 3))),
        refusal(lambda: spatial.split_rows(x, heights=(3, 3, 1))),
        refusal(lambda: spatial.split_rows(x[:, :1])),
        refusal(lambda: spatial.gather_rows(integers(1, 4, 4, 5 + dist.get_rank()))),
        refusal(lambda: spatial.gather_rows(integers(1, 4, 4).requires_grad_(dist.get_rank() == 0))),
        refusal(lambda: spatial.SpatialConv2d(1, 1, 3, padding=1, padding_mode="circular")),
        refusal(lambda: spatial.SpatialConv2d(1, 1, 3, check="never")),
    ]


def test_split_and_gather(two):
    sentences = (
        "add up to the image's 7 rows, and they add up to 6", "heights has 3 numbers; it should have 2",
        "the image has 1 rows; it should have 2 at least", r"\(4, \*, 5\) on rank 0 and \(4, \*, 6\) on rank 1",
        "rows need a gradient", "padding_mode is 'circular'", "check is 'never'; it should be one of always, once",
    )  # fmt: skip
    for rank, (shape_and_same, *refusals) in enumerate(two.run(helpers)):
        assert shape_and_same == [(2, 4 - rank, 3), True]
        for (kind, text), sentence in zip(refusals, sentences, strict=True):
            assert kind is InvalidArgument and re.search(sentence, text), text


def test_the_prediction_for_64_gpus():
    script = Path(__file__).parents[2] / "examples" / "spatial_scaling.py"
    if not script.exists():
        pytest.skip("the tests run outside a checkout")
    found = runpy.run_path(str(script))["predict"](64)
    assert found.operations == 3 * 2 * 256 * 16384 * 64 * 64 * 3 * 3  # forward, and backward twice
    assert found.exchanged == 2 * 2 * 64 * 16384 * 2  # both ways, one row above and one below, in fp16
    assert found.step == pytest.approx(found.operations / 989e12 + 2 * 6 * 10e-6 + 2 * 64 * 64 * 9 * 4 / 50e9)


def test_without_a_group():
    from convbackprop import DeviceUnusable

    for call in (lambda: spatial.split_rows(torch.ones(4, 4)), lambda: spatial.SpatialConv2d(1, 1, 3)):
        with pytest.raises(DeviceUnusable, match="init_process_group"):
            call()
