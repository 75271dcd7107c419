// Self-attention of a frozen T5's encoder on a CPU that multiplies pairs of bfloat16 (AVX-512 BF16), forward and back.
//
// One head of one example at a time, where it lies in [N, I]; a few rows of scores are made, and used up, in a core's cache.
// Arithmetic is float32, rounding to nearest even, and each head of an example is computed by one thread in one order, so
// results depend neither on threads nor on neighbours: a spoilt example spoils no other.
//
// `vdpbf16ps` adds the products of two neighbouring bfloat16 on the left with two on the right to each of 16 sums. So each product
// here goes over pairs: on the left a pair is given to all sums of a row, on the right 16 columns' pairs lie side by side. Scores and
// weights are both: rows for a product over keys, pairs of rows for one over queries.

#include <cstdint>

typedef uint16_t bf16;

// Where there are matrix units (AMX), torch's batched products use them and these loops would not.
#if !defined(__AVX512BF16__) || defined(__AMX_BF16__)

extern "C" int attention_available() { return 0; }

#else

#include <immintrin.h>

#include <cstdlib>
#include <cstring>
#include <initializer_list>

typedef int32_t __attribute__((may_alias)) pair;  // two bfloat16

static const int64_t VECTORS = 4;  // of 16 columns, with 6 rows in a tile: 24 sums, 4 vectors and a pair fill the 32 registers
static const int64_t ROWS = 24;    // whose scores are made at once

static inline int64_t up(int64_t number, int64_t unit) { return (number + unit - 1) / unit * unit; }

// Where the pairs of a product's left side lie: pair k of row r at `at[r * row + k * step]`.
struct Left {
    const pair* at;
    int64_t row, step;
};

// Add to a tile of R rows and V vectors of columns its product, over pairs.
template <int R, int V>
static inline __attribute__((always_inline)) void multiply(__m512 (&sums)[R][V], Left left, const pair* right,
                                                           int64_t right_step, int64_t pairs) {
    for (int64_t k = 0; k < pairs; k++) {
        __m512bh columns[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) columns[v] = (__m512bh)_mm512_loadu_si512(right + k * right_step + v * 16);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
            const __m512bh row = (__m512bh)_mm512_set1_epi32(left.at[r * left.row + k * left.step]);
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], row, columns[v]);
        }
    }
}

// A tile that starts from `start`, one float further left with each row, or from zero, and goes to floats.
template <int R, int V>
static void to_floats(Left left, const pair* right, int64_t right_step, int64_t pairs, const float* start, float* out,
                      int64_t out_row) {
    __m512 sums[R][V];
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) sums[r][v] = start ? _mm512_loadu_ps(start - r + v * 16) : _mm512_setzero_ps();
    multiply<R, V>(sums, left, right, right_step, pairs);
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) _mm512_storeu_ps(out + r * out_row + v * 16, sums[r][v]);
}

// A tile from zero that goes to bfloat16.
template <int R, int V>
static void to_halves(Left left, const pair* right, int64_t right_step, int64_t pairs, bf16* out, int64_t out_row) {
    __m512 sums[R][V];
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) sums[r][v] = _mm512_setzero_ps();
    multiply<R, V>(sums, left, right, right_step, pairs);
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++)
            _mm256_storeu_si256((__m256i*)(out + r * out_row + v * 16), (__m256i)_mm512_cvtneps_pbh(sums[r][v]));
}

// The next tile's rows: 6, 4, 2 or 1, so that all but the last start at an even row.
static inline int64_t next_rows(int64_t left) { return left >= 6 ? 6 : left >= 4 ? 4 : left >= 2 ? 2 : 1; }

#define TILE_OF(name, R) {name<R, 1>, name<R, 2>, name<R, 3>, name<R, 4>}
#define TILES(name) {TILE_OF(name, 1), TILE_OF(name, 2), TILE_OF(name, 4), TILE_OF(name, 6)}
static decltype(&to_floats<1, 1>) const FLOATS[4][4] = TILES(to_floats);
static decltype(&to_halves<1, 1>) const HALVES[4][4] = TILES(to_halves);

