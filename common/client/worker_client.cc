#include "common/client/worker_client.h"

#include "common/base/status_macros.h"
#include "common/rpc/channel.h"
#include "common/rpc/status.h"
#include "common/rpc/wire.h"
#include "grpcpp/client_context.h"
#include "membank/v1/worker.grpc.pb.h"

namespace membank {

struct WorkerClient::Connection {
  Options options;
  std::unique_ptr<v1::WorkerService::Stub> stub;

  // A unary call within the timeout.
  template <typename Method, typename Request, typename Reply>
  absl::Status Call(Method method, const Request& request, Reply* reply, std::chrono::milliseconds timeout) const {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + timeout);
    return FromGrpc((stub.get()->*method)(&context, request, reply), options.address);
  }
};

namespace {

void Fill(const WorkerClient::Prompt& prompt, v1::Prompt* out) {
  if (prompt.tokens.empty()) {
    out->set_text(prompt.text);
  } else {
    out->mutable_tokens()->mutable_ids()->Add(prompt.tokens.begin(), prompt.tokens.end());
  }
  out->set_parse_special(prompt.parse_special);
}

template <typename Message>
void Fill(const WorkerClient::Memory& memory, Message* out) {
  ToProto(memory.path, out->mutable_path());
  for (uint32_t level : memory.levels) out->add_levels(level);
}

void Fill(const WorkerClient::Sampling& sampling, v1::Sampling* out) {
  out->set_max_tokens(sampling.max_tokens);
  out->set_temperature(sampling.temperature);
  out->set_top_p(sampling.top_p);
  out->set_top_k(sampling.top_k);
  out->set_seed(sampling.seed);
  for (const std::string& stop : sampling.stop) out->add_stop(stop);
  for (int32_t id : sampling.stop_tokens) out->add_stop_tokens(id);
  out->set_ignore_eos(sampling.ignore_eos);
  out->set_echo(sampling.echo);
  if (sampling.logprobs.has_value()) out->set_logprobs(*sampling.logprobs);
}

std::string ReasonName(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP: return "stop";
    case v1::FINISH_REASON_LENGTH: return "length";
    case v1::FINISH_REASON_CANCELLED: return "cancelled";
    default: return "";
  }
}

std::vector<WorkerClient::Token> ToTokens(const google::protobuf::RepeatedPtrField<v1::GeneratedToken>& tokens) {
  std::vector<WorkerClient::Token> result;
  for (const v1::GeneratedToken& token : tokens) {
    result.push_back({token.id(), token.text(), token.has_logprob() ? std::optional<float>(token.logprob()) : std::nullopt});
  }
  return result;
}

void Take(const v1::GenerateChunk& chunk, WorkerClient::Answer* answer) {
  if (chunk.has_start()) {
    const v1::MemoryUsed& memory = chunk.start().memory();
    answer->path = memory.path_text();
    answer->bank_id = memory.bank_id();
    answer->bank_version = memory.bank_version();
    for (const v1::BlockId& id : memory.blocks()) answer->blocks.push_back(FromProto(id));
  }
  if (chunk.has_end()) {
    answer->finish_reason = ReasonName(chunk.end().finish_reason());
    answer->prompt_tokens = chunk.end().prompt_tokens();
    answer->completion_tokens = chunk.end().completion_tokens();
    answer->first_token_ms = chunk.end().first_token_ms();
    answer->total_ms = chunk.end().total_ms();
  }
}

}  // namespace

WorkerClient::WorkerClient(std::unique_ptr<Connection> connection) : connection_(std::move(connection)) {}
WorkerClient::~WorkerClient() = default;

absl::StatusOr<std::unique_ptr<WorkerClient>> WorkerClient::Create(const Options& options) {
  ChannelOptions channel;
  channel.tls = options.tls;
  ASSIGN_OR_RETURN(const auto channels, MakeChannels(options.address, channel));
  auto connection = std::make_unique<Connection>();
  connection->options = options;
  connection->stub = v1::WorkerService::NewStub(channels[0]);
  return std::unique_ptr<WorkerClient>(new WorkerClient(std::move(connection)));
}

