// A block of GroupMamba: norm, scans of four groups of channels weighed by the channels' affinity, norm, product, and
// the MLP with its depthwise convolution; both with what they are added to.
//
// Few images pass through all of it together, so that what lies between the steps stays in the cache.

#include "steps.h"

namespace {

constexpr int64_t GROUPS = 4;
constexpr int64_t TOGETHER = 784;  // tokens: so many images at once that weights are packed for them all

// The order of the weights; those of a group of channels come four times, group by group.
enum { NORM, NORM_BIAS, FC1, FC1_BIAS, FC2, FC2_BIAS, SKIP, OF_GROUPS };
enum { IN, CONV, CONV_BIAS, LOW, STEP, STEP_BIAS, A_LOG, D, OUT_NORM, OUT_NORM_BIAS, OUT, OF_A_GROUP };
enum { PROJ = OF_GROUPS + GROUPS * OF_A_GROUP, PROJ_BIAS, AFTER, AFTER_BIAS, NORM2, NORM2_BIAS, MLP1, MLP1_BIAS,
       MLP_CONV, MLP_CONV_BIAS, MLP2, MLP2_BIAS };
// and of the epsilons
enum { NORM_EPSILON, OUT_EPSILON, AFTER_EPSILON, NORM2_EPSILON };

struct Shape {
    int64_t n, height, width, channels, rank, reduced, hidden;
    int64_t length() const { return height * width; }
    int64_t group() const { return channels / GROUPS; }
    int64_t together() const {
        const int64_t images = (TOGETHER + length() - 1) / length();
        return images < n ? images : n;
    }
};

Shape shape_of(const int64_t* s) { return {s[0], s[1], s[2], s[3], s[4], s[5], s[6]}; }

struct Weights {
    const float* const* of;
    const float* const* group(int which) {
        for (int g = 0; g < GROUPS; g++) groups[g] = of[OF_GROUPS + g * OF_A_GROUP + which];
        return groups;
    }
    const float* groups[GROUPS];
};

void product(int64_t rows, int64_t inner, int64_t columns, const float* x, const float* w, const float* bias, float* y,
             const float* added = nullptr) {
    const Product one{x, w, y, bias, nullptr, nullptr, added};
    multiply({rows, inner, columns, inner, columns, 1, columns}, &one, 1);
}

// (n, length, channels) -> (n, channels)
void mean(const Shape& s, int64_t n, const float* x, float* to) {
    const int64_t blocks = (s.channels + LANES - 1) / LANES;
#pragma omp parallel for schedule(static) if (n * s.length() * s.channels >= 16384)
    for (int64_t item = 0; item < n * blocks; item++) {
        const int64_t image = item / blocks, c = item % blocks * LANES;
        const int count = lanes(s.channels - c);
        vec sums[4] = {};
        for (int64_t t = 0; t < s.length(); t++) sums[t % 4] += load(x + (image * s.length() + t) * s.channels + c, count);
        store(to + image * s.channels + c, (sums[0] + sums[1] + sums[2] + sums[3]) / all(s.length()), count);
    }
}

// What each channel of each image counts: (n, length, channels) -> (n, channels)
void affinity(const Shape& s, int64_t n, const float* const* w, const float* x, float* room, float* to) {
    float *means = room, *reduced = room + n * s.channels;
    mean(s, n, x, means);
    product(n, s.channels, s.reduced, means, w[FC1], w[FC1_BIAS], reduced);
    for (int64_t i = 0; i < n * s.reduced; i++) reduced[i] = reduced[i] < 0.0f ? 0.0f : reduced[i];
    product(n, s.reduced, s.channels, reduced, w[FC2], w[FC2_BIAS], to);
    for (int64_t i = 0; i < n * s.channels; i += LANES) {
        const int count = lanes(n * s.channels - i);
        store(to + i, sigmoid(load(to + i, count)) * w[SKIP][0], count);
    }
}

// The scans of x (n, length, channels), which is normalised, without the last norm and product -> y
void scans(const Shape& s, int64_t n, const float* epsilon, const float* const* all_weights, const float* x,
           float* room, float* y) {
    Weights w{all_weights};
    const int64_t rows = n * s.length(), group = s.group(), values = rows * s.channels;
    float *inner = room, *gate = inner + values, *u = gate + values, *low = u + values;
    float *weighed = low + GROUPS * rows * (s.rank + 2), *left = weighed + n * s.channels;
    affinity(s, n, all_weights, x, left, weighed);
    Product products[2 * GROUPS];
    for (int64_t i = 0; i < 2 * GROUPS; i++) {
        const int64_t g = i % GROUPS;
        float* half = i < GROUPS ? inner : gate;
        products[i] = {x + g * group, w.group(IN)[g] + i / GROUPS * group, half + g * rows * group};
    }
    multiply({rows, group, group, s.channels, 2 * group, 1, group}, products, 2 * GROUPS);
    Weights bias{all_weights};
    convolve_tokens({GROUPS, n, s.height, s.width, group}, SILU, inner, w.group(CONV), bias.group(CONV_BIAS), nullptr, u);
    for (int64_t g = 0; g < GROUPS; g++)
        products[g] = {u + g * rows * group, w.group(LOW)[g], low + g * rows * (s.rank + 2)};
    multiply({rows, group, s.rank + 2, group, 1, group, s.rank + 2}, products, GROUPS);
    Weights decay{all_weights}, skip{all_weights};
    scan_of_products({n, s.height, s.width, group, s.rank}, u, low, w.group(STEP), bias.group(STEP_BIAS),
                     decay.group(A_LOG), skip.group(D), inner);
    normalise(GROUPS, rows, group, epsilon[OUT_EPSILON], inner, w.group(OUT_NORM), bias.group(OUT_NORM_BIAS), gate,
              inner);
    for (int64_t g = 0; g < GROUPS; g++)
        products[g] = {inner + g * rows * group, w.group(OUT)[g],     y + g * group, nullptr,
                       x + g * group,            weighed + g * group, nullptr};
    multiply({rows, group, group, group, group, 1, s.channels, s.length()}, products, GROUPS);
}

void add(int64_t count, const float* x, float* y) {
    for (int64_t i = 0; i < count; i++) y[i] += x[i];
}

// y + mlp(norm(y)) -> y
void mlp(const Shape& s, int64_t n, const float* epsilon, const float* const* w, float* room, float* y) {
    const int64_t rows = n * s.length();
    float *normal = room, *hidden = normal + rows * s.channels, *activated_values = hidden + rows * s.hidden;
    normalise(1, rows, s.channels, epsilon[NORM2_EPSILON], y, w + NORM2, w + NORM2_BIAS, nullptr, normal);
    product(rows, s.channels, s.hidden, normal, w[MLP1], w[MLP1_BIAS], hidden);
    if (w[MLP_CONV]) {
        convolve_tokens({1, n, s.height, s.width, s.hidden}, GELU, hidden, w + MLP_CONV, w + MLP_CONV_BIAS, nullptr,
                        activated_values);
    } else {
        for (int64_t i = 0; i < rows * s.hidden; i += LANES) {
            const int count = lanes(rows * s.hidden - i);
            store(activated_values + i, activated(load(hidden + i, count), GELU), count);
        }
    }
    product(rows, s.hidden, s.channels, activated_values, w[MLP2], w[MLP2_BIAS], y, y);
}

}  // namespace