// `rows` rows over all columns, `vectors` of 16, shared out evenly among tiles, each of whose right sides lies by itself.
static inline void floats(Left left, int64_t rows, const pair* right, int64_t vectors, int64_t pairs, const float* start,
                          float* out) {
    const int64_t tiles = up(vectors, VECTORS) / VECTORS;
    for (int64_t tile = 0, first = 0; tile < tiles; tile++) {
        const int64_t wide = (vectors * (tile + 1)) / tiles - first;
        for (int64_t r = 0, few; r < rows; r += few) {
            few = next_rows(rows - r);
            FLOATS[few / 2][wide - 1]({left.at + r * left.row, left.row, left.step}, right + first * 16 * pairs, wide * 16, pairs,
                                      start ? start + first * 16 - r : nullptr, out + (r * vectors + first) * 16, vectors * 16);
        }
        first += wide;
    }
}

static inline void halves(Left left, int64_t rows, const pair* right, int64_t width, int64_t pairs, bf16* out,
                          int64_t out_row) {
    for (int64_t first = 0; first < width; first += VECTORS * 16) {
        const int64_t wide = width - first < VECTORS * 16 ? width - first : VECTORS * 16;
        for (int64_t r = 0, few; r < rows; r += few) {
            few = next_rows(rows - r);
            HALVES[few / 2][wide / 16 - 1]({left.at + r * left.row, left.row, left.step}, right + first, width, pairs,
                                           out + r * out_row + first, out_row);
        }
    }
}

// 16 numbers and 16 others as 16 pairs.
static inline __m512i side_by_side(__m512i both) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4,
                                           19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, both);
}

// 16 x 16 pairs, rows to columns.
static inline void transpose(__m512i (&block)[16]) {
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
#pragma GCC unroll 4
    for (int bit = 1; bit < 16; bit *= 2) {
        // Lanes with the bit unset from the one, moved by the bit from the other: index + 16 means the second operand.
        const __m512i bits = _mm512_set1_epi32(bit);
        const __mmask16 set = _mm512_test_epi32_mask(lanes, bits);
        const __m512i low = _mm512_mask_add_epi32(lanes, set, lanes, _mm512_set1_epi32(16 - bit));
        const __m512i high = _mm512_mask_add_epi32(_mm512_add_epi32(lanes, bits), set, lanes, _mm512_set1_epi32(16));
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            if (!(i & bit)) {
                const __m512i one = block[i], other = block[i + bit];
                block[i] = _mm512_permutex2var_epi32(one, low, other);
                block[i + bit] = _mm512_permutex2var_epi32(one, high, other);
            }
    }
}

// Rows [length, width] as the right side of a product over their width: a tile's columns are rows, zero beyond the last.
static void pack_rows(const bf16* rows, int64_t row, int64_t length, int64_t width, pair* out) {
    const int64_t vectors = up(length, 16) / 16, tiles = up(vectors, VECTORS) / VECTORS, pairs = width / 2;
    for (int64_t tile = 0, first = 0; tile < tiles; tile++) {
        const int64_t wide = (vectors * (tile + 1)) / tiles - first;
        for (int64_t v = 0; v < wide; v++)
            for (int64_t k = 0; k < pairs; k += 16) {
                __m512i block[16];
                for (int64_t i = 0; i < 16; i++) {
                    const int64_t n = (first + v) * 16 + i;
                    block[i] = n < length ? _mm512_loadu_si512(rows + n * row + k * 2) : _mm512_setzero_si512();
                }
                transpose(block);
                for (int64_t i = 0; i < 16; i++)
                    _mm512_storeu_si512(out + first * 16 * pairs + ((k + i) * wide + v) * 16, block[i]);
            }
        first += wide;
    }
}

// Rows [length, width] as the right side of a product over rows, two at a time, zero beyond the last.
static void pack_pairs(const bf16* rows, int64_t row, int64_t length, int64_t width, pair* out) {
    for (int64_t n = 0; n < length; n += 2)
        for (int64_t j = 0; j < width; j += 16) {
            const bf16* from = rows + n * row + j;
            const __m256i one = _mm256_loadu_si256((const __m256i*)from);
            const __m256i other = n + 1 < length ? _mm256_loadu_si256((const __m256i*)(from + row)) : _mm256_setzero_si256();
            const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(one), other, 1);
            _mm512_storeu_si512(out + (n / 2) * width + j, side_by_side(both));
        }
}

