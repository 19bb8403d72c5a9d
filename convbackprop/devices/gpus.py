"""GPUs as data: what a roofline and a grid need to know of them, each number with its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from convbackprop.errors import InvalidArgument
from convbackprop.problem import ACCUMULATORS, DTYPES

#: Warp schedulers of a multiprocessor, each of which issues an instruction of a warp a clock: the same on all since
#: Volta (CUDA C++ Programming Guide, "Compute Capabilities": four schedulers, four parts).
SCHEDULERS = 4

#: Bytes of an instruction, since Volta (Jia et al., "Dissecting the NVIDIA Volta GPU Architecture via
#: Microbenchmarking", arXiv:1804.06826, section 2.1).
INSTRUCTION_BYTES = 16

#: Clocks from a load to its data in memory, when nothing else is under way: an estimate from below. Microbenchmarks
#: find 400 to 550 on V100, A100, H100 and RTX 4090 (such as Luo et al., "Benchmarking and Dissecting the Nvidia Hopper
#: GPU Architecture", arXiv:2402.13499).
LATENCY = 400


@dataclass(frozen=True)
class Multiprocessor:
    """What a multiprocessor does in a clock.

    Attributes
    ----------
    multiply_adds : mapping of str to int
        Fused multiply-adds by the dtype of the sum, float32 or float64.
    l1_bytes : int
        That the first-level cache returns.
    instruction_caches : (int, int)
        Bytes of the cache of each of the four parts (L0), and of the one behind them (L1.5).
    """

    multiply_adds: Mapping[str, int]
    l1_bytes: int
    instruction_caches: tuple[int, int]


def _multiprocessor(float32: int, float64: int, l1_bytes: int = 128, caches: tuple[int, int] = (12, 128)
                    ) -> Multiprocessor:  # fmt: skip
    l0, l1 = caches
    return Multiprocessor({"float32": float32, "float64": float64}, l1_bytes, (l0 << 10, l1 << 10))


#: By architecture.
#: Multiply-adds: CUDA C++ Programming Guide, table "Throughput of Native Arithmetic Instructions".
#: L1: 128 bytes a clock, of which Turing has half ("NVIDIA Ampere GA102 GPU Architecture", v2, section "Larger and
#: Faster Unified Shared Memory and L1 Data Cache").
#: Instruction caches: NVIDIA publishes no sizes. Turing's were measured (Jia et al., "Dissecting the NVidia Turing T4
#: GPU via Microbenchmarking", arXiv:1903.07486, table 3.1); for the others they are an estimate: Volta's, as measured
#: (arXiv:1804.06826, table 3.1).
MULTIPROCESSORS = {
    "sm_75": _multiprocessor(64, 2, l1_bytes=64, caches=(16, 46)),
    "sm_80": _multiprocessor(64, 32),
    "sm_86": _multiprocessor(128, 2),
    "sm_89": _multiprocessor(128, 2),
    "sm_90": _multiprocessor(128, 64),
    "sm_90a": _multiprocessor(128, 64),
    "sm_100": _multiprocessor(128, 64),
    "sm_120": _multiprocessor(128, 2),
}


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes
    ----------
    name : str
        As users write it.
    titles : tuple of str
        What the driver calls it, in whole or in part.
    sms : int
        Multiprocessors.
    clock : float
        The highest one, in Hz.
    memory : float
        Bytes a second, read and written together: measured where it was, else the data sheet's.
    measured : bool
        Whether `memory` was.
    l2_bytes_per_clock : int or None
        That the second-level cache gives all multiprocessors; None: as many as they can take.
    matrices : (int, int)
        Multiply-adds of a multiprocessor's tensor cores in a clock, with sums in float32: of 16-bit numbers, and of
        TF32. What data sheets say without sparsity, by multiprocessors and clock.
    """

    name: str
    titles: tuple[str, ...]
    architecture: str
    sms: int
    clock: float
    memory: float
    measured: bool = False
    l2_bytes_per_clock: int | None = None
    matrices: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        return self.name

    @property
    def target(self) -> Target:
        """What constants and grids are chosen for."""
        return Target("cuda", self.sms, self.architecture)

    @property
    def multiprocessor(self) -> Multiprocessor:
        """What each multiprocessor can do."""
        return MULTIPROCESSORS[self.architecture]

    def peak(self, dtype: str, on_tensor_cores: bool = False) -> float:
        """Return the FLOP/s of multiply-adds for arrays of a dtype, outside the tensor cores or on them."""
        alone = self.multiprocessor.multiply_adds[ACCUMULATORS[dtype]]
        each = self.matrices[DTYPES[dtype] > 2] if on_tensor_cores else alone
        return 2 * self.sms * each * self.clock

    @property
    def l2(self) -> float:
        """Bytes a second from the second-level cache at most: a multiprocessor takes 64 a clock (arXiv:1804.06826)."""
        return min(64 * self.sms, self.l2_bytes_per_clock or 64 * self.sms) * self.clock

    @property
    def issue(self) -> float:
        """Instructions of warps that are issued a second."""
        return SCHEDULERS * self.sms * self.clock


