// SPDX-License-Identifier: Apache-2.0
#include "cli/completion.h"

#include <CLI/CLI.hpp>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"

namespace kek::cli {
namespace {

struct Flag {
  std::string name;  // "--socket"
  std::string help;
  bool takes_value = false;
  bool is_file = false;
};

// One command as completion sees it.
struct Command {
  std::string path;  // "kekctl key create"
  std::vector<std::pair<std::string, std::string>> subcommands;  // name, help
  std::vector<Flag> flags;  // with those of its parents
};

// The first line, without what a shell's quotes would trip over.
std::string Short(const std::string& help) {
  return absl::StrReplaceAll(help.substr(0, help.find('\n')), {{"'", ""},
                                                               {"\"", ""},
                                                               {"`", ""},
                                                               {"[", "("},
                                                               {"]", ")"},
                                                               {":", ""},
                                                               {"$", ""}});
}

void Collect(const CLI::App& app, const std::string& path,
             std::vector<Flag> inherited, std::vector<Command>& out) {
  Command command;
  command.path = path;
  for (const CLI::Option* option : app.get_options(
           [](const CLI::Option* o) { return o->nonpositional(); })) {
    Flag flag;
    const auto& names = option->get_lnames();
    if (names.empty()) continue;
    flag.name = absl::StrCat("--", names.front());
    flag.help = Short(option->get_description());
    flag.takes_value = option->get_items_expected_max() > 0;
    flag.is_file = flag.takes_value && option->get_type_name() == "FILE";
    for (auto it = inherited.begin(); it != inherited.end();) {
      it = it->name == flag.name ? inherited.erase(it) : it + 1;
    }
    inherited.push_back(std::move(flag));
  }
  command.flags = inherited;
  for (const CLI::App* sub : app.get_subcommands(
           [](const CLI::App* a) { return !a->get_name().empty(); })) {
    command.subcommands.emplace_back(sub->get_name(),
                                     Short(sub->get_description()));
  }
  out.push_back(command);
  for (const CLI::App* sub : app.get_subcommands(
           [](const CLI::App* a) { return !a->get_name().empty(); })) {
    Collect(*sub, absl::StrCat(path, " ", sub->get_name()), inherited, out);
  }
}

std::string Words(const Command& command, bool subcommands) {
  std::vector<std::string> words;
  if (subcommands) {
    for (const auto& [name, help] : command.subcommands) words.push_back(name);
  } else {
    for (const Flag& flag : command.flags) words.push_back(flag.name);
  }
  return absl::StrJoin(words, " ");
}

// Which words are flags that take a value: the word after them is not a
// command.
std::string ValueFlags(const std::vector<Command>& commands) {
  std::vector<std::string> names;
  for (const Command& command : commands) {
    for (const Flag& flag : command.flags) {
      if (flag.takes_value &&
          std::find(names.begin(), names.end(), flag.name) == names.end()) {
        names.push_back(flag.name);
      }
    }
  }
  return absl::StrJoin(names, "|");
}

std::string FileFlags(const std::vector<Command>& commands) {
  std::vector<std::string> names;
  for (const Command& command : commands) {
    for (const Flag& flag : command.flags) {
      if (flag.is_file &&
          std::find(names.begin(), names.end(), flag.name) == names.end()) {
        names.push_back(flag.name);
      }
    }
  }
  return absl::StrJoin(names, "|");
}

std::string Bash(const std::vector<Command>& commands) {
  std::string out = absl::StrCat(
      "# bash completion for kekctl; made by `kekctl completion bash`.\n"
      "_kekctl() {\n"
      "  local current=${COMP_WORDS[COMP_CWORD]} "
      "previous=${COMP_WORDS[COMP_CWORD-1]}\n"
      "  local path=kekctl word i skip=\n"
      "  COMPREPLY=()\n"
      "  case $previous in\n"
      "    --output) COMPREPLY=($(compgen -W 'table json' -- \"$current\")); "
      "return ;;\n"
      "    ",
      FileFlags(commands),
      "|--socket) COMPREPLY=($(compgen -f -- \"$current\")); return ;;\n"
      "    ",
      ValueFlags(commands),
      ") return ;;\n"
      "  esac\n"
      "  for ((i = 1; i < COMP_CWORD; i++)); do\n"
      "    word=${COMP_WORDS[i]}\n"
      "    if [[ -n $skip ]]; then skip=; continue; fi\n"
      "    case $word in\n"
      "      ",
      ValueFlags(commands),
      ") skip=1 ;;\n"
      "      -*) ;;\n"
      "      *) case \"$path $word\" in\n");
  for (const Command& command : commands) {
    absl::StrAppend(&out, "        '", command.path, "') path='", command.path,
                    "' ;;\n");
  }
  absl::StrAppend(&out,
                  "      esac ;;\n"
                  "    esac\n"
                  "  done\n"
                  "  local commands= flags=\n"
                  "  case $path in\n");
  for (const Command& command : commands) {
    absl::StrAppend(&out, "    '", command.path, "') commands='",
                    Words(command, true), "' flags='", Words(command, false),
                    "' ;;\n");
  }
  absl::StrAppend(
      &out,
      "  esac\n"
      "  if [[ $current == -* ]]; then\n"
      "    COMPREPLY=($(compgen -W \"$flags\" -- \"$current\"))\n"
      "  elif [[ -n $commands ]]; then\n"
      "    COMPREPLY=($(compgen -W \"$commands\" -- \"$current\"))\n"
      "  fi\n"
      "}\n"
      "complete -F _kekctl kekctl\n");
  return out;
}

std::string Zsh(const std::vector<Command>& commands) {
  std::string out = absl::StrCat(
      "#compdef kekctl\n"
      "# zsh completion for kekctl; made by `kekctl completion zsh`.\n"
      "_kekctl() {\n"
      "  local path=kekctl word skip= i\n"
      "  local previous=${words[CURRENT-1]}\n"
      "  case $previous in\n"
      "    --output) compadd table json; return ;;\n"
      "    ",
      FileFlags(commands),
      "|--socket) _files; return ;;\n"
      "    ",
      ValueFlags(commands),
      ") return ;;\n"
      "  esac\n"
      "  for ((i = 2; i < CURRENT; i++)); do\n"
      "    word=${words[i]}\n"
      "    if [[ -n $skip ]]; then skip=; continue; fi\n"
      "    case $word in\n"
      "      ",
      ValueFlags(commands),
      ") skip=1 ;;\n"
      "      -*) ;;\n"
      "      *) case \"$path $word\" in\n");
  for (const Command& command : commands) {
    absl::StrAppend(&out, "        '", command.path, "') path='", command.path,
                    "' ;;\n");
  }
  absl::StrAppend(&out,
                  "      esac ;;\n"
                  "    esac\n"
                  "  done\n"
                  "  local -a commands flags\n"
                  "  case $path in\n");
  for (const Command& command : commands) {
    absl::StrAppend(&out, "    '", command.path, "')\n      commands=(");
    for (const auto& [name, help] : command.subcommands) {
      absl::StrAppend(&out, "'", name, ":", help, "' ");
    }
    absl::StrAppend(&out, ")\n      flags=(");
    for (const Flag& flag : command.flags) {
      absl::StrAppend(&out, "'", flag.name, ":", flag.help, "' ");
    }
    absl::StrAppend(&out, ") ;;\n");
  }
  absl::StrAppend(&out,
                  "  esac\n"
                  "  if [[ ${words[CURRENT]} == -* ]]; then\n"
                  "    _describe -o flag flags\n"
                  "  elif (( ${#commands} )); then\n"
                  "    _describe command commands\n"
                  "  fi\n"
                  "}\n"
                  "compdef _kekctl kekctl\n");
  return out;
}

std::string Fish(const std::vector<Command>& commands) {
  std::string out = absl::StrCat(
      "# fish completion for kekctl; made by `kekctl completion fish`.\n"
      "function __kekctl_at\n"
      "  set -l path kekctl\n"
      "  set -l skip\n"
      "  set -l words (commandline -opc)\n"
      "  for word in $words[2..-1]\n"
      "    if test -n \"$skip\"; set skip; continue; end\n"
      "    switch $word\n"
      "      case ",
      absl::StrReplaceAll(ValueFlags(commands), {{"|", " "}}),
      "\n        set skip 1\n"
      "      case '-*'\n"
      "      case '*'\n"
      "        switch \"$path $word\"\n");
  for (const Command& command : commands) {
    absl::StrAppend(&out, "          case '", command.path,
                    "'\n            set path '", command.path, "'\n");
  }
  absl::StrAppend(&out,
                  "        end\n"
                  "    end\n"
                  "  end\n"
                  "  test \"$path\" = \"$argv[1]\"\n"
                  "end\n"
                  "complete -c kekctl -f\n");
  for (const Command& command : commands) {
    for (const auto& [name, help] : command.subcommands) {
      absl::StrAppend(&out, "complete -c kekctl -n '__kekctl_at \"",
                      command.path, "\"' -a '", name, "' -d '", help, "'\n");
    }
    for (const Flag& flag : command.flags) {
      absl::StrAppend(&out, "complete -c kekctl -n '__kekctl_at \"",
                      command.path, "\"' -l '", flag.name.substr(2), "'",
                      flag.name == "--output"   ? " -x -a 'table json'"
                      : flag.is_file            ? " -r -F"
                      : flag.name == "--socket" ? " -r -F"
                      : flag.takes_value        ? " -x"
                                                : "",
                      " -d '", flag.help, "'\n");
    }
  }
  return out;
}

}  // namespace

absl::StatusOr<std::string> CompletionScript(const CLI::App& root,
                                             absl::string_view shell) {
  std::vector<Command> commands;
  Collect(root, "kekctl", {}, commands);
  if (shell == "bash") return Bash(commands);
  if (shell == "zsh") return Zsh(commands);
  if (shell == "fish") return Fish(commands);
  return absl::InvalidArgumentError("completion is for bash, zsh or fish");
}

}  // namespace kek::cli
