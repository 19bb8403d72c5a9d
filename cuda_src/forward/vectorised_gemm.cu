// y[n,k,p,q] = phi(b[k] + sum_{c,r,s} x[n, c, p*stride - pad + r*dilation, q*stride - pad + s*dilation] * w[k,c,r,s])
//              if wanted, the sum times scale[k], and plus residual[n,k,p,q] (epilogue.cuh)
//
// The matrix product of implicit_gemm with a CPU's vectors: one block computes TILE_M filters at TILE_N output pixels,
// and a thread keeps REG_M x REG_N vectors of sums in registers, LANES neighbouring pixels each. What a vector reads of
// x lies side by side in memory, unless a row or the padding ends in it. vectorised, the rung below, reads all channels
// anew for each filter, from the caches. What limits it: the CPU's multiply-adds, if the tiles are full; with few
// channels, staging.
#include "cpu/filter_product.cuh"
#include "forward_of_pixels.cuh"
#include "forward_phase.cuh"
#include "pack_mask.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1)
pack(const Scalar* __restrict__ w, Acc* __restrict__ scratch, Conv2dShape shape, int slices) {
    pack_filter<Phase>(w, scratch, shape, slices);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
forward(const Scalar* __restrict__ x, const Scalar* __restrict__ w, Acc* __restrict__ scratch,
        const Scalar* __restrict__ scale, const Scalar* __restrict__ b, const Scalar* __restrict__ residual,
        Scalar* __restrict__ y, Conv2dShape shape, int slices) {
    const PackedFilter<Phase> filter(scratch, shape, slices);
    const PixelGrid grid = {shape.N, shape.P, shape.Q};
    const Tile tile = filter.tile_of_block(grid.count());

    FilterLoader rows(filter.rows_of(tile));
    const InputImage image(x, shape, tile.group);
    WindowLoader<InputImage> windows(filter.offsets_of(tile), image, grid, tile.first_pixel);
    Product product;
    NoRowSums none;
    product.run(rows, windows, none, slices);

    const int filters = shape.group_filters(), first_k = tile.group * filters;
    const Epilogue epilogue(b, scale, residual);
    write_product(
        product, tile, grid, y, filters, Index(shape.P) * shape.Q,
        [&](int n, int p, int q) INLINED { return shape.y_at(n, first_k, p, q); },
        [&](int m, Lane sums, const auto& read) INLINED {
            return activate(epilogue.pre_activation(sums, first_k + m, RESIDUAL ? read(residual) : Lane{}));
        },
        [&](Scalar& element, int m, int n, int p, int q) INLINED {
            if (meets_padding(shape, p, p + 1, q, q + 1))
                element = y_of_pixels(x, w, epilogue, shape, n, first_k + m, p, q);
        });
}
