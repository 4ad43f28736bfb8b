//! Used and free addresses, compared with 2.8.1 and with a model.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use crate::support::{list, range, text, vectors};
use proptest::prelude::*;
use weave_ipam::space::{RangeSet, Space};
use weave_ipam::{AddrRange, Subnet};

fn show(space: &Space) -> String {
    let set = |label: &str, set: &RangeSet| {
        if set.is_empty() {
            return String::new();
        }
        let parts: Vec<String> =
            set.iter().map(|r| format!("{}+{} ", Ipv4Addr::from(r.start()), r.size())).collect();
        format!("{label}{}", parts.join(" "))
    };
    let shown = set("owned: ", space.used()) + &set("free: ", space.free());
    if shown.is_empty() { "No address ranges owned".to_owned() } else { shown }
}

fn one(text: &str) -> AddrRange {
    match text.parse::<Subnet>() {
        Ok(subnet) => subnet.range(),
        Err(_) => {
            let (addr, len) = text.split_once('/').unwrap();
            let start: u32 = addr.parse::<Ipv4Addr>().unwrap().into();
            // Some ranges are not aligned; the network that contains them is meant.
            let size = 1u32 << (32 - len.parse::<u32>().unwrap());
            AddrRange::new(start & !(size - 1), (start & !(size - 1)) + size)
        }
    }
}

#[test]
fn allocations_follow_the_recorded_steps() {
    let nothing = RangeSet::default();
    for case in list(&vectors("space.json")["cases"]) {
        let mut space = Space::default();
        let mut owned: Vec<AddrRange> = Vec::new();
        for step in list(&case["steps"]) {
            let arg = text(&step["arg"]);
            let addr = || u32::from(arg.parse::<Ipv4Addr>().unwrap());
            let result = match text(&step["op"]) {
                "init" | "addrange" => {
                    owned.extend(arg.trim_matches(['[', ']']).split(' ').map(one));
                    space.set_owned(owned.iter().copied());
                    String::new()
                }
                "allocate" => {
                    let subnet: Subnet = arg.parse().unwrap();
                    let addr = space.allocate(subnet.hosts(), &nothing);
                    addr.map_or("none".to_owned(), |addr| Ipv4Addr::from(addr).to_string())
                }
                "claim" if space.claim(addr()) => "ok".to_owned(),
                "claim" => format!("Address {arg} is not free to claim"),
                "free" if space.release(addr()) => "ok".to_owned(),
                "free" => format!("Address {arg} is not ours"),
                "donate" => match space.offer(one(arg), &nothing) {
                    None => "none".to_owned(),
                    Some(donation) => {
                        space.remove(donation);
                        owned = owned
                            .iter()
                            .copied()
                            .collect::<RangeSet>()
                            .minus(&[donation].into_iter().collect())
                            .iter()
                            .collect();
                        format!("{}+{}", Ipv4Addr::from(donation.start()), donation.size())
                    }
                },
                "numfree" => space.free().count_in(one(arg)).to_string(),
                other => panic!("{other}"),
            };
            assert_eq!(result, text(&step["result"]), "{} {step}", case["name"]);
            assert_eq!(show(&space), text(&step["space_after"]), "{} {step}", case["name"]);
        }
    }
}

#[test]
fn blocks_covers_and_display() {
    for case in list(&vectors("space.json")["biggest_cidr_range"]) {
        let whole = range(case);
        let biggest = whole.biggest_block();
        assert_eq!(Ipv4Addr::from(biggest.start()).to_string(), text(&case["biggest_start"]), "{case}");
        assert_eq!(Ipv4Addr::from(biggest.end()).to_string(), text(&case["biggest_end_exclusive"]), "{case}");
        assert_eq!(whole.to_string(), text(&case["range_string"]));
        assert_eq!(whole.as_cidr(), text(&case["as_cidr_string"]));
        let cover: Vec<String> = whole.cover().iter().map(ToString::to_string).collect();
        assert_eq!(serde_json::json!(cover), case["cidr_cover"], "{case}");
    }
}

#[derive(Clone, Debug)]
enum Op {
    Allocate(u32, u32),
    Claim(u32),
    Release(u32),
    Donate(u32, u32),
    Owned(Vec<(u32, u32)>),
}

fn ops() -> impl Strategy<Value = Op> {
    prop_oneof![
        (0u32..60, 0u32..64).prop_map(|(a, b)| Op::Allocate(a, b)),
        (0u32..64).prop_map(Op::Claim),
        (0u32..64).prop_map(Op::Release),
        (0u32..60, 0u32..70).prop_map(|(a, b)| Op::Donate(a, b)),
        prop::collection::vec((0u32..60, 1u32..20), 0..4).prop_map(Op::Owned),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// A model made of two plain sets.
    #[test]
    fn agrees_with_a_model(ops in prop::collection::vec(ops(), 1..40), avoid in prop::collection::btree_set(0u32..64, 0..6)) {
        let avoided: RangeSet = avoid.iter().map(|&a| AddrRange::single(a)).collect();
        let mut space = Space::default();
        let (mut used, mut free) = (BTreeSet::new(), BTreeSet::new());
        for op in ops {
            match op {
                Op::Allocate(a, b) => {
                    let expected = free.range(a..b.max(a)).copied().find(|x| !avoid.contains(x));
                    let got = space.allocate(AddrRange::new(a, b), &avoided);
                    prop_assert_eq!(got, expected);
                    if let Some(addr) = got {
                        free.remove(&addr);
                        used.insert(addr);
                    }
                }
                Op::Claim(a) => {
                    let ok = free.remove(&a);
                    prop_assert_eq!(space.claim(a), ok);
                    if ok { used.insert(a); }
                }
                Op::Release(a) => {
                    let ok = used.remove(&a);
                    prop_assert_eq!(space.release(a), ok);
                    if ok { free.insert(a); }
                }
                Op::Donate(a, b) => {
                    let asked = AddrRange::new(a, b);
                    let there: Vec<u32> = free.range(a..b.max(a)).copied().filter(|x| !avoid.contains(x)).collect();
                    match space.offer(asked, &avoided) {
                        None => prop_assert!(there.is_empty()),
                        Some(donation) => {
                            prop_assert!(donation.size() > 0);
                            prop_assert!(there.len() == 1 || donation.size() as usize <= there.len() / 2 + 1);
                            for addr in donation.start()..donation.end() {
                                prop_assert!(there.contains(&addr));
                                free.remove(&addr);
                            }
                            space.remove(donation);
                        }
                    }
                }
                Op::Owned(ranges) => {
                    let lost = space.set_owned(ranges.iter().map(|&(start, len)| AddrRange::new(start, start + len)));
                    let owned: BTreeSet<u32> = ranges.iter().flat_map(|&(start, len)| start..start + len).collect();
                    let now: BTreeSet<u32> = owned.difference(&used).copied().collect();
                    prop_assert_eq!(lost.count() as usize, free.difference(&now).count());
                    free = now;
                }
            }
            let flat = |set: &RangeSet| set.iter().flat_map(|r| r.start()..r.end()).collect::<BTreeSet<u32>>();
            prop_assert_eq!(&flat(space.used()), &used);
            prop_assert_eq!(&flat(space.free()), &free);
            prop_assert_eq!(space.free().count() as usize, free.len());
            for pair in space.free().iter().collect::<Vec<_>>().windows(2) {
                prop_assert!(pair[0].end() < pair[1].start(), "neither touch nor overlap");
            }
        }
    }
}
