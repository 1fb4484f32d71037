// One running Generate call: receives the engine's output, turns it into chunks, and writes one at a time; what comes meanwhile joins the
// next chunk. The gRPC reactor and the engine's sequence share it; either may be gone first. Thread-safe.
#pragma once

#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/text/tokenizer.h"
#include "membank/v1/worker.grpc.pb.h"
#include "model_worker/serve/engine.h"

namespace membank {

// The engine's ticket of a call, and a cancellation that may come before it is known. Thread-safe.
class CallTicket {
 public:
  explicit CallTicket(Engine* engine) : engine_(engine) {}
  void Set(uint64_t ticket);
  void Cancel();

 private:
  Engine* const engine_;
  absl::Mutex mu_;
  uint64_t ticket_ ABSL_GUARDED_BY(mu_) = 0;
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
};

// What is said of a bank that is not used.
void LeaveOut(v1::LeftOut why, v1::MemoryUsed* used);

class GenerateCall final : public GenerateSink {
 public:
  using Reactor = grpc::ServerWriteReactor<v1::GenerateChunk>;

  // `start` goes out with the first output, so that a request that fails before has sent nothing and may be tried elsewhere.
  GenerateCall(Reactor* reactor, const Tokenizer* tokenizer, v1::GenerateStart start);

  void OnLeftOut(size_t bank) override ABSL_LOCKS_EXCLUDED(mu_);
  void OnOutput(GenerateOutput output) override ABSL_LOCKS_EXCLUDED(mu_);
  void OnEnd(const absl::Status& status, const GenerateSummary& summary) override ABSL_LOCKS_EXCLUDED(mu_);
  void OnWriteDone(bool ok) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  void Proceed() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Fill(const TokenOutput& token, v1::GeneratedToken* out) const;

  const Tokenizer* const tokenizer_;

  absl::Mutex mu_;
  Reactor* reactor_ ABSL_GUARDED_BY(mu_);          // null once finished
  v1::GenerateChunk pending_ ABSL_GUARDED_BY(mu_);
  v1::GenerateChunk in_flight_ ABSL_GUARDED_BY(mu_);
  bool has_pending_ ABSL_GUARDED_BY(mu_) = false;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool broken_ ABSL_GUARDED_BY(mu_) = false;       // the client is gone
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status end_status_ ABSL_GUARDED_BY(mu_);
};

}  // namespace membank
