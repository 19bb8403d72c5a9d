// dx[n,c,h,w_] = sum_{k,r,s} g[n,k,p,q] * w[k,c,r,s]   over all (p,q) that read x[n,c,h,w_] through tap (r,s),
//                with g = dy * phi'(s)
//
// One block computes TILE_M channels at TILE_N input pixels, as the matrix product of the forward pass with the roles
// of channels and filters exchanged. A stride makes phases of the pixels, which meet different taps
// (input_grad_phase.cuh). g is formed as it is staged, once for a tile of channels. Of small images the sums are split
// among blocks, as there (run_parts.cuh).
//
// What limits it: on an H200, 64 channels to 128 at 112 x 112, 3 x 3, 32 images took 1,805 us, 33 of the 65 TFLOP/s
// that multiply-adds reach. That was before a slice was on its way while the one before is multiplied: each waited for
// memory. Its 64 channels make tiles of 64 rows, for which all of g is staged, dy and y: eight instructions for each
// number of it, of which 64 multiply-adds are made; the model expects 1.6 ms. 1 to 3 channels make nearly empty tiles.
#include "filter_rows.cuh"
#include "input_grads.cuh"
#include "matrix_product.cuh"
#include "run_parts.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1)
pack(const Scalar* __restrict__ w, const Scalar* __restrict__ scale, Acc* __restrict__ scratch, Conv2dShape shape,
     int slices) {
    pack_filter<Phase>(w, scratch, shape, slices, scale);
}

extern "C" __global__ void __launch_bounds__(THREADS, blocks_of(384))
input_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ w,
           const Scalar* __restrict__ scale, const Scalar* __restrict__ b, Acc* __restrict__ scratch,
           Scalar* __restrict__ dx, Conv2dShape shape, int slices, int split_slices) {
    // Where am I: a tile of channels, and of the pixels of a phase, and some of its slices.
    const PackedFilter<Phase> filter(scratch, shape, slices);
    const int most_pixels = Phase(shape, 0).grid.count();  // no phase has more
    Product product;
    {
        const Tile tile = filter.tile_of_block(most_pixels);
        const Phase phase(shape, tile.phase);
        if (tile.first_pixel >= phase.grid.count()) return;  // the whole block

        const RunParts<Product> parts(filter, runs_of(slices), phase.slices(), split_slices);
        const GradReader reader(dy, saved, shape, tile.group);
        FilterLoader rows(filter.rows_of(tile, parts.first_slice));
        WindowLoader<GradReader, G_PIXELS> windows(filter.offsets_of(tile, parts.first_slice), reader, phase.grid,
                                                   tile.first_pixel);
        NoRowSums none;
        add_slices(product, rows, windows, none, parts.slices, parts);
        if (parts.is_split) return;  // the whole block
    }
    const Tile tile = filter.tile_of_block(most_pixels);
    const Phase phase(shape, tile.phase);
    write_product(product, tile, PixelRun{phase.grid, tile.first_pixel}, dx,
                  InputGrads<NAN_BESIDE_BORDER>(dy, saved, w, scale, b, phase, tile.group));
}

// Of split sums: a block makes results of one row of those of each thread.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
input_grad_total(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ w,
                 const Scalar* __restrict__ scale, const Scalar* __restrict__ b, Acc* __restrict__ scratch,
                 Scalar* __restrict__ dx, Conv2dShape shape, int slices) {
    const PackedFilter<Phase> filter(scratch, shape, slices);
    const Tile tile = filter.tile_of_block(Phase(shape, 0).grid.count());
    const Phase phase(shape, tile.phase);
    if (tile.first_pixel < phase.grid.count())
        write_product(RunTotals<Product>(filter, runs_of(slices), runs_of(phase.slices())), tile,
                      PixelRun{phase.grid, tile.first_pixel}, dx,
                      InputGrads<NAN_BESIDE_BORDER>(dy, saved, w, scale, b, phase, tile.group));
}
