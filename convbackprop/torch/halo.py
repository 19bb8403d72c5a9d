"""What ranks tell each other: whether their images fit together, the rows that a neighbour reads, sums of gradients.

Everything goes through torch.distributed. An exchange of rows has two ends, `lend` and `borrow`: between them the
messages are under way, and the rows that need none of them are computed. Both are linear, and the adjoint of the one is
the other's, with the messages turned round: rows that came from a neighbour are gradients that go back to it. So
backward overlaps as forward does, and derivatives of any order exchange what they need.
"""

from __future__ import annotations

import contextlib
import hashlib
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd import Function
from torch.profiler import record_function

from convbackprop.errors import DeviceUnusable, InvalidArgument, RankMissing
from convbackprop.torch.rows import Halo

Tensor = torch.Tensor
Group = Any  # torch.distributed.ProcessGroup, of which builds of torch without it know nothing

_ROWS = -2  # the axis that is split


def process_group(group: Group | None) -> Group:
    """Return the group, or the default one.

    Raises
    ------
    DeviceUnusable
        torch.distributed has not been initialised.
    InvalidArgument
        This process is not of the group.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise DeviceUnusable(
            "torch.distributed is not initialised; call torch.distributed.init_process_group() first, in each process "
            "(torchrun starts them)"
        )
    group = dist.group.WORLD if group is None else group
    if dist.get_rank(group) < 0:
        raise InvalidArgument(f"this process, rank {dist.get_rank()} of all, is not of the group")
    return group


@contextlib.contextmanager
def _waiting(group: Group, what: str) -> Iterator[None]:
    """Say which rank waited for what, where another did not answer."""
    try:
        yield
    except RuntimeError as error:  # torch.distributed's, and what its backends raise
        raise RankMissing(
            f"rank {dist.get_rank(group)} of {dist.get_world_size(group)} waited for {what} in vain: {error}\n"
            "A process has ended, or it does not call this layer, or it is later than the time-out that was given to "
            "init_process_group or new_group"
        ) from error


def _place(group: Group, wanted: torch.device) -> torch.device:
    """Return a device whose tensors the group can send: the one that is wanted, else the group's own."""
    kinds = [part.partition(":")[0] for part in dist.get_backend_config(group).split(",")]
    if wanted.type in kinds:
        return wanted
    return torch.device(kinds[0], torch.cuda.current_device()) if kinds[0] == "cuda" else torch.device(kinds[0])


# -- do the ranks' images fit together? ------------------------------------------------------------------------------
_heights_of: weakref.WeakKeyDictionary[Group, dict[tuple[int, int], tuple[int, ...]]] = weakref.WeakKeyDictionary()


def agree(
    group: Group, facts: dict[str, str], height: int, failure: Exception | None, once: bool = False
) -> tuple[int, ...]:
    """Return all ranks' heights, after all ranks have seen that they are about to compute the same layer.

    Each rank sends two numbers: a digest of the facts, and its height. What is done next follows from all ranks'
    numbers, which all have, so that no rank waits for one that has gone another way. For the same reason no rank skips
    this because it has seen a shape before: another may not have, as when an image is one row higher than the last and
    the row is another rank's. With `once` they do skip it.

    Parameters
    ----------
    group : ProcessGroup
        The ranks.
    facts : dict of str to str
        What should be the same on all ranks, by name.
    height : int
        Of this rank's image.
    failure : Exception or None
        What was wrong on this rank already; the others are told.
    once : bool
        Ask only when this rank meets these facts and this height for the first time.

    Raises
    ------
    InvalidArgument
        On all ranks: facts differ, or another rank has failed. The rank that failed raises its own exception.
    RankMissing
        A rank does not answer.
    """
    known = _heights_of.setdefault(group, {})
    digest = int.from_bytes(hashlib.blake2b(repr(facts).encode(), digest_size=7).digest(), "big")
    if once and failure is None and (digest, height) in known:
        return known[digest, height]
    mine = torch.tensor([-1 if failure else digest, height], device=_place(group, torch.device("cpu")))
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    with _waiting(group, "the shapes of all ranks' images"), record_function("spatial: shapes"):
        dist.all_gather(everyone, mine, group)
    digests, heights = zip(*(numbers.tolist() for numbers in everyone), strict=True)
    if len(set(digests)) > 1 or failure:
        _disagree(group, facts, failure)
    known[digest, height] = heights
    return heights


