//! Requests for specific addresses (docs/spec/ipam.md 8.5), and addresses found in use at launch (8.8).

use weave_types::{Cidr, Instant, Now, PeerName};

use super::Allocator;
use crate::address::{AddrRange, ipv4};
use crate::output::{Answer, Cancelled, Event, NO_ID, RequestError, RequestId};
use crate::owned::Container;

/// Number of ticks after which a claim fails whose owner cannot be reached.
const MAX_ATTEMPTS: u32 = 6;

/// A claim that waits.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Claim {
    /// `None`: no caller waits for the answer.
    pub(super) request: Option<RequestId>,
    pub(super) container: Container,
    pub(super) cidr: Cidr,
    pub(super) is_container: bool,
    /// Answer with success if the owner cannot be asked yet.
    accept_unknown: bool,
    pub(super) since: Instant,
    /// Number of ticks in which the owner could not be reached.
    attempts: u32,
}

impl Claim {
    /// A claim without a waiting caller.
    pub(super) fn background(container: Container, cidr: Cidr, is_container: bool, now: Now) -> Claim {
        let accept_unknown = true;
        Claim { request: None, container, cidr, is_container, accept_unknown, since: now.mono, attempts: 1 }
    }
}

/// Result of an attempt to claim an address.
enum ClaimOutcome {
    Granted,
    Refused(RequestError),
    /// The claim waits for a ring, for the owner, or for the end of a conflict.
    Pending {
        /// The owner is known and can be reached.
        asked: bool,
    },
}

impl Allocator {
    /// Claims a specific address. The answer is an [`Output::Done`](crate::Output::Done) with [`Answer::Claimed`].
    /// `accept_unknown`: if the owner cannot be asked yet, the answer is immediate success, and the claim continues in
    /// the background.
    pub fn claim(
        &mut self,
        request: RequestId,
        container: Container,
        cidr: Cidr,
        is_container: bool,
        accept_unknown: bool,
        now: Now,
    ) {
        let request = Some(request);
        let claim =
            Claim { request, container, cidr, is_container, accept_unknown, since: now.mono, attempts: 1 };
        if self.leaving {
            self.cancel_claim(claim);
        } else {
            let universe = self.config.range.range();
            let inside = ipv4(cidr).is_some_and(|addr| universe.contains(addr));
            self.process_claim(claim);
            if inside && self.ring.is_empty() {
                self.start_election(now);
            }
        }
        self.finish(now);
    }

    /// Claims addresses that were found in use at launch. They have priority over new allocations if this is called
    /// before the first request. No answer is emitted; a failure is an [`Event::PreclaimFailed`].
    pub fn preclaim(&mut self, container: Container, cidrs: &[Cidr], is_container: bool, now: Now) {
        for &cidr in cidrs {
            // A claim that was restored from the disk already waits.
            let again = self.claims.iter().any(|c| c.cidr == cidr && c.container == container);
            if !again {
                self.process_claim(Claim::background(container.clone(), cidr, is_container, now));
            }
        }
        self.finish(now);
    }

    /// Tries a claim; queues it if it cannot be decided yet.
    fn process_claim(&mut self, mut claim: Claim) {
        match self.try_claim(&claim) {
            ClaimOutcome::Granted => self.answer_claim(&mut claim, Ok(Answer::Claimed { settled: true })),
            ClaimOutcome::Refused(error) => self.refuse_claim(claim, error),
            ClaimOutcome::Pending { asked } => {
                if claim.accept_unknown && !asked {
                    self.answer_claim(&mut claim, Ok(Answer::Claimed { settled: false }));
                }
                self.claims.push_back(claim);
            }
        }
    }

    fn answer_claim(&mut self, claim: &mut Claim, result: Result<Answer, RequestError>) {
        if let Some(request) = claim.request.take() {
            self.done(request, result);
        }
    }

    fn refuse_claim(&mut self, claim: Claim, error: RequestError) {
        if let Some(request) = claim.request {
            return self.done(request, Err(error));
        }
        self.save_owned(&claim.container);
        let Claim { container, cidr, .. } = claim;
        self.event(Event::PreclaimFailed { container, cidr, error });
    }

    fn try_claim(&mut self, claim: &Claim) -> ClaimOutcome {
        let Claim { container, cidr, is_container, .. } = claim;
        let cidr = *cidr;
        let Some(addr) = ipv4(cidr) else { return ClaimOutcome::Refused(RequestError::NotIpv4(cidr)) };
        if !self.config.range.range().contains(addr) {
            return self.claim_outside(claim, addr);
        }
        self.release_at.remove(container);
        let Some(owner) = self.ring.owner_of(addr) else { return ClaimOutcome::Pending { asked: false } };
        if owner != self.me() {
            return self.claim_from_owner(claim, owner, addr);
        }
        let Some(holder) = self.owned.holder(addr).cloned() else {
            if self.disputed.contains(addr) && !self.config.policy.use_disputed {
                return ClaimOutcome::Pending { asked: true };
            }
            self.space.claim(addr);
            self.record_address(container, cidr, *is_container);
            self.space_requests.satisfied(AddrRange::single(addr));
            return ClaimOutcome::Granted;
        };
        let without_id = holder == cidr.addr().to_string();
        if holder == *container || container == NO_ID {
            // A claim without an id may come from the holder itself.
            ClaimOutcome::Granted
        } else if without_id {
            ClaimOutcome::Refused(RequestError::InUse { cidr, holder: None })
        } else {
            ClaimOutcome::Refused(RequestError::Owned { cidr, holder })
        }
    }

