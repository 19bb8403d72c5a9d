// mbarrier: a barrier in shared memory that counts arrivals and bytes, for what the copy engine and threads hand over.
//
// A phase ends when so many have arrived as the barrier counts, and all bytes that they expect have come. Phases have
// parities 0, 1, 0 ...; wait(p) waits for the end of the phase of parity p that is under way or was the last. So of a
// barrier that nobody has used, wait(1) does not wait.
//
// A thread that waits for more than a second gives up: it writes who waits for what to memory of the host's, and ends the
// launch, which would else never end. It does not print: a function call in a kernel makes each wgmma wait for the one
// before.
#pragma once

#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#error "this file is written for sm_90a; compile it with -gencode=arch=compute_90a,code=sm_90a"
#endif

enum Waiting { FOR_EMPTY_BOX = 1, FOR_EMPTY_TAP, FOR_BOX, FOR_TAP };

// What the host is told (devices/mapped.py): zeros as long as nobody has given up.
struct WaitNote {
    int what, slot, parity, block, thread;
};

struct Mbarrier {
    unsigned long long words;

    __device__ __forceinline__ unsigned address() const { return unsigned(__cvta_generic_to_shared(this)); }

#ifdef CONVBACKPROP_ON_CPU
    __device__ __forceinline__ void init(int arrivals) { convbackprop_mbarrier_init(this, arrivals); }
    __device__ __forceinline__ void arrive() { convbackprop_mbarrier_arrive(this, 0); }
    __device__ __forceinline__ void arrive_and_expect(unsigned bytes) { convbackprop_mbarrier_arrive(this, bytes); }
    __device__ __forceinline__ void wait(int parity, WaitNote*, Waiting, int) const {
        convbackprop_mbarrier_wait(this, parity);
    }
#else
    __device__ __forceinline__ void init(int arrivals) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address()), "r"(arrivals) : "memory");
    }
    __device__ __forceinline__ void arrive() {
        asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address()) : "memory");
    }
    __device__ __forceinline__ void arrive_and_expect(unsigned bytes) {
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address()), "r"(bytes) : "memory");
    }
    __device__ __forceinline__ bool has_ended(int parity) const {
        unsigned ended;  // the hardware itself waits for a while
        asm volatile(
            "{\n.reg .pred p;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;\n}"
            : "=r"(ended)
            : "r"(address()), "r"(parity)
            : "memory");
        return ended;
    }
    __device__ __forceinline__ void wait(int parity, WaitNote* note, Waiting what, int slot) const {
        if (has_ended(parity)) return;
        constexpr long long PATIENCE = 1ll << 31;  // clocks
        const long long began = clock64();
        while (!has_ended(parity))
            if (clock64() - began > PATIENCE) {
                *note = {what, slot, parity, int(blockIdx.x), int(threadIdx.x)};
                __threadfence_system();
                __trap();
            }
    }
#endif
};

// What was initialised is there for the copy engine, too.
__device__ __forceinline__ void fence_mbarrier_init() {
#ifndef CONVBACKPROP_ON_CPU
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

// Slots of shared memory that are filled and emptied in turn: `full` and `empty` are barriers of each.
template <int SLOTS, Waiting FOR_EMPTY, Waiting FOR_FULL>
struct Ring {
    Mbarrier full[SLOTS], empty[SLOTS];

    // One thread fills, so many empty.
    __device__ __forceinline__ void init(int emptying) {
        for (int slot = 0; slot < SLOTS; ++slot) full[slot].init(1), empty[slot].init(emptying);
    }
    // Which slot is the next one, and the parity of its phase.
    struct Turn {
        int slot = 0, parity = 0;

        __device__ __forceinline__ void advance() {
            if (++slot == SLOTS) slot = 0, parity ^= 1;
        }
    };
    __device__ __forceinline__ void wait_until_empty(const Turn& turn, WaitNote* note) const {
        empty[turn.slot].wait(turn.parity ^ 1, note, FOR_EMPTY, turn.slot);
    }
    __device__ __forceinline__ void wait_until_full(const Turn& turn, WaitNote* note) const {
        full[turn.slot].wait(turn.parity, note, FOR_FULL, turn.slot);
    }
};
