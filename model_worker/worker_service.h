// The WorkerService of proto/membank/v1/worker.proto over an engine: check, tokenize, submit, map errors, fill replies. gRPC's callback API: no
// thread waits for a running answer; output is written as fast as the client reads and gathers meanwhile (bounded by max_tokens).
// Owned by main or a test; engine and tokenizer must outlive it, and it the RpcServer. Thread-safe.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/thread_pool.h"
#include "common/text/chat_template.h"
#include "common/text/tokenizer.h"
#include "membank/v1/worker.grpc.pb.h"
#include "model_worker/serve/engine.h"

namespace membank {

class WorkerService final : public v1::WorkerService::CallbackService {
 public:
  // `chat`: the anchor's; nothing where it is none of ours.
  WorkerService(Engine* engine, const Tokenizer* tokenizer, std::string model_name, std::optional<ChatTemplate> chat = std::nullopt)
      : engine_(engine), tokenizer_(tokenizer), model_name_(std::move(model_name)), chat_(std::move(chat)), drain_thread_(1), version_thread_(1) {}

  grpc::ServerWriteReactor<v1::GenerateChunk>* Generate(grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override;
  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext* context, const v1::ScoreRequest* request, v1::ScoreReply* reply) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context, const v1::TokenizeRequest* request,
                                     v1::TokenizeReply* reply) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context, const v1::DetokenizeRequest* request,
                                       v1::DetokenizeReply* reply) override;
  grpc::ServerUnaryReactor* GetStatus(grpc::CallbackServerContext* context, const v1::GetStatusRequest* request,
                                      v1::WorkerStatus* reply) override;
  grpc::ServerUnaryReactor* UseBankVersion(grpc::CallbackServerContext* context, const v1::UseBankVersionRequest* request,
                                           v1::UseBankVersionReply* reply) override;
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context, const v1::DrainRequest* request, v1::DrainReply* reply) override;

 private:
  absl::StatusOr<std::vector<int32_t>> Encode(const std::string& text, bool parse_special) const;
  absl::StatusOr<std::vector<int32_t>> Tokens(const v1::Prompt& prompt) const;
  absl::StatusOr<GenerateTask> ToTask(const v1::GenerateRequest& request, absl::Time deadline) const;
  absl::StatusOr<ScoreTask> ToTask(const v1::ScoreItem& item, const std::vector<std::string>& versions) const;
  // Of the request or item `message`, with these versions of the banks: what is said is what is used, whenever they are switched.
  template <typename Message>
  absl::StatusOr<MemoryChoice> ToMemory(const Message& message, const std::vector<std::string>& versions) const;
  absl::StatusOr<size_t> FindStacked(const std::string& bank) const;
  absl::Status FillMemory(const MemoryChoice& memory, v1::MemoryUsed* used) const;
  absl::Status FillBank(size_t bank, const MemoryChoice& memory, v1::MemoryUsed* used) const;

  Engine* const engine_;
  const Tokenizer* const tokenizer_;
  const std::string model_name_;
  const std::optional<ChatTemplate> chat_;
  ThreadPool drain_thread_;    // Drain waits
  ThreadPool version_thread_;  // UseBankVersion asks the memory servers
};

}  // namespace membank
