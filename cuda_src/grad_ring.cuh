// Rows of g = dy * phi'(s) of a tile: dy and what the forward pass saved are brought ahead (row_ring.cuh), and g is formed
// once for all strips that see it.
#pragma once
#include <type_traits>

#include "activation_grad.cuh"
#include "row_ring.cuh"

// The rows of an array that there is none of.
struct NoRing {
    static constexpr int BYTES = 0;
    __device__ __forceinline__ explicit NoRing(unsigned char*) {}
};

// WIDTH columns of a tile; lanes that see more than their own columns of them say so: SHARED. Formed: the type of g.
template <int WIDTH, bool SHARED, class FormedType = Acc>
struct GradRing {
    using Formed = FormedType;
    static constexpr bool HAS_SAVED = ACTIVATION != IDENTITY, IS_FORMED = HAS_SAVED && SHARED;
    using DyRing = RowRing<Scalar, WIDTH, Y_VECTOR>;
    using SavedRing = std::conditional_t<!HAS_SAVED, NoRing,
                                         std::conditional_t<SAVED_MASK, RowRing<MaskByte, WIDTH / 8 + 2, 1>, DyRing>>;
    static constexpr int FORMED_BYTES = IS_FORMED ? round_up(WIDTH * sizeof(Formed), 16) : 0;
    static constexpr int BYTES = DyRing::BYTES + SavedRing::BYTES + FORMED_BYTES;
    static constexpr int N = COLS * sizeof(Scalar) < 16 ? COLS : 16 / sizeof(Scalar);  // what a lane forms at once

    DyRing dy;
    SavedRing saved;
    Formed* const formed;
    const int first;  // column of g, a multiple of Y_VECTOR

    __device__ __forceinline__ GradRing(unsigned char* memory, int first)
        : dy(memory), saved(memory + DyRing::BYTES),
          formed(reinterpret_cast<Formed*>(memory + DyRing::BYTES + SavedRing::BYTES)), first(first) {}

    // plane: n * K + k.
    __device__ __forceinline__ void ask(const Scalar* all_dy, const Saved* all_saved, const Conv2dShape& shape,
                                        Index plane, int p, bool exists, int stage) {
        const Index row = plane * shape.P + p;
        exists = exists && 0 <= p && p < shape.P;
        dy.ask(all_dy + row * shape.Q, exists, first, shape.Q, stage);
        if constexpr (HAS_SAVED && SAVED_MASK)
            saved.ask(all_saved + row * mask_row_bytes(shape), exists, first >> 3, mask_row_bytes(shape), stage);
        else if constexpr (HAS_SAVED)
            saved.ask(all_saved + row * shape.Q, exists, first, shape.Q, stage);
    }
    // g at COUNT columns from column i of the tile on, a multiple of COLS.
    template <int COUNT>
    __device__ __forceinline__ void form(Acc (&g)[COUNT], int stage, int i) const {
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
                Acc g[N];
                form(g, stage, i);
                write_row(formed, i, g);
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
};
