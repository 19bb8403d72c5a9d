// A plane correlated with a filter by mma.sync (mma.cuh), one row of the plane at a time: there the filter is a band.
//
// The 8 columns of mma's sums are a group of outputs that lie together, OUT_ROWS rows of OUT_COLS; its 16 rows are 16
// such groups side by side. For one row of the plane, row m of the left factor is that row from column m * OUT_COLS on,
// as it lies in shared memory: nothing is copied. The right factor has the filter's taps where an output sees them:
// output (a,b) meets column k of the row, the i-th that its group sees, by tap (i - a, k - b), and by a zero where
// there is no such tap. Of the factors' cells FILTER_R * FILTER_S in SEEN_ROWS * BAND are taps: 78 % of a 15x15 filter
// for groups of 4 x 2 outputs.
//
// A row is loaded once, and multiplied for all GROUPS of output rows that see it, whose sums a warp keeps in registers.
//
// factors.cuh says what is multiplied. Of float32, all low * high and high * low of a row are added up, and then all
// high * high. A row's product is formed by itself and added to the sums by an addition that rounds to nearest: tensor
// cores may cut a sum each time, and that adds up.
#pragma once
#include "factors.cuh"
#include "row_ring.cuh"

// PRODUCTS: 3 of two parts of each factor; 2 where the filter's taps are TF32 numbers as they are; 1 of one part each.
constexpr int LEFT_PARTS = PRODUCTS > 1 ? 2 : 1, RIGHT_PARTS = PRODUCTS > 2 ? 2 : 1;

constexpr int OUT_COLS = 8 / OUT_ROWS, TILE_COLS = TILES * 16 * OUT_COLS;
constexpr int SEEN_ROWS = FILTER_R + OUT_ROWS - 1, GROUPS = round_up(SEEN_ROWS, OUT_ROWS) / OUT_ROWS;
constexpr int BAND = round_up(FILTER_S + OUT_COLS - 1, Factor::K), STEPS = BAND / Factor::K;
// Columns of a row that a tile sees, from a column on where a vector may begin, LEAD before the first tap's.
constexpr int WINDOW = round_up(LEAD + TILE_COLS - OUT_COLS + BAND, COLS);

__device__ __forceinline__ int lane() { return threadIdx.x % 32; }
// Where the first of a lane's two neighbouring sums is in its group: sums[2 * i] of group lane() / 4 + i * 8.
__device__ __forceinline__ int out_row() { return lane() % 4 * 2 / OUT_COLS; }
__device__ __forceinline__ int out_col() { return lane() % 4 * 2 % OUT_COLS; }

// The filter between zeros in shared memory: from there all right factors are read, each shifted by a group's rows.
// Two runs of words for each row: TF32's high and low parts, or of 16-bit taps the second one tap to the right, so that
// two of them lie in one word for an odd output column too. RUN: the lanes' words of a row are in 32 banks.
struct BandedFilter {
    static constexpr int RUN = round_up((BAND + OUT_COLS) / Factor::PER_WORD - 4, 8) + 4, PITCH = 2 * RUN;
    static constexpr int FIRST = OUT_ROWS - 1, ROWS_PADDED = FIRST + SEEN_ROWS, BYTES = ROWS_PADDED * PITCH * 4;
    unsigned* const words;

    // tap(r, s): of the filter. All threads of the block; the caller waits for all of them.
    template <class Tap>
    __device__ __forceinline__ void fill(Tap tap) const {
        for (int i = threadIdx.x; i < ROWS_PADDED * PITCH; i += THREADS) {
            const int r = i / PITCH - FIRST, run = i / RUN % 2, word = i % RUN;
            const auto padded = [&](int s) {
                return 0 <= r && r < FILTER_R && 0 <= s && s < FILTER_S ? tap(r, s) : Scalar(0.0f);
            };
            if constexpr (IS_TF32) {
                const float value = to_acc(padded(word - OUT_COLS)) * SCALE;
                const unsigned high = tf32_word(value);
                words[i] = run == 0 ? high : tf32_rest(value, high);
            } else {
                const int s = word * 2 - OUT_COLS - run;
                words[i] = pair_word(padded(s), padded(s + 1));
            }
        }
    }
    // A lane's words of the right factor for row i that a group sees.
    __device__ __forceinline__ void read(unsigned (&parts)[RIGHT_PARTS][2], int i, int step) const {
        const int a = lane() / 4 / OUT_COLS, b = lane() / 4 % OUT_COLS, run = IS_TF32 ? 0 : b % 2;
        const unsigned* const from = words + (FIRST - a) * PITCH + run * RUN + (OUT_COLS - b + run) / Factor::PER_WORD +
                                     lane() % 4 + i * PITCH + step * 8;
#pragma unroll
        for (int part = 0; part < RIGHT_PARTS; ++part)
#pragma unroll
            for (int j = 0; j < 2; ++j) parts[part][j] = from[part * RUN + j * 4];
    }
};

