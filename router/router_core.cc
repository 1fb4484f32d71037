#include "router/router_core.h"

#include <algorithm>

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

// The same path goes to the same worker, in the first bank that the request uses; the anchor alone runs anywhere equally well.
std::optional<uint64_t> Affinity(const std::vector<BankPlan>& plans) {
  for (const BankPlan& plan : plans) {
    if (plan.path.mode == MemoryMode::kGeneric) return ~uint64_t{0};
    if (plan.path.mode == MemoryMode::kFetched) return plan.path.leaf;
  }
  return std::nullopt;
}

// Where no banks are stacked, any worker will do, as any will for the anchor alone.
void AddNeeded(const std::vector<PlannedBank>& banks, const std::vector<BankPlan>& plans, NeededBanks* needed) {
  for (size_t i = 0; banks.size() > 1 && i < banks.size(); ++i) {
    if (plans[i].path.mode == MemoryMode::kNone) continue;
    needed->first = banks[0].name;
    if (i > 0) needed->stacked.insert(banks[i].name);
  }
}

// `Message`: a request to generate or an item to score.
template <typename Message>
void FillMemory(const std::vector<PlannedBank>& banks, const std::vector<BankPlan>& plans, const v1::MemoryOptions& memory, Message* out) {
  ToProto(plans[0].path, out->mutable_path());
  *out->mutable_levels() = memory.levels();
  for (size_t i = 1; i < banks.size(); ++i) {
    if (plans[i].path.mode == MemoryMode::kNone) continue;
    v1::StackedMemory& stacked = *out->add_stacked();
    stacked.set_bank(banks[i].name);
    ToProto(plans[i].path, stacked.mutable_path());
    *stacked.mutable_levels() = memory.levels();
  }
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

absl::Status Router::OnSomeWorker(std::optional<uint64_t> affinity, const NeededBanks& banks,
                                  const std::function<absl::Status(WorkerPool::Lease&)>& call) {
  static auto& retries = GetCounter("membank_router_retries_total", "Requests that moved on to another worker");
  std::set<std::string> tried;
  absl::Status last;
  while (true) {
    absl::StatusOr<WorkerPool::Lease> lease = workers_.Pick(affinity, tried, banks);
    if (!lease.ok()) return last.ok() ? lease.status() : last;
    if (!tried.empty()) retries.Increment();
    last = call(*lease);
    if (!MoveOn(last)) return last;
    if (last.code() == absl::StatusCode::kUnavailable) lease->ReportUnreachable(last);
    tried.insert(lease->address());
  }
}

absl::StatusOr<std::unique_ptr<Generation>> Router::Generate(CallScope& scope, const v1::RouteGenerateRequest& request) {
  const std::vector<PlannedBank> banks = Banks();
  std::vector<Admission> admissions = {{request.memory(), request.prompt(), {}, {}}};
  RETURN_IF_ERROR(Admit(scope, banks, &admissions));
  const Admission& admission = admissions.front();
  v1::GenerateRequest forward;
  *forward.mutable_prompt() = request.prompt();
  FillMemory(banks, admission.plans, request.memory(), &forward);
  *forward.mutable_sampling() = request.sampling();
  if (request.prompt().parse_special()) RETURN_IF_ERROR(StopAtSpecialTokens(scope, forward.mutable_sampling()));

  NeededBanks needed;
  AddNeeded(banks, admission.plans, &needed);
  std::unique_ptr<Generation> generation;
  RETURN_IF_ERROR(OnSomeWorker(Affinity(admission.plans), needed, [&](WorkerPool::Lease& lease) {
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
    admissions.push_back({item.memory(), has_context ? item.context() : item.continuation(), {}, {}});
  }
  const std::vector<PlannedBank> banks = Banks();
  RETURN_IF_ERROR(Admit(scope, banks, &admissions));
  NeededBanks needed;
  v1::ScoreRequest forward;
  for (int i = 0; i < request.items_size(); ++i) {
    const v1::RouteScoreItem& item = request.items(i);
    v1::ScoreItem& out = *forward.add_items();
    *out.mutable_context() = item.context();
    *out.mutable_continuation() = item.continuation();
    FillMemory(banks, admissions[i].plans, item.memory(), &out);
    AddNeeded(banks, admissions[i].plans, &needed);
  }
  v1::ScoreReply reply;
  RETURN_IF_ERROR(OnSomeWorker(Affinity(admissions.front().plans), needed, [&](WorkerPool::Lease& lease) {
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
  ASSIGN_OR_RETURN(const auto found, paths_->Resolve({request.texts().begin(), request.texts().end()}));
  const std::vector<PlannedBank> banks = Banks();
  v1::ResolveReply reply;
  for (const std::vector<Resolution>& by_tree : found) *reply.add_resolutions() = ToResolution(banks, by_tree, std::vector<bool>(banks.size(), true));
  return reply;
}

absl::StatusOr<std::vector<std::vector<float>>> Router::Embed(CallScope& scope, const std::vector<std::string>& texts) {
  RETURN_IF_ERROR(scope.Check());
  if (paths_ == nullptr) return FailedPrecondition("this router has no embedder: it was started without --tree");
  return paths_->Embed(texts);
}

absl::StatusOr<v1::TokenizeReply> Router::Tokenize(CallScope& scope, const v1::TokenizeRequest& request) {
  v1::TokenizeReply reply;
  RETURN_IF_ERROR(OnSomeWorker(std::nullopt, {}, [&](WorkerPool::Lease& lease) {
    return FromGrpc(lease.stub().Tokenize(scope.NewCall().get(), request, &reply), lease.address());
  }));
  return reply;
}

absl::StatusOr<v1::DetokenizeReply> Router::Detokenize(CallScope& scope, const v1::DetokenizeRequest& request) {
  v1::DetokenizeReply reply;
  RETURN_IF_ERROR(OnSomeWorker(std::nullopt, {}, [&](WorkerPool::Lease& lease) {
    return FromGrpc(lease.stub().Detokenize(scope.NewCall().get(), request, &reply), lease.address());
  }));
  return reply;
}

v1::RouterStatus Router::Status() const {
  v1::RouterStatus status;
  if (paths_ != nullptr) {
    const TreeFacts& first = paths_->trees().front();
    status.set_tree_fingerprint(first.tree_fingerprint);
    status.set_embedder_fingerprint(first.embedder_fingerprint);
    status.set_fan_out(first.fan_out);
    status.set_depth(first.depth);
    for (const TreeFacts& facts : paths_->trees()) {
      v1::TreeState& tree = *status.add_trees();
      tree.set_fingerprint(facts.tree_fingerprint);
      tree.set_fan_out(facts.fan_out);
      tree.set_depth(facts.depth);
    }
  }
  for (v1::WorkerState& state : workers_.States()) status.add_workers()->Swap(&state);
  status.set_software(VersionString());
  return status;
}

absl::Status Router::Ready() const {
  return workers_.Pick(std::nullopt).status();
}

// --- Admission: the paths of each sequence --------------------------------------------------------------------------------

std::vector<PlannedBank> Router::Banks() const {
  return PlanBanks(workers_.Banks(), paths_ != nullptr ? paths_->trees() : std::vector<TreeFacts>());
}

absl::Status Router::Admit(CallScope& scope, const std::vector<PlannedBank>& banks, std::vector<Admission>* admissions) {
  RETURN_IF_ERROR(scope.Check());
  std::vector<std::string> texts;
  std::vector<Admission*> to_resolve;
  for (Admission& admission : *admissions) {
    ASSIGN_OR_RETURN(admission.plans, PlanMemory(admission.memory, banks));
    if (std::none_of(admission.plans.begin(), admission.plans.end(), [](const BankPlan& plan) { return plan.by_text; })) continue;
    std::string text = admission.memory.retrieve_on();
    if (text.empty()) {
      ASSIGN_OR_RETURN(text, TextOf(scope, admission.text_source));
    }
    if (text.empty()) {
      return InvalidArgument("there is no text to find a path with; give memory.retrieve_on or memory.path, or mode generic or none");
    }
    texts.push_back(std::move(text));
    to_resolve.push_back(&admission);
  }
  if (texts.empty()) return absl::OkStatus();
  static auto& latency = GetLatency("membank_router_resolve_seconds", "Texts of one request to paths: embedding and descent");
  const auto start = std::chrono::steady_clock::now();
  ASSIGN_OR_RETURN(const std::vector<std::vector<Resolution>> found, paths_->Resolve(texts));
  latency.Observe(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  for (size_t i = 0; i < found.size(); ++i) {
    std::vector<bool> by_text;
    for (size_t bank = 0; bank < banks.size(); ++bank) {
      BankPlan& plan = to_resolve[i]->plans[bank];
      by_text.push_back(plan.by_text);
      if (plan.by_text) plan.path = found[i][*banks[bank].tree].path;
    }
    to_resolve[i]->resolution = ToResolution(banks, found[i], by_text);
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

// `wanted`: of which banks.
v1::Resolution Router::ToResolution(const std::vector<PlannedBank>& banks, const std::vector<Resolution>& by_tree,
                                    const std::vector<bool>& wanted) const {
  v1::Resolution resolution;
  for (size_t i = 0; i < banks.size(); ++i) {
    if (!wanted[i] || !banks[i].tree.has_value()) continue;
    const Resolution& found = by_tree[*banks[i].tree];
    v1::Resolution& out = i == 0 ? resolution : *resolution.add_stacked();
    out.set_bank(banks[i].name);
    ToProto(found.path, out.mutable_path());
    out.set_path_text(ToString(found.path, paths_->trees()[*banks[i].tree].fan_out));
    uint32_t level = 0;
    for (const PathStep& step : found.steps) {
      v1::ResolvedLevel& reached = *out.add_levels();
      reached.set_level(++level);
      reached.set_cluster(step.cluster);
      reached.set_distance(step.distance);
    }
  }
  return resolution;
}

}  // namespace membank
