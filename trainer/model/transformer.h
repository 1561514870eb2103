// Transformer: the list of blocks of a model, and passes of one micro-batch over all of them.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "trainer/model/attention.h"
#include "trainer/model/block.h"
#include "trainer/model/embedding.h"
#include "trainer/model/head.h"
#include "trainer/model/moe_layer.h"
#include "trainer/recipe/recipe.h"

namespace moesaic {

struct TransformerInputs {
  const JobSpec* spec = nullptr;              // resolved and valid, with model.vocabulary
  const ParameterCatalog* catalog = nullptr;  // of that job
  RecipePoint recipe;
  ExpertParallel parallel;
  int64_t positions = 0;  // longest sequence; 0: model.sequence
};

// The blocks in order: embedding, (attention, feed-forward) x layers, head. Immutable; it holds no
// weights, so it is cheap to make again for another recipe point or placement.
class Transformer {
 public:
  explicit Transformer(const TransformerInputs& inputs);

  std::span<const std::unique_ptr<Block>> blocks() const { return blocks_; }

  int layers() const { return static_cast<int>(attention_.size()); }
  AttentionBlock& attention(int layer) const { return *attention_[layer]; }
  Block& feed_forward(int layer) const { return *blocks_[2 + 2 * layer]; }
  EmbeddingBlock& embedding() const { return *embedding_; }
  HeadBlock& head() const { return *head_; }

  // Shape of the keys and the values that one sequence position of a layer adds to a cache.
  int64_t kv_heads() const { return kv_heads_; }
  int64_t head_width() const { return head_width_; }
  int64_t positions() const { return positions_; }

 private:
  std::unique_ptr<Block> MakeFeedForward(const TransformerInputs& inputs, int layer,
                                         int moe_index) const;

  int64_t kv_heads_;
  int64_t head_width_;
  int64_t positions_;
  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<AttentionBlock*> attention_;
  EmbeddingBlock* embedding_ = nullptr;
  HeadBlock* head_ = nullptr;
};

// One micro-batch's pass over all blocks. Not movable: contexts point into it. The pointees must
// outlive it.
class TransformerPass {
 public:
  TransformerPass(const Transformer& model, const MicroBatch& micro_batch,
                  const PassOptions& options, WeightSource& weights);
  TransformerPass(const TransformerPass&) = delete;
  TransformerPass& operator=(const TransformerPass&) = delete;

  // Told of each block before it runs, by those who watch for hangs; may be empty.
  using Watch = std::function<void(const Block&)>;

  // All blocks forward; the loss is in scalars() then.
  void RunForward(const Watch& watch = {});
  // All blocks backward, each reporting its weights' gradients right after its input's; needs
  // PassOptions::training. Once, after RunForward.
  void RunBackward(GradientSink& sink, const Watch& watch = {});

  const PassScalars& scalars() const { return scalars_; }
  // By block; for a loop that drives the blocks itself, and for tests.
  std::span<PassContext> contexts() { return contexts_; }

 private:
  const Transformer& model_;
  PassScalars scalars_;
  std::vector<PassContext> contexts_;
};

}  // namespace moesaic
