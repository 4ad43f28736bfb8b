//! Reader of BoltDB's file format: pages, and a B+tree of pages for each bucket. Numbers are little-endian, as on all
//! platforms of 2.8.1.
//!
//! Damaged and hostile files are safe to read: every offset is checked, each page is visited at most once, and all
//! keys and values together are at most twice as long as the file (a bucket may be stored inside a value).

use std::collections::{BTreeMap, BTreeSet};

use super::DatabaseError;

const MAGIC: u32 = 0xed0c_daed;
const FORMAT: u32 = 2;
const PAGE_HEADER: usize = 16;
const ELEMENT: usize = 16;
const META: usize = 64;
const BRANCH_PAGE: u16 = 0x01;
const LEAF_PAGE: u16 = 0x02;
const META_PAGE: u16 = 0x04;
const BUCKET_ELEMENT: u32 = 0x01;
/// Limit on the depth of a tree; real ones are much shallower.
const MAX_DEPTH: usize = 64;

/// The keys and values of one bucket.
pub(super) type Bucket<'a> = BTreeMap<&'a [u8], &'a [u8]>;

/// Reads the top-level bucket `name`; `None` if there is no such bucket.
pub(super) fn read_bucket<'a>(file: &'a [u8], name: &[u8]) -> Result<Option<Bucket<'a>>, DatabaseError> {
    let meta = newest_meta(file)?;
    let mut reader =
        Reader { file, page_size: meta.page_size, visited: BTreeSet::new(), budget: 2 * file.len() };
    let mut roots = Vec::new();
    reader.tree(meta.root, 0, &mut roots)?;
    let Some(bucket) = roots.iter().find(|item| item.is_bucket && item.key == name) else { return Ok(None) };
    let root = u64_at(bucket.value, 0).ok_or(damaged("bucket header"))?;
    let mut items = Vec::new();
    if root == 0 {
        // A small bucket is stored inside its value, as a page without a number.
        let page = bucket.value.get(PAGE_HEADER..).ok_or(damaged("inline bucket"))?;
        reader.page(page, 0, &mut items)?;
    } else {
        reader.tree(root, 0, &mut items)?;
    }
    Ok(Some(items.into_iter().filter(|item| !item.is_bucket).map(|item| (item.key, item.value)).collect()))
}

struct Meta {
    page_size: usize,
    root: u64,
    transaction: u64,
}

/// The newer of the two copies of the meta page. A crash damages at most the other one.
fn newest_meta(file: &[u8]) -> Result<Meta, DatabaseError> {
    let first = read_meta(file, 0);
    // The first copy contains the page size and thereby the place of the second; if the first is damaged, all sizes
    // are tried.
    let sizes: Vec<usize> = match &first {
        Ok(meta) => vec![meta.page_size],
        Err(_) => (9..=17).map(|bits| 1usize << bits).collect(),
    };
    let second =
        sizes.into_iter().find_map(|size| read_meta(file, size).ok().filter(|m| m.page_size == size));
    match (first, second) {
        (Ok(first), Some(second)) if second.transaction > first.transaction => Ok(second),
        (Ok(first), _) => Ok(first),
        (Err(_), Some(second)) => Ok(second),
        (Err(error), None) => Err(error),
    }
}

fn read_meta(file: &[u8], at: usize) -> Result<Meta, DatabaseError> {
    let page = file.get(at..).unwrap_or_default();
    let meta = page.get(PAGE_HEADER..PAGE_HEADER + META).ok_or(DatabaseError::NotBolt)?;
    let u32_of = |offset| u32_at(meta, offset).unwrap_or_default();
    let u64_of = |offset| u64_at(meta, offset).unwrap_or_default();
    if u32_of(0) != MAGIC || u16_at(page, 8) != Some(META_PAGE) {
        return Err(DatabaseError::NotBolt);
    }
    if u32_of(4) != FORMAT {
        return Err(DatabaseError::Format(u32_of(4)));
    }
    if fnv1a(&meta[..META - 8]) != u64_of(META - 8) {
        return Err(damaged("checksum of a meta page"));
    }
    let page_size = u32_of(8) as usize;
    if !page_size.is_power_of_two() || !(512..=1 << 17).contains(&page_size) {
        return Err(damaged("page size"));
    }
    Ok(Meta { page_size, root: u64_of(16), transaction: u64_of(48) })
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

struct Item<'a> {
    key: &'a [u8],
    value: &'a [u8],
    is_bucket: bool,
}

struct Reader<'a> {
    file: &'a [u8],
    page_size: usize,
    /// Pages visited so far. A valid file has no cycles and no shared pages.
    visited: BTreeSet<u64>,
    /// Bytes of keys and values that may still be read.
    budget: usize,
}

impl<'a> Reader<'a> {
    /// Collects all items below the page with this number.
    fn tree(&mut self, number: u64, depth: usize, items: &mut Vec<Item<'a>>) -> Result<(), DatabaseError> {
        let start = usize::try_from(number).ok().and_then(|n| n.checked_mul(self.page_size));
        let page = start.and_then(|start| self.file.get(start..)).ok_or(damaged("page number"))?;
        let overflow = u32_at(page, 12).ok_or(damaged("page header"))?;
        let length = (overflow as usize).saturating_add(1).saturating_mul(self.page_size);
        let page = page.get(..length).ok_or(damaged("page beyond the end"))?;
        for covered in number..=number.saturating_add(overflow.into()) {
            if !self.visited.insert(covered) {
                return Err(damaged("page in two places"));
            }
        }
        self.page(page, depth, items)
    }

    fn page(&mut self, page: &'a [u8], depth: usize, items: &mut Vec<Item<'a>>) -> Result<(), DatabaseError> {
        if depth > MAX_DEPTH {
            return Err(damaged("tree too deep"));
        }
        let flags = u16_at(page, 8).ok_or(damaged("page header"))?;
        let count = u16_at(page, 10).ok_or(damaged("page header"))?;
        for index in 0..usize::from(count) {
            let at = PAGE_HEADER + index * ELEMENT;
            let element = page.get(at..).filter(|rest| rest.len() >= ELEMENT).ok_or(damaged("element"))?;
            let field = |offset| u32_at(element, offset).unwrap_or_default();
            match flags {
                BRANCH_PAGE => {
                    let child = u64_at(element, 8).unwrap_or_default();
                    self.tree(child, depth + 1, items)?;
                }
                LEAF_PAGE => {
                    let (key_len, value_len) = (field(8) as usize, field(12) as usize);
                    self.budget = self
                        .budget
                        .checked_sub(key_len.saturating_add(value_len))
                        .ok_or(damaged("items longer than the file"))?;
                    let rest = element.get(field(4) as usize..).ok_or(damaged("place of an item"))?;
                    let key = rest.get(..key_len).ok_or(damaged("key"))?;
                    let value = rest[key_len..].get(..value_len).ok_or(damaged("value"))?;
                    items.push(Item { key, value, is_bucket: field(0) & BUCKET_ELEMENT != 0 });
                }
                _ => return Err(damaged("kind of a page")),
            }
        }
        Ok(())
    }
}

fn damaged(what: &'static str) -> DatabaseError {
    DatabaseError::Damaged(what)
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array_at(bytes, at).map(u64::from_le_bytes)
}
