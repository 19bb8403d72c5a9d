"""What a process gives up before it becomes a hand-in's: Linux' resource limits, Landlock, seccomp and root's powers.

All that is asked of the kernel here it does for any user, without a container; what it means together is told in
`confinement`. A process can take back none of it, and what it starts inherits it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)


def _call(what: str, function: str, *arguments: object) -> int:
    """Call a function of the C library; raises OSError where it says -1."""
    result: int = getattr(_libc, function)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _prctl(what: str, *arguments: int) -> None:
    _call(what, "prctl", *(ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:5]))


# -- resource limits -------------------------------------------------------------------------------------------------
def limit_resources(cpu_seconds: int, memory: int, file_bytes: int, threads: int) -> None:
    """Bound what one process takes; `threads` is how many its user may have in all, those of others included."""
    for what, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NPROC, threads),
        (resource.RLIMIT_NOFILE, 256),
    ):
        before = resource.getrlimit(what)[1]
        most = most if before == resource.RLIM_INFINITY else min(most, before)
        resource.setrlimit(what, (most, most))


# -- root ------------------------------------------------------------------------------------------------------------
_PR_SET_KEEPCAPS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 8, 47, 2
_CAP_DAC_READ_SEARCH = 2
_CAPABILITY_VERSION_3 = 0x20080522


def become(user: int) -> None:
    """Leave root for a user without powers, but for reading what root may read: Landlock says what that is.

    Root's own Python, and the package, may lie where no other user can read them.
    """
    _prctl("capabilities cannot be kept", _PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    kept = 1 << _CAP_DAC_READ_SEARCH
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _call("capabilities cannot be given up", "capset", header, struct.pack("=6I", kept, kept, kept, 0, 0, 0))
    _prctl("a capability cannot be handed on", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_READ_SEARCH)


# -- Landlock: which files -------------------------------------------------------------------------------------------
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ANY_WRITE, _READ, _LIST = 0x1FF2, 0x000D, 0x0008  # of the first version; READ is to execute, to read, and to list
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_OF_FILES = 0x0007 | _TRUNCATE | _IOCTL_DEV  # what can be allowed of a file that is no directory
_SCOPED = 0b11  # abstract sockets, and signals

#: Landlock's version from which files cannot be emptied either, of Linux 6.2.
LEAST_LANDLOCK = 3
#: From which no signal leaves the confinement, of Linux 6.12; before, seccomp refuses all signals.
_SIGNALS_SCOPED = 6


def landlock_version() -> int:
    """Return the version of Landlock that the kernel has, 0 for none."""
    return max(0, int(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(1))))


def restrict_files(
    writable: Path, readable: Iterable[str | Path], listable: Iterable[str | Path], version: int
) -> None:
    """Let this process write below one folder only, read there and below those named only, and list some more."""
    rights = _ANY_WRITE | _READ | _REFER | _TRUNCATE | (_IOCTL_DEV if version >= 5 else 0)
    attributes = struct.pack("=QQQ", rights, 0, _SCOPED if version >= _SIGNALS_SCOPED else 0)
    ruleset = _call("Landlock", "syscall", _CREATE_RULESET, attributes, ctypes.c_size_t(24), ctypes.c_uint(0))
    rules: list[tuple[str | Path, int]] = [(writable, rights), ("/dev/null", rights)]
    rules += [(path, _READ) for path in readable] + [(path, _LIST) for path in listable]
    for path, allowed in rules:
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # what is not there need not be read
        if not os.path.isdir(path):
            allowed &= _OF_FILES
        rule = struct.pack("=Qi", allowed, place)
        _call(f"Landlock, {path}", "syscall", _ADD_RULE, ruleset, ctypes.c_int(1), rule, ctypes.c_uint(0))
        os.close(place)
    _call("Landlock", "syscall", _RESTRICT_SELF, ruleset, ctypes.c_uint(0))
    os.close(ruleset)


# -- seccomp: which calls --------------------------------------------------------------------------------------------
class _Refused(NamedTuple):
    """A system call that is refused: its numbers, the error that it returns, 0 to pretend that it was done.

    With an `argument`, it is refused only where that is one of `values`, or, `unless`, where it is none of them.
    """

    x86_64: int | None
    aarch64: int | None
    error: int
    argument: int | None = None
    values: Sequence[int] = ()
    unless: bool = False


_NO = errno.EACCES

#: Landlock leaves these out. What sets a file's mode, owner or times is not done, without an error: linkers do it.
_CALLS = {
    "socket": _Refused(41, 198, _NO), "socketpair": _Refused(53, 199, _NO),
    "io_uring_setup": _Refused(425, 425, errno.ENOSYS),  # its requests pass by seccomp
    "memfd_create": _Refused(319, 279, errno.ENOSYS), "memfd_secret": _Refused(447, 447, errno.ENOSYS),
    "chmod": _Refused(90, None, 0), "fchmod": _Refused(91, 52, 0), "fchmodat": _Refused(268, 53, 0),
    "fchmodat2": _Refused(452, 452, 0),
    "chown": _Refused(92, None, 0), "fchown": _Refused(93, 55, 0), "lchown": _Refused(94, None, 0),
    "fchownat": _Refused(260, 54, 0),
    "utime": _Refused(132, None, 0), "utimes": _Refused(235, None, 0), "futimesat": _Refused(261, None, 0),
    "utimensat": _Refused(280, 88, 0),
    "setxattr": _Refused(188, 5, errno.ENOTSUP), "lsetxattr": _Refused(189, 6, errno.ENOTSUP),
    "fsetxattr": _Refused(190, 7, errno.ENOTSUP), "setxattrat": _Refused(463, 463, errno.ENOTSUP),
    "removexattr": _Refused(197, 14, errno.ENOTSUP), "lremovexattr": _Refused(198, 15, errno.ENOTSUP),
    "fremovexattr": _Refused(199, 16, errno.ENOTSUP), "removexattrat": _Refused(466, 466, errno.ENOTSUP),
    "file_setattr": _Refused(469, 469, errno.ENOTSUP), "open_by_handle_at": _Refused(304, 265, _NO),
    "shmget": _Refused(29, 194, _NO), "semget": _Refused(64, 190, _NO), "msgget": _Refused(68, 186, _NO),
    "mq_open": _Refused(240, 180, _NO),
    "add_key": _Refused(248, 217, _NO), "request_key": _Refused(249, 218, _NO), "keyctl": _Refused(250, 219, _NO),
    "setpriority": _Refused(141, 140, _NO), "ioprio_set": _Refused(251, 30, _NO),
    "sched_setscheduler": _Refused(144, 119, _NO), "sched_setparam": _Refused(142, 118, _NO),
    "sched_setattr": _Refused(314, 274, _NO),
    # Of other processes; 0 is the caller.
    "sched_setaffinity": _Refused(203, 122, _NO, argument=0, values=(0,), unless=True),
    "prlimit64": _Refused(302, 261, _NO, argument=0, values=(0,), unless=True),
}  # fmt: skip

#: Every way to send a signal, one's own processes included; F_SETOWN and F_SETOWN_EX of fcntl let the kernel send it.
_SIGNALS = {
    "kill": _Refused(62, 129, _NO), "tkill": _Refused(200, 130, _NO), "tgkill": _Refused(234, 131, _NO),
    "rt_sigqueueinfo": _Refused(129, 138, _NO), "rt_tgsigqueueinfo": _Refused(297, 240, _NO),
    "pidfd_send_signal": _Refused(424, 424, _NO), "fcntl": _Refused(72, 25, _NO, argument=1, values=(8, 15)),
}  # fmt: skip

#: linux/audit.h, by Python's name of the machine: programs of another kind have other numbers.
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_X32 = 0x40000000

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2


def give_up_new_powers() -> None:
    """Have sudo and its like give no powers any more; Landlock and seccomp ask for that first."""
    _prctl("no_new_privs", _PR_SET_NO_NEW_PRIVS, 1)


def restrict_calls(version: int) -> None:
    """Refuse the system calls that Landlock of this version leaves out."""
    machine = platform.machine()
    refused = [*_CALLS.values(), *(_SIGNALS.values() if version < _SIGNALS_SCOPED else ())]
    program = [(_LOAD, 0, 0, 4), (_IF_EQUAL, 1, 0, _ARCHITECTURES[machine]), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    program += [(_IF_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _ERROR | errno.ENOSYS)]
    for call in refused:
        if (number := getattr(call, machine)) is None:
            continue
        then = [(_RETURN, 0, 0, _ERROR | call.error)]
        if call.argument is not None:
            found, other = (_ALLOW, then[0][3]) if call.unless else (then[0][3], _ALLOW)
            then = [(_LOAD, 0, 0, 16 + 8 * call.argument)]  # its lower half, on a little-endian machine
            for value in call.values:
                then += [(_IF_EQUAL, 0, 1, value), (_RETURN, 0, 0, found)]
            then += [(_RETURN, 0, 0, other)]
        program += [(_IF_EQUAL, 0, len(then), number), *then]
    program += [(_RETURN, 0, 0, _ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    filters = struct.pack("@HP", len(program), ctypes.addressof(code))
    pointer = ctypes.cast(ctypes.c_char_p(filters), ctypes.c_void_p)
    _call("seccomp", "prctl", *map(ctypes.c_ulong, (_PR_SET_SECCOMP, _MODE_FILTER, pointer.value or 0, 0, 0)))


def why_not() -> str | None:
    """Return None where this system can confine a process, else why it cannot."""
    if platform.system() != "Linux" or platform.machine() not in _ARCHITECTURES:
        return f"it is made for Linux on {' and '.join(_ARCHITECTURES)}; this is {platform.system()} on " + (
            platform.machine()
        )
    if (version := landlock_version()) < LEAST_LANDLOCK:
        return (
            f"writing outside a folder cannot be refused: that takes version {LEAST_LANDLOCK} of Landlock, which Linux "
            f"has from 6.2 on unless it is turned off; this kernel, {platform.release()}, has version {version}"
        )
    return None
