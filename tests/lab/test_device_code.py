"""What a hand-in may not hold: code that would run on the host."""

from __future__ import annotations

from pathlib import Path

import pytest

import convbackprop
from convbackprop.errors import InvalidArgument
from convbackprop.lab.device_code import refuse_host_code
from convbackprop.ladder.registry import VARIANTS

KERNEL = '\nextern "C" __global__ void forward(const float* x, float* y) { y[0] = x[0]; }\n'

HOST_CODE = {
    "main": ("int main() { return 0; }", "main is a function of the host"),
    "main on the device": ("__device__ int main() { return 0; }", "main is a function of the host"),
    "a function": ("static void f() {}", "f is a function of the host"),
    "one of extern C": ('extern "C" void f() {}', "f is a function of the host"),
    "one in extern C": ('extern "C" {\nvoid f() {}\n}', "line 3: f is a function of the host"),
    "one in a namespace": ("namespace {\nnamespace a { void f() {} }\n}", "f is a function of the host"),
    "a template": ("template <typename T, int (*F)()> void f(T) {}", "f is a function of the host"),
    "a method": ("struct A { void f() {} };", "f is a function of the host"),
    "a constructor": ("struct A { int i; A() : i{1}, j(2) {} int j; };", "A is a function of the host"),
    "an operator": ("struct A { int operator()(int i) { return i; } };", "is a function of the host"),
    "a prototype": ('extern "C" int system(const char*);', "system is a function of the host"),
    "a prototype on the device": ("__device__ int f(int);", "f is declared, but not defined"),
    "a variable like a prototype": ("struct A { __device__ A(int) {} }; __device__ A a(N);", "a is declared, but not"),
    "a static constructor": ("struct A { __device__ A() {} };\nA a;", "line 3: a is a variable"),
    "one behind its type": ("struct A { __device__ A() {} } a;", "a is a variable"),
    "a call": ("__device__ int f() { return 1; }\nconst int a = f();", "line 3: a is a variable"),
    "a call in braces": ("__device__ int f() { return 1; }\n__constant__ int a[2] = {1, f()};", "a is a variable"),
    "a call, second": ("__device__ int f() { return 1; }\nint a = 1, b = f();", "is a variable"),
    "a lambda": ("auto a = [] { return 1; }();", "a is a variable"),
    "a static member": ("struct A { inline static long a = long(3); static A b; };", "is a variable"),
    "an attribute": ("__attribute__((constructor)) __device__ void f() {}", "the attribute constructor is not taken"),
    "one with underscores": ("__device__ void __attribute__((__constructor__(101))) f() {}", "__constructor__"),
    "one of C++": ("[[gnu::constructor]] __device__ void f() {}", "the attribute gnu is not taken"),
    "assembler": ('asm(".globl f");', "assembler is not taken"),
    "assembler in a kernel": ('__device__ void f() { asm volatile("syscall" ::: "memory"); }', "assembler"),
    "assembler in an operand": ('__device__ void f() { asm("" : : : "memory", "rax"); }', "assembler is not taken"),
    "a system header": ("#include <iostream>", "line 2: #include <iostream> is neither"),
    "a file beside it": ('#include "mine.cuh"', '#include "mine.cuh" is neither'),
    "a file elsewhere": ('#include "../../../etc/passwd"', "is neither"),
    "a computed header": ("#define HEADER <iostream>\n#include HEADER", "is neither"),
    "a digraph": ("%:include <iostream>", "#include <iostream> is neither"),
    "pasted tokens": ("#define A(x) __attri##x", "the macro A pastes tokens"),
    "pasted digraphs": ("#define A(x) __attri%:%:x", "the macro A pastes tokens"),
    "a call in a macro": ('#define A system("ls")', "system is a function of the host"),
    "a bracket in a macro": ("#define A } int main() {", "the macro A opens or closes a bracket"),
    "a mark in a macro": ("#define __device__", "#define of a word of the compilers"),
    "a bracket in a condition": ("#if 0\n__device__ void g() {\n#endif\nint main() {}", "before #endif a bracket"),
    "a pragma": ('#pragma GCC optimize("O0")', "#pragma but unroll and once is not taken"),
    "_Pragma": ('_Pragma("pack(1)")', "_Pragma is not taken"),
    "#line": ('#line 1 "other.cu"', "#line is not taken"),
    "a split word": ("int ma\\\nin() {}", "a line is continued right after a word"),
    "a call in a kernel": ('__device__ void f() { system("ls"); }', "system is a function of the host"),
    "a pointer to a call": ("__device__ void f() { auto g = &fork; g(); }", "fork is a function of the host"),
    "a qualified call": ('__device__ void f() { auto g = ::remove; g("a"); }', "remove is a function of the host"),
    "behind a comment": ("/* a\n b */ void f() {} // {", "line 3: f is a function of the host"),
    "behind a text": ('__device__ void g() { const char* a = "}{\\""; }\nvoid f() {}', "line 3: f is a function"),
    "behind a raw text": ('__device__ void g() { const char* a = R"b(})b" ")b"; }\nvoid f() {}', "f is a function"),
    "a character of a bracket": ("__device__ int g() { return '{'; }\nvoid f() {}", "f is a function of the host"),
}  # fmt: skip

