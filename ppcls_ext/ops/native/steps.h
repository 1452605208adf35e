// What larger operators are made of: each computes with all threads, or in a parallel region with the calling thread
// alone, and returns when it is done.
#pragma once

#include "vectors.h"

// Of (rows, inner) by (inner, columns): steps of x's rows, of w's inner dimension and columns, of y's rows, and the rows
// of an image.
struct ProductShape {
    int64_t rows, inner, columns, x_row, w_inner, w_column, y_row, image_rows = 1;
};

// y = (x w + bias) factor image_factor + added; factor and added lie as y does, image_factor has one row per image. The
// last four may be null.
struct Product {
    const float *x, *w;
    float* y;
    const float *bias = nullptr, *factor = nullptr, *image_factor = nullptr, *added = nullptr;
};

// Several products of one shape
void multiply(const ProductShape& shape, const Product* products, int64_t count);

// The columns of a product come in panels: how many in each, and one panel by the calling thread alone, whose y (rows,
// columns of the panel) holds nothing else
int64_t panel_columns(const ProductShape& shape);
void multiply_panel(const ProductShape& shape, const Product& product, int64_t column);

// For a thread that computes many products of few rows with the same weights: how many values they take packed, packing
// them with all threads, and one product, or one panel of it, by the calling thread alone, whose w are the packed weights.
int64_t packed_size(const ProductShape& shape);
void pack_weights(const ProductShape& shape, const float* w, float* to);
void multiply_packed(const ProductShape& shape, const Product& product);
void multiply_packed_panel(const ProductShape& shape, const Product& product, int64_t column);

// y = ((x - mean) / sqrt(variance + epsilon) weight + bias) silu(gate), x, y (groups, rows, channels), weight[i], bias[i]
// (channels,); gate lies as x does, or is null
void normalise(int64_t groups, int64_t rows, int64_t channels, float epsilon, const float* x,
               const float* const* weight, const float* const* bias, const float* gate, float* y);

enum Activation { NONE = 0, SILU = 1, GELU = 2, RATIONAL_GELU = 3 };

// In place: what stood before the activation is gone
template <int COUNT>
inline void activate(vec (&z)[COUNT], int64_t activation) {
    if (activation == RATIONAL_GELU) return rational_gelu(z);
    for (int i = 0; i < COUNT; i++) z[i] = activation == SILU ? silu(z[i]) : activation == GELU ? gelu(z[i]) : z[i];
}

// Depthwise 3x3 convolution of x (sets, n, height, width, channels), padded by 1, weight[i] (channels, 9), bias[i]
// (channels,) -> y of the same form, and z, before the activation, unless null
struct TokenShape {
    int64_t sets, n, height, width, channels;
};
void convolve_tokens(const TokenShape& shape, int64_t activation, const float* x, const float* const* weight,
                     const float* const* bias, float* z, float* y);

// The same for one row of places at a time, by the calling thread alone: (C, 9) -> (9, C), and the convolution of the
// row rows[1], those around it null beyond the map: (width, channels) each; the places of y lie y_step apart
void by_tap(int64_t channels, const float* weight, float* to);
void convolve_tokens_row(int64_t width, int64_t channels, int64_t activation, const float* const rows[3],
                         const float* taps, const float* bias, float* y, int64_t y_step);

// The selective scan in the orders 0, 1, 2, 3 of four groups, with the products that give its steps: u (4, n, H W, C);
// low (4, n, H W, rank + 2) holds what makes the step, b and c; step_weight[i] (C, rank), bias[i], a_log[i], d[i] (C,)
struct ScanShape {
    int64_t n, height, width, channels, rank;
};
void scan_of_products(const ScanShape& shape, const float* u, const float* low, const float* const* step_weight,
                      const float* const* bias, const float* const* a_log, const float* const* d, float* y);

// The way into a stage, convolutions of which all but the last have batch norm (of the running statistics) and ReLU, the
// last a bias and a layer norm: x -> y (N, H' W', C'). sizes: N, channels, height and width of x, 1 if it is
// (N, C, H, W) and 0 if it is (N, H W, C), the number of convolutions, and of each: kernel, stride, channels out.
// weights: of each convolution but the last its weight (O, C, k, k) and the norm's weight, bias, mean and variance; of
// the last weight, bias, and the layer norm's weight and bias; packed: those of the convolutions as pack_embedding
// leaves them
void embed(const int64_t* sizes, float batch_epsilon, float epsilon, const float* const* weights, const float* packed,
           const float* x, float* room, float* y);
void pack_embedding(const int64_t* sizes, const float* const* weights, float* packed);
// How many values of memory it needs, and of packed weights; how many tensors of weights there are
int64_t embedding_room(const int64_t* sizes);
int64_t embedding_packed(const int64_t* sizes);
int64_t embedding_weights(const int64_t* sizes);
