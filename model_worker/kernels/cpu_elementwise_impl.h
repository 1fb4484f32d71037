// Norms, rotation, activations, cross-entropy: one pass over memory each.
#pragma once

#include <cstdlib>
#include <cstring>

namespace membank::MEMBANK_ISA {
namespace {

template <typename T>
void Norm(const NormShape& shape, const void* x_, const void* addend_, void* sum_, const void* weight_, const void* bias_, void* y_,
          float* means, float* inv_rms) {
  const int64_t rows = shape.rows, d = shape.d;
  const T* weight = static_cast<const T*>(weight_);
  const T* bias = static_cast<const T*>(bias_);
  const float offset = shape.offset;
#pragma omp parallel for schedule(static) if (rows * d > 16384)
  for (int64_t row = 0; row < rows; ++row) {
    const T* x = static_cast<const T*>(x_) + row * d;
    T* y = static_cast<T*>(y_) + row * d;
    if (addend_ != nullptr) {
      const T* addend = static_cast<const T*>(addend_) + row * d;
      T* sum = static_cast<T*>(sum_) + row * d;
#pragma omp simd
      for (int64_t i = 0; i < d; ++i) Store(sum, i, Load(x, i) + Load(addend, i));
      x = sum;
    }
    float mean = 0;
    if (shape.center) {
#pragma omp simd reduction(+ : mean)
      for (int64_t i = 0; i < d; ++i) mean += Load(x, i);
      mean /= static_cast<float>(d);
      means[row] = mean;
    }
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < d; ++i) squares += (Load(x, i) - mean) * (Load(x, i) - mean);
    const float scale = 1.0f / std::sqrt(squares / static_cast<float>(d) + shape.epsilon);
    inv_rms[row] = scale;
    if (bias != nullptr) {
#pragma omp simd
      for (int64_t i = 0; i < d; ++i) Store(y, i, (Load(x, i) - mean) * scale * (Load(weight, i) + offset) + Load(bias, i));
    } else {
#pragma omp simd
      for (int64_t i = 0; i < d; ++i) Store(y, i, (Load(x, i) - mean) * scale * (Load(weight, i) + offset));
    }
  }
}

// With g = dy * (offset + weight) and x^ = (x - mean) * scale: dx = scale * (g - x^ mean(g x^) - mean(g)), the last only of a centered norm.
template <typename T>
void NormBackward(const NormShape& shape, const void* dy_, const void* x_, const void* weight_, const float* means, const float* inv_rms,
                  const void* residual_, void* dx_, float* d_weight, float* d_bias) {
  const int64_t rows = shape.rows, d = shape.d;
  const T* weight = static_cast<const T*>(weight_);
  const float offset = shape.offset;
#pragma omp parallel for schedule(static) if (rows * d > 16384)
  for (int64_t row = 0; row < rows; ++row) {
    const T* dy = static_cast<const T*>(dy_) + row * d;
    const T* x = static_cast<const T*>(x_) + row * d;
    T* dx = static_cast<T*>(dx_) + row * d;
    const float center = shape.center ? means[row] : 0.0f;
    float dot = 0, total = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t i = 0; i < d; ++i) dot += Load(dy, i) * (Load(weight, i) + offset) * (Load(x, i) - center);
    if (shape.center) {
#pragma omp simd reduction(+ : total)
      for (int64_t i = 0; i < d; ++i) total += Load(dy, i) * (Load(weight, i) + offset);
    }
    const float scale = inv_rms[row];
    const float along = dot * scale * scale / static_cast<float>(d), mean = total / static_cast<float>(d);
    if (residual_ != nullptr) {
      const T* residual = static_cast<const T*>(residual_) + row * d;
#pragma omp simd
      for (int64_t i = 0; i < d; ++i) {
        Store(dx, i, Load(residual, i) + scale * (Load(dy, i) * (Load(weight, i) + offset) - (Load(x, i) - center) * along - mean));
      }
    } else {
#pragma omp simd
      for (int64_t i = 0; i < d; ++i) {
        Store(dx, i, scale * (Load(dy, i) * (Load(weight, i) + offset) - (Load(x, i) - center) * along - mean));
      }
    }
  }
  if (d_weight == nullptr) return;
  // By columns, so that the order of the sum does not depend on the number of threads.
  constexpr int64_t kColumns = 64;
#pragma omp parallel for schedule(static)
  for (int64_t first = 0; first < d; first += kColumns) {
    const int64_t last = first + kColumns < d ? first + kColumns : d;
    for (int64_t row = 0; row < rows; ++row) {
      const T* dy = static_cast<const T*>(dy_) + row * d;
      const T* x = static_cast<const T*>(x_) + row * d;
      const float scale = inv_rms[row], center = shape.center ? means[row] : 0.0f;
#pragma omp simd
      for (int64_t i = first; i < last; ++i) d_weight[i] += Load(dy, i) * (Load(x, i) - center) * scale;
      if (d_bias == nullptr) continue;
#pragma omp simd
      for (int64_t i = first; i < last; ++i) d_bias[i] += Load(dy, i);
    }
  }
}

