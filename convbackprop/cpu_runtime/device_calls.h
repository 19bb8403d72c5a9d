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
}
#pragma GCC visibility pop
