// A libcuda.so.1 without a GPU: what stands where, and what its files share.
//
//     calls.cpp      every call passes here: the lock, the rules common to all, faults on request; what tests ask
//     contexts.cpp   devices, primary and other contexts, the current context of a thread
//     memory.cpp     device memory between guard zones, copies
//     streams.cpp    streams and events; work is queued, and run as late (or as untimely) as the rules allow
//     tensor_maps.cpp  what boxes of a tensor are, for a kernel's parameter
//     modules.cpp    modules, functions, launches: a kernel is the cpu device's, compiled from the same .cu
//     unsupported.cpp  the rest of what PyCUDA names; each says that it is not supported
//
// A handle is a number that is never given out twice, so that one that has died is recognised and never followed.
// A device address is no address of this process: who reads device memory as if it were the host's, crashes.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../convbackprop/cpu_runtime/runtime.h"
#include "cuda_api.h"

#define STAND_IN extern "C" __attribute__((visibility("default")))

// Why a call fails; `why` is for the reader of a test.
struct Failure {
    CUresult code;
    std::string why;
};

[[noreturn]] inline void fail(CUresult code, std::string why) { throw Failure{code, std::move(why)}; }

// ---------------------------------------------------------------------------------------------------- what there is
struct Context;

// Something queued on a stream. It may run when all of `after` have; `after` is empty once it has run.
struct Work {
    std::function<void()> run;
    std::vector<std::shared_ptr<Work>> after;
    bool done = false;
};

struct Graph {  // what a capture has recorded: replayed in the order in which it was queued
    std::vector<std::function<void()>> work;
    std::vector<CUstream> streams;  // those that take part; the first began
    std::vector<CUstream> joined;   // those of them whose work the first has waited for
    bool invalid = false;
};

struct Stream {
    Context* context;
    bool blocking;  // waits for the legacy stream, and the legacy stream for it
    std::shared_ptr<Work> last;
    std::shared_ptr<Graph> capture;
};

struct Event {
    Context* context;
    std::shared_ptr<Work> recorded;  // null: never recorded, which counts as done
    std::shared_ptr<Graph> capture;
    CUstream recorded_on = nullptr;
};

struct Allocation {
    Context* context;
    CUdeviceptr begin;
    size_t bytes;
    std::unique_ptr<char[]> memory;  // guard zone, the bytes, guard zone
    char* host;                      // of the first byte
};

struct Function {
    CUmodule module;
    std::string name;
    void (*entry)(void**);           // what CONVBACKPROP_ENTRY of cuda_on_cpu.h defines
    std::vector<unsigned> sizes;     // of its parameters
    std::vector<unsigned> offsets;   // of its parameters in the buffer of a launch
    int max_threads = 1024, registers = 32, static_shared = 0, max_dynamic_shared = 48 * 1024;
};

struct Runtime {
    int (*launch)(const ConvbackpropLaunch*, int);
    const char* (*error)();
};

struct Module {
    Context* context;
    const Runtime* runtime;
    void* library;
    std::string image;
    std::map<std::string, CUfunction> functions;
};

struct Context {
    CUcontext handle;
    int device;
    bool primary;
    int retained = 0;  // of a primary one
    CUresult lost = CUDA_SUCCESS;  // the error that each later call returns, too
    Stream legacy{this, true, nullptr, nullptr};
    std::vector<std::shared_ptr<Work>> orphans;  // of streams that were destroyed before their work was done
};

// Things by their handles. A handle that has died stays unknown for ever.
template <class Handle, class T>
class Table {
  public:
    Table(const char* what, CUresult missing) : what_(what), missing_(missing) {}
    Handle add(std::unique_ptr<T> thing) {
        static size_t next = 0x1000;
        Handle handle = Handle(next += 0x10);
        things[handle] = std::move(thing);
        return handle;
    }
    T* find(Handle handle) const {
        auto at = things.find(handle);
        return at == things.end() ? nullptr : at->second.get();
    }
    T& at(Handle handle) const {
        T* found = find(handle);
        if (!found) fail(missing_, std::string(what_) + " is unknown: it was destroyed, or never made");
        return *found;
    }
    void remove(Handle handle) {
        at(handle);
        things.erase(handle);
    }
    std::map<Handle, std::unique_ptr<T>> things;

  private:
    const char* what_;
    CUresult missing_;
};

struct Driver {
    int devices = 2;
    size_t memory = size_t(1) << 30;  // of each device
    unsigned order = 0;               // see streams.cpp
    int process = 0;                  // that called cuInit
    float milliseconds = 0;           // between any two events; 0: nothing tells a time
    bool shares_host_memory = false;  // kernels reach it, as on a GPU with the host's page tables
    Table<CUcontext, Context> contexts{"the context", CUDA_ERROR_CONTEXT_IS_DESTROYED};
    Table<CUstream, Stream> streams{"the stream", CUDA_ERROR_INVALID_HANDLE};
    Table<CUevent, Event> events{"the event", CUDA_ERROR_INVALID_HANDLE};
    Table<CUmodule, Module> modules{"the module", CUDA_ERROR_INVALID_HANDLE};
    Table<CUfunction, Function> functions{"the function", CUDA_ERROR_INVALID_HANDLE};
    Table<CUgraph, std::shared_ptr<Graph>> graphs{"the graph", CUDA_ERROR_INVALID_VALUE};
    Table<CUgraphExec, std::shared_ptr<Graph>> executables{"the executable graph", CUDA_ERROR_INVALID_VALUE};
    std::map<CUdeviceptr, Allocation> allocations;  // by their first address
    std::map<const void*, std::unique_ptr<char[]>> of_host;  // memory of the host that kernels reach
};

extern Driver driver;

// --------------------------------------------------------------------------------------------------- calls.cpp
enum class Needs {
    NOTHING,
    INIT,  // cuInit, in this process
    WORK,  // and a current context that is not lost
};
enum class Kind { PLAIN, RELEASES };  // one that releases does so whatever it reports, as with errors of earlier work

CUresult called(const char* name, Needs needs, Kind kind, const std::function<void()>& body);

// Writes behind the name of the call that is being made what it is of, where calls are recorded.
void note(const std::string& what);
inline void note_bytes(size_t bytes) { note(std::to_string(bytes)); }

// A documented call: `body` does its work, or throws a Failure.
inline CUresult call(const char* name, Needs needs, const std::function<void()>& body) {
    return called(name, needs, Kind::PLAIN, body);
}
inline CUresult release(const char* name, Needs needs, const std::function<void()>& body) {
    return called(name, needs, Kind::RELEASES, body);
}

inline void require(bool holds, CUresult code, const char* why) {
    if (!holds) fail(code, why);
}

// Makes a context lost: a kernel has done what no later call can mend.
void lose(Context& context, CUresult code, const std::string& why);

// ------------------------------------------------------------------------------------------------- the other files
Context& current_context();
Context* current_context_or_null();
void forget_current();  // of the calling thread
void destroy_context(CUcontext handle);

Allocation* allocation_at(CUdeviceptr address);  // the one that holds the address, or null
char* host_range(CUdeviceptr address, size_t bytes);
void free_all(Context& context);
std::string broken_guard(int device);  // what lies beside an overwritten guard zone, or ""

Stream& stream_at(CUstream handle);
void queue(Stream& stream, const char* what, std::function<void()> run);
void finish(const std::shared_ptr<Work>& work);
void finish_all(Context& context);
void refuse_capture(Context& context, const char* what);
size_t pending_work();
void forget_streams(Context& context);
void forget_modules(Context& context);
