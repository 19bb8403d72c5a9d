"""An image too large for one device, split by rows among the processes of a torch.distributed group.

Each rank holds some rows of the image and computes some rows of the output; `rows` tells which. What a rank's rows lack
at their edges, the halo, comes from the ranks above and below while the rows that need none of it are computed. The
result is the unsplit layer's, and so are the gradients: of the image on the rank that holds the row, of the filters and
the bias on all ranks, summed over them. The loss is taken to be the sum of what each rank computes from its rows, and
every rank takes part in backward, one whose rows do not count with a loss of zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import record_function

from convbackprop.activations import activation_name
from convbackprop.arguments import integer, known, pair, resolve_padding
from convbackprop.errors import InvalidArgument, InvalidType
from convbackprop.ladder.registry import choose
from convbackprop.launch.given import problem_of
from convbackprop.torch import functional, halo, nn, operators
from convbackprop.torch.formats import formatted, is_channels_last
from convbackprop.torch.options import precision_of
from convbackprop.torch.rows import Piece, RowSplit, check_heights, even_heights, row_split

__all__ = ["RowSplit", "SpatialConv2d", "conv2d", "gather_rows", "split_rows"]

Tensor = torch.Tensor
Group = Any

_ROWS = -2


@torch.compiler.disable  # type: ignore[untyped-decorator]
def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    group: Group | None = None,
    check: str = "always",
    activation: str = "identity",
    variant: str = "auto",
    precision: str | None = None,
) -> Tensor:
    """Compute this rank's rows of a convolutional layer's output, differentiably to any order.

    All ranks of the group call this together, and compute backward together.

    Parameters
    ----------
    input : Tensor, shape (N, C, H_i, W), (C, H_i, W) or (H_i, W)
        This rank's rows; rank 0 has the uppermost ones. Heights may differ, all else is the same on all ranks.
    weight : Tensor, shape (K, C/groups, R, S) or (R, S)
        The filters, the same on all ranks.
    bias : Tensor, shape (K,), optional
        The same on all ranks.
    stride, padding, dilation, groups, activation, variant, precision
        As in `convbackprop.torch.conv2d`. Rows of padding are put above and below the whole image only.
    group : torch.distributed.ProcessGroup, optional
        The ranks, from the image's top to its bottom; the default group unless given.
    check : str
        "always": in each call the ranks see that their images fit together, which costs an all-gather of 16 bytes a
        rank. On a group without a backend for CPU tensors the host waits for the GPU each time: initialise with
        "cpu:gloo,cuda:nccl". "once": only where this rank meets a shape for the first time. Then shapes should change
        on all ranks together, or never; where they do not, ranks wait for each other until the group's time-out.

    Returns
    -------
    y : Tensor, shape (N, K, P_i, Q), or without the axes that input lacks
        The output rows whose middle input row this rank holds: `RowSplit.output_bounds`.

    Raises
    ------
    InvalidArgument, InvalidType, UnsupportedProblem
        On all ranks, before any row is exchanged: arguments that are wrong on one of them or differ among them, a halo
        larger than a neighbour's rows, a rank that would compute nothing.
    RankMissing
        A rank has not answered within the group's time-out, or its process has ended.
    DeviceUnusable
        torch.distributed has not been initialised.
    """
    group = halo.process_group(group)
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    once = known(check, ("always", "once"), "check") == "once"
    failure: Exception | None = None
    facts, height = {}, 0
    try:
        facts = _facts(input, weight, bias, stride, padding, dilation, groups, activation, variant, precision)
        strides, dilations = pair(stride, "stride", 1), pair(dilation, "dilation", 1)
        above_below, left_right = resolve_padding(padding, (weight.shape[-2], weight.shape[-1]), strides, dilations)
        height = input.shape[_ROWS]
        along_rows = (weight.shape[-2], strides[0], dilations[0], above_below)
    except Exception as error:  # the other ranks are told, before it is raised
        failure = error
    heights = halo.agree(group, facts, height, failure, once)
    options = {"activation": activation, "variant": variant, "precision": precision}
    if is_channels_last(input) or is_channels_last(weight):
        input, weight = _ChannelsLastGradient.apply(input), _ChannelsLastGradient.apply(weight)
    weight, bias = halo.shared(group, weight, bias)  # type: ignore[assignment]
    if ranks == 1:
        return functional.conv2d(input, weight, bias, stride, padding, dilation, groups, **options)  # type: ignore[arg-type]
    if torch.is_autocast_enabled(input.device.type) and input.dtype == torch.float32:
        input = input.to(torch.get_autocast_dtype(input.device.type))  # before the exchange: half as many bytes

    split = row_split(heights, *along_rows)
    borrowed, lent = split.halo(rank), split.lent(rank)

    def compute(piece: Piece, *strips: Tensor) -> Tensor:
        around = ((piece.above, piece.below), left_right)
        window = strips[0] if len(strips) == 1 else torch.cat(strips, _ROWS)
        return functional.conv2d(window, weight, bias, strides, around, dilations, groups, **options)  # type: ignore[arg-type]

    top, inner, bottom = split.pieces(rank)
    first, end = split.bounds[rank : rank + 2]
    if not any(borrowed + lent) and inner:
        return compute(inner, _rows(input, inner.low - first, inner.high - first))
    head = top.high - first if top and inner else 0
    tail = end - bottom.low if bottom else 0
    exchange = halo.Exchange(group, lent, borrowed, head, tail)
    image, head_rows, tail_rows, *lent_rows = halo.lend(input, exchange)
    if not any(borrowed) and inner:  # an even filter, or a stride: nothing arrives, and the rows are soon sent
        image = halo.tied(image, *halo.borrow(exchange, *lent_rows))
        return compute(inner, _rows(image, inner.low - first, inner.high - first))
    outputs: list[Tensor | None] = [None, None, None]
    if inner:
        with record_function("spatial: interior rows"):
            outputs[1] = compute(inner, _rows(image, inner.low - first, inner.high - first))
    above, below = halo.borrow(exchange, *lent_rows)
    with record_function("spatial: border rows"):
        if top and inner:
            outputs[0] = compute(top, above, head_rows)
        elif top:
            used = _rows(image, max(top.low - first, 0), min(top.high, end) - first)
            outputs[0] = compute(top, *(strip for strip in (above, used, below) if strip.shape[_ROWS]))
        if bottom:
            outputs[2] = compute(bottom, tail_rows, below)
    made = [output for output in outputs if output is not None]
    return formatted(made[0] if len(made) == 1 else torch.cat(made, _ROWS), input, weight)


class _ChannelsLastGradient(torch.autograd.Function):
    """A tensor as it is, with a gradient in the format channels_last, as PyTorch's own layers have it."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        return cotangent.clone(memory_format=torch.channels_last) if cotangent.ndim == 4 else cotangent