absl::StatusOr<WorkerClient::Answer> WorkerClient::Generate(const Prompt& prompt, const Memory& memory, const Sampling& sampling,
                                                            const std::function<bool(const Part&)>& on_part) {
  v1::GenerateRequest request;
  Fill(prompt, request.mutable_prompt());
  Fill(memory, &request);
  Fill(sampling, request.mutable_sampling());
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + connection_->options.timeout);
  const auto reader = connection_->stub->Generate(&context, request);
  Answer answer;
  v1::GenerateChunk chunk;
  while (reader->Read(&chunk)) {
    Take(chunk, &answer);
    if (!on_part({chunk.text(), ToTokens(chunk.prompt()), ToTokens(chunk.tokens())})) context.TryCancel();
  }
  RETURN_IF_ERROR(FromGrpc(reader->Finish(), connection_->options.address));
  return answer;
}

absl::StatusOr<std::vector<WorkerClient::Score>> WorkerClient::ScoreAll(const std::vector<ScoreItem>& items) {
  v1::ScoreRequest request;
  for (const ScoreItem& item : items) {
    v1::ScoreItem* out = request.add_items();
    Fill(item.context, out->mutable_context());
    Fill(item.continuation, out->mutable_continuation());
    Fill(item.memory, out);
  }
  v1::ScoreReply reply;
  RETURN_IF_ERROR(connection_->Call(&v1::WorkerService::Stub::Score, request, &reply, connection_->options.timeout));
  std::vector<Score> scores;
  for (const v1::ScoreResult& result : reply.results()) {
    scores.push_back({{result.tokens().begin(), result.tokens().end()}, {result.logprobs().begin(), result.logprobs().end()},
                      result.sum(), result.is_greedy(), result.context_tokens()});
  }
  return scores;
}

absl::StatusOr<std::vector<int32_t>> WorkerClient::Tokenize(const std::string& text, bool parse_special) {
  v1::TokenizeRequest request;
  request.set_text(text);
  request.set_parse_special(parse_special);
  v1::TokenizeReply reply;
  RETURN_IF_ERROR(connection_->Call(&v1::WorkerService::Stub::Tokenize, request, &reply, connection_->options.timeout));
  return std::vector<int32_t>(reply.ids().begin(), reply.ids().end());
}

absl::StatusOr<std::string> WorkerClient::Detokenize(const std::vector<int32_t>& ids, bool keep_special) {
  v1::DetokenizeRequest request;
  request.mutable_ids()->Add(ids.begin(), ids.end());
  request.set_keep_special(keep_special);
  v1::DetokenizeReply reply;
  RETURN_IF_ERROR(connection_->Call(&v1::WorkerService::Stub::Detokenize, request, &reply, connection_->options.timeout));
  return reply.text();
}

absl::StatusOr<WorkerClient::Status> WorkerClient::GetStatus() {
  v1::WorkerStatus reply;
  RETURN_IF_ERROR(connection_->Call(&v1::WorkerService::Stub::GetStatus, v1::GetStatusRequest(), &reply, connection_->options.timeout));
  Status status;
  status.model = reply.model();
  status.anchor_fingerprint = reply.anchor_fingerprint();
  status.bank_id = reply.bank().bank_id();
  status.bank_version = reply.bank_version();
  if (reply.has_bank()) status.bank_versions[status.bank_id] = status.bank_version;
  for (const v1::StackedBank& stacked : reply.stacked()) status.bank_versions[stacked.bank().bank_id()] = stacked.bank_version();
  status.context = reply.context();
  status.queued = reply.queued();
  status.running = reply.running();
  status.kv_tokens = reply.kv_tokens();
  status.generated_tokens = reply.generated_tokens();
  status.draining = reply.draining();
  return status;
}

absl::StatusOr<std::string> WorkerClient::UseBankVersion(const std::string& bank, const std::string& bank_version, bool check_only) {
  v1::UseBankVersionRequest request;
  request.set_bank(bank);
  request.set_bank_version(bank_version);
  request.set_check_only(check_only);
  v1::UseBankVersionReply reply;
  RETURN_IF_ERROR(connection_->Call(&v1::WorkerService::Stub::UseBankVersion, request, &reply, connection_->options.timeout));
  return reply.previous_version();
}

absl::StatusOr<uint32_t> WorkerClient::Drain(std::chrono::milliseconds timeout) {
  v1::DrainReply reply;
  RETURN_IF_ERROR(connection_->Call(&v1::WorkerService::Stub::Drain, v1::DrainRequest(), &reply, timeout));
  return reply.remaining();
}

}  // namespace membank
