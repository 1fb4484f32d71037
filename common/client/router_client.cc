#include "common/client/router_client.h"

#include <thread>

#include "common/base/status_macros.h"
#include "common/rpc/channel.h"
#include "common/rpc/status.h"
#include "common/rpc/wire.h"
#include "membank/v1/router.grpc.pb.h"

namespace membank {
namespace {

constexpr std::chrono::minutes kCallTimeout{10};
constexpr int kTextsPerResolve = 256;

void SetMemory(const MemoryChoice& memory, v1::MemoryOptions* out) {
  out->set_mode(ToProto(memory.mode));
  if (!memory.path.empty()) {
    out->set_path(memory.path);
  } else if (!memory.retrieve_on.empty()) {
    out->set_retrieve_on(memory.retrieve_on);
  }
  out->mutable_banks()->Assign(memory.banks.begin(), memory.banks.end());
  out->mutable_paths()->insert(memory.paths.begin(), memory.paths.end());
}

MemoryReport ReportOf(const v1::MemoryUsed& used) {
  MemoryReport report;
  report.path_text = used.path_text();
  report.bank_id = used.bank_id();
  report.bank_version = used.bank_version();
  for (const v1::BlockId& block : used.blocks()) report.blocks.push_back(FromProto(block));
  report.no_rights = used.left_out() == v1::LEFT_OUT_NO_RIGHTS;
  for (const v1::MemoryUsed& stacked : used.stacked()) report.stacked.push_back(ReportOf(stacked));
  return report;
}

std::vector<float> Distances(const v1::Resolution& resolution) {
  std::vector<float> distances;
  for (const v1::ResolvedLevel& level : resolution.levels()) distances.push_back(level.distance());
  return distances;
}

absl::StatusOr<ResolvedPath> ToResolvedPath(const v1::Resolution& resolution) {
  ResolvedPath resolved;
  ASSIGN_OR_RETURN(resolved.path, FromProto(resolution.path()));
  resolved.path_text = resolution.path_text();
  resolved.distances = Distances(resolution);
  resolved.bank = resolution.bank();
  for (const v1::Resolution& stacked : resolution.stacked()) {
    ASSIGN_OR_RETURN(resolved.stacked.emplace_back(), ToResolvedPath(stacked));
  }
  return resolved;
}

BankFacts ToFacts(const v1::BankSpec& bank, const std::string& version) {
  return {bank.bank_id(), version, bank.fan_out(), static_cast<uint32_t>(bank.widths_size())};
}

class GrpcRouterClient : public RouterClient {
 public:
  GrpcRouterClient(std::string address, std::unique_ptr<v1::RouterService::Stub> stub) : address_(std::move(address)), stub_(std::move(stub)) {}

  absl::StatusOr<RouterFacts> Status() override {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
    v1::RouterStatus reply;
    RETURN_IF_ERROR(FromGrpc(stub_->Status(&context, v1::RouterStatusRequest(), &reply), "router " + address_));
    RouterFacts facts;
    facts.fan_out = reply.fan_out();
    facts.depth = reply.depth();
    for (const v1::WorkerState& worker : reply.workers()) {
      if (!worker.healthy()) continue;
      if (facts.healthy_workers++ > 0) continue;
      facts.model = worker.status().model();
      facts.chat_template = worker.status().chat_template();
      facts.chat_system = worker.status().chat_system();
      facts.bank_id = worker.status().bank().bank_id();
      facts.bank_version = worker.status().bank_version();
      if (worker.status().has_bank()) facts.banks.push_back(ToFacts(worker.status().bank(), facts.bank_version));
      for (const v1::StackedBank& stacked : worker.status().stacked()) facts.banks.push_back(ToFacts(stacked.bank(), stacked.bank_version()));
    }
    return facts;
  }

  absl::StatusOr<RouterGenerateReply> Generate(const RouterGenerateRequest& request,
                                               const std::function<bool(std::string_view)>& on_text) override {
    v1::RouteGenerateRequest proto;
    proto.mutable_prompt()->set_text(request.prompt);
    proto.mutable_prompt()->set_parse_special(request.parse_special);
    SetMemory(request.memory, proto.mutable_memory());
    v1::Sampling& sampling = *proto.mutable_sampling();
    sampling.set_max_tokens(request.max_tokens);
    sampling.set_temperature(request.temperature);
    sampling.set_top_p(request.top_p);
    sampling.set_seed(request.seed);
    for (const std::string& stop : request.stop) sampling.add_stop(stop);

    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kCallTimeout);
    auto reader = stub_->Generate(&context, proto);
    RouterGenerateReply reply;
    bool stopped = false;
    for (v1::RouteGenerateChunk part; reader->Read(&part);) {
      Take(part, &reply);
      if (!stopped && on_text && !part.chunk().text().empty() && !on_text(part.chunk().text())) {
        stopped = true;
        context.TryCancel();
      }
    }
    const absl::Status status = FromGrpc(reader->Finish(), "router " + address_);
    if (!status.ok() && !stopped) return status;
    return reply;
  }

