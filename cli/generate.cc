#include "cli/generate.h"

#include <memory>
#include <string>
#include <vector>

#include "cli/asking.h"
#include "cli/command.h"
#include "common/base/status_macros.h"

namespace membank {
namespace {

struct GenerateOptions : AskingOptions {
  std::string prompt, retrieve_on;
  std::vector<std::string> stop;
};

absl::Status RunGenerate(const GenerateOptions& options) {
  RouterGenerateRequest request = options.request;
  request.prompt = options.prompt;
  request.stop = options.stop;
  ASSIGN_OR_RETURN(request.memory.mode, ParseMemoryMode(options.memory));
  RETURN_IF_ERROR(SetPaths(options.paths, &request.memory));
  request.memory.retrieve_on = options.retrieve_on;
  ASSIGN_OR_RETURN(const std::unique_ptr<RouterClient> client, RouterClient::Connect(options.router));
  fmt::print("{}", options.prompt);
  return AskAndPrint(*client, request).status();
}

}  // namespace

void AddGenerateCommand(CLI::App& app) {
  auto options = std::make_shared<GenerateOptions>();
  CLI::App* command = app.add_subcommand("generate", "Continue a prompt through a router");
  command->add_option("prompt", options->prompt, "what to continue")->required();
  options->AddOptions(command);
  command->add_option("--retrieve-on", options->retrieve_on, "find the path by this text instead of the prompt");
  command->add_option("--stop", options->stop, "stop before this text; repeat for more");
  SetAction(command, [options] { return RunGenerate(*options); });
}

}  // namespace membank
