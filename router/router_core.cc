#include "router/router_core.h"

#include "common/base/metrics.h"
#include "common/base/status_macros.h"
#include "common/base/version.h"
#include "common/rpc/status.h"
#include "common/rpc/wire.h"

namespace membank {
namespace {

constexpr int kMaxTexts = 256;
constexpr int kMaxScoreItems = 1024;
constexpr size_t kMaxSpecialBytes = 64, kMaxSpecialTokens = 256;  // of the stop texts that are remembered as tokens

// The same path goes to the same worker; the anchor alone runs anywhere equally well.
std::optional<uint64_t> Affinity(const BlockPath& path) {
  switch (path.mode) {
    case MemoryMode::kNone: return std::nullopt;
    case MemoryMode::kGeneric: return ~uint64_t{0};
    case MemoryMode::kFetched: return path.leaf;
  }
  return std::nullopt;
}

bool MoveOn(const absl::Status& status) {
  return status.code() == absl::StatusCode::kUnavailable || status.code() == absl::StatusCode::kResourceExhausted;
}

}  // namespace

Generation::~Generation() {
  if (ended_) return;
  context_->TryCancel();
  v1::GenerateChunk rest;
  while (reader_->Read(&rest)) {
  }
  reader_->Finish();
}

absl::StatusOr<bool> Generation::Next(v1::RouteGenerateChunk* chunk) {
  if (first_) {
    *chunk = *std::move(first_);
    first_.reset();
    return true;
  }
  if (ended_) return false;
  chunk->Clear();
  if (reader_->Read(chunk->mutable_chunk())) return true;
  ended_ = true;
  RETURN_IF_ERROR(FromGrpc(reader_->Finish(), lease_.address()));
  return false;
}

absl::Status Router::OnSomeWorker(std::optional<uint64_t> affinity, const std::function<absl::Status(WorkerPool::Lease&)>& call) {
  static auto& retries = GetCounter("membank_router_retries_total", "Requests that moved on to another worker");
  std::set<std::string> tried;
  absl::Status last;
  while (true) {
    absl::StatusOr<WorkerPool::Lease> lease = workers_.Pick(affinity, tried);
    if (!lease.ok()) return last.ok() ? lease.status() : last;
    if (!tried.empty()) retries.Increment();
    last = call(*lease);
    if (!MoveOn(last)) return last;
    if (last.code() == absl::StatusCode::kUnavailable) lease->ReportUnreachable(last);
    tried.insert(lease->address());
  }
}

absl::StatusOr<std::unique_ptr<Generation>> Router::Generate(CallScope& scope, const v1::RouteGenerateRequest& request) {
  std::vector<Admission> admissions = {{request.memory(), request.prompt()}};
  RETURN_IF_ERROR(Admit(scope, &admissions));
  const Admission& admission = admissions.front();
  v1::GenerateRequest forward;
  *forward.mutable_prompt() = request.prompt();
  ToProto(admission.path, forward.mutable_path());
  *forward.mutable_levels() = request.memory().levels();
  *forward.mutable_sampling() = request.sampling();
  if (request.prompt().parse_special()) RETURN_IF_ERROR(StopAtSpecialTokens(scope, forward.mutable_sampling()));

  std::unique_ptr<Generation> generation;
  RETURN_IF_ERROR(OnSomeWorker(Affinity(admission.path), [&](WorkerPool::Lease& lease) {
    std::shared_ptr<grpc::ClientContext> context = scope.NewCall();
    auto reader = lease.stub().Generate(context.get(), forward);
    v1::RouteGenerateChunk first;
    if (!reader->Read(first.mutable_chunk())) {
      const absl::Status status = FromGrpc(reader->Finish(), lease.address());
      return status.ok() ? Internal("worker {} ended the answer before it began", lease.address()) : status;
    }
    if (admission.resolution) *first.mutable_resolution() = *admission.resolution;
    first.set_worker(lease.address());
    generation.reset(new Generation(std::move(lease), std::move(context), std::move(reader), std::move(first)));
    return absl::OkStatus();
  }));
  return generation;
}

absl::Status Router::StopAtSpecialTokens(CallScope& scope, v1::Sampling* sampling) {
  std::vector<std::string> texts;
  for (const std::string& stop : sampling->stop()) {
    if (!stop.starts_with("<|") || !stop.ends_with("|>") || stop.size() > kMaxSpecialBytes) {
      texts.push_back(stop);
      continue;
    }
    std::optional<std::optional<int32_t>> known;
    {
      absl::MutexLock lock(&mu_);
      if (const auto found = special_tokens_.find(stop); found != special_tokens_.end()) known = found->second;
    }
    if (!known) {
      v1::TokenizeRequest request;
      request.set_text(stop);
      request.set_parse_special(true);
      ASSIGN_OR_RETURN(const v1::TokenizeReply reply, Tokenize(scope, request));
      known = reply.ids_size() == 1 ? std::optional<int32_t>(reply.ids(0)) : std::nullopt;
      absl::MutexLock lock(&mu_);
      if (special_tokens_.size() < kMaxSpecialTokens) special_tokens_[stop] = *known;
    }
    if (*known) {
      sampling->add_stop_tokens(**known);
    } else {
      texts.push_back(stop);
    }
  }
  sampling->mutable_stop()->Assign(texts.begin(), texts.end());
  return absl::OkStatus();
}

absl::StatusOr<v1::RouteScoreReply> Router::Score(CallScope& scope, const v1::RouteScoreRequest& request) {
  if (request.items_size() == 0 || request.items_size() > kMaxScoreItems) {
    return InvalidArgument("items has {} entries; 1 to {} are allowed", request.items_size(), kMaxScoreItems);
  }
  std::vector<Admission> admissions;
  for (const v1::RouteScoreItem& item : request.items()) {
    const bool has_context = !item.context().text().empty() || item.context().tokens().ids_size() > 0;
    admissions.push_back({item.memory(), has_context ? item.context() : item.continuation()});
  }
  RETURN_IF_ERROR(Admit(scope, &admissions));
  v1::ScoreRequest forward;
  for (int i = 0; i < request.items_size(); ++i) {
    const v1::RouteScoreItem& item = request.items(i);
    v1::ScoreItem& out = *forward.add_items();
    *out.mutable_context() = item.context();
    *out.mutable_continuation() = item.continuation();
    ToProto(admissions[i].path, out.mutable_path());
    *out.mutable_levels() = item.memory().levels();
  }
  v1::ScoreReply reply;
  RETURN_IF_ERROR(OnSomeWorker(Affinity(admissions.front().path), [&](WorkerPool::Lease& lease) {
    return FromGrpc(lease.stub().Score(scope.NewCall().get(), forward, &reply), lease.address());
  }));
  v1::RouteScoreReply routed;
  routed.mutable_results()->Swap(reply.mutable_results());
  return routed;
}

absl::StatusOr<v1::ResolveReply> Router::Resolve(CallScope& scope, const v1::ResolveRequest& request) {
  RETURN_IF_ERROR(scope.Check());
  if (request.texts_size() == 0 || request.texts_size() > kMaxTexts) {
    return InvalidArgument("texts has {} entries; 1 to {} are allowed", request.texts_size(), kMaxTexts);
  }
  if (paths_ == nullptr) return FailedPrecondition("this router cannot resolve texts: it was started without --tree");
  ASSIGN_OR_RETURN(const std::vector<Resolution> found, paths_->Resolve({request.texts().begin(), request.texts().end()}));
  v1::ResolveReply reply;
  for (const Resolution& one : found) {
    ASSIGN_OR_RETURN(*reply.add_resolutions(), ToResolution(one));
  }
  return reply;
}

absl::StatusOr<std::vector<std::vector<float>>> Router::Embed(CallScope& scope, const std::vector<std::string>& texts) {
  RETURN_IF_ERROR(scope.Check());
  if (paths_ == nullptr) return FailedPrecondition("this router has no embedder: it was started without --tree");
  return paths_->Embed(texts);
}

absl::StatusOr<v1::TokenizeReply> Router::Tokenize(CallScope& scope, const v1::TokenizeRequest& request) {
  v1::TokenizeReply reply;
  RETURN_IF_ERROR(OnSomeWorker(std::nullopt, [&](WorkerPool::Lease& lease) {
    return FromGrpc(lease.stub().Tokenize(scope.NewCall().get(), request, &reply), lease.address());
  }));
  return reply;
}

absl::StatusOr<v1::DetokenizeReply> Router::Detokenize(CallScope& scope, const v1::DetokenizeRequest& request) {
  v1::DetokenizeReply reply;
  RETURN_IF_ERROR(OnSomeWorker(std::nullopt, [&](WorkerPool::Lease& lease) {
    return FromGrpc(lease.stub().Detokenize(scope.NewCall().get(), request, &reply), lease.address());
  }));
  return reply;
}

v1::RouterStatus Router::Status() const {
  v1::RouterStatus status;
  if (paths_ != nullptr) {
    status.set_tree_fingerprint(paths_->facts().tree_fingerprint);
    status.set_embedder_fingerprint(paths_->facts().embedder_fingerprint);
    status.set_fan_out(paths_->facts().fan_out);
    status.set_depth(paths_->facts().depth);
  }
  for (v1::WorkerState& state : workers_.States()) status.add_workers()->Swap(&state);
  status.set_software(VersionString());
  return status;
}

absl::Status Router::Ready() const {
  return workers_.Pick(std::nullopt).status();
}

// --- Admission: the path of each sequence ---------------------------------------------------------------------------------

absl::Status Router::Admit(CallScope& scope, std::vector<Admission>* admissions) {
  RETURN_IF_ERROR(scope.Check());
  std::vector<std::string> texts;
  std::vector<Admission*> to_resolve;
  for (Admission& admission : *admissions) {
    const v1::MemoryOptions& memory = admission.memory;
    RETURN_IF_ERROR(CheckBank(memory.bank()));
    v1::MemoryMode mode = memory.mode();
    if (mode == v1::MEMORY_MODE_UNSPECIFIED) {
      // Without a tree and a given path there is nothing to fetch by: an anchor served alone.
      mode = paths_ != nullptr || memory.source_case() == v1::MemoryOptions::kPath ? v1::MEMORY_MODE_FETCHED : v1::MEMORY_MODE_NONE;
    }
    ASSIGN_OR_RETURN(admission.path.mode, FromProto(mode));
    if (mode != v1::MEMORY_MODE_FETCHED) {
      if (memory.source_case() != v1::MemoryOptions::SOURCE_NOT_SET) {
        return InvalidArgument("memory.path and memory.retrieve_on go with mode fetched only; leave them out or set mode fetched");
      }
      continue;
    }
    if (memory.source_case() == v1::MemoryOptions::kPath) {
      ASSIGN_OR_RETURN(admission.path, ExplicitPath(memory.path()));
      continue;
    }
    std::string text = memory.retrieve_on();
    if (memory.source_case() == v1::MemoryOptions::SOURCE_NOT_SET) {
      ASSIGN_OR_RETURN(text, TextOf(scope, admission.text_source));
    }
    if (text.empty()) {
      return InvalidArgument("there is no text to find a path with; give memory.retrieve_on or memory.path, or mode generic or none");
    }
    texts.push_back(std::move(text));
    to_resolve.push_back(&admission);
  }
  if (texts.empty()) return absl::OkStatus();
  if (paths_ == nullptr) {
    return FailedPrecondition("this router cannot find a path by text: it was started without --tree; give memory.path, or mode generic or none");
  }
  static auto& latency = GetLatency("membank_router_resolve_seconds", "Texts of one request to paths: embedding and descent");
  const auto start = std::chrono::steady_clock::now();
  ASSIGN_OR_RETURN(const std::vector<Resolution> found, paths_->Resolve(texts));
  latency.Observe(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  for (size_t i = 0; i < found.size(); ++i) {
    to_resolve[i]->path = found[i].path;
    ASSIGN_OR_RETURN(to_resolve[i]->resolution, ToResolution(found[i]));
  }
  return scope.Check();
}

absl::StatusOr<std::string> Router::TextOf(CallScope& scope, const v1::Prompt& prompt) {
  if (prompt.input_case() != v1::Prompt::kTokens) return prompt.text();
  v1::DetokenizeRequest request;
  *request.mutable_ids() = prompt.tokens().ids();
  ASSIGN_OR_RETURN(v1::DetokenizeReply reply, Detokenize(scope, request));
  return std::move(*reply.mutable_text());
}

absl::StatusOr<BlockPath> Router::ExplicitPath(const std::string& text) const {
  uint32_t fan_out = 0, depth = 0;
  if (paths_ != nullptr) {
    fan_out = paths_->facts().fan_out;
    depth = paths_->facts().depth;
  } else if (const auto bank = workers_.AnyBank()) {
    fan_out = bank->bank().fan_out();
    depth = static_cast<uint32_t>(bank->bank().widths_size());
  } else {
    return FailedPrecondition("memory.path '{}' cannot be used: no worker has a bank", text);
  }
  absl::StatusOr<BlockPath> path = ParsePath(text, fan_out, depth);
  if (!path.ok()) return Annotate(path.status(), "memory.path");
  if (path->mode != MemoryMode::kFetched) {
    return InvalidArgument("memory.path is '{}'; it takes child numbers from the root, e.g. 3.5; for generic or none set memory.mode", text);
  }
  return path;
}

absl::StatusOr<v1::Resolution> Router::ToResolution(const Resolution& found) const {
  v1::Resolution resolution;
  ToProto(found.path, resolution.mutable_path());
  resolution.set_path_text(ToString(found.path, paths_->facts().fan_out));
  uint32_t level = 0;
  for (const PathStep& step : found.steps) {
    v1::ResolvedLevel& out = *resolution.add_levels();
    out.set_level(++level);
    out.set_cluster(step.cluster);
    out.set_distance(step.distance);
  }
  return resolution;
}

absl::Status Router::CheckBank(const std::string& bank) const {
  if (bank.empty()) return absl::OkStatus();
  const auto status = workers_.AnyBank();
  const std::string served = status ? status->bank().bank_id() : "";
  if (served == bank) return absl::OkStatus();
  return FailedPrecondition("memory.bank is '{}'; the bank served here is '{}'", bank, served);
}

}  // namespace membank
