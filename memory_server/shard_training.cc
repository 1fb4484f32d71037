// Runs, pushes and the two phases of a step. See shard.h.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <filesystem>

#include "absl/time/clock.h"
#include "common/bank/gradient_codec.h"
#include "common/base/fail_point.h"
#include "common/base/status_macros.h"
#include "memory_server/block_update.h"
#include "memory_server/checked_json.h"
#include "memory_server/shard.h"
#include "memory_server/shard_state.h"
#include "nlohmann/json.hpp"

namespace membank {
namespace {

using Json = nlohmann::json;

constexpr uint32_t kMaxWorldSize = 4096, kMaxStaleness = 1024, kMaxSums = 16;

absl::Status CheckSettings(const RunSettings& run, DType bank) {
  if (run.run_id.empty() || run.run_id.size() > 128)
    return InvalidArgument("run id has {} characters, allowed 1..128", run.run_id.size());
  if (run.epoch == 0) return InvalidArgument("run {}: epoch is 0, must be at least 1", run.run_id);
  if (run.world_size < 1 || run.world_size > kMaxWorldSize)
    return InvalidArgument("run {}: world size is {}, allowed 1..{}", run.run_id, run.world_size, kMaxWorldSize);
  if (run.staleness > kMaxStaleness) return InvalidArgument("run {}: staleness is {}, allowed 0..{}", run.run_id, run.staleness, kMaxStaleness);
  if (run.optimizer > OptimizerKind::kRowWiseAdamW)
    return InvalidArgument("run {}: optimizer {} is unknown, allowed AdamW, SGD, row-wise AdamW", run.run_id, static_cast<int>(run.optimizer));
  if (run.decay > DecayPolicy::kNone)
    return InvalidArgument("run {}: decay policy {} is unknown, allowed touched, missed, none", run.run_id, static_cast<int>(run.decay));
  if (run.stochastic_rounding && bank != DType::kBF16)
    return InvalidArgument("run {}: stochastic rounding is for BF16 banks, this one is {}; leave it out", run.run_id, DTypeName(bank));
  const auto is_decay = [](float beta) { return beta >= 0.0f && beta < 1.0f; };
  if (!is_decay(run.beta1) || !is_decay(run.beta2))
    return InvalidArgument("run {}: betas are {} and {}, must be in [0, 1)", run.run_id, run.beta1, run.beta2);
  if (!(run.epsilon > 0.0f) || !std::isfinite(run.epsilon)) return InvalidArgument("run {}: epsilon is {}, must be positive", run.run_id, run.epsilon);
  return absl::OkStatus();
}

absl::Status CheckParameters(const ApplyParameters& parameters) {
  const std::pair<const char*, float> named[] = {
      {"scale", parameters.scale}, {"learning rate", parameters.learning_rate}, {"weight decay", parameters.weight_decay}};
  for (const auto& [name, value] : named)
    if (!std::isfinite(value) || value < 0) return InvalidArgument("{} is {}, must be finite and not negative", name, value);
  return absl::OkStatus();
}

absl::Status CheckSums(const std::vector<double>& sums) {
  if (sums.size() > kMaxSums) return InvalidArgument("a push has {} sums, allowed 0..{}", sums.size(), kMaxSums);
  for (size_t i = 0; i < sums.size(); ++i)
    if (!std::isfinite(sums[i])) return InvalidArgument("sum {} of the push is {}, must be finite", i, sums[i]);
  return absl::OkStatus();
}

// In rank order: the same bits whatever order the ranks came in.
std::vector<double> AddSums(const std::vector<std::vector<double>>& ranks) {
  std::vector<double> total;
  for (const std::vector<double>& sums : ranks) {
    total.resize(std::max(total.size(), sums.size()));
    for (size_t i = 0; i < sums.size(); ++i) total[i] += sums[i];
  }
  return total;
}

}  // namespace

// --- Runs --------------------------------------------------------------------------------------------------------------------------------

absl::Status Shard::LoadRuns() {
  const std::string path = options_.data_directory + kRunsFile;
  if (!std::filesystem::exists(path)) return absl::OkStatus();
  ASSIGN_OR_RETURN(const Json json, ReadCheckedJson(path));
  const auto epochs = json.find("epochs");
  if (epochs == json.end() || !epochs->is_object()) return DataLoss("{} is damaged: it has no object \"epochs\"", path);
  absl::MutexLock lock(&run_mu_);
  for (const auto& [run_id, epoch] : epochs->items()) {
    if (!epoch.is_number_unsigned()) return DataLoss("{} is damaged: the epoch of run \"{}\" is {}", path, run_id, epoch.dump());
    run_epochs_[run_id] = epoch.get<uint64_t>();
  }
  return absl::OkStatus();
}

absl::Status Shard::WriteRuns(const RunEpochs& epochs) const {
  Json runs = Json::object();
  for (const auto& [run_id, epoch] : epochs) runs[run_id] = epoch;
  return WriteCheckedJson(options_.data_directory + kRunsFile, {{"epochs", runs}});
}

absl::Status Shard::CheckBegin(const RunSettings& settings) const {
  if (stopping_) return Unavailable("server \"{}\" is shutting down", options_.server_id);
  if (IsSealed()) return Unavailable("slots of server \"{}\" are moving; begin run {} again", options_.server_id, settings.run_id);
  const auto known = run_epochs_.find(settings.run_id);
  if (known != run_epochs_.end() && settings.epoch <= known->second)
    return Aborted("run {} epoch {} is fenced: epoch {} was begun on server \"{}\"; begin a larger one", settings.run_id, settings.epoch,
                   known->second, options_.server_id);
  if (torn_step_ != 0)
    return FailedPrecondition("the head of server \"{}\" holds half of step {}, which was given up while it was applied; restore a checkpoint",
                              options_.server_id, torn_step_);
  if (settings.first_step != head_step_ + 1)
    return FailedPrecondition("run {} wants to begin with step {}, the head of server \"{}\" is at step {}; restore the checkpoint that the "
                              "run goes on from",
                              settings.run_id, settings.first_step, options_.server_id, head_step_);
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> Shard::BeginRun(const RunSettings& settings) {
  RETURN_IF_ERROR(CheckSettings(settings, spec_.dtype));
  RETURN_IF_ERROR(CheckNoReplica());
  {
    absl::MutexLock lock(&run_mu_);
    if (run_active_ && settings == run_) return head_step_;
    RETURN_IF_ERROR(CheckBegin(settings));
  }
  SetSnapshot(nullptr);  // before train_mu_: the step that holds it may be waiting for the room of images that nobody will write
  absl::MutexLock train(&train_mu_);
  RunEpochs epochs;
  {
    absl::MutexLock lock(&run_mu_);
    if (run_active_ && settings == run_) return head_step_;
    RETURN_IF_ERROR(CheckBegin(settings));
    epochs = run_epochs_;
  }
  SetSnapshot(nullptr);
  // Only train_mu_ is held over the write: nobody else changes the runs meanwhile.
  epochs[settings.run_id] = settings.epoch;
  RETURN_IF_ERROR(WriteRuns(epochs));
  MEMBANK_FAIL_POINT("run.fenced");
  absl::MutexLock lock(&run_mu_);
  run_epochs_ = std::move(epochs);
  run_ = settings;
  run_active_ = true;
  next_step_.assign(settings.world_size, settings.first_step);
  members_.assign(settings.world_size, "");
  run_description_.clear();
  DropPending();
  return head_step_;
}

void Shard::DropPending() {
  for (const auto& [step, pending] : pending_) {
    pushed_bytes_ -= pending->bytes;
    if (pending->applying.has_value()) torn_step_ = step;
  }
  pending_.clear();
  head_sum_of_squares_.reset();
  head_sums_.clear();
}

absl::Status Shard::CheckRun(const StepId& step) const {
  if (stopping_) return Unavailable("server \"{}\" is shutting down", options_.server_id);
  const auto known = run_epochs_.find(step.run_id);
  if (known != run_epochs_.end() && step.epoch < known->second)
    return Aborted("run {} epoch {} is fenced by epoch {}", step.run_id, step.epoch, known->second);
  if (!run_active_)
    return FailedPrecondition("no run is active on server \"{}\" since its start, restore or purge; begin run {} with an epoch above {}",
                              options_.server_id, step.run_id, known == run_epochs_.end() ? 0 : known->second);
  if (step.run_id != run_.run_id || step.epoch != run_.epoch)
    return FailedPrecondition("run {} epoch {} was not begun on server \"{}\"; the active run is {} epoch {}", step.run_id, step.epoch,
                              options_.server_id, run_.run_id, run_.epoch);
  return absl::OkStatus();
}

// --- Pushes ------------------------------------------------------------------------------------------------------------------------------

absl::StatusOr<PushOutcome> Shard::JudgePush(const StepId& step, uint32_t rank) const {
  RETURN_IF_ERROR(CheckRun(step));
  if (rank >= run_.world_size) return InvalidArgument("rank {} is not in run {}, allowed 0..{}", rank, run_.run_id, run_.world_size - 1);
  if (step.step < run_.first_step) return PushOutcome::kStale;
  if (step.step < next_step_[rank]) return PushOutcome::kDuplicate;
  if (step.step > next_step_[rank])
    return OutOfRange("rank {} pushes step {} of run {}, expected step {}", rank, step.step, run_.run_id, next_step_[rank]);
  if (step.step > head_step_ + 1 + run_.staleness)
    return OutOfRange("rank {} pushes step {} of run {}, expected at most step {}: the head is at step {} and the run's staleness is {}", rank,
                      step.step, run_.run_id, head_step_ + 1 + run_.staleness, head_step_, run_.staleness);
  if (IsSealed() && step.step >= seal_->first_refused)
    return Unavailable("slots of server \"{}\" are moving; push step {} again", options_.server_id, step.step);
  return PushOutcome::kAccepted;
}

absl::StatusOr<std::unique_ptr<GradientPush>> Shard::BeginPush(const StepId& step, uint32_t rank, std::vector<double> sums, uint64_t slot_map_epoch) {
  RETURN_IF_ERROR(CheckSums(sums));
  RETURN_IF_ERROR(CheckFreeSpace(0));
  absl::MutexLock lock(&run_mu_);
  const absl::StatusOr<PushOutcome> outcome = JudgePush(step, rank);
  if (!outcome.ok() || *outcome == PushOutcome::kAccepted) RETURN_IF_ERROR(ownership_.CheckEpoch(slot_map_epoch));  // what was taken stays taken
  RETURN_IF_ERROR(outcome.status());
  return std::unique_ptr<GradientPush>(new GradientPush(this, step, rank, std::move(sums), slot_map_epoch, *outcome));
}

absl::StatusOr<PushOutcome> Shard::FinishPush(GradientPush* push) {
  absl::MutexLock lock(&run_mu_);
  ASSIGN_OR_RETURN(const PushOutcome outcome, JudgePush(push->step_, push->rank_));  // again: the same push may have come on another stream
  if (outcome != PushOutcome::kAccepted) return outcome;
  RETURN_IF_ERROR(ownership_.CheckEpoch(push->slot_map_epoch_));
  for (const auto& [id, gradient] : push->gradients_) RETURN_IF_ERROR(ownership_.Check(id));
  std::unique_ptr<PendingStep>& pending = pending_[push->step_.step];
  if (pending == nullptr) pending = std::make_unique<PendingStep>(run_.world_size);
  pending->ranks[push->rank_] = std::move(push->gradients_);
  pending->sums[push->rank_] = std::move(push->sums_);
  pending->arrived[push->rank_] = true;
  pending->bytes += std::exchange(push->reserved_bytes_, 0);
  next_step_[push->rank_] = push->step_.step + 1;
  MEMBANK_FAIL_POINT("push.counted");
  return PushOutcome::kAccepted;
}

absl::Status Shard::ReservePushBytes(uint64_t bytes) {
  absl::MutexLock lock(&run_mu_);
  if (pushed_bytes_ + bytes <= options_.push_budget_bytes) {
    pushed_bytes_ += bytes;
    return absl::OkStatus();
  }
  return ResourceExhausted("{} bytes of gradients are held on server \"{}\", {} more would exceed its budget of {}; push again later",
                           pushed_bytes_, options_.server_id, bytes, options_.push_budget_bytes);
}

void Shard::AddPushedBytes(int64_t bytes) {
  absl::MutexLock lock(&run_mu_);
  pushed_bytes_ += bytes;
}

GradientPush::~GradientPush() {
  if (reserved_bytes_ > 0) shard_->AddPushedBytes(-static_cast<int64_t>(reserved_bytes_));
}

absl::Status GradientPush::CheckBlock(BlockId id, DType dtype, uint64_t bytes) {
  RETURN_IF_ERROR(shard_->CheckBlock(id));
  if (!IsGradientDType(dtype))
    return InvalidArgument("gradient of block {} has dtype {}, allowed F32, BF16, I8_ROWS", ToString(id), GradientDTypeName(dtype));
  const BlockShape shape = ShapeOf(shard_->spec(), id.level);
  const uint64_t expected = GradientBytes(dtype, shape);
  if (bytes != expected)
    return InvalidArgument("gradient of block {} has {} bytes, must have {} ({} {} elements in {} rows)", ToString(id), bytes, expected,
                           shape.elements(), GradientDTypeName(dtype), shape.rows);
  if (gradients_.contains(id)) return InvalidArgument("block {} is twice in the push of rank {}", ToString(id), rank_);
  return Reserve(id, bytes);
}

// When a block is announced, not when it is complete: streams that stall in the middle of a block count, too.
absl::Status GradientPush::Reserve(BlockId id, uint64_t bytes) {
  if (reserved_for_ == id) return absl::OkStatus();
  RETURN_IF_ERROR(shard_->ReservePushBytes(bytes));
  reserved_bytes_ += bytes;
  reserved_for_ = id;
  return absl::OkStatus();
}

absl::Status GradientPush::AddBlock(BlockId id, Gradient gradient) {
  if (outcome_ != PushOutcome::kAccepted) return absl::OkStatus();
  if (error_.ok()) error_ = Add(id, std::move(gradient));
  return error_;
}

absl::Status GradientPush::Add(BlockId id, Gradient gradient) {
  RETURN_IF_ERROR(CheckBlock(id, gradient.dtype, gradient.bytes.size()));
  const BlockShape shape = ShapeOf(shard_->spec(), id.level);
  if (!gradient.sum_of_squares.has_value()) gradient.sum_of_squares = SumOfSquares(shape, gradient);
  if (!std::isfinite(*gradient.sum_of_squares))
    return Annotate(CheckFinite(gradient.dtype, shape, gradient.bytes.span()),
                    fmt::format("block {} pushed by rank {} for step {}", ToString(id), rank_, step_.step));
  gradients_.emplace(id, std::move(gradient));
  return absl::OkStatus();
}

absl::StatusOr<PushOutcome> GradientPush::Finish() {
  RETURN_IF_ERROR(error_);
  if (outcome_ != PushOutcome::kAccepted) return outcome_;
  return shard_->FinishPush(this);
}

// --- The two phases of a step ------------------------------------------------------------------------------------------------------------

std::string Shard::MissingRanks(uint64_t step) const {
  std::vector<uint32_t> missing;
  for (uint32_t rank = 0; rank < run_.world_size; ++rank)
    if (next_step_[rank] <= step) missing.push_back(rank);
  return fmt::format("{}", fmt::join(missing, ", "));
}

// Whom the step after the head waits for.
std::string Shard::WhyHeadWaits() const {
  if (!run_active_) return "no run is active since its start, restore or purge";
  const std::string missing = MissingRanks(head_step_ + 1);
  if (!missing.empty())
    return fmt::format("step {} of run {} waits for pushes of ranks {} (of {})", head_step_ + 1, run_.run_id, missing, run_.world_size);
  return fmt::format("all {} ranks of run {} have pushed step {}; it waits for rank 0 to commit it", run_.world_size, run_.run_id, head_step_ + 1);
}

absl::Status Shard::WaitForRanks(const StepId& step, absl::Time deadline) {
  absl::MutexLock lock(&run_mu_);
  const auto decided = [&]() ABSL_SHARED_LOCKS_REQUIRED(run_mu_) {
    if (!CheckRun(step).ok() || step.step <= head_step_) return true;
    const auto it = pending_.find(step.step);
    return step.step == head_step_ + 1 && it != pending_.end() && it->second->missing() == 0;
  };
  const bool in_time = run_mu_.AwaitWithDeadline(absl::Condition(&decided), deadline);
  RETURN_IF_ERROR(CheckRun(step));
  if (in_time) return absl::OkStatus();
  if (step.step > head_step_ + 1)
    return DeadlineExceeded("step {} of run {} waits for step {} to be applied", step.step, step.run_id, head_step_ + 1);
  return DeadlineExceeded("step {} of run {} waits for pushes of ranks {} (of {}) on server \"{}\"", step.step, step.run_id,
                          MissingRanks(step.step), run_.world_size, options_.server_id);
}

absl::StatusOr<double> Shard::PrepareStep(const StepId& step, absl::Time deadline) {
  RETURN_IF_ERROR(WaitForRanks(step, deadline));
  absl::MutexLock train(&train_mu_);
  PendingStep* pending = nullptr;  // stays: only holders of train_mu_ drop or apply steps
  RunSettings run;
  {
    absl::MutexLock lock(&run_mu_);
    RETURN_IF_ERROR(CheckRun(step));
    if (step.step == head_step_ && head_sum_of_squares_.has_value()) return *head_sum_of_squares_;
    if (step.step <= head_step_)
      return FailedPrecondition("step {} of run {} was applied before, the head is at step {}", step.step, step.run_id, head_step_);
    const auto it = pending_.find(step.step);
    if (step.step != head_step_ + 1 || it == pending_.end() || it->second->missing() > 0)
      return Aborted("step {} of run {} was dropped while it was prepared", step.step, step.run_id);
    pending = it->second.get();
    run = run_;
    if (pending->sum_of_squares.has_value()) return *pending->sum_of_squares;
  }
  // All ranks have arrived, so no push touches the step any more.
  if (!pending->squares.has_value()) pending->squares = SumRanks(pending);
  MEMBANK_FAIL_POINT("step.prepare.summed");
  RETURN_IF_ERROR(LogGradients(run, step.step, pending));
  const double sum = *pending->squares;
  uint64_t bytes = 0;
  for (const auto& [id, gradient] : pending->sum) bytes += gradient.bytes.size();

  absl::MutexLock lock(&run_mu_);
  pushed_bytes_ += bytes - pending->bytes;
  pending->bytes = bytes;
  pending->sum_of_squares = sum;
  return sum;
}

// Fills pending->sum and returns its sum of squares.
double Shard::SumRanks(PendingStep* pending) {
  std::map<BlockId, std::vector<Gradient>> contributions;
  for (RankGradients& rank : pending->ranks)
    for (auto& [id, gradient] : rank) contributions[id].push_back(std::move(gradient));
  pending->ranks.clear();
  struct Work {
    BlockShape shape;
    std::vector<Gradient>* contributions;
    Gradient* sum;
    double squares = 0;
  };
  std::vector<Work> work;
  for (auto& [id, gradients] : contributions) work.push_back({ShapeOf(spec_, id.level), &gradients, &pending->sum[id]});
  const auto add = [](Work& block) {
    *block.sum = SumContributions(block.shape, std::move(*block.contributions));
    const auto& known = block.sum->sum_of_squares;  // of a single contribution, since it was pushed
    block.squares = known.has_value() ? *known : SumOfSquares(block.shape, *block.sum);
  };
  std::vector<Work*> several;  // the others are only moved, which is not worth waking a thread
  for (Work& block : work) {
    if (block.contributions->size() > 1) several.push_back(&block);
    else add(block);
  }
  ParallelFor(pool_, several.size(), [&](size_t i) { add(*several[i]); });
  double squares = 0;
  for (const Work& block : work) squares += block.squares;
  return squares;
}

absl::StatusOr<uint64_t> Shard::ApplyStep(const StepId& step, const ApplyParameters& parameters) {
  RETURN_IF_ERROR(CheckParameters(parameters));
  absl::MutexLock train(&train_mu_);
  PendingStep* pending = nullptr;
  RunSettings run;
  {
    absl::MutexLock lock(&run_mu_);
    RETURN_IF_ERROR(CheckRun(step));
    if (step.step <= head_step_) return head_step_;
    const auto it = pending_.find(step.step);
    if (it == pending_.end() || !it->second->sum_of_squares.has_value())
      return FailedPrecondition("step {} of run {} was not prepared on server \"{}\", whose head is at step {}", step.step, step.run_id,
                                options_.server_id, head_step_);
    pending = it->second.get();
    if (pending->applying.has_value() && *pending->applying != parameters)
      return FailedPrecondition("step {} of run {} is half applied with scale {}, learning rate {} and weight decay {}; repeat it with the same",
                                step.step, step.run_id, pending->applying->scale, pending->applying->learning_rate,
                                pending->applying->weight_decay);
    run = run_;
  }
  RETURN_IF_ERROR(CheckSpillSpace(*pending, run));
  RETURN_IF_ERROR(LogApply(run, step.step, parameters, pending));
  {
    absl::MutexLock lock(&run_mu_);
    pending->applying = parameters;
  }
  RETURN_IF_ERROR(UpdateBlocks(pending->sum, run, step.step, parameters));

  MEMBANK_FAIL_POINT("step.apply.updated");
  std::unique_ptr<PendingStep> applied;  // freed after the lock
  absl::MutexLock lock(&run_mu_);
  const auto it = pending_.find(step.step);
  applied = std::move(it->second);
  pending_.erase(it);
  pushed_bytes_ -= applied->bytes;
  head_sum_of_squares_ = applied->sum_of_squares;
  head_sums_ = AddSums(applied->sums);
  head_step_ = step.step;
  MEMBANK_FAIL_POINT("step.apply.counted");
  return head_step_;
}

absl::Status Shard::UpdateBlocks(const RankGradients& sum, const RunSettings& run, uint64_t step, const ApplyParameters& parameters) {
  std::vector<std::pair<BlockId, const Gradient*>> work;  // level by level, so the largest blocks come first
  for (const auto& [id, gradient] : sum) work.emplace_back(id, &gradient);
  std::vector<absl::Status> results(work.size());
  std::atomic<bool> failed = false;
  ParallelFor(pool_, work.size(), [&](size_t i) {
    if (failed) return;
    results[i] = UpdateBlock(work[i].first, *work[i].second, run, step, parameters);
    if (!results[i].ok()) failed = true;
  });
  for (const absl::Status& result : results)
    if (!result.ok())
      return Annotate(result, fmt::format("step {} of run {} on server \"{}\" is half applied", step, run.run_id, options_.server_id));
  return absl::OkStatus();
}

// Before anything changes: is there room on disk for what the step pushes out of RAM?
absl::Status Shard::CheckSpillSpace(const PendingStep& pending, const RunSettings& run) const {
  if (options_.memory_budget_bytes == 0) return absl::OkStatus();
  uint64_t bytes = table_->GetStats().dirty_bytes;
  for (const auto& [id, gradient] : pending.sum) bytes += spec_.BlockBytes(id.level) + StateBytes(spec_, id.level, run);
  if (bytes <= options_.memory_budget_bytes) return absl::OkStatus();
  return CheckFreeSpace(bytes - options_.memory_budget_bytes);
}

absl::Status Shard::UpdateBlock(BlockId id, const Gradient& gradient, const RunSettings& run, uint64_t step, const ApplyParameters& parameters) {
  if (table_->VersionOf(id) == step) return absl::OkStatus();  // by an earlier attempt
  const uint64_t state_bytes = StateBytes(spec_, id.level, run);
  const bool from_payload = spec_.dtype == DType::kF32 || run.stochastic_rounding;
  const bool other_run = table_->StateBytesOf(id) != state_bytes;  // fp32 weights that it did without start from the payload
  ASSIGN_OR_RETURN(BlockTable::Update update, table_->BeginUpdate(id, state_bytes, from_payload || other_run));
  if (update.version == 0 && from_payload) update.payload = ReadUntouched(id).payload;
  Buffer payload = buffers_->Acquire(spec_.BlockBytes(id.level));
  const uint32_t crc = ApplyGradient(spec_, id, run, parameters, {step, update.version, update.payload.get()}, gradient, buffers_.get(),
                                     update.state.get(), &payload);
  table_->FinishUpdate(std::move(update), step, crc, buffers_->Share(std::move(payload)));
  return absl::OkStatus();
}

}  // namespace membank
