// dx[n,c,h,w_] = sum_{k,r,s} g[n,k,p,q] * w[k,c,r,s]   over all (p,q) that read x[n,c,h,w_] through tap (r,s), 3 x 3,
//                with g = dy * phi'(s)
//
// One block computes TILE_M channels at TILE_N tiles of 2 x 2 input pixels, with Winograd's F(2x2, 3x3), as in
// forward/winograd.cu: of g, which is formed as a tile is staged, with the filter turned by half a turn, and the roles
// of channels and filters exchanged.
//
// What limits it: no GPU has run it. Expected is the same as of the forward pass, and the arithmetic of phi', where
// that is more than a comparison.
#include "input_grads.cuh"
#include "winograd.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1)
pack(const Scalar* __restrict__ w, const Scalar* __restrict__ scale, Acc* __restrict__ scratch, Conv2dShape shape,
     int slices) {
    pack_transformed<Phase>(w, scratch, shape, slices, scale);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
input_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ w,
           const Scalar* __restrict__ scale, const Scalar* __restrict__ b, Acc* __restrict__ scratch,
           Scalar* __restrict__ dx, Conv2dShape shape, int slices) {
    const Phase phase(shape, 0);
    const Place place(scratch, phase, slices);
    compute_tiles(place, GradTiles(dy, saved, shape, place.group), phase, slices, dx,
                  InputGrads<NOT_FINITE>(dy, saved, w, scale, b, phase, place.group));
}
