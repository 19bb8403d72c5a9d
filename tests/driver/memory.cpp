// Device memory. Each allocation lies between two guard zones; all of it, guard zones included, is first filled with
// NaN (in every floating-point type), so that what is read but never written shows in the numbers.

#include <string.h>

#include <algorithm>

#include "stand_in.h"

namespace {

constexpr size_t GUARD = 1024, ALIGNMENT = 256;
constexpr unsigned char NAN_BYTE = 0xff;

// Device addresses grow and never come again. Those of two devices, too, are distinct, as with unified addressing.
CUdeviceptr next_address = 0x7ee000000000;

size_t used(int device) {
    size_t bytes = 0;
    for (const auto& [begin, allocation] : driver.allocations)
        if (allocation.context->device == device) bytes += allocation.bytes;
    return bytes;
}

// A copy that has been made when the call returns.
CUresult copy(const char* name, bool to_device, CUdeviceptr device, void* host, size_t bytes) {
    return call(name, Needs::WORK, [&] {
        Context& context = current_context();
        note_bytes(bytes);
        host_range(device, bytes);
        auto move = [=] {
            char* there = host_range(device, bytes);  // looked up when it is done: it may have been freed
            to_device ? memcpy(there, host, bytes) : memcpy(host, there, bytes);
        };
        refuse_capture(context, name);
        queue(context.legacy, name, move);
        finish(context.legacy.last);
    });
}

CUresult copy_within(const char* name, CUdeviceptr target, CUdeviceptr source, size_t bytes, CUstream stream) {
    return call(name, Needs::WORK, [&] {
        note_bytes(bytes);
        host_range(target, bytes), host_range(source, bytes);
        queue(stream_at(stream), name, [=] { memmove(host_range(target, bytes), host_range(source, bytes), bytes); });
    });
}

template <class T>
CUresult fill(const char* name, CUdeviceptr target, T value, size_t count, CUstream stream) {
    return call(name, Needs::WORK, [&] {
        require(target % sizeof(T) == 0, CUDA_ERROR_INVALID_VALUE, "the address is not aligned");
        note_bytes(count * sizeof(T));
        host_range(target, count * sizeof(T));
        queue(stream_at(stream), name, [=] {
            T* there = reinterpret_cast<T*>(host_range(target, count * sizeof(T)));
            std::fill_n(there, count, value);
        });
    });
}

}  // namespace

Allocation* allocation_at(CUdeviceptr address) {
    auto next = driver.allocations.upper_bound(address);
    if (next == driver.allocations.begin()) return nullptr;
    Allocation& found = std::prev(next)->second;
    return address < found.begin + found.bytes ? &found : nullptr;
}

char* host_range(CUdeviceptr address, size_t bytes) {
    if (bytes == 0) return nullptr;
    Allocation* allocation = allocation_at(address);
    require(allocation, CUDA_ERROR_INVALID_VALUE, "the address is no device memory: it was freed, or is the host's");
    require(address + bytes <= allocation->begin + allocation->bytes, CUDA_ERROR_INVALID_VALUE,
            "the range goes beyond the allocation");
    return allocation->host + (address - allocation->begin);
}

void free_all(Context& context) {
    for (auto at = driver.allocations.begin(); at != driver.allocations.end();)
        at = at->second.context == &context ? driver.allocations.erase(at) : std::next(at);
}

std::string broken_guard(int device) {
    for (auto& [begin, allocation] : driver.allocations) {
        if (allocation.context->device != device) continue;
        for (char* zone : {allocation.host - GUARD, allocation.host + allocation.bytes})
            for (size_t i = 0; i < GUARD; ++i)
                if ((unsigned char)zone[i] != NAN_BYTE) {
                    memset(zone, NAN_BYTE, GUARD);
                    char text[100];
                    snprintf(text, sizeof text, "%td bytes from an array of %zu bytes", zone + i - allocation.host,
                             allocation.bytes);
                    return text;
                }
    }
    return "";
}

