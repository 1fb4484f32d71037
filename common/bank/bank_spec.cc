#include "common/bank/bank_spec.h"

#include <algorithm>
#include <array>

#include "common/bank/block_layout.h"
#include "common/base/hash.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"
#include "nlohmann/json.hpp"

namespace membank {
namespace {

using Json = nlohmann::json;

constexpr std::array<std::string_view, 5> kMemoryTypes = {"ffn", "lora_qk", "lora_vo", "lora_ffn", "kv"};
constexpr uint64_t kMaxBlockBytes = (uint64_t{1} << 31) - 1;

absl::Status CheckRange(std::string_view name, uint64_t value, uint64_t low, uint64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return InvalidArgument("bank spec: {} is {}, allowed {}..{}", name, value, low, high);
}

absl::Status CheckId(std::string_view name, const std::string& value) {
  const bool printable = std::all_of(value.begin(), value.end(), [](char c) { return c > ' ' && c < 0x7f; });
  if (!value.empty() && value.size() <= 128 && printable) return absl::OkStatus();
  return InvalidArgument("bank spec: {} has {} characters, allowed 1..128 printable ASCII characters without spaces", name, value.size());
}

// Sizes of the anchor that some types depend on, as JSON members.
constexpr std::pair<const char*, uint32_t BankSpec::*> kAnchorSizes[] = {
    {"heads", &BankSpec::heads}, {"kv_heads", &BankSpec::kv_heads}, {"head_dim", &BankSpec::head_dim}, {"ffn_inner", &BankSpec::ffn_inner}};

bool DependsOn(MemoryType type, uint32_t BankSpec::*size) {
  const bool attention = type == MemoryType::kLoraQk || type == MemoryType::kLoraVo;
  if (size == &BankSpec::ffn_inner) return type == MemoryType::kLoraFfn;
  return attention || (type == MemoryType::kKv && size != &BankSpec::kv_heads);
}

absl::Status CheckAnchorSizes(const BankSpec& spec) {
  for (const auto& [name, member] : kAnchorSizes) {
    if (!DependsOn(spec.type, member) && spec.*member != 0)
      return InvalidArgument("bank spec: {} is {}; {} memory does not depend on it, leave it out", name, spec.*member, MemoryTypeName(spec.type));
    if (DependsOn(spec.type, member)) RETURN_IF_ERROR(CheckRange(name, spec.*member, 1, member == &BankSpec::ffn_inner ? 1 << 20 : 4096));
  }
  if (spec.kv_heads != 0 && spec.heads % spec.kv_heads != 0)
    return InvalidArgument("bank spec: {} heads are no multiple of {} key-value heads", spec.heads, spec.kv_heads);
  return absl::OkStatus();
}

absl::Status CheckMemoryLayers(const BankSpec& spec) {
  const std::vector<uint32_t>& list = spec.memory_layers;
  for (size_t i = 0; i < list.size(); ++i) {
    if (list[i] >= spec.layers) return InvalidArgument("bank spec: memory_layers names layer {}, allowed 0..{}", list[i], spec.layers - 1);
    if (i > 0 && list[i] <= list[i - 1])
      return InvalidArgument("bank spec: memory_layers has {} after {}; give each layer once, in ascending order", list[i], list[i - 1]);
  }
  if (list.size() == spec.layers) return InvalidArgument("bank spec: memory_layers names all {} layers; leave it out", spec.layers);
  return absl::OkStatus();
}

// Reads the members of a JSON object one by one and knows at the end which ones nobody asked for.
class MemberReader {
 public:
  explicit MemberReader(const Json& object) : object_(object) {}

  absl::StatusOr<std::string> String(const char* key) {
    ASSIGN_OR_RETURN(const Json* value, Find(key));
    if (!value->is_string()) return InvalidArgument("bank spec: \"{}\" is {}, must be a string", key, value->dump());
    return value->get<std::string>();
  }
  absl::StatusOr<uint64_t> Unsigned(const char* key, uint64_t high) {
    ASSIGN_OR_RETURN(const Json* value, Find(key));
    return ToUnsigned(key, *value, high);
  }
  absl::StatusOr<std::vector<uint32_t>> UnsignedList(const char* key) {
    ASSIGN_OR_RETURN(const Json* value, Find(key));
    if (!value->is_array()) return InvalidArgument("bank spec: \"{}\" is {}, must be a list of numbers", key, value->dump());
    std::vector<uint32_t> list;
    for (const Json& item : *value) {
      ASSIGN_OR_RETURN(uint64_t number, ToUnsigned(key, item, UINT32_MAX));
      list.push_back(static_cast<uint32_t>(number));
    }
    return list;
  }
  // Whether an optional member is there.
  bool Has(const char* key) {
    known_.push_back(key);
    return object_.contains(key);
  }
  absl::Status CheckNoOthers() const {
    for (const auto& [key, value] : object_.items()) {
      if (std::find(known_.begin(), known_.end(), key) == known_.end())
        return InvalidArgument("bank spec: unknown key \"{}\", known keys: {}", key, fmt::join(known_, ", "));
    }
    return absl::OkStatus();
  }

