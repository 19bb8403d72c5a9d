// How kernel_grad's tensor_core multiplies where the stride is 1: images with their halo serve many taps.
//
// A block computes TILE_M filters at TILE_C channels and a group of TAPS_DOWN x TAPS_ACROSS taps, for some
// tiles of pixels. Of a tile g is staged as it lies in memory, pixels side by side, and x with its halo, a pixel's
// channels side by side (halo_loader.cuh) or, of 32-bit numbers, as it lies in memory, too: both once. A warp has WARP_M
// filters, 16 channels and one row of the taps: a number of g that it reads serves all of them. What mma wants of x is
// turned: 16-bit numbers by ldmatrix, 32-bit ones are read word by word.
#pragma once
#include "activation.cuh"
#include "kernel_grad_of_pixels.cuh"
#include "tap_channels.cuh"
#include "tap_grads.cuh"
#include "tap_planes.cuh"

// What a block computes, and from which tiles of pixels. What lies beyond the last filter or tap is not written.
struct TapBlock {
    const Conv2dShape& shape;
    const PixelGrid grid;
    const int filters, channels;  // of the group
    int group, first_m, first_c, first_r, first_s, first_tile, end_tile;

    __device__ __forceinline__ TapBlock(const Conv2dShape& shape, int split_tiles)
        : shape(shape), grid{shape.N, shape.P, shape.Q}, filters(shape.group_filters()),
          channels(shape.group_channels()) {
        const int m_tiles = (filters + TILE_M - 1) / TILE_M, c_tiles = channels / TILE_C;
        const int across = (shape.S + TAPS_ACROSS - 1) / TAPS_ACROSS, down = (shape.R + TAPS_DOWN - 1) / TAPS_DOWN;
        int number = blockIdx.x;
        const auto next = [&](int count) {
            const int index = number % count;
            number /= count;
            return index;
        };
        first_m = next(m_tiles) * TILE_M;
        first_c = next(c_tiles) * TILE_C;
        first_s = next(across) * TAPS_ACROSS;
        first_r = next(down) * TAPS_DOWN;
        group = number;
        first_tile = blockIdx.y * split_tiles;
        end_tile = min(first_tile + split_tiles, HaloTile::count(grid));
    }
    __device__ __forceinline__ bool has_first_taps() const { return first_c + first_r + first_s == 0; }
    __device__ __forceinline__ int filter(int row) const { return group * filters + first_m + row; }

    // What is summed over this block's tiles: of the rows and columns of one in one image.
    template <class OfPixels>
    __device__ __forceinline__ Acc sum(OfPixels&& of_pixels) const {
        LongSum sum;
        for (int number = first_tile; number < end_tile && !isnan(sum.value()); ++number) {
            const HaloTile tile(number, grid);
            for (int n = tile.n; n < min(tile.n + TILE_IMAGES, grid.N); ++n)
                sum.add(of_pixels(n, tile.p, tile.p + TILE_P, tile.q, tile.q + TILE_Q));
        }
        return sum.value();
    }
};

using Grads = std::conditional_t<CHANNELS_LAST, ChannelGradLoader, GradLoader>;
using Halo = std::conditional_t<IS_TF32, HaloPlanes, HaloPixels>;
using ImageLoader =
    std::conditional_t<IS_TF32, PlaneLoader<InputReader, X_PIXELS>, LayoutLoader<ImageReader, X_PIXELS, HaloPixels>>;

// A tile: both factors.
struct StagedTile {
    GradRows a;
    Halo b;
};

// A warp's sums: ROWS x COLS of a lane, the columns being two channels of each 8, for each tap.
struct TapSums {
    static constexpr int ROWS_16 = WARP_M / 16, ROWS = ROWS_16 * 2, COLS = TAPS_ACROSS * 4;

    // Where am I: my warp's filters, channels and row of taps.
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 % WARPS_M * WARP_M;
    const int warp_channel = threadIdx.x / 32 / WARPS_M % WARPS_C * 16, tap_row = threadIdx.x / 32 / WARPS_M / WARPS_C;
    int own_grads, own_pixels;  // bytes
    float sums[ROWS_16][TAPS_ACROSS][2][4] = {}, totals[LONG_SUMS ? ROWS_16 : 1][TAPS_ACROSS][2][4] = {};

