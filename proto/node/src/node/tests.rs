use std::time::Duration;

use rand::SeedableRng;
use rand_chacha::ChaCha12Rng;
use weave_overlay::ForwarderEvent;
use weave_switch::SwitchEvent;
use weave_types::{Instant, MacAddr, Now, PeerName, PeerUid};

use super::{Config, Node};
use crate::event::Event;
use crate::output::Output;

fn at(micros: u64) -> Now {
    Now { mono: Instant::from_origin(Duration::from_micros(micros)), wall: Duration::from_micros(micros) }
}

/// A node, the number of tables that it published, and what it logged.
struct Driver {
    node: Node,
    published: usize,
    log: Vec<String>,
}

impl Driver {
    fn learn(&mut self, number: u32, now: Now) {
        let [a, b, c, d] = number.to_be_bytes();
        let event = SwitchEvent::LocalMac(MacAddr([2, 0, a, b, c, d]));
        self.node.handle_forwarder_event(ForwarderEvent::Switch(event), now);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.node.poll_output() {
            match output {
                Output::TablesChanged => {
                    self.published += 1;
                    self.node.tables();
                }
                Output::Event(Event::Mesh(_)) => {}
                Output::Event(event) => self.log.push(event.to_string()),
                _ => {}
            }
        }
    }

    fn logged(&self, text: &str) -> usize {
        self.log.iter().filter(|line| line.contains(text)).count()
    }
}

#[test]
fn a_full_mac_table_is_published_once_in_a_while() {
    let own = PeerName::from_bytes([0x7a, 0, 0, 0, 0, 1]);
    let config = Config::new(weave_mesh::Config::new(own, "h1", PeerUid(1)));
    let node = Node::new(config, ChaCha12Rng::from_seed([1; 32]), at(0));
    let mut driver = Driver { node, published: 0, log: Vec::new() };
    driver.learn(0, at(1_000_000));
    assert_eq!(driver.published, 1, "a small table at once");
    for number in 1..65_536 {
        driver.learn(number, at(1_000_000));
    }
    assert_eq!((driver.logged("Discovered"), driver.logged("MAC table full")), (20, 0));
    driver.published = 0;
    for number in 0..10_000 {
        driver.learn(100_000 + number, at(2_000_000 + u64::from(number) * 100));
    }
    assert!((10..=17).contains(&driver.published), "{} tables in a second", driver.published);
    let full = "MAC table full (65536 entries), mostly from 7a:00:00:00:00:01(h1) (65536)";
    assert_eq!((driver.logged("Discovered"), driver.logged(full)), (20, 1));
    let status = driver.node.status(at(3_000_000));
    assert_eq!((status.macs.len(), status.mac_table.displaced), (65_536, 10_000));
    let published = driver.published;
    driver.node.handle_timeout(at(11_000_000));
    driver.drain();
    assert_eq!(driver.published, published + 1, "the last change, too");
    assert_eq!(
        driver.logged("MACs at 7a:00:00:00:00:01(h1) that are not listed: 75516 discovered, 0 expired"),
        1
    );
    driver.node.handle_timeout(at(700_000_000));
    driver.node.handle_timeout(at(711_000_000));
    driver.drain();
    assert_eq!(driver.logged("MAC table has room again (0 entries)"), 1);
    assert_eq!((driver.logged("Expired"), driver.logged("0 discovered, 65516 expired")), (20, 1));
}
