// A flood-filling network's step: residual 3D convolutions over one field of view, on the CPU.
//
// Plain C functions, called through ctypes (happyneurons/ffn/backends/winograd.py), so that it needs neither the
// headers of Python nor a rebuild for another version of it.
#include "winograd.hpp"

#if defined(__AVX2__)
#include <cpuid.h>
#endif
#include <pthread.h>
#include <sched.h>
#include <time.h>

namespace {

using namespace ffn;

// Threads of one step wait for one another between convolutions: mostly shorter than a system call takes.
struct Barrier {
    int threads, arrived, round, given_up;

    void wait() {
        const int now = __atomic_load_n(&round, __ATOMIC_ACQUIRE);
        if (__atomic_add_fetch(&arrived, 1, __ATOMIC_ACQ_REL) == threads) {
            __atomic_store_n(&arrived, 0, __ATOMIC_RELEASE);
            __atomic_store_n(&round, now + 1, __ATOMIC_RELEASE);
            return;
        }
        for (int spins = 0; __atomic_load_n(&round, __ATOMIC_ACQUIRE) == now && !is_given_up(); spins++)
            if (spins > 4000) sched_yield();
    }

    // All waiting is over at once, now and later.
    void give_up() { __atomic_store_n(&given_up, 1, __ATOMIC_RELEASE); }
    bool is_given_up() const { return __atomic_load_n(&given_up, __ATOMIC_ACQUIRE); }
};

constexpr int MAX_DEPTH = 64, MAX_THREADS = 256;

struct Layer {
    float *kernels, *bias;
};

struct Network {
    Shape shape;
    int depth, features, threads;
    float *first_kernel, *first_bias, *last_kernel;   // (27, 2, channels), (channels), (channels)
    float last_bias;
    Layer layers[2 * MAX_DEPTH];                      // conv0_b, conv1_a, conv1_b, …
    float *input, *hidden, *sum;                      // (z, y, x, 2); activations
    float* work[MAX_THREADS];

    size_t input_at(int z, int y, int x) const {
        return ((size_t(z) * shape.padded[1] + y) * shape.padded[2] + x) * 2;
    }

    void put_input(const float* image, const float* seed) {
        for (int z = 0; z < shape.size[0]; z++)
            for (int y = 0; y < shape.size[1]; y++) {
                float* p = input + input_at(z + 1, y + 1, 1);
                for (int x = 0; x < shape.size[2]; x++, p += 2) p[0] = *image++, p[1] = *seed++;
            }
    }

    // Two channels in: nothing to gain from transforms. Planes [first, last).
    void convolve_first(int first, int last) {
        const int channels = shape.channels;
        constexpr int RUN = 4;    // voxels at a time, so that a kernel's vector is loaded once for all of them
        for (int z = first; z < last; z++)
            for (int y = 0; y < shape.size[1]; y++)
                for (int x = 0; x < shape.size[2]; x += RUN) {
                    const int n = shape.size[2] - x < RUN ? shape.size[2] - x : RUN;
                    for (int c = 0; c < channels; c += LANES) {
                        Vector v[RUN];
                        for (int i = 0; i < RUN; i++) v[i] = load(first_bias + c);
                        for (int k = 0; k < 27; k++) {
                            const float* p = input + input_at(z + k / 9, y + k / 3 % 3, x + k % 3);
                            for (int channel = 0; channel < 2; channel++) {
                                const Vector w = load(first_kernel + (size_t(k) * 2 + channel) * channels + c);
                                // Reads up to RUN - 1 voxels past the row: within the buffer, and not used.
                                for (int i = 0; i < RUN; i++) v[i] += all(p[2 * i + channel]) * w;
                            }
                        }
                        for (int i = 0; i < n; i++)
                            store(hidden + shape.at(z + 1, y + 1, x + i + 1) + c, positive(v[i]));
                    }
                }
    }

    // One output from all channels, added to the seed. Planes [first, last).
    void convolve_last(const float* seed, float* logits, int first, int last) const {
        for (int z = first; z < last; z++)
            for (int y = 0; y < shape.size[1]; y++)
                for (int x = 0; x < shape.size[2]; x++) {
                    const float* p = sum + shape.at(z + 1, y + 1, x + 1);
                    // Sixteen partial sums, whatever the width of a vector: the order of adding is the same.
                    float part[16] = {};
                    for (int c = 0; c < features; c++) {
                        const float v = p[c] > 0 ? p[c] : 0.0f;
                        part[c % 16] += v * last_kernel[c];
                    }
                    for (int half = 8; half; half /= 2)
                        for (int i = 0; i < half; i++) part[i] += part[i + half];
                    const size_t o = (size_t(z) * shape.size[1] + y) * shape.size[2] + x;
                    logits[o] = seed[o] + (part[0] + last_bias);
                }
    }

    void run(const float* seed, float* logits, int thread, Barrier& barrier) {
        const int groups = (shape.count() + GROUP - 1) / GROUP, planes = shape.size[0];
        const int g0 = groups * thread / threads, g1 = groups * (thread + 1) / threads;
        const int z0 = planes * thread / threads, z1 = planes * (thread + 1) / threads;
        float* w = work[thread];
        const auto layer = [&](int i, float* in, float* out, bool relu_in, bool relu_out, bool add) {
            if (barrier.is_given_up()) return;
            convolve(in, out, shape, layers[i].kernels, layers[i].bias, relu_in, relu_out, add, g0, g1, w);
            barrier.wait();
        };
        convolve_first(z0, z1);
        barrier.wait();
        layer(0, hidden, sum, false, false, false);
        for (int i = 1; i < depth; i++) {
            layer(2 * i - 1, sum, hidden, true, true, false);
            layer(2 * i, hidden, sum, false, false, true);
        }
        convolve_last(seed, logits, z0, z1);
    }