template <typename T>
void Rope(int64_t rows, int64_t heads, int64_t head_dim, int64_t turned, int64_t stride, void* x_, const int64_t* positions,
          const float* cos_table, const float* sin_table, bool inverse) {
  const int64_t half = turned / 2;
  const float sign = inverse ? -1.0f : 1.0f;
#pragma omp parallel for schedule(static) if (rows * heads * head_dim > 16384)
  for (int64_t row = 0; row < rows; ++row) {
    const float* cos = cos_table + positions[row] * half;
    const float* sin = sin_table + positions[row] * half;
    for (int64_t head = 0; head < heads; ++head) {
      T* low = static_cast<T*>(x_) + row * stride + head * head_dim;
      T* high = low + half;
#pragma omp simd
      for (int64_t i = 0; i < half; ++i) {
        const float a = Load(low, i), b = Load(high, i), c = cos[i], s = sign * sin[i];
        Store(low, i, a * c - b * s);
        Store(high, i, b * c + a * s);
      }
    }
  }
}

// The value and the slope of an activation at x.
struct ActivationPoint {
  float value, slope;
};
template <Activation kActivation>
MEMBANK_INLINE ActivationPoint At(float x) {
  if constexpr (kActivation == Activation::kSilu) {
    const float s = Sigmoid(x);
    return {x * s, s * (1.0f + x * (1.0f - s))};
  } else if constexpr (kActivation == Activation::kGeluTanh) {   // (1 + tanh u) / 2 = sigmoid(2 u)
    constexpr float kTwice = 1.59576912160573f, kCube = 0.044715f;   // 2 sqrt(2 / pi)
    const float s = Sigmoid(kTwice * (x + kCube * x * x * x));
    return {x * s, s * (1.0f + x * (1.0f - s) * kTwice * (1.0f + 3.0f * kCube * x * x))};
  } else {
    const float below = NormalBelow(x);
    return {x * below, below + x * 0.398942280401433f * Exp(-0.5f * x * x)};
  }
}

template <typename T, Activation kActivation>
MEMBANK_INLINE void ActivateRow(bool gated, int64_t inner, const T* in, T* h) {
  if (gated) {
#pragma omp simd
    for (int64_t i = 0; i < inner; ++i) Store(h, i, At<kActivation>(Load(in, i)).value * Load(in + inner, i));
  } else {
#pragma omp simd
    for (int64_t i = 0; i < inner; ++i) Store(h, i, At<kActivation>(Load(in, i)).value);
  }
}

template <typename T, Activation kActivation>
void ActivateRows(bool gated, int64_t rows, int64_t inner, const void* in_, void* h_) {
#pragma omp parallel for schedule(static) if (rows * inner > 8192)
  for (int64_t row = 0; row < rows; ++row) {
    ActivateRow<T, kActivation>(gated, inner, static_cast<const T*>(in_) + row * (gated ? 2 : 1) * inner, static_cast<T*>(h_) + row * inner);
  }
}

