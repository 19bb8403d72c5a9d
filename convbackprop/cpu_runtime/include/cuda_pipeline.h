// CUDA's primitives for copies to shared memory that nobody waits for until their data is used, on a CPU: a copy is done
// at once, and a wait is nothing. For a checked kernel a copy is done when its thread has waited for it, and until then
// nobody may read or write where it goes (checked/copies.cpp).
#pragma once
#include <stddef.h>
#include <string.h>

#ifdef CONVBACKPROP_CHECKED
#pragma GCC visibility push(default)
extern "C" {
void convbackprop_copy_later(void* to, const void* from, size_t bytes, size_t zeros);
void convbackprop_close_copies(void);
void convbackprop_wait_for_copies(size_t groups);
}
#pragma GCC visibility pop

// Macros, so that a finding is at the line that uses them.
#define CONVBACKPROP_COPY(to, from, bytes, zeros, ...) convbackprop_copy_later(to, from, bytes, zeros)
#define __pipeline_memcpy_async(...) CONVBACKPROP_COPY(__VA_ARGS__, 0, 0)
#define __pipeline_commit() convbackprop_close_copies()
#define __pipeline_wait_prior(groups) convbackprop_wait_for_copies(groups)
#else
// The last `zeros` of the bytes are zeros, and not read.
static inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes, size_t zeros = 0) {
    if (zeros < bytes) memcpy(to, from, bytes - zeros);
    memset(static_cast<char*>(to) + (bytes - zeros), 0, zeros);
}
static inline void __pipeline_commit() {}
static inline void __pipeline_wait_prior(size_t) {}
#endif
