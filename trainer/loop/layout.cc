#include "trainer/loop/layout.h"

#include <xxhash.h>

#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/job_spec.h"

namespace moesaic {
namespace {

absl::StatusOr<std::vector<std::vector<std::vector<int>>>> HoldersOf(const RankTable& table) {
  const ModelSpec& model = table.spec().model();
  std::vector<std::vector<std::vector<int>>> holders(model.layers());
  for (uint32_t layer = 0; layer < model.layers(); ++layer) {
    if (IsMoeLayer(model, static_cast<int>(layer))) holders[layer].resize(model.moe().experts());
  }
  for (const ExpertHolders& entry : table.placement()) {
    if (entry.layer() >= holders.size() || entry.expert() >= holders[entry.layer()].size()) {
      return absl::InvalidArgumentError(absl::StrCat("[layout] the placement names layer ",
                                                     entry.layer(), " expert ", entry.expert(),
                                                     ", which the model does not have"));
    }
    holders[entry.layer()][entry.expert()].assign(entry.ranks().begin(), entry.ranks().end());
  }
  return holders;
}

}  // namespace

absl::StatusOr<Layout> LayoutOf(const RankTable& table) {
  std::vector<RankPlace> places;
  for (const RankEntry& entry : table.ranks()) {
    places.push_back({.rank = static_cast<int>(entry.rank()),
                      .node = entry.node(),
                      .local_rank = static_cast<int>(entry.local_rank()),
                      .data = static_cast<int>(entry.data()),
                      .expert_group = static_cast<int>(entry.expert_group()),
                      .expert = static_cast<int>(entry.expert())});
  }
  auto mesh = Mesh::Create(std::move(places));
  if (!mesh.ok()) return mesh.status();
  auto holders = HoldersOf(table);
  if (!holders.ok()) return holders.status();
  auto placement = ExpertPlacement::Create(*mesh, table.placement_epoch(), *std::move(holders));
  if (!placement.ok()) return placement.status();
  return Layout{*std::move(mesh), *std::move(placement)};
}

std::array<uint8_t, 16> LayoutHash(const RankTable& table) {
  std::string text;
  for (const RankEntry& entry : table.ranks()) {
    absl::StrAppend(&text, entry.rank(), " ", entry.node(), " ", entry.data(), " ",
                    entry.expert_group(), " ", entry.expert(), "\n");
  }
  for (const ExpertHolders& entry : table.placement()) {
    absl::StrAppend(&text, entry.layer(), " ", entry.expert());
    for (const uint32_t rank : entry.ranks()) absl::StrAppend(&text, " ", rank);
    absl::StrAppend(&text, "\n");
  }
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits(text.data(), text.size()));
  std::array<uint8_t, 16> hash;
  std::memcpy(hash.data(), canonical.digest, hash.size());
  return hash;
}

}  // namespace moesaic
