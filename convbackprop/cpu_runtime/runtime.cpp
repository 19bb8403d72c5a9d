// Runs a grid: hands its blocks, in the order of their numbers, to the caller's OS thread and to helpers.
//
// Helper threads are started when a launch first wants them and then wait for work for as long as the process
// lives. A launch issues one ticket for each helper it wants; a helper takes one, works until no block is
// left, and sleeps again. When the caller runs out of blocks it withdraws the tickets that nobody has taken,
// so a short launch never waits for a helper to wake up; a launch of one block or one worker wakes nobody.
//
// The caller's fiber stacks belong to the runtime and not to the caller's OS thread: threads may come and go.
#include "runtime.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <thread>

#include "block_runner.h"

namespace {

constexpr uint64_t MAX_SHARED_BYTES = 227 << 10;  // what a block may ask for on sm_90

class Grid {
  public:
    int launch(const ConvbackpropLaunch& launch, int time_slice_ms);
    int resume(int time_slice_ms);
    void cancel();
    const char* error() const { return error_; }

  private:
    bool check(const ConvbackpropLaunch& launch);
    bool fail(const char* format, ...) __attribute__((format(printf, 2, 3)));
    int work_for(int time_slice_ms);
    BlockOutcome work(BlockRunner& runner);
    void record_failure(const BlockRunner& runner);
    void wake_helpers(int count);
    static void* help(void* grid);
    void help_forever();

    // Shared by the workers, each on a cache line of its own
    alignas(64) std::atomic<uint64_t> next_block_{0};
    alignas(64) std::atomic<bool> stop_{false};  // a block has failed, or the launch is cancelled: all leave

    // Of the launch in progress; constant while it is
    alignas(64) ConvbackpropLaunch launch_{};
    uint64_t end_block_ = 0;
    bool in_progress_ = false;
    std::thread::id launching_thread_;

    BlockRunner* caller_ = nullptr;
    bool caller_is_paused_ = false;  // in the middle of a block

    std::mutex mutex_;  // guards what follows
    std::condition_variable work_to_do_, helper_left_;
    int helpers_ = 0;  // threads that exist
    int tickets_ = 0;  // places for helpers in this launch
    int helping_ = 0;  // helpers that took one and have not left
    bool failed_ = false;
    char error_[300] = "";
};

// Never destroyed: helpers wait inside it until the process ends.
Grid* the_grid = new Grid;

// ------------------------------------------------------------------------------------------------ the caller

int Grid::launch(const ConvbackpropLaunch& launch, int time_slice_ms) {
    if (in_progress_) return fail("another launch is in progress"), FAILED;
    if (!check(launch)) return FAILED;
    if (!caller_) caller_ = BlockRunner::create();
    if (!caller_) return fail("there is no memory left for the stacks of a block's threads"), NO_MEMORY;

    launch_ = launch;
    if (!caller_->enter(launch_, stop_)) return fail("there is no memory left for a block's shared memory"), NO_MEMORY;
    end_block_ =
        launch.end_block ? launch.end_block : uint64_t{launch.grid[0]} * launch.grid[1] * launch.grid[2];
    next_block_ = launch.first_block;
    stop_ = false;
    failed_ = false;
    error_[0] = 0;
    launching_thread_ = std::this_thread::get_id();
    in_progress_ = true;

    const uint64_t blocks = end_block_ - launch.first_block;
    const int helpers = int(std::min<uint64_t>(launch.workers, blocks)) - 1;
    if (helpers > 0) wake_helpers(helpers);
    return work_for(time_slice_ms);
}

int Grid::resume(int time_slice_ms) {
    if (!in_progress_) return fail("no launch is in progress"), FAILED;
    if (std::this_thread::get_id() != launching_thread_) {
        // A paused block's shared memory belongs to the OS thread that it was started on.
        cancel();
        return fail("the launch was resumed from another OS thread than the one it started on"), FAILED;
    }
    return work_for(time_slice_ms);
}

int Grid::work_for(int time_slice_ms) {
    using Clock = BlockRunner::Clock;
    const auto deadline = time_slice_ms > 0 ? Clock::now() + std::chrono::milliseconds(time_slice_ms)
                                            : Clock::time_point::max();
    caller_->set_deadline(deadline);
    caller_is_paused_ = work(*caller_) == BlockOutcome::PAUSED;
    if (caller_is_paused_) return RUNNING;

    if (launch_.workers > 1) {
        std::unique_lock<std::mutex> lock(mutex_);
        tickets_ = 0;
        while (helping_ > 0) {
            if (time_slice_ms <= 0)
                helper_left_.wait(lock);
            else if (helper_left_.wait_until(lock, deadline) == std::cv_status::timeout && helping_ > 0)
                return RUNNING;
        }
    }
    in_progress_ = false;
    return failed_ ? FAILED : FINISHED;
}

void Grid::cancel() {
    if (!in_progress_) return;
    stop_ = true;
    if (caller_is_paused_) caller_->abandon();
    caller_is_paused_ = false;
    std::unique_lock<std::mutex> lock(mutex_);
    tickets_ = 0;
    helper_left_.wait(lock, [this] { return helping_ == 0; });
    in_progress_ = false;
}

// ---------------------------------------------------------------------------------------------- every worker

// Runs blocks until none is left (FINISHED), or all must stop, or the caller's time slice is over (PAUSED).
BlockOutcome Grid::work(BlockRunner& runner) {
    bool resuming = &runner == caller_ && caller_is_paused_;
    for (;;) {
        if (stop_.load(std::memory_order_relaxed)) {
            if (resuming) runner.abandon();
            return BlockOutcome::STOPPED;
        }
        BlockOutcome outcome;
        if (resuming) {
            outcome = runner.resume();
            resuming = false;
        } else {
            const uint64_t block = next_block_.fetch_add(1, std::memory_order_relaxed);
            if (block >= end_block_) return BlockOutcome::FINISHED;
            outcome = runner.run(block);
        }
        if (outcome == BlockOutcome::FAILED) record_failure(runner);
        if (outcome != BlockOutcome::FINISHED) return outcome;
    }
}

void Grid::record_failure(const BlockRunner& runner) {
    std::lock_guard<std::mutex> lock(mutex_);
    const Index3 block = runner.block_index();
    if (!failed_) fail("block (%u, %u, %u): %s", block.x, block.y, block.z, runner.failure());
    failed_ = true;
    stop_ = true;
}

// ----------------------------------------------------------------------------------------------- the helpers

void Grid::wake_helpers(int count) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (helpers_ < count) {
        // A signal is for a thread that the host knows: helpers inherit a mask that blocks them all.
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        // Where no more threads are to be had, those there are do all the work. Not std::thread, which would throw.
        pthread_attr_t detached;
        pthread_attr_init(&detached);
        pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
        pthread_t thread;
        while (helpers_ < count && pthread_create(&thread, &detached, help, this) == 0) ++helpers_;
        pthread_attr_destroy(&detached);
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }
    tickets_ = std::min(count, helpers_);
    if (tickets_ == 1)
        work_to_do_.notify_one();
    else
        work_to_do_.notify_all();
}

