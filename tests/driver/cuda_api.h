// The part of the CUDA driver's documented interface that the stand-in implements, in cuda.h's own names, so that it
// can be built where there is no toolkit. Where there is one, tests/driver/test_stand_in.py compiles the same files with
// REAL_CUDA_H against the real header: the compiler then compares each signature, and each number below.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef REAL_CUDA_H
#include <cuda.h>
#undef cuEventElapsedTime  // the older name is there too, for a PyCUDA that was built with an older cuda.h
#define CONSTANT(name, value) static_assert(int(name) == value, #name " is another number in cuda.h");
#else
struct CUctx_st;
struct CUmod_st;
struct CUfunc_st;
struct CUstream_st;
struct CUevent_st;
struct CUgraph_st;
struct CUgraphExec_st;
struct CUctxCreateParams_st;
typedef CUctx_st* CUcontext;
typedef CUmod_st* CUmodule;
typedef CUfunc_st* CUfunction;
typedef CUstream_st* CUstream;
typedef CUevent_st* CUevent;
typedef CUgraph_st* CUgraph;
typedef CUgraphExec_st* CUgraphExec;
typedef CUctxCreateParams_st CUctxCreateParams;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
enum CUresult : int;
enum CUdevice_attribute : int;
enum CUfunction_attribute : int;
enum CUpointer_attribute : int;
enum CUjit_option : int;
enum CUtensorMapDataType : int;
enum CUtensorMapInterleave : int;
enum CUtensorMapSwizzle : int;
enum CUtensorMapL2promotion : int;
enum CUtensorMapFloatOOBfill : int;
typedef uint32_t cuuint32_t;
typedef uint64_t cuuint64_t;
struct alignas(64) CUtensorMap_st {
    cuuint64_t opaque[16];
};
typedef CUtensorMap_st CUtensorMap;
enum CUstreamCaptureMode : int;
enum CUstreamCaptureStatus : int;
// A macro names no type, so that these stand in for the enumerators of all the types above.
#define CONSTANT(name, value) constexpr Number name{value};
struct Number {
    int value;
    template <class T>
    constexpr operator T() const { return T(value); }
};
template <class T>
constexpr bool operator==(T a, Number b) { return int(a) == b.value; }
template <class T>
constexpr bool operator!=(T a, Number b) { return int(a) != b.value; }
#endif

// Result codes, with what cuGetErrorString says of them.
#define RESULT_CODES(CODE)                                                                                       \
    CODE(CUDA_SUCCESS, 0, "no error")                                                                            \
    CODE(CUDA_ERROR_INVALID_VALUE, 1, "invalid argument")                                                        \
    CODE(CUDA_ERROR_OUT_OF_MEMORY, 2, "out of memory")                                                           \
    CODE(CUDA_ERROR_NOT_INITIALIZED, 3, "initialization error")                                                  \
    CODE(CUDA_ERROR_NO_DEVICE, 100, "no CUDA-capable device is detected")                                        \
    CODE(CUDA_ERROR_INVALID_DEVICE, 101, "invalid device ordinal")                                               \
    CODE(CUDA_ERROR_INVALID_IMAGE, 200, "device kernel image is invalid")                                        \
    CODE(CUDA_ERROR_INVALID_CONTEXT, 201, "invalid device context")                                              \
    CODE(CUDA_ERROR_NO_BINARY_FOR_GPU, 209, "no kernel image is available for execution on the device")          \
    CODE(CUDA_ERROR_INVALID_HANDLE, 400, "invalid resource handle")                                              \
    CODE(CUDA_ERROR_NOT_FOUND, 500, "named symbol not found")                                                    \
    CODE(CUDA_ERROR_NOT_READY, 600, "device not ready")                                                          \
    CODE(CUDA_ERROR_ILLEGAL_ADDRESS, 700, "an illegal memory access was encountered")                            \
    CODE(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, 701, "too many resources requested for launch")                     \
    CODE(CUDA_ERROR_CONTEXT_IS_DESTROYED, 709, "context is destroyed")                                           \
    CODE(CUDA_ERROR_ILLEGAL_INSTRUCTION, 715, "an illegal instruction was encountered")                          \
    CODE(CUDA_ERROR_MISALIGNED_ADDRESS, 716, "misaligned address")                                               \
    CODE(CUDA_ERROR_LAUNCH_FAILED, 719, "unspecified launch failure")                                            \
    CODE(CUDA_ERROR_NOT_SUPPORTED, 801, "operation not supported")                                               \
    CODE(CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, 803,                                                                 \
         "system has unsupported display driver / cuda driver combination")                                      \
    CODE(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, 900, "operation not permitted when stream is capturing")         \
    CODE(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, 901,                                                             \
         "operation failed due to a previous error during capture")                                              \
    CODE(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, 904,                                                                \
         "capturing stream has unjoined work")                                                                   \
    CODE(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, 906,                                                                \
         "operation would make the legacy stream depend on a capturing blocking stream")

