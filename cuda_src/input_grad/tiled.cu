// dx[n,c,h,w_] = sum_{k,r,s} g[n,k,p,q] * w[k,c,r,s]   over all (p,q) that read x[n,c,h,w_] through tap (r,s),
//                with g = dy * phi'(s)
//
// One block computes a tile of TILE_H x TILE_W elements of dx of one (n,c), a thread each, from outputs that it
// stages in shared memory. Filter by filter it loads the outputs that read its tile, as g, and the filter; then every
// thread gathers from there. What changed from naive: phi' is formed once for an output that a block loads, not once
// for each of its R*S taps. And the taps that meet a pixel, those with p*stride - pad + r*dilation = h for a whole p,
// are stride / gcd(stride, dilation) apart: a thread finds the first and steps, where naive divides at every tap. On
// a CPU two waits at a barrier for each filter cost a thread more than that saves, but for large filters.
//
// No bank conflicts at unit stride: w_ is consecutive in threadIdx.x and a warp lies in one row of the tile, so at a
// tap its 32 lanes read 32 consecutive numbers of g_tile, and all of them the same number of w_tile.
//
// What limits it: two reads of shared memory for every multiply-add; and each of a group's channels stages the same
// outputs, and forms their g, again. On an H200, 5x5 at 4096 x 4096 took 14 times as long as a copy.
#include "activation.cuh"
#include "add_products.cuh"
#include "conv2d.cuh"

static_assert(TILE_W % 32 == 0, "a warp lies in one row of the tile, or two rows of it would meet in a bank");
static_assert(TILE_H * TILE_W <= 1024, "a thread an element, and a block has at most 1024");

constexpr int THREADS = TILE_H * TILE_W;

extern __shared__ Acc shared[];

// The taps along one axis that meet a pixel: count of them from first on, and the output that the first meets it in.
struct Meetings {
    int first, count, output;
};

// position = h + pad = p * stride + r * dilation, or the same across; the taps that meet it are `step` apart.
__device__ __forceinline__ Meetings find_meetings(int position, int stride, int dilation, int step, int taps,
                                                  int outputs) {
    int tap = 0;
    int strides = position;  // from the first output to the tap's, times stride; below zero: there is none any more
    while (tap < taps && strides >= 0 && (strides % stride != 0 || strides / stride >= outputs)) {
        ++tap;
        strides -= dilation;
    }
    const int last_tap = min(taps - 1, position / dilation);
    return {tap, tap <= last_tap ? (last_tap - tap) / step + 1 : 0, strides / stride};
}

// The first output whose last tap lies at the position or beyond.
__device__ __forceinline__ int first_to_reach(int position, int stride, int dilation, int taps) {
    const int strides = position - (taps - 1) * dilation;
    return strides > 0 ? (strides - 1) / stride + 1 : 0;
}

// gcd_h and gcd_w are those of stride and dilation.
// The 1 in __launch_bounds__: left to itself, ptxas spills registers to fit more blocks on a multiprocessor.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
input_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ w,
           const Scalar* __restrict__ b, Scalar* __restrict__ dx, Conv2dShape shape, int gcd_h, int gcd_w) {
    // Where am I: input element (n,c,h,w_), with w_ consecutive in threadIdx.x. A thread beyond the last input helps
    // to load.
    const Index plane = Index(blockIdx.z) * gridDim.y + blockIdx.y;  // (n,c)
    if (plane >= Index(shape.N) * shape.C) return;                   // the whole block
    const int n = plane / shape.C;
    const int c = plane % shape.C;
    const int w_tiles = (shape.W - 1) / TILE_W + 1;
    const int first_h = blockIdx.x / w_tiles * TILE_H;
    const int first_w = blockIdx.x % w_tiles * TILE_W;
    const int h = first_h + threadIdx.y;
    const int w_ = first_w + threadIdx.x;
    const bool is_input = h < shape.H && w_ < shape.W;
    const int first_k = c / shape.group_channels() * shape.group_filters();

    // The outputs that read the tile; there may be none.
    const int last_h = min(first_h + TILE_H - 1, shape.H - 1);
    const int last_w = min(first_w + TILE_W - 1, shape.W - 1);
    const int first_p = first_to_reach(first_h + shape.pad_top, shape.stride_h, shape.dilation_h, shape.R);
    const int first_q = first_to_reach(first_w + shape.pad_left, shape.stride_w, shape.dilation_w, shape.S);
    const int rows = min((last_h + shape.pad_top) / shape.stride_h, shape.P - 1) - first_p + 1;
    const int cols = min((last_w + shape.pad_left) / shape.stride_w, shape.Q - 1) - first_q + 1;
    Acc* const w_tile = shared;                      // [R][S]
    Acc* const g_tile = shared + shape.R * shape.S;  // [rows][cols]

    // The taps that meet my pixel: from one to the next, r grows by r_step and p falls by p_step.
    const int r_step = shape.stride_h / gcd_h, p_step = shape.dilation_h / gcd_h;
    const int s_step = shape.stride_w / gcd_w, q_step = shape.dilation_w / gcd_w;
    const Meetings down =
        find_meetings(h + shape.pad_top, shape.stride_h, shape.dilation_h, r_step, shape.R, shape.P);
    const Meetings across =
        find_meetings(w_ + shape.pad_left, shape.stride_w, shape.dilation_w, s_step, shape.S, shape.Q);

    LongSum dx_sum;
    for (int k = first_k; k < first_k + shape.group_filters(); ++k) {
        // Neighbouring threads load neighbouring columns.
        for (int row = threadIdx.y; row < rows; row += TILE_H)
            for (int col = threadIdx.x; col < cols; col += TILE_W)
                g_tile[row * cols + col] =
                    pre_activation_grad(dy, saved, shape, n, k, first_p + row, first_q + col);
        for (int tap = threadIdx.y * TILE_W + threadIdx.x; tap < shape.R * shape.S; tap += THREADS)
            w_tile[tap] = to_acc(w[shape.w_at(k, c % shape.group_channels(), 0, 0) + tap]);
        __syncthreads();  // the tile is complete

        if (is_input)
            for (int i = 0; i < down.count; ++i) {
                const int row = down.output - i * p_step - first_p;
                const int r = down.first + i * r_step;
                add_products(dx_sum, g_tile + row * cols + across.output - first_q, -q_step,
                             w_tile + r * shape.S + across.first, s_step, across.count);
            }
        __syncthreads();  // nobody reads the tile any more
    }
    if (is_input) dx[shape.x_at(n, c, h, w_)] = from_acc(dx_result(dx_sum.value(), b, c));
}
