// What mma.sync says: a warp adds to a 16 x 8 matrix of sums the product of a 16 x K and a K x 8 matrix.
//
// Each lane holds a few 32-bit words of every matrix. A word of a factor is one TF32 number, or two 16-bit ones that
// lie together in a row of the left factor or in a column of the right one: PER_WORD numbers, and K is 8 * PER_WORD.
//
//     left[i]     row lane / 4 + i % 2 * 8       columns from (lane % 4 + i / 2 * 4) * PER_WORD on
//     right[i]    column lane / 4                rows from (lane % 4 + i * 4) * PER_WORD on
//     sums[i]     row lane / 4 + i / 2 * 8       column lane % 4 * 2 + i % 2
//
// Products are exact, sums are float32. How a sum is rounded is not documented: the tensor cores that were measured cut
// it (M. Fasi, N. J. Higham, M. Mikaitis, S. Pranesh, "Numerical behavior of NVIDIA tensor cores", PeerJ Computer
// Science 7, e330, 2021). The CPU does so once a product. Before sm_80 there is no such instruction, and lanes ask
// each other for the words: the same sums, slowly.
#pragma once
#include <type_traits>

#include "scalar.cuh"

// TF32: a float of 11 significant bits. Tensor cores cut the 13 bits below them.
struct Tf32 {
    static constexpr int PER_WORD = 1, K = 8;
    static __device__ __forceinline__ float element(unsigned word, int) { return __uint_as_float(word & 0xffffe000); }
};
struct Float16 {
    static constexpr int PER_WORD = 2, K = 16;
    static __device__ __forceinline__ float element(unsigned word, int i) {
        return __half2float(__ushort_as_half((unsigned short)(word >> 16 * i)));
    }
};
struct Bfloat16 {
    static constexpr int PER_WORD = 2, K = 16;
    static __device__ __forceinline__ float element(unsigned word, int i) {
        return __bfloat162float(__ushort_as_bfloat16((unsigned short)(word >> 16 * i)));
    }
};

// The word of a float, rounded to nearest and from ties away from zero: cvt.rna.tf32, which is these instructions.
__device__ __forceinline__ unsigned tf32_word(float f) {
    return (__float_as_uint(f) + (isfinite(f) ? 0x1000 : 0)) & 0xffffe000;
}
// The word of a float that is rounded so only when it is multiplied, by one addition: tensor cores cut what is below.
__device__ __forceinline__ unsigned whole_word(float f) {
    return __float_as_uint(f) & (isfinite(f) ? 0xffffffff : 0xffffe000);  // or NaN would pass the largest number
}
__device__ __forceinline__ unsigned nearest_of_whole(unsigned word) { return word + 0x1000; }
// What tf32_word leaves of a float has 12 significant bits at most: as a word of TF32 it loses the last at most.
__device__ __forceinline__ unsigned tf32_rest(float f, unsigned word) {
    return __float_as_uint(f - __uint_as_float(word));
}
__device__ __forceinline__ unsigned bits_of(__half number) { return __half_as_ushort(number); }
__device__ __forceinline__ unsigned bits_of(__nv_bfloat16 number) { return __bfloat16_as_ushort(number); }

// The word of two 16-bit numbers.
template <class T>
__device__ __forceinline__ unsigned pair_word(T first, T second) {
    return bits_of(first) | bits_of(second) << 16;
}

// A lane's sums by their definition: left(lane, i) and right(lane, i) are words that lanes hold.
template <class Factor, class Left, class Right>
__device__ __forceinline__ void add_by_definition(float (&sums)[4], int lane, Left left, Right right) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        double sum = sums[i];
#pragma unroll
        for (int word = 0; word < 8; ++word) {
            const unsigned a = left(lane / 4 * 4 + word % 4, i / 2 + word / 4 * 2);
            const unsigned b = right((lane % 4 * 2 + i % 2) * 4 + word % 4, word / 4);
#pragma unroll
            for (int j = 0; j < Factor::PER_WORD; ++j)
                sum += double(Factor::element(a, j)) * Factor::element(b, j);
        }
        const float nearest = float(sum);
        const bool is_cut = isfinite(nearest) && fabs(double(nearest)) > fabs(sum);
        sums[i] = __uint_as_float(__float_as_uint(nearest) - is_cut);
    }
}

