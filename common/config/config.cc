#include "common/config/config.h"

#include <algorithm>
#include <cstdlib>

#include "common/base/version.h"
#include "fmt/format.h"

namespace membank::config {
namespace {

constexpr int kExitUsage = 2;

size_t EditDistance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t change = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({change, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

// The settings among the options of `app`: those with a long name that a file may hold.
std::vector<CLI::Option*> Settings(CLI::App& app) {
  std::vector<CLI::Option*> settings;
  for (CLI::Option* option : app.get_options()) {
    if (!option->get_lnames().empty() && option->get_configurable()) settings.push_back(option);
  }
  return settings;
}

std::string Name(const CLI::Option* option) { return option->get_lnames().front(); }

bool HasSubcommands(CLI::App& app) { return !app.get_subcommands([](CLI::App*) { return true; }).empty(); }

// Every flag that the command line could have meant: the app's own and those of the sub-commands that were named.
std::vector<std::string> KnownFlags(CLI::App& app) {
  std::vector<std::string> flags;
  for (CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) flags.push_back("--" + name);
  }
  for (CLI::App* sub : app.get_subcommands()) {
    for (std::string& flag : KnownFlags(*sub)) flags.push_back(std::move(flag));
  }
  return flags;
}

std::string Suggestion(const std::string& name, const std::vector<std::string>& known) {
  const std::optional<std::string> nearest = Nearest(name, known);
  return nearest ? fmt::format("; did you mean {}?", *nearest) : "; --help lists them all";
}

// CLI11's TOML reader, which also finds unknown keys and lets the environment win over the file.
class FileReader : public CLI::ConfigTOML {
 public:
  explicit FileReader(CLI::App& app) : app_(app) {}

  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override {
    const std::string text(std::istreambuf_iterator<char>(input), {});
    RefuseHashInQuotes(text);
    std::istringstream stream(text);
    std::vector<CLI::ConfigItem> items = CLI::ConfigTOML::from_config(stream);
    for (const CLI::ConfigItem& item : items) CheckKnown(item);
    std::erase_if(items, [](const CLI::ConfigItem& item) {
      const char* environment = std::getenv(EnvironmentName(item.name).c_str());
      return item.parents.empty() && environment != nullptr && *environment != '\0';
    });
    return items;
  }

 private:
  // CLI11 takes everything after '#' for a comment, also inside quotes: refuse rather than read half a value.
  void RefuseHashInQuotes(const std::string& text) const {
    std::istringstream lines(text);
    int number = 0;
    for (std::string line; std::getline(lines, line);) {
      ++number;
      char quote = 0;
      for (const char c : line) {
        if (c == '#' && quote == 0) break;
        if (c == '#') throw CLI::ConfigError(fmt::format("line {}: '#' inside a quoted value is not supported", number));
        if (quote == 0 && (c == '"' || c == '\'')) quote = c;
        else if (c == quote) quote = 0;
      }
    }
  }

  void CheckKnown(const CLI::ConfigItem& item) const {
    if (item.name == "++" || item.name == "--") return;  // CLI11's marks of a section's beginning and end
    std::vector<std::string> known;
    for (const CLI::Option* option : Settings(app_)) known.push_back(Name(option));
    const std::string key = item.fullname();
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      throw CLI::ConfigError(fmt::format("unknown key '{}'{}", key, Suggestion(key, known)));
    }
  }

  CLI::App& app_;
};

bool OnCommandLine(const std::string& flag, int argc, const char* const* argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == flag || argument.starts_with(flag + "=")) return true;
  }
  return false;
}

// Where the value that CLI11 complains about came from: its messages name the option only.
std::string Origin(CLI::App& app, const std::string& message, int argc, const char* const* argv, const std::string& file) {
  for (const CLI::Option* option : Settings(app)) {
    const std::string flag = "--" + Name(option);
    const size_t at = message.find(flag);
    if (at == std::string::npos || (at + flag.size() < message.size() && (isalnum(message[at + flag.size()]) || message[at + flag.size()] == '-'))) {
      continue;
    }
    if (OnCommandLine(flag, argc, argv)) return "";
    const char* environment = std::getenv(EnvironmentName(flag).c_str());
    if (environment != nullptr && *environment != '\0') return fmt::format(" (from the environment: {}={})", EnvironmentName(flag), environment);
    if (!file.empty() && option->count() > 0) return fmt::format(" (from {})", file);
  }
  return "";
}

