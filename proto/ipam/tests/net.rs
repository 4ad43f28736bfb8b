//! Random runs of a few allocators; see `support/net.rs`. `IPAM_SEEDS=n` runs more of them, `IPAM_FIRST=n`
//! others.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use support::net::{Net, Setup};
use support::peer::subnet;
use weave_ipam::Init;
use weave_types::PeerName;

fn setups() -> Vec<Setup> {
    let names = |n: u64| (0..n).map(|i| PeerName::from_number(0x10 + i).unwrap()).collect();
    let setup = |hosts, range: &str, init| {
        let range = subnet(range);
        Setup { hosts, range, init, steps: 250, crashes: true }
    };
    vec![
        setup(3, "10.2.0.0/28", Init::Consensus(Some(3))),
        setup(3, "10.2.0.0/28", Init::Seed(names(3))),
        setup(4, "10.2.0.0/27", Init::Consensus(Some(4))),
        setup(2, "10.2.0.0/29", Init::Seed(names(1))),
        setup(3, "10.2.0.0/24", Init::Consensus(Some(3))),
    ]
}

fn run(setup: &Setup, seed: u64) -> Result<Net, String> {
    let mut net = Net::new(setup.clone(), seed);
    match net.run() {
        Ok(()) => Ok(net),
        Err(fault) => Err(fault),
    }
}

#[test]
fn random_runs() {
    let number = |name| std::env::var(name).ok().and_then(|n| n.parse().ok());
    let (first, seeds): (u64, u64) = (number("IPAM_FIRST").unwrap_or(0), number("IPAM_SEEDS").unwrap_or(60));
    let (mut answered, mut messages, mut crashes) = (0, 0, 0);
    for (which, setup) in setups().iter().enumerate() {
        for seed in first..first + seeds {
            match run(setup, seed) {
                Ok(net) => {
                    answered += net.answered;
                    messages += net.messages;
                    crashes += net.crashes;
                }
                Err(fault) => panic!("setup {which}, seed {seed}: {fault}"),
            }
        }
    }
    println!("{seeds} seeds: {answered} requests answered, {messages} messages, {crashes} crashes");
    assert!(answered > 10 * seeds && crashes > seeds);
}
