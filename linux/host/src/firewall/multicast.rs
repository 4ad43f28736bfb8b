//! The firewall rules inside a container: multicast is accepted from the container's own subnets only
//! (docs/spec/containers.md D.2 steps 6 and 8), by the rules that 2.8.1 adds as well:
//!
//! ```text
//! -A INPUT -s 10.32.0.0/12 -d 224.0.0.0/4 -i ethwe -j ACCEPT      one per subnet, inserted at the top
//! -A INPUT -d 224.0.0.0/4 -i ethwe -p igmp -j ACCEPT              one, inserted at the top; 2.8.1 does not have it
//! -A INPUT -d 224.0.0.0/4 -i ethwe -j DROP                        one, appended
//! ```
//!
//! IGMP is exempt because a querier without an address of its own uses the source 0.0.0.0 (RFC 4541 section 2.1.1): a container that did not see the query
//! would not report its groups, and the bridges would stop forwarding them.
//!
//! The host's `iptables` adds them, run inside the namespace. Without `iptables`, `nft` adds the same rules to the table and chain
//! that `iptables-nft` would use.

use weave_types::Cidr;

use super::driver::{Backend, Driver, Drivers, FirewallError};
use super::rules::{DesiredChain, MULTICAST, Match, Placement, Rule, Table, Verdict};

/// A rule for multicast from the weave network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum MulticastRule {
    /// Multicast is accepted from this subnet (host bits zero).
    Accept(Cidr),
    /// Dropped from all other subnets, except for IGMP.
    Drop,
}

impl MulticastRule {
    fn in_chain(self, interface: &str) -> DesiredChain {
        let input = Match::In(interface.to_owned());
        match self {
            MulticastRule::Accept(subnet) => {
                let matches = vec![input, Match::source(subnet), Match::destination(MULTICAST)];
                input_chain(Placement::Prepend, vec![Rule { matches, verdict: Verdict::Accept }])
            }
            MulticastRule::Drop => {
                input_chain(Placement::Append, vec![accept_igmp(interface), drop_all(interface)])
            }
        }
    }
}

fn input_chain(placement: Placement, rules: Vec<Rule>) -> DesiredChain {
    DesiredChain { table: Table::Filter, chain: "INPUT".to_owned(), placement, rules }
}

fn accept_igmp(interface: &str) -> Rule {
    let matches = vec![Match::In(interface.to_owned()), Match::Igmp, Match::destination(MULTICAST)];
    Rule { matches, verdict: Verdict::Accept }
}

fn drop_all(interface: &str) -> Rule {
    let matches = vec![Match::In(interface.to_owned()), Match::destination(MULTICAST)];
    Rule { matches, verdict: Verdict::Drop }
}

/// Adds a rule unless it is there, with `iptables`, or with `nft` where `iptables` fails. Returns the backend in which it was added.
pub(crate) fn add(interface: &str, rule: MulticastRule) -> Result<Option<Backend>, FirewallError> {
    let drivers = Drivers::find();
    let desired = rule.in_chain(interface);
    let add = |driver: &Driver| driver.ensure(&desired).map(|added| added.then_some(driver.backend()));
    let preferred = drivers.preferred().ok_or(FirewallError::NotInstalled)?;
    add(preferred).or_else(|error| drivers.get(Backend::Nft).and_then(|nft| add(nft).ok()).ok_or(error))
}

/// Adds the rule for IGMP where the rule that drops other multicast is without it: 2.8.1 and earlier versions add only that one. `true`
/// if it was added.
pub(crate) fn admit_membership(interface: &str) -> Result<bool, FirewallError> {
    let drivers = Drivers::find();
    let mut candidates: Vec<&Driver> = drivers.iptables().collect();
    if candidates.is_empty() {
        candidates.extend(drivers.get(Backend::Nft));
    }
    let drop = input_chain(Placement::Append, vec![drop_all(interface)]);
    let accept = input_chain(Placement::Prepend, vec![accept_igmp(interface)]);
    let mut added = false;
    for driver in candidates {
        if driver.has(&drop)? {
            added |= driver.ensure(&accept)?;
        }
    }
    Ok(added)
}

