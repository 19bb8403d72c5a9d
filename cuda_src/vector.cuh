// Neighbouring elements of memory that one instruction moves: up to 16 bytes, at an address aligned to them.
#pragma once
#include "scalar.cuh"

template <int N>
struct alignas(N * sizeof(Scalar)) Vector {
    Scalar elements[N];
};

template <int N>
__device__ __forceinline__ void store_vector(Scalar* to, const Acc* values) {
    Vector<N> vector;
#pragma unroll
    for (int i = 0; i < N; ++i) vector.elements[i] = from_acc(values[i]);
    *reinterpret_cast<Vector<N>*>(to) = vector;
}
