//! Limits of the connections to a TCP listener, and of streams of events. No user of the host, and no other host, can keep the others out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::origin::Holder;

/// One holder has at most this part of the connections that are not root's.
const SHARES: usize = 4;

#[derive(Debug)]
pub(super) struct ConnectionLimits {
    limit: usize,
    /// Connections of root, of which further ones wait.
    root: Arc<Semaphore>,
    /// Numbers of connections of the others.
    held: Mutex<BTreeMap<Holder, usize>>,
}

/// The right to one connection.
#[derive(Debug)]
pub(super) enum Place {
    Root(#[expect(dead_code, reason = "ends with the connection")] OwnedSemaphorePermit),
    Shared(Arc<ConnectionLimits>, Holder),
}

impl ConnectionLimits {
    pub(super) fn new(limit: usize) -> Arc<ConnectionLimits> {
        Arc::new(ConnectionLimits { limit, root: Arc::new(Semaphore::new(limit)), held: Mutex::default() })
    }

    /// `None` if this holder, or all together, have too many.
    pub(super) async fn admit(self: &Arc<ConnectionLimits>, holder: Holder) -> Option<Place> {
        if holder.is_root() {
            return self.root.clone().acquire_owned().await.ok().map(Place::Root);
        }
        self.admit_other(holder)
    }

    /// As [`ConnectionLimits::admit`], but root does not wait.
    pub(super) fn try_admit(self: &Arc<ConnectionLimits>, holder: Holder) -> Option<Place> {
        if holder.is_root() {
            return self.root.clone().try_acquire_owned().ok().map(Place::Root);
        }
        self.admit_other(holder)
    }

    fn admit_other(self: &Arc<ConnectionLimits>, holder: Holder) -> Option<Place> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let own = held.get(&holder).copied().unwrap_or(0);
        if own >= self.limit.div_ceil(SHARES) || held.values().sum::<usize>() >= self.limit {
            return None;
        }
        held.insert(holder, own + 1);
        Some(Place::Shared(self.clone(), holder))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Place::Shared(limits, holder) = self else { return };
        let mut held = limits.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(holder) {
            *count -= 1;
            if *count == 0 {
                held.remove(holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_user_cannot_hold_all_connections() {
        let limits = ConnectionLimits::new(8);
        let mut places = Vec::new();
        let root = Holder::User(nix::unistd::geteuid().as_raw());
        let users: Vec<_> = (0..5).map(|n| Holder::User(u32::MAX - n)).collect();
        for user in &users {
            let mut count = 0;
            while let Some(place) = limits.admit(*user).await {
                places.push((*user, place));
                count += 1;
            }
            assert_eq!(count, if *user == users[4] { 0 } else { 2 }, "{user}");
        }
        assert!(limits.admit(root).await.is_some(), "root has connections of its own");
        places.retain(|(user, _)| *user != users[0]);
        assert!(limits.admit(users[4]).await.is_some());
        drop(places);
        assert!(limits.held.lock().unwrap().is_empty());
    }
}
