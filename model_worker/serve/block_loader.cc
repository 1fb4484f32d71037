#include "model_worker/serve/block_loader.h"

#include <algorithm>
#include <utility>

#include "common/base/log.h"
#include "common/base/metrics.h"
#include "common/base/status_macros.h"

namespace membank {
namespace {

prometheus::Counter& Hits() {
  static auto& counter = GetCounter("membank_worker_block_hits_total", "Blocks that were resident when a sequence needed them");
  return counter;
}
prometheus::Counter& Misses() {
  static auto& counter = GetCounter("membank_worker_block_misses_total", "Blocks that had to be fetched from the memory servers");
  return counter;
}
prometheus::Histogram& FetchLatency() {
  static auto& histogram = GetLatency("membank_worker_block_fetch_seconds", "Time to fetch one block");
  return histogram;
}

}  // namespace

BlockLoader::BlockLoader(MemoryClient* client, BlockLoaderOptions options)
    : client_(client), options_(std::move(options)), pool_(options_.threads) {}

BlockLoader::~BlockLoader() {
  absl::MutexLock lock(&mu_);
  stopping_ = true;
}

void BlockLoader::KeepResident(const std::string& bank_version) {
  if (options_.resident_levels == 0) return;
  {
    absl::MutexLock lock(&mu_);
    kept_version_ = bank_version;
    bytes_ = kept_bytes_ = 0;
    for (const auto& [key, entry] : entries_)
      if (entry.block != nullptr) (Stays(key) ? kept_bytes_ : bytes_) += entry.block->values.nbytes();
    Evict();
  }
  const BankSpec& spec = client_->spec();
  std::vector<BlockId> ids;  // the last one goes first
  for (uint32_t level = std::min(options_.resident_levels, spec.depth()); level > 0; --level) {
    if (spec.width(level) == 0) continue;
    for (uint32_t cluster = ClusterCount(spec.fan_out, level); cluster-- > 0;) ids.push_back({level, cluster});
    ids.push_back(GenericBlock(spec.fan_out, level));
  }
  KeepNext(bank_version, std::move(ids), 0);
}

void BlockLoader::KeepNext(const std::string& bank_version, std::vector<BlockId> left, uint64_t failed) {
  {
    absl::MutexLock lock(&mu_);
    if (stopping_ || kept_version_ != bank_version) return;
    if (left.empty()) {
      LOG_INFO("levels 1 to {} of bank {} stay in memory: {} bytes, {} blocks could not be had", options_.resident_levels, client_->spec().bank_id,
               kept_bytes_, failed);
      return;
    }
  }
  const BlockId id = left.back();
  left.pop_back();
  Load(bank_version, {id}, [this, bank_version, id, left = std::move(left), failed](absl::StatusOr<std::vector<BlockHandle>> loaded) mutable {
    if (!loaded.ok() && failed == 0) LOG_WARN("block {} does not stay in memory yet: {}", ToString(id), loaded.status().ToString());
    failed += loaded.ok() ? 0 : 1;
    pool_.Schedule([this, bank_version, left = std::move(left), failed]() mutable { KeepNext(bank_version, std::move(left), failed); });
  });
}

void BlockLoader::Load(const std::string& bank_version, const std::vector<BlockId>& ids, Done done) {
  auto request = std::make_shared<Request>();
  request->handles.resize(ids.size());
  const uint64_t access_epoch = AccessEpoch();
  std::vector<std::pair<Key, BlockHandle>> to_fetch;
  bool resident = false;
  {
    absl::MutexLock lock(&mu_);
    for (size_t i = 0; i < ids.size(); ++i) {
      const Key key{bank_version, ids[i]};
      auto [it, added] = entries_.try_emplace(key);
      Entry& entry = it->second;
      if (added) entry.used = recency_.insert(recency_.begin(), key);
      recency_.splice(recency_.begin(), recency_, entry.used);
      if (MayUse(entry, bank_version)) {
        request->handles[i] = entry.block;
        Hits().Increment();
        continue;
      }
      ++request->missing;
      entry.waiters.push_back({request, i, access_epoch});
      if (entry.loading) continue;
      entry.loading = true;
      to_fetch.emplace_back(key, entry.block);
    }
    request->done = std::move(done);
    resident = request->missing == 0;
  }
  if (resident) return request->done(std::move(request->handles));
  for (auto& [key, current] : to_fetch) {
    pool_.Schedule([this, key = key, current = std::move(current)]() mutable { Fetch(key, std::move(current)); });
  }
}

// May a sequence start with what is resident, without asking the servers?
bool BlockLoader::MayUse(const Entry& entry, const std::string& bank_version) const {
  if (entry.block == nullptr || bank_version.empty()) return false;
  if (options_.access == nullptr) return true;
  return !entry.block->blocked && entry.access_epoch == options_.access->epoch() && options_.access->CheckLease().ok();
}

void BlockLoader::Fetch(const Key& key, BlockHandle current) {
  const uint64_t access_epoch = AccessEpoch();
  absl::StatusOr<BlockHandle> fetched = FetchOne(key, current);
  current.reset();
  std::vector<std::shared_ptr<Request>> complete;
  bool again = false;
  {
    absl::MutexLock lock(&mu_);
    auto it = entries_.find(key);
    Entry& entry = it->second;
    if (fetched.ok()) entry.access_epoch = access_epoch;
    for (const Waiter& waiter : std::exchange(entry.waiters, {})) {
      if (waiter.access_epoch > access_epoch) {  // came after the access table had changed: the servers are asked again
        entry.waiters.push_back(waiter);
        continue;
      }
      absl::Status& status = waiter.request->status;
      if (fetched.ok()) {
        waiter.request->handles[waiter.index] = *fetched;
      } else if (status.ok() || absl::IsPermissionDenied(fetched.status())) {
        status = fetched.status();
      }
      if (--waiter.request->missing == 0) complete.push_back(waiter.request);
    }
    again = entry.loading = !entry.waiters.empty();
    if (fetched.ok() && *fetched != entry.block) {
      uint64_t& bytes = Stays(key) ? kept_bytes_ : bytes_;
      if (entry.block != nullptr) bytes -= entry.block->values.nbytes();
      bytes += (*fetched)->values.nbytes();
      entry.block = *std::move(fetched);
    } else if (entry.block == nullptr && !again) {
      recency_.erase(entry.used);
      entries_.erase(it);
    }
    if (again) pool_.Schedule([this, key, current = entry.block]() mutable { Fetch(key, std::move(current)); });
    Evict();
  }
  for (const std::shared_ptr<Request>& request : complete) {
    if (request->status.ok()) {
      request->done(std::move(request->handles));
    } else {
      request->done(request->status);
    }
  }
}

absl::StatusOr<BlockHandle> BlockLoader::FetchOne(const Key& key, const BlockHandle& current) const {
  const auto& [bank_version, id] = key;
  const BankSpec& spec = client_->spec();
  const absl::Time begin = absl::Now();
  auto block = std::make_shared<ResidentBlock>();
  block->id = id;
  torch::Tensor payload = torch::empty({static_cast<int64_t>(spec.BlockElements(id.level))}, torch::dtype(TorchDtype(spec.dtype)));
  BlockFetch fetch;
  fetch.id = id;
  fetch.destination = {static_cast<uint8_t*>(payload.data_ptr()), static_cast<size_t>(payload.nbytes())};
  if (current != nullptr && !current->blocked) fetch.newer_than = static_cast<int64_t>(current->version);
  FetchOptions fetch_options;
  fetch_options.bank_version = bank_version;
  fetch_options.int8 = true;
  fetch_options.timeout = absl::ToChronoMilliseconds(options_.timeout);
  if (absl::Status status = client_->Fetch(absl::MakeSpan(&fetch, 1), fetch_options); !status.ok()) {
    return Annotate(status, fmt::format("block {} of bank {}", ToString(id), spec.bank_id));
  }
  FetchLatency().Observe(absl::ToDoubleSeconds(absl::Now() - begin));
  if (fetch.unchanged) {
    Hits().Increment();
    return current;
  }
  Misses().Increment();
  block->version = fetch.version;
  block->blocked = fetch.blocked;
  block->values = ToValues(fetch, payload);
  return BlockHandle(std::move(block));
}

// `payload`: the fetch's destination.
torch::Tensor BlockLoader::ToValues(const BlockFetch& fetched, const torch::Tensor& payload) const {
  if (fetched.payload == PayloadType::kBank) return payload.to(options_.dtype);  // the same tensor when the dtypes agree
  const BankSpec& spec = client_->spec();
  const torch::Tensor values = torch::empty(payload.sizes(), torch::kFloat);
  DequantisePayload(spec, fetched.id.level, fetched.destination.subspan(0, PayloadBytes(spec, fetched.id.level, fetched.payload)),
                    {values.data_ptr<float>(), static_cast<size_t>(values.numel())});
  return values.to(options_.dtype);
}

void BlockLoader::Evict() {
  for (auto at = recency_.end(); bytes_ > options_.capacity_bytes && at != recency_.begin();) {
    --at;
    auto it = entries_.find(*at);
    const Entry& entry = it->second;
    if (Stays(*at) || entry.loading || entry.block == nullptr || entry.block.use_count() > 1) continue;
    bytes_ -= entry.block->values.nbytes();
    entries_.erase(it);
    at = recency_.erase(at);
  }
}

std::vector<BlockId> BlockLoader::ResidentBlocks() const {
  std::vector<BlockId> ids;
  {
    absl::MutexLock lock(&mu_);
    for (const auto& [key, entry] : entries_) {
      if (entry.block != nullptr) ids.push_back(key.second);
    }
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

uint64_t BlockLoader::resident_bytes() const {
  absl::MutexLock lock(&mu_);
  return bytes_ + kept_bytes_;
}

}  // namespace membank
