// dx[n,c,h,w_] = sum_{k,r,s} g[n,k,p,q] * w[k,c,r,s]   over all (p,q) that read x[n,c,h,w_] through tap (r,s),
//                with g = dy * phi'(s)
//
// The matrix product of implicit_gemm with a CPU's vectors: one block computes TILE_M channels at TILE_N input pixels
// of a phase, and a thread keeps REG_M x REG_N vectors of sums in registers, LANES neighbouring pixels each. g is
// formed as it is staged, once for a tile of channels. What limits it: the CPU's multiply-adds, if the tiles are full;
// with few filters, staging.
#include "cpu/filter_product.cuh"
#include "input_grad_of_pixels.cuh"
#include "input_grad_phase.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1)
pack(const Scalar* __restrict__ w, const Scalar* __restrict__ scale, Acc* __restrict__ scratch, Conv2dShape shape,
     int slices) {
    pack_filter<Phase>(w, scratch, shape, slices, scale);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
input_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ w,
           const Scalar* __restrict__ scale, const Scalar* __restrict__ b, Acc* __restrict__ scratch,
           Scalar* __restrict__ dx, Conv2dShape shape, int slices) {
    const PackedFilter<Phase> filter(scratch, shape, slices);
    const Tile tile = filter.tile_of_block(Phase(shape, 0).grid.count());  // no phase has more pixels
    const Phase phase(shape, tile.phase);
    if (tile.first_pixel >= phase.grid.count()) return;  // the whole block

    FilterLoader rows(filter.rows_of(tile));
    const GradImage image(dy, saved, shape, tile.group);
    WindowLoader<GradImage> windows(filter.offsets_of(tile), image, phase.grid, tile.first_pixel);
    Product product;
    NoRowSums none;
    product.run(rows, windows, none, (phase.depth + DEPTH - 1) / DEPTH);

    const int channels = shape.group_channels();
    write_product(
        product, tile, phase.grid, dx, channels, Index(shape.H) * shape.W,
        [&](int n, int i, int j) INLINED { return phase.result_at(n, tile.group * channels, i, j); },
        [&](int m, Lane sum, const auto&) INLINED { return dx_result(sum, b, tile.group * channels + m); },
        [&](Scalar& element, int m, int n, int i, int j) INLINED {
            const int c = tile.group * channels + m, h = phase.row(i), w_ = phase.col(j);
            if (reaches_beyond(shape, h, h + 1, w_, w_ + 1))
                element = dx_of_pixels(dy, saved, w, b, shape, n, c, h, w_, scale);
        });
}
