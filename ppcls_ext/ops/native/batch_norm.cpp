// Batch norm in training, with what often follows it: an addition and a ReLU; forward and backward.
//
// A channel at a time: its images stay in the cache from one pass to the next. Every sum is made by one thread in one
// order.

#include <cmath>

#include "vectors.h"

namespace {

struct Shape {
    int64_t n, channels, area;
    const float* map(const float* of, int64_t image, int64_t channel) const {
        return of + (image * channels + channel) * area;
    }
    float* map(float* of, int64_t image, int64_t channel) const { return of + (image * channels + channel) * area; }
};

// work(image, place, count) for each vector of a channel
template <typename Do>
void each(const Shape& s, Do work) {
    for (int64_t image = 0; image < s.n; image++)
        for (int64_t i = 0; i < s.area; i += LANES) work(image, i, lanes(s.area - i));
}

// of value(image, place, count) over the channel: by vectors within an image, in double between images
template <typename Value>
double total(const Shape& s, Value value) {
    double result = 0;
    for (int64_t image = 0; image < s.n; image++) {
        vec a = {}, b = {};
        int64_t i = 0;
        for (; i + 2 * LANES <= s.area; i += 2 * LANES) {
            a += value(image, i, LANES);
            b += value(image, i + LANES, LANES);
        }
        for (; i < s.area; i += LANES) a += value(image, i, lanes(s.area - i));
        result += sum(a + b);
    }
    return result;
}

}  // namespace

// y = (x - mean) / sqrt(variance + epsilon) * weight + bias, then + added unless null, then max(y, 0) if `relu`.
// sizes: N, channels, places of a map, relu. `kept` (2, C) becomes mean and 1 / deviation of the batch; the running
// ones become momentum * themselves + (1 - momentum) * the batch's, its variance the biased one.
extern "C" void batch_norm_forward(const int64_t* sizes, const float* constants, const float* x, const float* weight,
                                   const float* bias, const float* added, float* running_mean, float* running_variance,
                                   float* kept, float* y) {
    const Shape s{sizes[0], sizes[1], sizes[2]};
    const bool relu = sizes[3];
    const float epsilon = constants[0], momentum = constants[1];
#pragma omp parallel for schedule(static)
    for (int64_t c = 0; c < s.channels; c++) {
        const double count = double(s.n) * s.area;
        const float mean = total(s, [&](int64_t image, int64_t i, int own) {
                               return load(s.map(x, image, c) + i, own);
                           }) / count;
        const float variance = total(s, [&](int64_t image, int64_t i, int own) {
                                   const vec away = first(load(s.map(x, image, c) + i, own) - mean, own);
                                   return away * away;
                               }) / count;
        const float scale = 1 / std::sqrt(double(variance) + epsilon), factor = scale * weight[c];
        kept[c] = mean;
        kept[s.channels + c] = scale;
        running_mean[c] = momentum * running_mean[c] + (1 - momentum) * mean;
        running_variance[c] = momentum * running_variance[c] + (1 - momentum) * variance;
        each(s, [&](int64_t image, int64_t i, int own) {
            vec value = (load(s.map(x, image, c) + i, own) - mean) * factor + bias[c];
            if (added) value += load(s.map(added, image, c) + i, own);
            if (relu) value = value < 0.0f ? vec{} : value;  // a NaN stays one
            store(s.map(y, image, c) + i, value, own);
        });
    }
}

// The gradients of x, weight, bias and added, each of which may be null; y is read where there was a ReLU.
extern "C" void batch_norm_backward(const int64_t* sizes, const float* x, const float* weight, const float* kept,
                                    const float* y, const float* g, float* x_gradient, float* weight_gradient,
                                    float* bias_gradient, float* added_gradient) {
    const Shape s{sizes[0], sizes[1], sizes[2]};
    const bool relu = sizes[3];
#pragma omp parallel for schedule(static)
    for (int64_t c = 0; c < s.channels; c++) {
        const float mean = kept[c], scale = kept[s.channels + c];
        const auto passed = [&](int64_t image, int64_t i, int own) {
            const vec value = load(s.map(g, image, c) + i, own);
            return relu ? (load(s.map(y, image, c) + i, own) > 0.0f ? value : vec{}) : value;
        };
        const double count = double(s.n) * s.area, whole = total(s, passed);
        const double product = scale * total(s, [&](int64_t image, int64_t i, int own) {
            return passed(image, i, own) * (load(s.map(x, image, c) + i, own) - mean);
        });
        if (bias_gradient) bias_gradient[c] = whole;
        if (weight_gradient) weight_gradient[c] = product;
        const float level = whole / count, slope = scale * product / count, factor = weight[c] * scale;
        each(s, [&](int64_t image, int64_t i, int own) {
            const vec value = passed(image, i, own);
            if (added_gradient) store(s.map(added_gradient, image, c) + i, value, own);
            if (x_gradient)
                store(s.map(x_gradient, image, c) + i,
                      (value - level - (load(s.map(x, image, c) + i, own) - mean) * slope) * factor, own);
        });
    }
}
