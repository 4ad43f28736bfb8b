//! Requests for certain addresses (docs/spec/ipam.md 8.5), and those found in use at launch (8.8).

use weave_types::{Cidr, Instant, Now, PeerName};

use super::Allocator;
use crate::address::{AddrRange, ipv4};
use crate::output::{Answer, Cancelled, Container, Event, NO_ID, RequestError, RequestId};

/// Attempts to reach an owner who cannot be reached, one a tick, after which the claim fails.
const TRIES: u32 = 6;

/// A request that waits.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Claim {
    /// `None`: nobody waits for the answer (any more).
    pub(super) request: Option<RequestId>,
    pub(super) container: Container,
    pub(super) cidr: Cidr,
    pub(super) is_container: bool,
    /// Say yes where nothing certain can be said at once.
    no_error_on_unknown: bool,
    pub(super) since: Instant,
    /// Attempts to reach an owner who could not be reached.
    tries: u32,
}

impl Claim {
    /// One that nobody waits for.
    pub(super) fn unasked(container: Container, cidr: Cidr, is_container: bool, now: Now) -> Claim {
        let no_error_on_unknown = true;
        Claim { request: None, container, cidr, is_container, no_error_on_unknown, since: now.mono, tries: 1 }
    }
}

/// What a claim has led to so far.
enum Verdict {
    Settled,
    Failed(RequestError),
    /// Somebody else must say something first; said how far it is certain.
    Open {
        /// The owner is known and can be asked.
        asked: bool,
    },
}

impl Allocator {
    /// Asks for a certain address. Answered by [`Output::Done`](crate::Output::Done) with
    /// [`Answer::Claimed`].
    /// `no_error_on_unknown`: where nothing certain can be said at once, say yes and go on trying.
    pub fn claim(
        &mut self,
        request: RequestId,
        container: Container,
        cidr: Cidr,
        is_container: bool,
        no_error_on_unknown: bool,
        now: Now,
    ) {
        let request = Some(request);
        let claim =
            Claim { request, container, cidr, is_container, no_error_on_unknown, since: now.mono, tries: 1 };
        if self.leaving {
            self.cancel_claim(claim);
        } else {
            let universe = self.config.range.range();
            let inside = ipv4(cidr).is_some_and(|addr| universe.contains(addr));
            self.process_claim(claim);
            if inside && self.ring.is_empty() {
                self.establish(now);
            }
        }
        self.finish(now);
    }

    /// Addresses found in use at launch: claimed before anything new is handed out; nobody waits for the result. All such
    /// calls come before the first other request.
    pub fn preclaim(&mut self, container: Container, cidrs: &[Cidr], is_container: bool, now: Now) {
        for &cidr in cidrs {
            // One that is known from the disk already needs no second attempt.
            let again = self.claims.iter().any(|c| c.cidr == cidr && c.container == container);
            if !again {
                self.process_claim(Claim::unasked(container.clone(), cidr, is_container, now));
            }
        }
        self.finish(now);
    }

