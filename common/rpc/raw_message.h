// Messages with one bulk `bytes` field, written and read without copying the bulk through protobuf: a slice with the small fields and
// a hand-written tag, then the payload as a borrowed slice. The bytes are exactly those of the serialised message, so that any generated
// client reads and writes them. (Apache Arrow Flight does the same: serialization_internal.cc.) Pure functions, any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "grpcpp/support/byte_buffer.h"

namespace membank {

// `small_fields` are serialised fields with numbers below `bulk_field`; `bulk` stays alive through `owner` until gRPC has sent it, on
// whatever thread that ends. An empty `bulk` leaves the field out, as protobuf does.
grpc::ByteBuffer MakeRawMessage(const std::string& small_fields, int bulk_field, absl::Span<const uint8_t> bulk,
                                std::shared_ptr<const void> owner);

// Walks a message of length-delimited and fixed32 fields: `small` gets every field but `bulk_field` (at most 64 KiB each; of a fixed32 the four
// bytes), `bulk` the pieces of the bulk field in order, as views into the received slices. Fields of other wire types are skipped, as protobuf
// does with what it does not know. INVALID_ARGUMENT when the bytes are no protobuf message; the callbacks' errors are handed through.
absl::Status ParseRawMessage(const grpc::ByteBuffer& message, uint32_t bulk_field,
                             absl::FunctionRef<absl::Status(uint32_t field, const std::string& bytes)> small,
                             absl::FunctionRef<absl::Status(absl::Span<const uint8_t> piece)> bulk);

}  // namespace membank