// Before sm_80. Not inlined: a kernel has hundreds of products, and there they are only to be right.
template <class Factor>
__device__ __noinline__ float4 add_by_shuffles(float4 added, uint4 left, uint2 right) {
    float sums[] = {added.x, added.y, added.z, added.w};
    const unsigned left_words[] = {left.x, left.y, left.z, left.w}, right_words[] = {right.x, right.y};
    add_by_definition<Factor>(
        sums, threadIdx.x % 32, [&](int from, int i) { return __shfl_sync(0xffffffffu, left_words[i], from); },
        [&](int from, int i) { return __shfl_sync(0xffffffffu, right_words[i], from); });
    return make_float4(sums[0], sums[1], sums[2], sums[3]);
}

// sums += left * right. All lanes of the warp come here.
template <class Factor>
__device__ __forceinline__ void multiply_add(float (&sums)[4], const unsigned (&left)[4], const unsigned (&right)[2]) {
#ifdef CONVBACKPROP_ON_CPU
    struct Lane {
        unsigned left[4], right[2];
        float sums[4];
    } mine = {{left[0], left[1], left[2], left[3]}, {right[0], right[1]}, {sums[0], sums[1], sums[2], sums[3]}};
    convbackprop_warp_arithmetic(0xffffffffu, &mine, [](unsigned lanes, void** records) {
        const auto of = [=](int lane) { return static_cast<Lane*>(records[lane]); };
        convbackprop::for_each_lane(lanes, [=](int lane) {
            add_by_definition<Factor>(
                of(lane)->sums, lane, [=](int from, int i) { return lanes >> from & 1 ? of(from)->left[i] : 0; },
                [=](int from, int i) { return lanes >> from & 1 ? of(from)->right[i] : 0; });
        });
    });
    for (int i = 0; i < 4; ++i) sums[i] = mine.sums[i];
#elif __CUDA_ARCH__ < 800
    const float4 added = add_by_shuffles<Factor>(make_float4(sums[0], sums[1], sums[2], sums[3]),
                                                 make_uint4(left[0], left[1], left[2], left[3]),
                                                 make_uint2(right[0], right[1]));
    sums[0] = added.x, sums[1] = added.y, sums[2] = added.z, sums[3] = added.w;
#else
#define CONVBACKPROP_MMA(shape, type)                                                                       \
    asm volatile("mma.sync.aligned." shape ".row.col.f32." type "." type                                    \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                     \
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                               \
                 : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]))
    if constexpr (std::is_same_v<Factor, Tf32>) CONVBACKPROP_MMA("m16n8k8", "tf32");
    if constexpr (std::is_same_v<Factor, Float16>) CONVBACKPROP_MMA("m16n8k16", "f16");
    if constexpr (std::is_same_v<Factor, Bfloat16>) CONVBACKPROP_MMA("m16n8k16", "bf16");
#undef CONVBACKPROP_MMA
#endif
}

// What ldmatrix says: four matrices of 8 rows of 16 bytes each, at any aligned places in shared memory. Lanes i * 8 to
// i * 8 + 7 name the rows of matrix i, of which each lane gets word lane % 4 of row lane / 4.
__device__ __forceinline__ void load_matrices(unsigned (&words)[4], const void* row) {
#if defined(CONVBACKPROP_ON_CPU) || __CUDA_ARCH__ < 750
    const int lane = threadIdx.x % 32;
    for (int i = 0; i < 4; ++i)
        words[i] = reinterpret_cast<const unsigned*>(
            __shfl_sync(0xffffffffu, reinterpret_cast<unsigned long long>(row), i * 8 + lane / 4))[lane % 4];
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(unsigned(__cvta_generic_to_shared(row))));
#endif
}

// The same of 16-bit numbers, and turned: of matrix i each lane gets the numbers of column lane / 4 in rows
// lane % 4 * 2 and lane % 4 * 2 + 1.
__device__ __forceinline__ void load_turned_matrices(unsigned (&words)[4], const void* row) {
#if defined(CONVBACKPROP_ON_CPU) || __CUDA_ARCH__ < 750
    const int lane = threadIdx.x % 32;
    const auto number = [&](int i, int in_matrix) -> unsigned {
        return reinterpret_cast<const unsigned short*>(__shfl_sync(
            0xffffffffu, reinterpret_cast<unsigned long long>(row), i * 8 + in_matrix))[lane / 4];
    };
    for (int i = 0; i < 4; ++i) {
        const unsigned first = number(i, lane % 4 * 2);
        words[i] = first | number(i, lane % 4 * 2 + 1) << 16;
    }
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(unsigned(__cvta_generic_to_shared(row))));
#endif
}
