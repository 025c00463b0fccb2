#include "eval/svg.h"

#include <algorithm>
#include <cmath>

#include "base/strings.h"

namespace lserve {
namespace {

constexpr double kCellWidth = 64.0, kCellHeight = 34.0;
constexpr double kMargin = 24.0, kTitleHeight = 40.0, kRowLabelWidth = 150.0;
constexpr double kPanelTitle = 26.0, kColumnLabel = 44.0;
constexpr double kChartWidth = 520.0, kChartHeight = 180.0, kLegendWidth = 170.0;
// Colours that people with red-green blindness tell apart, from low to high.
constexpr int kScale[][3] = {{0xb2, 0x18, 0x2b},
                             {0xf4, 0xa5, 0x82},
                             {0xf7, 0xf7, 0xc7},
                             {0x7f, 0xc9, 0xa0},
                             {0x1b, 0x78, 0x51}};
constexpr const char* kLines[] = {"#1b6ca8", "#c0392b", "#1b7851", "#8e44ad", "#b9770e", "#34495e"};

std::string Number(double value) {
  return StrCat(std::round(value * 10.0) / 10.0);
}

class Canvas {
 public:
  Canvas(double width, double height) {
    out_ = StrCat("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"", Number(width),
                  "\" height=\"", Number(height), "\" viewBox=\"0 0 ", Number(width), " ",
                  Number(height), "\" font-family=\"sans-serif\" font-size=\"12\">\n");
    Rect(0, 0, width, height, "#ffffff");
  }

  void Rect(double x, double y, double width, double height, const std::string& fill) {
    out_ += StrCat("<rect x=\"", Number(x), "\" y=\"", Number(y), "\" width=\"", Number(width),
                   "\" height=\"", Number(height), "\" fill=\"", fill, "\"/>\n");
  }
  void Text(double x,
            double y,
            const std::string& text,
            const char* anchor = "middle",
            const char* fill = "#222222",
            int size = 12) {
    out_ +=
        StrCat("<text x=\"", Number(x), "\" y=\"", Number(y), "\" text-anchor=\"", anchor,
               "\" fill=\"", fill, "\" font-size=\"", size, "\">", EscapeXml(text), "</text>\n");
  }
  void Line(double x1, double y1, double x2, double y2, const std::string& stroke, double width) {
    out_ += StrCat("<line x1=\"", Number(x1), "\" y1=\"", Number(y1), "\" x2=\"", Number(x2),
                   "\" y2=\"", Number(y2), "\" stroke=\"", stroke, "\" stroke-width=\"",
                   Number(width), "\"/>\n");
  }
  void Dot(double x, double y, const std::string& fill) {
    out_ += StrCat("<circle cx=\"", Number(x), "\" cy=\"", Number(y), "\" r=\"3\" fill=\"", fill,
                   "\"/>\n");
  }
  std::string Finish() { return out_ + "</svg>\n"; }