def _rows(image: Tensor, first: int, end: int) -> Tensor:
    return image if (first, end) == (0, image.shape[_ROWS]) else image.narrow(_ROWS, first, end - first)


def _facts(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int,
    activation: str, variant: str, precision: str | None,
) -> dict[str, str]:  # fmt: skip
    """Return what should be the same on all ranks, by name, after a look at this rank's arguments."""
    given = {"input": input, "weight": weight, "bias": bias}
    for name, tensor in given.items():
        if tensor is not None or name != "bias":
            functional.check_tensor(tensor, name)
    if input.ndim < 2:
        raise InvalidArgument(f"input has shape {tuple(input.shape)}; it should be (N, C, H, W), (C, H, W) or (H, W)")
    if not torch.is_autocast_enabled(input.device.type):
        operators._check_alike(**given)
    *outer, height, width = input.shape
    # With as many rows as make one of the output at least; how many there are is looked at when all ranks' are known.
    reach = pair(dilation, "dilation", 1)[0] * (weight.shape[-2] if weight.ndim > 1 else 1)
    dtype = str(input.dtype).removeprefix("torch.")
    shapes = (*outer, max(height, 1) + reach, width), "input", tuple(weight.shape), "weight"
    problem = problem_of(*shapes, stride, padding, dilation, groups, activation, dtype, precision_of(precision, input))
    choose("forward", variant, problem, input.device.type)
    if bias is not None and tuple(bias.shape) != (problem.K,):
        raise InvalidArgument(f"bias has shape {tuple(bias.shape)}; it should be {(problem.K,)}, one an output channel")
    differentiated = [name for name, tensor in given.items() if tensor is not None and tensor.requires_grad]
    return {
        "input's shape": f"({', '.join(map(str, (*outer, '*', width)))})",
        "input's dtype": dtype,
        "input's device": input.device.type,
        "weight's shape": str(tuple(weight.shape)),
        "bias": "given" if bias is not None else "None",
        "stride": str(problem.stride),
        "padding": str(problem.padding),
        "dilation": str(problem.dilation),
        "groups": str(integer(groups, "groups", 1)),
        "activation": activation_name(activation),
        "precision": problem.precision,
        "what needs a gradient": ", ".join(differentiated if torch.is_grad_enabled() else ()) or "nothing",
    }


