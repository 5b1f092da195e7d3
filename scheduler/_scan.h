/* Sixteen keys at a time: the least of them, and where it is first. SSE2 is part of every x86-64; elsewhere plain C. */
#ifndef BRUME_SCAN_H
#define BRUME_SCAN_H
#include <stdint.h>

#if defined(__SSE2__)
#include <emmintrin.h>

static inline __m128i least_of(__m128i a, __m128i b)
{
    __m128i greater = _mm_cmpgt_epi32(a, b);
    return _mm_or_si128(_mm_and_si128(greater, b), _mm_andnot_si128(greater, a));
}

static inline int32_t least16(const int32_t *keys)
{
    const __m128i *four = (const __m128i *)keys;
    __m128i least = least_of(least_of(_mm_load_si128(four), _mm_load_si128(four + 1)),
                             least_of(_mm_load_si128(four + 2), _mm_load_si128(four + 3)));
    least = least_of(least, _mm_shuffle_epi32(least, _MM_SHUFFLE(1, 0, 3, 2)));
    least = least_of(least, _mm_shuffle_epi32(least, _MM_SHUFFLE(2, 3, 0, 1)));
    return _mm_cvtsi128_si32(least);
}

static inline int first16(const int32_t *keys, int32_t key)
{
    const __m128i *four = (const __m128i *)keys;
    __m128i wanted = _mm_set1_epi32(key);
    __m128i low = _mm_packs_epi32(_mm_cmpeq_epi32(_mm_load_si128(four), wanted),
                                  _mm_cmpeq_epi32(_mm_load_si128(four + 1), wanted));
    __m128i high = _mm_packs_epi32(_mm_cmpeq_epi32(_mm_load_si128(four + 2), wanted),
                                   _mm_cmpeq_epi32(_mm_load_si128(four + 3), wanted));
    return __builtin_ctz((unsigned)_mm_movemask_epi8(_mm_packs_epi16(low, high)) | 0x10000u);
}

#else

static inline int32_t least16(const int32_t *keys)
{
    int32_t least = keys[0];
    for (int i = 1; i < 16; i++)
        least = keys[i] < least ? keys[i] : least;
    return least;
}

static inline int first16(const int32_t *keys, int32_t key)
{
    int i = 0;
    while (i < 16 && keys[i] != key)
        i++;
    return i;
}

#endif
#endif
