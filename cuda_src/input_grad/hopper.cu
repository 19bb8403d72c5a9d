// dx[n,c,h,w_] = sum_{k,r,s} g[n,k,p,q] * w[k,c,r,s]   over all (p,q) that read x[n,c,h,w_] through tap (r,s),
//                with g = dy * phi'(s)
//
// The matrix product of tensor_core with what sm_90 has for it, as in forward/hopper.cu: one block computes TILE_M
// channels at TILE_P x TILE_Q pixels of a phase, and then the next such tile. g is formed once, as it is turned to
// channels side by side (hopper/staged_image.cuh), where the rung below forms it anew for each tile of channels; a dy
// that lies so and is g itself is read where it lies. In 16
// bits that is a factor as it is where phi' is 0 or 1, and other activations are left to the rung below. With any stride
// the pixels of a phase lie side by side in g, so that boxes have no gaps and serve all taps of a column.
//
// What limits it: no GPU has run it. Expected is the same as of the forward pass.
#include "channels_last.cuh"
#include "hopper/box_product.cuh"
#include "input_grads.cuh"

__device__ __forceinline__ ImageExtents extents(const Conv2dShape& shape) {
    return {shape.N, shape.groups, shape.group_filters(), shape.P, shape.Q, bool(IN_PLACE)};
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
stage(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, Acc* __restrict__ scratch, Conv2dShape shape) {
    stage_image(reinterpret_cast<unsigned*>(scratch), extents(shape), [&](int n, int k, int p, int q) {
        return pre_activation_grad(dy, saved, shape, n, k, p, q);
    });
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
pack(const Scalar* __restrict__ w, Acc* __restrict__ scratch, Conv2dShape shape, int taps) {
    const ImageExtents image = extents(shape);
    pack_taps(w, PackedTaps<Phase>(scratch + image.words(), shape, taps), shape, image);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
input_grad(const __grid_constant__ TensorMap map, WaitNote* note, const Scalar* __restrict__ dy,
           const Saved* __restrict__ saved, const Scalar* __restrict__ w, const Scalar* __restrict__ b,
           Acc* __restrict__ scratch, Scalar* __restrict__ dx, Conv2dShape shape, int taps, int tiles) {
    const ImageExtents image = extents(shape);
    const PackedTaps<Phase> packed(scratch + image.words(), shape, taps);
    multiply_boxes(map, note, packed, shape, image, tiles,
                   [&](const BoxTile<Phase>& at, const Phase& phase, const BoxSums& sums) {
                       write_box(sums, at, dx,
                                 InputGrads<IS_TF32 ? NOT_FINITE : NAN_BESIDE_BORDER>(dy, saved, w, nullptr, b, phase,
                                                                                     at.tile.group));
                   });
}
