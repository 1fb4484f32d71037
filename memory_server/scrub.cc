#include "memory_server/scrub.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/time/clock.h"
#include "common/base/log.h"
#include "common/base/metrics.h"
#include "common/base/status_macros.h"
#include "memory_server/block_record.h"

namespace membank {
namespace {

class Pass {
 public:
  Pass(const CheckpointStore& checkpoints, const BankSpec& spec, const std::function<bool(uint64_t)>& pace)
      : checkpoints_(checkpoints), purges_(checkpoints.purges()), spec_(spec), pace_(pace) {}

  // `where`: "checkpoint c in /data/checkpoints/c/weights". `weights`: the form of the payloads in it; none: it is a state store.
  void ScanStore(BlockStore& store, std::optional<PayloadType> weights, const std::string& where) {
    const absl::Status scanned = store.Scan(kBlockKeyPrefix, [&](std::string_view key, absl::Span<const uint8_t> value) -> absl::Status {
      if (const absl::Status record = CheckRecord(key, value, weights); !record.ok()) AddDamage(Annotate(record, where));
      ++result_.records;
      result_.bytes += value.size();
      if (!pace_(value.size()) || checkpoints_.purges() != purges_) return Cancelled("stopped");
      return absl::OkStatus();
    });
    if (absl::IsCancelled(scanned)) result_.whole = false;
    else if (!scanned.ok()) AddDamage(Annotate(scanned, where));
  }

  void AddDamage(const absl::Status& status) {
    if (checkpoints_.purges() != purges_) result_.whole = false;
    if (!result_.whole) return;
    ++result_.damaged;
    if (result_.damage.size() < kMaxDamage) result_.damage.push_back(status);
  }

  ScrubResult& result() { return result_; }

 private:
  absl::Status CheckRecord(std::string_view key, absl::Span<const uint8_t> value, std::optional<PayloadType> weights) const {
    ASSIGN_OR_RETURN(const BlockId id, ParseBlockKey(key));
    if (!spec_.Contains(id)) return DataLoss("block {} is not in the bank", ToString(id));
    const absl::Status status = weights ? DecodeWeights(value, PayloadBytes(spec_, id.level, *weights)).status() : DecodeState(value).status();
    return status.ok() ? status : Annotate(status, fmt::format("{} of block {}", weights ? "payload" : "state", ToString(id)));
  }

  const CheckpointStore& checkpoints_;
  const uint64_t purges_;  // a purge ends the pass, so that what it removes is not held open
  const BankSpec& spec_;
  const std::function<bool(uint64_t)>& pace_;
  ScrubResult result_;
};

}  // namespace

ScrubResult Scrub(const CheckpointStore& checkpoints, const BankSpec& spec, const std::function<bool(uint64_t)>& pace) {
  Pass pass(checkpoints, spec, pace);
  for (const Cut& cut : checkpoints.List()) {
    if (!pass.result().whole) break;
    const absl::StatusOr<HeadStores> stores = checkpoints.OpenCut(cut);
    const std::string where = fmt::format("checkpoint {} in {}", cut.id, cut.directory);
    if (!stores.ok()) {
      if (checkpoints.Find(cut.id).ok()) pass.AddDamage(Annotate(stores.status(), where));  // else it was removed meanwhile
      continue;
    }
    pass.ScanStore(*stores->weights, PayloadType::kBank, where + "/weights");
    if (pass.result().whole) pass.ScanStore(*stores->state, std::nullopt, where + "/state");
  }
  for (const auto& [name, payload] : checkpoints.ListVersions()) {
    if (!pass.result().whole) break;
    const absl::StatusOr<CheckpointStore::Version> version = checkpoints.FindVersion(name);
    if (version.ok()) pass.ScanStore(*version->weights, payload, fmt::format("version {} in versions/{}/weights", name, name));
  }
  return std::move(pass.result());
}

Scrubber::Scrubber(const CheckpointStore* checkpoints, const BankSpec* spec, uint64_t bytes_per_second, absl::Duration interval)
    : checkpoints_(checkpoints), spec_(spec), bytes_per_second_(bytes_per_second), interval_(interval), last_pass_(absl::Now()),
      thread_([this] { Run(); }) {}

Scrubber::~Scrubber() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  thread_.join();
}

bool Scrubber::Wait(absl::Duration time) {
  static prometheus::Gauge& age = GetGauge("membank_memory_scrub_age_seconds", "Seconds since the end of the last whole scrub, or since the start");
  const absl::Time end = absl::Now() + time;
  while (true) {
    age.Set(absl::ToDoubleSeconds(absl::Now() - last_pass_));
    const absl::Time slice = std::min(end, absl::Now() + absl::Seconds(1));
    absl::MutexLock lock(&mu_);
    if (mu_.AwaitWithDeadline(absl::Condition(&stopping_), slice)) return false;
    if (slice == end) return true;
  }
}

void Scrubber::Run() {
  static prometheus::Gauge& damaged = GetGauge("membank_memory_scrub_damaged_records", "Records with a wrong checksum found by the last whole scrub");
  static prometheus::Counter& scrubbed = GetCounter("membank_memory_scrubbed_bytes_total", "Bytes of records checked by the scrub");
  while (true) {
    const absl::Time begin = absl::Now();
    double owed = 0;  // seconds; many small records share one sleep
    const ScrubResult result = Scrub(*checkpoints_, *spec_, [&](uint64_t bytes) {
      scrubbed.Increment(static_cast<double>(bytes));
      owed += static_cast<double>(bytes) / static_cast<double>(bytes_per_second_);
      if (owed < 0.01) return true;
      return Wait(absl::Seconds(std::exchange(owed, 0)));
    });
    if (!result.whole) {
      if (!Wait(absl::Seconds(1))) return;
      continue;
    }
    last_pass_ = absl::Now();
    damaged.Set(static_cast<double>(result.damaged));
    for (const absl::Status& damage : result.damage) LOG_ERROR("scrub: {}", std::string(damage.message()));
    if (result.damaged > 0) LOG_ERROR("scrub: {} of {} records are damaged; restore them from a replica or another checkpoint", result.damaged, result.records);
    if (!Wait(std::max(absl::ZeroDuration(), begin + interval_ - absl::Now()))) return;
  }
}

}  // namespace membank
