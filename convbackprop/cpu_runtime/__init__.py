"""The C++ that gives CUDA device code its meaning on a CPU: headers for kernels, and their runtime."""
