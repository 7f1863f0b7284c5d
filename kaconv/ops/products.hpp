// Matrix products.

#pragma once

#include "vectors.hpp"

namespace {

// ---- of the small matrices of one group ------------------------------------------------------------------------------

// Of a tile, whose sums and what they are made from fit the registers.
constexpr int64_t kTileRows = kVectorBytes == 64 ? 8 : 4, kTileVectors = 2;

// ROWS rows of c = a · b, or c += a · b with ADD.
template <typename T, int ROWS, bool ADD>
void tile(int64_t inner, const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc) {
    constexpr int64_t lanes = Vector<T>::lanes;
    Vec<T> sum[ROWS][kTileVectors] = {};
    if constexpr (ADD)
        for (int r = 0; r < ROWS; ++r)
            for (int u = 0; u < kTileVectors; ++u) sum[r][u] = at(c + r * ldc + u * lanes);
    for (int64_t p = 0; p < inner; ++p) {
        const auto b0 = at(b + p * ldb), b1 = at(b + p * ldb + lanes);
        for (int r = 0; r < ROWS; ++r) {
            sum[r][0] += a[r * lda + p] * b0;
            sum[r][1] += a[r * lda + p] * b1;
        }
    }
    for (int r = 0; r < ROWS; ++r)
        for (int u = 0; u < kTileVectors; ++u) at(c + r * ldc + u * lanes) = sum[r][u];
}

template <typename T, bool ADD>
void tiles(int64_t rows, int64_t inner, const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc) {
    int64_t i = 0;
    for (; i + kTileRows <= rows; i += kTileRows)
        tile<T, kTileRows, ADD>(inner, a + i * lda, lda, b, ldb, c + i * ldc, ldc);
    for (; i + 4 <= rows; i += 4) tile<T, 4, ADD>(inner, a + i * lda, lda, b, ldb, c + i * ldc, ldc);
    for (; i < rows; ++i) tile<T, 1, ADD>(inner, a + i * lda, lda, b, ldb, c + i * ldc, ldc);
}

// c (rows, columns) = a (rows, inner) · b (inner, columns)
template <typename T>
void multiply(int64_t rows, int64_t columns, int64_t inner, const T* a, int64_t lda, const T* b, int64_t ldb, T* c,
              int64_t ldc, std::vector<T>& scratch) {
    constexpr int64_t step = kTileVectors * Vector<T>::lanes;
    int64_t j = 0;
    for (; j + step <= columns; j += step) tiles<T, false>(rows, inner, a, lda, b + j, ldb, c + j, ldc);
    if (const int64_t rest = columns - j) {  // the last columns go through a padded copy
        scratch.assign((inner + rows) * step, T(0));
        T *b_rest = scratch.data(), *c_rest = b_rest + inner * step;
        for (int64_t p = 0; p < inner; ++p) std::copy_n(b + p * ldb + j, rest, b_rest + p * step);
        tiles<T, false>(rows, inner, a, lda, b_rest, step, c_rest, step);
        for (int64_t i = 0; i < rows; ++i) std::copy_n(c_rest + i * step, rest, c + i * ldc + j);
    }
}

// c (rows, columns) += a (rows, inner) · b (columns, inner) transposed, for ROWS x COLUMNS entries
template <typename T, int ROWS, int COLUMNS>
void dots(int64_t inner, const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc) {
    constexpr int64_t lanes = Vector<T>::lanes;
    Vec<T> sum[ROWS][COLUMNS] = {};
    int64_t p = 0;
    for (; p + lanes <= inner; p += lanes)
        for (int r = 0; r < ROWS; ++r)
            for (int s = 0; s < COLUMNS; ++s) sum[r][s] += at(a + r * lda + p) * at(b + s * ldb + p);
    for (int r = 0; r < ROWS; ++r)
        for (int s = 0; s < COLUMNS; ++s) {
            T rest = 0;
            for (int64_t q = p; q < inner; ++q) rest += a[r * lda + q] * b[s * ldb + q];
            c[r * ldc + s] += total<T>(sum[r][s]) + rest;
        }
}

template <typename T>
void multiply_transposed(int64_t rows, int64_t columns, int64_t inner, const T* a, int64_t lda, const T* b,
                         int64_t ldb, T* c, int64_t ldc) {
    int64_t i = 0;
    for (; i + 4 <= rows; i += 4) {
        int64_t j = 0;
        for (; j + 4 <= columns; j += 4)
            dots<T, 4, 4>(inner, a + i * lda, lda, b + j * ldb, ldb, c + i * ldc + j, ldc);
        for (; j < columns; ++j) dots<T, 4, 1>(inner, a + i * lda, lda, b + j * ldb, ldb, c + i * ldc + j, ldc);
    }
    for (; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j)
            dots<T, 1, 1>(inner, a + i * lda, lda, b + j * ldb, ldb, c + i * ldc + j, ldc);
}

// ---- of many channels -----------------------------------------------------------------------------------------------
//
// Made here: the library that PyTorch multiplies by leaves the vectors of 64 bytes of some processors unused.

struct Product {  // c = a · b of each of some matrices: rows are contiguous, except with `transposed` those of b
    int64_t matrices, rows, columns, inner;
    int64_t a_matrix, a_row, b_matrix, b_row, c_matrix, c_row;  // from one to the next, in elements
    int64_t transposed;  // whether b_row leads from one column of b to the next, whose entries are contiguous
    int64_t threads;
};

constexpr int64_t kTerms = 512;           // of a sum that are taken at once: rows of a so long stay in the first cache
constexpr int64_t kPanelBytes = 1 << 19;  // of b that a thread works with at a time: they stay in the second

// Copies so many columns of b into panels of a tile's width; the last one is filled up with zeros.
template <typename T>
void pack(const Product& p, const T* b, int64_t terms, int64_t columns, T* to) {
    constexpr int64_t lanes = Vector<T>::lanes, step = kTileVectors * lanes;
    for (int64_t j = 0; j < columns; j += step, to += terms * step) {
        const int64_t count = std::min(step, columns - j);
        if (count < step) std::fill_n(to, terms * step, T(0));
        if (p.transposed) {
            for (int64_t first = 0; first < terms; first += lanes)  // so that what is written stays in the first cache
                for (int64_t i = 0; i < count; ++i)
                    for (int64_t term = first; term < std::min(first + lanes, terms); ++term)
                        to[term * step + i] = b[(j + i) * p.b_row + term];
        } else if (count == step) {
            for (int64_t term = 0; term < terms; ++term)
                for (int64_t u = 0; u < kTileVectors; ++u)
                    at(to + term * step + u * lanes) = at(b + term * p.b_row + j + u * lanes);
        } else {
            for (int64_t term = 0; term < terms; ++term) std::copy_n(b + term * p.b_row + j, count, to + term * step);
        }
    }
}

// Adds to c, or with ADD = false sets it to, the product of `terms` columns of a with panels of b.
template <typename T, bool ADD>
void add_panels(const Product& p, int64_t rows, int64_t columns, int64_t terms, const T* a, const T* panels, T* c,
                T* rest) {
    constexpr int64_t step = kTileVectors * Vector<T>::lanes;
    for (int64_t i = 0; i < rows; i += kTileRows) {
        const int64_t tall = std::min(kTileRows, rows - i);
        for (int64_t j = 0; j < columns; j += step) {
            const T *a_tile = a + i * p.a_row, *b_panel = panels + j * terms;
            T* c_tile = c + i * p.c_row + j;
            if (j + step <= columns) {
                tiles<T, ADD>(tall, terms, a_tile, p.a_row, b_panel, step, c_tile, p.c_row);
            } else {
                tiles<T, false>(tall, terms, a_tile, p.a_row, b_panel, step, rest, step);
                for (int64_t r = 0; r < tall; ++r)
                    for (int64_t s = 0; s < columns - j; ++s) {
                        T& entry = c_tile[r * p.c_row + s];
                        entry = rest[r * step + s] + (ADD ? entry : T(0));
                    }
            }
        }
    }
}

template <typename T>
void product(const Product& p, const T* a, const T* b, T* c) {
    constexpr int64_t step = kTileVectors * Vector<T>::lanes;
    const int64_t times = (p.inner + kTerms - 1) / kTerms, terms = (p.inner + times - 1) / times;
    const int64_t panels = (p.columns + step - 1) / step, bands = (p.rows + kTileRows - 1) / kTileRows;
    const int64_t at_once = std::max<int64_t>(1, kPanelBytes / (step * terms * int64_t(sizeof(T))));  // panels
    const int64_t blocks = (panels + at_once - 1) / at_once, items = p.matrices * blocks;
    // Rows come apart only where there is too little else to run side by side: each part makes panels of its own.
    const int64_t parts = std::clamp<int64_t>((p.threads + items - 1) / items, 1, bands);
#pragma omp parallel num_threads(p.threads) if (p.threads > 1)
    {
        std::vector<T> packed(at_once * step * terms), rest(kTileRows * step);
#pragma omp for schedule(static)
        for (int64_t item = 0; item < items * parts; ++item) {
            const int64_t part = item % parts, block = item / parts % blocks, matrix = item / parts / blocks;
            const int64_t top = part * bands / parts * kTileRows, left = block * panels / blocks * step;
            const int64_t rows = std::min((part + 1) * bands / parts * kTileRows, p.rows) - top;
            const int64_t columns = std::min((block + 1) * panels / blocks * step, p.columns) - left;
            T* to = c + matrix * p.c_matrix + top * p.c_row + left;
            for (int64_t first = 0; first < p.inner; first += terms) {
                const int64_t count = std::min(terms, p.inner - first);
                const int64_t b_first = p.transposed ? left * p.b_row + first : first * p.b_row + left;
                pack(p, b + matrix * p.b_matrix + b_first, count, columns, packed.data());
                const T* from = a + matrix * p.a_matrix + top * p.a_row + first;
                const auto add = first ? add_panels<T, true> : add_panels<T, false>;
                add(p, rows, columns, count, from, packed.data(), to, rest.data());
            }
        }
    }
}

}  // namespace
