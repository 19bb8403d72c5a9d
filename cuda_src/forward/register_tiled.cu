// y[n,k,p,q] = phi(b[k] + sum_{c,r,s} x[n, c, p - pad + r, q - pad + s] * w[k,c,r,s])      stride and dilation 1
//
// One thread computes TILE_ROWS x COLS outputs of one (n,k) in registers, from any number of channels and with a filter
// of any size. Channel by channel, and TAP_COLS columns of the filter at a time, it reads the rows of x under its tile,
// 16 bytes a thread at a time, and takes from each all products that are in it. The rung below reads two numbers from
// shared memory for every multiply-add; here a number of x in a register serves up to TILE_ROWS * TAP_COLS of them, and
// a tap COLS. The sums are long: each is a LongSum.
//
// What limits it: each filter reads all of its channels anew, and each tap is a load; no GPU has timed it.
#include "columns.cuh"
#include "forward_of_pixels.cuh"
#include "long_sum.cuh"
#include "pack_mask.cuh"

// Columns of x under a tile, from a column on where a vector may begin, LEAD before the first tap's.
constexpr int WIDTH = (LEAD + COLS + TAP_COLS - 1 + X_VECTOR - 1) / X_VECTOR * X_VECTOR;
static_assert(COLS % Y_VECTOR == 0, "a row of the tile is stored as whole vectors");

// The 1 in __launch_bounds__: left to itself, ptxas spills registers to fit more blocks on a multiprocessor.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
forward(const Scalar* __restrict__ x, const Scalar* __restrict__ w, const Scalar* __restrict__ b,
        Scalar* __restrict__ y, Conv2dShape shape) {
    // Where am I: a tile of plane (n,k); those side by side are consecutive in threadIdx.x.
    const unsigned across = (shape.Q + COLS - 1) / COLS, down = (shape.P + TILE_ROWS - 1) / TILE_ROWS;
    const unsigned tile = blockIdx.x * THREADS + threadIdx.x, plane = tile / across / down;
    if (plane >= unsigned(shape.N) * shape.K) return;
    const int k = plane % shape.K, n = plane / shape.K;
    const int first_c = k / shape.group_filters() * shape.group_channels();
    const int first_p = tile / across % down * TILE_ROWS, first_q = tile % across * COLS;
    const int first_h = first_p - shape.pad_top, first_w = first_q - shape.pad_left;

    LongSum sums[TILE_ROWS][COLS];
    int terms = 0;  // of the sums' runs
    for (int c = 0; c < shape.group_channels(); ++c) {
        const Scalar* const filter = w + shape.w_at(k, c, 0, 0);
        for (int first_s = 0; first_s < shape.S; first_s += TAP_COLS)
            for (int i = 0; i < TILE_ROWS + shape.R - 1; ++i) {
                Columns<WIDTH, X_VECTOR> columns;
                Acc x_row[WIDTH];
                const int h = first_h + i;
                columns.ask(x + shape.x_at(n, first_c + c, h, 0), shape.row_inside(h), first_w + first_s - LEAD,
                            shape.W);
                columns.take(x_row);
#pragma unroll
                for (int row = 0; row < TILE_ROWS; ++row) {
                    const int r = i - row;  // the tap's row in which row `row` of the tile meets this one of x
                    if (r < 0 || r >= shape.R) continue;
#pragma unroll
                    for (int s = 0; s < TAP_COLS; ++s) {
                        if (first_s + s >= shape.S) continue;
                        const Acc tap = to_acc(filter[r * shape.S + first_s + s]);
#pragma unroll
                        for (int j = 0; j < COLS; ++j) sums[row][j].run += tap * x_row[LEAD + j + s];
                    }
                }
                terms += TAP_COLS;
                if (terms < LongSum::RUN) continue;
                terms = 0;
#pragma unroll
                for (int row = 0; row < TILE_ROWS; ++row)
#pragma unroll
                    for (int j = 0; j < COLS; ++j) sums[row][j].end_run();
            }
    }

    bool is_nan = false;
#pragma unroll
    for (int row = 0; row < TILE_ROWS; ++row) {
        if (first_p + row >= shape.P) continue;
        Acc y_row[COLS];
#pragma unroll
        for (int j = 0; j < COLS; ++j) {
            y_row[j] = activate(sums[row][j].value() + (b ? to_acc(b[k]) : Acc(0)));
            is_nan |= isnan(y_row[j]);
        }
#pragma unroll
        for (int j = 0; j < COLS; j += Y_VECTOR)
            if (first_q + j < shape.Q)
                store_vector<Y_VECTOR>(y + shape.y_at(n, k, first_p + row, first_q + j), y_row + j);
    }
    if (is_nan)
        form_y_anew(y, nullptr, x, w, b, shape, plane, first_p, min(first_p + TILE_ROWS, shape.P), first_q,
                    min(first_q + COLS, shape.Q));
}
