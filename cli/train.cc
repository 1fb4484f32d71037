#include "cli/train.h"

#include <csignal>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <string>

#include "cli/command.h"
#include "cli/connect.h"
#include "common/bank/gradient_codec.h"
#include "common/base/status_macros.h"
#include "model_worker/train/trainer.h"
#include "nlohmann/json.hpp"

namespace membank {
namespace {

std::atomic<bool> stop_requested{false};

// The first signal finishes the step and checkpoints; a second one ends the process as usual.
void RequestStop(int signal) {
  stop_requested.store(true);
  std::signal(signal, SIG_DFL);
}

struct TrainCommand {
  TrainOptions options;
  MemoryServers servers;
  std::string mode = "frozen", schedule = "cosine", decay_norms = "on", resume = "auto", prefetch = "on", dtype = "bf16";
  std::string gradient_dtype, optimizer = "adamw", decay = "touched", master_weights = "fp32";
};

absl::Status RunTrain(const TrainCommand& command) {
  TrainOptions options = command.options;
  for (const TrainMode mode : {TrainMode::kFrozen, TrainMode::kCotrain, TrainMode::kAnchor})
    if (TrainModeName(mode) == command.mode) options.mode = mode;
  for (const Schedule schedule : {Schedule::kCosine, Schedule::kWsd})
    if (ScheduleName(schedule) == command.schedule) options.schedule = schedule;
  options.decay_norms = command.decay_norms == "on";
  options.resume = command.resume == "auto";
  options.prefetch = command.prefetch == "on";
  ASSIGN_OR_RETURN(options.dtype, ParseDType(command.dtype));
  if (!command.gradient_dtype.empty()) {
    ASSIGN_OR_RETURN(options.gradient_dtype, ParseGradientDType(command.gradient_dtype));
  }
  for (const OptimizerKind kind : {OptimizerKind::kAdamW, OptimizerKind::kSgd, OptimizerKind::kRowWiseAdamW})
    if (OptimizerName(kind) == command.optimizer) options.optimizer = kind;
  for (const DecayPolicy policy : {DecayPolicy::kTouched, DecayPolicy::kMissed, DecayPolicy::kNone})
    if (DecayPolicyName(policy) == command.decay) options.decay = policy;
  options.master_weights = command.master_weights == "fp32";
  if (options.HasBank() != command.servers.given())
    return InvalidArgument("--mode {} {}", command.mode, options.HasBank() ? "needs the bank's servers: give --slot-map or --memory-servers"
                                                                           : "has no bank: leave --slot-map and --memory-servers out");
  // torchrun serves the store itself, and it outlives a restart of the ranks.
  const char* agent = std::getenv("TORCHELASTIC_USE_AGENT_STORE");
  options.agent_store = agent != nullptr && std::string_view(agent) == "True";
  const char* restarts = std::getenv("TORCHELASTIC_RESTART_COUNT");
  options.store_prefix = fmt::format("membank/{}", restarts == nullptr ? "0" : restarts);
  std::unique_ptr<MemoryClient> client;
  if (options.HasBank()) {
    ASSIGN_OR_RETURN(client, command.servers.Connect());
  }
  std::signal(SIGINT, RequestStop);
  std::signal(SIGTERM, RequestStop);
  ASSIGN_OR_RETURN(const TrainSummary summary, client != nullptr ? Train(options, *client, stop_requested) : TrainAnchorAlone(options, stop_requested));
  fmt::print("{}\n", summary.ToJson().dump());
  if (!summary.finished() && options.rank == 0)
    fmt::print(stderr, "stopped after step {} of {}; checkpoint {} is written. The same command with --output {} goes on from there.\n",
               summary.steps_done, summary.steps, summary.checkpoint, summary.run_directory);
  return absl::OkStatus();
}

void AddWhatAndWhere(CLI::App* app, TrainCommand* command) {
  TrainOptions& o = command->options;
  app->add_option("--anchor", o.anchor_path, "Hugging Face directory or GGUF file of the anchor")->required()->check(CLI::ExistingPath);
  app->add_option("--corpus", o.corpus_path, "directory that `membank corpus build` wrote")->required()->check(CLI::ExistingDirectory);
  app->add_option("--output", o.output, "run directory: log.jsonl, loss.svg, checkpoints/")->required();
  command->servers.AddOptions(app, /*required=*/false);
  app->add_option("--resume", command->resume, "auto: continue the run in --output from its newest checkpoint; never: --output must hold no run")
      ->check(CLI::IsMember({"auto", "never"}))->capture_default_str();
}

void AddRecipe(CLI::App* app, TrainCommand* command) {
  TrainOptions& o = command->options;
  app->add_option("--mode", command->mode, "frozen: only the bank learns; cotrain: the anchor learns with it; anchor: the anchor learns alone, "
                  "without a bank and its servers")->check(CLI::IsMember({"frozen", "cotrain", "anchor"}))->capture_default_str();
  auto* length = app->add_option_group("length", "how long");
  length->add_option("--steps", o.steps, "optimizer steps");
  length->add_option("--epochs", o.epochs, "passes over the corpus, rounded up to whole steps");
  length->require_option(1);
  app->add_option("--batch-sequences", o.batch_sequences, "sequences of one step")->capture_default_str();
  app->add_option("--micro-batch-sequences", o.micro_batch_sequences, "sequences of one forward pass, 0 = all: less memory, the same step")
      ->capture_default_str();
  app->add_option("--learning-rate", o.learning_rate, "of the blocks (with --mode anchor: of the anchor), after the warm-up")->capture_default_str();
  app->add_option("--min-learning-rate", o.min_learning_rate, "of the last step")->capture_default_str();
  app->add_option("--anchor-learning-rate", o.anchor_learning_rate, "co-training: of the anchor, same schedule (default: --learning-rate)");
  app->add_option("--schedule", command->schedule, "after the warm-up: cosine; wsd: constant, then linear over the last --cooldown-steps")
      ->check(CLI::IsMember({"cosine", "wsd"}))->capture_default_str();
  app->add_option("--cooldown-steps", o.cooldown_steps, "of --schedule wsd (default: a fifth of the steps)");
  app->add_option("--warmup-steps", o.warmup_steps, "linear warm-up")->capture_default_str();
  app->add_option("--weight-decay", o.weight_decay, "decoupled; on the blocks of a step and on a learning anchor")->capture_default_str();
  app->add_option("--anchor-weight-decay", o.anchor_weight_decay, "of a learning anchor (default: --weight-decay)");
  app->add_option("--decay-norms", command->decay_norms, "off: a learning anchor's norms and biases do not decay")->check(CLI::IsMember({"on", "off"}))
      ->capture_default_str();
  app->add_option("--decay", command->decay, "weight decay falls on a block that a step touches: touched: once; missed: once for every step since it "
                  "was touched last; none: never")->check(CLI::IsMember({"touched", "missed", "none"}))->capture_default_str();
  app->add_option("--optimizer", command->optimizer, "of the blocks, at the memory servers: adamw; row-wise-adamw: one second moment per row of "
                  "512 or so parameters, 4 bytes less each; sgd")->check(CLI::IsMember({"adamw", "row-wise-adamw", "sgd"}))->capture_default_str();
  app->add_option("--master-weights", command->master_weights, "at the memory servers, beside the blocks of a bf16 bank: fp32; none: the payload "
                  "is rounded stochastically, 4 bytes less per parameter")->check(CLI::IsMember({"fp32", "none"}))->capture_default_str();
  app->add_option("--z-loss", o.z_loss, "c: every target adds c * log(sum(exp(logits)))^2 to the loss that is minimised; the logged losses are without it")
      ->capture_default_str();
  app->add_option("--clip", o.clip, "largest global norm of the gradient, memory and anchor together; 0 = off")->capture_default_str();
  app->add_option("--generic-probability", o.generic_probability,
                  "a sequence learns the generic memory instead of its path with this probability (default: 1/(k+1), the paper's)");
  app->add_flag("--generic-control", o.generic_control,
                "train the generic memory on the same sequences in the same steps, each with its own mean loss: the control then sees "
                "exactly as many tokens as the bank (twice the compute; frozen anchor only)");
  app->add_option("--dtype", command->dtype, "bf16 or fp32: activations, blocks")->capture_default_str();
  app->add_option("--gradient-dtype", command->gradient_dtype, "of pushed gradients: bf16, fp32, or int8 with a scale per row and error feedback "
                  "(half the bytes of bf16; 4 bytes of memory per parameter of the blocks a worker trains) (default: as --dtype)");
  app->add_option("--seed", o.seed, "order of the sequences and choice of the generic ones")->capture_default_str();
}

void AddRunning(CLI::App* app, TrainCommand* command) {
  TrainOptions& o = command->options;
  app->add_option("--staleness", o.staleness, "steps a worker may compute ahead of the applied ones, enforced by the servers; 0: exact, above: not reproducible")
      ->capture_default_str();
  app->add_option("--rank", o.rank, "this process among --world-size that share every batch; 0 commits steps and checkpoints")->envname("RANK")
      ->capture_default_str();
  app->add_option("--world-size", o.world_size, "ranks of the run, each started with the same settings")->envname("WORLD_SIZE")->capture_default_str();
  app->add_option("--master-addr", o.master_address, "machine of rank 0, where the ranks of a learning anchor meet; not used with --mode frozen")
      ->envname("MASTER_ADDR");
  app->add_option("--master-port", o.master_port, "and its port")->envname("MASTER_PORT")->capture_default_str();
  app->add_option("--rank-timeout", o.rank_timeout_seconds, "seconds that a rank waits for another one before it gives up, naming it")
      ->capture_default_str();
  app->add_option("--validation", o.validation_path, "corpus of held-out documents (`membank corpus build --held-out`): its loss with fetched, generic and no "
                  "memory goes to the log, the terminal and the picture")->check(CLI::ExistingDirectory);
  app->add_option("--validate-every", o.validate_every, "steps; 0 = only after the last one")->capture_default_str();
  app->add_option("--validation-sequences", o.validation_sequences, "of it, at most; 0 = all")->capture_default_str();
  app->add_option("--checkpoint-every", o.checkpoint_every, "steps; 0 = only at the start and the end")->capture_default_str();
  app->add_option("--keep-checkpoints", o.keep_checkpoints, "older ones are deleted, here and on every server, whatever the servers' own setting")->capture_default_str();
  app->add_option("--log-every", o.log_every, "steps between lines of log.jsonl")->capture_default_str();
  app->add_option("--threads", o.threads, "compute threads, 0 = one per core")->capture_default_str();
  app->add_option("--cache-bytes", o.cache_bytes, "blocks kept on this worker")->transform(CLI::AsSizeValue(false))->capture_default_str();
  app->add_option("--prefetch", command->prefetch, "on: the next step's blocks come while this one computes; off: for comparison, same result")
      ->check(CLI::IsMember({"on", "off"}))->capture_default_str();
}

}  // namespace

void AddTrainCommand(CLI::App& app) {
  CLI::App* train = app.add_subcommand("train", "learn a corpus into a bank, beside a frozen or a co-trained anchor");
  auto command = std::make_shared<TrainCommand>();
  AddWhatAndWhere(train, command.get());
  AddRecipe(train, command.get());
  AddRunning(train, command.get());
  SetAction(train, [command] { return RunTrain(*command); });
}

}  // namespace membank
