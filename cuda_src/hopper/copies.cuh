// Copies to shared memory that the copy engine of sm_90 makes, asked for by one thread: they end at an Mbarrier.
#pragma once
#include "mbarrier.cuh"

// What the driver has made of a tensor, its boxes and their swizzle (devices/mapped.py); a kernel's parameter.
struct alignas(64) TensorMap {
    unsigned long long words[16];
};

// The box that begins at these coordinates, the first of which is contiguous; zeros where it lies outside the tensor.
// It brings the bytes of the whole box all the same.
__device__ __forceinline__ void copy_box(void* to, const TensorMap& map, Mbarrier& barrier, int at_0, int at_1,
                                         int at_2, int at_3, int at_4) {
#ifdef CONVBACKPROP_ON_CPU
    const int at[] = {at_0, at_1, at_2, at_3, at_4};
    convbackprop_copy_box(to, &map, at, &barrier);
#else
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(unsigned(__cvta_generic_to_shared(to))),
        "l"(&map), "r"(barrier.address()), "r"(at_0), "r"(at_1), "r"(at_2), "r"(at_3), "r"(at_4)
        : "memory");
#endif
}

// A run of bytes; 16 divides their number and both addresses.
__device__ __forceinline__ void copy_bytes(void* to, const void* from, unsigned bytes, Mbarrier& barrier) {
#ifdef CONVBACKPROP_ON_CPU
    convbackprop_copy_bytes(to, from, bytes, &barrier);
#else
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     unsigned(__cvta_generic_to_shared(to))),
                 "l"(from), "r"(bytes), "r"(barrier.address())
                 : "memory");
#endif
}

__device__ __forceinline__ void prefetch(const TensorMap& map) {
#ifndef CONVBACKPROP_ON_CPU
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
#endif
}