def _disagree(group: Group, facts: dict[str, str], failure: Exception | None) -> None:
    told: list[Any] = [None] * dist.get_world_size(group)
    with _waiting(group, "what is different on other ranks"):
        dist.all_gather_object(told, str(failure) if failure else facts, group)
    if failure:
        raise failure
    failed = [f"rank {rank}: {facts}" for rank, facts in enumerate(told) if isinstance(facts, str)]
    if failed:
        raise InvalidArgument(f"another rank cannot go on; {'; '.join(failed)}")
    differences = []
    for name in facts:
        ranks_by_value: dict[str, list[str]] = {}
        for rank, theirs in enumerate(told):
            ranks_by_value.setdefault(theirs[name], []).append(str(rank))
        if len(ranks_by_value) > 1:
            values = (f"{value} on rank {', '.join(ranks)}" for value, ranks in ranks_by_value.items())
            differences.append(f"{name} is {' and '.join(values)}")
    raise InvalidArgument(f"{'; '.join(differences)}; all ranks should have the same but for the height of their rows")


# -- the rows that a neighbour reads ---------------------------------------------------------------------------------
class Exchange:
    """One exchange of rows between a rank and the ranks above and below it.

    Parameters
    ----------
    group : ProcessGroup
        The ranks, from the image's top to its bottom.
    lent, borrowed : Halo
        How many rows go to the neighbours, and come from them.
    head, tail : int
        How many rows at the top and the bottom of its own this rank reads together with borrowed ones.
    """

    def __init__(self, group: Group, lent: Halo, borrowed: Halo, head: int, tail: int) -> None:
        self.group, self.lent, self.borrowed, self.head, self.tail = group, lent, borrowed, head, tail
        self._works: list[Any] = []
        self._kept: tuple[Tensor, ...] = ()
        self._received: tuple[Tensor, ...] = ()
        self.adjoint: Exchange | None = None

    def turned(self) -> Exchange:
        """Return the exchange that takes gradients back."""
        self.adjoint = Exchange(self.group, self.borrowed, self.lent, self.head, self.tail)
        return self.adjoint

    def post(self, above: Tensor, below: Tensor) -> tuple[Tensor, Tensor]:
        """Send rows to the neighbours, and return where theirs will be; neither is waited for."""
        self._kept = (above.contiguous(), below.contiguous())  # they must live until they are sent
        self._received = tuple(_rows_like(above, rows) for rows in self.borrowed)
        rank = dist.get_rank(self.group)
        messages = [
            dist.P2POp(operation, rows, dist.get_global_rank(self.group, peer), self.group)
            for strips, operation in ((self._kept, dist.isend), (self._received, dist.irecv))
            for rows, peer in zip(strips, (rank - 1, rank + 1), strict=True)
            if rows.shape[_ROWS]
        ]
        with self._waiting("spatial: exchange starts"):
            self._works = dist.batch_isend_irecv(messages) if messages else []
        return self._received[0], self._received[1]

    def wait(self) -> tuple[Tensor, ...]:
        """Return the neighbours' rows, once they are here and one's own are sent."""
        with self._waiting("spatial: exchange is waited for"):
            for work in self._works:
                work.wait()
        received, self._received, self._works, self._kept = self._received, (), [], ()
        return received

    @contextlib.contextmanager
    def _waiting(self, title: str) -> Iterator[None]:
        rank, last = dist.get_rank(self.group), dist.get_world_size(self.group) - 1
        peers = " and ".join(f"rank {peer}" for peer in (rank - 1, rank + 1) if 0 <= peer <= last)
        with _waiting(self.group, f"rows of {peers}"), record_function(title):
            yield


def _rows_like(tensor: Tensor, rows: int) -> Tensor:
    # Zeros, for autograd's search for anomalies reads rows that are still under way.
    return tensor.new_zeros((*tensor.shape[:_ROWS], rows, *tensor.shape[_ROWS + 1 :]))


def _edges(image: Tensor, top: int, bottom: int) -> tuple[Tensor, Tensor]:
    height = image.shape[_ROWS]
    return image.narrow(_ROWS, 0, top).clone(), image.narrow(_ROWS, height - bottom, bottom).clone()


