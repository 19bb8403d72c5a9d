// SEEDED: the filter's array has 4 elements
//@ constant TILE_W = 32
//@ constant TILE_H = 8
//@ launch forward(x, w, b, y) grid=[ceil_div(Q, TILE_W), ceil_div(P, TILE_H)] block=[TILE_W, TILE_H] shared=[(TILE_H + R - 1) * (TILE_W + S - 1) * 4]
#include "activation.cuh"
#include "conv2d.cuh"

extern "C" __global__ void forward(const Scalar* x, const Scalar* w, const Scalar* b, Scalar* y, Conv2dShape shape) {
    extern __shared__ Scalar x_tile[];
    __shared__ Scalar filter[4];
    const int thread = threadIdx.y * TILE_W + threadIdx.x;
    const int tile_cols = TILE_W + shape.S - 1, tile_rows = TILE_H + shape.R - 1;
    const int first_row = blockIdx.y * TILE_H - shape.pad_top, first_col = blockIdx.x * TILE_W - shape.pad_left;
    for (int i = thread; i < shape.R * shape.S; i += TILE_W * TILE_H)
        filter[i] = w[i];  //! array index, out of bounds
    for (int i = thread; i < tile_rows * tile_cols; i += TILE_W * TILE_H) {
        const int row = first_row + i / tile_cols, col = first_col + i % tile_cols;
        const bool inside = row >= 0 && row < shape.H && col >= 0 && col < shape.W;
        x_tile[i] = inside ? x[row * shape.W + col] : Scalar(0);
    }
    __syncthreads();  // the tile is there
    Acc sum = b ? to_acc(b[0]) : Acc(0);
    for (int r = 0; r < shape.R; ++r)
        for (int s = 0; s < shape.S; ++s) {
            const Scalar seen = x_tile[(threadIdx.y + r) * tile_cols + threadIdx.x + s];
            const Scalar tap = filter[r * shape.S + s];  //! array index, out of bounds
            sum += to_acc(seen) * to_acc(tap);
        }
    const int p = blockIdx.y * TILE_H + threadIdx.y, q = blockIdx.x * TILE_W + threadIdx.x;
    if (p < shape.P && q < shape.Q) y[p * shape.Q + q] = from_acc(activate(sum));
}
