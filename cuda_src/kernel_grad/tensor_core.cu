// dw[k,c,r,s] = sum_{n,p,q} g[n,k,p,q] * x[n, c, p*stride - pad + r*dilation, q*stride - pad + s*dilation]
// db[k]       = sum_{n,p,q} g[n,k,p,q]                                         with g = dy * phi'(s)
//
// The matrix product of implicit_gemm on tensor cores, for a part of the pixels. 16-bit elements are multiplied as they
// are, float32 by three products of TF32 numbers, and a g that is not dy or 0 by two. A step of the sum is a pixel. Of
// unit stride and whole slices of channels, x is staged once for all taps, with its halo, and a number of g that a warp
// reads serves several of them (tap_halo.cuh). Other windows are staged tap by tap: one block computes TILE_M filters
// at TILE_N taps (c,r,s), and a warp WARP_M x WARP_N of them, 16 x 8 at once (tensor_product.cuh); pixels stay side by
// side, as in memory, and a warp reads both matrices by ldmatrix without a bank conflict. kernel_grad_total adds up the
// parts in a fixed order, where there are several.
//
// What limits it: no GPU has run it. With halos, what warps read from shared memory is expected to take as long as the
// products: of an H200 251 us for 128 filters of 64 channels at 112 x 112, 3 x 3, 32 images in float16 with a ReLU, 429
// in TF32, and 716 in float16 with a tanh, two products. Where windows are staged tap by tap, each of their elements is
// loaded and stored by instructions of its own, which in 16 bits are more work than its products.
#include "channels_last.cuh"
#include "kernel_grad_total.cuh"
#include "tap_halo.cuh"
#include "tap_product.cuh"
#include "tensor_product.cuh"

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
                    const Tf32Parts<PARTS, IS_LEFT && LEFT_IS_WHOLE> both(this->own[i].value(e));
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

// The sum of g for each row of the tile, from what is staged of g as it passes by: the thread of the same number has
// it.
struct RowSums {
    const bool wanted;
    LongSum sum;

    template <class Slice>
    __device__ __forceinline__ void add(const Slice& slice) {
        using Rows = decltype(slice.a);
        if (!wanted) return;
        Acc steps = 0;
#pragma unroll 1
        for (int i = 0; i < LEFT_PARTS * Rows::ACROSS; ++i) {
            const Chunk chunk = slice.a.chunks[i / Rows::ACROSS][Rows::at(threadIdx.x, i % Rows::ACROSS)];
#pragma unroll
            for (int e = 0; e < CHUNK_STEPS; ++e)
                steps += IS_TF32 ? __uint_as_float(chunk.words[e / Factor::PER_WORD])
                                 : Factor::element(chunk.words[e / Factor::PER_WORD], e % Factor::PER_WORD);
        }
        sum.run = steps;
        sum.end_run();  // each time: then no register holds a run
    }
};
static_assert(THREADS >= TILE_M, "a row's sum has a thread");

// Windows staged tap by tap, by all strides.
template <class RowSums, int ROWS, int COLUMNS>
__device__ __forceinline__ void add_windows(const Scalar* dy, const Saved* saved, const Scalar* x, Acc* split,
                                            const Conv2dShape& shape, bool with_bias, int split_slices) {
    const TapTile tile(shape, split_slices);
    PixelLoader<GradReader, ROWS, G_PIXELS, true> grads(
        grad_reader(dy, saved, tile), tile.grads(!SAVED_MASK), tile.first_slice, tile.filters - tile.first_m,
        [&](int row) { return tile.row_offset(row); });
    PixelLoader<InputReader, COLUMNS, X_PIXELS, ONE_TAP> windows(
        InputReader(x, shape, tile.group), tile.grid, tile.first_slice, COLUMNS,
        [&](int column) { return tile.column_offset(column); });
    TensorProduct<ChunkRows<LEFT_PARTS, ROWS, true, true>, ChunkRows<RIGHT_PARTS, COLUMNS, false, true>> product;
    RowSums bias = {with_bias && tile.number == 0 && threadIdx.x < TILE_M};
    add_slices(product, grads, windows, bias, tile.slices);

    write_partial(split, product, tile, dy, saved, x);
    if (!bias.wanted || !tile.has_row(threadIdx.x)) return;
    Acc& sum = split[tile.bias_at(threadIdx.x)];
    sum = bias.sum.value() / SCALE;
    const int first = tile.first_slice * DEPTH, end = min(first + tile.slices * DEPTH, tile.grid.count());
    if (IS_TF32 && !isfinite(sum))  // its terms may have been scaled to infinity
        sum = db_of_pixels(dy, saved, shape, tile.group * tile.filters + tile.first_m + threadIdx.x, first, end);
}

