// dx[n,c,h,w_] = sum_{k,r,s} g[n, k, h + pad - r, w_ + pad - s] * w[k,c,r,s]
//                with g = dy * phi'(s), stride and dilation 1
//
// One thread computes TILE_ROWS x COLS elements of dx of one (n,c) in registers, from any number of filters of any
// size. Substituting r by R - 1 - r shows the forward pass's sum, over g in place of x and with the filters turned by
// 180 degrees, and it is formed as there: filter by filter, and TAP_COLS columns of it at a time. g is formed as its
// rows are loaded, once for all taps. The rung below reads two numbers from shared memory for every multiply-add; here
// a number of g in a register serves up to TILE_ROWS * TAP_COLS of them, and a tap COLS. The sums are long: each is a
// LongSum.
//
// What limits it: each channel reads all of its filters' outputs anew, and each tap is a load. On an H200 it gave 3
// channels at 224 x 224, from 64 filters of 3x3, in 8 times the time of torch.
#include "columns.cuh"
#include "input_grad_of_pixels.cuh"
#include "long_sum.cuh"

// Columns of g over a tile, from a column on where a vector may begin, LEAD before the first tap's.
constexpr int WIDTH = (LEAD + COLS + TAP_COLS - 1 + Y_VECTOR - 1) / Y_VECTOR * Y_VECTOR;
static_assert(COLS % X_VECTOR == 0, "a row of the tile is stored as whole vectors");

// The 1 in __launch_bounds__: left to itself, ptxas spills registers to fit more blocks on a multiprocessor.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
input_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ w,
           const Scalar* __restrict__ b, Scalar* __restrict__ dx, Conv2dShape shape) {
    // Where am I: a tile of plane (n,c); those side by side are consecutive in threadIdx.x.
    const unsigned across = (shape.W + COLS - 1) / COLS, down = (shape.H + TILE_ROWS - 1) / TILE_ROWS;
    const unsigned tile = blockIdx.x * THREADS + threadIdx.x, plane = tile / across / down;
    if (plane >= unsigned(shape.N) * shape.C) return;
    const int c = plane % shape.C, n = plane / shape.C, group_c = c % shape.group_channels();
    const int first_k = c / shape.group_channels() * shape.group_filters();
    const int first_h = tile / across % down * TILE_ROWS, first_w = tile % across * COLS;
    // Tap (0,0) of the turned filter meets dx[h,w_] in g[h - top, w_ - left].
    const int top = shape.R - 1 - shape.pad_top, left = shape.S - 1 - shape.pad_left;

    LongSum sums[TILE_ROWS][COLS];
    int terms = 0;  // of the sums' runs
    for (int k = first_k; k < first_k + shape.group_filters(); ++k) {
        const Scalar* const filter = w + shape.w_at(k, group_c, 0, 0);
        for (int first_s = 0; first_s < shape.S; first_s += TAP_COLS)
            for (int i = 0; i < TILE_ROWS + shape.R - 1; ++i) {
                GradColumns<WIDTH, Y_VECTOR> columns;
                Acc g_row[WIDTH];
                columns.ask(dy, saved, shape, Index(n) * shape.K + k, first_h - top + i,
                            first_w - left + first_s - LEAD);
                columns.take(g_row);
#pragma unroll
                for (int row = 0; row < TILE_ROWS; ++row) {
                    const int r = shape.R - 1 - (i - row);  // the tap's row in which row `row` meets this one of g
                    if (r < 0 || r >= shape.R) continue;
#pragma unroll
                    for (int s = 0; s < TAP_COLS; ++s) {
                        if (first_s + s >= shape.S) continue;
                        const Acc tap = to_acc(filter[r * shape.S + shape.S - 1 - (first_s + s)]);
#pragma unroll
                        for (int j = 0; j < COLS; ++j) sums[row][j].run += tap * g_row[LEAD + j + s];
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
        if (first_h + row >= shape.H) continue;
        Acc dx_row[COLS];
#pragma unroll
        for (int j = 0; j < COLS; ++j) {
            dx_row[j] = dx_result(sums[row][j].value(), b, c);
            is_nan |= isnan(dx_row[j]);
        }
#pragma unroll
        for (int j = 0; j < COLS; j += X_VECTOR)
            if (first_w + j < shape.W)
                store_vector<X_VECTOR>(dx + shape.x_at(n, c, first_h + row, first_w + j), dx_row + j);
    }
    if (is_nan)
        form_dx_anew(dx, dy, saved, w, b, shape, plane, first_h, min(first_h + TILE_ROWS, shape.H), first_w,
                     min(first_w + COLS, shape.W));
}
