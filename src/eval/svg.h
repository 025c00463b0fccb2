// Svg: the two pictures of an evaluation, as text: heat maps (lengths x depths, dense beside
// sparse) and curves (quality against budget). Not a plotting library: fixed layout, no scripts, no
// fonts of its own. Used by report.cc and fidelity.cc.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace lserve {

struct HeatPanel {
  std::string title;
  // [rows][columns], 0 to 1; nothing: not measured.
  std::vector<std::vector<std::optional<double>>> values;
};

struct HeatMap {
  std::string title;
  std::string x_label, y_label;
  std::vector<std::string> columns, rows;
  std::vector<HeatPanel> panels;  // side by side, two in a row
};
std::string DrawHeatMap(const HeatMap& map);

struct Curve {
  std::string name;
  std::vector<std::optional<double>> values;  // one per x
};
struct CurvePanel {
  std::string title;
  std::vector<Curve> curves;
};
struct CurveChart {
  std::string title;
  std::string x_label;
  std::vector<std::string> x;      // at equal distances: budgets double
  std::vector<CurvePanel> panels;  // below each other
};
std::string DrawCurves(const CurveChart& chart);

// "a < b" as XML wants it; what no XML may hold becomes a question mark.
std::string EscapeXml(const std::string& text);

}  // namespace lserve
