#include "cli/corpus.h"

#include <memory>

#include "cli/command.h"
#include "cli/corpus_build.h"
#include "common/base/status_macros.h"

namespace membank {
namespace {

struct Arguments {
  CorpusBuildOptions build;
  std::vector<std::string> inputs, encodings;
  bool fit_tree = false;
};

// --input and --encoding in the order they were written: an encoding belongs to the input before it.
absl::StatusOr<std::vector<SourceSpec>> Sources(const CLI::App& command, const CLI::Option* input, const CLI::Option* encoding,
                                                const Arguments& arguments) {
  std::vector<SourceSpec> sources;
  size_t next_input = 0, next_encoding = 0;
  for (const CLI::Option* option : command.parse_order()) {
    if (option == input) sources.push_back({arguments.inputs[next_input++]});
    if (option != encoding) continue;
    const std::string& name = arguments.encodings[next_encoding++];
    if (sources.empty()) return InvalidArgument("--encoding {} stands before the first --input; write it after the input it belongs to", name);
    ASSIGN_OR_RETURN(sources.back().encoding, ParseEncoding(name));
  }
  return sources;
}

void AddBuild(CLI::App& corpus) {
  auto arguments = std::make_shared<Arguments>();
  CorpusBuildOptions& build = arguments->build;
  CLI::App* command = corpus.add_subcommand("build", "Documents -> tokens -> cluster tree -> packed, shuffled training shards");
  CLI::Option* input = command
                           ->add_option("--input", arguments->inputs,
                                        "Documents: a .txt, .md, .jsonl or dictd file (.index, .dict.dz), or a folder of these; may be repeated")
                           ->required()
                           ->allow_extra_args(false)
                           ->configurable(false)
                           ->type_name("PATH");
  CLI::Option* encoding = command->add_option("--encoding", arguments->encodings, "Encoding of the --input before it: utf-8 (default) or latin1")
                              ->allow_extra_args(false)
                              ->configurable(false)
                              ->type_name("NAME");
  command->add_option("--tokenizer", build.tokenizer, "Anchor whose tokenizer is used: a folder, a tokenizer.json or a GGUF file")->required();
  command->add_option("--embedder", build.embedder, "Folder of the sentence embedder (all-MiniLM-L6-v2)")->required();
  CLI::Option* tree = command->add_option("--tree", build.tree, "Use this cluster tree, made by an earlier build");
  CLI::Option* fit = command->add_flag("--fit-tree", arguments->fit_tree, "Fit a new cluster tree to these documents");
  tree->excludes(fit);
  command->add_option("--fan-out", build.fan_out, "Clusters per node of a new tree")->check(CLI::Range(2, 4096));
  command->add_option("--depth", build.depth, "Levels of a new tree")->check(CLI::Range(1, 8));
  command->add_option("--steps", build.steps, "k-means steps per node of a new tree")->check(CLI::Range(1, 10000));
  command->add_option("--examples-per-step", build.examples_per_step, "Fresh examples of a k-means step")->check(CLI::Range(2, 100000000));
  command->add_option("--seed", build.seed, "Seed of the tree and of the shuffle");
  command->add_option("--sequence-length", build.sequence_length, "Most tokens of a training sequence; longer documents become several windows")
      ->check(CLI::Range(16, 1 << 20));
  command->add_option("--held-out", build.held_out, "Share of the documents, chosen by their text, that goes to OUTPUT/held-out: a corpus of its own on the "
                      "same tree, for `membank train --validation`")->check(CLI::Range(0.0, 0.5));
  command->add_option("--output", build.output, "Folder to write")->required();
  command->add_option("--pages", build.pages, "Also write the documents with their paths to this JSON Lines file");
  SetAction(command, [arguments, command, input, encoding]() -> absl::Status {
    ASSIGN_OR_RETURN(arguments->build.sources, Sources(*command, input, encoding, *arguments));
    if (arguments->build.tree.empty() && !arguments->fit_tree) {
      return InvalidArgument("say where the cluster tree comes from: --tree FILE for an earlier one, --fit-tree for a new one");
    }
    return BuildCorpus(arguments->build);
  });
}

}  // namespace

void AddCorpusCommand(CLI::App& app) {
  CLI::App* corpus = app.add_subcommand("corpus", "Documents and training shards");
  corpus->require_subcommand(1);
  AddBuild(*corpus);
}

}  // namespace membank