 private:
  static absl::StatusOr<uint64_t> ToUnsigned(const char* key, const Json& value, uint64_t high) {
    if (!value.is_number_unsigned() || value.get<uint64_t>() > high)
      return InvalidArgument("bank spec: \"{}\" holds {}, must be a whole number 0..{}", key, value.dump(), high);
    return value.get<uint64_t>();
  }
  absl::StatusOr<const Json*> Find(const char* key) {
    known_.push_back(key);
    const auto it = object_.find(key);
    if (it == object_.end()) return InvalidArgument("bank spec: key \"{}\" is missing", key);
    return &*it;
  }

  const Json& object_;
  std::vector<std::string> known_;
};

}  // namespace

std::string_view MemoryTypeName(MemoryType type) { return kMemoryTypes[static_cast<size_t>(type)]; }

absl::StatusOr<MemoryType> ParseMemoryType(std::string_view name) {
  const auto it = std::find(kMemoryTypes.begin(), kMemoryTypes.end(), name);
  if (it == kMemoryTypes.end()) return InvalidArgument("memory type \"{}\" is unknown, known: {}", name, fmt::join(kMemoryTypes, ", "));
  return static_cast<MemoryType>(it - kMemoryTypes.begin());
}

uint64_t BankSpec::UnitElements() const {
  uint64_t layer = 0;
  for (const BlockMatrix& matrix : MatricesOf(*this)) layer += matrix.columns;
  return layer * block_layers();
}

uint64_t BankSpec::BlockBytes(uint32_t level) const { return BlockElements(level) * DTypeBytes(dtype); }

uint64_t BankSpec::FetchedElements() const {
  uint64_t sum = 0;
  for (uint32_t level = 1; level <= depth(); ++level) sum += BlockElements(level);
  return sum;
}

uint64_t BankSpec::BankElements() const {
  uint64_t sum = 0;
  for (uint32_t level = 1; level <= depth(); ++level) sum += BlockElements(level) * ClusterCount(fan_out, level);
  return sum;
}

bool BankSpec::Contains(BlockId id) const {
  return id.level >= 1 && id.level <= depth() && width(id.level) > 0 && id.cluster <= ClusterCount(fan_out, id.level);
}

std::vector<BlockId> BankSpec::BlocksOf(const BlockPath& path) const {
  std::vector<BlockId> blocks;
  if (path.mode == MemoryMode::kNone) return blocks;
  for (uint32_t level = 1; level <= depth(); ++level) {
    if (width(level) == 0) continue;
    const bool generic = path.mode == MemoryMode::kGeneric;
    blocks.push_back(generic ? GenericBlock(fan_out, level) : BlockId{level, ClusterAt(path, fan_out, level)});
  }
  return blocks;
}

void BankSpec::SetAnchor(const AnchorShape& anchor) {
  const bool any_head = DependsOn(type, &BankSpec::heads);
  layers = anchor.layers;
  hidden = anchor.hidden;
  heads = any_head ? anchor.heads : 0;
  head_dim = any_head ? anchor.head_dim : 0;
  kv_heads = DependsOn(type, &BankSpec::kv_heads) ? anchor.kv_heads : 0;
  ffn_inner = DependsOn(type, &BankSpec::ffn_inner) ? anchor.ffn_inner : 0;
}

absl::Status BankSpec::CheckFits(const AnchorShape& anchor) const {
  BankSpec fitting = *this;
  fitting.SetAnchor(anchor);
  std::vector<std::string> differences;
  const auto compare = [&](const char* name, uint32_t BankSpec::*size) {
    if (this->*size != fitting.*size) differences.push_back(fmt::format("{} {}, the anchor's is {}", name, this->*size, fitting.*size));
  };
  compare("layers", &BankSpec::layers);
  compare("hidden", &BankSpec::hidden);
  for (const auto& [name, size] : kAnchorSizes) compare(name, size);
  if (differences.empty() && (anchor.gated_ffn || type != MemoryType::kLoraFfn)) return absl::OkStatus();
  if (differences.empty())
    return FailedPrecondition("bank {} has lora_ffn memory, which belongs to a gate, an up and a down projection; the anchor's feed-forward layers have no "
                              "gate. Use ffn, lora_qk, lora_vo or kv memory", bank_id);
  return FailedPrecondition("bank {} was made for another anchor: {}. Use the bank's own anchor or create another bank", bank_id,
                            fmt::join(differences, "; "));
}

absl::Status BankSpec::Validate() const {
  RETURN_IF_ERROR(CheckId("bank_id", bank_id));
  if (dtype != DType::kBF16 && dtype != DType::kF32)
    return InvalidArgument("bank spec: dtype is {}, allowed BF16, F32", DTypeName(dtype));
  RETURN_IF_ERROR(CheckRange("fan_out", fan_out, 2, 4096));
  RETURN_IF_ERROR(CheckRange("number of widths (levels)", widths.size(), 1, 8));
  uint64_t leaves = 1;
  for (size_t level = 0; level < widths.size(); ++level) {
    leaves *= fan_out;
    if (leaves >= uint64_t{1} << 31)
      return InvalidArgument("bank spec: fan_out {} to the power of {} levels is not below 2^31", fan_out, widths.size());
  }
  RETURN_IF_ERROR(CheckRange("layers", layers, 1, 1024));
  RETURN_IF_ERROR(CheckRange("hidden", hidden, 1, 65536));
  RETURN_IF_ERROR(CheckAnchorSizes(*this));
  RETURN_IF_ERROR(CheckMemoryLayers(*this));
  for (uint32_t level = 1; level <= depth(); ++level) {
    RETURN_IF_ERROR(CheckRange(fmt::format("width of level {}", level), width(level), 0, 65536));
    if (BlockBytes(level) > kMaxBlockBytes)
      return InvalidArgument("bank spec: a block of level {} (width {}, {} layers, {} elements a unit) has {} bytes, allowed {}", level,
                             width(level), block_layers(), UnitElements(), BlockBytes(level), kMaxBlockBytes);
  }
  if (FetchedElements() == 0) return InvalidArgument("bank spec: all {} widths are 0, at least one level must have blocks", widths.size());
  RETURN_IF_ERROR(CheckId("anchor_fingerprint", anchor_fingerprint));
  return CheckId("tree_fingerprint", tree_fingerprint);
}

std::string BankSpec::ToJson() const {
  Json json = {{"anchor_fingerprint", anchor_fingerprint},
               {"bank_id", bank_id},
               {"dtype", std::string(DTypeName(dtype))},
               {"fan_out", fan_out},
               {"hidden", hidden},
               {"layers", layers},
               {"seed", seed},
               {"tree_fingerprint", tree_fingerprint},
               {"type", std::string(MemoryTypeName(type))},
                     {"widths", widths}};
  for (const auto& [name, member] : kAnchorSizes)
    if (this->*member != 0) json[name] = this->*member;
  if (!memory_layers.empty()) json["memory_layers"] = memory_layers;
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

absl::StatusOr<BankSpec> BankSpec::FromJson(const std::string& text) {
  ASSIGN_OR_RETURN(const Json json, ParseJsonObject(text, "the bank spec"));
  MemberReader members(json);
  BankSpec spec;
  ASSIGN_OR_RETURN(spec.anchor_fingerprint, members.String("anchor_fingerprint"));
  ASSIGN_OR_RETURN(spec.bank_id, members.String("bank_id"));
  ASSIGN_OR_RETURN(const std::string dtype, members.String("dtype"));
  ASSIGN_OR_RETURN(spec.dtype, ParseDType(dtype));
  ASSIGN_OR_RETURN(spec.fan_out, members.Unsigned("fan_out", UINT32_MAX));
  ASSIGN_OR_RETURN(spec.hidden, members.Unsigned("hidden", UINT32_MAX));
  ASSIGN_OR_RETURN(spec.layers, members.Unsigned("layers", UINT32_MAX));
  ASSIGN_OR_RETURN(spec.seed, members.Unsigned("seed", UINT64_MAX));
  ASSIGN_OR_RETURN(spec.tree_fingerprint, members.String("tree_fingerprint"));
  ASSIGN_OR_RETURN(const std::string type, members.String("type"));
  ASSIGN_OR_RETURN(spec.type, ParseMemoryType(type));
  ASSIGN_OR_RETURN(spec.widths, members.UnsignedList("widths"));
  for (const auto& [name, member] : kAnchorSizes) {
    if (!members.Has(name)) continue;
    ASSIGN_OR_RETURN(spec.*member, members.Unsigned(name, UINT32_MAX));
  }
  if (members.Has("memory_layers")) {
    ASSIGN_OR_RETURN(spec.memory_layers, members.UnsignedList("memory_layers"));
  }
  RETURN_IF_ERROR(members.CheckNoOthers());
  RETURN_IF_ERROR(spec.Validate());
  return spec;
}

std::string BankSpec::Hash() const { return Hash128Hex(ToJson()); }

}  // namespace membank
