// Fetch and push through a memory server in a process of its own, over TCP and over a Unix socket, against raw TCP on loopback with the same
// bytes, and against the naive way (a string from a map, protobuf bytes, a unary call, a copy out). All take turns in short windows, so that a
// noisy machine disturbs all alike. A figure is the 90th percentile of its windows; what counts is the ratio.
// Usage: wire_bench [--seconds N per table] [--only TEXT] [--json FILE]
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <functional>
#include <iostream>

#include "common/base/malloc_tuning.h"
#include "nlohmann/json.hpp"
#include "tests/bench/wire/baselines.h"
#include "tests/testing/memory_cluster.h"

namespace membank {
namespace {

using Clock = std::chrono::steady_clock;

void Check(const absl::Status& status) {
  if (status.ok()) return;
  fprintf(stderr, "wire_bench: %s\n", status.ToString().c_str());
  exit(1);
}

// --- What is measured -------------------------------------------------------------------------------------------------------------------

struct Table {
  const char* key;
  uint32_t blocks, width;  // blocks of 3 * 35 layers * 512 * width elements
  DType dtype;
  double fetch_target;
};
constexpr Table kTables[] = {{"small", 32, 16, DType::kBF16, 0.65}, {"large", 8, 64, DType::kF32, 0.85}};

BankSpec Spec(const Table& table) {
  BankSpec spec = testing_support::TinySpec();
  spec.fan_out = table.blocks;
  spec.widths = {table.width};
  spec.layers = 35;
  spec.hidden = 512;
  spec.dtype = table.dtype;
  return spec;
}

using Blocks = std::vector<std::vector<uint8_t>>;

// --- The server's process ---------------------------------------------------------------------------------------------------------------

// Serves the table's bank and, naively, the same number of bytes until stdin ends. Its one line of output says where.
int Serve(const Table& table) {
  const BankSpec spec = Spec(table);
  testing_support::MemoryCluster over_tcp(spec, 1), over_unix(spec, 0);
  over_unix.Start(*SlotMap::Striped({{"m0", "unix:" + over_unix.directory() + "/m0.sock"}}));
  NaiveService naive(Blocks(table.blocks, std::vector<uint8_t>(spec.BlockBytes(1), 1)));
  const auto naive_server = *RpcServer::Start({}, {&naive});
  const nlohmann::json ready = {{"tcp", over_tcp.slot_map_path()}, {"unix", over_unix.slot_map_path()}, {"naive", naive_server->address()}};
  std::cout << ready.dump() << std::endl;
  std::cin.get();
  return 0;
}

class ServerProcess {
 public:
  ServerProcess(const char* self, const Table& table) {
    int in[2], out[2];
    if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0) exit(1);
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_adddup2(&files, in[0], 0);
    posix_spawn_file_actions_adddup2(&files, out[1], 1);
    const char* const arguments[] = {self, "--serve", table.key, nullptr};
    if (posix_spawn(&pid_, "/proc/self/exe", &files, nullptr, const_cast<char**>(arguments), environ) != 0) exit(1);
    posix_spawn_file_actions_destroy(&files);
    close(in[0]);
    close(out[1]);
    stdin_ = in[1];
    std::string line;
    for (char c; read(out[0], &c, 1) == 1 && c != '\n';) line += c;
    close(out[0]);
    ready = nlohmann::json::parse(line);
    clock_getcpuclockid(pid_, &clock_);
  }
  ~ServerProcess() {
    close(stdin_);
    waitpid(pid_, nullptr, 0);
  }
  double CpuSeconds() const {
    timespec client, server;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &client);
    clock_gettime(clock_, &server);
    return static_cast<double>(client.tv_sec + server.tv_sec) + 1e-9 * static_cast<double>(client.tv_nsec + server.tv_nsec);
  }

  nlohmann::json ready;

 private:
  pid_t pid_;
  int stdin_;
  clockid_t clock_;
};

// --- The client's side ------------------------------------------------------------------------------------------------------------------

struct Cost {
  double seconds = 0;      // on the clock
  double cpu_seconds = 0;  // of both processes: what a busy machine does not change
  void Add(Cost other) {
    seconds += other.seconds;
    cpu_seconds += other.cpu_seconds;
  }
};

const ServerProcess* server_process = nullptr;  // the one that is measured now

Cost Timed(const std::function<void()>& work) {
  const auto start = Clock::now();
  const double cpu = server_process->CpuSeconds();
  work();
  return {std::chrono::duration<double>(Clock::now() - start).count(), server_process->CpuSeconds() - cpu};
}

