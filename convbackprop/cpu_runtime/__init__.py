"""The C++ that gives CUDA's device code its meaning on a CPU: headers for the kernels, and the runtime they link to."""
