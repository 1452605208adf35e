// Depthwise convolution with channels side by side in a vector.
//
// As many maps of an image as a vector has lanes are turned into a vector a place, with their padding, and the results
// are turned back. No sum crosses lanes, rows need not be as long as vectors, and a stride is only a matter of where
// places are put. Tasks are blocks of channels and, where these are few, parts of the batch: as many whatever the
// number of threads. Every sum is made by one thread in one order, image by image.

#include <algorithm>
#include <vector>

#include "depthwise.h"

namespace {

constexpr int64_t MOST_TAPS = 128;
constexpr int64_t MOST_FLOATS = 384 * 1024;  // of one task's maps: three quarters of a second-level cache of 2 MB
constexpr int64_t IDLE_PLACES = 400;         // of a map, up to which it pays with idle threads or lanes, too
constexpr int64_t ENOUGH_TASKS = 8;
constexpr int TILE = 8;   // places computed at once: the weight of a tap is loaded once for them
constexpr int STRIP = 9;  // taps whose gradients are kept in registers at once

struct Range {
    int64_t first, last;
};

// of the places `place * stride + phase`: those between `before` and `before + size`, of `most`
Range within(int64_t size, int64_t before, int64_t stride, int64_t phase, int64_t most) {
    const int64_t first = phase < before ? (before - phase + stride - 1) / stride : 0;
    const int64_t last = (std::max<int64_t>(size + before - phase, 0) + stride - 1) / stride;
    return {std::min(first, most), std::min(last, most)};
}

// Where everything lies, counted in floats; phases as in maps.h, each with its padding, and a place that nobody uses.
struct Lanes {
    Depthwise s;
    int64_t plane, spread_map, blocks, chunks;
    std::vector<int32_t> map_places, out_places;  // of each place of a map, and of one of the output
    std::vector<int32_t> in_order;                // of each tap, or multiple
    std::vector<int64_t> from;                    // of each tap

    explicit Lanes(const Depthwise& s)
        : s(s), plane(s.lines() * s.line()), spread_map((s.reach() + plane) * LANES),
          blocks((s.channels + LANES - 1) / LANES),
          chunks(std::min(s.n, (ENOUGH_TASKS + blocks - 1) / blocks)), map_places(s.height * s.width, nowhere()),
          out_places(s.out_height * s.out_width), in_order(MOST_TAPS), from(s.taps()) {
        for (int64_t phase = 0; phase < s.phases(); phase++) {
            const Range y = lines_of(phase), x = places_of(phase);
            const int64_t row = phase / s.stride_x - s.top, column = phase % s.stride_x - s.left;
            for (int64_t i = y.first; i < y.last; i++)
                for (int64_t j = x.first; j < x.last; j++)
                    map_places[(i * s.stride_y + row) * s.width + j * s.stride_x + column] =
                        (phase * plane + i * s.line() + j) * LANES;
        }
        for (int64_t y = 0; y < s.out_height; y++)
            for (int64_t x = 0; x < s.out_width; x++)
                out_places[y * s.out_width + x] = (s.reach() + y * s.line() + x) * LANES;
        for (int64_t i = 0; i < MOST_TAPS; i++) in_order[i] = i * LANES;
        for (int64_t t = 0; t < s.taps(); t++) from[t] = (s.phase(t) * plane + s.shift(t)) * LANES;
    }

    Range lines_of(int64_t phase) const { return within(s.height, s.top, s.stride_y, phase / s.stride_x, s.lines()); }
    Range places_of(int64_t phase) const { return within(s.width, s.left, s.stride_x, phase % s.stride_x, s.line()); }
    int64_t nowhere() const { return s.phases() * plane * LANES; }
    int64_t maps() const { return nowhere() + LANES; }
    int own(int64_t block) const { return lanes(s.channels - block * LANES); }
    int64_t first_image(int64_t chunk) const { return chunk * s.n / chunks; }
};

// rows[j][i] = from[i][j]
inline void turned(const float* const* from, vec* rows) {
#if defined(__AVX__)
    // fours of lanes are put together while they are loaded: half as many shuffles
#pragma GCC unroll 4
    for (int q = 0; q < LANES; q += 4) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
#if defined(__AVX512F__)
            __m512 four = _mm512_castps128_ps512(_mm_loadu_ps(from[i] + q));
            four = _mm512_mask_broadcast_f32x4(four, 0x00f0, _mm_loadu_ps(from[i + 4] + q));
            four = _mm512_mask_broadcast_f32x4(four, 0x0f00, _mm_loadu_ps(from[i + 8] + q));
            rows[q + i] = _mm512_mask_broadcast_f32x4(four, 0xf000, _mm_loadu_ps(from[i + 12] + q));
#else
            const __m256 low = _mm256_castps128_ps256(_mm_loadu_ps(from[i] + q));
            rows[q + i] = _mm256_insertf128_ps(low, _mm_loadu_ps(from[i + 4] + q), 1);
#endif
        }
        transpose_fours(rows + q);
    }
