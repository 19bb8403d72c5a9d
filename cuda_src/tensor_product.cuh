// A slice of a matrix product on tensor cores: sums[m][n] += sum_d a[d][m] * b[d][n]
//
// Each warp keeps WARP_M x WARP_N of the tile's sums in its lanes' registers, as mma.sync has them (mma.cuh). A step of
// a warp is 8 words deep: of the left factor it reads 16 rows, of the right one 16 columns at once, four words a lane,
// for WARP_M / 16 * WARP_N / 8 products of matrices, where matrix_product.cuh takes a number for each multiply-add of
// each of its rows. Of float32 each factor has two parts (factors.cuh), and a step three such products.
//
// Tensor cores may cut a sum each time. So a run of steps is short, and its sums are added to totals by additions that
// round to nearest; the totals are in registers, too. LONG_SUMS: whether there is more than one run.
#pragma once
#include "factors.cuh"
#include "slices.cuh"

// A slice: of each row and each column DEPTH numbers, 16 words, that is 4 chunks of 16 bytes.
constexpr int CHUNKS = 4, K_STEPS = 2, CHUNK_STEPS = 4 * Factor::PER_WORD;
static_assert(DEPTH == CHUNKS * CHUNK_STEPS && DEPTH == K_STEPS * Factor::K, "a slice is two steps of mma");
constexpr int WARPS_M = TILE_M / WARP_M;
static_assert(TILE_M % WARP_M == 0 && WARP_M % 32 == 0, "warps make the tile; swizzles know 32 rows");

struct alignas(16) Chunk {
    unsigned words[4];
};

// Stores words to shared memory, or not. Of an ordinary condition nvcc makes a branch around all that leads to them, and
// products on both sides of a branch wait for what they read.
template <int WORDS>
__device__ __forceinline__ void store_if(bool is_wanted, void* to, const unsigned (&words)[WORDS]) {
#ifdef CONVBACKPROP_ON_CPU
    struct alignas(4 * WORDS) Words {
        unsigned words[WORDS];
    } all;
    for (int i = 0; i < WORDS; ++i) all.words[i] = words[i];
    if (is_wanted) *static_cast<Words*>(to) = all;  // at once, as on a GPU: the profile counts accesses
#else
    const unsigned address = __cvta_generic_to_shared(to);
#define CONVBACKPROP_STORE_IF(store, ...)                                                              \
    asm volatile("{.reg .pred wanted; setp.ne.s32 wanted, %0, 0; @wanted " store ";}" ::"r"(int(is_wanted)), \
                 "r"(address), __VA_ARGS__                                                              \
                 : "memory")
    if constexpr (WORDS == 1) CONVBACKPROP_STORE_IF("st.shared.b32 [%1], %2", "r"(words[0]));
    if constexpr (WORDS == 2) CONVBACKPROP_STORE_IF("st.shared.v2.b32 [%1], {%2, %3}", "r"(words[0]), "r"(words[1]));
    if constexpr (WORDS == 4)
        CONVBACKPROP_STORE_IF("st.shared.v4.b32 [%1], {%2, %3, %4, %5}", "r"(words[0]), "r"(words[1]), "r"(words[2]),
                              "r"(words[3]));
#undef CONVBACKPROP_STORE_IF
#endif
}

// A number as PARTS TF32 numbers; IS_WHOLE: as it is, to be rounded when it is read.
template <int PARTS, bool IS_WHOLE = false>
struct Tf32Parts {
    unsigned words[PARTS];

    __device__ __forceinline__ explicit Tf32Parts(Acc number) {
        words[0] = IS_WHOLE ? whole_word(number * SCALE) : tf32_word(number * SCALE);
        if constexpr (PARTS == 2) words[1] = tf32_rest(number * SCALE, words[0]);
    }
};
using LeftParts = Tf32Parts<LEFT_PARTS, LEFT_IS_WHOLE>;

// Of the left factor, as it was read.
__device__ __forceinline__ void round_whole(unsigned (&words)[4]) {
#pragma unroll
    for (int i = 0; LEFT_IS_WHOLE && i < 4; ++i) words[i] = nearest_of_whole(words[i]);
}