// --------------------------------------------------------------------------------------------------- allocations
STAND_IN CUresult cuMemAlloc_v2(CUdeviceptr* address, size_t bytes) {
    return call("cuMemAlloc", Needs::WORK, [&] {
        Context& context = current_context();
        note_bytes(bytes);
        refuse_capture(context, "an allocation");
        require(bytes > 0, CUDA_ERROR_INVALID_VALUE, "no bytes are asked for");
        require(bytes <= driver.memory - used(context.device), CUDA_ERROR_OUT_OF_MEMORY, "the device is full");
        Allocation allocation{&context, next_address, bytes, nullptr, nullptr};
        const size_t total = 2 * GUARD + bytes + ALIGNMENT;
        allocation.memory.reset(new char[total]);
        memset(allocation.memory.get(), NAN_BYTE, total);
        // As aligned on the host as the device address is, for a kernel's vector loads.
        const size_t start = size_t(allocation.memory.get() + GUARD);
        allocation.host = allocation.memory.get() + GUARD + (ALIGNMENT - start % ALIGNMENT) % ALIGNMENT;
        *address = next_address;
        next_address += (bytes + 2 * GUARD + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        driver.allocations.emplace(*address, std::move(allocation));
    });
}

STAND_IN CUresult cuMemFree_v2(CUdeviceptr address) {
    return release("cuMemFree", Needs::WORK, [&] {
        auto found = driver.allocations.find(address);
        require(found != driver.allocations.end(), CUDA_ERROR_INVALID_VALUE,
                "the address is not that of an allocation: it was freed before, or never allocated");
        finish_all(*found->second.context);  // as the driver does
        driver.allocations.erase(found);
    });
}

STAND_IN CUresult cuMemHostAlloc(void** address, size_t bytes, unsigned flags) {
    return call("cuMemHostAlloc", Needs::WORK, [&] {
        require(flags == CU_MEMHOSTALLOC_DEVICEMAP, CUDA_ERROR_NOT_SUPPORTED, "the stand-in has no cuMemHostAlloc but of mapped memory");
        std::unique_ptr<char[]> memory(new char[bytes]);
        *address = memory.get();
        driver.of_host[*address] = std::move(memory);
    });
}

STAND_IN CUresult cuMemFreeHost(void* address) {
    return release("cuMemFreeHost", Needs::WORK, [&] {
        require(driver.of_host.erase(address), CUDA_ERROR_INVALID_VALUE, "no such memory of the host");
    });
}

STAND_IN CUresult cuMemGetInfo_v2(size_t* free, size_t* total) {
    return call("cuMemGetInfo", Needs::WORK, [&] {
        *total = driver.memory;
        *free = driver.memory - used(current_context().device);
    });
}

STAND_IN CUresult cuMemGetAddressRange_v2(CUdeviceptr* begin, size_t* bytes, CUdeviceptr address) {
    return call("cuMemGetAddressRange", Needs::WORK, [&] {
        Allocation* allocation = allocation_at(address);
        require(allocation, CUDA_ERROR_NOT_FOUND, "the address is no device memory");
        if (begin) *begin = allocation->begin;
        if (bytes) *bytes = allocation->bytes;
    });
}

STAND_IN CUresult cuPointerGetAttribute(void* value, CUpointer_attribute attribute, CUdeviceptr address) {
    return call("cuPointerGetAttribute", Needs::INIT, [&] {
        Allocation* allocation = allocation_at(address);
        require(allocation, CUDA_ERROR_INVALID_VALUE, "the address is no device memory");
        const int which = int(attribute);
        if (which == CU_POINTER_ATTRIBUTE_CONTEXT) *static_cast<CUcontext*>(value) = allocation->context->handle;
        else if (which == CU_POINTER_ATTRIBUTE_MEMORY_TYPE) *static_cast<int*>(value) = CU_MEMORYTYPE_DEVICE;
        else if (which == CU_POINTER_ATTRIBUTE_DEVICE_POINTER) *static_cast<CUdeviceptr*>(value) = address;
        else if (which == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL) *static_cast<int*>(value) = allocation->context->device;
        else fail(CUDA_ERROR_INVALID_VALUE, "the stand-in does not know this attribute");
    });
}

// --------------------------------------------------------------------------------------------- copies and filling
STAND_IN CUresult cuMemcpyHtoD_v2(CUdeviceptr target, const void* source, size_t bytes) {
    return copy("cuMemcpyHtoD", true, target, const_cast<void*>(source), bytes);
}

STAND_IN CUresult cuMemcpyDtoH_v2(void* target, CUdeviceptr source, size_t bytes) {
    return copy("cuMemcpyDtoH", false, source, target, bytes);
}

STAND_IN CUresult cuMemcpyDtoD_v2(CUdeviceptr target, CUdeviceptr source, size_t bytes) {
    return copy_within("cuMemcpyDtoD", target, source, bytes, nullptr);
}

STAND_IN CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr target, CUdeviceptr source, size_t bytes, CUstream stream) {
    return copy_within("cuMemcpyDtoDAsync", target, source, bytes, stream);
}

STAND_IN CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr target, const void* source, size_t bytes, CUstream stream) {
    return call("cuMemcpyHtoDAsync", Needs::WORK, [&] {
        note_bytes(bytes);
        host_range(target, bytes);
        queue(stream_at(stream), "cuMemcpyHtoDAsync", [=] { memcpy(host_range(target, bytes), source, bytes); });
    });
}

STAND_IN CUresult cuMemcpyDtoHAsync_v2(void* target, CUdeviceptr source, size_t bytes, CUstream stream) {
    return call("cuMemcpyDtoHAsync", Needs::WORK, [&] {
        note_bytes(bytes);
        host_range(source, bytes);
        queue(stream_at(stream), "cuMemcpyDtoHAsync", [=] { memcpy(target, host_range(source, bytes), bytes); });
    });
}

STAND_IN CUresult cuMemsetD8_v2(CUdeviceptr target, unsigned char value, size_t count) {
    return fill("cuMemsetD8", target, value, count, nullptr);
}
STAND_IN CUresult cuMemsetD16_v2(CUdeviceptr target, unsigned short value, size_t count) {
    return fill("cuMemsetD16", target, value, count, nullptr);
}
STAND_IN CUresult cuMemsetD32_v2(CUdeviceptr target, unsigned value, size_t count) {
    return fill("cuMemsetD32", target, value, count, nullptr);
}
STAND_IN CUresult cuMemsetD8Async(CUdeviceptr target, unsigned char value, size_t count, CUstream stream) {
    return fill("cuMemsetD8Async", target, value, count, stream);
}
STAND_IN CUresult cuMemsetD16Async(CUdeviceptr target, unsigned short value, size_t count, CUstream stream) {
    return fill("cuMemsetD16Async", target, value, count, stream);
}
STAND_IN CUresult cuMemsetD32Async(CUdeviceptr target, unsigned value, size_t count, CUstream stream) {
    return fill("cuMemsetD32Async", target, value, count, stream);
}
