"""What a public function is called with: its arrays, looked at together, and the problem that they describe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from convbackprop.activations import activation_name
from convbackprop.arguments import integer, pair, resolve_padding, shown
from convbackprop.devices import Device, get_device
from convbackprop.errors import InvalidArgument, InvalidType
from convbackprop.ladder.variant import Variant
from convbackprop.launch import arrays
from convbackprop.launch.calls import OPERANDS, Checked, Result
from convbackprop.layouts import LAYOUTS
from convbackprop.problem import ConvProblem

Shape = tuple[int, ...]
Given = Mapping[str, Any]  # arrays, or None, by argument or operand
Passes = Sequence[tuple[Variant, ConvProblem]]

#: The arguments that are images; the first whose strides say so tells the layout of a call.
_IMAGES = ("input", "grad_output", "output", "pre_activation", "residual")


class Arguments:
    """The arrays of a call: of one library, one dtype and one device."""

    def __init__(self, device: str | None, given: Mapping[str, Any]) -> None:
        # None is no array, and refused below, except for those that may be left out.
        optional = ("bias", "scale", "residual", "output", "mask", "pre_activation")
        self.arrays = {name: array for name, array in given.items() if array is not None or name not in optional}
        (first, like), *others = self.arrays.items()
        self.library = arrays.library_of(like, first)
        self.like = like
        for name, array in self.arrays.items():
            library = arrays.library_of(array, name)
            if library is not self.library:
                raise InvalidType(f"{name} is a {library.title}, but {first} is a {self.library.title}; pass one kind")
            arrays.check_usable(library, array, name)
        self.dtype = arrays.check_dtype(self.library, like, first)
        place = self.library.device_name(like)
        for name, array in others:
            if (dtype := self.library.dtype(array)) != (expected := "uint8" if name == "mask" else self.dtype):
                raise InvalidType(f"{name} has dtype {dtype}, but it should be {expected}: {first} is {self.dtype}")
            if (there := self.library.device_name(array)) != place:
                raise InvalidArgument(f"{name} is on device {there}, but {first} is on {place}; move one of them")
        self.device = self._device(device, first, place)

    def _device(self, wanted: str | None, first: str, place: str) -> Device:
        if place == "cpu":
            return get_device(wanted if wanted is not None or self.library.title == "numpy.ndarray" else "cpu")
        if wanted not in (None, place) and not (wanted == "cuda" and place == "cuda:0"):
            raise InvalidArgument(
                f"device is {shown(wanted)}, but {first} is a {self.library.title} on {place}; it runs where it lies"
            )
        return get_device(place)

    def check_shape(self, name: str, expected: Shape, why: str) -> None:
        """Raise unless an array that was given has this shape."""
        if name in self.arrays and tuple(self.arrays[name].shape) != expected:
            raise InvalidArgument(f"{name} has shape {tuple(self.arrays[name].shape)}; it should be {expected}, {why}")

    def check_outs(self, outs: Given, results: Mapping[str, Result]) -> None:
        """Raise unless the results can be written to those of `outs` that are wanted and given."""
        taken: list[Any] = []
        for name, result in results.items():
            if outs[name] is not None:
                self._check_out("out", outs[name], result.shape)
                taken.append(outs[name])
        for i, out in enumerate(taken):
            if any(arrays.overlap(self.library, out, other) for other in taken[:i]):
                raise InvalidArgument("out holds arrays that share memory; each should be an array of its own")

    def _check_out(self, name: str, out: Any, shape: Shape) -> None:
        library = arrays.library_of(out, name)
        if library is not self.library:
            raise InvalidType(f"{name} is a {library.title}; it should be a {self.library.title} as the inputs are")
        arrays.check_usable(library, out, name)
        if tuple(out.shape) != shape:
            raise InvalidArgument(f"{name} has shape {tuple(out.shape)}; it should be {shape}")
        if library.dtype(out) != self.dtype:
            raise InvalidType(f"{name} has dtype {library.dtype(out)}; it should be {self.dtype}")
        if library.device_name(out) != library.device_name(self.like):
            raise InvalidArgument(
                f"{name} is on device {library.device_name(out)}; the inputs are on {self.device.name}"
            )
        if not library.is_writable(out):
            raise InvalidArgument(f"{name} is read-only; it should be writable")
        if arrays.repeats_itself(library, out):
            raise InvalidArgument(
                f"{name} is broadcast, so its elements share memory; it should be an array of its own"
            )
        for other, array in self.arrays.items():
            if arrays.overlap(self.library, out, array):
                raise InvalidArgument(f"{name} shares memory with {other}; it should be an array of its own")

    @property
    def layout(self) -> str:
        """The layout of the images: that of the first which lies in one layout alone."""
        for name in _IMAGES:
            if (array := self.arrays.get(name)) is not None and len(array.shape) > 2:
                taken = [layout for layout in LAYOUTS if self.library.lies(array, layout)]
                if len(taken) == 1:
                    return taken[0]
        return "nchw"

    def checked(
        self, results: Mapping[str, Result], problem: ConvProblem, passes: Callable[[ConvProblem], Passes | None],
        operands: Mapping[str, str] = OPERANDS,
    ) -> Checked:  # fmt: skip
        """Return the call, ready to be carried out: in the layout of the images, or in nchw where nothing takes that.

        passes(problem): what computes it; None: nothing does in this layout.
        """
        wanted, chosen = self.layout, None
        if wanted != "nchw" and not problem.mask:
            chosen = passes(problem.with_(layout=wanted))
        if chosen is None:
            chosen = passes(problem) or ()
        return Checked(self.library, self.device, self.like, results, chosen, operands, wanted)


def four_axes(shape: Shape, name: str) -> tuple[int, int, int, int]:
    """Return the shape of an image argument as (N, C, H, W)."""
    if len(shape) == 2:
        return (1, 1, *shape)  # type: ignore[return-value]
    if len(shape) == 3:
        return (1, *shape)  # type: ignore[return-value]
    if len(shape) == 4:
        return shape  # type: ignore[return-value]
    raise InvalidArgument(
        f"{name} has shape {shape}, {len(shape)}-D; it should be (N, C, H, W), (C, H, W) or one image (H, W)"
    )


def size_of(size: object, name: str) -> Shape:
    """Return an argument such as input_size as a tuple of ints."""
    if not isinstance(size, Sequence) or isinstance(size, str):
        raise InvalidType(f"{name} is {shown(size)} ({type(size).__name__}); it should be a sequence of integers")
    return tuple(integer(number, f"{name}[{i}]", 0) for i, number in enumerate(size))


def problem_of(
    x_shape: Shape, x_name: str, w_shape: Shape, w_name: str, stride: object, padding: object, dilation: object,
    groups: object, activation: str, dtype: str, precision: str = "ieee", **flags: bool,
) -> ConvProblem:  # fmt: skip
    """Return the problem that shapes and arguments describe."""
    n, c, h, w = four_axes(x_shape, x_name)
    if len(w_shape) not in (2, 4):
        raise InvalidArgument(
            f"{w_name} has shape {w_shape}, {len(w_shape)}-D; it should be (K, C/groups, R, S) or one filter (R, S)"
        )
    k, filter_c, r, s = w_shape if len(w_shape) == 4 else (1, 1, *w_shape)
    strides = pair(stride, "stride", 1)
    dilations = pair(dilation, "dilation", 1)
    group_count = integer(groups, "groups", 1)
    for value, name, where in ((c, x_name, "channels"), (k, w_name, "output channels")):
        if value % group_count:
            raise InvalidArgument(f"{name} has {value} {where}, which groups = {group_count} does not divide")
    if filter_c * group_count != c:
        raise InvalidArgument(
            f"{w_name} has shape {w_shape}, {filter_c} input channels a filter; it should have {c // group_count}: "
            f"{x_name} has {c} channels in {group_count} group{'s' * (group_count > 1)}"
        )
    if len(x_shape) == 2 and k != 1:
        raise InvalidArgument(
            f"{x_name} is 2-D, one image of one channel, but {w_name} has {k} output channels; "
            f"pass {x_name} as (1, H, W) to get (K, P, Q)"
        )
    for value, name, what in (
        (c, x_name, "number of channels"),
        (h, x_name, "height"),
        (w, x_name, "width"),
        (k, w_name, "number of filters"),
        (r, w_name, "height"),
        (s, w_name, "width"),
    ):
        integer(value, f"{name}'s {what}", 1)
    sides = resolve_padding(padding, (r, s), strides, dilations)
    return ConvProblem(
        n, c, h, w, k, r, s, strides, sides, dilations, group_count, dtype, activation_name(activation),
        precision=precision, layout="nchw", **flags,
    )  # fmt: skip


def as_seen(shape: Shape, like: Shape) -> Shape:
    """Return a 4-D shape with as many axes as the user's input has."""
    return shape[4 - len(like) :]
