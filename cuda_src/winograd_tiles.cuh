// The 4 x 4 pixels of a tile of 2 x 2 results, of x or of g, in a thread's registers: plane after plane of a group.
//
// Which of them lie inside the image is the same in each plane: a bit each, found once. Where there is no pixel, a
// register keeps the zero that it began with.
#pragma once
#include "activation_grad.cuh"

constexpr int ELEMENTS = 16;

// Of x, in every DEPTH-th plane.
struct InputTiles {
    static constexpr bool CROWDED = false;
    const Scalar* corner;  // of the tile, in the next plane
    const int rows, cols;
    const Index image_pitch;
    unsigned inside = 0;  // bit e: whether there is a pixel e
    Scalar own[ELEMENTS] = {};

    __device__ __forceinline__ InputTiles(const Scalar* images, int all_planes, int first_plane, int rows, int cols)
        : corner(images + Index(first_plane) * rows * cols), rows(rows), cols(cols),
          image_pitch(Index(all_planes) * rows * cols) {}
    __device__ __forceinline__ InputTiles(const Scalar* x, const Conv2dShape& shape, int group)
        : InputTiles(x, shape.C, group * shape.group_channels(), shape.H, shape.W) {}
    __device__ __forceinline__ void begin(int n, int plane, int row, int col, bool exists) {
#pragma unroll
        for (int e = 0; e < ELEMENTS; ++e)
            if (exists && unsigned(row + e / 4) < unsigned(rows) && unsigned(col + e % 4) < unsigned(cols))
                inside |= 1u << e;
        corner += n * image_pitch + (Index(plane) * rows + row) * cols + col;
    }
    __device__ __forceinline__ void fetch(bool exists) {
        const unsigned here = exists ? inside : 0;
        const Scalar* row = corner;
#pragma unroll
        for (int e = 0; e < ELEMENTS; ++e) {
            if (here >> e & 1) own[e] = __ldg(row + e % 4);
            if (e % 4 == 3) row += cols;
        }
        corner += DEPTH * Index(rows * cols);
    }
    __device__ __forceinline__ Acc value(int e) const { return to_acc(own[e]); }
};

// Of g = dy * phi'(s), formed from dy and from what the forward pass saved: y, or its bit mask.
struct GradTiles {
    InputTiles dy;
    // Whether phi' takes so many registers that no filter can wait in others.
    static constexpr bool CROWDED = ACTIVATION == GELU;
    static constexpr int ACROSS = SAVED_MASK ? 2 : 4;  // a tile's row is in two bytes of the mask at most
    const Saved* corner;                               // of the tile in y, or its first byte in the mask
    const int pitch;                                   // from a row to the next
    const Index image_pitch;
    unsigned inside = 0;  // bit i: whether there is own[i]
    int bit = 0;          // of the tile's first column in its byte
    Saved own[4 * ACROSS] = {};

    __device__ __forceinline__ GradTiles(const Scalar* dy, const Saved* saved, const Conv2dShape& shape, int group)
        : dy(dy, shape.K, group * shape.group_filters(), shape.P, shape.Q),
          corner(saved + Index(group) * shape.group_filters() * shape.P * row_size(shape)), pitch(row_size(shape)),
          image_pitch(Index(shape.K) * shape.P * pitch) {}
    static __device__ __forceinline__ int row_size(const Conv2dShape& shape) {
        return SAVED_MASK ? int(mask_row_bytes(shape)) : shape.Q;
    }
    __device__ __forceinline__ void begin(int n, int plane, int row, int first_col, bool exists) {
        dy.begin(n, plane, row, first_col, exists);
        const int col = SAVED_MASK ? first_col >> 3 : first_col;
#pragma unroll
        for (int i = 0; i < 4 * ACROSS; ++i) {
            const int h = row + i / ACROSS, w_ = col + i % ACROSS;
            if (exists && unsigned(h) < unsigned(dy.rows) && unsigned(w_) < unsigned(pitch)) inside |= 1u << i;
        }
        corner += n * image_pitch + (Index(plane) * dy.rows + row) * pitch + col;
        bit = first_col & 7;
    }
    __device__ __forceinline__ void fetch(bool exists) {
        dy.fetch(exists);
        if constexpr (ACTIVATION == IDENTITY) return;
        const unsigned here = exists ? inside : 0;
        const Saved* row = corner;
#pragma unroll
        for (int i = 0; i < 4 * ACROSS; ++i) {
            if (here >> i & 1) own[i] = __ldg(row + i % ACROSS);
            if (i % ACROSS == ACROSS - 1) row += pitch;
        }
        corner += DEPTH * Index(dy.rows * pitch);
    }
    __device__ __forceinline__ Acc value(int e) const {
        const Acc g = dy.value(e);
        if constexpr (ACTIVATION == IDENTITY) return g;
        if constexpr (SAVED_MASK) {
            const int bits = int(own[e / 4 * 2]) | int(own[e / 4 * 2 + 1]) << 8;
            return bits >> bit >> e % 4 & 1 ? g : Acc(0);
        } else
            return times_derivative(g, to_acc(own[e]));
    }
};
