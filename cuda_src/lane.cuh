// Lane: the unit that a strip of columns is made of, LANES accumulators that one instruction works on.
//
// A GPU has LANES = 1: a Lane is a number in a register, and the warp is the vector. A CPU has LANES as wide as
// its vector registers: one CUDA thread then computes with whole vectors, where a compiler that must discover
// them in loops over numbers leaves arrays in memory. All that differs between the two stands in this file.
#pragma once
#include "activation.cuh"
#include "scalar.cuh"

static_assert(LANES >= 1 && (LANES & (LANES - 1)) == 0, "lanes are numbered by the bits of an index");

// f(0), f(1) ... f(N-1) with compile-time arguments: what they index can be kept in registers.
template <int I>
struct Constant {
    __device__ constexpr operator int() const { return I; }
};
template <int N, class F>
__device__ __forceinline__ void unroll(F&& f) {
    if constexpr (N > 0) {
        unroll<N - 1>(f);
        f(Constant<N - 1>{});
    }
}
// After a lambda's parameters. Left as a call, its captured arrays would be in memory.
#define INLINED __attribute__((always_inline))

#if LANES == 1

using Lane = Acc;

__device__ __forceinline__ Acc total(Lane sum) { return sum; }

// What N elements are loaded and stored as.
template <int BYTES>
struct Word;
template <>
struct Word<2> {
    using type = unsigned short;
};
template <>
struct Word<4> {
    using type = unsigned;
};
template <>
struct Word<8> {
    using type = uint2;
};
template <>
struct Word<16> {
    using type = uint4;
};
template <int N>
union Packed {
    typename Word<N * sizeof(Scalar)>::type word;
    Scalar elements[N];
    __device__ __forceinline__ Packed() {}
};

// N elements at an aligned address, as one access.
template <int N>
__device__ __forceinline__ void load(Lane* lanes, const Scalar* from) {
    Packed<N> packed;
    packed.word = __ldg(reinterpret_cast<const decltype(packed.word)*>(from));
    unroll<N>([&](auto i) INLINED { lanes[i] = to_acc(packed.elements[i]); });
}
template <int N>
__device__ __forceinline__ void store(Scalar* to, const Lane* lanes) {
    Packed<N> packed;
    unroll<N>([&](auto i) INLINED { packed.elements[i] = from_acc(lanes[i]); });
    *reinterpret_cast<decltype(packed.word)*>(to) = packed.word;
}

// 0 in place of element i where bit i is 0.
__device__ __forceinline__ void keep(Lane& lane, unsigned bits) { lane = bits & 1 ? lane : Acc(0); }

// 0 in place of NaN and infinities; returns whether there was any.
__device__ __forceinline__ bool make_finite(Lane& lane) {
    const bool finite = lane - lane == 0;
    lane = finite ? lane : Acc(0);
    return !finite;
}

// A Lane whose total is value.
__device__ __forceinline__ Lane lane_with_total(Acc value) { return value; }

// As many ints, and what a comparison of them gives; the lanes' indices; and one of a vector's elements.
using Ints = int;
using IntsTrue = bool;
__device__ __forceinline__ Ints lane_indices() { return 0; }
__device__ __forceinline__ bool any_lane(IntsTrue is_true) { return is_true; }
template <class Vector>
__device__ __forceinline__ Vector element(Vector lane, int) {
    return lane;
}

__device__ __forceinline__ IntsTrue is_index(Ints index, int size) { return unsigned(index) < unsigned(size); }

// Whether the address is aligned to one store of N elements.
template <int N>
__device__ __forceinline__ bool can_store(const Scalar* to) {
    return reinterpret_cast<size_t>(to) % (N * sizeof(Scalar)) == 0;
}

__device__ __forceinline__ Lane lane_where(IntsTrue is_true, Lane lane) { return is_true ? lane : Acc(0); }

// A global address as a number in a register. Left alone, nvcc forms it anew for each load, from all its parts.
__device__ __forceinline__ const Scalar* formed(const Scalar* address) {
#ifdef __CUDA_ARCH__
    asm("" : "+l"(address));
#endif
    return address;
}

// address + count * size, by one instruction. Left alone, nvcc takes four.
__device__ __forceinline__ const Scalar* further(const Scalar* address, int count, int size) {
#ifdef __CUDA_ARCH__
    asm("mad.wide.s32 %0, %1, %2, %0;" : "+l"(address) : "r"(size), "r"(count * int(sizeof(Scalar))));
    return address;
#else
    return address + Index(count) * size;
#endif
}

