#include "cli/eval.h"

#include <atomic>
#include <map>
#include <memory>
#include <set>
#include <sstream>

#include "cli/command.h"
#include "cli/eval_scoring.h"
#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/progress.h"
#include "common/base/status_macros.h"
#include "common/base/thread_pool.h"
#include "common/client/router_client.h"
#include "nlohmann/json.hpp"

namespace membank {
namespace {

constexpr int kInFlight = 8;  // so that the worker has something to batch
constexpr size_t kMaxAnswerBytes = 200;

// A question or a page.
struct Item {
  std::string name;         // for errors
  std::string prompt;       // the question, or the page's text
  std::string answer, group;
  std::string retrieve_on;  // the text that finds the path; the prompt when not given
  std::string path_text;    // a path to take instead
};

// One item under one memory.
struct Outcome {
  absl::Status status;
  std::string text;         // generated
  double numerator = 0;     // 1 when right; or the negative log-likelihood
  double denominator = 0;   // 1; or the tokens
  MemoryReport memory;
};

using Measure = std::function<Outcome(RouterClient&, const Item&, const MemoryChoice&)>;

struct Report {
  std::vector<Item> items;
  std::map<std::string, std::vector<Outcome>> outcomes;  // by mode
  RouterFacts facts;
  std::vector<BankFacts> banks;  // that are measured
};

absl::StatusOr<std::string> StringField(const nlohmann::json& row, const char* name, const std::string& where, bool required) {
  const auto found = row.find(name);
  if (found == row.end() || found->is_null()) {
    if (required) return InvalidArgument("{}: field \"{}\" is missing", where, name);
    return std::string();
  }
  if (found->is_string()) return found->get<std::string>();
  if (found->is_number_integer()) return found->dump();
  return InvalidArgument("{}: field \"{}\" is a {}; a string is expected", where, name, found->type_name());
}

absl::StatusOr<std::vector<Item>> ReadItems(const std::string& path, bool cloze) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  std::vector<Item> items;
  std::istringstream lines(text);
  int number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = fmt::format("{}:{}", path, number);
    const nlohmann::json row = ParseJson(line).value_or(nlohmann::json());
    if (!row.is_object()) return InvalidArgument("{}: not a JSON object (or not UTF-8)", where);
    Item item;
    item.name = where;
    ASSIGN_OR_RETURN(item.prompt, StringField(row, cloze ? "prompt" : "text", where, true));
    ASSIGN_OR_RETURN(item.answer, StringField(row, "answer", where, cloze));
    ASSIGN_OR_RETURN(item.group, StringField(row, "group", where, false));
    ASSIGN_OR_RETURN(item.retrieve_on, StringField(row, "retrieve_on", where, false));
    ASSIGN_OR_RETURN(item.path_text, StringField(row, "path_text", where, false));
    if (item.prompt.empty()) return InvalidArgument("{}: the text is empty", where);
    items.push_back(std::move(item));
  }
  if (items.empty()) return InvalidArgument("{} holds no {}", path, cloze ? "questions" : "pages");
  return items;
}

absl::Status CheckModes(const std::vector<std::string>& modes) {
  std::set<std::string> seen;
  for (const std::string& mode : modes) {
    if (mode != "fetched" && mode != "generic" && mode != "none" && mode != "other") {
      return InvalidArgument("mode '{}' is not one of fetched, generic, none, other", mode);
    }
    if (!seen.insert(mode).second) return InvalidArgument("mode '{}' is listed twice", mode);
  }
  return absl::OkStatus();
}

// The banks to measure: those named, or all. Where none are stacked, or the worker has none: the first, whatever its name.
absl::StatusOr<std::vector<BankFacts>> BanksOf(const RouterFacts& facts, const std::vector<std::string>& named) {
  std::vector<BankFacts> banks;
  std::string served;
  for (const BankFacts& bank : facts.banks) {
    served += (served.empty() ? "" : ", ") + bank.bank_id;
    if (named.empty() || std::find(named.begin(), named.end(), bank.bank_id) != named.end()) banks.push_back(bank);
  }
  for (const std::string& name : named) {
    const auto is_it = [&](const BankFacts& bank) { return bank.bank_id == name; };
    if (std::none_of(banks.begin(), banks.end(), is_it)) return InvalidArgument("--banks names '{}'; the banks served are: {}", name, served);
  }
  if (facts.banks.empty()) banks.push_back({"", "", facts.fan_out, facts.depth});
  return banks;
}

