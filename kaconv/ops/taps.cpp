// The passes of a fused KAConv over its K·C maps on the CPU. The maps of many channels are given, made by `product`; of few,
// every pass makes those of one group of one sample for itself.
//
// Symbols and sums are those of fused.py. A map z_k of one output channel is read as a plane. Two layouts of it:
// aligned (stride 1, output as large as the input): pixel i of the plane belongs to input pixel i, so the plane is the
//   input itself (depthwise) or one matrix product of it, and position k reads it at an offset;
// gathered (all else): pixel o of the plane belongs to output pixel o.
// Beyond the image a plane counts as zero, which batch norm and activation turn into a constant.
// Depthwise maps in channels_last have passes of their own, in channels_last.hpp.

#include "channels_last.hpp"
#include "products.hpp"

namespace {

// ---- sums over the maps, and of them -------------------------------------------------------------------------------
//
// All walk the output in blocks of a few vectors, make a block of each map in registers and use it at once. What the
// maps are made from is in one of three classes: Depthwise, Grouped, Stored. Each has, for one sample and one group,
//   rows(): the channels of the group; a tile is of 8, 4 or one of them, of one alone unless kSummed
//   tile(k, channel, o, z): z_k of a tile, at kVectors vectors of output places from place o on
// kSummed: the maps are sums over the group's input channels; then there are, besides,
//   fold(scales): the maps become so many times as large, (K, rows)
//   add(k, channel, o, z): adds z_k of a tile to z
// Places are output pixels, row by row; a row may have more places than pixels, and what these hold is dropped.

constexpr int64_t kRun = 4;  // blocks of a map that are summed up at once: what they are made from stays in the cache

template <typename T>
struct Places {
    int64_t pitch, vectors;        // places of a row; vectors of all places, a multiple of kVectors
    std::vector<Bits<T>> counted;  // for each vector, which of its places are pixels

    Places(const Problem& p, int64_t pitch, int64_t multiple) : pitch(pitch) {
        constexpr int64_t lanes = Vector<T>::lanes;
        const int64_t used = (p.height - 1) * pitch + p.width, step = multiple * lanes;
        vectors = (used + step - 1) / step * multiple;
        counted.assign(vectors, 0);
        for (int64_t row = 0; row < p.height; ++row) mark<T>(counted.data(), row * pitch, row * pitch + p.width);
    }
    int64_t size() const { return vectors * Vector<T>::lanes; }
};

// What a thread works on: the channels [first, last) of a group of one sample.
template <typename T>
struct Share {
    int64_t n, g, first, last;
    std::vector<T> sums, attention, maps;  // maps: of the channels, as places
    std::vector<std::vector<T>> coefficients;

    int64_t rows() const { return last - first; }
    Norm<T> norm(int64_t i, T cap) const {
        return {coefficients[0][i], coefficients[1][i], coefficients[2][i], coefficients[3][i], cap};
    }
    int64_t channel(const Problem& p) const { return g * (p.z ? 1 : p.out_group) + first; }  // the first one of all
    // Coefficients (K, C) as (K, rows), side by side: apart, they may fall on one line of the cache.
    void take(const Problem& p, const T* from, std::vector<T>& to) const {
        to.resize(p.positions() * rows());
        from += channel(p);
        for (int64_t k = 0; k < p.positions(); ++k)
            for (int64_t row = 0; row < rows(); ++row) to[k * rows() + row] = from[k * p.channels() + row];
    }
};

// How many rows or columns further a position reads, in planes of every stride-th row and column.
int64_t reach(const Problem& p, int axis, int64_t tap) { return tap * p.dilation[axis] / p.stride[axis]; }

template <typename T>
Places<T> places_of(const Problem& p, int64_t multiple) {
    return Places<T>(p, p.width + reach(p, 1, p.kernel[1] - 1), multiple);
}

// The input planes of a group, with zeros around them. With a stride they come apart into planes of every stride-th row
// and column, so that each position reads neighbouring places from neighbouring inputs.
template <typename T>
class Padded {
  public:
    Padded(const Problem& p, int64_t multiple)
        : p_(p), places_(places_of<T>(p, multiple)),
          rows_(p.height + reach(p, 0, p.kernel[0] - 1)),
          channel_(p.stride[0] * p.stride[1] * rows_ * places_.pitch),
          values_(p.in_group * channel_ + places_.size()) {
        for (int64_t k = 0; k < p.positions(); ++k) {
            const int64_t u = k / p.kernel[1], v = k % p.kernel[1];
            const int64_t plane = u * p.dilation[0] % p.stride[0] * p.stride[1] + v * p.dilation[1] % p.stride[1];
            offsets_.push_back((plane * rows_ + reach(p, 0, u)) * places_.pitch + reach(p, 1, v));
        }
    }
    const Places<T>& places() const { return places_; }
    int64_t groups() const { return p_.groups; }
    void load(int64_t n, int64_t g) {
        const T* x = static_cast<const T*>(p_.x) + (n * p_.groups + g) * p_.in_group * p_.height_in * p_.width_in;
        for (int64_t ci = 0; ci < p_.in_group; ++ci, x += p_.height_in * p_.width_in)
            for (int64_t a = 0; a < p_.stride[0]; ++a)
                for (int64_t b = 0; b < p_.stride[1]; ++b) {
                    T* plane = values_.data() + ci * channel_ + (a * p_.stride[1] + b) * rows_ * places_.pitch;
                    // Every stride-th column from column `first` on, as far as there are any.
                    const int64_t first = b - p_.padding[1], step = p_.stride[1];
                    const int64_t begin = first >= 0 ? 0 : (-first + step - 1) / step;
                    const int64_t end = std::min(places_.pitch, (p_.width_in - first + step - 1) / step);
                    for (int64_t row = 0; row < rows_; ++row) {
                        const int64_t from = row * p_.stride[0] + a - p_.padding[0];
                        if (from >= 0 && from < p_.height_in)
                            copy_every(step, x + from * p_.width_in + first + begin * step, end - begin,
                                       plane + row * places_.pitch + begin);
                    }
                }
    }
    // What position k reads of an input channel of the group at place 0.
    const T* seen(int64_t k, int64_t ci) const { return values_.data() + ci * channel_ + offsets_[k]; }

