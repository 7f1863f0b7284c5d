// Vectors as wide as the processor's, by the compiler's own types.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int64_t kVectorBytes = 64;
#else
constexpr int64_t kVectorBytes = 32;
#endif

template <typename T>
struct Vector {
    typedef T type __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));
    static constexpr int64_t lanes = kVectorBytes / sizeof(T);
};

template <typename T>
typename Vector<T>::type& at(T* p) { return *reinterpret_cast<typename Vector<T>::type*>(p); }
template <typename T>
const typename Vector<T>::type& at(const T* p) { return *reinterpret_cast<const typename Vector<T>::type*>(p); }

template <typename T>
using Vec = typename Vector<T>::type;

// A vector that is used several times: the compiler would read it from memory for each of them.
template <typename T>
Vec<T> in_register(Vec<T> v) {
#if defined(__AVX__)
    asm("" : "+v"(v));
#endif
    return v;
}

template <typename T>
using Bits = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;  // one for each lane of a vector

template <typename T>
struct Lanes {  // as a mask: all bits of a lane, or none
    typedef Bits<T> type __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));
};

template <typename T>
typename Lanes<T>::type lanes_of(Bits<T> bits) {
    typename Lanes<T>::type lane;
    for (int64_t l = 0; l < Vector<T>::lanes; ++l) lane[l] = Bits<T>(1) << l;
    return (lane & bits) != 0;
}

template <typename T>
Vec<T> keep(Vec<T> v, typename Lanes<T>::type mask) {  // and zero in the other lanes
    return reinterpret_cast<Vec<T>>(reinterpret_cast<typename Lanes<T>::type>(v) & mask);
}

template <typename T>
T total(Vec<T> v) {  // of the lanes
    T sum = 0;
    for (int64_t l = 0; l < Vector<T>::lanes; ++l) sum += v[l];
    return sum;
}

// Copies a row without calling memmove, which costs as much as a short row: in pieces of AT_ONCE, the last one overlapping
// the one before it.
template <int64_t AT_ONCE, typename T>
void copy(const T* from, int64_t count, T* to) {
    if (count < AT_ONCE) {
        if constexpr (AT_ONCE > 1) copy<AT_ONCE / 2>(from, count, to);
        return;
    }
    const auto piece = [&](int64_t i) { std::memcpy(to + i, from + i, AT_ONCE * sizeof(T)); };
    for (int64_t i = 0; i + AT_ONCE < count; i += AT_ONCE) piece(i);
    piece(count - AT_ONCE);
}

// The first address in memory that is a multiple of a vector's size, so that a vector lies on one line of the cache.
template <typename T>
T* at_boundary(std::vector<T>& memory) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory.data());
    return reinterpret_cast<T*>((address + kVectorBytes - 1) / kVectorBytes * kVectorBytes);
}

// Sets the bits of places [first, last).
template <typename T>
void mark(Bits<T>* bits, int64_t first, int64_t last) {
    constexpr int64_t lanes = Vector<T>::lanes;
    for (int64_t next; first < last; first = next) {
        next = std::min(last, (first / lanes + 1) * lanes);
        bits[first / lanes] |= ((Bits<T>(1) << (next - first)) - 1) << first % lanes;
    }
}

}  // namespace
