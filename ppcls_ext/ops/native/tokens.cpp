// Depthwise 3x3 convolution, stride 1, of tokens (images, H, W, C), its bias and its activation, with the gradients.
//
// Channels lie side by side and are the lanes of vectors: no transposition to maps and back. Consecutive images share a
// set of weights. Every sum is made by one thread in one order.

#include <algorithm>
#include <vector>

#include "steps.h"

namespace {

inline vec slope(vec z, int64_t activation) {
    if (activation == SILU) {
        vec s = sigmoid(z);
        return s * fused(z, 1.0f - s, 1.0f);
    }
    if (activation == GELU || activation == RATIONAL_GELU) {
        vec distribution, density;
        normal(z, distribution, density);
        return fused(z, density, distribution);
    }
    return all(1);
}

struct Shape : TokenShape {
    int64_t blocks() const { return (channels + LANES - 1) / LANES; }
    int64_t first(int64_t block) const {
        int64_t start = block * LANES;
        return start + LANES > channels && channels >= LANES ? channels - LANES : start;
    }
    int64_t line() const { return width * channels; }
    int count() const { return channels < LANES ? channels : LANES; }
};

constexpr int TOGETHER = 4;  // places of a row
// Places of a row that pass by a block's weights while these are in registers; the first time one more, the row's edge.
constexpr int64_t SPAN = 2 * TOGETHER;
constexpr int SUMS = 10;     // gradients of nine weights and a bias
constexpr int64_t STRIP = 24;  // rows of which one thread makes such sums, never a matter of how many there are

thread_local Scratch scratch, passing;

// (C, 9) -> (9, C), mirrored for the gradient of x
void by_tap(int64_t channels, const float* weight, float* to, bool mirrored) {
    for (int64_t t = 0; t < 9; t++)
        for (int64_t c = 0; c < channels; c++) *to++ = weight[c * 9 + (mirrored ? 8 - t : t)];
}

void by_tap(const Shape& s, const float* const* weight, float* to, bool mirrored) {
    for (int64_t set = 0; set < s.sets; set++) by_tap(s.channels, weight[set], to + set * 9 * s.channels, mirrored);
}

// The rows of x that those of the kernel meet, null beyond the map
struct Around {
    const float* rows[3];
    int top() const { return rows[0] ? 0 : 1; }
    int bottom() const { return rows[2] ? 3 : 2; }
};

Around around(const Shape& s, const float* image, int64_t y) {
    const float* row = image + y * s.line();
    return {{y > 0 ? row - s.line() : nullptr, row, y + 1 < s.height ? row + s.line() : nullptr}};
}

template <int COUNT>
inline void store_places(float* to, int64_t step, const vec (&values)[COUNT], int count) {
#pragma GCC unroll 4
    for (int i = 0; i < COUNT; i++) store(to + i * step, values[i], count);
}

// The channels of a block in a row's places from `x` to `end`, of the kernel's rows those from TOP to BOTTOM; WHOLE: a
// vector of channels
template <bool WHOLE, int TOP, int BOTTOM, class Finish>
void convolve_block(const Shape& s, const Around& from, const float* weights, const float* bias, int64_t c, int64_t y,
                    int64_t x, int64_t end, const Finish& finish) {
    const int count = WHOLE ? LANES : s.count();
    const vec start = bias ? load(bias + c, count) : vec{};
    vec taps[9];
#pragma GCC unroll 9
    for (int t = 3 * TOP; t < 3 * BOTTOM; t++) taps[t] = load(weights + t * s.channels + c, count);
    const auto value = [&](int i, int64_t x) { return load(from.rows[i] + x * s.channels + c, count); };
    for (; x < end; x++) {
        // several places share what they load; the last of them may be there already
        if (x > 0 && x + 1 < s.width && s.width >= TOGETHER + 2) {
            x = std::min(x, s.width - 1 - TOGETHER);
            vec sums[TOGETHER] = {start, start, start, start};
#pragma GCC unroll 3
            for (int i = TOP; i < BOTTOM; i++) {
                vec near[TOGETHER + 2];
#pragma GCC unroll 6
                for (int p = 0; p < TOGETHER + 2; p++) near[p] = value(i, x + p - 1);
#pragma GCC unroll 3
                for (int j = 0; j < 3; j++)
#pragma GCC unroll 4
                    for (int p = 0; p < TOGETHER; p++) sums[p] = fused(taps[3 * i + j], near[p + j], sums[p]);
            }
            finish(y * s.width + x, c, sums);
            x += TOGETHER - 1;
        } else {
            vec sums[1] = {start}, &sum = sums[0];
#pragma GCC unroll 3
            for (int i = TOP; i < BOTTOM; i++) {
                if (x > 0) sum = fused(taps[3 * i], value(i, x - 1), sum);
                sum = fused(taps[3 * i + 1], value(i, x), sum);
                if (x + 1 < s.width) sum = fused(taps[3 * i + 2], value(i, x + 1), sum);
            }
            finish(y * s.width + x, c, sums);
        }
    }
}

template <int TOP, int BOTTOM, class Finish>
void convolve_blocks(const Shape& s, const Around& from, const float* weights, const float* bias, int64_t y,
                     const Finish& finish) {
    for (int64_t x = 0, end; x < s.width; x = end) {
        end = std::min(x + (x == 0 ? SPAN + 1 : SPAN), s.width);
        for (int64_t block = 0; block < s.blocks(); block++)
            if (s.channels >= LANES)
                convolve_block<true, TOP, BOTTOM>(s, from, weights, bias, s.first(block), y, x, end, finish);
            else
                convolve_block<false, TOP, BOTTOM>(s, from, weights, bias, 0, y, x, end, finish);
    }
}

// One row of places: out = bias + sum over taps of weights * x, through finish(first place, channel, values of places)
template <class Finish>
void convolve_row(const Shape& s, const Around& from, const float* weights, const float* bias, int64_t y,
                  const Finish& finish) {
    if (from.rows[0] && from.rows[2])
        convolve_blocks<0, 3>(s, from, weights, bias, y, finish);
    else if (from.rows[0])
        convolve_blocks<0, 2>(s, from, weights, bias, y, finish);
    else if (from.rows[2])
        convolve_blocks<1, 3>(s, from, weights, bias, y, finish);
    else
        convolve_blocks<1, 2>(s, from, weights, bias, y, finish);
}

// sums[tap] += g * x of one row of places, the last of the sums without x: (blocks, 10, LANES)
void add_row(const Shape& s, const Around& from, const float* g, float* kept) {
    const int64_t step = s.channels;
    const int count = s.count(), top = from.top(), bottom = from.bottom();
    for (int64_t block = 0; block < s.blocks(); block++, kept += SUMS * LANES) {
        const int64_t c = s.first(block);
        vec sums[SUMS];
#pragma GCC unroll 10
        for (int t = 0; t < SUMS; t++) sums[t] = load(kept + t * LANES);
        for (int64_t x = 0; x < s.width; x++) {
            if (x > 0 && x + TOGETHER < s.width && top == 0 && bottom == 3) {
                vec own[TOGETHER];
#pragma GCC unroll 4
                for (int p = 0; p < TOGETHER; p++) sums[9] += own[p] = load(g + (x + p) * step + c, count);
#pragma GCC unroll 3
                for (int i = 0; i < 3; i++) {
                    vec near[TOGETHER + 2];
#pragma GCC unroll 6
                    for (int p = 0; p < TOGETHER + 2; p++)
                        near[p] = load(from.rows[i] + (x + p - 1) * step + c, count);
#pragma GCC unroll 3
                    for (int j = 0; j < 3; j++)
#pragma GCC unroll 4
                        for (int p = 0; p < TOGETHER; p++) sums[3 * i + j] = fused(own[p], near[p + j], sums[3 * i + j]);
                }
                x += TOGETHER - 1;
                continue;
            }
            const vec own = load(g + x * step + c, count);
            sums[9] += own;
#pragma GCC unroll 3
            for (int i = 0; i < 3; i++)
#pragma GCC unroll 3
                for (int j = 0; j < 3; j++)
                    if (i >= top && i < bottom && x + j > 0 && x + j <= s.width)
                        sums[3 * i + j] = fused(own, load(from.rows[i] + (x + j - 1) * step + c, count), sums[3 * i + j]);
        }
#pragma GCC unroll 10
        for (int t = 0; t < SUMS; t++) store(kept + t * LANES, sums[t]);
    }
}

Shape shape_of(const int64_t* s) { return {{s[0], s[1], s[2], s[3], s[4]}}; }

// Where each set of (sets, size) lies
std::vector<const float*> by_set(const float* from, int64_t sets, int64_t size) {
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
        convolve_row(s, around(s, x + own * image, row % s.height), weights + set * 9 * s.channels, bias[set], row % s.height,
                     [&](int64_t place, int64_t c, auto& values) {
                         const int64_t at = place * s.channels + c;
                         if (inner) store_places(inner + at, s.channels, values, count);
                         activate(values, activation);
                         store_places(out + at, s.channels, values, count);
                     });
    }
}

