// Layer norm of tokens, several groups with weights of their own, and its product with SiLU of a gate; its gradients.

#include <algorithm>
#include <vector>

#include "steps.h"

namespace {

constexpr int TOGETHER = 4;       // rows that are normalised side by side
constexpr int64_t CHUNK = 256;  // rows whose part of the weights' gradients is one sum: never a matter of threads

// (groups, rows, channels), of rows
struct Shape {
    int64_t groups, rows, channels;
    bool large() const { return groups * rows * channels >= 16384; }  // threads take 10 us to wake
};

// COUNT rows from `row` on, of one group, side by side: a row's own sums wait for one another. Each row's bits are those
// that it has by itself.
template <int COUNT>
void normalise_rows(const Shape& s, float epsilon, int64_t row, const float* x, const float* const* weight,
                    const float* const* bias, const float* gate, float* kept, float* y) {
    const int64_t channels = s.channels, whole = channels / LANES * LANES;
    const int left = channels - whole;
    const float *from = x + row * channels, *w = weight[row / s.rows], *b = bias[row / s.rows];
    vec sums[COUNT] = {}, squares[COUNT] = {};
    for (int64_t c = 0; c < whole; c += LANES)
#pragma GCC unroll 4
        for (int r = 0; r < COUNT; r++) sums[r] += load(from + r * channels + c);
    float mean[COUNT], scale[COUNT];
#pragma GCC unroll 4
    for (int r = 0; r < COUNT; r++) {
        if (left) sums[r] += load(from + r * channels + whole, left);
        mean[r] = sum(sums[r]) / channels;
    }
    for (int64_t c = 0; c < whole; c += LANES)
#pragma GCC unroll 4
        for (int r = 0; r < COUNT; r++) {
            const vec difference = load(from + r * channels + c) - mean[r];
            squares[r] = fused(difference, difference, squares[r]);
        }
#pragma GCC unroll 4
    for (int r = 0; r < COUNT; r++) {
        if (left) {
            const vec difference = load(from + r * channels + whole, left) - first(all(mean[r]), left);
            squares[r] = fused(difference, difference, squares[r]);
        }
        scale[r] = 1.0f / __builtin_sqrtf(sum(squares[r]) / channels + epsilon);
        if (kept) {
            kept[2 * (row + r)] = mean[r];
            kept[2 * (row + r) + 1] = scale[r];
        }
    }
    for (int64_t c = 0; c < channels; c += LANES) {
        const int count = lanes(channels - c);
        const vec w_v = load(w + c, count), b_v = load(b + c, count);
#pragma GCC unroll 4
        for (int r = 0; r < COUNT; r++) {
            vec result = fused((load(from + r * channels + c, count) - mean[r]) * scale[r], w_v, b_v);
            if (gate) {
                const vec z = load(gate + (row + r) * channels + c, count);
                result *= z * sigmoid(z);
            }
            store(y + (row + r) * channels + c, result, count);
        }
    }
}

void normalise(const Shape& s, float epsilon, const float* x, const float* const* weight, const float* const* bias,
               const float* gate, float* kept, float* y) {
    const int64_t parts = (s.rows + TOGETHER - 1) / TOGETHER;
#pragma omp parallel for schedule(static) if (s.large())
    for (int64_t part = 0; part < s.groups * parts; part++) {
        int64_t row = part / parts * s.rows + part % parts * TOGETHER;
        const int64_t end = std::min(row + TOGETHER, (part / parts + 1) * s.rows);
        if (end - row == TOGETHER)
            normalise_rows<TOGETHER>(s, epsilon, row, x, weight, bias, gate, kept, y);
        else
            for (; row < end; row++) normalise_rows<1>(s, epsilon, row, x, weight, bias, gate, kept, y);
    }
}

// Where the weights of each group lie
std::vector<const float*> by_group(const Shape& s, const float* weight) {
    std::vector<const float*> result(s.groups);
    for (int64_t i = 0; i < s.groups; i++) result[i] = weight + i * s.channels;
    return result;
}

// One row's gradients; adds to those of weight and bias. gx holds the gradient of the normalised values meanwhile.
template <bool GATED>
void row_backward(int64_t channels, const float* x, const float* weight, const float* bias, const float* gate,
                  float mean, float scale, const float* g, float* gx, float* ggate, float* weight_sums,
                  float* bias_sums) {
    vec sums = {}, products = {};
    for (int64_t c = 0; c < channels; c += LANES) {
        const int count = lanes(channels - c);
        const vec normalised = (load(x + c, count) - mean) * scale, w = load(weight + c, count);
        vec own = load(g + c, count);
        if (GATED) {
            const vec z = load(gate + c, count), s = sigmoid(z);
            store(ggate + c, own * fused(normalised, w, load(bias + c, count)) * s * fused(z, 1.0f - s, 1.0f), count);
            own *= z * s;
        }
        store(weight_sums + c, fused(own, normalised, load(weight_sums + c, count)), count);
        store(bias_sums + c, load(bias_sums + c, count) + own, count);
        own *= w;
        sums += own;
        products = fused(own, normalised, products);
        store(gx + c, own, count);
    }
    const float mean_of_sums = sum(sums) / channels, mean_of_products = sum(products) / channels;
    for (int64_t c = 0; c < channels; c += LANES) {
        const int count = lanes(channels - c);
        const vec normalised = (load(x + c, count) - mean) * scale;
        store(gx + c, scale * fused(-normalised, all(mean_of_products), load(gx + c, count) - mean_of_sums), count);
    }
}

}  // namespace

