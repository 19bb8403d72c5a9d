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
// they are staged. That was element by element; now a thread has vectors of g, of rows and of pixels, and the way from
// pixel to pixel is added to addresses where divisions were: of 1,250 instructions in a turn of its loop 1,024 are
// multiply-adds, and the model expects 1.6 ms. Images of 14 x 14 and 7 x 7 took 3 to 12 times as long as torch, most of
// it in the second launch, whose threads then had nothing to add.
#include "kernel_grad_total.cuh"
#include "matrix_product.cuh"
#include "tap_product.cuh"

using Product = MatrixProduct<VECTOR>;

// How many neighbouring rows a thread has of ROWS, if they are written from registers: a vector of them, if there are.
template <int ROWS, int PIXELS>
constexpr int ROWS_ASIDE = ROWS * DEPTH / (THREADS * PIXELS) < VECTOR ? ROWS * DEPTH / (THREADS * PIXELS) : VECTOR;

// Writes what a thread has read to its steps: of each step the rows that are side by side at once.
template <class Reader, int ROWS, int PIXELS, bool ARE_PLANES, int ASIDE = ROWS_ASIDE<ROWS, PIXELS>>
struct PixelLoader : PixelReads<Reader, ROWS, PIXELS, ARE_PLANES, ASIDE> {
    using PixelReads<Reader, ROWS, PIXELS, ARE_PLANES, ASIDE>::PixelReads;
    struct alignas(ASIDE * sizeof(Acc)) Rows {
        Acc elements[ASIDE];
    };
    template <int LENGTH>
    __device__ __forceinline__ void put(Acc (&slice)[DEPTH][LENGTH]) const {
#pragma unroll
        for (int i = 0; i < this->OWN; i += ASIDE)
#pragma unroll
            for (int e = 0; e < PIXELS; ++e) {
                Rows rows;
#pragma unroll
                for (int r = 0; r < ASIDE; ++r) rows.elements[r] = this->own[i + r].value(e);
                *reinterpret_cast<Rows*>(&slice[this->first_step + e][this->row(i)]) = rows;
            }
    }
};

// Windows that are single numbers in memory, too, go past the registers.
template <class Reader, int PIXELS>
constexpr bool ARE_COPIED = Reader::IS_PLAIN && PIXELS == 1;

// Brings the windows.
template <class Reader, int PIXELS>
struct WindowLoader : PixelLoader<Reader, TILE_N, PIXELS, ONE_TAP,
                                  ARE_COPIED<Reader, PIXELS> ? 1 : ROWS_ASIDE<TILE_N, PIXELS>> {
    using Base = PixelLoader<Reader, TILE_N, PIXELS, ONE_TAP,
                             ARE_COPIED<Reader, PIXELS> ? 1 : ROWS_ASIDE<TILE_N, PIXELS>>;
    using Base::Base;
    static constexpr bool IS_COPIED = ARE_COPIED<Reader, PIXELS>;

    template <int LENGTH>
    __device__ __forceinline__ void fetch(Acc (&slice)[DEPTH][LENGTH]) {
        if constexpr (IS_COPIED) {
#pragma unroll
            for (int i = 0; i < this->OWN; ++i) {
                this->go_to_row(i);
                this->reader.template copy<1>(&slice[this->first_step][this->row(i)]);
            }
            __pipeline_commit();
            this->advance();
        } else {
            Base::fetch(slice);
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
#pragma unroll 4
        for (int d = 0; d < DEPTH; ++d) steps += slice.a[d][threadIdx.x];
        sum.add(steps);
    }
};
static_assert(THREADS >= TILE_M, "a row's sum has a thread");

// partial[split][tap], with gridDim.y splits; the K biases are the last taps
extern "C" __global__ void __launch_bounds__(THREADS, blocks_of(256))
kernel_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ x,
            Acc* __restrict__ partial, Conv2dShape shape, int with_bias, int split_slices) {
    const TapTile tile(shape, split_slices);
    PixelLoader<GradReader, TILE_M, G_PIXELS, true> grads(
        grad_reader(dy, saved, tile), tile.grads(!SAVED_MASK), tile.first_slice, tile.filters - tile.first_m,
        [&](int row) { return tile.row_offset(row); });
    WindowLoader<InputReader, X_PIXELS> windows(
        InputReader(x, shape, tile.group), tile.grid, tile.first_slice, TILE_N,
        [&](int column) { return tile.column_offset(column); });
    Product product;
    RowSums bias = {with_bias && tile.number == 0 && threadIdx.x < TILE_M};
    add_slices(product, grads, windows, bias, tile.slices);

    Acc* const split = partial + blockIdx.y * (shape.w_size() + shape.K);
    write_partial(split, product, tile, dy, saved, x);
    if (bias.wanted && tile.has_row(threadIdx.x)) split[tile.bias_at(threadIdx.x)] = bias.sum.value();
}
