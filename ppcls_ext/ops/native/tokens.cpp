// Depthwise 3x3 convolution, stride 1, of tokens (images, H, W, C), its bias and its activation, with the gradients.
//
// Channels lie side by side and are the lanes of vectors: no transposition to maps and back. Consecutive images share a
// set of weights. Every sum is made by one thread in one order.

#include <vector>

#include "steps.h"

namespace {

inline vec slope(vec z, int64_t activation) {
    if (activation == SILU) {
        vec s = sigmoid(z);
        return s * (1.0f + z * (1.0f - s));
    }
    if (activation == GELU) {
        vec distribution, density;
        normal(z, distribution, density);
        return distribution + z * density;
    }
    return all(1);
}

struct Shape : TokenShape {
    int64_t blocks() const { return (channels + LANES - 1) / LANES; }
    int64_t first(int64_t block) const {
        int64_t start = block * LANES;
        return start + LANES > channels && channels >= LANES ? channels - LANES : start;
    }
    int count() const { return channels < LANES ? channels : LANES; }
};

constexpr int TOGETHER = 4;  // places of a row

thread_local Scratch scratch;

// Of each set: (C, 9) -> (9, C), mirrored for the gradient of x
void by_tap(const Shape& s, const float* const* weight, float* to, bool mirrored) {
    for (int64_t set = 0; set < s.sets; set++)
        for (int64_t t = 0; t < 9; t++)
            for (int64_t c = 0; c < s.channels; c++) *to++ = weight[set][c * 9 + (mirrored ? 8 - t : t)];
}

// One row of places: out = bias + sum over taps of weights * x, through `finish`
template <class Finish>
void convolve_row(const Shape& s, const float* image, const float* weights, const float* bias, int64_t y,
                  const Finish& finish) {
    const int64_t step = s.channels, line = s.width * step, blocks = s.blocks();
    const int count = s.count();
    const int top = y > 0 ? 0 : 1, bottom = y + 1 < s.height ? 3 : 2;  // rows of the kernel that meet the map
    for (int64_t x = 0; x < s.width; x++) {
        const float* centre = image + y * line + x * step;
        if (x > 0 && x + TOGETHER < s.width) {  // several places share what they load
            for (int64_t block = 0; block < blocks; block++) {
                const int64_t c = s.first(block);
                const vec start = bias ? load(bias + c, count) : vec{};
                vec sums[TOGETHER] = {start, start, start, start};
                for (int i = top; i < bottom; i++) {
                    vec around[TOGETHER + 2];
#pragma GCC unroll 6
                    for (int p = 0; p < TOGETHER + 2; p++)
                        around[p] = load(centre + (i - 1) * line + (p - 1) * step + c, count);
#pragma GCC unroll 3
                    for (int j = 0; j < 3; j++) {
                        const vec w = load(weights + (3 * i + j) * step + c, count);
#pragma GCC unroll 4
                        for (int p = 0; p < TOGETHER; p++) sums[p] += w * around[p + j];
                    }
                }
#pragma GCC unroll 4
                for (int p = 0; p < TOGETHER; p++) finish((y * s.width + x + p) * step + c, sums[p]);
            }
            x += TOGETHER - 1;
        } else {
            const int left = x > 0 ? 0 : 1, right = x + 1 < s.width ? 3 : 2;
            for (int64_t block = 0; block < blocks; block++) {
                const int64_t c = s.first(block);
                vec a = bias ? load(bias + c, count) : vec{};
                for (int i = top; i < bottom; i++)
                    for (int j = left; j < right; j++)
                        a += load(weights + (3 * i + j) * step + c, count) *
                             load(centre + (i - 1) * line + (j - 1) * step + c, count);
                finish((y * s.width + x) * step + c, a);
            }
        }
    }
}

Shape shape_of(const int64_t* s) { return {{s[0], s[1], s[2], s[3], s[4]}}; }

// Where each set of (sets, size) lies
std::vector<const float*> parts(const float* from, int64_t sets, int64_t size) {
    std::vector<const float*> result(sets);
    for (int64_t i = 0; i < sets; i++) result[i] = from + i * size;
    return result;
}

}  // namespace

