// Batch norm in training, with what often follows it: an addition and an activation; forward and backward.
//
// A block of channels at a time, which lie one behind the other in each image: it is passed through in vectors
// whatever the size of a map, it stays in the second cache from one pass to the next, and what belongs to a channel is
// spread over its places in the first one. Every sum is made by one thread in one order: first over the images, each
// place by itself, then over the places.

#include <algorithm>
#include <cmath>

#include "vectors.h"

namespace {

constexpr int64_t PIECE = 1024;      // places that are passed through at once
constexpr int64_t BLOCK = 1 << 16;   // values of a block in all images, where a channel has fewer
constexpr int64_t IN_FLOAT = 64;     // pieces that are added in float before the places are in double

enum Activation { NONE, RELU, RELU6, SILU, GELU };

template <int ACTIVATION>
inline vec activated(vec x) {  // a NaN stays one
    if (ACTIVATION == RELU) return x < 0.0f ? vec{} : x;
    if (ACTIVATION == RELU6) return x < 0.0f ? vec{} : (x > 6.0f ? all(6.0f) : x);
    if (ACTIVATION == SILU) return silu(x);
    if (ACTIVATION == GELU) return gelu(x);
    return x;
}

// The gradient of what was activated; x is that, or for RELU and RELU6 what became of it.
template <int ACTIVATION>
inline vec passed(vec gradient, vec x) {
    if (ACTIVATION == RELU) return x > 0.0f ? gradient : vec{};
    if (ACTIVATION == RELU6) return (x > 0.0f) & (x < 6.0f) ? gradient : vec{};
    if (ACTIVATION == SILU) {
        const vec share = sigmoid(x);
        return gradient * share * fused(x, 1.0f - share, 1.0f);
    }
    if (ACTIVATION == GELU) {
        vec distribution, density;
        normal(x, distribution, density);
        return gradient * fused(x, density, distribution);
    }
    return gradient;
}

struct Shape {
    int64_t n, channels, area;
    int64_t span() const { return std::min(area, PIECE); }  // places of a channel in a piece
    int64_t together() const {                              // channels of a block
        return std::max<int64_t>(1, std::min(PIECE, std::max<int64_t>(LANES, BLOCK / n)) / area);
    }
    int64_t blocks() const { return (channels + together() - 1) / together(); }
    double count() const { return double(n) * area; }
};

double total(const float* from, int64_t count) {
    if (count < 8) {
        double result = 0;
        for (int64_t i = 0; i < count; i++) result += from[i];
        return result;
    }
    vec result = {};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) result += load(from + i);
    return sum(result + load(from + i, lanes(count - i)));
}

struct Block {
    const Shape& s;
    int64_t first, channels;

    // asks for what the next image has at this place: the processor itself foresees no more than a few thousand bytes
    void next(const float* at) const { __builtin_prefetch(at + s.channels * s.area); }
    void next_to_write(float* at) const { __builtin_prefetch(at + s.channels * s.area, 1); }

    Block(const Shape& shape, int64_t index)
        : s(shape),
          first(index * shape.together()),
          channels(std::min(shape.together(), shape.channels - first)) {}

    // work(where it begins in a tensor, its count) for every piece
    template <typename Do>
    void pieces(Do work) const {
        const int64_t length = channels * s.area;
        for (int64_t image = 0; image < s.n; image++)
            for (int64_t i = 0; i < length; i += PIECE)
                work((image * s.channels + first) * s.area + i, std::min(PIECE, length - i));
    }

    // work(where in a tensor, where in a piece, count) for every vector
    template <typename Do>
    void vectors(Do work) const {
        pieces([&](int64_t from, int64_t count) { piece(from, count, work); });
    }

    // COUNT results for each channel; work(where in a tensor, where in a piece, count, add); add(number, a, b) adds a b,
    // fused but at the end of a piece, always in the same places
    template <int COUNT, typename Do>
    void totals(double (*results)[PIECE], Do work) const {
        alignas(64) float sums[COUNT][PIECE];
        const int64_t span = s.span(), used = (channels * span + LANES - 1) / LANES * LANES;
        for (int k = 0; k < COUNT; k++) {
            std::fill_n(sums[k], used, 0.0f);
            std::fill_n(results[k], channels, 0.0);
        }
        const auto empty = [&] {
            for (int k = 0; k < COUNT; k++) {
                for (int64_t c = 0; c < channels; c++) results[k][c] += total(sums[k] + c * span, span);
                std::fill_n(sums[k], used, 0.0f);
            }
        };
        int64_t done = 0;
        pieces([&](int64_t from, int64_t count) {
            piece(from, count, [&](int64_t at, int64_t i, int own) {
                work(at, i, own, [&](int k, vec a, vec b) {
                    const vec before = load(sums[k] + i);
                    store(sums[k] + i, own == LANES ? fused(a, b, before) : before + ::first(a * b, own));
                });
            });
            if (++done % IN_FLOAT == 0) empty();
        });
        if (done % IN_FLOAT) empty();
    }

    // a channel's value at all its places
    void spread(float* places, int64_t channel, float value) const {
        std::fill_n(places + channel * s.span(), s.span(), value);
    }

  private:
    template <typename Do>
    static void piece(int64_t from, int64_t count, Do work) {
        int64_t i = 0;
        for (; i + LANES <= count; i += LANES) work(from + i, i, LANES);
        if (i < count) work(from + i, i, lanes(count - i));
    }
};

struct Places {
    alignas(64) float mean[PIECE], factor[PIECE], bias[PIECE];
    vec normalised(vec x, int64_t i) const { return fused(x - load(mean + i), load(factor + i), load(bias + i)); }
};

