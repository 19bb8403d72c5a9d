// dx[n,c,h,w_] = sum_{k,r,s} g[n, k, h + pad - r*dilation, w_ + pad - s*dilation] * w[k,c,r,s]
//                with g = dy * phi'(s), stride 1
//
// The forward pass's sum with a CPU's vectors, over g in place of x and with the filter turned by 180 degrees: one
// block computes a tile of channels at a few lines of all images. g is formed as it is laid out, once for a tile of
// channels. What limits it: the CPU's multiply-adds; with very few channels and filters, laying out.
#include "cpu/direct_product.cuh"
#include "input_grad_of_pixels.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1)
input_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ w,
           const Scalar* __restrict__ b, Scalar* __restrict__ dx, Conv2dShape shape, int tile_rows, int lines,
           int chunk, int size) {
    // Where am I: a tile of channels of a group, consecutive in blockIdx.x, at a few lines.
    const int filters = shape.group_filters(), channels = shape.group_channels();
    const int tiles = (channels + tile_rows - 1) / tile_rows, number = blockIdx.x % (tiles * shape.groups);
    const int group = number / tiles, first_m = number % tiles * tile_rows, first_k = group * filters;
    const int reach_h = (shape.R - 1) * shape.dilation_h, reach_w = (shape.S - 1) * shape.dilation_w;
    const Signal signal(shape.N, shape.K, shape.P, shape.Q, reach_h - shape.pad_top, shape.H - shape.P + shape.pad_top,
                        reach_w - shape.pad_left, shape.W - shape.Q + shape.pad_left);
    const RowTaps<true> taps = {w + shape.w_at(first_k, 0, 0, 0), shape.R * shape.S, shape.w_at(1, 0, 0, 0),
                                shape.R, shape.S, shape.dilation_h * signal.pitch, shape.dilation_w};
    direct_product(
        signal, taps, {tile_rows, lines, chunk, size}, first_m, channels,
        int(blockIdx.x / (tiles * shape.groups)) * lines, first_k, filters,
        [&](Index plane) INLINED { return GradPlane(dy, saved, plane, shape); }, shape.H,
        [&](int m, int n, int h, const Acc* from) INLINED {
            const int c = group * channels + m;
            const bool is_nan = write_row(dx + shape.x_at(n, c, h, 0), from, shape.W,
                                          [&](Lane sum, int) INLINED { return dx_result(sum, b, c); });
            if (is_nan)
                form_dx_anew(dx, dy, saved, w, b, shape, Index(n) * shape.C + c, h, h + 1, 0, shape.W);
        });
}
