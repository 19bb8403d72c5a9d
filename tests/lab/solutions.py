"""A solution of each exercise: what is replaced in its file, as a student would."""

from __future__ import annotations

from convbackprop.lab.exercises import EXERCISES

REPLACEMENTS = {
    1: [("                sum += to_acc(x", "                if (shape.row_inside(h) && shape.col_inside(w_))\n"
                                            "                    sum += to_acc(x")],
    2: [("shape.R - 1 - r;", "r;"), ("shape.S - 1 - s;", "s;")],
    3: [("__shared__ Acc total;\n    if (threadIdx.x == 0) total = 0;\n    __syncthreads();  // total is 0\n"
         "    total += sum.value();", "__shared__ Acc shares[THREADS];\n    shares[threadIdx.x] = sum.value();"),
        ("    if (threadIdx.x == 0) {\n", "    if (threadIdx.x == 0) {\n        LongSum total;\n"
         "        for (int i = 0; i < THREADS; ++i) total.add(shares[i]);\n"),
        ("from_acc(total);\n        else", "from_acc(total.value());\n        else"),
        ("db[k] = from_acc(total)", "db[k] = from_acc(total.value())")],
    4: [("        const Acc sigmoid = 1 / (1 + exp(-y));\n        return dy * sigmoid * (1 - sigmoid);",
         "        return dy * y * (1 - y);"),
        ("(1 - tanh(y)) * (1 + tanh(y))", "(1 - y) * (1 + y)")],
    5: [("    const int row = threadIdx.y;\n    const int col = threadIdx.x;\n    if (row < rows && col < cols) {\n",
         "    for (int i = threadIdx.y * TILE_Q + threadIdx.x; i < rows * cols; i += TILE_P * TILE_Q) {\n"
         "        const int row = i / cols;\n        const int col = i % cols;\n")],
    6: [("grid=[ceil_div(P, DOWN), ceil_div(Q, ACROSS), N] block=[DOWN, ACROSS]",
         "grid=[ceil_div(Q, DOWN), ceil_div(P, ACROSS), N] block=[DOWN, ACROSS]"),
        ("p = blockIdx.x * DOWN + threadIdx.x", "q = blockIdx.x * DOWN + threadIdx.x"),
        ("q = blockIdx.y * ACROSS + threadIdx.y", "p = blockIdx.y * ACROSS + threadIdx.y")],
    7: [("//@ launch input_grad(dy, saved, w, dx) grid=[tiles, N] block=[32, WARPS] shared=[shared_bytes]\n", ""),
        ("//@ launch kernel_grad(dy, saved, x, scratch)", "//@ launch backward(dy, saved, x, w, dx, scratch)"),
        ('extern "C" __global__ void __launch_bounds__(32 * WARPS)\n'
         "input_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ w,\n"
         "           Scalar* __restrict__ dx, Conv2dShape shape) {\n    const Tile tile = my_tile(shape);\n"
         "    load_g_tile(dy, saved, shape, tile);\n\n",
         "__device__ void input_grad(const Scalar* w, Scalar* dx, const Conv2dShape& shape, const Tile& tile) {\n"),
        ("kernel_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ x,\n"
         "            Acc*", "backward(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* "
         "__restrict__ x,\n         const Scalar* __restrict__ w, Scalar* __restrict__ dx, Acc*"),
        ("    // A lane keeps", "    input_grad(w, dx, shape, tile);\n\n    // A lane keeps")],
    8: [("//@ constant THREADS = 128\n", "//@ constant THREADS = 128\n//@ constant FILTERS = 8\n"
         "//@ constant COLS = 4\n"),
        ("ceil_div(N * K * P * Q, THREADS)", "ceil_div(N * ceil_div(K, FILTERS) * P * ceil_div(Q, COLS), THREADS)"),
        ("    if (i >= shape.y_size()) return;\n    const int q = i % shape.Q;\n"
         "    const int p = i / shape.Q % shape.P;\n    const int k = i / shape.Q / shape.P % shape.K;\n"
         "    const int n = i / shape.Q / shape.P / shape.K;\n",
         "    const int strips = (shape.Q + COLS - 1) / COLS, parts = (shape.K + FILTERS - 1) / FILTERS;\n"
         "    if (i >= Index(shape.N) * parts * shape.P * strips) return;\n"
         "    const int q = i % strips * COLS;\n    const int p = i / strips % shape.P;\n"
         "    const int k = i / strips / shape.P % parts * FILTERS;\n"
         "    const int n = i / strips / shape.P / parts;\n"),
        ("    Acc sum = b ? to_acc(b[k]) : Acc(0);\n", """\
    Acc sums[FILTERS][COLS];
#pragma unroll
    for (int f = 0; f < FILTERS; ++f)
#pragma unroll
        for (int j = 0; j < COLS; ++j) sums[f][j] = b && k + f < shape.K ? to_acc(b[k + f]) : Acc(0);
"""),
        ("""\
                const int w_ = shape.input_col(q, s);
                if (shape.row_inside(h) && shape.col_inside(w_))
                    sum += to_acc(x[shape.x_at(n, c, h, w_)]) * to_acc(w[shape.w_at(k, c, r, s)]);
            }
    y[i] = from_acc(activate(sum));
""", """\
                if (!shape.row_inside(h)) continue;
                Acc pixels[COLS], taps[FILTERS];
#pragma unroll
                for (int j = 0; j < COLS; ++j) {
                    const int w_ = shape.input_col(q + j, s);
                    pixels[j] = shape.col_inside(w_) ? to_acc(x[shape.x_at(n, c, h, w_)]) : Acc(0);
                }
#pragma unroll
                for (int f = 0; f < FILTERS; ++f)
                    taps[f] = k + f < shape.K ? to_acc(w[shape.w_at(k + f, c, r, s)]) : Acc(0);
#pragma unroll
                for (int f = 0; f < FILTERS; ++f)
#pragma unroll
                    for (int j = 0; j < COLS; ++j) sums[f][j] += taps[f] * pixels[j];
            }
#pragma unroll
    for (int f = 0; f < FILTERS; ++f)
#pragma unroll
        for (int j = 0; j < COLS; ++j)
            if (k + f < shape.K && q + j < shape.Q)
                y[shape.y_at(n, k + f, p, q + j)] = from_acc(activate(sums[f][j]));
""")],
}  # fmt: skip


def solved(number: int) -> str:
    """Return an exercise's file as it is when it is solved."""
    text = EXERCISES[number - 1].text()
    for old, new in REPLACEMENTS[number]:
        assert text.count(old) == 1, f"exercise {number} has {old!r} {text.count(old)} times"
        text = text.replace(old, new)
    return text
