// Lets a host compiler (g++, C++17) compile a .cu file that holds device code only. Force-included before it.
//
// Each CUDA thread is an ordinary function call; the runtime (block_runner.h) decides when which one runs. So
// most of CUDA's words mean nothing here (__global__, __device__), the built-in variables are thread-local
// variables that the runtime sets, barriers and warp operations are calls into the runtime, and atomics are
// the host's, since blocks run on several OS threads.
//
// Where CUDA leaves a result undefined (a shuffle from a lane that is not there), something harmless happens.
#pragma once

#include <assert.h>
#include <float.h>
#include <limits.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <type_traits>
#include <utility>

#undef _GLIBCXX_USE_STD_SPEC_FUNCS  // of libstdc++: Bessel functions and their like, which take longer than a kernel
#include <math.h>

#include "device_calls.h"

#define CONVBACKPROP_ON_CPU 1

// -------------------------------------------------------------------------------------------------- keywords
// After the standard headers, which themselves write __attribute__((__noinline__)).

#ifdef CONVBACKPROP_CHECKED
#define __global__ __attribute__((noinline))  // the outermost line of what is found is the kernel's, not its caller's
#else
#define __global__
#endif
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))

// The host finds it by its name, also where everything else is hidden.
#define __constant__ __attribute__((visibility("default")))

// A worker's OS thread runs one block at a time, so what is the block's own is the OS thread's own. Not
// `static thread_local`: `extern __shared__ T s[]` must remain a declaration. It becomes an undefined
// thread-local symbol, which the build makes an alias of one array that is large enough for any block.
// Without __constinit, a use of such a declaration would first call a function that initialises it, which is
// nowhere.
#define __shared__ __constinit thread_local

// ---------------------------------------------------------------------------------------------- vector types

#define CONVBACKPROP_VECTORS(T, NAME)                                                                        \
    struct NAME##1 {                                                                                         \
        T x;                                                                                                 \
    };                                                                                                       \
    struct alignas(2 * sizeof(T)) NAME##2 {                                                                  \
        T x, y;                                                                                              \
    };                                                                                                       \
    struct NAME##3 {                                                                                         \
        T x, y, z;                                                                                           \
    };                                                                                                       \
    struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) NAME##4 {                                        \
        T x, y, z, w;                                                                                        \
    };                                                                                                       \
    static inline NAME##1 make_##NAME##1(T x) { return {x}; }                                                \
    static inline NAME##2 make_##NAME##2(T x, T y) { return {x, y}; }                                        \
    static inline NAME##3 make_##NAME##3(T x, T y, T z) { return {x, y, z}; }                                \
    static inline NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }
CONVBACKPROP_VECTORS(signed char, char)
CONVBACKPROP_VECTORS(unsigned char, uchar)
CONVBACKPROP_VECTORS(short, short)
CONVBACKPROP_VECTORS(unsigned short, ushort)
CONVBACKPROP_VECTORS(int, int)
CONVBACKPROP_VECTORS(unsigned, uint)
CONVBACKPROP_VECTORS(long long, longlong)
CONVBACKPROP_VECTORS(unsigned long long, ulonglong)
CONVBACKPROP_VECTORS(float, float)
CONVBACKPROP_VECTORS(double, double)
#undef CONVBACKPROP_VECTORS

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
    constexpr operator uint3() const { return {x, y, z}; }
};

// ---------------------------------------------------------------------------------------- built-in variables
// Constant for the kernel, so that the compiler may keep them in registers across calls: a CUDA thread that
// waits and goes on finds the values that it had. The labels keep the process's symbol table free of such
// common names.

