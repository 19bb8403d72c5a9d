// What the runtime tells the checks, and what the checks tell the host. Only the checked runtime has them: it is the
// same runtime compiled with CONVBACKPROP_CHECKED, for kernels compiled with -fsanitize=thread, whose hooks
// (hooks.cpp) call note_access before every access to memory.
//
// Two questions are asked of an access. Does it touch bytes that it may touch, aligned and written before
// (memory.cpp)? And is it ordered with the accesses of other threads to the same bytes (races.h)? A launch that is
// checked runs on one OS thread, so that nothing here needs a lock.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "../runtime.h"

namespace checks {

// -------------------------------------------------------------------------------------- from the runtime
void begin_launch(const ConvbackpropLaunch& launch);
void add_own_memory(const void* begin, size_t bytes);  // the runtime's, which a kernel's accesses may touch
void add_stacks(const void* begin, size_t bytes);      // the same, of its threads
void begin_block(uint64_t number, int threads);
void end_block();
void run_as(int thread);  // which one goes on now
void arrive_at_barrier(int thread, const void* site);
void release_barrier(int arrived);
void complete_warp_operation(int warp, unsigned mask, unsigned lanes, bool orders_memory, const void* site);
void stop_at(const void* site);  // where the launch fails
bool only_addresses();         // are looked at, and no numbers: traffic is recorded

int current_thread();
void forget_copies();  // copies.cpp: those that are under way

// The position of the i-th thread in the order in which the block's threads are started.
int thread_at(int position, int threads);

// ------------------------------------------------------------------------------------------ from the hooks
enum class Access { READ, WRITE, ATOMIC };
void note_access(const void* address, size_t bytes, Access access, bool must_be_aligned, const void* site);
void note_uninitialised(const void* address, size_t bytes);  // nobody may read them before they are written again
void note_array_index(const void* site);

// Leaves the launch, from within a CUDA thread (block_runner.cpp).
[[noreturn]] void stop_launch(const char* why);

}  // namespace checks

#pragma GCC visibility push(default)
extern "C" {

enum ConvbackpropFindingKind {
    OUT_OF_BOUNDS,           // touches bytes that belong to no array, or reaches beyond one
    MISALIGNED,              // an address that is no multiple of the access's size
    UNINITIALISED,           // reads bytes that nobody has written
    WRITE_TO_INPUT,          // an array that the host says is only read
    RACE,                    // two threads, one of them writing, with nothing that orders them
    RACE_BETWEEN_BLOCKS,     // the same, of two blocks
    ARRAY_INDEX,             // an index beyond the declared extent of an array
    DIVERGENT_BARRIER,       // threads of a block wait at different __syncthreads
    BARRIER_WITHOUT_THREADS, // a barrier that some of the block's threads can no longer reach
    MASK_OF_MISSING_LANES,   // a warp operation that names lanes that are not there
    STOPPED,                 // where the launch failed
};

struct ConvbackpropFinding {  // all findings of one kind, place and array; the numbers are of the first
    int kind;
    unsigned site, other_site;  // offsets in the kernel's shared object, of the instruction after; 0 is none
    int array;                  // its number; -1: none
    int is_write, other_is_write;
    unsigned bytes;
    long long offset;  // of the first byte, from the array's beginning
    int thread, other_thread;
    long long block, other_block;
    unsigned long long count;
};

// Arrays, before a launch. Shared ones are a part of the thread-local memory of the kernel's shared object.
enum ConvbackpropArrayKind { ARRAY_INPUT, ARRAY_RESULT, ARRAY_SHARED, ARRAY_DYNAMIC_SHARED, ARRAY_SILENT };
int convbackprop_checks_add_array(int kind, const void* begin, size_t bytes, int granule);
void convbackprop_checks_keep_arrays(int count);  // and forget the later ones

// threads of a block are started 0: in order, 1: last to first, more: shuffled by this seed
void convbackprop_checks_set_order(unsigned long long order);

size_t convbackprop_checks_notes_bytes(void);  // of memory, for what is known of each byte of the arrays

// How many there are since the last call; of these, at most so many are copied.
int convbackprop_checks_take_findings(ConvbackpropFinding* to, int most);

// In place of the checks, the addresses of each warp's threads are recorded and counted: see traffic.cpp. Switching
// forgets what was counted. Of arrays that are added meanwhile no notes are taken.
void convbackprop_checks_record_traffic(int on);
long long convbackprop_checks_recorded_accesses(void);

struct ConvbackpropSiteTraffic {  // of an instruction
    unsigned site;
    int shared, kind;  // kind: 0 load, 1 store, 2 atomic
    unsigned bytes;    // of a lane
    long long requests, lanes;
    long long sectors, least_sectors;  // of global memory
    long long passes, least_passes;    // over the banks of shared memory
};
int convbackprop_checks_site_traffic(ConvbackpropSiteTraffic* to, int most);

struct ConvbackpropArrayTraffic {  // bytes that lanes ask for; distinct sectors of a block, summed over the blocks
    int array;
    long long loaded_bytes, stored_bytes, loaded_sectors, stored_sectors;
};
int convbackprop_checks_array_traffic(ConvbackpropArrayTraffic* to, int most);

// Besides counting, about so many accesses are kept as they are, warp by warp in the order in which a warp makes them.
struct ConvbackpropLaneAccess {
    long long request;  // the lanes of one instruction of a warp have the same number, from 1 on
    long long block;
    long long address;  // of shared memory: from the beginning of the object's thread-local memory
    unsigned site;
    int thread, array, shared, kind;  // kind as above
    unsigned bytes;
};
void convbackprop_checks_keep_accesses(int most);
int convbackprop_checks_kept_accesses(ConvbackpropLaneAccess* to, int most);
}
#pragma GCC visibility pop