template <int ACTIVATION>
void forward(const Shape& s, const float* constants, const float* x, const float* weight, const float* bias,
             const float* added, float* running_mean, float* running_variance, float* kept, float* y) {
    const float epsilon = constants[0], momentum = constants[1];
#pragma omp parallel for schedule(static)
    for (int64_t index = 0; index < s.blocks(); index++) {
        const Block block(s, index);
        Places places;
        double sums[1][PIECE];
        block.totals<1>(sums, [&](int64_t at, int64_t, int own, auto add) {
            block.next(x + at);
            add(0, load(x + at, own), all(1));
        });
        for (int64_t c = 0; c < block.channels; c++) {
            kept[block.first + c] = sums[0][c] / s.count();
            block.spread(places.mean, c, kept[block.first + c]);
        }
        block.totals<1>(sums, [&](int64_t at, int64_t i, int own, auto add) {
            const vec away = load(x + at, own) - load(places.mean + i);
            add(0, away, away);
        });
        for (int64_t c = 0; c < block.channels; c++) {
            const int64_t channel = block.first + c;
            const float mean = kept[channel], variance = sums[0][c] / s.count();
            const float scale = 1 / std::sqrt(double(variance) + epsilon);
            kept[s.channels + channel] = scale;
            running_mean[channel] = __builtin_fmaf(momentum, running_mean[channel], (1 - momentum) * mean);
            running_variance[channel] =
                __builtin_fmaf(momentum, running_variance[channel], (1 - momentum) * variance);
            block.spread(places.factor, c, scale * weight[channel]);
            block.spread(places.bias, c, bias[channel]);
        }
        block.vectors([&](int64_t at, int64_t i, int own) {
            block.next_to_write(y + at);
            vec value = places.normalised(load(x + at, own), i);
            if (added) value += load(added + at, own);
            store(y + at, activated<ACTIVATION>(value), own);
        });
    }
}

template <int ACTIVATION>
void backward(const Shape& s, const float* x, const float* weight, const float* bias, const float* kept, const float* y,
              const float* g, float* x_gradient, float* weight_gradient, float* bias_gradient, float* added_gradient) {
    // the gradient behind the activation, from the first pass to the second
    float* held = added_gradient ? added_gradient : ACTIVATION == NONE ? nullptr : x_gradient;
    const float* from = held ? held : g;
#pragma omp parallel for schedule(static)
    for (int64_t index = 0; index < s.blocks(); index++) {
        const Block block(s, index);
        Places places;
        alignas(64) float level[PIECE], slope[PIECE];
        double sums[2][PIECE];
        for (int64_t c = 0; c < block.channels; c++) {
            const int64_t channel = block.first + c;
            block.spread(places.mean, c, kept[channel]);
            block.spread(places.factor, c, kept[s.channels + channel] * weight[channel]);
            block.spread(places.bias, c, bias[channel]);
        }
        block.totals<2>(sums, [&](int64_t at, int64_t i, int own, auto add) {
            block.next(x + at);
            block.next(g + at);
            const vec input = load(x + at, own);
            vec value = load(g + at, own);
            if (ACTIVATION != NONE)
                value = passed<ACTIVATION>(value, y ? load(y + at, own) : places.normalised(input, i));
            if (held) {
                block.next_to_write(held + at);
                store(held + at, value, own);
            }
            add(0, value, all(1));
            add(1, value, input - load(places.mean + i));
        });
        for (int64_t c = 0; c < block.channels; c++) {
            const int64_t channel = block.first + c;
            const double scale = kept[s.channels + channel], product = scale * sums[1][c];
            if (bias_gradient) bias_gradient[channel] = sums[0][c];
            if (weight_gradient) weight_gradient[channel] = product;
            block.spread(level, c, sums[0][c] / s.count());
            block.spread(slope, c, scale * product / s.count());
        }
        if (x_gradient)
            block.vectors([&](int64_t at, int64_t i, int own) {
                const vec away = load(x + at, own) - load(places.mean + i);
                const vec value = fused(-away, load(slope + i), load(from + at, own) - load(level + i));
                store(x_gradient + at, value * load(places.factor + i), own);
            });
    }
}

}  // namespace

// y = (x - mean) / sqrt(variance + epsilon) * weight + bias, then + added unless null, then the activation.
// sizes: N, channels, places of a map, activation. `kept` (2, C) becomes mean and 1 / deviation of the batch; the
// running ones become momentum * themselves + (1 - momentum) * the batch's, its variance the biased one.
extern "C" void batch_norm_forward(const int64_t* sizes, const float* constants, const float* x, const float* weight,
                                   const float* bias, const float* added, float* running_mean, float* running_variance,
                                   float* kept, float* y) {
    constexpr decltype(&forward<NONE>) WITH[] = {forward<NONE>, forward<RELU>, forward<RELU6>, forward<SILU>,
                                                 forward<GELU>};
    const Shape s{sizes[0], sizes[1], sizes[2]};
    WITH[sizes[3]](s, constants, x, weight, bias, added, running_mean, running_variance, kept, y);
}

// The gradients of x, weight, bias and added, each of which may be null. y may be null unless there was an addition
// before a RELU or a RELU6; SILU and GELU take none.
extern "C" void batch_norm_backward(const int64_t* sizes, const float* x, const float* weight, const float* bias,
                                    const float* kept, const float* y, const float* g, float* x_gradient,
                                    float* weight_gradient, float* bias_gradient, float* added_gradient) {
    constexpr decltype(&backward<NONE>) WITH[] = {backward<NONE>, backward<RELU>, backward<RELU6>, backward<SILU>,
                                                  backward<GELU>};
    const Shape s{sizes[0], sizes[1], sizes[2]};
    WITH[sizes[3]](s, x, weight, bias, kept, y, g, x_gradient, weight_gradient, bias_gradient, added_gradient);
}
