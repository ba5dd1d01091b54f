// 3D convolutions of 3x3x3 kernels by Winograd's minimal filtering F(3x3x3, 3x3x3).
//
// A tile of 3x3x3 outputs needs 5x5x5 inputs. Both are transformed to 125 points, where the convolution is one
// small matrix product (channels x channels) a point: 125 multiplications instead of 729 for 27 outputs.
// Method: Lavin & Gray, "Fast algorithms for convolutional neural networks", CVPR 2016, in three dimensions,
// with the interpolation points 0, 1, -1, 2 and infinity. A 33 voxel field of view is 11 whole tiles an axis.
//
// The code is written once for vectors of LANES floats (compiler vector extensions) and compiled for several
// instruction sets. Every lane does the same operations in the same order whatever their number, and all products
// but those of the matrix product and of two small factors are by powers of two: with fused multiply-adds, results
// are the same bits for 8 and 16 lanes.
#pragma once

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

namespace ffn {

#if defined(__AVX512F__) || HPN_LANES == 16
constexpr int LANES = 16;
constexpr int BLOCK = 12;     // tiles whose accumulators fit into the registers: 12 x 2 of 32
#elif defined(__AVX2__)
constexpr int LANES = 8;
constexpr int BLOCK = 6;      // 6 x 2 of 16
#else
constexpr int LANES = 4;
constexpr int BLOCK = 6;
#endif
constexpr int GROUP = 12;     // tiles transformed together: their points stay in the second level cache
constexpr int POINTS = 125;
constexpr int TILE = 3, REACH = 5;

typedef float Vector __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));

inline Vector load(const float* p) { return *reinterpret_cast<const Vector*>(p); }
inline void store(float* p, Vector v) { *reinterpret_cast<Vector*>(p) = v; }
inline Vector all(float f) { return f - Vector{}; }  // a broadcast: minus zero changes nothing, plus zero would
inline Vector positive(Vector v) { return v > 0 ? v : Vector{}; }

// Zeroed memory on cache line borders; null if there is none left. Nothing here needs the library of C++, so that
// what is built runs wherever there is a libc.
inline float* floats(size_t n) {
    void* p = nullptr;
    const size_t bytes = (n * sizeof(float) + 63) / 64 * 64;
    if (posix_memalign(&p, 64, bytes)) return nullptr;
    return static_cast<float*>(memset(p, 0, bytes));
}

// Activations (z, y, x, channel) with a border of zeros, and room for whole tiles. What is written outside of
// the field of view would be seen by the next convolution: writers leave it alone.
struct Shape {
    int size[3];      // field of view z, y, x
    int tiles[3];
    int padded[3];
    int channels;     // a multiple of LANES

    void set(const int* fov, int of_channels) {
        channels = of_channels;
        for (int a = 0; a < 3; a++) {
            size[a] = fov[a];
            tiles[a] = (size[a] + TILE - 1) / TILE;
            padded[a] = tiles[a] * TILE + 2;
        }
    }
    int count() const { return tiles[0] * tiles[1] * tiles[2]; }
    size_t floats_needed() const { return size_t(padded[0]) * padded[1] * padded[2] * channels; }
    size_t row() const { return size_t(padded[2]) * channels; }
    size_t plane() const { return padded[1] * row(); }
    // Of padded coordinates: voxel 0 of the field of view is 1.
    size_t at(int z, int y, int x) const { return z * plane() + y * row() + size_t(x) * channels; }
};

// Rows of B^T: from 5 inputs to 5 points.
template <int STRIDE>
inline void to_points(Vector* v) {
    const Vector d0 = v[0], d1 = v[STRIDE], d2 = v[2 * STRIDE], d3 = v[3 * STRIDE], d4 = v[4 * STRIDE];
    const Vector t = d3 - d1;
    v[0] = 2.0f * (d0 - d2) + t;
    v[STRIDE] = (d3 - d2) - 2.0f * d1;
    v[2 * STRIDE] = -3.0f * d2 + (2.0f * d1 + d3);
    v[3 * STRIDE] = t;
    v[4 * STRIDE] = -2.0f * t + (d4 - d2);
}

// Rows of A^T: from 5 points to 3 outputs.
inline void from_points(Vector m0, Vector m1, Vector m2, Vector m3, Vector m4, Vector* o0, Vector* o1, Vector* o2) {
    const Vector s = m1 + m2, d = m1 - m2;
    *o0 = (m0 + s) + m3;
    *o1 = 2.0f * m3 + d;
    *o2 = (4.0f * m3 + s) + m4;
}

