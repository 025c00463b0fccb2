// What the parity suite runs over: every backend and instruction set that this machine has, and
// comparisons that name the first coordinate that differs. Used by all files of this folder.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "backend/registry.h"
#include "base/rng.h"
#include "base/strings.h"
#include "kv/kv_layout.h"
#include "parity/staged_backend.h"
#include "tensor/dtype.h"

namespace lserve::parity {

inline constexpr double kFloatRoundoff = 0x1p-24;
inline constexpr double kBf16Roundoff = 0x1p-8;  // 8 significant bits, half a unit

// One thing under test.
struct Subject {
  std::string name = {};
  BackendConfig config = {};
  bool rounds_weights = false;  // softmax weights to bf16 (ops.h allows it)

  bool is_reference() const { return config.device == "reference"; }
  bool is_cuda() const { return config.device == "cuda"; }
  // Whether a row's bits never depend on the rows beside it.
  bool is_batch_invariant() const { return !is_cuda() || config.batch_invariant; }
  // What it has to store keys and values as.
  bool HasKvType(DType dtype) const { return dtype != DType::kFp8 || config.device != "cpu"; }
  bool is_sm90() const { return is_cuda() && config.kernels == "sm90"; }
  // Masks and lists do not depend on it; the reference's time does. Hopper has a prefill kernel of
  // its own from 64 on.
  int small_head_dim() const { return is_sm90() ? 64 : is_cuda() ? 32 : 16; }
  // The GPU's attention kernels are made for these; other backends take any.
  bool Supports(int head_dim) const {
    return !is_cuda() || head_dim == 32 || head_dim == 64 || head_dim == 96 || head_dim == 128;
  }
};

inline std::unique_ptr<Backend> Make(const Subject& subject, int num_threads = 2) {
  BackendConfig config = subject.config;
  config.num_threads = num_threads;
  Result<std::unique_ptr<Backend>> made = MakeBackend(config);
  EXPECT_TRUE(made.ok()) << made.status().message();
  if (subject.is_cuda()) return std::make_unique<StagedBackend>(std::move(made.value()));
  return std::move(made.value());
}

// The reference, then the cpu backend with every instruction set of this processor, then the GPU if
// there is one.
inline std::vector<Subject> Subjects() {
  std::vector<Subject> subjects = {{.name = "reference", .config = {.device = "reference"}}};
  for (const char* isa : {"generic", "avx2", "avx512", "avx512bf16"}) {
    const BackendConfig config = {.device = "cpu", .num_threads = 1, .cpu_isa = isa};
    if (!MakeBackend(config).ok()) continue;
    subjects.push_back({.name = StrCat("cpu_", isa),
                        .config = config,
                        .rounds_weights = std::string(isa) == "avx512bf16"});
  }
  for (const char* kernels : {"sm80", "sm90"}) {
    const BackendConfig cuda = {.device = "cuda", .kernels = kernels};
    if (!MakeBackend(cuda).ok()) continue;
    subjects.push_back({.name = StrCat("cuda_", kernels), .config = cuda, .rounds_weights = true});
  }
  return subjects;
}

// And the GPU in the mode in which it multiplies many rows by kernels of its own.
inline std::vector<Subject> SubjectsAndModes() {
  std::vector<Subject> subjects = Subjects();
  for (const Subject& subject : Subjects()) {
    if (!subject.is_cuda()) continue;
    subjects.push_back(subject);
    subjects.back().name += "_invariant";
    subjects.back().config.batch_invariant = true;
  }
  return subjects;
}

inline std::vector<Subject> FastSubjects() {
  std::vector<Subject> subjects = Subjects();
  subjects.erase(subjects.begin());
  return subjects;
}

inline void PrintTo(const Subject& subject, std::ostream* os) {
  *os << subject.name;
}

// Suites over subjects, or over subjects x dtypes.
using SubjectAndType = std::tuple<Subject, DType>;
// Every element type of the KV cache that the subject is to have (KvTypes.AreThoseOfTheBackend).
inline std::vector<SubjectAndType> WithKvTypes(const std::vector<Subject>& subjects) {
  std::vector<SubjectAndType> pairs;
  for (const Subject& subject : subjects) {
    for (const DType dtype : kKvDTypes) {
      if (subject.HasKvType(dtype)) pairs.emplace_back(subject, dtype);
    }
  }
  return pairs;
}
inline std::string SubjectName(const testing::TestParamInfo<Subject>& info) {
  return info.param.name;
}
inline std::string SubjectTypeName(const testing::TestParamInfo<SubjectAndType>& info) {
  return StrCat(std::get<0>(info.param).name, "_", Name(std::get<1>(info.param)));
}

inline std::vector<float> RandomFloats(uint64_t seed, int64_t count, float scale = 1.0f) {
  Rng rng(seed);
  std::vector<float> x(static_cast<size_t>(count));
  for (float& value : x) value = scale * rng.NextFloat();
  return x;
}

// Fails at the first element that is further than `tolerance` from what is expected; NaN is never
// near. Rows have `cols` elements.
inline ::testing::AssertionResult Near(const std::vector<float>& got,
                                       const std::vector<float>& expected,
                                       double tolerance,
                                       int64_t cols) {
  if (got.size() != expected.size()) return ::testing::AssertionFailure() << "sizes differ";
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::abs(double{got[i]} - double{expected[i]}) <= tolerance) continue;
    return ::testing::AssertionFailure() << "row " << static_cast<int64_t>(i) / cols << " column "
                                         << static_cast<int64_t>(i) % cols << ": " << got[i]
                                         << ", expected " << expected[i] << " within " << tolerance;
  }
  return ::testing::AssertionSuccess();
}

// Bit for bit, so that -0 and 0 or two NaNs are told apart.
inline ::testing::AssertionResult SameBits(const std::vector<float>& got,
                                           const std::vector<float>& expected,
                                           int64_t cols) {
  if (got.size() != expected.size()) return ::testing::AssertionFailure() << "sizes differ";
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::memcmp(&got[i], &expected[i], sizeof(float)) == 0) continue;
    return ::testing::AssertionFailure() << "row " << static_cast<int64_t>(i) / cols << " column "
                                         << static_cast<int64_t>(i) % cols << ": " << got[i]
                                         << ", expected the bits of " << expected[i];
  }
  return ::testing::AssertionSuccess();
}

}  // namespace lserve::parity
