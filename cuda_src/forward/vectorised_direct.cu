// y[n,k,p,q] = phi(b[k] + sum_{c,r,s} x[n, c, p - pad + r*dilation, q - pad + s*dilation] * w[k,c,r,s])       stride 1
//              if wanted, the sum times scale[k], and plus residual[n,k,p,q] (epilogue.cuh)
//
// One block computes a tile of filters at a few lines of all images with a CPU's vectors, from images that are laid out
// so that a vector of neighbouring pixels is one load for each tap, whatever the width of a row (cpu/signal.cuh). A
// thread keeps REG_M filters at REG_N vectors of pixels in registers (cpu/direct_product.cuh). vectorised, a rung
// below, reads all channels anew for each filter and leaves vectors partly empty where rows are short; vectorised_gemm
// gathers each element of a window. What limits it: the CPU's multiply-adds; with very few channels and filters, laying
// out.
#include "cpu/direct_product.cuh"
#include "forward_of_pixels.cuh"
#include "pack_mask.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1)
forward(const Scalar* __restrict__ x, const Scalar* __restrict__ w, const Scalar* __restrict__ scale,
        const Scalar* __restrict__ b, const Scalar* __restrict__ residual, Scalar* __restrict__ y, Conv2dShape shape,
        int tile_rows, int lines, int chunk, int size) {
    // Where am I: a tile of filters of a group, consecutive in blockIdx.x, at a few lines.
    const int filters = shape.group_filters(), channels = shape.group_channels();
    const int tiles = (filters + tile_rows - 1) / tile_rows, number = blockIdx.x % (tiles * shape.groups);
    const int group = number / tiles, first_m = number % tiles * tile_rows, first_k = group * filters;
    const int reach_h = (shape.R - 1) * shape.dilation_h, reach_w = (shape.S - 1) * shape.dilation_w;
    const Signal signal(shape.N, shape.C, shape.H, shape.W, shape.pad_top, shape.P + reach_h - shape.H - shape.pad_top,
                        shape.pad_left, shape.Q + reach_w - shape.W - shape.pad_left);
    const RowTaps<false> taps = {w + shape.w_at(first_k, 0, 0, 0), shape.w_at(1, 0, 0, 0), shape.R * shape.S,
                                 shape.R, shape.S, shape.dilation_h * signal.pitch, shape.dilation_w};
    const Epilogue epilogue(b, scale, residual);
    direct_product(
        signal, taps, {tile_rows, lines, chunk, size}, first_m, filters,
        int(blockIdx.x / (tiles * shape.groups)) * lines, group * channels, channels,
        [&](Index plane) INLINED { return Plane(x, plane, shape.H, shape.W); }, shape.P,
        [&](int m, int n, int p, const Acc* from) INLINED {
            const int k = first_k + m;
            const Index plane = Index(n) * shape.K + k;
            const Plane shortcuts(residual, plane, shape.P, shape.Q);
            const bool is_nan = write_row(y + shape.y_at(n, k, p, 0), from, shape.Q, [&](Lane sums, int q) INLINED {
                Lane shortcut = {};
                if constexpr (RESIDUAL) {
                    if (q + LANES <= shape.Q)
                        shortcuts.read(shortcut, p, q);
                    else
                        shortcut = partial_lane(shortcuts, p, q);
                }
                return activate(epilogue.pre_activation(sums, k, shortcut));
            });
            if (is_nan) form_y_anew(y, nullptr, x, w, epilogue, shape, plane, p, p + 1, 0, shape.Q);
        });
}
