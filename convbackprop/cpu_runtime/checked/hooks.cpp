// The functions that g++ -fsanitize=thread, -fsanitize=bounds and -fsanitize-coverage=trace-pc call from a kernel. They
// are GCC's own, documented in its sources (gcc/sanitizer.def); here they mean what checks.h says.
//
// note_access wants to know where in the kernel it was called from: so each hook asks for its own return address.
#include <string.h>

#include <type_traits>

#include "checks.h"
#include "traffic.h"

using checks::Access;

#define SITE __builtin_return_address(0)

static inline void note_access(void* at, size_t bytes, Access access, const void* site) {
    if (!checks::traffic::note_quickly(uintptr_t(at), bytes, access == Access::WRITE, true, site))
        checks::note_access(at, bytes, access, true, site);
}

#pragma GCC visibility push(default)
extern "C" {

#define CONVBACKPROP_HOOKS(kind, bytes)                                                                      \
    void __tsan_##kind##read##bytes(void* at) { note_access(at, bytes, Access::READ, SITE); }                \
    void __tsan_##kind##write##bytes(void* at) { note_access(at, bytes, Access::WRITE, SITE); }
#define CONVBACKPROP_HOOKS_OF(kind) \
    CONVBACKPROP_HOOKS(kind, 1)     \
    CONVBACKPROP_HOOKS(kind, 2)     \
    CONVBACKPROP_HOOKS(kind, 4)     \
    CONVBACKPROP_HOOKS(kind, 8)     \
    CONVBACKPROP_HOOKS(kind, 16)
CONVBACKPROP_HOOKS_OF()
CONVBACKPROP_HOOKS_OF(volatile_)
CONVBACKPROP_HOOKS_OF(unaligned_)

void __tsan_read_range(void* at, size_t bytes) { checks::note_access(at, bytes, Access::READ, false, SITE); }
void __tsan_write_range(void* at, size_t bytes) { checks::note_access(at, bytes, Access::WRITE, false, SITE); }
void __tsan_init(void) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void) {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}

// cuda_on_cpu.h makes every atomic of a load and of compare-and-exchange; the load asks for nothing.
#define CONVBACKPROP_ATOMIC_HOOKS(bits, T)                                                                   \
    T __tsan_atomic##bits##_load(const volatile T* at, int) { return __atomic_load_n(at, __ATOMIC_RELAXED); } \
    int __tsan_atomic##bits##_compare_exchange_weak(volatile T* at, T* expected, T desired, int, int) {      \
        checks::note_access(const_cast<T*>(at), sizeof(T), Access::ATOMIC, true, SITE);                      \
        return __atomic_compare_exchange_n(at, expected, desired, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
    }                                                                                                        \
    int __tsan_atomic##bits##_compare_exchange_strong(volatile T* at, T* expected, T desired, int, int) {    \
        checks::note_access(const_cast<T*>(at), sizeof(T), Access::ATOMIC, true, SITE);                      \
        return __atomic_compare_exchange_n(at, expected, desired, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
    }
CONVBACKPROP_ATOMIC_HOOKS(8, unsigned char)
CONVBACKPROP_ATOMIC_HOOKS(16, unsigned short)
CONVBACKPROP_ATOMIC_HOOKS(32, unsigned)
CONVBACKPROP_ATOMIC_HOOKS(64, unsigned long)
void __tsan_atomic_thread_fence(int) {}
void __tsan_atomic_signal_fence(int) {}

// cuda_on_cpu.h's memcpy and memset, in which g++ puts no hooks.
void convbackprop_note_copy(void* to, const void* from, size_t bytes) {
    if (from) checks::note_access(from, bytes, Access::READ, false, SITE);
    checks::note_access(to, bytes, Access::WRITE, false, SITE);
}

void __sanitizer_cov_trace_pc(void) { checks::traffic::note_basic_block(SITE); }

void __ubsan_handle_out_of_bounds(void*, void*) { checks::note_array_index(SITE); }
void __ubsan_handle_out_of_bounds_abort(void*, void*) { checks::note_array_index(SITE); }
}
#pragma GCC visibility pop