// Sixteen numbers of each of two rows, rounded: to the rows, and side by side as pairs to `pairs` unless it is null. What is not
// needed soon goes past the cache.
template <bool SOON>
static inline void put_two(__m512 one, __m512 other, bf16* row, int64_t row_step, pair* pairs) {
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(other, one);
    _mm256_storeu_si256((__m256i*)row, _mm512_castsi512_si256(both));
    _mm256_storeu_si256((__m256i*)(row + row_step), _mm512_extracti64x4_epi64(both, 1));
    if (SOON)
        _mm512_storeu_si512(pairs, side_by_side(both));
    else if (pairs)
        _mm512_stream_si512((__m512i*)pairs, side_by_side(both));
}

// 2^x: 2^floor(x) times a polynomial for the rest, whose relative error is at most 1e-7. NaN stays NaN, 2^-inf is 0.
static inline __m512 power_of_two(__m512 x) {
    const __m512 rest = _mm512_reduce_ps(x, 1);  // x - floor(x)
    __m512 p = _mm512_set1_ps(1.87757668e-3f);
    p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(8.98934009e-3f));
    p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(5.58263180e-2f));
    p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(2.40153617e-1f));
    p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(6.93153073e-1f));
    p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(9.99999925e-1f));
    return _mm512_scalef_ps(p, x);
}

// Softmax of two rows of scores, computed in them, to bfloat16: to rows, and as pairs to `kept` unless it is null. Without `both` the
// other row is none: zero before and after.
static void softmax(float* one, float* other, int64_t length, int64_t padded, bool both, bf16* rows, pair* kept) {
    for (int64_t j = length; j < padded; j++) one[j] = other[j] = -__builtin_inff();
    __m512 tops = _mm512_loadu_ps(one), other_tops = _mm512_loadu_ps(other);
    for (int64_t j = 16; j < padded; j += 16) {
        tops = _mm512_max_ps(tops, _mm512_loadu_ps(one + j));
        other_tops = _mm512_max_ps(other_tops, _mm512_loadu_ps(other + j));
    }
    const __m512 log2e = _mm512_set1_ps(1.44269504088896341f);
    const __m512 top = _mm512_mul_ps(_mm512_set1_ps(_mm512_reduce_max_ps(tops)), log2e);
    const __m512 other_top = _mm512_mul_ps(_mm512_set1_ps(_mm512_reduce_max_ps(other_tops)), log2e);
    __m512 sums = _mm512_setzero_ps(), other_sums = sums;
    for (int64_t j = 0; j < padded; j += 16) {
        const __m512 x = power_of_two(_mm512_fmsub_ps(_mm512_loadu_ps(one + j), log2e, top));
        const __m512 y = power_of_two(_mm512_fmsub_ps(_mm512_loadu_ps(other + j), log2e, other_top));
        sums = _mm512_add_ps(sums, x);
        other_sums = _mm512_add_ps(other_sums, y);
        _mm512_storeu_ps(one + j, x);
        _mm512_storeu_ps(other + j, y);
    }
    const __m512 scale = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(sums));
    const __m512 other_scale = _mm512_set1_ps(both ? 1.0f / _mm512_reduce_add_ps(other_sums) : 0.0f);
    for (int64_t j = 0; j < padded; j += 16)
        put_two<false>(_mm512_mul_ps(_mm512_loadu_ps(one + j), scale),
                       _mm512_mul_ps(_mm512_loadu_ps(other + j), other_scale), rows + j, padded, kept ? kept + j : nullptr);
}

