#include "common/rpc/status.h"

#include "common/base/status_macros.h"
#include "membank/v1/types.pb.h"

namespace membank {
namespace {

constexpr char kWrongSlotUrl[] = "type.googleapis.com/membank.v1.WrongSlot";

struct Row {
  absl::StatusCode inside;
  grpc::StatusCode outside;
  int http;
};

constexpr Row kTable[] = {
    {absl::StatusCode::kOk, grpc::StatusCode::OK, 200},
    {absl::StatusCode::kCancelled, grpc::StatusCode::CANCELLED, 499},
    {absl::StatusCode::kUnknown, grpc::StatusCode::UNKNOWN, 500},
    {absl::StatusCode::kInvalidArgument, grpc::StatusCode::INVALID_ARGUMENT, 400},
    {absl::StatusCode::kDeadlineExceeded, grpc::StatusCode::DEADLINE_EXCEEDED, 504},
    {absl::StatusCode::kNotFound, grpc::StatusCode::NOT_FOUND, 404},
    {absl::StatusCode::kAlreadyExists, grpc::StatusCode::ALREADY_EXISTS, 409},
    {absl::StatusCode::kPermissionDenied, grpc::StatusCode::PERMISSION_DENIED, 403},
    {absl::StatusCode::kResourceExhausted, grpc::StatusCode::RESOURCE_EXHAUSTED, 429},
    {absl::StatusCode::kFailedPrecondition, grpc::StatusCode::FAILED_PRECONDITION, 412},
    {absl::StatusCode::kAborted, grpc::StatusCode::ABORTED, 409},
    {absl::StatusCode::kOutOfRange, grpc::StatusCode::OUT_OF_RANGE, 400},
    {absl::StatusCode::kUnimplemented, grpc::StatusCode::UNIMPLEMENTED, 501},
    {absl::StatusCode::kInternal, grpc::StatusCode::INTERNAL, 500},
    {absl::StatusCode::kUnavailable, grpc::StatusCode::UNAVAILABLE, 503},
    {absl::StatusCode::kDataLoss, grpc::StatusCode::DATA_LOSS, 500},
    {absl::StatusCode::kUnauthenticated, grpc::StatusCode::UNAUTHENTICATED, 401},
};

const Row& RowOf(absl::StatusCode code) {
  for (const Row& row : kTable) {
    if (row.inside == code) return row;
  }
  return kTable[2];
}

std::string MessageOf(const absl::Status& status) { return std::string(status.message().data(), status.message().size()); }

}  // namespace

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const Row& row = RowOf(status.code());
  v1::ErrorDetails details;
  status.ForEachPayload([&](auto url, const absl::Cord& value) {
    auto* any = details.add_details();
    any->set_type_url(std::string(url.data(), url.size()));
    any->set_value(std::string(value));
  });
  if (details.details().empty()) return grpc::Status(row.outside, MessageOf(status));
  details.set_code(row.outside);
  details.set_message(MessageOf(status));
  return grpc::Status(row.outside, MessageOf(status), details.SerializeAsString());
}

absl::Status FromGrpc(const grpc::Status& status, const std::string& peer) {
  if (status.ok()) return absl::OkStatus();
  absl::StatusCode code = absl::StatusCode::kUnknown;
  for (const Row& row : kTable) {
    if (row.outside == status.error_code()) code = row.inside;
  }
  const std::string message = status.error_message().empty() ? "(no message)" : status.error_message();
  absl::Status result(code, peer.empty() ? message : fmt::format("{}: {}", peer, message));
  v1::ErrorDetails details;
  if (!status.error_details().empty() && details.ParseFromString(status.error_details())) {
    for (const auto& any : details.details()) result.SetPayload(any.type_url(), absl::Cord(any.value()));
  }
  return result;
}

int HttpStatus(absl::StatusCode code) { return RowOf(code).http; }

void AddWrongSlot(const std::string& server_id, uint64_t slot_map_epoch, BlockId id, absl::Status* status) {
  v1::WrongSlot detail;
  detail.set_server_id(server_id);
  detail.set_slot_map_epoch(slot_map_epoch);
  detail.mutable_block()->set_level(id.level);
  detail.mutable_block()->set_cluster(id.cluster);
  status->SetPayload(kWrongSlotUrl, absl::Cord(detail.SerializeAsString()));
}

std::optional<uint64_t> WrongSlotEpoch(const absl::Status& status) {
  const auto payload = status.GetPayload(kWrongSlotUrl);
  v1::WrongSlot detail;
  if (!payload || !detail.ParseFromString(std::string(*payload))) return std::nullopt;
  return detail.slot_map_epoch();
}

}  // namespace membank