// The chunk of steps first to first + CHUNK_STEPS - 1 of pixel e of what was read, as so many parts.
template <int PARTS, class Read, int COUNT>
__device__ __forceinline__ void make_chunk(Chunk (&parts)[PARTS], const Read (&own)[COUNT], int first, int e) {
#pragma unroll
    for (int word = 0; word < 4; ++word)
        if constexpr (IS_TF32) {
            const Tf32Parts<PARTS> both(own[first + word].value(e));
#pragma unroll
            for (int part = 0; part < PARTS; ++part) parts[part].words[word] = both.words[part];
        } else {
            parts[0].words[word] = pair_word(own[first + word * 2].exact(e), own[first + word * 2 + 1].exact(e));
        }
}

// The left factor in the order in which lanes read it, as pack left it.
template <int PARTS>
struct LaneOrder {
    static constexpr int SIZE = PARTS * K_STEPS * TILE_M * 8;  // words
    Chunk chunks[PARTS][K_STEPS][TILE_M / 16][32];

    // Of pack_filter: a number goes to its place.
    static __device__ __forceinline__ void put(Acc* slice, int step, int row, Acc number) {
        const int word = step / Factor::PER_WORD, in_step = word % 8;
        const int lane = row % 8 * 4 + in_step % 4, i = in_step / 4 * 2 + row / 8 % 2;
        const auto to = [&](int part) {
            return &reinterpret_cast<LaneOrder*>(slice)->chunks[part][word / 8][row / 16][lane].words[i];
        };
        if constexpr (IS_TF32) {
            const Tf32Parts<PARTS> parts(number);
#pragma unroll
            for (int part = 0; part < PARTS; ++part) *to(part) = parts.words[part];
        } else {
            reinterpret_cast<Scalar*>(to(0))[step % 2] = from_acc(number);
        }
    }
    // A lane's words of 16 rows, the i-th of those from first_row on.
    struct Reader {
        const int first;
        __device__ __forceinline__ explicit Reader(int first_row) : first(first_row / 16) {}
        __device__ __forceinline__ void read(unsigned (&words)[4], const LaneOrder& from, int part, int step,
                                             int i) const {
            const Chunk chunk = from.chunks[part][step][first + i][threadIdx.x % 32];
#pragma unroll
            for (int e = 0; e < 4; ++e) words[e] = chunk.words[e];
        }
    };
};

// A factor as it is staged: the chunks of a row side by side, and a gap, so that 8 neighbouring rows' chunks of one
// number are in all banks. Where in its row a chunk lies changes each 8 rows: then the same holds of every other row.
// IS_LEFT: which factor's words a lane gets. SPREAD: 4 neighbouring rows lie two rows apart, so that two chunks of
// each are in all banks.
template <int PARTS, int ROWS, bool IS_LEFT, bool SPREAD>
struct ChunkRows {
    static constexpr int COLUMNS = ROWS, ACROSS = CHUNKS, PITCH = CHUNKS + 1;
    Chunk chunks[PARTS][ROWS * PITCH];

    static __device__ __forceinline__ int at(int row, int chunk) {
        const int slot = SPREAD ? row / 8 * 8 + row % 4 * 2 + row / 4 % 2 : row;
        return slot * PITCH + (chunk ^ row / 8 % 4);
    }
    struct Reader {
        const int first;  // of step 0
        // first_row: a multiple of 32.
        __device__ __forceinline__ explicit Reader(int first_row)
            : first(IS_LEFT ? at(first_row + threadIdx.x % 16, threadIdx.x / 16 % 2)
                            : at(first_row + threadIdx.x % 8 + threadIdx.x / 16 % 2 * 8, threadIdx.x / 8 % 2)) {}
        // A lane's words of 16 rows, the i-th of those from first_row on. It is at() of 16 rows or 2 chunks further on.
        __device__ __forceinline__ void read(unsigned (&words)[4], const ChunkRows& from, int part, int step, int i,
                                             int = 0) const {
            load_matrices(words, &from.chunks[part][first + i * 16 * PITCH + (i + step) % 2 * 2]);
        }
    };
};

// Where am I in the tile: my warp's rows and columns, and my lane's sums among them.
struct WarpTile {
    const int first_row = threadIdx.x / 32 % WARPS_M * WARP_M, first_col = threadIdx.x / 32 / WARPS_M * WARP_N;

    __device__ __forceinline__ int row(int i) const { return first_row + i * 8 + threadIdx.x % 32 / 4; }
    __device__ __forceinline__ int col(int j) const { return first_col + j / 2 * 8 + threadIdx.x % 4 * 2 + j % 2; }
};

