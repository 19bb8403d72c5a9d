// What a compiled kernel calls in the runtime: the operations at which one CUDA thread waits for others.
#pragma once

#pragma GCC visibility push(default)
extern "C" {

// __syncthreads: waits until every thread of the block that has not returned is here.
void convbackprop_syncthreads(void);

// __syncthreads_count, _and, _or: the same, and tells for how many (or whether for all, for any) it is true.
enum ConvbackpropBarrier { BARRIER_PLAIN, BARRIER_COUNT, BARRIER_AND, BARRIER_OR };
int convbackprop_syncthreads_reduce(ConvbackpropBarrier kind, int predicate);

// Everything that the lanes of a warp do together (shuffles, votes, reductions, mma.sync) is one call. Each
// lane brings a record; when the last lane of `mask` has arrived, `operation` runs once, on that lane's
// stack, for all: `lanes` says which are there (those of `mask`, but for lanes that have returned or that the
// block does not have), records[lane] is what each brought. It leaves each lane's result in its record.
typedef void (*ConvbackpropWarpOperation)(unsigned lanes, void** records);
void convbackprop_warp_operation(unsigned mask, void* record, ConvbackpropWarpOperation operation);

// The same of an operation from whose results no address follows. Where nothing but addresses is looked at
// (checked/traffic.cpp), it is left out: the records stay as they are.
void convbackprop_warp_arithmetic(unsigned mask, void* record, ConvbackpropWarpOperation operation);

// What sm_90 does beside its threads (hopper.cpp): barriers that count arrivals and bytes, copies that end there, and
// products of matrices in shared memory.
//
// mbarrier: 8 bytes. A phase of it ends when so many have arrived and all bytes that they expect have come.
void convbackprop_mbarrier_init(void* barrier, unsigned arrivals);
void convbackprop_mbarrier_arrive(void* barrier, unsigned expected_bytes);
void convbackprop_mbarrier_wait(const void* barrier, unsigned parity);  // of the phase that is to have ended

// cp.async.bulk and cp.async.bulk.tensor: a run of bytes, or the box of a ConvbackpropTensorMap that begins at these
// five coordinates. They are done in turn at once and when somebody waits for them: as early and as late as a GPU may.
void convbackprop_copy_bytes(void* to, const void* from, unsigned bytes, void* barrier);
void convbackprop_copy_box(void* to, const void* map, const int* at, void* barrier);

// wgmma: the calling thread's part of sums (64 x columns) += a * b. It is done when its thread waits for it: as late as
// a GPU may do it.
struct ConvbackpropMatrix {
    const void* start;  // of which the descriptor has 18 bits
    unsigned long long descriptor;
    int transposed;  // contiguous along its other index, not along the one that is summed
};
enum ConvbackpropFactor { FACTOR_TF32, FACTOR_FLOAT16, FACTOR_BFLOAT16 };
void convbackprop_wgmma(float* sums, ConvbackpropMatrix a, ConvbackpropMatrix b, int columns, ConvbackpropFactor factor,
                        int accumulate);
void convbackprop_wgmma_commit(void);
void convbackprop_wgmma_wait(int groups_left);
}
#pragma GCC visibility pop