// Where the router found the text in the bank's tree.
absl::StatusOr<BlockPath> PathIn(const BankFacts& bank, const ResolvedPath& found) {
  if (bank.bank_id.empty() || found.bank.empty() || found.bank == bank.bank_id) return found.path;
  for (const ResolvedPath& stacked : found.stacked) {
    if (stacked.bank == bank.bank_id) return stacked.path;
  }
  return FailedPrecondition("the router has no tree of bank '{}' to find paths by; start it with --tree of that bank, or leave the bank out "
                            "of --banks", bank.bank_id);
}

// The path of each item in each bank: [bank][item]. A path that an item names is one of the first bank.
absl::StatusOr<std::vector<std::vector<BlockPath>>> FindPaths(RouterClient& client, const Report& report) {
  std::vector<std::string> texts;
  for (const Item& item : report.items) texts.push_back(item.retrieve_on.empty() ? item.prompt : item.retrieve_on);
  ASSIGN_OR_RETURN(const std::vector<ResolvedPath> resolved, client.Resolve(texts));
  std::vector<std::vector<BlockPath>> paths(report.banks.size());
  for (size_t b = 0; b < report.banks.size(); ++b) {
    const BankFacts& bank = report.banks[b];
    const bool first = report.facts.banks.empty() || bank.bank_id == report.facts.banks[0].bank_id;
    for (size_t i = 0; i < report.items.size(); ++i) {
      ASSIGN_OR_RETURN(paths[b].emplace_back(), PathIn(bank, resolved[i]));
      if (!first || report.items[i].path_text.empty()) continue;
      absl::StatusOr<BlockPath> given = ParsePath(report.items[i].path_text, bank.fan_out, bank.depth);
      if (!given.ok()) return Annotate(given.status(), report.items[i].name);
      paths[b].back() = *given;
    }
  }
  return paths;
}

absl::StatusOr<std::vector<MemoryChoice>> Choices(RouterClient& client, const std::string& mode, const Report& report) {
  std::vector<MemoryChoice> choices(report.items.size());
  const bool stacked = report.facts.banks.size() > 1;
  if (mode == "none" || mode == "generic") {
    for (MemoryChoice& choice : choices) {
      choice.mode = mode == "none" ? MemoryMode::kNone : MemoryMode::kGeneric;
      for (const BankFacts& bank : report.banks)
        if (stacked) choice.banks.push_back(bank.bank_id);
    }
    return choices;
  }
  ASSIGN_OR_RETURN(const std::vector<std::vector<BlockPath>> found, FindPaths(client, report));
  for (size_t b = 0; b < report.banks.size(); ++b) {
    const uint32_t fan_out = report.banks[b].fan_out;
    const std::vector<BlockPath> paths = mode == "other" ? OtherPaths(found[b], fan_out) : found[b];
    for (size_t i = 0; i < paths.size(); ++i) {
      std::string& path = stacked ? choices[i].paths[report.banks[b].bank_id] : choices[i].path;
      path = ToString(paths[i], fan_out);
    }
  }
  return choices;
}

absl::StatusOr<Report> Run(const EvalOptions& options, bool cloze, const Measure& measure) {
  RETURN_IF_ERROR(CheckModes(options.modes));
  Report report;
  ASSIGN_OR_RETURN(report.items, ReadItems(options.input, cloze));
  ASSIGN_OR_RETURN(const std::unique_ptr<RouterClient> client, RouterClient::Connect(options.router));
  ASSIGN_OR_RETURN(report.facts, client->Status());
  ASSIGN_OR_RETURN(report.banks, BanksOf(report.facts, options.banks));
  ThreadPool pool(kInFlight - 1);  // and this thread
  for (const std::string& mode : options.modes) {
    ASSIGN_OR_RETURN(const std::vector<MemoryChoice> choices, Choices(*client, mode, report));
    std::vector<Outcome> outcomes(report.items.size());
    Progress progress("eval " + mode, cloze ? "questions" : "pages", report.items.size());
    std::atomic<size_t> next{0}, failed{0};
    ParallelFor(pool, kInFlight, [&](size_t lane) {
      for (size_t i; failed == 0 && (i = next++) < outcomes.size();) {
        outcomes[i] = measure(*client, report.items[i], choices[i]);
        failed += !outcomes[i].status.ok();
        if (lane == kInFlight - 1) progress.Update(std::min<size_t>(next, outcomes.size()));
      }
    });
    for (size_t i = 0; i < outcomes.size(); ++i) {
      if (!outcomes[i].status.ok()) return Annotate(outcomes[i].status, fmt::format("{}, memory {}", report.items[i].name, mode));
    }
    report.outcomes[mode] = std::move(outcomes);
  }
  return report;
}

