// float16 and bfloat16, as bits: the host's types take no part.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

extern "C" __global__ void from_half(const unsigned short* bits, float* out, unsigned short* back, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    out[i] = __half2float(__ushort_as_half(bits[i]));
    back[i] = __half_as_ushort(__float2half_rn(out[i]));
}

extern "C" __global__ void from_bfloat16(const unsigned short* bits, float* out, unsigned short* back, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    out[i] = __bfloat162float(__ushort_as_bfloat16(bits[i]));
    back[i] = __bfloat16_as_ushort(__float2bfloat16_rn(out[i]));
}

extern "C" __global__ void to_half(const float* in, unsigned short* bits, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) bits[i] = __half_as_ushort(__float2half_rn(in[i]));
}

extern "C" __global__ void to_bfloat16(const float* in, unsigned short* bits, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) bits[i] = __bfloat16_as_ushort(__float2bfloat16_rn(in[i]));
}

// Two at a time, there and back; `rounded` are the floats of both types.
extern "C" __global__ void pairs(const float2* in, float2* rounded) {
    rounded[0] = __half22float2(__float22half2_rn(in[0]));
    rounded[1] = __half22float2(__floats2half2_rn(in[0].x, in[0].y));
    rounded[2] = __bfloat1622float2(__float22bfloat162_rn(in[0]));
    rounded[3] = __bfloat1622float2(__floats2bfloat162_rn(in[0].x, in[0].y));
}