// A lane's words of a left factor, whose rows begin OUT_COLS columns apart.
template <class T>
__device__ __forceinline__ void read_left(unsigned (&parts)[LEFT_PARTS][4], const T* row, int step) {
    const T* const from = row + LEAD + lane() / 4 * OUT_COLS + lane() % 4 * Factor::PER_WORD + step * Factor::K;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const T* const at = from + i % 2 * 8 * OUT_COLS + i / 2 * 4 * Factor::PER_WORD;
        if constexpr (IS_TF32) {
            const float value = float(*at) * SCALE;
            parts[0][i] = tf32_word(value);
            if constexpr (LEFT_PARTS == 2) parts[1][i] = tf32_rest(value, parts[0][i]);
        } else if constexpr (LEAD % 2 == 0) {
            const auto pair = *reinterpret_cast<const Vector<2>*>(at);
            parts[0][i] = pair_word(pair.elements[0], pair.elements[1]);
        } else {  // they lie in two words
            parts[0][i] = pair_word(at[0], at[1]);
        }
    }
}

using Sums = float[TILES][4];

// Adds a row of the plane, the f-th of the newest group's, to the sums of the groups of output rows that see it, of
// which there are so many: sums[j] are those of group newest - j.
template <class T>
__device__ __forceinline__ void add_row(Sums (&sums)[GROUPS], const T* row, BandedFilter filter, int f, int newest,
                                        int groups) {
    unsigned left[STEPS][TILES][LEFT_PARTS][4];
#pragma unroll
    for (int step = 0; step < STEPS; ++step)
#pragma unroll
        for (int t = 0; t < TILES; ++t) read_left(left[step][t], row + t * 16 * OUT_COLS, step);

#pragma unroll
    for (int j = 0; j < GROUPS; ++j) {
        const int i = f + j * OUT_ROWS;  // it is the i-th row that the group sees
        if (newest - j < 0 || newest - j >= groups || i >= SEEN_ROWS) continue;
        unsigned right[STEPS][RIGHT_PARTS][2];
#pragma unroll
        for (int step = 0; step < STEPS; ++step) filter.read(right[step], i, step);
        Sums own = {};
        Sums& product = PRODUCTS > 1 ? own : sums[j];
        const auto add = [&](int left_part, int right_part) {
#pragma unroll
            for (int step = 0; step < STEPS; ++step)
#pragma unroll
                for (int t = 0; t < TILES; ++t)
                    multiply_add<Factor>(product[t], left[step][t][left_part], right[step][right_part]);
        };
        if constexpr (LEFT_PARTS == 2) add(1, 0);
        if constexpr (RIGHT_PARTS == 2) add(0, 1);
        add(0, 0);
        if constexpr (PRODUCTS > 1)
#pragma unroll
            for (int t = 0; t < TILES; ++t)
#pragma unroll
                for (int e = 0; e < 4; ++e) sums[j][t][e] += own[t][e];
    }
}

// The oldest group has been stored: each of the others is older now, and the newest one begins.
__device__ __forceinline__ void next_group(Sums (&sums)[GROUPS]) {
#pragma unroll
    for (int j = GROUPS - 1; j >= 0; --j)
#pragma unroll
        for (int t = 0; t < TILES; ++t)
#pragma unroll
            for (int e = 0; e < 4; ++e) sums[j][t][e] = j > 0 ? sums[j - 1][t][e] : 0;
}

// Two neighbouring elements, the first of them at an even column, of a row of so many.
template <int VECTOR>
__device__ __forceinline__ void store_pair(Scalar* row, int col, int columns, const Acc (&pair)[2]) {
    if (VECTOR % 2 == 0 && col < columns) store_vector<2>(row + col, pair);
    if (VECTOR % 2 == 0) return;
    if (col < columns) row[col] = from_acc(pair[0]);
    if (col + 1 < columns) row[col + 1] = from_acc(pair[1]);
}
