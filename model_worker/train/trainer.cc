#include "model_worker/train/trainer.h"

#include <deque>
#include <memory>
#include <thread>

#include "common/bank/gradient_codec.h"
#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/log.h"
#include "common/base/progress.h"
#include "common/base/status_macros.h"
#include "common/text/tokenizer.h"
#include "model_worker/model/weights.h"
#include "model_worker/train/anchor_optimizer.h"
#include "model_worker/train/anchor_parameters.h"
#include "model_worker/train/batch_feed.h"
#include "model_worker/train/checkpointer.h"
#include "model_worker/train/collectives.h"
#include "model_worker/train/compute.h"
#include "model_worker/train/error_feedback.h"
#include "model_worker/train/no_bank.h"
#include "model_worker/train/rank_group.h"
#include "model_worker/train/run_log.h"
#include "model_worker/train/run_setup.h"
#include "model_worker/train/stopwatch.h"
#include "model_worker/train/validation.h"
#include "nlohmann/json.hpp"

namespace membank {

nlohmann::json TrainSummary::ToJson() const {
  nlohmann::json json = {{"run_directory", run_directory}, {"run_id", run_id}, {"checkpoint", checkpoint}, {"steps", steps},
                         {"steps_done", steps_done}, {"finished", finished()}, {"resumed_from", resumed_from}, {"loss", loss},
                         {"seconds", seconds}, {"tokens", tokens}, {"tokens_per_second", tokens_per_second},
                         {"fetched_bytes", fetched_bytes}, {"pushed_bytes", pushed_bytes}};
  if (loss_generic >= 0) json["loss_generic"] = loss_generic;
  if (!validation.empty()) json["validation"] = ParseJson(validation).value_or(nlohmann::json());
  return json;
}

namespace {

class Trainer {
 public:
  // `collectives`: of the ranks of a learning anchor; null with one rank.
  Trainer(const TrainOptions& options, MemoryClient& client, std::unique_ptr<PackedCorpus> corpus, Collectives* collectives,
          const std::atomic<bool>& stop)
      : options_(options), client_(client), spec_(client.spec()), collectives_(collectives), stop_(stop), corpus_(std::move(corpus)) {}

  absl::Status Open();
  absl::Status Run();
  TrainSummary Summary() const;

 private:
  absl::Status LoadInputs(nlohmann::json* description);
  absl::Status StartRun(const nlohmann::json& description);
  absl::Status LoadModel(const RunCheckpoint& checkpoint);
  absl::Status RunStep(uint64_t step);
  absl::Status RunUpdateOf(uint64_t step, StepRecord* record, BatchTotals* totals);
  StepUpdate MakeUpdate(const TrainBatch& batch, UpdateResult result);
  absl::Status StepAnchor(uint64_t step, uint64_t server_step);
  absl::Status SaveShard(uint64_t step);
  absl::Status JudgeEnd(uint64_t step);
  bool CheckpointAfter(uint64_t step) const {
    return last_step_ == step || (options_.checkpoint_every > 0 && step % options_.checkpoint_every == 0);
  }
  bool ValidateAfter(uint64_t step) const {
    return validation_ != nullptr && (step == options_.steps || (options_.validate_every > 0 && step % options_.validate_every == 0));
  }
  absl::Status Validate();
  absl::Status LogApplied();
  absl::Status BeginCheckpoint();
  absl::Status WriteCheckpoint();

  uint64_t server_step() const { return start_.identity.base_step + step_; }
  bool commits() const { return options_.rank == 0; }  // keeps the run directory: log, checkpoints

