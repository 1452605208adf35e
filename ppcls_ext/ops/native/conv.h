// What a convolution and the gradient of its weights share: shapes, and how many registers a tile has.
#pragma once

#include <omp.h>

#include "maps.h"

constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t parts_of(int64_t whole, int64_t part) { return (whole + part - 1) / part; }
inline int64_t round_up(int64_t count, int64_t step) { return parts_of(count, step) * step; }

// tiles of many and of few channels, in vectors: what the registers hold
constexpr int MANY = LANES == 16 ? 8 : 4, MANY_WIDTH = 3;
constexpr int FEW = LANES == 16 ? 4 : 2, FEW_WIDTH = LANES == 16 ? 6 : 4;

struct Shape : Maps {
    int64_t n, channels, out_channels, groups;
    int64_t inner() const { return channels / groups; }
    int64_t outer() const { return out_channels / groups; }
    int64_t area() const { return height * width; }
    int64_t out_area() const { return out_height * out_width; }
};

inline Shape shape_of(const int64_t* s) {
    return {{s[2], s[3], s[6], s[7], s[8], s[9], s[10], s[11], s[12], s[13]}, s[0], s[1], s[4], s[5]};
}

// Of the weights, from x and the gradient of the result: (O, C / groups, k, l).
void weights_gradient(const Shape& s, const float* x, const float* g, float* weight_gradient);
