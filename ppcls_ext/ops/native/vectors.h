// Vectors of floats as wide as the processor's registers, and the functions that the operators need of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

// loaded from and stored to any address of a float
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

inline vec all(float value) { return value - vec{}; }
inline vec load(const float* from) { return *reinterpret_cast<const vec*>(from); }
inline void store(float* to, vec value) { *reinterpret_cast<vec*>(to) = value; }

#if defined(__AVX__) && !defined(__AVX512F__)
// all bits of the first `count` lanes
inline __m256i mask_of(int count) {
    alignas(64) static constexpr int32_t EDGE[2 * LANES] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(EDGE + LANES - count));
}
#endif

// the first `count` lanes alone, the others 0
inline vec load(const float* from, int count) {
    if (count >= LANES) return load(from);
#if defined(__AVX512F__)
    return _mm512_maskz_loadu_ps((1u << count) - 1, from);
#elif defined(__AVX__)
    return _mm256_maskload_ps(from, mask_of(count));
#else
    vec result = {};
    for (int i = 0; i < count; i++) result[i] = from[i];
    return result;
#endif
}
inline void store(float* to, vec value, int count) {
    if (count >= LANES) return store(to, value);
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(to, (1u << count) - 1, value);
#elif defined(__AVX__)
    // in halves: masked stores take tens of cycles on some processors
    __m128 left = _mm256_castps256_ps128(value);
    if (count & 4) {
        _mm_storeu_ps(to, left);
        left = _mm256_extractf128_ps(value, 1);
        to += 4;
    }
    if (count & 2) {
        _mm_storel_pi(reinterpret_cast<__m64*>(to), left);
        left = _mm_movehl_ps(left, left);
        to += 2;
    }
    if (count & 1) _mm_store_ss(to, left);
#else
    for (int i = 0; i < count; i++) to[i] = value[i];
#endif
}

// a b + c, rounded once where the processor can. The compiler is told to make none of its own (-ffp-contract=off): which
// sums it fuses depends on where they stand, and the same sum would have other bits in another place.
inline vec fused(vec a, vec b, vec c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
    return _mm256_fmadd_ps(a, b, c);
#else
    return a * b + c;
#endif
}
inline vec fused(vec a, vec b, float c) { return fused(a, b, all(c)); }
inline vec fused(vec a, float b, float c) { return fused(a, all(b), all(c)); }

// of `left` values: how many the next vector takes
inline int lanes(int64_t left) { return left < 0 ? 0 : left < LANES ? left : LANES; }

// of a and b one behind the other: LANES values from `start` on, every `step`-th
template <int START, int STEP>
inline vec every(vec a, vec b) {
    ivec places;
    for (int i = 0; i < LANES; i++) places[i] = START + i * STEP;
    return __builtin_shuffle(a, b, places);
}

// the first, or the second, half of a0 b0 a1 b1 ...
template <int HALF>
inline vec interleaved(vec a, vec b) {
    ivec places;
    for (int i = 0; i < LANES; i++) places[i] = HALF * LANES / 2 + i / 2 + i % 2 * LANES;
    return __builtin_shuffle(a, b, places);
}

// of each four lanes the first, or the last, two: a0 b0 a1 b1, or in pairs a0 a1 b0 b1
template <int HALF, bool PAIRS>
inline vec interleaved_fours(vec a, vec b) {
    ivec places;
    for (int i = 0; i < LANES; i++) {
        const int one = i % 2, two = i % 4 / 2;
        places[i] = i / 4 * 4 + HALF * 2 + (PAIRS ? one + two * LANES : two + one * LANES);
    }
    return __builtin_shuffle(a, b, places);
}

// of four rows, every four lanes by themselves: rows[i][4 k + j] -> rows[j][4 k + i]
inline void transpose_fours(vec* rows) {
    const vec a = interleaved_fours<0, false>(rows[0], rows[1]), b = interleaved_fours<0, false>(rows[2], rows[3]);
    const vec c = interleaved_fours<1, false>(rows[0], rows[1]), d = interleaved_fours<1, false>(rows[2], rows[3]);
    rows[0] = interleaved_fours<0, true>(a, b);
    rows[1] = interleaved_fours<1, true>(a, b);
    rows[2] = interleaved_fours<0, true>(c, d);
    rows[3] = interleaved_fours<1, true>(c, d);
}