  const TrainOptions& options_;
  MemoryClient& client_;
  const BankSpec spec_;
  Collectives* const collectives_;
  const std::atomic<bool>& stop_;
  std::unique_ptr<RunDirectory> directory_;     // rank 0's, as log and checkpointer
  std::unique_ptr<PackedCorpus> corpus_;
  AnchorWeights anchor_;                        // until the model takes it
  StartPoint start_;
  uint64_t step_ = 0;                           // done
  std::unique_ptr<Transformer> model_;
  std::unique_ptr<AnchorParameters> parameters_;  // null: the anchor is frozen; as the optimizer
  std::unique_ptr<AnchorOptimizer> optimizer_;
  std::unique_ptr<RunLog> log_;
  std::unique_ptr<Validation> validation_;      // rank 0's, with --validation
  std::unique_ptr<Checkpointer> checkpointer_;
  std::unique_ptr<ErrorFeedback> feedback_;     // with int8 gradients
  std::deque<std::pair<StepRecord, BatchTotals>> unlogged_;  // computed, not applied yet
  uint64_t stop_seen_ = 0;                      // the first step that a rank pushed with a request to stop
  uint64_t last_step_ = 0;                      // the run's last one, or the one it stops after; 0: not known yet
  std::string checkpoint_;
  std::string validation_text_;                 // the newest result
  StepRecord last_;                             // the newest step whose outcome is known
  uint64_t tokens_ = 0;
  double seconds_ = 0;
  ClientTraffic traffic_, first_traffic_;
  Stopwatch step_watch_;
  // Last, so that they stop first: both run threads that use the members above.
  std::unique_ptr<BlockCache> cache_;
  std::unique_ptr<StepCommitter> committer_;
  std::unique_ptr<BatchFeed> feed_;
};

absl::Status Trainer::Open() {
  at::set_num_threads(options_.threads > 0 ? static_cast<int>(options_.threads) : static_cast<int>(std::thread::hardware_concurrency()));
  if (commits()) {
    ASSIGN_OR_RETURN(directory_, RunDirectory::Open(options_.output));
  }
  nlohmann::json description;
  RETURN_IF_ERROR(LoadInputs(&description));
  RETURN_IF_ERROR(StartRun(description));
  RETURN_IF_ERROR(LoadModel(start_.checkpoint));
  BlockCacheOptions cache;
  cache.dtype = TorchDtype(options_.dtype);
  cache.capacity_bytes = options_.cache_bytes;
  cache_ = std::make_unique<BlockCache>(&client_, cache);
  CommitterOptions committer{start_.identity.run_id, start_.identity.epoch, server_step(), options_.clip, options_.rank, options_.world_size};
  committer.in_flight = options_.UpdatesInFlight();
  committer.rank_timeout = std::chrono::seconds(options_.rank_timeout_seconds);
  committer_ = std::make_unique<StepCommitter>(&client_, committer);
  feed_ = std::make_unique<BatchFeed>(options_, corpus_.get(), &client_, cache_.get(), committer_.get(), start_.identity.base_step);
  if (!commits()) return absl::OkStatus();
  ASSIGN_OR_RETURN(log_, RunLog::Open(options_.output, step_, options_.HasBank() ? "fetched memory" : "anchor alone"));
  RETURN_IF_ERROR(RemoveOrphans(*directory_, start_.identity.run_id, client_));
  checkpointer_ = std::make_unique<Checkpointer>(&client_, directory_.get(), start_.identity, description, options_.keep_checkpoints,
                                                 options_.anchor_path);
  // Without a checkpoint a crash of the servers would leave nothing to come back to; and a run that lost only its last one is not finished.
  const bool lost_last = step_ == options_.steps && step_ > start_.checkpoint.step;
  if (checkpoint_.empty() || lost_last) RETURN_IF_ERROR(WriteCheckpoint());
  return options_.world_size > 1 ? AnnounceRun(options_, description, start_, client_) : absl::OkStatus();
}

// Rank 0 starts or resumes the run; the others join it.
absl::Status Trainer::StartRun(const nlohmann::json& description) {
  if (commits()) {
    ASSIGN_OR_RETURN(start_, StartOrResume(options_, description, *directory_, client_));
  } else {
    ASSIGN_OR_RETURN(start_, FollowRun(options_, description, client_));
  }
  step_ = start_.step;
  checkpoint_ = start_.checkpoint.id;
  if (options_.EffectiveGradientDType() != kI8Rows) return absl::OkStatus();
  feedback_ = std::make_unique<ErrorFeedback>(spec_, options_.rank, options_.world_size);
  return step_ == 0 ? absl::OkStatus() : feedback_->Load(RunDirectory::CheckpointPath(options_.output, checkpoint_));
}

absl::Status Trainer::LoadInputs(nlohmann::json* description) {
  ASSIGN_OR_RETURN(anchor_, LoadAnchor(options_.anchor_path, TorchDtype(options_.dtype)));
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, LoadTokenizer(options_.anchor_path));
  RETURN_IF_ERROR(CheckCorpusFits(corpus_->info(), anchor_.config, tokenizer->Fingerprint()));
  if (options_.HasBank()) RETURN_IF_ERROR(CheckBankFits(spec_, corpus_->info(), anchor_.config, anchor_.origin));
  const RunFacts facts{anchor_.fingerprint, corpus_->Fingerprint(), spec_.tree_fingerprint, options_.HasBank() ? spec_.Hash() : "none"};
  *description = DescribeRun(options_, facts, spec_.fan_out);
  if (commits() && !options_.validation_path.empty()) {
    ASSIGN_OR_RETURN(validation_, Validation::Open(options_, spec_, anchor_, *tokenizer, corpus_->Fingerprint()));
  }
  return absl::OkStatus();
}

absl::Status Trainer::LoadModel(const RunCheckpoint& checkpoint) {
  const bool restore = options_.TrainsAnchor() && checkpoint.step > 0;
  const std::string path = RunDirectory::CheckpointPath(options_.output, checkpoint.id);
  if (restore) {
    ASSIGN_OR_RETURN(anchor_, LoadAnchor(path + kAnchorDirectory, TorchDtype(options_.dtype)));
  }
  model_ = std::make_unique<Transformer>(std::move(anchor_), options_.TrainsAnchor());
  if (!options_.TrainsAnchor()) return absl::OkStatus();
  parameters_ = std::make_unique<AnchorParameters>(model_->weights().Named(), collectives_);
  optimizer_ = std::make_unique<AnchorOptimizer>(parameters_.get(), options_.beta1, options_.beta2, options_.epsilon,
                                                 options_.decay_norms);
  return restore ? optimizer_->Load(path) : absl::OkStatus();
}

absl::Status Trainer::Run() {
  Progress progress("train", "steps", options_.steps, step_);
  first_traffic_ = traffic_ = client_.traffic();
  step_watch_.Lap();
  if (step_ < options_.steps) feed_->Start(step_);
  while (step_ < options_.steps) {
    RETURN_IF_ERROR(RunStep(step_ + 1));
    ++step_;
    if (ValidateAfter(step_)) RETURN_IF_ERROR(Validate());
    if (CheckpointAfter(step_) && commits()) {
      RETURN_IF_ERROR(last_step_ == step_ ? WriteCheckpoint() : BeginCheckpoint());
      step_watch_.Lap();  // a checkpoint is nobody's step
    }
    progress.Update(step_, fmt::format("loss {:.4f}  {:.0f} tokens/s", last_.loss, seconds_ > 0 ? tokens_ / seconds_ : 0.0));
    if (last_step_ == step_) break;
  }
  RETURN_IF_ERROR(committer_->WaitApplied(server_step()));
  traffic_ = client_.traffic();  // with the last push
  return LogApplied();
}

absl::Status Trainer::RunStep(uint64_t step) {
  if (checkpointer_ != nullptr) RETURN_IF_ERROR(checkpointer_->Check());
  StepRecord record;
  record.step = step;
  BatchTotals totals;
  RETURN_IF_ERROR(RunUpdateOf(step, &record, &totals));
  record.learning_rate = options_.LearningRateOf(step);
  record.seconds = step_watch_.Lap();
  const ClientTraffic traffic = client_.traffic();
  record.fetched_bytes = traffic.fetched_bytes - traffic_.fetched_bytes;
  record.pushed_bytes = traffic.pushed_bytes - traffic_.pushed_bytes;
  traffic_ = traffic;
  tokens_ += record.tokens;
  seconds_ += record.seconds;
  unlogged_.push_back({record, totals});
  return LogApplied();
}

// Take, compute, submit. The next update is on its way before this one computes.
absl::Status Trainer::RunUpdateOf(uint64_t step, StepRecord* record, BatchTotals* totals) {
  Stopwatch watch;
  ASSIGN_OR_RETURN(const ReadyBatch ready, feed_->Take());
  record->wait_seconds = watch.Lap();
  if (step < options_.steps) feed_->Start(step);

  const TrainBatch& batch = ready.batch;
  ASSIGN_OR_RETURN(UpdateResult result, RunUpdate(*model_, spec_, batch, ready.blocks, options_.micro_batch_sequences, options_.z_loss, parameters_.get()));
  record->has_generic = batch.generic_targets > 0 && batch.generic_targets < batch.targets;
  record->tokens = batch.tokens;
  record->data_seconds = ready.data_seconds;
  record->fetch_seconds = ready.fetch_seconds;
  record->compute_seconds = watch.Lap();
  *totals = batch;

  RETURN_IF_ERROR(JudgeEnd(step));
  const uint64_t server_step = batch.server_step;
  if (parameters_ != nullptr) parameters_->StartSum();
  StepUpdate update = MakeUpdate(batch, std::move(result));
  if (parameters_ != nullptr) {
    ASSIGN_OR_RETURN(update.anchor_sum_of_squares, parameters_->FinishSum(step));
  }
  // Before the push: when rank 0 sees the step applied and commits its checkpoint, every rank's part of it is there.
  if (feedback_ != nullptr && CheckpointAfter(step))
    RETURN_IF_ERROR(feedback_->Save(RunDirectory::CheckpointPath(options_.output, CheckpointId(start_.identity, step))));
  RETURN_IF_ERROR(committer_->Submit(std::move(update)));
  return optimizer_ == nullptr ? absl::OkStatus() : StepAnchor(step, server_step);
}

// The norm of the whole step, memory and anchor together, scales both; the servers apply while the anchor does. Only rank 0 learns it from them.
absl::Status Trainer::StepAnchor(uint64_t step, uint64_t server_step) {
  double scale = 1;
  if (commits()) {
    ASSIGN_OR_RETURN(const StepOutcome outcome, committer_->WaitPrepared(server_step));
    scale = outcome.scale;
  }
  ASSIGN_OR_RETURN(scale, parameters_->FromRankZero(scale, fmt::format("waiting for the gradient's norm of step {}", step)));
  const double ratio = options_.learning_rate > 0 ? options_.EffectiveAnchorLearningRate() / options_.learning_rate : 0;
  optimizer_->Step(scale, ratio * options_.LearningRateOf(step), options_.EffectiveAnchorWeightDecay());
  RETURN_IF_ERROR(parameters_->Share(step));
  return options_.world_size > 1 && CheckpointAfter(step) ? SaveShard(step) : absl::OkStatus();
}

// Rank 0 commits the checkpoint when the optimizer state of all others is there.
absl::Status Trainer::SaveShard(uint64_t step) {
  const std::string path = RunDirectory::CheckpointPath(options_.output, CheckpointId(start_.identity, step));
  if (!commits()) {
    RETURN_IF_ERROR(MakeDirectories(path));
    RETURN_IF_ERROR(optimizer_->Save(path, options_.rank));
  }
  return parameters_->Meet(fmt::format("writing the checkpoint of step {}", step));
}

// Is `step` the last one? Ranks must agree on that: a request to stop travels with the rank's push, and all stop after the same later step, whose
// submission waits until the request has come back to everyone.
absl::Status Trainer::JudgeEnd(uint64_t step) {
  if (step == options_.steps) last_step_ = step;
  if (options_.world_size == 1) {
    if (stop_.load()) last_step_ = step;
    return absl::OkStatus();
  }
  const uint64_t lag = options_.UpdatesInFlight();
  if (step <= start_.checkpoint.step + lag) return absl::OkStatus();
  RETURN_IF_ERROR(committer_->WaitApplied(start_.identity.base_step + step - lag));
  RETURN_IF_ERROR(LogApplied());
  if (stop_seen_ > 0 && step >= stop_seen_ + lag) last_step_ = step;
  return absl::OkStatus();
}

StepUpdate Trainer::MakeUpdate(const TrainBatch& batch, UpdateResult result) {
  auto tensors = std::make_shared<std::vector<torch::Tensor>>(std::move(result.gradients));
  const DType dtype = options_.EffectiveGradientDType();
  StepUpdate update;
  update.step = batch.server_step;
  for (size_t i = 0; i < tensors->size(); ++i) {
    torch::Tensor& gradient = (*tensors)[i];
    gradient = feedback_ != nullptr ? feedback_->Encode(batch.blocks[i], gradient) : gradient.to(TorchDtype(dtype));
    update.gradients.push_back({batch.blocks[i], dtype, {static_cast<const uint8_t*>(gradient.data_ptr()), gradient.nbytes()}});
  }
  update.owner = tensors;
  update.batch = SequencesText(batch);
  update.learning_rate = options_.LearningRateOf(batch.step);
  update.weight_decay = options_.weight_decay;
  update.sums = {result.shares.fetched, result.shares.generic, stop_.load() ? 1.0 : 0.0, result.shares.z};
  return update;
}

// Writes the log lines of steps whose updates were applied since the last call.
absl::Status Trainer::LogApplied() {
  for (const StepOutcome& outcome : committer_->TakeOutcomes()) {
    auto& [record, totals] = unlogged_.front();
    const UpdateLosses losses = LossesOf(totals, {outcome.sums[0], outcome.sums[1]});
    if (outcome.sums[2] > 0 && stop_seen_ == 0) stop_seen_ = record.step;
    record.loss = losses.loss;
    record.fetched_loss = losses.fetched;
    record.generic_loss = losses.generic;
    record.z_loss = outcome.sums[3];
    record.gradient_norm = outcome.gradient_norm;
    record.push_seconds = outcome.push_seconds;
    record.apply_seconds = outcome.apply_seconds;
    const bool log = record.step % options_.log_every == 0 || record.step == options_.steps;
    if (log && commits()) RETURN_IF_ERROR(log_->Append(record));
    last_ = record;
    unlogged_.pop_front();
  }
  return absl::OkStatus();
}

// The other ranks wait for rank 0 with their next step.
absl::Status Trainer::Validate() {
  RETURN_IF_ERROR(committer_->WaitApplied(server_step()));
  RETURN_IF_ERROR(LogApplied());
  ASSIGN_OR_RETURN(const ValidationResult result, validation_->Run(*model_, *cache_, server_step()));
  LOG_INFO("step {}: loss on held-out documents: {}", step_, result.ToText());
  validation_text_ = result.ToJson().dump();
  RETURN_IF_ERROR(log_->AppendValidation(step_, result));
  traffic_ = client_.traffic();
  step_watch_.Lap();  // nobody's step
  return absl::OkStatus();
}

// Written beside the next steps, unless the anchor learns, too.
absl::Status Trainer::BeginCheckpoint() {
  RETURN_IF_ERROR(committer_->WaitApplied(server_step()));
  RETURN_IF_ERROR(LogApplied());
  RETURN_IF_ERROR(log_->Sync());
  RETURN_IF_ERROR(checkpointer_->Begin(step_, server_step(), model_->weights(), optimizer_.get()));
  return log_->DrawChart();
}

absl::Status Trainer::WriteCheckpoint() {
  RETURN_IF_ERROR(BeginCheckpoint());
  ASSIGN_OR_RETURN(checkpoint_, checkpointer_->Wait());
  return absl::OkStatus();
}

TrainSummary Trainer::Summary() const {
  TrainSummary summary;
  summary.run_directory = options_.output;
  summary.run_id = start_.identity.run_id;
  if (commits()) summary.checkpoint = checkpoint_;
  summary.validation = validation_text_;
  summary.steps = options_.steps;
  summary.steps_done = step_;
  summary.resumed_from = start_.step;
  summary.loss = last_.has_generic ? last_.fetched_loss : last_.loss;
  if (last_.has_generic) summary.loss_generic = last_.generic_loss;
  summary.tokens = tokens_;
  summary.seconds = seconds_;
  summary.tokens_per_second = seconds_ > 0 ? tokens_ / seconds_ : 0;
  summary.fetched_bytes = traffic_.fetched_bytes - first_traffic_.fetched_bytes;
  summary.pushed_bytes = traffic_.pushed_bytes - first_traffic_.pushed_bytes;
  return summary;
}

}  // namespace