// sizes: N, H, W, C, rank of the steps, channels of the affinity, of the MLP. How many values of memory
// group_mamba_forward needs.
extern "C" int64_t group_mamba_room(const int64_t* sizes) {
    const Shape s = shape_of(sizes);
    const int64_t n = s.together(), rows = n * s.length();
    const int64_t scanned = rows * (5 * s.channels + GROUPS * (s.rank + 2)) + n * (2 * s.channels + s.reduced);
    const int64_t mixed = rows * (s.channels + 2 * s.hidden);
    return scanned > mixed ? scanned : mixed;
}

// x (N, H W, C) -> y = z + mlp(norm2(z)), z = x + after(proj(norm(scans(norm(x))))). Null are the weights of `after` where
// there is no such norm, and those of the MLP's convolution.
extern "C" void group_mamba_forward(const int64_t* sizes, const float* epsilon, const float* const* w, const float* x,
                                    float* room, float* y) {
    const Shape s = shape_of(sizes);
    for (int64_t image = 0; image < s.n; image += s.together()) {
        const int64_t n = image + s.together() < s.n ? s.together() : s.n - image;
        const int64_t rows = n * s.length(), values = rows * s.channels;
        const float* from = x + image * s.length() * s.channels;
        float *to = y + image * s.length() * s.channels, *normal = room, *scanned = room + values;
        normalise(1, rows, s.channels, epsilon[NORM_EPSILON], from, w + NORM, w + NORM_BIAS, nullptr, normal);
        scans(s, n, epsilon, w, normal, scanned + values, scanned);
        normalise(1, rows, s.channels, epsilon[NORM_EPSILON], scanned, w + NORM, w + NORM_BIAS, nullptr, scanned);
        product(rows, s.channels, s.channels, scanned, w[PROJ], w[PROJ_BIAS], to, w[AFTER] ? nullptr : from);
        if (w[AFTER]) {
            normalise(1, rows, s.channels, epsilon[AFTER_EPSILON], to, w + AFTER, w + AFTER_BIAS, nullptr, to);
            add(values, from, to);
        }
        mlp(s, n, epsilon, w, room, to);
    }
}
