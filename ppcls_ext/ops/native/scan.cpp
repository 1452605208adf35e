// The selective scan with one number of state per channel, in four orders over a map, and its gradients.
//
// s = softplus(step + bias), h[t] = exp(s a) h[t-1] + s b u, y = c h + d u. Everything lies as (G, N, H W, C), row by
// row; a group visits the places in its own order, so that nothing is moved. Channels are the lanes of vectors. The
// gradients keep nothing of the forward pass but its arguments: h is computed once more, of one row of lanes at a time,
// which fits into the cache. Every sum is made by one thread in one order.

#include "steps.h"

namespace {

// Places in the order of a scan: 0 by row, 1 by column, 2 and 3 the reverse of these.
struct Order {
    int64_t height, width, length, kind;
    int64_t operator()(int64_t t) const {
        if (kind >= 2) t = length - 1 - t;
        return kind % 2 == 0 ? t : t % height * width + t / height;
    }
};

// The first of the channels of a block of lanes: the last block reaches back over the one before rather than beyond.
int64_t first_channel(int64_t block, int64_t channels) {
    int64_t first = block * LANES;
    return first + LANES > channels && channels >= LANES ? channels - LANES : first;
}

// Calls take(place) in the order of a scan: as Order gives it, without its divisions.
template <class Take>
void visit(int64_t height, int64_t width, int64_t kind, const Take& take) {
    const bool by_row = kind % 2 == 0;
    const int64_t outer = by_row ? height : width, inner = by_row ? width : height;
    const int64_t sign = kind >= 2 ? -1 : 1, start = kind >= 2 ? height * width - 1 : 0;
    const int64_t outer_step = sign * (by_row ? width : 1), inner_step = sign * (by_row ? 1 : width);
    for (int64_t i = 0; i < outer; i++)
        for (int64_t j = 0; j < inner; j++) take(start + i * outer_step + j * inner_step);
}

thread_local Scratch scratch;

}  // namespace

void scan_of_products(const ScanShape& s, const float* u, const float* low, const float* const* step_weight,
                      const float* const* bias, const float* const* a_log, const float* const* d, float* y) {
    const int64_t length = s.height * s.width, channels = s.channels, blocks = (channels + LANES - 1) / LANES;
    const int64_t low_row = s.rank + 2;
    const int count = channels < LANES ? channels : LANES;
#pragma omp parallel for schedule(static)
    for (int64_t item = 0; item < 4 * s.n * blocks; item++) {
        const int64_t row = item / blocks, group = row / s.n, first = first_channel(item % blocks, channels);
        const int64_t start = row * length * channels + first;
        const vec bias_v = load(bias[group] + first, count), d_v = load(d[group] + first, count);
        const vec a_v = -exponential(load(a_log[group] + first, count));
        float* weights = scratch.of(s.rank * LANES);
        for (int64_t r = 0; r < s.rank; r++)
            for (int i = 0; i < LANES; i++)
                weights[r * LANES + i] = i < count ? step_weight[group][(first + i) * s.rank + r] : 0.0f;
        vec h = {};
        visit(s.height, s.width, group, [&](int64_t p) {
            const int64_t at = start + p * channels;
            const float* own = low + (row * length + p) * low_row;
            vec step = {};
            for (int64_t r = 0; r < s.rank; r++) step = fused(load(weights + r * LANES), all(own[r]), step);
            const vec u_v = load(u + at, count), size = softplus(step + bias_v);
            h = fused(exponential(size * a_v), h, size * u_v * own[s.rank]);
            store(y + at, fused(h, all(own[s.rank + 1]), d_v * u_v), count);
        });
    }
}