    __device__ __forceinline__ TapSums(const Conv2dShape& shape, int lead) {
        const int first_pixel = tap_row * shape.dilation_h * HALO_Q + lead;
        const int pixel = IS_TF32 ? lane % 4 : pixel_of(lane % 16);
        const int channel = IS_TF32 ? (warp_channel + lane / 4) * HaloPlanes::CHANNEL_BYTES
                                    : warp_channel * 2 + lane / 16 * int(sizeof(Chunk));
        own_pixels = (first_pixel + pixel) * Halo::PIXEL_BYTES + channel;
        own_grads = GradRows::at(warp_row + lane % 16, lane / 16) * int(sizeof(Chunk));
    }
    __device__ __forceinline__ int row(int i) const { return warp_row + i * 8 + lane / 4; }
    __device__ __forceinline__ int channel(int j) const { return warp_channel + j / 2 % 2 * 8 + lane % 4 * 2 + j % 2; }
    static __device__ __forceinline__ int tap(int j) { return j / 4; }
    // NaN stands for a sum that is not finite where its factors were scaled: it is to be formed anew.
    __device__ __forceinline__ Acc sum(int i, int j) const {
        const float scaled = sums[i / 2][j / 4][j / 2 % 2][i % 2 * 2 + j % 2];
        return IS_TF32 ? scaled * UNSCALE + (scaled - scaled) : scaled;
    }

    // A lane's words of 16 channels at the pixels of a step: pixels 0 to 7 and 8 to 15, or 0 to 3 and 4 to 7, of the
    // first 8 channels and of the others.
    static __device__ __forceinline__ void read(unsigned (&words)[4], const char* first) {
        if constexpr (IS_TF32) {
#pragma unroll
            for (int i = 0; i < 4; ++i)
                words[i] = *reinterpret_cast<const unsigned*>(first + i % 2 * 4 * HaloPlanes::PIXEL_BYTES +
                                                              i / 2 * 8 * HaloPlanes::CHANNEL_BYTES);
        } else {
            load_turned_matrices(words, first);
        }
    }
    // STEPS_AT_ONCE steps of a tile.
    __device__ __forceinline__ void add(const GradRows& grads, const Halo& halo, int group) {
        const char* const own = reinterpret_cast<const char*>(&grads) + own_grads +
                                group * int(STEPS_AT_ONCE * 2 * sizeof(Chunk));
        const char* const pixels = reinterpret_cast<const char*>(&halo) + own_pixels +
                                   pixel_of(group * STEPS_AT_ONCE * Factor::K) * Halo::PIXEL_BYTES;
#pragma unroll
        for (int step = 0; step < STEPS_AT_ONCE; ++step) {
            unsigned left[LEFT_PARTS][ROWS_16][4];
#pragma unroll
            for (int part = 0; part < LEFT_PARTS; ++part)
#pragma unroll
                for (int i = 0; i < ROWS_16; ++i) {
                    load_matrices(left[part][i], own + part * int(sizeof(grads.chunks[0])) +
                                                     (i * 16 * GradRows::PITCH + step * 2) * int(sizeof(Chunk)));
                    round_whole(left[part][i]);
                }
#pragma unroll
            for (int s = 0; s < TAPS_ACROSS; ++s) {
                unsigned right[RIGHT_PARTS][4];
#pragma unroll
                for (int part = 0; part < RIGHT_PARTS; ++part)
                    read(right[part], pixels + part * int(sizeof(Halo) / RIGHT_PARTS) +
                                          (s * COL_STEP + pixel_of(step * Factor::K)) * Halo::PIXEL_BYTES);

                // The small products first.
                if constexpr (LEFT_PARTS == 2) add_products(s, left[1], right[0]);
                if constexpr (RIGHT_PARTS == 2) add_products(s, left[0], right[1]);
                add_products(s, left[0], right[0]);
            }
        }
    }
    __device__ __forceinline__ void add_products(int s, const unsigned (&left)[ROWS_16][4],
                                                 const unsigned (&right)[4]) {
#pragma unroll
        for (int i = 0; i < ROWS_16; ++i)
#pragma unroll
            for (int j = 0; j < 2; ++j)
                multiply_add<Factor>(sums[i][s][j], left[i], {right[j * 2], right[j * 2 + 1]});
    }
    __device__ __forceinline__ void end_run(bool is_last) {
        if constexpr (LONG_SUMS) {
#pragma unroll
            for (int i = 0; i < ROWS_16 * TAPS_ACROSS * 8; ++i) {
                float& sum = sums[i / 8 / TAPS_ACROSS][i / 8 % TAPS_ACROSS][i / 4 % 2][i % 4];
                float& total = totals[i / 8 / TAPS_ACROSS][i / 8 % TAPS_ACROSS][i / 4 % 2][i % 4];
                total += sum;
                sum = is_last ? total : 0;
            }
        }
    }
};

