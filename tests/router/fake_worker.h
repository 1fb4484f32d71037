// A worker for tests of the router: the generated service with deterministic answers, no model. One token per byte; an answer is the
// words "one two three ..." with the path in front.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "common/rpc/server.h"
#include "membank/v1/worker.grpc.pb.h"

namespace membank {

class FakeWorker final : public v1::WorkerService::Service {
 public:
  static constexpr int kChatEndToken = 256;

  std::atomic<int> generate_calls{0}, score_calls{0}, cancelled{0}, running{0}, most_running{0};
  std::atomic<int> token_delay_ms{0};
  std::atomic<int> start_delay_ms{0};
  std::atomic<int> fail_generate{0};        // a grpc::StatusCode for every call, 0 = none
  std::atomic<int> fail_after_tokens{-1};   // the stream breaks with UNAVAILABLE after so many
  std::atomic<bool> draining{false};
  std::atomic<bool> knows_chat{true};       // a chat template that is ours
  std::string tree_fingerprint = "tree";
  bool has_private_bank = false;            // stacked on the first one
  std::atomic<bool> may_read_private{true};

  v1::GenerateRequest last_request() {
    absl::MutexLock lock(&mu_);
    return last_request_;
  }

  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request, grpc::ServerWriter<v1::GenerateChunk>* writer) override {
    ++generate_calls;
    {
      absl::MutexLock lock(&mu_);
      last_request_ = *request;
    }
    if (fail_generate != 0) return grpc::Status(static_cast<grpc::StatusCode>(fail_generate.load()), "the fake worker refuses");
    const int now = ++running;
    if (now > most_running) most_running = now;
    const grpc::Status status = Answer(context, *request, writer);
    --running;
    if (context->IsCancelled()) ++cancelled;
    return status;
  }

  // Every token of a continuation costs 1 + leaf / 100.
  grpc::Status Score(grpc::ServerContext*, const v1::ScoreRequest* request, v1::ScoreReply* reply) override {
    ++score_calls;
    for (const v1::ScoreItem& item : request->items()) {
      v1::ScoreResult& result = *reply->add_results();
      for (const int id : Ids(item.continuation())) {
        result.add_tokens(id);
        result.add_logprobs(-1 - item.path().leaf() / 100.0f);
        result.set_sum(result.sum() + result.logprobs(result.logprobs_size() - 1));
      }
      result.set_context_tokens(static_cast<uint32_t>(Ids(item.context()).size()));
      *result.mutable_memory() = MemoryOf(item);
    }
    return grpc::Status::OK;
  }

  grpc::Status Tokenize(grpc::ServerContext*, const v1::TokenizeRequest* request, v1::TokenizeReply* reply) override {
    if (request->parse_special() && request->text() == "<|im_end|>") {
      reply->add_ids(kChatEndToken);
      return grpc::Status::OK;
    }
    for (const unsigned char c : request->text()) reply->add_ids(c);
    return grpc::Status::OK;
  }

  grpc::Status Detokenize(grpc::ServerContext*, const v1::DetokenizeRequest* request, v1::DetokenizeReply* reply) override {
    for (const int id : request->ids()) reply->mutable_text()->push_back(static_cast<char>(id));
    return grpc::Status::OK;
  }

  grpc::Status GetStatus(grpc::ServerContext*, const v1::GetStatusRequest*, v1::WorkerStatus* status) override {
    status->set_model("fake-model");
    if (knows_chat) status->set_chat_template("chatml");
    status->set_chat_system("Be helpful.");
    status->set_context(2048);
    status->set_bank_version("v7");
    status->set_draining(draining);
    v1::BankSpec& bank = *status->mutable_bank();
    bank.set_bank_id("fake-bank");
    bank.set_fan_out(4);
    bank.add_widths(8);
    bank.add_widths(4);
    bank.set_tree_fingerprint(tree_fingerprint);
    if (!has_private_bank) return grpc::Status::OK;
    v1::StackedBank& stacked = *status->add_stacked();
    stacked.set_bank_version("p1");
    stacked.mutable_bank()->set_bank_id("private");
    stacked.mutable_bank()->set_fan_out(2);
    stacked.mutable_bank()->add_widths(4);
    stacked.mutable_bank()->set_tree_fingerprint("private tree");
    return grpc::Status::OK;
  }

 private:
  static std::vector<int> Ids(const v1::Prompt& prompt) {
    if (prompt.has_tokens()) return {prompt.tokens().ids().begin(), prompt.tokens().ids().end()};
    std::vector<int> ids;
    for (const unsigned char c : prompt.text()) ids.push_back(c);
    return ids;
  }