void* Grid::help(void* grid) {
    static_cast<Grid*>(grid)->help_forever();
    return nullptr;
}

void Grid::help_forever() {
    BlockRunner* runner = BlockRunner::create();
    if (!runner) {  // no memory: its tickets stay untaken, and others do its work
        std::lock_guard<std::mutex> lock(mutex_);
        --helpers_;
        return;
    }
    for (;;) {
        {
            std::unique_lock<std::mutex> lock(mutex_);
            work_to_do_.wait(lock, [this] { return tickets_ > 0; });
            --tickets_;
            ++helping_;
        }
        if (runner->enter(launch_, stop_)) {
            runner->set_deadline(BlockRunner::Clock::time_point::max());
            work(*runner);
        }

        std::lock_guard<std::mutex> lock(mutex_);
        if (--helping_ == 0) helper_left_.notify_one();
    }
}

// ------------------------------------------------------------------------------------------- what is refused

// CUDA's own limits, with the sentence that says which one is broken.
bool Grid::check(const ConvbackpropLaunch& launch) {
    const auto& [gx, gy, gz] = launch.grid;
    const auto& [bx, by, bz] = launch.block;
    if (!launch.entry) return fail("the kernel's entry is null");
    if (bx < 1 || by < 1 || bz < 1 || bx > 1024 || by > 1024 || bz > 64 || bx * by * bz > MAX_THREADS)
        return fail("a block of (%u, %u, %u) threads: it must have 1 to (1024, 1024, 64), and %d in all", bx,
                    by, bz, MAX_THREADS);
    if (gx < 1 || gy < 1 || gz < 1 || gx > 0x7fffffff || gy > 0xffff || gz > 0xffff)
        return fail("a grid of (%u, %u, %u) blocks: it must have 1 to (2147483647, 65535, 65535)", gx, gy,
                    gz);
    if (launch.shared_bytes > MAX_SHARED_BYTES)
        return fail("%zu bytes of dynamic shared memory: a block has at most %llu", launch.shared_bytes,
                    (unsigned long long)MAX_SHARED_BYTES);
    if (launch.workers < 1) return fail("%d workers: there must be at least 1", launch.workers);

    const unsigned long long blocks = 1ull * gx * gy * gz;
    const unsigned long long end = launch.end_block ? launch.end_block : blocks;
    if (launch.first_block >= end || end > blocks)
        return fail("blocks %llu to %llu (exclusive) of a grid of %llu: an empty range or one beyond it",
                    launch.first_block, end, blocks);
    return true;
}

bool Grid::fail(const char* format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(error_, sizeof error_, format, values);
    va_end(values);
    return false;
}

}  // namespace

// ------------------------------------------------------------------------------------------- the C interface

extern "C" {

int convbackprop_launch(const ConvbackpropLaunch* launch, int time_slice_ms) {
    return the_grid->launch(*launch, time_slice_ms);
}

int convbackprop_resume(int time_slice_ms) { return the_grid->resume(time_slice_ms); }

void convbackprop_cancel(void) { the_grid->cancel(); }

const char* convbackprop_error(void) { return the_grid->error(); }

void convbackprop_after_fork(void) {
    // The old one is left as it is: a thread that is not in this process may have held its mutex.
    the_grid = new Grid;
}

void convbackprop_copy_entry(void** args) {
    constexpr size_t PART = 64 << 10;
    char* destination = *static_cast<char**>(args[0]);
    const char* source = *static_cast<const char**>(args[1]);
    const size_t bytes = *static_cast<size_t*>(args[2]);
    const Index3 block = convbackprop_blockIdx, grid = convbackprop_gridDim;
    const size_t begin = ((size_t{block.z} * grid.y + block.y) * grid.x + block.x) * PART;
    if (begin < bytes) memcpy(destination + begin, source + begin, std::min(PART, bytes - begin));
}
}