// The gradient of two rows of scores from that of their weights, which are kept as pairs: to rows and to pairs.
static void softmax_back(const float* grad, const pair* kept, int64_t padded, bf16* rows, pair* pairs) {
    const float* other_grad = grad + padded;
    const __m512i high = _mm512_set1_epi32(0xffff0000);
    __m512 dot = _mm512_setzero_ps(), other_dot = dot;
    for (int64_t j = 0; j < padded; j += 16) {
        const __m512i both = _mm512_loadu_si512(kept + j);
        const __m512 p = (__m512)_mm512_slli_epi32(both, 16), other_p = (__m512)_mm512_and_si512(both, high);
        dot = _mm512_fmadd_ps(p, _mm512_loadu_ps(grad + j), dot);
        other_dot = _mm512_fmadd_ps(other_p, _mm512_loadu_ps(other_grad + j), other_dot);
    }
    dot = _mm512_set1_ps(_mm512_reduce_add_ps(dot));
    other_dot = _mm512_set1_ps(_mm512_reduce_add_ps(other_dot));
    for (int64_t j = 0; j < padded; j += 16) {
        const __m512i both = _mm512_loadu_si512(kept + j);
        const __m512 p = (__m512)_mm512_slli_epi32(both, 16), other_p = (__m512)_mm512_and_si512(both, high);
        put_two<true>(_mm512_mul_ps(p, _mm512_sub_ps(_mm512_loadu_ps(grad + j), dot)),
                      _mm512_mul_ps(other_p, _mm512_sub_ps(_mm512_loadu_ps(other_grad + j), other_dot)), rows + j, padded,
                      pairs + j);
    }
}

// What a thread works in.
struct Scratch {
    char* at;
    int64_t used;
    explicit Scratch(int64_t bytes) : at(static_cast<char*>(_mm_malloc(bytes, 64))) {
        if (!at) std::abort();  // as an exception in a thread would
    }
    ~Scratch() { _mm_free(at); }
    template <class T>
    T* take(int64_t count) {
        T* taken = reinterpret_cast<T*>(at + used);
        used += up(count * sizeof(T), 64);
        return taken;
    }
};

// Ask for rows of a head: memory takes longer than what is done before they are read.
static inline void fetch(const bf16* rows, int64_t row, int64_t length, int64_t width) {
    for (int64_t n = 0; n < length; n++)
        for (int64_t j = 0; j < width; j += 32) _mm_prefetch((const char*)(rows + n * row + j), _MM_HINT_T1);
}

// Queries, keys and values of one head of one example, `row` apart, to what they mix to. Query i and key j have bias[j - i].
static void forward_of_head(const bf16* query, const bf16* key, const bf16* value, const float* bias, pair* kept, bf16* mixed,
                            int64_t length, int64_t row, int64_t width, Scratch& scratch) {
    for (const bf16* rows : {key, value, query}) fetch(rows, row, length, width);
    const int64_t padded = up(length, 16), pairs = up(length, 2) / 2;
    scratch.used = 0;
    pair* keys = scratch.take<pair>(padded * width / 2);
    pair* values = scratch.take<pair>(pairs * width);
    float* scores = scratch.take<float>(ROWS * padded);
    bf16* weights = scratch.take<bf16>(ROWS * padded);
    pack_rows(key, row, length, width, keys);
    pack_pairs(value, row, length, width, values);
    for (int64_t i = 0, rows; i < length; i += rows) {
        rows = length - i < ROWS ? length - i : ROWS;
        floats({(const pair*)(query + i * row), row / 2, 1}, rows, keys, padded / 16, width / 2, bias - i, scores);
        if (rows % 2) std::memset(scores + rows * padded, 0, padded * sizeof(float));
        for (int64_t r = 0; r < rows; r += 2) {
            float* one = scores + r * padded;
            softmax(one, one + padded, length, padded, r + 1 < rows, weights + r * padded,
                    kept ? kept + (i + r) / 2 * padded : nullptr);
        }
        halves({(const pair*)weights, padded / 2, 1}, rows, values, width, pairs, mixed + i * row, row);
    }
    _mm_sfence();  // others may read what went past the cache
}

