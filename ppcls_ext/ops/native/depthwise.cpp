// Depthwise convolution of maps (N, C, H, W), any kernel, stride and padding, with its gradients: the choice between
// the two ways, and the first of them, a map at a time.
//
// Every sum is made by one thread in one order: the bits depend neither on the run nor on the number of threads.

#include "depthwise.h"

namespace {

// out[i] = start + sum over taps of weights[t] * from[t][i]; written in whole pairs of vectors
template <int TAPS>
void correlate(float* out, const float* const* from, const float* weights, int64_t taps, float start, int64_t length) {
    if (TAPS > 0) taps = TAPS;
    for (int64_t i = 0; i < length; i += 2 * LANES) {
        vec a = all(start), b = a;
        for (int64_t t = 0; t < taps; t++) {
            vec w = all(weights[t]);
            a = fused(w, load(from[t] + i), a);
            b = fused(w, load(from[t] + i + LANES), b);
        }
        store(out + i, a);
        store(out + i + LANES, b);
    }
}

void correlate(float* out, const float* const* from, const float* weights, int64_t taps, float start, int64_t length) {
    switch (taps) {
        case 9: return correlate<9>(out, from, weights, taps, start, length);
        case 25: return correlate<25>(out, from, weights, taps, start, length);
        default: return correlate<0>(out, from, weights, taps, start, length);
    }
}

// sums[t] += products of g with the map shifted by each tap, lane by lane
template <int TAPS>
void products(vec* sums, const float* g, const float* const* from, int64_t length) {
    vec kept[TAPS];
    for (int t = 0; t < TAPS; t++) kept[t] = sums[t];
    for (int64_t i = 0; i < length; i += LANES) {
        vec own = load(g + i);
        for (int t = 0; t < TAPS; t++) kept[t] = fused(own, load(from[t] + i), kept[t]);
    }
    for (int t = 0; t < TAPS; t++) sums[t] = kept[t];
}

void products(vec* sums, const float* g, const float* const* from, int64_t taps, int64_t length) {
    if (taps == 9) return products<9>(sums, g, from, length);
    if (taps == 25) return products<25>(sums, g, from, length);
    int64_t t = 0;
    for (; t + 5 <= taps; t += 5) products<5>(sums + t, g, from + t, length);
    for (; t < taps; t++) products<1>(sums + t, g, from + t, length);
}

Depthwise shape_of(const int64_t* s) {
    return {{s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10], s[11], s[12]}, s[0], s[1], s[2]};
}

constexpr int MOST_TAPS = 64 * 64;

thread_local Scratch scratch;

}  // namespace

void rows_forward(const Depthwise& s, const float* x, const float* weight, const float* bias, float* y) {
    const int64_t taps = s.taps(), out_map = s.out_height * s.out_width;
#pragma omp parallel for schedule(static)
    for (int64_t map = 0; map < s.n * s.channels; map++) {
        const int64_t channel = map % s.channels;
        float* laid = scratch.of((s.phases() + 1) * s.laid_out());
        float* out = laid + s.phases() * s.laid_out();
        lay_out(s, x + map * s.height * s.width, laid);
        const float* from[MOST_TAPS];
        for (int64_t t = 0; t < taps; t++) from[t] = laid + s.phase(t) * s.laid_out() + s.shift(t);
        for (int64_t j = 0; j < s.multiplier; j++) {
            const int64_t own = channel * s.multiplier + j;
            correlate(out, from, weight + own * taps, taps, bias ? bias[own] : 0, s.length());
            take_out(s, out, 0, y + (map * s.multiplier + j) * out_map);
        }
    }
}

void rows_backward(const Depthwise& s, const float* x, const float* weight, const float* g, float* x_gradient,
                   float* weight_gradient, float* bias_gradient) {
    const int64_t taps = s.taps(), out_map = s.out_height * s.out_width, before = s.reach();
#pragma omp parallel for schedule(static)
    for (int64_t channel = 0; channel < s.channels; channel++) {
        const int64_t maps = s.phases() * s.laid_out(), spread_map = before + s.laid_out();
        float* laid = scratch.of(2 * maps + s.multiplier * (spread_map + taps * LANES));
        float* back = laid + maps;
        float* spread_g = back + maps;
        vec* sums = reinterpret_cast<vec*>(spread_g + s.multiplier * spread_map);
        const float* from[MOST_TAPS];
        float own_weights[MOST_TAPS];
        for (int64_t i = 0; i < s.multiplier * taps; i++) sums[i] = vec{};
        for (int64_t j = 0; j < s.multiplier && bias_gradient; j++) bias_gradient[channel * s.multiplier + j] = 0;
        for (int64_t image = 0; image < s.n; image++) {
            const int64_t map = image * s.channels + channel;
            for (int64_t j = 0; j < s.multiplier; j++)
                spread(s, g + (map * s.multiplier + j) * out_map, spread_g + j * spread_map, before, 0, s.out_height,
                       s.laid_out() - s.length());
            if (bias_gradient) {
                for (int64_t j = 0; j < s.multiplier; j++) {
                    vec total = {};
                    const float* own = spread_g + j * spread_map + before;
                    for (int64_t i = 0; i < s.length(); i += LANES) total += load(own + i);
                    bias_gradient[channel * s.multiplier + j] += sum(total);
                }
            }
            if (weight_gradient) {
                lay_out(s, x + map * s.height * s.width, laid);
                for (int64_t t = 0; t < taps; t++) from[t] = laid + s.phase(t) * s.laid_out() + s.shift(t);
                for (int64_t j = 0; j < s.multiplier; j++)
                    products(sums + j * taps, spread_g + j * spread_map + before, from, taps, s.length());
            }
            if (x_gradient) {
                for (int64_t phase = 0; phase < s.phases(); phase++) {
                    int64_t count = 0;
                    for (int64_t j = 0; j < s.multiplier; j++)
                        for (int64_t t = 0; t < taps; t++)
                            if (s.phase(t) == phase) {
                                from[count] = spread_g + j * spread_map + before - s.shift(t);
                                own_weights[count++] = weight[(channel * s.multiplier + j) * taps + t];
                            }
                    // with as many lines as the map has, not the output: lines below it are 0 in g
                    correlate(back + phase * s.laid_out(), from, own_weights, count, 0, s.lines() * s.line());
                }
                gather(s, back, x_gradient + map * s.height * s.width, 0, s.height);
            }
        }
        for (int64_t i = 0; i < s.multiplier * taps && weight_gradient; i++)
            weight_gradient[channel * s.multiplier * taps + i] = sum(sums[i]);
    }
}

// x (N, C, H, W), weight (m C, taps), bias (m C) or null -> y (N, m C, H', W')
extern "C" void depthwise_forward(const int64_t* sizes, const float* x, const float* weight, const float* bias, float* y) {
    const Depthwise s = shape_of(sizes);
    (lanes_pay(s) ? lanes_forward : rows_forward)(s, x, weight, bias, y);
}

// the gradients of x, weight and bias, each of which may be null
extern "C" void depthwise_backward(const int64_t* sizes, const float* x, const float* weight, const float* g,
                                   float* x_gradient, float* weight_gradient, float* bias_gradient) {
    const Depthwise s = shape_of(sizes);
    (lanes_pay(s) ? lanes_backward : rows_backward)(s, x, weight, g, x_gradient, weight_gradient, bias_gradient);
}
