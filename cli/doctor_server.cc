#include "cli/doctor_server.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <thread>
#include <vector>

#include "common/base/buffer.h"
#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"
#include "common/client/memory_client.h"

extern char** environ;

namespace membank {
namespace {

namespace fs = std::filesystem;

constexpr int kSteps = 3;  // the first one touches its memory for the first time and is not counted

// A directory that goes away with the object.
class ScratchDirectory {
 public:
  explicit ScratchDirectory(const std::string& parent) : path_(fmt::format("{}/membank-doctor-{}", parent, ::getpid())) {}
  ~ScratchDirectory() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  const std::string path_;
};

// One level of eight blocks of about `bytes` together, fp32.
BankSpec SpecOf(uint64_t bytes) {
  BankSpec spec;
  spec.bank_id = "doctor";
  spec.fan_out = 8;
  spec.layers = 8;
  spec.hidden = 512;
  spec.dtype = DType::kF32;
  spec.widths = {static_cast<uint32_t>(std::max<uint64_t>(1, bytes / 8 / (3ull * spec.layers * spec.hidden * sizeof(float))))};
  spec.anchor_fingerprint = spec.tree_fingerprint = "none";
  return spec;
}

// A membank-memory-server on a free port; it ends with the object.
class ServerProcess {
 public:
  ~ServerProcess() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }

  absl::Status Start(const std::string& directory) {
    const std::string program = fs::read_symlink("/proc/self/exe").parent_path() / "membank-memory-server";
    if (!fs::exists(program)) return NotFound("{} does not exist; the doctor measures the memory server that lies beside membank", program);
    const std::string ready = directory + "/ready", log = directory + "/log";
    std::vector<std::string> words = {program, "--listen", "127.0.0.1:0", "--admin-listen", "", "--data-dir", directory + "/data", "--bank-spec",
                                      directory + "/spec.json", "--ready-file", ready, "--free-space-watermark-bytes", "0"};
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
    const int error = ::posix_spawn(&pid_, program.c_str(), &actions, nullptr, arguments.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    if (error != 0) return absl::ErrnoToStatus(error, "start " + program);
    for (int i = 0; i < 3000; ++i) {
      if (const absl::StatusOr<std::string> json = ReadFile(ready); json.ok()) {
        ASSIGN_OR_RETURN(nlohmann::json addresses, ParseJson(*json));
        address_ = addresses["listen"];
        return absl::OkStatus();
      }
      if (::waitpid(pid_, nullptr, WNOHANG) == pid_) {
        pid_ = 0;
        return Unavailable("{} ended at once; its log says: {}", program, ReadFile(log).value_or("nothing"));
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return Unavailable("{} did not get ready within 30 s; its log says: {}", program, ReadFile(log).value_or("nothing"));
  }

  const std::string& address() const { return address_; }

 private:
  pid_t pid_ = 0;
  std::string address_;
};

// Seconds of a call, or its error.
absl::StatusOr<double> Timed(const std::function<absl::Status()>& call) {
  const auto begin = std::chrono::steady_clock::now();
  RETURN_IF_ERROR(call());
  return std::max(1e-9, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
}

class Probe {
 public:
  explicit Probe(MemoryClient* client) : client_(*client), spec_(client->spec()) {
    for (uint32_t cluster = 0; cluster < spec_.fan_out; ++cluster) {
      blocks_.push_back({1, cluster});
      buffers_.emplace_back(spec_.BlockBytes(1));
      float* const values = reinterpret_cast<float*>(buffers_.back().data());
      for (uint64_t i = 0; i < spec_.BlockElements(1); ++i) values[i] = 1e-3f * static_cast<float>(i % 97);
    }
    elements_ = static_cast<double>(spec_.BlockElements(1)) * blocks_.size();
  }

  absl::StatusOr<ServerRates> Measure() {
    RunSettings run;
    run.run_id = "doctor";
    RETURN_IF_ERROR(client_.BeginRun(run));
    double push = 0, prepare = 0, apply = 0, fetch = 0;
    for (uint64_t step = 1; step <= kSteps; ++step) {
      const StepId id{"doctor", 1, step};
      ASSIGN_OR_RETURN(const double pushed, Timed([&] { return Push(id); }));
      ASSIGN_OR_RETURN(const double prepared, Timed([&] { return client_.PrepareStep(id, std::chrono::seconds(60)).status(); }));
      ASSIGN_OR_RETURN(const double applied, Timed([&] { return client_.ApplyStep(id, {1.0f, 1e-3f, 0.0f}); }));
      if (step == 1) continue;
      push += pushed, prepare += prepared, apply += applied;
    }
    for (int i = 0; i < kSteps; ++i) {
      ASSIGN_OR_RETURN(const double fetched, Timed([&] { return Fetch(); }));
      if (i > 0) fetch += fetched;
    }
    ASSIGN_OR_RETURN(const double checkpoint, Timed([&] {
                       RETURN_IF_ERROR(client_.PrepareCheckpoint("doctor", kSteps));
                       return client_.CommitCheckpoint("doctor");
                     }));
    constexpr double kCounted = kSteps - 1;
    const double bytes = elements_ * sizeof(float);
    return ServerRates{kCounted * bytes / fetch, kCounted * bytes / push, kCounted * elements_ / prepare, kCounted * elements_ / apply,
                       3 * bytes / checkpoint};
  }

 private:
  absl::Status Push(const StepId& id) {
    std::vector<BlockGradient> gradients;
    for (size_t i = 0; i < blocks_.size(); ++i) gradients.push_back({blocks_[i], DType::kF32, std::as_const(buffers_[i]).span()});
    return client_.Push(id, 0, gradients);
  }

  absl::Status Fetch() {
    std::vector<BlockFetch> fetches;
    for (size_t i = 0; i < blocks_.size(); ++i) fetches.push_back({blocks_[i], buffers_[i].span()});
    return client_.Fetch(absl::MakeSpan(fetches), {});
  }

  MemoryClient& client_;
  const BankSpec spec_;
  std::vector<BlockId> blocks_;
  std::vector<Buffer> buffers_;
  double elements_ = 0;
};

}  // namespace

absl::StatusOr<ServerRates> MeasureServer(const std::string& directory, uint64_t bytes) {
  const ScratchDirectory scratch(directory);
  RETURN_IF_ERROR(MakeDirectories(scratch.path()));
  RETURN_IF_ERROR(WriteFileAtomic(scratch.path() + "/spec.json", SpecOf(bytes).ToJson()));
  ServerProcess server;
  RETURN_IF_ERROR(server.Start(scratch.path()));
  MemoryClientOptions options;
  options.servers = {server.address()};
  ASSIGN_OR_RETURN(const std::unique_ptr<MemoryClient> client, MemoryClient::Connect(options));
  return Probe(client.get()).Measure();
}

}  // namespace membank
