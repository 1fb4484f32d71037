// A document: the unit that is tokenized, embedded and given a path.
#pragma once

#include <string>

namespace membank {

struct Document {
  std::string id;           // given in the source, or made from file and position; names the document to people, need not be unique
  std::string title;        // headword or title; may be empty
  std::string text;         // UTF-8, not blank
  std::string retrieve_on;  // the text that finds the path, e.g. the question of an answer; empty: the text itself
};

}  // namespace membank
