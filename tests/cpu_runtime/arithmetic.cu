// Vector types, min and max in their many overloads, and the like.

// Sizes and alignments, in turn.
extern "C" __global__ void layout(int* out) {
    int i = 0;
#define SHOW(T) out[i++] = int(sizeof(T)), out[i++] = int(alignof(T))
    SHOW(float2);
    SHOW(float3);
    SHOW(float4);
    SHOW(double2);
    SHOW(double4);
    SHOW(int4);
    SHOW(uchar4);
    SHOW(ushort2);
    SHOW(longlong2);
#undef SHOW
}

// Rotates the four floats of each vector by one: through float4, then as float2 and through __ldg.
extern "C" __global__ void rotate(const float4* in, float4* out, float2* halves) {
    const float4 v = __ldg(in + threadIdx.x);
    out[threadIdx.x] = make_float4(v.y, v.z, v.w, v.x);
    const float2* pairs = reinterpret_cast<const float2*>(in);
    const float2 low = __ldg(pairs + 2 * threadIdx.x), high = __ldg(pairs + 2 * threadIdx.x + 1);
    halves[2 * threadIdx.x] = make_float2(low.y, high.x);
    halves[2 * threadIdx.x + 1] = make_float2(high.y, low.x);
}

// min and max of pairs of floats, one in four of which is NaN.
extern "C" __global__ void extremes(const float* a, const float* b, float* floats, double* doubles, int n) {
    const int i = threadIdx.x;
    if (i >= n) return;
    floats[i] = min(a[i], b[i]);
    floats[n + i] = max(a[i], b[i]);
    floats[2 * n + i] = fminf(a[i], b[i]);
    floats[3 * n + i] = fmaxf(a[i], b[i]);
    doubles[i] = min(double(a[i]), double(b[i]));
    doubles[n + i] = max(double(a[i]), b[i]);
    doubles[2 * n + i] = min(a[i], double(b[i]));
}

// Where the signs of two integer types differ, both are taken as unsigned.
extern "C" __global__ void integer_extremes(const int* minus_one, long long* out) {
    const int i = *minus_one;
    const unsigned u = 3;
    const long long ll = *minus_one;
    const unsigned long long ull = 6;
    out[0] = min(i, u);
    out[1] = max(u, i);
    out[2] = min(i, 2);
    out[3] = max(i, 2);
    out[4] = min(ll, ull);
    out[5] = max(ll, 2ll);
}

// a*b + c with one rounding, and with two.
extern "C" __global__ void multiply_add(const float* a, const float* b, const float* c, float* fused,
                                        float* separate) {
    const int i = threadIdx.x;
    fused[i] = fmaf(a[i], b[i], c[i]);
    separate[i] = __fadd_rn(__fmul_rn(a[i], b[i]), c[i]);
}
