#include "model_worker/memory/block_cache.h"

#include "common/base/status_macros.h"

namespace membank {

torch::Dtype TorchDtype(DType dtype) { return dtype == DType::kF32 ? torch::kFloat : torch::kBFloat16; }

// One block on its way: `current` is what the cache had, `fresh` is where new bytes land.
struct BlockCache::Request {
  BlockId id;
  std::shared_ptr<ResidentBlock> current;
  torch::Tensor fresh;    // of the bank's dtype
  bool needed = true;     // ask the servers
  BlockFetch fetch;
};

absl::StatusOr<std::vector<BlockHandle>> BlockCache::Get(absl::Span<const BlockId> ids, uint64_t min_step) {
  std::vector<Request> requests(ids.size());
  {
    absl::MutexLock lock(&mu_);
    for (size_t i = 0; i < ids.size(); ++i) {
      requests[i].id = ids[i];
      requests[i].current = Take(ids[i]);
      requests[i].needed = requests[i].current == nullptr || options_.bank_version.empty();
    }
  }
  const absl::Status status = Fetch(requests, min_step);

  absl::MutexLock lock(&mu_);
  std::vector<BlockHandle> handles;
  handles.reserve(requests.size());
  for (Request& request : requests) {
    // After a failed fetch a block that was written over is gone; one with bytes of its own is as good as before.
    if (!status.ok() && (request.current == nullptr || (request.needed && !request.fresh.defined()))) continue;
    handles.push_back(request.current);
    Insert(std::move(request.current));
  }
  Evict();
  if (!status.ok()) return status;
  return handles;
}

// Gives every needed block a destination. A resident block that nobody holds and that has the bank's dtype is overwritten in place.
void BlockCache::Prepare(Request& request) const {
  const BankSpec& spec = client_->spec();
  const torch::Dtype bank_dtype = TorchDtype(spec.dtype);
  torch::Tensor destination;
  if (request.current != nullptr && !request.current->blocked) request.fetch.newer_than = static_cast<int64_t>(request.current->version);
  if (request.current != nullptr && request.current.use_count() == 1 && options_.dtype == bank_dtype) {
    destination = request.current->values;
  } else {
    request.fresh = torch::empty({static_cast<int64_t>(spec.BlockElements(request.id.level))}, torch::dtype(bank_dtype));
    destination = request.fresh;
  }
  request.fetch.id = request.id;
  request.fetch.destination = {static_cast<uint8_t*>(destination.data_ptr()), static_cast<size_t>(destination.nbytes())};
}

absl::Status BlockCache::Fetch(std::vector<Request>& requests, uint64_t min_step) const {
  std::vector<BlockFetch> fetches;
  std::vector<Request*> waiting;
  for (Request& request : requests) {
    if (!request.needed) continue;
    Prepare(request);
    fetches.push_back(request.fetch);
    waiting.push_back(&request);
  }
  if (fetches.empty()) return absl::OkStatus();
  FetchOptions options;
  options.bank_version = options_.bank_version;
  options.min_step = min_step;
  options.timeout = options_.timeout;
  RETURN_IF_ERROR(client_->Fetch(absl::MakeSpan(fetches), options));

  for (size_t i = 0; i < fetches.size(); ++i) {
    Request& request = *waiting[i];
    if (fetches[i].unchanged) continue;
    if (request.fresh.defined()) {
      request.current = std::make_shared<ResidentBlock>();
      request.current->id = request.id;
      request.current->values = request.fresh.to(options_.dtype);  // the same tensor when the dtypes agree
    }
    request.current->version = fetches[i].version;
    request.current->blocked = fetches[i].blocked;
  }
  return absl::OkStatus();
}

// Removes the block, so that nobody else can get it while it may be overwritten; Insert brings it back.
std::shared_ptr<ResidentBlock> BlockCache::Take(BlockId id) {
  auto it = entries_.find(id);
  if (it == entries_.end()) return nullptr;
  std::shared_ptr<ResidentBlock> block = std::move(it->second.block);
  bytes_ -= block->values.nbytes();
  recency_.erase(it->second.used);
  entries_.erase(it);
  return block;
}

void BlockCache::Insert(std::shared_ptr<ResidentBlock> block) {
  if (std::shared_ptr<ResidentBlock> other = Take(block->id); other != nullptr && other->version > block->version) block = other;
  recency_.push_front(block->id);
  bytes_ += block->values.nbytes();
  const BlockId id = block->id;
  entries_[id] = Entry{std::move(block), recency_.begin()};
}

void BlockCache::Evict() {
  while (bytes_ > options_.capacity_bytes && !recency_.empty()) Take(recency_.back());
}

uint64_t BlockCache::resident_bytes() const {
  absl::MutexLock lock(&mu_);
  return bytes_;
}

}  // namespace membank
