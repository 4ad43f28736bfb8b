use std::mem;

/// 2^20 sequence numbers form a window, as in 2.8.1 (vector `sleeve_replay_window.json`).
const WINDOW_BITS: u32 = 20;
const PAGE_BITS: u32 = 15;
const PAGES: usize = 1 << (WINDOW_BITS - PAGE_BITS);
const WORDS: usize = 1 << (PAGE_BITS - 6);

/// The sequence numbers that were received, recorded as 2.8.1 does (docs/spec/data-plane.md 4.1): numbers are divided into
/// windows of 2^20; the highest window seen and the one below it are recorded exactly, older numbers are rejected.
///
/// Memory is allocated in pages of 4 KiB for 2^15 numbers each, at most 256 KiB, and reused when the windows move.
#[derive(Clone, Debug, Default)]
pub struct ReplayWindow {
    /// Number of the highest window.
    highest: u64,
    current: Bitmap,
    previous: Bitmap,
}

impl ReplayWindow {
    /// Creates a window that has seen nothing.
    pub fn new() -> ReplayWindow {
        ReplayWindow::default()
    }

    /// Marks `seq` as seen. Returns `false` if it was seen before or is too old.
    ///
    /// The number must be authenticated first: a forged one would move the window.
    pub fn accept(&mut self, seq: u64) -> bool {
        let window = seq >> WINDOW_BITS;
        let index = (seq & ((1 << WINDOW_BITS) - 1)) as usize;
        if window > self.highest {
            mem::swap(&mut self.current, &mut self.previous);
            self.current.clear();
            if window - self.highest > 1 {
                self.previous.clear();
            }
            self.highest = window;
        }
        match self.highest - window {
            0 => self.current.mark(index),
            1 => self.previous.mark(index),
            _ => false,
        }
    }

    /// Number of the highest window seen: the highest sequence number divided by 2^20.
    pub fn highest_window(&self) -> u64 {
        self.highest
    }
}

#[derive(Clone, Debug, Default)]
struct Bitmap {
    pages: [Option<Box<[u64; WORDS]>>; PAGES],
}

impl Bitmap {
    /// Sets a bit and returns whether it was clear.
    fn mark(&mut self, index: usize) -> bool {
        let page = self.pages[index >> PAGE_BITS].get_or_insert_with(|| Box::new([0; WORDS]));
        let word = &mut page[(index >> 6) % WORDS];
        let bit = 1 << (index % 64);
        let fresh = *word & bit == 0;
        *word |= bit;
        fresh
    }

    fn clear(&mut self) {
        for page in self.pages.iter_mut().flatten() {
            page.fill(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// The rule of docs/spec/data-plane.md 4.1 with a set instead of bitmaps.
    #[derive(Default)]
    struct Model {
        current: u64,
        seen: BTreeSet<u64>,
    }

    impl Model {
        fn accept(&mut self, seq: u64) -> bool {
            self.current = self.current.max(seq >> WINDOW_BITS);
            (seq >> WINDOW_BITS) + 1 >= self.current && self.seen.insert(seq)
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_model(steps in prop::collection::vec((0u64..5, 0u64..4, 0u64..3), 1..200)) {
            let (mut window, mut model) = (ReplayWindow::new(), Model::default());
            let mut base = 0u64;
            for (jump, page, low) in steps {
                base += (jump == 4) as u64 * (1 << WINDOW_BITS);
                let seq = (base + (jump << WINDOW_BITS) / 2 + (page << PAGE_BITS) + low).saturating_sub(2);
                prop_assert_eq!(window.accept(seq), model.accept(seq), "{}", seq);
                prop_assert_eq!(window.highest_window(), model.current);
            }
        }
    }
}
