#include "common/rpc/raw_message.h"

#include <vector>

#include "common/base/status_macros.h"
#include "grpcpp/support/slice.h"

namespace membank {
namespace {

constexpr uint64_t kMaxSmallField = 64 << 10;
constexpr uint32_t kVarint = 0, kFixed64 = 1, kLengthDelimited = 2, kFixed32 = 5;

void AppendVarint(uint64_t value, std::string* out) {
  while (value >= 0x80) {
    out->push_back(static_cast<char>(value | 0x80));
    value >>= 7;
  }
  out->push_back(static_cast<char>(value));
}

// Reads across the slices of a ByteBuffer.
class Cursor {
 public:
  explicit Cursor(const std::vector<grpc::Slice>& slices) : slices_(slices) { SkipEmpty(); }

  bool AtEnd() const { return slice_ == slices_.size(); }

  bool ReadVarint(uint64_t* value) {
    *value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (AtEnd()) return false;
      const uint8_t byte = *Here();
      Advance(1);
      *value |= uint64_t{byte & 0x7fu} << shift;
      if (byte < 0x80) return true;
    }
    return false;
  }

  // Hands out the next `size` bytes piece by piece; false when the message ends before.
  template <typename Sink>
  absl::Status Read(uint64_t size, Sink sink) {
    while (size > 0) {
      if (AtEnd()) return InvalidArgument("the message ends {} bytes before the end of its field", size);
      const uint64_t piece = std::min<uint64_t>(size, slices_[slice_].size() - offset_);
      RETURN_IF_ERROR(sink(absl::MakeConstSpan(Here(), piece)));
      Advance(piece);
      size -= piece;
    }
    return absl::OkStatus();
  }

 private:
  const uint8_t* Here() const { return slices_[slice_].begin() + offset_; }
  void Advance(uint64_t bytes) {
    offset_ += bytes;
    SkipEmpty();
  }
  void SkipEmpty() {
    while (slice_ < slices_.size() && offset_ == slices_[slice_].size()) {
      ++slice_;
      offset_ = 0;
    }
  }

  const std::vector<grpc::Slice>& slices_;
  size_t slice_ = 0;
  uint64_t offset_ = 0;
};

absl::Status Skip(Cursor& cursor, uint64_t bytes) {
  return cursor.Read(bytes, [](absl::Span<const uint8_t>) { return absl::OkStatus(); });
}

}  // namespace

grpc::ByteBuffer MakeRawMessage(const std::string& small_fields, int bulk_field, absl::Span<const uint8_t> bulk,
                                std::shared_ptr<const void> owner) {
  std::string head = small_fields;
  if (!bulk.empty()) {
    AppendVarint(static_cast<uint64_t>(bulk_field) << 3 | kLengthDelimited, &head);
    AppendVarint(bulk.size(), &head);
  }
  grpc::Slice slices[2] = {grpc::Slice(head)};
  if (bulk.empty()) return grpc::ByteBuffer(slices, 1);
  auto* held = new std::shared_ptr<const void>(std::move(owner));
  slices[1] = grpc::Slice(const_cast<uint8_t*>(bulk.data()), bulk.size(),
                          [](void* p) { delete static_cast<std::shared_ptr<const void>*>(p); }, held);
  return grpc::ByteBuffer(slices, 2);
}

absl::Status ParseRawMessage(const grpc::ByteBuffer& message, uint32_t bulk_field,
                             absl::FunctionRef<absl::Status(uint32_t field, const std::string& bytes)> small,
                             absl::FunctionRef<absl::Status(absl::Span<const uint8_t> piece)> bulk) {
  std::vector<grpc::Slice> slices;
  if (!message.Dump(&slices).ok()) return InvalidArgument("the message could not be read");
  Cursor cursor(slices);
  while (!cursor.AtEnd()) {
    uint64_t tag = 0, size = 0;
    if (!cursor.ReadVarint(&tag) || tag >> 3 == 0 || tag >> 3 > 0x1fffffff) return InvalidArgument("the message has a broken field tag");
    const uint32_t field = static_cast<uint32_t>(tag >> 3);
    switch (tag & 7) {
      case kVarint:
        if (!cursor.ReadVarint(&size)) return InvalidArgument("field {} of the message is cut off", field);
        continue;
      case kFixed64:
        RETURN_IF_ERROR(Skip(cursor, 8));
        continue;
      case kFixed32:
        size = 4;
        break;
      case kLengthDelimited:
        if (!cursor.ReadVarint(&size)) return InvalidArgument("field {} of the message is cut off", field);
        break;
      default:
        return InvalidArgument("field {} of the message has wire type {}", field, tag & 7);
    }
    if (field == bulk_field && (tag & 7) == kLengthDelimited) {
      RETURN_IF_ERROR(cursor.Read(size, bulk));
      continue;
    }
    if (size > kMaxSmallField) return InvalidArgument("field {} of the message has {} bytes; at most {} are allowed", field, size, kMaxSmallField);
    std::string bytes;
    RETURN_IF_ERROR(cursor.Read(size, [&](absl::Span<const uint8_t> piece) {
      bytes.append(reinterpret_cast<const char*>(piece.data()), piece.size());
      return absl::OkStatus();
    }));
    RETURN_IF_ERROR(small(field, bytes));
  }
  return absl::OkStatus();
}

}  // namespace membank
