// StagedBackend: lets the suites, whose matrices lie in the host's memory, judge a backend whose
// ops read the device's. Every op copies what it is given to the device, gaps between rows
// included, and back. Weights and pages are the inner backend's own.
#pragma once

#include <gtest/gtest.h>

#include <list>
#include <memory>
#include <utility>
#include <vector>

#include "backend/backend.h"

namespace lserve::parity {

class StagedBackend final : public Backend {
 public:
  explicit StagedBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}

  std::string name() const override { return inner_->name(); }
  std::string description() const override { return inner_->description(); }
  Result<Buffer> Allocate(size_t bytes) override { return inner_->Allocate(bytes); }
  Status CopyToDevice(void* device, const void* host, size_t bytes) override {
    return inner_->CopyToDevice(device, host, bytes);
  }
  Status CopyToHost(void* host, const void* device, size_t bytes) override {
    return inner_->CopyToHost(host, device, bytes);
  }
  bool has_kv_dtype(DType dtype) const override { return inner_->has_kv_dtype(dtype); }
  KvHeadBytes kv_head_bytes(DType dtype, int head_dim) const override {
    return inner_->kv_head_bytes(dtype, head_dim);
  }
  Result<std::unique_ptr<KvStore>> MakeKvStore(const KvLayout& layout,
                                               const PageId (&max_pages)[kNumWays]) override {
    return inner_->MakeKvStore(layout, max_pages);
  }
  Result<LinearWeight> PackLinear(std::span<const WeightPart> parts,
                                  int64_t in_features,
                                  std::span<const float> bias,
                                  WeightFormat format) override {
    return inner_->PackLinear(parts, in_features, bias, format);
  }

  Status GatherRows(const GatherRowsParams& params) override {
    Stage stage(inner_.get());
    GatherRowsParams p = params;
    p.table = stage.In(params.table);
    p.out = stage.InOut(params.out);
    return stage.Finish(inner_->GatherRows(p));
  }
  Status RmsNorm(const RmsNormParams& params) override {
    Stage stage(inner_.get());
    RmsNormParams p = params;
    p.x = stage.In(params.x);
    p.weight = stage.In(params.weight, static_cast<size_t>(params.x.cols / params.groups));
    p.y = stage.InOut(params.y);
    return stage.Finish(inner_->RmsNorm(p));
  }
  Status Linear(const LinearParams& params) override {
    Stage stage(inner_.get());
    LinearParams p = params;
    p.x = stage.In(params.x);
    p.y = stage.InOut(params.y);
    return stage.Finish(inner_->Linear(p));
  }
  Status SiluMul(const SiluMulParams& params) override {
    Stage stage(inner_.get());
    return stage.Finish(inner_->SiluMul({.x = stage.In(params.x), .y = stage.InOut(params.y)}));
  }
  Status FusedLinear(const FusedLinearParams& params) override {
    Stage stage(inner_.get());
    FusedLinearParams p = params;
    if (p.norm) {
      p.norm->x = stage.In(p.norm->x);
      p.norm->weight = stage.In(p.norm->weight, static_cast<size_t>(p.norm->x.cols));
      p.norm->y = stage.InOut(p.norm->y);
    }
    p.linear.x = stage.In(p.linear.x);
    p.linear.y = stage.InOut(p.linear.y);
    if (p.gate) *p.gate = {.x = stage.In(p.gate->x), .y = stage.InOut(p.gate->y)};
    return stage.Finish(inner_->FusedLinear(p));
  }
  Status Rope(const RopeParams& params) override {
    Stage stage(inner_.get());
    RopeParams p = params;
    p.x = stage.InOut(params.x);
    p.cos = stage.In(params.cos);
    p.sin = stage.In(params.sin);
    return stage.Finish(inner_->Rope(p));
  }
  Status PickTokens(const PickTokensParams& params) override {
    Stage stage(inner_.get());
    PickTokensParams p = params;
    p.x = stage.InOut(params.x);
    return stage.Finish(inner_->PickTokens(p));
  }
  Status AppendKv(const AppendKvParams& params) override {
    Stage stage(inner_.get());
    AppendKvParams p = params;
    p.k = stage.In(params.k);
    p.v = stage.In(params.v);
    return stage.Finish(inner_->AppendKv(p));
  }
  Status SelectPages(const SelectPagesParams& params) override {
    Stage stage(inner_.get());
    SelectPagesParams p = params;
    std::vector<SelectRequest> requests(params.requests.begin(), params.requests.end());
    for (SelectRequest& r : requests) r.table = stage.InOut(r.table, Entries(params.store));
    p.q = stage.In(params.q);
    p.requests = requests;
    return stage.Finish(inner_->SelectPages(p));
  }
  Status SelectTiles(const SelectTilesParams& params) override {
    Stage stage(inner_.get());
    SelectTilesParams p = params;
    std::vector<TileSelectRequest> requests(params.requests.begin(), params.requests.end());
    for (TileSelectRequest& r : requests) r.table = stage.InOut(r.table, Entries(params.store));
    p.q = stage.In(params.q);
    p.requests = requests;
    return stage.Finish(inner_->SelectTiles(p));
  }
  Status PrefillAttention(const AttentionParams& params) override {
    return Attend(params, &Backend::PrefillAttention);
  }
  Status DecodeAttention(const AttentionParams& params) override {
    return Attend(params, &Backend::DecodeAttention);
  }
  Status PageLogSums(const PageLogSumsParams& params) override {
    Stage stage(inner_.get());
    PageLogSumsParams p = params;
    p.q = stage.In(params.q);
    const int64_t rows = static_cast<int64_t>(params.plan->rows.size()) * params.num_q_heads;
    p.log_sums = stage.InOut({params.log_sums, DType::kF32, rows, params.stride, params.stride})
                     .row<float>(0);
    return stage.Finish(inner_->PageLogSums(p));
  }

