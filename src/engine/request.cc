#include "lserve/request.h"

namespace lserve {

std::string_view Name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kError:
      return "error";
  }
  return "?";
}

std::string_view Name(PrefixEnd end) {
  switch (end) {
    case PrefixEnd::kNone:
      return "none";
    case PrefixEnd::kWhole:
      return "whole";
    case PrefixEnd::kEnds:
      return "ends";
    case PrefixEnd::kDiffers:
      return "differs";
    case PrefixEnd::kSettings:
      return "settings";
  }
  return "?";
}

}  // namespace lserve