  private:
    static void copy_every(int64_t step, const T* from, int64_t count, T* to) {
        if (step == 1)
            copy<Vector<T>::lanes>(from, count, to);
        else if (step == 2)  // a constant, so that it is compiled to vectors
            for (int64_t i = 0; i < count; ++i) to[i] = from[2 * i];
        else
            for (int64_t i = 0; i < count; ++i) to[i] = from[step * i];
    }

  protected:
    const Problem& p_;

  private:
    Places<T> places_;
    int64_t rows_, channel_;  // of a plane; size of all planes of an input channel
    std::vector<T> values_;
    std::vector<int64_t> offsets_;
};

template <typename T>
struct Depthwise : Padded<T> {  // the maps are the input; the caller scales by the weight
    static constexpr bool kSummed = false;
    static constexpr int kVectors = 4;
    explicit Depthwise(const Problem& p) : Padded<T>(p, kVectors) {}
    int64_t rows() const { return 1; }
    void load(const Share<T>& share) { Padded<T>::load(share.n, share.g); }
    template <int ROWS>
    void tile(int64_t k, int64_t, int64_t o, Vec<T> (&z)[ROWS][kVectors]) const {
        for (int u = 0; u < kVectors; ++u) z[0][u] = at(this->seen(k, 0) + o + u * Vector<T>::lanes);
    }
};

template <typename T>
class Grouped : public Padded<T> {
  public:
    static constexpr bool kSummed = true;
    static constexpr int kVectors = 2;
    explicit Grouped(const Problem& p) : Padded<T>(p, kVectors) {}
    int64_t rows() const { return this->p_.out_group; }
    void load(const Share<T>& share) {
        const Problem& p = this->p_;
        Padded<T>::load(share.n, share.g);
        first_ = share.first;
        rows_ = share.rows();
        weight_.resize(p.positions() * p.in_group * rows_);
        const T* from = static_cast<const T*>(p.weight) + share.channel(p);
        for (int64_t ci = 0; ci < p.in_group; ++ci)
            for (int64_t k = 0; k < p.positions(); ++k, from += p.channels())
                copy<Vector<T>::lanes>(from, rows_, weight_.data() + (k * p.in_group + ci) * rows_);
    }
    void fold(const T* scales) {
        T* weight = weight_.data();
        for (int64_t k = 0; k < this->p_.positions(); ++k, scales += rows_)
            for (int64_t ci = 0; ci < this->p_.in_group; ++ci, weight += rows_)
                for (int64_t row = 0; row < rows_; ++row) weight[row] *= scales[row];
    }
    template <int ROWS>
    void tile(int64_t k, int64_t channel, int64_t o, Vec<T> (&z)[ROWS][kVectors]) const {
        for (int r = 0; r < ROWS; ++r)
            for (int u = 0; u < kVectors; ++u) z[r][u] = Vec<T>{};
        add(k, channel, o, z);
    }
    template <int ROWS>
    void add(int64_t k, int64_t channel, int64_t o, Vec<T> (&z)[ROWS][kVectors]) const {
        const T* weight = weight_.data() + k * this->p_.in_group * rows_ + channel - first_;
#pragma GCC unroll 1
        for (int64_t ci = 0; ci < this->p_.in_group; ++ci, weight += rows_) {
            const T* x = this->seen(k, ci) + o;
            const Vec<T> x0 = in_register<T>(at(x)), x1 = in_register<T>(at(x + Vector<T>::lanes));
            for (int r = 0; r < ROWS; ++r) {
                z[r][0] += weight[r] * x0;
                z[r][1] += weight[r] * x1;
            }
        }
    }