/// Adds a rule in this backend unless it is there.
pub(crate) fn add_to(backend: Backend, interface: &str, rule: MulticastRule) -> Result<(), FirewallError> {
    let drivers = Drivers::find();
    let driver = drivers.get(backend).ok_or(FirewallError::NotInstalled)?;
    driver.ensure(&rule.in_chain(interface)).map(drop)
}

/// Removes every copy of a rule from this backend.
pub(crate) fn remove_from(
    backend: Backend,
    interface: &str,
    rule: MulticastRule,
) -> Result<(), FirewallError> {
    let drivers = Drivers::find();
    let driver = drivers.get(backend).ok_or(FirewallError::NotInstalled)?;
    driver.remove(&rule.in_chain(interface)).map(drop)
}

/// Removes every copy of a rule: 2.8.1, which has an `iptables` of its own, may have added it to another backend. Returns the backends
/// that had it, and what failed.
pub(crate) fn remove(interface: &str, rule: MulticastRule) -> (Vec<Backend>, Vec<FirewallError>) {
    let drivers = Drivers::find();
    let mut candidates: Vec<&Driver> = drivers.iptables().collect();
    if candidates.is_empty() {
        candidates.extend(drivers.get(Backend::Nft));
    }
    let (mut removed, mut errors) = (Vec::new(), Vec::new());
    for driver in candidates {
        match driver.remove(&rule.in_chain(interface)) {
            Ok(true) => removed.push(driver.backend()),
            Ok(false) => {}
            Err(e) => errors.push(e),
        }
    }
    (removed, errors)
}

#[cfg(test)]
mod tests {
    use super::super::listing::Listing;
    use super::super::{nft, plan};
    use super::*;

    fn accept(subnet: &str) -> MulticastRule {
        MulticastRule::Accept(subnet.parse().unwrap())
    }

    const ALL: [(&str, &str, &str); 4] = [
        (
            "10.32.0.0/12",
            "-s 10.32.0.0/12 -d 224.0.0.0/4 -i ethwe -j ACCEPT",
            "iifname \"ethwe\" ip saddr 10.32.0.0/12 ip daddr 224.0.0.0/4 counter packets 7 bytes 8 accept",
        ),
        (
            "10.2.1.1/32",
            "-i ethwe -s 10.2.1.1 -d 224.0.0.0/4 -j ACCEPT",
            "iifname \"ethwe\" ip saddr 10.2.1.1 ip daddr 224.0.0.0/4 counter accept",
        ),
        (
            "igmp",
            "-d 224.0.0.0/4 -i ethwe -p igmp -j ACCEPT",
            "iifname \"ethwe\" meta l4proto igmp ip daddr 224.0.0.0/4 counter packets 1 bytes 32 accept",
        ),
        ("", "-d 224.0.0.0/4 -i ethwe -j DROP", "iifname \"ethwe\" ip daddr 224.0.0.0/4 drop"),
    ];

    fn rule(subnet: &str) -> DesiredChain {
        match subnet {
            "" => input_chain(Placement::Append, vec![drop_all("ethwe")]),
            "igmp" => input_chain(Placement::Append, vec![accept_igmp("ethwe")]),
            subnet => accept(subnet).in_chain("ethwe"),
        }
    }

    #[test]
    fn rules_are_recognised_as_the_programs_list_them() {
        for (subnet, iptables, nft) in ALL {
            let desired = rule(subnet);
            let listing =
                Listing::parse(&format!("*filter\n:INPUT ACCEPT [0:0]\n-A INPUT {iptables}\nCOMMIT\n"));
            assert_eq!(plan::additions(&listing, &desired), None, "{iptables}");
            assert_eq!(
                plan::removals(&listing, &desired),
                Some(format!("*filter\n-D INPUT {iptables}\nCOMMIT\n"))
            );
            let chain = nft::parse_chain(&format!("\t\t{nft} # handle 4\n"));
            assert_eq!(nft::additions(Some(&chain), &desired), None, "{nft}");
            let removal = "delete rule ip filter INPUT handle 4\n".to_owned();
            assert_eq!(nft::removals(&chain, &desired), Some(removal));
        }
    }

