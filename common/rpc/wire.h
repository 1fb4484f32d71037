// The bank's words <-> their protobuf messages. From proto: INVALID_ARGUMENT names the field and the allowed values. Pure functions.
#pragma once

#include "absl/status/statusor.h"
#include "common/bank/access_table.h"
#include "common/bank/bank_spec.h"
#include "common/bank/payload.h"
#include "membank/v1/memory.pb.h"
#include "membank/v1/types.pb.h"

namespace membank {

inline constexpr uint32_t kWireVersion = 2;
inline constexpr uint32_t kMaxBlocksPerCall = 65536;
inline constexpr size_t kChunkBytes = 512 << 10;  // measured best for 1.7 and 14 MB blocks (research/hot-path.md section 1)

void ToProto(BlockId id, v1::BlockId* out);
BlockId FromProto(const v1::BlockId& id);

void ToProto(const BlockPath& path, v1::BlockPath* out);
// MEMORY_MODE_UNSPECIFIED is an error: give the service's default before.
absl::StatusOr<BlockPath> FromProto(const v1::BlockPath& path);

v1::MemoryMode ToProto(MemoryMode mode);
absl::StatusOr<MemoryMode> FromProto(v1::MemoryMode mode);

v1::DType ToProto(DType dtype);  // F32 and BF16; others are UNSPECIFIED
absl::StatusOr<DType> FromProto(v1::DType dtype);

v1::PayloadType ToProto(PayloadType type);
absl::StatusOr<PayloadType> FromProto(v1::PayloadType type);

void ToProto(const BankSpec& spec, v1::BankSpec* out);
absl::StatusOr<BankSpec> FromProto(const v1::BankSpec& spec);  // validated

void ToProto(const AccessTable& table, v1::AccessTable* out);
absl::StatusOr<AccessTable> FromProto(const v1::AccessTable& table);  // not yet validated against a bank
TreePrefix FromProto(const v1::TreePrefix& prefix);

}  // namespace membank
