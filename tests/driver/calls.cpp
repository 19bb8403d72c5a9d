// The way into the stand-in: every call takes the lock, is counted, may be made to fail, and meets the rules that all
// calls share. And the way for tests to ask: convbackprop_stand_in_..., which no driver exports.

#include <string.h>
#include <unistd.h>

#include <mutex>

#include "stand_in.h"

Driver driver;

namespace {

std::recursive_mutex lock;
std::map<std::string, long> calls;
std::string last_why, told, record;
bool records = false;

struct Fault {  // the calls of this name from the first-th on fail, `times` of them
    std::string name;
    long first = 0, times = 0;
    CUresult code = CUDA_SUCCESS;
} fault;
long faults = 0;  // that have struck

bool loses_context(CUresult code) {
    return int(code) >= 700 && int(code) < 720 && code != CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
}

bool strikes(const char* name) {
    const long count = ++calls[name];
    if (records) record += std::string(name) + "\n";
    if (fault.name != name || count < fault.first || count >= fault.first + fault.times) return false;
    ++faults;
    last_why = std::string(name) + " was made to fail";
    return true;
}

}  // namespace

void note(const std::string& what) {
    if (records) record.insert(record.size() - 1, " " + what);
}

void lose(Context& context, CUresult code, const std::string& why) {
    if (context.lost == CUDA_SUCCESS) {
        context.lost = code;
        last_why = why;
    }
}

CUresult called(const char* name, Needs needs, Kind kind, const std::function<void()>& body) {
    // In a forked child the lock may be held by a thread that is not there.
    if (needs != Needs::NOTHING && driver.process && driver.process != getpid()) return CUDA_ERROR_NOT_INITIALIZED;
    std::lock_guard<std::recursive_mutex> guard(lock);
    CUresult reported = CUDA_SUCCESS;
    try {
        if (strikes(name)) {
            reported = fault.code;
            if (loses_context(reported)) {
                Context* current = current_context_or_null();
                for (auto& [handle, context] : driver.contexts.things)
                    if (!current || context.get() == current) lose(*context, reported, last_why);
            }
            if (kind == Kind::PLAIN) return reported;
        }
        if (needs != Needs::NOTHING && !driver.process) fail(CUDA_ERROR_NOT_INITIALIZED, "cuInit has not been called");
        if (needs == Needs::WORK) {
            Context& context = current_context();
            if (context.lost != CUDA_SUCCESS) {
                if (kind == Kind::PLAIN) return context.lost;
                reported = context.lost;
            }
        }
        body();
        // What ran meanwhile may have gone wrong.
        if (needs == Needs::WORK && reported == CUDA_SUCCESS) {
            Context* context = current_context_or_null();
            if (context) reported = context->lost;
        }
    } catch (const Failure& failure) {
        last_why = std::string(name) + ": " + failure.why;
        return failure.code;
    }
    return reported;
}

STAND_IN CUresult cuGetErrorString(CUresult code, const char** text) {
#define TEXT(name, value, words)         \
    if (int(code) == value) {            \
        *text = words;                   \
        return CUDA_SUCCESS;             \
    }
    RESULT_CODES(TEXT)
#undef TEXT
    *text = "unrecognized error code";
    return CUDA_ERROR_INVALID_VALUE;
}

STAND_IN CUresult cuGetErrorName(CUresult code, const char** text) {
#define NAME(name, value, words)         \
    if (int(code) == value) {            \
        *text = #name;                   \
        return CUDA_SUCCESS;             \
    }
    RESULT_CODES(NAME)
#undef NAME
    *text = "CUDA_ERROR_UNKNOWN";
    return CUDA_ERROR_INVALID_VALUE;
}

// ------------------------------------------------------------------------------------------------- what tests ask
struct StandInCounts {
    long contexts, allocations, bytes, streams, events, modules, pending, faults;
};

// Forgets everything, and sets out anew with so many devices of so much memory.
STAND_IN void convbackprop_stand_in_reset(int devices, size_t memory) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    while (!driver.contexts.things.empty()) destroy_context(driver.contexts.things.begin()->first);
    forget_current();
    driver.graphs.things.clear();
    driver.executables.things.clear();
    driver.devices = devices;
    driver.memory = memory;
    driver.order = 0;
    driver.process = 0;
    driver.milliseconds = 0;
    driver.shares_host_memory = false;
    calls.clear();
    fault = Fault();
    faults = 0;
    last_why.clear();
    record.clear();
    records = false;
}

// Chooses when work runs: 0 as late as possible, else some of it at once, by a row of coins that this number starts.
STAND_IN void convbackprop_stand_in_order(unsigned order) { driver.order = order; }

// Lets the calls of this name from the first-th on fail with a code, so many of them. Counts calls from now on.
STAND_IN void convbackprop_stand_in_fail(const char* name, long first, long times, int code) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    calls.clear();
    fault = Fault{name, first, times, CUresult(code)};
    faults = 0;
}

// The calls so far, one name and number a line.
STAND_IN const char* convbackprop_stand_in_calls() {
    std::lock_guard<std::recursive_mutex> guard(lock);
    told.clear();
    for (const auto& [name, count] : calls) told += name + " " + std::to_string(count) + "\n";
    return told.c_str();
}

// Writes down each call from now on.
STAND_IN void convbackprop_stand_in_record() {
    std::lock_guard<std::recursive_mutex> guard(lock);
    record.clear();
    records = true;
}

// The calls that were written down, one a line in their order, with the kernel or the bytes that some are of.
STAND_IN const char* convbackprop_stand_in_recorded() {
    std::lock_guard<std::recursive_mutex> guard(lock);
    told = record;
    return told.c_str();
}

// Lets any two events be so far apart: nothing is measured. 0: the driver tells no times.
STAND_IN void convbackprop_stand_in_tell_times(float milliseconds) { driver.milliseconds = milliseconds; }

// Lets kernels reach the host's memory.
STAND_IN void convbackprop_stand_in_share_host_memory() { driver.shares_host_memory = true; }

// Why the last call failed that did.
STAND_IN const char* convbackprop_stand_in_why() {
    std::lock_guard<std::recursive_mutex> guard(lock);
    told = last_why;
    return told.c_str();
}

// What there is. A lost context takes along what was allocated in it.
STAND_IN void convbackprop_stand_in_count(StandInCounts* counts) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    *counts = {};
    counts->contexts = long(driver.contexts.things.size());
    for (const auto& [begin, allocation] : driver.allocations)
        if (allocation.context->lost == CUDA_SUCCESS) {
            ++counts->allocations;
            counts->bytes += long(allocation.bytes);
        }
    counts->streams = long(driver.streams.things.size());
    counts->events = long(driver.events.things.size());
    counts->modules = long(driver.modules.things.size());
    counts->pending = long(pending_work());
    counts->faults = faults;
}