DEVICE_CODE = """
#include <cmath>
#include <cuda_fp16.h>
#include "conv2d.cuh"
#define SIZE 4  // of a tile
#define MAX(a, b) ((a) > (b) ? (a) : \\
                   (b))
static_assert(SIZE % 2 == 0, "a whole number of (pairs) {");
enum Kind { ONE, TWO };
using Number = float;
typedef int Counter;
constexpr int TAPS = MAX(3, 4), HALF = TAPS / 2;
const int A = (SIZE + 1) * 2;
static const float B = 0.5f;
__constant__ float taps[SIZE * SIZE];
__constant__ float few[2] = {1.0f, 2.0f};
__device__ unsigned counter = 0;
extern __shared__ Number tile[];
struct __align__(16) Four {
    float a, b = 0;
    static constexpr int COUNT = 4;
    Four() = default;
    __device__ Four(float a) : a(a), b{a} {}
    __device__ float operator[](int i) const { return i ? a : b; }
};
namespace {
template <int N, typename T = std::conditional_t<(N > 1), int, float>>
__device__ __forceinline__ T sum(const T (&values)[N]);
template <int N, typename T>
__device__ __forceinline__ T sum(const T (&values)[N]) {
    T all = 0;
    auto add = [&](int i) { all += values[i]; };
#pragma unroll
    for (int i = 0; i < N; ++i) add(i);
    bool open = true, read = false;
    if (open) asm volatile("" ::: "memory");
    return all;
}
}  // namespace
#if SIZE > 2
template <typename T> struct Other { T value; };
#else
struct Other;
#endif
__device__ __attribute__((noinline)) int late();
__device__ int late() { return int(fmaxf(1, 2)); }
"""


@pytest.mark.parametrize("what", HOST_CODE)
def test_host_code_is_refused_with_its_line(what):
    code, sentence = HOST_CODE[what]
    with pytest.raises(InvalidArgument, match=r"^line \d+: .*; a hand-in is device code and nothing else$") as caught:
        refuse_host_code("\n" + code + KERNEL)
    assert sentence in str(caught.value)


def test_device_code_is_taken():
    refuse_host_code(DEVICE_CODE + KERNEL)
    refuse_host_code("")


def test_the_ladder_the_exercises_and_the_skeletons_are_device_code():
    root = Path(convbackprop.__file__).parent
    mine = [*root.glob("templates/*.cu"), *root.glob("lab/exercises/*.cu")]
    assert len(mine) == 12
    for path in [*mine, *(variant.path for variant in VARIANTS if "cuda" in variant.runs_on)]:
        refuse_host_code(path.read_text())