// sizes: G, N, H, W, C, and how far the values of b and c are from place to place; orders: of each group. u, step
// (G, N, L, C); b, c (G, N, L); bias, a, d (G, C) -> y
extern "C" void scan_forward(const int64_t* sizes, const int64_t* orders, const float* u, const float* step,
                             const float* bias, const float* a, const float* b, const float* c, const float* d,
                             float* y) {
    const int64_t groups = sizes[0], n = sizes[1], height = sizes[2], width = sizes[3], channels = sizes[4];
    const int64_t apart = sizes[5];
    const int64_t length = height * width, blocks = (channels + LANES - 1) / LANES;
    const int count = channels < LANES ? channels : LANES;
#pragma omp parallel for schedule(static)
    for (int64_t item = 0; item < groups * n * blocks; item++) {
        const int64_t row = item / blocks, group = row / n, first = first_channel(item % blocks, channels);
        const Order place{height, width, length, orders[group]};
        const int64_t start = row * length * channels + first, own = group * channels + first;
        const vec bias_v = load(bias + own, count), a_v = load(a + own, count), d_v = load(d + own, count);
        vec h = {};
        for (int64_t t = 0; t < length; t++) {
            const int64_t p = place(t), at = start + p * channels;
            const vec u_v = load(u + at, count), s = softplus(load(step + at, count) + bias_v);
            h = fused(exponential(s * a_v), h, s * u_v * b[(row * length + p) * apart]);
            store(y + at, fused(h, all(c[(row * length + p) * apart]), d_v * u_v), count);
        }
    }
}

// Gradients of all arguments, those of b and c as far apart as these; those of bias, a and d come as (G, N, C), to be
// summed over N by the caller.
extern "C" void scan_backward(const int64_t* sizes, const int64_t* orders, const float* u, const float* step,
                              const float* bias, const float* a, const float* b, const float* c, const float* d,
                              const float* g, float* gu, float* gstep, float* gbias, float* ga, float* gb, float* gc,
                              float* gd) {
    const int64_t groups = sizes[0], n = sizes[1], height = sizes[2], width = sizes[3], channels = sizes[4];
    const int64_t apart = sizes[5];
    const int64_t length = height * width, blocks = (channels + LANES - 1) / LANES;
    const int count = channels < LANES ? channels : LANES;
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < groups * n; row++) {
        const int64_t group = row / n;
        const Order place{height, width, length, orders[group]};
        float* kept = scratch.of(3 * length * LANES);
        float *kept_s = kept, *kept_decay = kept + length * LANES, *kept_h = kept + 2 * length * LANES;
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t first = first_channel(block, channels);
            const int64_t start = row * length * channels + first, own = group * channels + first;
            const vec bias_v = load(bias + own, count), a_v = load(a + own, count), d_v = load(d + own, count);
            vec fresh = all(1);  // 0 in lanes that the block before has counted, and beyond the last channel
            for (int i = 0; i < LANES; i++)
                if (i >= count || first + i < block * LANES) fresh[i] = 0;
            vec h = {};
            for (int64_t t = 0; t < length; t++) {
                const int64_t p = place(t), at = start + p * channels;
                const vec s = softplus(load(step + at, count) + bias_v), decay = exponential(s * a_v);
                h = fused(decay, h, s * load(u + at, count) * b[(row * length + p) * apart]);
                store(kept_s + t * LANES, s);
                store(kept_decay + t * LANES, decay);
                store(kept_h + t * LANES, h);
            }
            vec reaching = {}, bias_sum = {}, a_sum = {}, d_sum = {};
            for (int64_t t = length - 1; t >= 0; t--) {
                const int64_t p = place(t), at = start + p * channels, scalar = (row * length + p) * apart;
                const vec u_v = load(u + at, count), g_v = load(g + at, count);
                const vec s = load(kept_s + t * LANES), decay = load(kept_decay + t * LANES);
                const vec before = t > 0 ? load(kept_h + (t - 1) * LANES) : vec{};
                reaching = fused(g_v, all(c[scalar]), reaching);  // what reaches h[t]
                const vec through = reaching * before * decay;
                const vec s_gradient = fused(through, a_v, reaching * u_v * b[scalar]);
                const vec inner = s_gradient * sigmoid(load(step + at, count) + bias_v);
                store(gu + at, fused(g_v, d_v, reaching * s * b[scalar]), count);
                store(gstep + at, inner, count);
                bias_sum += inner;
                a_sum = fused(through, s, a_sum);
                d_sum = fused(g_v, u_v, d_sum);
                const float b_part = sum(reaching * s * u_v * fresh);
                const float c_part = sum(g_v * load(kept_h + t * LANES) * fresh);
                gb[scalar] = block ? gb[scalar] + b_part : b_part;
                gc[scalar] = block ? gc[scalar] + c_part : c_part;
                reaching *= decay;
            }
            store(gbias + row * channels + first, bias_sum, count);
            store(ga + row * channels + first, a_sum, count);
            store(gd + row * channels + first, d_sum, count);
        }
    }
}
