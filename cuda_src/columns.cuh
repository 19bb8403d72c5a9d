// A few neighbouring columns of an image's row: loaded as vectors of up to 16 bytes a thread, and stored as such.
//
// A warp whose threads take neighbouring columns reads and writes whole sectors of memory. VECTOR divides the row's
// length and its vectors are aligned, so that each of them lies inside the row or outside as a whole.
#pragma once
#include "activation_grad.cuh"
#include "vector.cuh"

// WIDTH columns on their way from memory. Asked for early and taken late, they cost no waiting.
template <int WIDTH, int VECTOR>
struct Columns {
    Vector<VECTOR> vectors[WIDTH / VECTOR];

    // Columns first, a multiple of VECTOR, and on of a row of so many; zeros outside, or if there is no such row.
    __device__ __forceinline__ void ask(const Scalar* row, bool exists, int first, int columns) {
#pragma unroll
        for (int i = 0; i < WIDTH / VECTOR; ++i) {
            const int column = first + i * VECTOR;
            const bool inside = exists && 0 <= column && column < columns;
            vectors[i] = inside ? *reinterpret_cast<const Vector<VECTOR>*>(row + column) : Vector<VECTOR>{};
        }
    }
    __device__ __forceinline__ void take(Acc (&values)[WIDTH]) const {
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) values[i] = to_acc(vectors[i / VECTOR].elements[i % VECTOR]);
    }
};

// The same of g = dy * phi'(s), from dy and what the forward pass saved: y, or its bit mask.
template <int WIDTH, int VECTOR>
struct GradColumns {
    static_assert(WIDTH <= 57, "the bits of a row, from any bit of a byte on, fit one word");
    Columns<WIDTH, VECTOR> dy, y;
    unsigned long long bits;

    // plane: n * K + k.
    __device__ __forceinline__ void ask(const Scalar* all_dy, const Saved* saved, const Conv2dShape& shape,
                                        Index plane, int p, int first) {
        const bool exists = 0 <= p && p < shape.P;
        const Index row = plane * shape.P + p;
        dy.ask(all_dy + row * shape.Q, exists, first, shape.Q);
        if constexpr (ACTIVATION == IDENTITY) return;
        if constexpr (SAVED_MASK) {
            const MaskByte* const bytes = reinterpret_cast<const MaskByte*>(saved) + row * mask_row_bytes(shape);
            bits = 0;
#pragma unroll
            for (int i = 0; i < (WIDTH + 7 + 7) / 8; ++i) {
                const int byte = (first >> 3) + i;
                if (exists && 0 <= byte && byte < mask_row_bytes(shape))
                    bits |= (unsigned long long)bytes[byte] << (8 * i);
            }
            bits >>= first & 7;
        } else {
            y.ask(reinterpret_cast<const Scalar*>(saved) + row * shape.Q, exists, first, shape.Q);
        }
    }
    __device__ __forceinline__ void take(Acc (&g)[WIDTH]) const {
        dy.take(g);
        if constexpr (ACTIVATION == IDENTITY) return;
        Acc outputs[WIDTH];
        if constexpr (!SAVED_MASK) y.take(outputs);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i)
            g[i] = SAVED_MASK ? (bits >> i & 1 ? g[i] : Acc(0)) : times_derivative(g[i], outputs[i]);
    }
};