 private:
  // The copies of one op. A host array that is given twice has one copy.
  class Stage {
   public:
    explicit Stage(Backend* backend) : backend_(backend) {}

    ConstMatrix In(ConstMatrix m) {
      m.data = Copy(const_cast<void*>(m.data), Bytes(m), false);
      return m;
    }
    Matrix InOut(Matrix m) {
      m.data = Copy(m.data, Bytes(m), true);
      return m;
    }
    const float* In(const float* values, size_t count) {
      return static_cast<const float*>(
          Copy(const_cast<float*>(values), count * sizeof(float), false));
    }
    SelectionTable InOut(SelectionTable table, size_t entries) {
      const size_t runs = entries * static_cast<size_t>(table.capacity);
      table.num_runs = static_cast<int*>(Copy(table.num_runs, entries * sizeof(int), true));
      table.runs = static_cast<PageRun*>(Copy(table.runs, runs * sizeof(PageRun), true));
      return table;
    }
    // Copies back what the op may have written.
    Status Finish(const Status& status) {
      if (!status.ok()) return status;
      for (const Piece& piece : pieces_) {
        if (!piece.out) continue;
        LS_TRY(backend_->CopyToHost(piece.host, piece.device.data.get(), piece.bytes));
      }
      return Status();
    }

   private:
    struct Piece {
      void* host = nullptr;
      size_t bytes = 0;
      bool out = false;
      Buffer device;
    };

    static size_t Bytes(const ConstMatrix& m) {
      if (m.rows == 0) return 0;
      const size_t elements = static_cast<size_t>((m.rows - 1) * m.stride + m.cols);
      return elements * static_cast<size_t>(BitsOf(m.dtype)) / 8;
    }
    void* Copy(void* host, size_t bytes, bool out) {
      for (Piece& piece : pieces_) {
        if (piece.host != host || piece.bytes != bytes) continue;
        piece.out = piece.out || out;
        return piece.device.data.get();
      }
      Piece piece = {.host = host, .bytes = bytes, .out = out, .device = {}};
      piece.device = backend_->Allocate(bytes).value();
      EXPECT_TRUE(backend_->CopyToDevice(piece.device.data.get(), host, bytes).ok());
      pieces_.push_back(piece);
      return piece.device.data.get();
    }

    Backend* backend_;
    std::list<Piece> pieces_;
  };

  static size_t Entries(const KvStore* store) {
    return static_cast<size_t>(store->layout().way(Way::kRetrieval).num_entries);
  }

  Status Attend(const AttentionParams& params, Status (Backend::*op)(const AttentionParams&)) {
    Stage stage(inner_.get());
    AttentionParams p = params;
    PagePlan plan = *params.plan;
    for (SelectionTable& table : plan.selections) {
      table = stage.InOut(table, Entries(params.store));
    }
    p.q = stage.In(params.q);
    p.out = stage.InOut(params.out);
    p.plan = &plan;
    return stage.Finish((inner_.get()->*op)(p));
  }

  std::unique_ptr<Backend> inner_;
};

}  // namespace lserve::parity
