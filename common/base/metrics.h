// The process's metrics: one prometheus-cpp registry. Names are membank_<service>_<thing>_<unit>; the admin port serves the text.
#pragma once

#include <map>
#include <string>

#include "prometheus/counter.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"

namespace membank {

prometheus::Registry& MetricsRegistry();

// Each returns the same object for the same name and labels; callers keep the reference. Thread-safe, never freed.
prometheus::Counter& GetCounter(const std::string& name, const std::string& help, const std::map<std::string, std::string>& labels = {});
prometheus::Gauge& GetGauge(const std::string& name, const std::string& help, const std::map<std::string, std::string>& labels = {});
// Latencies in seconds, buckets from 50 us to 60 s.
prometheus::Histogram& GetLatency(const std::string& name, const std::string& help, const std::map<std::string, std::string>& labels = {});

// The registry in Prometheus' text format.
std::string MetricsText();

}  // namespace membank
