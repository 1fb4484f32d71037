#include "model_worker/worker_service.h"

#include <algorithm>
#include <set>

#include "common/base/status_macros.h"
#include "common/base/version.h"
#include "common/rpc/status.h"
#include "common/rpc/wire.h"
#include "common/text/utf8.h"
#include "model_worker/generate_call.h"

namespace membank {
namespace {

constexpr int kMaxScoreItems = 1024;
constexpr uint64_t kMaxBytesPerToken = 128;  // longer tokens exist, but no text is made of them alone

absl::Time DeadlineOf(const grpc::CallbackServerContext& context) { return absl::FromChrono(context.deadline()); }

// Every broken sequence becomes U+FFFD.
std::string ReplaceInvalidUtf8(std::string_view text) {
  std::string valid;
  while (!text.empty()) {
    const Utf8Sequence next = NextUtf8(text);
    if (next.kind == Utf8Sequence::kValid) {
      valid.append(text.substr(0, next.length));
    } else {
      AppendUtf8(0xFFFD, valid);
    }
    text.remove_prefix(next.length);
  }
  return valid;
}

// A Generate call's gRPC side; it and the engine share the GenerateCall.
class GenerateReactor final : public GenerateCall::Reactor {
 public:
  explicit GenerateReactor(Engine* engine) : ticket_(std::make_shared<CallTicket>(engine)) {}
  void Attach(std::shared_ptr<GenerateCall> call) { call_ = std::move(call); }
  std::shared_ptr<CallTicket> ticket() const { return ticket_; }

  void OnWriteDone(bool ok) override { call_->OnWriteDone(ok); }
  void OnCancel() override { ticket_->Cancel(); }
  void OnDone() override { delete this; }

 private:
  std::shared_ptr<GenerateCall> call_;
  const std::shared_ptr<CallTicket> ticket_;
};

class ScoreReactor final : public grpc::ServerUnaryReactor {
 public:
  explicit ScoreReactor(Engine* engine) : ticket_(std::make_shared<CallTicket>(engine)) {}
  std::shared_ptr<CallTicket> ticket() const { return ticket_; }

  void OnCancel() override { ticket_->Cancel(); }
  void OnDone() override { delete this; }

 private:
  const std::shared_ptr<CallTicket> ticket_;
};

grpc::ServerUnaryReactor* Finished(grpc::CallbackServerContext* context, const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpc(status));
  return reactor;
}

SamplingParameters ToParameters(const v1::Sampling& sampling) {
  SamplingParameters parameters;
  parameters.max_tokens = sampling.max_tokens();
  parameters.temperature = sampling.temperature();
  parameters.top_p = sampling.top_p() == 0 ? 1 : sampling.top_p();
  parameters.top_k = sampling.top_k();
  parameters.seed = sampling.seed();
  parameters.stop.assign(sampling.stop().begin(), sampling.stop().end());
  parameters.stop_tokens.assign(sampling.stop_tokens().begin(), sampling.stop_tokens().end());
  parameters.ignore_eos = sampling.ignore_eos();
  if (sampling.has_logprobs()) parameters.logprobs = sampling.logprobs();
  parameters.echo = sampling.echo();
  return parameters;
}

template <typename Message>
absl::StatusOr<MemoryChoice> ToChoice(const Message& message) {
  MemoryChoice memory;
  ASSIGN_OR_RETURN(memory.path, FromProto(message.path()));
  memory.levels.assign(message.levels().begin(), message.levels().end());
  return memory;
}

// `out`: the status itself for the first bank, a StackedBank for the others.
template <typename Message>
void FillBankStatus(const BankSpec& bank, const std::string& version, const ResidentBank& resident, Message* out) {
  ToProto(bank, out->mutable_bank());
  out->set_bank_hash(bank.Hash());
  out->set_bank_version(version);
  for (BlockId id : resident.blocks) ToProto(id, out->add_resident_blocks());
  out->set_resident_bytes(resident.bytes);
}

}  // namespace

// --- Checks and conversions ----------------------------------------------------------------------------------------------

