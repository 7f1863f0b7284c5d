// What a pass is given, and what batch norm and activation make of a value. Symbols are those of fused.py.

#pragma once

#include "vectors.hpp"

namespace {

struct Problem {
    int64_t samples, groups, in_group, out_group;  // channels of one group
    int64_t height_in, width_in, height, width;
    int64_t kernel[2], stride[2], padding[2], dilation[2];
    int64_t chunks;         // parts of the batch whose sums of dweight are kept apart
    int64_t threads;
    int64_t channels_last;  // whether x, the output and their gradients are: only with depthwise maps
    const void* x;          // (N, G·in_group, height_in, width_in)
    const void* weight;     // (in_group, K, G·out_group); with depthwise maps, the caller has scaled by it
    const void* weight_of_groups;   // (G, K, out_group, in_group), for gradients of planes
    const void* weight_transposed;  // (G, in_group, K, out_group), for gradients of planes
    void* z;                // (G, K, out_group, N, plane) or null: then the maps are computed here

    int64_t positions() const { return kernel[0] * kernel[1]; }
    int64_t channels() const { return groups * out_group; }
    int64_t pixels() const { return height * width; }
    bool aligned() const {
        return stride[0] == 1 && stride[1] == 1 && height == height_in && width == width_in;
    }
    bool depthwise() const { return in_group == 1 && out_group == 1; }
};

// ---- batch norm and activation -------------------------------------------------------------------------------------

template <typename T, bool CAPPED>
struct Range {  // what an activation leaves
    Vec<T> least, most;

    explicit Range(T cap) {
        // Were it known to be zero, the compiler would take two instructions for what is one of its own: a maximum.
        const volatile T zero = 0;
        least = Vec<T>{} + zero;
        most = Vec<T>{} + cap;
    }
    Vec<T> clamp(Vec<T> v) const {  // a NaN stays one
        v = v < least ? least : v;
        if constexpr (CAPPED) v = v > most ? most : v;
        return v;
    }
};

// Calls f(range) with what an activation leaves.
template <typename T, typename F>
void with_range(T cap, F f) {
    if (cap == cap) f(Range<T, true>(cap));
    else f(Range<T, false>(cap));  // NaN, which nothing exceeds, stands for none
}

template <typename T>
struct Activity {  // of a vector of a map
    Vec<T> xhat;
    typename Lanes<T>::type active, capped;
};

template <typename T>
struct OneChannel {
    typedef T type;
};

template <typename T, typename Of = OneChannel<T>>
struct Norm {  // xhat = r z + t, pre = gamma xhat + beta; Of: OneChannel, or a Vector of channels
    typename Of::type r, t, gamma, beta;
    T cap;  // NaN, which nothing reaches, stands for none

    Activity<T> operator()(Vec<T> z) const {
        const Vec<T> xhat = r * z + t, pre = gamma * xhat + beta;
        const typename Lanes<T>::type capped = pre >= cap;
        return {xhat, ~(pre <= T(0)) & ~capped, capped};  // a NaN is active, so that it shows
    }
};

template <typename T, typename Of = OneChannel<T>>
struct Slope {  // dz = [active] (alpha dout + bias) - delta - epsilon xhat
    Norm<T, Of> norm;
    typename Of::type alpha, bias, delta, epsilon;

    Vec<T> operator()(Vec<T> z, Vec<T> dout) const {
        const Activity<T> of = norm(z);
        return keep<T>(alpha * dout + bias, of.active) - delta - epsilon * of.xhat;
    }
};

template <typename T>
struct Coefficients {  // each (K, C)
    const T *r, *t, *gamma, *beta;
    T cap;
    std::vector<const T*> all() const { return {r, t, gamma, beta}; }
};

template <typename T>
struct Slopes {
    Coefficients<T> norms;
    const T *alpha, *bias, *delta, *epsilon;  // the first two (N, K, C), the others (K, C)

    Slope<T> at(const Problem& p, int64_t n, int64_t k, int64_t c) const {
        const int64_t kc = k * p.channels() + c, i = n * p.positions() * p.channels() + kc;
        const Norm<T> norm{norms.r[kc], norms.t[kc], norms.gamma[kc], norms.beta[kc], norms.cap};
        return {norm, alpha[i], bias[i], delta[kc], epsilon[kc]};
    }
};

}  // namespace