// A training run over one bank, and reads of it.
class Trainer {
 public:
  Trainer(const std::string& slot_map_path, const BankSpec& spec, const Blocks* gradients) : spec_(spec), gradients_(*gradients) {
    MemoryClientOptions options;
    options.slot_map_path = slot_map_path;
    auto client = MemoryClient::Connect(options);
    Check(client.status());
    client_ = *std::move(client);
    RunSettings run;
    run.run_id = "bench";
    run.optimizer = OptimizerKind::kSgd;
    Check(client_->BeginRun(run));
    Push(0, spec.fan_out);  // from here on all blocks are the shard's own payloads
    Prepare();
    Apply();
  }

  Cost Push(uint32_t first, uint32_t count) {
    ++step_;
    std::vector<BlockGradient> gradients;
    for (uint32_t i = first; i < first + count; ++i) gradients.push_back({{1, i % spec_.fan_out}, DType::kBF16, gradients_[i % spec_.fan_out]});
    return Timed([&] { Check(client_->Push({"bench", 1, step_}, 0, gradients)); });
  }
  Cost Prepare() {
    return Timed([&] { Check(client_->PrepareStep({"bench", 1, step_}, std::chrono::seconds(20)).status()); });
  }
  void Apply() { Check(client_->ApplyStep({"bench", 1, step_}, {1.0f, 1.0f, 0.0f})); }

  // Blocks first, first + 1, ... into the destinations.
  Cost Fetch(uint32_t first, absl::Span<std::vector<uint8_t>> destinations) {
    std::vector<BlockFetch> wanted;
    for (uint32_t i = 0; i < destinations.size(); ++i) wanted.push_back({{1, (first + i) % spec_.fan_out}, absl::MakeSpan(destinations[i])});
    return Timed([&] { Check(client_->Fetch(absl::MakeSpan(wanted), {})); });
  }

 private:
  const BankSpec spec_;
  const Blocks& gradients_;  // bf16, one for each block
  std::unique_ptr<MemoryClient> client_;
  uint64_t step_ = 0;
};

// --- Measuring --------------------------------------------------------------------------------------------------------------------------

struct Variant {
  std::string name;
  double target;                  // ratio to the first variant; 0: shown only
  std::function<Cost()> once;     // moves bytes_per_call bytes, returns what counts
};

struct Row {
  std::string figure, baseline;
  double value, base, target;
  double cpu_seconds_per_gb;
};

std::string only;  // part of the figures' names

// Windows of 100 ms take turns; GB/s of each variant's 90th percentile.
void Measure(const std::string& title, double bytes_per_call, std::vector<Variant> variants, double seconds,
             std::vector<Row>* rows) {
  std::erase_if(variants, [&](const Variant& variant) { return (title + ", " + variant.name).find(only) == std::string::npos; });
  if (variants.empty()) return;
  std::vector<std::vector<double>> windows(variants.size());
  std::vector<double> cpu(variants.size()), moved(variants.size());
  for (const Variant& variant : variants) variant.once();  // warm
  const int rounds = std::max(5, static_cast<int>(seconds / 0.1 / static_cast<double>(variants.size())));
  for (int round = 0; round < rounds; ++round) {
    for (size_t v = 0; v < variants.size(); ++v) {
      Cost spent;
      double bytes = 0;
      while (spent.seconds < 0.1) {
        spent.Add(variants[v].once());
        bytes += bytes_per_call;
      }
      windows[v].push_back(bytes / spent.seconds / 1e9);
      cpu[v] += spent.cpu_seconds;
      moved[v] += bytes / 1e9;
    }
  }
  double base = 0;
  for (size_t v = 0; v < variants.size(); ++v) {
    std::sort(windows[v].begin(), windows[v].end());
    const double value = windows[v][windows[v].size() * 9 / 10];
    if (v == 0) base = value;
    const Row row{title + ", " + variants[v].name, variants[0].name, value, base, variants[v].target, cpu[v] / moved[v]};
    printf("%-76s %6.2f GB/s %6.2f cpu-s/GB  %5.2f of %s%s\n", row.figure.c_str(), value, row.cpu_seconds_per_gb, value / base, row.baseline.c_str(),
           row.target == 0 ? "" : fmt::format("  target {:.2f}: {}", row.target, value / base >= row.target ? "held" : "NOT held").c_str());
    fflush(stdout);
    rows->push_back(row);
  }
}

