#include "common/bank/cluster_tree.h"
#include "common/base/file.h"
#include "common/tensors/gguf.h"
#include "common/tensors/safetensors.h"
#include "tests/fuzz/fuzz_target.h"

namespace membank::fuzz {
namespace {

void RunSafetensors(std::string_view input) {
  const auto file = SafetensorsFile::Open(WriteScratch("input.safetensors", input));
  if (!file.ok()) return;
  for (const auto& [name, tensor] : (*file)->tensors()) (void)ToFloats(tensor).ok();
}

std::vector<std::string> SafetensorsSeeds() {
  return {ReadSource("tests/golden/gguf/tiny.safetensors").substr(0, 4096), std::string("\x02\0\0\0\0\0\0\0{}", 10)};
}

void RunGguf(std::string_view input) {
  const auto file = GgufFile::Open(WriteScratch("input.gguf", input));
  if (!file.ok()) return;
  for (const auto& [name, tensor] : (*file)->tensors()) (void)(*file)->Dequantize(name).ok();
  for (const auto& [key, value] : (*file)->metadata()) (void)(*file)->GetInts(key).ok();
}

std::vector<std::string> GgufSeeds() { return {ReadSource("tests/golden/gguf/tiny.gguf")}; }

void RunClusterTree(std::string_view input) {
  const auto tree = ClusterTree::Load(WriteScratch("tree.safetensors", input));
  if (!tree.ok()) return;
  const std::vector<float> embedding(tree->dimension(), 0.5f);
  (void)tree->Descend(embedding).ok();
}

std::vector<std::string> ClusterTreeSeeds() {
  const auto tree = ClusterTree::Create(2, 3, {{0, 0, 1, 1, 0, 0}, {0, 0, 1, 0, 1, 0, 1, 0, 0, 1, 1, 1}}, {{"embedder", "e"}});
  const std::string path = ScratchDirectory() + "/seed_tree.safetensors";
  if (!tree.ok() || !tree->Save(path).ok()) return {};
  return {*ReadFile(path)};
}

}  // namespace

std::vector<Target> TensorTargets() {
  return {{"safetensors", RunSafetensors, SafetensorsSeeds}, {"gguf", RunGguf, GgufSeeds}, {"cluster_tree", RunClusterTree, ClusterTreeSeeds}};
}

}  // namespace membank::fuzz