// plane[at + offset] where that lies inside, else 0; from is the address of the first lane's.
__device__ __forceinline__ Lane gather(const Scalar* from, const Scalar*, Ints, int, IntsTrue inside) {
    return inside ? to_acc(__ldg(from)) : Acc(0);
}

// Has a lane, or an address, computed here and not again. Left alone, g++ moves sums into the branches where they are
// used, and asks for an address in shared memory each time by a call; either way all lanes go to memory.
__device__ __forceinline__ void settle(Lane&) {}
template <class T>
__device__ __forceinline__ T* settled(T* address) {
    return address;
}

// As it will be read again after it was stored.
__device__ __forceinline__ Lane rounded(Lane lane) { return to_acc(from_acc(lane)); }

// Bit i: element i is > 0, or NaN.
__device__ __forceinline__ unsigned open_bits(Lane lane) { return !(lane <= 0); }

// An aligned piece lies inside its row or outside as a whole.
template <class Source>
__device__ __forceinline__ Lane partial_lane(const Source&, int, int) {
    return 0;
}
__device__ __forceinline__ void store_partial(Scalar*, Lane, int) {}

// COLUMNS neighbouring columns, from any of TAPS neighbouring ones on: the registers of a row, under other names.
template <int TAPS, int BEFORE, int COLUMNS, int N>
struct Shifts {
    Lane row[N];
    __device__ __forceinline__ Shifts() {}
    __device__ __forceinline__ explicit Shifts(const Lane (&lanes)[N]) {
        unroll<N>([&](auto i) INLINED { row[i] = lanes[i]; });
    }
    template <class S>
    __device__ __forceinline__ Lane lane(S s, int i) const {
        return row[BEFORE + s + i];
    }
};

#else

typedef Acc Lane __attribute__((vector_size(LANES * sizeof(Acc))));
using LaneBits = decltype(Lane{} < Lane{});  // as many integers; all bits set where true
using Integer = std::remove_reference_t<decltype(LaneBits{}[0])>;

template <int... I>
__forceinline__ LaneBits lane_numbers(std::integer_sequence<int, I...>) {
    return LaneBits{I...};
}
__forceinline__ LaneBits lane_numbers() { return lane_numbers(std::make_integer_sequence<int, LANES>{}); }

// Elements FIRST to FIRST + LANES - 1 of two neighbouring lanes.
template <int FIRST, int... I>
__forceinline__ Lane across(Lane left, Lane right, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(left, right, (I + FIRST)...);
}
template <int FIRST>
__forceinline__ Lane across(Lane left, Lane right) {
    return across<FIRST>(left, right, std::make_integer_sequence<int, LANES>{});
}

template <int HALF = LANES / 2>
__forceinline__ Acc total(Lane sum) {
    if constexpr (HALF == 0)
        return sum[0];
    else
        return total<HALF / 2>(sum + across<HALF>(sum, sum));
}

// LANES elements, at any address.
template <int N>
__forceinline__ void load(Lane* lanes, const Scalar* from) {
    static_assert(N == LANES, "a load fills one lane");
    if constexpr (std::is_same_v<Scalar, Acc>)
        memcpy(lanes, from, sizeof(Lane));
    else
        for (int i = 0; i < LANES; ++i) (*lanes)[i] = to_acc(from[i]);
}
template <int N>
__forceinline__ void store(Scalar* to, const Lane* lanes) {
    static_assert(N == LANES, "a store empties one lane");
    if constexpr (std::is_same_v<Scalar, Acc>)
        memcpy(to, lanes, sizeof(Lane));
    else
        for (int i = 0; i < LANES; ++i) to[i] = from_acc((*lanes)[i]);
}

__forceinline__ void keep(Lane& lane, unsigned bits) {
    const LaneBits chosen = (LaneBits{} + Integer(bits)) >> lane_numbers() & 1;
    lane = chosen != 0 ? lane : Lane{};
}

__forceinline__ bool make_finite(Lane& lane) {
    const LaneBits finite = lane - lane == Lane{};
    lane = finite ? lane : Lane{};
    Integer all = -1;
    for (int i = 0; i < LANES; ++i) all &= finite[i];
    return !all;
}

__forceinline__ Lane lane_with_total(Acc value) { return Lane{value}; }

typedef int Ints __attribute__((vector_size(LANES * sizeof(int))));
using IntsTrue = Ints;
__forceinline__ Ints lane_indices() { return __builtin_convertvector(lane_numbers(), Ints); }
__forceinline__ bool any_lane(IntsTrue is_true) {
    int found = 0;
    for (int i = 0; i < LANES; ++i) found |= is_true[i];
    return found;
}
template <class Vector>
__forceinline__ auto element(const Vector& lane, int i) {
    return lane[i];
}

