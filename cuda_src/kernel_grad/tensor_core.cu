// dw[k,c,r,s] = sum_{n,p,q} g[n,k,p,q] * x[n, c, p*stride - pad + r*dilation, q*stride - pad + s*dilation]
// db[k]       = sum_{n,p,q} g[n,k,p,q]                                         with g = dy * phi'(s)
//
// The matrix product of implicit_gemm on tensor cores: one block computes TILE_M filters at TILE_N taps (c,r,s) for a
// part of the pixels, and a warp WARP_M x WARP_N of them, 16 x 8 at once (tensor_product.cuh). 16-bit elements are
// multiplied as they are, float32 by three products of TF32 numbers, and a g that is not dy or 0 by two. A step of the
// sum is a pixel: where the rung below turns both matrices as they are staged, here pixels stay side by side, as in
// memory, and a warp reads both by ldmatrix without a bank conflict. kernel_grad_total adds up the parts in a fixed
// order.
//
// What limits it: no GPU has run it. Each element of a window is loaded and stored by instructions of its own, which in
// 16 bits are more work than its products.
#include "kernel_grad_total.cuh"
#include "tap_product.cuh"
#include "tensor_product.cuh"

using GradSlice = ChunkRows<LEFT_PARTS, TILE_M, true, true>;
using WindowSlice = ChunkRows<RIGHT_PARTS, TILE_N, false, true>;
using Product = TensorProduct<GradSlice, WindowSlice>;

// Writes what a thread has read to chunks of its rows.
template <class Reader, int ROWS, int PIXELS, bool ARE_PLANES>
struct PixelLoader : PixelReads<Reader, ROWS, PIXELS, ARE_PLANES> {
    using PixelReads<Reader, ROWS, PIXELS, ARE_PLANES>::PixelReads;
    static_assert(CHUNK_STEPS % PIXELS == 0, "what is read at once is part of a chunk");

    template <int PARTS, bool IS_LEFT>
    __device__ __forceinline__ void put(ChunkRows<PARTS, ROWS, IS_LEFT, true>& slice) const {
        struct alignas(4 * PIXELS) Words {
            unsigned words[PIXELS];
        } words[PARTS];
        const int step = this->first_step % CHUNK_STEPS;
#pragma unroll
        for (int i = 0; i < this->OWN; ++i) {
            const int at = slice.at(this->row(i), this->first_step / CHUNK_STEPS);
            if constexpr (IS_TF32) {
#pragma unroll
                for (int e = 0; e < PIXELS; ++e) {
                    const Tf32Parts<PARTS> both(this->own[i].value(e));
#pragma unroll
                    for (int part = 0; part < PARTS; ++part) words[part].words[e] = both.words[part];
                }
#pragma unroll
                for (int part = 0; part < PARTS; ++part)
                    *reinterpret_cast<Words*>(&slice.chunks[part][at].words[step]) = words[part];
            } else {
                Vector<PIXELS> vector;
#pragma unroll
                for (int e = 0; e < PIXELS; ++e) vector.elements[e] = this->own[i].exact(e);
                *reinterpret_cast<Vector<PIXELS>*>(reinterpret_cast<Scalar*>(&slice.chunks[0][at]) + step) = vector;
            }
        }
    }
};

// The sum of g for each row of the tile, from the slices as they pass by: the thread of the same number has it.
struct RowSums {
    const bool wanted;
    LongSum sum;

    __device__ __forceinline__ void add(const Product::Slice& slice) {
        if (!wanted) return;
        Acc steps = 0;
#pragma unroll 1
        for (int i = 0; i < LEFT_PARTS * CHUNKS; ++i) {
            const Chunk chunk = slice.a.chunks[i / CHUNKS][GradSlice::at(threadIdx.x, i % CHUNKS)];
#pragma unroll
            for (int e = 0; e < CHUNK_STEPS; ++e)
                steps += IS_TF32 ? __uint_as_float(chunk.words[e / Factor::PER_WORD])
                                 : Factor::element(chunk.words[e / Factor::PER_WORD], e % Factor::PER_WORD);
        }
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
    PixelLoader<InputReader, TILE_N, X_PIXELS, ONE_TAP> windows(InputReader(x, shape, tile.group), tile);
#pragma unroll
    for (int i = 0; i < (ONE_TAP ? 1 : windows.OWN); ++i) windows.offsets[i] = tile.column_offset(windows.row(i));
    Product product;
    RowSums bias = {with_bias && tile.number == 0 && threadIdx.x < TILE_M};
    add_slices(product, grads, windows, bias, tile.slices);

    Acc* const split = partial + blockIdx.y * (shape.w_size() + shape.K);
    write_partial(split, product, tile, dy, saved, x);
    if (!bias.wanted || !tile.has_row(threadIdx.x)) return;
    Acc& sum = split[tile.bias_at(threadIdx.x)];
    sum = bias.sum.value() / SCALE;
    const int first = tile.first_slice * DEPTH, end = min(first + tile.slices * DEPTH, tile.grid.count());
    if (IS_TF32 && !isfinite(sum))  // its terms may have been scaled to infinity
        sum = db_of_pixels(dy, saved, shape, tile.group * tile.filters + tile.first_m + threadIdx.x, first, end);
}
