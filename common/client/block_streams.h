// One FetchBlocks or PushGradients call over one channel, on raw slices: fetched bytes go straight from the received slices into their
// destination, pushed bytes are borrowed from the caller. Blocks until the call is over; `wait`: for the connection, too. Any thread.
#pragma once

#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/client/memory_client.h"
#include "grpcpp/channel.h"
#include "membank/v1/memory.pb.h"

namespace membank {

// What of a fetch is left to do.
struct FetchTask {
  BlockFetch* block;
  uint64_t int8_bytes = 0;  // of an int8 payload; 0: the caller reads none
  bool done = false;     // header and whole payload arrived and the checksum held
  bool corrupt = false;  // arrived whole, but with another checksum; stays not done
};

// Fetches the tasks that are not done. OK means that the stream ended well: all are done, or corrupt. After an error some may be done.
absl::Status RunFetchStream(grpc::Channel& channel, const v1::FetchBlocksRequest& common, absl::Span<FetchTask* const> tasks,
                            absl::Time deadline, bool wait);

// Pushes `header` and the gradients. The gradients' bytes are not used any more when it returns, whatever the outcome.
absl::StatusOr<v1::PushAck> RunPushStream(grpc::Channel& channel, const v1::PushHeader& header,
                                          absl::Span<const BlockGradient* const> gradients, absl::Time deadline, bool wait);

}  // namespace membank
