// The passes over depthwise maps with input, output and gradients in channels_last: as in taps.cpp, but a vector holds
// neighbouring channels of one pixel, so that the coefficients are vectors, too.

#pragma once

#include "problem.hpp"

namespace {

// As many channels of a sample as a vector has lanes, with zeros around them.
template <typename T>
class ChannelBlock {
  public:
    static constexpr int64_t lanes = Vector<T>::lanes;
    explicit ChannelBlock(const Problem& p)
        : p_(p), rows_((p.height - 1) * p.stride[0] + (p.kernel[0] - 1) * p.dilation[0] + 1),
          columns_((p.width - 1) * p.stride[1] + (p.kernel[1] - 1) * p.dilation[1] + 1),
          memory_((rows_ * columns_ + 1) * lanes), pixels_(at_boundary(memory_)) {
        for (int64_t k = 0; k < p.positions(); ++k)
            offsets_.push_back(lanes * (k / p.kernel[1] * p.dilation[0] * columns_ + k % p.kernel[1] * p.dilation[1]));
    }
    void load(int64_t n, int64_t first) {
        first_ = first;
        count_ = std::min(lanes, p_.channels() - first);
        const T* x = static_cast<const T*>(p_.x) + n * p_.height_in * p_.width_in * p_.channels() + first;
        const int64_t bottom = std::min(rows_ - p_.padding[0], p_.height_in);
        const int64_t right = std::min(columns_ - p_.padding[1], p_.width_in);
        for (int64_t row = 0; row < bottom; ++row) {
            T* to = pixels_ + ((row + p_.padding[0]) * columns_ + p_.padding[1]) * lanes;
            const T* from = x + row * p_.width_in * p_.channels();
            for (int64_t column = 0; column < right; ++column, from += p_.channels(), to += lanes) {
                __builtin_prefetch(from + kAhead * p_.channels());  // the processor by itself would not ask for it in time
                copy<lanes>(from, count_, to);
            }
        }
    }
    // What position k reads for the pixel (i, j) of the output; for the next pixel of the row it is `step` further.
    const T* seen(int64_t k, int64_t i, int64_t j) const {
        return pixels_ + (i * p_.stride[0] * columns_ + j * p_.stride[1]) * lanes + offsets_[k];
    }
    int64_t step() const { return p_.stride[1] * lanes; }
    // The block's share of (K, C), as (K, lanes).
    std::vector<T> take(const T* from) const {
        std::vector<T> to(p_.positions() * lanes);
        for (int64_t k = 0; k < p_.positions(); ++k)
            copy<lanes>(from + k * p_.channels() + first_, count_, to.data() + k * lanes);
        return to;
    }
    const Vec<T>& of(const std::vector<T>& taken, int64_t k) const { return at(&taken[k * lanes]); }
    // The block's share of a row of maps as large as the output, as (W, lanes).
    void take_row(const T* maps, int64_t n, int64_t i, std::vector<T>& to) const {
        to.resize(p_.width * lanes);
        const T* from = maps + (n * p_.height + i) * p_.width * p_.channels() + first_;
        for (int64_t j = 0; j < p_.width; ++j) copy<lanes>(from + j * p_.channels(), count_, to.data() + j * lanes);
    }
    // The block's values among those of all channels.
    void put(const Vec<T>& values, T* to) const { copy<lanes>(reinterpret_cast<const T*>(&values), count_, to + first_); }
    // Calls f(lane, channel) for the channels of the block.
    template <typename F>
    void for_each(F f) const {
        for (int64_t lane = 0; lane < count_; ++lane) f(lane, first_ + lane);
    }
    // The gradient of what is seen, in the same places.
    void clear_gradient() {
        gradient_memory_.assign(memory_.size(), T(0));
        gradient_ = at_boundary(gradient_memory_);
    }
    T* gradient(int64_t k, int64_t i, int64_t j) { return gradient_ + (seen(k, i, j) - pixels_); }
    void put_gradient(int64_t n, T* dx) const {
        const int64_t bottom = rows_ - p_.padding[0], right = columns_ - p_.padding[1];
        for (int64_t row = 0; row < p_.height_in; ++row)
            for (int64_t column = 0; column < p_.width_in; ++column) {
                const int64_t pixel = (row + p_.padding[0]) * columns_ + column + p_.padding[1];
                const bool read = row < bottom && column < right;
                put(read ? at(gradient_ + pixel * lanes) : Vec<T>{},
                    dx + ((n * p_.height_in + row) * p_.width_in + column) * p_.channels());
            }
    }

