// `membank`: one command for everything around the services. Exit code 0: done, 1: failed ("membank: error: ..." on stderr), 2: usage.
#include <cstdio>
#include <cstdlib>

#include "cli/command.h"
#include "cli/corpus.h"
#include "cli/tree.h"
#if __has_include("cli/bank.h")
#include "cli/bank.h"
#define MEMBANK_CLI_BANK
#endif
#if __has_include("cli/train.h")
#include "cli/train.h"
#define MEMBANK_CLI_TRAIN
#endif
#if __has_include("cli/generate.h")
#include "cli/chat.h"
#include "cli/generate.h"
#define MEMBANK_CLI_GENERATE
#endif
#if __has_include("cli/eval.h")
#include "cli/eval.h"
#define MEMBANK_CLI_EVAL
#endif
#include "common/base/log.h"
#include "common/base/malloc_tuning.h"
#include "common/base/thread_tuning.h"
#include "common/config/config.h"
#include "fmt/format.h"

namespace membank {
namespace {

int Main(int argc, char** argv) {
  TuneThreads(argv);
  TuneMalloc();
  CLI::App app("Language models with a memory bank: documents to answers", "membank");
  app.require_subcommand(1);
  AddCorpusCommand(app);
  AddTreeCommand(app);
#ifdef MEMBANK_CLI_BANK
  AddBankCommand(app);
#endif
#ifdef MEMBANK_CLI_TRAIN
  AddTrainCommand(app);
#endif
#ifdef MEMBANK_CLI_GENERATE
  AddGenerateCommand(app);
  AddChatCommand(app);
#endif
#ifdef MEMBANK_CLI_EVAL
  AddEvalCommand(app);
#endif
  if (const auto code = config::Parse(app, argc, argv)) return *code;
  const char* level = std::getenv("MEMBANK_LOG_LEVEL");
  InitLogging("membank", level == nullptr ? "info" : level);
  const absl::Status status = RunChosenAction();
  if (status.ok()) return 0;
  std::fflush(stdout);
  fmt::print(stderr, "membank: error: {}\n", std::string(status.message()));
  return 1;
}

}  // namespace
}  // namespace membank

int main(int argc, char** argv) { return membank::Main(argc, argv); }