    /// Decides a claim, or puts it where it is tried again.
    fn process_claim(&mut self, mut claim: Claim) {
        match self.try_claim(&claim) {
            Verdict::Settled => self.answer_claim(&mut claim, Ok(Answer::Claimed { settled: true })),
            Verdict::Failed(error) => {
                if claim.request.is_none() {
                    self.save_owned(&claim.container);
                    let Claim { container, cidr, .. } = claim;
                    self.event(Event::PreclaimFailed { container, cidr, error });
                } else {
                    self.answer_claim(&mut claim, Err(error));
                }
            }
            Verdict::Open { asked } => {
                if claim.no_error_on_unknown && !asked {
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

    fn try_claim(&mut self, claim: &Claim) -> Verdict {
        let Claim { container, cidr, is_container, .. } = claim;
        let cidr = *cidr;
        let Some(addr) = ipv4(cidr) else { return Verdict::Failed(RequestError::NotIpv4(cidr)) };
        if !self.config.range.range().contains(addr) {
            return self.claim_outside(claim, addr);
        }
        self.dead.remove(container);
        let Some(owner) = self.ring.owner_of(addr) else { return Verdict::Open { asked: false } };
        if owner != self.me() {
            return self.claim_of(claim, owner, addr);
        }
        let Some(holder) = self.owned.holder(addr).cloned() else {
            if self.disputed.contains(addr) && !self.config.policy.use_disputed {
                return Verdict::Open { asked: true };
            }
            self.space.claim(addr);
            self.file(container, cidr, *is_container);
            self.asks.progress(AddrRange::single(addr));
            return Verdict::Settled;
        };
        let nameless = holder == cidr.addr().to_string();
        if holder == *container || container == NO_ID {
            // Without an id it cannot be told who asks: believe it.
            Verdict::Settled
        } else if nameless {
            Verdict::Failed(RequestError::InUse { cidr, holder: None })
        } else {
            Verdict::Failed(RequestError::Owned { cidr, holder })
        }
    }

    fn claim_outside(&mut self, claim: &Claim, addr: u32) -> Verdict {
        let Claim { container, cidr, is_container, .. } = claim;
        let Some(holder) = self.owned.holder(addr).cloned() else {
            self.file(container, *cidr, *is_container);
            return Verdict::Settled;
        };
        if holder == *container || container == NO_ID {
            return Verdict::Settled;
        }
        if self.dead.contains_key(&holder) {
            self.owned.remove(&holder, addr);
            self.save_owned(&holder);
            self.file(container, *cidr, *is_container);
            return Verdict::Settled;
        }
        Verdict::Failed(RequestError::InUse { cidr: *cidr, holder: Some(holder) })
    }

    /// The address is another peer's: ask for it.
    fn claim_of(&mut self, claim: &Claim, owner: PeerName, addr: u32) -> Verdict {
        if self.is_reachable(owner) {
            self.ask(owner, AddrRange::single(addr));
            return Verdict::Open { asked: true };
        }
        if claim.tries >= TRIES && !claim.no_error_on_unknown {
            return Verdict::Failed(RequestError::OtherPeer {
                cidr: claim.cidr,
                peer: owner,
                nickname: self.nickname(owner),
                unreachable: true,
            });
        }
        Verdict::Open { asked: false }
    }

    /// Another tick has passed: those whose owner cannot be reached have tried once more.
    pub(super) fn count_tries(&mut self) {
        for claim in &mut self.claims {
            let owner = ipv4(claim.cidr).and_then(|addr| self.ring.owner_of(addr));
            let reachable = owner.is_some_and(|owner| self.reachable.contains_key(&owner));
            claim.tries = if reachable { 1 } else { claim.tries.saturating_add(1) };
        }
    }

    pub(super) fn retry_claims(&mut self, _now: Now) {
        for claim in std::mem::take(&mut self.claims) {
            self.process_claim(claim);
        }
    }

    /// The owner says that it has nothing to give in a range. That answers a claim for exactly that address, if the owner
    /// was asked for it and has not answered yet; a denial for a whole subnet answers none (2.8.1 takes it for an answer to
    /// all claims there).
    pub(super) fn claims_denied(&mut self, by: PeerName, range: AddrRange) {
        let anything = self.config.policy.denial_fails_all_claims;
        let awaited = self.asks.decided(by, range);
        for mut claim in std::mem::take(&mut self.claims) {
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
            if claim.request.is_some() {
                self.answer_claim(&mut claim, Err(error));
            } else {
                self.save_owned(&claim.container);
                let Claim { container, cidr, .. } = claim;
                self.event(Event::PreclaimFailed { container, cidr, error });
            }
        }
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

    /// Gives up claims that nobody waits for, of a container that releases the address (or all, if `None`).
    pub(super) fn drop_unasked(&mut self, container: &str, addr: Option<u32>) -> bool {
        let before = self.claims.len();
        self.claims.retain(|claim| {
            let own_name = claim.cidr.addr().to_string();
            let id = if claim.container == NO_ID { &own_name } else { &claim.container };
            claim.request.is_some() || id != container || addr.is_some_and(|a| ipv4(claim.cidr) != Some(a))
        });
        self.claims.len() != before
    }
}