#else
    for (int i = 0; i < LANES; i++) rows[i] = load(from[i]);
    transpose(rows);
#endif
}

// `count` rows of `length`, `stride` apart, -> a vector a column, at to[places[column]]; lanes from `count` on repeat the
// last row. What lies `ahead` of the rows is fetched: they are too many streams for the processor to guess.
void into_lanes(const float* from, int64_t stride, int count, int64_t length, float* to, const int32_t* places,
                int64_t ahead = 0) {
    const float* in[LANES];
    float whole[LANES * LANES];
    vec rows[LANES];
    for (int64_t next = 0; next < length; next += LANES) {
        const int64_t i = std::max<int64_t>(std::min(next, length - LANES), 0);  // the last ones overlap
        const int own = lanes(length - i);
        for (int c = 0; c < LANES; c++) {
            in[c] = from + std::min(c, count - 1) * stride + i;
            __builtin_prefetch(in[c] + ahead, 0, 2);
            if (own == LANES) continue;
            store(whole + c * LANES, load(in[c], own));
            in[c] = whole + c * LANES;
        }
        turned(in, rows);
        for (int j = 0; j < own; j++) store(to + places[i + j], rows[j]);
    }
}

// the reverse
void out_of_lanes(const float* from, const int32_t* places, float* to, int64_t stride, int count, int64_t length,
                  int64_t ahead = 0) {
    const float* in[LANES];
    vec rows[LANES];
    for (int64_t next = 0; next < length; next += LANES) {
        const int64_t i = std::max<int64_t>(std::min(next, length - LANES), 0);
        const int own = lanes(length - i);
        for (int j = 0; j < LANES; j++) in[j] = from + places[i + std::min(j, own - 1)];
        turned(in, rows);
        for (int c = 0; c < count; c++) {
            __builtin_prefetch(to + c * stride + i + ahead, 1, 2);
            store(to + c * stride + i, rows[c], own);
        }
    }
}

// COUNT neighbours: start + sum over taps of weights[t] * in[from[t]]
template <int COUNT>
void correlate(float* out, const float* in, const int64_t* from, const float* weights, int64_t taps, vec start) {
    vec sums[COUNT];
    for (int i = 0; i < COUNT; i++) sums[i] = start;
    for (int64_t t = 0; t < taps; t++) {
        const vec w = load(weights + t * LANES);
        const float* x = in + from[t];
#pragma GCC unroll 8
        for (int i = 0; i < COUNT; i++) sums[i] = fused(w, load(x + i * LANES), sums[i]);
    }
    for (int i = 0; i < COUNT; i++) store(out + i * LANES, sums[i]);
}

void correlate(float* out, const float* in, int64_t length, const int64_t* from, const float* weights, int64_t taps,
               vec start) {
    while (length > 0) {
        const int64_t count = length < TILE ? length : length < 2 * TILE ? (length + 1) / 2 : TILE;
        switch (count) {
            case 1: correlate<1>(out, in, from, weights, taps, start); break;
            case 2: correlate<2>(out, in, from, weights, taps, start); break;
            case 3: correlate<3>(out, in, from, weights, taps, start); break;
            case 4: correlate<4>(out, in, from, weights, taps, start); break;
            case 5: correlate<5>(out, in, from, weights, taps, start); break;
            case 6: correlate<6>(out, in, from, weights, taps, start); break;
            case 7: correlate<7>(out, in, from, weights, taps, start); break;
            default: correlate<TILE>(out, in, from, weights, taps, start);
        }
        out += count * LANES, in += count * LANES, length -= count;
    }
}