// Kernels (27, in, out) to points (125, in, out), in double precision: G g G^T along each axis.
inline float* transform_kernels(const float* weights, int features, int channels) {
    static const double G[5][3] = {
        {1. / 2, 0, 0}, {-1. / 2, -1. / 2, -1. / 2}, {-1. / 6, 1. / 6, -1. / 6}, {1. / 6, 2. / 6, 4. / 6}, {0, 0, 1}};
    float* points = floats(size_t(POINTS) * channels * channels);
    if (!points) return points;
    for (int i = 0; i < features; i++)
        for (int o = 0; o < features; o++)
            for (int p = 0; p < POINTS; p++) {
                const double *gz = G[p / 25], *gy = G[p / 5 % 5], *gx = G[p % 5];
                double sum = 0;
                for (int k = 0; k < 27; k++)
                    sum += gz[k / 9] * gy[k / 3 % 3] * gx[k % 3] * weights[(size_t(k) * features + i) * features + o];
                points[(size_t(p) * channels + i) * channels + o] = float(sum);
            }
    return points;
}

// out (rows, channels) = in (rows, channels) x kernel (channels, channels): ROWS rows, WIDTH vectors of columns.
// CHANNELS is known when compiling for the usual numbers, which keeps addresses out of registers; 0: any number.
template <int ROWS, int WIDTH, int CHANNELS>
inline void multiply(const float* in, const float* kernel, float* out, int any) {
    const int channels = CHANNELS ? CHANNELS : any;
    Vector sum[ROWS][WIDTH];
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
        for (int w = 0; w < WIDTH; w++) sum[r][w] = Vector{};
#pragma GCC unroll 4
    for (int k = 0; k < channels; k++) {
        Vector u[WIDTH];
#pragma GCC unroll 2
        for (int w = 0; w < WIDTH; w++) u[w] = load(kernel + size_t(k) * channels + w * LANES);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) {
            const Vector b = all(in[size_t(r) * channels + k]);
#pragma GCC unroll 2
            for (int w = 0; w < WIDTH; w++) sum[r][w] += b * u[w];
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
        for (int w = 0; w < WIDTH; w++) store(out + size_t(r) * channels + w * LANES, sum[r][w]);
}

template <int CHANNELS>
inline void multiply_group(const float* in, const float* kernel, float* out, int any) {
    const int channels = CHANNELS ? CHANNELS : any;
    for (int c = 0; c < channels; c += 2 * LANES) {
        const bool pair = c + 2 * LANES <= channels;
        for (int r = 0; r < GROUP; r += BLOCK) {
            const size_t first = size_t(r) * channels;
            if (pair) multiply<BLOCK, 2, CHANNELS>(in + first, kernel + c, out + first + c, channels);
            else multiply<BLOCK, 1, CHANNELS>(in + first, kernel + c, out + first + c, channels);
        }
    }
}

inline void multiply_all(const float* in, const float* kernel, float* out, int channels) {
    if (channels == 16) multiply_group<16>(in, kernel, out, channels);
    else if (channels == 32) multiply_group<32>(in, kernel, out, channels);
    else multiply_group<0>(in, kernel, out, channels);
}

// Floats from a point of a group to the next: an odd number of cache lines, so that the 125 places that a tile is
// spread over do not fall into the same few sets of the cache.
inline size_t point_step(const Shape& s) { return size_t(GROUP) * s.channels + (s.channels % 32 ? 0 : 16); }

inline size_t work_floats(const Shape& s) { return (POINTS + 1) * point_step(s); }

// Inputs (z, y) of one x, transformed along y and z: 25 points.
inline void transform_column(const float* in, const Shape& s, bool relu, Vector* column) {
    Vector v[REACH * REACH];
#pragma GCC unroll 5
    for (int z = 0; z < REACH; z++)
#pragma GCC unroll 5
        for (int y = 0; y < REACH; y++) {
            const Vector read = load(in + z * s.plane() + y * s.row());
            v[z * REACH + y] = relu ? positive(read) : read;
        }
#pragma GCC unroll 5
    for (int z = 0; z < REACH; z++) to_points<1>(v + z * REACH);
#pragma GCC unroll 5
    for (int y = 0; y < REACH; y++) to_points<REACH>(v + y);
#pragma GCC unroll 25
    for (int i = 0; i < REACH * REACH; i++) column[i] = v[i];
}

// Points of tiles beside one another along x, to slots slot, slot + 1, … Two of the five columns of a tile are those of
// the tile before it, too, and are not computed again.
inline void gather(const float* in, const Shape& s, const int* tile, int count, bool relu, float* points, int slot) {
    const size_t step = point_step(s);
    for (int c = 0; c < s.channels; c += LANES) {
        Vector columns[REACH][REACH * REACH];
        const float* corner = in + s.at(tile[0] * TILE, tile[1] * TILE, tile[2] * TILE) + c;
        int made = 0;
        for (int t = 0; t < count; t++) {
            for (; made < t * TILE + REACH; made++)
                transform_column(corner + size_t(made) * s.channels, s, relu, columns[made % REACH]);
            const Vector* column[REACH];
            for (int x = 0; x < REACH; x++) column[x] = columns[(t * TILE + x) % REACH];
            float* out = points + size_t(slot + t) * s.channels + c;
            for (int i = 0; i < REACH * REACH; i++) {
                Vector line[REACH];
#pragma GCC unroll 5
                for (int x = 0; x < REACH; x++) line[x] = column[x][i];
                to_points<1>(line);
#pragma GCC unroll 5
                for (int x = 0; x < REACH; x++, out += step) store(out, line[x]);
            }
        }
    }
}

inline void scatter(const float* points, int slot, const Shape& s, const int* tile, const float* bias, bool relu,
                    bool add, float* out) {
    int end[3];
    for (int a = 0; a < 3; a++) end[a] = s.size[a] - tile[a] * TILE < TILE ? s.size[a] - tile[a] * TILE : TILE;
    for (int c = 0; c < s.channels; c += LANES) {
        Vector a[TILE][REACH * REACH], b[TILE * TILE][REACH];
        for (int i = 0; i < REACH * REACH; i++) {
            const float* p = points + i * point_step(s) + size_t(slot) * s.channels + c;
            const size_t step = REACH * REACH * point_step(s);
            from_points(load(p), load(p + step), load(p + 2 * step), load(p + 3 * step), load(p + 4 * step),
                        &a[0][i], &a[1][i], &a[2][i]);
        }
        for (int z = 0; z < TILE; z++)
            for (int x = 0; x < REACH; x++)
                from_points(a[z][x], a[z][5 + x], a[z][10 + x], a[z][15 + x], a[z][20 + x],
                            &b[z * 3][x], &b[z * 3 + 1][x], &b[z * 3 + 2][x]);
        const Vector offset = load(bias + c);
        for (int z = 0; z < end[0]; z++)
            for (int y = 0; y < end[1]; y++) {
                Vector o[TILE];
                const Vector* m = b[z * 3 + y];
                from_points(m[0], m[1], m[2], m[3], m[4], o, o + 1, o + 2);
                float* p = out + s.at(tile[0] * TILE + z + 1, tile[1] * TILE + y + 1, tile[2] * TILE + 1) + c;
                for (int x = 0; x < end[2]; x++, p += s.channels) {
                    Vector v = o[x] + offset;
                    if (add) v += load(p);
                    store(p, relu ? positive(v) : v);
                }
            }
    }
}

// Convolve groups of tiles [first, last). relu_in: rectify what is read; relu_out: what is written;
// add: onto what is there. work: work_floats().
inline void convolve(const float* in, float* out, const Shape& s, const float* kernels, const float* bias, bool relu_in,
                     bool relu_out, bool add, int first, int last, float* work) {
    // The products of a point take the place of the point before it, which is not needed any more.
    const size_t step = point_step(s), kernel = size_t(s.channels) * s.channels;
    float *products = work, *points = work + step;
    for (int group = first; group < last; group++) {
        int tiles[GROUP][3], n = 0;
        for (int t = group * GROUP; n < GROUP && t < s.count(); t++, n++) {
            tiles[n][0] = t / (s.tiles[1] * s.tiles[2]);
            tiles[n][1] = t / s.tiles[2] % s.tiles[1];
            tiles[n][2] = t % s.tiles[2];
        }
        for (int i = 0, run; i < n; i += run) {
            for (run = 1; i + run < n && tiles[i + run][2]; run++) {}
            gather(in, s, tiles[i], run, relu_in, points, i);
        }
        for (int p = 0; p < POINTS; p++)
            multiply_all(points + p * step, kernels + p * kernel, products + p * step, s.channels);
        for (int i = 0; i < n; i++) scatter(products, i, s, tiles[i], bias, relu_out, add, out);
    }
}

}  // namespace ffn
