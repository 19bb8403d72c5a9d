// See block_runner.h for the design.
#include "block_runner.h"

#include <algorithm>
#include <iterator>
#include <link.h>
#include <new>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#ifdef CONVBACKPROP_CHECKED
#include "checked/checks.h"
// What the checks are told; the plain runtime tells nobody.
#define TELL(...) checks::__VA_ARGS__
// Where in the kernel a call came from.
static const void* call_site;
#define NOTE_CALL_SITE() call_site = __builtin_return_address(0)
#else
#define TELL(...) (void)0
#define NOTE_CALL_SITE() (void)0
#endif

extern "C" {
__thread Index3 convbackprop_threadIdx, convbackprop_blockIdx, convbackprop_blockDim, convbackprop_gridDim;
}

// The runner of this OS thread. Read where a kernel's call or a fiber begins, never after a switch.
static __thread BlockRunner* this_runner __attribute__((tls_model("initial-exec")));

// A block's threads use the same few lines of their stacks in turn. An odd number of 4 KiB pages from stack
// to stack and different places within a page spread them over the sets of the TLB and of the caches:
// __syncthreads costs 9 ns a thread where 64 KiB and no offset would make it 25.
constexpr size_t STACK_BYTES = 68 << 10;
constexpr size_t STACK_OFFSETS = 16, STACK_OFFSET_BYTES = 256;
constexpr size_t ALLOCATOR_SLACK = 4 << 10;
constexpr int MAX_POLLS_PER_LOOK = 64;  // a look at the clock costs about 25 ns, a poll without one 0.5 ns

// ------------------------------------------------------------------------------------------------ one launch

