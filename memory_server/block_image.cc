#include "memory_server/block_image.h"

#include <algorithm>
#include <deque>
#include <string>

#include "common/base/bytes.h"
#include "common/base/status_macros.h"

namespace membank {
namespace {

constexpr uint64_t kBatchBytes = 64 << 20;  // of one atomic write

Buffer Copy(absl::Span<const uint8_t> bytes, BufferPool* buffers) {
  if (bytes.empty()) return Buffer();
  Buffer buffer = buffers->Acquire(bytes.size());
  std::copy(bytes.begin(), bytes.end(), buffer.data());
  return buffer;
}

// Collects writes that borrow their arrays and hands them to the store in bounded batches.
class BatchWriter {
 public:
  explicit BatchWriter(BlockStore* store) : store_(store) {}
  absl::Status Add(std::string key, std::string header, std::vector<absl::Span<const uint8_t>> arrays) {
    headers_.push_back(std::move(header));
    BlockStore::Write write{std::move(key), {AsBytes(headers_.back())}};
    for (absl::Span<const uint8_t> array : arrays) bytes_ += array.size(), write.parts.push_back(array);
    batch_.push_back(std::move(write));
    return bytes_ >= kBatchBytes ? Apply() : absl::OkStatus();
  }
  absl::Status Apply() {
    if (batch_.empty()) return absl::OkStatus();
    RETURN_IF_ERROR(store_->Apply(batch_));
    batch_.clear();
    headers_.clear();
    bytes_ = 0;
    return absl::OkStatus();
  }

 private:
  BlockStore* const store_;
  std::deque<std::string> headers_;  // stable addresses
  std::vector<BlockStore::Write> batch_;
  uint64_t bytes_ = 0;
};

// Reads one record and hands it to decode(value) -> Status. A key that must be there and is not is damage.
template <typename Decode>
absl::Status ReadRecord(BlockStore& store, std::string_view what, BlockId id, const Decode& decode) {
  absl::Status decoded;
  const absl::Status got = store.Get(BlockKey(id), [&](absl::Span<const uint8_t> value) { decoded = decode(value); });
  if (absl::IsNotFound(got)) return DataLoss("{} of block {} is gone: {}", what, ToString(id), std::string(got.message()));
  const absl::Status status = got.ok() ? decoded : got;
  return status.ok() ? status : Annotate(status, fmt::format("{} of block {}", what, ToString(id)));
}

}  // namespace

TrainState::~TrainState() {
  for (Buffer* array : {&weights, &m, &v})
    if (array->size() > 0) buffers->Release(std::move(*array));
}

std::shared_ptr<TrainState> TrainState::Clone() const {
  auto clone = std::make_shared<TrainState>(buffers);
  clone->weights = Copy(weights.span(), buffers.get());
  clone->m = Copy(m.span(), buffers.get());
  clone->v = Copy(v.span(), buffers.get());
  clone->adam_steps = adam_steps;
  return clone;
}

ImageRecords RecordsOf(const BlockImage& image) {
  const TrainState& state = *image.state;
  const StateRecord beside{image.version, state.adam_steps, state.weights.span(), state.m.span(), state.v.span()};
  return {EncodeWeightsHeader({image.version, image.crc32c}), EncodeStateHeader(beside), image.payload->span(), {beside.weights, beside.m, beside.v}};
}

absl::Status WriteImages(const HeadStores& stores, absl::Span<const BlockImage> images) {
  BatchWriter weights(stores.weights.get()), states(stores.state.get());
  for (const BlockImage& image : images) {
    ImageRecords records = RecordsOf(image);
    RETURN_IF_ERROR(weights.Add(BlockKey(image.id), std::move(records.weights_header), {records.payload}));
    RETURN_IF_ERROR(states.Add(BlockKey(image.id), std::move(records.state_header), {records.state.begin(), records.state.end()}));
  }
  RETURN_IF_ERROR(weights.Apply());
  return states.Apply();
}

absl::StatusOr<CachedPayload> ReadPayload(const HeadStores& stores, const BankSpec& spec, BlockId id, BufferPool* buffers) {
  CachedPayload payload;
  RETURN_IF_ERROR(ReadRecord(*stores.weights, "payload", id, [&](absl::Span<const uint8_t> value) -> absl::Status {
    ASSIGN_OR_RETURN(const WeightsRecord record, DecodeWeights(value, spec.BlockBytes(id.level)));
    payload = {record.version, record.crc32c, CopyPayload(record.payload, buffers)};
    return absl::OkStatus();
  }));
  return payload;
}

absl::StatusOr<std::shared_ptr<TrainState>> ReadState(const HeadStores& stores, const BankSpec& spec, BlockId id, uint64_t version,
                                                      const std::shared_ptr<BufferPool>& buffers) {
  std::shared_ptr<TrainState> state;
  RETURN_IF_ERROR(ReadRecord(*stores.state, "state", id, [&](absl::Span<const uint8_t> value) -> absl::Status {
    ASSIGN_OR_RETURN(const StateRecord record, DecodeState(value));
    RETURN_IF_ERROR(CheckState(spec, id, version, record));
    state = CopyState(record, buffers);
    return absl::OkStatus();
  }));
  return state;
}

absl::StatusOr<BlockImage> DecodeImage(const BankSpec& spec, BlockId id, absl::Span<const uint8_t> weights, absl::Span<const uint8_t> state,
                                       const std::shared_ptr<BufferPool>& buffers) {
  const absl::StatusOr<WeightsRecord> payload = DecodeWeights(weights, spec.BlockBytes(id.level));
  const absl::StatusOr<StateRecord> beside = DecodeState(state);
  for (const absl::Status& status : {payload.status(), beside.status()})
    if (!status.ok()) return Annotate(status, "block " + ToString(id));
  RETURN_IF_ERROR(CheckState(spec, id, payload->version, *beside));
  return BlockImage{id, payload->version, payload->crc32c, CopyPayload(payload->payload, buffers.get()), CopyState(*beside, buffers)};
}

absl::Status CheckState(const BankSpec& spec, BlockId id, uint64_t payload_version, const StateRecord& record) {
  const bool fits = StateFits(spec, id, record.weights.size(), record.m.size(), record.v.size());
  if (fits && payload_version == record.version) return absl::OkStatus();
  return DataLoss("state of block {} at step {} does not belong to its payload", ToString(id), record.version);
}

std::shared_ptr<TrainState> CopyState(const StateRecord& record, const std::shared_ptr<BufferPool>& buffers) {
  auto state = std::make_shared<TrainState>(buffers);
  state->weights = Copy(record.weights, buffers.get());
  state->m = Copy(record.m, buffers.get());
  state->v = Copy(record.v, buffers.get());
  state->adam_steps = record.adam_steps;
  return state;
}

SharedBuffer CopyPayload(absl::Span<const uint8_t> bytes, BufferPool* buffers) { return buffers->Share(Copy(bytes, buffers)); }

}  // namespace membank
