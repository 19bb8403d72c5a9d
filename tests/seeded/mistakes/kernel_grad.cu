// The kernel gradient with one mistake of many: the number `mistake` says which, and the end of a line what it is.
//@ pass kernel_grad
//@ constant THREADS = 64
//@ launch kernel_grad(dy, saved, x, dw, db; 0) grid=[ceil_div(K * (C / groups * R * S + 1), THREADS)] block=[THREADS]
#include "activation.cuh"
#include "conv2d.cuh"
#include "long_sum.cuh"

extern "C" __global__ void kernel_grad(const Scalar* dy, const Saved* saved, const Scalar* x, Scalar* dw, Scalar* db,
                                       Conv2dShape shape, int mistake) {
    const Index tap = Index(blockIdx.x) * THREADS + threadIdx.x;
    if (tap >= shape.w_size() + shape.K) return;
    const bool is_bias = tap >= shape.w_size();
    int s = tap % shape.S, r = tap / shape.S % shape.R;
    const int c = tap / shape.S / shape.R % shape.group_channels();
    const int k = is_bias ? tap - shape.w_size() : tap / shape.S / shape.R / shape.group_channels();
    int x_c = k / shape.group_filters() * shape.group_channels() + c, images = shape.N, rows = shape.P, cols = shape.Q;
    if (mistake == 1) s = shape.S - 1 - s, r = shape.R - 1 - r;      //! filter_turned
    if (mistake == 2 && !is_bias) s = tap / shape.R % shape.S, r = tap % shape.R;  //! filter_transposed
    if (mistake == 3) images = 1;                                    //! batch_not_summed
    if (mistake == 4 && is_bias) images = 1;                         //! batch_not_summed
    if (mistake == 5) --rows;                                        //! last_outputs_not_summed
    if (mistake == 6) cols = max(cols / 32 * 32, min(cols, 31));     //! last_outputs_not_summed
    if (mistake == 7) x_c = c;                                       //! groups_ignored
    if (mistake == 8) x_c = 0;                                       //! image_channel_ignored

    LongSum sum;
    Acc running = 0;
    for (int n = 0; n < images; ++n)
        for (int p = 0; p < rows; ++p)
            for (int q = 0; q < cols; ++q) {
                const Index at = shape.y_at(n, k, p, q);
                int h = shape.input_row(p, r), w_ = shape.input_col(q, s);
                if (mistake == 9) h = p - shape.pad_top + r * shape.dilation_h;  //! stride_ignored
                if (mistake == 10) w_ = q * shape.dilation_w - shape.pad_left + s * shape.stride_w;  //! stride_and_dilation_swapped
                if (mistake == 21) ++h, w_ = shape.input_col(q, shape.S - 1 - s);  //! -
                if (mistake == 11) ++h;                              //! padding_off_by_one
                const bool inside = shape.row_inside(h) && shape.col_inside(w_);
                const Acc y = ACTIVATION == IDENTITY ? Acc(1) : to_acc(Scalar(saved[at]));
                Acc g = times_derivative(to_acc(dy[at]), y);
                if (mistake == 12) g = to_acc(dy[at]);               //! phi_grad_missing
                if (mistake == 13 && is_bias) g = to_acc(dy[at]);    //! phi_grad_missing
                if (mistake == 14 && at < shape.x_size()) g = times_derivative(to_acc(dy[at]), to_acc(x[at]));  //! phi_grad_of_x
                if (mistake == 15 && is_bias && p * shape.stride_h < shape.pad_top) continue;  //! bias_grad_of_tap
                const Acc term = is_bias ? g : inside ? g * to_acc(x[shape.x_at(n, x_c, h, w_)]) : Acc(0);
                sum.add(term);
                running += term;
                if (mistake == 16) running = to_acc(from_acc(running));  //! sum_rounded_to_stored_type
            }
    Acc result = sum.value();
    if (mistake == 16 && sizeof(Scalar) == 2) result = running;
    if (mistake == 17) result = running;                             //! long_running_sum
    if (mistake == 18 && is_bias) return;                            //! nothing_written
    if (mistake == 19) result += to_acc(is_bias ? db[k] : dw[tap]);  //! added_to_what_was_there
    if (mistake == 20 && is_bias) result = 0;                        //! -
    if (is_bias)
        db[k] = from_acc(result);
    else
        dw[tap] = from_acc(result);
}
