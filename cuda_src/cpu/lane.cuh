// Lane: as many accumulators as one vector register of a CPU holds, LANES of them.
//
// The rungs made for a CPU are written with it: one CUDA thread computes with whole vectors, where a compiler that
// must discover them in loops over numbers leaves arrays in memory. It is a GNU vector, which nvcc does not know.
#pragma once
#include <type_traits>

#include "activation.cuh"
#include "scalar.cuh"

static_assert(LANES >= 2 && (LANES & (LANES - 1)) == 0, "lanes are numbered by the bits of an index");

// f(0), f(1) ... f(N-1) with compile-time arguments: what they index can be kept in registers.
template <int I>
struct Constant {
    constexpr operator int() const { return I; }
};
template <int N, class F>
__forceinline__ void unroll(F&& f) {
    if constexpr (N > 0) {
        unroll<N - 1>(f);
        f(Constant<N - 1>{});
    }
}
// After a lambda's parameters. Left as a call, its captured arrays would be in memory.
#define INLINED __attribute__((always_inline))

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
__forceinline__ void load(Lane& lane, const Scalar* from) {
    if constexpr (std::is_same_v<Scalar, Acc>)
        memcpy(&lane, from, sizeof lane);
    else
        for (int i = 0; i < LANES; ++i) lane[i] = to_acc(from[i]);
}
__forceinline__ void store(Scalar* to, const Lane& lane) {
    if constexpr (std::is_same_v<Scalar, Acc>)
        memcpy(to, &lane, sizeof lane);
    else
        for (int i = 0; i < LANES; ++i) to[i] = from_acc(lane[i]);
}

// 0 in place of element i where bit i is 0.
__forceinline__ void keep(Lane& lane, unsigned bits) {
    const LaneBits chosen = (LaneBits{} + Integer(bits)) >> lane_numbers() & 1;
    lane = chosen != 0 ? lane : Lane{};
}

// A Lane whose total is value.
__forceinline__ Lane lane_with_total(Acc value) { return Lane{value}; }

// Has a lane, or an address, computed here and not again. Left alone, g++ moves sums into the branches where they are
// used, and asks for an address in shared memory each time by a call; either way all lanes go to memory.
// A lane of more bytes than a register has several, and stays as g++ has it.
#if defined(__AVX512F__)
constexpr int REGISTER_BYTES = 64;
#elif defined(__AVX__)
constexpr int REGISTER_BYTES = 32;
#else
constexpr int REGISTER_BYTES = 16;
#endif
#ifdef __aarch64__
#define IN_A_REGISTER "+w"
#else
#define IN_A_REGISTER "+v"
#endif
__forceinline__ void settle(Lane& lane) {
    if constexpr (sizeof lane <= REGISTER_BYTES) __asm__("" : IN_A_REGISTER(lane));
}
#undef IN_A_REGISTER
template <class T>
__forceinline__ T* settled(T* address) {
    __asm__("" : "+r"(address));
    return address;
}

// As it will be read again after it was stored.
__forceinline__ Lane rounded(Lane lane) {
    if constexpr (!std::is_same_v<Scalar, Acc>)
        for (int i = 0; i < LANES; ++i) lane[i] = to_acc(from_acc(lane[i]));
    return lane;
}

// Bit i: element i is > 0, or NaN.
__forceinline__ unsigned open_bits(Lane lane) {
    const LaneBits bits = lane <= Lane{} ? LaneBits{} : (LaneBits{} + 1) << lane_numbers();
    unsigned all = 0;
    for (int i = 0; i < LANES; ++i) all |= bits[i];
    return all;
}

// Lanes at the ends of rows that LANES does not divide: zero outside the row. Elements that are numbered at run
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
    source.read(lane, row, nearest);
    const LaneBits from = lane_numbers() + Integer(col - nearest);
    return (from >= 0) & (from < LANES) ? __builtin_shuffle(lane, from & (LANES - 1)) : Lane{};
}
__forceinline__ void store_partial(Scalar* to, Lane lane, int count) {
    Acc elements[LANES];
    memcpy(elements, &lane, sizeof lane);
    for (int i = 0; i < count; ++i) to[i] = from_acc(elements[i]);
}

// The activation on a whole lane.
template <Activation PHI>
__forceinline__ Lane phi(Lane s) {
    if constexpr (PHI == IDENTITY) return s;
    if constexpr (PHI == RELU) return s <= Lane{} ? Lane{} : s;
    Lane y;
    for (int i = 0; i < LANES; ++i) y[i] = phi<PHI>(Acc(s[i]));
    return y;
}
__forceinline__ Lane activate(Lane s) { return phi<ACTIVATION>(s); }
__forceinline__ Lane dx_result(Lane sum, const Scalar* b, int c) {
    if constexpr (TRANSPOSED) return phi<OUTPUT_ACTIVATION>(b ? sum + to_acc(b[c]) : sum);
    return sum;
}
__forceinline__ Lane times_derivative(Lane dy, Lane y) {
    if constexpr (ACTIVATION == IDENTITY) return dy;
    if constexpr (ACTIVATION == RELU) return y <= Lane{} ? Lane{} : dy;
    Lane g;
    for (int i = 0; i < LANES; ++i) g[i] = times_derivative(Acc(dy[i]), Acc(y[i]));
    return g;
}
