use std::time::Duration;

use weave_types::Instant;

use super::tables::KernelTables;

/// How long the tables of the last process are used, at most.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Whether a process that has taken over programs holds its own tables back: those of the last process stay in use until as many
/// peers are reached by the kernel again, or for five seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Returning(Option<(usize, Instant)>);

impl Returning {
    /// The programs that were taken over reach so many peers, as [`KernelTables::reached`].
    pub fn new(reached: usize, now: Instant) -> Returning {
        Returning((reached > 0).then_some((reached, now + TIMEOUT)))
    }

    /// Whether these tables are not to be published yet. Once `false` it remains so.
    pub fn holds(&mut self, tables: &KernelTables) -> bool {
        self.0 = self.0.filter(|(count, _)| tables.reached() < *count);
        self.0.is_some()
    }

    /// When to call [`handle_timeout`](Returning::handle_timeout).
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.0.map(|(_, until)| until)
    }

    /// `true` if the process's own tables are to be published now, whatever they are.
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        self.0.take_if(|(_, until)| now >= *until).is_some()
    }
}
