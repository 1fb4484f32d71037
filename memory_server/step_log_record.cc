#include "memory_server/step_log_record.h"

#include <algorithm>
#include <cstring>

#include "common/bank/gradient_codec.h"
#include "common/base/crc32c.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"

namespace membank {
namespace {

using Json = nlohmann::json;

constexpr uint32_t kMagic = 0x314c424d;  // "MBL1"
constexpr uint64_t kMaxJsonBytes = 256 << 20;

struct Header {
  uint32_t magic = kMagic, header_crc = 0, json_bytes = 0, json_crc = 0;
  uint64_t data_bytes = 0;
  uint32_t data_crc = 0, zero = 0;
};
static_assert(sizeof(Header) == kLogHeaderBytes);

uint32_t CrcOf(Header header) {
  header.header_crc = 0;
  return Crc32c(&header, sizeof(header));
}

Json ToJson(const CutMarks& marks) { return {{"step", marks.step}, {"run_id", marks.run_id}, {"run_epoch", marks.run_epoch}}; }

// The exception-free edge of nlohmann's accessors.
template <typename Read>
auto Guarded(const char* kind, Read read) -> absl::StatusOr<decltype(read())> {
  try {
    return read();
  } catch (const Json::exception& e) {
    return DataLoss("a {} record lacks something: {}", kind, e.what());
  }
}

CutMarks MarksOf(const Json& json) {
  const Json& marks = json.at("marks");
  return {marks.at("step"), marks.at("run_id"), marks.at("run_epoch")};
}

absl::StatusOr<SlotSet> SlotsOf(const char* kind, const LogRecord& record) {
  ASSIGN_OR_RETURN(const std::string text, Guarded(kind, [&] { return record.json.at("slots").get<std::string>(); }));
  return ParseSlots(text);
}

}  // namespace

uint64_t LogRecordBytes(uint64_t json_bytes, uint64_t data_bytes) {
  return (kLogHeaderBytes + json_bytes + data_bytes + kLogAlignment - 1) / kLogAlignment * kLogAlignment;
}

std::string EncodeLogRecord(const std::string& json, uint64_t data_bytes, uint32_t data_crc) {
  Header header;
  header.json_bytes = static_cast<uint32_t>(json.size());
  header.json_crc = Crc32c(json.data(), json.size());
  header.data_bytes = data_bytes;
  header.data_crc = data_crc;
  header.header_crc = CrcOf(header);
  std::string bytes(reinterpret_cast<const char*>(&header), sizeof(header));
  return bytes += json;
}

std::optional<LogRecord> DecodeLogRecord(absl::Span<const uint8_t> bytes) {
  Header header;
  if (bytes.size() < sizeof(header)) return std::nullopt;
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (header.magic != kMagic || header.header_crc != CrcOf(header) || header.json_bytes > kMaxJsonBytes) return std::nullopt;
  const uint64_t left = bytes.size() - sizeof(header);
  if (header.json_bytes > left || header.data_bytes > left - header.json_bytes) return std::nullopt;
  const absl::Span<const uint8_t> text = bytes.subspan(sizeof(header), header.json_bytes);
  LogRecord record;
  record.data = bytes.subspan(sizeof(header) + header.json_bytes, header.data_bytes);
  record.bytes = LogRecordBytes(header.json_bytes, header.data_bytes);
  if (record.bytes > bytes.size()) return std::nullopt;
  if (Crc32c(text.data(), text.size()) != header.json_crc || Crc32c(record.data.data(), record.data.size()) != header.data_crc) return std::nullopt;
  absl::StatusOr<Json> json = ParseJson({reinterpret_cast<const char*>(text.data()), text.size()});
  if (!json.ok() || !json->is_object()) return std::nullopt;
  record.json = *std::move(json);
  return record;
}

std::optional<std::string> FindProof(absl::Span<const uint8_t> bytes, size_t begin, uint64_t min_step) {
  for (size_t offset = begin; offset + kLogHeaderBytes <= bytes.size(); offset += kLogAlignment) {
    uint32_t magic;
    std::memcpy(&magic, bytes.data() + offset, sizeof(magic));
    if (magic != kMagic) continue;
    const std::optional<LogRecord> record = DecodeLogRecord(bytes.subspan(offset));
    if (!record.has_value()) continue;
    if (const auto kind = record->json.find("kind"); kind != record->json.end() && *kind == "owned") return "a change of this server's slots";
    const auto step = record->json.find("step");
    if (step != record->json.end() && step->is_number_unsigned() && *step >= min_step) return fmt::format("step {}", step->get<uint64_t>());
  }
  return std::nullopt;
}

std::string SegmentJson(const std::string& spec_hash, const LogBase& base, const SlotSet& slots, bool continues) {
  return Json{{"kind", "segment"}, {"spec_hash", spec_hash}, {"checkpoint", base.checkpoint_id}, {"marks", ToJson(base.marks)},
              {"slots", FormatSlots(slots)}, {"continues", continues}}.dump();
}

std::string GradientsJson(const RunSettings& run, uint64_t step, const RankGradients& gradients) {
  Json blocks = Json::array();
  for (const auto& [id, gradient] : gradients)
    blocks.push_back({id.level, id.cluster, std::string(GradientDTypeName(gradient.dtype)), gradient.bytes.size()});
  return Json{{"kind", "gradients"},
              {"step", step},
              {"run", {{"id", run.run_id}, {"epoch", run.epoch}, {"world_size", run.world_size}, {"staleness", run.staleness},
                       {"first_step", run.first_step}, {"optimizer", static_cast<int>(run.optimizer)},
                       {"beta1", run.beta1}, {"beta2", run.beta2}, {"epsilon", run.epsilon},
                       {"decay", static_cast<int>(run.decay)}, {"stochastic_rounding", run.stochastic_rounding}}},
              {"blocks", std::move(blocks)}}.dump();
}

std::string ApplyJson(uint64_t step, const ApplyParameters& parameters) {
  return Json{{"kind", "apply"}, {"step", step}, {"scale", parameters.scale}, {"learning_rate", parameters.learning_rate},
              {"weight_decay", parameters.weight_decay}}.dump();
}

std::string ImageJson(BlockId id, uint64_t weights_bytes, uint64_t state_bytes) {
  return Json{{"kind", "image"}, {"block", {id.level, id.cluster}}, {"weights", weights_bytes}, {"state", state_bytes}}.dump();
}

std::string TakenJson(const SlotsTaken& taken) {
  return Json{{"kind", "taken"}, {"marks", ToJson(taken.marks)}, {"slots", FormatSlots(taken.slots)}, {"joins", taken.joins},
              {"run_epochs", taken.run_epochs}}.dump();
}

std::string OwnedJson(const SlotSet& slots) { return Json{{"kind", "owned"}, {"slots", FormatSlots(slots)}}.dump(); }

absl::StatusOr<SegmentHeader> DecodeSegment(const LogRecord& record) {
  ASSIGN_OR_RETURN(const SlotSet slots, SlotsOf("segment", record));
  return Guarded("segment", [&] {
    const Json& json = record.json;
    return SegmentHeader{json.at("spec_hash"), {json.at("checkpoint"), MarksOf(json)}, slots, json.at("continues")};
  });
}

absl::StatusOr<LoggedImage> DecodeLoggedImage(const LogRecord& record) {
  ASSIGN_OR_RETURN(const LoggedImage image, Guarded("image", [&] {
    const Json& block = record.json.at("block");
    const uint64_t weights = record.json.at("weights"), state = record.json.at("state"), bytes = record.data.size();
    const bool fits = weights <= bytes && state == bytes - weights;
    return LoggedImage{{block.at(0), block.at(1)}, record.data.subspan(0, fits ? weights : 0), record.data.subspan(fits ? weights : 0)};
  }));
  if (image.weights.empty()) return DataLoss("the image of block {} does not have the bytes it is said to have", ToString(image.id));
  return image;
}

absl::StatusOr<SlotsTaken> DecodeTaken(const LogRecord& record) {
  ASSIGN_OR_RETURN(const SlotSet slots, SlotsOf("taken", record));
  return Guarded("taken", [&] {
    return SlotsTaken{MarksOf(record.json), slots, record.json.at("joins"), record.json.at("run_epochs").get<RunEpochs>()};
  });
}

absl::StatusOr<SlotSet> DecodeOwned(const LogRecord& record) { return SlotsOf("owned", record); }

absl::StatusOr<LoggedStep> DecodeGradients(const LogRecord& record) {
  absl::Status unreadable;
  absl::StatusOr<LoggedStep> step = Guarded("gradients", [&] {
    const Json& run = record.json.at("run");
    LoggedStep logged;
    logged.step = record.json.at("step");
    logged.run = {run.at("id"), run.at("epoch"), run.at("world_size"), run.at("staleness"), run.at("first_step"),
                  static_cast<OptimizerKind>(run.at("optimizer").get<int>()), run.at("beta1"), run.at("beta2"), run.at("epsilon"),
                  static_cast<DecayPolicy>(run.at("decay").get<int>()), run.at("stochastic_rounding")};
    absl::Span<const uint8_t> left = record.data;
    for (const Json& block : record.json.at("blocks")) {
      const BlockId id{block.at(0), block.at(1)};
      const absl::StatusOr<DType> dtype = ParseGradientDType(block.at(2).get<std::string>());
      const uint64_t bytes = block.at(3);
      if (!dtype.ok() || bytes > left.size()) {
        unreadable = DataLoss("the gradients of step {} do not hold block {} as {} bytes of {}", logged.step, ToString(id), bytes,
                              block.at(2).dump());
        return logged;
      }
      Gradient gradient{*dtype, Buffer(bytes)};
      std::copy_n(left.data(), bytes, gradient.bytes.data());
      left.remove_prefix(bytes);
      logged.gradients.emplace(id, std::move(gradient));
    }
    if (!left.empty()) unreadable = DataLoss("the gradients of step {} have {} bytes that belong to no block", logged.step, left.size());
    return logged;
  });
  RETURN_IF_ERROR(unreadable);
  return step;
}

absl::Status DecodeApply(const LogRecord& record, uint64_t* step, ApplyParameters* parameters) {
  return Guarded("apply", [&] {
    *step = record.json.at("step");
    *parameters = {record.json.at("scale"), record.json.at("learning_rate"), record.json.at("weight_decay")};
    return true;
  }).status();
}

}  // namespace membank
