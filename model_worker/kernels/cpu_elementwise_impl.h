// Norm, rotation, SwiGLU, cross-entropy: one pass over memory each.
#pragma once

#include <cstdlib>
#include <cstring>

namespace membank::MEMBANK_ISA {
namespace {

template <typename T>
void RmsNorm(int64_t rows, int64_t d, const void* x_, const void* addend_, void* sum_, const void* weight_, float epsilon, void* y_,
             float* inv_rms) {
  const T* weight = static_cast<const T*>(weight_);
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
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < d; ++i) squares += Load(x, i) * Load(x, i);
    const float scale = 1.0f / std::sqrt(squares / static_cast<float>(d) + epsilon);
    inv_rms[row] = scale;
#pragma omp simd
    for (int64_t i = 0; i < d; ++i) Store(y, i, Load(x, i) * scale * Load(weight, i));
  }
}

template <typename T>
void RmsNormBackward(int64_t rows, int64_t d, const void* dy_, const void* x_, const void* weight_, const float* inv_rms,
                     const void* residual_, void* dx_, float* d_weight) {
  const T* weight = static_cast<const T*>(weight_);
#pragma omp parallel for schedule(static) if (rows * d > 16384)
  for (int64_t row = 0; row < rows; ++row) {
    const T* dy = static_cast<const T*>(dy_) + row * d;
    const T* x = static_cast<const T*>(x_) + row * d;
    T* dx = static_cast<T*>(dx_) + row * d;
    float dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t i = 0; i < d; ++i) dot += Load(dy, i) * Load(weight, i) * Load(x, i);
    const float scale = inv_rms[row];
    const float mean = dot * scale * scale / static_cast<float>(d);
    if (residual_ != nullptr) {
      const T* residual = static_cast<const T*>(residual_) + row * d;
#pragma omp simd
      for (int64_t i = 0; i < d; ++i) {
        Store(dx, i, Load(residual, i) + scale * (Load(dy, i) * Load(weight, i) - Load(x, i) * mean));
      }
    } else {
#pragma omp simd
      for (int64_t i = 0; i < d; ++i) Store(dx, i, scale * (Load(dy, i) * Load(weight, i) - Load(x, i) * mean));
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
      const float scale = inv_rms[row];
#pragma omp simd
      for (int64_t i = first; i < last; ++i) d_weight[i] += Load(dy, i) * Load(x, i) * scale;
    }
  }
}

template <typename T>
void Rope(int64_t rows, int64_t heads, int64_t head_dim, int64_t stride, void* x_, const int64_t* positions, const float* cos_table,
          const float* sin_table, bool inverse) {
  const int64_t half = head_dim / 2;
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

template <typename T>
void SwiGlu(int64_t rows, int64_t inner, const void* gate_up_, void* h_) {
#pragma omp parallel for schedule(static) if (rows * inner > 8192)
  for (int64_t row = 0; row < rows; ++row) {
    const T* gate = static_cast<const T*>(gate_up_) + row * 2 * inner;
    const T* up = gate + inner;
    T* h = static_cast<T*>(h_) + row * inner;
#pragma omp simd
    for (int64_t i = 0; i < inner; ++i) {
      const float g = Load(gate, i);
      Store(h, i, g * Sigmoid(g) * Load(up, i));
    }
  }
}

template <typename T>
void SwiGluBackward(int64_t rows, int64_t inner, const void* gate_up_, const void* dh_, void* d_gate_up_, void* h_) {
#pragma omp parallel for schedule(static) if (rows * inner > 8192)
  for (int64_t row = 0; row < rows; ++row) {
    const T* gate = static_cast<const T*>(gate_up_) + row * 2 * inner;
    const T* up = gate + inner;
    const T* dh = static_cast<const T*>(dh_) + row * inner;
    T* d_gate = static_cast<T*>(d_gate_up_) + row * 2 * inner;
    T* d_up = d_gate + inner;
#pragma omp simd
    for (int64_t i = 0; i < inner; ++i) {
      const float g = Load(gate, i), u = Load(up, i), dy = Load(dh, i), s = Sigmoid(g);
      Store(d_gate, i, dy * u * s * (1.0f + g * (1.0f - s)));
      Store(d_up, i, dy * g * s);
    }
    if (h_ == nullptr) continue;
    T* h = static_cast<T*>(h_) + row * inner;
#pragma omp simd
    for (int64_t i = 0; i < inner; ++i) {
      const float g = Load(gate, i);
      Store(h, i, g * Sigmoid(g) * Load(up, i));
    }
  }
}

template <typename T>
void CrossEntropy(int64_t rows, int64_t vocabulary, int64_t stride, void* logits_, const int64_t* targets, float scale, bool gradient,
                  float* losses) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    T* logits = static_cast<T*>(logits_) + row * stride;
    const int64_t target = targets[row];
    if (target < 0) {   // -100: not counted
      losses[row] = 0;
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
    if (!gradient) continue;
    const float at_target = scale * (Exp(Load(logits, target) - log_sum) - 1.0f);
#pragma omp simd
    for (int64_t i = 0; i < vocabulary; ++i) Store(logits, i, scale * Exp(Load(logits, i) - log_sum));
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
