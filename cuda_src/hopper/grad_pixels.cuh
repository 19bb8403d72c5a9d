// What kernel_grad/hopper.cu multiplies in 16 bits: boxes of pixels, channels side by side (staged_image.cuh).
//
// Pixels are what is summed, so that both factors lie in shared memory transposed, a pixel a row of 128 bytes, as they
// come. A block has TAPS_ASIDE taps of one column, which are the same box of x, read from rows further on: its rows are
// the distance between the columns of one product, which reads them once.
#pragma once
#include "copies.cuh"
#include "staged_image.cuh"

constexpr int ROW_BYTES = 128, PATTERN = 1024, DEEP = 16;  // pixels of a product of matrices
constexpr int BOX_PIXELS = TILE_P * TILE_Q * TILE_IMAGES, BOX_ROW_BYTES = TILE_Q * TILE_IMAGES * ROW_BYTES;
constexpr int G_BYTES = BOX_PIXELS * ROW_BYTES;  // of 64 filters
// One box of x for all taps of a column, or one for each where a stride leaves gaps between what pixels see.
constexpr int X_BOXES = ONE_BOX ? 1 : TAPS_ASIDE, X_BYTES = BOX_ROWS * BOX_ROW_BYTES;
static_assert(BOX_ROW_BYTES % PATTERN == 0, "a row of a box is whole patterns");
static_assert(BOX_PIXELS % DEEP == 0, "a box is a sum of whole products");
static_assert(RUN_STEPS % BOX_PIXELS == 0, "a part is a run");

// Of the matrices in a slot: products of a box, how far on the next one begins, and how far apart taps are.
constexpr bool IS_TRANSPOSED = true;
constexpr int STEPS = BOX_PIXELS / DEEP, STEP_BYTES = DEEP * ROW_BYTES;
constexpr int LEADING = ONE_BOX ? TAP_ROWS * BOX_ROW_BYTES : X_BYTES;

using TurnedImage = ImageExtents;
__device__ __forceinline__ TurnedImage turned_x(const Conv2dShape& shape) {
    return {shape.N, shape.groups, shape.group_channels(), shape.H, shape.W, bool(X_IN_PLACE)};
}
__device__ __forceinline__ TurnedImage turned_g(const Conv2dShape& shape) {
    return {shape.N, shape.groups, shape.group_filters(), shape.P, shape.Q, bool(G_IN_PLACE)};
}
// What a chunk that is being turned holds of g.
__device__ __forceinline__ Acc staged(const StagedChunk& chunk, int pixel, int filter) {
    return Factor::element(chunk[pixel][filter / 2], filter % 2);
}

// The number-th TAPS_ASIDE taps: rows of one column of the filter. Taps are numbered r * S + s; those from R * S on are
// none.
struct Taps {
    int s, first_r;

    static __device__ __forceinline__ int count(const Conv2dShape& shape) {
        return (shape.R + TAPS_ASIDE - 1) / TAPS_ASIDE * shape.S;
    }
    __device__ __forceinline__ Taps(int number, const Conv2dShape& shape)
        : s(number % shape.S), first_r(number / shape.S * TAPS_ASIDE) {}
    __device__ __forceinline__ int tap(int aside, const Conv2dShape& shape) const {
        return (first_r + aside) * shape.S + s;
    }
};

struct PixelBox {
    int n, p, q;

    __device__ __forceinline__ PixelBox(int number, const Conv2dShape& shape) {
        const int across = (shape.Q + TILE_Q - 1) / TILE_Q, down = (shape.P + TILE_P - 1) / TILE_P;
        q = number % across * TILE_Q, p = number / across % down * TILE_P, n = number / across / down * TILE_IMAGES;
    }
    static __device__ __forceinline__ int count(const Conv2dShape& shape) {
        return (shape.Q + TILE_Q - 1) / TILE_Q * ((shape.P + TILE_P - 1) / TILE_P) *
               ((shape.N + TILE_IMAGES - 1) / TILE_IMAGES);
    }
};

// What one of ASKING threads asks for: half of the filters of g, and the pixels of x that a tap sees.
constexpr int ASKING = X_BOXES > 2 ? X_BOXES : 2;
struct Asked {
    int own, s, r, c, k, group;

    __device__ __forceinline__ Asked(int own, const Conv2dShape&, const Taps& taps, int first_c, int first_k, int group)
        : own(own), s(taps.s), r(taps.first_r + own), c(first_c), k(first_k + own * 64), group(group) {}
    __device__ __forceinline__ void ask(char* g, char* x, const TensorMap& g_map, const TensorMap& x_map,
                                        Mbarrier& full, int number, const Conv2dShape& shape) const {
        const PixelBox at(number, shape);
        if (own < 2) copy_box(g + own * G_BYTES, g_map, full, k, group, at.q, at.n, at.p);
        if (own < X_BOXES)
            copy_box(x + own * X_BYTES, x_map, full, c, group, shape.input_col(at.q, s), at.n,
                     shape.input_row(at.p, r));
    }
};
