// y[n,k,p,q] = phi(b[k] + sum_{c,r,s} x[n, c, p*stride - pad + r*dilation, q*stride - pad + s*dilation] * w[k,c,r,s])
//              if wanted, the sum times scale[k], and plus residual[n,k,p,q] (epilogue.cuh)
//
// One block computes TILE_M filters at TILE_N output pixels, as a product of two matrices: the filters, and the
// windows of x that the pixels see, a column each. That matrix would be R*S times as large as x and is never stored:
// its elements are looked up as slices of it are brought to shared memory (slices.cuh). The rungs below read all
// channels anew for each filter; here what is read serves a tile of filters, and in a thread's registers each number
// serves REG_M or REG_N multiply-adds (matrix_product.cuh). Of small images, whose tiles are too few for all
// multiprocessors, the sums are split among blocks (run_parts.cuh).
//
// What limits it: on an H200, 64 channels to 128 at 112 x 112, 3 x 3, 32 images took 1,499 us, 39 of the 65 TFLOP/s
// that multiply-adds reach. That was before a slice was on its way while the one before is multiplied, past the
// registers: each waited for memory. Now 1,024 of 1,149 instructions in a turn of its loop are multiply-adds and 64 read
// shared memory, and the model expects 1.4 ms: the issue of instructions alone takes 1.1.
#include "filter_rows.cuh"
#include "forward_phase.cuh"
#include "matrix_product.cuh"
#include "outputs.cuh"
#include "pack_mask.cuh"
#include "run_parts.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1)
pack(const Scalar* __restrict__ w, Acc* __restrict__ scratch, Conv2dShape shape, int slices) {
    pack_filter<Phase>(w, scratch, shape, slices);
}

extern "C" __global__ void __launch_bounds__(THREADS, blocks_of(384))
forward(const Scalar* __restrict__ x, const Scalar* __restrict__ w, Acc* __restrict__ scratch,
        const Scalar* __restrict__ scale, const Scalar* __restrict__ b, const Scalar* __restrict__ residual,
        Scalar* __restrict__ y, Conv2dShape shape, int slices, int split_slices) {
    // Where am I: a tile of filters and pixels, and some of its slices.
    const PackedFilter<Phase> filter(scratch, shape, slices);
    const PixelGrid grid = {shape.N, shape.P, shape.Q};
    const RunParts<Product> parts(filter, runs_of(slices), slices, split_slices);
    Product product;
    {
        const Tile tile = filter.tile_of_block(grid.count());
        const InputReader reader(x, shape, tile.group);
        FilterLoader rows(filter.rows_of(tile, parts.first_slice));
        WindowLoader<InputReader, X_PIXELS> windows(filter.offsets_of(tile, parts.first_slice), reader, grid,
                                                    tile.first_pixel);
        NoRowSums none;
        add_slices(product, rows, windows, none, parts.slices, parts);
    }
    if (parts.is_split) return;  // the whole block

    const Tile tile = filter.tile_of_block(grid.count());
    write_product(product, tile, PixelRun{grid, tile.first_pixel}, y,
                  Outputs<NAN_BESIDE_PADDING>(x, w, {b, scale, residual}, shape, tile.group));
}

// Of split sums: a block makes results of one row of those of each thread.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
forward_total(const Scalar* __restrict__ x, const Scalar* __restrict__ w, Acc* __restrict__ scratch,
              const Scalar* __restrict__ scale, const Scalar* __restrict__ b, const Scalar* __restrict__ residual,
              Scalar* __restrict__ y, Conv2dShape shape, int slices) {
    const PackedFilter<Phase> filter(scratch, shape, slices);
    const PixelGrid grid = {shape.N, shape.P, shape.Q};
    const Tile tile = filter.tile_of_block(grid.count());
    const int runs = runs_of(slices);
    write_product(RunTotals<Product>(filter, runs, runs), tile, PixelRun{grid, tile.first_pixel}, y,
                  Outputs<NAN_BESIDE_PADDING>(x, w, {b, scale, residual}, shape, tile.group));
}
