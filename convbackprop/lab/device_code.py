"""Whether a hand-in is device code and nothing else: what runs on the host is refused before it is compiled."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from convbackprop.errors import InvalidArgument
from convbackprop.sources import source_root

#: Headers of the compilers that hold declarations alone.
_SYSTEM_HEADERS = ("<cfloat>", "<climits>", "<cmath>", "<cstdint>", "<cuda_bf16.h>", "<cuda_fp16.h>", "<float.h>",
                   "<cuda_pipeline.h>", "<limits.h>", "<math.h>", "<stdint.h>", "<type_traits>")  # fmt: skip
_DIRECTIVES = ("include", "define", "undef", "if", "ifdef", "ifndef", "elif", "else", "endif", "error", "pragma", "#")

#: Attributes that say how code is made, not when it runs.
_ATTRIBUTES = ("aligned", "always_inline", "noinline", "unused", "packed", "may_alias", "vector_size", "maybe_unused",
               "fallthrough", "nodiscard", "likely", "unlikely")  # fmt: skip

_SCOPES = ("namespace", "struct", "class", "union", "extern")
_STORAGE = ("const", "static", "inline", "volatile", "__constant__", "__device__", "__shared__", "extern")
_NUMBERS = ("int", "unsigned", "signed", "char", "short", "long", "float", "double", "bool", "size_t", "int32_t",
            "uint32_t", "int64_t", "uint64_t", "Index", "Acc", "Scalar", "MaskByte")  # fmt: skip
_BRACKETS = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}

#: Functions of the C library and of the system that a kernel has no business with: g++ knows some of them unasked.
_HOST_CALLS = frozenset((
    "system", "popen", "fork", "vfork", "clone", "execl", "execlp", "execle", "execv", "execvp", "execve", "execvpe",
    "posix_spawn", "syscall", "openat", "fopen", "freopen", "fdopen", "tmpfile", "tmpnam", "remove", "rename", "fread",
    "fwrite", "fputs", "fputc", "fprintf", "vfprintf", "dprintf", "puts", "putchar", "scanf", "getchar", "setvbuf",
    "setbuf", "unlink", "mkdir", "rmdir", "chmod", "socket", "dlopen", "dlsym", "mmap", "munmap", "mprotect", "ptrace",
    "sigaction", "exit", "_exit", "_Exit", "quick_exit", "atexit", "abort", "longjmp", "setjmp", "getenv", "setenv",
    "putenv", "usleep", "setrlimit", "prctl", "pthread_create",
))  # fmt: skip

_TOKEN = re.compile(
    r"""
    (?P<space>\s+|\\\n|//(?:\\\n|[^\n])*|/\*.*?\*/)
  | (?P<raw>(?:u8|[uUL])?R"(?P<delimiter>[^()\\\s]{0,16})\(.*?\)(?P=delimiter)")
  | (?P<string>(?:u8|[uUL])?"(?:\\.|[^"\\\n])*")
  | (?P<number>\.?\d(?:'?[\w.]|(?<=[eEpP])[+-])*)
  | (?P<character>(?:u8|[uUL])?'(?:\\.|[^'\\\n])+')
  | (?P<word>[^\W\d]\w*)
  | (?P<sign>\#\#|%:%:|%:|<:|:>|<%|%>|::|->|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_DIGRAPHS = {"<:": "[", ":>": "]", "<%": "{", "%>": "}", "%:": "#", "%:%:": "##"}


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


def refuse_host_code(text: str) -> None:
    """Refuse the text of a .cu file that holds more than device code.

    On the CPU a hand-in becomes a library of the host, whose constructors run when it is loaded, before any kernel. So
    it may hold, outside of functions, only what runs nothing: types, templates, macros, constants, and functions marked
    ``__device__`` or ``__global__``. Refused are

    - other functions (``main``, methods that are not ``__device__``), and declarations of functions that the file does
      not define;
    - variables outside of functions, unless ``constexpr``, shared memory, or numbers that no call initialises;
    - attributes but a few (so ``constructor``, ``ifunc``, ``section``), assembler, unless its text is empty, and calls
      of well-known functions of the system, in device code, too;
    - headers but the package's own and those of the compilers that only declare mathematics and number types; pragmas
      but ``unroll`` and ``once``; macros and conditions that open a bracket and do not close it, or paste tokens.

    What it cannot know: device code runs on the CPU as native code. A kernel may write anywhere in its process, and
    through a pointer it may call anything; only a confined process keeps it from that. And it reads tokens, not C++:
    what a macro hides outside of functions may be refused though it is harmless.

    Raises
    ------
    InvalidArgument
        The message names the line and what stands there.
    """
    if broken := re.search(r"\S\\\n", text):
        line = text.count("\n", 0, broken.start()) + 1
        raise _refuse(_Token("sign", "\\", line), "a line is continued right after a word; leave a space before the \\")
    tokens: list[_Token] = []
    opened: list[int] = []  # brackets that were open before each condition
    for line_of in _logical_lines(text):
        if line_of[0].text == "#":
            _refuse_directive(line_of[1:] or line_of)
            _refuse_unbalanced_condition(line_of, _depth(tokens), opened)
        else:
            tokens += line_of
    _refuse_words(tokens)
    _refuse_declarations(tokens, _defined(tokens))


def _refuse(token: _Token, what: str) -> InvalidArgument:
    return InvalidArgument(f"line {token.line}: {what}; a hand-in is device code and nothing else")


# -- tokens ----------------------------------------------------------------------------------------------------------
def _logical_lines(text: str) -> Iterator[list[_Token]]:
    """Yield the tokens of each line that has some: without comments, and with the lines that continue it."""
    line: list[_Token] = []
    number = 1
    for match in _TOKEN.finditer(text):
        found, kind = match[0], "string" if match["raw"] else str(match.lastgroup)
        if kind == "space":
            if "\n" in found and found[0] not in "\\/" and line:
                yield line
                line = []
        else:
            line.append(_Token(kind, _DIGRAPHS.get(found, found), number))
            if found == "\\":
                raise _refuse(line[-1], "a backslash stands outside of a text")
        number += found.count("\n")
    if line:
        yield line


def _depth(tokens: Sequence[_Token]) -> int:
    return sum(_BRACKETS.get(token.text, 0) for token in tokens)


def _closing(tokens: Sequence[_Token], start: int) -> int:
    """Return the index of what closes the bracket at `start`, or that behind the last one."""
    depth = 0
    for i in range(start, len(tokens)):
        depth += _BRACKETS.get(tokens[i].text, 0)
        if depth <= 0:
            return i
    return len(tokens)


# -- the preprocessor ------------------------------------------------------------------------------------------------
def _refuse_directive(line: Sequence[_Token]) -> None:
    name, rest = line[0].text, line[1:]
    if name not in _DIRECTIVES:
        raise _refuse(line[0], f"#{name} is not taken")
    if name == "include":
        named = "".join(token.text for token in rest)
        is_own = len(rest) == 1 and rest[0].kind == "string" and ".." not in named
        if not (is_own and (source_root() / named[1:-1]).is_file()) and named not in _SYSTEM_HEADERS:
            raise _refuse(line[0], f"#include {named} is neither a header of the kernels nor one of "
                          + ", ".join(_SYSTEM_HEADERS))  # fmt: skip
    if name == "pragma" and not (rest and rest[0].text in ("unroll", "once")):
        raise _refuse(line[0], "a #pragma but unroll and once is not taken")
    if name in ("define", "undef"):
        if not rest or rest[0].text.startswith("__"):
            raise _refuse(line[0], f"#{name} of a word of the compilers is not taken")
        if _depth(rest) or any(_depth(rest[:i]) < 0 for i in range(len(rest))):
            raise _refuse(line[0], f"the macro {rest[0].text} opens or closes a bracket and leaves it so")
        if any(token.text == "##" for token in rest):
            raise _refuse(line[0], f"the macro {rest[0].text} pastes tokens")
        _refuse_words(rest[1:])


def _refuse_unbalanced_condition(line: Sequence[_Token], depth: int, opened: list[int]) -> None:
    name = line[1].text if len(line) > 1 else ""
    if name.startswith("if"):
        opened.append(depth)
    elif name in ("elif", "else", "endif"):
        if not opened or opened[-1] != depth:
            raise _refuse(line[0], f"before #{name} a bracket is opened or closed, and left so")
        if name == "endif":
            opened.pop()


# -- words -----------------------------------------------------------------------------------------------------------
def _refuse_words(tokens: Sequence[_Token]) -> None:
    """Refuse what is wrong wherever it stands: attributes, assembler, calls of the system."""
    for i, token in enumerate(tokens):
        before, after = (tokens[j].text if 0 <= j < len(tokens) else "" for j in (i - 1, i + 1))
        if token.text in ("__attribute__", "__attribute", "__declspec") or (token.text, after) == ("[", "["):
            words = (each for each in tokens[i + 1 : _closing(tokens, i + 1)] if each.kind == "word")
            if wrong := next((each for each in words if each.text.strip("_") not in _ATTRIBUTES), None):
                raise _refuse(wrong, f"the attribute {wrong.text} is not taken")
        if token.text in ("asm", "__asm__", "__asm"):
            texts = [each.text for each in tokens[i + 1 : _closing(tokens, i + 1 + after.strip("_").startswith("v"))]]
            if any(text.startswith('"') and text not in ('""', '"memory"') for text in texts) or '""' not in texts:
                raise _refuse(token, "assembler is not taken")
        if token.text == "_Pragma":
            raise _refuse(token, "_Pragma is not taken")
        if token.text in _HOST_CALLS and (after == "(" or before in ("&", "::")) and before not in (".", "->"):
            raise _refuse(token, f"{token.text} is a function of the host")


# -- declarations ----------------------------------------------------------------------------------------------------
def _declarations(tokens: Sequence[_Token]) -> Iterator[tuple[Sequence[_Token], Sequence[_Token] | None]]:
    """Yield each declaration: what stands before its ; or {, and what stands between its braces, if it has such."""
    at = i = 0
    while i < len(tokens):
        if tokens[i].text in ("(", "["):
            i = _closing(tokens, i)
        elif tokens[i].text in (";", "}"):
            yield tokens[at:i], None
            at = i + 1
        elif tokens[i].text == "{":
            end = _closing(tokens, i)
            goes_on = end + 1 < len(tokens) and tokens[end + 1].text in (",", "{")
            if not (goes_on and ":" in (token.text for token in tokens[at:i])):  # a constructor's first values
                yield tokens[at:i], tokens[i + 1 : end]
                at = end + 1
            i = end
        i += 1
    if at < len(tokens):
        yield tokens[at:], None


def _plain(head: Sequence[_Token]) -> Sequence[_Token]:
    """Return a declaration without its template's parameters, access, alignment and attributes."""
    plain: list[_Token] = []
    i = 0
    while i < len(head):
        text = head[i].text
        if text == "template":
            depth, i = 0, i + 1
            while i < len(head):
                depth += {"<": 1, ">": -1}.get(head[i].text, 0)
                if depth <= 0:
                    break
                i = _closing(head, i) + 1 if head[i].text == "(" else i + 1
        elif text in ("alignas", "decltype", "__align__", "__launch_bounds__", "__attribute__"):
            i = _closing(head, i + 1)
        elif text in ("public", "private", "protected") and i + 1 < len(head) and head[i + 1].text == ":":
            i += 1
        elif text == "[" and not plain:
            i = _closing(head, i)
        else:
            plain.append(head[i])
        i += 1
    return plain


def _function(head: Sequence[_Token]) -> _Token | None:
    """Return the name of the function that a declaration is of, if it is of one."""
    words = [token.text for token in head]
    if "(" not in words or ("=" in words[: words.index("(")] and "operator" not in words):
        return None
    return head[max(0, words.index("(") - 1)]


def _defined(tokens: Sequence[_Token]) -> frozenset[str]:
    """Return the names of the functions that are defined here, on any level."""
    found: set[str] = set()
    for head, body in _declarations(tokens):
        plain = _plain(head)
        if body is None or not plain:
            continue
        if name := _function(plain):
            found.add(name.text)
        elif plain[0].text in _SCOPES:
            found |= _defined(body)
    return frozenset(found)


def _refuse_declarations(tokens: Sequence[_Token], defined: frozenset[str], in_type: bool = False) -> None:
    """Refuse what runs on the host among declarations outside of functions."""
    for head, body in _declarations(tokens):
        plain = _plain(head)
        words = [token.text for token in plain]
        if not plain or words[0] in ("using", "typedef", "static_assert", "enum") or "constexpr" in words:
            continue
        if name := _function(plain):
            if name.text == "main" or not ("__device__" in words or "__global__" in words):
                is_trivial = in_type and words[-2:] in (["=", "default"], ["=", "delete"])
                if not is_trivial:
                    raise _refuse(name, f"{name.text} is a function of the host (a kernel's are marked __device__)")
            elif body is None and not in_type and name.text not in defined:
                raise _refuse(name, f"{name.text} is declared, but not defined")
        elif (
            words[0] in _SCOPES and (words[0] != "extern" or len(words) == 2) and (body is not None or len(words) == 2)
        ):
            if body is not None:
                _refuse_declarations(body, defined, in_type=words[0] in ("struct", "class", "union"))
        elif not in_type or "static" in words:
            _refuse_variable(plain, body or ())


def _refuse_variable(head: Sequence[_Token], body: Sequence[_Token]) -> None:
    """Refuse a variable outside of functions whose initialisation may run code."""
    words = [token.text for token in head]
    kind = next((word for word in words if word not in _STORAGE), "")
    value = [*head[words.index("=") if "=" in words else len(head) :], *body]
    calls = any(token.kind == "word" and after.text in ("(", "{") for token, after in itertools.pairwise(value))
    if "__shared__" in words or (kind in _NUMBERS and not calls):
        return
    name = next((token for token in head if token.kind == "word" and token.text not in (*_STORAGE, kind)), head[0])
    raise _refuse(name, f"{name.text} is a variable whose type or value may run code when the file is loaded: make it "
                  "constexpr")  # fmt: skip
