// Devices, contexts, and which context is current in which thread.

#include <string.h>
#include <unistd.h>

#include "stand_in.h"

namespace {

// Handles and not contexts: one that is destroyed stays where it is, and is found out when it is used.
thread_local std::vector<CUcontext> stack;

void check_device(int device) {
    require(device >= 0 && device < driver.devices, CUDA_ERROR_INVALID_DEVICE, "there is no such device");
}

Context* primary_of(int device) {
    for (auto& [handle, context] : driver.contexts.things)
        if (context->primary && context->device == device) return context.get();
    return nullptr;
}

Context& new_context(int device, bool primary) {
    CUcontext handle = driver.contexts.add(std::make_unique<Context>());
    Context& context = driver.contexts.at(handle);
    context.handle = handle;
    context.device = device;
    context.primary = primary;
    return context;
}

CUresult create(CUcontext* made, CUdevice device) {
    return call("cuCtxCreate", Needs::INIT, [&] {
        check_device(device);
        *made = new_context(device, false).handle;
        stack.push_back(*made);
    });
}

}  // namespace

Context* current_context_or_null() { return stack.empty() ? nullptr : driver.contexts.find(stack.back()); }

Context& current_context() {
    require(!stack.empty(), CUDA_ERROR_INVALID_CONTEXT, "this thread has no current context");
    return driver.contexts.at(stack.back());
}

void forget_current() { stack.clear(); }

void destroy_context(CUcontext handle) {
    Context& context = driver.contexts.at(handle);
    forget_streams(context);
    forget_modules(context);
    free_all(context);
    driver.contexts.remove(handle);
}

// ------------------------------------------------------------------------------------------------------- devices
STAND_IN CUresult cuInit(unsigned flags) {
    return call("cuInit", Needs::NOTHING, [&] {
        require(flags == 0, CUDA_ERROR_INVALID_VALUE, "the flags should be 0");
        require(driver.devices > 0, CUDA_ERROR_NO_DEVICE, "no devices");
        if (!driver.process) driver.process = getpid();
    });
}

STAND_IN CUresult cuDriverGetVersion(int* version) {
    return call("cuDriverGetVersion", Needs::NOTHING, [&] { *version = 13000; });
}

STAND_IN CUresult cuDeviceGetCount(int* count) {
    return call("cuDeviceGetCount", Needs::INIT, [&] { *count = driver.devices; });
}

STAND_IN CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    return call("cuDeviceGet", Needs::INIT, [&] {
        check_device(ordinal);
        *device = ordinal;
    });
}

STAND_IN CUresult cuDeviceGetName(char* name, int bytes, CUdevice device) {
    return call("cuDeviceGetName", Needs::INIT, [&] {
        check_device(device);
        strncpy(name, "stand-in (no GPU)", size_t(bytes));
    });
}

STAND_IN CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) {
    return call("cuDeviceTotalMem", Needs::INIT, [&] {
        check_device(device);
        *bytes = driver.memory;
    });
}

STAND_IN CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
    // Those of an H100, as far as anyone has asked.
    static const std::map<int, int> values = {
        {CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 1024},
        {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X, 1024},
        {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y, 1024},
        {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z, 64},
        {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X, 0x7fffffff},
        {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y, 65535},
        {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z, 65535},
        {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, 48 * 1024},
        {CU_DEVICE_ATTRIBUTE_WARP_SIZE, 32},
        {CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK, 65536},
        {CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 1},
        {CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, 1 << 16},
        {CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, 1},
        {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 9},
        {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, 0},
        {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 227 * 1024},
    };
    return call("cuDeviceGetAttribute", Needs::INIT, [&] {
        check_device(device);
        auto found = values.find(int(attribute));
        require(found != values.end(), CUDA_ERROR_INVALID_VALUE, "the stand-in does not know this attribute");
        *value = found->second;
    });
}

STAND_IN CUresult cuDeviceComputeCapability(int* major, int* minor, CUdevice device) {
    return call("cuDeviceComputeCapability", Needs::INIT, [&] {
        check_device(device);
        *major = 9;
        *minor = 0;
    });
}

// ------------------------------------------------------------------------------------------------------ contexts
STAND_IN CUresult cuDevicePrimaryCtxRetain(CUcontext* made, CUdevice device) {
    return call("cuDevicePrimaryCtxRetain", Needs::INIT, [&] {
        check_device(device);
        Context* context = primary_of(device);
        if (!context) context = &new_context(device, true);
        ++context->retained;
        *made = context->handle;
    });
}

STAND_IN CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    return release("cuDevicePrimaryCtxRelease", Needs::INIT, [&] {
        check_device(device);
        Context* context = primary_of(device);
        require(context, CUDA_ERROR_INVALID_CONTEXT, "the primary context is not retained");
        if (--context->retained == 0) destroy_context(context->handle);
    });
}

STAND_IN CUresult cuCtxCreate_v2(CUcontext* made, unsigned, CUdevice device) { return create(made, device); }

STAND_IN CUresult cuCtxCreate_v4(CUcontext* made, CUctxCreateParams*, unsigned, CUdevice device) {
    return create(made, device);
}

STAND_IN CUresult cuCtxDestroy_v2(CUcontext handle) {
    return release("cuCtxDestroy", Needs::INIT, [&] {
        require(!driver.contexts.at(handle).primary, CUDA_ERROR_INVALID_CONTEXT, "a primary context is released");
        if (!stack.empty() && stack.back() == handle) stack.pop_back();
        destroy_context(handle);
    });
}

STAND_IN CUresult cuCtxDetach(CUcontext handle) { return cuCtxDestroy_v2(handle); }

STAND_IN CUresult cuCtxPushCurrent_v2(CUcontext handle) {
    return call("cuCtxPushCurrent", Needs::INIT, [&] {
        driver.contexts.at(handle);
        stack.push_back(handle);
    });
}

STAND_IN CUresult cuCtxPopCurrent_v2(CUcontext* popped) {
    return call("cuCtxPopCurrent", Needs::INIT, [&] {
        require(!stack.empty(), CUDA_ERROR_INVALID_CONTEXT, "this thread has no context to pop");
        if (popped) *popped = stack.back();
        stack.pop_back();
    });
}

STAND_IN CUresult cuCtxGetCurrent(CUcontext* current) {
    return call("cuCtxGetCurrent", Needs::INIT, [&] { *current = stack.empty() ? nullptr : stack.back(); });
}

STAND_IN CUresult cuCtxGetDevice(CUdevice* device) {
    return call("cuCtxGetDevice", Needs::INIT, [&] { *device = current_context().device; });
}

STAND_IN CUresult cuCtxGetApiVersion(CUcontext handle, unsigned* version) {
    return call("cuCtxGetApiVersion", Needs::INIT, [&] {
        driver.contexts.at(handle);
        *version = 3020;
    });
}

STAND_IN CUresult cuCtxSynchronize() {
    return call("cuCtxSynchronize", Needs::WORK, [&] {
        refuse_capture(current_context(), "waiting for a context");
        finish_all(current_context());
    });
}