  private:
    int64_t first_ = 0, rows_ = 0;  // of the share
    std::vector<T> weight_;  // of the share, (K, in_group, rows): what a tile is multiplied with lies side by side
};

template <typename T>
class Stored {  // maps that the caller has; every channel is a group of its own
  public:
    static constexpr bool kSummed = false;
    static constexpr int kVectors = 4;
    explicit Stored(const Problem& p) : p_(p), places_(p, p.width, kVectors), from_(p.positions()) {
        inside_.assign(p.positions() * places_.vectors, 0);
        for (int64_t k = 0; k < p.positions(); ++k) {
            const int64_t down = shift(0, k / p.kernel[1]), right = shift(1, k % p.kernel[1]);
            const int64_t first = std::max<int64_t>(-right, 0), last = std::min(p.width - right, p.width);
            for (int64_t row = std::max<int64_t>(-down, 0); row < std::min(p.height - down, p.height); ++row)
                mark<T>(inside_.data() + k * places_.vectors, row * p.width + first, row * p.width + last);
        }
    }
    const Places<T>& places() const { return places_; }
    int64_t groups() const { return p_.channels(); }
    int64_t rows() const { return 1; }
    void load(const Share<T>& share) {
        const int64_t n = share.n, c = share.g;
        const T* z = static_cast<const T*>(p_.z);
        const T* end = z + p_.positions() * p_.channels() * p_.samples * p_.pixels();
        for (int64_t k = 0; k < p_.positions(); ++k) {
            const int64_t row = (c / p_.out_group * p_.positions() + k) * p_.out_group + c % p_.out_group;
            const int64_t offset = shift(0, k / p_.kernel[1]) * p_.width + shift(1, k % p_.kernel[1]);
            const T* plane = z + (row * p_.samples + n) * p_.pixels();
            if (plane + offset < z || plane + offset + places_.size() > end) plane = with_room(plane, k, std::abs(offset));
            from_[k] = plane + offset;
        }
    }
    template <int ROWS>
    void tile(int64_t k, int64_t, int64_t o, Vec<T> (&z)[ROWS][kVectors]) const {
        constexpr int64_t lanes = Vector<T>::lanes;
        const Bits<T>* inside = inside_.data() + k * places_.vectors + o / lanes;
        for (int u = 0; u < kVectors; ++u) z[0][u] = keep<T>(at(from_[k] + o + u * lanes), lanes_of<T>(inside[u]));
        // The processor by itself asks too late for the next of so many planes.
        for (int u = 0; u < kVectors; ++u) __builtin_prefetch(from_[k] + o + (kRun * kVectors + u) * lanes);
    }

  private:
    int64_t shift(int axis, int64_t tap) const {
        return p_.aligned() ? tap * p_.dilation[axis] - p_.padding[axis] : 0;
    }
    // A copy of a plane that can be read beyond its ends: the first and the last have nothing beside them.
    const T* with_room(const T* plane, int64_t k, int64_t room) {
        if (copies_.empty()) copies_.resize(p_.positions());
        copies_[k].assign(2 * room + places_.size(), T(0));
        std::copy_n(plane, p_.pixels(), copies_[k].data() + room);
        return copies_[k].data() + room;
    }
    const Problem& p_;
    Places<T> places_;
    std::vector<Bits<T>> inside_;
    std::vector<const T*> from_;
    std::vector<std::vector<T>> copies_;
};

// The maps after a batch norm: times scale, plus shift, which are the first coefficients of a share.
template <typename T, typename Maps>
class Normed : public Maps {
  public:
    using Maps::Maps;
    void load(const Share<T>& share) {
        Maps::load(share);
        share_ = &share;
        if constexpr (Maps::kSummed) Maps::fold(share.coefficients[0].data());
    }
    template <int ROWS>
    void tile(int64_t k, int64_t channel, int64_t o, Vec<T> (&z)[ROWS][Maps::kVectors]) const {
        const int64_t i = k * share_->rows() + channel - share_->first;
        const T *scale = share_->coefficients[0].data() + i, *shift = share_->coefficients[1].data() + i;
        if constexpr (Maps::kSummed) {
            for (int r = 0; r < ROWS; ++r)
                for (int u = 0; u < Maps::kVectors; ++u) z[r][u] = Vec<T>{} + shift[r];
            Maps::add(k, channel, o, z);
        } else {
            Maps::tile(k, channel, o, z);
            for (int r = 0; r < ROWS; ++r)
                for (int u = 0; u < Maps::kVectors; ++u) z[r][u] = scale[r] * z[r][u] + shift[r];
        }
    }

