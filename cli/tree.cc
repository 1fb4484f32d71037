#include "cli/tree.h"

#include <memory>

#include "cli/command.h"
#include "common/base/status_macros.h"
#include "router/retriever/retriever.h"

namespace membank {
namespace {

struct Arguments {
  std::string tree, embedder, text;
};

absl::Status Show(const Arguments& arguments) {
  ASSIGN_OR_RETURN(const ClusterTree tree, ClusterTree::Load(arguments.tree));
  fmt::print("{}\n  fan-out {}, depth {}, dimension {}\n  fingerprint {}\n", arguments.tree, tree.fan_out(), tree.depth(), tree.dimension(),
             tree.Fingerprint());
  for (const auto& [key, value] : tree.metadata()) {
    if (key != "fingerprint") fmt::print("  {} {}\n", key, value);
  }
  return absl::OkStatus();
}

absl::Status Resolve(const Arguments& arguments) {
  ASSIGN_OR_RETURN(ClusterTree tree, ClusterTree::Load(arguments.tree));
  ASSIGN_OR_RETURN(std::unique_ptr<Embedder> embedder, LoadMiniLm(arguments.embedder));
  ASSIGN_OR_RETURN(const std::unique_ptr<Retriever> retriever, Retriever::Create(std::move(embedder), std::move(tree)));
  ASSIGN_OR_RETURN(const std::vector<Resolution> resolutions, retriever->Resolve({arguments.text}));
  const uint32_t fan_out = retriever->tree().fan_out();
  fmt::print("path {}\n", ToString(resolutions[0].path, fan_out));
  for (size_t level = 1; level <= resolutions[0].steps.size(); ++level) {
    const PathStep& step = resolutions[0].steps[level - 1];
    fmt::print("  level {}: cluster {} (child {}), squared distance {:.4f}\n", level, step.cluster, step.cluster % fan_out, step.distance);
  }
  return absl::OkStatus();
}

}  // namespace

void AddTreeCommand(CLI::App& app) {
  CLI::App* tree = app.add_subcommand("tree", "Cluster trees");
  tree->require_subcommand(1);
  auto arguments = std::make_shared<Arguments>();
  CLI::App* show = tree->add_subcommand("show", "Shape, origin and cluster sizes of a tree");
  show->add_option("TREE", arguments->tree, "tree.safetensors")->required();
  SetAction(show, [arguments] { return Show(*arguments); });
  CLI::App* resolve = tree->add_subcommand("resolve", "The path of a text, with the distance at each level");
  resolve->add_option("--tree", arguments->tree, "tree.safetensors")->required();
  resolve->add_option("--embedder", arguments->embedder, "Folder of the embedder that the tree was fitted with")->required();
  resolve->add_option("TEXT", arguments->text, "Text to look up")->required();
  SetAction(resolve, [arguments] { return Resolve(*arguments); });
}

}  // namespace membank
