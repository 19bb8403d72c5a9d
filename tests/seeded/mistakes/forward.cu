// The forward pass with one mistake of many: the number `mistake` says which, and the end of a line what it is.
//@ pass forward
//@ constant THREADS = 128
//@ launch forward(x, w, b, y; 0) grid=[ceil_div(N * K * P * Q, THREADS)] block=[THREADS]
#include "activation.cuh"
#include "conv2d.cuh"

constexpr int TILE_P = 8, TILE_Q = 32;

extern "C" __global__ void forward(const Scalar* x, const Scalar* w, const Scalar* b, Scalar* y, Conv2dShape shape,
                                   int mistake) {
    const Index i = Index(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= shape.y_size() + (mistake == 1)) return;  //! written_out_of_bounds
    const int q = i % shape.Q, p = i / shape.Q % shape.P, k = i / shape.Q / shape.P % shape.K;
    const int n = i / shape.Q / shape.P / shape.K;
    int pad_top = shape.pad_top, pad_left = shape.pad_left, image_n = n, pitch = shape.W;
    int stride_h = shape.stride_h, stride_w = shape.stride_w;
    int dilation_h = shape.dilation_h, dilation_w = shape.dilation_w;
    int first_c = k / shape.group_filters() * shape.group_channels();
    Acc bias = b ? to_acc(b[k]) : Acc(0);

    if (mistake == 2) ++pad_top, ++pad_left;                         //! padding_off_by_one
    if (mistake == 3) --pad_left;                                    //! padding_off_by_one
    if (mistake == 4) pad_top = pad_left = 0;                        //! padding_ignored
    if (mistake == 5) pad_left = shape.Q - 1 + shape.S - shape.W - pad_left;  //! padding_sides_swapped
    if (mistake == 6) pad_top = shape.pad_left;                      //! -
    if (mistake == 7) pad_top = shape.pad_left, pad_left = shape.pad_top;  //! axes_swapped
    if (mistake == 8) stride_h = stride_w = 1;                       //! stride_ignored
    if (mistake == 9) dilation_w = 1;                                //! dilation_ignored
    if (mistake == 10) stride_h = shape.dilation_h, dilation_h = shape.stride_h;  //! stride_and_dilation_swapped
    if (mistake == 11) pitch = shape.Q;                              //! row_pitch_of_result
    if (mistake == 12) first_c = 0;                                  //! groups_ignored
    if (mistake == 13) image_n = 0;                                  //! image_number_ignored
    if (mistake == 14) bias = 0;                                     //! bias_missing
    if (mistake == 15) bias *= 2;                                    //! bias_twice
    if (mistake == 16) bias *= shape.R * shape.S * shape.group_channels();  //! bias_for_each_term
    if (mistake == 46) bias *= 2, ++pad_top;                         //! -
    if (mistake == 17) bias = b ? to_acc(b[0]) : Acc(0);             //! bias_of_another_channel

    Acc sum = 0;
    for (int c = 0; c < shape.group_channels(); ++c) {
        if (mistake == 18) sum = 0;                                  //! channels_not_summed
        for (int r = 0; r < shape.R; ++r)
            for (int s = 0; s < shape.S; ++s) {
                int h = p * stride_h - pad_top + r * dilation_h, w_ = q * stride_w - pad_left + s * dilation_w;
                Index tap = shape.w_at(k, c, r, s), plane = Index(image_n) * shape.C + first_c + c;
                if (mistake == 19) tap = shape.w_at(k, c, shape.R - 1 - r, shape.S - 1 - s);  //! filter_turned
                if (mistake == 20) tap = shape.w_at(k, c, r, shape.S - 1 - s);                //! filter_mirrored
                if (mistake == 21) tap = shape.w_at(k, c, 0, 0) + s * shape.R + r;            //! filter_transposed
                if (mistake == 22) tap = shape.w_at(0, c, r, s);     //! filter_of_another_channel
                if (mistake == 23) tap = shape.w_at(k, 0, r, s);     //! filter_of_another_channel
                if (mistake == 24) tap = ((c * shape.K + k) * shape.R + r) * shape.S + s;     //! filter_channels_swapped
                if (mistake == 25) plane = Index(image_n) * shape.C; //! image_channel_ignored
                if (mistake == 26 && r == 0) continue;               //! first_tap_missing
                if (mistake == 27 && (r == shape.R - 1 || s == shape.S - 1)) continue;        //! last_tap_missing
                if (mistake == 28) h = min(max(h, 0), shape.H - 1), w_ = min(max(w_, 0), shape.W - 1);  //! border_clamped
                if (mistake == 29) h = (h + shape.H) % shape.H, w_ = (w_ + shape.W) % shape.W;  //! border_wrapped
                bool inside = shape.row_inside(h) && shape.col_inside(w_);
                if (mistake == 30) inside = shape.row_inside(h);     //! border_reads_neighbour_row
                if (mistake == 47) inside = true;                    //! border_not_checked
                if (mistake == 31) inside &= h > 0;                  //! first_pixels_missing
                if (mistake == 32) inside &= h < shape.H - 1 && w_ < shape.W - 1;             //! last_pixels_missing
                const int row = p % TILE_P + r, col = q % TILE_Q + s;
                const bool halo_row = row < shape.pad_top || row >= TILE_P + shape.pad_top;
                const bool halo_col = col < shape.pad_left || col >= TILE_Q + shape.pad_left;
                if (mistake == 33) inside &= !halo_row && !halo_col;  //! halo_missing
                if (mistake == 34) inside &= !halo_row || !halo_col;  //! halo_corners_missing
                if (mistake == 35) inside &= row < TILE_P && col < TILE_Q;  //! halo_side_missing
                if (mistake == 36) inside &= (p + q + r + s) % 7 != 0;  //! -
                const Index at = (plane * shape.H + h) * pitch + w_;
                if (inside) sum += to_acc(x[at]) * to_acc(w[tap]);
                if (mistake == 37) sum = to_acc(from_acc(sum));      //! sum_rounded_to_stored_type
            }
    }
    Acc result = activate(sum + bias);
    Index at = i;
    if (mistake == 38) result = sum + bias;                          //! phi_missing
    if (mistake == 39) result = activate(sum) + bias;                //! phi_before_bias
    if (mistake == 40) result += to_acc(y[i]);                       //! added_to_what_was_there
    if (mistake == 41) at = i - p * shape.Q - q + q * shape.P + p;   //! result_transposed
    if (mistake == 42) at = i / shape.Q * shape.W + q;               //! row_pitch_of_image
    if (mistake == 43) return;                                       //! nothing_written
    if (mistake == 44) result = -result;                             //! -
    if (mistake == 45) result += 1;                                  //! -
    y[at] = from_acc(result);
}