void normalise(int64_t groups, int64_t rows, int64_t channels, float epsilon, const float* x,
               const float* const* weight, const float* const* bias, const float* gate, float* y) {
    normalise({groups, rows, channels}, epsilon, x, weight, bias, gate, nullptr, y);
}

// sizes: groups, rows, channels. x (groups, rows, channels), weight, bias (groups, channels), gate as x or null -> y,
// and where it is not null kept: mean and 1 / deviation of each row
extern "C" void norm_forward(const int64_t* sizes, float epsilon, const float* x, const float* weight,
                             const float* bias, const float* gate, float* kept, float* y) {
    const Shape s{sizes[0], sizes[1], sizes[2]};
    normalise(s, epsilon, x, by_group(s, weight).data(), by_group(s, bias).data(), gate, kept, y);
}

// The gradients of x, gate (where there is one), weight and bias
extern "C" void norm_backward(const int64_t* sizes, const float* x, const float* weight, const float* bias,
                              const float* gate, const float* kept, const float* g, float* x_gradient,
                              float* gate_gradient, float* weight_gradient, float* bias_gradient) {
    const Shape s{sizes[0], sizes[1], sizes[2]};
    const int64_t channels = s.channels, chunks = (s.rows + CHUNK - 1) / CHUNK;
    std::vector<float> parts(s.groups * chunks * 2 * channels);
#pragma omp parallel for schedule(static) if (s.large())
    for (int64_t item = 0; item < s.groups * chunks; item++) {
        const int64_t group = item / chunks, begin = item % chunks * CHUNK;
        const int64_t end = begin + CHUNK < s.rows ? begin + CHUNK : s.rows;
        float *weight_sums = parts.data() + item * 2 * channels, *bias_sums = weight_sums + channels;
        const float *w = weight + group * channels, *b = bias + group * channels;
        for (int64_t row = group * s.rows + begin; row < group * s.rows + end; row++) {
            const int64_t at = row * channels;
            const auto one = gate ? row_backward<true> : row_backward<false>;
            one(channels, x + at, w, b, gate ? gate + at : nullptr, kept[2 * row], kept[2 * row + 1], g + at,
                x_gradient + at, gate ? gate_gradient + at : nullptr, weight_sums, bias_sums);
        }
    }
    for (int64_t group = 0; group < s.groups; group++)
        for (int64_t c = 0; c < channels; c++) {
            float weight_sum = 0, bias_sum = 0;
            for (int64_t chunk = 0; chunk < chunks; chunk++) {
                const float* part = parts.data() + (group * chunks + chunk) * 2 * channels + c;
                weight_sum += part[0];
                bias_sum += part[channels];
            }
            weight_gradient[group * channels + c] = weight_sum;
            bias_gradient[group * channels + c] = bias_sum;
        }
}
