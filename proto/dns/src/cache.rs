//! Answers of the servers, for as long as their TTLs allow.

use std::collections::BTreeMap;
use std::time::Duration;

use weave_types::Instant;

use crate::upstream::QuestionKey;

/// Bytes that an entry needs besides its question, which is there twice, and its answer.
const ENTRY_OVERHEAD: usize = 256;
/// The largest entry, as a part of the whole cache.
const MAX_ENTRY_SHARE: usize = 16;

#[derive(Debug)]
struct Entry {
    answer: Vec<u8>,
    stored: Instant,
    /// When it expires, and a number that tells apart those that expire at once.
    expiry: (Instant, u64),
}

/// A cache with a bound on its memory. What expires first gives way.
#[derive(Debug)]
pub(crate) struct Cache {
    max_bytes: usize,
    bytes: usize,
    entries: BTreeMap<QuestionKey, Entry>,
    by_expiry: BTreeMap<(Instant, u64), QuestionKey>,
    next_number: u64,
}

fn cost(question: &QuestionKey, answer: &[u8]) -> usize {
    2 * question.len() + answer.len() + ENTRY_OVERHEAD
}

impl Cache {
    pub(crate) fn new(max_bytes: usize) -> Cache {
        Cache { max_bytes, bytes: 0, entries: BTreeMap::new(), by_expiry: BTreeMap::new(), next_number: 0 }
    }

    /// The answer to a question, and for how long it has been here.
    pub(crate) fn lookup(&mut self, question: &QuestionKey, now: Instant) -> Option<(&[u8], Duration)> {
        if self.entries.get(question)?.expiry.0 <= now {
            self.remove(question);
            return None;
        }
        let entry = self.entries.get(question)?;
        Some((&entry.answer, now - entry.stored))
    }

    pub(crate) fn insert(
        &mut self,
        question: QuestionKey,
        answer: Vec<u8>,
        lifetime: Duration,
        now: Instant,
    ) {
        let cost = cost(&question, &answer);
        if cost > self.max_bytes / MAX_ENTRY_SHARE {
            return;
        }
        self.remove(&question);
        while self.bytes + cost > self.max_bytes {
            let Some((_, first)) = self.by_expiry.pop_first() else { break };
            self.remove(&first);
        }
        let expiry = (now + lifetime, self.next_number);
        self.next_number += 1;
        self.bytes += cost;
        self.by_expiry.insert(expiry, question.clone());
        self.entries.insert(question, Entry { answer, stored: now, expiry });
    }

    fn remove(&mut self, question: &QuestionKey) {
        if let Some(entry) = self.entries.remove(question) {
            self.by_expiry.remove(&entry.expiry);
            self.bytes -= cost(question, &entry.answer);
        }
    }

    pub(crate) fn clear(&mut self) {
        *self = Cache::new(self.max_bytes);
    }

    /// Bytes in use, by this cache's own count.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::Query;

    const SECOND: Duration = Duration::from_secs(1);

    fn question(n: u32) -> QuestionKey {
        let mut query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0".to_vec();
        let label = n.to_string();
        query.push(label.len() as u8);
        query.extend(label.bytes());
        query.extend(b"\x03com\0\0\x01\0\x01");
        let Ok(query) = Query::parse(&query) else { panic!("not a query") };
        QuestionKey::new(&query)
    }

    #[test]
    fn answers_expire() {
        let mut cache = Cache::new(1 << 20);
        let start = Instant::ORIGIN;
        cache.insert(question(1), vec![1], SECOND * 2, start);
        cache.insert(question(1), vec![2], SECOND * 3, start + SECOND);
        assert_eq!(cache.lookup(&question(1), start + SECOND * 3), Some((&[2][..], SECOND * 2)));
        assert_eq!(cache.lookup(&question(2), start), None);
        assert_eq!(cache.lookup(&question(1), start + SECOND * 4), None);
        assert_eq!((cache.bytes(), cache.entries.len(), cache.by_expiry.len()), (0, 0, 0));
    }

    #[test]
    fn bytes_are_limited_and_the_next_to_expire_gives_way() {
        let mut cache = Cache::new(64 << 10);
        let start = Instant::ORIGIN;
        for n in 0..1000 {
            cache.insert(question(n), vec![0; 500], SECOND * (1000 - n), start);
            assert!(cache.bytes() <= 64 << 10);
            assert_eq!(cache.entries.len(), cache.by_expiry.len());
        }
        assert!(cache.lookup(&question(0), start).is_some());
        assert!(cache.lookup(&question(998), start).is_none());
        let before = cache.entries.len();
        assert!(before > 60);
        cache.insert(question(1001), vec![0; 8 << 10], SECOND, start);
        assert_eq!(cache.entries.len(), before, "a large answer is not stored");
    }
}
