//! The part of ZIP that `torch.save` writes: entries that are stored, not compressed, found through the central directory.

use crate::Fault;
use std::collections::HashMap;
use std::ops::Range;

const ENTRIES_MAX: u64 = 1 << 18;
/// Signature, sizes and longest comment of the record at the end.
const END_BYTES: usize = 22;
const COMMENT_BYTES_MAX: usize = 65_535;

fn number(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let raw = bytes.get(at..at.checked_add(size)?)?;
    Some(raw.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
}

/// The bytes of each entry, by name.
pub fn entries(bytes: &[u8]) -> Result<HashMap<String, Range<usize>>, Fault> {
    let cut = || Fault::Damaged("the ZIP archive is cut short (copy the file again)".to_owned());
    let (count, mut at) = directory(bytes).ok_or_else(cut)?;
    if count > ENTRIES_MAX {
        return Err(Fault::TooLarge(format!("{count} entries, at most {ENTRIES_MAX}")));
    }
    let mut found = HashMap::new();
    for _ in 0..count {
        let (name, range, next) = entry(bytes, at).ok_or_else(cut)??;
        if found.insert(name.clone(), range).is_some() {
            return Fault::damaged(format!("the ZIP archive has two entries '{name}'"));
        }
        at = next;
    }
    Ok(found)
}

/// Number of entries, and where their list begins.
fn directory(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = bytes.len().saturating_sub(END_BYTES + COMMENT_BYTES_MAX);
    let last = bytes.len().checked_sub(END_BYTES)?;
    let end = (first..=last).rev().find(|&at| bytes[at..].starts_with(b"PK\x05\x06"))?;
    let (count, at) = (number(bytes, end + 10, 2)?, number(bytes, end + 16, 4)?);
    // Larger archives say these in a record of their own, whose place stands just before.
    let locator = end.checked_sub(20).filter(|&at| bytes[at..].starts_with(b"PK\x06\x07"));
    let Some(locator) = locator else { return Some((count, usize::try_from(at).ok()?)) };
    let record = usize::try_from(number(bytes, locator + 8, 8)?).ok()?;
    bytes.get(record..)?.starts_with(b"PK\x06\x06").then_some(())?;
    let place = |field: usize| number(bytes, record.checked_add(field)?, 8);
    Some((place(32)?, usize::try_from(place(48)?).ok()?))
}

type Entry = (String, Range<usize>, usize);

/// Name and bytes of the entry that the directory lists at `at`, and where the next one is listed.
fn entry(bytes: &[u8], at: usize) -> Option<Result<Entry, Fault>> {
    bytes.get(at..)?.starts_with(b"PK\x01\x02").then_some(())?;
    let field = |offset: usize, size: usize| number(bytes, at + offset, size);
    let (flags, method) = (field(8, 2)?, field(10, 2)?);
    let (mut size, mut local) = (field(24, 4)?, field(42, 4)?);
    let (name_len, extra_len, comment_len) =
        (field(28, 2)? as usize, field(30, 2)? as usize, field(32, 2)? as usize);
    let name_at = at + 46;
    let extra_at = name_at + name_len;
    let name = String::from_utf8_lossy(bytes.get(name_at..extra_at)?).into_owned();
    let extra = bytes.get(extra_at..extra_at + extra_len)?;
    large_fields(extra, &mut size, field(20, 4)?, &mut local)?;
    if flags & 1 != 0 || method != 0 {
        let what = "is compressed or encrypted (torch.save stores entries as they are; save the file again)";
        return Some(Fault::unsupported(format!("ZIP entry '{name}' {what}")));
    }
    let local = usize::try_from(local).ok()?;
    bytes.get(local..)?.starts_with(b"PK\x03\x04").then_some(())?;
    let begin = local + 30 + number(bytes, local + 26, 2)? as usize + number(bytes, local + 28, 2)? as usize;
    let end = begin.checked_add(usize::try_from(size).ok()?)?;
    (end <= bytes.len()).then_some(())?;
    Some(Ok((name, begin..end, extra_at + extra_len + comment_len)))
}

/// Sizes and places of 32 ones stand as 64-bit numbers in an extra field, in this order.
fn large_fields(extra: &[u8], size: &mut u64, compressed: u64, local: &mut u64) -> Option<()> {
    const LARGE: u64 = 0xffff_ffff;
    let mut at = 0;
    while at + 4 <= extra.len() {
        let (id, len) = (number(extra, at, 2)?, number(extra, at + 2, 2)? as usize);
        if id == 1 {
            let mut field = at + 4;
            if *size == LARGE {
                *size = number(extra, field, 8)?;
                field += 8;
            }
            if compressed == LARGE {
                field += 8;
            }
            if *local == LARGE {
                *local = number(extra, field, 8)?;
            }
            return Some(());
        }
        at += 4 + len;
    }
    Some(())
}