// Adds up the products of a block's tiles. RowSums sees g of each of them, too.
template <class RowSums>
__device__ __forceinline__ void add_tiles(TapSums& sums, const TapBlock& block, Grads& grads,
                                          ImageLoader& images, int lead,
                                          RowSums& row_sums) {
    constexpr int RUN_GROUPS = RUN_STEPS / (STEPS_AT_ONCE * Factor::K);
    static_assert(RUN_GROUPS * STEPS_AT_ONCE * Factor::K == RUN_STEPS, "a run is made of whole groups of steps");
    // Without branches (store_if): where there are products enough for what nvcc then does in between.
    constexpr bool IS_FREE = LEFT_PARTS == 2;
    StagedTile* const staged = reinterpret_cast<StagedTile*>(shared);
    const auto begin = [&](int number) {
        const HaloTile tile(number, block.grid);
        grads.begin(tile, block.first_m);
        images.move_to(tile.n, block.shape.input_row(tile.p, block.first_r),
                       block.shape.input_col(tile.q, block.first_s) - lead);
        images.begin();
    };
    const auto meet = [] {
        if constexpr (ImageLoader::IS_COPIED) {
            __pipeline_commit();
            __pipeline_wait_prior(0);
        }
        __syncthreads();
    };
    if (block.first_tile >= block.end_tile) return;
    begin(block.first_tile);
    grads.bring(staged[0].a);
    images.bring(staged[0].b, block.first_c);
    meet();  // the first tile is there
    int run = 0, turn = 0;
#pragma unroll 1
    for (int number = block.first_tile; number < block.end_tile; ++number, turn ^= 1) {
        const bool has_next = number + 1 < block.end_tile;
        if (has_next) begin(number + 1);
        const StagedTile& tile = staged[turn];
        StagedTile& next = staged[turn ^ 1];
#pragma unroll 1
        for (int group = 0; group < STEP_GROUPS; ++group) {
            const bool brings_image = has_next && images.has_units(), brings_grads = has_next && grads.has_units();
            if (IS_FREE || brings_image) images.ask(next.b, block.first_c, brings_image);
            if (IS_FREE || brings_grads) grads.ask(brings_grads);
            __syncwarp();  // or ptxas moves the loads to where they are wanted
            sums.add(tile.a, tile.b, group);
            if (IS_FREE || brings_grads) grads.put(next.a, brings_grads);
            if (IS_FREE || brings_image) images.put(next.b, brings_image);
            if (LONG_SUMS && ++run == RUN_GROUPS) run = 0, sums.end_run(false);
        }
        row_sums.add(tile);
        if (has_next) {
            images.bring(next.b, block.first_c);
            if constexpr (Grads::OWN > Grads::UNITS * STEP_GROUPS) grads.bring(next.a);
        }
        meet();  // the next tile is there, and nobody reads this one any more
    }
    sums.end_run(true);
}

// Where a block's sums go: to its split's part or, of the only split, to dw and db, which may be left out (null).
using TapResult = std::conditional_t<ONE_SPLIT, Scalar, Acc>;
struct TapResults {
    TapResult *const dw, *const db;
    const Scalar* const scale;

    __device__ __forceinline__ void put(int k, Index tap, Acc sum) const {
        if constexpr (ONE_SPLIT)
            dw[tap] = from_acc(scaled(sum, scale, k));
        else
            dw[tap] = sum;
    }
    __device__ __forceinline__ void put_bias(int k, Acc sum) const {
        if constexpr (ONE_SPLIT)
            db[k] = from_acc(sum);
        else
            db[k] = sum;
    }
    __device__ __forceinline__ bool is_nan(Index tap) const {
        const Acc written = dw[tap];
        return isnan(written);
    }
};

__device__ __forceinline__ void write_taps(const TapResults& results, const TapSums& sums, const TapBlock& block,
                                           const Scalar* dy, const Saved* saved, const Scalar* x) {
    const Conv2dShape& shape = block.shape;
    const int r = block.first_r + sums.tap_row;
    if ((ONE_SPLIT && !results.dw) || r >= shape.R) return;
    // Of sum (i, j): whether there is such a tap, and where it lies.
    const auto exists = [&](int i, int j) {
        return block.first_m + sums.row(i) < block.filters && block.first_s + sums.tap(j) < shape.S;
    };
    const auto at = [&](int i, int j) {
        return shape.w_at(block.filter(sums.row(i)), block.first_c + sums.channel(j), r, block.first_s) + sums.tap(j);
    };
    bool is_nan = false;
#pragma unroll
    for (int i = 0; i < TapSums::ROWS; ++i)
#pragma unroll
        for (int j = 0; j < TapSums::COLS; ++j) {
            const Acc sum = sums.sum(i, j);
            if (exists(i, j)) results.put(block.filter(sums.row(i)), at(i, j), sum);
            is_nan |= sum != sum;
        }
#pragma unroll 1
    for (int number = 0; is_nan && number < TapSums::ROWS * TapSums::COLS; ++number) {
        const int i = number / TapSums::COLS, j = number % TapSums::COLS;
        if (!exists(i, j) || !results.is_nan(at(i, j))) continue;
        const int k = block.filter(sums.row(i)), c = block.first_c + sums.channel(j), s = block.first_s + sums.tap(j);
        results.put(k, at(i, j), block.sum([&](int n, int first_p, int end_p, int first_q, int end_q) {
            return dw_of_pixels(dy, saved, x, shape, n, k, c, r, s, first_p, end_p, first_q, end_q);
        }));
    }
}
