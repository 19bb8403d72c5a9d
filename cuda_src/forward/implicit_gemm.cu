// y[n,k,p,q] = phi(b[k] + sum_{c,r,s} x[n, c, p*stride - pad + r*dilation, q*stride - pad + s*dilation] * w[k,c,r,s])
//
// One block computes TILE_M filters at TILE_N output pixels, as a product of two matrices: the filters, and the
// windows of x that the pixels see, a column each. That matrix would be R*S times as large as x and is never stored:
// its elements are looked up as slices of it are brought to shared memory. The rungs below read all channels anew for
// each filter; here what is read serves a tile of filters, and in a thread's registers each number serves REG_M or
// REG_N multiply-adds. What limits it: the arithmetic units, if the tiles fill the GPU; with few channels, staging.
constexpr int PIXELS = X_PIXELS;  // that a thread reads at once
#include "filter_product.cuh"
#include "pack_mask.cuh"

// All pixels see the same steps.
struct Phase {
    const Scalar* w;
    const Conv2dShape& shape;
    int down, across, depth;

    __device__ __forceinline__ Phase(const Scalar* w, const Conv2dShape& shape)
        : w(w), shape(shape), down(shape.R), across(shape.S), depth(shape.group_channels() * shape.R * shape.S) {}
    __device__ __forceinline__ Step step(const Tap& c) const {
        const int row = c.i * shape.dilation_h, col = c.j * shape.dilation_w;
        return {c.plane, row, col, (c.plane * shape.H + row) * shape.W + col};
    }
    __device__ __forceinline__ Acc value(int group, int m, const Tap& c) const {
        return to_acc(w[shape.w_at(group * shape.group_filters() + m, c.plane, c.i, c.j)]);
    }
};

__device__ __forceinline__ PackedFilter filter_in(Acc* scratch, const Conv2dShape& shape, int slices) {
    return PackedFilter(scratch, 1, shape.groups, shape.group_filters(), slices);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
pack(const Scalar* __restrict__ w, Acc* __restrict__ scratch, Conv2dShape shape, int slices) {
    pack_filter(filter_in(scratch, shape, slices), shape.group_filters(),
                [&](int) INLINED { return Phase(w, shape); });
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
forward(const Scalar* __restrict__ x, Acc* __restrict__ scratch, const Scalar* __restrict__ b, Scalar* __restrict__ y,
        Conv2dShape shape, int slices) {
    const PackedFilter filter = filter_in(scratch, shape, slices);
    const PixelGrid grid = {shape.N, shape.P, shape.Q};
    const Place place = filter.place_of_block(grid.count());
    const int first_k = place.group * shape.group_filters(), first_c = place.group * shape.group_channels();

    Loader<Image> loader(filter, Image(x, shape.N, shape.C, first_c, shape.H, shape.W), place, grid,
                         [&](const Pixels& at, Ints& row, Ints& col) INLINED {
                             row = at.p * shape.stride_h - shape.pad_top;
                             col = at.q * shape.stride_w - shape.pad_left;
                         });
    Product product;
    product.run(loader, 0, slices, [](const Product::Slice&) INLINED {});

    write_product(
        product, place, grid, y, shape.group_filters(), Index(shape.P) * shape.Q,
        [&](int n, int p, int q) INLINED { return shape.y_at(n, first_k, p, q); },
        [&](int m, Lane s) INLINED { return activate(b ? s + to_acc(b[first_k + m]) : s); });
}