void Bench(const char* self, const Table& table, double seconds, std::vector<Row>* rows) {
  ServerProcess server(self, table);
  server_process = &server;
  const BankSpec spec = Spec(table);
  const size_t bytes = spec.BlockBytes(1);
  const std::string size = fmt::format("{:.1f} MB", static_cast<double>(bytes) / 1e6);
  const std::vector<uint16_t> ones(spec.BlockElements(1), FloatToBF16(-1.0f));
  const auto* const gradient = reinterpret_cast<const uint8_t*>(ones.data());
  const size_t gradient_bytes = ones.size() * 2;
  const Blocks gradients(table.blocks, std::vector<uint8_t>(gradient, gradient + gradient_bytes));
  Trainer tcp(server.ready["tcp"], spec, &gradients), unix_socket(server.ready["unix"], spec, &gradients);
  NaiveClient naive(server.ready["naive"]);
  uint32_t next = 0;
  const auto advance = [&](uint32_t count) { return std::exchange(next, next + count); };
  {
    const Blocks blocks(table.blocks, std::vector<uint8_t>(bytes, 1));
    TcpBlocks raw(blocks, false);
    Blocks to(4, std::vector<uint8_t>(bytes));
    const auto each = [&](auto fetch) {
      return Timed([&] { for (auto& destination : to) fetch(advance(1) % table.blocks, &destination); });
    };
    // Four blocks a turn for every variant.
    Measure("fetch " + size, static_cast<double>(bytes) * 4,
            {{"raw TCP", 0, [&] { return each([&](uint32_t i, auto* destination) { raw.Fetch(i, destination); }); }},
             {"one block per call", table.fetch_target,
              [&] { return each([&](uint32_t i, auto* destination) { tcp.Fetch(i, absl::MakeSpan(destination, 1)); }); }},
             {"four blocks in one call", table.fetch_target, [&] { return tcp.Fetch(advance(4), absl::MakeSpan(to)); }},
             {"Unix socket, one block per call", 0,
              [&] { return each([&](uint32_t i, auto* destination) { unix_socket.Fetch(i, absl::MakeSpan(destination, 1)); }); }},
             {"Unix socket, four blocks in one call", 0, [&] { return unix_socket.Fetch(advance(4), absl::MakeSpan(to)); }},
             {"naive (string, proto, unary, copy)", 0, [&] { return each([&](uint32_t i, auto* destination) { naive.Fetch(i, destination); }); }}},
            seconds, rows);
  }
  {
    TcpBlocks raw(gradients, true);
    const auto turn = [&](Trainer& trainer, bool with_sum) {
      Cost spent = trainer.Push(advance(4), 4);
      const Cost sum = trainer.Prepare();
      trainer.Apply();
      if (with_sum) spent.Add(sum);
      return spent;
    };
    Measure("push of bf16 gradients, blocks of " + size, static_cast<double>(gradient_bytes) * 4,
            {{"raw TCP", 0, [&] { return Timed([&] { for (int i = 0; i < 4; ++i) raw.Push(advance(1) % table.blocks); }); }},
             {"four blocks in one push", 0, [&] { return turn(tcp, false); }},
             {"pushed and summed into fp32", 0.65, [&] { return turn(tcp, true); }},
             {"Unix socket, pushed and summed into fp32", 0, [&] { return turn(unix_socket, true); }}},
            seconds, rows);
  }
}

}  // namespace
}  // namespace membank

int main(int argc, char** argv) {
  membank::TuneMalloc();
  double seconds = 6;
  std::string json_path;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--seconds" && i + 1 < argc) {
      seconds = std::atof(argv[++i]);
    } else if (word == "--only" && i + 1 < argc) {
      membank::only = argv[++i];
    } else if (word == "--json" && i + 1 < argc) {
      json_path = argv[++i];
    } else if (word == "--serve" && i + 1 < argc) {
      return membank::Serve(membank::kTables[std::string(argv[++i]) == "large"]);
    } else {
      fprintf(stderr, "wire_bench: unknown argument '%s' (allowed: --seconds N, --only TEXT, --json FILE)\n", word.c_str());
      return 2;
    }
  }
  std::vector<membank::Row> rows;
  for (const membank::Table& table : membank::kTables) membank::Bench(argv[0], table, seconds, &rows);
  if (!json_path.empty()) {
    nlohmann::json out = nlohmann::json::array();
    for (const membank::Row& row : rows) {
      out.push_back({{"figure", row.figure}, {"value", row.value}, {"unit", "GB/s"}, {"baseline", row.baseline}, {"baseline_value", row.base},
                     {"ratio", row.value / row.base}, {"target", row.target}, {"cpu_seconds_per_gb", row.cpu_seconds_per_gb}});
    }
    membank::Check(membank::WriteFileAtomic(json_path, out.dump(1) + "\n"));
  }
  return 0;
}
