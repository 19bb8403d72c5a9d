// Leaving one call stack and going on with another, within one OS thread; a sanitizer is told of it.
//
// A barrier costs one switch a CUDA thread, so its price is the price of __syncthreads: about 10 ns with the
// assembly for x86-64, about 300 ns with ucontext (which makes a system call for the signal mask) everywhere
// else. CONVBACKPROP_UCONTEXT chooses ucontext on x86-64 too, for tests.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) && !defined(CONVBACKPROP_UCONTEXT)

struct Registers {
    void* stack_pointer;  // the registers that a callee must preserve lie on the stack it points into
};

extern "C" void convbackprop_switch_stack(void** save_stack_pointer, void* new_stack_pointer);

// Not a statement in a function: the compiler would then reason about which registers that function leaves
// alone. Weak, since every file that includes this has a copy, of which the linker keeps one.
asm(R"(
    .text
    .p2align 4
    .weak   convbackprop_switch_stack
    .hidden convbackprop_switch_stack
    .type   convbackprop_switch_stack, @function
convbackprop_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq  %rsp, (%rdi)
    movq  %rsi, %rsp
    popq  %r15
    popq  %r14
    popq  %r13
    popq  %r12
    popq  %rbx
    popq  %rbp
    ret
    .size convbackprop_switch_stack, . - convbackprop_switch_stack
)");

// Saves in `from` where the caller is, and goes on where `to` was saved. Returns at a switch to `from`.
inline void switch_registers(Registers* from, const Registers* to) {
    convbackprop_switch_stack(&from->stack_pointer, to->stack_pointer);
}

// Makes `registers` those that call `function`, which must never return, on the given stack.
inline void prepare_registers(Registers* registers, char* stack, size_t bytes, void (*function)()) {
    void** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t{15});
    *--top = nullptr;  // where a return address would be: ends a debugger's backtrace
    *--top = reinterpret_cast<void*>(function);    // what the first switch "returns" to
    for (int i = 0; i < 6; ++i) *--top = nullptr;  // the six registers it pops
    registers->stack_pointer = top;
}

#else

#include <ucontext.h>

struct Registers {
    ucontext_t saved;
};

inline void switch_registers(Registers* from, const Registers* to) { swapcontext(&from->saved, &to->saved); }

inline void prepare_registers(Registers* registers, char* stack, size_t bytes, void (*function)()) {
    getcontext(&registers->saved);
    registers->saved.uc_stack.ss_sp = stack;
    registers->saved.uc_stack.ss_size = bytes;
    registers->saved.uc_link = nullptr;
    makecontext(&registers->saved, function, 0);
}

#endif

// ------------------------------------------------------------------------------------- what sanitizers are told
// AddressSanitizer must know the bounds of the stack that is run on, ThreadSanitizer which fiber runs: what one fiber
// does before a switch comes before what the next one does after it. Elsewhere all this is nothing.

#if defined(__SANITIZE_ADDRESS__)

#include <pthread.h>
#include <sanitizer/common_interface_defs.h>

struct SanitizedStack {
    const void* bottom;
    size_t bytes;
    void* fake;  // where the sanitizer keeps the variables of functions that have returned

    void prepare(char* stack, size_t size) { bottom = stack, bytes = size, fake = nullptr; }
    void be_os_thread() {
        pthread_attr_t attributes;
        void* stack;
        pthread_getattr_np(pthread_self(), &attributes);
        pthread_attr_getstack(&attributes, &stack, &bytes);
        pthread_attr_destroy(&attributes);
        bottom = stack;
    }
    void leave_for(const SanitizedStack& other) {
        __sanitizer_start_switch_fiber(&fake, other.bottom, other.bytes);
    }
    void come_back() { __sanitizer_finish_switch_fiber(fake, nullptr, nullptr); }
    static void begin() { __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr); }
};

#elif defined(__SANITIZE_THREAD__)

#include <sanitizer/tsan_interface.h>

struct SanitizedStack {
    void* fiber = nullptr;

    void prepare(char*, size_t) {
        if (fiber) __tsan_destroy_fiber(fiber);
        fiber = __tsan_create_fiber(0);
    }
    void be_os_thread() { fiber = __tsan_get_current_fiber(); }
    void leave_for(const SanitizedStack& other) { __tsan_switch_to_fiber(other.fiber, 0); }
    void come_back() {}
    static void begin() {}
};

#else

struct SanitizedStack {
    void prepare(char*, size_t) {}
    void be_os_thread() {}
    void leave_for(const SanitizedStack&) {}
    void come_back() {}
    static void begin() {}
};

#endif

// ------------------------------------------------------------------------------------------------------ together

struct Context {
    Registers registers;
    SanitizedStack stack;
};

// Saves in `from` where the caller is, and goes on where `to` was saved. Returns at a switch to `from`.
inline void switch_context(Context* from, const Context* to) {
    from->stack.leave_for(to->stack);
    switch_registers(&from->registers, &to->registers);
    from->stack.come_back();
}

// Makes `context` one that calls `function` on the given stack. It must never return, and first call
// SanitizedStack::begin().
inline void prepare_context(Context* context, char* stack, size_t bytes, void (*function)()) {
    context->stack.prepare(stack, bytes);
    prepare_registers(&context->registers, stack, bytes, function);
}
