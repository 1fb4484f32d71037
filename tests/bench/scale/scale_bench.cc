// Fetch rate of a running bank from one client, over TCP: every call takes one block of level 1 from each place of the tree in turn.
// Usage: scale_bench SLOT_MAP SECONDS BYTES_PER_CALL; prints one JSON object. The bank's blocks are written once first.
#include <algorithm>
#include <chrono>
#include <cstdio>

#include "common/base/malloc_tuning.h"
#include "common/base/status_macros.h"
#include "common/client/memory_client.h"

namespace membank {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// One step over all blocks: from here on they are the servers' own payloads, not generated ones.
absl::Status TouchAll(MemoryClient& client) {
  const uint32_t blocks = client.spec().fan_out;
  RunSettings run;
  run.run_id = "scale";
  run.optimizer = OptimizerKind::kSgd;
  RETURN_IF_ERROR(client.BeginRun(run));
  const std::vector<float> ones(client.spec().BlockElements(1), 1);
  std::vector<BlockGradient> gradients;
  for (uint32_t i = 0; i < blocks; ++i)
    gradients.push_back({{1, i}, DType::kF32, {reinterpret_cast<const uint8_t*>(ones.data()), ones.size() * sizeof(float)}});
  const StepId step{"scale", 1, 1};
  RETURN_IF_ERROR(client.Push(step, 0, gradients));
  RETURN_IF_ERROR(client.PrepareStep(step, std::chrono::seconds(60)).status());
  return client.ApplyStep(step, {1.0f, 1e-3f, 0.0f});
}

absl::Status Run(const char* slot_map, double seconds, uint64_t bytes_per_call) {
  MemoryClientOptions options;
  options.slot_map_path = slot_map;
  options.call_timeout = std::chrono::seconds(60);
  ASSIGN_OR_RETURN(const std::unique_ptr<MemoryClient> client, MemoryClient::Connect(options));
  RETURN_IF_ERROR(TouchAll(*client));
  const uint64_t bytes = client->spec().BlockBytes(1);
  const uint32_t blocks = client->spec().fan_out, per_call = static_cast<uint32_t>(std::clamp<uint64_t>(bytes_per_call / bytes, 1, blocks));
  std::vector<std::vector<uint8_t>> to(per_call, std::vector<uint8_t>(bytes));
  uint32_t next = 0;
  std::vector<double> windows;  // GB/s, of 100 ms each
  for (const auto begin = Clock::now(); SecondsSince(begin) < seconds;) {
    const auto window = Clock::now();
    uint64_t moved = 0;
    do {
      std::vector<BlockFetch> wanted;
      for (auto& destination : to) wanted.push_back({{1, next++ % blocks}, absl::MakeSpan(destination)});
      RETURN_IF_ERROR(client->Fetch(absl::MakeSpan(wanted), {}));
      moved += per_call * bytes;
    } while (SecondsSince(window) < 0.1);
    windows.push_back(static_cast<double>(moved) / SecondsSince(window) / 1e9);
  }
  std::sort(windows.begin(), windows.end());
  printf("{\"gb_per_second\": %.4f, \"block_bytes\": %llu}\n", windows[windows.size() * 9 / 10], static_cast<unsigned long long>(bytes));
  return absl::OkStatus();
}

}  // namespace
}  // namespace membank

int main(int argc, char** argv) {
  membank::TuneMalloc();
  if (argc != 4) {
    fprintf(stderr, "usage: scale_bench SLOT_MAP SECONDS BYTES_PER_CALL\n");
    return 2;
  }
  const absl::Status status = membank::Run(argv[1], std::atof(argv[2]), std::strtoull(argv[3], nullptr, 10));
  if (!status.ok()) fprintf(stderr, "scale_bench: %s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