#define CONVBACKPROP_BUILT_IN(name)                                                                          \
    name __asm__("convbackprop_" #name) __attribute__((tls_model("initial-exec")))
extern __thread const uint3 CONVBACKPROP_BUILT_IN(threadIdx);
extern __thread const uint3 CONVBACKPROP_BUILT_IN(blockIdx);
extern __thread const dim3 CONVBACKPROP_BUILT_IN(blockDim);
extern __thread const dim3 CONVBACKPROP_BUILT_IN(gridDim);
#undef CONVBACKPROP_BUILT_IN
constexpr int warpSize = 32;

// Of an address in shared memory, the number that machine code knows it by.
static inline size_t __cvta_generic_to_shared(const void* address) { return size_t(address); }

// -------------------------------------------------------------------------------------------------- barriers

static inline void __syncthreads() { convbackprop_syncthreads(); }
static inline int __syncthreads_count(int p) { return convbackprop_syncthreads_reduce(BARRIER_COUNT, p); }
static inline int __syncthreads_and(int p) { return convbackprop_syncthreads_reduce(BARRIER_AND, p); }
static inline int __syncthreads_or(int p) { return convbackprop_syncthreads_reduce(BARRIER_OR, p); }

// Threads of one block never run at the same time; those of other blocks do.
static inline void __threadfence_block() { __atomic_signal_fence(__ATOMIC_SEQ_CST); }
static inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

// ------------------------------------------------------------------------------------------- warp operations
// Each is a function of the lanes that are there and of the records they bring, run once for all of them.

namespace convbackprop {

template <class Function>
inline void for_each_lane(unsigned lanes, Function f) {
    for (; lanes; lanes &= lanes - 1) f(__builtin_ctz(lanes));
}

inline void nothing(unsigned, void**) {}

struct FromIndex {
    static int source(int, int first, int width, int argument) { return first + (argument & (width - 1)); }
};
struct FromBelow {
    static int source(int lane, int first, int, int argument) {
        return lane - argument < first ? lane : lane - argument;
    }
};
struct FromAbove {
    static int source(int lane, int first, int width, int argument) {
        return lane + argument >= first + width ? lane : lane + argument;
    }
};
struct FromXor {
    static int source(int lane, int first, int width, int argument) {
        return (lane ^ argument) >= first + width ? lane : lane ^ argument;
    }
};

template <class T, class Direction>
inline T shuffle(unsigned mask, T value, int argument, int width) {
    struct Record {
        T value, result;
        int argument, width;
    } mine = {value, value, argument, width};
    convbackprop_warp_operation(mask, &mine, [](unsigned lanes, void** records) {
        for_each_lane(lanes, [=](int lane) {
            auto* record = static_cast<Record*>(records[lane]);
            const int first = lane & ~(record->width - 1);
            const int from = Direction::source(lane, first, record->width, record->argument) & 31;
            if (lanes >> from & 1) record->result = static_cast<Record*>(records[from])->value;
        });
    });
    return mine.result;
}

struct Add {
    template <class T>
    static T of(T a, T b) {
        return a + b;
    }
};
struct Min {
    template <class T>
    static T of(T a, T b) {
        return b < a ? b : a;
    }
};
struct Max {
    template <class T>
    static T of(T a, T b) {
        return a < b ? b : a;
    }
};
struct And {
    template <class T>
    static T of(T a, T b) {
        return a & b;
    }
};
struct Or {
    template <class T>
    static T of(T a, T b) {
        return a | b;
    }
};
struct Xor {
    template <class T>
    static T of(T a, T b) {
        return a ^ b;
    }
};

template <class Combine, class T>
inline T reduce(unsigned mask, T value) {
    convbackprop_warp_operation(mask, &value, [](unsigned lanes, void** records) {
        T total = *static_cast<T*>(records[__builtin_ctz(lanes)]);
        for_each_lane(lanes & (lanes - 1),
                      [&](int lane) { total = Combine::of(total, *static_cast<T*>(records[lane])); });
        for_each_lane(lanes, [=](int lane) { *static_cast<T*>(records[lane]) = total; });
    });
    return value;
}

inline unsigned ballot(unsigned mask, unsigned predicate) {
    convbackprop_warp_operation(mask, &predicate, [](unsigned lanes, void** records) {
        unsigned votes = 0;
        for_each_lane(lanes,
                      [&](int lane) { votes |= (*static_cast<unsigned*>(records[lane]) ? 1u : 0u) << lane; });
        for_each_lane(lanes, [=](int lane) { *static_cast<unsigned*>(records[lane]) = votes; });
    });
    return predicate;
}

}  // namespace convbackprop

static inline void __syncwarp(unsigned mask = 0xffffffff) {
    convbackprop_warp_operation(mask, nullptr, convbackprop::nothing);
}

template <class T>
static inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
    return convbackprop::shuffle<T, convbackprop::FromIndex>(mask, value, lane, width);
}
template <class T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    return convbackprop::shuffle<T, convbackprop::FromBelow>(mask, value, int(delta), width);
}
template <class T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    return convbackprop::shuffle<T, convbackprop::FromAbove>(mask, value, int(delta), width);
}
template <class T>
static inline T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
    return convbackprop::shuffle<T, convbackprop::FromXor>(mask, value, lane_mask, width);
}

