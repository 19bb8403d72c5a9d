// Records the addresses of a block's threads, and replays its warps in lockstep; see traffic.cpp.
//
// What a hook calls is here, since it is called before every access and in every basic block: an access that is not to
// a thread's own stack, nor to an array that was touched last in this way, is looked up in checks.cpp.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

namespace checks::traffic {

// Numbers in a row that grows, and is written from its beginning again after each part of a block.
template <class T>
class Run {
  public:
    T& add() {  // one more, to be written in place: a copy made field by field would stall where it is read as a whole
        if (end_ == limit_) grow();
        return *end_++;
    }
    void clear() { end_ = begin_; }
    const T* begin() const { return begin_; }
    const T* end() const { return end_; }

  private:
    T *begin_ = nullptr, *end_ = nullptr, *limit_ = nullptr;

    __attribute__((noinline)) void grow() {
        const size_t count = end_ - begin_, most = count ? 2 * count : 256;
        begin_ = static_cast<T*>(realloc(static_cast<void*>(begin_), most * sizeof(T)));
        if (!begin_) abort();
        end_ = begin_ + count;
        limit_ = begin_ + most;
    }
};

struct Access {
    uintptr_t address;  // of shared memory: from the beginning of the object's thread-local memory
    int16_t array;
    bool shared;
    uint8_t kind, bytes;
};

// What a thread has done: its steps, each by its site, times two, and one more for an access; and those accesses.
struct Thread {
    Run<uint32_t> steps;
    Run<Access> accesses;
};

// An array as it lies in memory while a kernel runs.
struct Place {
    uintptr_t begin = 0, end = 0;
    int array = -1;
};

struct State {
    bool is_recording = false;
    Thread* thread = nullptr;     // that runs and is recorded
    uintptr_t code = 0;           // where the kernel's object begins
    uintptr_t shared_memory = 0;  // its thread-local memory
    uintptr_t stacks = 0;         // of the threads
    size_t stacks_bytes = 0;
    Place last_shared, last_loaded, last_stored;  // the latter two: global ones
};
extern State state;

inline bool recording() { return state.is_recording; }
inline uint32_t step_at(const void* site) { return uint32_t(uintptr_t(site) - state.code) << 1; }

void note_global(const Access& access, size_t bytes);  // besides its step

inline void note_access(const Place& place, bool shared, int kind, size_t bytes, uintptr_t address, const void* site) {
    state.thread->steps.add() = step_at(site) | 1;
    Access& access = state.thread->accesses.add();
    access.address = address - (shared ? state.shared_memory : 0);
    access.array = int16_t(place.array);
    access.shared = shared;
    access.kind = uint8_t(kind);
    access.bytes = uint8_t(bytes);
    if (!shared) note_global(access, bytes);
}

// Whether an access was dealt with: all that is not out of the ordinary.
inline bool note_quickly(uintptr_t address, size_t bytes, int kind, bool must_be_aligned, const void* site) {
    if (!state.thread) return false;
    if (address - state.stacks < state.stacks_bytes) return true;
    if (must_be_aligned && address & (bytes - 1)) return false;
    const bool shared = state.last_shared.begin <= address && address < state.last_shared.end;
    const Place& place = shared ? state.last_shared : kind == 0 ? state.last_loaded : state.last_stored;
    if (address < place.begin || address + bytes > place.end || bytes == 0) return false;
    note_access(place, shared, kind, bytes, address, site);
    return true;
}

inline void note_basic_block(const void* site) {
    if (state.thread) state.thread->steps.add() = step_at(site);
}

void run_as(int thread);                                            // -1: the runtime is at work
void begin_launch(uintptr_t code, uintptr_t shared_memory);         // of the kernel's object
void add_array(const Place& place, bool shared, int kind);             // that an access of this kind was found in
void end_part(long long block, int threads, bool is_end_of_block);  // at a barrier, and at the block's end

}  // namespace checks::traffic