__forceinline__ IntsTrue is_index(Ints index, int size) { return (index >= 0) & (index < size); }

template <int N>
__forceinline__ bool can_store(const Scalar*) {
    return true;
}

__forceinline__ Lane lane_where(IntsTrue is_true, Lane lane) {
    return __builtin_convertvector(is_true, LaneBits) != 0 ? lane : Lane{};
}

__forceinline__ const Scalar* formed(const Scalar* address) { return address; }
__forceinline__ const Scalar* further(const Scalar* address, int count, int size) {
    return address + Index(count) * size;
}

__forceinline__ Lane gather(const Scalar*, const Scalar* plane, Ints at, int offset, IntsTrue inside) {
    const Ints safe = inside ? at + offset : Ints{};
    Lane lane = {};
    unroll<LANES>([&](auto i) INLINED { lane[int(i)] = to_acc(plane[safe[int(i)]]); });
    return lane_where(inside, lane);
}

#ifdef __aarch64__
__forceinline__ void settle(Lane& lane) { __asm__("" : "+w"(lane)); }
#else
__forceinline__ void settle(Lane& lane) { __asm__("" : "+v"(lane)); }
#endif
template <class T>
__forceinline__ T* settled(T* address) {
    __asm__("" : "+r"(address));
    return address;
}

__forceinline__ Lane rounded(Lane lane) {
    if constexpr (!std::is_same_v<Scalar, Acc>)
        for (int i = 0; i < LANES; ++i) lane[i] = to_acc(from_acc(lane[i]));
    return lane;
}

__forceinline__ unsigned open_bits(Lane lane) {
    const LaneBits bits = lane <= Lane{} ? LaneBits{} : (LaneBits{} + 1) << lane_numbers();
    unsigned all = 0;
    for (int i = 0; i < LANES; ++i) all |= bits[i];
    return all;
}

// Each shift is formed once, from registers: reading again, off its alignment, what was just stored would stall.
template <int TAPS, int BEFORE, int COLUMNS, int N>
struct Shifts {
    Lane shifted[TAPS][COLUMNS / LANES];
    Shifts() {}
    __forceinline__ explicit Shifts(const Lane (&lanes)[N]) {
        unroll<TAPS>([&](auto s) INLINED {
            unroll<COLUMNS / LANES>([&](auto i) INLINED {
                constexpr int first = i + (BEFORE + s) / LANES, offset = (BEFORE + s) % LANES;
                if constexpr (offset == 0)
                    shifted[s][i] = lanes[first];
                else
                    shifted[s][i] = across<offset>(lanes[first], lanes[first + 1]);
            });
        });
    }
    __forceinline__ Lane lane(int s, int i) const { return shifted[s][i]; }
};

// Pieces at the ends of rows that a lane does not divide: zero outside the row. Elements that are numbered at run
// time are in memory, so they are not the lane's own; and nothing here is a call, which would save all lanes there.
template <class Source>
__forceinline__ Lane partial_lane(const Source& source, int row, int col) {
    Lane lane;
    if (source.cols < LANES) {
        Acc elements[LANES] = {};
        for (int i = max(0, -col); i < min(LANES, source.cols - col); ++i) elements[i] = source.at(row, col + i);
        memcpy(&lane, elements, sizeof lane);
        return lane;
    }
    const int nearest = min(max(col, 0), source.cols - LANES);
    source.read(&lane, row, nearest);
    const LaneBits from = lane_numbers() + Integer(col - nearest);
    return (from >= 0) & (from < LANES) ? __builtin_shuffle(lane, from & (LANES - 1)) : Lane{};
}
__forceinline__ void store_partial(Scalar* to, Lane lane, int count) {
    Acc elements[LANES];
    memcpy(elements, &lane, sizeof lane);
    for (int i = 0; i < count; ++i) to[i] = from_acc(elements[i]);
}

// The activation on a whole lane.
__forceinline__ Lane activate(Lane s) {
    if constexpr (ACTIVATION == IDENTITY) return s;
    if constexpr (ACTIVATION == RELU) return s <= Lane{} ? Lane{} : s;
    Lane y;
    for (int i = 0; i < LANES; ++i) y[i] = activate(Acc(s[i]));
    return y;
}
__forceinline__ Lane times_derivative(Lane dy, Lane y) {
    if constexpr (ACTIVATION == IDENTITY) return dy;
    if constexpr (ACTIVATION == RELU) return y <= Lane{} ? Lane{} : dy;
    Lane g;
    for (int i = 0; i < LANES; ++i) g[i] = times_derivative(Acc(dy[i]), Acc(y[i]));
    return g;
}

#endif