absl::StatusOr<std::vector<int32_t>> WorkerService::Encode(const std::string& text, bool parse_special) const {
  const uint64_t limit = uint64_t{engine_->facts().context} * kMaxBytesPerToken;
  if (text.size() > limit) {
    return InvalidArgument("the text has {} bytes; a context of {} tokens holds at most {}: shorten it", text.size(),
                           engine_->facts().context, limit);
  }
  return tokenizer_->Encode(text, parse_special);
}

absl::StatusOr<std::vector<int32_t>> WorkerService::Tokens(const v1::Prompt& prompt) const {
  if (prompt.has_tokens()) return std::vector<int32_t>(prompt.tokens().ids().begin(), prompt.tokens().ids().end());
  return Encode(prompt.text(), prompt.parse_special());
}

template <typename Message>
absl::StatusOr<MemoryChoice> WorkerService::ToMemory(const Message& message, const std::vector<std::string>& versions) const {
  ASSIGN_OR_RETURN(MemoryChoice memory, ToChoice(message));
  if (versions.size() > 1) memory.stacked.resize(versions.size() - 1);
  std::set<size_t> named;
  for (const v1::StackedMemory& stacked : message.stacked()) {
    ASSIGN_OR_RETURN(const size_t index, FindStacked(stacked.bank()));
    if (!named.insert(index).second) return InvalidArgument("stacked names bank {} twice; one entry per bank is allowed", stacked.bank());
    ASSIGN_OR_RETURN(memory.stacked[index], ToChoice(stacked));
  }
  for (size_t i = 0; i < versions.size(); ++i) (i == 0 ? memory : memory.stacked[i - 1]).bank_version = versions[i];
  return memory;
}

// Its number among the stacked banks.
absl::StatusOr<size_t> WorkerService::FindStacked(const std::string& bank) const {
  const std::vector<BankSpec>& banks = engine_->facts().banks;
  std::vector<std::string> names;
  for (size_t i = 1; i < banks.size(); ++i) {
    if (banks[i].bank_id == bank) return i - 1;
    names.push_back(banks[i].bank_id);
  }
  if (names.empty()) return InvalidArgument("stacked names bank {}; no bank is stacked on the first one of this worker", bank);
  return InvalidArgument("stacked names bank {}; the banks stacked here are: {}", bank, fmt::join(names, ", "));
}

absl::StatusOr<GenerateTask> WorkerService::ToTask(const v1::GenerateRequest& request, absl::Time deadline) const {
  GenerateTask task;
  ASSIGN_OR_RETURN(task.memory, ToMemory(request, engine_->bank_versions()));
  ASSIGN_OR_RETURN(task.prompt, Tokens(request.prompt()));
  task.sampling = ToParameters(request.sampling());
  task.deadline = deadline;
  return task;
}

absl::StatusOr<ScoreTask> WorkerService::ToTask(const v1::ScoreItem& item, const std::vector<std::string>& versions) const {
  ScoreTask task;
  ASSIGN_OR_RETURN(task.memory, ToMemory(item, versions));
  ASSIGN_OR_RETURN(task.tokens, Tokens(item.context()));
  ASSIGN_OR_RETURN(std::vector<int32_t> continuation, Tokens(item.continuation()));
  if (continuation.empty()) return InvalidArgument("the continuation has no tokens; at least one is needed");
  const bool both_text = item.context().has_text() && item.continuation().has_text() &&
                         item.context().parse_special() == item.continuation().parse_special();
  if (both_text && !task.tokens.empty()) {
    // A word that begins in the context may end in the continuation: the joined text's tokens are the true ones.
    ASSIGN_OR_RETURN(std::vector<int32_t> joined, Encode(item.context().text() + item.continuation().text(), item.context().parse_special()));
    if (joined.size() > task.tokens.size()) continuation.assign(joined.begin() + task.tokens.size(), joined.end());
  }
  if (task.tokens.empty()) {
    const int32_t first = tokenizer_->bos_id() >= 0 ? tokenizer_->bos_id() : tokenizer_->eos_id();
    if (first < 0) return InvalidArgument("the context is empty and the tokenizer has no begin- or end-of-text token; give a context");
    task.tokens.push_back(first);
  }
  task.context = task.tokens.size();
  task.tokens.insert(task.tokens.end(), continuation.begin(), continuation.end());
  return task;
}