struct Row {
  Interval value;
  double numerator = 0, denominator = 0;
};

Row Summarise(const std::vector<Outcome>& outcomes, const std::vector<Item>& items, const std::string& group) {
  std::vector<double> numerators, denominators;
  Row row;
  for (size_t i = 0; i < outcomes.size(); ++i) {
    if (!group.empty() && items[i].group != group) continue;
    numerators.push_back(outcomes[i].numerator);
    denominators.push_back(outcomes[i].denominator);
    row.numerator += outcomes[i].numerator;
    row.denominator += outcomes[i].denominator;
  }
  row.value = BootstrapRatio(numerators, denominators);
  return row;
}

nlohmann::json ToJson(const Row& row, bool cloze) {
  nlohmann::json json = {{cloze ? "accuracy" : "loss", row.value.mean}, {"low", row.value.low}, {"high", row.value.high}};
  json[cloze ? "count" : "tokens"] = static_cast<uint64_t>(row.denominator);
  if (cloze) json["correct"] = static_cast<uint64_t>(row.numerator);
  return json;
}

nlohmann::json ItemsJson(const Report& report, const EvalOptions& options, bool cloze) {
  nlohmann::json list = nlohmann::json::array();
  for (size_t i = 0; i < report.items.size(); ++i) {
    nlohmann::json item = {{"at", report.items[i].name}};
    if (cloze) item["prompt"] = report.items[i].prompt;
    if (cloze) item["answer"] = report.items[i].answer;
    for (const std::string& mode : options.modes) {
      const Outcome& outcome = report.outcomes.at(mode)[i];
      nlohmann::json& entry = item["modes"][mode];
      entry["path"] = outcome.memory.path_text;
      for (const MemoryReport& bank : outcome.memory.stacked) entry["paths"][bank.bank_id] = bank.no_rights ? "no rights" : bank.path_text;
      if (cloze) {
        entry["text"] = outcome.text;
        entry["correct"] = outcome.numerator > 0;
      } else {
        entry["loss"] = outcome.numerator / std::max(1.0, outcome.denominator);
        entry["tokens"] = outcome.denominator;
      }
    }
    list.push_back(std::move(item));
  }
  return list;
}

// Answers that lack a bank, by its name.
std::map<std::string, size_t> LeftOut(const Report& report) {
  std::map<std::string, size_t> counts;
  for (const auto& [mode, outcomes] : report.outcomes) {
    for (const Outcome& outcome : outcomes) {
      for (const MemoryReport& bank : outcome.memory.stacked)
        if (bank.no_rights) ++counts[bank.bank_id];
    }
  }
  return counts;
}