  absl::StatusOr<std::vector<RouterScore>> Score(const std::vector<RouterScoreItem>& items) override {
    v1::RouteScoreRequest request;
    for (const RouterScoreItem& item : items) {
      v1::RouteScoreItem& out = *request.add_items();
      if (!item.context.empty()) out.mutable_context()->set_text(item.context);
      out.mutable_continuation()->set_text(item.continuation);
      SetMemory(item.memory, out.mutable_memory());
    }
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kCallTimeout);
    v1::RouteScoreReply reply;
    RETURN_IF_ERROR(FromGrpc(stub_->Score(&context, request, &reply), "router " + address_));
    std::vector<RouterScore> scores;
    for (const v1::ScoreResult& result : reply.results()) {
      scores.push_back({result.sum(), static_cast<size_t>(result.tokens_size()), result.is_greedy(), ReportOf(result.memory())});
    }
    if (scores.size() != items.size()) return Internal("router {} scored {} of {} items", address_, scores.size(), items.size());
    return scores;
  }

  absl::StatusOr<std::vector<ResolvedPath>> Resolve(const std::vector<std::string>& texts) override {
    std::vector<ResolvedPath> paths;
    for (size_t begin = 0; begin < texts.size(); begin += kTextsPerResolve) {
      v1::ResolveRequest request;
      for (size_t i = begin; i < std::min(texts.size(), begin + kTextsPerResolve); ++i) request.add_texts(texts[i]);
      grpc::ClientContext context;
      context.set_deadline(std::chrono::system_clock::now() + kCallTimeout);
      v1::ResolveReply reply;
      RETURN_IF_ERROR(FromGrpc(stub_->Resolve(&context, request, &reply), "router " + address_));
      for (const v1::Resolution& resolution : reply.resolutions()) {
        ASSIGN_OR_RETURN(paths.emplace_back(), ToResolvedPath(resolution));
      }
    }
    return paths;
  }

 private:
  static void Take(const v1::RouteGenerateChunk& part, RouterGenerateReply* reply) {
    const v1::GenerateChunk& chunk = part.chunk();
    if (chunk.has_start()) {
      reply->memory = ReportOf(chunk.start().memory());
      reply->memory.distances = Distances(part.resolution());
      for (MemoryReport& bank : reply->memory.stacked) {
        for (const v1::Resolution& resolution : part.resolution().stacked()) {
          if (resolution.bank() == bank.bank_id) bank.distances = Distances(resolution);
        }
      }
      reply->memory.worker = part.worker();
      reply->prompt_tokens = chunk.start().prompt_tokens();
    }
    reply->text += chunk.text();
    if (chunk.has_end()) {
      reply->completion_tokens = chunk.end().completion_tokens();
      reply->first_token_ms = chunk.end().first_token_ms();
      reply->total_ms = chunk.end().total_ms();
    }
  }

  const std::string address_;
  const std::unique_ptr<v1::RouterService::Stub> stub_;
};

}  // namespace

absl::StatusOr<std::vector<std::string>> WorkersOf(const std::string& router, const TlsFiles& tls, std::chrono::milliseconds timeout) {
  ChannelOptions options;
  options.tls = tls;
  ASSIGN_OR_RETURN(const auto channels, MakeChannels(router, options));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + timeout);
  v1::RouterStatus reply;
  RETURN_IF_ERROR(FromGrpc(v1::RouterService::NewStub(channels.front())->Status(&context, v1::RouterStatusRequest(), &reply), "router " + router));
  std::vector<std::string> workers;
  for (const v1::WorkerState& worker : reply.workers()) workers.push_back(worker.address());
  return workers;
}

absl::StatusOr<std::unique_ptr<RouterClient>> RouterClient::Connect(const std::string& address, std::chrono::milliseconds timeout) {
  ASSIGN_OR_RETURN(const auto channels, MakeChannels(address, {}));
  auto client = std::make_unique<GrpcRouterClient>(address, v1::RouterService::NewStub(channels.front()));
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  while (true) {
    const absl::StatusOr<RouterFacts> facts = client->Status();
    if (facts.ok() && facts->healthy_workers > 0) return client;
    if (!facts.ok() && facts.status().code() != absl::StatusCode::kUnavailable) return facts.status();
    if (std::chrono::steady_clock::now() > deadline) {
      return facts.ok() ? Unavailable("router {} has no healthy worker", address) : facts.status();
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
}

}  // namespace membank