namespace {

struct Meeting {
  std::unique_ptr<Rendezvous> rendezvous;
  std::unique_ptr<Collectives> of_anchor;  // the trainer's thread
  std::unique_ptr<Collectives> of_steps;   // without a bank: the committer's thread
};

absl::StatusOr<Meeting> MeetRanks(const TrainOptions& options) {
  RendezvousOptions where{options.master_address, options.master_port, options.rank, options.world_size};
  where.timeout = std::chrono::seconds(options.rank_timeout_seconds);
  where.prefix = options.store_prefix;
  where.agent_store = options.agent_store;
  Meeting meeting;
  ASSIGN_OR_RETURN(meeting.rendezvous, Rendezvous::Join(where));
  ASSIGN_OR_RETURN(meeting.of_anchor, Collectives::Create(meeting.rendezvous.get(), "anchor"));
  if (!options.HasBank()) {
    ASSIGN_OR_RETURN(meeting.of_steps, Collectives::Create(meeting.rendezvous.get(), "steps"));
  }
  return meeting;
}

// `client` null: there is no bank.
absl::StatusOr<TrainSummary> TrainWith(TrainOptions options, MemoryClient* client, const std::atomic<bool>& stop) {
  ASSIGN_OR_RETURN(std::unique_ptr<PackedCorpus> corpus, PackedCorpus::Open(options.corpus_path));
  RETURN_IF_ERROR(options.ResolveSteps(corpus->size()));
  RETURN_IF_ERROR(options.Validate());
  if (options.HasBank() != (client != nullptr))
    return InvalidArgument("--mode {} {} memory servers", TrainModeName(options.mode), options.HasBank() ? "needs" : "has no");
  Meeting meeting;
  if (options.TrainsAnchor() && options.world_size > 1) {
    ASSIGN_OR_RETURN(meeting, MeetRanks(options));
  }
  std::unique_ptr<NoBank> no_bank;
  if (client == nullptr)
    client = (no_bank = std::make_unique<NoBank>(corpus->info(), meeting.rendezvous.get(), std::move(meeting.of_steps))).get();
  absl::Status status;
  {
    Trainer trainer(options, *client, std::move(corpus), meeting.of_anchor.get(), stop);
    status = trainer.Open();
    if (status.ok()) status = trainer.Run();
    if (status.ok()) return trainer.Summary();
  }
  // The connections go first: the other ranks notice, and find out that this one failed and did not die.
  no_bank.reset();
  meeting.of_anchor.reset();
  if (meeting.rendezvous != nullptr) meeting.rendezvous->LeaveAndNameSilent();
  return status;
}

}  // namespace

absl::StatusOr<TrainSummary> Train(const TrainOptions& options, MemoryClient& client, const std::atomic<bool>& stop) {
  return TrainWith(options, &client, stop);
}

absl::StatusOr<TrainSummary> TrainAnchorAlone(const TrainOptions& options, const std::atomic<bool>& stop) {
  return TrainWith(options, nullptr, stop);
}

}  // namespace membank