void by_tap(int64_t channels, const float* weight, float* to) { by_tap(channels, weight, to, false); }

void convolve_tokens_row(int64_t width, int64_t channels, int64_t activation, const float* const rows[3],
                         const float* taps, const float* bias, float* y, int64_t y_step) {
    const Shape s{{1, 1, 1, width, channels}};
    const int count = s.count();
    convolve_row(s, {{rows[0], rows[1], rows[2]}}, taps, bias, 0, [&](int64_t place, int64_t c, auto& values) {
        activate(values, activation);
        store_places(y + place * y_step + c, y_step, values, count);
    });
}

// sizes: sets, N, H, W, C. x (sets, N, H, W, C), weight (sets, C, 9), bias (sets, C) -> y; z, before the activation,
// where it is not null
extern "C" void tokens_forward(const int64_t* sizes, int64_t activation, const float* x, const float* weight,
                               const float* bias, float* z, float* y) {
    const Shape s = shape_of(sizes);
    convolve_tokens(s, activation, x, by_set(weight, s.sets, s.channels * 9).data(),
                    by_set(bias, s.sets, s.channels).data(), z, y);
}

// z is null without an activation. An image's rows pass once: what the next step needs of them is in the cache.
extern "C" void tokens_backward(const int64_t* sizes, int64_t activation, const float* x, const float* weight,
                                const float* z, const float* g, float* x_gradient, float* weight_gradient,
                                float* bias_gradient) {
    const Shape s = shape_of(sizes);
    const int64_t line = s.line(), image = s.height * line, own_size = s.blocks() * SUMS * LANES;
    const int64_t wanted = (s.height + STRIP - 1) / STRIP, strip = (s.height + wanted - 1) / wanted;
    const int64_t strips = (s.height + strip - 1) / strip, per_set = s.n * strips;
    const int count = s.count();
    const bool sums_wanted = weight_gradient || bias_gradient;
    float* weights = scratch.of(s.sets * (9 * s.channels + per_set * own_size));
    float* parts = weights + s.sets * 9 * s.channels;
    by_tap(s, by_set(weight, s.sets, s.channels * 9).data(), weights, true);
#pragma omp parallel for schedule(static)
    for (int64_t item = 0; item < s.sets * per_set; item++) {
        const int64_t own = item / strips, set = own / s.n, begin = item % strips * strip;
        const int64_t end = begin + strip < s.height ? begin + strip : s.height;
        float *ring = passing.of(3 * line), *sums = parts + item * own_size;
        std::memset(sums, 0, own_size * sizeof(float));
        // of the gradient of what goes into the activation
        const auto row_of = [&](int64_t y) { return z ? ring + y % 3 * line : g + own * image + y * line; };
        const auto prepare = [&](int64_t y) {
            if (!z || y < 0 || y >= s.height) return;
            const int64_t from = own * image + y * line;
            float* to = ring + y % 3 * line;
            for (int64_t i = 0; i < line; i += LANES) {
                const int left = lanes(line - i);
                store(to + i, load(g + from + i, left) * slope(load(z + from + i, left), activation), left);
            }
        };
        prepare(begin - 1);
        prepare(begin);
        for (int64_t y = begin; y < end; y++) {
            prepare(y + 1);
            if (x_gradient) {
                const Around rows{{y > 0 ? row_of(y - 1) : nullptr, row_of(y), y + 1 < s.height ? row_of(y + 1) : nullptr}};
                float* out = x_gradient + own * image;
                convolve_row(s, rows, weights + set * 9 * s.channels, nullptr, y,
                             [&](int64_t place, int64_t c, const auto& values) {
                                 store_places(out + place * s.channels + c, s.channels, values, count);
                             });
            }
            if (sums_wanted) add_row(s, around(s, x + own * image, y), row_of(y), sums);
        }
    }
    if (!sums_wanted) return;
    for (int64_t item = 0; item < s.sets * s.blocks(); item++) {
        const int64_t set = item / s.blocks(), block = item % s.blocks(), c = set * s.channels + s.first(block);
        for (int t = 0; t < SUMS; t++) {
            vec sum = {};
            for (int64_t part = 0; part < per_set; part++)
                sum += load(parts + (set * per_set + part) * own_size + (block * SUMS + t) * LANES);
            for (int lane = 0; lane < count; lane++) {
                if (t < 9 && weight_gradient) weight_gradient[(c + lane) * 9 + t] = sum[lane];
                if (t == 9 && bias_gradient) bias_gradient[c + lane] = sum[lane];
            }
        }
    }
}
