// dx[n,c,h,w_] = sum_{k,r,s} g[n,k,p,q] * w[k,c,r,s]   over all (p,q) that read x[n,c,h,w_] through tap (r,s),
//                with g = dy * phi'(s)
//
// One block computes TILE_M channels at TILE_N input pixels, as the matrix product of the forward pass with the roles
// of channels and filters exchanged: filter_product.cuh. A stride leaves gaps between the taps that meet a pixel, and
// where they are depends on the pixel's row and column modulo the stride. So the pixels of one remainder are a phase:
// they all meet the same taps, those pixels lie side by side in g, and their gradient is a convolution of unit stride
// with a part of the filter. No product with an inserted zero is formed. g is formed as it is staged, once for a tile
// of channels. What limits it: the arithmetic units, if the tiles fill the GPU; with few filters, staging.
constexpr int PIXELS = G_PIXELS;  // that a thread reads at once
#include "filter_product.cuh"

__device__ __forceinline__ int greatest_common_divisor(int a, int b) {
    while (b != 0) {
        const int rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

// Along one axis: the taps first, first + step ... that meet the pixels of a phase, and the output where pixel 0 of
// the phase meets tap r.
struct PhaseTaps {
    int position, stride, dilation;
    int first = 0, step = 1, count = 0;

    __device__ __forceinline__ PhaseTaps(int phase, int pad, int stride, int dilation, int taps)
        : position(phase + pad), stride(stride), dilation(dilation) {
        step = stride / greatest_common_divisor(stride, dilation);
        while (first < taps && (position - first * dilation) % stride != 0) ++first;
        if (first < taps) count = (taps - 1 - first) / step + 1;
    }
    __device__ __forceinline__ int tap(int i) const { return first + i * step; }
    __device__ __forceinline__ int output(int r) const { return (position - r * dilation) / stride; }
};

// Beyond the image's columns no phase has a pixel.
__device__ __forceinline__ int phases_across(const Conv2dShape& shape) { return min(shape.stride_w, shape.W); }

struct Phase {
    const Scalar* w;
    const Conv2dShape& shape;
    int first_h, first_w;  // its first pixel
    PhaseTaps rows, cols;
    PixelGrid grid;
    int down, across, depth;

    __device__ __forceinline__ Phase(int number, const Scalar* w, const Conv2dShape& shape)
        : w(w), shape(shape), first_h(number / phases_across(shape)), first_w(number % phases_across(shape)),
          rows(first_h, shape.pad_top, shape.stride_h, shape.dilation_h, shape.R),
          cols(first_w, shape.pad_left, shape.stride_w, shape.dilation_w, shape.S),
          grid{shape.N, (shape.H - first_h - 1) / shape.stride_h + 1, (shape.W - first_w - 1) / shape.stride_w + 1},
          down(rows.count), across(cols.count), depth(shape.group_filters() * down * across) {}
    __device__ __forceinline__ Step step(const Tap& k) const {
        const int row = rows.output(rows.tap(k.i)), col = cols.output(cols.tap(k.j));
        return {k.plane, row, col, (k.plane * shape.P + row) * shape.Q + col};
    }
    __device__ __forceinline__ Acc value(int group, int m, const Tap& k) const {
        return to_acc(w[shape.w_at(group * shape.group_filters() + k.plane, m, rows.tap(k.i), cols.tap(k.j))]);
    }
};

__device__ __forceinline__ PackedFilter filter_in(Acc* scratch, const Conv2dShape& shape, int slices) {
    const int phases = min(shape.stride_h, shape.H) * phases_across(shape);
    return PackedFilter(scratch, phases, shape.groups, shape.group_channels(), slices);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
pack(const Scalar* __restrict__ w, Acc* __restrict__ scratch, Conv2dShape shape, int slices) {
    pack_filter(filter_in(scratch, shape, slices), shape.group_channels(),
                [&](int number) INLINED { return Phase(number, w, shape); });
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
input_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, Acc* __restrict__ scratch,
           Scalar* __restrict__ dx, Conv2dShape shape, int slices) {
    const PackedFilter filter = filter_in(scratch, shape, slices);
    const Place place = filter.place_of_block(Phase(0, nullptr, shape).grid.count());  // no phase has more pixels
    const Phase phase(place.phase, nullptr, shape);
    if (place.first_pixel >= phase.grid.count()) return;  // the whole block
    const int first_c = place.group * shape.group_channels();

    Loader<GradImage> loader(filter, GradImage(dy, saved, shape, place.group), place, phase.grid,
                             [&](const Pixels& at, Ints& row, Ints& col) INLINED {
                                 row = at.p;
                                 col = at.q;
                             });
    Product product;
    product.run(loader, 0, (phase.depth + DEPTH - 1) / DEPTH, [](const Product::Slice&) INLINED {});

    write_product(
        product, place, phase.grid, dx, shape.group_channels(), Index(shape.H) * shape.W,
        [&](int n, int i, int j) INLINED {
            return shape.x_at(n, first_c, phase.first_h + i * shape.stride_h, phase.first_w + j * shape.stride_w);
        },
        [&](int, Lane sum) INLINED { return sum; });
}
