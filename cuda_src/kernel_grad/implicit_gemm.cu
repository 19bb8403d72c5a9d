// dw[k,c,r,s] = sum_{n,p,q} g[n,k,p,q] * x[n, c, p*stride - pad + r*dilation, q*stride - pad + s*dilation]
// db[k]       = sum_{n,p,q} g[n,k,p,q]                                         with g = dy * phi'(s)
//
// One block computes TILE_M filters at TILE_N taps (c,r,s), as a product of two matrices: g, and the windows of x that
// the pixels see, a row each, which is looked up as it is staged and never stored. db is summed up
// from the slices of g as they pass by. The results are few and the sums long: so the pixels are split among blocks, whose
// partial sums kernel_grad_total adds up in a fixed order. The rungs below read all of x anew for each filter; here
// what is read serves a tile of filters and taps. A step of the sum is LANES pixels: a CPU's vectors run along them,
// as they lie in memory. What limits it: the arithmetic units, if tiles and splits fill the GPU.
#include "gather.cuh"
#include "kernel_grad_total.cuh"
#include "matrix_product.cuh"

// A warp brings 8 steps side by side, a sector of memory, of several rows: writing them meets no bank twice. If a slice
// has more steps, its warps share them.
constexpr int STEPS = DEPTH / LANES, WARP_STEPS = STEPS < 8 ? STEPS : 8, STEP_WARPS = STEPS / WARP_STEPS;
static_assert(STEP_WARPS == 1 || THREADS % (32 * STEP_WARPS) == 0, "all steps have as many threads");

using Product = MatrixProduct<Lane, Lane, STEPS, TILE_N, REG_N, 1>;

// Brings one of the two matrices, ROWS rows of it: what each of them means in the windows of DEPTH pixels. A thread has
// PIXELS neighbouring steps of several rows.
template <class Source, int ROWS, int PIXELS, bool PADDED>
struct Stage {
    static constexpr int WARP_X = WARP_STEPS / PIXELS, WARP_Y = 32 / WARP_X;
    static constexpr int AT_ONCE = THREADS / STEPS * PIXELS, OWN = ROWS / AT_ONCE;
    static_assert(ROWS % AT_ONCE == 0, "a thread has several rows");

    Source source;
    const PixelGrid grid;
    Step steps[OWN];                // with ONE_TAP the first says it all
    Pixels pixels;
    Lane elements[OWN][PIXELS];

    __device__ __forceinline__ int step() const {  // neighbouring steps are neighbours in memory
        return threadIdx.x % WARP_X * PIXELS + threadIdx.x / 32 % STEP_WARPS * WARP_STEPS;
    }
    __device__ __forceinline__ int row(int i) const {
        return threadIdx.x % 32 / WARP_X + threadIdx.x / 32 / STEP_WARPS * WARP_Y + i * AT_ONCE;
    }

    // step_of(row)
    template <class StepOf>
    __device__ __forceinline__ Stage(const Source& source, const Conv2dShape& shape, int first_slice,
                                     StepOf&& step_of)
        : source(source), grid{shape.N, shape.P, shape.Q}, pixels(first_slice * DEPTH + step() * LANES, grid) {
        unroll<OWN>([&](auto i) INLINED {
            if (i == 0 || !ONE_TAP) steps[i] = step_of(row(i));
        });
    }

    // Slices are asked for one after the other. For corner_of see find_corners.
    template <class CornerOf>
    __device__ __forceinline__ void fetch(CornerOf&& corner_of) {
        Corners corners;
        find_corners(corners, source, pixels, grid, corner_of);
        IntsTrue inside;
        unroll<OWN>([&](auto i) INLINED {
            const Step& step = steps[ONE_TAP ? 0 : i];
            if (i == 0 || !ONE_TAP) inside = look_at<PADDED>(source, corners, step);
            source.template read<PIXELS>(elements[i], corners, step, ONE_TAP ? i * AT_ONCE : 0, inside);
        });
        pixels.advance(DEPTH, grid);
    }
    template <class Step>
    __device__ __forceinline__ void put(Step* slice) const {
        unroll<OWN>([&](auto i) INLINED {
            unroll<PIXELS>([&](auto e) INLINED { reinterpret_cast<Lane*>(slice[step() + e])[row(i)] = elements[i][e]; });
        });
    }
};