static inline unsigned __ballot_sync(unsigned mask, int p) { return convbackprop::ballot(mask, p != 0); }
static inline int __any_sync(unsigned mask, int p) {
    return convbackprop::reduce<convbackprop::Or>(mask, p != 0);
}
static inline int __all_sync(unsigned mask, int p) {
    return convbackprop::reduce<convbackprop::And>(mask, p != 0);
}

#define CONVBACKPROP_REDUCE(name, Combine, T)                                                                \
    static inline T name(unsigned mask, T value) {                                                           \
        return convbackprop::reduce<convbackprop::Combine>(mask, value);                                     \
    }
CONVBACKPROP_REDUCE(__reduce_add_sync, Add, unsigned)
CONVBACKPROP_REDUCE(__reduce_add_sync, Add, int)
CONVBACKPROP_REDUCE(__reduce_min_sync, Min, unsigned)
CONVBACKPROP_REDUCE(__reduce_min_sync, Min, int)
CONVBACKPROP_REDUCE(__reduce_max_sync, Max, unsigned)
CONVBACKPROP_REDUCE(__reduce_max_sync, Max, int)
CONVBACKPROP_REDUCE(__reduce_and_sync, And, unsigned)
CONVBACKPROP_REDUCE(__reduce_or_sync, Or, unsigned)
CONVBACKPROP_REDUCE(__reduce_xor_sync, Xor, unsigned)
#undef CONVBACKPROP_REDUCE

// --------------------------------------------------------------------------------------------------- atomics

namespace convbackprop {

template <class T>
struct Bits {
    static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8, "CUDA has atomics of 2, 4 and 8 bytes");
    using type =
        std::conditional_t<sizeof(T) == 2, uint16_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>;
};

