// The runtime by itself, in a program that a sanitizer watches: launches of every kind and end, many times over.
//
//     sanitized ROUNDS [FAULT]
//
// FAULT puts a mistake into a kernel or a host, which the sanitizer must see: that it sees the rest, too.
#include <stdlib.h>

#include <atomic>
#include <mutex>
#include <thread>
#include <vector>

#include "cuda_on_cpu.h"
#include "runtime.h"

#include "failures.cu"
#include "launches.cu"

// Each thread reads, after a barrier, what its neighbour has left on its own stack, by its address.
extern "C" __global__ void borrow(int* out) {
    __shared__ int* places[256];
    int mine[8];
    for (int i = 0; i < 8; ++i) mine[i] = threadIdx.x + i;
    places[threadIdx.x] = mine;
    __syncthreads();
    out[blockIdx.x * blockDim.x + threadIdx.x] = places[(threadIdx.x + 1) % blockDim.x][3];
    __syncthreads();
}

extern "C" __global__ void beyond_the_stack(volatile int* out, int index) {
    volatile int mine[8] = {};
    __syncthreads();
    out[threadIdx.x] = mine[index];
}

extern "C" __global__ void overflow(int* out, int value) { out[threadIdx.x] = value + int(threadIdx.x); }

// Blocks run on several OS threads, and nothing orders them.
extern "C" __global__ void same_place(int* out) {
    for (int i = 0; i < 1000; ++i) out[0] += 1;
    __syncthreads();
}

CONVBACKPROP_ENTRY(count)
CONVBACKPROP_ENTRY(march)
CONVBACKPROP_ENTRY(march_in_warps)
CONVBACKPROP_ENTRY(deadlock_at_barrier)
CONVBACKPROP_ENTRY(borrow)
CONVBACKPROP_ENTRY(beyond_the_stack)
CONVBACKPROP_ENTRY(overflow)
CONVBACKPROP_ENTRY(same_place)

namespace {

std::mutex turn;  // as the host must hold it: one launch at a time
std::atomic<long> launches;

void expect(bool is_so, const char* what) {
    if (is_so) return;
    fprintf(stderr, "wrong: %s; the runtime says: %s\n", what, convbackprop_error());
    abort();
}

template <class... Parameters>
int start(void (*entry)(void**), unsigned blocks, unsigned threads, int workers, int slice_ms, Parameters... parameters) {
    void* args[] = {&parameters..., nullptr};
    const ConvbackpropLaunch launch{entry, args, {blocks, 1, 1}, {threads, 1, 1}, 0, workers, 0, 0};
    ++launches;
    int status = convbackprop_launch(&launch, slice_ms);
    if (slice_ms == 1)
        while (status == RUNNING) status = convbackprop_resume(1);
    if (status == RUNNING) convbackprop_cancel();
    return status;
}

unsigned marched(unsigned thread, int steps, unsigned threads) {
    if (steps == 0) return thread;
    return 3 * marched((thread + 1) % threads, steps - 1, threads) + thread;
}

void one_round(int number) {
    const int workers = 1 + number % 3;
    std::lock_guard<std::mutex> lock(turn);

    std::vector<int> counts(20);
    expect(start(count_entry, 20, 70, workers, 0, counts.data()) == FINISHED, "count");
    for (int each : counts) expect(each == 70, "a thread was lost");

    for (auto entry : {march_entry, march_in_warps_entry}) {  // in slices: fibers are left in the middle, and taken up
        std::vector<unsigned> values(3 * 32);
        for (unsigned i = 0; i < values.size(); ++i) values[i] = i % 32;
        expect(start(entry, 3, 32, workers, 1, values.data(), 20) == FINISHED, "march");
        for (unsigned i = 0; i < values.size(); ++i) expect(values[i] == marched(i % 32, 20, 32), "a value went astray");
    }

    std::vector<int> borrowed(4 * 96);
    expect(start(borrow_entry, 4, 96, workers, 0, borrowed.data()) == FINISHED, "borrow");
    for (int i = 0; i < 4 * 96; ++i) expect(borrowed[i] == (i % 96 + 1) % 96 + 3, "a stack was not kept");

    expect(start(deadlock_at_barrier_entry, 8, 32, workers, 0) == FAILED, "a deadlock that ends");
    if (number % 16 == 0) {  // endless: cancelled after its slice
        std::vector<unsigned> values(100 * 64);
        expect(start(march_entry, 100, 64, workers, 5, values.data(), 1 << 30) == RUNNING, "a launch that is cancelled");
    }
}

void fault(const char* name) {
    std::vector<int> out(1024);
    const std::lock_guard<std::mutex> lock(turn);
    if (!strcmp(name, "stack")) start(beyond_the_stack_entry, 1, 4, 1, 0, out.data(), 8 + rand() % 2);
    if (!strcmp(name, "heap")) start(borrow_entry, 40, 96, 1, 0, out.data());
    if (!strcmp(name, "overflow")) start(overflow_entry, 1, 4, 1, 0, out.data(), INT_MAX - 1);
    if (!strcmp(name, "race")) start(same_place_entry, 300, 32, 3, 0, out.data());
}

}  // namespace

int main(int count, char** arguments) {
    const int rounds = count > 1 ? atoi(arguments[1]) : 1;
    if (count > 2) fault(arguments[2]);
    // The host's OS threads come and go, and take turns.
    for (int number = 0; number < rounds; number += 4) {
        std::vector<std::thread> hosts;
        for (int i = 0; i < 2; ++i)
            hosts.emplace_back([=] { one_round(number + 2 * i), one_round(number + 2 * i + 1); });
        for (auto& host : hosts) host.join();
    }
    printf("%ld launches\n", launches.load());
}
