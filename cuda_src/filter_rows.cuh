// How forward's and input_grad's implicit_gemm bring both matrices to shared memory: numbers, a step's side by side. What
// needs no arithmetic goes past the registers.
#pragma once
#include "filter_product.cuh"
#include "matrix_product.cuh"

using Product = MatrixProduct<0>;

// Brings a slice of a tile of the packed filter, 16 bytes at a time.
struct FilterLoader {
    static constexpr int VECTORS = DEPTH * TILE_M / VECTOR, OWN = VECTORS / THREADS;
    static_assert(VECTORS % THREADS == 0, "the threads share a slice of the filter evenly");

    const AccVector* from;  // this thread's part of the next slice

    __device__ __forceinline__ explicit FilterLoader(const Acc* rows)
        : from(reinterpret_cast<const AccVector*>(rows) + threadIdx.x) {}
    __device__ __forceinline__ void fetch(Acc (&slice)[DEPTH][TILE_M]) {
        AccVector* const to = reinterpret_cast<AccVector*>(slice) + threadIdx.x;
#pragma unroll
        for (int i = 0; i < OWN; ++i) __pipeline_memcpy_async(to + i * THREADS, from + i * THREADS, sizeof(AccVector));
        __pipeline_commit();
        from += VECTORS;
    }
    // Waits for the windows that are copied, too.
    __device__ __forceinline__ void put(Acc (&)[DEPTH][TILE_M]) const { __pipeline_wait_prior(0); }
};

// Brings a slice of windows.
template <class Reader, int PIXELS>
struct WindowLoader : WindowReads<Reader, PIXELS, 1> {
    using WindowReads<Reader, PIXELS, 1>::WindowReads;

    __device__ __forceinline__ Acc* place(Acc (&slice)[DEPTH][TILE_N], int i) const {
        return &slice[this->first_step + this->step(i)][this->first_pixel];
    }
    __device__ __forceinline__ void fetch(Acc (&slice)[DEPTH][TILE_N]) {
        if constexpr (Reader::IS_PLAIN) {
#pragma unroll
            for (int i = 0; i < this->OWN; ++i) {
                this->go_to_step(i);
                this->reader.template copy<PIXELS>(place(slice, i));
            }
            __pipeline_commit();
            this->offsets += DEPTH;
        } else {
            WindowReads<Reader, PIXELS, 1>::fetch(slice);
        }
    }
    __device__ __forceinline__ void put(Acc (&slice)[DEPTH][TILE_N]) const {
        if constexpr (!Reader::IS_PLAIN) {
#pragma unroll
            for (int i = 0; i < this->OWN; ++i) {
                Acc* const to = place(slice, i);
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
    }
};

