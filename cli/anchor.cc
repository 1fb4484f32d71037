#include "cli/anchor.h"

#include <memory>
#include <string>

#include "cli/command.h"
#include "common/base/status_macros.h"
#include "model_worker/train/anchor_init.h"

namespace membank {
namespace {

struct AnchorCommand {
  AnchorInitOptions init;
  std::string dtype = "fp32";
};

absl::Status RunInit(const AnchorCommand& command) {
  AnchorInitOptions options = command.init;
  ASSIGN_OR_RETURN(options.dtype, ParseDType(command.dtype));
  ASSIGN_OR_RETURN(const NewAnchor anchor, InitAnchor(options));
  fmt::print("{}: {} parameters, {}, fingerprint {}\n", options.output, anchor.parameters, command.dtype, anchor.fingerprint);
  return absl::OkStatus();
}

struct CountCommand {
  std::string config;
};

absl::Status RunCount(const CountCommand& command) {
  ASSIGN_OR_RETURN(const uint64_t parameters, CountAnchorParameters(command.config));
  fmt::print("{}\n", parameters);
  return absl::OkStatus();
}

}  // namespace

void AddAnchorCommand(CLI::App& app) {
  CLI::App* anchor = app.add_subcommand("anchor", "new anchors, to be trained from scratch");
  anchor->require_subcommand(1);
  const std::string what = "config.json of Hugging Face, or one of: " + AnchorPresets();
  auto init = std::make_shared<AnchorCommand>();
  CLI::App* app_init = AddCommand(anchor, "init", "write random weights, as OpenLM draws them, as a Hugging Face folder", init, RunInit);
  app_init->add_option("--config", init->init.config, what)->required();
  app_init->add_option("--tokenizer", init->init.tokenizer, "directory whose tokenizer goes with the anchor")->required()->check(CLI::ExistingDirectory);
  app_init->add_option("--output", init->init.output, "folder to write; must be empty or not exist")->required();
  app_init->add_option("--seed", init->init.seed, "same seed, same weights")->capture_default_str();
  app_init->add_option("--dtype", init->dtype, "bf16 or fp32")->capture_default_str();
  app_init->add_option("--vocabulary", init->init.vocabulary, "instead of the configuration's");
  app_init->add_option("--context", init->init.context, "instead of the configuration's");
  auto count = std::make_shared<CountCommand>();
  AddCommand(anchor, "count", "print the number of parameters of a configuration", count, RunCount)
      ->add_option("--config", count->config, what)->required();
}

}  // namespace membank
