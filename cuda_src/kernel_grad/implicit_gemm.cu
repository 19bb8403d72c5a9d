// dw[k,c,r,s] = sum_{n,p,q} g[n,k,p,q] * x[n, c, p*stride - pad + r*dilation, q*stride - pad + s*dilation]
// db[k]       = sum_{n,p,q} g[n,k,p,q]                                         with g = dy * phi'(s)
//
// One block computes TILE_M filters at TILE_N taps (c,r,s), as a product of two matrices: g, and the windows of x that
// the pixels see, a row each, which is looked up as it is staged and never stored. The bias is one more tap, with an
// input that is 1 everywhere. The results are few and the sums long: so the pixels are split among blocks, whose
// partial sums kernel_grad_total adds up in a fixed order. The rungs below read all of x anew for each filter; here
// what is read serves a tile of filters and taps. A step of the sum is LANES pixels: a CPU's vectors run along them,
// as they lie in memory. What limits it: the arithmetic units, if tiles and splits fill the GPU.
#include "gather.cuh"
#include "kernel_grad_total.cuh"
#include "matrix_product.cuh"

// A warp brings 8 steps side by side, a sector of memory, of several rows: writing them meets no bank twice. If a slice
// has more steps, its warps share them.
constexpr int STEPS = DEPTH / LANES, WARP_STEPS = STEPS < 8 ? STEPS : 8, STEP_WARPS = STEPS / WARP_STEPS;
constexpr int AT_ONCE = THREADS / STEPS, OWN_ROWS = TILE_M / AT_ONCE, OWN_TAPS = TILE_N / AT_ONCE;
static_assert(STEP_WARPS == 1 || THREADS % (32 * STEP_WARPS) == 0, "all steps have as many threads");
static_assert(TILE_M % AT_ONCE == 0 && TILE_N % AT_ONCE == 0, "a thread has one step and several rows and taps");

using Product = MatrixProduct<Lane, Lane, STEPS, TILE_N, REG_N, 1>;

// Brings g of the tile's filters, and what its taps see, at DEPTH pixels.
struct Loader {
    const Conv2dShape& shape;
    GradImage g_image;
    Image x_image;
    const PixelGrid grid;
    const int group, first_k, filters, first_tap;
    Step rows[OWN_ROWS], taps[OWN_TAPS];
    Pixels pixels;
    const int rows_on, cols_on;  // from a slice to the next
    Lane g[OWN_ROWS], x[OWN_TAPS];

    __device__ __forceinline__ int step() const {  // neighbouring steps are neighbours in memory
        return threadIdx.x % WARP_STEPS + threadIdx.x / 32 % STEP_WARPS * WARP_STEPS;
    }
    __device__ __forceinline__ int own(int i) const {
        return threadIdx.x % 32 / WARP_STEPS + threadIdx.x / 32 / STEP_WARPS * (32 / WARP_STEPS) + i * AT_ONCE;
    }
    __device__ __forceinline__ int bias() const { return shape.group_channels() * shape.R * shape.S; }

    __device__ __forceinline__ Loader(const GradImage& g, const Image& x, const Conv2dShape& shape,
                                      int group, int first_row, int first_tap, int first_slice)
        : shape(shape), g_image(g), x_image(x), grid{shape.N, shape.P, shape.Q}, group(group),
          first_k(group * shape.group_filters() + first_row), filters(shape.group_filters() - first_row),
          first_tap(first_tap), pixels(first_slice * DEPTH + step() * LANES, grid), rows_on(DEPTH / shape.Q),
          cols_on(DEPTH % shape.Q) {
        // What lies beyond the last filter or tap is not written: instead of it, the last one is read.
#pragma unroll
        for (int i = 0; i < OWN_ROWS; ++i) {
            const int k = min(own(i), filters - 1);
            rows[i] = Step{k, 0, 0, k * shape.P * shape.Q};
        }
#pragma unroll
        for (int i = 0; i < OWN_TAPS; ++i) {
            const int tap = min(first_tap + own(i), bias() - 1), c = tap / shape.S / shape.R;
            const int row = tap / shape.S % shape.R * shape.dilation_h, col = tap % shape.S * shape.dilation_w;
            taps[i] = Step{c, row, col, (c * shape.H + row) * shape.W + col};
        }
    }

    // Slices are asked for one after the other.
    __device__ __forceinline__ void fetch(int) {
        Corners corners;
        find_corners(corners, g_image, shape.K, first_k, pixels, grid,
                     [&](const Pixels& at, Ints& row, Ints& col) INLINED {
                         row = at.p;
                         col = at.q;
                     });
#pragma unroll
        for (int i = 0; i < OWN_ROWS; ++i) g[i] = gather<false>(g_image, corners, rows[i]);

        find_corners(corners, x_image, shape.C, group * shape.group_channels(), pixels, grid,
                     [&](const Pixels& at, Ints& row, Ints& col) INLINED {
                         row = at.p * shape.stride_h - shape.pad_top;
                         col = at.q * shape.stride_w - shape.pad_left;
                     });
#pragma unroll
        for (int i = 0; i < OWN_TAPS; ++i) {
            const Lane seen = gather<true>(x_image, corners, taps[i]);
            x[i] = first_tap + own(i) == bias() ? Lane{} + Acc(1) : seen;
        }
        pixels.advance(rows_on, cols_on, grid);
    }
    __device__ __forceinline__ void put(Product::Slice& slice) const {
#pragma unroll
        for (int i = 0; i < OWN_ROWS; ++i) reinterpret_cast<Lane*>(slice.a[step()])[own(i)] = g[i];
#pragma unroll
        for (int i = 0; i < OWN_TAPS; ++i) reinterpret_cast<Lane*>(slice.b[step()])[own(i)] = x[i];
    }
};

// partial[split][tap], with gridDim.y splits; the K biases are the last taps. taps: of a filter, with the bias's if it
// is wanted
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
kernel_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ x,
            Acc* __restrict__ partial, Conv2dShape shape, int taps, int split_slices) {
    // Where am I: a tile of filters of one group (consecutive blocks share their windows), one of taps, and a split.
    const int m_tiles = (shape.group_filters() + TILE_M - 1) / TILE_M, tap_tiles = (taps + TILE_N - 1) / TILE_N;
    const int first_row = blockIdx.x % m_tiles * TILE_M;
    const int first_tap = blockIdx.x / m_tiles % tap_tiles * TILE_N;
    const int group = blockIdx.x / m_tiles / tap_tiles;
    const int slices = (shape.N * shape.P * shape.Q + DEPTH - 1) / DEPTH;
    const int first_slice = blockIdx.y * split_slices;

    Loader loader(GradImage(dy, saved, shape), Image(x, Index(shape.N) * shape.C, shape.H, shape.W), shape, group,
                  first_row, first_tap, first_slice);
    Product product;
    product.run(loader, first_slice, min(first_slice + split_slices, slices));

    // Neighbouring taps are consecutive in threadIdx.x.
    Acc* const split = partial + blockIdx.y * (shape.w_size() + shape.K);
    unroll<REG_M>([&](auto i) INLINED {
        unroll<REG_N>([&](auto j) INLINED {
            const int row = first_row + product.row(i), tap = first_tap + product.column(j);
            const int bias = shape.group_channels() * shape.R * shape.S;
            if (row >= shape.group_filters() || tap >= taps) return;
            const int k = group * shape.group_filters() + row;
            split[tap < bias ? Index(k) * bias + tap : shape.w_size() + k] = total(product.sums[i][j]);
        });
    });
}
