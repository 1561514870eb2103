// The products behind GemmKernelTable; included once by each gemm_<level>.cc.
//
// The classic scheme (Goto and van de Geijn, "Anatomy of high-performance matrix multiplication"):
// B is packed into panels of 32 (the last: 16 or 32) columns, and tiles of kTileRows rows of C stay
// in registers while k runs. A is read in place where its rows are contiguous, else packed by tile.
//
// A "word" is what one lane multiplies at a time: a float, or a pair of Bf16 adjacent in k where
// the CPU multiplies pairs. Elsewhere Bf16 is widened as it is packed.
#pragma once

#include "parallel/simd/gemm_kernels.h"
#include "parallel/simd/simd.h"

namespace moesaic {
namespace {

#if defined(__AVX512F__)
constexpr int kTileRows = 14;  // 28 of the 32 registers hold C
#elif defined(__AVX2__)
constexpr int kTileRows = 3;
#else
constexpr int kTileRows = 1;
#endif

#if defined(__AVX512BF16__)
constexpr bool kPairs = true;
#else
constexpr bool kPairs = false;
#endif

template <class T>
constexpr bool kInPairs = kPairs && sizeof(T) == 2;

template <class T>
int64_t Words(int64_t k) {
  return kInPairs<T> ? (k + 1) / 2 : k;
}

constexpr int64_t kWordBytes = 4;

// c += (the products of words a and b), a the same in every lane.
template <bool pairs>
MOESAIC_INLINE VecF MultiplyWord(const char* a, VecF b, VecF c) {
  if constexpr (pairs) {
#if defined(__AVX512BF16__)
    int32_t word;
    memcpy(&word, a, sizeof(word));
    return (VecF)_mm512_dpbf16_ps((__m512)c, (__m512bh)_mm512_set1_epi32(word), (__m512bh)b);
#endif
  }
  float word;
  memcpy(&word, a, sizeof(word));
  return MulAdd(Splat(word), b, c);
}

// ---- Packing ------------------------------------------------------------------------------------

MOESAIC_INLINE VecU LoadWords(const float* p, int64_t count) {
  return Bits(count >= kLanes ? Load(p, AllLanes{}) : Load(p, FirstLanes{count}));
}

MOESAIC_INLINE VecU LoadHalves(const Bf16* p, int64_t count) {
  VecH v;
  if (count >= kLanes) {
    memcpy(&v, p, sizeof(v));
  } else {
    v = LoadHalves(p, FirstLanes{count});
  }
  return __builtin_convertvector(v, VecU);
}

// The first kTileRows lanes.
MOESAIC_INLINE void StoreWords(float* to, VecU v) { Store(to, FromBits(v), FirstLanes{kTileRows}); }

// Words k of `count` (at most 16) adjacent columns of a matrix whose rows are contiguous.
MOESAIC_INLINE VecU RowWords(const MatrixRef<float>& b, int64_t word, int64_t, int64_t column,
                             int64_t count) {
  return LoadWords(b.data + word * b.row_stride + column, count);
}
MOESAIC_INLINE VecU RowWords(const MatrixRef<Bf16>& b, int64_t word, int64_t k, int64_t column,
                             int64_t count) {
  if constexpr (!kPairs) {
    return LoadHalves(b.data + word * b.row_stride + column, count) << 16;
  } else {
    const Bf16* p = b.data + 2 * word * b.row_stride + column;
    VecU low = LoadHalves(p, count);
    return 2 * word + 1 < k ? low | (LoadHalves(p + b.row_stride, count) << 16) : low;
  }
}

// 16 words along k of one column (which is contiguous), the first `count` of them, of `k` elements.
MOESAIC_INLINE VecU ColumnWords(const float* p, int64_t word, int64_t k) {
  return LoadWords(p + word, k - word);
}
MOESAIC_INLINE VecU ColumnWords(const Bf16* p, int64_t word, int64_t k) {
  if constexpr (!kPairs) {
    return LoadHalves(p + word, k - word) << 16;
  } else {
    const int64_t bytes = (k - 2 * word) * (int64_t)sizeof(Bf16);
    VecU v{};
    if (bytes >= (int64_t)sizeof(v)) {
      memcpy(&v, p + 2 * word, sizeof(v));
    } else {
      memcpy(&v, p + 2 * word, bytes);
    }
    return v;
  }
}

// v[j][i] <- v[i][j]: four rounds of perfect shuffles.
MOESAIC_INLINE void Transpose(VecU v[kLanes]) {
  for (int round = 0; round < 4; ++round) {
    VecU w[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      w[2 * i] = __builtin_shufflevector(v[i], v[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21,
                                         6, 22, 7, 23);
      w[2 * i + 1] = __builtin_shufflevector(v[i], v[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28,
                                             13, 29, 14, 30, 15, 31);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) v[i] = w[i];
  }
}

// Columns [column, column + 16) into words of `width` lanes a k, at `to`.
template <class T>
void PackTransposed(int64_t k, int64_t columns, const T* first, int64_t stride, int64_t width,
                    VecU* to) {
  const int64_t words = Words<T>(k);
  for (int64_t word = 0; word < words; word += kLanes) {
    VecU v[kLanes];
#pragma GCC unroll 16
    for (int64_t j = 0; j < kLanes; ++j) {
      v[j] = j < columns ? ColumnWords(first + j * stride, word, k) : VecU{};
    }
    Transpose(v);
    const int64_t count = words - word < kLanes ? words - word : kLanes;
    for (int64_t i = 0; i < count; ++i) to[(word + i) * width] = v[i];
  }
}

// Vectors a word of the panel that starts at `column` of n.
int64_t PanelVectors(int64_t n, int64_t column) { return n - column > kLanes ? 2 : 1; }

template <class T>
void PackPanel(int64_t k, int64_t n, const MatrixRef<T>& b, int64_t column, VecU* to) {
  const int64_t vectors = PanelVectors(n, column);
  for (int64_t v = 0; v < vectors; ++v) {
    const int64_t first = column + v * kLanes;
    const int64_t columns = n - first < kLanes ? n - first : kLanes;
    if (b.row_stride == 1 && b.column_stride != 1) {
      PackTransposed(k, columns, b.data + first * b.column_stride, b.column_stride, vectors,
                     to + v);
    } else {
      for (int64_t word = 0; word < Words<T>(k); ++word) {
        to[word * vectors + v] = RowWords(b, word, k, first, columns);
      }
    }
  }
}

template <class T>
int64_t PackedBytesOf(int64_t k, int64_t n) {
  return (n + kLanes - 1) / kLanes * kLanes * Words<T>(k) * kWordBytes;
}

template <class T>
void PackBOf(int64_t k, int64_t n, MatrixRef<T> b, void* packed) {
  VecU* to = (VecU*)packed;
  for (int64_t column = 0; column < n; column += kPanel) {
    PackPanel(k, n, b, column, to);
    to += PanelVectors(n, column) * Words<T>(k);
  }
}

// ---- A ------------------------------------------------------------------------------------------

// Word (i, k) of A: at data + i * row_bytes + k * word_bytes.
struct Words2d {
  const char* data;
  int64_t row_bytes;
  int64_t word_bytes;
  const char* next;  // the tile after this one, fetched ahead
};

// Whether words of A can be read where they are. Rows a multiple of 2 KiB apart would fight for the
// same few lines of the first-level cache.
template <class T>
bool InPlace(const GemmShape& shape, const MatrixRef<T>& a) {
  if (sizeof(T) == 2 && (!kPairs || shape.k % 2 != 0)) return false;
  if (a.row_stride * sizeof(T) % 2048 == 0) return false;
  return a.column_stride == 1;
}

// Blocks of the product: A's block stays in the second level of the cache while panels of B pass
// by. Only an fp32 C can be left and taken up again, so only there k is cut.
constexpr int64_t kBlockWords = 512;
constexpr int64_t kBlockBytes = 200 * 1024;

int64_t BlockRows(int64_t words) {
  const int64_t tiles = kBlockBytes / (words * kWordBytes + 1) / kTileRows;
  return (tiles < 2 ? 2 : tiles) * kTileRows;
}

template <class C>
int64_t BlockK(int64_t k, int64_t elements_a_word) {
  const int64_t block = kBlockWords * elements_a_word;
  return sizeof(C) == sizeof(float) && k > block ? block : k;
}

template <class T>
int64_t ScratchBytesOf(const GemmShape& shape, MatrixRef<T> a) {
  if (InPlace(shape, a)) return 0;
  const int64_t words = Words<T>(shape.k);
  const int64_t rows = BlockRows(words < kBlockWords ? words : kBlockWords);
  return (rows * words + kLanes) * kWordBytes;
}

// Tiles of kTileRows rows, word after word; `a_t` is A transposed (a row of it: all rows of A).
template <class T>
void PackTiles(const GemmShape& shape, const MatrixRef<T>& a_t, char* to) {
  const int64_t words = Words<T>(shape.k), tile_bytes = words * kTileRows * kWordBytes;
  for (int64_t word = 0; word < words; ++word) {
    char* tile = to + word * kTileRows * kWordBytes;
    for (int64_t row = 0; row < shape.m; row += kTileRows, tile += tile_bytes) {
      const int64_t rows = shape.m - row < kTileRows ? shape.m - row : kTileRows;
      const VecU v = RowWords(a_t, word, shape.k, row, rows);
      StoreWords((float*)tile, v);
    }
  }
}

// The same where A's rows are contiguous: 16 rows at a time through a transposition.
template <class T>
void PackTilesOfRows(const GemmShape& shape, const MatrixRef<T>& a, char* to) {
  const int64_t words = Words<T>(shape.k);
  for (int64_t row = 0; row < shape.m; row += kTileRows) {
    const int64_t rows = shape.m - row < kTileRows ? shape.m - row : kTileRows;
    for (int64_t word = 0; word < words; word += kLanes) {
      VecU v[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        v[i] = i < rows ? ColumnWords(a.data + (row + i) * a.row_stride, word, shape.k) : VecU{};
      }
      Transpose(v);
      const int64_t count = words - word < kLanes ? words - word : kLanes;
      for (int64_t i = 0; i < count; ++i, to += kTileRows * kWordBytes) {
        StoreWords((float*)to, v[i]);
      }
    }
  }
}

// ---- Multiplying --------------------------------------------------------------------------------

template <class C, class Lanes>
MOESAIC_INLINE void StoreResult(C* c, VecF v, bool accumulate, Lanes lanes) {
  if constexpr (sizeof(C) == sizeof(float)) {
    if (accumulate) v += Load(c, lanes);
  }
  Store(c, v, lanes);
}

// One tile of C: `rows` x (16 vectors) in registers. In passing it fetches the next tile of A, a
// row a word and 64 bytes every 16 words, and the lines of C that it will write.
template <bool pairs, int rows, int vectors, class C>
void MultiplyTile(int64_t words, Words2d a, const VecF* b, GemmResult<C> c, int64_t columns) {
  for (int i = 0; i < rows; ++i) {
    for (int v = 0; v < vectors; ++v) __builtin_prefetch(c.data + i * c.stride + v * kLanes, 1);
  }
  VecF sum[rows][vectors] = {};
  const char* next = a.next;
  for (int64_t line = 0; line < words; line += kLanes) {
    const int64_t count = words - line < kLanes ? words - line : kLanes;
    const char* fetched = next;
    for (int64_t word = 0; word < count; ++word, b += vectors) {
      __builtin_prefetch(fetched);
      fetched += a.row_bytes;
#pragma GCC unroll 16
      for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) {
          sum[i][v] = MultiplyWord<pairs>(a.data + i * a.row_bytes, b[v], sum[i][v]);
        }
      }
      a.data += a.word_bytes;
    }
    next += kLanes * kWordBytes;
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      C* to = c.data + i * c.stride + v * kLanes;
      const int64_t left = columns - v * kLanes;
      if (left >= kLanes) {
        StoreResult(to, sum[i][v], c.accumulate, AllLanes{});
      } else {
        StoreResult(to, sum[i][v], c.accumulate, FirstLanes{left});
      }
    }
  }
}

template <class C>
using TileKernel = void (*)(int64_t, Words2d, const VecF*, GemmResult<C>, int64_t);

// The kernel of `rows` rows: the first of those from kTileRows down to 1.
template <bool pairs, int vectors, class C, int rows = kTileRows>
TileKernel<C> ChooseTile(int64_t wanted) {
  if constexpr (rows > 1) {
    if (wanted < rows) return ChooseTile<pairs, vectors, C, rows - 1>(wanted);
  }
  return MultiplyTile<pairs, rows, vectors, C>;
}

template <class T, class C>
void MultiplyPanel(const GemmShape& shape, Words2d a, int64_t tile_bytes, const VecF* panel,
                   int64_t vectors, GemmResult<C> c, int64_t columns) {
  const int64_t words = Words<T>(shape.k);
  for (int64_t row = 0; row < shape.m; row += kTileRows) {
    const int64_t rows = shape.m - row < kTileRows ? shape.m - row : kTileRows;
    const auto tile = vectors == 2 ? ChooseTile<kInPairs<T>, 2, C>(rows)
                                   : ChooseTile<kInPairs<T>, 1, C>(rows);
    a.next = a.data + tile_bytes;
    tile(words, a, panel, c, columns);
    a.data += tile_bytes;
    c.data += kTileRows * c.stride;
  }
}

// A block of rows (all of shape.m) by all panels, for k from `k_begin` of the packed B on.
template <class T, class C>
void MultiplyBlock(const GemmShape& shape, const MatrixRef<T>& a, const PackedB& b, void* scratch,
                   const GemmResult<C>& c) {
  const int64_t words = Words<T>(shape.k);
  Words2d in{(const char*)a.data, a.row_stride * (int64_t)sizeof(T), kWordBytes, nullptr};
  int64_t tile_bytes = kTileRows * in.row_bytes;
  if (!InPlace(shape, a)) {
    if (a.column_stride == 1) {
      PackTilesOfRows(shape, a, (char*)scratch);
    } else {
      PackTiles(shape, a.Transposed(), (char*)scratch);
    }
    in = {(const char*)scratch, kWordBytes, kTileRows * kWordBytes, nullptr};
    tile_bytes = kTileRows * words * kWordBytes;
  }
  const int64_t words_packed = Words<T>(b.k), first_word = Words<T>(b.k_begin);
  const VecF* panel = (const VecF*)b.data + b.n_begin / kLanes * words_packed;
  for (int64_t column = 0; column < shape.n; column += kPanel) {
    const int64_t vectors = PanelVectors(b.n, b.n_begin + column);
    const int64_t left = shape.n - column;
    MultiplyPanel<T>(shape, in, tile_bytes, panel + first_word * vectors, vectors,
                     GemmResult<C>{c.data + column, c.stride, c.accumulate},
                     left < kPanel ? left : kPanel);
    panel += vectors * words_packed;
  }
}

template <class T, class C>
void Multiply(const GemmShape& shape, MatrixRef<T> a, const PackedB& b, void* scratch,
              GemmResult<C> c) {
  const int64_t block_k = BlockK<C>(shape.k, kInPairs<T> ? 2 : 1);
  const int64_t block_rows = BlockRows(Words<T>(block_k));
  int64_t k = 0;
  do {
    GemmShape block = shape;
    block.k = shape.k - k < block_k ? shape.k - k : block_k;
    PackedB part = b;
    part.k_begin += k;
    for (int64_t row = 0; row < shape.m; row += block_rows) {
      block.m = shape.m - row < block_rows ? shape.m - row : block_rows;
      const MatrixRef<T> rows{a.data + row * a.row_stride + k * a.column_stride, a.row_stride,
                              a.column_stride};
      MultiplyBlock(block, rows, part, scratch,
                    GemmResult<C>{c.data + row * c.stride, c.stride, c.accumulate || k > 0});
    }
    k += block.k;
  } while (k < shape.k);
}

template <class T>
constexpr GemmKernels<T> MakeGemmKernels() {
  return {PackedBytesOf<T>, PackBOf<T>, ScratchBytesOf<T>, Multiply<T, float>, Multiply<T, Bf16>};
}

constexpr GemmKernelTable MakeGemmKernelTable() {
  return {MakeGemmKernels<float>(), MakeGemmKernels<Bf16>()};
}

}  // namespace
}  // namespace moesaic
