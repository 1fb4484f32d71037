#include "cli/doctor_plan.h"

#include <algorithm>
#include <cmath>

#include "fmt/format.h"

namespace membank {
namespace {

constexpr double kStateBytesPerElement = 12;  // fp32 weights and two moments; beside the payload when that is bf16, in it when fp32

double StateBytes(const BankSpec& spec) {
  const double payload = static_cast<double>(DTypeBytes(spec.dtype));
  return spec.dtype == DType::kF32 ? kStateBytesPerElement : kStateBytesPerElement + payload;
}

std::string Bytes(double bytes) {
  if (bytes >= 1e12) return fmt::format("{:.2f} TB", bytes / 1e12);
  if (bytes >= 1e9) return fmt::format("{:.2f} GB", bytes / 1e9);
  return fmt::format("{:.1f} MB", bytes / 1e6);
}

std::string Rate(double rate) { return Bytes(rate) + "/s"; }

std::string Time(double seconds) { return seconds >= 1 ? fmt::format("{:.2f} s", seconds) : fmt::format("{:.2f} ms", seconds * 1e3); }

struct Touched {
  double elements = 0;
  std::string blocks;  // "16 + 251 + 906"
};

Touched TouchedPerStep(const BankSpec& spec, uint32_t sequences) {
  Touched touched;
  for (uint32_t level = 1; level <= spec.depth(); ++level) {
    if (spec.width(level) == 0) continue;
    const double blocks = ExpectedDistinctBlocks(ClusterCount(spec.fan_out, level), sequences);
    touched.elements += blocks * static_cast<double>(spec.BlockElements(level));
    touched.blocks += fmt::format("{}{:.0f}", touched.blocks.empty() ? "" : " + ", blocks);
  }
  return touched;
}

// Which floor below the memory server's own work a rate comes closest to.
std::string BelowFetch(const MachineRates& rates) {
  const std::pair<const char*, double> floors[] = {{"raw TCP on loopback", rates.loopback}, {"one core's checksums", rates.crc32c}};
  const auto nearest = std::min_element(std::begin(floors), std::end(floors), [](const auto& a, const auto& b) { return a.second < b.second; });
  return fmt::format("{:.2f} of {} ({})", rates.fetch / nearest->second, nearest->first, Rate(nearest->second));
}

std::vector<Duration> StepParts(const BankSpec& spec, const MachineRates& rates, const DoctorPlan& plan, const Touched& touched) {
  const double payload = touched.elements * static_cast<double>(DTypeBytes(spec.dtype)) / plan.servers, elements = touched.elements / plan.servers;
  const double bank_state = static_cast<double>(spec.BankElements()) * StateBytes(spec) / plan.servers;
  const double dirty = std::min(bank_state, plan.checkpoint_every * elements * StateBytes(spec));
  const std::string share = plan.servers == 1 ? "" : fmt::format(" a server, of {}", plan.servers);
  return {
      {"fetch", payload / rates.fetch, fmt::format("{} blocks = {}{} / {}", touched.blocks, Bytes(payload), share, Rate(rates.fetch))},
      {"push", payload / rates.push, fmt::format("{}{} of gradients / {}", Bytes(payload), share, Rate(rates.push))},
      {"prepare", elements / rates.prepare, fmt::format("{:.2f} G elements{} / {:.2f} G/s", elements / 1e9, share, rates.prepare / 1e9)},
      {"optimizer", elements / rates.apply, fmt::format("{:.2f} G elements{} / {:.2f} G/s", elements / 1e9, share, rates.apply / 1e9)},
      {"checkpoint, per step", dirty / rates.checkpoint / plan.checkpoint_every,
       fmt::format("at most {}{} / {} / {} steps", Bytes(dirty), share, Rate(rates.checkpoint), plan.checkpoint_every)},
  };
}

std::vector<Duration> MissParts(const BankSpec& spec, const MachineRates& rates) {
  std::vector<Duration> parts;
  for (uint32_t level = 1; level <= spec.depth(); ++level) {
    if (spec.width(level) == 0) continue;
    const double bytes = static_cast<double>(spec.BlockBytes(level));
    parts.push_back({fmt::format("level {}", level), bytes / rates.fetch, fmt::format("{} / {}", Bytes(bytes), Rate(rates.fetch))});
  }
  return parts;
}

std::string TrainingFinding(const std::vector<Duration>& step, const MachineRates& rates) {
  const auto worst = std::max_element(step.begin(), step.end(), [](const Duration& a, const Duration& b) { return a.seconds < b.seconds; });
  double total = 0;
  for (const Duration& part : step) total += part.seconds;
  std::string text = fmt::format("Training: {} limits it, {} of {} that a step needs at the memory servers ({}).", worst->name, Time(worst->seconds),
                                 Time(total), worst->how);
  if (worst->name == "fetch" || worst->name == "push") {
    text += fmt::format(" Fetch runs at {}; more servers, a larger share kept on the worker (levels 1 and 2), or fewer distinct blocks a step help.",
                        BelowFetch(rates));
  } else if (worst->name == "optimizer") {
    const double bytes = rates.apply * 28;  // fp32: 4 arrays read, 3 written
    text += fmt::format(" AdamW moves {} at 28 bytes an element, {:.2f} of this memory's {}; only more servers help.", Rate(bytes),
                        bytes / rates.memory_stream, Rate(rates.memory_stream));
  } else if (worst->name == "prepare") {
    text += " Summing ranks and the norm read every gradient once more; fewer ranks per step or more servers help.";
  } else {
    text += fmt::format(" The disk writes {}; checkpoint less often, or to a faster disk.", Rate(rates.disk_write));
  }
  return text;
}

std::string MemoryFinding(const BankSpec& spec, const MachineRates& rates, const DoctorPlan& plan) {
  const double needed = static_cast<double>(spec.BankElements()) * StateBytes(spec) / plan.servers, have = static_cast<double>(rates.memory_bytes);
  const std::string sum = fmt::format("{:.2f} G parameters x {:.0f} bytes / {} server{} = {}", static_cast<double>(spec.BankElements()) / 1e9,
                                      StateBytes(spec), plan.servers, plan.servers == 1 ? "" : "s", Bytes(needed));
  if (needed <= 0.8 * have) return fmt::format("Memory: the whole bank in training fits: {}, this machine has {}.", sum, Bytes(have));
  return fmt::format("Memory: the whole bank in training does not fit: {}, this machine has {}; {:.0f} servers like it would hold it. Untouched "
                     "blocks take no room.",
                     sum, Bytes(have), std::ceil(needed * plan.servers / (0.8 * have)));
}

std::string DiskFinding(const BankSpec& spec, const MachineRates& rates, const DoctorPlan& plan) {
  const double one = static_cast<double>(spec.BankElements()) * StateBytes(spec) / plan.servers, have = static_cast<double>(rates.disk_free_bytes);
  return fmt::format("Disk: a full checkpoint is {} a server and takes {} to write; two of them need {}, free are {}{}.", Bytes(one),
                     Time(one / rates.checkpoint), Bytes(2 * one), Bytes(have), 2 * one > have ? ": not enough once every block is touched" : "");
}

std::string ServingFinding(const std::vector<Duration>& miss, const MachineRates& rates) {
  double path = 0;
  for (const Duration& part : miss) path += part.seconds;
  const Duration& leaf = miss.back();
  return fmt::format("Serving: a path that no worker has yet costs {}, with the upper levels resident {} ({}); one server feeds {:.0f} new leaf "
                     "blocks a second, {}. Version payloads that are not in RAM come from disk at {}.",
                     Time(path), Time(leaf.seconds), leaf.how, 1 / leaf.seconds, BelowFetch(rates), Rate(rates.disk_read));
}

}  // namespace

double ExpectedDistinctBlocks(uint32_t clusters, uint32_t sequences) {
  return clusters * -std::expm1(sequences * std::log1p(-1.0 / clusters));
}

DoctorReport Examine(const BankSpec& spec, const MachineRates& rates, const DoctorPlan& plan) {
  DoctorReport report;
  report.step = StepParts(spec, rates, plan, TouchedPerStep(spec, plan.batch_sequences));
  report.miss = MissParts(spec, rates);
  report.findings = {TrainingFinding(report.step, rates), ServingFinding(report.miss, rates), MemoryFinding(spec, rates, plan),
                     DiskFinding(spec, rates, plan)};
  return report;
}

}  // namespace membank