    fn claim_outside(&mut self, claim: &Claim, addr: u32) -> ClaimOutcome {
        let Claim { container, cidr, is_container, .. } = claim;
        let Some(holder) = self.owned.holder(addr).cloned() else {
            self.record_address(container, *cidr, *is_container);
            return ClaimOutcome::Granted;
        };
        if holder == *container || container == NO_ID {
            return ClaimOutcome::Granted;
        }
        if self.release_at.contains_key(&holder) {
            self.owned.remove(&holder, addr);
            self.save_owned(&holder);
            self.record_address(container, *cidr, *is_container);
            return ClaimOutcome::Granted;
        }
        ClaimOutcome::Refused(RequestError::InUse { cidr: *cidr, holder: Some(holder) })
    }

    /// Requests an address that belongs to another peer.
    fn claim_from_owner(&mut self, claim: &Claim, owner: PeerName, addr: u32) -> ClaimOutcome {
        if self.is_reachable(owner) {
            self.request_space_from(owner, AddrRange::single(addr));
            return ClaimOutcome::Pending { asked: true };
        }
        if claim.attempts >= MAX_ATTEMPTS && !claim.accept_unknown {
            return ClaimOutcome::Refused(RequestError::OtherPeer {
                cidr: claim.cidr,
                peer: owner,
                nickname: self.nickname(owner),
                unreachable: true,
            });
        }
        ClaimOutcome::Pending { asked: false }
    }

    /// Counts a failed attempt for each claim whose owner cannot be reached.
    pub(super) fn count_attempts(&mut self) {
        for claim in &mut self.claims {
            let owner = ipv4(claim.cidr).and_then(|addr| self.ring.owner_of(addr));
            let reachable = owner.is_some_and(|owner| self.reachable.contains_key(&owner));
            claim.attempts = if reachable { 1 } else { claim.attempts.saturating_add(1) };
        }
    }

    pub(super) fn retry_claims(&mut self) {
        for claim in std::mem::take(&mut self.claims) {
            self.process_claim(claim);
        }
    }

    /// Handles a denial. It fails the claim of exactly that address if the sender owns the address, was asked for it
    /// and has not answered yet. A denial of a larger range fails no claim, unlike in 2.8.1 (docs/spec/ipam.md 15.7).
    pub(super) fn handle_claim_denied(&mut self, by: PeerName, range: AddrRange) {
        let anything = self.config.policy.denial_fails_all_claims;
        let awaited = self.space_requests.take_denial(by, range);
        for claim in std::mem::take(&mut self.claims) {
            let addr = ipv4(claim.cidr);
            let denied = addr.is_some_and(|addr| {
                awaited && range == AddrRange::single(addr) && self.ring.owner_of(addr) == Some(by)
                    || anything && range.contains(addr)
            });
            if !denied {
                self.claims.push_back(claim);
                continue;
            }
            let nickname = self.nickname(by);
            let error = RequestError::OtherPeer { cidr: claim.cidr, peer: by, nickname, unreachable: false };
            self.refuse_claim(claim, error);
        }
        // A later claim of the address is sent at once.
        self.drop_stale_requests();
    }

    fn cancel_claim(&mut self, mut claim: Claim) {
        let cancelled = Cancelled::Claim(claim.container.clone(), claim.cidr);
        self.answer_claim(&mut claim, Err(RequestError::Cancelled(cancelled)));
    }

    pub(super) fn cancel_claims(&mut self, which: impl Fn(&Claim) -> bool) {
        if !self.claims.iter().any(&which) {
            return;
        }
        let (cancel, keep) = std::mem::take(&mut self.claims).into_iter().partition(which);
        self.claims = keep;
        for claim in cancel {
            self.cancel_claim(claim);
        }
    }

    /// Drops background claims of one address of a container (of all its addresses if `None`). Returns whether there
    /// were any.
    pub(super) fn drop_background_claims(&mut self, container: &str, addr: Option<u32>) -> bool {
        let before = self.claims.len();
        self.claims.retain(|claim| {
            let addr_text = claim.cidr.addr().to_string();
            let id = if claim.container == NO_ID { &addr_text } else { &claim.container };
            claim.request.is_some() || id != container || addr.is_some_and(|a| ipv4(claim.cidr) != Some(a))
        });
        self.claims.len() != before
    }
}
