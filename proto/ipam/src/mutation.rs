/// Planted bugs. Each is switched on by `Config::mutation` (feature `mutants`) and is found by some test, which shows
/// that the test can find it.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mutation {
    /// A received entry of the version that we have counts as newer.
    VersionOffByOne,
    /// A quorum of n/2.
    HalfQuorum,
    /// A donation is sent before it is on the disk.
    DonateBeforePersist,
    /// The result of a merge is not checked against the addresses in use.
    SkipFinalCheck,
    /// A claim takes an address in a range that another peer may have been given.
    ClaimIgnoresDonations,
    /// A donation may include addresses in use.
    DonateUsed,
    /// What was given away stays in the space.
    KeepDonated,
    /// A promise is sent before it is on the disk.
    PromiseBeforePersist,
    /// A restarted elector is another acceptor, and forgets what it promised.
    ForgetElection,
    /// A new value is proposed even if one was accepted.
    IgnoreAccepted,
    /// Votes are counted by the origin of the value.
    CountByOrigin,
    /// A promise is given to a lower proposal, too.
    PromiseLower,
    /// A cancelled allocation is carried out all the same.
    CancelLeaks,
    /// A release is not recorded on the disk.
    ReleaseNotPersisted,
    /// An allocation is answered before it is on the disk.
    AnswerBeforePersist,
    /// Every answer of a donor leads to the next request at once.
    AskWithoutLimit,
    /// The takeover of a peer's ranges raises the version by one only.
    TakeoverByOne,
    /// A ring that was seeded by others is merged.
    IgnoreSeeds,
    /// A range that another peer says it owns is handed out.
    UseDoubtful,
    /// A denial fails every claim in its range.
    DenialOfAnything,
    /// An end of a subnet is given to who asks for it, though it is of no use there.
    GiveEnds,
    /// A request is denied by who does not own anything of the range, and may hear a moment later that it does.
    DenyUnowned,
    /// Something is given to a peer that is gone.
    GiveToAbsent,
    /// Everything new that is heard leads to the next request at once; what is said in answer, and is nothing new, does not.
    AskOnNews,
    /// Several of these at once: what 2.8.1 does otherwise than we do, and can be seen by other peers.
    Legacy,
    /// The same, and what it gives away is told before it is on the disk.
    LegacyEarly,
}

#[cfg(feature = "mutants")]
impl Mutation {
    /// Whether this is part of [`Mutation::Legacy`].
    pub(crate) fn is_legacy(self) -> bool {
        matches!(
            self,
            Mutation::AskOnNews
                | Mutation::CountByOrigin
                | Mutation::DenialOfAnything
                | Mutation::DenyUnowned
                | Mutation::ForgetElection
                | Mutation::GiveEnds
                | Mutation::GiveToAbsent
                | Mutation::UseDoubtful
        )
    }
}
