// Rows of g = dy * phi'(s) of a tile: dy and what the forward pass saved are brought ahead (row_ring.cuh), and g is formed
// once for all strips that see it.
#pragma once
#include <string.h>

#include <type_traits>

#include "activation_grad.cuh"
#include "row_ring.cuh"

// Of a ReLU g is dy or 0, and no more digits than dy's are needed for it.
using GradElement = std::conditional_t<ACTIVATION == RELU, Scalar, Acc>;

// Two neighbouring numbers of 16 bits, and all bits of those that are not <= 0 (what a ReLU lets through), as one word.
using Pair = std::conditional_t<std::is_same_v<Scalar, __half>, __half2, __nv_bfloat162>;
__device__ __forceinline__ unsigned open_bits(__half2 y) { return __hgtu2_mask(y, __half2()); }
__device__ __forceinline__ unsigned open_bits(__nv_bfloat162 y) { return __hgtu2_mask(y, __nv_bfloat162()); }

// WIDTH columns of a tile; lanes that see more than their own columns of them say so: SHARED. Formed: the type of g.
template <int WIDTH, bool SHARED, class FormedType = GradElement>
struct GradRing {
    using Formed = FormedType;
    static constexpr bool HAS_SAVED = ACTIVATION != IDENTITY, IS_FORMED = HAS_SAVED && SHARED;
    // Whether g is formed two numbers at a time, without a look at what dy is.
    static constexpr bool IN_PAIRS = ACTIVATION == RELU && sizeof(Scalar) == 2 && !SAVED_MASK;
    using DyRing = RowRing<Scalar, WIDTH, Y_VECTOR>;
    using SavedRing = std::conditional_t<!HAS_SAVED, NoRing,
                                         std::conditional_t<SAVED_MASK, RowRing<MaskByte, WIDTH / 8 + 2, 1>, DyRing>>;
    static constexpr int FORMED_BYTES = IS_FORMED ? round_up(WIDTH * sizeof(Formed), 16) : 0;
    static constexpr int BYTES = DyRing::BYTES + SavedRing::BYTES + FORMED_BYTES;
    static constexpr int N = Quad<Scalar>::N;  // what a lane forms at once

    DyRing dy;
    SavedRing saved;
    Formed* const formed;
    const int first;  // column of g, a multiple of Y_VECTOR

    // plane: n * K + k; p: the row of it that is asked for first, which need not be there; first: the tile's first column.
    __device__ __forceinline__ GradRing(unsigned char* memory, const Scalar* all_dy, const Saved* all_saved,
                                        const Conv2dShape& shape, Index plane, int p, int first)
        : dy(memory, all_dy + (plane * shape.P + p) * shape.Q, first, shape.Q),
          saved(memory + DyRing::BYTES, all_saved + (plane * shape.P + p) * saved_columns(shape),
                SAVED_MASK ? first >> 3 : first, saved_columns(shape)),
          formed(reinterpret_cast<Formed*>(memory + DyRing::BYTES + SavedRing::BYTES)), first(first) {}

    __device__ __forceinline__ void ask(int stage, bool exists, bool wanted = true) {
        dy.ask(stage, exists, wanted);
        saved.ask(stage, exists, wanted);
    }
    __device__ __forceinline__ void ask_nothing() {
        dy.ask_nothing();
        saved.ask_nothing();
    }
    // g at COUNT columns from column i of the tile on, a multiple of COLS.
    template <int COUNT>
    __device__ __forceinline__ void form(Acc (&g)[COUNT], int stage, int i) const {
        if constexpr (IN_PAIRS) {
#pragma unroll
            for (int j = 0; j < COUNT; j += N) {
                const Quad<Scalar> own = form_in_pairs(stage, i + j);
#pragma unroll
                for (int m = 0; m < N; ++m)
                    if (j + m < COUNT) g[j + m] = to_acc(own.elements[m]);
            }
            return;
        }
        read_row(g, dy.row(stage), i);
        if constexpr (HAS_SAVED && SAVED_MASK) {
            static_assert(COUNT <= 57, "the bits of a window, from any bit of a byte on, fit one word");
            const int bit = first + i - (first >> 3) * 8;
            unsigned long long bits = 0;
#pragma unroll
            for (int m = 0; m < (COUNT + 7 + 7) / 8; ++m)
                bits |= (unsigned long long)saved.row(stage)[bit / 8 + m] << 8 * m;
            bits >>= bit % 8;
#pragma unroll
            for (int j = 0; j < COUNT; ++j)
                if (!(bits >> j & 1)) g[j] = 0;
        } else if constexpr (HAS_SAVED) {
            Acc outputs[COUNT];
            read_row(outputs, saved.row(stage), i);
#pragma unroll
            for (int j = 0; j < COUNT; ++j) g[j] = times_derivative(g[j], outputs[j]);
        }
    }
    // The tile's lanes form g of a row that is there; ends with a __syncwarp, if there is anything to form.
    __device__ __forceinline__ void form_row(int stage) {
        if constexpr (IS_FORMED) {
            for (int i = tile_lane() * N; i < WIDTH; i += TILE_LANES * N) {
                if constexpr (IN_PAIRS && sizeof(Formed) == 2) {
                    *reinterpret_cast<Quad<Scalar>*>(formed + i) = form_in_pairs(stage, i);
                } else {
                    Acc g[N];
                    form(g, stage, i);
                    write_row(formed, i, g);
                }
            }
            __syncwarp();
        }
    }
    // That row; g is dy itself where there is no activation.
    __device__ __forceinline__ auto formed_row(int stage) const {
        if constexpr (HAS_SAVED)
            return static_cast<const Formed*>(formed);
        else
            return dy.row(stage);
    }
    // The window of COUNT columns of that row.
    template <int COUNT>
    __device__ __forceinline__ void read(Acc (&g)[COUNT], int stage, int i) const {
        if constexpr (IS_FORMED)
            read_row(g, formed, i);
        else
            form(g, stage, i);
    }

private:
    __device__ __forceinline__ static int saved_columns(const Conv2dShape& shape) {
        return SAVED_MASK ? int(mask_row_bytes(shape)) : shape.Q;
    }
    // N columns of g, of a ReLU in 16 bits: dy with the bits of those cleared that are closed.
    __device__ __forceinline__ Quad<Scalar> form_in_pairs(int stage, int i) const {
        struct alignas(Quad<Scalar>) Pairs {
            Pair pairs[N / 2];
        };
        Pairs g = *reinterpret_cast<const Pairs*>(dy.row(stage) + i);
        const Pairs y = *reinterpret_cast<const Pairs*>(saved.row(stage) + i);
#pragma unroll
        for (int j = 0; j < N / 2; ++j) {
            unsigned bits;
            memcpy(&bits, &g.pairs[j], sizeof bits);
            bits &= open_bits(y.pairs[j]);
            memcpy(&g.pairs[j], &bits, sizeof bits);
        }
        Quad<Scalar> formed;
        memcpy(&formed, &g, sizeof formed);
        return formed;
    }
};