template <class Left, class Right>
struct TensorProduct : WarpTile {
    using Place = WarpTile;
    struct Slice {
        Left a;
        Right b;
    };
    static constexpr int ROWS = WARP_M / 8, COLS = WARP_N / 4, ASIDE = 2, VECTOR_ROWS = 2;  // a lane's
    static constexpr int ROWS_16 = WARP_M / 16, COLS_16 = WARP_N / 16;     // a warp's, 16 at once
    static_assert(THREADS == WARPS_M * (Right::COLUMNS / WARP_N) * 32 && Right::COLUMNS % WARP_N == 0 &&
                      WARP_N % 32 == 0,
                  "warps make the tile; swizzles know 32 columns");

    const typename Left::Reader left_reader = typename Left::Reader(first_row);
    const typename Right::Reader right_reader = typename Right::Reader(first_col);
    float sums[ROWS_16][COLS_16 * 2][4] = {}, totals[LONG_SUMS ? ROWS_16 : 1][COLS_16 * 2][4];

    __device__ __forceinline__ TensorProduct() {
#pragma unroll
        for (int i = 0; i < (LONG_SUMS ? ROWS_16 * COLS_16 * 8 : 0); ++i)
            totals[i / COLS_16 / 8][i / 4 % (COLS_16 * 2)][i % 4] = -0.0f;  // what changes no bit of what is added
    }

    __device__ __forceinline__ Acc sum(int i, int j) const { return result(sums[i / 2][j / 2][i % 2 * 2 + j % 2]); }
    static __device__ __forceinline__ Part part_of(int i, int j) {
        return {i / 2 * (COLS / 2) + j / 2, i % 2 * 2 + j % 2};
    }
    // NaN stands for a sum that is not finite where its factors were scaled: it is to be formed anew.
    static __device__ __forceinline__ Acc result(Acc scaled) {
        return IS_TF32 ? scaled * UNSCALE + (scaled - scaled) : scaled;
    }

    __device__ __forceinline__ void turn(int) {}
    __device__ __forceinline__ void add(const Slice& slice) { add(slice.a, slice.b); }
    __device__ __forceinline__ void add(const Left& a, const Right& b, int shift = 0) {
#pragma unroll
        for (int step = 0; step < K_STEPS; ++step) {
            unsigned left[LEFT_PARTS][ROWS_16][4], right[RIGHT_PARTS][COLS_16][4];
#pragma unroll
            for (int part = 0; part < LEFT_PARTS; ++part)
#pragma unroll
                for (int i = 0; i < ROWS_16; ++i) {
                    left_reader.read(left[part][i], a, part, step, i);
                    round_whole(left[part][i]);
                }
#pragma unroll
            for (int part = 0; part < RIGHT_PARTS; ++part)
#pragma unroll
                for (int j = 0; j < COLS_16; ++j) right_reader.read(right[part][j], b, part, step, j, shift);

            // The small products first.
            if constexpr (LEFT_PARTS == 2) add_products(left[1], right[0]);
            if constexpr (RIGHT_PARTS == 2) add_products(left[0], right[1]);
            add_products(left[0], right[0]);
        }
    }
    __device__ __forceinline__ void add_products(const unsigned (&left)[ROWS_16][4],
                                                 const unsigned (&right)[COLS_16][4]) {
#pragma unroll
        for (int i = 0; i < ROWS_16; ++i)
#pragma unroll
            for (int j = 0; j < COLS_16 * 2; ++j)
                multiply_add<Factor>(sums[i][j], left[i], {right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]});
    }
    // The sums of a run, THREADS vectors apart.
    __device__ __forceinline__ void leave_run(AccVector* to) {
#pragma unroll
        for (int i = 0; i < ROWS_16; ++i)
#pragma unroll
            for (int j = 0; j < COLS_16 * 2; ++j, to += THREADS) {
                AccVector run;
#pragma unroll
                for (int e = 0; e < 4; ++e) run.elements[e] = sums[i][j][e], sums[i][j][e] = 0;
                *to = run;
            }
    }
    __device__ __forceinline__ void end_run(AccVector*, bool, bool is_last) {
        if constexpr (LONG_SUMS) {
#pragma unroll
            for (int i = 0; i < ROWS_16; ++i)
#pragma unroll
                for (int j = 0; j < COLS_16 * 2; ++j)
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        totals[i][j][e] += sums[i][j][e];
                        sums[i][j][e] = is_last ? totals[i][j][e] : 0;
                    }
        }
    }
};