  private:
    static constexpr int64_t kAhead = 32;  // pixels
    const Problem& p_;
    int64_t rows_, columns_, first_ = 0, count_ = 0;
    std::vector<T> memory_, gradient_memory_;
    T *pixels_, *gradient_ = nullptr;
    std::vector<int64_t> offsets_;
};

template <typename T, typename F>
void for_each_block(const Problem& p, F f) {
#pragma omp parallel num_threads(p.threads) if (p.threads > 1)
    {
        ChannelBlock<T> block(p);
        const int64_t blocks = (p.channels() + block.lanes - 1) / block.lanes;
#pragma omp for schedule(static)
        for (int64_t item = 0; item < p.samples * blocks; ++item) {
            block.load(item / blocks, item % blocks * block.lanes);
            f(block, item / blocks);
        }
    }
}

// SUMS sums over the pixels of each map of a block, (K, SUMS, lanes). row(i) is called before a row of the output; map(k, i)
// gives what adds a z of that row to the sums: f(z, j, sums). Rows come apart, so that few terms are added to a large sum.
template <typename T, int SUMS, typename Row, typename Map>
std::vector<T> sum_block(const Problem& p, const ChannelBlock<T>& block, Row row, Map map) {
    constexpr int64_t lanes = Vector<T>::lanes;
    std::vector<T> all(p.positions() * SUMS * lanes);
    for (int64_t i = 0; i < p.height; ++i) {
        row(i);
        for (int64_t k = 0; k < p.positions(); ++k) {
            const auto add = map(k, i);
            const T* x = block.seen(k, i, 0);
            Vec<T> sums[SUMS] = {};
            for (int64_t j = 0; j < p.width; ++j) add(at(x + j * block.step()), j, sums);
            for (int s = 0; s < SUMS; ++s) at(&all[(k * SUMS + s) * lanes]) += sums[s];
        }
    }
    return all;
}

const auto no_row = [](int64_t) {};

// Sums of a block to where they belong, each (N, K, C).
template <typename T, size_t SUMS>
void put_sums(const Problem& p, const ChannelBlock<T>& block, int64_t n, const std::vector<T>& all, T* const (&to)[SUMS]) {
    for (int64_t k = 0; k < p.positions(); ++k)
        for (size_t s = 0; s < SUMS; ++s)
            block.put(at(&all[(k * SUMS + s) * Vector<T>::lanes]), to[s] + (n * p.positions() + k) * p.channels());
}

// Sums, and squares of the distances from a sample's own mean.
template <typename T>
void moments_in_channels_last(const Problem& p, double* sums, double* squares) {
    constexpr int64_t lanes = Vector<T>::lanes;
    for_each_block<T>(p, [&](const ChannelBlock<T>& block, int64_t n) {
        // Taken about a value of the map, for the reason given in `moments`.
        const auto middle = [&](int64_t k) { return at(block.seen(k, p.height / 2, p.width / 2)); };
        const std::vector<T> all = sum_block<T, 2>(p, block, no_row, [&](int64_t k, int64_t) {
            return [about = middle(k)](const Vec<T>& z, int64_t, Vec<T>(&sum)[2]) {
                const Vec<T> distance = z - about;
                sum[0] += distance;
                sum[1] += distance * distance;
            };
        });
        for (int64_t k = 0; k < p.positions(); ++k) {
            const T* sum = &all[2 * k * lanes];
            const Vec<T> about = middle(k);
            block.for_each([&](int64_t lane, int64_t c) {
                const int64_t to = (n * p.positions() + k) * p.channels() + c;
                sums[to] = sum[lane] + double(p.pixels()) * about[lane];
                squares[to] = sum[lanes + lane] - double(sum[lane]) * sum[lane] / p.pixels();
            });
        }
    });
}

template <typename T>
void pooled_in_channels_last(const Problem& p, const T* scale, const T* shift, T cap, T* q) {
    for_each_block<T>(p, [&](const ChannelBlock<T>& block, int64_t n) {
        const std::vector<T> scales = block.take(scale), shifts = block.take(shift);
        with_range(cap, [&](auto range) {
            std::vector<T> all = sum_block<T, 1>(p, block, no_row, [&](int64_t k, int64_t) {
                return [=, scale = block.of(scales, k), shift = block.of(shifts, k)](const Vec<T>& z, int64_t, auto& sum) {
                    sum[0] += range.clamp(scale * z + shift);
                };
            });
            for (T& sum : all) sum /= p.pixels();
            put_sums(p, block, n, all, {q});
        });
    });
}

// The norms of a block.
template <typename T>
class BlockNorms {
  public:
    BlockNorms(const ChannelBlock<T>& block, const Coefficients<T>& of) : block_(block), cap_(of.cap) {
        for (const T* each : of.all()) coefficients_.push_back(block.take(each));
    }
    Norm<T, Vector<T>> operator()(int64_t k) const {
        const auto of_k = [&](int i) { return block_.of(coefficients_[i], k); };
        return {of_k(0), of_k(1), of_k(2), of_k(3), cap_};
    }

