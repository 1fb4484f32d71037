#include "common/base/metrics.h"

#include "prometheus/text_serializer.h"

namespace membank {

prometheus::Registry& MetricsRegistry() {
  static auto* registry = new prometheus::Registry();
  return *registry;
}

prometheus::Counter& GetCounter(const std::string& name, const std::string& help, const std::map<std::string, std::string>& labels) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(MetricsRegistry()).Add(labels);
}

prometheus::Gauge& GetGauge(const std::string& name, const std::string& help, const std::map<std::string, std::string>& labels) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(MetricsRegistry()).Add(labels);
}

prometheus::Histogram& GetLatency(const std::string& name, const std::string& help, const std::map<std::string, std::string>& labels) {
  static const prometheus::Histogram::BucketBoundaries bounds = {5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2,
                                                                 0.1,  0.25, 0.5,    1,    2.5,  5,      10,   30,   60};
  return prometheus::BuildHistogram().Name(name).Help(help).Register(MetricsRegistry()).Add(labels, bounds);
}

std::string MetricsText() { return prometheus::TextSerializer().Serialize(MetricsRegistry().Collect()); }

}  // namespace membank