 private:
  std::string out_;
};

std::string ColourOf(double value) {
  constexpr int kSteps = static_cast<int>(std::size(kScale)) - 1;
  const double at = std::clamp(value, 0.0, 1.0) * kSteps;
  const int low = std::min(static_cast<int>(at), kSteps - 1);
  const double share = at - low;
  std::string colour = "#";
  for (int channel = 0; channel < 3; ++channel) {
    const double mixed = kScale[low][channel] * (1.0 - share) + kScale[low + 1][channel] * share;
    const int byte = static_cast<int>(std::lround(mixed));
    colour.push_back("0123456789abcdef"[byte / 16]);
    colour.push_back("0123456789abcdef"[byte % 16]);
  }
  return colour;
}

double PanelWidth(const HeatMap& map) {
  return kRowLabelWidth + static_cast<double>(map.columns.size()) * kCellWidth + kMargin;
}
double PanelHeight(const HeatMap& map) {
  return kPanelTitle + static_cast<double>(map.rows.size()) * kCellHeight + kColumnLabel;
}

void DrawPanel(const HeatMap& map, const HeatPanel& panel, double x, double y, Canvas& canvas) {
  const double left = x + kRowLabelWidth, top = y + kPanelTitle;
  const double width = static_cast<double>(map.columns.size()) * kCellWidth;
  canvas.Text(left + width / 2.0, y + 16.0, panel.title, "middle", "#222222", 13);
  for (size_t row = 0; row < map.rows.size(); ++row) {
    const double cell_y = top + static_cast<double>(row) * kCellHeight;
    canvas.Text(left - 8.0, cell_y + kCellHeight / 2.0 + 4.0, map.rows[row], "end");
    for (size_t column = 0; column < map.columns.size(); ++column) {
      const double cell_x = left + static_cast<double>(column) * kCellWidth;
      const std::optional<double> value = panel.values[row][column];
      canvas.Rect(cell_x + 1.0, cell_y + 1.0, kCellWidth - 2.0, kCellHeight - 2.0,
                  value ? ColourOf(*value) : "#eeeeee");
      if (!value) continue;
      const bool dark = *value < 0.12 || *value > 0.88;
      canvas.Text(cell_x + kCellWidth / 2.0, cell_y + kCellHeight / 2.0 + 4.0,
                  Number(*value * 100.0), "middle", dark ? "#ffffff" : "#222222");
    }
  }
  const double below = top + static_cast<double>(map.rows.size()) * kCellHeight;
  for (size_t column = 0; column < map.columns.size(); ++column) {
    canvas.Text(left + (static_cast<double>(column) + 0.5) * kCellWidth, below + 16.0,
                map.columns[column]);
  }
  canvas.Text(left + width / 2.0, below + 33.0, map.x_label, "middle", "#555555");
  canvas.Text(left - 8.0, y + 16.0, map.y_label, "end", "#555555");
}

// An axis from `low` to `high` in steps of 1, 2 or 5 times a power of ten.
struct Axis {
  double low = 0.0, high = 1.0, step = 0.25;
};

// Holds all values of a panel.
Axis AxisOf(const CurvePanel& panel) {
  std::optional<double> low, high;
  for (const Curve& curve : panel.curves) {
    for (const std::optional<double>& value : curve.values) {
      if (!value) continue;
      low = std::min(low.value_or(*value), *value);
      high = std::max(high.value_or(*value), *value);
    }
  }
  if (!low) return {};
  const double wanted = std::max((*high - *low) / 4.0, 1e-9);
  double step = std::pow(10.0, std::floor(std::log10(wanted)));
  for (const double factor : {2.0, 2.5, 2.0}) {
    if (step < wanted) step *= factor;
  }
  Axis axis{std::floor(*low / step) * step, std::ceil(*high / step) * step, step};
  if (axis.high <= axis.low) axis.high = axis.low + step;
  return axis;
}

// As many decimals as the step has.
std::string AxisNumber(double value, double step) {
  const double scale = std::pow(10.0, std::max(0.0, std::ceil(-std::log10(step)) + 1.0));
  return StrCat(std::round(value * scale) / scale + 0.0);  // + 0.0: no "-0"
}

void DrawPanel(const CurveChart& chart, const CurvePanel& panel, double y, Canvas& canvas) {
  const double left = kMargin + 70.0, top = y + kPanelTitle;
  const Axis axis = AxisOf(panel);
  canvas.Text(left, y + 16.0, panel.title, "start", "#222222", 13);
  const int lines = static_cast<int>(std::lround((axis.high - axis.low) / axis.step));
  for (int i = 0; i <= lines; ++i) {
    const double value = axis.low + axis.step * i;
    const double line_y = top + kChartHeight * (1.0 - static_cast<double>(i) / lines);
    canvas.Line(left, line_y, left + kChartWidth, line_y, "#dddddd", 1.0);
    canvas.Text(left - 6.0, line_y + 4.0, AxisNumber(value, axis.step), "end", "#555555", 11);
  }
  const double step = chart.x.size() > 1 ? kChartWidth / static_cast<double>(chart.x.size() - 1)
                                         : kChartWidth / 2.0;
  const double first = chart.x.size() > 1 ? left : left + step;
  for (size_t i = 0; i < chart.x.size(); ++i) {
    canvas.Text(first + static_cast<double>(i) * step, top + kChartHeight + 16.0, chart.x[i]);
  }
  for (size_t c = 0; c < panel.curves.size(); ++c) {
    const Curve& curve = panel.curves[c];
    const std::string colour = kLines[c % std::size(kLines)];
    const double legend_y = top + 10.0 + 18.0 * static_cast<double>(c);
    canvas.Line(left + kChartWidth + 16.0, legend_y, left + kChartWidth + 36.0, legend_y, colour,
                2.0);
    canvas.Text(left + kChartWidth + 42.0, legend_y + 4.0, curve.name, "start");
    std::optional<std::pair<double, double>> previous;
    for (size_t i = 0; i < curve.values.size(); ++i) {
      if (!curve.values[i]) {
        previous.reset();
        continue;
      }
      const double px = first + static_cast<double>(i) * step;
      const double share = (*curve.values[i] - axis.low) / (axis.high - axis.low);
      const double py = top + kChartHeight * (1.0 - share);
      if (previous) canvas.Line(previous->first, previous->second, px, py, colour, 2.0);
      canvas.Dot(px, py, colour);
      previous = {px, py};
    }
  }
}

}  // namespace

std::string EscapeXml(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out.push_back(static_cast<unsigned char>(c) < 0x20 ? '?' : c);
    }
  }
  return out;
}

std::string DrawHeatMap(const HeatMap& map) {
  constexpr size_t kPerRow = 2;
  const size_t panels = map.panels.size();
  const double across = static_cast<double>(std::min(panels, kPerRow));
  const size_t num_rows = (panels + kPerRow - 1) / kPerRow;
  const double down = static_cast<double>(num_rows);
  Canvas canvas(kMargin * 2.0 + across * PanelWidth(map),
                kTitleHeight + down * PanelHeight(map) + kMargin);
  canvas.Text(kMargin, 26.0, map.title, "start", "#222222", 15);
  for (size_t i = 0; i < panels; ++i) {
    const size_t col = i % kPerRow, row = i / kPerRow;
    const double x = kMargin + static_cast<double>(col) * PanelWidth(map);
    const double y = kTitleHeight + static_cast<double>(row) * PanelHeight(map);
    DrawPanel(map, map.panels[i], x, y, canvas);
  }
  return canvas.Finish();
}

std::string DrawCurves(const CurveChart& chart) {
  const double panel_height = kPanelTitle + kChartHeight + 34.0;
  const double height =
      kTitleHeight + panel_height * static_cast<double>(chart.panels.size()) + kMargin + 10.0;
  Canvas canvas(kMargin * 2.0 + 70.0 + kChartWidth + kLegendWidth, height);
  canvas.Text(kMargin, 26.0, chart.title, "start", "#222222", 15);
  for (size_t i = 0; i < chart.panels.size(); ++i) {
    DrawPanel(chart, chart.panels[i], kTitleHeight + static_cast<double>(i) * panel_height, canvas);
  }
  canvas.Text(kMargin + 70.0 + kChartWidth / 2.0, height - kMargin / 2.0, chart.x_label, "middle",
              "#555555");
  return canvas.Finish();
}

}  // namespace lserve