  private:
    const Share<T>* share_ = nullptr;
};

// Calls f(rows, channel) for tiles of the channels [first, last), rows being a constant.
template <typename Maps, typename F>
void for_each_tile(int64_t first, int64_t last, F f) {
    if constexpr (Maps::kSummed) {
        for (; first + 8 <= last; first += 8) f(std::integral_constant<int, 8>(), first);
        for (; first + 4 <= last; first += 4) f(std::integral_constant<int, 4>(), first);
    }
    for (; first < last; ++first) f(std::integral_constant<int, 1>(), first);
}

// Calls f(maps, share) for every sample and group, side by side; there are parts of groups where those are few.
template <typename T, typename Maps, typename F>
void for_each_share(const Problem& p, const std::vector<const T*>& coefficients, F f) {
#pragma omp parallel num_threads(p.threads) if (p.threads > 1)
    {
        Maps maps(p);
        Share<T> share;
        share.coefficients.resize(coefficients.size());
        const int64_t items = p.samples * maps.groups(), tiles = (maps.rows() + 7) / 8;
        const int64_t parts = std::clamp<int64_t>((p.threads + items - 1) / items, 1, tiles);
#pragma omp for schedule(static)
        for (int64_t item = 0; item < items * parts; ++item) {
            const int64_t part = item % parts;
            share.n = item / parts / maps.groups();
            share.g = item / parts % maps.groups();
            share.first = part * tiles / parts * 8;
            share.last = std::min((part + 1) * tiles / parts * 8, maps.rows());
            for (size_t i = 0; i < coefficients.size(); ++i) share.take(p, coefficients[i], share.coefficients[i]);
            maps.load(share);
            f(maps, share);
        }
    }
}


// Sums over the pixels of each map. After begin(maps, share), add(share, i, place, z, counted, sum) adds a block of a map
// to the vectors of its SUMS sums, and end(share, i, to, sum) gets the sums. i is the map's place among the share's
// coefficients, `place` that of the block among the share's maps, `to` that of the map among all, (N, K, C).
template <typename T, typename Maps, int SUMS, typename Begin, typename Add, typename End>
void sum_maps(const Problem& p, const std::vector<const T*>& coefficients, Begin begin, Add add, End end) {
    constexpr int64_t lanes = Vector<T>::lanes;
    constexpr int vectors = Maps::kVectors;
    for_each_share<T, Maps>(p, coefficients, [&](const Maps& maps, Share<T>& share) {
        begin(maps, share);
        share.sums.assign(p.positions() * share.rows() * SUMS * lanes, T(0));
        const int64_t all = maps.places().vectors;
        for (int64_t from = 0; from < all; from += kRun * vectors)
            for (int64_t k = 0; k < p.positions(); ++k)
                for_each_tile<Maps>(share.first, share.last, [&](auto rows, int64_t channel) {
                    Vec<T> sum[rows][SUMS] = {};
                    const int64_t first = k * share.rows() + channel - share.first;
                    for (int64_t v = from; v < std::min(from + kRun * vectors, all); v += vectors) {
                        typename Lanes<T>::type counted[vectors];
                        for (int u = 0; u < vectors; ++u) counted[u] = lanes_of<T>(maps.places().counted[v + u]);
                        Vec<T> z[rows][vectors];
                        maps.tile(k, channel, v * lanes, z);
                        for (int r = 0; r < rows; ++r) {
                            const int64_t place = (channel - share.first + r) * maps.places().size() + v * lanes;
                            add(share, first + r, place, z[r], counted, sum[r]);
                        }
                    }
                    Vec<T>* to = &at(share.sums.data() + first * SUMS * lanes);
                    for (int r = 0; r < rows; ++r)
                        for (int s = 0; s < SUMS; ++s) to[r * SUMS + s] += sum[r][s];
                });
        const int64_t to = share.n * p.positions() * p.channels() + share.channel(p);
        for (int64_t i = 0; i < p.positions() * share.rows(); ++i) {
            T sum[SUMS];
            for (int s = 0; s < SUMS; ++s) sum[s] = total<T>(at(share.sums.data() + (i * SUMS + s) * lanes));
            end(share, i, to + i / share.rows() * p.channels() + i % share.rows(), sum);
        }
    });
}

const auto no_begin = [](const auto&, auto&) {};

// Sums, and squares of the distances from a sample's own mean.
template <typename T, typename Maps>
void moments(const Problem& p, double* sums, double* squares) {
    // Taken about the mean of a map's first block: it is part of the map, so the map's mean is never so many standard
    // deviations from it that digits are lost.
    const auto begin = [&](const Maps& maps, Share<T>& share) {
        share.coefficients.resize(1);
        share.coefficients[0].resize(p.positions() * share.rows());  // all are set below
        T pixels = 0;
        for (int u = 0; u < Maps::kVectors; ++u)
            pixels += total<T>(keep<T>(Vec<T>{} + T(1), lanes_of<T>(maps.places().counted[u])));
        for (int64_t k = 0; k < p.positions(); ++k)
            for_each_tile<Maps>(share.first, share.last, [&](auto rows, int64_t channel) {
                Vec<T> z[rows][Maps::kVectors];
                maps.tile(k, channel, 0, z);
                for (int r = 0; r < rows; ++r) {
                    Vec<T> sum{};
                    for (int u = 0; u < Maps::kVectors; ++u)
                        sum += keep<T>(z[r][u], lanes_of<T>(maps.places().counted[u]));
                    share.coefficients[0][k * share.rows() + channel - share.first + r] = total<T>(sum) / pixels;
                }
            });
    };
    const auto add = [&](const Share<T>& share, int64_t i, int64_t, const auto& z, const auto& counted, auto& sum) {
        for (int u = 0; u < Maps::kVectors; ++u) {
            const Vec<T> distance = keep<T>(z[u] - share.coefficients[0][i], counted[u]);
            sum[0] += distance;
            sum[1] += distance * distance;
        }
    };
    sum_maps<T, Maps, 2>(p, {}, begin, add, [&](const Share<T>& share, int64_t i, int64_t to, const auto& sum) {
        sums[to] = sum[0] + double(p.pixels()) * share.coefficients[0][i];
        squares[to] = sum[1] - double(sum[0]) * sum[0] / p.pixels();
    });
}

template <typename T, typename Maps>
void pooled(const Problem& p, const T* scale, const T* shift, T cap, T* q) {
    const auto end = [&](const Share<T>&, int64_t, int64_t to, const auto& sum) { q[to] = sum[0] / p.pixels(); };
    with_range(cap, [&](auto range) {
        const auto add = [&](const Share<T>&, int64_t, int64_t, const auto& y, const auto& counted, auto& sum) {
            for (int u = 0; u < Maps::kVectors; ++u) sum[0] += keep<T>(range.clamp(y[u]), counted[u]);
        };
        sum_maps<T, Normed<T, Maps>, 1>(p, {scale, shift}, no_begin, add, end);
    });
}

// Three sums to where they belong.
template <typename T>
auto into(T* first, T* second, T* third) {
    return [=](const Share<T>&, int64_t, int64_t to, const auto& sum) {
        first[to] = sum[0];
        second[to] = sum[1];
        third[to] = sum[2];
    };
}

template <typename T, typename Maps>
void pool(const Problem& p, const Coefficients<T>& norms, T* active, T* active_xhat, T* capped) {
    const auto add = [&](const Share<T>& share, int64_t i, int64_t, const auto& z, const auto& counted, auto& sum) {
        for (int u = 0; u < Maps::kVectors; ++u) {
            const Activity<T> of = share.norm(i, norms.cap)(z[u]);
            sum[0] += keep<T>(Vec<T>{} + T(1), of.active & counted[u]);
            sum[1] += keep<T>(of.xhat, of.active & counted[u]);
            sum[2] += keep<T>(Vec<T>{} + T(1), of.capped & counted[u]);
        }
    };
    sum_maps<T, Maps, 3>(p, norms.all(), no_begin, add, into(active, active_xhat, capped));
}

template <typename T, typename Maps>
void reduce(const Problem& p, const Coefficients<T>& norms, const T* dout, T* d_active, T* d_active_xhat, T* d_capped) {
    constexpr int64_t lanes = Vector<T>::lanes;
    const auto begin = [&](const Maps& maps, Share<T>& share) {  // dout as places, zero where there is no pixel
        const int64_t size = maps.places().size();
        share.maps.assign(share.rows() * size, T(0));
        const T* from = dout + (share.n * p.channels() + share.channel(p)) * p.pixels();
        for (int64_t row = 0; row < share.rows(); ++row)
            for (int64_t y = 0; y < p.height; ++y, from += p.width)
                copy<lanes>(from, p.width, share.maps.data() + row * size + y * maps.places().pitch);
    };
    const auto add = [&](const auto& share, int64_t i, int64_t place, const auto& z, const auto& counted, auto& sum) {
        for (int u = 0; u < Maps::kVectors; ++u) {
            const Activity<T> of = share.norm(i, norms.cap)(z[u]);
            const Vec<T> d = at(share.maps.data() + place + u * lanes);
            sum[0] += keep<T>(d, of.active);
            sum[1] += keep<T>(d * of.xhat, of.active & counted[u]);
            sum[2] += keep<T>(d, of.capped);
        }
    };
    sum_maps<T, Maps, 3>(p, norms.all(), begin, add, into(d_active, d_active_xhat, d_capped));
}

template <typename T, typename Maps>
void aggregate(const Problem& p, const T* scale, const T* shift, const T* attention, T cap, T* out) {
    constexpr int64_t lanes = Vector<T>::lanes;
    constexpr int vectors = Maps::kVectors;
    const auto weighted_sums = [&](const auto& maps, Share<T>& share, auto range) {
        const int64_t size = maps.places().size();
        for (int64_t v = 0; v < maps.places().vectors; v += vectors)
            for_each_tile<Maps>(share.first, share.last, [&](auto rows, int64_t channel) {
                Vec<T> sums[rows][vectors] = {};
                for (int64_t k = 0; k < p.positions(); ++k) {
                    const T* weights = share.attention.data() + k * share.rows() + channel - share.first;
                    Vec<T> y[rows][vectors];
                    maps.tile(k, channel, v * lanes, y);
                    for (int r = 0; r < rows; ++r)
                        for (int u = 0; u < vectors; ++u) sums[r][u] += weights[r] * range.clamp(y[r][u]);
                }
                for (int r = 0; r < rows; ++r)
                    for (int u = 0; u < vectors; ++u)
                        at(share.sums.data() + (channel - share.first + r) * size + (v + u) * lanes) = sums[r][u];
            });
    };
    for_each_share<T, Normed<T, Maps>>(p, {scale, shift}, [&](const auto& maps, Share<T>& share) {
        const int64_t size = maps.places().size();
        share.take(p, attention + share.n * p.positions() * p.channels(), share.attention);
        share.sums.resize(share.rows() * size);
        with_range(cap, [&](auto range) { weighted_sums(maps, share, range); });
        T* to = out + ((share.n * maps.groups() + share.g) * maps.rows() + share.first) * p.pixels();
        for (int64_t channel = 0; channel < share.rows(); ++channel)
            for (int64_t row = 0; row < p.height; ++row, to += p.width)
                copy<lanes>(share.sums.data() + channel * size + row * maps.places().pitch, p.width, to);
    });
}

template <typename M>
struct Kind {  // a class, as an argument
    using Maps = M;
};

// Calls f(Kind<...>()) with the class of the maps.
template <typename T, typename F>
void with_maps(const Problem& p, F f) {
    if (p.z) f(Kind<Stored<T>>());
    else if (p.depthwise()) f(Kind<Depthwise<T>>());
    else f(Kind<Grouped<T>>());
}

template <typename T>
void moments(const Problem& p, double* sums, double* squares) {
    if (p.channels_last) return moments_in_channels_last<T>(p, sums, squares);
    with_maps<T>(p, [&](auto kind) { moments<T, typename decltype(kind)::Maps>(p, sums, squares); });
}

template <typename T>
void pooled(const Problem& p, const T* scale, const T* shift, T cap, T* q) {
    if (p.channels_last) return pooled_in_channels_last<T>(p, scale, shift, cap, q);
    with_maps<T>(p, [&](auto kind) { pooled<T, typename decltype(kind)::Maps>(p, scale, shift, cap, q); });
}

template <typename T>
void pool(const Problem& p, const Coefficients<T>& norms, T* active, T* active_xhat, T* capped) {
    if (p.channels_last) return pool_in_channels_last<T>(p, norms, active, active_xhat, capped);
    with_maps<T>(p, [&](auto kind) {
        pool<T, typename decltype(kind)::Maps>(p, norms, active, active_xhat, capped);
    });
}

template <typename T>
void reduce(const Problem& p, const Coefficients<T>& norms, const T* dout, T* d_active, T* d_active_xhat, T* d_capped) {
    if (p.channels_last) return reduce_in_channels_last<T>(p, norms, dout, d_active, d_active_xhat, d_capped);
    with_maps<T>(p, [&](auto kind) {
        reduce<T, typename decltype(kind)::Maps>(p, norms, dout, d_active, d_active_xhat, d_capped);
    });
}

template <typename T>
void aggregate(const Problem& p, const T* scale, const T* shift, const T* attention, T cap, T* out) {
    if (p.channels_last) return aggregate_in_channels_last<T>(p, scale, shift, attention, cap, out);
    with_maps<T>(p, [&](auto kind) {
        aggregate<T, typename decltype(kind)::Maps>(p, scale, shift, attention, cap, out);
    });
}

// ---- the maps of one group of one sample --------------------------------------------------------------------------

template <typename T>
class Maps {
  public:
    explicit Maps(const Problem& p) : p_(p) {
        if (p.z) return;
        const int64_t in = p.height_in * p.width_in, out = p.pixels(), plane = p.aligned() ? in : out;
        // With room for a vector that begins before its end.
        if (!p.aligned()) gathered_.resize(p.positions() * p.in_group * out + Vector<T>::lanes);
        if (!p.depthwise()) maps_.resize(p.positions() * p.out_group * plane);
    }
    void load(int64_t n, int64_t g) {
        const int64_t plane = p_.pixels();  // the same for both layouts
        if (p_.z) {
            first_ = static_cast<T*>(p_.z) + (g * p_.positions() * p_.out_group * p_.samples + n) * plane;
            return;
        }
        const T* x = input(n, g);
        if (!p_.aligned())
            for (int64_t k = 0; k < p_.positions(); ++k)
                for (int64_t ci = 0; ci < p_.in_group; ++ci) gather(x + ci * input_pixels(), k, seen(k) + ci * plane);
        if (p_.depthwise()) {
            first_ = p_.aligned() ? const_cast<T*>(x) : gathered_.data();  // only read
            return;
        }
        first_ = maps_.data();
        const int64_t rows = p_.positions() * p_.out_group;
        const T* w = static_cast<const T*>(p_.weight_of_groups) + g * rows * p_.in_group;
        if (p_.aligned()) {
            multiply(rows, plane, p_.in_group, w, p_.in_group, x, plane, first_, plane, scratch_);
        } else {
            for (int64_t k = 0; k < p_.positions(); ++k)
                multiply(p_.out_group, plane, p_.in_group, w + k * p_.out_group * p_.in_group, p_.in_group, seen(k),
                         plane, first_ + k * p_.out_group * plane, plane, scratch_);
        }
    }
    T* plane(int64_t k, int64_t co) {
        if (p_.depthwise() && p_.aligned() && !p_.z) return first_;
        return first_ + (k * p_.out_group + co) * (p_.z ? p_.samples : 1) * p_.pixels();
    }
    const T* input(int64_t n, int64_t g) const {
        return static_cast<const T*>(p_.x) + (n * p_.groups + g) * p_.in_group * input_pixels();
    }
    // From dz (K, out_group, plane) in place of the maps: dx of this group, and what it adds to dweight.
    void gradients(int64_t n, int64_t g, T* dx, T* dweight) {
        const int64_t plane = p_.pixels(), rows = p_.positions() * p_.out_group;
        const T* w = static_cast<const T*>(p_.weight_transposed) + g * rows * p_.in_group;
        if (p_.aligned()) {
            multiply(p_.in_group, plane, rows, w, rows, first_, plane, dx, plane, scratch_);
            multiply_transposed(rows, p_.in_group, plane, first_, plane, input(n, g), plane, dweight, p_.in_group);
            return;
        }
        for (int64_t k = 0; k < p_.positions(); ++k) {
            const T* dz = first_ + k * p_.out_group * plane;
            multiply_transposed(p_.out_group, p_.in_group, plane, dz, plane, seen(k), plane,
                                dweight + k * p_.out_group * p_.in_group, p_.in_group);
            multiply(p_.in_group, plane, p_.out_group, w + k * p_.out_group, rows, dz, plane, seen(k), plane,
                     scratch_);
            for (int64_t ci = 0; ci < p_.in_group; ++ci)
                scatter(seen(k) + ci * plane, k, dx + ci * input_pixels());
        }
    }
    // seen += to, where a gathered plane came from
    void scatter(const T* from, int64_t k, T* to) const {
        visit(k, [&](int64_t o, int64_t i) { to[i] += from[o]; });
    }