  static v1::MemoryUsed Memory(const v1::BlockPath& path) {
    v1::MemoryUsed used;
    *used.mutable_path() = path;
    used.set_bank_id("fake-bank");
    used.set_bank_version("v7");
    if (path.mode() == v1::MEMORY_MODE_NONE) used.set_path_text("none");
    if (path.mode() == v1::MEMORY_MODE_GENERIC) used.set_path_text("generic");
    if (path.mode() == v1::MEMORY_MODE_FETCHED) {
      used.set_path_text(std::to_string(path.leaf() / 4) + "." + std::to_string(path.leaf() % 4));
      for (uint32_t level = 1; level <= 2; ++level) {
        v1::BlockId& block = *used.add_blocks();
        block.set_level(level);
        block.set_cluster(level == 1 ? path.leaf() / 4 : path.leaf());
      }
    }
    return used;
  }

  template <typename Message>
  v1::MemoryUsed MemoryOf(const Message& message) const {
    v1::MemoryUsed used = Memory(message.path());
    if (!has_private_bank) return used;
    if (message.path().mode() == v1::MEMORY_MODE_NONE) used.set_left_out(v1::LEFT_OUT_NOT_ASKED_FOR);
    v1::MemoryUsed& own = *used.add_stacked();
    own.set_bank_id("private");
    own.set_bank_version("p1");
    own.set_path_text("none");
    own.set_left_out(v1::LEFT_OUT_NOT_ASKED_FOR);
    for (const v1::StackedMemory& stacked : message.stacked()) {
      *own.mutable_path() = stacked.path();
      const bool fetched = stacked.path().mode() == v1::MEMORY_MODE_FETCHED;
      own.set_path_text(fetched ? std::to_string(stacked.path().leaf()) : "generic");
      own.set_left_out(may_read_private ? v1::LEFT_OUT_UNSPECIFIED : v1::LEFT_OUT_NO_RIGHTS);
      if (!may_read_private) continue;
      own.add_blocks()->set_level(1);
      own.mutable_blocks(0)->set_cluster(fetched ? stacked.path().leaf() : 2);
    }
    return used;
  }

  static void SetToken(const v1::Sampling& sampling, int id, const std::string& text, bool has_logprob, v1::GeneratedToken* token) {
    token->set_id(id);
    token->set_text(text);
    if (!sampling.has_logprobs() || !has_logprob) return;
    token->set_logprob(-0.5f);
    for (uint32_t i = 0; i < sampling.logprobs(); ++i) {
      v1::TokenAlternative& top = *token->add_top();
      top.set_id(id + static_cast<int>(i));
      top.set_text(i == 0 ? text : text + std::to_string(i));
      top.set_logprob(-0.5f - static_cast<float>(i));
    }
  }

  grpc::Status Answer(grpc::ServerContext* context, const v1::GenerateRequest& request, grpc::ServerWriter<v1::GenerateChunk>* writer) {
    static const std::vector<std::string> kWords = {" one", " two", " three", " four", " five"};
    const v1::Sampling& sampling = request.sampling();
    const std::vector<int> ids = Ids(request.prompt());
    if (ids.empty()) return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "prompt has no tokens");
    if (start_delay_ms > 0 && !Sleep(context, start_delay_ms)) return grpc::Status::CANCELLED;
    v1::GenerateChunk chunk;
    chunk.mutable_start()->set_prompt_tokens(static_cast<uint32_t>(ids.size()));
    *chunk.mutable_start()->mutable_memory() = MemoryOf(request);
    if (sampling.echo()) {
      for (size_t i = 0; i < ids.size(); ++i) SetToken(sampling, ids[i], std::string(1, static_cast<char>(ids[i])), i > 0, chunk.add_prompt());
    }
    writer->Write(chunk);
    for (uint32_t i = 0; i < sampling.max_tokens(); ++i) {
      if (static_cast<int>(i) == fail_after_tokens) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "the fake worker broke off");
      if (token_delay_ms > 0 && !Sleep(context, token_delay_ms)) return grpc::Status::CANCELLED;
      chunk.Clear();
      const std::string& word = kWords[i % kWords.size()];
      SetToken(sampling, 1000 + static_cast<int>(i), word, true, chunk.add_tokens());
      chunk.set_text(word);
      if (!writer->Write(chunk)) return grpc::Status::CANCELLED;
    }
    chunk.Clear();
    chunk.mutable_end()->set_finish_reason(v1::FINISH_REASON_LENGTH);
    chunk.mutable_end()->set_prompt_tokens(static_cast<uint32_t>(ids.size()));
    chunk.mutable_end()->set_completion_tokens(sampling.max_tokens());
    writer->Write(chunk);
    return grpc::Status::OK;
  }

  static bool Sleep(grpc::ServerContext* context, int ms) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(ms);
    while (std::chrono::steady_clock::now() < end) {
      if (context->IsCancelled()) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return true;
  }

  absl::Mutex mu_;
  v1::GenerateRequest last_request_;
};

}  // namespace membank
