// Runs the CUDA threads of one block, on one OS thread.
//
// The threads of a block must all be able to wait at a barrier, so each needs a call stack of its own: it
// runs on a fiber. But most threads never wait, so a fiber is not made for each: one fiber runs the block's
// threads in a plain loop, one after another. Only when a thread must wait does it keep the stack it is on,
// and a fresh fiber takes over the loop. A kernel without barriers thus runs at the speed of a plain loop on
// a single stack; one with
// __syncthreads pays one switch a thread and barrier.
//
// Operations of a warp (shuffles, votes) are barriers of its lanes: each lane leaves a pointer to a record on
// its stack and waits; the last to arrive computes the result for all of them.
//
// When no thread can go on although some have not returned, the block is deadlocked, and that is an error.
//
// Device code owns nothing that must be released, so a block can be left in the middle: its fibers are
// forgotten, and their stacks are used again.
#pragma once

#include <atomic>
#include <chrono>
#include <pthread.h>
#include <stdint.h>

#include "context_switch.h"
#include "device_calls.h"
#include "runtime.h"

constexpr int MAX_THREADS = 1024;  // of a block
constexpr int LANES = 32;
constexpr int MAX_WARPS = MAX_THREADS / LANES;

struct Index3 {
    unsigned x, y, z;
};

// threadIdx and its like, as kernels read them. One object a worker thread: it runs one block at a time.
#pragma GCC visibility push(default)
extern "C" {
#define CONVBACKPROP_BUILT_IN __attribute__((tls_model("initial-exec")))
extern __thread Index3 convbackprop_threadIdx CONVBACKPROP_BUILT_IN;
extern __thread Index3 convbackprop_blockIdx CONVBACKPROP_BUILT_IN;
extern __thread Index3 convbackprop_blockDim CONVBACKPROP_BUILT_IN;
extern __thread Index3 convbackprop_gridDim CONVBACKPROP_BUILT_IN;
#undef CONVBACKPROP_BUILT_IN
}
#pragma GCC visibility pop

class BlockRunner;
BlockRunner* current_runner();

void forget_async_work();  // hopper.cpp: what is under way
bool is_arithmetic_left_out();  // addresses do not follow from its results, and nothing else is looked at

enum class BlockOutcome {
    FINISHED,
    PAUSED,   // the time slice is over: resume() goes on, from the same OS thread
    STOPPED,  // the launch's stop flag was seen
    FAILED,   // failure() says why
};

class BlockRunner {
  public:
    using Clock = std::chrono::steady_clock;

    static BlockRunner* create();  // null when there is no memory for the stacks

    // Makes this the runner of the calling OS thread, until the next call, for blocks of `launch`. False when
    // there is no memory for what the kernel shares within a block.
    bool enter(const ConvbackpropLaunch& launch, const std::atomic<bool>& stop);
    void set_deadline(Clock::time_point end_of_slice) { deadline_ = end_of_slice; }

    BlockOutcome run(uint64_t block_number);
    BlockOutcome resume();
    void abandon();  // forgets a paused block

    const char* failure() const { return failure_; }
    Index3 block_index() const { return block_index_; }

    // What device_calls.h declares, for the CUDA thread that is running.
    int wait_at_barrier(ConvbackpropBarrier kind, bool predicate);
    void wait_for_warp(unsigned mask, void* record, ConvbackpropWarpOperation operation);
    [[noreturn]] void stop(const char* why) { fail("%s", why); }

    // Of hopper.cpp, for the CUDA thread that is running.
    int thread() const { return current_->thread; }
    void wait_at_mbarrier(const void* barrier, bool (*has_ended)(const void*, unsigned), unsigned parity);
    void wake_at_mbarrier(const void* barrier);
    bool is_awaited(const void* barrier) const;

  private:
    struct Fiber {
        Context context;
        int thread;  // the CUDA thread it is running: its number in the block, x fastest
        Index3 thread_index;
        bool prepared;  // context is one that can be switched to
    };

    struct AtMbarrier {
        Fiber* fiber;
        const void* barrier;
    };

    struct WarpOperation {  // one for which some lanes have arrived and others are awaited
        unsigned mask, arrived;
        ConvbackpropWarpOperation operation;
    };

    struct Warp {
        unsigned alive;  // lanes that the block has and that have not returned
        int pending_count;
        WarpOperation pending[LANES];  // of disjoint masks, hence at most one a lane
        void* records[LANES];
        Fiber* fibers[LANES];
    };

    BlockRunner() = default;
    bool has_shared_memory(void (*entry)(void**));
    static void fiber_main();
    [[noreturn]] void run_threads_forever(Fiber* me);
    void run_thread(Fiber* me);
    void become_current(const Fiber* me);

    Fiber* next_fiber();
    void wait();
    void make_ready(Fiber* fiber) { ready_[ready_end_++ % MAX_THREADS] = fiber; }
    void switch_to(Fiber* next);
    void forget_fibers();

    void release_barrier(Fiber* last);
    bool is_complete(const Warp& warp, const WarpOperation& op) const;
    void complete(Warp& warp, int pending, Fiber* last);

    void poll();
    void look_up();
    void leave(BlockOutcome outcome);
    [[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 2, 3)));
    [[noreturn]] void fail_with_deadlock();

    // The launch
    const ConvbackpropLaunch* launch_;
    const std::atomic<bool>* stop_;
    Clock::time_point deadline_, last_look_;
    int polls_per_look_, polls_until_look_;
    pthread_t os_thread_;
    void (*has_memory_of_[16])(void**);  // entries whose shared memory this OS thread has

    // The block
    Index3 block_index_;
    int thread_count_, started_, alive_;  // threads it has; that were started; that have not returned
    Index3 next_thread_index_;
    Warp warps_[MAX_WARPS];
    Fiber* at_barrier_[MAX_THREADS];
    int at_barrier_count_;
    AtMbarrier at_mbarrier_[MAX_THREADS];
    int at_mbarrier_count_;
    int predicate_count_;  // of those at the barrier, how many brought a true predicate
    ConvbackpropBarrier barrier_kind_;
    int barrier_result_;

    // The fibers: each is current, idle, ready to go on, or waits in at_barrier_, at_mbarrier_ or a warp's fibers
    Fiber* current_;
    Fiber fibers_[MAX_THREADS];
    Fiber* idle_[MAX_THREADS];
    int idle_count_;
    Fiber* ready_[MAX_THREADS];  // a ring
    unsigned ready_begin_, ready_end_;
    char* stacks_;
    Context outside_;  // where run() or resume() was called
    BlockOutcome outcome_;
    char failure_[200];

    // The built-in variables of the OS thread. A fiber that sleeps between two launches may wake up on
    // another OS thread, and the compiler may have kept the address of a thread-local variable from before it
    // slept: code that runs on a fiber reaches them, and the runner itself, through pointers it has in hand.
    Index3* thread_index_;
    Index3* block_index_variable_;
};
