#include <cstring>
#include <filesystem>

#include "common/base/bytes.h"
#include "common/base/crc32c.h"
#include "common/base/file.h"
#include "common/base/json.h"
#include "memory_server/block_record.h"
#include "memory_server/checked_json.h"
#include "memory_server/checkpoint_stream.h"
#include "memory_server/in_memory_block_store.h"
#include "memory_server/step_log.h"
#include "tests/fuzz/fuzz_target.h"

namespace membank::fuzz {
namespace {

// A byte, then key and record. With an odd byte the record gets the checksum of what is there.
void RunBlockRecord(std::string_view input) {
  Pieces pieces(input);
  const bool repair = pieces.Byte() % 2 == 1;
  (void)ParseBlockKey(pieces.Piece()).ok();
  std::string record(pieces.Rest());
  for (const size_t header : {size_t{16}, size_t{40}}) {
    if (repair && record.size() >= header) {
      const uint32_t crc = Crc32c(record.data() + header, record.size() - header);
      std::memcpy(record.data() + 4, &crc, sizeof(crc));
    }
    (void)DecodeWeights(AsBytes(record), record.size() - std::min<size_t>(record.size(), 16)).ok();
    (void)DecodeState(AsBytes(record)).ok();
  }
}

std::vector<std::string> BlockRecordSeeds() {
  const std::string payload = "0123456789abcdef";
  WeightsRecord weights{3, Crc32c(payload.data(), payload.size()), AsBytes(payload)};
  StateRecord state{3, 2, AsBytes(payload), AsBytes(std::string_view(payload).substr(8)), AsBytes(std::string_view(payload).substr(8))};
  const std::string key = MakePiece(BlockKey({1, 2}));
  return {"\1" + key + EncodeWeightsHeader(weights) + payload, "\1" + key + EncodeStateHeader(state) + payload + payload};
}

// Whatever is an object gets the checksum that it would have: it keeps nobody out who can write the file.
std::string Sealed(std::string_view text) {
  const absl::StatusOr<nlohmann::json> json = ParseJson(text);
  return json.ok() && json->is_object() ? SealJson(*json) : std::string(text);
}

// manifest.json and committed.json of a checkpoint and manifest.json of a version, a piece each.
void RunCheckpointManifests(std::string_view input) {
  const std::string data = ScratchDirectory() + "/shard";
  for (const char* directory : {"/checkpoints/c", "/versions/v/weights"}) std::filesystem::create_directories(data + directory);
  Pieces pieces(input);
  WriteScratch("shard/checkpoints/c/manifest.json", Sealed(pieces.Piece()));
  const std::string_view committed = pieces.Piece();
  std::filesystem::remove(data + "/checkpoints/c/committed.json");
  if (!committed.empty()) WriteScratch("shard/checkpoints/c/committed.json", Sealed(committed));
  WriteScratch("shard/versions/v/manifest.json", Sealed(pieces.Piece()));
  const auto store = CheckpointStore::Open(data, "hash", InMemoryBlockStore::Open, 2);
  if (!store.ok()) return;
  (void)(*store)->List();
  (void)(*store)->LastCommitted();
}

std::vector<std::string> CheckpointManifestSeeds() {
  const std::string marks = R"("format":1,"spec_hash":"hash","step":4,"run_id":"r","run_epoch":1,"blocks":2,"blocks_crc32c":77,"slots":"0-1023","slot_map_epoch":1)";
  const std::string cut = MakePiece("{" + marks + R"(,"id":"c","sequence":3})") + MakePiece(R"({"sequence":4})");
  return {cut + MakePiece("{" + marks + R"(,"checkpoint":"c"})"), cut + MakePiece("{" + marks + R"(,"checkpoint":"c","payload":"I8_ROWS"})"),
          MakePiece("{\"step\":" + NestedLists(30000) + "}")};
}

// The file of the in-memory engine.
void RunBlockFile(std::string_view input) {
  std::filesystem::create_directories(ScratchDirectory() + "/store");
  WriteScratch("store/blocks.bin", input);
  const auto store = InMemoryBlockStore::Open(ScratchDirectory() + "/store", StoreAccess::kReadOnly);
  if (store.ok()) (void)(*store)->Scan("", [](std::string_view, absl::Span<const uint8_t>) { return absl::OkStatus(); }).ok();
}

std::vector<std::string> BlockFileSeeds() {
  const std::string directory = ScratchDirectory() + "/seed_store";
  std::filesystem::remove_all(directory);
  const auto store = InMemoryBlockStore::Open(directory, StoreAccess::kReadWrite);
  if (!store.ok() || !(*store)->Put("key", AsBytes("value")).ok() || !(*store)->Put("other", AsBytes("")).ok() || !(*store)->Flush().ok()) return {};
  std::vector<std::string> seeds;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    if (entry.path().filename() == "blocks.bin") seeds.push_back(*ReadFile(entry.path()));
  }
  return seeds;
}

// A segment of the step log, opened and replayed.
void RunStepLog(std::string_view input) {
  std::filesystem::create_directories(ScratchDirectory() + "/steps");
  WriteScratch("steps/0000000001.log", input);
  const auto log = StepLog::Open(ScratchDirectory() + "/steps", "hash");
  if (log.ok()) (void)(*log)->Replay({}, SlotSet().set(), ~uint64_t{0}, {[](const LoggedStep&) { return absl::OkStatus(); }, [](auto&, auto&) { return absl::OkStatus(); }}).ok();
}

std::vector<std::string> StepLogSeeds() {
  const std::string directory = ScratchDirectory() + "/seed_steps";
  std::filesystem::remove_all(directory);
  const auto log = StepLog::Open(directory, "hash");
  RankGradients gradients;
  gradients[{1, 0}] = Gradient{DType::kBF16, Buffer(8)};
  std::memset(gradients[{1, 0}].bytes.data(), 1, 8);
  const auto buffers = BufferPool::Create(0);
  BlockImage image{{1, 1}, 1, 0, CopyPayload(gradients[{1, 0}].bytes.span(), buffers.get()), std::make_shared<TrainState>(buffers)};
  if (!log.ok() || !(*log)->Begin({}, SlotSet(), false).ok() || !(*log)->WriteGradients({"r"}, 1, gradients).ok() || !(*log)->WriteApply(1, {}).ok() ||
      !(*log)->WriteImage(image).ok() || !(*log)->WriteTaken({{1, "r", 1}, SlotSet(3), false, {{"r", 1}}}).ok() || !(*log)->WriteOwned(SlotSet(3)).ok())
    return {};
  return {*ReadFile(directory + "/0000000001.log")};
}

// A checkpoint that comes in, in pieces of the size of the first byte.
void RunCheckpointStream(std::string_view input) {
  Pieces pieces(input);
  const size_t size = 1 + pieces.Byte();
  BankSpec spec;
  spec.fan_out = 2;
  spec.widths = {1};
  spec.layers = spec.hidden = 1;
  spec.dtype = DType::kF32;
  const std::string directory = ScratchDirectory() + "/incoming";
  std::filesystem::remove_all(directory);
  HeadStores stores;
  stores.weights = *InMemoryBlockStore::Open(directory + "/weights", StoreAccess::kReadWrite);
  stores.state = *InMemoryBlockStore::Open(directory + "/state", StoreAccess::kReadWrite);
  CutWriter writer("c", spec, std::move(stores), [&](BlockId id) { return spec.Contains(id) ? absl::OkStatus() : absl::NotFoundError("no such block"); });
  const std::string_view stream = pieces.Rest();
  for (size_t at = 0; at < stream.size(); at += size)
    if (!writer.Write(at, AsBytes(stream.substr(at, size))).ok()) return;
  (void)writer.Finish({1, "r", 1}).ok();
}

std::vector<std::string> CheckpointStreamSeeds() {
  const std::string payload(12, '\0');
  const std::string weights = EncodeWeightsHeader({3, Crc32c(payload.data(), payload.size()), AsBytes(payload)}) + payload;
  const std::string state = EncodeStateHeader({3, 1, {}, AsBytes(payload), AsBytes(payload)}) + payload + payload;
  return {"\x07" + EncodeFrameHeader({{1, 1}, weights.size(), state.size()}) + weights + state};
}

}  // namespace

std::vector<Target> StoreTargets() {
  return {{"step_log", RunStepLog, StepLogSeeds}, {"checkpoint_stream", RunCheckpointStream, CheckpointStreamSeeds},
          {"block_record", RunBlockRecord, BlockRecordSeeds}, {"checkpoint_manifests", RunCheckpointManifests, CheckpointManifestSeeds},
          {"block_file", RunBlockFile, BlockFileSeeds}};
}

}  // namespace membank::fuzz