// sums[t] += over the places of g: g * map[from[t]]
template <int COUNT>
void products(float* sums, const float* g, const float* map, const int64_t* from, const Maps& s) {
    vec kept[COUNT] = {};
    const float* taps[COUNT];
    for (int t = 0; t < COUNT; t++) taps[t] = map + from[t];
    for (int64_t y = 0; y < s.out_height; y++) {
        const int64_t begin = y * s.line() * LANES, end = begin + s.out_width * LANES;
        for (int64_t i = begin; i < end; i += LANES) {
            const vec own = load(g + i);
#pragma GCC unroll 9
            for (int t = 0; t < COUNT; t++) kept[t] = fused(own, load(taps[t] + i), kept[t]);
        }
    }
    for (int t = 0; t < COUNT; t++) store(sums + t * LANES, load(sums + t * LANES) + kept[t]);
}

void products(float* sums, const float* g, const float* map, const int64_t* from, int64_t taps, const Maps& s) {
    int64_t strips = (taps + STRIP - 1) / STRIP;
    for (; strips > 0; strips--) {
        const int64_t count = (taps + strips - 1) / strips;
        switch (count) {
            case 1: products<1>(sums, g, map, from, s); break;
            case 2: products<2>(sums, g, map, from, s); break;
            case 3: products<3>(sums, g, map, from, s); break;
            case 4: products<4>(sums, g, map, from, s); break;
            case 5: products<5>(sums, g, map, from, s); break;
            case 6: products<6>(sums, g, map, from, s); break;
            case 7: products<7>(sums, g, map, from, s); break;
            case 8: products<8>(sums, g, map, from, s); break;
            default: products<STRIP>(sums, g, map, from, s);
        }
        sums += count * LANES, from += count, taps -= count;
    }
}

thread_local Scratch scratch;

}  // namespace

bool lanes_pay(const Depthwise& s) {
    const int64_t plane = s.lines() * s.line(), blocks = (s.channels + LANES - 1) / LANES;
    const bool idle = s.n * blocks < 4 || 2 * s.channels <= blocks * LANES;  // threads or lanes
    if (idle && plane * s.phases() > IDLE_PLACES) return false;
    return s.taps() * s.multiplier <= MOST_TAPS && (2 * s.phases() + s.multiplier) * plane * LANES <= MOST_FLOATS;
}

void lanes_forward(const Depthwise& s, const float* x, const float* weight, const float* bias, float* y) {
    const Lanes l(s);
    const int64_t taps = s.taps(), map = s.height * s.width, out_map = s.out_height * s.out_width, m = s.multiplier;
#pragma omp parallel for schedule(static)
    for (int64_t task = 0; task < l.blocks * l.chunks; task++) {
        const int64_t first = task / l.chunks * LANES, chunk = task % l.chunks;
        const int own = l.own(task / l.chunks);
        float* laid = scratch.of(l.maps() + l.spread_map + m * (taps + 1) * LANES);
        float* out = laid + l.maps();
        float* weights = out + l.spread_map;
        float* starts = weights + m * taps * LANES;
        std::memset(laid, 0, l.maps() * sizeof(float));
        for (int64_t j = 0; j < m; j++)
            into_lanes(weight + (first * m + j) * taps, m * taps, own, taps, weights + j * taps * LANES,
                       l.in_order.data());
        std::memset(starts, 0, m * LANES * sizeof(float));
        if (bias) into_lanes(bias + first * m, m, own, m, starts, l.in_order.data());
        for (int64_t image = l.first_image(chunk); image < l.first_image(chunk + 1); image++) {
            const int64_t channel = image * s.channels + first;
            const int64_t next = image + 1 < l.first_image(chunk + 1) ? s.channels : 0;
            into_lanes(x + channel * map, map, own, map, laid, l.map_places.data(), next * map);
            for (int64_t j = 0; j < m; j++) {
                for (int64_t row = 0; row < s.out_height; row++)
                    correlate(out + l.out_places[row * s.out_width], laid + row * s.line() * LANES, s.out_width,
                              l.from.data(), weights + j * taps * LANES, taps, load(starts + j * LANES));
                out_of_lanes(out, l.out_places.data(), y + (channel * m + j) * out_map, m * out_map, own, out_map,
                             next * m * out_map);
            }
        }
    }
}

