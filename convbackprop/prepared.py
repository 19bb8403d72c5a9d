"""A call that is made many times: checked and planned once, then repeated on the same arrays or on others like them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from convbackprop.arguments import shown
from convbackprop.errors import InvalidArgument, InvalidType
from convbackprop.ladder.variant import WIDEST
from convbackprop.launch import arrays
from convbackprop.launch.calls import Preparation, Repeat
from convbackprop.ops import conv2d, conv2d_backward, conv2d_input_grad, conv2d_kernel_grad
from convbackprop.transposed import conv_transpose2d

_FUNCTIONS = (conv2d, conv2d_input_grad, conv2d_kernel_grad, conv2d_backward, conv_transpose2d)


def prepare(function: Callable[..., Any], /, *arguments: Any, **options: Any) -> PreparedCall:
    """Prepare a call of a public function, to be made many times.

    All is done that comes before the launch: the arguments are checked, the variant is chosen ("auto" is resolved here,
    once), its kernels are compiled and loaded. Nothing is computed, and `out` is not written to, before the call.

        >>> call = convbackprop.prepare(convbackprop.conv2d, x, w, b, padding=1, activation="relu", out=y)
        >>> for image in images:
        ...     x[...] = image
        ...     call()  # what conv2d(x, w, b, padding=1, activation="relu", out=y) computes, to the bit

    Parameters
    ----------
    function : callable
        conv2d, conv2d_input_grad, conv2d_kernel_grad, conv2d_backward or conv_transpose2d.
    *arguments, **options
        Its arguments. The arrays lie where kernels use them: contiguous, or images in a layout that the variant takes;
        not empty, numpy's not on a GPU.

    Returns
    -------
    PreparedCall
        It keeps the arrays alive that it was prepared with.

    Raises
    ------
    InvalidArgument, InvalidType, UnsupportedProblem, ProblemTooLarge
        As the function does; also where an array cannot be used where it lies, or the function is none of these.
    """
    if function not in _FUNCTIONS:
        names = ", ".join(each.__name__ for each in _FUNCTIONS)
        raise InvalidArgument(f"function is {shown(function)}; it should be one of convbackprop's {names}")
    preparation = Preparation(options.get("device"))
    returned = function(*arguments, **{**options, "device": preparation})
    return PreparedCall(function.__name__, preparation, returned)


class _Like(NamedTuple):
    """An array that a call was prepared with, as errors speak of it."""

    shape: tuple[int, ...]
    dtype: str
    place: str
    layout: str | None
    offset: int  # of its address from a multiple of WIDEST


class PreparedCall:
    """What `prepare` returns: calling it computes what the function would, without its checks of arguments.

    It may be called from several threads, on a GPU each on its own stream; after a fork on the cpu device only.

    Attributes
    ----------
    function : str
        The function's name.
    arrays : tuple of str
        The arguments that are arrays, in the order in which the call takes others.
    variants : tuple of str
        The rungs that compute it, as "forward/tiled".
    """

    def __init__(self, function: str, preparation: Preparation, returned: Any) -> None:
        """`returned`: what the function returns, with the names of its results in place of them."""
        call, given, outs = preparation.call, preparation.given, preparation.outs
        self.function = function
        self.arrays = tuple(name for name, array in given.items() if array is not None)
        self.variants = tuple(f"{variant.pass_name}/{variant.name}" for variant, _ in call.passes)
        self._call, self._check = call, preparation.check
        self._reads, self._writes = tuple(given), tuple(outs)
        self._inputs = [i for i, array in enumerate(given.values()) if array is not None]
        self._present = (*given.values(), *outs.values())
        position = {name: i for i, name in enumerate(outs)}
        self._returned = tuple(map(position.get, returned)) if isinstance(returned, tuple) else position[returned]
        # What `out` is for: as the function takes it, to which a mask is always a new array.
        self._out = returned[0] if isinstance(returned, tuple) and "mask" in returned else returned
        wanted = self._out if isinstance(self._out, tuple) else (self._out,)
        written = {name: preparation.made[name] if name in wanted else None for name in outs}
        self._repeat, self._repeat_into = preparation.repeat(outs), preparation.repeat(written)
        # Where all results have a place, a call on the very same memory has nothing else to look at.
        self._same = None if self._repeat.makes else self._repeat.alike(self._present)
        self._result = self._results(self._present[len(given) :])
        self._likes = [None if array is None else self._like(array) for array in (*given.values(), *written.values())]

    def __call__(self, *arrays: Any, out: Any = None) -> Any:
        """Compute the results.

        Parameters
        ----------
        *arrays : array
            In place of the first of those that the call was prepared with, in the order of `arrays`; the others stay.
            Of the same shape, dtype, device and alignment (of 16 bytes).
        out : array, or several as the function takes them, optional
            Where to write the results; None: where the call was prepared to, or to new arrays. None for one of several
            is a new array, which takes longer.

        Returns
        -------
        array or tuple of array
            What the function returns, with the same bits.

        Raises
        ------
        InvalidArgument, InvalidType
            An array is not like the one that the call was prepared with; nothing is launched.
        LaunchFailed, ProblemTooLarge, DeviceUnusable
            As the function does.
        """
        present, repeat = self._present, self._repeat
        if not arrays and out is None and self._same is not None:
            addresses = repeat.alike(present)
            if addresses == self._same:
                repeat.start(addresses, present[0])
                return self._result
        if arrays:
            present = self._with(arrays)
        if out is not None:
            present, repeat = (*present[: len(self._reads)], *self._outs(out)), self._repeat_into
        addresses = repeat.alike(present)
        if addresses is None or (made := repeat(present, addresses)) is None:
            made = self._closer_look(repeat, present)
        return self._results(made)

    def _results(self, made: Sequence[Any]) -> Any:
        """Return what the function returns, from its results in the order of the operands."""
        where = self._returned
        return tuple(None if i is None else made[i] for i in where) if isinstance(where, tuple) else made[where]

    def __repr__(self) -> str:
        return (
            f"<PreparedCall of {self.function}({', '.join(self.arrays)}) by {', '.join(self.variants)} on "
            f"{self._call.device.name}>"
        )

    def _with(self, arrays: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the arrays of the call, the first of them replaced."""
        if len(arrays) > len(self.arrays):
            raise InvalidArgument(
                f"{len(arrays)} arrays are given; {self.function} was prepared with {len(self.arrays)}: "
                f"{', '.join(self.arrays)}"
            )
        present = list(self._present)
        for i, array in zip(self._inputs, arrays, strict=False):
            present[i] = array
        return tuple(present)

    def _outs(self, out: Any) -> list[Any]:
        """Return the arrays to write to in the order of the operands."""
        if not isinstance(self._out, tuple):
            return [out if name == self._out else None for name in self._writes]
        if not isinstance(out, tuple | list) or len(out) != len(self._out):
            raise InvalidType(f"out is a {type(out).__name__}; it should be {len(self._out)} arrays, as prepared")
        return [None if name is None else array for name, array in zip(self._out, out, strict=True)]

    def _closer_look(self, repeat: Repeat, present: Sequence[Any]) -> Sequence[Any]:
        """Compute the results the long way, or say why not."""
        seen = self._call.library.glance(present)
        if seen is not None and seen[0] == repeat.facts and (made := repeat(present, seen[1])) is not None:
            return made
        for name, array, was in zip((*self._reads, *("out" for _ in self._writes)), present, self._likes, strict=True):
            if was is not None and (array is not None or name != "out"):
                self._compare(name, array, was)
        given = dict(zip(self._reads, present, strict=False))
        outs = dict(zip(self._writes, present[len(given) :], strict=True))
        self._check(given, outs)
        made, _ = self._call.run(given, outs)
        return made

    def _compare(self, name: str, array: Any, was: _Like) -> None:
        """Raise unless an array is like the one that the call was prepared with."""
        library = self._call.library
        if arrays.library_of(array, name) is not library:
            raise InvalidType(f"{name} is a {type(array).__name__}; the call was prepared for a {library.title}")
        arrays.check_usable(library, array, name)
        now = self._like(array)
        if now.shape != was.shape:
            raise InvalidArgument(f"{name} has shape {now.shape}; the call was prepared for {was.shape}")
        if now.dtype != was.dtype:
            raise InvalidType(f"{name} has dtype {now.dtype}; the call was prepared for {was.dtype}")
        if now.place != was.place:
            raise InvalidArgument(f"{name} is on device {now.place}; the call was prepared for {was.place}")
        if now.layout != was.layout or library.glance((array,)) is None:
            raise InvalidArgument(
                f"{name} cannot be used where it lies; it should be a {library.title} (no subclass), contiguous, with "
                "memory of its own"
            )
        if now.offset != was.offset:
            raise InvalidArgument(
                f"{name} lies {now.offset} bytes beyond a multiple of {WIDEST}; the call was prepared for an array "
                f"{was.offset} bytes beyond"
            )

    def _like(self, array: Any) -> _Like:
        library = self._call.library
        offset = library.pointer(array) % WIDEST
        layout = arrays.layout_of(library, array)
        return _Like(tuple(array.shape), library.dtype(array), library.device_name(array), layout, offset)