// rows[i][j] -> rows[j][i]
inline void transpose(vec* rows) {
#if defined(__AVX__) && !defined(__AVX512F__)
    // halves first: half as many shuffles
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const vec low = rows[i], high = rows[i + 4];
        rows[i] = _mm256_permute2f128_ps(low, high, 0x20);
        rows[i + 4] = _mm256_permute2f128_ps(low, high, 0x31);
    }
    transpose_fours(rows);
    transpose_fours(rows + 4);
#else
    for (int step = 1; step < LANES; step *= 2) {
        vec next[LANES];
#pragma GCC unroll 16
        for (int i = 0; i < LANES / 2; i++) {
            next[2 * i] = interleaved<0>(rows[i], rows[i + LANES / 2]);
            next[2 * i + 1] = interleaved<1>(rows[i], rows[i + LANES / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) rows[i] = next[i];
    }
#endif
}

// `value` in the first `count` lanes, 0 in the others
inline vec first(vec value, int count) {
    if (count >= LANES) return value;
#if defined(__AVX512F__)
    return _mm512_maskz_mov_ps((1u << count) - 1, value);
#elif defined(__AVX__)
    return _mm256_and_ps(value, _mm256_castsi256_ps(mask_of(count)));
#else
    for (int i = count; i < LANES; i++) value[i] = 0;
    return value;
#endif
}

// always in the same order, halves by halves, so that the bits are the same in every run
inline float sum(vec value) {
#if defined(__AVX512F__)
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(value),
                                       _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(value), 1)));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#endif
    float parts[LANES];
    store(parts, value);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) parts[i] += parts[i + half];
    return parts[0];
}

// with a NaN the second of the two; compilers make two instructions of a comparison with a constant
inline vec least(vec a, vec b) {
#if defined(__AVX512F__)
    return _mm512_min_ps(a, b);
#elif defined(__AVX__)
    return _mm256_min_ps(a, b);
#else
    return a < b ? a : b;
#endif
}
inline vec most(vec a, vec b) {
#if defined(__AVX512F__)
    return _mm512_max_ps(a, b);
#elif defined(__AVX__)
    return _mm256_max_ps(a, b);
#else
    return a > b ? a : b;
#endif
}

// 1 / x, within two units of the last place of a float; x is not infinite
inline vec inverse(vec x) {
#if defined(__AVX512F__)
    const vec y = _mm512_rcp14_ps(x);
    return fused(y, fused(-x, y, 1.0f), y);
#endif
    return 1.0f / x;
}

