// dw[k,c,r,s] = sum_{n,p,q} g[n,k,p,q] * x[n, c, p*stride - pad + r*dilation, q*stride - pad + s*dilation]
// db[k]       = sum_{n,p,q} g[n,k,p,q]                                         with g = dy * phi'(s)
//
// The matrix product of implicit_gemm with a CPU's vectors: one block computes TILE_M filters at TILE_N taps (c,r,s)
// for a part of the pixels; kernel_grad_total adds up the parts in a fixed order. A step of the sum is a vector of
// LANES pixels, as they lie in memory, so that both matrices are staged as they are read. What limits it: the CPU's
// multiply-adds, if the tiles are full.
#include "cpu/gather.cuh"
#include "cpu/lane_product.cuh"
#include "kernel_grad_total.cuh"
#include "tap_tiles.cuh"

constexpr int STEPS = DEPTH / LANES;
using Product = LaneProduct<Lane, STEPS, TILE_N, 1>;

// Brings one of the two matrices, ROWS rows of it: what each of them means in the windows of DEPTH pixels. A thread has
// one step and several rows.
template <class Source, int ROWS>
struct PixelLoader {
    static constexpr int AT_ONCE = THREADS / STEPS, OWN = ROWS / AT_ONCE;
    static_assert(THREADS % STEPS == 0 && ROWS % AT_ONCE == 0, "a thread has one step and several rows");

    const int step = threadIdx.x % STEPS;  // neighbouring steps are neighbours in memory
    Source source;
    const PixelGrid grid;
    Pixels pixels;        // of the next slice
    Offset offsets[OWN];  // of the rows; with ONE_TAP the first says it all
    Lane own[OWN];

    __forceinline__ PixelLoader(const Source& source, const TapTile& tile)
        : source(source), grid(tile.grid), pixels(tile.first_slice * DEPTH + step * LANES, grid) {}
    __forceinline__ int row(int i) const { return threadIdx.x / STEPS + i * AT_ONCE; }

    __forceinline__ void fetch() {
        source.move_to(pixels);
        Ints inside;
        unroll<OWN>([&](auto i) INLINED {
            const Offset& offset = offsets[ONE_TAP ? 0 : i];
            if (i == 0 || !ONE_TAP) inside = source.go_to(offset);
            own[i] = source.read(offset, ONE_TAP ? i * AT_ONCE : 0, inside);
        });
        pixels.advance(DEPTH, grid);
    }
    template <class Slice>
    __forceinline__ void put(Slice& slice) const {
        unroll<OWN>([&](auto i) INLINED { slice[step][row(i)] = own[i]; });
    }
};

// The sum of g for each row of the tile, from the slices as they pass by: the thread of the same number has it.
struct RowSums {
    const bool wanted;
    LongSum sum;

    __forceinline__ void add(const Product::Slice& slice) {
        if (!wanted) return;
        Lane steps = {};
        for (int d = 0; d < STEPS; ++d) steps += slice.a[d][threadIdx.x];
        sum.add(total(steps));
    }
};
static_assert(THREADS >= TILE_M, "a row's sum has a thread");

// partial[split][tap], with gridDim.y splits; the K biases are the last taps
extern "C" __global__ void __launch_bounds__(THREADS, 1)
kernel_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ x,
            Acc* __restrict__ partial, Conv2dShape shape, int with_bias, int split_slices) {
    const TapTile tile(shape, split_slices);
    PixelLoader<GradImage, TILE_M> grads(GradImage(dy, saved, shape, tile.group), tile);
    unroll<grads.OWN>([&](auto i) INLINED { grads.offsets[i] = tile.row_offset(grads.row(i)); });
    PixelLoader<InputImage, TILE_N> windows(InputImage(x, shape, tile.group), tile);
    unroll<windows.OWN>([&](auto i) INLINED { windows.offsets[i] = tile.column_offset(windows.row(i)); });
    Product product;
    RowSums bias = {with_bias && tile.number == 0 && threadIdx.x < TILE_M};
    product.run(grads, windows, bias, tile.slices);

    Acc* const split = partial + blockIdx.y * (shape.w_size() + shape.K);
    bool is_nan = false;
    unroll<REG_M>([&](auto i) INLINED {
        unroll<REG_N>([&](auto j) INLINED {
            const int m = product.row(i), column = product.col(j);
            const Acc sum = total(product.sums[i][j]);
            if (tile.has_result(m, column)) split[tile.result_at(m, column)] = sum;
            is_nan |= isnan(sum);
        });
    });
    if (is_nan) tile.form_anew(split, product, dy, saved, x);
    if (bias.wanted && tile.has_row(threadIdx.x)) split[tile.bias_at(threadIdx.x)] = bias.sum.value();
}
