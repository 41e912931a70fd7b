//! Tables of 256 bytes in registers: `table[q]` for the bytes of a vector.

use std::arch::asm;
use std::arch::x86_64::*;

/// For any AVX-512: 16 entries at a time, each kept where the upper half of the index is theirs.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub fn shuffle(table: &[__m512i; 4], q: __m512i) -> __m512i {
    let nibble = _mm512_set1_epi8(15);
    let (low, high) = (_mm512_and_si512(q, nibble), _mm512_and_si512(_mm512_srli_epi16::<4>(q), nibble));
    let mut y = _mm512_setzero_si512();
    for i in 0..4 {
        let rows = [
            _mm512_shuffle_i32x4::<0x00>(table[i], table[i]),
            _mm512_shuffle_i32x4::<0x55>(table[i], table[i]),
            _mm512_shuffle_i32x4::<0xaa>(table[i], table[i]),
            _mm512_shuffle_i32x4::<0xff>(table[i], table[i]),
        ];
        for (j, &row) in rows.iter().enumerate() {
            let own = _mm512_cmpeq_epi8_mask(high, _mm512_set1_epi8((4 * i + j) as i8));
            y = _mm512_mask_shuffle_epi8(y, own, row, low);
        }
    }
    y
}

/// [`shuffle`] with a table in memory.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub fn shuffle_bytes(table: &[u8; 256], q: __m512i) -> __m512i {
    // SAFETY: 256 bytes are four registers.
    let table = [0, 64, 128, 192].map(|at| unsafe { _mm512_loadu_si512(table.as_ptr().add(at).cast()) });
    shuffle(&table, q)
}

/// For AVX2: as [`shuffle`].
#[inline]
#[target_feature(enable = "avx2")]
pub fn shuffle_avx2(table: &[u8; 256], q: __m256i) -> __m256i {
    let nibble = _mm256_set1_epi8(15);
    let (low, high) = (_mm256_and_si256(q, nibble), _mm256_and_si256(_mm256_srli_epi16::<4>(q), nibble));
    let mut y = _mm256_setzero_si256();
    for (i, row) in table.chunks_exact(16).enumerate() {
        // SAFETY: a row has 16 bytes.
        let row = unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(row.as_ptr().cast())) };
        let own = _mm256_cmpeq_epi8(high, _mm256_set1_epi8(i as i8));
        y = _mm256_or_si256(y, _mm256_and_si256(own, _mm256_shuffle_epi8(row, low)));
    }
    y
}

/// With VBMI: both halves of the table, and the index's top bit chooses.
///
/// Written as `asm!`, because callers that serve rows without VBMI as well could not inline a function that asks for it.
///
/// # Safety
/// AVX-512 VBMI is there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub unsafe fn permute(table: &[__m512i; 4], q: __m512i) -> __m512i {
    let (mut low, mut high) = (q, q);
    // SAFETY: registers only.
    unsafe {
        asm!(
            "vpermi2b {low}, {a}, {b}",
            "vpermi2b {high}, {c}, {d}",
            low = inout(zmm_reg) low,
            high = inout(zmm_reg) high,
            a = in(zmm_reg) table[0],
            b = in(zmm_reg) table[1],
            c = in(zmm_reg) table[2],
            d = in(zmm_reg) table[3],
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(q), high)
}