void convolve_tokens(const TokenShape& shape, int64_t activation, const float* x, const float* const* weight,
                     const float* const* bias, float* z, float* y) {
    const Shape s{shape};
    const int64_t image = s.height * s.width * s.channels;
    const int count = s.count();
    float* weights = scratch.of(s.sets * 9 * s.channels);
    by_tap(s, weight, weights, false);
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < s.sets * s.n * s.height; row++) {
        const int64_t own = row / s.height, set = own / s.n;
        float* out = y + own * image;
        float* inner = z ? z + own * image : nullptr;
        convolve_row(s, x + own * image, weights + set * 9 * s.channels, bias[set], row % s.height,
                     [&](int64_t at, vec value) {
                         if (inner) store(inner + at, value, count);
                         store(out + at, activated(value, activation), count);
                     });
    }
}

// sizes: sets, N, H, W, C. x (sets, N, H, W, C), weight (sets, C, 9), bias (sets, C) -> y; z, before the activation,
// where it is not null
extern "C" void tokens_forward(const int64_t* sizes, int64_t activation, const float* x, const float* weight,
                               const float* bias, float* z, float* y) {
    const Shape s = shape_of(sizes);
    convolve_tokens(s, activation, x, parts(weight, s.sets, s.channels * 9).data(),
                    parts(bias, s.sets, s.channels).data(), z, y);
}

// z is null without an activation; inner_gradient is room for the gradient of z, of its size, or null without one
extern "C" void tokens_backward(const int64_t* sizes, int64_t activation, const float* x, const float* weight,
                                const float* z, const float* g, float* inner_gradient, float* x_gradient,
                                float* weight_gradient, float* bias_gradient) {
    const Shape s = shape_of(sizes);
    const int64_t image = s.height * s.width * s.channels, all_values = s.sets * s.n * image;
    const int count = s.count();
    if (z) {
        const int64_t whole = all_values / LANES;
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < whole; i++)
            store(inner_gradient + i * LANES, load(g + i * LANES) * slope(load(z + i * LANES), activation));
        const int64_t rest = whole * LANES;
        const int left = all_values - rest;
        if (left) store(inner_gradient + rest, load(g + rest, left) * slope(load(z + rest, left), activation), left);
        g = inner_gradient;
    }
    if (x_gradient) {
        float* weights = scratch.of(s.sets * 9 * s.channels);
        by_tap(s, parts(weight, s.sets, s.channels * 9).data(), weights, true);
#pragma omp parallel for schedule(static)
        for (int64_t row = 0; row < s.sets * s.n * s.height; row++) {
            const int64_t own = row / s.height, set = own / s.n;
            float* out = x_gradient + own * image;
            convolve_row(s, g + own * image, weights + set * 9 * s.channels, nullptr, row % s.height,
                         [&](int64_t at, vec value) { store(out + at, value, count); });
        }
    }
    if (!weight_gradient && !bias_gradient) return;
#pragma omp parallel for schedule(static)
    for (int64_t item = 0; item < s.sets * s.blocks(); item++) {
        const int64_t set = item / s.blocks(), c = s.first(item % s.blocks()), step = s.channels, line = s.width * step;
        vec sums[9] = {}, bias_sum = {};
        for (int64_t own = set * s.n; own < (set + 1) * s.n; own++)
            for (int64_t y = 0; y < s.height; y++)
                for (int64_t p = 0; p < s.width; p++) {
                    const int64_t at = own * image + y * line + p * step + c;
                    const vec g_v = load(g + at, count);
                    const float* centre = x + at;
                    bias_sum += g_v;
                    if (y > 0 && y + 1 < s.height && p > 0 && p + 1 < s.width) {
                        for (int i = 0; i < 3; i++)
                            for (int j = 0; j < 3; j++)
                                sums[3 * i + j] += g_v * load(centre + (i - 1) * line + (j - 1) * step, count);
                    } else {
                        for (int i = 0; i < 3; i++)
                            for (int j = 0; j < 3; j++)
                                if (y + i > 0 && y + i <= s.height && p + j > 0 && p + j <= s.width)
                                    sums[3 * i + j] += g_v * load(centre + (i - 1) * line + (j - 1) * step, count);
                    }
                }
        for (int lane = 0; lane < count; lane++) {
            for (int t = 0; t < 9 && weight_gradient; t++)
                weight_gradient[(set * s.channels + c + lane) * 9 + t] = sums[t][lane];
            if (bias_gradient) bias_gradient[set * s.channels + c + lane] = bias_sum[lane];
        }
    }
}
