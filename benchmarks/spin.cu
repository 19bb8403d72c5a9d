// One thread that waits for itself `steps` times: the GPU is busy, and no memory is touched but one number.
//
// While it runs, the host queues what is to be timed, so that the events around that measure the GPU and not the host.
// Not a kernel of the package: gpu_report.py's.
#include "conv2d.cuh"

extern "C" __global__ void __launch_bounds__(32, 1) spin(float* value, Conv2dShape, int steps) {
    const float half = *value;
    float v = half;
    for (int step = 0; step < steps; ++step) v = fmaf(v, half, half);  // each multiply-add waits for the one before
    *value = v > 2 ? v : half;                                         // v tends to 1
}
