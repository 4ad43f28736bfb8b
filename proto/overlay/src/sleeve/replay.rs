use std::mem;

/// Sequence numbers per window: the original's unit (vector `sleeve_replay_window.json`).
const WINDOW_BITS: u32 = 20;
const PAGE_BITS: u32 = 15;
const PAGES: usize = 1 << (WINDOW_BITS - PAGE_BITS);
const WORDS: usize = 1 << (PAGE_BITS - 6);

/// Which sequence numbers were seen, as the original keeps it (docs/spec/data-plane.md 4.1): the numbers are cut into windows of
/// 2^20; everything in the highest window seen and in the one below it is remembered exactly, older numbers are refused.
///
/// Memory follows use: 4 KiB for each 2^15 numbers, at most 256 KiB, kept and reused when the windows move on.
#[derive(Clone, Debug, Default)]
pub struct ReplayWindow {
    current: u64,
    now: Bitmap,
    below: Bitmap,
}

impl ReplayWindow {
    /// Nothing seen.
    pub fn new() -> ReplayWindow {
        ReplayWindow::default()
    }

    /// Marks `seq` as seen. `false` if it was seen before, or is too old to tell.
    ///
    /// Only for numbers that have been authenticated: a forged one would move the window.
    pub fn accept(&mut self, seq: u64) -> bool {
        let window = seq >> WINDOW_BITS;
        let index = (seq & ((1 << WINDOW_BITS) - 1)) as usize;
        if window > self.current {
            mem::swap(&mut self.now, &mut self.below);
            self.now.clear();
            if window - self.current > 1 {
                self.below.clear();
            }
            self.current = window;
        }
        match self.current - window {
            0 => self.now.mark(index),
            1 => self.below.mark(index),
            _ => false,
        }
    }

    /// The highest window seen: highest sequence number divided by 2^20.
    pub fn current(&self) -> u64 {
        self.current
    }
}

#[derive(Clone, Debug, Default)]
struct Bitmap {
    pages: [Option<Box<[u64; WORDS]>>; PAGES],
}

impl Bitmap {
    /// Whether the bit was clear.
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
                prop_assert_eq!(window.current(), model.current);
            }
        }
    }
}