absl::Status Print(const Report& report, const EvalOptions& options, bool cloze) {
  std::set<std::string> groups;
  for (const Item& item : report.items) {
    if (!item.group.empty()) groups.insert(item.group);
  }
  nlohmann::json json = {{"kind", cloze ? "cloze" : "loss"},       {"input", options.input},           {"items", report.items.size()},
                         {"model", report.facts.model},            {"bank", report.facts.bank_id},     {"bank_version", report.facts.bank_version},
                         {"modes", nlohmann::json::object()}};
  std::string banks;
  for (const BankFacts& bank : report.banks) {
    const std::string version = bank.bank_version.empty() ? "(live head)" : bank.bank_version;
    if (!bank.bank_id.empty()) banks += fmt::format("{}bank {} version {}", banks.empty() ? "" : " and ", bank.bank_id, version);
    if (report.facts.banks.size() > 1) json["banks"].push_back({{"bank", bank.bank_id}, {"bank_version", bank.bank_version}});
  }
  fmt::print("{} {} of {}, {}\n", report.items.size(), cloze ? "questions" : "pages", options.input, banks.empty() ? "no bank" : banks);
  fmt::print("{:<24} {:>9}   {:<19} {:>12}\n", "memory", cloze ? "accuracy" : "loss", "95% interval", cloze ? "right" : "tokens");
  const auto print = [&](const std::string& name, const Row& row) {
    const std::string count = cloze ? fmt::format("{:.0f}/{:.0f}", row.numerator, row.denominator) : fmt::format("{:.0f}", row.denominator);
    fmt::print("{:<24} {:>9.4f}   {:.4f} .. {:.4f}    {:>12}\n", name, row.value.mean, row.value.low, row.value.high, count);
  };
  for (const std::string& mode : options.modes) {
    const Row row = Summarise(report.outcomes.at(mode), report.items, "");
    print(mode, row);
    json["modes"][mode] = ToJson(row, cloze);
    for (const std::string& group : groups) {
      const Row part = Summarise(report.outcomes.at(mode), report.items, group);
      print("  " + group, part);
      json["modes"][mode]["groups"][group] = ToJson(part, cloze);
    }
  }
  for (const auto& [bank, count] : LeftOut(report)) {
    fmt::print("{} answers were made without bank {}: the worker may not read what they need of it\n", count, bank);
    json["left_out"][bank] = count;
  }
  if (options.json.empty()) return absl::OkStatus();
  json["answers"] = ItemsJson(report, options, cloze);
  return WriteFileAtomic(options.json, json.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

}  // namespace

absl::Status RunCloze(const EvalOptions& options) {
  const Measure ask = [&options](RouterClient& client, const Item& item, const MemoryChoice& memory) {
    Outcome outcome;
    RouterGenerateRequest request;
    request.prompt = item.prompt;
    request.memory = memory;
    // An answer has at most as many tokens as bytes; a few more show whether a number goes on.
    request.max_tokens = std::max<uint32_t>(options.max_tokens, static_cast<uint32_t>(std::min(item.answer.size(), kMaxAnswerBytes)) + 2);
    absl::StatusOr<RouterGenerateReply> reply = client.Generate(request);
    if (!reply.ok()) {
      outcome.status = reply.status();
      return outcome;
    }
    outcome.text = std::move(reply->text);
    outcome.memory = std::move(reply->memory);
    outcome.numerator = BeginsWithAnswer(outcome.text, item.answer);
    outcome.denominator = 1;
    return outcome;
  };
  ASSIGN_OR_RETURN(const Report report, Run(options, true, ask));
  return Print(report, options, true);
}

absl::Status RunLoss(const EvalOptions& options) {
  const Measure score = [](RouterClient& client, const Item& item, const MemoryChoice& memory) {
    Outcome outcome;
    absl::StatusOr<std::vector<RouterScore>> scores = client.Score({{"", item.prompt, memory}});
    if (!scores.ok()) {
      outcome.status = scores.status();
      return outcome;
    }
    outcome.numerator = -scores->front().sum;
    outcome.denominator = static_cast<double>(scores->front().tokens);
    outcome.memory = std::move(scores->front().memory);
    return outcome;
  };
  ASSIGN_OR_RETURN(const Report report, Run(options, false, score));
  return Print(report, options, false);
}

void AddEvalCommand(CLI::App& app) {
  CLI::App* eval = app.add_subcommand("eval", "Measure what the memory knows, through a router");
  eval->require_subcommand(1);
  const auto add = [](CLI::App* command, const std::shared_ptr<EvalOptions>& options) {
    command->add_option("--router", options->router, "gRPC address of the router, host:port");
    command->add_option("--modes", options->modes, "memories to compare: fetched, generic, none, other (a path of another topic)")->delimiter(',');
    command->add_option("--banks", options->banks, "use only these of the banks that are stacked; all when not given")->delimiter(',');
    command->add_option("--json", options->json, "write the figures and every answer to this file");
  };
  auto cloze_options = std::make_shared<EvalOptions>();
  CLI::App* cloze = eval->add_subcommand("cloze", "Questions whose answer is known: greedy answer, exact match");
  add(cloze, cloze_options);
  cloze->add_option("--questions", cloze_options->input,
                    "JSON Lines: {\"prompt\", \"answer\"}, optional \"group\", \"retrieve_on\" (text) or \"path_text\" (3.5)")
      ->required();
  cloze->add_option("--max-tokens", cloze_options->max_tokens, "tokens to generate at least")->check(CLI::Range(1, 1024));
  SetAction(cloze, [cloze_options] { return RunCloze(*cloze_options); });

  auto loss_options = std::make_shared<EvalOptions>();
  CLI::App* loss = eval->add_subcommand("loss", "Mean negative log-likelihood per token of whole documents");
  add(loss, loss_options);
  loss->add_option("--pages", loss_options->input, "JSON Lines: {\"text\"}, optional \"group\", \"retrieve_on\" or \"path_text\"")->required();
  SetAction(loss, [loss_options] { return RunLoss(*loss_options); });
}

}  // namespace membank
