#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/check.h"
#include "base/half.h"
#include "base/mapped_file.h"
#include "base/status.h"
#include "base/strings.h"

namespace lserve {
namespace {

TEST(Half, EveryF16RoundTrips) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const F16 x{static_cast<uint16_t>(bits)};
    const float f = ToFloat(x);
    if (std::isnan(f)) {
      EXPECT_TRUE(std::isnan(ToFloat(ToF16(f))));
      continue;
    }
    ASSERT_EQ(ToF16(f).bits, x.bits) << bits;
    if (std::isinf(f)) continue;
    ASSERT_EQ(ToFloat(ToF16Down(f)), f) << bits;
    ASSERT_EQ(ToFloat(ToF16Up(f)), f) << bits;
  }
}

TEST(Half, F16RoundsToNearestEven) {
  EXPECT_EQ(ToF16(1.0f + 0x1p-11f).bits, ToF16(1.0f).bits);                // tie, even below
  EXPECT_EQ(ToF16(1.0f + 3 * 0x1p-11f).bits, ToF16(1.0f + 0x1p-9f).bits);  // tie, even above
  EXPECT_EQ(ToFloat(ToF16(65519.0f)), 65504.0f);
  EXPECT_TRUE(std::isinf(ToFloat(ToF16(65520.0f))));
  EXPECT_EQ(ToF16(0x1p-25f).bits, 0);  // tie between 0 and the smallest subnormal
  EXPECT_EQ(ToF16(0x1.8p-25f).bits, 1);
}

TEST(Half, DirectedRoundingBrackets) {
  for (const float x : {0.1f, -0.1f, 3.14159f, -2.71828f, 1e-7f, -1e-7f, 0.0f, 1e6f, -1e6f}) {
    const float lo = ToFloat(ToF16Down(x)), hi = ToFloat(ToF16Up(x));
    if (std::abs(x) < 65504.0f) {
      EXPECT_LE(lo, x);
      EXPECT_GE(hi, x);
    } else {
      EXPECT_EQ(std::abs(lo), 65504.0f);
    }
  }
}

TEST(Half, Bf16RoundsToNearestEvenAndKeepsNan) {
  EXPECT_EQ(ToBf16(1.0f + 0x1p-8f).bits, ToBf16(1.0f).bits);
  EXPECT_EQ(ToBf16(1.0f + 3 * 0x1p-8f).bits, ToBf16(1.0f + 0x1p-6f).bits);
  EXPECT_TRUE(std::isnan(ToFloat(ToBf16(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_TRUE(std::isinf(ToFloat(ToBf16(std::numeric_limits<float>::infinity()))));
}

Result<int> Half(int x) {
  if (x % 2 != 0) return Status(Code::kInvalidArgument, StrCat(x, " is odd"));
  return x / 2;
}
Result<int> Quarter(int x) {
  const int half = LS_TRY(Half(x));
  return Half(half);
}

TEST(Status, TryPassesValuesAndErrors) {
  EXPECT_EQ(Quarter(8).value(), 2);
  EXPECT_EQ(Quarter(6).status().message(), "3 is odd");
  EXPECT_EQ(Quarter(6).status().code(), Code::kInvalidArgument);
}

TEST(CheckDeathTest, PrintsBothValues) {
  EXPECT_DEATH(LS_CHECK_EQ(1 + 1, 3) << "sum", "1 \\+ 1 == 3 \\(2 against 3\\) sum");
}

TEST(MappedFile, MissingFileAndDirectoryAreErrors) {
  EXPECT_EQ(MappedFile::Open("/no/such/file").status().code(), Code::kNotFound);
  EXPECT_EQ(MappedFile::Open("/tmp").status().code(), Code::kInvalidArgument);
  EXPECT_EQ(ReadTextFile("/tmp").status().code(), Code::kInvalidArgument);
}

TEST(WriteFile, FullDiskIsAnError) {
  const std::string text(1 << 20, 'x');
  const Status status = WriteFile("/dev/full", std::as_bytes(std::span(text)));
  EXPECT_EQ(status.code(), Code::kIoError);
  EXPECT_NE(status.message().find("/dev/full"), std::string::npos);
}

}  // namespace
}  // namespace lserve
