"""The CUDA kernels of convbackprop, as package data."""