    #[test]
    fn similar_rules_of_others_are_not_ours() {
        let desired = rule("");
        for other in [
            "INPUT -d 224.0.0.0/4 -i ethwe1 -j DROP",
            "INPUT -d 224.0.0.0/4 -i ethwe -j ACCEPT",
            "INPUT -s 10.32.0.0/12 -d 224.0.0.0/4 -i ethwe -j DROP",
            "INPUT -d 224.0.0.0/8 -i ethwe -j DROP",
            "INPUT -d 224.0.0.0/4 -i ethwe -p udp -j DROP",
            "FORWARD -d 224.0.0.0/4 -i ethwe -j DROP",
            "INPUT ! -d 224.0.0.0/4 -i ethwe -j DROP",
        ] {
            let listing = Listing::parse(&format!("*filter\n-A {other}\nCOMMIT\n"));
            assert_eq!(plan::removals(&listing, &desired), None, "{other}");
            assert!(plan::additions(&listing, &desired).is_some(), "{other}");
        }
        for other in [
            "iifname \"ethwe2\" ip daddr 224.0.0.0/4 counter drop",
            "iifname \"ethwe\" ip daddr 224.0.0.0/4 accept",
        ] {
            assert_eq!(nft::removals(&nft::parse_chain(&format!("{other} # handle 4")), &desired), None);
        }
    }

    /// The rules of the INPUT chain as `iptables-nft` and `nft` list them.
    #[test]
    fn nft_and_iptables_nft_find_each_others_rules() {
        let done = std::thread::spawn(|| {
            if let Err(e) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
                eprintln!("SKIPPED: no network namespace: {e}");
                return;
            }
            let drivers = Drivers::find();
            let (Some(nft), Some(iptables)) = (drivers.get(Backend::Nft), drivers.get(Backend::IptablesNft))
            else {
                eprintln!("SKIPPED: nft or iptables-nft is not installed");
                return;
            };
            let (first, last) =
                (accept("10.2.1.0/24").in_chain("ethwe"), MulticastRule::Drop.in_chain("ethwe"));
            let texts = || {
                let rules = nft.nft_chain("filter", "INPUT").unwrap().unwrap_or_default();
                rules.into_iter().map(|rule| rule.text).collect::<Vec<_>>()
            };
            let order = [
                "iifname \"ethwe\" ip saddr 10.2.1.0/24 ip daddr 224.0.0.0/4 accept",
                "iifname \"ethwe\" meta l4proto igmp ip daddr 224.0.0.0/4 accept",
                "iifname \"ethwe\" ip daddr 224.0.0.0/4 drop",
            ];
            assert_eq!(texts(), [] as [&str; 0]);
            assert_eq!(
                (nft.ensure(&last), nft.ensure(&first), nft.ensure(&first)),
                (Ok(true), Ok(true), Ok(false))
            );
            assert_eq!((iptables.ensure(&first), iptables.ensure(&last)), (Ok(false), Ok(false)));
            assert_eq!(texts(), order);
            assert_eq!((iptables.remove(&first), iptables.remove(&first)), (Ok(true), Ok(false)));
            assert_eq!(texts(), order[1..]);
            assert_eq!(iptables.ensure(&first), Ok(true));
            assert_eq!(texts(), order);
            for rule in [first, last] {
                assert_eq!((nft.remove(&rule), nft.remove(&rule)), (Ok(true), Ok(false)));
            }
            assert_eq!(texts(), [] as [&str; 0]);
        });
        done.join().unwrap();
    }
}
