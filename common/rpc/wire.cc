#include "common/rpc/wire.h"

#include "common/base/status_macros.h"

namespace membank {

void ToProto(BlockId id, v1::BlockId* out) {
  out->set_level(id.level);
  out->set_cluster(id.cluster);
}

BlockId FromProto(const v1::BlockId& id) { return {id.level(), id.cluster()}; }

v1::MemoryMode ToProto(MemoryMode mode) {
  switch (mode) {
    case MemoryMode::kNone: return v1::MEMORY_MODE_NONE;
    case MemoryMode::kGeneric: return v1::MEMORY_MODE_GENERIC;
    case MemoryMode::kFetched: return v1::MEMORY_MODE_FETCHED;
  }
  return v1::MEMORY_MODE_UNSPECIFIED;
}

absl::StatusOr<MemoryMode> FromProto(v1::MemoryMode mode) {
  switch (mode) {
    case v1::MEMORY_MODE_NONE: return MemoryMode::kNone;
    case v1::MEMORY_MODE_GENERIC: return MemoryMode::kGeneric;
    case v1::MEMORY_MODE_FETCHED: return MemoryMode::kFetched;
    default: return InvalidArgument("memory mode {} is unknown; allowed: NONE (1), GENERIC (2), FETCHED (3)", static_cast<int>(mode));
  }
}

void ToProto(const BlockPath& path, v1::BlockPath* out) {
  out->set_mode(ToProto(path.mode));
  out->set_depth(path.depth);
  out->set_leaf(path.leaf);
}

absl::StatusOr<BlockPath> FromProto(const v1::BlockPath& path) {
  ASSIGN_OR_RETURN(MemoryMode mode, FromProto(path.mode()));
  if (mode == MemoryMode::kFetched && path.depth() == 0) {
    return InvalidArgument("a fetched path has depth 0; allowed: the number of levels of the bank");
  }
  return BlockPath{mode, path.depth(), path.leaf()};
}

v1::DType ToProto(DType dtype) {
  if (dtype == DType::kF32) return v1::DTYPE_F32;
  if (dtype == DType::kBF16) return v1::DTYPE_BF16;
  return v1::DTYPE_UNSPECIFIED;
}

absl::StatusOr<DType> FromProto(v1::DType dtype) {
  if (dtype == v1::DTYPE_F32) return DType::kF32;
  if (dtype == v1::DTYPE_BF16) return DType::kBF16;
  return InvalidArgument("element type {} is unknown; allowed: F32 (1), BF16 (2)", static_cast<int>(dtype));
}

v1::PayloadType ToProto(PayloadType type) { return type == PayloadType::kI8Rows ? v1::PAYLOAD_TYPE_I8_ROWS : v1::PAYLOAD_TYPE_BANK; }

absl::StatusOr<PayloadType> FromProto(v1::PayloadType type) {
  if (type == v1::PAYLOAD_TYPE_BANK) return PayloadType::kBank;
  if (type == v1::PAYLOAD_TYPE_I8_ROWS) return PayloadType::kI8Rows;
  return InvalidArgument("payload type {} is unknown; allowed: BANK (0), I8_ROWS (1)", static_cast<int>(type));
}

void ToProto(const BankSpec& spec, v1::BankSpec* out) {
  out->set_bank_id(spec.bank_id);
  out->set_type(static_cast<v1::MemoryType>(static_cast<int>(spec.type) + 1));
  out->set_fan_out(spec.fan_out);
  out->mutable_widths()->Assign(spec.widths.begin(), spec.widths.end());
  out->set_layers(spec.layers);
  out->set_hidden(spec.hidden);
  out->set_heads(spec.heads);
  out->set_kv_heads(spec.kv_heads);
  out->set_head_dim(spec.head_dim);
  out->set_ffn_inner(spec.ffn_inner);
  out->mutable_memory_layers()->Assign(spec.memory_layers.begin(), spec.memory_layers.end());
  out->set_dtype(ToProto(spec.dtype));
  out->set_seed(spec.seed);
  out->set_anchor_fingerprint(spec.anchor_fingerprint);
  out->set_tree_fingerprint(spec.tree_fingerprint);
}

absl::StatusOr<BankSpec> FromProto(const v1::BankSpec& spec) {
  if (spec.type() < v1::MEMORY_TYPE_FFN || spec.type() > v1::MEMORY_TYPE_KV) {
    return InvalidArgument("memory type {} is unknown; allowed: FFN (1) to KV (5)", static_cast<int>(spec.type()));
  }
  BankSpec out;
  out.bank_id = spec.bank_id();
  out.type = static_cast<MemoryType>(static_cast<int>(spec.type()) - 1);
  out.fan_out = spec.fan_out();
  out.widths.assign(spec.widths().begin(), spec.widths().end());
  out.layers = spec.layers();
  out.hidden = spec.hidden();
  out.heads = spec.heads();
  out.kv_heads = spec.kv_heads();
  out.head_dim = spec.head_dim();
  out.ffn_inner = spec.ffn_inner();
  out.memory_layers.assign(spec.memory_layers().begin(), spec.memory_layers().end());
  ASSIGN_OR_RETURN(out.dtype, FromProto(spec.dtype()));
  out.seed = spec.seed();
  out.anchor_fingerprint = spec.anchor_fingerprint();
  out.tree_fingerprint = spec.tree_fingerprint();
  RETURN_IF_ERROR(out.Validate());
  return out;
}

TreePrefix FromProto(const v1::TreePrefix& prefix) { return {prefix.level(), prefix.cluster()}; }

void ToProto(const AccessTable& table, v1::AccessTable* out) {
  out->set_epoch(table.epoch);
  for (const auto& [prefix, rule] : table.rules) {
    v1::AccessRule* to = out->add_rules();
    to->mutable_prefix()->set_level(prefix.level);
    to->mutable_prefix()->set_cluster(prefix.cluster);
    to->set_owner(rule.owner);
    for (const std::string& reader : rule.readers) to->add_readers(reader);
    to->set_blocked(rule.blocked);
  }
}

absl::StatusOr<AccessTable> FromProto(const v1::AccessTable& table) {
  AccessTable out;
  out.epoch = table.epoch();
  for (const v1::AccessRule& from : table.rules()) {
    AccessRule rule{from.owner(), {from.readers().begin(), from.readers().end()}, from.blocked()};
    if (!out.rules.emplace(FromProto(from.prefix()), std::move(rule)).second) {
      return InvalidArgument("the access table has two rules for prefix {}/{}", from.prefix().level(), from.prefix().cluster());
    }
  }
  return out;
}

}  // namespace membank
