#include "model_worker/train/loss_chart.h"

#include <algorithm>
#include <cmath>

#include "fmt/format.h"

namespace membank {
namespace {

constexpr double kWidth = 860, kHeight = 440, kLeft = 70, kRight = 20, kTop = 50, kBottom = 55;
constexpr size_t kMaxPoints = 400;

struct Axis {
  double low = 0, high = 1, tick = 1;  // low and high are multiples of tick
  std::vector<double> Ticks() const {
    std::vector<double> ticks;
    for (int i = 0; low + i * tick <= high + tick * 1e-6; ++i) ticks.push_back(low + i * tick);
    return ticks;
  }
};

// About five ticks at 1, 2 or 5 times a power of ten.
Axis RoundAxis(double low, double high) {
  if (!(high > low)) high = low + 1;
  const double raw = (high - low) / 5, power = std::pow(10, std::floor(std::log10(raw)));
  const double unit = raw / power;
  const double tick = power * (unit <= 1 ? 1 : unit <= 2 ? 2 : unit <= 5 ? 5 : 10);
  return {std::floor(low / tick + 1e-9) * tick, std::ceil(high / tick - 1e-9) * tick, tick};
}

LossSeries Average(const LossSeries& in) {
  const size_t group = (in.steps.size() + kMaxPoints - 1) / kMaxPoints;
  if (group <= 1) return in;
  LossSeries out{in.name, in.color, {}, {}};
  for (size_t begin = 0; begin < in.steps.size(); begin += group) {
    const size_t end = std::min(begin + group, in.steps.size());
    double step = 0, loss = 0;
    for (size_t i = begin; i < end; ++i) step += in.steps[i], loss += in.losses[i];
    out.steps.push_back(step / (end - begin));
    out.losses.push_back(loss / (end - begin));
  }
  return out;
}

std::string Escape(const std::string& text) {
  std::string out;
  for (const char c : text) out += c == '<' ? "&lt;" : c == '>' ? "&gt;" : c == '&' ? "&amp;" : std::string(1, c);
  return out;
}

std::string Label(double value) { return fmt::format("{:.6g}", std::abs(value) < 1e-12 ? 0.0 : value); }

}  // namespace

std::string DrawLossChart(const std::string& title, const std::vector<LossSeries>& all) {
  std::vector<LossSeries> series;
  for (const LossSeries& s : all)
    if (!s.steps.empty()) series.push_back(Average(s));
  double last = 1, low = 1e300, high = 0;
  for (const LossSeries& s : series) {
    last = std::max(last, s.steps.back());
    for (const double loss : s.losses) low = std::min(low, loss), high = std::max(high, loss);
  }
  const Axis x = RoundAxis(0, last), y = RoundAxis(low > high ? 0 : low < 0.5 * high ? 0 : low, high);
  auto px = [&](double v) { return kLeft + (v - x.low) / (x.high - x.low) * (kWidth - kLeft - kRight); };
  auto py = [&](double v) { return kHeight - kBottom - (v - y.low) / (y.high - y.low) * (kHeight - kTop - kBottom); };

  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" font-family=\"sans-serif\" font-size=\"13\">\n"
      "<rect width=\"{0}\" height=\"{1}\" fill=\"white\"/>\n<text x=\"{2}\" y=\"24\" font-size=\"15\">{3}</text>\n",
      kWidth, kHeight, kLeft, Escape(title));
  for (const double v : x.Ticks())
    svg += fmt::format("<line x1=\"{0:.1f}\" y1=\"{1}\" x2=\"{0:.1f}\" y2=\"{2}\" stroke=\"#e4e4e4\"/><text x=\"{0:.1f}\" y=\"{3}\" text-anchor=\"middle\">{4}</text>\n",
                       px(v), kTop, kHeight - kBottom, kHeight - kBottom + 18, Label(v));
  for (const double v : y.Ticks())
    svg += fmt::format("<line x1=\"{0}\" y1=\"{1:.1f}\" x2=\"{2}\" y2=\"{1:.1f}\" stroke=\"#e4e4e4\"/><text x=\"{3}\" y=\"{4:.1f}\" text-anchor=\"end\">{5}</text>\n",
                       kLeft, py(v), kWidth - kRight, kLeft - 8, py(v) + 4, Label(v));
  svg += fmt::format("<path d=\"M{0} {1}V{2}H{3}\" fill=\"none\" stroke=\"#444\"/>\n", kLeft, kTop, kHeight - kBottom, kWidth - kRight);
  svg += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">step</text>\n", (kLeft + kWidth - kRight) / 2, kHeight - 14);
  svg += fmt::format("<text x=\"18\" y=\"{0}\" text-anchor=\"middle\" transform=\"rotate(-90 18 {0})\">loss (nats per token)</text>\n",
                     (kTop + kHeight - kBottom) / 2);
  double legend = kWidth - kRight - 200;
  for (size_t i = 0; i < series.size(); ++i) {
    const LossSeries& s = series[i];
    std::string points;
    for (size_t p = 0; p < s.steps.size(); ++p) points += fmt::format("{:.1f},{:.1f} ", px(s.steps[p]), py(s.losses[p]));
    svg += fmt::format("<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.8\"/>\n", points, s.color);
    if (s.steps.size() == 1) svg += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"{}\"/>\n", px(s.steps[0]), py(s.losses[0]), s.color);
    const double at = kTop + 14 + 20 * i;
    svg += fmt::format("<line x1=\"{0}\" y1=\"{1}\" x2=\"{2}\" y2=\"{1}\" stroke=\"{3}\" stroke-width=\"3\"/><text x=\"{4}\" y=\"{5}\">{6}</text>\n", legend, at,
                       legend + 24, s.color, legend + 32, at + 4, Escape(s.name));
  }
  return svg + "</svg>\n";
}

}  // namespace membank
