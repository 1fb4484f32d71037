#include "cli/chat.h"

#include <cstdio>
#include <iostream>
#include <memory>
#include <string>

#include "absl/strings/str_split.h"
#include "cli/asking.h"
#include "cli/command.h"
#include "common/base/status_macros.h"

namespace membank {
namespace {

struct ChatOptions : AskingOptions {
  std::string system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";
};

constexpr char kHelp[] =
    "/memory none|generic|fetched   which memory answers\n"
    "/path 3.5                      take this path (NAME=3.5 in a stacked bank);  /path alone: find it by the message again\n"
    "/reset                         forget the conversation\n"
    "/quit                          end\n";

std::string Message(const std::string& role, const std::string& content) { return "<|im_start|>" + role + "\n" + content + "<|im_end|>\n"; }

class Chat {
 public:
  Chat(const ChatOptions& options, RouterClient& client, MemoryChoice memory)
      : options_(options), client_(client), memory_(std::move(memory)), history_(Message("system", options.system)) {}

  // Reads lines until /quit or the end of the input.
  void Run() {
    fmt::print(stderr, "{}", kHelp);
    for (std::string line; Prompt() && std::getline(std::cin, line);) {
      if (line == "/quit" || line == "/exit") return;
      if (line.empty()) continue;
      if (line.front() == '/') {
        Command(line);
      } else {
        Ask(line);
      }
    }
  }

 private:
  static bool Prompt() {
    fmt::print(stderr, "> ");
    return true;
  }

  void Command(const std::string& line) {
    const size_t space = line.find(' ');
    const std::string name = line.substr(0, space), value = space == std::string::npos ? "" : line.substr(space + 1);
    if (name == "/memory") {
      const absl::StatusOr<MemoryMode> mode = ParseMemoryMode(value);
      if (mode.ok()) {
        memory_.mode = *mode;
      } else {
        fmt::print(stderr, "{}\n", std::string(mode.status().message()));
      }
    } else if (name == "/path") {
      MemoryChoice changed = memory_;
      const absl::Status status = SetPaths(absl::StrSplit(value, ' ', absl::SkipEmpty()), &changed);
      if (status.ok()) {
        memory_ = std::move(changed);
      } else {
        fmt::print(stderr, "{}\n", std::string(status.message()));
      }
    } else if (name == "/reset") {
      history_ = Message("system", options_.system);
    } else {
      fmt::print(stderr, "unknown command {}\n{}", name, kHelp);
    }
  }

  // A turn that fails leaves the conversation as it was.
  void Ask(const std::string& line) {
    RouterGenerateRequest request = options_.request;
    request.prompt = history_ + Message("user", line) + "<|im_start|>assistant\n";
    request.parse_special = true;
    request.stop = {"<|im_end|>", "<|im_start|>"};
    request.memory = memory_;
    if (memory_.mode == MemoryMode::kFetched) {
      request.memory.retrieve_on = line;
    } else {
      request.memory.path.clear();
      request.memory.paths.clear();
    }
    const absl::StatusOr<RouterGenerateReply> reply = AskAndPrint(client_, request);
    if (!reply.ok()) {
      fmt::print(stderr, "{}\n", std::string(reply.status().message()));
      return;
    }
    history_ += Message("user", line) + Message("assistant", reply->text);
  }

  const ChatOptions& options_;
  RouterClient& client_;
  MemoryChoice memory_;
  std::string history_;
};

absl::Status RunChat(const ChatOptions& options) {
  MemoryChoice memory = options.request.memory;
  ASSIGN_OR_RETURN(memory.mode, ParseMemoryMode(options.memory));
  RETURN_IF_ERROR(SetPaths(options.paths, &memory));
  ASSIGN_OR_RETURN(const std::unique_ptr<RouterClient> client, RouterClient::Connect(options.router));
  Chat(options, *client, std::move(memory)).Run();
  return absl::OkStatus();
}

}  // namespace

void AddChatCommand(CLI::App& app) {
  auto options = std::make_shared<ChatOptions>();
  options->request.max_tokens = 256;
  CLI::App* command = app.add_subcommand("chat", "Talk with the model in the terminal (ChatML)");
  options->AddOptions(command);
  command->add_option("--system", options->system, "the system message");
  SetAction(command, [options] { return RunChat(*options); });
}

}  // namespace membank