  private:
    int64_t input_pixels() const { return p_.height_in * p_.width_in; }
    T* seen(int64_t k) { return gathered_.data() + k * p_.in_group * p_.pixels(); }
    void gather(const T* from, int64_t k, T* to) const {
        std::fill_n(to, p_.pixels(), T(0));
        visit(k, [&](int64_t o, int64_t i) { to[o] = from[i]; });
    }
    // Calls f(output pixel, input pixel) for the outputs whose position k reads inside the image.
    template <typename F>
    void visit(int64_t k, F f) const {
        const int64_t u = k / p_.kernel[1], v = k % p_.kernel[1];
        const int64_t right = v * p_.dilation[1] - p_.padding[1], step = p_.stride[1];
        const int64_t first = right >= 0 ? 0 : (-right + step - 1) / step;
        const int64_t last = right >= p_.width_in ? 0 : std::min(p_.width, (p_.width_in - 1 - right) / step + 1);
        for (int64_t i = 0; i < p_.height; ++i) {
            const int64_t row = i * p_.stride[0] + u * p_.dilation[0] - p_.padding[0];
            if (row < 0 || row >= p_.height_in) continue;
            for (int64_t j = first; j < last; ++j) f(i * p_.width + j, row * p_.width_in + j * step + right);
        }
    }