// This block's part, of its split.
__device__ __forceinline__ Acc* split_part(Acc* partial, const Conv2dShape& shape) {
    return partial + blockIdx.y * (shape.w_size() + shape.K);
}

// Images with their halo, of unit stride.
template <class RowSums>
__device__ __forceinline__ void add_halos(const Scalar* dy, const Saved* saved, const Scalar* x, const Scalar* scale,
                                          Acc* partial, Scalar* dw, Scalar* db, const Conv2dShape& shape,
                                          bool with_bias, int split_tiles) {
    Acc* const formed_first = split_part(partial, shape);  // in registers from here on
    const TapBlock block(shape, split_tiles);
    const int lead = unsigned(shape.input_col(0, block.first_s)) % X_PIXELS;  // a halo begins with a whole vector
    Grads grads(GradImageReader(dy, saved, shape, block.group), block.filters - block.first_m);
    ImageLoader images(ImageReader(x, shape, block.group), 0, 0, 0);
    TapSums sums(shape, lead);
    RowSums bias = {with_bias && block.has_first_taps() && threadIdx.x < TILE_M};
    add_tiles(sums, block, grads, images, lead, bias);

    // Both say the same. Large blocks of 32-bit numbers ask: where nvcc knows the address, it spills.
    const bool is_part = IS_TF32 && TILE_M > 32 ? gridDim.y > 1 : !ONE_SPLIT;
    // Channels side by side leave none for it.
    Acc* const split = CHANNELS_LAST ? split_part(partial, shape) : formed_first;
    Acc* const split_db = split + shape.w_size();
    const TapResults results = {static_cast<TapResult*>(is_part ? static_cast<void*>(split) : dw),
                                static_cast<TapResult*>(is_part ? static_cast<void*>(split_db) : db), scale};
    write_taps(results, sums, block, dy, saved, x);
    if ((ONE_SPLIT && !results.db) || !bias.wanted || block.first_m + int(threadIdx.x) >= block.filters) return;
    const int k = block.filter(threadIdx.x);
    Acc sum = bias.sum.value() / SCALE;
    if (IS_TF32 && !isfinite(sum))
        sum = block.sum([&](int n, int first_p, int end_p, int first_q, int end_q) {
            return db_of_pixels(dy, saved, shape, n, k, first_p, end_p, first_q, end_q);
        });
    results.put_bias(k, sum);
}

// partial[split][tap], with gridDim.y splits of slices or of tiles; the K biases are the last taps. ONE_SPLIT: there is
// nothing to add up, dw and db are written at once.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
kernel_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ x,
            const Scalar* __restrict__ scale, Acc* __restrict__ partial, Scalar* __restrict__ dw,
            Scalar* __restrict__ db, Conv2dShape shape, int with_bias, int split) {
    if constexpr (HALO)
        add_halos<RowSums>(dy, saved, x, scale, partial, dw, db, shape, with_bias, split);
    else
        add_windows<RowSums, TILE_M, TILE_N>(dy, saved, x, split_part(partial, shape), shape, with_bias, split);
}
