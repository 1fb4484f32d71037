// Documents a second of the MiniLM embedder: retriever_bench MODEL_DIR PAGES.jsonl prints one number a line for each line on standard input, so
// that tests/bench/run can take turns with sentence-transformers.
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>

#include "fmt/format.h"
#include "nlohmann/json.hpp"
#include "router/retriever/embedder.h"

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: retriever_bench MODEL_DIR PAGES.jsonl\n");
    return 2;
  }
  auto embedder = membank::LoadMiniLm(argv[1]);
  if (!embedder.ok()) {
    fmt::print(stderr, "retriever_bench: error: {}\n", std::string(embedder.status().message()));
    return 1;
  }
  std::vector<std::string> texts;
  std::ifstream pages(argv[2]);
  for (std::string line; std::getline(pages, line);) texts.push_back(nlohmann::json::parse(line).at("text"));
  for (std::string turn; std::getline(std::cin, turn);) {
    const auto start = std::chrono::steady_clock::now();
    const auto embeddings = (*embedder)->Embed(texts);
    if (!embeddings.ok()) return 1;
    std::cout << texts.size() / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() << std::endl;
  }
  return 0;
}
