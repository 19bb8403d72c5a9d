// y[n,k,p,q] = phi(b[k] + sum_{c,r,s} x[n, c, p - pad + r, q - pad + s] * w[k,c,r,s])   of 3 x 3 taps
//              if wanted, the sum times scale[k], and plus residual[n,k,p,q] (epilogue.cuh)
//
// One block computes TILE_M filters at TILE_N tiles of 2 x 2 output pixels, with Winograd's F(2x2, 3x3): 16
// multiplications for the 36 of a tile and channel (winograd_transforms.cuh), each in a matrix product (winograd.cuh).
// implicit_gemm does all 36; tensor_core does them three times in TF32, which only an A100's tensor cores make up for.
// The filter is transformed once a call, a tile of pixels once for TILE_M filters, as it is staged. More is rounded
// than in the sum itself: results are within a bound of their own (docs/accuracy.md).
//
// What limits it: no GPU has run it. Expected are the multiply-adds, of which a thread's registers hold 128 sums, so
// that a multiprocessor has one block; few channels leave the transform of the results its share.
#include "forward_phase.cuh"
#include "outputs.cuh"
#include "pack_mask.cuh"
#include "winograd.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1)
pack(const Scalar* __restrict__ w, Acc* __restrict__ scratch, Conv2dShape shape, int slices) {
    pack_transformed<Phase>(w, scratch, shape, slices);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
forward(const Scalar* __restrict__ x, const Scalar* __restrict__ w, Acc* __restrict__ scratch,
        const Scalar* __restrict__ scale, const Scalar* __restrict__ b, const Scalar* __restrict__ residual,
        Scalar* __restrict__ y, Conv2dShape shape, int slices) {
    const Phase phase(shape);
    const Place place(scratch, phase, slices);
    compute_tiles(place, InputTiles(x, shape, place.group), phase, slices, y,
                  Outputs<NOT_FINITE>(x, w, {b, scale, residual}, shape, place.group));
}