    struct Part {
        Network* net;
        const float* seed;
        float* logits;
        int thread;
        Barrier* barrier;
    };

    static void* run_part(void* argument) {
        const Part& part = *static_cast<Part*>(argument);
        part.net->run(part.seed, part.logits, part.thread, *part.barrier);
        return nullptr;
    }

    // False if threads could not be started: nothing was computed.
    bool step(const float* image, const float* seed, float* logits) {
        put_input(image, seed);
        Barrier barrier = {threads, 0, 0, 0};
        Part parts[MAX_THREADS];
        pthread_t others[MAX_THREADS];
        for (int t = 0; t < threads; t++) parts[t] = {this, seed, logits, t, &barrier};
        for (int t = 1; t < threads; t++)
            if (pthread_create(&others[t], nullptr, run_part, &parts[t])) {
                // Those that wait at the barrier would wait for ever: play the missing ones' part in it.
                barrier.give_up();
                for (int s = 1; s < t; s++) pthread_join(others[s], nullptr);
                return false;
            }
        run_part(&parts[0]);
        for (int t = 1; t < threads; t++) pthread_join(others[t], nullptr);
        return true;
    }
};

}  // namespace

extern "C" {

// Raised whenever a function below changes: a library left over from an older build is then not used.
int hpn_ffn_abi() { return 1; }

// Whether this machine can run what this library was compiled for: processor and operating system. Asked of the
// processor itself, as not every compiler's __builtin_cpu_supports works in a shared library.
int hpn_ffn_usable() {
#if defined(__AVX2__)
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_FMA) || !(c & bit_OSXSAVE)) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & bit_AVX2)) return 0;
    unsigned saved, high;
    __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));   // registers that the system keeps for each thread
#if defined(__AVX512F__)
    return (b & bit_AVX512F) && (saved & 0xe6) == 0xe6;
#else
    return (saved & 0x06) == 0x06;
#endif
#else
    return 1;
#endif
}

void hpn_ffn_free(void* net) {
    if (!net) return;
    Network* n = static_cast<Network*>(net);
    float* single[] = {n->first_kernel, n->first_bias, n->last_kernel, n->input, n->hidden, n->sum};
    for (float* p : single) free(p);
    for (Layer& layer : n->layers) free(layer.kernels), free(layer.bias);
    for (float* p : n->work) free(p);
    free(n);
}

// weights: conv0_a (27, 2, features), then 2·depth - 1 kernels (27, features, features), conv_lom (features), one
// after the other; biases: 2·depth x (features), then 1. fov: z, y, x. Null: out of memory, or more than 64 modules
// or 256 threads.
void* hpn_ffn_new(int depth, int features, const int* fov, int threads, const float* weights, const float* biases) {
    if (depth > MAX_DEPTH || threads > MAX_THREADS) return nullptr;
    Network* net = static_cast<Network*>(calloc(1, sizeof(Network)));
    if (!net) return nullptr;
    const int channels = (features + LANES - 1) / LANES * LANES;
    Shape& s = net->shape;
    s.set(fov, channels);
    net->depth = depth, net->features = features, net->threads = threads;
    bool complete = true;
    const auto checked = [&](float* made) {
        complete = complete && made;
        return made;
    };
    const auto padded = [&](const float* values) {
        float* out = checked(floats(channels));
        if (out) memcpy(out, values, features * sizeof(float));
        return out;
    };
    net->first_kernel = checked(floats(size_t(54) * channels));
    for (int k = 0; k < 54 && complete; k++)
        memcpy(net->first_kernel + size_t(k) * channels, weights + size_t(k) * features, features * sizeof(float));
    weights += size_t(54) * features;
    net->first_bias = padded(biases);
    for (int i = 1; i < 2 * depth; i++) {
        net->layers[i - 1].kernels = checked(transform_kernels(weights, features, channels));
        net->layers[i - 1].bias = padded(biases + size_t(i) * features);
        weights += size_t(27) * features * features;
    }
    net->last_kernel = padded(weights);
    net->last_bias = biases[size_t(2) * depth * features];
    net->input = checked(floats(size_t(s.padded[0]) * s.padded[1] * s.padded[2] * 2 + 16));
    net->hidden = checked(floats(s.floats_needed()));
    net->sum = checked(floats(s.floats_needed()));
    for (int t = 0; t < threads; t++) net->work[t] = checked(floats(work_floats(s)));
    if (complete) return net;
    hpn_ffn_free(net);
    return nullptr;
}

// 0, or 1 if its threads could not be started.
int hpn_ffn_step(void* net, const float* image, const float* seed, float* logits) {
    return static_cast<Network*>(net)->step(image, seed, logits) ? 0 : 1;
}

// Multiply-adds a second that one thread reaches with nothing to load or store, times 2: what steps are measured by.
double hpn_ffn_peak_flops() {
    constexpr int CHAINS = 12, ROUNDS = 20000000;
    volatile float near_one = 0.999f;
    const Vector m = all(near_one), a = all(near_one * 1e-3f);
    Vector sum[CHAINS];
    for (int i = 0; i < CHAINS; i++) sum[i] = a;
    timespec begin, end;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &begin);
    for (int r = 0; r < ROUNDS; r++)
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) sum[i] = sum[i] * m + a;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
    volatile float used = 0;
    for (int i = 0; i < CHAINS; i++) used = used + sum[i][0];
    const double seconds = (end.tv_sec - begin.tv_sec) + (end.tv_nsec - begin.tv_nsec) * 1e-9;
    return 2.0 * LANES * CHAINS * ROUNDS / seconds;
}

}  // extern "C"
