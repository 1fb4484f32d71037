// A loss curve as a self-contained SVG: axes with round numbers, one line per series, legend. Pure function.
#pragma once

#include <string>
#include <vector>

namespace membank {

struct LossSeries {
  std::string name;
  std::string color;                 // "#1f77b4"
  std::vector<double> steps, losses; // same length; steps ascending
};

// Long series are averaged into at most a few hundred points. Empty series are left out.
std::string DrawLossChart(const std::string& title, const std::vector<LossSeries>& series);

}  // namespace membank
