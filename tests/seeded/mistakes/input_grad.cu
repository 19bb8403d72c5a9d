// The input gradient with one mistake of many: the number `mistake` says which, and the end of a line what it is.
//@ pass input_grad
//@ constant THREADS = 128
//@ launch input_grad(dy, saved, w, dx; 0) grid=[ceil_div(N * C * H * W, THREADS)] block=[THREADS]
#include "activation.cuh"
#include "conv2d.cuh"

constexpr int TILE_H = 16, TILE_W = 16;

__device__ Acc my_times_derivative(Acc dy, Acc y, int mistake) {
    if (mistake == 1) return dy;                                     //! phi_grad_missing
    if (mistake == 2) return -times_derivative(dy, y);               //! phi_grad_sign
    if (mistake == 3) return times_derivative(dy, dy);               //! phi_grad_of_dy
    if (mistake == 4) return dy * y;                                 //! y_in_place_of_phi_grad
    if (mistake == 5) return times_derivative(times_derivative(dy, y), y);  //! phi_grad_twice
    if (mistake == 6) return times_derivative(dy, activate(y));      //! phi_grad_of_pre_activation
    if (mistake == 7 && ACTIVATION == RELU) return y < 0 ? Acc(0) : dy;  //! phi_grad_closed_only_below_zero
    if (mistake == 8 && ACTIVATION == LOGISTIC) return dy * (1 - y);  //! phi_grad_factor_missing
    if (mistake == 9) return dy;                                     //! phi_grad_after_sum
    return times_derivative(dy, y);
}

extern "C" __global__ void input_grad(const Scalar* dy, const Saved* saved, const Scalar* w, Scalar* dx,
                                      Conv2dShape shape, int mistake) {
    const Index i = Index(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= shape.x_size()) return;
    const int w_ = i % shape.W, h = i / shape.W % shape.H, c = i / shape.W / shape.H % shape.C;
    const int n = i / shape.W / shape.H / shape.C;
    int pad_top = shape.pad_top, pad_left = shape.pad_left;
    int stride_h = shape.stride_h, stride_w = shape.stride_w;
    int dilation_h = shape.dilation_h, dilation_w = shape.dilation_w;
    const int group = c / shape.group_channels(), group_c = c % shape.group_channels();

    if (mistake == 10) pad_left = shape.S - 1 - pad_left;            //! padding_sides_swapped
    if (mistake == 11) ++pad_top, ++pad_left;                        //! padding_off_by_one
    if (mistake == 12) stride_h = stride_w = 1;                      //! stride_ignored
    if (mistake == 13) dilation_h = dilation_w = 1;                  //! dilation_ignored
    if (mistake == 14) stride_w = shape.dilation_w, dilation_w = shape.stride_w;  //! stride_and_dilation_swapped
    if (mistake == 15) stride_h = shape.stride_w, stride_w = shape.stride_h;  //! axes_swapped

    Acc sum = 0;
    for (int j = 0; j < shape.group_filters(); ++j) {
        const int k = group * shape.group_filters() + j;
        if (mistake == 16) sum = 0;                                  //! channels_not_summed
        for (int r = 0; r < shape.R; ++r)
            for (int s = 0; s < shape.S; ++s) {
                int p_steps = h + pad_top - r * dilation_h, q_steps = w_ + pad_left - s * dilation_w;
                if (mistake == 17) p_steps = h - pad_top + r, q_steps = w_ - pad_left + s;  //! filter_not_turned
                if (p_steps < 0 || q_steps < 0) {
                    if (mistake != 18) continue;                     //! border_clamped
                    p_steps = max(p_steps, 0), q_steps = max(q_steps, 0);
                }
                const bool whole = p_steps % stride_h == 0 && q_steps % stride_w == 0;
                if (!whole && mistake != 19) continue;               //! stride_remainder_ignored
                int p = p_steps / stride_h, q = q_steps / stride_w;
                if (mistake == 18) p = min(p, shape.P - 1), q = min(q, shape.Q - 1);
                if (p >= shape.P || q >= shape.Q) continue;
                Index tap = shape.w_at(k, group_c, r, s);
                if (mistake == 20) tap = shape.w_at(k, group_c, shape.R - 1 - r, shape.S - 1 - s);  //! filter_not_turned
                if (mistake == 21) tap = shape.w_at(k, group_c, shape.R - 1 - r, s);  //! filter_mirrored
                if (mistake == 22) tap = shape.w_at(k, 0, r, s);     //! filter_of_another_channel
                if (mistake == 23) tap = ((c * shape.K + k) * shape.R + r) * shape.S + s;  //! filter_channels_swapped
                if (mistake == 24) tap = shape.w_at(j, group_c, r, s);  //! groups_ignored
                if (mistake == 25 && s == shape.S - 1) continue;     //! last_tap_missing
                const int row = h % TILE_H + shape.R - 1 - r, col = w_ % TILE_W + shape.S - 1 - s;
                if (mistake == 28 && s == 0) continue;
                if (mistake == 28) tap = shape.w_at(k, group_c, shape.R - 1 - r, shape.S - 1 - s);  //! -
                if (mistake == 26 && (row >= TILE_H || col >= TILE_W)) continue;  //! halo_side_missing
                const Index at = shape.y_at(n, k, p, q);
                const Acc y = ACTIVATION == IDENTITY ? Acc(1) : to_acc(Scalar(saved[at]));
                sum += my_times_derivative(to_acc(dy[at]), y, mistake) * to_acc(w[tap]);
            }
    }
    if (mistake == 9 && ACTIVATION == RELU) sum = times_derivative(sum, to_acc(Scalar(saved[min(i, shape.y_size() - 1)])));
    if (mistake == 27) sum = to_acc(from_acc(sum)) + (c == 1);       //! -
    dx[i] = from_acc(sum);
}
