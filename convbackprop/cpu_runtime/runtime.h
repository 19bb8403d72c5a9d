// What a host program calls to run a CUDA grid on the CPU. Plain C, so that it can be called through ctypes.
//
//     convbackprop_launch() -- RUNNING --> convbackprop_resume() -- RUNNING --> ... --> FINISHED or FAILED
//                                  +-----> convbackprop_cancel()
//
// The calling thread works on the grid too, but comes back after every time slice, so that a host whose
// signals are handled between two calls (Python's Ctrl-C) can look at them and cancel.
//
// One launch is in progress at a time, and one OS thread at a time is inside these functions: the host holds
// a lock from convbackprop_launch until the launch is over. Different launches may come from different OS
// threads; the slices of one launch come from one.
#pragma once

#include <stddef.h>

#pragma GCC visibility push(default)
extern "C" {

struct ConvbackpropLaunch {  // it and what it points to are kept alive until the launch has ended
    void (*entry)(void**);   // what CONVBACKPROP_ENTRY(kernel) of cuda_on_cpu.h defines
    void** args;             // args[i] points at the bytes of the i-th parameter, as for cuLaunchKernel
    unsigned grid[3], block[3];
    size_t shared_bytes;  // dynamic shared memory
    int workers;          // at most this many OS threads, the caller's included
    // Only blocks of these linear numbers (x fastest) run: first_block <= number < end_block, where 0 is all.
    unsigned long long first_block, end_block;
};

enum { FINISHED = 0, FAILED = 1, RUNNING = 2, NO_MEMORY = 3 };

// Runs the grid. NO_MEMORY when there is none for a worker: nothing has run. RUNNING when the time slice is over before the grid is; a slice of 0 ms or less never ends.
// The end of the slice is seen when a CUDA thread starts or comes to a barrier, about 2 ms late.
int convbackprop_launch(const ConvbackpropLaunch* launch, int time_slice_ms);

// Goes on with the launch in progress, under the same rules.
int convbackprop_resume(int time_slice_ms);

// Stops the launch in progress, if there is one, and returns when every worker has left it.
void convbackprop_cancel(void);

// One sentence on why the last launch FAILED or had NO_MEMORY; empty if it did not.
const char* convbackprop_error(void);

// To be called in the child of a fork, where the parent's worker threads and launch do not exist.
void convbackprop_after_fork(void);

// An entry for timing memory: args = {destination pointer, source pointer, size_t bytes}. Each block, of one
// CUDA thread, copies its 64 KiB.
void convbackprop_copy_entry(void** args);
}
#pragma GCC visibility pop