    const Problem& p_;
    std::vector<T> gathered_, maps_, scratch_;
    T* first_ = nullptr;
};

// ---- the gradients of the maps --------------------------------------------------------------------------------------

// The gradient of one channel's output, as it is seen from the pixels of a plane.
template <typename T>
class OutputGradient {
  public:
    explicit OutputGradient(const Problem& p) : p_(p), vectors_((p.pixels() + lanes - 1) / lanes) {
        used_.assign(p.positions() * vectors_, 0);
        for (int64_t k = 0; k < p.positions(); ++k) {
            const int64_t down = shift(0, k / p.kernel[1]), right = shift(1, k % p.kernel[1]);
            const int64_t first = std::max<int64_t>(right, 0), last = std::min(p.width + right, p.width);
            for (int64_t row = std::max<int64_t>(down, 0); row < std::min(p.height + down, p.height); ++row)
                mark<T>(used_.data() + k * vectors_, row * p.width + first, row * p.width + last);
            offsets_.push_back(-down * p.width - right);
            room_ = std::max(room_, std::abs(offsets_.back()));
        }
        values_.assign(vectors_ * lanes + 2 * room_, T(0));
    }
    void load(const T* dout, int64_t n, int64_t c) {
        std::copy_n(dout + (n * p_.channels() + c) * p_.pixels(), p_.pixels(), values_.data() + room_);
    }
    // Pixels of a plane, filled up to whole vectors.
    int64_t size() const { return vectors_ * lanes; }
    // dz of a vector of pixels, from pixel i on: zero where no output reads it, and beyond the plane.
    Vec<T> through(const Slope<T>& slope, int64_t k, int64_t i, Vec<T> z) const {
        const Vec<T> dout = at(values_.data() + room_ + offsets_[k] + i);
        return keep<T>(slope(z, dout), lanes_of<T>(used_[k * vectors_ + i / lanes]));
    }

