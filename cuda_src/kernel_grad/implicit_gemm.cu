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
// they are staged: element by element. Images of 14 x 14 and 7 x 7, with a few dozen blocks, took 3 to 12 times as
// long as torch.
#include "kernel_grad_total.cuh"
#include "matrix_product.cuh"
#include "tap_tiles.cuh"
#include "window_reader.cuh"

// A step of the sum is a pixel. A warp brings 8 of them side by side, a sector of memory, of several rows: writing them
// meets no bank twice. If a slice has more steps, its warps share them.
constexpr int WARP_STEPS = 8, STEP_WARPS = DEPTH / WARP_STEPS;
static_assert(DEPTH % WARP_STEPS == 0 && THREADS % (32 * STEP_WARPS) == 0, "all steps have as many threads");

using Product = MatrixProduct<VECTOR>;

// Brings one of the two matrices, ROWS rows of it: what each of them means in the windows of DEPTH pixels. A thread has
// PIXELS neighbouring ones and several rows. ARE_PLANES: the rows are the same place in neighbouring planes.
template <class Reader, int ROWS, int PIXELS, bool ARE_PLANES>
struct PixelLoader {
    static constexpr int STEP_THREADS = WARP_STEPS / PIXELS, ROW_THREADS = 32 / STEP_THREADS;  // of a warp
    static constexpr int AT_ONCE = THREADS / DEPTH * PIXELS, OWN = ROWS / AT_ONCE;
    static_assert(ROWS % AT_ONCE == 0, "a thread has several rows");

    // Neighbouring steps are neighbours in memory.
    const int first_step = threadIdx.x % STEP_THREADS * PIXELS + threadIdx.x / 32 % STEP_WARPS * WARP_STEPS;
    const int first_row = threadIdx.x % 32 / STEP_THREADS + threadIdx.x / 32 / STEP_WARPS * ROW_THREADS;
    Reader reader;
    const PixelGrid grid;
    Pixel pixel;                           // of the next slice
    Offset offsets[ARE_PLANES ? 1 : OWN];  // of this thread's rows
    int rows = ROWS;                       // that exist, counted from this thread's first one
    decltype(reader.template read<PIXELS>()) own[OWN];

    __device__ __forceinline__ PixelLoader(const Reader& reader, const TapTile& tile)
        : reader(reader), grid(tile.grid), pixel(tile.first_slice * DEPTH + first_step, grid) {}
    __device__ __forceinline__ int row(int i) const { return first_row + i * AT_ONCE; }

    __device__ __forceinline__ void fetch() {
        reader.move_to(pixel);
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            if (ARE_PLANES && i > 0)
                reader.skip_planes(AT_ONCE);
            else
                reader.go_to(offsets[i]);
            own[i] = reader.template read<PIXELS>(!ARE_PLANES || ONE_TAP || i * AT_ONCE < rows);
        }
        pixel.advance(DEPTH, grid);
    }
    template <int LENGTH>
    __device__ __forceinline__ void put(Acc (&slice)[DEPTH][LENGTH]) const {
#pragma unroll
        for (int i = 0; i < OWN; ++i)
#pragma unroll
            for (int e = 0; e < PIXELS; ++e) slice[first_step + e][row(i)] = own[i].value(e);
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
    PixelLoader<InputReader, TILE_N, X_PIXELS, ONE_TAP> windows(InputReader(x, shape, tile.group), tile);
#pragma unroll
    for (int i = 0; i < (ONE_TAP ? 1 : windows.OWN); ++i) windows.offsets[i] = tile.column_offset(windows.row(i));
    Product product;
    RowSums bias = {with_bias && tile.number == 0 && threadIdx.x < TILE_M};
    add_slices(product, grads, windows, bias, tile.slices);

    Acc* const split = partial + blockIdx.y * (shape.w_size() + shape.K);
    bool is_nan = false;
#pragma unroll
    for (int i = 0; i < Product::ROWS; ++i)
#pragma unroll
        for (int j = 0; j < Product::COLS; ++j) {
            const int m = product.row(i), column = product.col(j);
            if (tile.has_result(m, column)) split[tile.result_at(m, column)] = product.sums[i][j];
            is_nan |= isnan(product.sums[i][j]);
        }
    if (is_nan) tile.form_anew(split, product, dy, saved, x);
    if (bias.wanted && tile.has_row(threadIdx.x)) split[tile.bias_at(threadIdx.x)] = bias.sum.value();
}