absl::Status WorkerService::FillBank(size_t bank, const MemoryChoice& memory, v1::MemoryUsed* used) const {
  ASSIGN_OR_RETURN(const std::vector<BlockId> blocks, engine_->BlocksOf(bank, memory));
  ToProto(memory.path, used->mutable_path());
  const std::vector<BankSpec>& banks = engine_->facts().banks;
  used->set_path_text(ToString(memory.path, bank < banks.size() ? banks[bank].fan_out : 1));
  if (bank < banks.size()) used->set_bank_id(banks[bank].bank_id);
  used->set_bank_version(memory.bank_version.value_or(""));
  for (BlockId id : blocks) ToProto(id, used->add_blocks());
  if (banks.size() > 1 && memory.path.mode == MemoryMode::kNone) LeaveOut(v1::LEFT_OUT_NOT_ASKED_FOR, used);
  return absl::OkStatus();
}

absl::Status WorkerService::FillMemory(const MemoryChoice& memory, v1::MemoryUsed* used) const {
  RETURN_IF_ERROR(FillBank(0, memory, used));
  for (size_t i = 0; i < memory.stacked.size(); ++i) RETURN_IF_ERROR(FillBank(i + 1, memory.stacked[i], used->add_stacked()));
  return absl::OkStatus();
}

// --- Calls ---------------------------------------------------------------------------------------------------------------

grpc::ServerWriteReactor<v1::GenerateChunk>* WorkerService::Generate(grpc::CallbackServerContext* context,
                                                                     const v1::GenerateRequest* request) {
  auto* reactor = new GenerateReactor(engine_);
  const std::shared_ptr<CallTicket> ticket = reactor->ticket();
  auto submit = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(GenerateTask task, ToTask(*request, DeadlineOf(*context)));
    v1::GenerateStart start;
    start.set_prompt_tokens(static_cast<uint32_t>(task.prompt.size()));
    RETURN_IF_ERROR(FillMemory(task.memory, start.mutable_memory()));
    auto call = std::make_shared<GenerateCall>(reactor, tokenizer_, std::move(start));
    reactor->Attach(call);
    ASSIGN_OR_RETURN(const uint64_t number, engine_->Generate(std::move(task), std::move(call)));
    ticket->Set(number);  // the reactor may be gone already
    return absl::OkStatus();
  };
  if (absl::Status status = submit(); !status.ok()) reactor->Finish(ToGrpc(status));
  return reactor;
}

grpc::ServerUnaryReactor* WorkerService::Score(grpc::CallbackServerContext* context, const v1::ScoreRequest* request, v1::ScoreReply* reply) {
  auto* reactor = new ScoreReactor(engine_);
  const std::shared_ptr<CallTicket> ticket = reactor->ticket();
  auto submit = [&]() -> absl::Status {
    if (request->items_size() > kMaxScoreItems) {
      return InvalidArgument("{} items to score; at most {} are allowed in one call", request->items_size(), kMaxScoreItems);
    }
    const std::vector<std::string> versions = engine_->bank_versions();  // one for all items, whenever it is switched
    std::vector<ScoreTask> tasks;
    for (const v1::ScoreItem& item : request->items()) {
      absl::StatusOr<ScoreTask> task = ToTask(item, versions);
      v1::ScoreResult* result = reply->add_results();
      absl::Status status = task.ok() ? FillMemory(task->memory, result->mutable_memory()) : task.status();
      if (!status.ok()) return Annotate(status, fmt::format("item {}", tasks.size()));
      result->set_context_tokens(static_cast<uint32_t>(task->context));
      result->mutable_tokens()->Add(task->tokens.begin() + static_cast<int64_t>(task->context), task->tokens.end());
      tasks.push_back(*std::move(task));
    }
    auto done = [reactor, reply](absl::StatusOr<std::vector<ScoreOutcome>> outcomes) {
      if (!outcomes.ok()) return reactor->Finish(ToGrpc(outcomes.status()));
      for (size_t i = 0; i < outcomes->size(); ++i) {
        const ScoreOutcome& outcome = (*outcomes)[i];
        v1::ScoreResult* result = reply->mutable_results(static_cast<int>(i));
        result->mutable_logprobs()->Add(outcome.logprobs.begin(), outcome.logprobs.end());
        result->set_sum(outcome.sum);
        result->set_is_greedy(outcome.is_greedy);
        for (size_t bank : outcome.left_out) {
          LeaveOut(v1::LEFT_OUT_NO_RIGHTS, result->mutable_memory()->mutable_stacked(static_cast<int>(bank) - 1));
        }
      }
      reactor->Finish(grpc::Status::OK);
    };
    ASSIGN_OR_RETURN(const uint64_t number, engine_->Score(std::move(tasks), DeadlineOf(*context), std::move(done)));
    ticket->Set(number);  // the reactor may be gone already
    return absl::OkStatus();
  };
  if (absl::Status status = submit(); !status.ok()) reactor->Finish(ToGrpc(status));
  return reactor;
}