class _Lend(Function):
    """From a rank's rows to (them, their head, their tail, rows for the rank above, rows for the rank below).

    The last two are on their way when this returns.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor, exchange: Exchange) -> tuple[Tensor, ...]:
        ctx.exchange = exchange
        lent = _edges(image, *exchange.lent)
        exchange.post(*lent)
        return (image.view_as(image), *_edges(image, exchange.head, exchange.tail), *lent)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        return _LendAdjoint.apply(ctx.exchange.adjoint, *cotangents), None


class _Borrow(Function):
    """From rows that are lent to rows that are borrowed, which are here when this returns."""

    @staticmethod
    def forward(ctx: Any, exchange: Exchange, above: Tensor, below: Tensor) -> tuple[Tensor, ...]:
        ctx.exchange = exchange
        return exchange.wait()

    @staticmethod
    def backward(ctx: Any, above: Tensor, below: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_BorrowAdjoint.apply(ctx.exchange.turned(), above, below)


class _BorrowAdjoint(Function):
    """From gradients of borrowed rows to those of lent rows, which are still on their way when this returns."""

    @staticmethod
    def forward(ctx: Any, exchange: Exchange, above: Tensor, below: Tensor) -> tuple[Tensor, ...]:
        ctx.exchange = exchange
        return exchange.post(above, below)

    @staticmethod
    def backward(ctx: Any, above: Tensor, below: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_Borrow.apply(ctx.exchange.adjoint, above, below)


class _LendAdjoint(Function):
    """From the gradients of what `_Lend` returns to that of the rank's rows; waits for those of lent rows."""

    @staticmethod
    def forward(ctx: Any, exchange: Exchange, image: Tensor, *edges: Tensor) -> Tensor:
        ctx.exchange = exchange
        total = image.clone(memory_format=torch.contiguous_format)
        height = total.shape[_ROWS]
        for top, bottom in (edges[:2], exchange.wait()):
            total.narrow(_ROWS, 0, top.shape[_ROWS]).add_(top)
            total.narrow(_ROWS, height - bottom.shape[_ROWS], bottom.shape[_ROWS]).add_(bottom)
        return total

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_Lend.apply(cotangent, ctx.exchange.turned())


def lend(image: Tensor, exchange: Exchange) -> tuple[Tensor, ...]:
    """Send a rank's outermost rows to its neighbours, without waiting, differentiably.

    Returns
    -------
    image, head, tail, above, below : Tensor
        The rank's rows, copies of those at their top and their bottom, and what `borrow` takes.
    """
    return _Lend.apply(image, exchange)  # type: ignore[no-any-return]


def borrow(exchange: Exchange, above: Tensor, below: Tensor) -> tuple[Tensor, Tensor]:
    """Return the neighbours' rows, above and below the rank's own, once they are here."""
    return _Borrow.apply(exchange, above, below)  # type: ignore[no-any-return]


class _Tied(Function):
    """An image as it is, in whose derivatives strips without rows take part."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, above: Tensor, below: Tensor) -> Tensor:
        return image.view_as(image)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, ...]:
        nothing = cotangent.narrow(_ROWS, 0, 0)
        return cotangent, nothing, nothing


def tied(image: Tensor, above: Tensor, below: Tensor) -> Tensor:
    """Return the rows of a rank that lends some and borrows none, such that its neighbours' gradients arrive here."""
    return _Tied.apply(image, above, below)  # type: ignore[no-any-return]


# -- parameters that all ranks have ----------------------------------------------------------------------------------
class _Sum(Function):
    """Sums over ranks, which all ranks get. The adjoint is the same sum, of what each rank made of the sums."""

    @staticmethod
    def forward(ctx: Any, group: Group, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.group = group
        like = tensors[0]
        wide = like.dtype if like.dtype.itemsize > 2 else torch.float32
        flat = torch.cat([tensor.reshape(-1).to(wide) for tensor in tensors])
        with _waiting(group, "the sum of all ranks' gradients"), record_function("spatial: gradients are summed"):
            dist.all_reduce(flat, group=group)
        parts = flat.split([tensor.numel() for tensor in tensors])
        return tuple(part.view(tensor.shape).to(like.dtype) for part, tensor in zip(parts, tensors, strict=True))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_Sum.apply(ctx.group, *cotangents)


class _Shared(Function):
    """Parameters that are the same on all ranks: what each rank adds to their gradients is summed."""

    @staticmethod
    def forward(ctx: Any, group: Group, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.group = group
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_Sum.apply(ctx.group, *cotangents)


def shared(group: Group, *parameters: Tensor | None) -> list[Tensor | None]:
    """Return parameters such that their gradients are summed over ranks, in one message."""
    differentiated = [tensor for tensor in parameters if tensor is not None and tensor.requires_grad]
    if not differentiated or not torch.is_grad_enabled():
        return list(parameters)
    ours = iter(_Shared.apply(group, *differentiated))
    return [next(ours) if tensor is not None and tensor.requires_grad else tensor for tensor in parameters]


def spread(group: Group, tensor: Tensor) -> None:
    """Overwrite a tensor by that of the group's first rank."""
    sent = tensor.detach().to(_place(group, tensor.device), copy=True)
    with _waiting(group, "the parameters of rank 0"):
        dist.broadcast(sent, dist.get_global_rank(group, 0), group)
    tensor.copy_(sent)


def gathered(group: Group, rows: Tensor, heights: Sequence[int]) -> list[Tensor]:
    """Return all ranks' rows."""
    parts = []
    for rank, height in enumerate(heights):
        part = rows.contiguous() if rank == dist.get_rank(group) else _rows_like(rows, height)
        with _waiting(group, f"the rows of rank {rank}"):
            dist.broadcast(part, dist.get_global_rank(group, rank), group)
        parts.append(part)
    return parts
