#include "parallel/comm/pieces.h"

#include <algorithm>
#include <cstring>

namespace moesaic {
namespace {

template <typename Piece>
int64_t Total(std::span<const Piece> pieces) {
  int64_t bytes = 0;
  for (const Piece& piece : pieces) bytes += piece.bytes;
  return bytes;
}

template <typename Piece, typename Byte>
std::vector<std::vector<Piece>> Cut(std::span<const Piece> pieces, int64_t limit) {
  std::vector<std::vector<Piece>> messages;
  int64_t room = 0;
  for (const Piece& piece : pieces) {
    for (int64_t at = 0; at < piece.bytes;) {
      if (room == 0) {
        messages.emplace_back();
        room = limit;
      }
      const int64_t bytes = std::min(room, piece.bytes - at);
      messages.back().push_back({static_cast<Byte*>(piece.data) + at, bytes});
      at += bytes;
      room -= bytes;
    }
  }
  return messages;
}

}  // namespace

int64_t TotalBytes(std::span<const ConstBytes> pieces) { return Total(pieces); }
int64_t TotalBytes(std::span<const MutableBytes> pieces) { return Total(pieces); }

std::vector<std::vector<ConstBytes>> CutMessages(std::span<const ConstBytes> pieces,
                                                 int64_t limit) {
  return Cut<ConstBytes, const char>(pieces, limit);
}

std::vector<std::vector<MutableBytes>> CutMessages(std::span<const MutableBytes> pieces,
                                                   int64_t limit) {
  return Cut<MutableBytes, char>(pieces, limit);
}

void CopyPieces(std::span<const ConstBytes> from, std::span<const MutableBytes> to) {
  size_t piece = 0;
  int64_t used = 0;
  for (const MutableBytes& target : to) {
    for (int64_t at = 0; at < target.bytes;) {
      while (used == from[piece].bytes) {
        ++piece;
        used = 0;
      }
      const int64_t bytes = std::min(target.bytes - at, from[piece].bytes - used);
      std::memcpy(static_cast<char*>(target.data) + at,
                  static_cast<const char*>(from[piece].data) + used, bytes);
      at += bytes;
      used += bytes;
    }
  }
}

}  // namespace moesaic