BlockRunner* BlockRunner::create() {
    // Only the pages that are used are ever real: one or two a fiber. No `new`: where there is no memory, even
    // the nothrow one throws inside, which takes memory, and glibc ends the process when that is not there.
    void* memory = mmap(nullptr, MAX_THREADS * STACK_BYTES + sizeof(BlockRunner), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    char* stacks = static_cast<char*>(memory);
    auto* runner = new (stacks + MAX_THREADS * STACK_BYTES) BlockRunner;
    runner->stacks_ = stacks;
    runner->os_thread_ = pthread_self();
    runner->forget_fibers();
    return runner;
}

// The object of a kernel, and how much thread-local memory of it the calling thread does not have yet.
struct ThreadLocalMemory {
    uintptr_t entry;
    size_t missing;
};

static int look_at_object(dl_phdr_info* object, size_t, void* data) {
    auto* found = static_cast<ThreadLocalMemory*>(data);
    bool is_it = false;
    size_t bytes = 0;
    for (int i = 0; i < object->dlpi_phnum; ++i) {
        const ElfW(Phdr)& part = object->dlpi_phdr[i];
        if (part.p_type == PT_LOAD && found->entry - (object->dlpi_addr + part.p_vaddr) < part.p_memsz) is_it = true;
        if (part.p_type == PT_TLS && !object->dlpi_tls_data) bytes = part.p_memsz + part.p_align;
    }
    if (is_it) found->missing = bytes;
    return is_it;
}

// Shared memory is the OS thread's own. glibc allocates it when the thread first touches it, and ends the
// process when it cannot: so that is tried before.
bool BlockRunner::has_shared_memory(void (*entry)(void**)) {
    if (!pthread_equal(os_thread_, pthread_self())) {
        os_thread_ = pthread_self();
        std::fill(std::begin(has_memory_of_), std::end(has_memory_of_), nullptr);
    }
    auto& kept = has_memory_of_[(reinterpret_cast<uintptr_t>(entry) >> 4) % std::size(has_memory_of_)];
    if (kept == entry) return true;
    ThreadLocalMemory found = {reinterpret_cast<uintptr_t>(entry), 0};
    dl_iterate_phdr(look_at_object, &found);
    if (found.missing) {
        void* tried = malloc(found.missing + ALLOCATOR_SLACK);
        if (!tried) return false;
        free(tried);
    }
    kept = entry;
    return true;
}

bool BlockRunner::enter(const ConvbackpropLaunch& launch, const std::atomic<bool>& stop) {
    if (!has_shared_memory(launch.entry)) return false;
    launch_ = &launch;
    stop_ = &stop;
    polls_until_look_ = polls_per_look_ = 1;
    this_runner = this;
    thread_index_ = &convbackprop_threadIdx;
    block_index_variable_ = &convbackprop_blockIdx;
    convbackprop_blockDim = {launch.block[0], launch.block[1], launch.block[2]};
    convbackprop_gridDim = {launch.grid[0], launch.grid[1], launch.grid[2]};
    outside_.stack.be_os_thread();
    TELL(begin_launch(launch));
    TELL(add_stacks(stacks_, MAX_THREADS * STACK_BYTES));
    TELL(add_own_memory(this, sizeof *this));
    return true;
}

// ------------------------------------------------------------------------------------------------- one block

BlockOutcome BlockRunner::run(uint64_t block_number) {
    const unsigned* grid = launch_->grid;
    const uint64_t row = block_number / grid[0];
    block_index_ = {unsigned(block_number % grid[0]), unsigned(row % grid[1]), unsigned(row / grid[1])};
    *block_index_variable_ = block_index_;

    thread_count_ = alive_ = int(launch_->block[0] * launch_->block[1] * launch_->block[2]);
    started_ = 0;
    next_thread_index_ = {0, 0, 0};
    at_barrier_count_ = predicate_count_ = at_mbarrier_count_ = 0;
    forget_async_work();
    ready_begin_ = ready_end_ = 0;
    for (int first = 0; first < thread_count_; first += LANES) {
        const int lanes = thread_count_ - first;
        warps_[first / LANES].alive = lanes < LANES ? (1u << lanes) - 1 : ~0u;
        warps_[first / LANES].pending_count = 0;
    }
    TELL(begin_block(block_number, thread_count_));
    current_ = next_fiber();
    return resume();
}

BlockOutcome BlockRunner::resume() {
    outcome_ = BlockOutcome::FINISHED;
    switch_context(&outside_, &current_->context);
    if (outcome_ == BlockOutcome::STOPPED || outcome_ == BlockOutcome::FAILED) forget_fibers();
    if (outcome_ != BlockOutcome::PAUSED) TELL(end_block());
    return outcome_;
}

void BlockRunner::abandon() { forget_fibers(); }

void BlockRunner::forget_fibers() {
    idle_count_ = 0;
    for (int i = MAX_THREADS - 1; i >= 0; --i) {  // the first on top, so that the same few stacks serve again
        fibers_[i].prepared = false;
        idle_[idle_count_++] = &fibers_[i];
    }
}

// ----------------------------------------------------------------------------------------------- the threads

void BlockRunner::fiber_main() {
    SanitizedStack::begin();
    BlockRunner* runner = this_runner;
    runner->run_threads_forever(runner->current_);
}

void BlockRunner::run_threads_forever(Fiber* me) {
    for (;;) {
        while (started_ < thread_count_) run_thread(me);
        idle_[idle_count_++] = me;
        if (alive_ == 0) {
            switch_context(&me->context, &outside_);  // comes back for another block
        } else {
            Fiber* next = next_fiber();
            if (!next) fail_with_deadlock();
            switch_to(next);
        }
    }
}

inline void BlockRunner::become_current(const Fiber* me) {
    *thread_index_ = me->thread_index;
    TELL(run_as(me->thread));
}

inline void BlockRunner::run_thread(Fiber* me) {
    poll();
#ifdef CONVBACKPROP_CHECKED
    me->thread = checks::thread_at(started_++, thread_count_);
    const unsigned row = me->thread / launch_->block[0];
    me->thread_index = {me->thread % launch_->block[0], row % launch_->block[1], row / launch_->block[1]};
#else
    me->thread = started_++;
    me->thread_index = next_thread_index_;
    if (++next_thread_index_.x == launch_->block[0]) {
        next_thread_index_.x = 0;
        if (++next_thread_index_.y == launch_->block[1]) {
            next_thread_index_.y = 0;
            ++next_thread_index_.z;
        }
    }
#endif
    become_current(me);
    launch_->entry(launch_->args);

    TELL(run_as(-1));

    // It has returned: whoever waits for it no longer does.
    --alive_;
    Warp& warp = warps_[me->thread / LANES];
    warp.alive &= ~(1u << me->thread % LANES);
    for (int i = warp.pending_count - 1; i >= 0; --i)
        if (is_complete(warp, warp.pending[i])) complete(warp, i, nullptr);
    if (at_barrier_count_ && at_barrier_count_ == alive_) release_barrier(nullptr);
}

// A fiber that can go on: with a thread that is no longer waiting, else by starting the remaining threads.
BlockRunner::Fiber* BlockRunner::next_fiber() {
    if (ready_begin_ != ready_end_) return ready_[ready_begin_++ % MAX_THREADS];
    if (started_ == thread_count_) return nullptr;
    Fiber* fiber = idle_[--idle_count_];
    if (!fiber->prepared) {
        const size_t i = fiber - fibers_, offset = i % STACK_OFFSETS * STACK_OFFSET_BYTES;
        prepare_context(&fiber->context, stacks_ + i * STACK_BYTES, STACK_BYTES - offset, fiber_main);
        fiber->prepared = true;
    }
    return fiber;
}

inline void BlockRunner::switch_to(Fiber* next) {
    Fiber* me = current_;
    current_ = next;
    switch_context(&me->context, &next->context);
}

// The current thread waits; returns when it has been made ready and its turn has come.
inline void BlockRunner::wait() {
    Fiber* me = current_;
    Fiber* next = next_fiber();
    if (!next) fail_with_deadlock();
    switch_to(next);
    become_current(me);
}

// --------------------------------------------------------------------------------------------- __syncthreads

inline int BlockRunner::wait_at_barrier(ConvbackpropBarrier kind, bool predicate) {
    poll();
    if (at_barrier_count_ == 0) barrier_kind_ = kind;
    if (barrier_kind_ != kind) fail("its threads call different kinds of __syncthreads at one barrier");
    predicate_count_ += predicate;
    TELL(arrive_at_barrier(current_->thread, call_site));
    at_barrier_[at_barrier_count_++] = current_;
    if (at_barrier_count_ == alive_)
        release_barrier(current_);
    else
        wait();
    return barrier_result_;  // nobody overwrites it before all have read it: the next barrier needs them all
}

void BlockRunner::release_barrier(Fiber* last) {
    barrier_result_ = barrier_kind_ == BARRIER_COUNT ? predicate_count_
                      : barrier_kind_ == BARRIER_AND ? predicate_count_ == at_barrier_count_
                                                     : predicate_count_ > 0;
    TELL(release_barrier(at_barrier_count_));
    for (int i = 0; i < at_barrier_count_; ++i)
        if (at_barrier_[i] != last) make_ready(at_barrier_[i]);
    at_barrier_count_ = predicate_count_ = 0;
}

// ------------------------------------------------------------------------------------------------ mbarriers

// Also where the phase has ended others come first: what they may do by now they have done.
void BlockRunner::wait_at_mbarrier(const void* barrier, bool (*has_ended)(const void*, unsigned), unsigned parity) {
    poll();
    do {
        if (has_ended(barrier, parity))
            make_ready(current_);
        else
            at_mbarrier_[at_mbarrier_count_++] = {current_, barrier};
        wait();
    } while (!has_ended(barrier, parity));
}

bool BlockRunner::is_awaited(const void* barrier) const {
    const auto* const end = at_mbarrier_ + at_mbarrier_count_;
    return std::any_of(at_mbarrier_, end, [=](const AtMbarrier& each) { return each.barrier == barrier; });
}

void BlockRunner::wake_at_mbarrier(const void* barrier) {
    int left = 0;
    for (int i = 0; i < at_mbarrier_count_; ++i)
        if (at_mbarrier_[i].barrier == barrier)
            make_ready(at_mbarrier_[i].fiber);
        else
            at_mbarrier_[left++] = at_mbarrier_[i];
    at_mbarrier_count_ = left;
}

// ------------------------------------------------------------------------------------------- warp operations

inline void BlockRunner::wait_for_warp(unsigned mask, void* record, ConvbackpropWarpOperation operation) {
    poll();
    Fiber* me = current_;
    Warp& warp = warps_[me->thread / LANES];
    const int lane = me->thread % LANES;
    if (!(mask >> lane & 1))
        fail("lane %d of warp %d calls a warp operation whose mask 0x%08x leaves it out", lane,
             me->thread / LANES, mask);
    warp.records[lane] = record;
    warp.fibers[lane] = me;

    int i = 0;
    while (i < warp.pending_count && warp.pending[i].mask != mask) ++i;
    if (i == warp.pending_count) warp.pending[warp.pending_count++] = {mask, 0, operation};
    if (warp.pending[i].operation != operation)
        fail("lanes of warp %d call different warp operations with one mask, 0x%08x", me->thread / LANES,
             mask);
    warp.pending[i].arrived |= 1u << lane;
    if (is_complete(warp, warp.pending[i]))
        complete(warp, i, me);
    else
        wait();
}

inline bool BlockRunner::is_complete(const Warp& warp, const WarpOperation& op) const {
    return (op.mask & warp.alive & ~op.arrived) == 0;
}

inline void BlockRunner::complete(Warp& warp, int pending, Fiber* last) {
    const WarpOperation op = warp.pending[pending];
    warp.pending[pending] = warp.pending[--warp.pending_count];
    TELL(run_as(-1));  // it works for all lanes, and for none of them
    op.operation(op.arrived, warp.records);
    TELL(run_as(last ? last->thread : -1));
    // Of the operations only __syncwarp, to which nobody brings a record, orders accesses to memory.
    TELL(complete_warp_operation(int(&warp - warps_), op.mask, op.arrived, !warp.records[__builtin_ctz(op.arrived)],
                                 call_site));
    for (unsigned rest = op.arrived; rest; rest &= rest - 1) {
        Fiber* fiber = warp.fibers[__builtin_ctz(rest)];
        if (fiber != last) make_ready(fiber);
    }
}

// ------------------------------------------------------------------------------------- leaving in the middle

inline void BlockRunner::poll() {
    if (--polls_until_look_ == 0) look_up();
}

// At the stop flag and the clock: at each poll where CUDA threads take long, rarely where polls come fast.
void BlockRunner::look_up() {
    const Clock::time_point now = Clock::now();
    const bool slow = now - last_look_ > std::chrono::milliseconds(1);
    polls_per_look_ =
        slow ? std::max(1, polls_per_look_ / 2) : std::min(MAX_POLLS_PER_LOOK, polls_per_look_ * 2);
    polls_until_look_ = polls_per_look_;
    last_look_ = now;
    if (stop_->load(std::memory_order_relaxed)) leave(BlockOutcome::STOPPED);
    if (now >= deadline_) leave(BlockOutcome::PAUSED);
}

// Goes back to where run() or resume() was called. Returns only if that was a pause that came to its end.
void BlockRunner::leave(BlockOutcome outcome) {
    outcome_ = outcome;
    switch_context(&current_->context, &outside_);
}

void BlockRunner::fail(const char* format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(failure_, sizeof failure_, format, values);
    va_end(values);
    TELL(stop_at(call_site));
    leave(BlockOutcome::FAILED);
    __builtin_unreachable();
}

void BlockRunner::fail_with_deadlock() {
    if (at_mbarrier_count_)
        fail("deadlock: %d of its threads wait at __syncthreads, %d at warp operations and %d at mbarriers, forever",
             at_barrier_count_, alive_ - at_barrier_count_ - at_mbarrier_count_, at_mbarrier_count_);
    fail("deadlock: %d of its threads wait at __syncthreads and %d at warp operations, forever",
         at_barrier_count_, alive_ - at_barrier_count_);
}

// ----------------------------------------------------------------------------------------- called by kernels

BlockRunner* current_runner() { return this_runner; }

extern "C" {

void convbackprop_syncthreads(void) {
    NOTE_CALL_SITE();
    this_runner->wait_at_barrier(BARRIER_PLAIN, false);
}

int convbackprop_syncthreads_reduce(ConvbackpropBarrier kind, int predicate) {
    NOTE_CALL_SITE();
    return this_runner->wait_at_barrier(kind, predicate != 0);
}

void convbackprop_warp_operation(unsigned mask, void* record, ConvbackpropWarpOperation operation) {
    NOTE_CALL_SITE();
    this_runner->wait_for_warp(mask, record, operation);
}

void convbackprop_warp_arithmetic(unsigned mask, void* record, ConvbackpropWarpOperation operation) {
    if (is_arithmetic_left_out()) return;
    NOTE_CALL_SITE();
    this_runner->wait_for_warp(mask, record, operation);
}
}

bool is_arithmetic_left_out() {
#ifdef CONVBACKPROP_CHECKED
    return checks::only_addresses();
#else
    return false;
#endif
}

#ifdef CONVBACKPROP_CHECKED
void checks::stop_launch(const char* why) { this_runner->stop(why); }
#endif