// Replaces *address by new_value(*address), and returns what was there before.
template <class T, class Function>
inline T atomic_update(T* address, Function new_value) {
    using Word = typename Bits<T>::type;
    auto* const word = reinterpret_cast<Word*>(address);
    Word before = __atomic_load_n(word, __ATOMIC_RELAXED), after;
    T old;
    do {
        memcpy(static_cast<void*>(&old), &before, sizeof old);
        const T updated = new_value(old);
        memcpy(&after, static_cast<const void*>(&updated), sizeof after);
    } while (!__atomic_compare_exchange_n(word, &before, after, true, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
    return old;
}

}  // namespace convbackprop

// The value's type is the address's, so that atomicAdd(&x, 1) adds a float to a float.
#define CONVBACKPROP_ATOMIC(name, expression)                                                                \
    template <class T>                                                                                       \
    static inline T name(T* address, std::common_type_t<T> value) {                                          \
        return convbackprop::atomic_update(address, [=](T old) -> T {                                        \
            (void)old;                                                                                       \
            return expression;                                                                               \
        });                                                                                                  \
    }
CONVBACKPROP_ATOMIC(atomicAdd, old + value)
CONVBACKPROP_ATOMIC(atomicSub, old - value)
CONVBACKPROP_ATOMIC(atomicExch, value)
CONVBACKPROP_ATOMIC(atomicMin, value < old ? value : old)
CONVBACKPROP_ATOMIC(atomicMax, value > old ? value : old)
CONVBACKPROP_ATOMIC(atomicAnd, old& value)
CONVBACKPROP_ATOMIC(atomicOr, old | value)
CONVBACKPROP_ATOMIC(atomicXor, old ^ value)
CONVBACKPROP_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
CONVBACKPROP_ATOMIC(atomicDec, old == 0 || old > value ? value : old - 1)
#undef CONVBACKPROP_ATOMIC

template <class T>
static inline T atomicCAS(T* address, std::common_type_t<T> expected, std::common_type_t<T> value) {
    static_assert(std::is_integral<T>::value, "atomicCAS compares integers");
    __atomic_compare_exchange_n(address, &expected, value, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    return expected;
}

// ------------------------------------------------------------------------- loads and stores with cache hints

#define CONVBACKPROP_LOAD(name)                                                                              \
    template <class T>                                                                                       \
    static __forceinline__ T name(const T* address) {                                                        \
        return *address;                                                                                     \
    }
CONVBACKPROP_LOAD(__ldg)
CONVBACKPROP_LOAD(__ldca)
CONVBACKPROP_LOAD(__ldcg)
CONVBACKPROP_LOAD(__ldcs)
CONVBACKPROP_LOAD(__ldlu)
CONVBACKPROP_LOAD(__ldcv)
#undef CONVBACKPROP_LOAD

#define CONVBACKPROP_STORE(name)                                                                             \
    template <class T>                                                                                       \
    static __forceinline__ void name(T* address, std::common_type_t<T> value) {                              \
        *address = value;                                                                                    \
    }
CONVBACKPROP_STORE(__stwb)
CONVBACKPROP_STORE(__stcg)
CONVBACKPROP_STORE(__stcs)
CONVBACKPROP_STORE(__stwt)
#undef CONVBACKPROP_STORE

// ------------------------------------------------------------------------------------------------------ math
// What CUDA has beyond <math.h>. The fast, inexact functions are the exact ones here.

namespace convbackprop {

// Keeps the compiler from contracting a product and a sum to a fused multiply-add, whatever -ffp-contract
// says.
template <class T>
static __forceinline__ T rounded(T value) {
#if defined(__has_builtin) && __has_builtin(__builtin_assoc_barrier)
    return __builtin_assoc_barrier(value);
#else
    __asm__("" : "+m"(value));
    return value;
#endif
}

template <class To, class From>
static __forceinline__ To bits_as(From value) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To result;
    memcpy(&result, &value, sizeof result);
    return result;
}

}  // namespace convbackprop

static __forceinline__ float __fadd_rn(float a, float b) { return convbackprop::rounded(a + b); }
static __forceinline__ float __fsub_rn(float a, float b) { return convbackprop::rounded(a - b); }
static __forceinline__ float __fmul_rn(float a, float b) { return convbackprop::rounded(a * b); }
static __forceinline__ float __fdiv_rn(float a, float b) { return a / b; }
static __forceinline__ float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static __forceinline__ float __frcp_rn(float a) { return 1.0f / a; }
static __forceinline__ float __fsqrt_rn(float a) { return sqrtf(a); }
static __forceinline__ float __frsqrt_rn(float a) { return float(1.0 / sqrt(double(a))); }
static __forceinline__ double __dadd_rn(double a, double b) { return convbackprop::rounded(a + b); }
static __forceinline__ double __dsub_rn(double a, double b) { return convbackprop::rounded(a - b); }
static __forceinline__ double __dmul_rn(double a, double b) { return convbackprop::rounded(a * b); }
static __forceinline__ double __fma_rn(double a, double b, double c) { return fma(a, b, c); }

static __forceinline__ float __fdividef(float a, float b) { return a / b; }
// Macros, because <math.h> may have declared these names for itself.
#define __expf expf
#define __exp10f exp10f
#define __logf logf
#define __log2f log2f
#define __log10f log10f
#define __powf powf
#define __sinf sinf
#define __cosf cosf
#define __tanhf tanhf
static __forceinline__ float __saturatef(float a) { return a > 0.0f ? a < 1.0f ? a : 1.0f : 0.0f; }  // NaN: 0
static __forceinline__ float rsqrtf(float a) { return 1.0f / sqrtf(a); }
static __forceinline__ double rsqrt(double a) { return 1.0 / sqrt(a); }

static __forceinline__ int __float_as_int(float a) { return convbackprop::bits_as<int>(a); }
static __forceinline__ unsigned __float_as_uint(float a) { return convbackprop::bits_as<unsigned>(a); }
static __forceinline__ float __int_as_float(int a) { return convbackprop::bits_as<float>(a); }
static __forceinline__ float __uint_as_float(unsigned a) { return convbackprop::bits_as<float>(a); }
static __forceinline__ long long __double_as_longlong(double a) {
    return convbackprop::bits_as<long long>(a);
}
static __forceinline__ double __longlong_as_double(long long a) { return convbackprop::bits_as<double>(a); }

static __forceinline__ int __popc(unsigned a) { return __builtin_popcount(a); }
static __forceinline__ int __popcll(unsigned long long a) { return __builtin_popcountll(a); }
static __forceinline__ int __ffs(int a) { return __builtin_ffs(a); }
static __forceinline__ int __ffsll(long long a) { return __builtin_ffsll(a); }
static __forceinline__ int __clz(int a) { return a ? __builtin_clz(unsigned(a)) : 32; }
static __forceinline__ int __clzll(long long a) { return a ? __builtin_clzll((unsigned long long)(a)) : 64; }
static __forceinline__ int __mul24(int a, int b) { return a * b; }
static __forceinline__ unsigned __umul24(unsigned a, unsigned b) { return a * b; }
static __forceinline__ int __mulhi(int a, int b) { return int((long long)(a)*b >> 32); }
static __forceinline__ unsigned __umulhi(unsigned a, unsigned b) {
    return unsigned((unsigned long long)(a)*b >> 32);
}

// min and max, with CUDA's set of overloads: of two integers of one size but unlike sign, as unsigned; of two
// floating point numbers, the one that is not NaN.
#define CONVBACKPROP_MIN_MAX(Left, Right, T)                                                                 \
    static __forceinline__ T min(Left a, Right b) { return static_cast<T>(b) < static_cast<T>(a) ? b : a; }  \
    static __forceinline__ T max(Left a, Right b) { return static_cast<T>(a) < static_cast<T>(b) ? b : a; }
#define CONVBACKPROP_MIN_MAX_INTEGERS(T)                                                                     \
    CONVBACKPROP_MIN_MAX(T, T, T)                                                                            \
    CONVBACKPROP_MIN_MAX(unsigned T, unsigned T, unsigned T)                                                 \
    CONVBACKPROP_MIN_MAX(T, unsigned T, unsigned T)                                                          \
    CONVBACKPROP_MIN_MAX(unsigned T, T, unsigned T)
CONVBACKPROP_MIN_MAX_INTEGERS(int)
CONVBACKPROP_MIN_MAX_INTEGERS(long)
CONVBACKPROP_MIN_MAX_INTEGERS(long long)
#undef CONVBACKPROP_MIN_MAX_INTEGERS
#undef CONVBACKPROP_MIN_MAX
static __forceinline__ float min(float a, float b) { return fminf(a, b); }
static __forceinline__ float max(float a, float b) { return fmaxf(a, b); }
static __forceinline__ double min(double a, double b) { return fmin(a, b); }
static __forceinline__ double max(double a, double b) { return fmax(a, b); }
static __forceinline__ double min(float a, double b) { return fmin(a, b); }
static __forceinline__ double max(float a, double b) { return fmax(a, b); }
static __forceinline__ double min(double a, float b) { return fmin(a, b); }
static __forceinline__ double max(double a, float b) { return fmax(a, b); }

// ------------------------------------------------------------------------------------------ a kernel's entry
// CONVBACKPROP_ENTRY(kernel), once for each `extern "C" __global__` function that a host launches, defines
//     void kernel_entry(void** args)            runs the current CUDA thread, args as for cuLaunchKernel
//     const unsigned* kernel_parameter_sizes()  the bytes of each parameter, then 0: what args must hold

namespace convbackprop {

template <class T>
static __forceinline__ T parameter(const void* bytes) {
    std::remove_cv_t<T> value;
    memcpy(static_cast<void*>(&value), bytes, sizeof value);  // the host may align it less than T wants
    return value;
}

template <class... Parameters, size_t... Numbers>
static __forceinline__ void call(void (*kernel)(Parameters...), [[maybe_unused]] void** args,
                                 std::index_sequence<Numbers...>) {
    kernel(parameter<Parameters>(args[Numbers])...);
}

template <class... Parameters>
static __forceinline__ void call(void (*kernel)(Parameters...), void** args) {
    call(kernel, args, std::index_sequence_for<Parameters...>{});
}

template <class... Parameters>
inline const unsigned* parameter_sizes(void (*)(Parameters...)) {
    static const unsigned sizes[] = {unsigned(sizeof(Parameters))..., 0};
    return sizes;
}

}  // namespace convbackprop

#define CONVBACKPROP_ENTRY(kernel)                                                                           \
    extern "C" __attribute__((visibility("default"))) void kernel##_entry(void** args) {                     \
        convbackprop::call(&kernel, args);                                                                   \
    }                                                                                                        \
    extern "C" __attribute__((visibility("default"))) const unsigned* kernel##_parameter_sizes(void) {       \
        return convbackprop::parameter_sizes(&kernel);                                                       \
    }

// A checked kernel tells what it copies: g++ puts no hook into these.
#ifdef CONVBACKPROP_CHECKED
extern "C" void convbackprop_note_copy(void* to, const void* from, size_t bytes);
namespace convbackprop {
static __forceinline__ void* noted_memcpy(void* to, const void* from, size_t bytes) {
    convbackprop_note_copy(to, from, bytes);
    return memcpy(to, from, bytes);
}
static __forceinline__ void* noted_memset(void* to, int value, size_t bytes) {
    convbackprop_note_copy(to, nullptr, bytes);
    return memset(to, value, bytes);
}
}  // namespace convbackprop
#define memcpy convbackprop::noted_memcpy
#define memset convbackprop::noted_memset
#endif
