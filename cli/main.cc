// `membank`: one command for everything around the services. Exit code 0: done, 1: failed ("membank: error: ..." on stderr), 2: usage.
#include <cstdio>
#include <cstdlib>

#include "cli/anchor.h"
#include "cli/bake.h"
#include "cli/bank.h"
#include "cli/chat.h"
#include "cli/checkpoint.h"
#include "cli/command.h"
#include "cli/corpus.h"
#include "cli/doctor.h"
#include "cli/eval.h"
#include "cli/generate.h"
#include "cli/train.h"
#include "cli/tree.h"
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
  AddCheckpointCommand(app);
  AddAnchorCommand(app);
  AddBankCommand(app);
  AddBakeCommand(app);
  AddTrainCommand(app);
  AddGenerateCommand(app);
  AddChatCommand(app);
  AddEvalCommand(app);
  AddDoctorCommand(app);
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
