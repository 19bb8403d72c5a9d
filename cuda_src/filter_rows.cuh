// How forward's and input_grad's implicit_gemm bring both matrices to shared memory: numbers, a step's side by side.
#pragma once
#include "filter_product.cuh"

// Brings a slice of a tile of the packed filter, 16 bytes at a time.
struct FilterLoader {
    static constexpr int VECTORS = DEPTH * TILE_M / VECTOR, OWN = VECTORS / THREADS;
    static_assert(VECTORS % THREADS == 0, "the threads share a slice of the filter evenly");

    const AccVector* from;  // this thread's part of the next slice
    AccVector own[OWN];

    __device__ __forceinline__ explicit FilterLoader(const Acc* rows)
        : from(reinterpret_cast<const AccVector*>(rows) + threadIdx.x) {}
    __device__ __forceinline__ void fetch() {
#pragma unroll
        for (int i = 0; i < OWN; ++i) own[i] = from[i * THREADS];
        from += VECTORS;
    }
    __device__ __forceinline__ void put(Acc (&slice)[DEPTH][TILE_M]) const {
#pragma unroll
        for (int i = 0; i < OWN; ++i) reinterpret_cast<AccVector*>(slice)[threadIdx.x + i * THREADS] = own[i];
    }
};

// Brings a slice of windows.
template <class Reader, int PIXELS>
struct WindowLoader : WindowReads<Reader, PIXELS, 1> {
    using WindowReads<Reader, PIXELS, 1>::WindowReads;

    __device__ __forceinline__ void put(Acc (&slice)[DEPTH][TILE_N]) const {
#pragma unroll
        for (int i = 0; i < this->OWN; ++i) {
            Acc* const to = &slice[this->first_step + this->step(i)][this->first_pixel];
            if constexpr (PIXELS == 1) {
                *to = this->own[i].value(0);
            } else {
                AccVector values;
#pragma unroll
                for (int e = 0; e < VECTOR; ++e) values.elements[e] = this->own[i].value(e);
                *reinterpret_cast<AccVector*>(to) = values;
            }
        }
    }
};