grpc::ServerUnaryReactor* WorkerService::Tokenize(grpc::CallbackServerContext* context, const v1::TokenizeRequest* request,
                                                  v1::TokenizeReply* reply) {
  absl::StatusOr<std::vector<int32_t>> ids = tokenizer_->Encode(request->text(), request->parse_special());
  if (ids.ok()) reply->mutable_ids()->Add(ids->begin(), ids->end());
  return Finished(context, ids.status());
}

grpc::ServerUnaryReactor* WorkerService::Detokenize(grpc::CallbackServerContext* context, const v1::DetokenizeRequest* request,
                                                    v1::DetokenizeReply* reply) {
  const std::vector<int32_t> ids(request->ids().begin(), request->ids().end());
  absl::StatusOr<std::string> text = tokenizer_->Decode(ids, !request->keep_special());
  if (text.ok()) reply->set_text(ReplaceInvalidUtf8(*text));
  return Finished(context, text.status());
}

grpc::ServerUnaryReactor* WorkerService::GetStatus(grpc::CallbackServerContext* context, const v1::GetStatusRequest* request,
                                                   v1::WorkerStatus* reply) {
  const EngineFacts& facts = engine_->facts();
  const EngineOptions& options = engine_->options();
  const EngineStatus status = engine_->GetStatus();
  reply->set_model(model_name_);
  reply->set_anchor_fingerprint(facts.anchor_fingerprint);
  const std::vector<std::string> versions = engine_->bank_versions();
  for (size_t i = 0; i < facts.banks.size(); ++i) {
    if (i == 0) {
      FillBankStatus(facts.banks[i], versions[i], status.resident[i], reply);
    } else {
      FillBankStatus(facts.banks[i], versions[i], status.resident[i], reply->add_stacked());
    }
  }
  if (chat_.has_value()) {
    reply->set_chat_template(chat_->name());
    reply->set_chat_system(chat_->system());
  }
  reply->set_context(facts.context);
  reply->set_vocab(static_cast<uint32_t>(facts.vocab));
  reply->set_queued(status.queued);
  reply->set_queued_tokens(status.queued_tokens);
  reply->set_max_queued_tokens(options.max_queued_tokens);
  reply->set_running(status.running);
  reply->set_max_running(options.max_running);
  reply->set_kv_tokens(status.kv_tokens);
  reply->set_max_kv_tokens(options.kv_cache_tokens);
  reply->set_draining(status.draining);
  reply->set_software(VersionString());
  reply->set_generated_tokens(status.generated_tokens);
  reply->set_prompt_tokens(status.prompt_tokens);
  return Finished(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* WorkerService::UseBankVersion(grpc::CallbackServerContext* context, const v1::UseBankVersionRequest* request,
                                                        v1::UseBankVersionReply* reply) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  version_thread_.Schedule([this, reactor, request, reply] {
    absl::StatusOr<std::string> previous = engine_->UseBankVersion(request->bank(), request->bank_version(), request->check_only());
    if (previous.ok()) reply->set_previous_version(*std::move(previous));
    reactor->Finish(ToGrpc(previous.status()));
  });
  return reactor;
}

grpc::ServerUnaryReactor* WorkerService::Drain(grpc::CallbackServerContext* context, const v1::DrainRequest* request, v1::DrainReply* reply) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  drain_thread_.Schedule([this, reactor, reply, deadline = DeadlineOf(*context)] {
    // Answers a little before the deadline, so that the client still gets the number.
    reply->set_remaining(engine_->Drain(deadline - absl::Milliseconds(50)));
    reactor->Finish(grpc::Status::OK);
  });
  return reactor;
}

}  // namespace membank