void lanes_backward(const Depthwise& s, const float* x, const float* weight, const float* g, float* x_gradient,
                    float* weight_gradient, float* bias_gradient) {
    const Lanes l(s);
    const int64_t taps = s.taps(), map = s.height * s.width, out_map = s.out_height * s.out_width, m = s.multiplier;
    // the taps of each phase, all multiplied channels' one behind the other
    std::vector<int64_t> tap, back_from, phase_begin;
    for (int64_t phase = 0; phase < s.phases(); phase++) {
        phase_begin.push_back(tap.size());
        for (int64_t t = 0; t < m * taps; t++)
            if (s.phase(t % taps) == phase) {
                tap.push_back(t);
                back_from.push_back(t / taps * l.spread_map + (s.reach() - s.shift(t % taps)) * LANES);
            }
    }
    phase_begin.push_back(tap.size());
    const int64_t sums_size = m * (taps + 1) * LANES;
    std::vector<float> sums(l.blocks * l.chunks * sums_size);
#pragma omp parallel for schedule(static)
    for (int64_t task = 0; task < l.blocks * l.chunks; task++) {
        const int64_t first = task / l.chunks * LANES, chunk = task % l.chunks;
        const int own = l.own(task / l.chunks);
        float* laid = scratch.of(2 * l.maps() + m * (l.spread_map + 2 * taps * LANES));
        float* back = laid + l.maps();
        float* spread_g = back + l.maps();
        float* weights = spread_g + m * l.spread_map;
        float* sorted = weights + m * taps * LANES;
        float* weight_sums = sums.data() + task * sums_size;
        float* bias_sums = weight_sums + m * taps * LANES;
        std::memset(laid, 0, (2 * l.maps() + m * l.spread_map) * sizeof(float));
        for (int64_t j = 0; j < m; j++)
            into_lanes(weight + (first * m + j) * taps, m * taps, own, taps, weights + j * taps * LANES,
                       l.in_order.data());
        for (int64_t t = 0; t < m * taps; t++) store(sorted + t * LANES, load(weights + tap[t] * LANES));
        for (int64_t image = l.first_image(chunk); image < l.first_image(chunk + 1); image++) {
            const int64_t channel = image * s.channels + first;
            const int64_t next = image + 1 < l.first_image(chunk + 1) ? s.channels : 0;
            for (int64_t j = 0; j < m; j++)
                into_lanes(g + (channel * m + j) * out_map, m * out_map, own, out_map, spread_g + j * l.spread_map,
                           l.out_places.data(), next * m * out_map);
            if (weight_gradient) into_lanes(x + channel * map, map, own, map, laid, l.map_places.data(), next * map);
            for (int64_t j = 0; j < m; j++) {
                const float* own_g = spread_g + j * l.spread_map + s.reach() * LANES;
                if (weight_gradient)
                    products(weight_sums + j * taps * LANES, own_g, laid, l.from.data(), taps, s);
                if (bias_gradient) {
                    vec total = {};
                    for (int64_t i = 0; i < l.plane; i++) total += load(own_g + i * LANES);  // 0 between the rows
                    store(bias_sums + j * LANES, load(bias_sums + j * LANES) + total);
                }
            }
            if (!x_gradient) continue;
            for (int64_t phase = 0; phase < s.phases(); phase++) {
                const Range rows = l.lines_of(phase), places = l.places_of(phase);
                const int64_t begin = phase_begin[phase], count = phase_begin[phase + 1] - begin;
                for (int64_t row = rows.first; row < rows.last; row++) {
                    const int64_t at = (row * s.line() + places.first) * LANES;
                    correlate(back + phase * l.plane * LANES + at, spread_g + at, places.last - places.first,
                              back_from.data() + begin, sorted + begin * LANES, count, vec{});
                }
            }
            out_of_lanes(back, l.map_places.data(), x_gradient + channel * map, map, own, map, next * map);
        }
    }
    for (int64_t block = 0; block < l.blocks; block++) {
        float* total = sums.data() + block * l.chunks * sums_size;
        for (int64_t chunk = 1; chunk < l.chunks; chunk++)
            for (int64_t i = 0; i < sums_size; i++) total[i] += total[chunk * sums_size + i];
        const int64_t first = block * LANES * m;
        if (bias_gradient) out_of_lanes(total + m * taps * LANES, l.in_order.data(), bias_gradient + first, m, l.own(block), m);
        for (int64_t j = 0; j < m && weight_gradient; j++)
            out_of_lanes(total + j * taps * LANES, l.in_order.data(), weight_gradient + (first + j) * taps, m * taps,
                         l.own(block), taps);
    }
}
