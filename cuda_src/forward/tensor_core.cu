// y[n,k,p,q] = phi(b[k] + sum_{c,r,s} x[n, c, p*stride - pad + r*dilation, q*stride - pad + s*dilation] * w[k,c,r,s])
//              if wanted, the sum times scale[k], and plus residual[n,k,p,q] (epilogue.cuh)
//
// The matrix product of implicit_gemm on tensor cores: one block computes TILE_M filters at TILE_N output pixels, and a
// warp WARP_M x WARP_N of them, 16 x 8 at once (tensor_product.cuh). 16-bit elements are multiplied as they are,
// float32 by three products of TF32 numbers (factors.cuh). The filter, packed in the order in which lanes read it,
// comes to shared memory past the registers. Of unit stride and whole slices of channels the image under a tile is
// staged once for all taps, with its halo (halo.cuh), where the rung below loads each element anew for each of them; of
// images whose channels lie side by side it comes in chunks of 8 of them (channel_loader.cuh);
// other windows come as there, tap by tap (filter_chunks.cuh). A warp reads both by ldmatrix without a bank conflict.
// Of small images the sums are split among blocks, as there (run_parts.cuh).
//
// What limits it: no GPU has run it. For 64 channels to 128 at 112 x 112, 3 x 3, 32 images the profile expects 223 us
// of an H200 in float16, where mma.sync alone would take 89; beside it stand what warps read from shared memory and
// what comes through the second-level cache, 70 each. TF32 is expected to take 400 us and float32, whose totals leave
// no registers for larger tiles, 949. Where windows are staged tap by tap it is the loads, an instruction for each
// element.
#include "channels_last.cuh"
#include "channel_product.cuh"
#include "forward_phase.cuh"
#include "halo.cuh"
#include "outputs_channels_last.cuh"
#include "pack_mask.cuh"

constexpr FormedAnew FORMED_ANEW = IS_TF32 ? NOT_FINITE : NAN_BESIDE_PADDING;

extern "C" __global__ void __launch_bounds__(THREADS, 1)
pack(const Scalar* __restrict__ w, Acc* __restrict__ scratch, Conv2dShape shape, int slices) {
    pack_filter<Phase, FilterSlice>(w, scratch, shape, slices);
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
forward(const Scalar* __restrict__ x, const Scalar* __restrict__ w, Acc* __restrict__ scratch,
        const Scalar* __restrict__ scale, const Scalar* __restrict__ b, const Scalar* __restrict__ residual,
        Scalar* __restrict__ y, Conv2dShape shape, int slices, int runs, int split_runs) {
    if (BIAS != (b != nullptr)) return;  // never: but where nvcc does not know, it makes two epilogues

    // Where am I: a tile of filters and pixels.
    const PackedFilter<Phase, FilterSlice> filter(scratch, shape, slices);
    const Phase phase(shape);
    const Tile tile = filter.tile_of_block(Windows::count(phase.grid));

    const int run_slices = Windows::run_slices(phase);
    const Windows::Parts parts(filter, runs, slices, split_runs * run_slices, run_slices);

    Windows::Product product;
    Windows::add<X_PIXELS>(product, filter.rows_of(tile, parts.first_slice), filter.offsets_of(tile, parts.first_slice),
                           ImageReader(x, shape, tile.group), phase, tile, parts);
    if (parts.is_split) return;  // the whole block

    write_results(product, tile, Windows::pixels(tile, phase.grid), y,
                  RowOutputs<FORMED_ANEW>(x, w, {b, scale, residual}, shape, tile.group));
}

// Of split sums: a block makes results of two rows of those of each lane.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
forward_total(const Scalar* __restrict__ x, const Scalar* __restrict__ w, Acc* __restrict__ scratch,
              const Scalar* __restrict__ scale, const Scalar* __restrict__ b, const Scalar* __restrict__ residual,
              Scalar* __restrict__ y, Conv2dShape shape, int slices, int runs) {
    if (BIAS != (b != nullptr)) return;  // never, as above

    const PackedFilter<Phase, FilterSlice> filter(scratch, shape, slices);
    const Phase phase(shape);
    const Tile tile = filter.tile_of_block(Windows::count(phase.grid));
    write_results(RunTotals<Windows::Product>(filter, runs, runs), tile, Windows::pixels(tile, phase.grid), y,
                  RowOutputs<FORMED_ANEW>(x, w, {b, scale, residual}, shape, tile.group));
}