class SpatialConv2d(nn.Conv2d):
    """A convolutional layer of images that are split by rows among ranks.

    Its parameters are those that the group's first rank draws, and the gradients of all ranks' parameters are the
    unsplit layer's: summed over ranks. So an optimizer's step keeps them equal, and DistributedDataParallel is for a
    second dimension of processes only, across which there are other images.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, device, dtype, activation, variant,
    precision
        As in `convbackprop.torch.nn.Conv2d`; padding_mode can only be "zeros".
    group, check
        As in `conv2d`. A layer is made by all ranks of the group together.

    Raises
    ------
    InvalidArgument
        padding_mode is another one.
    DeviceUnusable
        torch.distributed has not been initialised.
    """

    def __init__(self, *arguments: Any, group: Group | None = None, check: str = "always", **options: Any) -> None:
        self._group = _NotCopied(group)
        self.check = known(check, ("always", "once"), "check")
        halo.process_group(group)
        super().__init__(*arguments, **options)
        if self.padding_mode != "zeros":
            raise InvalidArgument(f"padding_mode is {self.padding_mode!r}; an image split among ranks has 'zeros' only")

    @property
    def group(self) -> Group:
        """The ranks, from the image's top to its bottom."""
        return halo.process_group(self._group.group)

    def reset_parameters(self) -> None:
        """Draw the parameters on the group's first rank, and give them to all."""
        super().reset_parameters()
        for parameter in (self.weight, self.bias):
            if parameter is not None and parameter.device.type != "meta":
                with torch.no_grad():
                    halo.spread(self.group, parameter)

    def _conv_forward(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None
    ) -> Tensor:
        for name, given in (("scale", self.scale), ("residual", residual)):
            if given is not None:
                raise InvalidArgument(f"{name} is given, which a layer of images split among ranks does not take")
        return conv2d(  # type: ignore[no-any-return]
            input, weight, bias, self.stride, self.padding, self.dilation, self.groups,
            group=self.group, check=self.check, activation=self.activation, variant=self.variant,
            precision=self.precision,
        )  # fmt: skip


class _NotCopied:
    """Holds a process group, which copy.deepcopy cannot copy: a copied layer works with the same ranks."""

    def __init__(self, group: Group | None) -> None:
        self.group = group

    def __deepcopy__(self, memo: Any) -> _NotCopied:
        return self


def split_rows(image: Tensor, group: Group | None = None, heights: Sequence[int] | None = None) -> Tensor:
    """Return this rank's rows of an image that every rank can read; nothing is sent.

    Of a tensor over a memory-mapped file only these rows are read.

    Parameters
    ----------
    image : Tensor, shape (..., H, W)
        The whole image.
    group : torch.distributed.ProcessGroup, optional
        The ranks, from the image's top to its bottom; the default group unless given.
    heights : sequence of int, optional
        Rows of each rank; unless given they differ by one at most, and the first ranks have more.

    Returns
    -------
    rows : Tensor, shape (..., H_i, W)
        Contiguous, or channels_last as the image; its gradient is that of the image's rows.

    Raises
    ------
    InvalidArgument
        The image has fewer rows than the group has ranks, or the heights do not add up to it.
    """
    group = halo.process_group(group)
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    if not isinstance(image, Tensor) or image.ndim < 2:
        raise InvalidType(
            f"image is {getattr(image, 'shape', type(image).__name__)}; it should be a tensor (..., H, W)"
        )
    rows = image.shape[_ROWS]
    if rows < ranks:
        raise InvalidArgument(f"the image has {rows} rows; it should have {ranks} at least, one a rank")
    all_heights = even_heights(rows, ranks) if heights is None else check_heights(heights, rows, ranks)
    return formatted(image.narrow(_ROWS, sum(all_heights[:rank]), all_heights[rank]).contiguous(), image)


def gather_rows(rows: Tensor, group: Group | None = None) -> Tensor:
    """Return the whole image, on every rank, from each rank's rows.

    It is not differentiated: a loss is formed from each rank's rows, and is the sum of theirs.

    Parameters
    ----------
    rows : Tensor, shape (..., H_i, W)
        This rank's rows.
    group : torch.distributed.ProcessGroup, optional
        The ranks; the default group unless given.

    Returns
    -------
    image : Tensor, shape (..., H, W)
        The whole image.

    Raises
    ------
    InvalidArgument
        On all ranks: shapes or dtypes differ by more than the height, or rows need a gradient.
    RankMissing
        A rank does not answer.
    """
    group = halo.process_group(group)
    failure: Exception | None = None
    facts, height = {}, 0
    if not isinstance(rows, Tensor) or rows.ndim < 2:
        failure = InvalidType(f"rows is a {type(rows).__name__}; it should be a tensor (..., H_i, W)")
    elif rows.requires_grad:
        failure = InvalidArgument(
            "rows need a gradient, which gather_rows does not have; pass rows.detach(), and form the loss from each "
            "rank's rows: it is the sum over ranks"
        )
    else:
        *outer, height, width = rows.shape
        shape = f"({', '.join(map(str, (*outer, '*', width)))})"
        facts = {"rows' shape": shape, "rows' dtype": str(rows.dtype), "rows' device": rows.device.type}
    heights = halo.agree(group, facts, height, failure)
    return formatted(torch.cat(halo.gathered(group, rows, heights), _ROWS), rows)
