#include "memory_server/quantise.h"

#include "common/bank/payload.h"
#include "common/base/buffer.h"
#include "common/base/bytes.h"
#include "common/base/crc32c.h"
#include "common/base/status_macros.h"
#include "memory_server/block_record.h"

namespace membank {

absl::StatusOr<CutDigest> QuantiseStore(const BankSpec& spec, BlockStore* from, const CutDigest& expected, BlockStore* to,
                                        const std::function<absl::Status(uint64_t bytes)>& before_write) {
  CutDigest read, written;
  RETURN_IF_ERROR(from->Scan(kBlockKeyPrefix, [&](std::string_view key, absl::Span<const uint8_t> value) -> absl::Status {
    ASSIGN_OR_RETURN(const BlockId id, ParseBlockKey(key));
    if (!spec.Contains(id)) return DataLoss("block {} is not in the bank", ToString(id));
    const absl::StatusOr<WeightsRecord> record = DecodeWeights(value, spec.BlockBytes(id.level));
    if (!record.ok()) return Annotate(record.status(), fmt::format("payload of block {}", ToString(id)));
    read.Add(id, record->version, record->crc32c);
    Buffer payload(PayloadBytes(spec, id.level, PayloadType::kI8Rows));
    RETURN_IF_ERROR(before_write(payload.size()));
    const absl::Status quantised = QuantisePayload(spec, id.level, record->payload, payload.span());
    if (!quantised.ok()) return Annotate(quantised, fmt::format("block {}", ToString(id)));
    const WeightsRecord smaller{record->version, Crc32c(payload.data(), payload.size()), payload.span()};
    written.Add(id, smaller.version, smaller.crc32c);
    const std::string header = EncodeWeightsHeader(smaller);
    const BlockStore::Write write{std::string(key), {AsBytes(header), smaller.payload}};
    return to->Apply({&write, 1});
  }));
  if (read != expected)
    return DataLoss("it holds {} blocks with digest {:08x}, its manifest says {} with {:08x}", read.blocks, read.crc32c, expected.blocks, expected.crc32c);
  return written;
}

}  // namespace membank
