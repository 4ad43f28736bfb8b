//! What the data path tells about frames that somebody looks for.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use weave_overlay::forward::{Fate, Forwarder, FrameWatch, Neighbour, Overlay, Tables};
use weave_overlay::udp::UdpPath;
use weave_switch::{ForwardingTable, MacConfig, MacTable, Offload};
use weave_types::{Instant, MacAddr};

use crate::support::{Line, Recorder, addr, name, session};

const NOW: Instant = Instant::from_origin(Duration::from_secs(1000));

/// Looks for frames with this destination.
#[derive(Debug)]
struct Wanted(MacAddr, Mutex<Vec<Fate>>);

impl FrameWatch for Wanted {
    fn wants(&self, frame: &[u8]) -> bool {
        frame[..6] == self.0.0
    }

    fn note(&self, _: &[u8], fate: &Fate) {
        self.1.lock().unwrap().push(fate.clone());
    }
}

fn mac(n: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, n])
}

fn frame(to: u8, from: u8) -> Vec<u8> {
    [&mac(to).0[..], &mac(from).0, &[0x88, 0xb5], &[0; 50]].concat()
}

/// Peer 2 of three in a line; each of them has the MAC of its number.
struct Middle {
    forwarder: Forwarder,
    io: Recorder,
    watch: Arc<Wanted>,
}

impl Middle {
    fn new(wanted: u8, has_path: bool) -> Middle {
        let neighbour = |remote| {
            let remote_addr = has_path.then(|| addr(remote));
            let local = addr(2).ip();
            let path = UdpPath {
                local,
                remote: remote_addr,
                mtu: 1400,
                max_payload: 1472,
                stack_fragments: true,
                batched: true,
            };
            let session = session(2, remote, None);
            Arc::new(Neighbour { session, confirmed: true, path, warp: None, overlay: Overlay::Sleeve })
        };
        let mut macs = MacTable::new(MacConfig::new(name(2)));
        macs.learn_local(mac(2), NOW);
        [1, 3, 9].into_iter().for_each(|n| _ = macs.learn_remote(mac(n), name(n), NOW));
        let routes = Arc::new(Line { own: 2, peers: 3 });
        let forwarding = ForwardingTable { own: name(2), macs: macs.snapshot(), routes };
        let watch = Arc::new(Wanted(mac(wanted), Mutex::default()));
        let tables = Tables::new(0, forwarding, vec![neighbour(1), neighbour(3)]);
        let forwarder = Forwarder::new(Arc::new(tables.with_watches(vec![watch.clone()])), 0);
        Middle { forwarder, io: Recorder::default(), watch }
    }

    fn local(&mut self, frame: &[u8]) -> Vec<Fate> {
        self.forwarder.handle_local(frame, Offload::NONE, NOW, &mut self.io);
        self.forwarder.flush(&mut self.io);
        std::mem::take(&mut self.watch.1.lock().unwrap())
    }

    /// A frame of peer `src` for peer `dst`, which arrives from neighbour 1.
    fn remote(&mut self, src: u8, dst: u8, frame: &[u8]) -> Vec<Fate> {
        let header = [&name(1).to_bytes()[..], &name(src).to_bytes(), &name(dst).to_bytes()].concat();
        let mut datagram = [&header[..], &(frame.len() as u16).to_be_bytes(), frame].concat();
        self.forwarder.handle_datagram(addr(1), &mut datagram, NOW, &mut self.io);
        self.forwarder.flush(&mut self.io);
        std::mem::take(&mut self.watch.1.lock().unwrap())
    }
}

fn fate(from_neighbour: bool, sent: bool, injected: bool, dropped: Option<&str>) -> Vec<Fate> {
    vec![Fate { from_neighbour, sent, injected, dropped: dropped.map(str::to_owned) }]
}

#[test]
fn fates_of_frames_from_the_bridge() {
    assert_eq!(Middle::new(3, true).local(&frame(3, 2)), fate(false, true, false, None));
    assert_eq!(Middle::new(3, true).local(&frame(1, 2)), [], "nobody looks for it");
    let away = Some("awaiting contact");
    assert_eq!(Middle::new(3, false).local(&frame(3, 2)), fate(false, false, false, away));
    let no_route = Some("no route to the destination peer");
    assert_eq!(Middle::new(9, true).local(&frame(9, 2)), fate(false, false, false, no_route));
    let conflict = Some("source MAC in use at another peer");
    assert_eq!(Middle::new(3, true).local(&frame(3, 1)), fate(false, false, false, conflict));
}

#[test]
fn fates_of_frames_from_neighbours() {
    assert_eq!(Middle::new(3, true).remote(1, 3, &frame(3, 1)), fate(true, true, false, None));
    assert_eq!(Middle::new(2, true).remote(1, 2, &frame(2, 1)), fate(true, false, true, None));
    let hairpin = Some("hairpin");
    assert_eq!(Middle::new(1, true).remote(3, 1, &frame(1, 3)), fate(true, false, false, hairpin));
    let unknown = Some("unknown peer");
    assert_eq!(Middle::new(3, true).remote(8, 3, &frame(3, 8)), fate(true, false, false, unknown));
}