  private:
    static constexpr int64_t lanes = Vector<T>::lanes;
    int64_t shift(int axis, int64_t tap) const {  // a plane of output pixels is seen as it is
        return p_.aligned() ? tap * p_.dilation[axis] - p_.padding[axis] : 0;
    }
    const Problem& p_;
    int64_t vectors_, room_ = 0;
    std::vector<int64_t> offsets_;
    std::vector<Bits<T>> used_;  // which pixels an output reads, (K, vectors)
    std::vector<T> values_;
};

// Puts dz in the place of a plane.
template <typename T>
void replace_by_gradient(const Problem& p, const OutputGradient<T>& dout, const Slope<T>& slope, int64_t k, T* z) {
    constexpr int64_t lanes = Vector<T>::lanes;
    int64_t i = 0;
    for (; i + lanes <= p.pixels(); i += lanes) at(z + i) = dout.through(slope, k, i, at(z + i));
    if (i < p.pixels()) {  // what lies beyond is another plane's
        T rest[lanes] = {};
        std::copy_n(z + i, p.pixels() - i, rest);
        at(rest) = dout.through(slope, k, i, at(rest));
        std::copy_n(rest, p.pixels() - i, z + i);
    }
}

// With planes of the input, times weight: adds to dx (of whole vectors), and returns the gradient of the weight.
template <typename T>
T depthwise_gradient(const OutputGradient<T>& dout, const Slope<T>& slope, int64_t k, T weight, const T* x, T* dx) {
    constexpr int64_t lanes = Vector<T>::lanes;
    Vec<T> dweight{};
    for (int64_t i = 0; i < dout.size(); i += lanes) {
        const Vec<T> dz = dout.through(slope, k, i, at(x + i));
        at(dx + i) += weight * dz;
        dweight += dz * at(x + i);
    }
    return total<T>(dweight);
}

// Maps that are given become their gradients.
template <typename T>
void map_gradients(const Problem& p, const Slopes<T>& slopes, const T* dout) {
#pragma omp parallel num_threads(p.threads) if (p.threads > 1)
    {
        Maps<T> maps(p);
        OutputGradient<T> of_output(p);
#pragma omp for schedule(static)
        for (int64_t item = 0; item < p.samples * p.channels(); ++item) {
            const int64_t n = item / p.channels(), c = item % p.channels();
            maps.load(n, c / p.out_group);
            of_output.load(dout, n, c);
            for (int64_t k = 0; k < p.positions(); ++k)
                replace_by_gradient(p, of_output, slopes.at(p, n, k, c), k, maps.plane(k, c % p.out_group));
        }
    }
}

// dweight is (chunks, G, K, out_group, in_group): each has its own samples and one order of summation; with channels_last
// it is (N, K, C).
template <typename T>
void gradients(const Problem& p, const Slopes<T>& slopes, const T* dout, T* dx, T* dweight) {
    if (p.channels_last) return gradients_in_channels_last<T>(p, slopes, dout, dx, dweight);
    const int64_t positions = p.positions(), weights = positions * p.out_group * p.in_group;
    const int64_t pixels_in = p.in_group * p.height_in * p.width_in;
#pragma omp parallel num_threads(p.threads) if (p.threads > 1)
    {
        Maps<T> maps(p);
        OutputGradient<T> of_output(p);
        std::vector<T> x, plane;  // of whole vectors
#pragma omp for schedule(static)
        for (int64_t item = 0; item < p.chunks * p.groups; ++item) {
            const int64_t chunk = item / p.groups, g = item % p.groups;
            const T* w = static_cast<const T*>(p.weight_of_groups) + g * weights;
            T* dw = dweight + item * weights;
            std::fill_n(dw, weights, T(0));
            for (int64_t n = chunk; n < p.samples; n += p.chunks) {
                T* dx_group = dx + (n * p.groups + g) * pixels_in;
                maps.load(n, g);
                if (!p.aligned()) std::fill_n(dx_group, pixels_in, T(0));
                if (!p.depthwise()) {
                    for (int64_t co = 0; co < p.out_group; ++co) {
                        const int64_t c = g * p.out_group + co;
                        of_output.load(dout, n, c);
                        for (int64_t k = 0; k < positions; ++k)
                            replace_by_gradient(p, of_output, slopes.at(p, n, k, c), k, maps.plane(k, co));
                    }
                    maps.gradients(n, g, dx_group, dw);
                    continue;
                }
                of_output.load(dout, n, g);
                if (p.aligned()) {  // all positions read the one plane
                    x.assign(of_output.size(), T(0));
                    plane.assign(of_output.size(), T(0));
                    std::copy_n(maps.plane(0, 0), p.pixels(), x.data());
                    for (int64_t k = 0; k < positions; ++k)
                        dw[k] += depthwise_gradient(of_output, slopes.at(p, n, k, g), k, w[k], x.data(), plane.data());
                    std::copy_n(plane.data(), p.pixels(), dx_group);
                } else {
                    for (int64_t k = 0; k < positions; ++k) {
                        plane.assign(of_output.size(), T(0));
                        const T* seen = maps.plane(k, 0);
                        dw[k] += depthwise_gradient(of_output, slopes.at(p, n, k, g), k, w[k], seen, plane.data());
                        maps.scatter(plane.data(), k, dx_group);
                    }
                }
            }
        }
    }
}

}  // namespace

