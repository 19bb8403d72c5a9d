// dw[k,c,r,s] = sum_{n,p,q} g[n,k,p,q] * x[n, c, p*stride - pad + r*dilation, q*stride - pad + s*dilation]
// db[k]       = sum_{n,p,q} g[n,k,p,q]                                         with g = dy * phi'(s)
//
// One block computes TILE_M filters at TILE_N taps (c,r,s), as a product of two matrices: g, and the windows of x that
// the pixels see, a row each, which is looked up as it is staged and never stored. db is summed up from the slices of g
// as they pass by. The results are few and the sums long: so the pixels are split among blocks, whose partial sums
// kernel_grad_total adds up in a fixed order. The rungs below read all of x anew for each filter; here what is read
// serves a tile of filters and taps.
//
// What limits it: on an H200, 64 channels to 128 at 112 x 112, 3 x 3, 32 images took 2,046 us, 29 of the 65 TFLOP/s
// that multiply-adds reach. A step of the sum is a pixel, so that both matrices, whose rows are planes, are turned as
// they are staged: element by element, where a quarter of its loop's instructions goes. Images of 14 x 14 and 7 x 7 took
// 3 to 12 times as long as torch, most of it in the second launch, whose threads then had nothing to add.
#include "kernel_grad_total.cuh"
#include "matrix_product.cuh"
#include "tap_product.cuh"

using Product = MatrixProduct<VECTOR>;

// Writes what a thread has read to its steps.
template <class Reader, int ROWS, int PIXELS, bool ARE_PLANES>
struct PixelLoader : PixelReads<Reader, ROWS, PIXELS, ARE_PLANES> {
    using PixelReads<Reader, ROWS, PIXELS, ARE_PLANES>::PixelReads;
    template <int LENGTH>
    __device__ __forceinline__ void put(Acc (&slice)[DEPTH][LENGTH]) const {
#pragma unroll
        for (int i = 0; i < this->OWN; ++i)
#pragma unroll
            for (int e = 0; e < PIXELS; ++e) slice[this->first_step + e][this->row(i)] = this->own[i].value(e);
    }
};

// Brings the windows: single numbers go past the registers.
template <class Reader, int PIXELS>
struct WindowLoader : PixelLoader<Reader, TILE_N, PIXELS, ONE_TAP> {
    using Base = PixelLoader<Reader, TILE_N, PIXELS, ONE_TAP>;
    using Base::Base;
    static constexpr bool IS_COPIED = Reader::IS_PLAIN && PIXELS == 1;
    int turn = 0;  // which of the two slices in shared memory is the next

    __device__ __forceinline__ void fetch() {
        if constexpr (IS_COPIED) {
#pragma unroll
            for (int i = 0; i < this->OWN; ++i) {
                this->go_to_row(i);
                this->reader.template copy<1>(&slices_of<Product>()[turn].b[this->first_step][this->row(i)]);
            }
            __pipeline_commit();
            this->pixel.advance(DEPTH, this->grid);
            turn ^= 1;
        } else {
            Base::fetch();
        }
    }
    template <int LENGTH>
    __device__ __forceinline__ void put(Acc (&slice)[DEPTH][LENGTH]) const {
        if constexpr (IS_COPIED)
            __pipeline_wait_prior(0);
        else
            Base::put(slice);
    }
};

// The sum of g for each row of the tile, from the slices as they pass by: the thread of the same number has it.
struct RowSums {
    const bool wanted;
    LongSum sum;

    __device__ __forceinline__ void add(const Product::Slice& slice) {
        if (!wanted) return;
        Acc steps = 0;
        for (int d = 0; d < DEPTH; ++d) steps += slice.a[d][threadIdx.x];
        sum.add(steps);
    }
};
static_assert(THREADS >= TILE_M, "a row's sum has a thread");

// partial[split][tap], with gridDim.y splits; the K biases are the last taps
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
kernel_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ x,
            Acc* __restrict__ partial, Conv2dShape shape, int with_bias, int split_slices) {
    const TapTile tile(shape, split_slices);
    PixelLoader<GradReader, TILE_M, G_PIXELS, true> grads(GradReader(dy, saved, shape, tile.group), tile);
    grads.offsets[0] = tile.row_offset(grads.row(0));
    grads.rows = tile.filters - tile.first_m - grads.first_row;
    WindowLoader<InputReader, X_PIXELS> windows(InputReader(x, shape, tile.group), tile);
#pragma unroll
    for (int i = 0; i < (ONE_TAP ? 1 : windows.OWN); ++i) windows.offsets[i] = tile.column_offset(windows.row(i));
    Product product;
    RowSums bias = {with_bias && tile.number == 0 && threadIdx.x < TILE_M};
    add_slices(product, grads, windows, bias, tile.slices);

    Acc* const split = partial + blockIdx.y * (shape.w_size() + shape.K);
    write_partial(split, product, tile, dy, saved, x);
    if (bias.wanted && tile.has_row(threadIdx.x)) split[tile.bias_at(threadIdx.x)] = bias.sum.value();
}
