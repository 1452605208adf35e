// Largest values of windows of a map. Where each was found is kept as a byte, so that the gradient goes straight there.

#include <cfloat>

#include "maps.h"

namespace {

typedef uint8_t bytes __attribute__((vector_size(LANES)));

constexpr int64_t WORTH = 100000;  // results that are worth waking threads for, which takes 10 us
constexpr uint8_t NOWHERE = 255;   // of a window without a number above the least

thread_local Scratch scratch;

struct Pool : Maps {
    int64_t maps;
    int64_t line() const { return out_width + (columns - 1) / stride_x + 2 * LANES; }  // of one phase
};

inline Pool pool_of(const int64_t* s) {
    return {{s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10]}, s[0]};
}

// (H, W) -> (H, phases across, line): what is not of the map is the least number
void lay_out_lines(const Pool& s, const float* map, float* to) {
    for (int64_t y = 0; y < s.height; y++, map += s.width)
        for (int64_t phase = 0; phase < s.stride_x; phase++, to += s.line()) {
            int64_t first, last;
            inside(s, phase, first, last);
            for (int64_t i = 0; i < first; i += LANES) store(to + i, all(-FLT_MAX));
            if (last > first)
                copy_line(map + first * s.stride_x + phase - s.left, s.stride_x, last - first, to + first, last - first);
            for (int64_t i = last; i < s.line() - LANES; i += LANES) store(to + i, all(-FLT_MAX));
        }
}

template <bool KEEP>
void largest(const Pool& s, const float* lines, float* y, uint8_t* places) {
    for (int64_t row = 0; row < s.out_height; row++, y += s.out_width, places += s.out_width) {
        const int64_t top = row * s.stride_y - s.top;
        const int64_t begin = top < 0 ? -top : 0, end = top + s.rows > s.height ? s.height - top : s.rows;
        for (int64_t i = 0; i < s.out_width; i += LANES) {
            vec result = all(-FLT_MAX);
            ivec place = (ivec{} + 1) * NOWHERE;
            for (int64_t r = begin; r < end; r++)
                for (int64_t c = 0; c < s.columns; c++) {
                    const int64_t line = (top + r) * s.stride_x + c % s.stride_x;
                    const vec value = load(lines + line * s.line() + c / s.stride_x + i);
                    // the first of equal ones
                    if (KEEP) place = value > result ? (ivec{} + 1) * static_cast<int32_t>(r * s.columns + c) : place;
                    result = result > value ? result : value;
                }
            const int count = lanes(s.out_width - i);
            store(y + i, result, count);
            if (KEEP) {
                const bytes small = __builtin_convertvector(place, bytes);
                std::memcpy(places + i, &small, count);
            }
        }
    }
}

}  // namespace

// sizes: maps, height, width, the window's height and width, steps down and across, padding at the top and left, the
// result's height and width. x (maps, H, W) -> y (maps, H', W') and the place of each in its window, unless null
extern "C" void pool_forward(const int64_t* sizes, const float* x, float* y, uint8_t* places) {
    const Pool s = pool_of(sizes);
    const int64_t area = s.height * s.width, out_area = s.out_height * s.out_width;
#pragma omp parallel for schedule(static) if (s.maps * out_area >= WORTH)
    for (int64_t map = 0; map < s.maps; map++) {
        float* lines = scratch.of(s.height * s.stride_x * s.line());
        lay_out_lines(s, x + map * area, lines);
        if (places)
            largest<true>(s, lines, y + map * out_area, places + map * out_area);
        else
            largest<false>(s, lines, y + map * out_area, nullptr);
    }
}

extern "C" void pool_backward(const int64_t* sizes, const uint8_t* places, const float* g, float* x_gradient) {
    const Pool s = pool_of(sizes);
    const int64_t area = s.height * s.width, out_area = s.out_height * s.out_width;
    int64_t shifts[NOWHERE];
    for (int64_t tap = 0; tap < s.taps(); tap++) shifts[tap] = tap / s.columns * s.width + tap % s.columns;
#pragma omp parallel for schedule(static) if (s.maps * out_area >= WORTH)
    for (int64_t map = 0; map < s.maps; map++) {
        float* to = x_gradient + map * area;
        std::memset(to, 0, area * sizeof(float));
        const float* from = g + map * out_area;
        const uint8_t* place = places + map * out_area;
        for (int64_t row = 0; row < s.out_height; row++) {
            const int64_t first = (row * s.stride_y - s.top) * s.width - s.left;
            for (int64_t i = 0; i < s.out_width; i++, from++, place++)
                if (*place != NOWHERE) to[first + i * s.stride_x + shifts[*place]] += *from;
        }
    }
}