#define EXPORT(T, NAME)                                                                                               \
    extern "C" void product_##NAME(const Product* p, const T* a, const T* b, T* c) { product<T>(*p, a, b, c); }        \
    extern "C" void moments_##NAME(const Problem* p, double* sum, double* squares) { moments<T>(*p, sum, squares); }   \
    extern "C" void pooled_##NAME(const Problem* p, const T* scale, const T* shift, T cap, T* q) {                    \
        pooled<T>(*p, scale, shift, cap, q);                                                                          \
    }                                                                                                                 \
    extern "C" void pool_##NAME(const Problem* p, const T* r, const T* t, const T* gamma, const T* beta, T cap,       \
                                T* active, T* active_xhat, T* capped) {                                               \
        pool<T>(*p, {r, t, gamma, beta, cap}, active, active_xhat, capped);                                           \
    }                                                                                                                 \
    extern "C" void aggregate_##NAME(const Problem* p, const T* scale, const T* shift, const T* attention, T cap,     \
                                     T* out) {                                                                        \
        aggregate<T>(*p, scale, shift, attention, cap, out);                                                          \
    }                                                                                                                 \
    extern "C" void reduce_##NAME(const Problem* p, const T* r, const T* t, const T* gamma, const T* beta, T cap,     \
                                  const T* dout, T* d_active, T* d_active_xhat, T* d_capped) {                        \
        reduce<T>(*p, {r, t, gamma, beta, cap}, dout, d_active, d_active_xhat, d_capped);                             \
    }                                                                                                                 \
    extern "C" void gradients_##NAME(const Problem* p, const T* r, const T* t, const T* gamma, const T* beta, T cap,  \
                                     const T* dout, const T* alpha, const T* bias, const T* delta, const T* epsilon,  \
                                     T* dx, T* dweight) {                                                             \
        if (p->z)                                                                                                     \
            map_gradients<T>(*p, {{r, t, gamma, beta, cap}, alpha, bias, delta, epsilon}, dout);                      \
        else                                                                                                          \
            gradients<T>(*p, {{r, t, gamma, beta, cap}, alpha, bias, delta, epsilon}, dout, dx, dweight);             \
    }

EXPORT(float, float)
EXPORT(double, double)
