"""How many blocks of a kernel a multiprocessor holds at once, from what its machine code uses."""

from __future__ import annotations

from typing import NamedTuple

from convbackprop.ladder.variant import ceil_div


class Limits(NamedTuple):
    """What a multiprocessor has; each block takes `reserved_bytes` of shared memory for the system besides its own."""

    warps: int
    blocks: int
    shared_bytes: int
    shared_unit: int = 128
    reserved_bytes: int = 1024


#: By architecture. Source: CUDA C++ Programming Guide, "Compute Capabilities", table "Technical Specifications per
#: Compute Capability"; for the units of allocation, the toolkit's own calculator, cuda_occupancy.h (CUDA 13.0).
LIMITS = {
    "sm_75": Limits(warps=32, blocks=16, shared_bytes=64 * 1024, shared_unit=256, reserved_bytes=0),
    "sm_80": Limits(warps=64, blocks=32, shared_bytes=164 * 1024),
    "sm_86": Limits(warps=48, blocks=16, shared_bytes=100 * 1024),
    "sm_89": Limits(warps=48, blocks=24, shared_bytes=100 * 1024),
    "sm_90": Limits(warps=64, blocks=32, shared_bytes=228 * 1024),
    "sm_90a": Limits(warps=64, blocks=32, shared_bytes=228 * 1024),
    "sm_100": Limits(warps=64, blocks=32, shared_bytes=228 * 1024),
    "sm_120": Limits(warps=48, blocks=24, shared_bytes=100 * 1024),
}

# The same on all of them: a multiprocessor has four parts, each with its own registers, given out warp by warp.
_REGISTERS, _REGISTER_UNIT, _PARTS, _WARP = 65536, 256, 4, 32


class Occupancy(NamedTuple):
    """How many blocks and warps a multiprocessor holds, and what keeps it from holding more; "warps": it is full."""

    blocks: int
    warps: int
    limited_by: tuple[str, ...]


def occupancy(limits: Limits, threads: int, registers: int, shared_bytes: int) -> Occupancy:
    """Return the occupancy of a kernel.

    Parameters
    ----------
    limits : Limits
        From `LIMITS`.
    threads : int
        Of a block.
    registers : int
        Of a thread.
    shared_bytes : int
        Of a block, static and dynamic together.

    Notes
    -----
    The limit on threads is the one on warps times 32, so it never binds first. The blocks that stay are those that
    fit when the driver turns as much of the first-level cache into shared memory as there may be.
    """
    warps = ceil_div(threads, _WARP)
    registers_of_warp = ceil_div(registers * _WARP, _REGISTER_UNIT) * _REGISTER_UNIT
    shared = ceil_div(shared_bytes + limits.reserved_bytes, limits.shared_unit) * limits.shared_unit
    warps_by_registers = _REGISTERS // _PARTS // registers_of_warp * _PARTS if registers else limits.warps
    # Blocks whose warps do not fill the parts evenly must fit one at a time, with their warps dealt out to the parts.
    alone = ceil_div(warps, _PARTS) * _PARTS * registers_of_warp <= _REGISTERS
    fits = {
        "warps": limits.warps // warps,
        "registers": warps_by_registers // warps if alone else 0,
        "shared memory": limits.shared_bytes // shared if shared else limits.blocks,
        "blocks": limits.blocks,
    }
    blocks = min(fits.values())
    return Occupancy(blocks, blocks * warps, tuple(name for name, most in fits.items() if most == blocks))
