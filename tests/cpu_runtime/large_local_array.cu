// A thread with more local memory than the stack of a fiber can hold. The array is at home in the function that
// the compiler's message must point into.

extern "C" __global__ void large(const int* in, int* out, int n) {
    int local[20000];  // 80 kB
    for (int i = 0; i < n; ++i) local[in[i]] = i;
    for (int i = 0; i < n; ++i) out[i] = local[i];
}