// exp(x) = 2^n exp(r) with |r| <= ln(2) / 2, whose series of seven terms is exact to 2e-8; between 1e-38 and 2e38
inline vec exponential(vec x) {
    x = least(all(88.0f), most(all(-87.0f), x));  // a NaN stays one
#if defined(__AVX512F__)
    const vec n = _mm512_roundscale_ps(x * 1.44269504f, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    vec n = fused(x, 1.44269504f, 12582912.0f);  // 1.5 * 2^23: what is added to it is rounded to a whole number
    ivec exponent = reinterpret_cast<ivec&>(n) << 23;
    n -= 12582912.0f;
#endif
    vec r = fused(n, all(-0.693359375f), x);
    r = fused(n, all(2.12194440e-4f), r);
    vec y = all(1.0f / 5040);
    y = fused(y, r, 1.0f / 720);
    y = fused(y, r, 1.0f / 120);
    y = fused(y, r, 1.0f / 24);
    y = fused(y, r, 1.0f / 6);
    y = fused(y, r, 0.5f);
    y = fused(y, r, 1.0f);
    y = fused(y, r, 1.0f);
#if defined(__AVX512F__)
    return _mm512_scalef_ps(y, n);
#else
    ivec bits = reinterpret_cast<ivec&>(y) + exponent;
    vec result = reinterpret_cast<vec&>(bits);
    return x == x ? result : x;
#endif
}

inline vec sigmoid(vec x) { return inverse(1.0f + exponential(-x)); }

// log(1 + exp(x)) = max(x, 0) + log(1 + y), y = exp(-|x|), and log(1 + y) = 2 artanh(y / (2 + y)), a short series
inline vec softplus(vec x) {
    vec y = exponential(x < 0.0f ? x : -x);
    vec z = y * inverse(2.0f + y);
    vec q = z * z;
    vec series = all(1.0f / 17);
    for (int k = 7; k >= 0; k--) series = fused(series, q, 1.0f / (2 * k + 1));
    return fused(2.0f * z, series, most(x, vec{})) + (x == x ? vec{} : x);
}

// The normal distribution up to x and its density there, by Abramowitz and Stegun 7.1.26: within 8e-8
inline void normal(vec x, vec& distribution, vec& density) {
    vec size = x < 0.0f ? -x : x;
    vec t = inverse(fused(least(size, all(1e4f)), 0.3275911f * 0.70710678f, 1.0f));
    vec series = all(1.061405429f);
    series = fused(series, t, -1.453152027f);
    series = fused(series, t, 1.421413741f);
    series = fused(series, t, -0.284496736f);
    series = fused(series, t, 0.254829592f);
    vec bell = exponential(-0.5f * x * x);
    vec tail = 0.5f * series * t * bell;
    distribution = x < 0.0f ? tail : 1.0f - tail;
    density = 0.39894228f * bell;
}

inline vec silu(vec x) { return x * sigmoid(x); }

inline vec gelu(vec x) {
    vec distribution, density;
    normal(x, distribution, density);
    return x * distribution;
}

// The same in half the time, for inference: training keeps to the distribution of its gradient. It is 1/2 + x P(x^2) /
// Q(x^2), fitted up to 5.4, and from there on 0 or 1; within three units of the last place of the larger of 1 and x. Of
// several vectors at once: they share the constants, for which there are too few registers.
template <int COUNT>
inline void rational_gelu(vec (&x)[COUNT]) {
    // of x^10, x^8 ... 1
    constexpr float P[] = {2.33867262e-8f, 6.36002026e-6f, 1.64321806e-4f, 4.65085184e-3f, 3.33722401e-2f, 3.98942245e-1f};
    constexpr float Q[] = {1.21659076e-6f, 7.24002179e-5f, 1.85898213e-3f, 2.83786939e-2f, 2.50317890e-1f, 1.0f};
    vec t[COUNT], p[COUNT], q[COUNT];
#pragma GCC unroll 4
    for (int i = 0; i < COUNT; i++) t[i] = least(x[i] * x[i], all(29.16f)), p[i] = all(P[0]), q[i] = all(Q[0]);
#pragma GCC unroll 5
    for (int k = 1; k < 6; k++)
#pragma GCC unroll 4
        for (int i = 0; i < COUNT; i++) p[i] = fused(p[i], t[i], P[k]), q[i] = fused(q[i], t[i], Q[k]);
#pragma GCC unroll 4
    for (int i = 0; i < COUNT; i++) {
        const vec inside = x[i] * fused(x[i], p[i] * inverse(q[i]), 0.5f);
        // of a NaN and of -infinity a NaN
        x[i] = x[i] * x[i] > 29.16f ? x[i] * (x[i] > 0.0f ? all(1) : vec{}) : inside;
    }
}

// Memory of one thread, kept from call to call.
struct Scratch {
    float* data = nullptr;
    size_t size = 0;
    float* of(size_t wanted) {
        if (wanted > size) {
            std::free(data);
            size = (wanted + 1023) / 1024 * 1024;
            data = static_cast<float*>(std::aligned_alloc(64, size * sizeof(float)));
            if (data == nullptr) std::abort();
        }
        return data;
    }
    ~Scratch() { std::free(data); }
};
