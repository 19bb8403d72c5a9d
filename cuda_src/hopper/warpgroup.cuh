// wgmma: the four warps of a warpgroup add to 64 x COLUMNS sums the product of two matrices in shared memory.
//
// Matrices are 32 bytes deep: 16 numbers of 16 bits, or 8 of TF32. A descriptor says where one lies. All of them are rows
// of 128 bytes, eight of which are a pattern of 1024: of a row's eight units of 16 bytes, unit i lies at i ^ row % 8, so
// that what is read or written together is in all banks. The swizzle is of the address itself (bits 4 to 6 ^= bits 7
// to 9): a matrix may begin 32, 64 or 96 bytes within a row, and whole patterns further on.
//
//     contiguous along what is summed     a row is one of its rows (a) or columns (b), and 8 of them a stride apart
//     TRANSPOSED (16 bits)                a row is 64 of its rows or columns at one step; 8 steps are a stride apart,
//                                         the next 64 rows or columns a `leading` distance
//
//     sums[4 i + 2 j + e]   row 16 warp + lane / 4 + 8 j, column 8 i + 2 (lane % 4) + e
//
// Products are under way after `add`; `commit` closes a group of them, and `wait<GROUPS>` returns when no more than so
// many groups are. Until then nobody may look at the sums, or write where the matrices lie.
#pragma once
#include "factors.cuh"

// Descriptor of a matrix: bits 0-13 start, 16-29 leading distance, 32-45 stride, in units of 16 bytes; 62-63 are 1: rows
// of 128 bytes.
struct Matrix {
    unsigned long long descriptor;
#ifdef CONVBACKPROP_ON_CPU
    const char* start;  // of which a descriptor has 18 bits
#endif

    __device__ __forceinline__ Matrix(const void* start, unsigned stride, unsigned leading = 16)
        : descriptor(field(unsigned(__cvta_generic_to_shared(start))) | field(leading) << 16 | field(stride) << 32 |
                     1ull << 62) {
#ifdef CONVBACKPROP_ON_CPU
        this->start = static_cast<const char*>(start);
#endif
    }
    static __device__ __forceinline__ unsigned long long field(unsigned bytes) { return (bytes & 0x3ffff) >> 4; }

    // The matrix that begins so many bytes further on.
    __device__ __forceinline__ Matrix operator+(unsigned bytes) const {
        Matrix moved = *this;
        moved.descriptor += bytes >> 4;
#ifdef CONVBACKPROP_ON_CPU
        moved.start += bytes;
#endif
        return moved;
    }
};

#ifndef CONVBACKPROP_ON_CPU
// The operands of an instruction for 32, 64, 96 and 128 sums of a thread.
#define WGMMA_TEN(n) "%" n "0, %" n "1, %" n "2, %" n "3, %" n "4, %" n "5, %" n "6, %" n "7, %" n "8, %" n "9, "
#define WGMMA_30 WGMMA_TEN("") WGMMA_TEN("1") WGMMA_TEN("2")
#define WGMMA_60 WGMMA_30 WGMMA_TEN("3") WGMMA_TEN("4") WGMMA_TEN("5")
#define WGMMA_90 WGMMA_60 WGMMA_TEN("6") WGMMA_TEN("7") WGMMA_TEN("8")
#define WGMMA_120 WGMMA_90 WGMMA_TEN("9") WGMMA_TEN("10") WGMMA_TEN("11")
#define WGMMA_OF_32 "{" WGMMA_30 "%30, %31}, %32, %33, p, 1, 1"
#define WGMMA_OF_64 "{" WGMMA_60 "%60, %61, %62, %63}, %64, %65, p, 1, 1"
#define WGMMA_OF_96 "{" WGMMA_90 "%90, %91, %92, %93, %94, %95}, %96, %97, p, 1, 1"
#define WGMMA_OF_128 "{" WGMMA_120 "%120, %121, %122, %123, %124, %125, %126, %127}, %128, %129, p, 1, 1"
#define WGMMA_4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_16(d, i) WGMMA_4(d, i), WGMMA_4(d, i + 4), WGMMA_4(d, i + 8), WGMMA_4(d, i + 12)
#define WGMMA_32(d, i) WGMMA_16(d, i), WGMMA_16(d, i + 16)
#define WGMMA_64(d, i) WGMMA_16(d, i), WGMMA_16(d, i + 16), WGMMA_16(d, i + 32), WGMMA_16(d, i + 48)

#define WGMMA_BEGIN(predicate) "{\n.reg .pred p;\nsetp.ne.b32 p, %" predicate ", 0;\nwgmma.mma_async.sync.aligned."
#define WGMMA_INPUTS "l"(a.descriptor), "l"(b.descriptor), "r"(int(accumulate))
#define WGMMA_FLAGS "n"(int(A_TRANSPOSED)), "n"(int(B_TRANSPOSED))
// Of 64, 128, 192 and 256 COLUMNS; flags say which operand is transposed, of 16 bits alone.
#define WGMMA_N64(k, types, flags, ...)                                                                            \
    asm volatile(WGMMA_BEGIN("34") "m64n64" k ".f32." types " " WGMMA_OF_32 flags ";\n}"                           \
                 : WGMMA_32(sums, 0)                                                                               \
                 : __VA_ARGS__)