// The number in its filter of the tap that a column of a tile stands for. With ONE_TAP a tile is TILE_N channels at one
// tap; else the taps follow each other as in w.
__device__ __forceinline__ int tap_number(const Conv2dShape& shape, int tile, int column) {
    const int window = shape.R * shape.S;
    return ONE_TAP ? (tile / window * TILE_N + column) * window + tile % window : tile * TILE_N + column;
}

// What a block computes.
struct Place {
    int group, first_row, tap_tile, first_slice;
};

struct Loader {
    const Conv2dShape& shape;
    Stage<GradImage, TILE_M, G_PIXELS, false> g;
    Stage<Image, TILE_N, X_PIXELS, true> x;

    // What lies beyond the last filter or tap is not written: instead of it, the last one is read.
    __device__ __forceinline__ Loader(const Scalar* dy, const Saved* saved, const Scalar* x, const Conv2dShape& shape,
                                      int taps, const Place& place)
        : shape(shape),
          g(GradImage(dy, saved, shape, place.group), shape, place.first_slice,
            [&](int row) INLINED {
                const int k = min(place.first_row + row, shape.group_filters() - 1);
                return Step{k, 0, 0, k * shape.P * shape.Q};
            }),
          x(Image(x, shape.N, shape.C, place.group * shape.group_channels(), shape.H, shape.W), shape,
            place.first_slice, [&](int column) INLINED {
                const int tap = min(tap_number(shape, place.tap_tile, column), taps - 1), c = tap / shape.S / shape.R;
                const int row = tap / shape.S % shape.R * shape.dilation_h, col = tap % shape.S * shape.dilation_w;
                return Step{c, row, col, (c * shape.H + row) * shape.W + col};
            }) {}

    __device__ __forceinline__ void fetch(int) {
        g.fetch([&](const Pixels& at, Ints& row, Ints& col) INLINED {
            row = at.p;
            col = at.q;
        });
        x.fetch([&](const Pixels& at, Ints& row, Ints& col) INLINED {
            row = at.p * shape.stride_h - shape.pad_top;
            col = at.q * shape.stride_w - shape.pad_left;
        });
    }
    __device__ __forceinline__ void put(Product::Slice& slice) const {
        g.put(slice.a);
        x.put(slice.b);
    }
};

// The sum of g for each row of the tile, from the slices as they pass by: the thread of the same number has it.
struct RowSums {
    const bool wanted;
    LongSum sum;

    __device__ __forceinline__ void add(const Product::Slice& slice) {
        if (!wanted) return;
        Lane steps = {};
        for (int d = 0; d < STEPS; ++d) steps += reinterpret_cast<const Lane*>(slice.a[d])[threadIdx.x];
        sum.add(total(steps));
    }
};
static_assert(THREADS >= TILE_M, "a row's sum has a thread");

// partial[split][tap], with gridDim.y splits; the K biases are the last taps
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
kernel_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ x,
            Acc* __restrict__ partial, Conv2dShape shape, int with_bias, int split_slices) {
    // Where am I: a tile of filters of one group (consecutive blocks share their windows), one of taps, and a split.
    const int taps = shape.group_channels() * shape.R * shape.S, tap_tiles = (taps + TILE_N - 1) / TILE_N;
    const int m_tiles = (shape.group_filters() + TILE_M - 1) / TILE_M;
    const Place place = {int(blockIdx.x / m_tiles / tap_tiles), int(blockIdx.x % m_tiles * TILE_M),
                         int(blockIdx.x / m_tiles % tap_tiles), int(blockIdx.y * split_slices)};
    const int slices = (shape.N * shape.P * shape.Q + DEPTH - 1) / DEPTH;

    Loader loader(dy, saved, x, shape, taps, place);
    Product product;
    RowSums bias = {with_bias && place.tap_tile == 0 && threadIdx.x < TILE_M};
    product.run(loader, place.first_slice, min(place.first_slice + split_slices, slices),
                [&](const Product::Slice& slice) INLINED { bias.add(slice); });

    Acc* const split = partial + blockIdx.y * (shape.w_size() + shape.K);
    const int first_k = place.group * shape.group_filters() + place.first_row;
    unroll<REG_M>([&](auto i) INLINED {
        unroll<REG_N>([&](auto j) INLINED {
            const int row = product.row(i), tap = tap_number(shape, place.tap_tile, product.column(j));
            if (place.first_row + row < shape.group_filters() && tap < taps)
                split[Index(first_k + row) * taps + tap] = total(product.sums[i][j]);
        });
    });
    if (bias.wanted && place.first_row + int(threadIdx.x) < shape.group_filters())
        split[shape.w_size() + first_k + threadIdx.x] = bias.sum.value();
}