template <typename T, Activation kActivation>
void ActivateRowsBackward(bool gated, int64_t rows, int64_t inner, const void* in_, const void* dh_, void* d_in_, void* h_) {
#pragma omp parallel for schedule(static) if (rows * inner > 8192)
  for (int64_t row = 0; row < rows; ++row) {
    const T* in = static_cast<const T*>(in_) + row * (gated ? 2 : 1) * inner;
    const T* dh = static_cast<const T*>(dh_) + row * inner;
    T* d_in = static_cast<T*>(d_in_) + row * (gated ? 2 : 1) * inner;
    if (gated) {
#pragma omp simd
      for (int64_t i = 0; i < inner; ++i) {
        const ActivationPoint at = At<kActivation>(Load(in, i));
        const float up = Load(in + inner, i), dy = Load(dh, i);
        Store(d_in, i, dy * up * at.slope);
        Store(d_in + inner, i, dy * at.value);
      }
    } else {
#pragma omp simd
      for (int64_t i = 0; i < inner; ++i) Store(d_in, i, Load(dh, i) * At<kActivation>(Load(in, i)).slope);
    }
    if (h_ != nullptr) ActivateRow<T, kActivation>(gated, inner, in, static_cast<T*>(h_) + row * inner);
  }
}

template <typename T>
void Activate(Activation activation, bool gated, int64_t rows, int64_t inner, const void* in, void* h) {
  switch (activation) {
    case Activation::kSilu: return ActivateRows<T, Activation::kSilu>(gated, rows, inner, in, h);
    case Activation::kGelu: return ActivateRows<T, Activation::kGelu>(gated, rows, inner, in, h);
    case Activation::kGeluTanh: return ActivateRows<T, Activation::kGeluTanh>(gated, rows, inner, in, h);
  }
}

template <typename T>
void ActivateBackward(Activation activation, bool gated, int64_t rows, int64_t inner, const void* in, const void* dh, void* d_in, void* h) {
  switch (activation) {
    case Activation::kSilu: return ActivateRowsBackward<T, Activation::kSilu>(gated, rows, inner, in, dh, d_in, h);
    case Activation::kGelu: return ActivateRowsBackward<T, Activation::kGelu>(gated, rows, inner, in, dh, d_in, h);
    case Activation::kGeluTanh: return ActivateRowsBackward<T, Activation::kGeluTanh>(gated, rows, inner, in, dh, d_in, h);
  }
}

template <typename T>
void CrossEntropy(int64_t rows, int64_t vocabulary, int64_t stride, void* logits_, const int64_t* targets, float scale, float z_loss,
                  bool gradient, float* losses, float* log_sums) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    T* logits = static_cast<T*>(logits_) + row * stride;
    const int64_t target = targets[row];
    if (target < 0) {   // -100: not counted
      losses[row] = log_sums[row] = 0;
      if (gradient) std::memset(logits, 0, static_cast<size_t>(vocabulary) * sizeof(T));
      continue;
    }
    float largest = Load(logits, 0);
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < vocabulary; ++i) largest = largest < Load(logits, i) ? Load(logits, i) : largest;
    double total = 0;
    for (int64_t first = 0; first < vocabulary; first += 4096) {   // partial sums keep fp32 exact enough at any vocabulary
      const int64_t last = first + 4096 < vocabulary ? first + 4096 : vocabulary;
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = first; i < last; ++i) sum += Exp(Load(logits, i) - largest);
      total += sum;
    }
    const float log_sum = largest + static_cast<float>(std::log(total));
    losses[row] = log_sum - Load(logits, target);
    log_sums[row] = log_sum;
    if (!gradient) continue;
    const float pull = 1.0f + 2.0f * z_loss * log_sum;   // d(log_sum + z_loss * log_sum^2) / d log_sum
    const float at_target = scale * (pull * Exp(Load(logits, target) - log_sum) - 1.0f), rest = scale * pull;
#pragma omp simd
    for (int64_t i = 0; i < vocabulary; ++i) Store(logits, i, rest * Exp(Load(logits, i) - log_sum));
    Store(logits, target, at_target);
  }
}

template <typename T>
void Accumulate(int64_t n, const void* source_, float* sum) {
  const T* source = static_cast<const T*>(source_);
#pragma omp parallel for simd schedule(static) if (n > 16384)
  for (int64_t i = 0; i < n; ++i) sum[i] += Load(source, i);
}

}  // namespace
}  // namespace membank::MEMBANK_ISA