#define WGMMA_N128(k, types, flags, ...)                                                                           \
    asm volatile(WGMMA_BEGIN("66") "m64n128" k ".f32." types " " WGMMA_OF_64 flags ";\n}"                          \
                 : WGMMA_64(sums, 0)                                                                               \
                 : __VA_ARGS__)
#define WGMMA_N192(k, types, flags, ...)                                                                           \
    asm volatile(WGMMA_BEGIN("98") "m64n192" k ".f32." types " " WGMMA_OF_96 flags ";\n}"                          \
                 : WGMMA_64(sums, 0), WGMMA_32(sums, 64)                                                           \
                 : __VA_ARGS__)
#define WGMMA_N256(k, types, flags, ...)                                                                           \
    asm volatile(WGMMA_BEGIN("130") "m64n256" k ".f32." types " " WGMMA_OF_128 flags ";\n}"                        \
                 : WGMMA_64(sums, 0), WGMMA_64(sums, 64)                                                           \
                 : __VA_ARGS__)
#define WGMMA_16_BITS(type)                                                                                        \
    if constexpr (COLUMNS == 64)                                                                                   \
        WGMMA_N64("k16", type "." type, ", %35, %36", WGMMA_INPUTS, WGMMA_FLAGS);                                  \
    else if constexpr (COLUMNS == 128)                                                                             \
        WGMMA_N128("k16", type "." type, ", %67, %68", WGMMA_INPUTS, WGMMA_FLAGS);                                 \
    else if constexpr (COLUMNS == 192)                                                                             \
        WGMMA_N192("k16", type "." type, ", %99, %100", WGMMA_INPUTS, WGMMA_FLAGS);                                \
    else                                                                                                           \
        WGMMA_N256("k16", type "." type, ", %131, %132", WGMMA_INPUTS, WGMMA_FLAGS)
#define WGMMA_TF32                                                                                                 \
    if constexpr (COLUMNS == 64)                                                                                   \
        WGMMA_N64("k8", "tf32.tf32", "", WGMMA_INPUTS);                                                            \
    else if constexpr (COLUMNS == 128)                                                                             \
        WGMMA_N128("k8", "tf32.tf32", "", WGMMA_INPUTS);                                                           \
    else if constexpr (COLUMNS == 192)                                                                             \
        WGMMA_N192("k8", "tf32.tf32", "", WGMMA_INPUTS);                                                           \
    else                                                                                                           \
        WGMMA_N256("k8", "tf32.tf32", "", WGMMA_INPUTS)
#endif

// A thread's part of the sums.
template <int COLUMNS>
struct WarpgroupSums {
    static_assert(COLUMNS == 64 || COLUMNS == 128 || COLUMNS == 192 || COLUMNS == 256, "there is an instruction for these");
    static constexpr int COUNT = COLUMNS / 2;
    float sums[COUNT];

    // sums = a * b, or sums += a * b.
    template <bool A_TRANSPOSED = false, bool B_TRANSPOSED = false>
    __device__ __forceinline__ void add(const Matrix& a, const Matrix& b, bool accumulate) {
        static_assert(!IS_TF32 || !(A_TRANSPOSED || B_TRANSPOSED), "TF32 is contiguous along what is summed");
#ifdef CONVBACKPROP_ON_CPU
        constexpr ConvbackpropFactor FACTOR = IS_TF32                            ? FACTOR_TF32
                                              : std::is_same_v<Factor, Float16> ? FACTOR_FLOAT16
                                                                                 : FACTOR_BFLOAT16;
        convbackprop_wgmma(sums, {a.start, a.descriptor, A_TRANSPOSED}, {b.start, b.descriptor, B_TRANSPOSED}, COLUMNS,
                           FACTOR, accumulate);
#else
        if constexpr (IS_TF32) {
            WGMMA_TF32;
        } else if constexpr (std::is_same_v<Factor, Float16>) {
            WGMMA_16_BITS("f16");
        } else {
            WGMMA_16_BITS("bf16");
        }
#endif
    }

    // Before the first `add` after the sums or the matrices were written.
    static __device__ __forceinline__ void begin() {
#ifndef CONVBACKPROP_ON_CPU
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
    }
    static __device__ __forceinline__ void commit() {
#ifdef CONVBACKPROP_ON_CPU
        convbackprop_wgmma_commit();
#else
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
    }
    template <int GROUPS>
    static __device__ __forceinline__ void wait() {
#ifdef CONVBACKPROP_ON_CPU
        convbackprop_wgmma_wait(GROUPS);
#else
        asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(GROUPS) : "memory");
#endif
    }
};

// A sum of products of scaled factors. NaN stands for one that is not finite then: it is to be formed anew.
__device__ __forceinline__ float unscaled(float sum) { return IS_TF32 ? sum * UNSCALE + (sum - sum) : sum; }

// Registers that the threads of a warpgroup may have from here on: those that one gives another may take.
template <int COUNT>
__device__ __forceinline__ void give_registers() {
#ifndef CONVBACKPROP_ON_CPU
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}
template <int COUNT>
__device__ __forceinline__ void take_registers() {
#ifndef CONVBACKPROP_ON_CPU
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}
