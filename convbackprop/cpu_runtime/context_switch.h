// Leaving one call stack and going on with another, within one OS thread.
//
// A barrier costs one switch a CUDA thread, so its price is the price of __syncthreads: about 10 ns with the
// assembly for x86-64, about 300 ns with ucontext (which makes a system call for the signal mask) everywhere
// else. CONVBACKPROP_UCONTEXT chooses ucontext on x86-64 too, for tests.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) && !defined(CONVBACKPROP_UCONTEXT)

struct Context {
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
inline void switch_context(Context* from, const Context* to) {
    convbackprop_switch_stack(&from->stack_pointer, to->stack_pointer);
}

// Makes `context` one that calls `function`, which must never return, on the given stack.
inline void prepare_context(Context* context, char* stack, size_t bytes, void (*function)()) {
    void** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t{15});
    *--top = nullptr;  // where a return address would be: ends a debugger's backtrace
    *--top = reinterpret_cast<void*>(function);    // what the first switch "returns" to
    for (int i = 0; i < 6; ++i) *--top = nullptr;  // the six registers it pops
    context->stack_pointer = top;
}

#else

#include <ucontext.h>

struct Context {
    ucontext_t saved;
};

inline void switch_context(Context* from, const Context* to) { swapcontext(&from->saved, &to->saved); }

inline void prepare_context(Context* context, char* stack, size_t bytes, void (*function)()) {
    getcontext(&context->saved);
    context->saved.uc_stack.ss_sp = stack;
    context->saved.uc_stack.ss_size = bytes;
    context->saved.uc_link = nullptr;
    makecontext(&context->saved, function, 0);
}

#endif