#define AS_CONSTANT(name, value, text) CONSTANT(name, value)
RESULT_CODES(AS_CONSTANT)
#undef AS_CONSTANT

CONSTANT(CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 1)
CONSTANT(CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X, 2)
CONSTANT(CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y, 3)
CONSTANT(CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z, 4)
CONSTANT(CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X, 5)
CONSTANT(CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y, 6)
CONSTANT(CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z, 7)
CONSTANT(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, 8)
CONSTANT(CU_DEVICE_ATTRIBUTE_WARP_SIZE, 10)
CONSTANT(CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK, 12)
CONSTANT(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 16)
CONSTANT(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, 38)
CONSTANT(CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, 41)
CONSTANT(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 75)
CONSTANT(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, 76)
CONSTANT(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 97)

CONSTANT(CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 0)
CONSTANT(CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, 1)
CONSTANT(CU_FUNC_ATTRIBUTE_NUM_REGS, 4)
CONSTANT(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 8)

CONSTANT(CU_POINTER_ATTRIBUTE_CONTEXT, 1)
CONSTANT(CU_POINTER_ATTRIBUTE_MEMORY_TYPE, 2)
CONSTANT(CU_POINTER_ATTRIBUTE_DEVICE_POINTER, 3)
CONSTANT(CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, 9)
CONSTANT(CU_MEMORYTYPE_DEVICE, 2)

CONSTANT(CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 6)
CONSTANT(CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 7)
CONSTANT(CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 9)
CONSTANT(CU_TENSOR_MAP_INTERLEAVE_NONE, 0)
CONSTANT(CU_TENSOR_MAP_SWIZZLE_128B, 3)
CONSTANT(CU_TENSOR_MAP_L2_PROMOTION_L2_128B, 2)
CONSTANT(CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE, 0)

CONSTANT(CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES, 4)
CONSTANT(CU_JIT_ERROR_LOG_BUFFER, 5)
CONSTANT(CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES, 6)

CONSTANT(CU_STREAM_DEFAULT, 0)
CONSTANT(CU_STREAM_NON_BLOCKING, 1)
CONSTANT(CU_STREAM_CAPTURE_STATUS_NONE, 0)
CONSTANT(CU_STREAM_CAPTURE_STATUS_ACTIVE, 1)
CONSTANT(CU_STREAM_CAPTURE_STATUS_INVALIDATED, 2)

#ifndef REAL_CUDA_H
#define CU_MEMHOSTALLOC_DEVICEMAP 0x02
// Distinct addresses that are no handles of the driver's.
#define CU_LAUNCH_PARAM_END ((void*)0)
#define CU_LAUNCH_PARAM_BUFFER_POINTER ((void*)1)
#define CU_LAUNCH_PARAM_BUFFER_SIZE ((void*)2)
#define CU_STREAM_LEGACY ((CUstream)0x1)
#define CU_STREAM_PER_THREAD ((CUstream)0x2)
#endif
