// Maps of a convolution, laid out so that each tap of its kernel is a shift.
//
// A map gets its padding, and for a stride of s becomes s * s maps ("phases") of every s-th row and column. Vectors then
// run on across the ends of rows; what is computed there, beyond the end of a row of the output, is thrown away.
#pragma once

#include "vectors.h"

struct Maps {
    int64_t height, width, rows, columns, stride_y, stride_x, top, left, out_height, out_width;

    int64_t taps() const { return rows * columns; }
    int64_t line() const { return out_width + (columns - 1) / stride_x; }  // of a laid-out map
    int64_t lines() const { return out_height + (rows - 1) / stride_y; }
    int64_t reach() const { return (rows - 1) / stride_y * line() + (columns - 1) / stride_x; }
    int64_t length() const { return out_height * line(); }
    // of one of the s * s maps, with room for what vectors read beyond its end
    int64_t laid_out() const { return lines() * line() + beyond(); }
    int64_t beyond() const { return 4 * LANES + columns; }
    int64_t phases() const { return stride_y * stride_x; }
    int64_t phase(int64_t tap) const { return tap / columns % stride_y * stride_x + tap % columns % stride_x; }
    int64_t shift(int64_t tap) const { return tap / columns / stride_y * line() + tap % columns / stride_x; }
    // `count` rows of the output, and what they need of the map
    Maps strip(int64_t first, int64_t count) const {
        Maps part = *this;
        part.top -= first * stride_y;
        part.out_height = count;
        return part;
    }
};

// The first and the last + 1 place of a line of phase `x` that lie within the map.
inline void inside(const Maps& s, int64_t x, int64_t& first, int64_t& last) {
    first = x < s.left ? (s.left - x + s.stride_x - 1) / s.stride_x : 0;
    int64_t end = s.width + s.left - x;  // places before it: place * stride + x - left < width
    last = end <= 0 ? 0 : (end + s.stride_x - 1) / s.stride_x;
    if (last > s.line()) last = s.line();
    if (first > last) first = last;
}

// `count` values, every `step`-th of `from`, then zeros up to `whole`; up to a vector more is written
inline void copy_line(const float* from, int64_t step, int64_t count, float* to, int64_t whole) {
    if (step > 2) {
        for (int64_t i = 0; i < count; i++) to[i] = from[i * step];
        for (int64_t i = count; i < whole; i++) to[i] = 0;
        return;
    }
    int64_t i = 0;
    if (step == 1)
        for (; i < count; i += LANES) store(to + i, load(from + i, lanes(count - i)));
    else
        for (; i < count; i += LANES) {
            const int64_t left = 2 * (count - i) - 1;  // what lies behind the last value may be beyond the map
            const vec a = load(from + 2 * i, lanes(left)), b = load(from + 2 * i + LANES, lanes(left - LANES));
            store(to + i, every<0, 2>(a, b));
        }
    for (; i < whole; i += LANES) store(to + i, vec{});
}

inline void lay_out(const Maps& s, const float* map, float* to) {
    for (int64_t phase = 0; phase < s.phases(); phase++) {
        int64_t py = phase / s.stride_x, px = phase % s.stride_x, first, last;
        inside(s, px, first, last);
        float* out = to + phase * s.laid_out();
        for (int64_t line = 0; line < s.lines(); line++, out += s.line()) {
            const int64_t y = line * s.stride_y + py - s.top;
            const bool within = y >= 0 && y < s.height && first < last;
            for (int64_t i = 0; i < (within ? first : s.line()); i += LANES) store(out + i, vec{});
            if (within)
                copy_line(map + y * s.width + first * s.stride_x + px - s.left, s.stride_x, last - first, out + first,
                          s.line() - first);
        }
        std::memset(out, 0, s.beyond() * sizeof(float));
    }
}

// The reverse, for the rows from `first_row` to before `last_row`: what `lay_out` has left out gets 0.
inline void gather(const Maps& s, const float* from, float* map, int64_t first_row, int64_t last_row) {
    int64_t first, last, odd_first = 0, odd_last = 0;
    inside(s, 0, first, last);
    if (s.stride_x == 2) inside(s, 1, odd_first, odd_last);
    // where both phases have places, which lie side by side in the map
    const int64_t begin = first > odd_first ? first : odd_first, end = last < odd_last ? last : odd_last;
    const bool covers = s.line() * s.stride_x >= s.width + s.left;
    int64_t line = (first_row + s.top) / s.stride_y, py = (first_row + s.top) % s.stride_y;
    for (int64_t y = first_row; y < last_row; y++) {
        const float* in = from + py * s.stride_x * s.laid_out() + line * s.line();
        float* row = map + y * s.width;
        if (!covers || line >= s.lines()) std::memset(row, 0, s.width * sizeof(float));
        if (line >= s.lines()) {
        } else if (s.stride_x == 1) {
            for (int64_t i = first; i < last; i += LANES) store(row + i - s.left, load(in + i), lanes(last - i));
        } else if (s.stride_x == 2) {
            const float* odd = in + s.laid_out();
            float* out = row - s.left;
            for (int64_t i = first; i < begin; i++) out[2 * i] = in[i];
            for (int64_t i = odd_first; i < begin; i++) out[2 * i + 1] = odd[i];
            for (int64_t i = begin; i < end; i += LANES) {
                const vec a = load(in + i), b = load(odd + i);
                store(out + 2 * i, interleaved<0>(a, b), lanes(2 * (end - i)));
                if (2 * (end - i) > LANES)
                    store(out + 2 * i + LANES, interleaved<1>(a, b), lanes(2 * (end - i) - LANES));
            }
            for (int64_t i = begin > end ? begin : end; i < last; i++) out[2 * i] = in[i];
            for (int64_t i = begin > end ? begin : end; i < odd_last; i++) out[2 * i + 1] = odd[i];
        } else {
            for (int64_t px = 0; px < s.stride_x; px++, in += s.laid_out()) {
                inside(s, px, first, last);
                for (int64_t i = first; i < last; i++) row[i * s.stride_x + px - s.left] = in[i];
            }
        }
        if (++py == s.stride_y) line++, py = 0;
    }
}

// Lines of a map of the output's size, as long as those of a laid-out map: 0 between them, on lines beyond the map, and
// in `before` and `after` places around them; `after` is a vector at least.
inline void spread(const Maps& s, const float* map, float* to, int64_t before, int64_t first_line, int64_t lines,
                   int64_t after) {
    std::memset(to, 0, before * sizeof(float));
    to += before;
    for (int64_t y = first_line; y < first_line + lines; y++, to += s.line()) {
        const bool within = y >= 0 && y < s.out_height;
        copy_line(map + (within ? y * s.out_width : 0), 1, within ? s.out_width : 0, to, s.line());
    }
    std::memset(to, 0, after * sizeof(float));
}

// A map of the output, of which `from` has lines as long as those of a laid-out map
inline void take_out(const Maps& s, const float* from, float added, float* map) {
    for (int64_t y = 0; y < s.out_height; y++, from += s.line(), map += s.out_width)
        for (int64_t i = 0; i < s.out_width; i += LANES)
            store(map + i, load(from + i) + added, lanes(s.out_width - i));
}
