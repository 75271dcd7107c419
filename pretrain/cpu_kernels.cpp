// What lies between the matrix products of a frozen T5 on a CPU, in bfloat16, each in one pass over memory.
//
// Plain loops over rows that g++ turns into vector instructions; arithmetic is float32, rounding to nearest even.
// Rows are shared out statically and computed alike by whichever thread, so results do not depend on their number.
// NaN and infinity pass through: a spoilt example has to be seen in its loss.

#include <cstdint>
#include <cstring>
#include <vector>

typedef uint16_t bf16;

static inline float bits_to_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

static inline uint32_t float_to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

static inline float widen(bf16 value) { return bits_to_float(uint32_t(value) << 16); }

static inline bf16 narrow(float value) {
    uint32_t bits = float_to_bits(value);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (bits & 0x7fffffffu) > 0x7f800000u ? bf16(0x7fc0) : bf16(rounded);
}

// e^x for x <= 0 to about 2e-7: 2^r x 2^f with |f| <= 1/2, a polynomial for 2^f (Taylor's, to the sixth power).
static inline float exp_of_negative(float x) {
    x = x < -87.0f ? -87.0f : x;  // NaN stays NaN
    float t = x * 1.44269504088896341f;
    float r = __builtin_rintf(t);
    float f = t - r;
    float p = 1.5403530393381608e-4f;
    p = p * f + 1.3333558146428443e-3f;
    p = p * f + 9.6181291076284771e-3f;
    p = p * f + 5.5504108664821580e-2f;
    p = p * f + 2.4022650695910072e-1f;
    p = p * f + 6.9314718055994531e-1f;
    p = p * f + 1.0f;
    return p * bits_to_float(uint32_t(int32_t(r) + 127) << 23);
}

// 1 / (1 + e^-x), without overflow on either side.
static inline float logistic(float x) {
    float e = exp_of_negative(-__builtin_fabsf(x)), larger = 1.0f / (1.0f + e);
    return x < 0.0f ? e * larger : larger;
}

// Of gelu's tanh formula (Hendrycks and Gimpel 2016): 2 u = 2 sqrt(2 / pi) (x + 0.044715 x^3).
static const float GELU_SCALE = 1.5957691216057308f, GELU_CUBE = 0.044715f;
static inline float gelu_slope(float x) { return GELU_SCALE * (x + GELU_CUBE * x * x * x); }

extern "C" {

// scores [examples * heads, length, length] become softmax(scores + bias), in place. Key j of query i of head h has the
// bias table[h, middle + j - i]; keys from an example's own length on get no weight.
void softmax_with_bias(bf16* scores, const bf16* table, const int64_t* lengths, int64_t examples, int64_t heads,
                       int64_t length, int64_t table_width, int64_t middle) {
    const int64_t rows = examples * heads * length;
#pragma omp parallel
    {
        std::vector<float> row(length);
        float* x = row.data();
#pragma omp for schedule(static)
        for (int64_t n = 0; n < rows; n++) {
            const int64_t query = n % length, head = n / length % heads, example = n / length / heads;
            const int64_t keys = lengths[example];
            bf16* score = scores + n * length;
            const bf16* bias = table + head * table_width + middle - query;
            float top = -3.4e38f;
#pragma omp simd reduction(max : top)
            for (int64_t j = 0; j < keys; j++) {
                float value = widen(score[j]) + widen(bias[j]);
                x[j] = value;
                top = value > top ? value : top;
            }
            float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
            for (int64_t j = 0; j < keys; j++) {
                float value = exp_of_negative(x[j] - top);
                x[j] = value;
                sum += value;
            }
            const float scale = 1.0f / sum;
#pragma omp simd
            for (int64_t j = 0; j < keys; j++) score[j] = narrow(x[j] * scale);
            for (int64_t j = keys; j < length; j++) score[j] = 0;
        }
    }
}

// out = x / rms(x) * weight for each row; scales keeps 1 / rms(x).
void norm_forward(const bf16* x, const bf16* weight, bf16* out, float* scales, int64_t rows, int64_t width, float eps) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < rows; n++) {
        const bf16* in = x + n * width;
        bf16* to = out + n * width;
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < width; j++) sum += widen(in[j]) * widen(in[j]);
        const float scale = 1.0f / __builtin_sqrtf(sum / width + eps);
        scales[n] = scale;
#pragma omp simd
        for (int64_t j = 0; j < width; j++) to[j] = narrow(widen(in[j]) * scale * widen(weight[j]));
    }
}

// The gradient of x, given that of out.
void norm_backward(const bf16* grad, const bf16* x, const bf16* weight, const float* scales, bf16* out, int64_t rows,
                   int64_t width) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < rows; n++) {
        const bf16 *g = grad + n * width, *in = x + n * width;
        bf16* to = out + n * width;
        float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
        for (int64_t j = 0; j < width; j++) dot += widen(g[j]) * widen(weight[j]) * widen(in[j]);
        const float scale = scales[n], along = -dot * scale * scale * scale / width;
#pragma omp simd
        for (int64_t j = 0; j < width; j++)
            to[j] = narrow(widen(g[j]) * widen(weight[j]) * scale + widen(in[j]) * along);
    }
}

// out = gelu(gate) * up, gelu by its tanh formula: 1/2 (1 + tanh u) is the logistic function of 2 u.
void gated_gelu_forward(const bf16* gate, const bf16* up, bf16* out, int64_t n) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; i++) {
        float x = widen(gate[i]);
        out[i] = narrow(x * logistic(gelu_slope(x)) * widen(up[i]));
    }
}

// The gradients of gate and up, given that of out.
void gated_gelu_backward(const bf16* grad, const bf16* gate, const bf16* up, bf16* to_gate, bf16* to_up, int64_t n) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; i++) {
        float g = widen(grad[i]), x = widen(gate[i]), s = logistic(gelu_slope(x));
        float derivative = s + x * s * (1.0f - s) * GELU_SCALE * (1.0f + 3.0f * GELU_CUBE * x * x);
        to_gate[i] = narrow(g * widen(up[i]) * derivative);
        to_up[i] = narrow(g * x * s);
    }
}
}