  private:
    const ChannelBlock<T>& block_;
    T cap_;
    std::vector<std::vector<T>> coefficients_;
};

template <typename T>
void pool_in_channels_last(const Problem& p, const Coefficients<T>& of, T* active, T* active_xhat, T* capped) {
    for_each_block<T>(p, [&](const ChannelBlock<T>& block, int64_t n) {
        const BlockNorms<T> norms(block, of);
        const std::vector<T> all = sum_block<T, 3>(p, block, no_row, [&](int64_t k, int64_t) {
            return [norm = norms(k)](const Vec<T>& z, int64_t, Vec<T>(&sum)[3]) {
                const Activity<T> of = norm(z);
                sum[0] += keep<T>(Vec<T>{} + T(1), of.active);
                sum[1] += keep<T>(of.xhat, of.active);
                sum[2] += keep<T>(Vec<T>{} + T(1), of.capped);
            };
        });
        put_sums(p, block, n, all, {active, active_xhat, capped});
    });
}

template <typename T>
void reduce_in_channels_last(const Problem& p, const Coefficients<T>& of, const T* dout, T* d_active, T* d_active_xhat,
                             T* d_capped) {
    for_each_block<T>(p, [&](const ChannelBlock<T>& block, int64_t n) {
        const BlockNorms<T> norms(block, of);
        std::vector<T> d_row;
        const auto take_row = [&](int64_t i) { block.take_row(dout, n, i, d_row); };
        const std::vector<T> all = sum_block<T, 3>(p, block, take_row, [&](int64_t k, int64_t) {
            return [norm = norms(k), d_out = d_row.data()](const Vec<T>& z, int64_t j, Vec<T>(&sum)[3]) {
                const Activity<T> of = norm(z);
                const Vec<T> d = at(d_out + j * Vector<T>::lanes);
                sum[0] += keep<T>(d, of.active);
                sum[1] += keep<T>(d * of.xhat, of.active);
                sum[2] += keep<T>(d, of.capped);
            };
        });
        put_sums(p, block, n, all, {d_active, d_active_xhat, d_capped});
    });
}

// dweight is (N, K, C).
template <typename T>
void gradients_in_channels_last(const Problem& p, const Slopes<T>& slopes, const T* dout, T* dx, T* dweight) {
    for_each_block<T>(p, [&](ChannelBlock<T>& block, int64_t n) {
        const int64_t of_sample = n * p.positions() * p.channels();
        const BlockNorms<T> norms(block, slopes.norms);
        const std::vector<T> weight = block.take(static_cast<const T*>(p.weight));
        const std::vector<T> alpha = block.take(slopes.alpha + of_sample), bias = block.take(slopes.bias + of_sample);
        const std::vector<T> delta = block.take(slopes.delta), epsilon = block.take(slopes.epsilon);
        std::vector<T> d_row;
        const auto take_row = [&](int64_t i) { block.take_row(dout, n, i, d_row); };
        block.clear_gradient();
        const std::vector<T> all = sum_block<T, 1>(p, block, take_row, [&](int64_t k, int64_t i) {
            const Slope<T, Vector<T>> slope{norms(k), block.of(alpha, k), block.of(bias, k), block.of(delta, k),
                                            block.of(epsilon, k)};
            return [slope, weight = block.of(weight, k), to = block.gradient(k, i, 0), step = block.step(),
                    d_out = d_row.data()](const Vec<T>& z, int64_t j, auto& sum) {
                const Vec<T> dz = slope(z, at(d_out + j * Vector<T>::lanes));
                at(to + j * step) += weight * dz;
                sum[0] += dz * z;
            };
        });
        put_sums(p, block, n, all, {dweight});
        block.put_gradient(n, dx);
    });
}

template <typename T>
void aggregate_in_channels_last(const Problem& p, const T* scale, const T* shift, const T* attention, T cap, T* out) {
    for_each_block<T>(p, [&](const ChannelBlock<T>& block, int64_t n) {
        const std::vector<T> scales = block.take(scale), shifts = block.take(shift);
        const std::vector<T> weights = block.take(attention + n * p.positions() * p.channels());
        with_range(cap, [&](auto range) {
            const auto add_pixels = [&](auto pixels, int64_t i, int64_t j) {  // so many, from (i, j) on
                Vec<T> sums[pixels] = {};
                for (int64_t k = 0; k < p.positions(); ++k) {
                    const T* x = block.seen(k, i, j);
                    for (int u = 0; u < pixels; ++u) {
                        const Vec<T> y = block.of(scales, k) * at(x + u * block.step()) + block.of(shifts, k);
                        sums[u] += block.of(weights, k) * range.clamp(y);
                    }
                }
                T* to = out + ((n * p.height + i) * p.width + j) * p.channels();
                for (int u = 0; u < pixels; ++u) block.put(sums[u], to + u * p.channels());
            };
            for (int64_t i = 0; i < p.height; ++i) {
                int64_t j = 0;
                for (; j + 4 <= p.width; j += 4) add_pixels(std::integral_constant<int, 4>(), i, j);
                for (; j < p.width; ++j) add_pixels(std::integral_constant<int, 1>(), i, j);
            }
        });
    });
}

}  // namespace