// The gradients of queries, keys and values from that of what they mixed to.
static void backward_of_head(const bf16* query, const bf16* key, const bf16* value, const bf16* grad, const pair* kept,
                             bf16* query_grad, bf16* key_grad, bf16* value_grad, int64_t length, int64_t row, int64_t width,
                             Scratch& scratch) {
    for (const bf16* rows : {value, key, query, grad}) fetch(rows, row, length, width);
    const int64_t padded = up(length, 16), pairs = up(length, 2) / 2;
    scratch.used = 0;
    pair* values = scratch.take<pair>(padded * width / 2);
    pair* keys = scratch.take<pair>(pairs * width);
    pair* queries = scratch.take<pair>(pairs * width);
    pair* grads = scratch.take<pair>(pairs * width);
    float* weights_grad = scratch.take<float>(ROWS * padded);
    bf16* few = scratch.take<bf16>(ROWS * padded);
    pair* scores = scratch.take<pair>(pairs * padded);
    pack_rows(value, row, length, width, values);
    pack_pairs(key, row, length, width, keys);
    pack_pairs(query, row, length, width, queries);
    pack_pairs(grad, row, length, width, grads);
    for (int64_t i = 0, rows; i < length; i += rows) {
        rows = length - i < ROWS ? length - i : ROWS;
        floats({(const pair*)(grad + i * row), row / 2, 1}, rows, values, padded / 16, width / 2, nullptr, weights_grad);
        if (rows % 2) std::memset(weights_grad + rows * padded, 0, padded * sizeof(float));
        for (int64_t r = 0; r < rows; r += 2)
            softmax_back(weights_grad + r * padded, kept + (i + r) / 2 * padded, padded, few + r * padded,
                         scores + (i + r) / 2 * padded);
        halves({(const pair*)few, padded / 2, 1}, rows, keys, width, pairs, query_grad + i * row, row);
    }
    halves({kept, 1, padded}, length, grads, width, pairs, value_grad, row);
    halves({scores, 1, padded}, length, queries, width, pairs, key_grad, row);
}

extern "C" {

int attention_available() { return 1; }

// Pairs of probabilities that an example keeps for each of its heads.
int64_t attention_keeps(int64_t length) { return up(length, 2) / 2 * up(length, 16); }

// Example e lies at rows starts[e] to starts[e + 1] of [N, heads * width]; its kept probabilities begin at pair kept_at[e].
// Key j of query i of head h has the bias table[h, middle + j - i]; the table's rows end with 15 numbers nobody needs.
// kept may be null: nothing is kept then.
void attention_forward(const bf16* query, const bf16* key, const bf16* value, const float* table, const int64_t* starts,
                       const int64_t* kept_at, pair* kept, bf16* mixed, int64_t examples, int64_t heads, int64_t width,
                       int64_t longest, int64_t table_width, int64_t middle) {
    const int64_t row = heads * width, padded = up(longest, 16);
    const int64_t bytes = padded * width * 4 + ROWS * padded * 6 + 1024;
#pragma omp parallel
    {
        Scratch scratch(bytes);
#pragma omp for schedule(dynamic)
        for (int64_t n = examples * heads - 1; n >= 0; n--) {  // the last examples are the longest
            const int64_t example = n / heads, head = n % heads, length = starts[example + 1] - starts[example];
            const int64_t at = starts[example] * row + head * width;
            pair* keep = kept ? kept + kept_at[example] + head * attention_keeps(length) : nullptr;
            forward_of_head(query + at, key + at, value + at, table + head * table_width + middle, keep, mixed + at, length,
                            row, width, scratch);
        }
    }
}

void attention_backward(const bf16* query, const bf16* key, const bf16* value, const bf16* grad, const int64_t* starts,
                        const int64_t* kept_at, const pair* kept, bf16* query_grad, bf16* key_grad, bf16* value_grad,
                        int64_t examples, int64_t heads, int64_t width, int64_t longest) {
    const int64_t row = heads * width, padded = up(longest, 16);
    const int64_t bytes = padded * width * 8 + ROWS * padded * 6 + attention_keeps(longest) * 4 + 1024;
#pragma omp parallel
    {
        Scratch scratch(bytes);
#pragma omp for schedule(dynamic)
        for (int64_t n = examples * heads - 1; n >= 0; n--) {  // the last examples are the longest
            const int64_t example = n / heads, head = n % heads, length = starts[example + 1] - starts[example];
            const int64_t at = starts[example] * row + head * width;
            backward_of_head(query + at, key + at, value + at, grad + at, kept + kept_at[example] + head * attention_keeps(length),
                             query_grad + at, key_grad + at, value_grad + at, length, row, width, scratch);
        }
    }
}
}

#endif