std::string Quoted(const std::string& value) {
  std::string quoted = "\"";
  for (const char c : value) {
    if (c == '\n') {
      quoted += ' ';
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

bool IsNumberOrBool(const std::string& value) {
  if (value == "true" || value == "false") return true;
  double number = 0;
  return CLI::detail::lexical_cast(value, number) && !std::isalpha(static_cast<unsigned char>(value.front()));
}

// One value of the effective settings in TOML, empty when it is not set.
std::string EffectiveValue(CLI::Option* option) {
  if (option->get_expected_min() == 0) {  // a flag
    return option->count() == 0 ? "false" : option->as<bool>() ? "true" : "false";
  }
  std::vector<std::string> values = option->reduced_results();
  if (option->count() == 0) {
    option->capture_default_str();
    std::string text = option->get_default_str();
    if (text.size() >= 2 && text.front() == '[' && text.back() == ']') {
      values = CLI::detail::split(text.substr(1, text.size() - 2), ',');
    } else {
      values = {text};
    }
    if (values.size() == 1 && values[0].empty()) values.clear();
  }
  const auto format = [](const std::string& value) { return IsNumberOrBool(value) ? value : Quoted(value); };
  if (option->get_expected_max() <= 1) return values.empty() ? "" : format(values[0]);
  std::string list;
  for (const std::string& value : values) list += (list.empty() ? "" : ", ") + format(value);
  return list.empty() ? "" : "[" + list + "]";
}

void PrintConfig(CLI::App& app) {
  fmt::print("# {} {}\n", app.get_name(), VersionString());
  for (CLI::Option* option : Settings(app)) {
    const std::string value = EffectiveValue(option);
    fmt::print("\n# {}\n", option->get_description());
    if (value.empty()) {
      fmt::print("# {} = \"\"   (not set)\n", Name(option));
    } else {
      fmt::print("{} = {}\n", Name(option), value);
    }
  }
}

void BindEnvironment(CLI::App& app) {
  for (CLI::Option* option : Settings(app)) {
    if (option->get_envname().empty()) option->envname(EnvironmentName(Name(option)));
    option->capture_default_str();  // --help shows it
  }
  for (CLI::App* sub : app.get_subcommands([](CLI::App*) { return true; })) BindEnvironment(*sub);
}

int Fail(const CLI::App& app, const std::string& message) {
  fmt::print(stderr, "{}: {}\n", app.get_name(), message);
  return kExitUsage;
}

}  // namespace

std::string EnvironmentName(const std::string& flag) {
  std::string name = "MEMBANK_";
  for (const char c : flag.substr(flag.find_first_not_of('-'))) name += c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return name;
}

std::optional<std::string> Nearest(const std::string& name, const std::vector<std::string>& known) {
  std::optional<std::string> nearest;
  size_t best = std::max<size_t>(2, name.size() / 3) + 1;
  for (const std::string& candidate : known) {
    const size_t distance = EditDistance(name, candidate);
    if (distance < best) {
      best = distance;
      nearest = candidate;
    }
  }
  return nearest;
}

std::optional<int> Parse(CLI::App& app, int argc, const char* const* argv, const std::function<absl::Status()>& validate) {
  const bool service = !HasSubcommands(app);
  bool print = false, check = false;
  app.set_version_flag("--version", VersionString())->configurable(false);
  if (CLI::Option* help = app.get_help_ptr()) help->configurable(false);
  if (service) {
    app.add_flag("--print-config", print, "Print the effective settings as a config file and exit")->configurable(false);
    app.add_flag("--check-config", check, "Check the settings and exit")->configurable(false);
  }
  BindEnvironment(app);
  std::string file;
  if (service) {
    app.config_formatter(std::make_shared<FileReader>(app));
    app.set_config("--config", "", "Read settings from this file (TOML: key = value)")->configurable(false)->envname("MEMBANK_CONFIG");
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ExtrasError& error) {
    const std::vector<std::string> extras = app.remaining(true);
    if (extras.empty()) return Fail(app, error.what());
    const std::string name = extras.front().substr(0, extras.front().find('='));
    if (name.starts_with("-")) return Fail(app, fmt::format("unknown flag {}{}", name, Suggestion(name, KnownFlags(app))));
    return Fail(app, fmt::format("unexpected argument '{}'{}", extras.front(), "; --help shows what is expected"));
  } catch (const CLI::ConfigError& error) {
    return Fail(app, fmt::format("{}: {}", app.get_config_ptr()->as<std::string>(), error.what()));
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // help, version
    if (service && app.get_config_ptr()->count() > 0) file = app.get_config_ptr()->as<std::string>();
    return Fail(app, error.what() + Origin(app, error.what(), argc, argv, file));
  }
  if (print) PrintConfig(app);
  if (print && !check) return 0;
  if (validate) {
    if (const absl::Status status = validate(); !status.ok()) return Fail(app, std::string(status.message()));
  }
  if (check && !print) fmt::print("the settings are valid\n");
  if (check) return 0;
  return std::nullopt;
}

}  // namespace membank::config
