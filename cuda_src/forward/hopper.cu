// y[n,k,p,q] = phi(b[k] + sum_{c,r,s} x[n, c, p*stride - pad + r*dilation, q*stride - pad + s*dilation] * w[k,c,r,s])
//              if wanted, the sum times scale[k], and plus residual[n,k,p,q] (epilogue.cuh)
//
// The matrix product of tensor_core with what sm_90 has for it: a warpgroup multiplies matrices in shared memory, which
// the copy engine fills. One block computes TILE_M filters at TILE_P x TILE_Q pixels of TILE_IMAGES images, and then the
// next such tile. One thread asks for boxes of the image, one for the packed filter, two warpgroups multiply
// (hopper/box_product.cuh): no multiplying thread forms an address of an element or moves one, where in the rung below
// each moves all words of both factors through its registers. Padding, stride and dilation are the tensor map's, which
// the host makes. The image is turned before, to channels side by side (hopper/staged_image.cuh): that costs to read
// and to write it once, unless it already lies so. 16-bit elements are multiplied as they are, float32 as TF32 where it
// may be rounded.
//
// What limits it: no GPU has run it. Expected are the tensor cores' rate, the turning of the image, and the writing of
// the results, which nothing of the same block hides.
#include "channels_last.cuh"
#include "forward_phase.cuh"
#include "hopper/box_product.cuh"
#include "outputs_channels_last.cuh"
#include "pack_mask.cuh"

__device__ __forceinline__ ImageExtents extents(const Conv2dShape& shape) {
    return {shape.N, shape.groups, shape.group_channels(), shape.H, shape.W, bool(IN_PLACE)};
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
stage(const Scalar* __restrict__ x, Acc* __restrict__ scratch, Conv2dShape shape) {
    stage_image(reinterpret_cast<unsigned*>(scratch), extents(shape),
                [&](int n, int c, int h, int w_) { return to_acc(x[shape.x_at(n, c, h, w_)]); });
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
pack(const Scalar* __restrict__ w, Acc* __restrict__ scratch, Conv2dShape shape, int taps) {
    const ImageExtents image = extents(shape);
    pack_taps(w, PackedTaps<Phase>(scratch + image.words(), shape, taps), shape, image);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
forward(const __grid_constant__ TensorMap map, WaitNote* note, const Scalar* __restrict__ x,
        const Scalar* __restrict__ w, Acc* __restrict__ scratch, const Scalar* __restrict__ scale,
        const Scalar* __restrict__ b, const Scalar* __restrict__ residual, Scalar* __restrict__ y, Conv2dShape shape,
        int taps, int tiles) {
    const ImageExtents image = extents(shape);
    const PackedTaps<Phase> packed(scratch + image.words(), shape, taps);
    constexpr FormedAnew WHAT = IS_TF32 ? NOT_FINITE : NAN_BESIDE_PADDING;
    multiply_boxes(map, note, packed, shape, image, tiles,
                   [&](const BoxTile<Phase>& at, const Phase&, const BoxSums& sums) {
                       write_box(sums, at, y,
                                 RowOutputs<WHAT>(x, w, {b, scale, residual}, shape, at.tile.group));
                   });
}
