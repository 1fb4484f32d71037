#include "cli/corpus_build.h"

#include <chrono>
#include <filesystem>

#include "cli/embedding_store.h"
#include "cli/tree_picture.h"
#include "common/bank/cluster_tree.h"
#include "common/base/file.h"
#include "common/base/hash.h"
#include "common/base/json.h"
#include "common/base/progress.h"
#include "common/base/status_macros.h"
#include "common/corpus/packer.h"
#include "common/text/tokenizer.h"
#include "common/text/tokenizer_hash.h"
#include "nlohmann/json.hpp"
#include "router/retriever/retriever.h"
#include "router/retriever/tree_builder.h"

namespace membank {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

// A window while it is on its way: which document, which tokens of it, and its text.
struct TextWindow {
  uint32_t document = 0;
  WindowRange range;
};

struct Tokenized {
  std::vector<std::vector<int32_t>> tokens;  // of each document, EOT included
  std::vector<TextWindow> windows;
  std::vector<std::string> texts;            // of each window: what is embedded (of a document with retrieve_on: that)
};

std::string BuildKey(const CorpusBuildOptions& options, const std::vector<Document>& documents, const std::string& tokenizer_hash,
                     const std::string& embedder, const std::string& tree) {
  Hasher hasher;
  hasher.Add(tokenizer_hash).Add(embedder).Add(tree);
  if (tree.empty()) hasher.Add(options.fan_out).Add(options.depth).Add(options.steps).Add(options.examples_per_step);
  hasher.Add(options.seed).Add(options.sequence_length);
  for (const Document& document : documents) hasher.Add(document.id).Add(document.title).Add(document.text).Add(document.retrieve_on);
  return hasher.Hex();
}

// True when `output` holds this very corpus already.
absl::StatusOr<bool> IsBuilt(const std::string& output, const std::string& key) {
  if (!fs::exists(output + "/index.json")) return false;
  const absl::StatusOr<std::string> text = ReadFile(output + "/build.json");
  const Json build = text.ok() ? ParseJson(*text).value_or(Json()) : Json();
  if (!build.is_object() || build.value("key", "") != key) {
    return AlreadyExists("{} holds a corpus made from other documents or options; choose another --output or remove the folder", output);
  }
  RETURN_IF_ERROR(PackedCorpus::Open(output).status());
  return true;
}

// A window cut between tokens may begin or end inside a character: those bytes are left out of the text that is embedded.
std::string WholeCharacters(std::string_view text) {
  size_t begin = 0;
  while (begin < text.size() && begin < 3 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) ++begin;
  text.remove_prefix(begin);
  const size_t bad = FindInvalidUtf8(text);
  return std::string(bad != std::string_view::npos && text.size() - bad < 4 ? text.substr(0, bad) : text);
}

absl::StatusOr<Tokenized> Tokenize(const std::vector<Document>& documents, const Tokenizer& tokenizer, uint32_t sequence_length) {
  Tokenized result;
  Progress progress("tokenize", "documents", documents.size());
  for (uint32_t i = 0; i < documents.size(); ++i) {
    absl::StatusOr<std::vector<int32_t>> encoded = tokenizer.Encode(documents[i].text);
    if (!encoded.ok()) return Annotate(encoded.status(), fmt::format("document {}", documents[i].id));
    std::vector<int32_t>& tokens = *encoded;
    tokens.push_back(tokenizer.eos_id());
    const std::vector<WindowRange> windows = SplitIntoWindows(static_cast<uint32_t>(tokens.size()), sequence_length);
    for (const WindowRange& range : windows) {
      std::string text = documents[i].retrieve_on.empty() ? documents[i].text : documents[i].retrieve_on;
      if (windows.size() > 1 && documents[i].retrieve_on.empty()) {
        ASSIGN_OR_RETURN(text, tokenizer.Decode(absl::MakeConstSpan(tokens).subspan(range.begin, range.end - range.begin)));
        text = WholeCharacters(text);
      }
      result.windows.push_back({i, range});
      result.texts.push_back(std::move(text));
    }
    result.tokens.push_back(std::move(tokens));
    progress.Update(i + 1);
  }
  return result;
}

absl::StatusOr<ClusterTree> FitNewTree(const CorpusBuildOptions& options, const std::vector<float>& embeddings, const Embedder& embedder,
                                       const std::string& key) {
  const size_t count = embeddings.size() / embedder.dimension();
  const TreeOptions tree_options{options.fan_out, options.depth, options.seed, options.steps, options.examples_per_step};
  uint64_t nodes = 0, below = 1;
  for (uint32_t level = 0; level < options.depth; ++level, below *= options.fan_out) nodes += below;
  Progress progress("fit tree", "nodes", nodes);
  return FitTree({embeddings.data(), embedder.dimension()}, count, tree_options, {{"embedder", embedder.Fingerprint()}, {"corpus", key}},
                 [&](uint64_t done, uint64_t) { progress.Update(done); });
}

absl::StatusOr<std::vector<uint32_t>> LeavesOf(const ClusterTree& tree, const std::vector<float>& embeddings) {
  std::vector<uint32_t> leaves;
  for (size_t first = 0; first < embeddings.size(); first += tree.dimension()) {
    ASSIGN_OR_RETURN(const std::vector<PathStep> steps, tree.Descend(absl::MakeConstSpan(embeddings).subspan(first, tree.dimension())));
    leaves.push_back(steps.back().cluster);
  }
  return leaves;
}

std::vector<Window> MakeWindows(const Tokenized& tokenized, const std::vector<uint32_t>& leaves) {
  std::vector<Window> windows;
  for (size_t i = 0; i < leaves.size(); ++i) {
    const TextWindow& window = tokenized.windows[i];
    const std::vector<int32_t>& tokens = tokenized.tokens[window.document];
    windows.push_back({leaves[i], {tokens.begin() + window.range.begin, tokens.begin() + window.range.end}});
  }
  return windows;
}

// One line per document; its path is its first window's, and "paths" lists all of them when there are several.
absl::Status WritePages(const std::string& path, const std::vector<Document>& documents, const Tokenized& tokenized,
                        const std::vector<uint32_t>& leaves, const ClusterTree& tree) {
  std::vector<Json> pages;
  for (size_t i = 0; i < documents.size(); ++i) {
    pages.push_back({{"id", documents[i].id}, {"title", documents[i].title}, {"text", documents[i].text}, {"tokens", tokenized.tokens[i].size()},
                     {"paths", Json::array()}});
  }
  for (size_t i = 0; i < leaves.size(); ++i) {
    const BlockPath block_path{MemoryMode::kFetched, tree.depth(), leaves[i]};
    pages[tokenized.windows[i].document]["paths"].push_back(ToString(block_path, tree.fan_out()));
  }
  std::string lines;
  for (Json& page : pages) {
    page["path"] = page["paths"][0];
    if (page["paths"].size() == 1) page.erase("paths");
    lines += page.dump() + "\n";
  }
  return WriteFileAtomic(path, lines);
}

struct Loaded {
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<Embedder> embedder;
  std::unique_ptr<ClusterTree> tree;  // none: fit one
};

absl::StatusOr<Loaded> LoadModels(const CorpusBuildOptions& options) {
  Loaded loaded;
  ASSIGN_OR_RETURN(loaded.tokenizer, LoadTokenizer(options.tokenizer));
  if (loaded.tokenizer->eos_id() < 0) {
    return InvalidArgument("{}: the tokenizer names no end-of-text token (eos); documents could not be told apart", options.tokenizer);
  }
  ASSIGN_OR_RETURN(loaded.embedder, LoadMiniLm(options.embedder));
  if (options.tree.empty()) return loaded;
  ASSIGN_OR_RETURN(ClusterTree tree, ClusterTree::Load(options.tree));
  RETURN_IF_ERROR(CheckFittedWith(tree, *loaded.embedder));
  loaded.tree = std::make_unique<ClusterTree>(std::move(tree));
  return loaded;
}

absl::Status BuildFrom(const CorpusBuildOptions& options, const std::vector<Document>& documents) {
  const auto start = std::chrono::steady_clock::now();
  ASSIGN_OR_RETURN(const Loaded models, LoadModels(options));
  const std::string tokenizer_hash = TokenizerHash(*models.tokenizer);
  const std::string key =
      BuildKey(options, documents, tokenizer_hash, models.embedder->Fingerprint(), models.tree == nullptr ? "" : models.tree->Fingerprint());
  ASSIGN_OR_RETURN(const bool built, IsBuilt(options.output, key));
  if (built && (options.pages.empty() || fs::exists(options.pages))) {
    fmt::print("{} holds this corpus already; nothing to do\n", options.output);
    return absl::OkStatus();
  }

  ASSIGN_OR_RETURN(const Tokenized tokenized, Tokenize(documents, *models.tokenizer, options.sequence_length));
  const std::string work = options.output + "/work";
  ASSIGN_OR_RETURN(const std::vector<float> embeddings, EmbedAll(tokenized.texts, *models.embedder, work));
  absl::StatusOr<ClusterTree> tree = models.tree == nullptr ? FitNewTree(options, embeddings, *models.embedder, key) : *models.tree;
  RETURN_IF_ERROR(tree.status());
  ASSIGN_OR_RETURN(const std::vector<uint32_t> leaves, LeavesOf(*tree, embeddings));

  if (!options.pages.empty()) RETURN_IF_ERROR(WritePages(options.pages, documents, tokenized, leaves, *tree));
  std::vector<Window> windows = MakeWindows(tokenized, leaves);
  std::vector<std::string> titles;
  for (const TextWindow& window : tokenized.windows) titles.push_back(documents[window.document].title);
  const TreeContents contents = CountContents(*tree, windows, tokenized.texts, titles);
  if (!built) {
    RETURN_IF_ERROR(tree->Save(options.output + "/tree.safetensors"));
    RETURN_IF_ERROR(WriteFileAtomic(options.output + "/tree.svg", DrawTree(contents)));
    const Json build = {{"key", key}, {"documents", documents.size()}, {"windows", windows.size()}, {"tree_fingerprint", tree->Fingerprint()}};
    RETURN_IF_ERROR(WriteFileAtomic(options.output + "/build.json", build.dump(2) + "\n"));
    PackedInfo info;
    info.tokenizer_hash = tokenizer_hash;
    info.tree_fingerprint = tree->Fingerprint();
    info.fan_out = tree->fan_out();
    info.depth = tree->depth();
    info.sequence_length = options.sequence_length;
    info.vocab_size = static_cast<uint32_t>(models.tokenizer->vocab_size());
    RETURN_IF_ERROR(WritePackedCorpus(options.output, info, PackWindows(std::move(windows), options.sequence_length, options.seed)));
  }
  fs::remove_all(work);
  ASSIGN_OR_RETURN(const std::unique_ptr<PackedCorpus> corpus, PackedCorpus::Open(options.output));
  fmt::print("{}: {} documents, {} windows, {} tokens in {} sequences, {}\n", options.output, documents.size(), corpus->info().documents,
             corpus->info().tokens, corpus->size(), FormatDuration(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()));
  fmt::print("{}picture: {}/tree.svg\n", Summary(contents), options.output);
  return absl::OkStatus();
}

// Whether a document is held out depends on its text alone: a copy of it is on the same side, and more documents change nothing about it.
bool IsHeldOut(const Document& document, double share) {
  Hasher hasher;
  hasher.Add(document.text);
  const uint64_t bits = std::stoull(hasher.Hex().substr(0, 13), nullptr, 16);  // 52
  return static_cast<double>(bits) * 0x1p-52 < share;
}

}  // namespace

absl::Status BuildCorpus(const CorpusBuildOptions& options) {
  ASSIGN_OR_RETURN(LoadedDocuments loaded, LoadDocuments(options.sources));
  for (const auto& [extension, files] : loaded.skipped) {
    fmt::print("not read: {} file{} {}\n", files, files == 1 ? "" : "s", extension.empty() ? "without extension" : "with extension " + extension);
  }
  if (options.held_out <= 0) return BuildFrom(options, loaded.documents);

  std::vector<Document> kept, held_out;
  for (Document& document : loaded.documents) (IsHeldOut(document, options.held_out) ? held_out : kept).push_back(std::move(document));
  if (kept.empty() || held_out.empty())
    return InvalidArgument("--held-out {} of {} documents leaves {} to hold out and {} to train on; both sides need some", options.held_out,
                           kept.size() + held_out.size(), held_out.size(), kept.size());
  RETURN_IF_ERROR(BuildFrom(options, kept));
  CorpusBuildOptions other = options;
  other.tree = options.tree.empty() ? options.output + "/tree.safetensors" : options.tree;
  other.pages.clear();
  other.output = options.output + "/held-out";
  return BuildFrom(other, held_out);
}

}  // namespace membank
