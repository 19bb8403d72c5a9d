// dx[n,c,h,w_] = sum_{k,r,s} g[n,k,p,q] * w[k,c,r,s]   over all (p,q) that read x[n,c,h,w_] through tap (r,s),
//                with g = dy * phi'(s)
//
// The matrix product of implicit_gemm on tensor cores, as in forward/tensor_core.cu: one block computes TILE_M channels
// at TILE_N input pixels of a phase. g is formed as it is staged, once for all taps where a tile has a halo: with any
// stride, for the pixels of a phase lie side by side in g. In 16 bits it is a factor as it is where phi' is 0 or 1;
// else it is not rounded to 16 bits, but is a sum of two TF32 numbers, and a tap is one. Of small images the sums are split
// among blocks, as there (run_parts.cuh).
//
// What limits it: no GPU has run it. Expected is the same as of the forward pass, and the arithmetic of phi', where
// that is more than a comparison.
#include "channels_last.cuh"
#include "channel_product.cuh"
#include "halo.cuh"
#include "input_grads.cuh"

constexpr FormedAnew FORMED_ANEW = IS_TF32 ? NOT_FINITE : NAN_BESIDE_BORDER;

extern "C" __global__ void __launch_bounds__(THREADS, 1)
pack(const Scalar* __restrict__ w, const Scalar* __restrict__ scale, Acc* __restrict__ scratch, Conv2dShape shape,
     int slices) {
    pack_filter<Phase, FilterSlice>(w, scratch, shape, slices, scale);
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
input_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ w,
           const Scalar* __restrict__ scale, const Scalar* __restrict__ b, Acc* __restrict__ scratch,
           Scalar* __restrict__ dx, Conv2dShape shape, int slices, int runs, int split_runs) {
    // Where am I: a tile of channels, and of the pixels of a phase.
    const PackedFilter<Phase, FilterSlice> filter(scratch, shape, slices);
    const Tile tile = filter.tile_of_block(Windows::count(Phase(shape, 0).grid));  // no phase has more pixels
    const Phase phase(shape, tile.phase);
    if (tile.first_pixel >= Windows::count(phase.grid)) return;  // the whole block

    const int run_slices = Windows::run_slices(phase);
    const Windows::Parts parts(filter, runs, phase.slices(), split_runs * run_slices, run_slices);

    Windows::Product product;
    Windows::add<G_PIXELS>(product, filter.rows_of(tile, parts.first_slice), filter.offsets_of(tile, parts.first_slice),
                           GradImageReader(dy, saved, shape, tile.group), phase, tile, parts);
    if (parts.is_split) return;  // the whole block

    write_results(product, tile, Windows::pixels(tile, phase.grid), dx,
                  InputGrads<FORMED_ANEW>(dy, saved, w, scale, b, phase, tile.group));
}

// Of split sums: a block makes results of two rows of those of each lane.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
input_grad_total(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ w,
                 const Scalar* __restrict__ scale, const Scalar* __restrict__ b, Acc* __restrict__ scratch,
                 Scalar* __restrict__ dx, Conv2dShape shape, int slices, int runs) {
    const PackedFilter<Phase, FilterSlice> filter(scratch, shape, slices);
    const Tile tile = filter.tile_of_block(Windows::count(Phase(shape, 0).grid));
    const Phase phase(shape, tile.phase);
    const int run_slices = Windows::run_slices(phase), own_runs = (phase.slices() + run_slices - 1) / run_slices;
    if (tile.first_pixel < Windows::count(phase.grid))
        write_results(RunTotals<Windows::Product>(filter, runs, own_runs), tile, Windows::pixels(tile, phase.grid), dx,
                      InputGrads<FORMED_ANEW>(dy, saved, w, scale, b, phase, tile.group));
}