GPUS = (
    # Multiprocessors and clock: those of the H100 (same chip), 66.9 TFLOP/s in FP32; "NVIDIA H200 Tensor Core GPU"
    # data sheet: 67 TFLOP/s, 4.8 TB/s. The bandwidth is that of a copy, measured: bytes read plus bytes written.
    # Tensor cores: 989 TFLOP/s in 16 bits, 495 in TF32, at 1830 MHz.
    Gpu("H200", ("H200",), "sm_90a", sms=132, clock=1.98e9, memory=4.3e12, measured=True,
        l2_bytes_per_clock=5120, matrices=(2048, 1024)),
    # "NVIDIA H100 Tensor Core GPU" data sheet, SXM: 67 TFLOP/s, 3.35 TB/s; "NVIDIA H100 Tensor Core GPU Architecture":
    # 132 multiprocessors.
    Gpu("H100", ("H100 80GB HBM3", "H100 SXM"), "sm_90a", sms=132, clock=1.98e9, memory=3.35e12,
        l2_bytes_per_clock=5120, matrices=(2048, 1024)),
    # "NVIDIA A100 Tensor Core GPU" data sheet, 80 GB SXM: 19.5 TFLOP/s, 2,039 GB/s; "NVIDIA A100 Tensor Core GPU
    # Architecture": 108 multiprocessors, 1410 MHz, 5120 bytes a clock from the L2 cache. Tensor cores: 312 and 156.
    Gpu("A100", ("A100-SXM4-80GB", "A100-SXM-80GB"), "sm_80", sms=108, clock=1.41e9, memory=2.039e12,
        l2_bytes_per_clock=5120, matrices=(1024, 512)),
    # "NVIDIA L4 Tensor Core GPU" data sheet: 30.3 TFLOP/s, 300 GB/s; 7,424 cores at 2040 MHz, 128 a multiprocessor.
    # Tensor cores: 121 and 60 TFLOP/s.
    Gpu("L4", ("NVIDIA L4",), "sm_89", sms=58, clock=2.04e9, memory=3.0e11, matrices=(512, 256)),
    # "NVIDIA Ada GPU Architecture", appendix A: 128 multiprocessors, 2520 MHz, 82.6 TFLOP/s, 1008 GB/s; tensor
    # cores with sums in float32 165.2 and 82.6 TFLOP/s.
    Gpu("RTX 4090", ("RTX 4090",), "sm_89", sms=128, clock=2.52e9, memory=1.008e12, matrices=(256, 128)),
    # "NVIDIA T4 Tensor Core GPU" data sheet: 8.1 TFLOP/s, 320 GB/s; "NVIDIA Turing GPU Architecture", appendix: 40
    # multiprocessors, 1590 MHz. Tensor cores: 65 TFLOP/s in float16; they know no TF32.
    Gpu("T4", ("Tesla T4",), "sm_75", sms=40, clock=1.59e9, memory=3.2e11, matrices=(512, 0)),
)  # fmt: skip


class Target(NamedTuple):
    """What constants and grids are chosen for.

    Attributes
    ----------
    kind : str
        "cpu" or "cuda".
    multiprocessors : int
        That a grid should keep busy.
    architecture : str
        That the kernels are compiled for, of a GPU.

    Both are an H200's, where no GPU is meant.
    """

    kind: str
    multiprocessors: int = GPUS[0].sms
    architecture: str = GPUS[0].architecture

    @property
    def generation(self) -> int:
        """The architecture's number, such as 90 of "sm_90a"."""
        return int("".join(filter(str.isdecimal, self.architecture)))

    @classmethod
    def of(cls, target: Target | str) -> Target:
        """Return the target that a kind of device stands for; a target is its own."""
        return cls(target) if isinstance(target, str) else target


def _spelled(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def gpu(name: str) -> Gpu:
    """Return a GPU by its name; upper case, spaces and hyphens do not count.

    Raises
    ------
    InvalidArgument
        There is none; the message lists the known ones.
    """
    for each in GPUS:
        if _spelled(name) in (_spelled(each.name), "nvidia" + _spelled(each.name)):
            return each
    raise InvalidArgument(f"GPU is {name!r}; it should be one of {', '.join(each.name for each in GPUS)}")


def gpu_titled(title: str) -> Gpu | None:
    """Return the GPU that a driver calls so, such as "NVIDIA H200", or None if there is no data of it."""
    fits = [each for each in GPUS if any(title == name or title.endswith(f" {name}") for name in each.titles)]
    return fits[0] if len(fits) == 1 else None
