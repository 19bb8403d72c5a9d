// Neighbouring numbers in memory that one instruction moves, at an address that is aligned to all of them.
#pragma once
#include <type_traits>

#include "scalar.cuh"

constexpr int VECTOR = 16 / sizeof(Acc);

struct alignas(16) AccVector {
    Acc elements[VECTOR];
};

// N Scalars, one or VECTOR, as they come from memory.
template <int N>
struct Loaded {
    static_assert(N == 1 || N == VECTOR, "there are single numbers and vectors");
    using Word = std::conditional_t<N == 1, Scalar, std::conditional_t<sizeof(Scalar) == 8, double2,
                 std::conditional_t<sizeof(Scalar) == 4, float4, uint2>>>;
    Word word;

    __device__ __forceinline__ Acc value(int i) const { return to_acc(reinterpret_cast<const Scalar*>(&word)[i]); }
};

// Zeros, if the numbers do not exist.
template <int N>
__device__ __forceinline__ Loaded<N> load(const Scalar* from, bool exist) {
    using Word = typename Loaded<N>::Word;
    return {exist ? __ldg(reinterpret_cast<const Word*>(from)) : Word{}};
}

struct alignas(VECTOR * sizeof(Scalar)) ScalarVector {
    Scalar elements[VECTOR];
};
__device__ __forceinline__ bool is_aligned(const Scalar* vector) {
    return reinterpret_cast<size_t>(vector) % sizeof(ScalarVector) == 0;
}
__device__ __forceinline__ void store_vector(Scalar* to, const AccVector& values) {
    ScalarVector vector;
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) vector.elements[i] = from_acc(values.elements[i]);
    *reinterpret_cast<ScalarVector*>(to) = vector;
}
